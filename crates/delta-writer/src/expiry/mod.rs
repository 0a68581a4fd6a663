//! Expiry: versions that nobody was promised any more, and the files that only they had.
//!
//! ```text
//!   log      0 .. 99 [100] 101 .. 199 [200] 201 ................ newest     [n]: a checkpoint
//!            \___ expired ___/        ▲ the cut
//!   files    removed by commits up to 200: nothing from the cut on names them
//! ```
//!
//! Every version from a checkpoint on can be read from that checkpoint and the commits behind it, so the log
//! is cut at one: the newest that is older than `retention`, or the oldest that keeps the log
//! below `max_versions`, whichever is newer.
//!
//! **The invariant: no version from the cut on loses a file.** What a commit up to the cut removed, and what
//! neither the cut nor the present state holds, no later version can name: files are never written twice.
//!
//! *Order makes it safe to die anywhere.* Older checkpoints go first: from then on no reader finds a version before
//! the cut. Commits go last, each after the files that it removed; so what is left over names what is left to do.
//! Files that nothing ever named (of a flush or load that died) are swept, see [`orphans`].

mod log_folder;
mod orphans;

use crate::action::Action;
use crate::checkpoint;
use crate::deletion_vector::{DvDescriptor, DvLocation};
use crate::error::{DeltaError, Result};
use crate::lake::TableLocation;
use crate::log::read_commit;
use crate::table_state::{TableState, commit_info};
use crate::writer_options::WriterOptions;
use futures::{StreamExt, TryStreamExt, stream};
use log_folder::LogFolder;
use object_store::ObjectStore;
use object_store::path::Path;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

/// Commits whose files are removed before the commits themselves are: bounds what is held in memory.
const COMMITS_AT_ONCE: usize = 100;
/// Commits read at a time.
const PARALLEL_READS: usize = 16;
/// A log at its limit is cut by a tenth, so that it is not listed for every checkpoint.
const CUT_BY: u64 = 10;

/// An expiry to be run, for one state of a table. See the [module](self).
#[derive(Debug)]
pub struct Expiry {
    location: TableLocation,
    options: WriterOptions,
    state: TableState,
}

/// How far back a table can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldestVersion {
    /// The oldest version that can be read.
    pub version: i64,
    /// When it was committed, in milliseconds since 1970.
    pub committed_at: i64,
}

impl OldestVersion {
    /// Whether a table whose newest version is `newest` needs to be cut for its number of versions.
    pub(crate) fn is_too_far_back(&self, newest: i64, options: &WriterOptions) -> bool {
        // The log grows until the next checkpoint, which is where it can be cut.
        versions(self.version, newest) + options.checkpoint_every().unsigned_abs() > options.max_versions
    }
}

fn versions(oldest: i64, newest: i64) -> u64 {
    (newest - oldest).max(0).unsigned_abs() + 1
}

impl Expiry {
    pub(crate) fn new(location: TableLocation, options: WriterOptions, state: TableState) -> Expiry {
        Expiry { location, options, state }
    }

    /// Removes what has expired, and tells how far back the table can be read then.
    pub async fn run(self) -> Result<OldestVersion> {
        let mut log = LogFolder::list(&self.location).await?;
        let now = chrono::Utc::now();
        // Some readers give up when the checkpoint they were sent to is gone, so the cut never passes it.
        let hint = checkpoint::read_hint(&self.location).await?.unwrap_or(i64::MAX);
        if let Some(cut) = self.cut(&log, hint, now.timestamp_millis()) {
            self.expire_below(&mut log, cut).await?;
            tracing::debug!(table = self.location.uri(), oldest = cut, "older versions have expired");
        }
        log.remove_leftovers(&self.location, now - orphans::SAFE_AGE).await?;
        self.oldest(&log).await
    }

    /// Removes files that an interrupted flush, load or compaction left behind. Lists the whole table.
    pub async fn sweep_orphans(self) -> Result<usize> {
        orphans::sweep(&self.location, &self.state, self.options.retention).await
    }

