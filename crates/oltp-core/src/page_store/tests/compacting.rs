//! Compaction changes where pages lie, never what they are.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

#[tokio::test]
async fn a_lookup_costs_the_same_after_a_thousand_cuts() {
    let store = in_memory();
    let mut m = manifest(BranchId::random(), 1, 1);
    m.body.files = vec![file(1, 2000)];
    add_layer(&store, &mut m, (0..2000).map(|block| key(1, block))).await;
    let mut newest: BTreeMap<u32, u64> = (0..2000).map(|block| (block, 1)).collect();
    let mut deepest = 0;
    for cut in 0..1000_u32 {
        let blocks: Vec<u32> = (0..5).map(|n| (cut * 7919 + n * 104_729) % 2000).collect();
        newest.extend(blocks.iter().map(|block| (*block, m.body.next_layer_sequence.0)));
        add_layer(&store, &mut m, blocks.into_iter().map(|block| key(1, block))).await;
        let view = ManifestView::new(Arc::new(m.clone()));
        deepest = deepest.max(view.depth());
        if let Some(compaction) = store.compact(&view, Term(1)).await.unwrap() {
            assert!(compaction.apply(&mut m.body));
        }
    }
    assert!(deepest <= 12, "{deepest} layers to ask");
    assert_eq!(m.defect(), None);
    let view = ManifestView::new(Arc::new(m.clone()));
    for (block, version) in newest {
        assert_eq!(store.read_page(&view, key(1, block)).await.unwrap(), Some(page(key(1, block), version)));
    }
    let pages: u32 = m.body.layers.iter().map(|layer| layer.pages).sum();
    assert!(pages <= 2 * 2000 + 4096, "{pages} pages for 2000");
}

#[tokio::test]
async fn layers_of_dropped_files_go_unread_and_truncations_that_concern_no_layer_are_forgotten() {
    let store = in_memory();
    let mut m = manifest(BranchId::random(), 1, 1);
    m.body.files = vec![file(1, 10), file(2, 10), file(3, 10)];
    add_layer(&store, &mut m, (0..10).map(|block| key(1, block))).await;
    m.body.files[1].truncations.push(Truncation { sequence: m.body.next_layer_sequence, from_block: 0 });
    add_layer(&store, &mut m, (0..10).map(|block| key(2, block))).await;
    m.body.files.remove(0);
    let view = ManifestView::new(Arc::new(m.clone()));
    // It is not even there any more.
    store.storage.delete(&object_names::layer(&m.body.layers[0])).await.unwrap();
    let compaction = store.compact(&view, Term(1)).await.unwrap().unwrap();
    assert_eq!(
        (compaction.removed.as_slice(), compaction.added.len()),
        ([m.body.layers[0].id].as_slice(), 0)
    );
    assert!(compaction.apply(&mut m.body));
    assert_eq!((m.body.layers.len(), m.body.files[0].truncations.len()), (1, 0));
    assert_eq!(store.compact(&ManifestView::new(Arc::new(m)), Term(1)).await.unwrap(), None);
}

#[tokio::test]
async fn a_layer_that_no_other_touches_is_taken_over_without_being_rewritten() {
    let store = in_memory();
    let mut m = manifest(BranchId::random(), 1, 1);
    m.body.files = (1..=5).map(|id| file(id, 40)).collect();
    for id in 1..=4 {
        add_layer(&store, &mut m, (0..32).map(|block| key(id, block))).await;
    }
    add_layer(&store, &mut m, (0..32).map(|block| key(4, block))).await;
    let view = ManifestView::new(Arc::new(m.clone()));
    let compaction = store.compact(&view, Term(1)).await.unwrap().unwrap();
    let kept: Vec<LayerId> = m.body.layers.iter().take(3).map(|layer| layer.id).collect();
    assert!(kept.iter().all(|id| compaction.added.iter().any(|layer| layer.id == *id)));
    assert_eq!(compaction.added.len(), 4);
    assert!(compaction.apply(&mut m.body));
    assert_eq!(m.defect(), None);
    let view = ManifestView::new(Arc::new(m));
    assert_eq!(view.depth(), 1);
    assert_eq!(store.read_page(&view, key(2, 31)).await.unwrap(), Some(page(key(2, 31), 2)));
    assert_eq!(store.read_page(&view, key(4, 3)).await.unwrap(), Some(page(key(4, 3), 5)));
}

