//! Killed at any moment, the index is at the last version or at the one under way, whole.
//!
//! The test starts its own binary again as a child that commits version after version, and kills it
//! with SIGKILL: right after a commit was reported and some random time later, so that kills fall into runs being
//! written, manifests being replaced and merges going on.

use super::{at, key};
use crate::key_index::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CHILD_DIR: &str = "KEY_INDEX_CRASH_DIR";
const KEYS: u64 = 3000;
const PER_VERSION: u64 = 200;

/// The keys that version `version` writes: some new, some again.
fn keys_of(version: i64) -> impl Iterator<Item = u64> {
    (0..PER_VERSION).map(move |n| (version as u64 * 131 + n * 7) % KEYS)
}

fn path_of(version: i64) -> String {
    format!("part-{version}.parquet")
}

/// Commits the next version.
fn advance(index: &mut KeyIndex) -> i64 {
    let version = index.version().map_or(0, |version| version + 1);
    let file = index.file_id(&path_of(version));
    index.stage(keys_of(version).zip(0..).map(|(n, row)| (key(n), at(file, row))).collect()).unwrap();
    index.commit(version).unwrap();
    version
}

/// What every key's answer is at `version`, from the versions alone.
fn expected(version: i64) -> Vec<Option<(String, u32)>> {
    let mut rows = vec![None; KEYS as usize];
    for version in 0..=version {
        for (n, row) in keys_of(version).zip(0..) {
            rows[n as usize] = Some((path_of(version), row));
        }
    }
    rows
}

#[test]
#[ignore = "the child of a_killed_process_leaves_the_old_version_or_the_new_one, which starts it"]
fn child() {
    let dir = std::env::var_os(CHILD_DIR).unwrap();
    let mut index = KeyIndex::open(dir.as_ref()).unwrap().unwrap();
    loop {
        let version = advance(&mut index);
        // Not println!, which the test harness would hold back.
        writeln!(std::io::stdout(), "committed {version}").unwrap();
    }
}

#[test]
fn a_killed_process_leaves_the_old_version_or_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    let mut version = advance(&mut index);
    drop(index);
    for _ in 0..40 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", "key_index::tests::crash::child"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut reported = version;
        let mut commits = rand::random_range(1..30);
        while commits > 0 {
            let line = lines.next().expect("the child goes on until it is killed").unwrap();
            if let Some(version) = line.split("committed ").nth(1) {
                reported = version.parse().unwrap();
                commits -= 1;
            }
        }
        // The moment of the kill is what is random here; nothing waits for anything.
        let until = Instant::now() + Duration::from_micros(rand::random_range(0..1500));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still reported before it died.
        for line in lines.map_while(Result::ok) {
            if let Some(Ok(version)) = line.strip_prefix("committed ").map(str::parse) {
                reported = version;
            }
        }

        let index = KeyIndex::open(dir.path()).unwrap().expect("a kill damages nothing");
        version = index.version().unwrap();
        assert!(version == reported || version == reported + 1, "{reported} reported, {version} found");
        let found = index.lookup(&(0..KEYS).map(key).collect::<Vec<_>>()).unwrap();
        for (found, expected) in found.into_iter().zip(expected(version)) {
            let found = found.map(|found| (index.path(found.file).unwrap().to_owned(), found.row));
            assert_eq!(found, expected);
        }
    }
}
