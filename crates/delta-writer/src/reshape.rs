//! A table's next shape: other columns, in the same version as the rows around the change.
//!
//! ```text
//!   rows of the old shape ──> reshape ──> rows of the new shape ──> write ──> commit: rows and metaData
//! ```
//!
//! Columns that only join the end, null for the rows before them, cost a `metaData` action: readers give null for a
//! column that a file lacks. Everything else (a column gone or renamed, a value for the rows before, a wider decimal)
//! rewrites every file with the rows in it, because readers without column mapping go by the names in the files.
//! A rewrite is a truncate that puts the same rows back within the flush; so whatever the flush did before it is
//! in the new files, whatever it does afterwards finds its rows there, and a crash leaves the version before.
//!
//! A history takes a new shape in the same way, every row of it: what it tells of the time before is in the new columns
//! too. Its index names the newest row of each key, so of the rows that move on only those are told to it.

use crate::action::{Action, Add};
use crate::change_row::{ChangeType, change_at};
use crate::deletion_vector::DeletionVector;
use crate::error::{DeltaError, Result};
use crate::key_index::{FileId, KeyHash, RowAddress};
use crate::mirror_table::MirrorTable;
use crate::row_reader::RowReader;
use crate::table_definition::{TableDefinition, TableKind, retention_properties};
use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{cast, nullif, take};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a column of the new shape comes from.
#[derive(Debug, Clone)]
pub enum ColumnOrigin {
    /// This column of the old shape, under whatever name, with a type that holds all its values.
    Kept(usize),
    /// The rows so far have null.
    Null,
    /// The rows so far all have this value: an array of one.
    Constant(ArrayRef),
}

/// The change from one shape to the next.
#[derive(Debug, Clone)]
pub struct Reshape {
    /// The next shape. Key and partitioning stay the columns that they are.
    pub definition: TableDefinition,
    /// For each of its columns.
    pub origins: Vec<ColumnOrigin>,
}

/// A file and which of its rows are deleted by now.
struct LiveRows {
    add: Add,
    hidden: DeletionVector,
    /// Readers see it already.
    committed: bool,
}

/// Rows in their new shape on the way to their files, and which of them the index has to find.
#[derive(Default)]
struct Carried {
    rows: Vec<(RecordBatch, Vec<bool>)>,
    bytes: usize,
}

impl Reshape {
    /// The columns stay; other things are said of them, or of the table.
    pub fn with_same_columns(definition: TableDefinition) -> Reshape {
        let origins = (0..definition.schema.fields().len()).map(ColumnOrigin::Kept).collect();
        Reshape { definition, origins }
    }

    /// Refuses what no table in the shape `old` can take.
    pub(crate) fn check(&self, table: &str, old: &TableDefinition) -> Result<()> {
        let bad = |reason: &str| {
            Err(DeltaError::BadDefinition { table: table.to_owned(), reason: reason.to_owned() })
        };
        self.definition.check(table)?;
        if self.origins.len() != self.definition.schema.fields().len() {
            return bad("a reshape names other columns than its definition");
        }
        let kept = |at: &usize| match self.origins.get(*at) {
            Some(ColumnOrigin::Kept(old)) => Some(*old),
            _ => None,
        };
        let key: Option<Vec<usize>> = self.definition.key.iter().map(kept).collect();
        if key.as_ref() != Some(&old.key) {
            return bad("its key consists of other columns; the table has to be loaded anew");
        }
        if self.definition.kind != old.kind
            || (old.kind == TableKind::Multiset && !self.is_metadata_only(old))
        {
            return bad("its rows have no key; the table has to be loaded anew");
        }
        if self.definition.partition_by != old.partition_by
            || self.definition.deletion_vectors != old.deletion_vectors
        {
            return bad("its files are laid out otherwise; the table has to be loaded anew");
        }
        for (field, origin) in self.definition.schema.fields().iter().zip(&self.origins) {
            let known = match origin {
                ColumnOrigin::Kept(at) => old.schema.fields().get(*at).is_some(),
                ColumnOrigin::Constant(value) => value.len() == 1 && value.data_type() == field.data_type(),
                ColumnOrigin::Null => true,
            };
            if !known {
                return bad("a column of a reshape comes from nowhere");
            }
        }
        Ok(())
    }

