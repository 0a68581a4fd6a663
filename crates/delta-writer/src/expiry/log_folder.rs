//! What lies in a table's log folder.

use super::delete;
use crate::checkpoint::CheckpointFile;
use crate::error::{DeltaError, Result};
use crate::lake::TableLocation;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use std::collections::BTreeMap;

/// The folder, listed once and kept in step with what is removed.
#[derive(Debug, Default)]
pub(super) struct LogFolder {
    /// Commits, with the time they were written at.
    commits: BTreeMap<i64, (Path, i64)>,
    checkpoints: BTreeMap<i64, Vec<CheckpointFile>>,
    /// When the last file of a checkpoint was written.
    checkpoint_times: BTreeMap<i64, i64>,
    /// Files of a version that other engines put beside it, such as checksums.
    others: Vec<(i64, Path)>,
    /// Temporary files of puts.
    temporary: Vec<ObjectMeta>,
}

impl LogFolder {
    pub async fn list(location: &TableLocation) -> Result<LogFolder> {
        let folder = location.log_folder();
        let mut log = LogFolder::default();
        let mut objects = location.store().list(Some(&folder));
        let failed = |source| DeltaError::store("list", folder.to_string())(source);
        while let Some(object) = objects.try_next().await.map_err(failed)? {
            // Side folders of the log hold files of other kinds.
            if object.location.parts_count() == folder.parts_count() + 1 {
                log.enter(object);
            }
        }
        Ok(log)
    }

    fn enter(&mut self, object: ObjectMeta) {
        let Some(name) = object.location.filename() else { return };
        if name.starts_with('.') && name.ends_with(".tmp") {
            self.temporary.push(object);
            return;
        }
        // Hadoop's checksum of a file is named like the file, with a dot before it.
        let Some((digits, kind)) = name.trim_start_matches('.').split_once('.') else { return };
        let Some(version) = (digits.len() == 20).then(|| digits.parse::<i64>().ok()).flatten() else {
            return;
        };
        let at = object.last_modified.timestamp_millis();
        if name.starts_with('.') {
            self.others.push((version, object.location));
        } else if kind == "json" {
            self.commits.insert(version, (object.location, at));
        } else if let Some(file) = CheckpointFile::from_name(object.location.clone(), object.size, kind) {
            self.checkpoints.entry(version).or_default().push(file);
            let newest = self.checkpoint_times.entry(version).or_insert(at);
            *newest = at.max(*newest);
        } else {
            self.others.push((version, object.location));
        }
    }

    /// The oldest version that a reader can put together.
    pub fn oldest_readable(&self) -> Option<i64> {
        match self.commits.contains_key(&0) {
            true => Some(0),
            false => self.complete_checkpoints().first().map(|(version, _)| *version),
        }
    }

    pub fn newest(&self) -> Option<i64> {
        let commit = self.commits.keys().next_back().copied();
        commit.max(self.checkpoints.keys().next_back().copied())
    }

    /// Checkpoints that are there as a whole, oldest first, with the time they were written at.
    pub fn complete_checkpoints(&self) -> Vec<(i64, i64)> {
        let complete = |files: &[CheckpointFile]| files.iter().any(|file| file.is_complete_in(files));
        let whole = self.checkpoints.iter().filter(|(_, files)| complete(files));
        whole
            .map(|(version, _)| (*version, self.checkpoint_times.get(version).copied().unwrap_or(0)))
            .collect()
    }

    /// The files of a version's checkpoint.
    pub fn checkpoint(&self, version: i64) -> &[CheckpointFile] {
        self.checkpoints.get(&version).map_or(&[], Vec::as_slice)
    }

    /// When a version's commit, or else its checkpoint, was written.
    pub fn written_at(&self, version: i64) -> i64 {
        let commit = self.commits.get(&version).map(|(_, at)| *at);
        commit.or_else(|| self.checkpoint_times.get(&version).copied()).unwrap_or(0)
    }

    pub fn has_commits_below(&self, version: i64) -> bool {
        self.commits.range(..version).next().is_some()
    }

    pub fn commits_up_to(&self, version: i64) -> Vec<i64> {
        self.commits.range(..=version).map(|(version, _)| *version).collect()
    }

    pub fn take_commits(&mut self, versions: impl Iterator<Item = i64>) -> Vec<Path> {
        versions.filter_map(|version| self.commits.remove(&version)).map(|(path, _)| path).collect()
    }

    pub fn take_checkpoints_below(&mut self, version: i64) -> Vec<Path> {
        let kept = self.checkpoints.split_off(&version);
        let taken = std::mem::replace(&mut self.checkpoints, kept);
        taken.into_values().flatten().map(CheckpointFile::into_path).collect()
    }

    pub fn take_others_below(&mut self, version: i64) -> Vec<Path> {
        self.others.extract_if(.., |(of, _)| *of < version).map(|(_, path)| path).collect()
    }

    /// Removes temporary files that a killed process left behind.
    pub async fn remove_leftovers(&mut self, location: &TableLocation, before: DateTime<Utc>) -> Result<()> {
        let left = self.temporary.drain(..).filter(|object| object.last_modified < before);
        delete(location, left.map(|object| object.location).collect()).await
    }
}
