//! Branches by name, and who may write them.

use super::*;
use crate::CoreError;
use futures::future::join_all;

async fn with_main(store: &PageStore) -> Arc<Manifest> {
    let mut main = manifest(BranchId::random(), 1, 1);
    main.body.files = vec![file(1, 10)];
    add_layer(store, &mut main, (0..10).map(|block| key(1, block))).await;
    let main = Arc::new(main);
    store.create_branch(&main, None).await.unwrap();
    main
}

fn name(name: &str) -> BranchName {
    BranchName::new(name).unwrap()
}

#[tokio::test]
async fn a_branch_is_its_parents_pages_by_one_manifest() {
    let store = in_memory();
    let main = with_main(&store).await;
    let child = Arc::new(branch_of(&main, "feature/7"));
    store.create_branch(&child, Some(&main.head)).await.unwrap();
    let found = store.find_branch(&shop(), &name("feature/7")).await.unwrap().unwrap();
    assert_eq!(found.branch, child.head.branch);
    let view = ManifestView::new(store.latest(&shop(), found.branch).await.unwrap().unwrap());
    assert_eq!(store.read_page(&view, key(1, 4)).await.unwrap(), Some(page(key(1, 4), 1)));
    assert_eq!(store.find_branch(&shop(), &name("feature")).await.unwrap(), None);
}

#[tokio::test]
async fn of_many_creators_of_one_name_exactly_one_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let local = PageStore::new(Storage::open(folder.path().to_str().unwrap(), &BTreeMap::new()).unwrap());
    for store in [in_memory(), local] {
        let main = with_main(&store).await;
        let children: Vec<Arc<Manifest>> = (0..12).map(|_| Arc::new(branch_of(&main, "wanted"))).collect();
        let made = join_all(children.iter().map(|child| store.create_branch(child, Some(&main.head)))).await;
        let winners: Vec<BranchId> = made
            .iter()
            .zip(&children)
            .filter_map(|(made, child)| made.is_ok().then_some(child.head.branch))
            .collect();
        assert_eq!(winners.len(), 1, "{made:?}");
        for refused in made.into_iter().filter_map(Result::err) {
            assert!(matches!(refused, CoreError::BranchExists { .. }), "{refused}");
        }
        let found = store.find_branch(&shop(), &name("wanted")).await.unwrap().unwrap();
        assert_eq!(found.branch, winners[0]);
        let all = store.branches(&shop()).await.unwrap();
        assert_eq!(all.iter().map(|head| head.name.as_str()).collect::<Vec<_>>(), ["main", "wanted"]);
    }
}

