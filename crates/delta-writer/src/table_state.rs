//! A table's state at one version, in memory: what replaying its log gives.
//!
//! The owner keeps this state and applies each commit to it, its own and those of others, so that a
//! commit never lists or reads the log again: version 10,000 costs what version 10 costs.
//!
//! Removed files stay on record until they expire, because checkpoints carry them for VACUUM's sake: a
//! VACUUM spares files that are on record, and files that are young. A hot table removes (and adds again with
//! another vector) the same files every second, a week of which would be millions of records in every
//! checkpoint, so only those are kept that need it: files that were old already when they were removed.
//! The others are spared for their age, nearly as long ([`SHORT_LIVED`] is added to what a VACUUM is told).

use crate::action::{Action, Add, Metadata, Protocol, Remove, Txn, engine_of};
use crate::error::{DeltaError, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Some 4 MiB of checkpoint. What is forgotten beyond that only lets a foreign VACUUM remove old files sooner.
const MAX_TOMBSTONES: usize = 20_000;
/// A file removed at this age or younger leaves no record.
pub(crate) const SHORT_LIVED: Duration = Duration::from_secs(3600);

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
    /// When the commit that brought its current vector was made, in milliseconds; 0 when that is not known.
    pub written_at: i64,
}

impl LiveFile {
    pub fn deleted(&self) -> u64 {
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
        let written_at = commit_time(&others);
        let mut gone: BTreeMap<String, LiveFile> = BTreeMap::new();
        let mut removed = Vec::new();
        for action in removes {
            if let Action::Remove(remove) = action {
                if let Some(file) = self.forget(&remove.path) {
                    gone.insert(remove.path.clone(), file);
                }
                removed.push(remove);
            }
        }
        for action in others {
            match action {
                Action::Add(add) => {
                    let since = gone.get(&add.path).map_or(version, |file| file.since);
                    self.remember(add, since, written_at);
                }
                Action::Txn(txn) => {
                    self.txns.insert(txn.app_id.clone(), txn);
                }
                Action::Protocol(protocol) => self.protocol = Some(protocol),
                Action::MetaData(metadata) => self.metadata = Some(metadata),
                Action::CommitInfo(_) | Action::Remove(_) => {}
            }
        }
        for remove in removed {
            if self.is_worth_a_record(&remove, gone.get(&remove.path)) {
                self.tombstones.push_back(Arc::new(remove));
            }
        }
        while self.tombstones.len() > MAX_TOMBSTONES {
            self.tombstones.pop_front();
        }
        if replaced {
            self.foreign = None;
        }
        self.foreign = foreign.or(self.foreign.take());
    }

    /// Whether a VACUUM would take what was removed for an old file that nobody needs.
    fn is_worth_a_record(&self, remove: &Remove, file: Option<&LiveFile>) -> bool {
        let (Some(file), Some(removed_at)) = (file, remove.deletion_timestamp) else { return true };
        let was_old =
            |written_at: i64| removed_at.saturating_sub(written_at) > SHORT_LIVED.as_millis() as i64;
        let data_is_old = !self.files.contains_key(&remove.path) && was_old(file.add.modification_time);
        let vector_is_old = remove.deletion_vector.is_some() && was_old(file.written_at);
        data_is_old || vector_is_old
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

    fn remember(&mut self, add: Add, since: i64, written_at: i64) {
        self.forget(&add.path);
        let rows = rows_of(&add);
        let file = LiveFile { add: Arc::new(add), rows, since, written_at };
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

/// When a commit was made, as its writer says; 0 for a checkpoint, which does not know.
fn commit_time(actions: &[Action]) -> i64 {
    commit_info(actions).and_then(|info| info.get("timestamp")).and_then(Value::as_i64).unwrap_or(0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deletion_vector::{DvDescriptor, DvStorage};
    use serde_json::json;

    const HOUR: i64 = 3_600_000;

    fn add(written_at: i64, vector: &str) -> Add {
        let vector = (!vector.is_empty()).then(|| DvDescriptor {
            storage_type: DvStorage::Inline,
            path_or_inline_dv: vector.to_owned(),
            offset: None,
            size_in_bytes: 0,
            cardinality: 1,
        });
        Add {
            path: "a".to_owned(),
            partition_values: BTreeMap::new(),
            size: 1,
            modification_time: written_at,
            data_change: true,
            stats: None,
            tags: None,
            deletion_vector: vector,
        }
    }

    fn commit(at: i64, actions: Vec<Action>) -> Vec<Action> {
        let info = Map::from_iter([("timestamp".to_owned(), json!(at))]);
        std::iter::once(Action::CommitInfo(info)).chain(actions).collect()
    }

    /// The records that are left when a file of hour 0 is removed: by its last vector and for good.
    fn records(vector_at: i64, gone_at: i64) -> usize {
        let mut replay = Replay::default();
        replay.apply(0, commit(0, vec![Action::Add(add(0, ""))]));
        let changed = add(0, "vector");
        let replaced =
            vec![Action::Remove(add(0, "").removal(vector_at, true)), Action::Add(changed.clone())];
        replay.apply(1, commit(vector_at, replaced));
        assert!(replay.tombstones.is_empty(), "a file that is live needs no record");
        replay.apply(2, commit(gone_at, vec![Action::Remove(changed.removal(gone_at, true))]));
        replay.tombstones.len()
    }

    #[test]
    fn only_what_was_old_when_it_was_removed_is_kept_on_record() {
        assert_eq!(records(HOUR / 2, HOUR / 2 + 1), 0);
        assert_eq!(records(HOUR / 2, 2 * HOUR), 1, "an old data file");
        assert_eq!(records(2 * HOUR, 2 * HOUR + 1), 1, "a data file is old although its vector is new");
    }

    #[test]
    fn a_vector_that_stood_for_long_is_kept_on_record_although_its_file_lives() {
        let mut replay = Replay::default();
        replay.apply(0, commit(0, vec![Action::Add(add(0, "first"))]));
        let (first, second) = (add(0, "first"), add(0, "second"));
        let actions = vec![Action::Remove(first.removal(2 * HOUR, true)), Action::Add(second.clone())];
        replay.apply(1, commit(2 * HOUR, actions));
        assert_eq!(replay.tombstones.len(), 1);
        let third = vec![Action::Remove(second.removal(2 * HOUR + 1, true)), Action::Add(add(0, "third"))];
        replay.apply(2, commit(2 * HOUR + 1, third));
        assert_eq!(replay.tombstones.len(), 1);
    }
}
