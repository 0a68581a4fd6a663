//! One behaviour at a time.

use super::{at, key};
use crate::key_index::*;
use arrow::array::{ArrayRef, Int32Array};
use std::ops::Range;

fn entries(keys: Range<u64>, file: FileId) -> Vec<(KeyHash, RowAddress)> {
    keys.clone().map(|n| (key(n), at(file, (n - keys.start) as u32))).collect()
}

fn run_files(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("run-")).count()
}

#[test]
fn what_is_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    assert_eq!(index.version(), None);
    let file = index.file_id("part-0.parquet");
    index.stage(entries(0..1000, file)).unwrap();
    index.commit(4).unwrap();
    let column: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let hash = index.hasher().hash(&[Arc::clone(&column)]).unwrap();
    drop(index);

    let index = KeyIndex::open(dir.path()).unwrap().unwrap();
    assert_eq!((index.version(), index.entries()), (Some(4), 1000));
    assert_eq!(index.path(file), Some("part-0.parquet"));
    assert_eq!(index.hasher().hash(&[column]).unwrap(), hash);
    let found = index.lookup(&[key(999), key(1000), key(0), key(999)]).unwrap();
    assert_eq!(found, [Some(at(file, 999)), None, Some(at(file, 0)), Some(at(file, 999))]);
    let on_disk = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    assert_eq!(index.disk_bytes(), on_disk.sum::<u64>());
}

#[test]
fn where_no_index_was_committed_none_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    assert!(KeyIndex::open(&dir.path().join("nothing")).unwrap().is_none());
    assert!(KeyIndex::open(dir.path()).unwrap().is_none());
    let mut index = KeyIndex::create(dir.path()).unwrap();
    let file = index.file_id("a");
    index.stage(entries(0..10, file)).unwrap();
    drop(index);
    assert!(KeyIndex::open(dir.path()).unwrap().is_none());
}

#[test]
fn creating_an_index_wipes_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    let file = index.file_id("a");
    index.stage(entries(0..10, file)).unwrap();
    index.commit(0).unwrap();
    drop(index);
    let index = KeyIndex::create(dir.path()).unwrap();
    assert_eq!((index.version(), index.entries(), run_files(dir.path())), (None, 0, 0));
    drop(index);
    assert!(KeyIndex::open(dir.path()).unwrap().is_none());
}

#[test]
fn one_directory_has_one_owner_until_its_last_builder_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let index = KeyIndex::create(dir.path()).unwrap();
    let builder = index.run_builder();
    assert!(matches!(KeyIndex::open(dir.path()), Err(KeyIndexError::InUse { .. })));
    drop(index);
    assert!(matches!(KeyIndex::create(dir.path()), Err(KeyIndexError::InUse { .. })));
    drop(builder);
    KeyIndex::create(dir.path()).unwrap();
}

#[test]
fn staged_entries_are_seen_at_once_and_gone_after_a_discard() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    let old = index.file_id("old");
    index.stage(entries(0..100, old)).unwrap();
    index.commit(1).unwrap();

    let new = index.file_id("new");
    index.stage(entries(50..60, new)).unwrap();
    index.stage(vec![(key(55), at(new, 7)), (key(55), at(new, 8))]).unwrap();
    index.forget_files([old]);
    let found = index.lookup(&[key(50), key(55), key(1)]).unwrap();
    assert_eq!(found, [Some(at(new, 0)), Some(at(new, 8)), None]);

    index.discard_staged();
    let found = index.lookup(&[key(50), key(55), key(1)]).unwrap();
    assert_eq!(found, [Some(at(old, 50)), Some(at(old, 55)), Some(at(old, 1))]);
    assert_eq!((index.path(new), index.version()), (None, Some(1)));
}

#[test]
fn emptying_the_table_hides_all_before_and_a_discard_brings_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    let old = index.file_id("old");
    index.stage(entries(0..100, old)).unwrap();
    index.commit(1).unwrap();

    let new = index.file_id("new");
    index.stage(entries(0..10, new)).unwrap();
    index.truncate_staged();
    index.stage(entries(10..20, new)).unwrap();
    let question = [key(5), key(15), key(50)];
    assert_eq!(index.lookup(&question).unwrap(), [None, Some(at(new, 5)), None]);
    index.discard_staged();
    assert_eq!(index.lookup(&question).unwrap(), [5, 15, 50].map(|n| Some(at(old, n))));

    let new = index.file_id("new");
    index.truncate_staged();
    index.stage(entries(10..20, new)).unwrap();
    index.commit(2).unwrap();
    assert_eq!(index.lookup(&question).unwrap(), [None, Some(at(new, 5)), None]);
    assert_eq!((index.entries(), index.path(old), run_files(dir.path())), (10, None, 1));
    drop(index);
    let index = KeyIndex::open(dir.path()).unwrap().unwrap();
    assert_eq!(index.lookup(&question).unwrap(), [None, Some(at(new, 5)), None]);
}

