//! All rows of one version.
//!
//! The files are read by a few tasks side by side, which pass their batches on as they come: the order of rows is
//! nobody's promise.

use super::read_plan::{Part, ReadPlan};
use super::{DataFile, RowSet, TableSource, TableVersion};
use crate::error::{Result, ReverseSyncError};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use delta_kernel::scan::StatsOptions;
use delta_kernel::scan::state::ScanFile;
use delta_kernel::snapshot::SnapshotRef;
use futures::TryStreamExt;
use futures::stream::{self, BoxStream, StreamExt};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Files read side by side: enough to keep a store and a few cores busy, each with a batch or two in memory.
const READERS: usize = 4;

/// Batches that wait for their taker.
const WAITING: usize = 4;

/// Rows of a table as they come.
pub struct Rows {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub stream: BoxStream<'static, Result<RecordBatch>>,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl TableSource {
    /// The rows of a version, in no order. A file that VACUUM took away shows as
    /// [`Unavailable`](crate::Unavailable) in the stream.
    pub async fn snapshot(&self, version: u64, part: &Part) -> Result<Rows> {
        let snapshot = self.snapshot_at(version).await?;
        let state = TableVersion::new(&snapshot).map_err(|source| self.log_error(source))?;
        let plan = Arc::new(ReadPlan::new(self.uri(), &state, part)?);
        let files = self.files_at(snapshot).await?;
        let schema = Arc::clone(plan.schema());
        let queue = Arc::new(Mutex::new(VecDeque::from(files)));
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut readers = JoinSet::new();
        for _ in 0..READERS {
            readers.spawn(read_all(self.clone(), Arc::clone(&plan), Arc::clone(&queue), sender.clone()));
        }
        drop(sender);
        Ok(Rows { schema, stream: received(self.uri().to_owned(), readers, receiver) })
    }

    /// The files of a version with the rows that live in them.
    pub(crate) async fn files_at(&self, snapshot: SnapshotRef) -> Result<Vec<(DataFile, RowSet)>> {
        let version = snapshot.version();
        let scanned = self
            .with_engine(move |engine, _| {
                // Files are not skipped by their statistics here, so none are parsed.
                let scan = snapshot.scan_builder().with_stats(StatsOptions::none()).build()?;
                let mut files = Vec::new();
                for metadata in scan.scan_metadata(engine)? {
                    files = metadata?.visit_scan_files(files, |files, file| files.push(file))?;
                }
                Ok(files)
            })
            .await?;
        let scanned: Vec<ScanFile> = scanned.map_err(|source| self.log_error(source))?;
        let file = |file: ScanFile| {
            let partition_values = file.partition_values.into_iter();
            let data_file = DataFile {
                version,
                path: file.path,
                size: u64::try_from(file.size).ok(),
                partition_values: partition_values.map(|(name, value)| (name, Some(value))).collect(),
            };
            (data_file, RowSet::Live(file.dv_info))
        };
        Ok(scanned.into_iter().map(file).collect())
    }
}

/// Reads files from the queue until it is empty, an error was passed on, or nobody listens any more.
async fn read_all(
    source: TableSource,
    plan: Arc<ReadPlan>,
    queue: Arc<Mutex<VecDeque<(DataFile, RowSet)>>>,
    sender: mpsc::Sender<Result<RecordBatch>>,
) {
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    while let Some((file, rows)) = next() {
        let mut batches = match source.read_file(&plan, &file, &rows).await {
            Ok(batches) => batches,
            Err(error) => {
                // Nobody listens any more: then nobody wants the error either.
                _ = sender.send(Err(error)).await;
                return;
            }
        };
        loop {
            let batch = match batches.try_next().await {
                Ok(Some((batch, _))) => Ok(batch),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            let is_end = batch.is_err();
            if sender.send(batch).await.is_err() || is_end {
                return;
            }
        }
    }
}

/// What tasks send, until all are done. Dropping the stream ends them; one that came down is an error at the end.
pub(crate) fn received<T: Send + 'static>(
    table: String,
    tasks: JoinSet<()>,
    receiver: mpsc::Receiver<Result<T>>,
) -> BoxStream<'static, Result<T>> {
    stream::unfold(Some((tasks, receiver)), move |state| next_received(table.clone(), state)).boxed()
}

type Receiving<T> = Option<(JoinSet<()>, mpsc::Receiver<Result<T>>)>;

async fn next_received<T: Send + 'static>(
    table: String,
    state: Receiving<T>,
) -> Option<(Result<T>, Receiving<T>)> {
    let (mut tasks, mut receiver) = state?;
    if let Some(item) = receiver.recv().await {
        let rest = item.is_ok().then_some((tasks, receiver));
        return Some((item, rest));
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(source) = ended {
            return Some((Err(ReverseSyncError::Reader { table, source }), None));
        }
    }
    None
}
