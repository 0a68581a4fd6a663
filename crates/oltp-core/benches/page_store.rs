//! What the page store costs on local files: publishing a manifest by its number of files, and reading
//! a page that is not cached.
//!
//! `cargo bench -p oltp-core --bench page_store`

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark; criterion's macros make a public function"
)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use oltp_core::Timestamp;
use oltp_core::ids::*;
use oltp_core::page_store::*;
use oltp_core::storage::Storage;
use tokio::runtime::Runtime;
use wal_decoder::Lsn;

const BLOCKS: u32 = 65_536;

fn manifest(files: u64) -> Manifest {
    let (branch, now) = (BranchId::random(), Timestamp::now());
    let entry = |id: u64| FileEntry {
        path: format!("base/{}/{}", 5 + id / 10_000, 16_384 + id),
        id: FileId(id),
        size: 8192 * (id % 7),
        mode: 0o600,
        truncations: Vec::new(),
    };
    Manifest {
        head: ManifestHead {
            project: project(),
            branch,
            number: ManifestNumber(1),
            uid: ManifestUid::random(),
            name: BranchName::new("main").unwrap(),
            state: BranchState::Live,
            parent: None,
            created_at: now,
            published_at: now,
            expires_at: None,
            term: Term(1),
            timeline: Timeline(1),
            kind: ManifestKind::Running,
            redo_lsn: Lsn(1),
            min_recovery_lsn: Lsn(1),
            end_lsn: None,
        },
        body: ManifestBody {
            postgres_major: 18,
            system_identifier: 1,
            wal: Vec::new(),
            next_file_id: FileId(files + 1),
            next_layer_sequence: LayerSequence(1),
            directories: Vec::new(),
            files: (1..=files).map(entry).collect(),
            symlinks: Vec::new(),
            layers: Vec::new(),
        },
    }
}

fn project() -> ProjectName {
    ProjectName::new("bench").unwrap()
}

fn local_store() -> (tempfile::TempDir, PageStore) {
    let folder = tempfile::tempdir().unwrap();
    let storage = Storage::open(folder.path().to_str().unwrap(), &BTreeMap::new()).unwrap();
    (folder, PageStore::new(storage))
}

fn publishing(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("publish_a_manifest");
    group.sample_size(10);
    for files in [1_000, 100_000] {
        let (_folder, store) = local_store();
        let template = manifest(files);
        group.bench_function(format!("{files}_files"), |b| {
            let fresh = || {
                let mut manifest = template.clone();
                manifest.head.branch = BranchId::random();
                Arc::new(manifest)
            };
            b.iter_batched(
                fresh,
                |manifest| runtime.block_on(store.publish(&manifest)).unwrap(),
                BatchSize::PerIteration,
            );
        });
        let published = Arc::new(template);
        runtime.block_on(store.publish(&published)).unwrap();
        group.bench_function(format!("{files}_files_read_back"), |b| {
            b.iter(|| runtime.block_on(store.latest(&project(), published.head.branch)).unwrap());
        });
    }
    group.finish();

    let (_folder, store) = local_store();
    let base = Arc::new(manifest(1_000));
    runtime.block_on(store.create_branch(&base, None)).unwrap();
    c.bench_function("create_a_branch", |b| {
        let mut made = 0;
        let child = || {
            made += 1;
            let mut child = Manifest::clone(&base);
            child.head.branch = BranchId::random();
            child.head.name = BranchName::new(format!("task-{}-{made}", child.head.branch)).unwrap();
            Arc::new(child)
        };
        let create = |child| runtime.block_on(store.create_branch(&child, Some(&base.head))).unwrap();
        b.iter_batched(child, create, BatchSize::PerIteration);
    });
}

/// A file of 512 MiB in layers, half of each page zeros.
fn layers(runtime: &Runtime, store: &PageStore) -> ManifestView {
    let mut manifest = manifest(1);
    if let Some(file) = manifest.body.files.first_mut() {
        file.path = "pg_xact/0000".to_owned();
        file.size = u64::from(BLOCKS) * PAGE_BYTES as u64;
    }
    let mut state = 1_u64;
    let layers = runtime.block_on(async {
        let mut writer =
            store.write_layers(&project(), BranchId::random(), Term(1), LayerSequence(1)).unwrap();
        for block in 0..BLOCKS {
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .take(PAGE_BYTES / 2)
            .collect();
            writer.add(PageKey { file: FileId(1), block }, &Page::padded(&bytes)).await.unwrap();
        }
        writer.finish().await.unwrap()
    });
    manifest.body.layers = layers;
    manifest.body.next_layer_sequence = LayerSequence(2);
    ManifestView::new(Arc::new(manifest))
}

fn reading(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let (_folder, store) = local_store();
    let view = layers(&runtime, &store);
    let mut block = 0_u32;
    let mut next = || {
        block = block.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        PageKey { file: FileId(1), block: block % BLOCKS }
    };
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Elements(1));
    group.bench_function("one_page", |b| {
        b.iter(|| black_box(runtime.block_on(store.read_page(&view, next())).unwrap()));
    });
    group.throughput(Throughput::Elements(64));
    group.bench_function("64_pages_in_one_read", |b| {
        b.iter(|| black_box(runtime.block_on(store.read_run(&view, next(), 64)).unwrap()));
    });
    group.finish();
}

criterion_group!(benches, publishing, reading);
criterion_main!(benches);
