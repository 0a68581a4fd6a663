//! Collection deletes what nobody needs, and nothing else.

use super::*;
use crate::CoreError;
use proptest::prelude::*;
use std::collections::HashSet;

async fn objects(store: &PageStore, suffix: &str) -> usize {
    let all = store.storage.list(&Path::default(), None).await.unwrap();
    all.iter().filter(|object| object.location.as_ref().ends_with(suffix)).count()
}

#[tokio::test]
async fn branches_are_deleted_in_any_order_and_the_others_keep_their_pages() {
    let store = in_memory();
    let mut main = manifest(BranchId::random(), 1, 1);
    main.body.files = vec![file(1, 10)];
    add_layer(&store, &mut main, (0..10).map(|block| key(1, block))).await;
    store.create_branch(&Arc::new(main.clone()), None).await.unwrap();
    let child = branch_of(&main, "child");
    store.create_branch(&Arc::new(child.clone()), Some(&main.head)).await.unwrap();
    let mut grown = following(&child);
    add_layer(&store, &mut grown, [key(1, 2)]).await;
    store.publish(&Arc::new(grown.clone())).await.unwrap();
    let grandchild = branch_of(&grown, "grandchild");
    store.create_branch(&Arc::new(grandchild.clone()), Some(&grown.head)).await.unwrap();

    for branch in [main.head.branch, child.head.branch] {
        store.delete_branch(&shop(), branch).await.unwrap();
        store.collect_as_of(&shop(), Duration::ZERO, later()).await.unwrap();
        let view = ManifestView::new(store.latest(&shop(), grandchild.head.branch).await.unwrap().unwrap());
        for block in 0..10 {
            let version = if block == 2 { 2 } else { 1 };
            assert_eq!(
                store.read_page(&view, key(1, block)).await.unwrap(),
                Some(page(key(1, block), version))
            );
        }
    }
    store.delete_branch(&shop(), grandchild.head.branch).await.unwrap();
    let collected = store.collect_as_of(&shop(), Duration::ZERO, later()).await.unwrap();
    assert_eq!(
        (collected.layers, objects(&store, ".layer").await, objects(&store, ".manifest").await),
        (2, 0, 0)
    );
}

#[tokio::test]
async fn a_branch_that_was_just_deleted_keeps_its_number_from_being_taken() {
    let store = in_memory();
    let main = manifest(BranchId::random(), 1, 1);
    store.create_branch(&Arc::new(main.clone()), None).await.unwrap();
    store.delete_branch(&shop(), main.head.branch).await.unwrap();
    store.collect(&shop(), Duration::ZERO).await.unwrap();
    let error = store.publish(&Arc::new(following(&main))).await.unwrap_err();
    assert!(matches!(error, CoreError::NoSuchBranch { .. }), "{error}");
    store.collect_as_of(&shop(), Duration::ZERO, later()).await.unwrap();
    let error = store.publish(&Arc::new(following(&main))).await.unwrap_err();
    assert!(matches!(error, CoreError::NoSuchBranch { .. }), "{error}");
    assert_eq!(objects(&store, ".manifest").await, 0);
}

#[tokio::test]
async fn a_layer_stays_while_its_writer_may_name_it_yet() {
    let store = in_memory();
    let mut main = manifest(BranchId::random(), 1, 1);
    main.body.files = vec![file(1, 4)];
    store.create_branch(&Arc::new(main.clone()), None).await.unwrap();
    let mut captured = following(&main);
    add_layer(&store, &mut captured, [key(1, 0)]).await;
    // For hours the keepers are away, and nothing can be published.
    store.collect_as_of(&shop(), Duration::ZERO, later()).await.unwrap();
    captured.head.published_at = later();
    store.publish(&Arc::new(captured.clone())).await.unwrap();
    let view = ManifestView::new(Arc::new(captured));
    assert_eq!(store.read_page(&view, key(1, 0)).await.unwrap(), Some(page(key(1, 0), 1)));
}

