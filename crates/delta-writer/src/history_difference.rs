//! Loading a history that is there already: only what differs from the source's rows is added.
//!
//! After a gap (a lost slot, a crash during a load, a resync) nobody knows what happened in between, but what has
//! come of it shows: the newest image of each key is compared with the row that a snapshot has for it.
//!
//! ```text
//!   snapshot row     newest image      rows added, all at the snapshot's position
//!   7, 'paid'        7, 'paid'         none
//!   8, 'paid'        8, 'open'         update_preimage 8 'open', update_postimage 8 'paid'
//!   9, 'new'         none, or gone     insert
//!   none             6, 'open'         delete 6 'open'
//! ```
//!
//! Where the source's columns have changed meanwhile, the history takes their shape first, as far as its rows can.
//!
//! So a history replays to its source's state again, nothing of it is lost, and nothing stands in it twice. Workers take
//! turns, because each batch is compared through the table's key index.

use crate::action::Add;
use crate::change_row::{ChangeType, Moment, OriginColumns, change_at};
use crate::commit::CommitSpec;
use crate::deletion_vector::DeletionVector;
use crate::error::{DeltaError, Result};
use crate::history_table::{Image, Record, Recorded};
use crate::key_index::{FileId, RowAddress};
use crate::lake::TableLocation;
use crate::mirror_table::MirrorTable;
use crate::reshape::{ColumnOrigin, Reshape};
use crate::row_reader::RowReader;
use crate::table_definition::{TableDefinition, TableKind};
use crate::writer_options::WriterOptions;
use arrow::array::RecordBatch;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::Mutex;
use wal_decoder::{Lsn, RowChanges};

/// A comparison under way. See the [module](self).
#[derive(Debug)]
pub struct HistoryDifference {
    underway: Arc<Mutex<Underway>>,
}

/// What one copying task compares through.
#[derive(Debug, Clone)]
pub struct DifferenceWorker {
    underway: Arc<Mutex<Underway>>,
}

#[derive(Debug)]
struct Underway {
    table: MirrorTable,
    position: i64,
    /// The files that hold what there was before.
    files: Vec<Arc<Add>>,
    /// Images whose rows the snapshot has.
    met: HashMap<FileId, DeletionVector>,
}

impl HistoryDifference {
    /// Begins to compare the history at `location` with the source as of `position`.
    ///
    /// `None` if that cannot be: there is none yet, or `origins` does not say what becomes of its columns; its rows have no
    /// key, or another one; or it holds changes from beyond `position`, so that rows added there would not be the newest.
    pub async fn begin(
        location: TableLocation,
        definition: &TableDefinition,
        options: WriterOptions,
        position: Lsn,
        origins: impl FnOnce(&TableDefinition) -> Option<Vec<ColumnOrigin>>,
    ) -> Result<Option<HistoryDifference>> {
        let Some(mut table) = MirrorTable::open(location, options).await? else { return Ok(None) };
        // LSNs count bytes of WAL: none reaches 2^63.
        let position = position.0.cast_signed();
        let found = table.definition();
        let reshape = Some(found)
            .filter(|found| found.kind == TableKind::History && found.has_key())
            .and_then(origins)
            .map(|origins| Reshape { definition: definition.clone(), origins })
            .filter(|reshape| reshape.check(table.location().uri(), found).is_ok());
        let is_beyond = table.txns().any(|(_, version)| version > position);
        let Some(reshape) = reshape.filter(|_| !is_beyond) else {
            tracing::warn!(
                table = table.location().uri(),
                version = table.version(),
                "this history cannot be compared with its source and begins anew; VERSION AS OF has what it held"
            );
            return Ok(None);
        };
        table.reshape(reshape).await?;
        let files = table.files_so_far().await?;
        let underway = Arc::new(Mutex::new(Underway { table, position, files, met: HashMap::new() }));
        Ok(Some(HistoryDifference { underway }))
    }

    /// For one copying task.
    pub fn worker(&self) -> DifferenceWorker {
        DifferenceWorker { underway: Arc::clone(&self.underway) }
    }

    /// Adds what the workers found, and a `delete` for each image that no row of the snapshot met, in one commit.
    ///
    /// # Errors
    /// [`DeltaError::UnexpectedState`] while a worker is still there.
    pub async fn commit(self, spec: &CommitSpec) -> Result<MirrorTable> {
        let underway = Arc::try_unwrap(self.underway).map_err(|shared| DeltaError::UnexpectedState {
            table: format!("{shared:p}"),
            reason: "a comparison is still under way".to_owned(),
        })?;
        let mut underway = underway.into_inner();
        underway.add_deletes().await?;
        let mut table = underway.table;
        // That nothing differs is worth a version: it carries the position.
        let flush = table.write_position().await?;
        table.commit(flush, spec).await.map_err(|failure| failure.error)?;
        Ok(table)
    }
}

