//! Comparing the rows that went with the rows that came, and telling what is left.
//!
//! ```text
//!   large files:  all rows, hashed ─▶ sums by groups of keys ─▶ the keys of all rows ─▶ rows that may differ ┐
//!   small files:  all rows ──────────────────────────────────────────────────────────────────────────────────┴▶ ledger ─▶ told
//! ```
//!
//! An engine that copies on write makes files of millions of rows to change a few. What they have in common is found
//! by [`KeyGroups`] first, without keeping anything of it; only what may differ is entered in the [`Ledger`], which tells
//! exactly. Rows that were entered are kept for the telling if they are few, else read once more.

use super::file_changes::{ChangedRows, Side};
use super::key_groups::KeyGroups;
use super::ledger::{Differing, Entry, Ledger};
use super::row_hash::{RowHash, RowHasher};
use super::{ChangeKind, Detail, Range, Sender};
use crate::delta_source::{RowSet, side_by_side};
use crate::error::{Result, ReverseSyncError};
use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use roaring::RoaringTreemap;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Files of fewer bytes are entered as they are: less than what the ledger holds in memory.
const SMALL_FILES: u64 = 8 << 20;

/// With more groups than these differing, looking for the rows that do not is in vain.
const MOST_DIFFERING_PERCENT: usize = 40;

/// Rows kept for the telling, in bytes.
const KEPT_BYTES: usize = 48 << 20;

/// Rows of one file, hashed.
struct HashedRows {
    batch: RecordBatch,
    /// Their places in the file.
    places: Vec<u64>,
    hashes: Vec<RowHash>,
    /// Of each, whether it came.
    added: Vec<bool>,
}

impl Range {
    pub(super) async fn send_compared(
        self: &Arc<Self>,
        changed: Vec<ChangedRows>,
        sender: &Sender,
    ) -> Result<()> {
        let began = Instant::now();
        let hasher = Arc::new(RowHasher::new(self.source.uri(), self.key.clone()));
        let bytes = whole_files(&changed);
        let changed = match bytes >= SMALL_FILES {
            true => self.suspects(changed, bytes, &hasher).await?,
            false => changed,
        };
        let sieved = began.elapsed();
        let (ledger, kept) = self.enter_all(&changed, &hasher).await?;
        let differing = self.blocking(move || ledger.settle()).await?;
        tracing::debug!(table = self.source.uri(), version = self.to, bytes, ?sieved, took = ?began.elapsed(), "files compared");
        for kinds in [ChangeKind::GOING, ChangeKind::COMING] {
            self.send_differing(&changed, &differing, &kept, kinds, sender).await?;
        }
        Ok(())
    }

    /// Of all rows those that may differ.
    async fn suspects(
        self: &Arc<Self>,
        changed: Vec<ChangedRows>,
        bytes: u64,
        hasher: &Arc<RowHasher>,
    ) -> Result<Vec<ChangedRows>> {
        let groups = self.groups(&changed, bytes, hasher).await?;
        if groups.all_equal() {
            return Ok(Vec::new());
        }
        if groups.differing_percent() > MOST_DIFFERING_PERCENT {
            return Ok(changed);
        }
        let (range, hasher, groups) = (Arc::clone(self), Arc::clone(hasher), Arc::new(groups));
        let found = self.each_file(&changed, move |number, changed| {
            let (range, hasher, groups) = (Arc::clone(&range), Arc::clone(&hasher), Arc::clone(&groups));
            stream::once(async move { Ok((number, range.places(changed, &hasher, &groups).await?)) })
        });
        let found: Vec<(u32, RoaringTreemap)> = found.try_collect().await?;
        let mut found: BTreeMap<u32, RoaringTreemap> = found.into_iter().collect();
        let some_rows = |(number, changed)| {
            let places = found.remove(&number).filter(|places| !places.is_empty())?;
            Some(ChangedRows { rows: RowSet::Only(Arc::new(places)), ..changed })
        };
        Ok((0..).zip(changed).filter_map(some_rows).collect())
    }