#[tokio::test]
async fn a_layer_that_no_manifest_will_name_goes_when_its_writer_has_gone_on_or_is_fenced() {
    let store = in_memory();
    let main = manifest(BranchId::random(), 1, 1);
    store.create_branch(&Arc::new(main.clone()), None).await.unwrap();
    let mut orphan = following(&main);
    add_layer(&store, &mut orphan, [key(1, 0)]).await;
    store.collect(&shop(), Duration::ZERO).await.unwrap();
    assert_eq!(objects(&store, ".layer").await, 1, "it is young");
    let taken = store.take_over(&shop(), main.head.branch, Term(2)).await.unwrap();
    store.collect_as_of(&shop(), Duration::ZERO, later()).await.unwrap();
    assert_eq!(objects(&store, ".layer").await, 0, "its writer is fenced");

    let mut next = following(&taken);
    add_layer(&store, &mut next, [key(1, 0)]).await;
    let mut next = following(&taken);
    next.head.published_at = later();
    store.publish(&Arc::new(next)).await.unwrap();
    store.collect_as_of(&shop(), Duration::ZERO, later()).await.unwrap();
    assert_eq!(objects(&store, ".layer").await, 0, "its writer has gone on without it");
}

fn record(name: &ProjectName, template: Option<&ProjectName>) -> ProjectRecord {
    ProjectRecord {
        name: name.clone(),
        uid: ProjectUid::random(),
        postgres_major: 18,
        system_identifier: 7,
        created_at: Timestamp::now(),
        owner: "o".to_owned(),
        database: "d".to_owned(),
        template: template.cloned(),
    }
}

#[tokio::test]
async fn a_templates_layers_stay_while_a_project_born_from_it_has_them() {
    let store = in_memory();
    let (born, grandborn) = (ProjectName::new("born").unwrap(), ProjectName::new("grandborn").unwrap());
    store.create_project(&record(&shop(), None)).await.unwrap();
    store.create_project(&record(&born, Some(&shop()))).await.unwrap();
    store.create_project(&record(&grandborn, Some(&born))).await.unwrap();
    let mut main = manifest(BranchId::random(), 1, 1);
    main.body.files = vec![file(1, 10)];
    add_layer(&store, &mut main, [key(1, 7)]).await;
    store.create_branch(&Arc::new(main.clone()), None).await.unwrap();
    let mut child = branch_of(&main, "main");
    child.head.project = grandborn.clone();
    let child = Arc::new(child);
    store.create_branch(&child, Some(&main.head)).await.unwrap();
    store.delete_branch(&shop(), main.head.branch).await.unwrap();
    store.collect_as_of(&shop(), Duration::ZERO, later()).await.unwrap();
    let view = ManifestView::new(child.clone());
    assert_eq!(store.read_page(&view, key(1, 7)).await.unwrap(), Some(page(key(1, 7), 1)));
    store.delete_branch(&grandborn, child.head.branch).await.unwrap();
    store.collect_as_of(&grandborn, Duration::ZERO, later()).await.unwrap();
    store.collect_as_of(&shop(), Duration::ZERO, later()).await.unwrap();
    assert_eq!(objects(&store, ".layer").await, 0);
}

#[tokio::test]
async fn wal_stays_from_where_the_oldest_needed_manifest_starts() {
    let store = in_memory();
    let branch = BranchId::random();
    let mut main = manifest(branch, 1, 1);
    main.body.wal[0].from = Lsn(0x300);
    store.create_branch(&Arc::new(main.clone()), None).await.unwrap();
    let mut child = branch_of(&main, "child");
    child.body.wal = vec![WalSpan { from: Lsn(0x180), to: Some(Lsn(0x200)), ..main.body.wal[0].clone() }];
    store.create_branch(&Arc::new(child), Some(&main.head)).await.unwrap();
    let chunk = |timeline, start, end| WalChunkName {
        timeline: Timeline(timeline),
        start: Lsn(start),
        end: Lsn(end),
        term: Term(1),
    };
    let needed = [
        chunk(1, 0x100, 0x190),
        chunk(1, 0x190, 0x200),
        chunk(1, 0x200, 0x301),
        chunk(1, 0x400, 0x500),
        chunk(2, 0, 1),
    ];
    let garbage = [chunk(1, 0x80, 0x100), chunk(1, 0x200, 0x300)];
    for chunk in needed.iter().chain(&garbage) {
        store.storage.put_if_absent(&chunk.path(&shop(), branch), "wal".into()).await.unwrap();
    }
    assert_eq!(store.collect(&shop(), Duration::ZERO).await.unwrap().wal_chunks, 0, "all are young");
    let collected = store.collect_as_of(&shop(), Duration::ZERO, later()).await.unwrap();
    assert_eq!((collected.wal_chunks, collected.bytes), (2, 6));
    let left = store.storage.list(&wal_folder(&shop(), branch), None).await.unwrap();
    let left: HashSet<Path> = left.into_iter().map(|object| object.location).collect();
    assert_eq!(left, needed.iter().map(|chunk| chunk.path(&shop(), branch)).collect());
}

