//! An inspection finds damage wherever it is.

use super::*;
use crate::wal_keeper::WalChunk;

async fn a_project(store: &PageStore) -> Manifest {
    let record = ProjectRecord {
        name: shop(),
        uid: ProjectUid::random(),
        postgres_major: 18,
        system_identifier: 7,
        created_at: Timestamp::now(),
        owner: "o".to_owned(),
        database: "d".to_owned(),
        template: None,
    };
    store.create_project(&record).await.unwrap();
    let mut main = manifest(BranchId::random(), 1, 1);
    main.body.files = vec![file(1, 4), FileEntry { path: "base/5/16384".to_owned(), ..file(2, 4) }];
    let mut writer = store.write_layers(&shop(), main.head.branch, Term(1), LayerSequence(1)).unwrap();
    writer.add(key(1, 0), &page(key(1, 0), 1)).await.unwrap();
    writer.add(key(2, 3), &Page::zeroed()).await.unwrap();
    main.body.layers = writer.finish().await.unwrap();
    main.body.next_layer_sequence = LayerSequence(2);
    store.create_branch(&Arc::new(main.clone()), None).await.unwrap();
    main
}

async fn replace(store: &PageStore, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = store.storage.get(path, 1 << 30).await.unwrap().unwrap().to_vec();
    change(&mut bytes);
    store.storage.delete(path).await.unwrap();
    store.storage.put_if_absent(path, bytes.into()).await.unwrap();
}

/// The defects as a process finds them that has nothing in memory.
async fn defects(store: &PageStore) -> Vec<Defect> {
    let inspection = PageStore::new(store.storage.clone()).inspect(None).await.unwrap();
    assert_eq!(inspection.is_damaged(), !inspection.projects[0].defects.is_empty());
    inspection.projects[0].defects.clone()
}

#[tokio::test]
async fn a_sound_project_has_no_defects_and_its_parts_are_counted() {
    let store = in_memory();
    let mut orphan = a_project(&store).await;
    add_layer(&store, &mut orphan, [key(1, 1)]).await;
    let inspection = store.inspect(Some(&shop())).await.unwrap();
    assert!(!inspection.is_damaged(), "{inspection}");
    let project = &inspection.projects[0];
    assert_eq!((project.layers.objects, project.unreferenced_layers.objects), (2, 1));
    assert_eq!((project.pages, project.verified_pages, project.branches[0].files), (3, 1, 2));
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(json["projects"][0]["branches"][0]["name"], "main");
    assert!(inspection.to_string().contains("no damage"), "{inspection}");
    assert!(store.inspect(Some(&ProjectName::new("none").unwrap())).await.is_err());
}

#[tokio::test]
async fn a_number_is_another_file_where_it_was_drawn_twice_and_that_is_no_damage() {
    let store = in_memory();
    let main = a_project(&store).await;
    // By a compute that was killed before it published, by the one after it, and on a branch made before.
    let mut killed = main.clone();
    add_layer(&store, &mut killed, [key(100, 0)]).await;
    let mut next = following(&main);
    next.head.term = Term(2);
    next.body.files.push(FileEntry { path: "base/5/16400".to_owned(), ..file(100, 1) });
    let mut writer = store.write_layers(&shop(), main.head.branch, Term(2), LayerSequence(2)).unwrap();
    writer.add(key(100, 0), &Page::zeroed()).await.unwrap();
    next.body.layers.extend(writer.finish().await.unwrap());
    store.publish(&Arc::new(next)).await.unwrap();
    let mut branch = branch_of(&main, "dev");
    branch.body.files.push(file(100, 1));
    add_layer(&store, &mut branch, [key(100, 0)]).await;
    store.create_branch(&Arc::new(branch), Some(&main.head)).await.unwrap();
    assert_eq!(defects(&store).await, []);
}

#[tokio::test]
async fn a_template_needs_no_record() {
    let store = in_memory();
    let mut template = manifest(BranchId::random(), 1, 1);
    template.head.project = ProjectName::new("pg_template_18").unwrap();
    template.body.wal.clear();
    store.create_branch(&Arc::new(template), None).await.unwrap();
    let inspection = store.inspect(None).await.unwrap();
    assert!(inspection.projects.len() == 1 && !inspection.is_damaged(), "{inspection}");
}

#[tokio::test]
async fn every_flipped_byte_is_found_and_its_object_named() {
    let store = in_memory();
    let main = a_project(&store).await;
    let layer = object_names::layer(&main.body.layers[0]);
    let published = object_names::manifest(&shop(), main.head.branch, main.head.number);
    for path in [layer, published] {
        let length = store.storage.head(&path).await.unwrap().unwrap().size as usize;
        for at in 0..length {
            replace(&store, &path, |bytes| bytes[at] ^= 1).await;
            let found = defects(&store).await;
            assert!(
                found.iter().any(|defect| defect.object.ends_with(path.as_ref())),
                "byte {at}: {found:?}"
            );
            replace(&store, &path, |bytes| bytes[at] ^= 1).await;
        }
    }
    assert_eq!(defects(&store).await, []);
}

#[tokio::test]
async fn a_missing_layer_a_strange_object_and_a_wrong_page_are_found() {
    let store = in_memory();
    let mut main = a_project(&store).await;
    let mut writer = store.write_layers(&shop(), main.head.branch, Term(1), LayerSequence(2)).unwrap();
    writer.add(key(2, 0), &page(key(2, 0), 1)).await.unwrap();
    main.body.layers.extend(writer.finish().await.unwrap());
    main.body.next_layer_sequence = LayerSequence(3);
    store.publish(&Arc::new(following(&main))).await.unwrap();
    let found = defects(&store).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].reason.contains("page 0 of `base/5/16384`"), "{found:?}");
    store.storage.delete(&object_names::layer(&main.body.layers[1])).await.unwrap();
    store.storage.put_if_absent(&object_names::layers(&shop()).join("notes.txt"), "x".into()).await.unwrap();
    let reasons: Vec<String> = defects(&store).await.into_iter().map(|defect| defect.reason).collect();
    assert_eq!(reasons, ["a manifest names it, and it is missing", "it is not named as a layer"]);
}

#[tokio::test]
async fn a_damaged_chunk_of_wal_is_found() {
    let store = in_memory();
    let branch = a_project(&store).await.head.branch;
    let name = WalChunkName { timeline: Timeline(1), start: Lsn(64), end: Lsn(72), term: Term(3) };
    let chunk = WalChunk { name, ends_at_record: true, wal: "8 bytes.".into() };
    let path = name.path(&shop(), branch);
    store.storage.put_if_absent(&path, chunk.encode()).await.unwrap();
    assert_eq!(defects(&store).await, []);
    replace(&store, &path, |bytes| bytes[50] ^= 1).await;
    let found = defects(&store).await;
    assert!(found.len() == 1 && found[0].object.ends_with(path.as_ref()), "{found:?}");
    store.storage.put_if_absent(&wal_folder(&shop(), branch).join("x.wal"), "x".into()).await.unwrap();
    assert_eq!(defects(&store).await.len(), 2);
}
