//! First load and reload: many workers write rows, one commit shows them.
//!
//! ```text
//!   begin ──> worker ── write(batch)* ── finish ──┐
//!        └──> worker ── write(batch)* ── finish ──┴──> commit: version 0, or the next one in place of all files
//! ```
//!
//! A load that dies leaves files that no version names, and nothing else: starting over is safe. A reload
//! removes every file the table had, keeps its id and history, and takes over a changed schema.
//!
//! While a table is loaded, its [`MirrorTable`] must be closed: the two would share a key index.

use crate::action::{Action, render_actions};
use crate::commit::{CommitFacts, CommitSpec, commit_info_of, txn_of};
use crate::data_file::{FileSink, SealedFile};
use crate::error::{DeltaError, Result};
use crate::index_recovery;
use crate::key_index::{FileId, KeyHasher, KeyIndex, RunBuilder, SealedRun};
use crate::lake::TableLocation;
use crate::log::{self, LoadedLog, PutOutcome};
use crate::mirror_table::MirrorTable;
use crate::table_definition::{TableDefinition, has_deletion_vectors, retention_properties};
use crate::table_state::{LOAD_OPERATION, Replay};
use crate::vector_cache::VectorCache;
use crate::writer_options::WriterOptions;
use arrow::array::RecordBatch;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// A load under way. See the [module](self).
#[derive(Debug)]
pub struct TableLoad {
    shared: Arc<Shared>,
    existing: Option<LoadedLog>,
    metadata: crate::action::Metadata,
    commit_id: String,
}

#[derive(Debug)]
struct Shared {
    location: TableLocation,
    definition: Arc<TableDefinition>,
    options: WriterOptions,
    /// Held for moments only: workers ask for a number per file.
    files: Mutex<Numbers>,
}

/// Numbers for new files; with a key, the index gives them.
#[derive(Debug)]
struct Numbers {
    index: Option<KeyIndex>,
    next: u32,
}

/// One of a load's writers. Send it to the task that copies.
pub struct LoadWorker {
    shared: Arc<Shared>,
    sink: FileSink,
    keys: Option<(KeyHasher, RunBuilder)>,
    /// Rows of a partitioned table wait here, so that partitions get files of some size.
    waiting: Vec<RecordBatch>,
    waiting_bytes: usize,
}

/// What a worker has written.
#[derive(Debug)]
#[must_use = "a finished worker's rows are part of the load only if its commit gets them"]
pub struct FinishedWorker {
    files: Vec<SealedFile>,
    run: Option<SealedRun>,
}

impl FinishedWorker {
    /// Rows written.
    pub fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }
}

impl TableLoad {
    /// Begins to load `location`, whether or not a table is there.
    pub async fn begin(
        location: TableLocation,
        mut definition: TableDefinition,
        options: WriterOptions,
    ) -> Result<TableLoad> {
        definition.check(location.uri())?;
        definition.configuration.extend(retention_properties(options.retention));
        let existing = log::load(&location).await?;
        let previous = existing.as_ref().map(|loaded| &loaded.state.metadata);
        if !definition.deletion_vectors && previous.is_some_and(has_deletion_vectors) {
            // Trino and others refuse a table whose vectors were switched off again.
            tracing::warn!(
                table = location.uri(),
                "deletion vectors stay on for a table that has them; drop its folder to write it without"
            );
            definition.deletion_vectors = true;
        }
        let metadata =
            definition.metadata(location.uri(), previous, chrono::Utc::now().timestamp_millis())?;
        let index = match definition.has_key() {
            true => {
                let dir = index_recovery::index_dir(&options, &metadata.id);
                let index = KeyIndex::create(&dir).map_err(DeltaError::index(location.uri()))?;
                Some(index.with_places(definition.kind.places()))
            }
            false => None,
        };
        let files = Mutex::new(Numbers { index, next: 0 });
        let definition = Arc::new(definition);
        let shared = Arc::new(Shared { location, definition, options, files });
        Ok(TableLoad { shared, existing, metadata, commit_id: Uuid::new_v4().to_string() })
    }

    /// A writer for one copying task.
    pub fn worker(&self) -> LoadWorker {
        let shared = Arc::clone(&self.shared);
        let keys = {
            let files = shared.files.lock().unwrap_or_else(PoisonError::into_inner);
            files.index.as_ref().map(|index| (index.hasher(), index.run_builder()))
        };
        let sink =
            FileSink::new(shared.location.clone(), Arc::clone(&shared.definition), shared.options.clone());
        LoadWorker { shared, sink, keys, waiting: Vec::new(), waiting_bytes: 0 }
    }

