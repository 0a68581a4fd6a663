//! A history: every change of a source table as a row, with whole old rows, whatever its replica identity.
//!
//! Postgres sends an update's new row (large untouched values left out) and of the old row the key at most. The rest
//! is in the history already: **the newest row of a key is its image.** So the key index points from each key to
//! its newest row here, be that pending, in a file of this flush, or committed:
//!
//! ```text
//!   update 7 ──▶ newest row of 7 ──▶ read back: the preimage, and the values the update left untouched
//!                                └─▶ from now on: the postimage just made
//! ```
//!
//! A `delete`, or the preimage of an update that took its key away, is the newest row of a key that is gone. Rows of a
//! history never change, so there are no deletion vectors; one table needs no other, so a history alone costs no
//! mirror. With REPLICA IDENTITY FULL the stream has the old row, and nothing is read back or indexed.

use crate::action::Add;
use crate::change_row::{ChangeType, OriginColumns, change_at, no_row};
use crate::error::{DeltaError, Result};
use crate::key_index::{FileId, KeyHash, RowAddress};
use crate::mirror_table::MirrorTable;
use crate::pending_rows::PendingRow;
use crate::read_back::{Found, Wanted, read};
use crate::segment;
use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::interleave;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use wal_decoder::{ChangeOrigin, Op, RowChanges};

/// Old rows held at once while a piece of changes is recorded, by the size of the new ones.
const READ_BACK_BYTES: usize = 32 << 20;

/// Where a row's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    /// A new row of the piece.
    New(usize),
    /// An old row of the piece.
    Old(usize),
    /// A row of this flush.
    Pending(PendingRow),
    /// A row in a file.
    Stored(RowAddress),
}

/// A row of the history to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recorded {
    image: Image,
    pub change: ChangeType,
    /// Which operation's.
    op: usize,
}

/// Where the last change within the piece left a key.
#[derive(Debug, Clone, Copy)]
enum Left {
    At(Image),
    Gone,
}

/// What a piece of changes becomes, before anything is read back.
#[derive(Debug, Default)]
pub(crate) struct Record {
    rows: Vec<Recorded>,
    /// For each new row that replaces another, which.
    replaced: HashMap<usize, Image>,
    /// Values that the new rows lack: row and column.
    untouched: HashSet<(usize, usize)>,
}

impl Record {
    /// A record that only says which rows are to be read.
    pub fn of_images(images: impl Iterator<Item = Image>) -> Record {
        let mut record = Record::default();
        images.for_each(|image| record.push(image, ChangeType::UpdatePreimage));
        record
    }

    /// One more row, of no operation.
    pub fn push(&mut self, image: Image, change: ChangeType) {
        self.rows.push(Recorded { image, change, op: 0 });
    }

    pub fn rows(&self) -> &[Recorded] {
        &self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Where a value of a new row really is: updates of one piece are followed back.
    fn holder(&self, row: usize, column: usize) -> Option<Image> {
        let mut image = Image::New(row);
        while let Image::New(row) = image
            && self.untouched.contains(&(row, column))
        {
            // A row replaces an earlier one only, so this ends.
            image = *self.replaced.get(&row)?;
        }
        Some(image)
    }
}

impl MirrorTable {
    /// Takes changes into a history, in the order they were committed at the source; `origins` has one of each.
    /// Nothing is seen before the commit.
    ///
    /// # Errors
    /// As [`MirrorTable::apply`]: [`DeltaError::MissingRow`] tells that history and source differ.
    pub async fn record(&mut self, changes: RowChanges, origins: &[ChangeOrigin]) -> Result<()> {
        self.expect_collecting()?;
        segment::check(self.location.uri(), &self.definition, &changes)?;
        if origins.len() != changes.ops.len() {
            return Err(self.bad_changes("changes of a history come without their origins"));
        }
        let mut origins = origins;
        for part in segment::split(&changes, piece_size(&changes)) {
            let (own, rest) = origins.split_at(part.ops.len());
            origins = rest;
            if part.ops.first() == Some(&Op::Truncate) {
                self.record_truncate(own).await?;
            } else {
                self.record_piece(part, own).await?;
            }
            self.keep_within_bounds().await?;
        }
        Ok(())
    }

    /// No key holds anything any more. Rows that are pending go to their file first, or they would be told to the
    /// index after it was emptied.
    async fn record_truncate(&mut self, origins: &[ChangeOrigin]) -> Result<()> {
        self.seal_pending().await?;
        if let Some(index) = &mut self.index {
            index.truncate_staged();
        }
        let mut columns = no_row(&self.source_types());
        let mut added = OriginColumns::default();
        origins.iter().for_each(|origin| added.push(ChangeType::Truncate, origin));
        columns.extend(added.finish());
        self.add_recorded(columns)
    }

