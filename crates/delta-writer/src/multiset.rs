//! Rows that are named by all they hold: a source table without a key, whose old rows come whole.
//!
//! Equal rows cannot be told apart, at the source as in the lake, so an operation takes away *any one* of
//! them. The key index has an entry for each (`Places::Many`), some of them stale; here the live ones are
//! chosen, no row twice:
//!
//! ```text
//!   wanted: A, B, A  ──▶ entries of A: (f1,3) (f2,0) (f2,9)   ──▶ A: (f1,3) (f2,9)     (f2,0) is hidden
//!                        entries of B: (f1,7)                 ──▶ B: (f1,7)
//! ```
//!
//! Whether a row is hidden stands in its file's deletion vector, which may have to be read first. So a
//! [`Search`] goes in passes: each says which files it could not judge, until none is left that matters.

use crate::error::Result;
use crate::flush::Flush;
use crate::key_index::{FileId, KeyHash, KeyIndex, KeyIndexError, RowAddress};
use crate::mirror_table::MirrorTable;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

/// What is known of a row that an entry points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Liveness {
    Live,
    Gone,
    /// Its file's deletion vector has to be read first.
    Unknown,
}

/// Live rows found, by key; each is given out once.
#[derive(Debug, Default)]
pub(crate) struct LiveRows {
    by_key: HashMap<KeyHash, Vec<RowAddress>>,
}

impl LiveRows {
    /// One of the key's rows.
    pub fn take(&mut self, key: KeyHash) -> Option<RowAddress> {
        self.by_key.get_mut(&key)?.pop()
    }
}

/// Looks for as many live rows of each key as it is wanted times.
#[derive(Debug)]
pub(crate) struct Search {
    wanted: HashMap<KeyHash, usize>,
    found: LiveRows,
    chosen: HashSet<RowAddress>,
}

impl Search {
    pub fn new(keys: &[KeyHash]) -> Search {
        let mut wanted = HashMap::new();
        for key in keys {
            *wanted.entry(*key).or_default() += 1;
        }
        Search { wanted, found: LiveRows::default(), chosen: HashSet::new() }
    }

    /// Chooses among the rows that can be judged. Gives the files that have to be looked into before the
    /// next pass; none: nothing more will be found.
    pub fn pass(
        &mut self,
        index: &KeyIndex,
        liveness: impl Fn(RowAddress) -> Liveness,
    ) -> std::result::Result<BTreeSet<FileId>, KeyIndexError> {
        let mut unknown = BTreeSet::new();
        for (key, count) in &self.wanted {
            let rows = self.found.by_key.entry(*key).or_default();
            if rows.len() == *count {
                continue;
            }
            let mut unknown_here = BTreeSet::new();
            index.visit_places(*key, &mut |address| {
                match liveness(address) {
                    Liveness::Live if self.chosen.insert(address) => rows.push(address),
                    Liveness::Unknown => {
                        unknown_here.insert(address.file);
                    }
                    Liveness::Live | Liveness::Gone => {}
                }
                if rows.len() == *count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if rows.len() < *count {
                unknown.extend(unknown_here);
            }
        }
        Ok(unknown)
    }

    pub fn into_found(self) -> LiveRows {
        self.found
    }
}

impl MirrorTable {
    /// Live rows of these keys that the flush under way has not taken away yet.
    pub(crate) async fn find_equal_rows(&mut self, keys: &[KeyHash]) -> Result<LiveRows> {
        let mut search = Search::new(keys);
        loop {
            let Some(index) = &self.index else { return Ok(LiveRows::default()) };
            let state = &self.state;
            let is_live = |file: FileId| index.path(file).is_some_and(|path| state.files.contains_key(path));
            let passed = search.pass(index, |address| liveness(&self.flush, address, is_live));
            let unknown = match passed {
                Ok(unknown) if unknown.is_empty() => return Ok(search.into_found()),
                Ok(unknown) => unknown,
                Err(source) => return Err(self.index_failed(source)),
            };
            for file in unknown {
                self.look_into(file).await?;
            }
        }
    }
}

fn liveness(flush: &Flush, address: RowAddress, is_live: impl Fn(FileId) -> bool) -> Liveness {
    let row = u64::from(address.row);
    if flush.deleted.get(&address.file).is_some_and(|bits| bits.contains(row)) {
        return Liveness::Gone;
    }
    match flush.touched.get(&address.file) {
        Some(file) if file.vector.contains(row) => Liveness::Gone,
        Some(_) => Liveness::Live,
        None if flush.sink.holds(address.file) => Liveness::Live,
        None if is_live(address.file) => Liveness::Unknown,
        None => Liveness::Gone,
    }
}
