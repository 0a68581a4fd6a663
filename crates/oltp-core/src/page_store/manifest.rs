//! A manifest: one branch at one moment, complete in itself.
//!
//! It names every file with its size and every layer that has pages of them, and where the WAL lies that
//! leads on from there. A branch is the row of its manifests; making a child is writing one manifest
//! that names the same layers. Nothing in a manifest refers to another manifest, so one of them may go
//! when its time has come whatever became of its neighbours.
//!
//! ```text
//!   head    project, branch, number, term, kind, redo … end      small, readable on its own
//!   body    files ─► FileId ─┐
//!           layers (sequence, first … last page) ─► pages
//! ```

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use wal_decoder::Lsn;

use super::layer_format;
use super::page::PAGE_BYTES;
use crate::Timestamp;
use crate::ids::{
    BranchId, BranchName, FileId, LayerId, LayerSequence, ManifestNumber, ManifestUid, PageKey, ProjectName,
    Term, Timeline,
};

/// A path component longer than this cannot have come from a file system.
const PATH_LIMIT: usize = 1024;

/// What a manifest is about and where it stands in its branch's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestHead {
    /// The project.
    pub project: ProjectName,
    /// The branch.
    pub branch: BranchId,
    /// The manifest's number on its branch, from 1.
    pub number: ManifestNumber,
    /// This manifest's own id: recognises a put whose answer was lost.
    pub uid: ManifestUid,
    /// The branch's name.
    pub name: BranchName,
    /// Whether the branch is there.
    pub state: BranchState,
    /// Where the branch came from; `None` for a project's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentPoint>,
    /// When the branch was made.
    pub created_at: Timestamp,
    /// When this manifest was made.
    pub published_at: Timestamp,
    /// When the branch may be deleted by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The term of the compute that published it; 0 when none did.
    pub term: Term,
    /// The timeline that the WAL before `end_lsn` is on.
    pub timeline: Timeline,
    /// How Postgres comes up from it.
    pub kind: ManifestKind,
    /// Where recovery starts.
    #[serde(with = "lsn_text")]
    pub redo_lsn: Lsn,
    /// The pages contain changes up to here: without the WAL before this, a start is refused.
    #[serde(with = "lsn_text")]
    pub min_recovery_lsn: Lsn,
    /// Where the WAL ends after a clean shutdown.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_lsn_text")]
    pub end_lsn: Option<Lsn>,
}

/// Whether a branch is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BranchState {
    /// It can be started.
    Live,
    /// It was deleted; the manifest keeps its number from being taken again.
    Deleted,
}

/// The point of its parent that a branch starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentPoint {
    /// The parent's project: another one than the branch's own for a project made from a template.
    pub project: ProjectName,
    /// The parent.
    pub branch: BranchId,
    /// The parent's manifest that was copied.
    pub manifest: ManifestNumber,
    /// The position of the parent's WAL at which the branch starts, when it was known.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_lsn_text")]
    pub lsn: Option<Lsn>,
    /// The moment that was asked for, or that of the branching.
    pub time: Timestamp,
}

/// How Postgres comes up from a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManifestKind {
    /// Cut while Postgres ran: crash recovery, on the same timeline.
    Running,
    /// Postgres had stopped: no recovery.
    CleanShutdown,
    /// Made from another manifest and never started: archive recovery to the target, on a new timeline.
    Branched {
        /// Where recovery ends.
        target: RecoveryTarget,
    },
}

/// Where recovery ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryTarget {
    /// No WAL is replayed: the manifest copied was that of a clean shutdown, and it is the point.
    None,
    /// At this position: everything that ends at or before it.
    Lsn(#[serde(with = "lsn_text")] Lsn),
    /// Before the first commit stamped later than this.
    Time(Timestamp),
}

/// A stretch of WAL that a start from the manifest may need, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WalSpan {
    /// The project that archived it.
    pub project: ProjectName,
    /// The branch that archived it.
    pub branch: BranchId,
    /// Its timeline.
    pub timeline: Timeline,
    /// Its first byte.
    #[serde(with = "lsn_text")]
    pub from: Lsn,
    /// One past its last byte; `None`: as far as that branch goes on this timeline.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_lsn_text")]
    pub to: Option<Lsn>,
}

/// A directory below the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// Its path, `/` between components.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
}

/// A regular file below the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its path, `/` between components.
    pub path: String,
    /// Its number in the layers.
    pub id: FileId,
    /// Its length in bytes; pages below it that no layer has are zeros.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Where it was cut off, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truncations: Vec<Truncation>,
}

/// A file was shorter once: what older layers have past that end is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncation {
    /// Layers with a lower sequence are affected.
    pub sequence: LayerSequence,
    /// Their pages from this block on are dead.
    pub from_block: u32,
}

impl FileEntry {
    /// Whether the page `block` of a layer of this sequence was cut off later.
    pub fn is_dead(&self, sequence: LayerSequence, block: u32) -> bool {
        self.truncations.iter().any(|cut| sequence < cut.sequence && block >= cut.from_block)
    }

    /// Pages that the file's length spans.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(PAGE_BYTES as u64)
    }
}

/// A symbolic link below the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymlinkEntry {
    /// Its path, `/` between components.
    pub path: String,
    /// What it points at.
    pub target: String,
}

