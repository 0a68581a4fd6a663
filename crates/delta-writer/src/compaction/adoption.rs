//! Taking over what a compaction wrote, in one commit.

use super::rewrite::CompactedFiles;
use crate::action::{Action, render_actions};
use crate::commit::{CommitFacts, commit_info_of};
use crate::deletion_vector::DeletionVector;
use crate::error::{DeltaError, Result};
use crate::file_stats;
use crate::index_recovery::KeyReader;
use crate::key_index::{FileId, KeyHash, RowAddress};
use crate::log::{PutOutcome, put_commit};
use crate::mirror_table::{MirrorTable, Phase};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::sync::Arc;
use uuid::Uuid;

/// A compaction that is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compacted {
    /// Its version.
    pub version: i64,
    /// Files that it took away.
    pub files_removed: usize,
    /// Files that it brought.
    pub files_added: usize,
}

/// Keys that changed while their rows were moved, and where those rows are.
type Restaged = Vec<(KeyHash, RowAddress)>;

impl MirrorTable {
    /// Commits what a compaction of this table wrote. `None` if its files were moved by others meanwhile, or
    /// all its rows are gone: then its files are removed, and nothing has changed.
    ///
    /// # Errors
    /// As a commit's: the table has to be opened again.
    pub async fn adopt_compaction(&mut self, done: CompactedFiles) -> Result<Option<Compacted>> {
        self.expect_collecting()?;
        if !self.flush.is_empty() {
            return Err(self.unexpected("a compaction can only be adopted between two flushes"));
        }
        let Some(vectors) = self.translated(&done).await? else {
            self.abandon_compaction();
            done.discard().await;
            return Ok(None);
        };
        if done.new.iter().zip(&vectors).all(|(file, dead)| file.rows == dead.len()) {
            self.compaction.underway = None;
            done.discard().await;
            return Ok(None);
        }
        let restaged = self.moved_on(&done, &vectors).await?;
        let commit_id = Uuid::new_v4().to_string();
        let actions = self.compaction_actions(&done, &vectors, &commit_id).await?;
        let lines = render_actions(&actions)?;
        let version = self.state.version + 1;
        self.unsettled.push((version, commit_id.clone()));
        let put = put_commit(&self.location, version, &lines, &commit_id, self.options.commit_attempts).await;
        match put {
            Ok(PutOutcome::Ours) => {
                self.unsettled.clear();
                self.settle_compaction(done, &vectors, actions, restaged).map(Some)
            }
            Ok(PutOutcome::Theirs(_)) => {
                // The next flush meets that version and decides about it.
                self.unsettled.retain(|(_, id)| *id != commit_id);
                self.abandon_compaction();
                done.discard().await;
                Ok(None)
            }
            Err(error) => {
                // Nobody knows whether it arrived: only the log can tell.
                self.phase = Phase::Closed;
                Err(error)
            }
        }
    }

    /// The vectors of the new files: what was deleted in the old ones since. `None` if the old files
    /// are not what the compaction began with.
    async fn translated(&mut self, done: &CompactedFiles) -> Result<Option<Vec<DeletionVector>>> {
        let Some(underway) = &self.compaction.underway else { return Ok(None) };
        let emptied = underway.emptied.clone();
        if *done.definition != *self.definition {
            return Ok(None);
        }
        let mut vectors = vec![DeletionVector::default(); done.new.len()];
        for old in &done.old {
            if self.state.files.contains_key(&old.path) {
                let now = self.vector_of(&old.path).await?;
                if !old.translate(&now, &mut vectors) {
                    return Ok(None);
                }
            } else if emptied.contains(&old.path) {
                old.delete_all(&mut vectors);
            } else {
                return Ok(None);
            }
        }
        Ok(Some(vectors))
    }

