//! One task owns each table of the lake.
//!
//! The stream hands it changes and, at a cut, asks for a commit. It answers only when the commit is in
//! the log or when it is certain that there will be none. A change that cannot be taken halts the table
//! and leaves the others alone. Anything else that goes wrong, a lake that is away above all, is no
//! matter of one table: it interrupts the database's sync, which starts again from what is committed.

use super::SyncError;
use super::error::{error_chain, halts_table};
use super::table_upkeep::{TableUpkeep, UpkeepStep};
use crate::status::{StatusBoard, TableState};
use delta_writer::{CommitSpec, Committed, DeltaError, MirrorTable};
use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use wal_decoder::RowChanges;

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
    Apply(RowChanges),
    Commit(Box<CommitSpec>, oneshot::Sender<Outcome>),
}

/// The sending end of a table's task. Dropping it ends the task once its queue is empty.
#[derive(Debug)]
pub struct TableWriter {
    work: mpsc::Sender<Work>,
    task: JoinHandle<()>,
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
}

impl TableWriter {
    /// Starts the task that owns `table` and keeps it up.
    pub fn spawn(table: MirrorTable, upkeep: TableUpkeep, tasks: &TaskTracker) -> TableWriter {
        let (work, queue) = mpsc::channel(QUEUE);
        let owner = Owner { table, upkeep, failure: None, between_flushes: true };
        let task = tasks.spawn(owner.run(queue));
        TableWriter { work, task }
    }

    /// Ends the task and waits until its table is closed; what was not committed is dropped.
    pub async fn close(self) {
        drop(self.work);
        if self.task.await.is_err() {
            tracing::error!("a table's task ended unexpectedly; its table is closed");
        }
    }

    /// Hands over changes; waits while the table is busy with earlier ones.
    pub async fn apply(&self, changes: RowChanges) -> Result<(), SyncError> {
        self.work.send(Work::Apply(changes)).await.map_err(|_| SyncError::WriterGone)
    }

    /// Asks for a commit of everything handed over; the receiver hears what became of it.
    pub async fn commit(&self, spec: CommitSpec) -> Result<oneshot::Receiver<Outcome>, SyncError> {
        let (answer, outcome) = oneshot::channel();
        self.work.send(Work::Commit(Box::new(spec), answer)).await.map_err(|_| SyncError::WriterGone)?;
        Ok(outcome)
    }
}

/// A table, with all that its task knows of it.
struct Owner {
    table: MirrorTable,
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
                Next::Work(Work::Apply(changes)) => {
                    self.between_flushes = false;
                    if self.failure.is_none() {
                        self.failure = self.table.apply(changes).await.err();
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
