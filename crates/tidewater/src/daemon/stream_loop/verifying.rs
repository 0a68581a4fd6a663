//! Comparing live tables with their source, row for row, at one position.
//!
//! The two sides have to be taken at the same moment. A temporary slot exports a snapshot and names its consistent
//! point L; the stream is cut exactly there: every transaction below L is in, none above.
//!
//! ```text
//!   stream held ─▶ slot made: L, snapshot ─▶ stream goes on up to L ─▶ cut, landed: versions ─▶ compared beside the stream
//!   (HOLD at most)                            (first commit at or above L waits for the cut)
//! ```
//!
//! Without holding it, the stream would have passed L before anybody knew it. Making a slot waits for transactions that
//! are open at the source, so the hold is short, and is tried again once they have ended.

use super::StreamLoop;
use crate::config::Mode;
use crate::daemon::SyncError;
use crate::daemon::crash_point::death_point;
use crate::daemon::error::error_chain;
use crate::daemon::live_table::LiveTable;
use crate::daemon::plan::PlannedTable;
use crate::daemon::table_comparison::{self, Compared};
use crate::verification::{Verdict, Verification};
use bytes::Bytes;
use postgres_connector::{ReplicationSession, SlotOptions, SnapshotSession, SourceConfig, import_snapshot};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, JoinSet};
use wal_decoder::Lsn;

/// How long the stream may stand still for a slot to be made: what freshness can bear.
const HOLD: Duration = Duration::from_secs(1);

/// Attempts until a source whose transactions never end is given up on, and snapshots until a table is that is never what
/// they show.
const ATTEMPTS: u32 = 10;

/// A snapshot, and the position that it shows.
struct Exported {
    position: Lsn,
    session: SnapshotSession,
}

/// A slot being made.
struct Export {
    task: JoinHandle<Result<Exported, SyncError>>,
    began: Instant,
    attempt: u32,
}

/// A verification, and how many snapshots were taken for it.
struct Asked {
    verification: Verification,
    snapshots: u32,
}

/// Where the verification of one database stands.
#[derive(Default)]
pub(super) struct Verifier {
    waiting: VecDeque<Asked>,
    export: Option<Export>,
    /// The stream is to be cut here.
    cut_at: Option<Exported>,
    /// Give back what has to be compared in another snapshot.
    comparisons: JoinSet<Option<Asked>>,
}

impl Verifier {
    /// Takes up a verification; they are done one after the other.
    pub(super) fn request(&mut self, verification: Verification) {
        self.waiting.push_back(Asked { verification, snapshots: 0 });
    }

    /// Nothing may be read from the stream now.
    pub(super) fn holds_stream(&self) -> bool {
        self.export.as_ref().is_some_and(|export| export.began.elapsed() < HOLD)
    }

    /// When the stream goes on in any case.
    pub(super) fn hold_ends(&self) -> Option<Instant> {
        self.export.as_ref().filter(|_| self.holds_stream()).map(|export| export.began + HOLD)
    }

    /// The message belongs behind the cut.
    pub(super) fn cuts_before(&self, commit: Option<Lsn>) -> bool {
        self.cut_at.as_ref().zip(commit).is_some_and(|(exported, commit)| commit >= exported.position)
    }

    /// Ends everything that is under way.
    pub(super) async fn shutdown(&mut self) {
        if let Some(export) = self.export.take() {
            export.task.abort();
        }
        self.comparisons.shutdown().await;
    }

    /// The slot that is being made; never ready without one.
    pub(super) async fn exported(&mut self) -> Option<ExportEnded> {
        let Some(export) = &mut self.export else { return std::future::pending().await };
        let ended = (&mut export.task).await;
        let export = self.export.take()?;
        Some(ExportEnded {
            result: ended.unwrap_or(Err(SyncError::WriterGone)),
            in_time: export.began.elapsed() < HOLD,
            attempt: export.attempt,
        })
    }
}

/// How the making of a slot ended.
pub(super) struct ExportEnded {
    result: Result<Exported, SyncError>,
    /// The stream stood still all the while.
    in_time: bool,
    attempt: u32,
}

impl StreamLoop {
    /// Begins the next verification, when there is one and none is under way.
    pub(super) fn begin_verification(&mut self) {
        let verifier = &self.verifier;
        let busy = verifier.export.is_some() || verifier.cut_at.is_some() || !verifier.comparisons.is_empty();
        // A table that is being loaded is not at any cut.
        let loading = !self.loads.is_empty() || self.tables.values().any(|table| table.loading);
        if !busy && !loading && !self.verifier.waiting.is_empty() {
            self.export(1);
        }
    }

    fn export(&mut self, attempt: u32) {
        let slot = format!("{}_verify", self.slot.chars().take(56).collect::<String>());
        let task = tokio::spawn(export(self.sync.source.clone(), slot));
        self.verifier.export = Some(Export { task, began: Instant::now(), attempt });
    }

