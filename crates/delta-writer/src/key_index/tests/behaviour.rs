//! One behaviour at a time.

use crate::key_index::*;

fn at(file: FileId, row: u32) -> RowAddress {
    RowAddress { file, row }
}

/// Keys spread like hashes.
fn key(n: u64) -> KeyHash {
    KeyHash(siphasher::sip128::SipHasher13::new().hash(&n.to_le_bytes()).as_u128())
}

#[test]
fn what_is_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::create(dir.path()).unwrap();
    assert_eq!(index.version(), None);
    let file = index.file_id("part-0.parquet");
    index.stage((0..1000).map(|n| (key(n), at(file, n as u32))).collect()).unwrap();
    index.commit(4).unwrap();
    let hasher = index.hasher();
    let column: arrow::array::ArrayRef = std::sync::Arc::new(arrow::array::Int32Array::from(vec![1]));
    let hash = hasher.hash(&[column.clone()]).unwrap();
    drop(index);

    let index = KeyIndex::open(dir.path()).unwrap().unwrap();
    assert_eq!(index.version(), Some(4));
    assert_eq!(index.path(file), Some("part-0.parquet"));
    assert_eq!(index.hasher().hash(&[column]).unwrap(), hash);
    let found = index.lookup(&[key(999), key(1000), key(0), key(999)]).unwrap();
    assert_eq!(found, [Some(at(file, 999)), None, Some(at(file, 0)), Some(at(file, 999))]);
}