    /// Whether the files can stay as they are.
    fn is_metadata_only(&self, old: &TableDefinition) -> bool {
        let kept = self.origins.iter().filter(|origin| matches!(origin, ColumnOrigin::Kept(_))).count();
        kept == old.schema.fields().len()
            && self.definition.schema.fields().iter().zip(&self.origins).all(|(field, origin)| match origin {
                ColumnOrigin::Kept(at) => old
                    .schema
                    .fields()
                    .get(*at)
                    .is_some_and(|old| old.name() == field.name() && old.data_type() == field.data_type()),
                ColumnOrigin::Null => true,
                ColumnOrigin::Constant(_) => false,
            })
    }

    /// Rows of the old shape in the new one.
    fn carry(&self, rows: &RecordBatch, old: &TableDefinition) -> Result<RecordBatch> {
        let count = rows.num_rows();
        // A TRUNCATE's row in a history is of nothing.
        let changes = rows.columns().get(old.source_columns()).filter(|_| old.kind == TableKind::History);
        let of_nothing: Option<BooleanArray> = changes.map(|changes| {
            (0..count).map(|at| Some(change_at(changes, at) == Some(ChangeType::Truncate))).collect()
        });
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.origins.len());
        for (field, origin) in self.definition.schema.fields().iter().zip(&self.origins) {
            columns.push(match origin {
                ColumnOrigin::Kept(at) => match rows.columns().get(*at) {
                    Some(column) => cast(column, field.data_type())
                        .map_err(DeltaError::arrow("read a column in its new type"))?,
                    None => new_null_array(field.data_type(), count),
                },
                ColumnOrigin::Null => new_null_array(field.data_type(), count),
                ColumnOrigin::Constant(value) => {
                    let repeated = take(value, &UInt32Array::from(vec![0; count]), None);
                    let chosen = match &of_nothing {
                        Some(of_nothing) => repeated.and_then(|values| nullif(&values, of_nothing)),
                        None => repeated,
                    };
                    chosen.map_err(DeltaError::arrow("repeat a column's value"))?
                }
            });
        }
        RecordBatch::try_new(Arc::clone(&self.definition.schema), columns)
            .map_err(DeltaError::arrow("give rows their new columns"))
    }
}

impl MirrorTable {
    /// Takes the next shape, between the changes applied so far and those that follow, which are in it.
    /// The next commit carries it, also when no row changed. A compaction that began before finds another definition, and
    /// is given up.
    ///
    /// # Errors
    /// [`DeltaError::BadDefinition`] if key or layout would change, which takes a new load.
    pub async fn reshape(&mut self, mut reshape: Reshape) -> Result<()> {
        self.expect_collecting()?;
        reshape.check(self.location.uri(), &self.definition)?;
        reshape.definition.configuration.extend(retention_properties(self.options.retention));
        if reshape.definition == *self.definition {
            return Ok(());
        }
        self.seal_pending().await?;
        self.flush.sink.close().await?;
        let old = Arc::clone(&self.definition);
        self.committed_definition.get_or_insert_with(|| Arc::clone(&old));
        self.define(Arc::new(reshape.definition.clone()));
        if !reshape.is_metadata_only(&old) {
            self.rewrite(&reshape, &old).await?;
        }
        Ok(())
    }

    /// Lets everything written from now on be in this shape.
    pub(crate) fn define(&mut self, definition: Arc<TableDefinition>) {
        self.flush.sink.redefine(Arc::clone(&definition));
        self.definition = definition;
    }

    /// What a commit has to say of a shape that changed.
    pub(crate) fn shape_actions(&self) -> Result<Vec<Action>> {
        if self.committed_definition.is_none() {
            return Ok(Vec::new());
        }
        let mut actions = Vec::new();
        let protocol = self.definition.protocol_after(&self.state.protocol);
        if protocol != self.state.protocol {
            actions.push(Action::Protocol(protocol));
        }
        let now = chrono::Utc::now().timestamp_millis();
        let metadata = self.definition.metadata(self.location.uri(), Some(&self.state.metadata), now)?;
        if metadata != self.state.metadata {
            actions.push(Action::MetaData(metadata));
        }
        Ok(actions)
    }

