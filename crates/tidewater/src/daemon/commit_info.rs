//! What a Delta commit says of the Postgres transactions inside it.

use delta_writer::CommitSpec;
use serde_json::{Map, Value};
use wal_decoder::{Lsn, PgTimestamp};

/// A commit of streamed transactions: all that end after `from`, up to and including `to`.
pub fn of_stream(app_id: &str, from: Lsn, to: Lsn, commit_time: i64) -> CommitSpec {
    let committed_at = PgTimestamp(commit_time).unix_micros() / 1000;
    let info = [
        ("fromLsn", Value::from(from.to_string())),
        ("toLsn", Value::from(to.to_string())),
        ("lastCommitTimestamp", Value::from(committed_at)),
    ];
    spec(app_id, to, "STREAM", info)
}

/// A commit of a load: the table as of one consistent point.
pub fn of_load(app_id: &str, position: Lsn, rows: u64) -> CommitSpec {
    spec(
        app_id,
        position,
        "LOAD",
        [("toLsn", Value::from(position.to_string())), ("rows", Value::from(rows))],
    )
}

/// A commit of what a comparison with the source found, as of one consistent point.
pub fn of_mending(app_id: &str, position: Lsn, differed: u64) -> CommitSpec {
    let info = [("toLsn", Value::from(position.to_string())), ("keysThatDiffered", Value::from(differed))];
    spec(app_id, position, "MEND", info)
}

fn spec<const N: usize>(app_id: &str, position: Lsn, kind: &str, info: [(&str, Value); N]) -> CommitSpec {
    let mut all: Map<String, Value> = info.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    all.insert("tidewater".to_owned(), Value::from(kind));
    // LSNs count bytes of WAL: none reaches 2^63.
    CommitSpec { app_id: app_id.to_owned(), version: position.0.cast_signed(), info: all }
}
