//! A table's state at one version, in memory: what replaying its log gives.
//!
//! The owner keeps this state and applies each commit to it, its own and those of others, so that a
//! commit never lists or reads the log again: version 10,000 costs what version 10 costs.
//!
//! Removed files stay on record until they expire, because checkpoints carry them for VACUUM's sake.
//! A hot table removes (and adds again with another vector) the same files every second, a week of which
//! would be millions of records; so at most [`MAX_TOMBSTONES`] are kept, the newest.

use crate::action::{Action, Add, Metadata, Protocol, Remove, Txn, engine_of};
use crate::error::{DeltaError, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Some 4 MiB of checkpoint. What is forgotten beyond that only lets a foreign VACUUM remove old vectors sooner.
const MAX_TOMBSTONES: usize = 20_000;

/// What this writer calls itself in `commitInfo.engineInfo`; any other name is a foreign writer.
pub(crate) const ENGINE: &str = concat!("Tidewater/", env!("CARGO_PKG_VERSION"));
const ENGINE_PREFIX: &str = "Tidewater/";

/// Sizes of a table, for `status`, metrics and the decision to compact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Rows a reader sees.
    pub rows: u64,
    /// Live data files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Rows in those files that deletion vectors hide.
    pub deleted_rows: u64,
}

/// A commit by another engine that changed rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignCommit {
    pub version: i64,
    pub writer: String,
}

/// A live data file.
#[derive(Debug, Clone)]
pub(crate) struct LiveFile {
    pub add: Arc<Add>,
    /// Rows in the file, deleted ones included; unknown when a foreign writer kept no statistics.
    pub rows: Option<u64>,
    /// The version whose commit brought the file (its current vector may be newer).
    pub since: i64,
}

impl LiveFile {
    fn deleted(&self) -> u64 {
        self.add.deletion_vector.as_ref().map_or(0, |vector| vector.cardinality.max(0).unsigned_abs())
    }
}

/// The table at one version.
#[derive(Debug, Clone)]
pub(crate) struct TableState {
    pub version: i64,
    pub protocol: Protocol,
    pub metadata: Metadata,
    /// Live files by their path as the log spells it.
    pub files: BTreeMap<String, LiveFile>,
    pub txns: BTreeMap<String, Txn>,
    pub tombstones: VecDeque<Arc<Remove>>,
    /// The newest foreign commit that changed rows, unless a later load replaced everything.
    pub foreign: Option<ForeignCommit>,
    stats: TableStats,
}

/// The replay so far, before protocol and metadata are known.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    protocol: Option<Protocol>,
    metadata: Option<Metadata>,
    files: BTreeMap<String, LiveFile>,
    txns: BTreeMap<String, Txn>,
    tombstones: VecDeque<Arc<Remove>>,
    foreign: Option<ForeignCommit>,
    stats: TableStats,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NumRecords {
    num_records: Option<u64>,
}

/// Rows in a file, deleted ones included, if its writer kept statistics.
pub(crate) fn rows_of(add: &Add) -> Option<u64> {
    serde_json::from_str::<NumRecords>(add.stats.as_deref()?).ok()?.num_records
}

impl Replay {
    /// Applies the actions of one commit, or of a checkpoint of that version.
    pub fn apply(&mut self, version: i64, actions: Vec<Action>) {
        let foreign = foreign_change(version, &actions);
        let replaced = replaces_everything(&actions);
        // Within a commit a file is removed and added again with another vector, in any order: adds win.
        let (removes, others): (Vec<_>, Vec<_>) =
            actions.into_iter().partition(|action| matches!(action, Action::Remove(_)));
        let mut since = BTreeMap::new();
        for action in removes {
            if let Action::Remove(remove) = action {
                if let Some(file) = self.forget(&remove.path) {
                    since.insert(remove.path.clone(), file.since);
                }
                self.tombstones.push_back(Arc::new(remove));
            }
        }
        while self.tombstones.len() > MAX_TOMBSTONES {
            self.tombstones.pop_front();
        }
        for action in others {
            match action {
                Action::Add(add) => {
                    let since = since.get(&add.path).copied().unwrap_or(version);
                    self.remember(add, since);
                }
                Action::Txn(txn) => {
                    self.txns.insert(txn.app_id.clone(), txn);
                }
                Action::Protocol(protocol) => self.protocol = Some(protocol),
                Action::MetaData(metadata) => self.metadata = Some(metadata),
                Action::CommitInfo(_) | Action::Remove(_) => {}
            }
        }
        if replaced {
            self.foreign = None;
        }
        self.foreign = foreign.or(self.foreign.take());
    }

