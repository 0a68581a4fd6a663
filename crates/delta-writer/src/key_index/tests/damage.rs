//! Bytes that change behind the index's back are found, and never answered.

use super::{at, key};
use crate::key_index::*;
use proptest::prelude::*;
use std::fs;
use std::path::PathBuf;

const KEYS: u64 = 600;

/// An index of three runs, one of which was flushed to the disk when it was written.
fn sample(dir: &Path) -> Vec<Option<RowAddress>> {
    let mut index = KeyIndex::create(dir).unwrap();
    let file = index.file_id("country=CH/part-0.parquet");
    let mut builder = index.run_builder();
    (0..300).try_for_each(|n| builder.push(key(n), at(file, n as u32))).unwrap();
    let run = builder.finish().unwrap();
    index.stage_run(run).unwrap();
    index.commit(0).unwrap();
    for version in 1..3 {
        index
            .stage(
                (version * 150..version * 150 + 300).map(|n| (key(n), at(file, 5000 + n as u32))).collect(),
            )
            .unwrap();
        index.commit(version as i64).unwrap();
    }
    index.lookup(&every_key()).unwrap()
}

fn every_key() -> Vec<KeyHash> {
    (0..KEYS).map(key).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.file_name().unwrap() != "LOCK")
        .collect::<Vec<_>>();
    files.sort();
    files
}

/// The index is refused, or answers rightly, or says that it is damaged: one of them for every key.
fn never_answers_wrongly(dir: &Path, right: &[Option<RowAddress>]) -> bool {
    let Some(index) = KeyIndex::open(dir).unwrap() else {
        assert_eq!(files(dir), Vec::<PathBuf>::new(), "a refused index is removed");
        return false;
    };
    let mut whole = true;
    for (key, right) in every_key().into_iter().zip(right) {
        match index.lookup(&[key]) {
            Ok(found) => assert_eq!(found, [*right]),
            Err(KeyIndexError::Damaged { .. }) => whole = false,
            Err(error) => panic!("{error}"),
        }
    }
    whole
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_changed_byte_in_any_file_is_found(
        file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), change in 1u8..
    ) {
        let dir = tempfile::tempdir().unwrap();
        let right = sample(dir.path());
        let path = file.get(&files(dir.path())).clone();
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        fs::write(&path, bytes).unwrap();
        prop_assert!(!never_answers_wrongly(dir.path(), &right), "byte {at} of {} changed unnoticed", path.display());
    }

    #[test]
    fn a_file_of_another_length_is_found(
        file in any::<prop::sample::Index>(), length in any::<prop::sample::Index>(), longer in any::<bool>()
    ) {
        let dir = tempfile::tempdir().unwrap();
        let right = sample(dir.path());
        let path = file.get(&files(dir.path())).clone();
        let mut bytes = fs::read(&path).unwrap();
        let length = length.index(bytes.len());
        if longer { bytes.resize(bytes.len() + length + 1, 0) } else { bytes.truncate(length) }
        fs::write(&path, bytes).unwrap();
        prop_assert!(!never_answers_wrongly(dir.path(), &right), "{length} bytes of {}", path.display());
    }
}

#[test]
fn a_missing_run_is_found() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..3 {
        let right = sample(dir.path());
        fs::remove_file(&files(dir.path())[1 + n]).unwrap();
        assert!(!never_answers_wrongly(dir.path(), &right));
    }
}

#[test]
fn a_run_of_an_earlier_life_is_not_taken_for_the_one_of_that_name() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let path = files(dir.path())[1].clone();
    let earlier = fs::read(&path).unwrap();
    let right = sample(dir.path());
    assert_ne!(fs::read(&path).unwrap(), earlier);
    fs::write(&path, earlier).unwrap();
    assert!(!never_answers_wrongly(dir.path(), &right));
}

#[test]
fn blocks_that_changed_places_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let right = sample(dir.path());
    let path = files(dir.path())[1].clone();
    let mut bytes = fs::read(&path).unwrap();
    let (first, rest) = bytes.split_at_mut(block::BLOCK_BYTES);
    first.swap_with_slice(&mut rest[..block::BLOCK_BYTES]);
    fs::write(&path, bytes).unwrap();
    assert!(!never_answers_wrongly(dir.path(), &right));
}

#[test]
fn what_a_killed_process_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let right = sample(dir.path());
    let before = files(dir.path());
    fs::write(dir.path().join("run-000000000099"), "half a run").unwrap();
    fs::write(dir.path().join("MANIFEST.new"), "half a manifest").unwrap();
    assert!(never_answers_wrongly(dir.path(), &right));
    assert_eq!(files(dir.path()), before);
}