#[tokio::test]
async fn a_name_is_free_again_once_its_branch_is_deleted() {
    let store = in_memory();
    let main = with_main(&store).await;
    for _ in 0..3 {
        let child = Arc::new(branch_of(&main, "again"));
        store.create_branch(&child, Some(&main.head)).await.unwrap();
        store.delete_branch(&shop(), child.head.branch).await.unwrap();
        assert_eq!(store.find_branch(&shop(), &name("again")).await.unwrap(), None);
        let error = store.delete_branch(&shop(), child.head.branch).await.unwrap_err();
        assert!(matches!(error, CoreError::NoSuchBranch { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_name_whose_creator_died_is_taken_by_another_after_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let store = PageStore::new(Storage::open(folder.path().to_str().unwrap(), &BTreeMap::new()).unwrap());
    let main = with_main(&store).await;
    let claim = object_names::name_claim(&shop(), &name("ghost"), 1);
    let json = format!("{{\"branch\":\"{}\"}}", BranchId::random());
    store.storage.put_if_absent(&claim, json.into()).await.unwrap();
    let child = Arc::new(branch_of(&main, "ghost"));
    let error = store.create_branch(&child, Some(&main.head)).await.unwrap_err();
    assert!(matches!(error, CoreError::BranchExists { .. }), "{error}");
    let claim = std::fs::File::open(folder.path().join(claim.as_ref())).unwrap();
    claim.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
    store.create_branch(&child, Some(&main.head)).await.unwrap();
    assert!(store.find_branch(&shop(), &name("ghost")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_branch_whose_base_was_collected_meanwhile_is_taken_back() {
    let store = in_memory();
    let main = with_main(&store).await;
    store.publish(&Arc::new(following(&main))).await.unwrap();
    let path = object_names::manifest(&shop(), main.head.branch, main.head.number);
    store.storage.delete(&path).await.unwrap();
    let child = Arc::new(branch_of(&main, "late"));
    let error = store.create_branch(&child, Some(&main.head)).await.unwrap_err();
    assert!(matches!(error, CoreError::BranchPointGone { .. }), "{error}");
    assert_eq!(store.branches(&shop()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_compute_that_takes_a_branch_over_fences_every_older_one() {
    let store = in_memory();
    let main = with_main(&store).await;
    let taken = store.take_over(&shop(), main.head.branch, Term(5)).await.unwrap();
    assert_eq!((taken.head.number, &taken.body), (ManifestNumber(2), &main.body));
    let error = store.publish(&Arc::new(following(&main))).await.unwrap_err();
    assert!(matches!(error, CoreError::Fenced { term: Term(1), by: Term(5), .. }), "{error}");
    for term in [4, 5] {
        let error = store.take_over(&shop(), main.head.branch, Term(term)).await.unwrap_err();
        assert!(matches!(error, CoreError::Fenced { .. }), "{error}");
    }
    store.publish(&Arc::new(following(&taken))).await.unwrap();
}

#[tokio::test]
async fn of_computes_that_take_over_at_once_the_highest_term_ends_up_writing() {
    let store = in_memory();
    let branch = with_main(&store).await.head.branch;
    let taken = join_all((2..10).map(|term| {
        let store = &store;
        async move { store.take_over(&shop(), branch, Term(term)).await }
    }))
    .await;
    let latest = store.latest(&shop(), branch).await.unwrap().unwrap();
    assert_eq!(latest.head.term, Term(9));
    for taken in taken.into_iter().flatten().filter(|taken| taken.head.term != Term(9)) {
        assert!(store.publish(&Arc::new(following(&taken))).await.is_err());
    }
}

#[tokio::test]
async fn a_new_layer_that_is_older_than_the_manifest_before_is_written_again() {
    let store = in_memory();
    let main = with_main(&store).await;
    let mut next = following(&main);
    add_layer(&store, &mut next, [key(1, 3)]).await;
    let mut late = next.clone();
    late.body.layers[1].written_at = main.head.published_at.before(GRACE);
    // A process that knows nothing yet looks at the manifest before.
    for store in [&PageStore::new(store.storage.clone()), &store] {
        let error = store.publish(&Arc::new(late.clone())).await.unwrap_err();
        assert!(
            matches!(error, CoreError::LayerTooOld { layer, .. } if layer == late.body.layers[1].id),
            "{error}"
        );
    }
    // What the manifest before names may be of any age.
    next.body.layers[0].written_at = late.body.layers[1].written_at;
    store.publish(&Arc::new(next)).await.unwrap();
}

#[tokio::test]
async fn a_thousand_branches_are_listed() {
    let store = in_memory();
    let main = with_main(&store).await;
    for number in 0..1000 {
        let child = Arc::new(branch_of(&main, &format!("task-{number:04}")));
        store.create_branch(&child, Some(&main.head)).await.unwrap();
    }
    let cold = PageStore::new(store.storage.clone());
    let names: Vec<String> =
        cold.branches(&shop()).await.unwrap().iter().map(|head| head.name.to_string()).collect();
    assert_eq!(names.len(), 1001);
    assert_eq!((names[0].as_str(), names[1000].as_str()), ("main", "task-0999"));
}

#[tokio::test]
async fn a_project_is_made_once() {
    let store = in_memory();
    let record = ProjectRecord {
        name: shop(),
        uid: ProjectUid::random(),
        postgres_major: 18,
        system_identifier: 7,
        created_at: Timestamp::now(),
        owner: "shop".to_owned(),
        database: "shop".to_owned(),
        template: None,
    };
    store.create_project(&record).await.unwrap();
    store.create_project(&record).await.unwrap();
    let other = ProjectRecord { uid: ProjectUid::random(), ..record.clone() };
    assert!(matches!(store.create_project(&other).await, Err(CoreError::ProjectExists { .. })));
    assert_eq!(store.project(&shop()).await.unwrap(), Some(record));
    assert_eq!(store.projects().await.unwrap(), [shop()]);
}

#[tokio::test]
async fn a_renamed_branch_leaves_its_name_to_another_at_once() {
    let store = in_memory();
    let main = with_main(&store).await;
    store.rename_branch(&shop(), main.head.branch, &name("before")).await.unwrap();
    assert_eq!(store.find_branch(&shop(), &name("main")).await.unwrap(), None);
    let renamed = store.find_branch(&shop(), &name("before")).await.unwrap().unwrap();
    assert_eq!(renamed.branch, main.head.branch);
    let restored = Arc::new(branch_of(&main, "main"));
    store.create_branch(&restored, Some(&main.head)).await.unwrap();
    let found = store.find_branch(&shop(), &name("main")).await.unwrap().unwrap();
    assert_eq!(found.branch, restored.head.branch);
    let error = store.rename_branch(&shop(), main.head.branch, &name("main")).await.unwrap_err();
    assert!(matches!(error, CoreError::BranchExists { .. }), "{error}");
    store.rename_branch(&shop(), main.head.branch, &name("before")).await.unwrap();
    assert_eq!(store.branches(&shop()).await.unwrap().len(), 2);
}