    fn forget(&mut self, path: &str) -> Option<LiveFile> {
        let file = self.files.remove(path)?;
        let rows = file.rows.unwrap_or(0);
        self.stats.files = self.stats.files.saturating_sub(1);
        self.stats.bytes = self.stats.bytes.saturating_sub(file.add.size.max(0).unsigned_abs());
        self.stats.rows = self.stats.rows.saturating_sub(rows.saturating_sub(file.deleted()));
        self.stats.deleted_rows = self.stats.deleted_rows.saturating_sub(file.deleted());
        Some(file)
    }

    fn remember(&mut self, add: Add, since: i64) {
        self.forget(&add.path);
        let rows = rows_of(&add);
        let file = LiveFile { add: Arc::new(add), rows, since };
        self.stats.files += 1;
        self.stats.bytes += file.add.size.max(0).unsigned_abs();
        self.stats.rows += rows.unwrap_or(0).saturating_sub(file.deleted());
        self.stats.deleted_rows += file.deleted();
        self.files.insert(file.add.path.clone(), file);
    }

    /// The state, if the log held what every table has.
    pub fn finish(self, table: &str, version: i64) -> Result<TableState> {
        let missing = |what: &str| DeltaError::CorruptLog {
            path: table.to_owned(),
            reason: format!("no {what} action up to version {version}"),
        };
        Ok(TableState {
            version,
            protocol: self.protocol.ok_or_else(|| missing("protocol"))?,
            metadata: self.metadata.ok_or_else(|| missing("metaData"))?,
            files: self.files,
            txns: self.txns,
            tombstones: self.tombstones,
            foreign: self.foreign,
            stats: self.stats,
        })
    }
}

impl TableState {
    /// Moves on to the next version.
    pub fn advance(&mut self, actions: Vec<Action>) -> Result<()> {
        let version = self.version + 1;
        let mut replay = Replay {
            protocol: Some(self.protocol.clone()),
            metadata: Some(self.metadata.clone()),
            files: std::mem::take(&mut self.files),
            txns: std::mem::take(&mut self.txns),
            tombstones: std::mem::take(&mut self.tombstones),
            foreign: self.foreign.take(),
            stats: self.stats,
        };
        replay.apply(version, actions);
        *self = replay.finish("", version)?;
        Ok(())
    }

    pub fn stats(&self) -> TableStats {
        self.stats
    }
}

/// Who wrote a commit that changed rows, if it was not us.
fn foreign_change(version: i64, actions: &[Action]) -> Option<ForeignCommit> {
    let info = commit_info(actions);
    // A checkpoint has no commitInfo and says nothing about writers.
    info?;
    (!is_ours(info) && changes_rows(actions)).then(|| ForeignCommit { version, writer: engine_of(info) })
}

/// Whether the commit is one of this writer's.
pub(crate) fn is_ours(info: Option<&Map<String, Value>>) -> bool {
    info.and_then(|info| info.get("engineInfo"))
        .and_then(Value::as_str)
        .is_some_and(|engine| engine.starts_with(ENGINE_PREFIX))
}

pub(crate) fn commit_info(actions: &[Action]) -> Option<&Map<String, Value>> {
    actions.iter().find_map(|action| match action {
        Action::CommitInfo(info) => Some(info),
        _ => None,
    })
}

/// Whether a commit changed what readers see.
pub(crate) fn changes_rows(actions: &[Action]) -> bool {
    actions.iter().any(|action| match action {
        Action::Add(add) => add.data_change,
        Action::Remove(remove) => remove.data_change,
        _ => false,
    })
}

/// A load of ours replaces every row, foreign ones included.
fn replaces_everything(actions: &[Action]) -> bool {
    let info = commit_info(actions);
    is_ours(info)
        && info.and_then(|info| info.get("operation")).and_then(Value::as_str) == Some(LOAD_OPERATION)
}

/// `commitInfo.operation` of a first load or reload.
pub(crate) const LOAD_OPERATION: &str = "LOAD";
