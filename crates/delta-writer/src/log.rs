//! The Delta log: finding the newest version, replaying it once, and putting the next commit.
//!
//! ```text
//!   _last_checkpoint -> checkpoint at C -> commits C+1 .. N       once, when a table is opened
//!   put N+1.json if absent                                        from then on
//! ```
//!
//! The replay is our own rather than delta-rs's because the owner needs what a reader never asks for:
//! every `txn`, every unexpired Remove, and the exact text of every Add, so that the Remove of a file
//! carries the vector its Add carried.
//!
//! **A put whose answer is lost is not a failed put.** The same bytes are put again; if the version then
//! exists, its `commitId` says whose it is.

use crate::action::{Action, parse_actions};
use crate::checkpoint::{self, CheckpointFile};
use crate::crash_point::crash_point;
use crate::error::{DeltaError, Result};
use crate::lake::TableLocation;
use crate::table_state::{Replay, TableState, commit_info};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Commits fetched at a time while replaying.
const PARALLEL_READS: usize = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(80);

/// A log, replayed.
#[derive(Debug)]
pub(crate) struct LoadedLog {
    pub state: TableState,
    /// The checkpoint that the replay began with.
    pub checkpoint: Option<i64>,
}

/// Replays a table's log. `None` when there is no table.
pub(crate) async fn load(location: &TableLocation) -> Result<Option<LoadedLog>> {
    let hint = checkpoint::read_hint(location).await?;
    let mut listing = list(location, hint).await?;
    if hint.is_some() && listing.newest_checkpoint().is_none() {
        // The hint points at a checkpoint that is gone; the log itself decides.
        listing = list(location, None).await?;
    }
    let checkpoint = listing.newest_checkpoint();
    let first = checkpoint.map_or(0, |version| version + 1);
    let commits: Vec<i64> = listing.commits.range(first..).map(|(&version, ())| version).collect();
    let Some(newest) = commits.last().copied().or(checkpoint) else {
        return Ok(None);
    };
    if let Some((expected, _)) = (first..).zip(&commits).find(|(expected, version)| expected != *version) {
        return Err(DeltaError::CorruptLog {
            path: location.commit_path(expected).to_string(),
            reason: "this commit is missing from the log".to_owned(),
        });
    }
    let mut replay = Replay::default();
    if let Some(version) = checkpoint {
        let files = listing.checkpoints.remove(&version).unwrap_or_default();
        replay.apply(version, checkpoint::read(location, &files).await?);
    }
    let mut reads = stream::iter(commits.into_iter().map(|version| async move {
        let actions = read_commit(location, version).await?.ok_or_else(|| DeltaError::CorruptLog {
            path: location.commit_path(version).to_string(),
            reason: "the commit vanished while the log was read".to_owned(),
        })?;
        Ok::<_, DeltaError>((version, actions))
    }))
    .buffered(PARALLEL_READS);
    while let Some((version, actions)) = reads.try_next().await? {
        replay.apply(version, actions);
    }
    Ok(Some(LoadedLog { state: replay.finish(location.uri(), newest)?, checkpoint }))
}

/// The actions of one commit; `None` when the version does not exist.
pub(crate) async fn read_commit(location: &TableLocation, version: i64) -> Result<Option<Vec<Action>>> {
    let path = location.commit_path(version);
    match location.get(&path).await? {
        Some(bytes) => parse_actions(path.as_ref(), &bytes).map(Some),
        None => Ok(None),
    }
}

#[derive(Default)]
struct Listing {
    commits: BTreeMap<i64, ()>,
    checkpoints: BTreeMap<i64, Vec<CheckpointFile>>,
}

impl Listing {
    /// The newest version all of whose checkpoint parts are there.
    fn newest_checkpoint(&self) -> Option<i64> {
        let complete = |parts: &[CheckpointFile]| parts.iter().any(|part| part.is_complete_in(parts));
        self.checkpoints.iter().rev().find(|(_, parts)| complete(parts)).map(|(&version, _)| version)
    }
}

async fn list(location: &TableLocation, from: Option<i64>) -> Result<Listing> {
    let folder = location.log_folder();
    let mut objects = match from {
        // Everything of version `from` sorts behind its bare number.
        Some(version) => {
            let offset = folder.clone().join(format!("{version:020}"));
            location.store().list_with_offset(Some(&folder), &offset)
        }
        None => location.store().list(Some(&folder)),
    };
    let mut listing = Listing::default();
    while let Some(object) =
        objects.try_next().await.map_err(DeltaError::store("list", folder.to_string()))?
    {
        let Some(name) = object.location.filename() else { continue };
        // Side folders of the log hold files of other kinds.
        if object.location.as_ref() != folder.clone().join(name).as_ref() {
            continue;
        }
        let Some((version, kind)) = name.split_once('.') else { continue };
        let Some(version) = (version.len() == 20).then(|| version.parse::<i64>().ok()).flatten() else {
            continue;
        };
        if kind == "json" {
            listing.commits.insert(version, ());
        } else if let Some(file) = CheckpointFile::from_name(object.location.clone(), object.size, kind) {
            listing.checkpoints.entry(version).or_default().push(file);
        }
    }
    Ok(listing)
}

/// How a put of the next version ended.
#[derive(Debug)]
pub(crate) enum PutOutcome {
    /// The version is ours, and durable.
    Ours,
    /// The version is somebody else's: these are its actions.
    Theirs(Vec<Action>),
}

/// Puts a version if it is absent, until the outcome is known or the attempts are used up.
pub(crate) async fn put_commit(
    location: &TableLocation,
    version: i64,
    lines: &Bytes,
    commit_id: &str,
    attempts: u32,
) -> Result<PutOutcome> {
    let path = location.commit_path(version);
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        crash_point!("commit-before-put");
        let source = match location.put_if_absent(&path, lines.clone()).await {
            Ok(()) => {
                crash_point!("commit-after-put");
                return Ok(PutOutcome::Ours);
            }
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                let actions =
                    read_commit(location, version).await?.ok_or_else(|| DeltaError::CorruptLog {
                        path: path.to_string(),
                        reason: "the store says that this commit exists, but does not give it".to_owned(),
                    })?;
                return Ok(if commit_id_of(&actions) == Some(commit_id) {
                    PutOutcome::Ours
                } else {
                    PutOutcome::Theirs(actions)
                });
            }
            Err(source) => source,
        };
        if is_final(&source) || attempt >= attempts {
            return Err(DeltaError::store("commit", path.to_string())(source));
        }
        tracing::warn!(%path, attempt, error = %source, "commit not confirmed, trying again");
        tokio::time::sleep(pause).await;
        pause *= 2;
        attempt += 1;
    }
}

pub(crate) fn commit_id_of(actions: &[Action]) -> Option<&str> {
    commit_info(actions)?.get("commitId").and_then(Value::as_str)
}

/// Errors that another attempt will not change, and after which the object surely was not written.
fn is_final(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    matches!(
        error,
        E::NotSupported { .. }
            | E::NotImplemented { .. }
            | E::PermissionDenied { .. }
            | E::Unauthenticated { .. }
            | E::InvalidPath { .. }
            | E::UnknownConfigurationKey { .. }
    )
}