#[test]
fn rows_of_a_forgotten_file_are_not_answered_and_merged_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    let gone = index.file_id("gone");
    index.stage(entries(0..100, gone)).unwrap();
    index.commit(0).unwrap();
    index.forget_files([gone]);
    index.commit(1).unwrap();
    assert_eq!(index.lookup(&[key(3)]).unwrap(), [None]);
    let stays = index.file_id("stays");
    for version in 2.. {
        index.stage(vec![(key(1000 + version % 7), at(stays, version as u32))]).unwrap();
        index.commit(version as i64).unwrap();
        if index.entries() < 100 {
            break;
        }
        assert!(version < 100_000, "the forgotten entries never go");
    }
    assert_eq!(index.lookup(&[key(3)]).unwrap(), [None]);
}

#[test]
fn a_merge_changes_no_answer_and_leaves_few_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    for version in 0..200 {
        let file = index.file_id(&format!("part-{version}"));
        index.stage(entries(version * 40..version * 40 + 60, file)).unwrap();
        index.commit(version as i64).unwrap();
    }
    let keys = (0..8020).map(key).collect::<Vec<_>>();
    let before = index.lookup(&keys).unwrap();
    for (n, found) in before.iter().enumerate() {
        let newest = (n / 40).min(199);
        let found = found.unwrap();
        assert_eq!(index.path(found.file), Some(format!("part-{newest}").as_str()));
        assert_eq!(found.row as usize, n - newest * 40);
    }
    drop(index);
    let index = KeyIndex::open(dir.path()).unwrap().unwrap();
    assert_eq!(index.lookup(&keys).unwrap(), before);
    assert!(run_files(dir.path()) < 60, "{} runs", run_files(dir.path()));
}

#[test]
fn runs_built_on_many_threads_are_one_load() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    let files = [0, 1, 2].map(|n| index.file_id(&format!("part-{n}")));
    let runs = std::thread::scope(|scope| {
        let build = |file: FileId| {
            let mut builder = index.run_builder().with_budget(700);
            move || {
                for n in 0..5000u32 {
                    builder.push(key(u64::from(file.0 * 5000 + n)), at(file, n))?;
                }
                builder.finish()
            }
        };
        files.map(|file| scope.spawn(build(file))).map(|thread| thread.join().unwrap().unwrap())
    });
    assert_eq!(run_files(dir.path()), 3);
    for run in runs {
        assert_eq!(run.entries(), 5000);
        index.stage_run(run).unwrap();
    }
    index.commit(0).unwrap();
    let keys = (0..15_000).map(key).collect::<Vec<_>>();
    for (n, found) in index.lookup(&keys).unwrap().into_iter().enumerate() {
        assert_eq!(found, Some(at(files[n / 5000], (n % 5000) as u32)));
    }
}

#[test]
fn a_builder_keeps_the_last_entry_of_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    let file = index.file_id("a");
    let mut builder = index.run_builder().with_budget(3);
    for row in 0..1000 {
        builder.push(key(u64::from(row % 10)), at(file, row)).unwrap();
    }
    let run = builder.finish().unwrap();
    assert_eq!(run.entries(), 10);
    index.stage_run(run).unwrap();
    let found = index.lookup(&(0..10).map(key).collect::<Vec<_>>()).unwrap();
    assert_eq!(found, (990..1000).map(|row| Some(at(file, row))).collect::<Vec<_>>());
}

#[test]
fn a_run_that_is_not_staged_or_is_discarded_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    let file = index.file_id("a");
    let build = |index: &KeyIndex| {
        let mut builder = index.run_builder().with_budget(2);
        (0..9).try_for_each(|n| builder.push(key(n), at(file, 0))).unwrap();
        builder.finish().unwrap()
    };
    drop(build(&index));
    let run = build(&index);
    index.stage_run(run).unwrap();
    assert_eq!(run_files(dir.path()), 1);
    index.discard_staged();
    assert_eq!(run_files(dir.path()), 0);
}

#[test]
fn a_run_of_another_index_is_refused() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = KeyIndex::create(one.path()).unwrap().run_builder().finish().unwrap();
    let mut index = KeyIndex::create(other.path()).unwrap();
    assert!(matches!(index.stage_run(run), Err(KeyIndexError::ForeignRun { .. })));
}

