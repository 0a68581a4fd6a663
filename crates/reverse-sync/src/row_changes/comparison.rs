//! Comparing the rows that went with the rows that came, and telling what is left.
//!
//! Two readings: the first enters every row's hashes in the [`Ledger`], the second reads the rows that differ. Nothing
//! of the rows themselves is kept in between.

use super::file_changes::{ChangedRows, Side};
use super::ledger::{Differing, Entry, Ledger};
use super::row_hash::RowHasher;
use super::{ChangeKind, Range, Sender};
use crate::delta_source::RowSet;
use crate::error::{Result, ReverseSyncError};
use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use futures::TryStreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Range {
    pub(super) async fn send_compared(&self, changed: &[ChangedRows], sender: &Sender) -> Result<()> {
        let hasher = RowHasher::new(self.source.uri(), self.plan.schema(), self.key.clone())?;
        let mut ledger = Ledger::new();
        for (number, changed) in (0_u32..).zip(changed) {
            ledger = self.enter(number, changed, &hasher, ledger).await?;
        }
        let differing = self.blocking(move || ledger.settle()).await?;
        for kinds in [ChangeKind::GOING, ChangeKind::COMING] {
            self.send_differing(changed, &differing, kinds, sender).await?;
        }
        Ok(())
    }

    /// Enters all rows of one file.
    async fn enter(
        &self,
        number: u32,
        changed: &ChangedRows,
        hasher: &RowHasher,
        mut ledger: Ledger,
    ) -> Result<Ledger> {
        let plan = if changed.side == Side::Feed { &self.feed_plan } else { &self.plan };
        let mut rows = self.source.read_file(plan, &changed.file, &changed.rows).await?;
        while let Some((batch, positions)) = rows.try_next().await? {
            let (batch, added) = match changed.side {
                Side::Removed => (batch, vec![false; positions.len()]),
                Side::Added => (batch, vec![true; positions.len()]),
                Side::Feed => {
                    let (batch, kinds) = self.split_feed(batch, changed)?;
                    (batch, kinds.into_iter().map(|kind| !kind.removes_row()).collect())
                }
            };
            for ((hash, position), is_added) in hasher.hash(&batch)?.into_iter().zip(positions).zip(added) {
                ledger.enter(Entry { key: hash.key, row: hash.row, is_added, file: number, position });
            }
            if ledger.is_full() {
                let folder = self.source.spill_folder().to_owned();
                ledger = self.blocking(move || ledger.spill(&folder).map(|()| ledger)).await?;
            }
        }
        Ok(ledger)
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
            for kind in kinds {
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