    async fn groups(
        self: &Arc<Self>,
        changed: &[ChangedRows],
        bytes: u64,
        hasher: &Arc<RowHasher>,
    ) -> Result<KeyGroups> {
        let (range, hasher) = (Arc::clone(self), Arc::clone(hasher));
        let mut hashed = self.each_file(changed, move |_, changed| {
            let hashed = Arc::clone(&range).hashed(changed, Arc::clone(&hasher));
            hashed.map_ok(|rows| (rows.hashes, rows.added))
        });
        let mut groups = KeyGroups::for_bytes(bytes);
        while let Some((hashes, added)) = hashed.try_next().await? {
            for (hash, is_added) in hashes.into_iter().zip(added) {
                groups.enter(hash, is_added);
            }
        }
        Ok(groups)
    }

    /// The places of a file's rows whose keys may have different rows.
    async fn places(
        self: Arc<Self>,
        changed: ChangedRows,
        hasher: &RowHasher,
        groups: &KeyGroups,
    ) -> Result<RoaringTreemap> {
        let mut suspects = RoaringTreemap::new();
        let mut rows = self.source.read_file(&self.key_plan, &changed.file, &changed.rows).await?;
        while let Some((batch, places)) = rows.try_next().await? {
            let keys = match self.key.is_empty() {
                true => hasher.hash(&batch)?.into_iter().map(|hash| hash.key).collect(),
                false => hasher.hash_keys(batch.columns(), batch.num_rows())?,
            };
            let differing = places.into_iter().zip(keys).filter(|(_, key)| groups.differ(*key));
            suspects.extend(differing.map(|(place, _)| place));
        }
        Ok(suspects)
    }

    /// Enters rows as they come; what does not fit in memory goes to disk.
    async fn enter_all(
        self: &Arc<Self>,
        changed: &[ChangedRows],
        hasher: &Arc<RowHasher>,
    ) -> Result<(Ledger, KeptRows)> {
        let (range, hasher) = (Arc::clone(self), Arc::clone(hasher));
        let mut hashed = self.each_file(changed, move |number, changed| {
            let hashed = Arc::clone(&range).hashed(changed, Arc::clone(&hasher));
            hashed.map_ok(move |rows| (number, rows))
        });
        let (mut ledger, mut kept) = (Ledger::new(), KeptRows::default());
        while let Some((file, rows)) = hashed.try_next().await? {
            for ((hash, position), is_added) in rows.hashes.into_iter().zip(&rows.places).zip(rows.added) {
                let key = hash.key.unwrap_or(hash.row);
                ledger.enter(Entry { key, row: hash.row, is_added, file, position: *position });
            }
            kept.keep(file, rows.batch, rows.places);
            if ledger.is_full() {
                let folder = self.source.spill_folder().to_owned();
                ledger = self.blocking(move || ledger.spill(&folder).map(|()| ledger)).await?;
            }
        }
        Ok((ledger, kept))
    }

    /// What `read` makes of each file and its number, in no order.
    fn each_file<T, S>(
        &self,
        changed: &[ChangedRows],
        read: impl Fn(u32, ChangedRows) -> S + Clone + Send + 'static,
    ) -> BoxStream<'static, Result<T>>
    where
        T: Send + 'static,
        S: Stream<Item = Result<T>> + Send + 'static,
    {
        let numbered: Vec<(u32, ChangedRows)> = (0..).zip(changed.iter().cloned()).collect();
        side_by_side(self.source.uri().to_owned(), numbered, move |(number, changed)| read(number, changed))
    }

