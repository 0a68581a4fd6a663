//! The flush under way: consuming operations in order.
//!
//! Every operation that takes a row away looks for it in three places, newest first:
//!
//! ```text
//!   pending rows (this flush, in memory) -> sealed files (this flush) -> committed files
//!        mark dead                              set a bit                   set a bit
//! ```
//!
//! The key index answers for the last two at once. Its answers may be stale (a deleted row keeps its entry),
//! so a row counts as found only if its file is live and no bit hides it. In a table without a key equal rows
//! stand beside each other and an operation takes any one of them ([`crate::multiset`]). A row found nowhere is an error: a
//! mirror that ignored it would differ from its source without anyone knowing.

use crate::data_file::FileSink;
use crate::deletion_vector::DeletionVector;
use crate::error::{DeltaError, Result};
use crate::key_index::{FileId, KeyHash, RowAddress};
use crate::lake::TableLocation;
use crate::mirror_table::MirrorTable;
use crate::multiset::LiveRows;
use crate::pending_budget::PendingShare;
use crate::pending_rows::{PendingRow, PendingRows};
use crate::segment;
use crate::table_definition::{TableDefinition, TableKind};
use crate::unchanged::{self, Origins};
use crate::writer_options::WriterOptions;
use arrow::array::RecordBatch;
use arrow::util::display::array_value_to_string;
use std::collections::HashMap;
use std::sync::Arc;
use wal_decoder::{Op, RowChanges};

/// What has been collected since the last commit.
pub(crate) struct Flush {
    pub pending: PendingRows,
    pub sink: FileSink,
    /// Bits set by this flush, in files of this flush as in committed ones.
    pub deleted: HashMap<FileId, DeletionVector>,
    /// Committed files this flush looked into, with the bits they had before.
    pub touched: HashMap<FileId, TouchedFile>,
    /// The table was emptied: committed files no longer count.
    pub truncated: bool,
    /// Numbers for files of a table without an index.
    next_file: u32,
    /// What of the shared budget it takes.
    share: PendingShare,
}

/// A committed file in which rows were looked up.
#[derive(Debug, Clone)]
pub(crate) struct TouchedFile {
    /// As the log spells it.
    pub path: String,
    pub vector: Arc<DeletionVector>,
}

impl std::fmt::Debug for Flush {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flush")
            .field("pending_bytes", &self.pending.bytes())
            .field("sealed", &self.sink.sealed().len())
            .field("touched", &self.touched.len())
            .field("truncated", &self.truncated)
            .finish_non_exhaustive()
    }
}

/// Where the row that an operation takes away was.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OldRow {
    Pending(PendingRow),
    Stored(RowAddress),
}

/// What the index knows of the rows that operations take away.
enum Stored {
    /// A place for each operation, if its key has one.
    ByOperation(std::vec::IntoIter<Option<RowAddress>>),
    /// Rows of equal content, to be used up.
    Equal(LiveRows),
}

impl Stored {
    fn next_answer(&mut self) -> Option<RowAddress> {
        match self {
            Stored::ByOperation(answers) => answers.next().flatten(),
            Stored::Equal(_) => None,
        }
    }

    fn take_equal(&mut self, key: KeyHash) -> Option<RowAddress> {
        match self {
            Stored::ByOperation(_) => None,
            Stored::Equal(rows) => rows.take(key),
        }
    }
}

impl Flush {
    pub fn new(location: &TableLocation, definition: &Arc<TableDefinition>, options: &WriterOptions) -> Self {
        Self {
            pending: PendingRows::default(),
            sink: FileSink::new(location.clone(), Arc::clone(definition), options.clone()),
            deleted: HashMap::new(),
            touched: HashMap::new(),
            truncated: false,
            next_file: 0,
            share: options.pending_budget.share(),
        }
    }

    /// Whether no change was taken in since the last commit.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.sink.is_empty() && self.deleted.is_empty() && !self.truncated
    }

    pub fn clear(&mut self) {
        self.pending.clear();
        self.sink.clear();
        self.deleted.clear();
        self.touched.clear();
        self.truncated = false;
        self.share.set(0);
    }

    /// Tells the shared budget what is held now. True if that is more than this table's part of it.
    fn is_over_its_share(&mut self) -> bool {
        self.share.set(self.pending.bytes() + self.sink.bytes_in_memory());
        self.share.is_exceeded()
    }

    /// Takes the row of `key` away, or one of its rows.
    fn take_old(&mut self, key: KeyHash, stored: &mut Stored) -> Option<OldRow> {
        // One answer an operation, whether it is needed or not.
        let answer = stored.next_answer();
        if let Some(at) = self.pending.remove(key) {
            return Some(OldRow::Pending(at));
        }
        let address = answer.or_else(|| stored.take_equal(key))?;
        let row = u64::from(address.row);
        // The index answers for live files of this flush and for those that were looked into.
        let hidden = match self.touched.get(&address.file) {
            Some(file) => file.vector.contains(row),
            None => !self.sink.holds(address.file),
        };
        if hidden || !self.deleted.entry(address.file).or_default().insert(row) {
            return None;
        }
        Some(OldRow::Stored(address))
    }

    pub fn truncate(&mut self) {
        self.clear();
        self.truncated = true;
    }
}

