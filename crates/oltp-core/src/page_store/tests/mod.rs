//! The page store against stores in memory and on disk.

mod branching;
mod collecting;
mod compacting;
mod faulty_store;
mod inspecting;
mod layers;
mod publishing;

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path;
use wal_decoder::Lsn;

use super::*;
use crate::Timestamp;
use crate::ids::*;

pub(super) fn in_memory() -> PageStore {
    PageStore::new(Storage::over(Arc::new(InMemory::new()), Path::from("base"), "memory:"))
}

pub(super) fn shop() -> ProjectName {
    ProjectName::new("shop").unwrap()
}

/// A manifest of a branch's first moment, with a table of `blocks` pages as file 1.
pub(super) fn manifest(branch: BranchId, number: u64, term: u64) -> Manifest {
    let now = Timestamp::now();
    Manifest {
        head: ManifestHead {
            project: shop(),
            branch,
            number: ManifestNumber(number),
            uid: ManifestUid::random(),
            name: BranchName::new("main").unwrap(),
            state: BranchState::Live,
            parent: None,
            created_at: now,
            published_at: now,
            expires_at: None,
            term: Term(term),
            timeline: Timeline(1),
            kind: ManifestKind::Running,
            redo_lsn: Lsn(0x100_0028),
            min_recovery_lsn: Lsn(0x200_0000),
            end_lsn: None,
        },
        body: ManifestBody {
            postgres_major: 18,
            system_identifier: 7_500_000_000_000_000_001,
            wal: vec![WalSpan {
                project: shop(),
                branch,
                timeline: Timeline(1),
                from: Lsn(0x100_0000),
                to: None,
            }],
            next_file_id: FileId(100),
            next_layer_sequence: LayerSequence(1),
            directories: vec![DirectoryEntry { path: "pg_xact".to_owned(), mode: 0o700 }],
            files: Vec::new(),
            symlinks: Vec::new(),
            layers: Vec::new(),
        },
    }
}

pub(super) fn file(id: u64, blocks: u64) -> FileEntry {
    FileEntry {
        path: format!("pg_xact/{id:04X}"),
        id: FileId(id),
        size: blocks * PAGE_BYTES as u64,
        mode: 0o600,
        truncations: Vec::new(),
    }
}

pub(super) fn key(file: u64, block: u32) -> PageKey {
    PageKey { file: FileId(file), block }
}

/// A page that says which it is and of what age.
pub(super) fn page(key: PageKey, version: u64) -> Page {
    Page::padded(format!("page {key} version {version}").as_bytes())
}

/// The manifest that follows, as a compute would make it after a capture.
pub(super) fn following(manifest: &Manifest) -> Manifest {
    let mut next = manifest.clone();
    next.head.number = next.head.number.next();
    next.head.uid = ManifestUid::random();
    next.head.published_at = Timestamp::now();
    next
}

/// The first manifest of a new branch that is what `base` is.
pub(super) fn branch_of(base: &Manifest, name: &str) -> Manifest {
    let mut child = base.clone();
    let now = Timestamp::now();
    child.head = ManifestHead {
        branch: BranchId::random(),
        number: ManifestNumber(1),
        uid: ManifestUid::random(),
        name: BranchName::new(name).unwrap(),
        parent: Some(ParentPoint {
            project: base.head.project.clone(),
            branch: base.head.branch,
            manifest: base.head.number,
            lsn: None,
            time: now,
        }),
        created_at: now,
        published_at: now,
        term: Term(0),
        kind: ManifestKind::Branched { target: RecoveryTarget::Lsn(base.head.min_recovery_lsn) },
        ..child.head
    };
    child
}

/// A moment when everything of today is older than the grace period.
pub(super) fn later() -> Timestamp {
    Timestamp::now().after(GRACE * 3)
}

/// Writes pages of one version as the manifest's next layer or layers.
pub(super) async fn add_layer(
    store: &PageStore,
    manifest: &mut Manifest,
    keys: impl IntoIterator<Item = PageKey>,
) {
    let sequence = manifest.body.next_layer_sequence;
    let mut writer = store.write_layers(&shop(), manifest.head.branch, manifest.head.term, sequence).unwrap();
    let keys: BTreeMap<PageKey, ()> = keys.into_iter().map(|key| (key, ())).collect();
    for key in keys.into_keys() {
        writer.add(key, &page(key, sequence.0)).await.unwrap();
    }
    manifest.body.layers.extend(writer.finish().await.unwrap());
    manifest.body.next_layer_sequence = sequence.next();
}
