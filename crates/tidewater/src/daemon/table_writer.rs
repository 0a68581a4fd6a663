//! One task owns each table of the lake.
//!
//! The stream hands it changes and, at a cut, asks for a commit. It answers only when the commit is in
//! the log or when it is certain that there will be none. A change that cannot be taken halts the table
//! and leaves the others alone. Anything else that goes wrong, a lake that is away above all, is no
//! matter of one table: it interrupts the database's sync, which starts again from what is committed.
//!
//! A source table with `mode: both` becomes two tables of the lake, each with a task and a `txn` of its own. They get
//! the same changes and commit at the same cuts; a crash between the two commits leaves one ahead, which then passes
//! over what it has already.

use super::SyncError;
use super::batch::Batch;
use super::error::{error_chain, halts_table};
use super::table_upkeep::{TableUpkeep, UpkeepStep};
use crate::status::{StatusBoard, TableState};
use crate::telemetry;
use delta_writer::{CommitSpec, Committed, DeltaError, MirrorTable, Reshape};
use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use wal_decoder::Lsn;

/// Batches that wait for one table: one behind the one being applied.
const QUEUE: usize = 1;

/// What became of a commit that was asked for.
#[derive(Debug)]
pub enum Outcome {
    /// It is in the log.
    Committed {
        /// What it did.
        committed: Committed,
        /// Rows that the table has now.
        rows: u64,
    },
    /// There was nothing to commit: the changes cancelled out.
    Unchanged,
    /// The table cannot go on; nothing of it was committed since the last success.
    Halted(String),
    /// The sync cannot go on as it is.
    Failed(SyncError),
}

enum Work {
    Apply(Batch),
    /// With where the commit record of the transaction begins that it stands in.
    Reshape(Box<Reshape>, Lsn),
    Commit(Box<CommitSpec>, oneshot::Sender<Outcome>),
}

/// The sending end of a table's task. Dropping it ends the task once its queue is empty.
#[derive(Debug)]
pub struct TableWriter {
    work: mpsc::Sender<Work>,
    task: JoinHandle<()>,
    history: Option<Box<HistoryWriter>>,
}

/// The history beside a mirror.
#[derive(Debug)]
struct HistoryWriter {
    writer: TableWriter,
    app_id: String,
    shown: Shown,
}

/// Where a table's state is shown.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The status that everyone reads.
    pub board: StatusBoard,
    /// The database's name in the configuration.
    pub database: String,
    /// `schema.table`.
    pub table: String,
}

impl Shown {
    /// Shows the table in a state that is no error.
    pub fn show(&self, state: TableState) {
        self.board.update(&self.database, &self.table, |status| {
            status.state = state;
            status.error = None;
        });
    }

    /// Shows the table as stopped by an error.
    pub fn show_halted(&self, reason: &str) {
        self.board.update(&self.database, &self.table, |status| {
            status.state = TableState::Failed;
            status.error = Some(reason.to_owned());
        });
    }

    /// Shows a table that follows the stream up to `position`.
    pub fn show_live(&self, table: &MirrorTable, state: TableState, position: Lsn) {
        let (version, rows) = (table.version(), table.stats().rows);
        self.board.update(&self.database, &self.table, |status| {
            status.state = state;
            status.position = Some(position);
            status.version = Some(version);
            status.rows = Some(rows);
            status.error = None;
        });
    }

    /// Shows how far a table that follows the stream is behind it.
    pub fn show_lag(&self, position: Lsn, bytes: u64, seconds: f64) {
        let labels = [("database", self.database.clone()), ("table", self.table.clone())];
        self.board.update(&self.database, &self.table, |status| {
            if matches!(status.state, TableState::Streaming | TableState::InsertsOnly) {
                status.position = status.position.max(Some(position));
                status.lag_bytes = Some(bytes);
                status.show_lag(seconds);
                metrics::gauge!(telemetry::SYNC_LAG_BYTES, &labels).set(bytes as f64);
                metrics::gauge!(telemetry::SYNC_LAG_SECONDS, &labels).set(seconds);
            }
        });
    }

