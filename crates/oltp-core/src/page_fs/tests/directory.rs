//! The data directory without FUSE: names, pages, cuts, captures, eviction, over a store in memory.

use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;

use super::some_manifest;
use crate::Result;
use crate::ids::Term;
use crate::page_fs::capture::{Author, CaptureKind, Captured, Mirror, Taken, capture};
use crate::page_fs::data_directory::DataDirectory;
use crate::page_fs::fetch::Fetcher;
use crate::page_fs::file::{File, Stop};
use crate::page_fs::page_cache::{PAGE, PAGE_BYTES, PageCache};
use crate::page_fs::tree::Ino;
use crate::page_fs::{files_of, is_clean};
use crate::page_store::{Manifest, ManifestView, PageStore};
use crate::storage::Storage;

/// A data directory over a store, remounted at will.
struct Bench {
    _folder: tempfile::TempDir,
    directory: Arc<DataDirectory>,
    fetcher: Fetcher,
    mirror: Mirror,
    manifest: Manifest,
    store: PageStore,
    cache_pages: u64,
}

impl Bench {
    fn new() -> Bench {
        let storage = Storage::over(Arc::new(InMemory::new()), ObjectPath::from(""), "memory:");
        Bench::over(PageStore::new(storage), some_manifest(), 4096)
    }

    fn over(store: PageStore, manifest: Manifest, cache_pages: u64) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let cache = PageCache::open(&folder.path().join("pages"), cache_pages * PAGE_BYTES, false).unwrap();
        let mut next_id = manifest.body.next_file_id;
        let tree = Mirror::tree_of(&manifest, is_clean(&manifest.head.kind), &mut next_id).unwrap();
        let shared = Arc::new(manifest.clone());
        let directory =
            Arc::new(DataDirectory::new(tree.clone(), files_of(&tree, &manifest), next_id, cache));
        let fetcher = Fetcher::new(store.clone(), Arc::new(ManifestView::new(Arc::clone(&shared))));
        Bench {
            _folder: folder,
            directory,
            fetcher,
            mirror: Mirror::new(tree, shared),
            manifest,
            store,
            cache_pages,
        }
    }

    /// The directory as another machine would see it, from the store alone.
    fn elsewhere(&self, captured: &Captured) -> Bench {
        let manifest = Manifest { head: self.manifest.head.clone(), body: captured.body.clone() };
        Bench::over(self.store.clone(), manifest, self.cache_pages)
    }

    fn folder(&self, path: &str) -> Ino {
        path.split('/').fold(Ino::ROOT, |parent, name| match self.directory.lookup(parent, name) {
            Ok(found) => found.ino,
            Err(_) => self.directory.create_directory(parent, name, 0o700).unwrap().ino,
        })
    }

    fn create(&self, path: &str) -> Arc<File> {
        let (parent, name) =
            path.rsplit_once('/').map_or((Ino::ROOT, path), |(parent, name)| (self.folder(parent), name));
        self.directory.create_file(parent, name, 0o600).unwrap()
    }

    fn file(&self, path: &str) -> Option<Arc<File>> {
        let ino = path.split('/').try_fold(Ino::ROOT, |parent, name| {
            self.directory.lookup(parent, name).ok().map(|found| found.ino)
        })?;
        self.directory.file(ino).ok()
    }

    fn remove(&self, path: &str) {
        let (parent, name) =
            path.rsplit_once('/').map_or((Ino::ROOT, path), |(parent, name)| (self.folder(parent), name));
        self.directory.remove(parent, name, false).unwrap();
    }

    async fn write(&self, file: &Arc<File>, offset: u64, bytes: &[u8]) {
        let write = || self.directory.write(file, offset, bytes);
        self.fetcher.complete(&self.directory, file, write).await.unwrap();
    }

    async fn truncate(&self, file: &Arc<File>, size: u64) {
        let truncate = || self.directory.truncate(file, size);
        self.fetcher.complete(&self.directory, file, truncate).await.unwrap();
    }

    async fn read(&self, file: &Arc<File>) -> Vec<u8> {
        let read = || self.directory.read(file, 0, 1 << 30);
        self.fetcher.complete(&self.directory, file, read).await.unwrap()
    }

    async fn contents(&self, path: &str) -> Option<Vec<u8>> {
        match self.file(path) {
            Some(file) => Some(self.read(&file).await),
            None => None,
        }
    }

    fn cut(&mut self) -> Taken {
        let mut closed = self.directory.gate.close().unwrap();
        self.mirror.apply(std::mem::take(&mut closed.journal)).unwrap();
        Taken::new(Arc::clone(&self.directory), closed)
    }

    async fn capture(&mut self, taken: Taken, kind: CaptureKind) -> Result<Captured> {
        let head = &self.manifest.head;
        let author = Author { project: head.project.clone(), branch: head.branch, term: Term(3) };
        capture(&mut self.mirror, taken, &self.fetcher, &author, kind).await
    }

    async fn cut_and_capture(&mut self) -> Captured {
        let taken = self.cut();
        self.capture(taken, CaptureKind::Running).await.unwrap()
    }
}

