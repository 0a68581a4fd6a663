//! Compaction: many small files, and files with many deleted rows, become few full ones, while flushes go on.
//!
//! ```text
//!   owner       begin ─────────── flush, flush, flush ────────────── adopt: one commit
//!                 │                    deletion bits in old files      ▲  Remove(old, current vector)
//!                 ▼                                                    │  Add(new, translated vector)
//!   anywhere    run: read live rows ──▶ write new files, in order ─────┘  dataChange = false
//! ```
//!
//! **The invariant: a row deleted while its file was being compacted stays deleted.** Rows keep their order, so
//! where a row went follows from the vector that its file had at the beginning ([`row_map`]); at the commit
//! every bit set since then is carried over to the new files.
//!
//! *The key index* gets the rows' new places as one sorted run that was built along with the files. Rows that
//! changed meanwhile have newer places than that run; there are few, and their places are put on top again.
//!
//! *What happened to the old files meanwhile* decides whether the result can be used. A file that our own
//! flush emptied is simply all deleted. A file that somebody else moved, or that copy-on-write rewrote, is not
//! where the compaction left it: the result is thrown away, and another compaction begins later.
//!
//! *A crash* leaves new files that nothing names, and a table that is whole: before the commit it has the old
//! files, after it the new ones, and the index catches up from the log as after any commit.

mod adoption;
mod candidates;
mod rewrite;
mod row_map;

pub use adoption::Compacted;
pub use rewrite::{CompactedFiles, Compaction};

use crate::mirror_table::{MirrorTable, Phase};
use crate::table_definition::TableKind;
use rewrite::KeyRun;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Versions before another attempt, after one whose result could not be used: the table is one that somebody
/// else rewrites, or whose files copy-on-write rewrites faster than a compaction does.
const VERSIONS_AFTER_A_FAILURE: i64 = 50;

/// What the owner keeps in mind of compactions.
#[derive(Debug, Default)]
pub(crate) struct CompactionState {
    /// The one under way.
    underway: Option<Underway>,
    /// None begins before this version.
    not_before: i64,
}

#[derive(Debug, Default)]
struct Underway {
    chosen: BTreeSet<String>,
    /// Chosen files whose last rows were deleted since.
    emptied: BTreeSet<String>,
}

impl MirrorTable {
    /// A compaction, if one is worth its cost now. [Run](Compaction::run) it on a task of its own and hand the
    /// result to [`adopt_compaction`](Self::adopt_compaction), or call
    /// [`abandon_compaction`](Self::abandon_compaction). One at a time.
    pub fn begin_compaction(&mut self) -> Option<Compaction> {
        if self.compaction.underway.is_some()
            || self.phase == Phase::Closed
            || self.state.version < self.compaction.not_before
            || self.newest_rows_count()
        {
            return None;
        }
        let groups = candidates::choose(self.state.files.values(), &self.options);
        if groups.is_empty() {
            return None;
        }
        let chosen = groups.iter().flatten().map(|add| add.path.clone()).collect();
        self.compaction.underway = Some(Underway { chosen, emptied: BTreeSet::new() });
        let keys = self.index.as_ref().map(KeyRun::new);
        let (location, options) = (self.location.clone(), self.options.clone());
        Some(Compaction::new(location, options, Arc::clone(&self.definition), groups, keys))
    }

    /// Whether enough small or deleted files have gathered that a compaction is worth its cost.
    pub fn wants_compaction(&self) -> bool {
        self.compaction.underway.is_none()
            && !self.newest_rows_count()
            && self.state.version >= self.compaction.not_before
            && !candidates::choose(self.state.files.values(), &self.options).is_empty()
    }

    /// The table's index says where the newest row of each key is, which a run of moved older rows would hide.
    fn newest_rows_count(&self) -> bool {
        self.definition.kind == TableKind::History && self.definition.has_key()
    }

    /// Forgets the compaction under way, whose result will not come.
    pub fn abandon_compaction(&mut self) {
        self.compaction.underway = None;
        self.compaction.not_before = self.state.version + VERSIONS_AFTER_A_FAILURE;
    }

    /// Tells a compaction under way which files a flush has just taken away.
    pub(crate) fn note_emptied(&mut self, gone: &[String]) {
        // Copy-on-write takes files away whose other rows live on elsewhere.
        if !self.definition.deletion_vectors {
            return;
        }
        if let Some(underway) = &mut self.compaction.underway {
            let emptied = gone.iter().filter(|path| underway.chosen.contains(*path)).cloned();
            underway.emptied.extend(emptied);
        }
    }
}