#[tokio::test]
async fn a_damaged_manifest_stops_collection_before_it_deletes_a_layer() {
    let store = in_memory();
    let mut main = manifest(BranchId::random(), 1, 1);
    add_layer(&store, &mut main, [key(1, 0)]).await;
    let mut bytes = manifest_format::encode(&main).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let path = object_names::manifest(&shop(), main.head.branch, main.head.number);
    store.storage.put_if_absent(&path, bytes.into()).await.unwrap();
    let error = store.collect_as_of(&shop(), Duration::ZERO, later()).await.unwrap_err();
    assert!(matches!(error, CoreError::ObjectDamaged { .. }), "{error}");
    assert_eq!(objects(&store, ".layer").await, 1);
}

/// What may happen to a project. Branches are picked by number, modulo those there are.
#[derive(Debug, Clone)]
enum Event {
    Capture(usize, Vec<u32>),
    Truncate(usize, u32),
    Compact(usize),
    Branch(usize),
    Restore(usize, usize),
    Delete(usize),
    Collect,
}

fn event() -> impl Strategy<Value = Event> {
    let branch = 0usize..8;
    prop_oneof![
        6 => (branch.clone(), prop::collection::vec(0u32..50, 1..12)).prop_map(|(b, blocks)| Event::Capture(b, blocks)),
        1 => (branch.clone(), 0u32..50).prop_map(|(b, from)| Event::Truncate(b, from)),
        2 => branch.clone().prop_map(Event::Compact),
        2 => branch.clone().prop_map(Event::Branch),
        1 => (branch.clone(), 0usize..20).prop_map(|(b, back)| Event::Restore(b, back)),
        1 => branch.prop_map(Event::Delete),
        2 => Just(Event::Collect),
    ]
}

/// A branch and what its pages are, remembered beside the store; every manifest's state for restores.
struct Tracked {
    manifest: Manifest,
    pages: BTreeMap<u32, u64>,
    history: BTreeMap<ManifestNumber, BTreeMap<u32, u64>>,
}

struct World {
    store: PageStore,
    /// Hours pass between events, so that everything is old enough to be collected.
    clock: Timestamp,
    branches: Vec<Tracked>,
    writes: u64,
    made: u64,
}

impl World {
    async fn publish(
        &mut self,
        at: usize,
        mut manifest: Manifest,
        pages: BTreeMap<u32, u64>,
        base: Option<&ManifestHead>,
    ) {
        manifest.head.published_at = self.clock;
        let shared = Arc::new(manifest.clone());
        match base {
            Some(base) => self.store.publish_copy(&shared, base).await.unwrap(),
            None => self.store.publish(&shared).await.unwrap(),
        }
        let tracked = &mut self.branches[at];
        tracked.history.insert(manifest.head.number, pages.clone());
        (tracked.manifest, tracked.pages) = (manifest, pages);
    }

