//! Pages are found in the newest layer that has them.

use super::*;
use crate::CoreError;
use proptest::prelude::*;

async fn read(store: &PageStore, manifest: &Manifest, key: PageKey) -> Option<Page> {
    let view = ManifestView::new(Arc::new(manifest.clone()));
    store.read_page(&view, key).await.unwrap()
}

#[tokio::test]
async fn the_newest_version_of_a_page_is_read_and_a_page_that_was_never_written_is_none() {
    let store = in_memory();
    let mut m = manifest(BranchId::random(), 1, 1);
    m.body.files = vec![file(1, 100), file(2, 10)];
    add_layer(&store, &mut m, (0..100).map(|block| key(1, block))).await;
    add_layer(&store, &mut m, [key(1, 3), key(1, 50), key(2, 0)]).await;
    assert_eq!(read(&store, &m, key(1, 3)).await, Some(page(key(1, 3), 2)));
    assert_eq!(read(&store, &m, key(1, 4)).await, Some(page(key(1, 4), 1)));
    assert_eq!(read(&store, &m, key(2, 0)).await, Some(page(key(2, 0), 2)));
    assert_eq!(read(&store, &m, key(2, 1)).await, None);
    assert_eq!(read(&store, &m, key(9, 1)).await, None);
}

#[tokio::test]
async fn a_truncated_file_shows_none_of_its_old_pages_when_it_grows_again() {
    let store = in_memory();
    let mut m = manifest(BranchId::random(), 1, 1);
    m.body.files = vec![file(1, 20)];
    add_layer(&store, &mut m, (0..20).map(|block| key(1, block))).await;
    let cut = Truncation { sequence: m.body.next_layer_sequence, from_block: 5 };
    m.body.files[0].truncations.push(cut);
    add_layer(&store, &mut m, [key(1, 7)]).await;
    for block in 0..20 {
        let expected = match block {
            0..5 => Some(page(key(1, block), 1)),
            7 => Some(page(key(1, block), 2)),
            _ => None,
        };
        assert_eq!(read(&store, &m, key(1, block)).await, expected, "block {block}");
    }
    let view = ManifestView::new(Arc::new(m.clone()));
    let run = store.read_run(&view, key(1, 0), 20).await.unwrap();
    assert_eq!(run.iter().map(|(block, _)| *block).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_large_capture_becomes_several_layers_that_are_read_as_one() {
    let store = in_memory();
    let mut writer = store
        .write_layers(&shop(), BranchId::random(), Term(1), LayerSequence(1))
        .unwrap()
        .with_layers_of(1000);
    let keys: Vec<PageKey> = (0..200).map(|block| key(1, block * 3)).collect();
    for key in &keys {
        writer.add(*key, &page(*key, 1)).await.unwrap();
    }
    let mut m = manifest(BranchId::random(), 1, 1);
    m.body.files = vec![file(1, 600)];
    m.body.layers = writer.finish().await.unwrap();
    m.body.next_layer_sequence = LayerSequence(2);
    assert!(m.body.layers.len() > 3, "{}", m.body.layers.len());
    assert!(m.defect().is_none());
    let view = ManifestView::new(Arc::new(m.clone()));
    assert_eq!(view.depth(), 1);
    for key in &keys {
        assert_eq!(store.read_page(&view, *key).await.unwrap(), Some(page(*key, 1)));
    }
}

#[tokio::test]
async fn pages_out_of_order_are_refused() {
    let mut writer =
        in_memory().write_layers(&shop(), BranchId::random(), Term(1), LayerSequence(1)).unwrap();
    writer.add(key(1, 5), &Page::zeroed()).await.unwrap();
    let error = writer.add(key(1, 5), &Page::zeroed()).await.unwrap_err();
    assert!(matches!(error, CoreError::PageOutOfOrder { .. }), "{error}");
}

#[tokio::test]
async fn a_relation_page_with_a_wrong_checksum_is_refused_by_name() {
    let store = in_memory();
    let mut m = manifest(BranchId::random(), 1, 1);
    m.body.files = vec![FileEntry { path: "base/5/16384".to_owned(), ..file(1, 4) }];
    add_layer(&store, &mut m, [key(1, 2)]).await;
    let view = ManifestView::new(Arc::new(m));
    let error = store.read_page(&view, key(1, 2)).await.unwrap_err().to_string();
    assert!(error.contains("page 2 of `base/5/16384`") && error.contains(".layer"), "{error}");
}

#[tokio::test]
async fn a_layer_that_is_gone_or_another_is_named() {
    let store = in_memory();
    let mut m = manifest(BranchId::random(), 1, 1);
    m.body.files = vec![file(1, 4)];
    add_layer(&store, &mut m, [key(1, 2)]).await;
    let mut other = m.clone();
    other.body.layers[0].index_checksum ^= 1;
    let error = store.read_page(&ManifestView::new(Arc::new(other)), key(1, 2)).await.unwrap_err();
    assert!(
        matches!(&error, CoreError::ObjectDamaged { reason, .. } if reason.contains("another layer")),
        "{error}"
    );
    store.storage.delete(&object_names::layer(&m.body.layers[0])).await.unwrap();
    let error = store.read_page(&ManifestView::new(Arc::new(m)), key(1, 2)).await.unwrap_err();
    assert!(matches!(error, CoreError::ObjectMissing { .. }), "{error}");
}

/// What a file system with copies of everything would say.
#[derive(Debug, Clone)]
enum Step {
    Write(Vec<u32>),
    Truncate(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::vec(0u32..70, 1..30).prop_map(Step::Write),
        1 => (0u32..70).prop_map(Step::Truncate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn whatever_was_written_and_cut_off_reads_as_the_model_says(
        steps in prop::collection::vec(step(), 1..12), ahead in 1u32..40
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = in_memory();
            let mut m = manifest(BranchId::random(), 1, 1);
            m.body.files = vec![file(1, 70)];
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Write(blocks) => {
                        let version = m.body.next_layer_sequence.0;
                        model.extend(blocks.iter().map(|block| (*block, version)));
                        add_layer(&store, &mut m, blocks.iter().map(|block| key(1, *block))).await;
                    }
                    Step::Truncate(from_block) => {
                        model.retain(|block, _| *block < from_block);
                        let sequence = m.body.next_layer_sequence;
                        m.body.files[0].truncations.push(Truncation { sequence, from_block });
                    }
                }
            }
            let view = ManifestView::new(Arc::new(m));
            for block in 0..70 {
                let expected = model.get(&block).map(|version| page(key(1, block), *version));
                assert_eq!(store.read_page(&view, key(1, block)).await.unwrap(), expected, "block {block}");
                let run = store.read_run(&view, key(1, block), ahead).await.unwrap();
                assert_eq!(run.iter().find(|(at, _)| *at == block).map(|(_, page)| page.clone()), expected);
                for (at, found) in run {
                    assert_eq!(Some(found), model.get(&at).map(|version| page(key(1, at), *version)), "block {at}");
                }
            }
        });
    }
}
