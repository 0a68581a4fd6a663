//! From a collected flush to a Delta version.
//!
//! ```text
//!   write()   closes the data files, puts one file with all new deletion vectors   -> WrittenFlush
//!   commit()  puts N.json if absent                                                -> Committed
//! ```
//!
//! **Only a [`Committed`] proves that rows are in the lake**, and only this module makes one: a flush that is
//! merely written cannot be acknowledged to the source by mistake.
//!
//! If the version is taken, its `commitId` and `txn` tell by whom. A commit that only moved rows (OPTIMIZE) is
//! followed, see [`rebase`](crate::rebase); everything else stops the table.

use crate::action::{Action, Add, Remove, Txn, engine_of, render_actions};
use crate::copy_on_write;
use crate::data_file::SealedFile;
use crate::deletion_vector::DeletionVector;
use crate::error::{DeltaError, Result};
use crate::file_stats;
use crate::key_index::FileId;
use crate::log::{PutOutcome, commit_id_of, put_commit};
use crate::mirror_table::{MirrorTable, Phase};
use crate::rebase;
use crate::table_definition::{TableDefinition, TableKind};
use crate::table_state::{ENGINE, changes_rows, commit_info};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// Whose commit it is, how far it brings the table, and what it tells about itself.
#[derive(Debug, Clone)]
pub struct CommitSpec {
    /// `txn.appId`.
    pub app_id: String,
    /// `txn.version`: the end LSN of the last transaction inside.
    pub version: i64,
    /// Goes into commitInfo as it is: the LSN range and whatever else helps to understand the version later.
    pub info: Map<String, Value>,
}

/// A flush whose files are durable and which no version names yet.
#[derive(Debug)]
#[must_use = "a written flush is nowhere to be seen until it is committed"]
pub struct WrittenFlush {
    pub(crate) commit_id: Uuid,
    /// New bits in committed files, by the path the log spells.
    pub(crate) deleted: BTreeMap<String, DeletionVector>,
    /// New files, with the vectors they got within the flush.
    pub(crate) sealed: Vec<SealedFile>,
    pub(crate) truncated: bool,
    pub(crate) changes: FileChanges,
}

/// The file actions of a flush, made for one state of the table.
#[derive(Debug, Default)]
pub(crate) struct FileChanges {
    pub removes: Vec<Remove>,
    pub adds: Vec<Add>,
    /// New vectors by path, for the cache.
    pub vectors: Vec<(String, Arc<DeletionVector>)>,
    /// Committed files that are gone for good.
    pub gone: Vec<String>,
    pub rows_added: u64,
    pub rows_deleted: u64,
}

/// A version that is in the lake. Only a commit makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The version.
    pub version: i64,
    /// New row images.
    pub rows_added: u64,
    /// Rows hidden or removed that readers saw before.
    pub rows_deleted: u64,
    /// Data files that came, those with a new vector included.
    pub files_added: usize,
    /// Data files that went, those with a new vector included.
    pub files_removed: usize,
    /// Bytes of new data files.
    pub bytes_added: u64,
}

/// A commit that did not happen, or of which nobody knows whether it happened.
#[derive(Debug, thiserror::Error)]
#[error("the version could not be committed")]
pub struct CommitFailure {
    /// The flush, to be committed again: it finds out whether the earlier attempt arrived. Absent when
    /// trying again cannot help.
    pub flush: Option<Box<WrittenFlush>>,
    /// What happened.
    #[source]
    pub error: DeltaError,
}

impl MirrorTable {
    /// Moves everything of this flush to files: new rows to data files, deleted rows to one vector file.
    /// `None` if nothing changed.
    pub async fn write(&mut self) -> Result<Option<WrittenFlush>> {
        self.expect_collecting()?;
        self.seal_pending().await?;
        let files = self.flush.sink.finish().await?;
        let mut bits = std::mem::take(&mut self.flush.deleted);
        let mut sealed = Vec::with_capacity(files.len());
        for file in files {
            let dead = bits.remove(&file.id).unwrap_or_default();
            if dead.len() < file.rows {
                sealed.push((file, dead));
            }
        }
        let touched = &self.flush.touched;
        let deleted: BTreeMap<String, DeletionVector> =
            bits.into_iter().filter_map(|(id, bits)| Some((touched.get(&id)?.path.clone(), bits))).collect();
        let truncated = self.flush.truncated && !self.state.files.is_empty();
        if sealed.is_empty() && deleted.is_empty() && !truncated && self.committed_definition.is_none() {
            self.abandon();
            return Ok(None);
        }
        let mut flush = WrittenFlush {
            commit_id: Uuid::new_v4(),
            deleted,
            sealed: Vec::new(),
            truncated: self.flush.truncated,
            changes: FileChanges::default(),
        };
        if self.definition.deletion_vectors {
            let (files, dead): (Vec<_>, Vec<_>) = sealed.into_iter().unzip();
            flush.sealed = files;
            self.assemble(&mut flush, &dead).await?;
        } else {
            copy_on_write::rewrite(self, sealed, &mut flush).await?;
        }
        self.phase = Phase::Written(flush.commit_id);
        Ok(Some(flush))
    }

