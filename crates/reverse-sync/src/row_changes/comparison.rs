//! Comparing the rows that went with the rows that came, and telling what is left.
//!
//! Two readings: the first hashes the rows of a few files side by side and enters them in the [`Ledger`], the second
//! reads the rows that differ. Nothing of the rows themselves is kept in between.

use super::file_changes::{ChangedRows, Side};
use super::ledger::{Differing, Entry, Ledger};
use super::row_hash::{RowHash, RowHasher};
use super::{ChangeKind, Detail, Range, Sender};
use crate::delta_source::{RowSet, side_by_side};
use crate::error::{Result, ReverseSyncError};
use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Range {
    pub(super) async fn send_compared(
        self: &Arc<Self>,
        changed: Vec<ChangedRows>,
        sender: &Sender,
    ) -> Result<()> {
        let hasher = RowHasher::new(self.source.uri(), self.plan.schema(), self.key.clone())?;
        let (range, hasher) = (Arc::clone(self), Arc::new(hasher));
        let changed: Arc<[ChangedRows]> = changed.into();
        let numbered = (0_u32..).zip(changed.iter().cloned());
        let entered = side_by_side(self.source.uri().to_owned(), numbered.collect::<Vec<_>>(), move |file| {
            Arc::clone(&range).entries(file, Arc::clone(&hasher))
        });
        let ledger = self.enter_all(entered).await?;
        let differing = self.blocking(move || ledger.settle()).await?;
        for kinds in [ChangeKind::GOING, ChangeKind::COMING] {
            self.send_differing(&changed, &differing, kinds, sender).await?;
        }
        Ok(())
    }

    /// Enters rows as they come; what does not fit in memory goes to disk.
    async fn enter_all(&self, mut entered: impl Stream<Item = Result<Vec<Entry>>> + Unpin) -> Result<Ledger> {
        let mut ledger = Ledger::new();
        while let Some(entries) = entered.try_next().await? {
            for entry in entries {
                ledger.enter(entry);
            }
            if ledger.is_full() {
                let folder = self.source.spill_folder().to_owned();
                ledger = self.blocking(move || ledger.spill(&folder).map(|()| ledger)).await?;
            }
        }
        Ok(ledger)
    }

    /// All rows of one file, hashed.
    fn entries(
        self: Arc<Self>,
        (number, changed): (u32, ChangedRows),
        hasher: Arc<RowHasher>,
    ) -> impl Stream<Item = Result<Vec<Entry>>> + Send {
        let reader = Arc::clone(&self);
        let of_file = changed.clone();
        let opened = async move {
            let plan = if of_file.side == Side::Feed { &reader.feed_plan } else { &reader.plan };
            reader.source.read_file(plan, &of_file.file, &of_file.rows).await
        };
        stream::once(opened).try_flatten().map(move |rows| {
            let (batch, positions) = rows?;
            let (batch, added) = match changed.side {
                Side::Removed => (batch, vec![false; positions.len()]),
                Side::Added => (batch, vec![true; positions.len()]),
                Side::Feed => {
                    let (batch, kinds) = self.split_feed(batch, &changed)?;
                    (batch, kinds.into_iter().map(|kind| !kind.removes_row()).collect())
                }
            };
            let rows = hasher.hash(&batch)?.into_iter().zip(positions).zip(added);
            let entry = |((hash, position), is_added): ((RowHash, u64), bool)| Entry {
                key: hash.key,
                row: hash.row,
                is_added,
                file: number,
                position,
            };
            Ok(rows.map(entry).collect())
        })
    }

    /// Reads and tells the rows that differ in one direction.
    async fn send_differing(
        &self,
        changed: &[ChangedRows],
        differing: &BTreeMap<u32, Differing>,
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
                if !places.is_empty() {
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
