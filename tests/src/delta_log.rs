//! What a table's Delta log says about how far it is, read from the JSON commits themselves.
//!
//! No reader shows `txn` actions or what a compaction did, so this is the one place where the harness looks into the log.

use std::path::Path;

use serde_json::Value;

/// The newest `txn` version that a table's commits carry; `None` before its first data.
pub fn last_txn(table: &Path) -> Option<u64> {
    actions(table).iter().filter_map(|action| action["txn"]["version"].as_u64()).next_back()
}

/// What each version of a table did, oldest first, such as `LOAD`.
pub fn operations(table: &Path) -> Vec<String> {
    let name = |action: &Value| action["commitInfo"]["operation"].as_str().map(str::to_owned);
    actions(table).iter().filter_map(name).collect()
}

/// How each of the daemon's versions came about, oldest first: `LOAD`, `MEND`, `STREAM` or `COMPACTION`.
pub fn kinds(table: &Path) -> Vec<String> {
    let kind = |action: &Value| action["commitInfo"]["tidewater"].as_str().map(str::to_owned);
    actions(table).iter().filter_map(kind).collect()
}

/// A table property as the newest version has it.
pub fn property(table: &Path, name: &str) -> Option<String> {
    let value = |action: &Value| action["metaData"]["configuration"][name].as_str().map(str::to_owned);
    actions(table).iter().rfind(|action| action.get("metaData").is_some()).and_then(value)
}

/// Whether `_tidewater/sync_state.json` names a table of the database's folder as behind the slot: it is loaded
/// anew, so what its `txn` says does not count. A table without a log is behind as long as any is named.
pub fn is_behind_the_slot(database: &Path, table: &str) -> bool {
    let Ok(text) = std::fs::read_to_string(database.join("_tidewater/sync_state.json")) else { return false };
    let state: Value = serde_json::from_str(&text).unwrap();
    let named = state["tables"].as_object().unwrap();
    let actions = actions(&database.join(table));
    let mut ids = actions
        .iter()
        .filter_map(|action| action["metaData"]["configuration"]["tidewater.table_id"].as_str());
    ids.next_back().map_or(!named.is_empty(), |id| named.contains_key(id))
}

/// The actions of each commit that is a compaction by the daemon.
pub fn compactions(table: &Path) -> Vec<Vec<Value>> {
    let is_compaction = |actions: &Vec<Value>| {
        actions.iter().any(|action| action["commitInfo"]["tidewater"].as_str() == Some("COMPACTION"))
    };
    commits(table).into_iter().filter(is_compaction).collect()
}

/// Whether every table of the database's folder is continuous with the slot: a restart loads none of them.
pub fn none_is_behind_the_slot(database: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(database.join("_tidewater/sync_state.json")) else { return false };
    // The file may be half written just now.
    serde_json::from_str::<Value>(&text)
        .is_ok_and(|state| state["tables"].as_object().is_some_and(|named| named.is_empty()))
}

/// All actions of all commits, oldest first.
fn actions(table: &Path) -> Vec<Value> {
    commits(table).into_iter().flatten().collect()
}

/// The actions of all commits, oldest first.
fn commits(table: &Path) -> Vec<Vec<Value>> {
    let Ok(entries) = std::fs::read_dir(table.join("_delta_log")) else { return Vec::new() };
    let mut commits: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    commits.sort();
    commits
        .iter()
        // Expired since the folder was listed.
        .filter_map(|commit| std::fs::read_to_string(commit).ok())
        .map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
        .collect()
}
