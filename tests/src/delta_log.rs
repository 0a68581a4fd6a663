//! What a table's Delta log says about how far it is, read from the JSON commits themselves.
//!
//! No reader shows `txn` actions, so this is the one place where the harness looks into the log.

use std::path::Path;

use serde_json::Value;

/// The `txn` versions that a table's commits carry, oldest commit first.
pub fn txns(table: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(table.join("_delta_log")) else { return Vec::new() };
    let mut commits: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    commits.sort();
    let mut found = Vec::new();
    for commit in commits {
        for line in std::fs::read_to_string(&commit).unwrap().lines() {
            let action: Value = serde_json::from_str(line).unwrap();
            found.extend(action["txn"]["version"].as_u64());
        }
    }
    found
}

/// The newest of them; `None` before the table's first data.
pub fn last_txn(table: &Path) -> Option<u64> {
    txns(table).pop()
}