    /// The slot is made: the stream goes on, up to its position.
    pub(super) async fn export_ended(&mut self, ended: ExportEnded) -> Result<(), SyncError> {
        match ended.result {
            Ok(exported) if ended.in_time => {
                self.verifier.cut_at = Some(exported);
                // An idle source says nothing: this makes it report that it has come so far.
                postgres_connector::heartbeat(&self.client).await?;
            }
            Ok(exported) if ended.attempt < ATTEMPTS => {
                // Transactions were open, and have ended now.
                exported.session.close().await?;
                self.export(ended.attempt + 1);
            }
            Ok(_) => self.give_up("transactions stay open at the source for so long that no position can be fixed: try again when it is calmer"),
            Err(error) => self.give_up(&error_chain(&error)),
        }
        Ok(())
    }

    fn give_up(&mut self, reason: &str) {
        if let Some(Asked { verification, .. }) = self.verifier.waiting.pop_front() {
            for table in verification.open_tables() {
                verification.give_up(&table, reason);
            }
        }
    }

    /// Where the commit record begins of the transaction that a message starts to deliver.
    pub(super) fn commit_of(&self, message: &Bytes) -> Option<Lsn> {
        self.verifier.cut_at.as_ref()?;
        self.router.commit_announced_by(message)
    }

    /// Everything below the position has been received: cuts there, and compares.
    pub(super) async fn cut_for_verification(&mut self) -> Result<(), SyncError> {
        self.land().await?;
        if self.waiting_since.is_some() {
            // Every table's own position is below it as well.
            self.last_commit.end_lsn = self.last_commit.end_lsn.max(self.first_cut);
            self.cut().await?;
            self.land().await?;
        }
        let Some(mut exported) = self.verifier.cut_at.take() else { return Ok(()) };
        let Some(Asked { verification, snapshots }) = self.verifier.waiting.pop_front() else {
            return Ok(());
        };
        let snapshots = snapshots + 1;
        let mut tables = Vec::new();
        for name in verification.open_tables() {
            match self
                .tables
                .values()
                .find(|table| table.is_called(&name))
                .map(|table| comparable(table, &name))
            {
                Some(Ok((planned, version))) => {
                    verification.compared_at(&name, exported.position, version);
                    tables.push((planned, version.unsigned_abs()));
                }
                Some(Err(reason)) => verification.give_up(&name, reason),
                None => verification.give_up(&name, "it is not synced"),
            }
        }
        let (lake, spool) = (self.sync.reader.clone(), self.sync.spool_directory());
        self.verifier.comparisons.spawn(async move {
            death_point!("verify-before-comparison");
            for (planned, version) in tables {
                let name = planned.name.clone();
                let progress = |rows| verification.update(&name, |found| found.source_rows = rows);
                let compared = table_comparison::compare(
                    &mut exported.session,
                    &lake,
                    &spool,
                    &planned,
                    version,
                    progress,
                );
                match compared.await {
                    Ok(compared) => verdict(&verification, &name, compared),
                    // Without a verdict it is compared again.
                    Err(error) if error.asks_for_another_snapshot() && snapshots < ATTEMPTS => {}
                    Err(error) => verification.give_up(&name, &error_chain(&error)),
                }
            }
            // The comparisons are done: how the session ends changes nothing.
            let _ = exported.session.close().await;
            (!verification.open_tables().is_empty()).then_some(Asked { verification, snapshots })
        });
        Ok(())
    }

    /// Takes up what has been compared.
    pub(super) fn reap_comparisons(&mut self) {
        while let Some(ended) = self.verifier.comparisons.try_join_next() {
            self.verifier.waiting.extend(ended.ok().flatten());
        }
    }
}

/// What of a table is compared, or why nothing is.
fn comparable(table: &LiveTable, name: &str) -> Result<(PlannedTable, i64), &'static str> {
    match table.version {
        _ if table.planned.mode == Mode::History || table.planned.name != name => {
            Err("its rows are changes, which the source does not keep: with `mode: both`, compare its mirror")
        }
        _ if table.planned.inserts_only.is_some() => {
            Err("only inserts of it are followed, so it differs wherever a row was updated or deleted")
        }
        Some(version) if table.is_at_the_cut() => Ok((table.planned.clone(), version)),
        _ => Err("it does not follow the stream now: `tidewater status` says why"),
    }
}

fn verdict(verification: &Verification, table: &str, compared: Compared) {
    verification.update(table, |found| {
        found.verdict = if compared.differing_keys == 0 { Verdict::Equal } else { Verdict::Different };
        found.source_rows = compared.source_rows;
        found.lake_rows = Some(compared.lake_rows);
        found.differing_keys = Some(compared.differing_keys);
        found.first = compared.first;
    });
}

/// Makes a temporary slot for its snapshot, and lets it go again.
async fn export(source: SourceConfig, slot: String) -> Result<Exported, SyncError> {
    let mut anchor = ReplicationSession::connect(&source).await?;
    let options = SlotOptions { temporary: true, export_snapshot: true, failover: false };
    let created = anchor.create_logical_slot(&slot, options).await?;
    let snapshot = created.snapshot.ok_or(SyncError::NoSnapshot)?;
    let session = import_snapshot(&source, &snapshot, 1).await?.pop().ok_or(SyncError::NoSnapshot)?;
    anchor.close().await?;
    Ok(Exported { position: created.consistent_point, session })
}