/// A layer as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRef {
    /// The project in whose folder it lies.
    pub project: ProjectName,
    /// The branch whose compute wrote it.
    pub branch: BranchId,
    /// The term of that compute.
    pub term: Term,
    /// Its id: with branch and term, its name.
    pub id: LayerId,
    /// Its age among the manifest's layers. Layers of one sequence have no page in common.
    pub sequence: LayerSequence,
    /// Its first page.
    pub first: PageKey,
    /// Its last page.
    pub last: PageKey,
    /// How many pages it has.
    pub pages: u32,
    /// Its length in bytes.
    pub bytes: u64,
    /// Where its index starts; everything from there to the end is one read.
    pub index_offset: u64,
    /// The checksum of its index, as its footer has it.
    pub index_checksum: u32,
    /// When it was written.
    pub written_at: Timestamp,
}

/// One branch at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What it is about.
    pub head: ManifestHead,
    /// What is there.
    pub body: ManifestBody,
}

/// The larger part of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestBody {
    /// Major version of the Postgres that wrote the pages.
    pub postgres_major: u32,
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// Where the WAL lies that a start from here may need, in the order of replay.
    pub wal: Vec<WalSpan>,
    /// The next number for a new file.
    pub next_file_id: FileId,
    /// The next sequence for a new layer.
    pub next_layer_sequence: LayerSequence,
    /// Every directory, parents before children.
    pub directories: Vec<DirectoryEntry>,
    /// Every file.
    pub files: Vec<FileEntry>,
    /// Every symbolic link.
    pub symlinks: Vec<SymlinkEntry>,
    /// Every layer that has a live page, and maybe some that have none any more.
    pub layers: Vec<LayerRef>,
}

impl Manifest {
    /// Checks what every reader relies on. Manifests come from outside like any other object.
    pub(super) fn defect(&self) -> Option<String> {
        let body = &self.body;
        if self.head.number.0 == 0 {
            return Some("its number is 0".to_owned());
        }
        let mut paths = HashSet::with_capacity(body.files.len());
        let named = (body.directories.iter().map(|entry| &entry.path))
            .chain(body.files.iter().map(|entry| &entry.path))
            .chain(body.symlinks.iter().map(|entry| &entry.path));
        for path in named {
            if !is_clean_path(path) {
                return Some(format!("`{}` is no path below a data directory", shown(path)));
            }
            if !paths.insert(path.as_str()) {
                return Some(format!("`{}` is there twice", shown(path)));
            }
        }
        if let Some(link) =
            body.symlinks.iter().find(|link| link.target.is_empty() || link.target.contains('\0'))
        {
            return Some(format!("the link `{}` points nowhere", shown(&link.path)));
        }
        self.file_defect().or_else(|| self.layer_defect())
    }

    fn file_defect(&self) -> Option<String> {
        let mut ids = HashSet::with_capacity(self.body.files.len());
        for file in &self.body.files {
            let path = shown(&file.path);
            if file.id >= self.body.next_file_id || !ids.insert(file.id) {
                return Some(format!("the file `{path}` has a number that is not its own"));
            }
            if file.blocks() > u64::from(u32::MAX) {
                return Some(format!("the file `{path}` has more pages than can be counted"));
            }
            if file.truncations.iter().any(|cut| cut.sequence > self.body.next_layer_sequence) {
                return Some(format!("the file `{path}` was truncated in the future"));
            }
        }
        None
    }

    fn layer_defect(&self) -> Option<String> {
        layer_defect(self.body.layers.iter(), self.body.next_layer_sequence)
    }
}

/// What is wrong with the layers of a manifest whose next one will be of sequence `next`.
pub(super) fn layer_defect<'a>(
    layers: impl Iterator<Item = &'a LayerRef>,
    next: LayerSequence,
) -> Option<String> {
    let mut layers: Vec<&LayerRef> = layers.collect();
    layers.sort_by_key(|layer| (layer.sequence, layer.first));
    for layer in &layers {
        if layer.sequence >= next
            || layer.first > layer.last
            || layer.index_offset > layer.bytes
            || layer.bytes > layer_format::OBJECT_LIMIT
            || layer.pages == 0
        {
            return Some(format!("what it says of layer {} cannot be", layer.id));
        }
    }
    let overlap = layers.windows(2).find_map(|pair| match pair {
        [left, right] if left.sequence == right.sequence && left.last >= right.first => Some(left.id),
        _ => None,
    });
    overlap.map(|id| format!("layer {id} overlaps another one of its sequence"))
}

impl ManifestBody {
    /// Leaves nothing that could be started, as befits a deleted branch.
    pub(super) fn clear(&mut self) {
        self.wal.clear();
        self.directories.clear();
        self.files.clear();
        self.symlinks.clear();
        self.layers.clear();
    }
}

/// Relative, and stays below where it starts.
fn is_clean_path(path: &str) -> bool {
    path.len() <= PATH_LIMIT
        && !path.contains('\0')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn shown(path: &str) -> String {
    path.chars().take(120).collect()
}

/// LSNs as Postgres prints them.
mod lsn_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use wal_decoder::Lsn;

    pub(crate) fn serialize<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lsn)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

mod optional_lsn_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use wal_decoder::Lsn;

    pub(super) fn serialize<S: Serializer>(lsn: &Option<Lsn>, serializer: S) -> Result<S::Ok, S::Error> {
        match lsn {
            Some(lsn) => serializer.collect_str(lsn),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Lsn>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse()).transpose().map_err(D::Error::custom)
    }
}