fn page(fill: u8) -> Vec<u8> {
    vec![fill; PAGE]
}

/// With a control file, as every cluster has.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.create("global/pg_control");
    bench
}

#[tokio::test]
async fn what_is_written_after_a_cut_is_not_in_it() {
    let mut bench = bench();
    let file = bench.create("notes");
    bench.write(&file, 0, &[page(1), page(2)].concat()).await;
    let taken = bench.cut();
    bench.write(&file, PAGE_BYTES, &page(9)).await;
    bench.write(&file, 2 * PAGE_BYTES, &page(3)).await;
    bench.write(&file, 10, b"after").await;
    bench.create("later");
    let first = bench.capture(taken, CaptureKind::Running).await.unwrap();
    assert_eq!(first.pages, 2);
    let then = bench.elsewhere(&first);
    assert_eq!(then.contents("notes").await.unwrap(), [page(1), page(2)].concat());
    assert!(then.file("later").is_none());

    let second = bench.cut_and_capture().await;
    let now = bench.elsewhere(&second);
    let mut expected = [page(1), page(9), page(3)].concat();
    expected[10..15].copy_from_slice(b"after");
    assert_eq!(now.contents("notes").await.unwrap(), expected);
    assert_eq!(now.contents("later").await.unwrap(), b"");
    assert_eq!(then.contents("notes").await.unwrap(), [page(1), page(2)].concat(), "the first cut stays");
}

#[tokio::test]
async fn the_cost_of_a_cut_follows_the_dirty_pages() {
    let mut bench = bench();
    let file = bench.create("base/5/notes");
    bench.write(&file, 0, &vec![7; 600 * PAGE]).await;
    assert_eq!(bench.cut_and_capture().await.pages, 600);
    bench.write(&file, 100 * PAGE_BYTES + 5, b"x").await;
    assert_eq!(bench.cut_and_capture().await.pages, 1);
    assert!(!bench.directory.gate.has_changes());
    assert_eq!(bench.directory.gate.dirty_pages(), 0);
}

#[tokio::test]
async fn truncated_pages_do_not_return() {
    let mut bench = bench();
    let file = bench.create("base/5/notes");
    bench.write(&file, 0, &[page(1), page(2), page(3), page(4)].concat()).await;
    bench.cut_and_capture().await;
    bench.truncate(&file, PAGE_BYTES + 100).await;
    bench.truncate(&file, 3 * PAGE_BYTES).await;
    let mut expected = [page(1), vec![2; 100]].concat();
    expected.resize(3 * PAGE, 0);
    assert_eq!(bench.read(&file).await, expected);
    let captured = bench.cut_and_capture().await;
    assert_eq!(bench.elsewhere(&captured).contents("base/5/notes").await.unwrap(), expected);

    // Extended again over what was cut off, with a page written far out.
    bench.write(&file, 5 * PAGE_BYTES, &page(6)).await;
    expected.resize(5 * PAGE, 0);
    expected.extend(page(6));
    let captured = bench.cut_and_capture().await;
    assert_eq!(bench.elsewhere(&captured).contents("base/5/notes").await.unwrap(), expected);
}

