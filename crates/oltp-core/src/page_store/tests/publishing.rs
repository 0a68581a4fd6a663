//! One manifest a number, and who comes second learns why.

use super::*;
use crate::CoreError;

#[tokio::test]
async fn a_manifest_is_read_as_it_was_published() {
    let folder = tempfile::tempdir().unwrap();
    let local = PageStore::new(Storage::open(folder.path().to_str().unwrap(), &BTreeMap::new()).unwrap());
    for store in [in_memory(), local] {
        let branch = BranchId::random();
        let mut first = manifest(branch, 1, 1);
        first.body.files = (1..50).map(|id| file(id, id)).collect();
        first.body.symlinks = vec![SymlinkEntry { path: "pg_wal".to_owned(), target: "../wal".to_owned() }];
        add_layer(&store, &mut first, [key(1, 0), key(7, 3)]).await;
        first.head.kind = ManifestKind::Branched { target: RecoveryTarget::Lsn(Lsn(77)) };
        let first = Arc::new(first);
        store.publish(&first).await.unwrap();
        assert_eq!(store.latest(&shop(), branch).await.unwrap().unwrap(), first);
        let second = Arc::new(manifest(branch, 2, 1));
        store.publish(&second).await.unwrap();
        assert_eq!(store.latest(&shop(), branch).await.unwrap().unwrap(), second);
        assert_eq!(store.manifest(&shop(), branch, ManifestNumber(1)).await.unwrap(), first);
        let heads = store.manifests(&shop(), branch).await.unwrap();
        assert_eq!(heads.iter().map(|head| head.uid).collect::<Vec<_>>(), [first.head.uid, second.head.uid]);
        assert_eq!(store.latest(&shop(), BranchId::random()).await.unwrap(), None);
    }
}

#[tokio::test]
async fn publishing_again_after_a_lost_answer_succeeds() {
    let store = in_memory();
    let first = Arc::new(manifest(BranchId::random(), 1, 1));
    store.publish(&first).await.unwrap();
    store.publish(&first).await.unwrap();
}

#[tokio::test]
async fn two_computes_never_publish_one_number_and_the_older_term_is_told_so() {
    let store = in_memory();
    let branch = BranchId::random();
    store.publish(&Arc::new(manifest(branch, 1, 1))).await.unwrap();
    store.publish(&Arc::new(manifest(branch, 2, 5))).await.unwrap();
    let error = store.publish(&Arc::new(manifest(branch, 2, 4))).await.unwrap_err();
    assert!(matches!(error, CoreError::Fenced { term: Term(4), by: Term(5), .. }), "{error}");
    let error = store.publish(&Arc::new(manifest(branch, 2, 6))).await.unwrap_err();
    assert!(matches!(error, CoreError::AlreadyPublished { number: ManifestNumber(2), .. }), "{error}");
}

#[tokio::test]
async fn a_sleeper_does_not_fill_a_number_that_retention_freed() {
    let store = in_memory();
    let branch = BranchId::random();
    for number in 1..=3 {
        store.publish(&Arc::new(manifest(branch, number, 2))).await.unwrap();
    }
    store.storage.delete(&object_names::manifest(&shop(), branch, ManifestNumber(2))).await.unwrap();
    let mut sleeper = manifest(branch, 2, 1);
    sleeper.head.published_at = Timestamp::now().before(GRACE);
    let error = store.publish(&Arc::new(sleeper)).await.unwrap_err();
    assert!(matches!(error, CoreError::Fenced { .. }), "{error}");
    assert_eq!(store.numbers(&shop(), branch).await.unwrap(), [ManifestNumber(1), ManifestNumber(3)]);
}

#[tokio::test]
async fn a_compute_cannot_bring_a_deleted_branch_back() {
    let store = in_memory();
    let branch = BranchId::random();
    let mut deleted = manifest(branch, 2, 0);
    deleted.head.state = BranchState::Deleted;
    store.publish(&Arc::new(manifest(branch, 1, 1))).await.unwrap();
    store.publish(&Arc::new(deleted)).await.unwrap();
    let error = store.publish(&Arc::new(manifest(branch, 2, 9))).await.unwrap_err();
    assert!(matches!(error, CoreError::NoSuchBranch { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_that_breaks_a_rule_is_not_published() {
    let breaks: [fn(&mut Manifest); 6] = [
        |m| m.body.files = vec![file(1, 1), file(1, 2)],
        |m| m.body.files = vec![file(100, 1)],
        |m| m.body.files = vec![FileEntry { path: "base/../../etc/passwd".to_owned(), ..file(1, 1) }],
        |m| m.body.directories[0].path = "/etc".to_owned(),
        |m| m.body.files = vec![FileEntry { size: u64::MAX, ..file(1, 1) }],
        |m| m.head.number = ManifestNumber(0),
    ];
    let store = in_memory();
    for (at, broken) in breaks.into_iter().enumerate() {
        let mut m = manifest(BranchId::random(), 1, 1);
        broken(&mut m);
        let error = store.publish(&Arc::new(m)).await.unwrap_err();
        assert!(matches!(error, CoreError::ManifestUnsound { .. }), "{at}: {error}");
    }
}

#[tokio::test]
async fn every_flipped_byte_of_a_manifest_is_an_error_that_names_it() {
    let store = in_memory();
    let branch = BranchId::random();
    let mut m = manifest(branch, 1, 1);
    m.body.files = vec![file(1, 3)];
    let bytes = manifest_format::encode(&m).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        let number = ManifestNumber(at as u64 + 1);
        let path = object_names::manifest(&shop(), branch, number);
        store.storage.put_if_absent(&path, damaged.into()).await.unwrap();
        let error = store.manifest(&shop(), branch, number).await.unwrap_err().to_string();
        assert!(error.contains(&format!("{number:016}.manifest")), "byte {at}: {error}");
    }
    for length in 0..bytes.len() {
        assert!(manifest_format::decode(&bytes[..length]).is_err(), "{length} bytes");
    }
    assert_eq!(manifest_format::decode(&bytes).unwrap(), m);
}

#[tokio::test]
async fn a_manifest_under_another_name_is_none_of_that_name() {
    let store = in_memory();
    let m = manifest(BranchId::random(), 1, 1);
    let bytes = manifest_format::encode(&m).unwrap();
    let path = object_names::manifest(&shop(), m.head.branch, ManifestNumber(2));
    store.storage.put_if_absent(&path, bytes.into()).await.unwrap();
    assert!(store.manifest(&shop(), m.head.branch, ManifestNumber(2)).await.is_err());
    assert!(store.latest_head(&shop(), m.head.branch).await.is_err());
}