    /// As [`write`](Self::write), but without changes it gives a flush too: its commit only says how far the table is.
    pub async fn write_position(&mut self) -> Result<WrittenFlush> {
        if let Some(flush) = self.write().await? {
            return Ok(flush);
        }
        let flush = WrittenFlush {
            commit_id: Uuid::new_v4(),
            deleted: BTreeMap::new(),
            sealed: Vec::new(),
            truncated: false,
            changes: FileChanges::default(),
        };
        self.phase = Phase::Written(flush.commit_id);
        Ok(flush)
    }

    /// Commits a written flush as the table's next version.
    ///
    /// # Errors
    /// After a [`CommitFailure`] with a flush inside, call this again with it; otherwise see the error:
    /// [`DeltaError::SecondWriter`], [`DeltaError::ForeignWrite`] and [`DeltaError::RowsMoved`] want the table stopped
    /// or opened again. Nothing may be acknowledged before this returns a [`Committed`].
    pub async fn commit(
        &mut self,
        mut flush: WrittenFlush,
        spec: &CommitSpec,
    ) -> std::result::Result<Committed, CommitFailure> {
        match self.try_commit(&mut flush, spec).await {
            Ok(committed) => Ok(committed),
            Err(error) => {
                let again = matches!(
                    error,
                    DeltaError::Store { .. } | DeltaError::LocalFile { .. } | DeltaError::CrashPoint { .. }
                );
                if !again {
                    self.phase = Phase::Closed;
                }
                Err(CommitFailure { flush: again.then(|| Box::new(flush)), error })
            }
        }
    }

    async fn try_commit(&mut self, flush: &mut WrittenFlush, spec: &CommitSpec) -> Result<Committed> {
        if self.phase != Phase::Written(flush.commit_id) {
            return Err(self.unexpected("this flush was written before the table changed; start it over"));
        }
        let commit_id = flush.commit_id.to_string();
        loop {
            let version = self.state.version + 1;
            let actions = self.actions(flush, spec)?;
            let lines = render_actions(&actions)?;
            let attempt = (version, commit_id.clone());
            if !self.unsettled.contains(&attempt) {
                self.unsettled.push(attempt);
            }
            match put_commit(&self.location, version, &lines, &commit_id, self.options.commit_attempts)
                .await?
            {
                PutOutcome::Ours => {
                    self.unsettled.clear();
                    return self.settle(flush, actions);
                }
                PutOutcome::Theirs(theirs) => {
                    self.meet(version, &theirs, spec)?;
                    let writer = engine_of(commit_info(&theirs));
                    rebase::follow(self, flush, theirs).await.map_err(|source| DeltaError::RowsMoved {
                        table: self.location.uri().to_owned(),
                        version,
                        writer,
                        source: Box::new(source),
                    })?;
                }
            }
        }
    }

    /// Takes the committed version over into memory and index.
    fn settle(&mut self, flush: &mut WrittenFlush, actions: Vec<Action>) -> Result<Committed> {
        let changes = std::mem::take(&mut flush.changes);
        let carried = std::mem::take(&mut self.carried);
        let committed = Committed {
            version: self.state.version + 1,
            rows_added: changes.rows_added.saturating_sub(carried),
            rows_deleted: changes.rows_deleted.saturating_sub(carried),
            files_added: changes.adds.len(),
            files_removed: changes.removes.len(),
            bytes_added: flush.sealed.iter().map(|file| file.add.size.max(0).unsigned_abs()).sum(),
        };
        self.state.advance(actions)?;
        self.note_emptied(&changes.gone);
        self.committed_definition = None;
        for path in &changes.gone {
            self.vectors.forget(path);
        }
        for (path, vector) in changes.vectors {
            if let Some(file) = self.state.files.get(&path) {
                self.vectors.put(&file.add, vector);
            }
        }
        // The index of a history is never emptied by its files' going: the newest rows have moved on before.
        let is_emptied = flush.truncated && self.definition.kind != TableKind::History;
        if let Some(index) = &mut self.index {
            if !is_emptied {
                let gone: Vec<FileId> = changes.gone.iter().map(|path| index.file_id(path)).collect();
                index.forget_files(gone);
            }
            // The rows are in the lake whatever becomes of the index, which is soft state: the commit
            // stands, and the next flush is refused until the table is opened again.
            if let Err(source) = index.commit(committed.version) {
                let error = self.index_failed(source);
                tracing::error!(
                    table = self.location.uri(),
                    error = &error as &dyn std::error::Error,
                    "the key index could not follow a commit; the table has to be opened again"
                );
                self.flush.clear();
                return Ok(committed);
            }
        }
        self.flush.clear();
        self.phase = Phase::Collecting;
        Ok(committed)
    }