    async fn record_piece(&mut self, part: RowChanges, origins: &[ChangeOrigin]) -> Result<()> {
        let record = self.plan_record(&part)?;
        let files = self.read_rows(&record).await?;
        let change_type = self.definition.source_columns();
        let are_images = |found: &Found| {
            let changes = found.batch.columns().get(change_type);
            (0..found.batch.num_rows()).all(|row| {
                changes.and_then(|changes| change_at(changes, row)).is_some_and(ChangeType::is_image)
            })
        };
        if !files.values().all(are_images) {
            return Err(self.lost_image());
        }
        let mut added = OriginColumns::default();
        for row in &record.rows {
            let origin = origins.get(row.op).ok_or_else(|| self.bad_changes("an operation has no origin"))?;
            added.push(row.change, origin);
        }
        self.add_gathered(&part, &record, &files, added)
    }

    /// Adds the rows of a record to the flush.
    pub(crate) fn add_gathered(
        &mut self,
        part: &RowChanges,
        record: &Record,
        files: &BTreeMap<FileId, Found>,
        added: OriginColumns,
    ) -> Result<()> {
        let mut columns = Vec::with_capacity(self.definition.schema.fields().len());
        for column in 0..self.definition.source_columns() {
            columns.push(self.gather(part, record, files, column)?);
        }
        columns.extend(added.finish());
        self.add_recorded(columns)
    }

    /// Where the newest rows of these keys are, but for those that are still pending.
    pub(crate) fn places_of(&mut self, keys: &[KeyHash]) -> Result<Vec<Option<RowAddress>>> {
        match self.index.as_ref().map(|index| index.lookup(keys)) {
            None => Ok(Vec::new()),
            Some(Ok(found)) => Ok(found),
            Some(Err(source)) => Err(self.index_failed(source)),
        }
    }

    /// One hash per row of these columns, by which rows are compared.
    pub(crate) fn content_hashes(&self, columns: &[ArrayRef]) -> Result<Vec<KeyHash>> {
        let hasher = self.index.as_ref().map(|index| index.hasher());
        let hashes = hasher.map(|hasher| hasher.hash(columns)).transpose();
        Ok(hashes.map_err(DeltaError::index(self.location.uri()))?.unwrap_or_default())
    }

    /// Which rows a piece makes, and where the content of each is.
    fn plan_record(&mut self, part: &RowChanges) -> Result<Record> {
        let (row_keys, old_keys) = self.hash_keys(part)?;
        let wanted = crate::flush::wanted_keys(&part.ops, &row_keys, &old_keys);
        let stored = self.places_of(&wanted)?;
        let mut record = Record {
            untouched: part.unchanged.iter().map(|at| (at.row as usize, at.column as usize)).collect(),
            ..Record::default()
        };
        let mut left: HashMap<KeyHash, Left> = HashMap::new();
        let mut answers = wanted.into_iter().zip(stored);
        let (mut row, mut old) = (0, 0);
        for (op, kind) in part.ops.iter().enumerate() {
            if *kind != Op::Insert {
                let image = match answers.next() {
                    Some((key, stored)) => self.image_of(key, stored, &mut left),
                    // The source sends whole old rows; one that equals the new row is not sent twice.
                    None if *kind == Op::Update => Some(Image::New(row)),
                    None => Some(Image::Old(old)),
                };
                let Some(image) = image else { return Err(self.missing_row(*kind, part, row, old)) };
                let change =
                    if *kind == Op::Delete { ChangeType::Delete } else { ChangeType::UpdatePreimage };
                record.rows.push(Recorded { image, change, op });
                if *kind != Op::Delete && image != Image::New(row) {
                    record.replaced.insert(row, image);
                }
            }
            if matches!(kind, Op::UpdateKey | Op::Delete) {
                old += 1;
            }
            if *kind != Op::Delete {
                let change =
                    if *kind == Op::Insert { ChangeType::Insert } else { ChangeType::UpdatePostimage };
                record.rows.push(Recorded { image: Image::New(row), change, op });
                if let Some(key) = row_keys.get(row) {
                    left.insert(*key, Left::At(Image::New(row)));
                }
                row += 1;
            }
        }
        Ok(record)
    }

    /// What a key holds now, and from now on no longer.
    fn image_of(
        &self,
        key: KeyHash,
        stored: Option<RowAddress>,
        left: &mut HashMap<KeyHash, Left>,
    ) -> Option<Image> {
        match left.insert(key, Left::Gone) {
            Some(Left::At(image)) => return Some(image),
            Some(Left::Gone) => return None,
            None => {}
        }
        let Some(at) = self.flush.pending.newest(key) else { return stored.map(Image::Stored) };
        let rows = self.flush.pending.rows(at.batch)?;
        let change = change_at(rows.columns().get(self.definition.source_columns())?, at.row)?;
        change.is_image().then_some(Image::Pending(at))
    }