    /// The checkpoint that becomes the oldest version; `None` if nothing has expired.
    fn cut(&self, log: &LogFolder, hint: i64, now: i64) -> Option<i64> {
        let (version, newest) = (log.oldest_readable()?, log.newest()?);
        let oldest = OldestVersion { version, committed_at: log.written_at(version) };
        let too_many = oldest.is_too_far_back(newest, &self.options);
        let retention = i64::try_from(self.options.retention.as_millis()).unwrap_or(i64::MAX);
        let mut complete = log.complete_checkpoints();
        complete.retain(|(version, _)| *version <= hint);
        // A checkpoint is written after its version, so what it says is at least as old as it looks.
        let by_age = complete.iter().rev().find(|(_, at)| *at <= now.saturating_sub(retention));
        let kept = self.options.max_versions.saturating_sub(self.options.max_versions / CUT_BY).max(1);
        let by_count = complete.iter().find(|(version, _)| too_many && versions(*version, newest) <= kept);
        let cut = by_age.map(|(version, _)| *version).max(by_count.map(|(version, _)| *version))?;
        // Commits below it may be there still, if an earlier expiry died.
        (cut > version || log.has_commits_below(cut)).then_some(cut)
    }

    async fn expire_below(&self, log: &mut LogFolder, cut: i64) -> Result<()> {
        let kept = self.files_at(log, cut).await?;
        delete(&self.location, log.take_checkpoints_below(cut)).await?;
        let mut expired = log.commits_up_to(cut);
        while !expired.is_empty() {
            let batch: Vec<i64> = expired.drain(..expired.len().min(COMMITS_AT_ONCE)).collect();
            let mut reads = stream::iter(batch.clone())
                .map(|version| read_commit(&self.location, version))
                .buffered(PARALLEL_READS);
            let mut files = BTreeSet::new();
            while let Some(actions) = reads.try_next().await? {
                let removes = actions.into_iter().flatten().filter_map(|action| match action {
                    Action::Remove(remove) => Some(remove),
                    _ => None,
                });
                for remove in removes {
                    files.extend(files_of(&self.location, &remove.path, remove.deletion_vector.as_ref())?);
                }
            }
            files.retain(|path| !kept.contains(path));
            delete(&self.location, files.into_iter().collect()).await?;
            // The commit at the cut stays: it tells when that version was made.
            let below = batch.into_iter().filter(|version| *version < cut);
            delete(&self.location, log.take_commits(below)).await?;
        }
        delete(&self.location, log.take_others_below(cut)).await
    }

    /// What the state at the cut and the present one hold.
    async fn files_at(&self, log: &LogFolder, cut: i64) -> Result<HashSet<Path>> {
        let actions = checkpoint::read(&self.location, log.checkpoint(cut)).await?;
        let mut kept = live_files(&self.location, &self.state)?;
        for action in actions {
            if let Action::Add(add) = action {
                kept.extend(files_of(&self.location, &add.path, add.deletion_vector.as_ref())?);
            }
        }
        Ok(kept)
    }

    async fn oldest(&self, log: &LogFolder) -> Result<OldestVersion> {
        let version = log.oldest_readable().unwrap_or(self.state.version);
        let actions = read_commit(&self.location, version).await?.unwrap_or_default();
        let told = commit_info(&actions).and_then(|info| info.get("timestamp")).and_then(Value::as_i64);
        Ok(OldestVersion { version, committed_at: told.unwrap_or_else(|| log.written_at(version)) })
    }
}

/// The data files and vectors that a state names.
fn live_files(location: &TableLocation, state: &TableState) -> Result<HashSet<Path>> {
    let mut live = HashSet::new();
    for file in state.files.values() {
        live.extend(files_of(location, &file.add.path, file.add.deletion_vector.as_ref())?);
    }
    Ok(live)
}

/// A data file as an action names it, and the file of its vector.
fn files_of(location: &TableLocation, path: &str, vector: Option<&DvDescriptor>) -> Result<Vec<Path>> {
    let mut files = vec![location.resolve(path)?];
    if let Some(vector) = vector {
        let place = vector
            .location()
            .map_err(|source| DeltaError::DeletionVector { table: location.uri().to_owned(), source })?;
        if let DvLocation::Relative(path) = place {
            files.push(location.child(&path)?);
        }
    }
    Ok(files)
}

/// Deletes objects, whether or not they are there.
async fn delete(location: &TableLocation, paths: Vec<Path>) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let mut outcomes = location.store().delete_stream(stream::iter(paths).map(Ok).boxed());
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(source) => return Err(DeltaError::store("delete from", location.uri())(source)),
        }
    }
    Ok(())
}

/// The shortest time after which a file that nothing names counts as left behind.
fn orphan_age(retention: Duration) -> Duration {
    retention.max(orphans::SAFE_AGE)
}