    /// Decides about a version that somebody else wrote where ours was to stand: an error stops the table.
    fn meet(&mut self, version: i64, theirs: &[Action], spec: &CommitSpec) -> Result<()> {
        let table = || self.location.uri().to_owned();
        let id = commit_id_of(theirs);
        if self.unsettled.iter().any(|(at, ours)| *at == version && id == Some(ours.as_str())) {
            return Err(self.unexpected(
                "an earlier flush, given up because its commit went unanswered, is in the lake; open the table again",
            ));
        }
        let same_app = |action: &Action| matches!(action, Action::Txn(txn) if txn.app_id == spec.app_id);
        if theirs.iter().any(same_app) {
            return Err(DeltaError::SecondWriter { table: table(), version, app_id: spec.app_id.clone() });
        }
        if self.committed_definition.is_some() {
            return Err(self.unexpected(
                "somebody else wrote a version while its columns were being changed; open the table again",
            ));
        }
        let writer = engine_of(commit_info(theirs));
        if changes_rows(theirs) {
            return Err(DeltaError::ForeignWrite { table: table(), version, writer });
        }
        let mut protocol = &self.state.protocol;
        let mut metadata = &self.state.metadata;
        for action in theirs {
            match action {
                Action::Protocol(theirs) => protocol = theirs,
                Action::MetaData(theirs) => metadata = theirs,
                _ => {}
            }
        }
        let definition = TableDefinition::from_log(self.location.uri(), protocol, metadata)?;
        let shape = |definition: &TableDefinition| {
            (
                Arc::clone(&definition.schema),
                definition.kind,
                definition.key.clone(),
                definition.partition_by.clone(),
                definition.deletion_vectors,
            )
        };
        if shape(&definition) != shape(&self.definition) {
            return Err(DeltaError::ForeignWrite { table: table(), version, writer });
        }
        self.definition = Arc::new(definition);
        Ok(())
    }

    pub(crate) fn unexpected(&self, reason: &str) -> DeltaError {
        DeltaError::UnexpectedState { table: self.location.uri().to_owned(), reason: reason.to_owned() }
    }

    fn actions(&self, flush: &WrittenFlush, spec: &CommitSpec) -> Result<Vec<Action>> {
        let changes = &flush.changes;
        let shape = self.shape_actions()?;
        let operation = match (changes.removes.is_empty(), changes.adds.is_empty()) {
            _ if !shape.is_empty() => "CHANGE COLUMNS",
            (true, _) => "WRITE",
            (false, true) if flush.truncated => "TRUNCATE",
            (false, _) => "MERGE",
        };
        let info = commit_info_of(&CommitFacts {
            operation,
            commit_id: &flush.commit_id.to_string(),
            read_version: Some(self.state.version),
            blind: changes.removes.is_empty(),
            rows_added: changes.rows_added,
            rows_deleted: changes.rows_deleted,
            info: &spec.info,
        });
        let mut actions = vec![Action::CommitInfo(info), Action::Txn(txn_of(spec))];
        actions.extend(shape);
        actions.extend(changes.removes.iter().cloned().map(Action::Remove));
        actions.extend(changes.adds.iter().cloned().map(Action::Add));
        Ok(actions)
    }

