//! A Delta table that only grows: consistent points, dead letters, telemetry.
//!
//! ```text
//!   append(rows) ──> one data file ──> N.json put if absent ──┐ taken by another appender: follow it, N + 1
//!                                            ▲────────────────┘
//!   every SMALL_FILES small files ──> one larger file, dataChange = false
//! ```
//!
//! Unlike a [`MirrorTable`](crate::MirrorTable) it has no owner: several daemons, or several databases of one,
//! may append side by side. **The invariant: an append is in the table exactly once when it returns, and a
//! version that somebody else wrote is never lost.** Appends do not depend on each other, so a taken
//! version only means to try the next one.

use crate::action::{Action, Add, render_actions};
use crate::checkpoint::Checkpoint;
use crate::commit::{CommitFacts, CommitSpec, commit_info_of, txn_of};
use crate::data_file::FileSink;
use crate::error::{DeltaError, Result};
use crate::expiry::Expiry;
use crate::key_index::FileId;
use crate::lake::TableLocation;
use crate::log::{self, PutOutcome};
use crate::row_reader::RowReader;
use crate::table_definition::{TableDefinition, TableKind};
use crate::table_state::TableState;
use crate::writer_options::WriterOptions;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Small files that are merged once there are so many: a reader opens no more than these.
const SMALL_FILES: usize = 64;

/// A file below this is small. Merging stops there, so a row is written again a few times at most.
const SMALL_FILE_BYTES: i64 = 8 << 20;

/// Versions that other appenders may take from one commit before something must be wrong.
const MOST_CONFLICTS: usize = 1000;

/// A table to append to. See the [module](self).
#[derive(Debug)]
pub struct AppendTable {
    location: TableLocation,
    definition: Arc<TableDefinition>,
    options: WriterOptions,
    state: TableState,
    last_checkpoint: Option<i64>,
}

impl AppendTable {
    /// Opens the table at `location`, made with these columns if there is none.
    ///
    /// # Errors
    /// [`DeltaError::UnexpectedState`] if a table of other columns stands there.
    pub async fn open(
        location: TableLocation,
        schema: SchemaRef,
        options: WriterOptions,
    ) -> Result<AppendTable> {
        let definition = TableDefinition {
            schema,
            key: Vec::new(),
            partition_by: Vec::new(),
            configuration: BTreeMap::new(),
            deletion_vectors: false,
            kind: TableKind::default(),
        };
        definition.check(location.uri())?;
        let loaded = match log::load(&location).await? {
            Some(loaded) => loaded,
            None => {
                create(&location, &definition, &options).await?;
                log::load(&location).await?.ok_or_else(|| DeltaError::UnexpectedState {
                    table: location.uri().to_owned(),
                    reason: "the table vanished while it was being made; keep its folder".to_owned(),
                })?
            }
        };
        let table = AppendTable {
            definition: Arc::new(definition),
            state: loaded.state,
            last_checkpoint: loaded.checkpoint,
            location,
            options,
        };
        table.check_shape()?;
        Ok(table)
    }

    /// The newest version, as far as this appender knows.
    pub fn version(&self) -> i64 {
        self.state.version
    }

    /// Adds rows in one commit, and returns its version. `spec` is the commit's `txn` and description.
    pub async fn append(&mut self, rows: &RecordBatch, spec: &CommitSpec) -> Result<i64> {
        let mut sink = self.sink();
        sink.append(std::slice::from_ref(rows), &mut |_| Ok(FileId(0))).await?;
        let adds: Vec<Add> = sink.finish().await?.into_iter().map(|file| file.add).collect();
        let commit_id = Uuid::new_v4().to_string();
        let mut conflicts = 0;
        let version = loop {
            let info = commit_info_of(&CommitFacts {
                operation: "WRITE",
                commit_id: &commit_id,
                read_version: Some(self.state.version),
                blind: true,
                rows_added: rows.num_rows() as u64,
                rows_deleted: 0,
                info: &spec.info,
            });
            let mut actions = vec![Action::CommitInfo(info), Action::Txn(txn_of(spec))];
            actions.extend(adds.iter().cloned().map(Action::Add));
            match self.put(actions, &commit_id).await? {
                Put::Done(version) => break version,
                Put::Overtaken => conflicts += 1,
            }
            if conflicts > MOST_CONFLICTS {
                return Err(self.unexpected("other writers keep taking the next version; stop them"));
            }
        };
        self.merge_small_files().await?;
        self.keep_house().await;
        Ok(version)
    }

    fn sink(&self) -> FileSink {
        FileSink::new(self.location.clone(), Arc::clone(&self.definition), self.options.clone())
    }

    /// Tries to make `actions` the next version; a version of somebody else is taken over instead.
    async fn put(&mut self, actions: Vec<Action>, commit_id: &str) -> Result<Put> {
        let version = self.state.version + 1;
        let lines = render_actions(&actions)?;
        let attempts = self.options.commit_attempts;
        match log::put_commit(&self.location, version, &lines, commit_id, attempts).await? {
            PutOutcome::Ours => {
                self.state.advance(actions)?;
                Ok(Put::Done(version))
            }
            PutOutcome::Theirs(theirs) => {
                self.state.advance(theirs)?;
                self.check_shape()?;
                Ok(Put::Overtaken)
            }
        }
    }

