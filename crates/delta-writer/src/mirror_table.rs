//! A Delta table kept equal to its source: ordered row changes in, Delta versions out.
//!
//! ```text
//!   apply(changes)* ──> pending rows ──> data files ──┐
//!                  └──> deletion bits ────────────────┤ write()            commit()
//!                                                     └──> WrittenFlush ──────────> Committed
//! ```
//!
//! **The invariant: a table has one owner**, this value, which holds its whole state in memory. Nothing is
//! read from the log after opening; that another writer came by shows when a put-if-absent finds its version taken.
//!
//! *What a flush holds in memory* is bounded by [`WriterOptions::pending_bytes`], whatever its size: rows
//! beyond that move to data files, which nobody sees until the commit names them. A row that changes again after
//! it moved is marked deleted in its own file, in the same commit.
//!
//! *Errors leave the flush half applied.* After an error of [`apply`](MirrorTable::apply) or
//! [`write`](MirrorTable::write) call [`abandon`](MirrorTable::abandon) (or drop the table) and start the flush over.

use crate::action::Metadata;
use crate::checkpoint::Checkpoint;
use crate::compaction::CompactionState;
use crate::deletion_vector::DeletionVector;
use crate::error::{DeltaError, Result};
use crate::expiry::{Expiry, OldestVersion};
use crate::flush::Flush;
use crate::index_recovery;
use crate::key_index::{KeyIndex, KeyIndexError};
use crate::lake::TableLocation;
use crate::log;
use crate::table_definition::{TableDefinition, retention_properties};
use crate::table_state::{TableState, TableStats};
use crate::vector_cache::VectorCache;
use crate::writer_options::WriterOptions;
use std::sync::Arc;
use uuid::Uuid;

/// Commits between two checkpoints of a small table. A reader who opens a table reads every commit behind the
/// last checkpoint, and a checkpoint costs what the table has files: so large tables get fewer, down to
/// [`WriterOptions::checkpoint_every`].
const COMMITS_PER_CHECKPOINT: i64 = 20;
/// Files on record that a checkpoint holds for next to nothing: some ten milliseconds.
const CHEAP_RECORDS: usize = 1000;

/// An open mirror table. See the [module](self).
#[derive(Debug)]
pub struct MirrorTable {
    pub(crate) location: TableLocation,
    pub(crate) options: WriterOptions,
    /// The shape that rows are in, perhaps newer than the committed one.
    pub(crate) definition: Arc<TableDefinition>,
    /// The shape of the newest version, while the flush under way has another.
    pub(crate) committed_definition: Option<Arc<TableDefinition>>,
    /// Rows that the flush under way copied into another shape, and that are no change by that.
    pub(crate) carried: u64,
    pub(crate) state: TableState,
    /// Absent for a table without a key, or once it failed.
    pub(crate) index: Option<KeyIndex>,
    pub(crate) vectors: VectorCache,
    pub(crate) flush: Flush,
    pub(crate) phase: Phase,
    /// Puts that may have ended without an answer since the last commit: version and commitId.
    pub(crate) unsettled: Vec<(i64, String)>,
    pub(crate) last_checkpoint: Option<i64>,
    pub(crate) compaction: CompactionState,
}

/// What the table waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Changes.
    Collecting,
    /// The commit of what [`MirrorTable::write`] handed out, or its abandonment.
    ///
    /// Only that one: a flush given up earlier must not slip in as the next version.
    Written(Uuid),
    /// Being opened again: its index no longer matches.
    Closed,
}

impl MirrorTable {
    /// Opens the table at `location`, or gives `None` if no Delta table is there.
    ///
    /// The key index is used as it is, brought up to date from the files that came since, or built anew.
    ///
    /// # Errors
    /// [`DeltaError::ForeignWrite`] if another engine changed rows since the last load;
    /// [`DeltaError::UnsupportedFeature`] if the table needs more than this writer keeps.
    pub async fn open(location: TableLocation, options: WriterOptions) -> Result<Option<MirrorTable>> {
        let Some(loaded) = log::load(&location).await? else { return Ok(None) };
        if let Some(foreign) = &loaded.state.foreign {
            return Err(DeltaError::ForeignWrite {
                table: location.uri().to_owned(),
                version: foreign.version,
                writer: foreign.writer.clone(),
            });
        }
        let definition =
            TableDefinition::from_log(location.uri(), &loaded.state.protocol, &loaded.state.metadata)?;
        let mut vectors = VectorCache::new(location.clone());
        let index = match definition.has_key() {
            true => {
                Some(index_recovery::open(&location, &options, &definition, &loaded, &mut vectors).await?)
            }
            false => None,
        };
        Ok(Some(Self::assembled(
            location,
            options,
            definition,
            loaded.state,
            index,
            vectors,
            loaded.checkpoint,
        )))
    }

