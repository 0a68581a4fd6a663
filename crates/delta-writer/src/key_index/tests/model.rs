//! The index against a `HashMap`, through any sequence of operations.

use super::{at, key};
use crate::key_index::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashMap;

#[derive(Debug, Clone)]
enum Step {
    Stage(Vec<(u8, u32)>),
    StageRun(Vec<(u8, u32)>),
    Truncate,
    /// Forgets one of the files that were seen.
    Forget(usize),
    Discard,
    Commit,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let entries = || vec((any::<u8>(), 0u32..1000), 0..120);
    vec(
        prop_oneof![
            6 => entries().prop_map(Step::Stage),
            2 => entries().prop_map(Step::StageRun),
            1 => Just(Step::Truncate),
            1 => any::<usize>().prop_map(Step::Forget),
            1 => Just(Step::Discard),
            8 => Just(Step::Commit),
            1 => Just(Step::Reopen),
        ],
        1..80,
    )
}

/// What the index should answer: key to path and row.
type Rows = HashMap<u8, (String, u32)>;

struct Pair {
    dir: tempfile::TempDir,
    /// `None` only while it is reopened.
    index: Option<KeyIndex>,
    committed: Rows,
    staged: Rows,
    version: i64,
    files: usize,
}

impl Pair {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let index = Some(KeyIndex::create(dir.path()).unwrap());
        Self { dir, index, committed: Rows::new(), staged: Rows::new(), version: -1, files: 0 }
    }

    fn new_file(&mut self) -> (FileId, String) {
        self.files += 1;
        let path = format!("part-{}", self.files);
        (self.index.as_mut().unwrap().file_id(&path), path)
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Stage(entries) => {
                let (file, path) = self.new_file();
                let staged = entries.iter().map(|(n, row)| (key((*n).into()), at(file, *row))).collect();
                self.index.as_mut().unwrap().stage(staged).unwrap();
                self.staged.extend(entries.into_iter().map(|(n, row)| (n, (path.clone(), row))));
            }
            Step::StageRun(entries) => {
                let (file, path) = self.new_file();
                let index = self.index.as_mut().unwrap();
                let mut builder = index.run_builder().with_budget(50);
                for (n, row) in &entries {
                    builder.push(key((*n).into()), at(file, *row)).unwrap();
                }
                let run = builder.finish().unwrap();
                index.stage_run(run).unwrap();
                self.staged.extend(entries.into_iter().map(|(n, row)| (n, (path.clone(), row))));
            }
            Step::Truncate => {
                self.index.as_mut().unwrap().truncate_staged();
                self.staged.clear();
            }
            Step::Forget(choice) => {
                let path = format!("part-{}", choice % self.files.max(1));
                let index = self.index.as_mut().unwrap();
                let id = index.file_id(&path);
                index.forget_files([id]);
                self.staged.retain(|_, (held, _)| *held != path);
            }
            Step::Discard => {
                self.index.as_mut().unwrap().discard_staged();
                self.staged = self.committed.clone();
            }
            Step::Commit => {
                self.version += 1;
                self.index.as_mut().unwrap().commit(self.version).unwrap();
                self.committed = self.staged.clone();
            }
            Step::Reopen => {
                self.index = None;
                let opened = KeyIndex::open(self.dir.path()).unwrap();
                assert_eq!(opened.is_some(), self.version >= 0, "an index is there once it was committed");
                self.index = opened.or_else(|| KeyIndex::create(self.dir.path()).ok());
                self.staged = self.committed.clone();
            }
        }
    }

    fn check(&self) {
        let index = self.index.as_ref().unwrap();
        let keys = (0..=255).map(key).collect::<Vec<_>>();
        let found = index.lookup(&keys).unwrap();
        for (n, address) in (0..=255).zip(found) {
            let found = address.map(|address| (index.path(address.file).unwrap().to_owned(), address.row));
            assert_eq!(found.as_ref(), self.staged.get(&n), "key {n}");
        }
        assert_eq!(index.version().unwrap_or(-1), self.version);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn the_index_answers_like_a_map(steps in steps()) {
        let mut pair = Pair::new();
        for step in steps {
            pair.apply(step);
            pair.check();
        }
    }
}