    /// Puts the rows of many small files into one. Given up without a word when somebody else moves the same
    /// files: the next append tries again.
    async fn merge_small_files(&mut self) -> Result<()> {
        let small: Vec<Arc<Add>> = self
            .state
            .files
            .values()
            .filter(|file| file.add.size < SMALL_FILE_BYTES && file.add.deletion_vector.is_none())
            .map(|file| Arc::clone(&file.add))
            .collect();
        if small.len() < SMALL_FILES {
            return Ok(());
        }
        let mut sink = self.sink();
        let columns: Vec<usize> = (0..self.definition.schema.fields().len()).collect();
        for add in &small {
            let mut rows =
                RowReader::open(&self.location, &self.definition.schema, add, &columns, None).await?;
            while let Some(batch) = rows.next().await? {
                sink.append(std::slice::from_ref(&batch), &mut |_| Ok(FileId(0))).await?;
            }
        }
        let merged = sink.finish().await?;
        let now = chrono::Utc::now().timestamp_millis();
        let commit_id = Uuid::new_v4().to_string();
        for _ in 0..MOST_CONFLICTS {
            let still_there = |add: &Arc<Add>| {
                self.state.files.get(&add.path).is_some_and(|file| file.add.deletion_vector.is_none())
            };
            if !small.iter().all(still_there) {
                return Ok(());
            }
            let mut actions = vec![Action::CommitInfo(merge_info(&commit_id, self.state.version))];
            actions.extend(small.iter().map(|add| Action::Remove(add.removal(now, false))));
            actions.extend(
                merged.iter().map(|file| Action::Add(Add { data_change: false, ..file.add.clone() })),
            );
            if let Put::Done(_) = self.put(actions, &commit_id).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A checkpoint, if one is due, and with it the end of versions that nobody was promised any more. What fails
    /// here is done by a later append.
    async fn keep_house(&mut self) {
        let since = self.state.version - self.last_checkpoint.unwrap_or(0);
        if since < self.options.checkpoint_every() {
            return;
        }
        self.last_checkpoint = Some(self.state.version);
        let (location, state) = (self.location.clone(), self.state.clone());
        let checkpoint = Checkpoint::new(location.clone(), state.clone(), self.options.retention);
        let expiry = Expiry::new(location, self.options.clone(), state);
        let kept = match checkpoint.write().await {
            Ok(_) => expiry.run().await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(table = self.location.uri(), error, "a checkpoint or an expiry failed");
        }
    }

    fn check_shape(&self) -> Result<()> {
        let found =
            TableDefinition::from_log(self.location.uri(), &self.state.protocol, &self.state.metadata)?;
        let columns = |definition: &TableDefinition| -> Vec<_> {
            let fields = definition.schema.fields().iter();
            fields.map(|field| (field.name().clone(), field.data_type().clone())).collect()
        };
        if columns(&found) != columns(&self.definition) || found.is_partitioned() {
            return Err(
                self.unexpected("it has other columns than this version writes; move its folder away")
            );
        }
        Ok(())
    }

    fn unexpected(&self, reason: &str) -> DeltaError {
        DeltaError::UnexpectedState { table: self.location.uri().to_owned(), reason: reason.to_owned() }
    }
}

/// What became of an attempt.
enum Put {
    Done(i64),
    Overtaken,
}

/// Version 0. That somebody else makes it at the same moment is as good.
async fn create(
    location: &TableLocation,
    definition: &TableDefinition,
    options: &WriterOptions,
) -> Result<()> {
    let commit_id = Uuid::new_v4().to_string();
    let now = chrono::Utc::now().timestamp_millis();
    let actions = [
        Action::CommitInfo(described("CREATE TABLE", &commit_id)),
        Action::Protocol(definition.protocol()),
        Action::MetaData(definition.metadata(location.uri(), None, now)?),
    ];
    let lines = render_actions(&actions)?;
    log::put_commit(location, 0, &lines, &commit_id, options.commit_attempts).await.map(drop)
}

fn merge_info(commit_id: &str, read_version: i64) -> serde_json::Map<String, serde_json::Value> {
    let mut info = described("OPTIMIZE", commit_id);
    info.insert("readVersion".into(), read_version.into());
    info
}

fn described(operation: &str, commit_id: &str) -> serde_json::Map<String, serde_json::Value> {
    let mut info = serde_json::Map::new();
    info.insert("timestamp".into(), chrono::Utc::now().timestamp_millis().into());
    info.insert("operation".into(), operation.into());
    info.insert("operationParameters".into(), serde_json::json!({}));
    info.insert("engineInfo".into(), crate::table_state::ENGINE.into());
    info.insert("commitId".into(), commit_id.into());
    info
}
