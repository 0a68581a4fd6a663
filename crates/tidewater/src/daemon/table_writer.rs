//! One task owns each table of the lake.
//!
//! The stream hands it changes and, at a cut, asks for a commit. It answers only when the commit is in
//! the log or when it is certain that there will be none. A change that cannot be taken halts the table
//! and leaves the others alone. Anything else that goes wrong, a lake that is away above all, is no
//! matter of one table: it interrupts the database's sync, which starts again from what is committed.

use super::SyncError;
use super::error::{error_chain, halts_table};
use crate::status::{StatusBoard, TableState};
use delta_writer::{CommitSpec, Committed, DeltaError, MirrorTable};
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
    /// Starts the task that owns `table`.
    pub fn spawn(table: MirrorTable, tasks: &TaskTracker) -> TableWriter {
        let (work, queue) = mpsc::channel(QUEUE);
        let task = tasks.spawn(own(table, queue));
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

async fn own(mut table: MirrorTable, mut queue: mpsc::Receiver<Work>) {
    // The first failure is the answer to the next commit, and the end: whoever asked opens the table anew.
    let mut failure: Option<DeltaError> = None;
    while let Some(work) = queue.recv().await {
        match work {
            Work::Apply(changes) => {
                if failure.is_none() {
                    failure = table.apply(changes).await.err();
                }
            }
            Work::Commit(spec, answer) => {
                let done = match failure.take() {
                    Some(error) => Err(error),
                    None => commit(&mut table, *spec).await,
                };
                let ended = done.is_err();
                // Nobody listens any more only when the sync is being dropped.
                let _ = answer.send(done.unwrap_or_else(outcome_of));
                if ended {
                    return;
                }
            }
        }
    }
}

async fn commit(table: &mut MirrorTable, spec: CommitSpec) -> Result<Outcome, DeltaError> {
    let Some(flush) = table.write().await? else { return Ok(Outcome::Unchanged) };
    // Retrying here gains nothing over starting again: the writer has tried for a while itself.
    let committed = table.commit(flush, &spec).await.map_err(|failure| failure.error)?;
    if let Some(checkpoint) = table.due_checkpoint() {
        tokio::spawn(async move {
            if let Err(error) = checkpoint.write().await {
                // Readers only have more commits to read until the next one.
                tracing::warn!(error = %error_chain(&error), "a checkpoint could not be written");
            }
        });
    }
    Ok(Outcome::Committed { committed, rows: table.stats().rows })
}

fn outcome_of(error: DeltaError) -> Outcome {
    match error {
        error @ DeltaError::SecondWriter { .. } => Outcome::Failed(SyncError::SecondWriter(error)),
        error if halts_table(&error) => Outcome::Halted(error_chain(&error)),
        error => Outcome::Failed(error.into()),
    }
}