#[test]
fn rows_moved_to_a_file_numbered_beforehand_are_found_there_but_for_those_that_went_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    let small = index.file_id("small");
    index.stage(entries(0..100, small)).unwrap();
    index.commit(0).unwrap();
    let (numbers, mut moved) = (index.file_numbers(), index.run_builder());
    let large = numbers.next();
    (0..100).for_each(|n| moved.push(key(n), at(large, 1000 + n as u32)).unwrap());
    let moved = moved.finish().unwrap();
    let newer = index.file_id("newer");
    index.stage(vec![(key(7), at(newer, 0))]).unwrap();
    index.commit(1).unwrap();

    index.register_file(large, "large");
    index.stage_run(moved).unwrap();
    index.stage(vec![(key(7), at(newer, 0))]).unwrap();
    index.forget_files([small]);
    index.commit(2).unwrap();
    let found = index.lookup(&[key(6), key(7), key(8)]).unwrap();
    assert_eq!(found, [Some(at(large, 1006)), Some(at(newer, 0)), Some(at(large, 1008))]);
    assert_eq!(index.path(large), Some("large"));
}

#[test]
fn an_index_does_not_go_back_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    index.commit(5).unwrap();
    assert!(matches!(index.commit(4), Err(KeyIndexError::VersionGoesBack { current: 5, asked: 4 })));
    index.commit(5).unwrap();
    index.commit(9).unwrap();
}

#[test]
fn a_commit_that_fails_can_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    let file = index.file_id("a");
    index.stage(entries(0..10, file)).unwrap();
    let obstacle = dir.path().join("MANIFEST.new");
    std::fs::create_dir(&obstacle).unwrap();
    assert!(matches!(index.commit(0), Err(KeyIndexError::Io { .. })));
    assert_eq!(index.version(), None);
    assert_eq!(index.lookup(&[key(3)]).unwrap(), [Some(at(file, 3))]);
    std::fs::remove_dir(&obstacle).unwrap();
    index.commit(0).unwrap();
    drop(index);
    let index = KeyIndex::open(dir.path()).unwrap().unwrap();
    assert_eq!(index.lookup(&[key(3)]).unwrap(), [Some(at(file, 3))]);
}

#[test]
fn a_flush_larger_than_memory_allows_goes_to_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    let file = index.file_id("a");
    let many = MAX_STAGED_IN_MEMORY as u64 + 1000;
    index.stage(entries(0..many, file)).unwrap();
    assert_eq!(run_files(dir.path()), 1);
    index.stage(vec![(key(5), at(file, 77))]).unwrap();
    assert_eq!(
        index.lookup(&[key(5), key(many - 1)]).unwrap(),
        [Some(at(file, 77)), Some(at(file, many as u32 - 1))]
    );
    index.commit(0).unwrap();
    drop(index);
    let index = KeyIndex::open(dir.path()).unwrap().unwrap();
    assert_eq!(index.lookup(&[key(5)]).unwrap(), [Some(at(file, 77))]);
}

#[test]
fn a_key_with_many_places_shows_all_of_them_from_every_layer() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap().with_places(Places::Many);
    let file = index.file_id("a");
    // More than a block of equal keys, between others; in runs, in a builder's run, and in memory.
    let mut builder = index.run_builder().with_budget(64);
    for row in 0..400 {
        builder.push(key(u64::from(row % 3)), at(file, row)).unwrap();
    }
    index.stage_run(builder.finish().unwrap()).unwrap();
    index.commit(0).unwrap();
    for version in 1..6 {
        let row = 1000 + version as u32;
        index.stage(vec![(key(1), at(file, row)), (key(1), at(file, row)), (key(9), at(file, row))]).unwrap();
        index.commit(version).unwrap();
    }
    index.stage(vec![(key(1), at(file, 2000))]).unwrap();
    let places = |index: &KeyIndex, n| {
        let mut rows = Vec::new();
        index
            .visit_places(key(n), &mut |address| {
                rows.push(address.row);
                ControlFlow::Continue(())
            })
            .unwrap();
        rows.sort_unstable();
        rows
    };
    let mut expected: Vec<u32> = (0..400).filter(|row| row % 3 == 1).collect();
    expected.extend([1001, 1002, 1003, 1004, 1005, 2000]);
    assert_eq!(places(&index, 1), expected);
    assert_eq!(places(&index, 7), [0_u32; 0]);
    let mut seen = 0;
    index
        .visit_places(key(1), &mut |_| {
            seen += 1;
            if seen == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(seen, 5);
    index.commit(6).unwrap();
    drop(index);
    let index = KeyIndex::open(dir.path()).unwrap().unwrap().with_places(Places::Many);
    assert_eq!(places(&index, 1), expected);
}