impl MirrorTable {
    /// Takes changes in, in the order they were committed at the source. Nothing is seen before the commit.
    ///
    /// # Errors
    /// [`DeltaError::MissingRow`] and [`DeltaError::DuplicateKey`] tell that mirror and source differ;
    /// [`DeltaError::BadChanges`] that the batches do not fit the table or each other.
    pub async fn apply(&mut self, changes: RowChanges) -> Result<()> {
        self.expect_collecting()?;
        segment::check(self.location.uri(), &self.definition, &changes)?;
        let limit = match changes.unchanged.is_empty() {
            true => segment::SEGMENT_OPS,
            false => segment::SEGMENT_OPS_WITH_UNCHANGED,
        };
        for part in segment::split(&changes, limit) {
            if part.ops.first() == Some(&Op::Truncate) {
                self.flush.truncate();
                if let Some(index) = &mut self.index {
                    index.truncate_staged();
                }
                continue;
            }
            self.apply_segment(part).await?;
            self.keep_within_bounds().await?;
        }
        Ok(())
    }

    /// Moves rows to files when more are held than this flush may hold.
    pub(crate) async fn keep_within_bounds(&mut self) -> Result<()> {
        if self.flush.is_over_its_share() {
            // An open file holds its last rows in memory, so it ends here: a compaction joins it with others.
            self.seal_pending().await?;
            self.flush.sink.close().await?;
            self.flush.is_over_its_share();
        } else if self.flush.pending.bytes() > self.options.pending_bytes {
            self.seal_pending().await?;
        }
        Ok(())
    }

    async fn apply_segment(&mut self, part: RowChanges) -> Result<()> {
        let (row_keys, old_keys) = self.hash_keys(&part)?;
        let wanted = wanted_keys(&part.ops, &row_keys, &old_keys);
        let is_multiset = self.definition.kind == TableKind::Multiset;
        let mut stored = match is_multiset {
            true => Stored::Equal(self.find_equal_rows(&wanted).await?),
            false => Stored::ByOperation(self.look_up(&wanted).await?.into_iter()),
        };
        let batch = self.flush.pending.begin_batch(row_keys.clone(), part.rows.num_rows());
        let mut origins = Origins::new(batch, &part.unchanged);
        let (mut row, mut old) = (0, 0);
        let mut wanted = wanted.into_iter();
        for op in &part.ops {
            let takes_row = matches!(op, Op::Insert | Op::Update | Op::UpdateKey);
            if *op != Op::Insert {
                let gone = wanted.next().and_then(|key| self.flush.take_old(key, &mut stored));
                let Some(gone) = gone else { return Err(self.missing_row(*op, &part, row, old)) };
                if takes_row {
                    origins.record(row, gone);
                }
            }
            if takes_row {
                let (key, at) = (row_keys.get(row).copied(), PendingRow { batch, row });
                if let (true, Some(key)) = (is_multiset, key) {
                    self.flush.pending.insert_equal(key, at);
                } else if !self.flush.pending.insert(key, at) {
                    let key = key_text(&part.rows, &self.definition.key, row);
                    return Err(DeltaError::DuplicateKey { table: self.location.uri().to_owned(), key });
                }
                row += 1;
            }
            if matches!(op, Op::UpdateKey | Op::Delete) {
                old += 1;
            }
        }
        let rows = if origins.is_empty() {
            part.rows
        } else {
            unchanged::fill(self, part.rows, &part.unchanged, origins).await?
        };
        self.flush.pending.fill_batch(batch, rows);
        Ok(())
    }

    pub(crate) fn hash_keys(&mut self, part: &RowChanges) -> Result<(Vec<KeyHash>, Vec<KeyHash>)> {
        let Some(index) = &self.index else { return Ok((Vec::new(), Vec::new())) };
        let hasher = index.hasher();
        let columns: Vec<_> =
            self.definition.key.iter().filter_map(|&at| part.rows.columns().get(at)).cloned().collect();
        let hashed = hasher.hash(&columns).and_then(|rows| Ok((rows, hasher.hash(part.old_keys.columns())?)));
        hashed.map_err(DeltaError::index(self.location.uri()))
    }

