//! Which versions a table's log can still give, and when each was committed.
//!
//! Only time travel that needs it comes here: `TIMESTAMP AS OF`, and the message about a version that is
//! not there. One listing of the log folder gives the range; a binary search over it reads the few
//! commits whose times decide. A commit's time is the one its writer put in `commitInfo` (milliseconds,
//! and it survives a copy of the lake), or its file's modification time where a writer left it out.

use crate::error::LakeSqlError;
use crate::folders::store_error;
use crate::store::LakeStore;
use crate::table_name::TableName;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use serde_json::Value;
use std::collections::BTreeMap;

/// A commit names files; one larger than this is no commit that Tidewater or a sane writer made.
const LARGEST_COMMIT: u64 = 256 * 1024 * 1024;

/// The versions that can be read, with the commits among them.
#[derive(Debug)]
pub(crate) struct CommitLog {
    /// The oldest version that can be read: 0, or the oldest checkpoint once commits before it expired.
    pub(crate) earliest: u64,
    /// The newest version.
    pub(crate) latest: u64,
    commits: BTreeMap<u64, ObjectMeta>,
}

impl CommitLog {
    /// Lists the log of the table at `location`; `None` when it holds no readable version.
    pub(crate) async fn list(lake: &LakeStore, location: &Path) -> Result<Option<CommitLog>, LakeSqlError> {
        let folder = location.clone().join("_delta_log");
        let (mut commits, mut checkpoints) = (BTreeMap::new(), Vec::new());
        let mut files = lake.objects.list(Some(&folder));
        while let Some(file) = files.try_next().await.map_err(|source| store_error(&folder, source))? {
            // Folders below the log (`_staged_commits`, `_sidecars`) hold nothing that is committed.
            if file.location.parts_count() != folder.parts_count() + 1 {
                continue;
            }
            match file.location.filename().map(log_entry) {
                Some(LogEntry::Commit(version)) => _ = commits.insert(version, file),
                Some(LogEntry::Checkpoint(version)) => checkpoints.push(version),
                Some(LogEntry::Other) | None => {}
            }
        }
        let first_commit = commits.keys().next().copied();
        let earliest = match (first_commit, checkpoints.iter().min().copied()) {
            (Some(0), _) => 0,
            (_, Some(checkpoint)) => checkpoint,
            _ => return Ok(None),
        };
        let newest_commit = commits.keys().next_back().copied();
        let Some(latest) = newest_commit.max(checkpoints.into_iter().max()) else { return Ok(None) };
        commits.retain(|version, _| *version >= earliest);
        Ok(Some(CommitLog { earliest, latest, commits }))
    }

    /// The newest version committed at or before a moment, in microseconds since 1970.
    ///
    /// `Err` of the inner result: the moment lies before the earliest commit, whose version and time in
    /// milliseconds it gives.
    pub(crate) async fn at(
        &self,
        lake: &LakeStore,
        table: &TableName,
        micros: i64,
    ) -> Result<Result<u64, (u64, i64)>, LakeSqlError> {
        let commits: Vec<(&u64, &ObjectMeta)> = self.commits.iter().collect();
        // Invariant: every commit before `low` is at or before the moment, none from `high` on is.
        let (mut low, mut high) = (0, commits.len());
        let mut first_time = 0;
        while low < high {
            let middle = low + (high - low) / 2;
            let Some((version, file)) = commits.get(middle) else { break };
            let millis = commit_time(lake, table, **version, file).await?;
            if middle == 0 {
                first_time = millis;
            }
            if millis.saturating_mul(1000) <= micros { low = middle + 1 } else { high = middle }
        }
        Ok(match low.checked_sub(1).and_then(|at| commits.get(at)) {
            Some((version, _)) => Ok(**version),
            None => Err((commits.first().map_or(self.earliest, |(version, _)| **version), first_time)),
        })
    }
}

enum LogEntry {
    Commit(u64),
    Checkpoint(u64),
    Other,
}

/// `00000000000000000012.json` is commit 12; `00000000000000000012.checkpoint….parquet` or `….json` a checkpoint.
fn log_entry(file: &str) -> LogEntry {
    let Some((digits, rest)) = file.split_once('.') else { return LogEntry::Other };
    let Ok(version) = digits.parse() else { return LogEntry::Other };
    match rest {
        _ if digits.len() != 20 => LogEntry::Other,
        "json" => LogEntry::Commit(version),
        _ if rest.starts_with("checkpoint.") => LogEntry::Checkpoint(version),
        _ => LogEntry::Other,
    }
}

/// When a commit was made, in milliseconds since 1970.
async fn commit_time(
    lake: &LakeStore,
    table: &TableName,
    version: u64,
    file: &ObjectMeta,
) -> Result<i64, LakeSqlError> {
    let unreadable = |reason| LakeSqlError::Commit { table: table.clone(), version, reason };
    if file.size > LARGEST_COMMIT {
        return Err(unreadable("the file is too large to be a commit"));
    }
    let failed = |source| store_error(&file.location, source);
    let bytes = lake.objects.get(&file.location).await.map_err(failed)?.bytes().await.map_err(failed)?;
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        // Only the line that holds commitInfo is worth parsing; it is first nearly always.
        if !contains(line, b"\"commitInfo\"") {
            continue;
        }
        let action: Value = serde_json::from_slice(line).map_err(|_| unreadable("a line is no JSON"))?;
        let Some(info) = action.get("commitInfo") else { continue };
        let time = info.get("inCommitTimestamp").or_else(|| info.get("timestamp"));
        if let Some(millis) = time.and_then(Value::as_i64) {
            return Ok(millis);
        }
    }
    Ok(file.last_modified.timestamp_millis())
}

fn contains(line: &[u8], needle: &[u8]) -> bool {
    line.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_commit_and_checkpoint_names_count() {
        assert!(matches!(log_entry("00000000000000000012.json"), LogEntry::Commit(12)));
        assert!(matches!(log_entry("00000000000000000012.checkpoint.parquet"), LogEntry::Checkpoint(12)));
        assert!(matches!(
            log_entry("00000000000000000012.checkpoint.0000000001.0000000002.parquet"),
            LogEntry::Checkpoint(12)
        ));
        for name in
            ["12.json", "_last_checkpoint", "00000000000000000012.crc", "00000000000000000012.json.tmp"]
        {
            assert!(matches!(log_entry(name), LogEntry::Other), "{name}");
        }
    }
}