#[tokio::test]
async fn a_file_made_again_under_the_same_name_has_none_of_the_old_pages() {
    let mut bench = bench();
    let file = bench.create("base/5/notes");
    bench.write(&file, 0, &vec![1; 4 * PAGE]).await;
    bench.cut_and_capture().await;
    bench.remove("base/5/notes");
    let again = bench.create("base/5/notes");
    bench.write(&again, PAGE_BYTES, &page(2)).await;
    let captured = bench.cut_and_capture().await;
    let expected = [page(0), page(2)].concat();
    assert_eq!(bench.elsewhere(&captured).contents("base/5/notes").await.unwrap(), expected);
}

#[tokio::test]
async fn truncating_and_dropping_during_an_upload_leaves_the_cut_whole() {
    let mut bench = bench();
    let (shrunk, dropped) = (bench.create("shrunk"), bench.create("dropped"));
    bench.write(&shrunk, 0, &[page(1), page(2)].concat()).await;
    bench.write(&dropped, 0, &[page(3), page(4)].concat()).await;
    let taken = bench.cut();
    bench.truncate(&shrunk, 0).await;
    bench.remove("dropped");
    // Whatever is written now must not land in the slots that the cut still holds.
    let other = bench.create("other");
    bench.write(&other, 0, &vec![0xEE; 8 * PAGE]).await;
    let captured = bench.capture(taken, CaptureKind::Running).await.unwrap();
    let then = bench.elsewhere(&captured);
    assert_eq!(then.contents("shrunk").await.unwrap(), [page(1), page(2)].concat());
    assert_eq!(then.contents("dropped").await.unwrap(), [page(3), page(4)].concat());
    let captured = bench.cut_and_capture().await;
    let now = bench.elsewhere(&captured);
    assert_eq!(now.contents("shrunk").await.unwrap(), b"");
    assert!(now.file("dropped").is_none());
    assert_eq!(bench.directory.gate.dirty_pages(), 0);
    assert_eq!(bench.directory.cache.in_use(), 8, "only what `other` has is left");
}

#[tokio::test]
async fn a_cut_that_is_not_captured_gives_its_pages_back() {
    let mut bench = bench();
    let file = bench.create("notes");
    bench.write(&file, 0, &vec![1; 3 * PAGE]).await;
    let taken = bench.cut();
    bench.write(&file, PAGE_BYTES, &page(2)).await;
    bench.truncate(&file, 2 * PAGE_BYTES).await;
    drop(taken);
    let captured = bench.cut_and_capture().await;
    assert_eq!(captured.pages, 2);
    assert_eq!(bench.elsewhere(&captured).contents("notes").await.unwrap(), [page(1), page(2)].concat());
    assert_eq!(bench.directory.gate.dirty_pages(), 0);
}

#[tokio::test]
async fn a_page_of_a_relation_without_its_checksum_stops_the_capture() {
    let mut bench = bench();
    let file = bench.create("base/5/16384");
    bench.write(&file, 0, &page(0xAB)).await;
    let taken = bench.cut();
    let error = bench.capture(taken, CaptureKind::Running).await.unwrap_err().to_string();
    assert!(error.contains("base/5/16384"), "{error}");
    assert!(bench.directory.gate.has_changes(), "the page is dirty again");
}

#[tokio::test]
async fn scratch_files_are_never_captured_and_become_so_by_a_rename() {
    let mut bench = bench();
    let file = bench.create("global/pg_internal.init.17");
    bench.create("postmaster.pid");
    bench.create("base/5/t3_16400");
    bench.write(&file, 0, b"cache").await;
    let captured = bench.cut_and_capture().await;
    let paths: Vec<_> = captured.body.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["global/pg_control"]);

    let global = bench.folder("global");
    bench.directory.rename(global, "pg_internal.init.17", global, "kept", true).unwrap();
    let captured = bench.cut_and_capture().await;
    assert_eq!(bench.elsewhere(&captured).contents("global/kept").await.unwrap(), b"cache");
}

