//! Tests of the parts that need no mount; those with FUSE and Postgres are in `tests/page_fs.rs`.

mod directory;

use crate::Timestamp;
use crate::ids::{
    BranchId, BranchName, FileId, LayerSequence, ManifestNumber, ManifestUid, ProjectName, Term, Timeline,
};
use crate::page_store::{BranchState, Manifest, ManifestBody, ManifestHead, ManifestKind};
use wal_decoder::Lsn;

/// The manifest of a data directory with nothing in it.
pub(super) fn some_manifest() -> Manifest {
    let head = ManifestHead {
        project: ProjectName::new("shop").unwrap(),
        branch: BranchId::random(),
        number: ManifestNumber(1),
        uid: ManifestUid::random(),
        name: BranchName::new("main").unwrap(),
        state: BranchState::Live,
        parent: None,
        created_at: Timestamp::now(),
        published_at: Timestamp::now(),
        expires_at: None,
        term: Term(3),
        timeline: Timeline(1),
        kind: ManifestKind::Running,
        redo_lsn: Lsn(0x100),
        min_recovery_lsn: Lsn(0x200),
        end_lsn: None,
    };
    let body = ManifestBody {
        postgres_major: 18,
        system_identifier: 7,
        wal: Vec::new(),
        next_file_id: FileId(1),
        next_layer_sequence: LayerSequence(1),
        directories: Vec::new(),
        files: Vec::new(),
        symlinks: Vec::new(),
        layers: Vec::new(),
    };
    Manifest { head, body }
}
