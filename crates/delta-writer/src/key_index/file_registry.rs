//! Data files by number, so that an entry names its file in four bytes.
//!
//! A number is never given twice. A forgotten file's number therefore stays unknown for ever, and an
//! entry with an unknown number is an entry of a file that is gone.

use super::entry::FileId;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Gives numbers to files before the index knows them: to a compaction's, which are written on another thread.
#[derive(Debug, Clone, Default)]
pub struct FileNumbers(Arc<AtomicU32>);

impl FileNumbers {
    /// A number that no file of the index ever had or will have. The last number of all is given again and
    /// again: an index that has come so far takes no more files.
    pub fn next(&self) -> FileId {
        let next = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| next.checked_add(1));
        FileId(next.unwrap_or(u32::MAX))
    }

    fn peek(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The files, with what the flush under way changed about them.
#[derive(Debug, Default)]
pub(super) struct FileRegistry {
    paths: HashMap<u32, Arc<str>>,
    ids: HashMap<Arc<str>, u32>,
    numbers: FileNumbers,
    added: Vec<u32>,
    forgotten: Vec<(u32, Arc<str>)>,
}

impl FileRegistry {
    /// The files of a manifest; `None` when a number or a path occurs twice or lies past `next`.
    pub(super) fn restore(files: Vec<(u32, String)>, next: u32) -> Option<Self> {
        let numbers = FileNumbers(Arc::new(AtomicU32::new(next)));
        let mut registry = Self { numbers, ..Self::default() };
        for (id, path) in files {
            let path: Arc<str> = path.into();
            let known_path = registry.ids.insert(Arc::clone(&path), id).is_some();
            if known_path || registry.paths.insert(id, path).is_some() || id >= next {
                return None;
            }
        }
        Some(registry)
    }

    /// The file's number, a new one when it has none. The last number of all is never registered: a
    /// registry that is [exhausted](Self::is_exhausted) refuses to be committed.
    pub(super) fn id(&mut self, path: &str) -> FileId {
        if let Some(id) = self.ids.get(path) {
            return FileId(*id);
        }
        let id = self.numbers.next();
        self.register(id, path);
        id
    }

    /// What gives numbers to files that are [registered](Self::register) later.
    pub(super) fn numbers(&self) -> FileNumbers {
        self.numbers.clone()
    }

    /// Adds a file under a number that it was given beforehand.
    pub(super) fn register(&mut self, id: FileId, path: &str) {
        if id.0 != u32::MAX {
            let path: Arc<str> = path.into();
            self.ids.insert(Arc::clone(&path), id.0);
            self.paths.insert(id.0, path);
            self.added.push(id.0);
        }
    }

    pub(super) fn path(&self, id: FileId) -> Option<&str> {
        self.paths.get(&id.0).map(AsRef::as_ref)
    }

    pub(super) fn forget(&mut self, id: FileId) {
        if let Some(path) = self.paths.remove(&id.0) {
            self.ids.remove(&path);
            self.forgotten.push((id.0, path));
        }
    }

    /// Forgets every file that was there before the flush under way.
    pub(super) fn forget_committed(&mut self) {
        let added = self.added.iter().copied().collect::<HashSet<_>>();
        let committed = self.paths.keys().copied().filter(|id| !added.contains(id)).collect::<Vec<_>>();
        committed.into_iter().for_each(|id| self.forget(FileId(id)));
    }

    /// What the flush changed stays.
    pub(super) fn commit(&mut self) {
        self.added.clear();
        self.forgotten.clear();
    }

    /// What the flush changed is undone. Numbers it gave are not given again.
    pub(super) fn discard(&mut self) {
        let added = std::mem::take(&mut self.added).into_iter().collect::<HashSet<_>>();
        for id in &added {
            if let Some(path) = self.paths.remove(id) {
                self.ids.remove(&path);
            }
        }
        for (id, path) in std::mem::take(&mut self.forgotten) {
            if !added.contains(&id) {
                self.ids.insert(Arc::clone(&path), id);
                self.paths.insert(id, path);
            }
        }
    }

    pub(super) fn is_exhausted(&self) -> bool {
        self.next() == u32::MAX
    }

    pub(super) fn next(&self) -> u32 {
        self.numbers.peek()
    }

    /// The files as of the last commit, and the new ones: a flush that may yet be discarded forgets nothing.
    pub(super) fn committed(&self) -> HashSet<u32> {
        self.paths.keys().copied().chain(self.forgotten.iter().map(|(id, _)| *id)).collect()
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (u32, &str)> {
        self.paths.iter().map(|(id, path)| (*id, path.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discarded_flush_leaves_the_files_as_they_were() {
        let mut files = FileRegistry::default();
        let kept = files.id("kept");
        files.commit();
        let fresh = files.id("fresh");
        files.forget(fresh);
        files.forget(kept);
        let again = files.id("kept");
        assert_ne!(again, kept);
        files.discard();
        assert_eq!(files.id("kept"), kept);
        assert_eq!((files.path(fresh), files.path(again)), (None, None));
        assert_eq!(files.iter().len(), 1);
    }

    #[test]
    fn a_number_is_never_given_twice() {
        let mut files = FileRegistry::default();
        let first = files.id("a");
        files.forget(first);
        files.commit();
        assert_ne!(files.id("a"), first);
        let restored = FileRegistry::restore(Vec::new(), files.next()).map(|mut files| files.id("a"));
        assert!(restored > Some(first));
    }

    #[test]
    fn a_number_given_beforehand_is_nobody_elses() {
        let mut files = FileRegistry::default();
        let early = files.numbers().next();
        let other = files.id("other");
        assert_ne!(early, other);
        files.register(early, "early");
        assert_eq!((files.id("early"), files.path(early)), (early, Some("early")));
    }

    #[test]
    fn a_registry_without_numbers_left_says_so() {
        let mut files = FileRegistry::restore(Vec::new(), u32::MAX - 1).unwrap();
        files.id("last");
        assert!(files.is_exhausted());
        assert_eq!(files.path(FileId(u32::MAX)), None);
        let nowhere = files.id("one too many");
        assert_eq!(files.path(nowhere), None);
    }
}