#[tokio::test]
async fn unlogged_relations_are_captured_at_a_clean_stop_only() {
    let mut bench = bench();
    let (main, init) = (bench.create("base/5/16390"), bench.create("base/5/16390_init"));
    bench.write(&main, 0, &page(0)).await;
    bench.write(&init, 0, &page(0)).await;
    let running = bench.cut_and_capture().await;
    let there = bench.elsewhere(&running);
    assert!(there.file("base/5/16390").is_none());
    assert_eq!(there.contents("base/5/16390_init").await.unwrap(), page(0));

    let taken = bench.cut();
    let clean = bench.capture(taken, CaptureKind::CleanShutdown).await.unwrap();
    assert!(clean.body.files.iter().any(|file| file.path == "base/5/16390" && file.size == PAGE_BYTES));
}

#[tokio::test]
async fn pages_that_were_never_written_read_as_zeros_here_and_elsewhere() {
    let mut bench = bench();
    let file = bench.create("base/5/16384");
    bench.directory.extend(&file, 400 * PAGE_BYTES).unwrap();
    bench.write(&file, 200 * PAGE_BYTES, &page(0)).await;
    assert_eq!(bench.read(&file).await, vec![0; 400 * PAGE]);
    let captured = bench.cut_and_capture().await;
    assert_eq!(captured.pages, 1);
    assert_eq!(bench.elsewhere(&captured).contents("base/5/16384").await.unwrap(), vec![0; 400 * PAGE]);
}

#[tokio::test]
async fn unlogged_relations_may_be_larger_than_the_cache() {
    let mut bench = Bench::over(bench().store, some_manifest(), 1024);
    bench.create("global/pg_control");
    let (main, _init) = (bench.create("base/5/16390"), bench.create("base/5/16390_init"));
    bench.write(&main, 0, &page(0)).await;
    bench.cut_and_capture().await;
    for block in 0..5000 {
        bench.directory.write(&main, block * PAGE_BYTES, &page(0)).unwrap();
    }
    assert!(!*bench.directory.pressure().borrow(), "a cut would not help");
    let notes = bench.create("notes");
    bench.write(&notes, 0, &page(1)).await;
    let taken = bench.cut();
    let clean = bench.capture(taken, CaptureKind::CleanShutdown).await.unwrap();
    assert_eq!(clean.pages, 5001);
    assert_eq!(bench.elsewhere(&clean).contents("notes").await.unwrap(), page(1));
}

#[tokio::test]
async fn a_database_larger_than_the_cache_works() {
    let mut bench = bench();
    let names: Vec<String> = (0..6).map(|n| format!("base/5/f{n}")).collect();
    for (fill, name) in (1u8..).zip(&names) {
        let file = bench.create(name);
        bench.write(&file, 0, &vec![fill; 400 * PAGE]).await;
    }
    let captured = bench.cut_and_capture().await;
    let mut small = Bench::over(
        bench.store.clone(),
        Manifest { head: bench.manifest.head.clone(), body: captured.body },
        1024,
    );
    for round in 0..2 {
        for (fill, name) in (1u8..).zip(&names) {
            assert_eq!(
                small.contents(name).await.unwrap(),
                vec![fill; 400 * PAGE],
                "{name} in round {round}"
            );
        }
    }
    assert!(small.directory.cache.in_use() <= 1024 + 512, "{} pages", small.directory.cache.in_use());
    // Dirty pages stay while clean ones go.
    let file = small.file(&names[0]).unwrap();
    small.write(&file, 0, &page(0xCD)).await;
    for name in &names {
        small.contents(name).await.unwrap();
    }
    assert_eq!(small.directory.read(&file, 0, PAGE).unwrap(), page(0xCD));
    assert_eq!(small.cut_and_capture().await.pages, 1);
}