    /// Rows of one file, hashed.
    fn hashed(
        self: Arc<Self>,
        changed: ChangedRows,
        hasher: Arc<RowHasher>,
    ) -> impl Stream<Item = Result<HashedRows>> + Send {
        let reader = Arc::clone(&self);
        let of_file = changed.clone();
        let opened = async move {
            let plan = if of_file.side == Side::Feed { &reader.feed_plan } else { &reader.plan };
            reader.source.read_file(plan, &of_file.file, &of_file.rows).await
        };
        stream::once(opened).try_flatten().map(move |rows| {
            let (batch, places) = rows?;
            let (batch, added) = match changed.side {
                Side::Removed => (batch, vec![false; places.len()]),
                Side::Added => (batch, vec![true; places.len()]),
                Side::Feed => {
                    let (batch, kinds) = self.split_feed(batch, &changed)?;
                    (batch, kinds.into_iter().map(|kind| !kind.removes_row()).collect())
                }
            };
            let hashes = hasher.hash(&batch)?;
            Ok(HashedRows { batch, places, hashes, added })
        })
    }

    /// Tells the rows that differ in one direction.
    async fn send_differing(
        &self,
        changed: &[ChangedRows],
        differing: &BTreeMap<u32, Differing>,
        kept: &KeptRows,
        kinds: [ChangeKind; 2],
        sender: &Sender,
    ) -> Result<()> {
        for (number, changed) in (0_u32..).zip(changed) {
            let Some(differing) = differing.get(&number) else { continue };
            let untold = |kind: &ChangeKind| {
                *kind == ChangeKind::UpdatePreimage && matches!(self.detail, Detail::Upserts(_))
            };
            for kind in kinds.into_iter().filter(|kind| !untold(kind)) {
                let places = differing.rows(kind);
                if places.is_empty() {
                    continue;
                }
                if let Some(rows) = kept.only(number, places) {
                    let table = self.source.uri();
                    let rows = rows.map(|rows| {
                        rows.map_err(|source| ReverseSyncError::Shape { table: table.to_owned(), source })
                    });
                    self.pass_on(stream::iter(rows), changed, kind, sender).await?;
                } else {
                    let rows = RowSet::Only(Arc::new(places.clone()));
                    self.send_rows(&ChangedRows { rows, ..changed.clone() }, kind, sender).await?;
                }
            }
        }
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let table = || self.source.uri().to_owned();
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|source| ReverseSyncError::Reader { table: table(), source })?.map_err(|source| {
            let folder = self.source.spill_folder().display().to_string();
            ReverseSyncError::Spill { folder, source }
        })
    }
}

/// The bytes of files of which all rows have to be looked at.
fn whole_files(changed: &[ChangedRows]) -> u64 {
    let whole = changed.iter().filter(|changed| matches!(changed.rows, RowSet::Live(_)));
    whole.filter_map(|changed| changed.file.size).fold(0, u64::saturating_add)
}

/// Rows as they were read, until they are too many.
#[derive(Default)]
struct KeptRows {
    by_file: BTreeMap<u32, Vec<(RecordBatch, Vec<u64>)>>,
    bytes: usize,
}

impl KeptRows {
    fn keep(&mut self, file: u32, batch: RecordBatch, places: Vec<u64>) {
        self.bytes = self.bytes.saturating_add(batch.get_array_memory_size());
        if self.bytes > KEPT_BYTES {
            self.by_file.clear();
        } else {
            self.by_file.entry(file).or_default().push((batch, places));
        }
    }

    /// The rows of a file at these places; none if they are not kept.
    fn only(
        &self,
        file: u32,
        wanted: &RoaringTreemap,
    ) -> Option<impl Iterator<Item = std::result::Result<RecordBatch, arrow::error::ArrowError>>> {
        let batches = self.by_file.get(&file)?;
        Some(batches.iter().map(move |(batch, places)| {
            let mask: BooleanArray = places.iter().map(|place| Some(wanted.contains(*place))).collect();
            filter_record_batch(batch, &mask)
        }))
    }
}

/// The rows of a feed's batch to which one thing happened.
pub(super) fn of_kind(
    table: &str,
    batch: &RecordBatch,
    kinds: &[ChangeKind],
    kind: ChangeKind,
) -> Result<RecordBatch> {
    let mask: BooleanArray = kinds.iter().map(|of_row| Some(*of_row == kind)).collect();
    filter_record_batch(batch, &mask)
        .map_err(|source| ReverseSyncError::Shape { table: table.to_owned(), source })
}
