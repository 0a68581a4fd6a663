//! Where the rows of a load go: into a mirror, into a history, or into both.
//!
//! Each is a table of its own with a commit of its own, at the same position. Should only the first of two
//! commits come about, both are loaded again: `sync_state.json` names the table until both have caught up.
//!
//! A mirror is replaced by what is loaded. A history is only compared with it, and gets what differs; if its source's
//! columns have changed, it takes their shape before.

use super::SyncError;
use super::first_load::LoadTable;
use super::source_shape;
use arrow::array::RecordBatch;
use delta_writer::{
    CommitSpec, DifferenceWorker, FinishedWorker, HistoryDifference, LoadWorker, MirrorTable,
    TableDefinition, TableKind, TableLoad, TableLocation, WriterOptions, loaded_rows,
};
use wal_decoder::Lsn;

/// A load under way into one or two tables.
#[derive(Debug)]
pub struct TargetLoad {
    table: Load,
    history: Option<Load>,
    /// The application id of the history's commit, where it is the second table.
    history_app_id: String,
}

/// What one copying session writes to.
pub struct TargetWriter {
    table: Writer,
    history: Option<Writer>,
}

/// What one session has written.
#[derive(Debug)]
pub struct FinishedWriter {
    table: Option<FinishedWorker>,
    history: Option<FinishedWorker>,
}

/// A load into one table.
#[derive(Debug)]
enum Load {
    Mirror(TableLoad),
    /// A history begins, at this position.
    NewHistory(TableLoad, Lsn),
    History(HistoryDifference),
}

enum Writer {
    Mirror(LoadWorker),
    NewHistory(LoadWorker, Lsn),
    History(DifferenceWorker),
}

impl TargetLoad {
    /// Begins to load what `request` asks for, as of `position`.
    pub async fn begin(request: &LoadTable, position: Lsn) -> Result<TargetLoad, SyncError> {
        let options = &request.options;
        let definition = source_shape::definition(&request.planned, &request.table_id);
        let table = Load::begin(&request.location, &definition, options, position).await?;
        let history = match &request.history {
            Some(beside) => {
                let definition = source_shape::history_definition(&request.planned, &beside.table_id);
                Some(Load::begin(&beside.location, &definition, options, position).await?)
            }
            None => None,
        };
        let history_app_id = request.history.as_ref().map(|beside| beside.app_id.clone()).unwrap_or_default();
        Ok(TargetLoad { table, history, history_app_id })
    }

    /// What one session writes to.
    pub fn worker(&self) -> TargetWriter {
        TargetWriter { table: self.table.worker(), history: self.history.as_ref().map(Load::worker) }
    }

    /// Shows everything that was written.
    pub async fn commit(
        self,
        finished: Vec<FinishedWriter>,
        spec: &CommitSpec,
    ) -> Result<(MirrorTable, Option<MirrorTable>), SyncError> {
        let (own, of_history): (Vec<_>, Vec<_>) =
            finished.into_iter().map(|writer| (writer.table, writer.history)).unzip();
        let history = match self.history {
            Some(load) => {
                let spec = CommitSpec { app_id: self.history_app_id, ..spec.clone() };
                Some(load.commit(of_history.into_iter().flatten().collect(), &spec).await?)
            }
            None => None,
        };
        Ok((self.table.commit(own.into_iter().flatten().collect(), spec).await?, history))
    }
}

impl Load {
    async fn begin(
        location: &TableLocation,
        definition: &TableDefinition,
        options: &WriterOptions,
        position: Lsn,
    ) -> Result<Load, SyncError> {
        let begin = || TableLoad::begin(location.clone(), definition.clone(), options.clone());
        if definition.kind != TableKind::History {
            return Ok(Load::Mirror(begin().await?));
        }
        let goes_on = |found: &TableDefinition| source_shape::carried(found, definition);
        let compared =
            HistoryDifference::begin(location.clone(), definition, options.clone(), position, goes_on);
        match compared.await? {
            Some(difference) => Ok(Load::History(difference)),
            None => Ok(Load::NewHistory(begin().await?, position)),
        }
    }

    fn worker(&self) -> Writer {
        match self {
            Load::Mirror(load) => Writer::Mirror(load.worker()),
            Load::NewHistory(load, position) => Writer::NewHistory(load.worker(), *position),
            Load::History(difference) => Writer::History(difference.worker()),
        }
    }

    async fn commit(
        self,
        finished: Vec<FinishedWorker>,
        spec: &CommitSpec,
    ) -> Result<MirrorTable, SyncError> {
        Ok(match self {
            Load::Mirror(load) | Load::NewHistory(load, _) => load.commit(finished, spec).await?,
            Load::History(difference) => difference.commit(spec).await?,
        })
    }
}

impl TargetWriter {
    /// Writes rows of the source.
    pub async fn write(&mut self, rows: RecordBatch) -> Result<(), SyncError> {
        if let Some(history) = &mut self.history {
            history.write(rows.clone()).await?;
        }
        self.table.write(rows).await
    }

    /// Closes what the session has written.
    pub async fn finish(self) -> Result<FinishedWriter, SyncError> {
        let history = match self.history {
            Some(writer) => writer.finish().await?,
            None => None,
        };
        Ok(FinishedWriter { table: self.table.finish().await?, history })
    }
}

impl Writer {
    async fn write(&mut self, rows: RecordBatch) -> Result<(), SyncError> {
        match self {
            Writer::Mirror(worker) => worker.write(rows).await?,
            Writer::NewHistory(worker, position) => worker.write(loaded_rows(&rows, *position)?).await?,
            Writer::History(worker) => worker.write(rows).await?,
        }
        Ok(())
    }

    async fn finish(self) -> Result<Option<FinishedWorker>, SyncError> {
        match self {
            Writer::Mirror(worker) | Writer::NewHistory(worker, _) => Ok(Some(worker.finish().await?)),
            Writer::History(_) => Ok(None),
        }
    }
}