#[tokio::test]
async fn what_every_start_reads_stays_while_a_larger_table_goes_through_the_cache() {
    let mut bench = bench();
    let catalog = bench.create("base/5/1259");
    // All-zero pages need no checksum.
    bench.write(&catalog, 0, &vec![0; 200 * PAGE]).await;
    let table = bench.create("base/5/20000");
    bench.write(&table, 0, &vec![0; 3000 * PAGE]).await;
    let captured = bench.cut_and_capture().await;
    let manifest = Manifest { head: bench.manifest.head.clone(), body: captured.body };
    let small = Bench::over(bench.store.clone(), manifest, 1024);
    small.contents("base/5/1259").await.unwrap();
    let table = small.file("base/5/20000").unwrap();
    for _ in 0..2 {
        for block in 0..3000 {
            let read = || small.directory.read(&table, block * PAGE_BYTES, PAGE);
            small.fetcher.complete(&small.directory, &table, read).await.unwrap();
        }
    }
    assert!(small.directory.cache.in_use() <= 1024 + 512, "{} pages", small.directory.cache.in_use());
    let fetches = small.fetcher.fetches();
    small.contents("base/5/1259").await.unwrap();
    assert_eq!(small.fetcher.fetches(), fetches);
}

#[tokio::test]
async fn a_full_cache_waits_for_a_capture_and_says_so() {
    let mut bench = Bench::over(bench().store, some_manifest(), 1024);
    bench.create("global/pg_control");
    let file = bench.create("notes");
    let pressure = bench.directory.pressure();
    for block in 0..2048 {
        bench.directory.write(&file, block * PAGE_BYTES, &page(1)).unwrap();
    }
    assert!(*pressure.borrow());
    assert_eq!(bench.directory.write(&file, 5000 * PAGE_BYTES, &page(2)), Err(Stop::NoRoom));
    bench.cut_and_capture().await;
    assert!(!*pressure.borrow());
    bench.write(&file, 5000 * PAGE_BYTES, &page(2)).await;
}

#[tokio::test]
async fn half_a_page_holds_the_cut_up_until_the_other_half_is_there() {
    let mut bench = bench();
    let file = bench.create("base/5/16384");
    bench.write(&file, 0, &vec![0; PAGE / 2]).await;
    let directory = Arc::clone(&bench.directory);
    let closing = std::thread::spawn(move || directory.gate.close());
    bench.write(&file, PAGE_BYTES / 2, &vec![0; PAGE / 2]).await;
    drop(Taken::new(Arc::clone(&bench.directory), closing.join().unwrap().unwrap()));

    bench.write(&file, PAGE_BYTES, &[0; 100]).await;
    assert!(bench.directory.gate.close().is_err(), "its writer is gone");
    bench.truncate(&file, PAGE_BYTES).await;
    drop(bench.cut());
}

#[tokio::test]
async fn a_random_history_of_writes_truncations_and_cuts_is_read_back_as_it_was() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bench = bench();
        let mut model: std::collections::BTreeMap<String, Vec<u8>> = Default::default();
        for _ in 0..120 {
            let name = format!("base/5/f{}", random.random_range(0..4));
            match random.random_range(0..10) {
                0..=4 => {
                    let (offset, length) = (random.random_range(0..60_000), random.random_range(1..30_000));
                    let file = bench.file(&name).unwrap_or_else(|| bench.create(&name));
                    let bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
                    bench.write(&file, offset as u64, &bytes).await;
                    let contents = model.entry(name).or_default();
                    contents.resize(contents.len().max(offset + length), 0);
                    contents[offset..offset + length].copy_from_slice(&bytes);
                }
                5 | 6 => {
                    let Some(file) = bench.file(&name) else { continue };
                    let size = random.random_range(0..80_000);
                    bench.truncate(&file, size as u64).await;
                    model.get_mut(&name).unwrap().resize(size, 0);
                }
                7 => {
                    if model.remove(&name).is_some() {
                        bench.remove(&name);
                    }
                }
                8 => drop(bench.cut()),
                _ => {
                    let captured = bench.cut_and_capture().await;
                    let there = bench.elsewhere(&captured);
                    for (name, contents) in &model {
                        assert_eq!(&there.contents(name).await.unwrap(), contents, "{name}, seed {seed}");
                    }
                    assert_eq!(captured.body.files.len(), model.len() + 1, "seed {seed}");
                    if random.random_bool(0.5) {
                        bench = there; // go on where another machine would
                    }
                }
            }
        }
        for (name, contents) in &model {
            assert_eq!(&bench.contents(name).await.unwrap(), contents, "{name}, seed {seed}");
        }
    }
}