#[tokio::test]
async fn a_compaction_of_another_lineage_is_not_applied() {
    let store = in_memory();
    let mut m = manifest(BranchId::random(), 1, 1);
    m.body.files = vec![file(1, 10)];
    for _ in 0..4 {
        add_layer(&store, &mut m, [key(1, 1)]).await;
    }
    let compaction = store.compact(&ManifestView::new(Arc::new(m.clone())), Term(1)).await.unwrap().unwrap();
    let mut other = m.clone();
    other.body.layers.remove(2);
    let before = other.clone();
    assert!(!compaction.apply(&mut other.body));
    assert_eq!(other, before);
}

#[tokio::test]
async fn captures_that_go_on_during_a_compaction_stay_newer_than_its_result() {
    let store = in_memory();
    let mut m = manifest(BranchId::random(), 1, 1);
    m.body.files = vec![file(1, 10)];
    for _ in 0..4 {
        add_layer(&store, &mut m, [key(1, 1), key(1, 2), key(1, 3)]).await;
    }
    let compaction = store.compact(&ManifestView::new(Arc::new(m.clone())), Term(1)).await.unwrap().unwrap();
    m.body.files[0].truncations.push(Truncation { sequence: m.body.next_layer_sequence, from_block: 3 });
    add_layer(&store, &mut m, [key(1, 2)]).await;
    assert!(compaction.apply(&mut m.body));
    let view = ManifestView::new(Arc::new(m));
    assert_eq!(store.read_page(&view, key(1, 1)).await.unwrap(), Some(page(key(1, 1), 4)));
    assert_eq!(store.read_page(&view, key(1, 2)).await.unwrap(), Some(page(key(1, 2), 5)));
    assert_eq!(store.read_page(&view, key(1, 3)).await.unwrap(), None);
}

#[tokio::test]
async fn a_layer_that_shares_only_a_window_with_another_is_not_taken_over() {
    let store = in_memory();
    let mut m = manifest(BranchId::random(), 1, 1);
    m.body.files = vec![file(1, 128)];
    // Blocks 50 and 53 lie in one window, and nothing else between 50 and 60 has a page.
    for blocks in [[53, 60], [20, 50], [20, 100], [20, 100]] {
        add_layer(&store, &mut m, blocks.map(|block| key(1, block))).await;
    }
    let view = ManifestView::new(Arc::new(m.clone()));
    let compaction = store.compact(&view, Term(1)).await.unwrap().unwrap();
    assert!(compaction.apply(&mut m.body));
    assert_eq!(m.defect(), None);
    let view = ManifestView::new(Arc::new(m));
    for (block, version) in [(20, 4), (50, 2), (53, 1), (60, 1), (100, 4)] {
        assert_eq!(store.read_page(&view, key(1, block)).await.unwrap(), Some(page(key(1, block), version)));
    }
}

#[tokio::test]
async fn whatever_layers_are_merged_no_two_of_one_age_overlap_and_no_page_is_lost() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let store = in_memory();
        let mut m = manifest(BranchId::random(), 1, 1);
        m.body.files = vec![file(1, 256), file(2, 256)];
        let mut newest: BTreeMap<PageKey, u64> = BTreeMap::new();
        for _ in 0..random.random_range(4..12) {
            // Few pages, close together or far apart: layers that begin and end anywhere in a window.
            let near = random.random_range(0..200);
            let keys: Vec<PageKey> = (0..random.random_range(1..6))
                .map(|_| match random.random_bool(0.6) {
                    true => key(random.random_range(1..3), near + random.random_range(0..40)),
                    false => key(random.random_range(1..3), random.random_range(0..256)),
                })
                .collect();
            newest.extend(keys.iter().map(|key| (*key, m.body.next_layer_sequence.0)));
            add_layer(&store, &mut m, keys).await;
            let view = ManifestView::new(Arc::new(m.clone()));
            if let Some(compaction) = store.compact(&view, Term(1)).await.unwrap() {
                assert!(compaction.apply(&mut m.body));
                assert_eq!(m.defect(), None, "seed {seed}");
            }
        }
        let view = ManifestView::new(Arc::new(m));
        for (key, version) in newest {
            assert_eq!(
                store.read_page(&view, key).await.unwrap(),
                Some(page(key, version)),
                "{key} of seed {seed}"
            );
        }
    }
}