    /// Asks the index, and reads the vectors of the files it points to.
    async fn look_up(&mut self, wanted: &[KeyHash]) -> Result<Vec<Option<RowAddress>>> {
        let Some(index) = &self.index else { return Ok(vec![None; wanted.len()]) };
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let found = match index.lookup(wanted) {
            Ok(found) => found,
            Err(source) => return Err(self.index_failed(source)),
        };
        let mut files: Vec<FileId> = found.iter().flatten().map(|address| address.file).collect();
        files.sort_unstable();
        files.dedup();
        for file in files {
            if !self.flush.touched.contains_key(&file) && !self.flush.sink.holds(file) {
                self.look_into(file).await?;
            }
        }
        Ok(found)
    }

    /// Reads the vector of a committed file.
    pub(crate) async fn look_into(&mut self, file: FileId) -> Result<()> {
        let path = self.index.as_ref().and_then(|index| index.path(file)).map(str::to_owned);
        // A file that is no longer live leaves stale entries behind.
        let Some(path) = path.filter(|path| self.state.files.contains_key(path)) else { return Ok(()) };
        let vector = self.vector_of(&path).await?;
        self.flush.touched.insert(file, TouchedFile { path, vector });
        Ok(())
    }

    /// Moves all pending rows to data files and tells the index where they are.
    pub(crate) async fn seal_pending(&mut self) -> Result<()> {
        let live = self.flush.pending.take()?;
        self.put_keyed_rows(&live.batches, live.keys).await
    }

    /// Writes rows to data files of this flush. With an index, `keys` has each row's, batch by batch.
    pub(crate) async fn put_keyed_rows(
        &mut self,
        batches: &[RecordBatch],
        keys: Vec<Vec<KeyHash>>,
    ) -> Result<()> {
        let addresses = self.append_rows(batches).await?;
        let entries: Vec<_> = keys
            .into_iter()
            .zip(addresses)
            .flat_map(|(keys, addresses)| keys.into_iter().zip(addresses))
            .collect();
        self.stage(entries)
    }

    /// Writes rows to data files of this flush, and says where each is, batch by batch.
    pub(crate) async fn append_rows(&mut self, batches: &[RecordBatch]) -> Result<Vec<Vec<RowAddress>>> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let (index, next_file) = (&mut self.index, &mut self.flush.next_file);
        let mut number = |path: &str| {
            Ok(match index {
                Some(index) => index.file_id(path),
                None => {
                    *next_file += 1;
                    FileId(*next_file)
                }
            })
        };
        self.flush.sink.append(batches, &mut number).await
    }

    /// Tells the index where rows are.
    pub(crate) fn stage(&mut self, entries: Vec<(KeyHash, RowAddress)>) -> Result<()> {
        match self.index.as_mut().map(|index| index.stage(entries)) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(source)) => Err(self.index_failed(source)),
        }
    }

    pub(crate) fn missing_row(&self, op: Op, part: &RowChanges, row: usize, old: usize) -> DeltaError {
        let (operation, key) = match op {
            Op::Update => ("update", key_text(&part.rows, &self.definition.key, row)),
            Op::UpdateKey => ("key update", key_text(&part.old_keys, &all_columns(&part.old_keys), old)),
            _ => ("delete", key_text(&part.old_keys, &all_columns(&part.old_keys), old)),
        };
        DeltaError::MissingRow { table: self.location.uri().to_owned(), operation, key }
    }
}

/// The keys of the rows that operations take away, in their order.
pub(crate) fn wanted_keys(ops: &[Op], row_keys: &[KeyHash], old_keys: &[KeyHash]) -> Vec<KeyHash> {
    let (mut rows, mut olds) = (row_keys.iter(), old_keys.iter());
    let wanted = ops.iter().filter_map(|op| match op {
        Op::Insert => {
            rows.next();
            None
        }
        Op::Update => rows.next(),
        Op::UpdateKey => {
            rows.next();
            olds.next()
        }
        Op::Delete => olds.next(),
        Op::Truncate => None,
    });
    wanted.copied().collect()
}

fn all_columns(batch: &RecordBatch) -> Vec<usize> {
    (0..batch.num_columns()).collect()
}

/// A key may be a whole row of many columns; this much of it tells which.
const LONGEST_KEY_TEXT: usize = 400;

/// A key for an error message: `id=7, country=DE`, cut to a readable length.
fn key_text(batch: &RecordBatch, columns: &[usize], row: usize) -> String {
    let schema = batch.schema();
    let mut text = String::new();
    for &at in columns {
        let (Some(field), Some(column)) = (schema.fields().get(at), batch.columns().get(at)) else {
            continue;
        };
        let value = array_value_to_string(column, row).unwrap_or_else(|_| "?".to_owned());
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(field.name());
        text.push('=');
        text.extend(value.chars().take(80));
        if text.len() > LONGEST_KEY_TEXT {
            text.push('…');
            break;
        }
    }
    text
}