    /// Shows everything the workers wrote, in one version, and opens the table at it.
    ///
    /// # Errors
    /// [`DeltaError::UnexpectedState`] if somebody else wrote a version since [`TableLoad::begin`]. An error
    /// leaves the table as it was.
    pub async fn commit(self, workers: Vec<FinishedWorker>, spec: &CommitSpec) -> Result<MirrorTable> {
        let Self { shared, existing, metadata, commit_id } = self;
        let now = chrono::Utc::now().timestamp_millis();
        let version = existing.as_ref().map_or(0, |loaded| loaded.state.version + 1);
        let mut rows_added = 0;
        let mut adds = Vec::new();
        let mut runs = Vec::new();
        for worker in workers {
            rows_added += worker.rows();
            adds.extend(worker.files.into_iter().map(|file| file.add));
            runs.extend(worker.run);
        }
        let info = commit_info_of(&CommitFacts {
            operation: LOAD_OPERATION,
            commit_id: &commit_id,
            read_version: existing.as_ref().map(|loaded| loaded.state.version),
            blind: existing.is_none(),
            rows_added,
            rows_deleted: existing.as_ref().map_or(0, |loaded| loaded.state.stats().rows),
            info: &spec.info,
        });
        let mut actions = vec![Action::CommitInfo(info)];
        let protocol = match &existing {
            Some(loaded) => shared.definition.protocol_after(&loaded.state.protocol),
            None => shared.definition.protocol(),
        };
        if existing.as_ref().is_none_or(|loaded| loaded.state.protocol != protocol) {
            actions.push(Action::Protocol(protocol));
        }
        if existing.as_ref().is_none_or(|loaded| loaded.state.metadata != metadata) {
            actions.push(Action::MetaData(metadata));
        }
        actions.push(Action::Txn(txn_of(spec)));
        if let Some(loaded) = &existing {
            actions
                .extend(loaded.state.files.values().map(|file| Action::Remove(file.add.removal(now, true))));
        }
        actions.extend(adds.into_iter().map(Action::Add));
        let lines = render_actions(&actions)?;
        match log::put_commit(&shared.location, version, &lines, &commit_id, shared.options.commit_attempts)
            .await?
        {
            PutOutcome::Ours => {}
            PutOutcome::Theirs(_) => {
                return Err(DeltaError::UnexpectedState {
                    table: shared.location.uri().to_owned(),
                    reason: format!(
                        "version {version} was written by somebody else during the load; load again"
                    ),
                });
            }
        }
        open_loaded(&shared, existing, version, actions, runs)
    }
}

/// The table at the version just committed, with an index made of the workers' runs.
fn open_loaded(
    shared: &Shared,
    existing: Option<LoadedLog>,
    version: i64,
    actions: Vec<Action>,
    runs: Vec<SealedRun>,
) -> Result<MirrorTable> {
    let (state, checkpoint) = match existing {
        Some(mut loaded) => {
            loaded.state.advance(actions)?;
            (loaded.state, loaded.checkpoint)
        }
        None => {
            let mut replay = Replay::default();
            replay.apply(version, actions);
            (replay.finish(shared.location.uri(), version)?, None)
        }
    };
    let mut index = shared.files.lock().unwrap_or_else(PoisonError::into_inner).index.take();
    if let Some(index) = &mut index {
        for run in runs {
            index.stage_run(run).map_err(DeltaError::index(shared.location.uri()))?;
        }
        index.commit(version).map_err(DeltaError::index(shared.location.uri()))?;
    }
    Ok(MirrorTable::assembled(
        shared.location.clone(),
        shared.options.clone(),
        TableDefinition::clone(&shared.definition),
        state,
        index,
        VectorCache::new(shared.location.clone()),
        checkpoint,
    ))
}

impl LoadWorker {
    /// Writes rows of the table. Keys must be distinct over all workers, as a snapshot's are; the rows of a
    /// [multiset](crate::TableKind::Multiset) may repeat.
    pub async fn write(&mut self, batch: RecordBatch) -> Result<()> {
        if batch.schema().fields().len() != self.shared.definition.schema.fields().len() {
            return Err(DeltaError::BadChanges {
                table: self.shared.location.uri().to_owned(),
                reason: format!("a batch of {} columns", batch.num_columns()),
            });
        }
        self.waiting_bytes += batch.get_array_memory_size();
        self.waiting.push(batch);
        if !self.shared.definition.is_partitioned() || self.waiting_bytes > self.shared.options.pending_bytes
        {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        let batches = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let shared = &self.shared;
        let mut number = |path: &str| {
            let mut files = shared.files.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(match &mut files.index {
                Some(index) => index.file_id(path),
                None => {
                    files.next += 1;
                    FileId(files.next)
                }
            })
        };
        let addresses = self.sink.append(&batches, &mut number).await?;
        let Some((hasher, run)) = &mut self.keys else { return Ok(()) };
        let failed = |source| DeltaError::index(self.shared.location.uri())(source);
        for (batch, addresses) in batches.iter().zip(addresses) {
            let key: Vec<_> = self
                .shared
                .definition
                .key
                .iter()
                .filter_map(|&at| batch.columns().get(at))
                .cloned()
                .collect();
            for (key, address) in hasher.hash(&key).map_err(failed)?.into_iter().zip(addresses) {
                run.push(key, address).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Closes the worker's last file.
    pub async fn finish(mut self) -> Result<FinishedWorker> {
        self.flush().await?;
        let files = self.sink.finish().await?;
        let run = match self.keys {
            Some((_, run)) => Some(run.finish().map_err(DeltaError::index(self.shared.location.uri()))?),
            None => None,
        };
        Ok(FinishedWorker { files, run })
    }
}