    /// Copies every live row, of committed files and of this flush's own, into new files of the new shape.
    async fn rewrite(&mut self, reshape: &Reshape, old: &TableDefinition) -> Result<()> {
        let sources = self.live_files().await?;
        self.flush.truncate();
        let is_history = old.kind == TableKind::History;
        if let Some(index) = self.index.as_mut().filter(|_| !is_history) {
            index.truncate_staged();
        }
        let columns: Vec<usize> = (0..old.schema.fields().len()).collect();
        let mut carried = Carried::default();
        for LiveRows { add, hidden, committed } in sources {
            let mut reader = RowReader::open(&self.location, &old.schema, &add, &columns, None).await?;
            // Nothing of a history is hidden: its rows are read one after the other.
            let mut first = 0_u32;
            while let Some(batch) = reader.next_live(&hidden).await? {
                self.carried += if committed { batch.num_rows() as u64 } else { 0 };
                let named = match is_history {
                    true => self.are_newest(&batch, old, &add, first)?,
                    false => vec![true; batch.num_rows()],
                };
                // A file is closed long before its rows outgrow 32 bits.
                first += batch.num_rows() as u32;
                carried.bytes += batch.get_array_memory_size();
                carried.rows.push((reshape.carry(&batch, old)?, named));
                // Together, so that the partitions of a partitioned table get files of some size.
                if carried.bytes > self.options.pending_bytes {
                    self.put_rows(std::mem::take(&mut carried)).await?;
                }
            }
        }
        self.put_rows(carried).await
    }

    /// Which rows of a history are the newest of their keys: `rows` of a file from row `first` on, in the shape `old`.
    fn are_newest(
        &mut self,
        rows: &RecordBatch,
        old: &TableDefinition,
        add: &Add,
        first: u32,
    ) -> Result<Vec<bool>> {
        let Some(index) = &mut self.index else { return Ok(Vec::new()) };
        let file = index.file_id(&add.path);
        let keys = self.hash_columns(rows, &old.key)?;
        let places = self.places_of(&keys)?;
        let here = (first..).map(|row| Some(RowAddress { file, row }));
        Ok(places.into_iter().zip(here).map(|(place, here)| place == here).collect())
    }

    /// The files that hold the rows as of now, without any that are pending.
    pub(crate) async fn files_so_far(&mut self) -> Result<Vec<Arc<Add>>> {
        self.flush.sink.close().await?;
        let sealed = self.flush.sink.sealed().iter().map(|file| Arc::new(file.add.clone()));
        let committed = self.state.files.values().map(|file| Arc::clone(&file.add));
        Ok(committed.filter(|_| !self.flush.truncated).chain(sealed).collect())
    }

    /// Every file that holds rows, with the rows that are deleted by now.
    async fn live_files(&mut self) -> Result<Vec<LiveRows>> {
        let sealed = self.flush.sink.finish().await?;
        let mut deleted = std::mem::take(&mut self.flush.deleted);
        let mut files = Vec::new();
        if !self.flush.truncated {
            let committed: Vec<Arc<Add>> =
                self.state.files.values().map(|file| Arc::clone(&file.add)).collect();
            let touched: BTreeMap<&str, FileId> =
                self.flush.touched.iter().map(|(id, file)| (file.path.as_str(), *id)).collect();
            for add in committed {
                let mut hidden = DeletionVector::clone(&*self.vectors.get(&add).await?);
                if let Some(bits) = touched.get(add.path.as_str()).and_then(|id| deleted.remove(id)) {
                    hidden.union(&bits);
                }
                files.push(LiveRows { add: Add::clone(&add), hidden, committed: true });
            }
        }
        for file in sealed {
            let hidden = deleted.remove(&file.id).unwrap_or_default();
            files.push(LiveRows { add: file.add, hidden, committed: false });
        }
        Ok(files)
    }

    /// Writes rows of the table's shape to data files of this flush and tells the index where they are.
    async fn put_rows(&mut self, carried: Carried) -> Result<()> {
        let (batches, named): (Vec<_>, Vec<_>) = carried.rows.into_iter().unzip();
        let addresses = self.append_rows(&batches).await?;
        let mut entries = Vec::new();
        let key = self.definition.key.clone();
        for ((batch, addresses), named) in batches.iter().zip(addresses).zip(named) {
            let keys = self.hash_columns(batch, &key)?;
            let rows = keys.into_iter().zip(addresses).zip(named);
            entries.extend(rows.filter(|(_, named)| *named).map(|(entry, _)| entry));
        }
        self.stage(entries)
    }

    /// The keys of rows, of which these columns are the key; none without an index.
    fn hash_columns(&self, rows: &RecordBatch, key: &[usize]) -> Result<Vec<KeyHash>> {
        let columns: Vec<_> = key.iter().filter_map(|&at| rows.columns().get(at)).cloned().collect();
        self.content_hashes(&columns)
    }
}