    fn show_outcome(&self, outcome: Option<&Outcome>, position: Lsn) {
        match outcome {
            Some(Outcome::Committed { committed, rows }) => {
                self.board.update(&self.database, &self.table, |status| {
                    status.position = Some(position);
                    status.version = Some(committed.version);
                    status.rows = Some(*rows);
                });
            }
            Some(Outcome::Halted(reason)) => self.show_halted(reason),
            Some(Outcome::Unchanged | Outcome::Failed(_)) | None => {}
        }
    }
}

impl TableWriter {
    /// Starts the task that owns `table` and keeps it up. The table holds every transaction whose commit record begins
    /// below `from`.
    pub fn spawn(table: MirrorTable, from: Lsn, upkeep: TableUpkeep, tasks: &TaskTracker) -> TableWriter {
        let (work, queue) = mpsc::channel(QUEUE);
        let owner = Owner { table, from, upkeep, failure: None, between_flushes: true };
        let task = tasks.spawn(owner.run(queue));
        TableWriter { work, task, history: None }
    }

    /// This table and its history, as one: they are given the same changes.
    pub fn with_history(self, writer: TableWriter, app_id: String, shown: Shown) -> TableWriter {
        TableWriter { history: Some(Box::new(HistoryWriter { writer, app_id, shown })), ..self }
    }

    /// Ends the task and waits until its table is closed, and its history; what was not committed is dropped.
    pub async fn close(self) {
        drop(self.work);
        let of_history = self.history.map(|history| history.writer.task);
        for task in std::iter::once(self.task).chain(of_history) {
            if task.await.is_err() {
                tracing::error!("a table's task ended unexpectedly; its table is closed");
            }
        }
    }

    /// Hands over changes; waits while the table is busy with earlier ones.
    pub async fn apply(&self, batch: Batch) -> Result<(), SyncError> {
        if let Some(history) = &self.history {
            history.writer.work.send(Work::Apply(batch.clone())).await.map_err(|_| SyncError::WriterGone)?;
        }
        self.work.send(Work::Apply(batch)).await.map_err(|_| SyncError::WriterGone)
    }

    /// Lets the changes handed over from now on be in another shape; the history beside it takes `of_history`. `at` is
    /// where the commit record of the transaction begins that the change stands in.
    pub async fn reshape(&self, own: Reshape, of_history: Option<Reshape>, at: Lsn) -> Result<(), SyncError> {
        if let Some((history, reshape)) = self.history.as_ref().zip(of_history) {
            let sent = history.writer.work.send(Work::Reshape(Box::new(reshape), at)).await;
            sent.map_err(|_| SyncError::WriterGone)?;
        }
        self.work.send(Work::Reshape(Box::new(own), at)).await.map_err(|_| SyncError::WriterGone)
    }

    /// Asks for a commit of everything handed over. What comes back says what became of it, `None` when the task
    /// has ended; with a history, once both have answered.
    pub async fn commit(
        &self,
        spec: CommitSpec,
    ) -> Result<impl Future<Output = Option<Outcome>> + Send + use<>, SyncError> {
        let position = Lsn(spec.version.unsigned_abs());
        let of_history = match &self.history {
            None => None,
            Some(history) => {
                let spec = CommitSpec { app_id: history.app_id.clone(), ..spec.clone() };
                Some((history.writer.ask(spec).await?, history.shown.clone()))
            }
        };
        let own = self.ask(spec).await?;
        Ok(async move {
            let own = own.await.ok();
            let Some((answer, shown)) = of_history else { return own };
            let of_history = answer.await.ok();
            shown.show_outcome(of_history.as_ref(), position);
            graver(own, of_history)
        })
    }

    async fn ask(&self, spec: CommitSpec) -> Result<oneshot::Receiver<Outcome>, SyncError> {
        let (answer, outcome) = oneshot::channel();
        self.work.send(Work::Commit(Box::new(spec), answer)).await.map_err(|_| SyncError::WriterGone)?;
        Ok(outcome)
    }
}