    pub(crate) fn assembled(
        location: TableLocation,
        options: WriterOptions,
        definition: TableDefinition,
        state: TableState,
        index: Option<KeyIndex>,
        vectors: VectorCache,
        last_checkpoint: Option<i64>,
    ) -> MirrorTable {
        let definition = Arc::new(definition);
        MirrorTable {
            flush: Flush::new(&location, &definition, &options),
            location,
            options,
            definition,
            committed_definition: None,
            carried: 0,
            state,
            index,
            vectors,
            phase: Phase::Collecting,
            unsettled: Vec::new(),
            last_checkpoint,
            compaction: CompactionState::default(),
        }
    }

    /// The newest version, as far as this owner knows.
    pub fn version(&self) -> i64 {
        self.state.version
    }

    /// Columns, key, partitioning and properties.
    pub fn definition(&self) -> &TableDefinition {
        &self.definition
    }

    /// The table's place.
    pub fn location(&self) -> &TableLocation {
        &self.location
    }

    /// How far an application has come, by the table's `txn` actions.
    pub fn txn(&self, app_id: &str) -> Option<i64> {
        self.state.txns.get(app_id).map(|txn| txn.version)
    }

    /// All applications and how far they have come.
    pub fn txns(&self) -> impl Iterator<Item = (&str, i64)> {
        self.state.txns.iter().map(|(app_id, txn)| (app_id.as_str(), txn.version))
    }

    /// Rows, files and bytes.
    pub fn stats(&self) -> TableStats {
        self.state.stats()
    }

    /// Drops the flush under way: nothing of it will be seen. Data files already written stay behind,
    /// unreferenced.
    pub fn abandon(&mut self) {
        self.flush.clear();
        self.carried = 0;
        if let Some(definition) = self.committed_definition.take() {
            self.define(definition);
        }
        if let Some(index) = &mut self.index {
            index.discard_staged();
        }
        if matches!(self.phase, Phase::Written(_)) {
            self.phase = Phase::Collecting;
        }
    }

    /// A checkpoint of the present version, if one is due. Write it on a task of its own.
    pub fn due_checkpoint(&mut self) -> Option<Checkpoint> {
        let since = self.state.version - self.last_checkpoint.unwrap_or(0);
        let records = self.state.files.len() + self.state.tombstones.len();
        let every = COMMITS_PER_CHECKPOINT.saturating_mul(1 + (records / CHEAP_RECORDS) as i64);
        (since >= every.min(self.options.checkpoint_every())).then(|| self.checkpoint())
    }

    /// A checkpoint of the present version.
    pub fn checkpoint(&mut self) -> Checkpoint {
        self.last_checkpoint = Some(self.state.version);
        Checkpoint::new(self.location.clone(), self.state.clone(), self.options.retention)
    }

    /// The removal of versions that are older than what is promised, and of their files. Run it on a task of
    /// its own, one at a time.
    pub fn expiry(&self) -> Expiry {
        Expiry::new(self.location.clone(), self.options.clone(), self.state.clone())
    }

    /// Whether the log has grown to `max_versions`, so that an expiry is due.
    pub fn is_too_long(&self, oldest: OldestVersion) -> bool {
        oldest.is_too_far_back(self.state.version, &self.options)
    }

    /// The metadata with the present retention, if the table says another.
    pub(crate) fn renewed_metadata(&self) -> Option<Metadata> {
        let mut metadata = self.state.metadata.clone();
        metadata.configuration.extend(retention_properties(self.options.retention));
        (metadata != self.state.metadata).then_some(metadata)
    }

    /// Takes over properties that a commit of ours has just changed.
    pub(crate) fn renew_definition(&mut self) -> Result<()> {
        let (protocol, metadata) = (&self.state.protocol, &self.state.metadata);
        self.definition = Arc::new(TableDefinition::from_log(self.location.uri(), protocol, metadata)?);
        Ok(())
    }

    /// Refuses changes while a written flush waits for its commit, and after the index failed.
    pub(crate) fn expect_collecting(&self) -> Result<()> {
        let reason = match self.phase {
            Phase::Collecting => return Ok(()),
            Phase::Written(_) => "a written flush has to be committed or abandoned before more changes",
            Phase::Closed => "its key index no longer matches; open the table again",
        };
        Err(DeltaError::UnexpectedState { table: self.location.uri().to_owned(), reason: reason.to_owned() })
    }

    /// Turns an index's error into the table's, and sees to it that the next opening rebuilds a damaged index.
    pub(crate) fn index_failed(&mut self, source: KeyIndexError) -> DeltaError {
        self.phase = Phase::Closed;
        if source.wants_rebuild() && self.index.take().is_some() {
            let dir = index_recovery::index_dir(&self.options, &self.state.metadata.id);
            if let Err(error) = KeyIndex::create(&dir) {
                let error = &error as &dyn std::error::Error;
                tracing::error!(dir = %dir.display(), error, "a damaged key index could not be removed");
            }
        }
        DeltaError::index(self.location.uri())(source)
    }

    /// The current deletion vector of a live file, empty if it has none.
    pub(crate) async fn vector_of(&mut self, path: &str) -> Result<Arc<DeletionVector>> {
        match self.state.files.get(path) {
            Some(file) => {
                let add = Arc::clone(&file.add);
                self.vectors.get(&add).await
            }
            None => Ok(Arc::default()),
        }
    }
}