    /// Reads the stored rows of a record back, whole, and what each says it is, one pass per file.
    pub(crate) async fn read_rows(&mut self, record: &Record) -> Result<BTreeMap<FileId, Found>> {
        let change_type = self.definition.source_columns();
        let mut wanted: BTreeMap<FileId, Wanted> = BTreeMap::new();
        for image in record.rows.iter().map(|row| row.image).chain(record.replaced.values().copied()) {
            if let Image::Stored(address) = image {
                wanted.entry(address.file).or_default().rows.insert(address.row);
            }
        }
        if wanted.keys().any(|file| self.flush.sink.is_open(*file)) {
            self.flush.sink.close().await?;
        }
        let mut files = BTreeMap::new();
        for (file, mut rows) in wanted {
            rows.columns = (0..=change_type).collect();
            let add = self.data_file(file).ok_or_else(|| self.lost_image())?;
            files.insert(file, read(self, &add, rows).await?);
        }
        Ok(files)
    }

    fn data_file(&self, file: FileId) -> Option<Add> {
        if let Some(sealed) = self.flush.sink.sealed_file(file) {
            return Some(sealed.add.clone());
        }
        let path = self.index.as_ref()?.path(file)?;
        self.state.files.get(path).map(|live| Add::clone(&live.add))
    }

    /// One column of all rows that a piece makes.
    fn gather(
        &self,
        part: &RowChanges,
        record: &Record,
        files: &BTreeMap<FileId, Found>,
        column: usize,
    ) -> Result<ArrayRef> {
        let lost = || self.lost_image();
        let mut sources: Vec<&dyn Array> = vec![part.rows.columns().get(column).ok_or_else(lost)?.as_ref()];
        let mut old_rows = None;
        let mut pending: HashMap<usize, usize> = HashMap::new();
        let mut stored: HashMap<FileId, usize> = HashMap::new();
        let mut places = Vec::with_capacity(record.rows.len());
        for recorded in &record.rows {
            let holder = match recorded.image {
                Image::New(row) => record.holder(row, column).ok_or_else(lost)?,
                other => other,
            };
            places.push(match holder {
                Image::New(row) => (0, row),
                Image::Old(row) => {
                    if old_rows.is_none() {
                        sources.push(part.old_keys.columns().get(column).ok_or_else(lost)?.as_ref());
                    }
                    (*old_rows.get_or_insert(sources.len() - 1), row)
                }
                Image::Pending(at) => {
                    if let std::collections::hash_map::Entry::Vacant(free) = pending.entry(at.batch) {
                        let rows = self.flush.pending.rows(at.batch).ok_or_else(lost)?;
                        sources.push(rows.columns().get(column).ok_or_else(lost)?.as_ref());
                        free.insert(sources.len() - 1);
                    }
                    (pending.get(&at.batch).copied().ok_or_else(lost)?, at.row)
                }
                Image::Stored(address) => {
                    let found = files.get(&address.file).ok_or_else(lost)?;
                    if let std::collections::hash_map::Entry::Vacant(free) = stored.entry(address.file) {
                        sources.push(found.batch.columns().get(column).ok_or_else(lost)?.as_ref());
                        free.insert(sources.len() - 1);
                    }
                    let row = found.rows.binary_search(&address.row).map_err(|_| lost())?;
                    (stored.get(&address.file).copied().ok_or_else(lost)?, row)
                }
            });
        }
        interleave(&sources, &places).map_err(DeltaError::arrow("put old and new rows into a history"))
    }

    /// Adds finished rows to the flush.
    fn add_recorded(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        let rows = RecordBatch::try_new(Arc::clone(&self.definition.schema), columns)
            .map_err(DeltaError::arrow("make rows of a history"))?;
        let keys = match &self.index {
            None => Vec::new(),
            Some(index) => {
                let key: Vec<_> =
                    self.definition.key.iter().filter_map(|&at| rows.columns().get(at)).cloned().collect();
                index.hasher().hash(&key).map_err(DeltaError::index(self.location.uri()))?
            }
        };
        self.flush.pending.append(keys, rows);
        Ok(())
    }

    fn source_types(&self) -> Vec<arrow::datatypes::DataType> {
        let fields = self.definition.schema.fields().iter().take(self.definition.source_columns());
        fields.map(|field| field.data_type().clone()).collect()
    }

    fn bad_changes(&self, reason: &str) -> DeltaError {
        DeltaError::BadChanges { table: self.location.uri().to_owned(), reason: reason.to_owned() }
    }

    fn lost_image(&self) -> DeltaError {
        self.bad_changes("a changed row's old image is not where the history's key index has it")
    }
}

/// How many operations to record at once: fewer where rows are large, or may be because values were left out.
fn piece_size(changes: &RowChanges) -> usize {
    if !changes.unchanged.is_empty() {
        return segment::SEGMENT_OPS_WITH_UNCHANGED;
    }
    let row = changes.rows.get_array_memory_size() / changes.rows.num_rows().max(1);
    (READ_BACK_BYTES / row.max(1)).clamp(segment::SEGMENT_OPS_WITH_UNCHANGED, segment::SEGMENT_OPS)
}
