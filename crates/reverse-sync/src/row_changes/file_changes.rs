//! Which rows of which files a commit, or a range of commits, took away and put in place.
//!
//! ```text
//!   Remove a, Add b                      the live rows of a are gone, those of b are new
//!   Remove a (vector 1), Add a (2)       rows that 2 deletes and 1 does not are gone;
//!                                        rows that 1 deletes and 2 does not are back (RESTORE)
//! ```
//!
//! Over a range, a file's own ups and downs cancel without being read: one that came and went within it leaves
//! nothing, and of many vectors of one file only the first and the last matter. So a busy table costs what is
//! different in the end.

use super::commit::{Commit, FileChange, Vector};
use crate::delta_source::{DataFile, RowSet};
use std::collections::HashMap;

/// Rows of one file that changed.
#[derive(Debug, Clone)]
pub(crate) struct ChangedRows {
    pub file: DataFile,
    pub rows: RowSet,
    pub side: Side,
    /// The commit's time.
    pub timestamp: i64,
}

/// What became of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// They are gone.
    Removed,
    /// They are new.
    Added,
    /// Each says for itself: the file belongs to a change data feed.
    Feed,
}

/// What a commit did, by its feed if it has one, else by its files.
pub(crate) fn of_commit(commit: Commit) -> Vec<ChangedRows> {
    let timestamp = commit.timestamp;
    if !commit.feed.is_empty() {
        let feed = commit.feed.into_iter();
        return feed.map(|change| changed(change, Side::Feed, timestamp)).collect();
    }
    let mut changes = Vec::with_capacity(commit.added.len() + commit.removed.len());
    for step in steps(commit.added, commit.removed) {
        match step {
            Step::Add(file) => changes.push(changed(file, Side::Added, timestamp)),
            Step::Remove(file) => changes.push(changed(file, Side::Removed, timestamp)),
            Step::Vector(file, before) => changes.extend(between(file, &before, timestamp)),
        }
    }
    changes
}

/// What happens to one path in a commit.
enum Step {
    Add(FileChange),
    Remove(FileChange),
    /// The file stays; this was its vector before.
    Vector(FileChange, Vector),
}

fn steps(added: Vec<FileChange>, removed: Vec<FileChange>) -> Vec<Step> {
    let mut before: HashMap<String, FileChange> =
        removed.into_iter().map(|change| (change.file.path.clone(), change)).collect();
    let mut steps: Vec<Step> = added
        .into_iter()
        .map(|change| match before.remove(&change.file.path) {
            Some(removed) => Step::Vector(change, removed.vector),
            None => Step::Add(change),
        })
        .collect();
    steps.extend(before.into_values().map(Step::Remove));
    steps
}

fn changed(change: FileChange, side: Side, timestamp: i64) -> ChangedRows {
    ChangedRows { file: change.file, rows: RowSet::Live(change.vector.rows), side, timestamp }
}

/// The rows that one vector of a file has beyond another, both ways.
fn between(change: FileChange, before: &Vector, timestamp: i64) -> impl Iterator<Item = ChangedRows> {
    let FileChange { file, vector: after, .. } = change;
    let beyond = |inside: &Vector, outside: &Vector, side| {
        (inside.id != outside.id && inside.rows.has_vector()).then(|| ChangedRows {
            file: file.clone(),
            rows: RowSet::Between { inside: inside.rows.clone(), outside: outside.rows.clone() },
            side,
            timestamp,
        })
    };
    let changes = [beyond(&after, before, Side::Removed), beyond(before, &after, Side::Added)];
    changes.into_iter().flatten()
}

/// The changes of a range of commits, with what cancels within a file cancelled.
#[derive(Debug, Default)]
pub(crate) struct NetFiles {
    by_path: HashMap<String, Pending>,
    settled: Vec<ChangedRows>,
}

/// What the range has done to a file so far.
#[derive(Debug)]
struct Pending {
    change: FileChange,
    /// The vector that the file had before the range; `None`: it was not there.
    before: Option<Vector>,
    timestamp: i64,
}

impl NetFiles {
    /// Takes the next commit in.
    pub(crate) fn push(&mut self, commit: Commit) {
        if !commit.feed.is_empty() {
            self.settled.extend(of_commit(commit));
            return;
        }
        let timestamp = commit.timestamp;
        for step in steps(commit.added, commit.removed) {
            match step {
                Step::Add(change) => self.add(change, timestamp),
                Step::Vector(change, from) => self.replace_vector(change, from, timestamp),
                Step::Remove(change) => self.remove(change, timestamp),
            }
        }
    }