    /// Makes the file actions of a flush for the present state of the table, and puts the vectors they
    /// need into one file. `dead` are rows of the new files that changed again within the flush, file by
    /// file; none when their vectors are written already.
    pub(crate) async fn assemble(&mut self, flush: &mut WrittenFlush, dead: &[DeletionVector]) -> Result<()> {
        let mut joined: Vec<(Arc<Add>, DeletionVector)> = Vec::new();
        let mut changes = FileChanges::default();
        let now = chrono::Utc::now().timestamp_millis();
        for (path, bits) in flush.deleted.iter().filter(|_| !flush.truncated) {
            let Some(file) = self.state.files.get(path).cloned() else {
                return Err(self.unexpected("a file vanished while rows of it were being deleted"));
            };
            let mut vector = DeletionVector::clone(&*self.vector_of(path).await?);
            vector.union(bits);
            changes.rows_deleted += bits.len();
            changes.removes.push(file.add.removal(now, true));
            if Some(vector.len()) == file.rows {
                changes.gone.push(path.clone());
            } else {
                joined.push((file.add, vector));
            }
        }
        let born: Vec<&DeletionVector> = dead.iter().filter(|dead| !dead.is_empty()).collect();
        let vectors: Vec<&DeletionVector> =
            born.into_iter().chain(joined.iter().map(|(_, vector)| vector)).collect();
        let mut descriptors = self.vectors.write(&vectors).await?.into_iter();
        for (file, dead) in flush.sealed.iter_mut().zip(dead).filter(|(_, dead)| !dead.is_empty()) {
            file.add.deletion_vector = descriptors.next();
            file.add.stats = file_stats::loosen(file.add.stats.as_deref())?;
            changes.vectors.push((file.add.path.clone(), Arc::new(dead.clone())));
        }
        self.add_new_files(&mut changes, &flush.sealed);
        for ((add, vector), descriptor) in joined.into_iter().zip(descriptors) {
            changes.vectors.push((add.path.clone(), Arc::new(vector)));
            changes.adds.push(Add {
                deletion_vector: Some(descriptor),
                stats: file_stats::loosen(add.stats.as_deref())?,
                data_change: true,
                ..Add::clone(&add)
            });
        }
        if flush.truncated {
            self.remove_all(&mut changes, now);
        }
        if dead.is_empty() {
            // Vectors of new files were written by the first call and stay as they are.
            let sealed: BTreeSet<&str> = flush.sealed.iter().map(|file| file.add.path.as_str()).collect();
            let kept = flush.changes.vectors.drain(..).filter(|(path, _)| sealed.contains(path.as_str()));
            changes.vectors.extend(kept);
        }
        flush.changes = changes;
        Ok(())
    }

    pub(crate) fn add_new_files(&self, changes: &mut FileChanges, sealed: &[SealedFile]) {
        for file in sealed {
            let dead = file
                .add
                .deletion_vector
                .as_ref()
                .map_or(0, |vector| vector.cardinality.max(0).unsigned_abs());
            changes.rows_added += file.rows.saturating_sub(dead);
            changes.adds.push(file.add.clone());
        }
    }

    /// A truncate takes every file away, with the vector it has now.
    pub(crate) fn remove_all(&self, changes: &mut FileChanges, now: i64) {
        changes.rows_deleted = self.state.stats().rows;
        for (path, file) in &self.state.files {
            changes.removes.push(file.add.removal(now, true));
            changes.gone.push(path.clone());
        }
    }
}

/// What a commitInfo tells.
pub(crate) struct CommitFacts<'a> {
    pub operation: &'a str,
    pub commit_id: &'a str,
    pub read_version: Option<i64>,
    pub blind: bool,
    pub rows_added: u64,
    pub rows_deleted: u64,
    /// What else the commit says of itself.
    pub info: &'a Map<String, Value>,
}

pub(crate) fn commit_info_of(facts: &CommitFacts<'_>) -> Map<String, Value> {
    let mut info = facts.info.clone();
    info.insert("timestamp".into(), chrono::Utc::now().timestamp_millis().into());
    info.insert("operation".into(), facts.operation.into());
    info.insert("operationParameters".into(), json!({}));
    // Spark expects metrics as text.
    info.insert(
        "operationMetrics".into(),
        json!({
            "numOutputRows": facts.rows_added.to_string(),
            "numDeletedRows": facts.rows_deleted.to_string(),
        }),
    );
    info.insert("isBlindAppend".into(), facts.blind.into());
    info.insert("engineInfo".into(), ENGINE.into());
    info.insert("commitId".into(), facts.commit_id.into());
    if let Some(version) = facts.read_version {
        info.insert("readVersion".into(), version.into());
    }
    info
}

pub(crate) fn txn_of(spec: &CommitSpec) -> Txn {
    Txn {
        app_id: spec.app_id.clone(),
        version: spec.version,
        last_updated: Some(chrono::Utc::now().timestamp_millis()),
    }
}
