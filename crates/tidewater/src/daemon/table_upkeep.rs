//! Upkeep of one table, beside its flushes: compaction, checkpoints, expiry.
//!
//! ```text
//!   table's task   flush ── commit ──┬── flush ── commit ──┬── flush ──
//!                            begins  │              adopts │
//!   a thread                         └─ compaction ────────┘            one at a time in a database
//!   a task                      checkpoint, then expiry                 one at a time for a table
//! ```
//!
//! Only two steps touch the table, both short and between two flushes: taking note that a compaction
//! begins, and committing its result. Everything else works on copies. Nothing that is lost with a crash or
//! a stop matters: the next run finds the same table and does it again.

use super::error::error_chain;
use super::table_writer::Shown;
use crate::telemetry;
use delta_writer::{
    Checkpoint, CompactedFiles, Compaction, DeltaError, Expiry, MirrorTable, OldestVersion, PendingBudget,
    WriterOptions,
};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How often age is looked at: versions live for days.
const EXPIRY_EVERY: Duration = Duration::from_secs(3600);
/// The whole table is listed for files left behind once in so many expiries; first an hour after the start.
const SWEEP_EVERY: u64 = 24;
/// Logs of one database listed at once: each listing holds up to `max_versions` names.
const LISTINGS: usize = 2;
/// How long a stop waits for what is nearly done: the small merges and checkpoints of an ordinary table.
const LAST_UPKEEP: Duration = Duration::from_secs(2);

/// What all tables of a database are kept by.
#[derive(Debug, Clone)]
pub struct UpkeepPolicy {
    retention: Duration,
    max_versions: u64,
    pending_budget: PendingBudget,
    compactions: Arc<Semaphore>,
    listings: Arc<Semaphore>,
}

impl UpkeepPolicy {
    /// A policy with the lake's promises, and a budget shared by all tables of the daemon.
    pub fn new(lake: &crate::config::Lake, pending_budget: PendingBudget) -> UpkeepPolicy {
        UpkeepPolicy {
            retention: lake.retention.duration(),
            max_versions: lake.max_versions,
            pending_budget,
            compactions: Arc::new(Semaphore::new(1)),
            listings: Arc::new(Semaphore::new(LISTINGS)),
        }
    }

    /// How tables are written that are kept by this policy.
    pub fn writer_options(&self, index_dir: PathBuf) -> WriterOptions {
        WriterOptions {
            retention: self.retention,
            max_versions: self.max_versions,
            pending_budget: self.pending_budget.clone(),
            ..WriterOptions::new(index_dir)
        }
    }
}

type Turn = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;
type Ended = Result<Option<Result<CompactedFiles, DeltaError>>, JoinError>;

/// A compaction under way.
struct Running {
    task: JoinHandle<Option<Result<CompactedFiles, DeltaError>>>,
    cancel: CancellationToken,
    _turn: OwnedSemaphorePermit,
}

impl Future for Running {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ended> {
        Pin::new(&mut self.task).poll(context)
    }
}

/// What can be done next.
pub enum UpkeepStep {
    /// It is this table's turn to compact.
    Turn(Option<OwnedSemaphorePermit>),
    /// Its compaction has ended.
    Ended(Box<Ended>),
    /// A checkpoint or an expiry has ended; with the table's oldest version, if it was looked for.
    HouseKept(Option<OldestVersion>),
    /// Time to look for what has expired.
    Expire,
}

/// The upkeep of one table.
pub struct TableUpkeep {
    shown: Shown,
    policy: UpkeepPolicy,
    turn: Option<Turn>,
    running: Option<Running>,
    housekeeping: Option<AbortOnDropHandle<Option<OldestVersion>>>,
    oldest: Option<OldestVersion>,
    expiry_due: Interval,
    expiries: u64,
}

impl TableUpkeep {
    /// Upkeep for the table that `shown` names.
    pub fn new(shown: Shown, policy: UpkeepPolicy) -> TableUpkeep {
        let mut expiry_due = tokio::time::interval(EXPIRY_EVERY);
        expiry_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        TableUpkeep {
            shown,
            policy,
            turn: None,
            running: None,
            housekeeping: None,
            oldest: None,
            expiry_due,
            expiries: 0,
        }
    }

    /// Waits for the next step. May be dropped and called again at any time.
    pub async fn next(&mut self) -> UpkeepStep {
        let idle = self.housekeeping.is_none();
        tokio::select! {
            turn = ready(&mut self.turn) => {
                self.turn = None;
                UpkeepStep::Turn(turn.ok())
            }
            ended = ready(&mut self.running) => {
                self.running = None;
                UpkeepStep::Ended(Box::new(ended))
            }
            oldest = ready(&mut self.housekeeping) => {
                self.housekeeping = None;
                UpkeepStep::HouseKept(oldest.unwrap_or(None))
            }
            _ = self.expiry_due.tick(), if idle => UpkeepStep::Expire,
        }
    }

    /// Does a step, between two flushes.
    pub async fn step(&mut self, table: &mut MirrorTable, step: UpkeepStep) -> Result<(), DeltaError> {
        match step {
            UpkeepStep::Turn(Some(turn)) => {
                if let Some(compaction) = table.begin_compaction() {
                    self.start(compaction, turn);
                }
            }
            UpkeepStep::Turn(None) => {}
            UpkeepStep::Ended(ended) => {
                self.adopt(table, *ended).await?;
                self.look_at(table);
            }
            UpkeepStep::HouseKept(oldest) => {
                self.oldest = oldest.or(self.oldest);
                self.show_oldest();
            }
            UpkeepStep::Expire => {
                let sweeps = self.expiries % SWEEP_EVERY == 1;
                self.expiries += 1;
                let sweep = sweeps.then(|| table.expiry());
                self.keep_house(None, Some(table.expiry()), sweep);
            }
        }
        Ok(())
    }