/// What the stream has to know of two tables that go on together or not at all.
fn graver(mirror: Option<Outcome>, history: Option<Outcome>) -> Option<Outcome> {
    match (mirror, history) {
        (None, _) | (_, None) => None,
        (Some(failed @ Outcome::Failed(_)), _) | (_, Some(failed @ Outcome::Failed(_))) => Some(failed),
        (Some(halted @ Outcome::Halted(_)), _) | (_, Some(halted @ Outcome::Halted(_))) => Some(halted),
        (Some(mirror), Some(_)) => Some(mirror),
    }
}

/// A table, with all that its task knows of it.
struct Owner {
    table: MirrorTable,
    /// What it has already: transactions whose commit record begins below.
    from: Lsn,
    upkeep: TableUpkeep,
    /// The first failure is the answer to the next commit, and the end: whoever asked opens the table anew.
    failure: Option<DeltaError>,
    /// Nothing was applied since the last commit: the moment for upkeep.
    between_flushes: bool,
}

enum Next {
    Work(Work),
    Upkeep(UpkeepStep),
}

impl Owner {
    async fn run(mut self, mut queue: mpsc::Receiver<Work>) {
        self.upkeep.look_at(&mut self.table);
        loop {
            let quiet = self.between_flushes && self.failure.is_none();
            let next = tokio::select! {
                biased;
                work = queue.recv() => match work {
                    Some(work) => Next::Work(work),
                    None => break,
                },
                step = self.upkeep.next(), if quiet => Next::Upkeep(step),
            };
            match next {
                Next::Work(Work::Apply(batch)) => {
                    self.between_flushes = false;
                    if self.failure.is_none() {
                        self.failure = batch.since(self.from).give_to(&mut self.table).await.err();
                    }
                }
                Next::Work(Work::Reshape(reshape, at)) => {
                    self.between_flushes = false;
                    // A crash between two commits leaves one table ahead, in that shape or a later one already.
                    if self.failure.is_none() && at >= self.from {
                        self.failure = self.table.reshape(*reshape).await.err();
                    }
                }
                Next::Work(Work::Commit(spec, answer)) => {
                    let done = match self.failure.take() {
                        Some(error) => Err(error),
                        None => commit(&mut self.table, *spec).await,
                    };
                    let ended = done.is_err();
                    self.between_flushes = !ended;
                    // Nobody listens any more only when the sync is being dropped.
                    let _ = answer.send(done.unwrap_or_else(outcome_of));
                    if ended {
                        break;
                    }
                    self.keep_up().await;
                }
                Next::Upkeep(step) => self.failure = self.upkeep.step(&mut self.table, step).await.err(),
            }
        }
        let quiet = self.between_flushes && self.failure.is_none();
        self.upkeep.stop(&mut self.table, quiet).await;
    }

    /// Does what upkeep is ready to do now: a table that is always busy has no other moment for it.
    async fn keep_up(&mut self) {
        self.upkeep.look_at(&mut self.table);
        while self.failure.is_none()
            && let Some(step) = self.upkeep.next().now_or_never()
        {
            self.failure = self.upkeep.step(&mut self.table, step).await.err();
        }
    }
}

async fn commit(table: &mut MirrorTable, spec: CommitSpec) -> Result<Outcome, DeltaError> {
    let Some(flush) = table.write().await? else { return Ok(Outcome::Unchanged) };
    // Retrying here gains nothing over starting again: the writer has tried for a while itself.
    let committed = table.commit(flush, &spec).await.map_err(|failure| failure.error)?;
    Ok(Outcome::Committed { committed, rows: table.stats().rows })
}

fn outcome_of(error: DeltaError) -> Outcome {
    match error {
        error @ DeltaError::SecondWriter { .. } => Outcome::Failed(SyncError::SecondWriter(error)),
        error if halts_table(&error) => Outcome::Halted(error_chain(&error)),
        error => Outcome::Failed(error.into()),
    }
}