impl DifferenceWorker {
    /// Compares rows of the snapshot, all columns of the source. Keys must be distinct over all workers.
    pub async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        self.underway.lock().await.compare(rows).await
    }
}

impl Underway {
    async fn compare(&mut self, rows: RecordBatch) -> Result<()> {
        let table = &mut self.table;
        let part = changes_of(rows, &table.definition)?;
        let (keys, _) = table.hash_keys(&part)?;
        let places = table.places_of(&keys)?;
        let stored = Record::of_images(places.iter().flatten().map(|address| Image::Stored(*address)));
        let files = table.read_rows(&stored).await?;
        let new = table.content_hashes(part.rows.columns())?;
        let mut old = BTreeMap::new();
        for (file, found) in &files {
            let source = found.batch.columns().get(..table.definition.source_columns()).unwrap_or_default();
            old.insert(*file, table.content_hashes(source)?);
        }
        let mut record = Record::default();
        for (row, place) in places.into_iter().enumerate() {
            let image = place.and_then(|address| {
                let found = files.get(&address.file)?;
                let at = found.rows.binary_search(&address.row).ok()?;
                let change = change_at(found.batch.columns().last()?, at)?;
                change.is_image().then_some((address, old.get(&address.file)?.get(at)?))
            });
            let Some((address, content)) = image else {
                record.push(Image::New(row), ChangeType::Insert);
                continue;
            };
            self.met.entry(address.file).or_default().insert(address.row.into());
            if Some(content) != new.get(row) {
                record.push(Image::Stored(address), ChangeType::UpdatePreimage);
                record.push(Image::New(row), ChangeType::UpdatePostimage);
            }
        }
        self.add(&part, &record, &files).await
    }

    /// What the source no longer has.
    async fn add_deletes(&mut self) -> Result<()> {
        let adds = std::mem::take(&mut self.files);
        let definition = Arc::clone(&self.table.definition);
        let columns: Vec<usize> =
            definition.key.iter().copied().chain([definition.source_columns()]).collect();
        for add in adds {
            let Some(file) = self.table.index.as_mut().map(|index| index.file_id(&add.path)) else {
                continue;
            };
            let location = self.table.location.clone();
            let mut reader = RowReader::open(&location, &definition.schema, &add, &columns, None).await?;
            let mut first = 0_u32;
            while let Some(batch) = reader.next().await? {
                let Some((change, key)) = batch.columns().split_last() else { continue };
                let keys = self.table.content_hashes(key)?;
                let places = self.table.places_of(&keys)?;
                let gone = (0..batch.num_rows()).zip(first..).filter(|(row, number)| {
                    let address = RowAddress { file, row: *number };
                    let is_met = self.met.get(&file).is_some_and(|met| met.contains((*number).into()));
                    places.get(*row) == Some(&Some(address))
                        && !is_met
                        && change_at(change, *row).is_some_and(ChangeType::is_image)
                });
                let mut record = Record::default();
                for (_, row) in gone {
                    record.push(Image::Stored(RowAddress { file, row }), ChangeType::Delete);
                }
                first += batch.num_rows() as u32;
                if !record.is_empty() {
                    let files = self.table.read_rows(&record).await?;
                    let nothing = RecordBatch::new_empty(definition.source_schema()?);
                    self.add(&changes_of(nothing, &definition)?, &record, &files).await?;
                }
            }
        }
        Ok(())
    }

    async fn add(
        &mut self,
        part: &RowChanges,
        record: &Record,
        files: &BTreeMap<FileId, crate::read_back::Found>,
    ) -> Result<()> {
        if record.is_empty() {
            return Ok(());
        }
        let mut added = OriginColumns::default();
        for Recorded { change, .. } in record.rows() {
            // Before whatever a transaction at this very position brings, and the old image before the new one.
            let seq = if *change == ChangeType::UpdatePreimage { -1 } else { 0 };
            added.push_loaded(*change, Moment { lsn: self.position, seq });
        }
        self.table.add_gathered(part, record, files, added)?;
        self.table.keep_within_bounds().await
    }
}

/// Rows of a snapshot in the shape of changes.
fn changes_of(rows: RecordBatch, definition: &TableDefinition) -> Result<RowChanges> {
    let source = definition.source_schema()?;
    let key = source.project(&definition.key).map_err(DeltaError::arrow("choose the key's columns"))?;
    Ok(RowChanges {
        rows,
        old_keys: RecordBatch::new_empty(Arc::new(key)),
        ops: Vec::new(),
        unchanged: Vec::new(),
    })
}