    /// What a commit makes necessary.
    pub fn look_at(&mut self, table: &mut MirrorTable) {
        self.measure(table);
        if self.housekeeping.is_none()
            && let Some(checkpoint) = table.due_checkpoint()
        {
            let too_long = |oldest: OldestVersion| table.is_too_long(oldest);
            let expiry = self.oldest.is_some_and(too_long).then(|| table.expiry());
            self.keep_house(Some(checkpoint), expiry, None);
        }
        if self.turn.is_none() && self.running.is_none() && table.wants_compaction() {
            self.turn = Some(Box::pin(Arc::clone(&self.policy.compactions).acquire_owned()));
        }
    }

    /// Ends everything. `between_flushes`: a compaction that is nearly done may still be taken over.
    pub async fn stop(mut self, table: &mut MirrorTable, between_flushes: bool) {
        let deadline = tokio::time::Instant::now() + LAST_UPKEEP;
        if let Some(mut running) = self.running.take() {
            let ended = match between_flushes {
                true => tokio::time::timeout_at(deadline, &mut running).await.ok(),
                false => None,
            };
            if let Some(ended) = ended {
                if let Err(error) = self.adopt(table, ended).await {
                    tracing::warn!(table = %self.shown.table, error = %error_chain(&error), "a last compaction is left out");
                }
            } else {
                running.cancel.cancel();
                // It holds the key index, which whoever opens the table next needs.
                let _cancelled = running.await;
            }
        }
        if let Some(last) = self.housekeeping.take() {
            // Past the deadline it ends here: the next run does it again.
            let _late = tokio::time::timeout_at(deadline, last).await;
        }
    }

    /// Runs a compaction on a thread of its own: encoding a row group takes longer than a task may hold up others.
    fn start(&mut self, compaction: Compaction, turn: OwnedSemaphorePermit) {
        tracing::debug!(table = %self.shown.table, files = compaction.files(), "compaction begins");
        let cancel = CancellationToken::new();
        let (runtime, cancelled) = (tokio::runtime::Handle::current(), cancel.clone());
        let task = tokio::task::spawn_blocking(move || {
            runtime.block_on(cancelled.run_until_cancelled_owned(compaction.run()))
        });
        self.running = Some(Running { task, cancel, _turn: turn });
    }

    async fn adopt(&mut self, table: &mut MirrorTable, ended: Ended) -> Result<(), DeltaError> {
        let done = match ended {
            Ok(Some(Ok(done))) => done,
            Ok(Some(Err(error))) => {
                tracing::warn!(table = %self.shown.table, error = %error_chain(&error), "a compaction failed; another one is tried later");
                table.abandon_compaction();
                return Ok(());
            }
            Ok(None) | Err(_) => {
                table.abandon_compaction();
                return Ok(());
            }
        };
        let Some(compacted) = table.adopt_compaction(done).await? else {
            tracing::debug!(table = %self.shown.table, "a compaction is given up: its files are other ones by now");
            return Ok(());
        };
        let (removed, added) = (compacted.files_removed, compacted.files_added);
        tracing::debug!(table = %self.shown.table, version = compacted.version, removed, added, "compacted");
        metrics::counter!(telemetry::LAKE_COMPACTIONS_TOTAL, &self.labels()).increment(1);
        self.shown.board.update(&self.shown.database, &self.shown.table, |status| {
            status.version = Some(compacted.version);
        });
        Ok(())
    }

    /// Writes a checkpoint, removes what has expired, sweeps: in this order, on a task of its own.
    fn keep_house(&mut self, checkpoint: Option<Checkpoint>, expiry: Option<Expiry>, sweep: Option<Expiry>) {
        let (table, listings) = (self.shown.table.clone(), Arc::clone(&self.policy.listings));
        let work = async move {
            if let Some(checkpoint) = checkpoint {
                checkpoint.write().await?;
            }
            let _permit = match expiry.is_some() || sweep.is_some() {
                true => listings.acquire_owned().await.ok(),
                false => None,
            };
            let oldest = match expiry {
                Some(expiry) => Some(expiry.run().await?),
                None => None,
            };
            if let Some(sweep) = sweep {
                let files = sweep.sweep_orphans().await?;
                tracing::info!(table, files, "files that nothing named any more are removed");
            }
            Ok::<_, DeltaError>(oldest)
        };
        let table = self.shown.table.clone();
        let task = tokio::spawn(async move {
            work.await.unwrap_or_else(|error| {
                // Readers only have more commits to read, and the lake some files too many, until the next one.
                tracing::warn!(table, error = %error_chain(&error), "checkpoint or expiry failed; it is tried again later");
                None
            })
        });
        self.housekeeping = Some(AbortOnDropHandle::new(task));
    }

    fn labels(&self) -> [(&'static str, String); 2] {
        [("database", self.shown.database.clone()), ("table", self.shown.table.clone())]
    }

    fn measure(&self, table: &MirrorTable) {
        let (stats, labels) = (table.stats(), self.labels());
        let all = stats.rows + stats.deleted_rows;
        metrics::gauge!(telemetry::LAKE_FILES, &labels).set(stats.files as f64);
        metrics::gauge!(telemetry::LAKE_ROWS_PER_FILE, &labels).set(share(all, stats.files));
        metrics::gauge!(telemetry::LAKE_DELETED_SHARE, &labels).set(share(stats.deleted_rows, all));
    }

    fn show_oldest(&self) {
        let Some(oldest) = self.oldest else { return };
        self.shown.board.update(&self.shown.database, &self.shown.table, |status| {
            status.oldest = Some(oldest);
        });
    }
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// The result of something that may be under way; never ready if it is not.
async fn ready<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
