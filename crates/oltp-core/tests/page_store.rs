//! The page store with the files of a real cluster.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests; clippy excuses only the functions marked so"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oltp_core::ids::*;
use oltp_core::page_store::*;
use oltp_core::storage::Storage;
use oltp_core::{Listen, Project, ProjectOptions, Timestamp, find_installation};
use secrecy::ExposeSecret;
use tokio_postgres::NoTls;
use wal_decoder::Lsn;

/// A cluster with tables, indexes, TOAST, free space maps and visibility maps, stopped.
async fn a_real_cluster(folder: &Path) -> PathBuf {
    let project = Project::open(ProjectOptions {
        name: "shop".to_owned(),
        directory: folder.join("core/shop"),
        installation: find_installation(None, 18).await.unwrap(),
        owner: "shop".to_owned(),
        password: None,
        settings: BTreeMap::new(),
        listen: Listen::Loopback,
    })
    .await
    .unwrap();
    let compute = project.start().await.unwrap();
    let (client, connection) =
        tokio_postgres::connect(compute.url_with_password().expose_secret(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let work = "CREATE TABLE item (id int PRIMARY KEY, name text, large text);
                INSERT INTO item SELECT n, md5(n::text), repeat(md5(n::text), 200) FROM generate_series(1, 5000) n;
                DELETE FROM item WHERE id % 3 = 0;
                CREATE INDEX ON item USING hash (name);
                CREATE INDEX ON item USING brin (id);
                CREATE UNLOGGED TABLE scratch AS SELECT * FROM item LIMIT 10;";
    client.batch_execute(work).await.unwrap();
    client.batch_execute("VACUUM ANALYZE item").await.unwrap();
    drop(client);
    compute.stop().await.unwrap();
    project.directory().join("pgdata")
}

/// Every file below the data directory but the WAL, by path.
fn files_of(data: &Path) -> Vec<(String, Vec<u8>)> {
    let mut folders = vec![data.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("pg_wal") {
                folders.push(path);
            } else if path.is_file() {
                let name = path.strip_prefix(data).unwrap().to_str().unwrap().to_owned();
                files.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

async fn import(store: &PageStore, project: &ProjectName, files: &[(String, Vec<u8>)]) -> Manifest {
    let branch = BranchId::random();
    let mut writer = store.write_layers(project, branch, Term(1), LayerSequence(1)).unwrap();
    let mut entries = Vec::new();
    for (at, (path, content)) in files.iter().enumerate() {
        let id = FileId(at as u64 + 1);
        for (block, bytes) in content.chunks(PAGE_BYTES).enumerate() {
            let key = PageKey { file: id, block: u32::try_from(block).unwrap() };
            writer.add(key, &Page::padded(bytes)).await.unwrap();
        }
        entries.push(FileEntry {
            path: path.clone(),
            id,
            size: content.len() as u64,
            mode: 0o600,
            truncations: Vec::new(),
        });
    }
    let now = Timestamp::now();
    let layers = writer.finish().await.unwrap();
    Manifest {
        head: ManifestHead {
            project: project.clone(),
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
            kind: ManifestKind::CleanShutdown,
            redo_lsn: Lsn(1),
            min_recovery_lsn: Lsn(1),
            end_lsn: Some(Lsn(1)),
        },
        body: ManifestBody {
            postgres_major: 18,
            system_identifier: 1,
            wal: Vec::new(),
            next_file_id: FileId(files.len() as u64 + 1),
            next_layer_sequence: LayerSequence(2),
            directories: Vec::new(),
            files: entries,
            symlinks: Vec::new(),
            layers,
        },
    }
}

#[tokio::test]
async fn every_page_of_a_real_cluster_is_verified_and_read_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let files = files_of(&a_real_cluster(folder.path()).await);

    let mut forks: BTreeMap<&str, u64> = BTreeMap::new();
    for (path, content) in files.iter().filter(|(path, _)| RelationFile::of(path).is_some()) {
        let fork = ["_fsm", "_vm", "_init"].into_iter().find(|fork| path.contains(fork)).unwrap_or("main");
        for (block, page) in content.chunks(PAGE_BYTES).enumerate() {
            let block = u32::try_from(block).unwrap();
            verify_page(path, block, page)
                .unwrap_or_else(|defect| panic!("page {block} of {path}: {defect}"));
            *forks.entry(fork).or_default() += 1;
            if page.iter().any(|byte| *byte != 0) {
                verify_page(path, block + 1, page).unwrap_err();
            }
        }
    }
    assert!(
        forks["main"] > 3000 && forks["_fsm"] > 100 && forks["_vm"] > 100 && forks["_init"] > 0,
        "{forks:?}"
    );

    let storage = Storage::open(folder.path().join("storage").to_str().unwrap(), &BTreeMap::new()).unwrap();
    let store = PageStore::new(storage.clone());
    let project = ProjectName::new("shop").unwrap();
    let manifest = import(&store, &project, &files).await;
    store.create_branch(&Arc::new(manifest), None).await.unwrap();

    let other = PageStore::new(storage);
    let head = other.find_branch(&project, &BranchName::new("main").unwrap()).await.unwrap().unwrap();
    let view = ManifestView::new(other.latest(&project, head.branch).await.unwrap().unwrap());
    for ((path, content), entry) in files.iter().zip(&view.manifest().body.files) {
        let mut read = Vec::new();
        while (read.len() as u64) < entry.size {
            let block = u32::try_from(read.len() / PAGE_BYTES).unwrap();
            let run = other.read_run(&view, PageKey { file: entry.id, block }, 32).await.unwrap();
            for (at, page) in run.into_iter().filter(|(at, _)| *at >= block) {
                assert_eq!(at as usize * PAGE_BYTES, read.len());
                read.extend_from_slice(page.bytes());
            }
        }
        read.truncate(content.len());
        assert!(read == *content, "{path}");
    }
}