    /// The present places of keys whose moved rows are dead: newer than what the compaction's run says.
    async fn moved_on(&self, done: &CompactedFiles, vectors: &[DeletionVector]) -> Result<Restaged> {
        let mut restaged = Vec::new();
        let Some(index) = &self.index else { return Ok(restaged) };
        let old: BTreeSet<&str> = done.old.iter().map(|file| file.path.as_str()).collect();
        for (file, dead) in done.new.iter().zip(vectors).filter(|(_, dead)| !dead.is_empty()) {
            let rows = dead.iter().filter_map(|row| u32::try_from(row).ok()).collect();
            let (add, id) = (&file.add, FileId(0));
            let mut reader =
                KeyReader::open(&self.location, &self.definition, index, add, id, Some(rows)).await?;
            while let Some(entries) = reader.next(&DeletionVector::default()).await? {
                let keys: Vec<KeyHash> = entries.into_iter().map(|(key, _)| key).collect();
                let places = index.lookup(&keys).map_err(DeltaError::index(self.location.uri()))?;
                // A key that was only deleted still leads to its old file.
                let newer = keys.into_iter().zip(places).filter_map(|(key, place)| {
                    let place = place?;
                    index.path(place.file).is_some_and(|path| !old.contains(path)).then_some((key, place))
                });
                restaged.extend(newer);
            }
        }
        Ok(restaged)
    }

    async fn compaction_actions(
        &mut self,
        done: &CompactedFiles,
        vectors: &[DeletionVector],
        commit_id: &str,
    ) -> Result<Vec<Action>> {
        let now = chrono::Utc::now().timestamp_millis();
        let info = Map::from_iter([("tidewater".to_owned(), Value::from("COMPACTION"))]);
        let facts = CommitFacts {
            operation: "OPTIMIZE",
            commit_id,
            read_version: Some(self.state.version),
            blind: false,
            rows_added: 0,
            rows_deleted: 0,
            info: &info,
        };
        let mut actions = vec![Action::CommitInfo(commit_info_of(&facts))];
        actions.extend(self.renewed_metadata().map(Action::MetaData));
        for old in &done.old {
            // With the vector it has now: readers tell a logical file by both.
            let file = self.state.files.get(&old.path);
            actions.extend(file.map(|file| Action::Remove(file.add.removal(now, false))));
        }
        let written: Vec<&DeletionVector> = done
            .new
            .iter()
            .zip(vectors)
            .filter(|(file, dead)| !dead.is_empty() && dead.len() < file.rows)
            .map(|(_, dead)| dead)
            .collect();
        let mut descriptors = self.vectors.write(&written).await?.into_iter();
        for (file, dead) in done.new.iter().zip(vectors).filter(|(file, dead)| dead.len() < file.rows) {
            let mut add = file.add.clone();
            if !dead.is_empty() {
                add.deletion_vector = descriptors.next();
                add.stats = file_stats::loosen(add.stats.as_deref())?;
            }
            actions.push(Action::Add(add));
        }
        Ok(actions)
    }

    /// Takes the committed version over into memory and index.
    fn settle_compaction(
        &mut self,
        done: CompactedFiles,
        vectors: &[DeletionVector],
        actions: Vec<Action>,
        restaged: Restaged,
    ) -> Result<Compacted> {
        self.compaction.underway = None;
        let files_removed = actions.iter().filter(|action| matches!(action, Action::Remove(_))).count();
        let files_added = actions.iter().filter(|action| matches!(action, Action::Add(_))).count();
        self.state.advance(actions)?;
        self.renew_definition()?;
        for old in &done.old {
            self.vectors.forget(&old.path);
        }
        for (file, dead) in done.new.iter().zip(vectors) {
            if let Some(live) = self.state.files.get(&file.add.path) {
                self.vectors.put(&live.add, Arc::new(dead.clone()));
            }
        }
        let compacted = Compacted { version: self.state.version, files_removed, files_added };
        if let Err(error) = self.index_compaction(done, restaged) {
            // As after a flush: the commit stands, and the next flush is refused until the table is opened again.
            tracing::error!(
                table = self.location.uri(),
                error = &error as &dyn std::error::Error,
                "the key index could not follow a compaction; the table has to be opened again"
            );
        }
        Ok(compacted)
    }

    fn index_compaction(&mut self, done: CompactedFiles, restaged: Restaged) -> Result<()> {
        let Some(index) = &mut self.index else { return Ok(()) };
        for file in done.new.iter().filter(|file| self.state.files.contains_key(&file.add.path)) {
            index.register_file(file.id, &file.add.path);
        }
        let old: Vec<FileId> = done.old.iter().map(|file| index.file_id(&file.path)).collect();
        index.forget_files(old);
        let version = self.state.version;
        let staged = match done.run {
            Some(run) => index.stage_run(run),
            None => Ok(()),
        };
        // On top of the run, because newer than it.
        let committed = staged.and_then(|()| index.stage(restaged)).and_then(|()| index.commit(version));
        committed.map_err(|source| self.index_failed(source))
    }
}