    /// All that is left to look at.
    pub(crate) fn finish(mut self) -> Vec<ChangedRows> {
        for (_, pending) in std::mem::take(&mut self.by_path) {
            self.settle(pending);
        }
        self.settled
    }

    fn add(&mut self, change: FileChange, timestamp: i64) {
        let path = change.file.path.clone();
        if let Some(earlier) = self.by_path.insert(path, Pending { change, before: None, timestamp }) {
            self.settle(earlier);
        }
    }

    fn replace_vector(&mut self, change: FileChange, from: Vector, timestamp: i64) {
        let path = change.file.path.clone();
        let before = match self.by_path.remove(&path) {
            Some(earlier) if earlier.change.vector.id == from.id => earlier.before,
            Some(earlier) => {
                self.settle(earlier);
                Some(from)
            }
            None => Some(from),
        };
        self.by_path.insert(path, Pending { change, before, timestamp });
    }

    fn remove(&mut self, change: FileChange, timestamp: i64) {
        match self.by_path.remove(&change.file.path) {
            // What the file held before the range is gone; what came and went within it never was.
            Some(Pending { change: earlier, before, .. }) if earlier.vector.id == change.vector.id => {
                if let Some(vector) = before {
                    self.settled.push(changed(FileChange { vector, ..change }, Side::Removed, timestamp));
                }
            }
            Some(earlier) => {
                self.settle(earlier);
                self.settled.push(changed(change, Side::Removed, timestamp));
            }
            None => self.settled.push(changed(change, Side::Removed, timestamp)),
        }
    }

    fn settle(&mut self, pending: Pending) {
        let Pending { change, before, timestamp } = pending;
        match before {
            None => self.settled.push(changed(change, Side::Added, timestamp)),
            Some(before) => self.settled.extend(between(change, &before, timestamp)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, vector: &str) -> FileChange {
        let file =
            DataFile { version: 1, path: path.to_owned(), size: None, partition_values: HashMap::new() };
        // Only the ids are looked at here; a vector without rows is no vector.
        FileChange {
            file,
            vector: Vector { id: vector.to_owned(), ..Vector::default() },
            has_partition_values: true,
        }
    }

    fn commit(added: &[(&str, &str)], removed: &[(&str, &str)]) -> Commit {
        let changes =
            |list: &[(&str, &str)]| list.iter().map(|(path, vector)| change(path, vector)).collect();
        Commit {
            version: 1,
            timestamp: 0,
            added: changes(added),
            removed: changes(removed),
            feed: Vec::new(),
            metadata: None,
        }
    }

    fn net(commits: Vec<Commit>) -> Vec<(String, Side)> {
        let mut files = NetFiles::default();
        for commit in commits {
            files.push(commit);
        }
        let mut found: Vec<_> =
            files.finish().into_iter().map(|change| (change.file.path, change.side)).collect();
        found.sort_by_key(|(path, side)| (path.clone(), *side == Side::Added));
        found
    }

    #[test]
    fn a_file_that_comes_and_goes_within_a_range_is_never_read() {
        let commits = vec![
            commit(&[("a", "")], &[]),
            commit(&[("a", "v1")], &[("a", "")]),
            commit(&[], &[("a", "v1")]),
        ];
        assert_eq!(net(commits), []);
    }

    #[test]
    fn a_file_from_before_a_range_that_goes_is_gone_with_what_it_held_before() {
        let commits = vec![commit(&[("a", "v1")], &[("a", "")]), commit(&[], &[("a", "v1")])];
        assert_eq!(net(commits), [("a".to_owned(), Side::Removed)]);
    }

    #[test]
    fn a_file_that_moved_away_unseen_and_came_back_counts_each_time() {
        // A compaction took it in between, which is no change; RESTORE then added it once more.
        let commits = vec![commit(&[("a", "")], &[]), commit(&[("a", "")], &[("b", "")])];
        let added = || ("a".to_owned(), Side::Added);
        assert_eq!(net(commits), [added(), added(), ("b".to_owned(), Side::Removed)]);
    }
}