    async fn happen(&mut self, event: Event) {
        let count = self.branches.len();
        self.clock = self.clock.after(GRACE * 2);
        match event {
            Event::Capture(at, blocks) => {
                let at = at % count;
                let mut next = following(&self.branches[at].manifest);
                let mut pages = self.branches[at].pages.clone();
                self.writes += 1;
                let sequence = next.body.next_layer_sequence;
                let mut writer = self
                    .store
                    .write_layers(&shop(), next.head.branch, Term(1), sequence)
                    .unwrap()
                    .with_layers_of(2000);
                for block in blocks.into_iter().collect::<std::collections::BTreeSet<_>>() {
                    writer.add(key(1, block), &page(key(1, block), self.writes)).await.unwrap();
                    pages.insert(block, self.writes);
                }
                let layers = writer.finish().await.unwrap().into_iter();
                next.body.layers.extend(layers.map(|layer| LayerRef { written_at: self.clock, ..layer }));
                next.body.next_layer_sequence = sequence.next();
                self.publish(at, next, pages, None).await;
            }
            Event::Truncate(at, from_block) => {
                let at = at % count;
                let mut next = following(&self.branches[at].manifest);
                let mut pages = self.branches[at].pages.clone();
                pages.retain(|block, _| *block < from_block);
                let sequence = next.body.next_layer_sequence;
                next.body.files[0].truncations.push(Truncation { sequence, from_block });
                self.publish(at, next, pages, None).await;
            }
            Event::Compact(at) => {
                let at = at % count;
                let mut next = following(&self.branches[at].manifest);
                let view = ManifestView::new(Arc::new(self.branches[at].manifest.clone()));
                if let Some(mut compaction) = self.store.compact(&view, Term(1)).await.unwrap() {
                    for layer in &mut compaction.added {
                        layer.written_at = self.clock;
                    }
                    assert!(compaction.apply(&mut next.body));
                    let pages = self.branches[at].pages.clone();
                    self.publish(at, next, pages, None).await;
                }
            }
            Event::Branch(at) => {
                let parent = &self.branches[at % count];
                self.made += 1;
                let mut child = branch_of(&parent.manifest, &format!("b{}", self.made));
                child.head.published_at = self.clock;
                let base = parent.manifest.head.clone();
                self.store.create_branch(&Arc::new(child.clone()), Some(&base)).await.unwrap();
                let pages = parent.pages.clone();
                let history = [(ManifestNumber(1), pages.clone())].into();
                self.branches.push(Tracked { manifest: child, pages, history });
            }
            Event::Restore(at, back) => {
                let at = at % count;
                let latest = self.branches[at].manifest.clone();
                let heads = self.store.manifests(&shop(), latest.head.branch).await.unwrap();
                let base = heads[heads.len() - 1 - back % heads.len()].clone();
                let old = self.store.manifest(&shop(), base.branch, base.number).await.unwrap();
                let mut next = following(&latest);
                next.body = old.body.clone();
                next.body.next_layer_sequence = latest.body.next_layer_sequence;
                let pages = self.branches[at].history[&base.number].clone();
                self.publish(at, next, pages, Some(&base)).await;
            }
            Event::Delete(at) if count > 1 => {
                let gone = self.branches.remove(at % count);
                self.store.delete_branch(&shop(), gone.manifest.head.branch).await.unwrap();
            }
            Event::Delete(_) => {}
            Event::Collect => {
                self.store.collect_as_of(&shop(), GRACE * 9, self.clock.after(GRACE * 2)).await.unwrap();
            }
        }
    }

    async fn check(&self) {
        for tracked in &self.branches {
            let latest = self.store.latest(&shop(), tracked.manifest.head.branch).await.unwrap().unwrap();
            let view = ManifestView::new(latest);
            for block in 0..50 {
                let expected = tracked.pages.get(&block).map(|version| page(key(1, block), *version));
                assert_eq!(
                    self.store.read_page(&view, key(1, block)).await.unwrap(),
                    expected,
                    "block {block}"
                );
            }
        }
        let inspection = self.store.inspect(Some(&shop())).await.unwrap();
        let defects = &inspection.projects[0].defects;
        assert_eq!(defects.len(), 0, "{inspection}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_branch_reads_its_own_pages_and_every_manifest_is_whole(
        events in prop::collection::vec(event(), 1..50)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = in_memory();
            store.create_project(&record(&shop(), None)).await.unwrap();
            let mut main = manifest(BranchId::random(), 1, 1);
            main.body.files = vec![file(1, 50)];
            store.create_branch(&Arc::new(main.clone()), None).await.unwrap();
            let history = [(ManifestNumber(1), BTreeMap::new())].into();
            let tracked = Tracked { manifest: main, pages: BTreeMap::new(), history };
            let mut world = World { store, clock: Timestamp::now(), branches: vec![tracked], writes: 0, made: 0 };
            for event in events {
                let collected = matches!(event, Event::Collect);
                world.happen(event).await;
                if collected {
                    world.check().await;
                }
            }
            world.check().await;
        });
    }
}
