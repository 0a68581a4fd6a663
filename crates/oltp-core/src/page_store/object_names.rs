//! Where each kind of object lies.
//!
//! ```text
//!   projects/<project>/project.json
//!   projects/<project>/names/<branch name>/<8 digits>              which branch has the name: the last one
//!   projects/<project>/branches/<branch id>/<16 digits>.manifest
//!   projects/<project>/layers/<branch id>/<term>-<id>.layer        the branch whose compute wrote it
//!   projects/<project>/wal/<branch id>/<timeline>-<start>-<end>-<term>.wal
//! ```
//!
//! Names are one path component each, percent-encoded where a store would stumble over them.

use object_store::path::Path;
use wal_decoder::Lsn;

use super::manifest::LayerRef;
use crate::ids::{BranchId, BranchName, LayerId, ManifestNumber, ProjectName, Term, Timeline};
use crate::storage::last_part;

pub(super) fn projects() -> Path {
    Path::from("projects")
}

pub(super) fn project(name: &ProjectName) -> Path {
    projects().join(name.as_str())
}

pub(super) fn project_record(name: &ProjectName) -> Path {
    project(name).join("project.json")
}

pub(super) fn branches(name: &ProjectName) -> Path {
    project(name).join("branches")
}

pub(super) fn branch(name: &ProjectName, branch: BranchId) -> Path {
    branches(name).join(branch.to_string())
}

pub(super) fn manifest(name: &ProjectName, id: BranchId, number: ManifestNumber) -> Path {
    branch(name, id).join(format!("{:016}.manifest", number.0))
}

/// The number in the name of a manifest; `None` for what is none.
pub(super) fn manifest_number(path: &Path) -> Option<ManifestNumber> {
    let digits = path.filename()?.strip_suffix(".manifest")?;
    let all = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if all { digits.parse().ok().map(ManifestNumber) } else { None }
}

pub(super) fn layers(name: &ProjectName) -> Path {
    project(name).join("layers")
}

pub(super) fn layer(layer: &LayerRef) -> Path {
    layer_of(&layer.project, layer.branch, layer.term, layer.id)
}

pub(super) fn layer_of(name: &ProjectName, branch: BranchId, term: Term, id: LayerId) -> Path {
    layers(name).join(branch.to_string()).join(format!("{term}-{id}.layer"))
}

/// The branch, term and id in the name of a layer; `None` for what is none.
pub(super) fn layer_id(path: &Path) -> Option<(BranchId, Term, LayerId)> {
    let branch = last_part(&path.parent()?)?.parse().ok()?;
    let (term, id) = path.filename()?.strip_suffix(".layer")?.split_once('-')?;
    Some((branch, Term(term.parse().ok()?), id.parse().ok()?))
}

pub(super) fn names(name: &ProjectName) -> Path {
    project(name).join("names")
}

pub(super) fn name_claims(name: &ProjectName, branch: &BranchName) -> Path {
    names(name).join(branch.as_str())
}

pub(super) fn name_claim(name: &ProjectName, branch: &BranchName, claim: u32) -> Path {
    name_claims(name, branch).join(format!("{claim:08}"))
}

pub(super) fn name_claim_number(path: &Path) -> Option<u32> {
    path.filename().filter(|name| name.len() == 8)?.parse().ok()
}

pub(super) fn wal_of_project(name: &ProjectName) -> Path {
    project(name).join("wal")
}

/// The folder of a branch's archived WAL.
pub fn wal(name: &ProjectName, branch: BranchId) -> Path {
    wal_of_project(name).join(branch.to_string())
}

/// A chunk of WAL as its name describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalChunkName {
    /// The timeline of its records.
    pub timeline: Timeline,
    /// Its first byte.
    pub start: Lsn,
    /// One past its last byte.
    pub end: Lsn,
    /// The term of the compute that archived it.
    pub term: Term,
}

impl WalChunkName {
    /// The chunk's place in the folder of its branch.
    pub fn path(self, project: &ProjectName, branch: BranchId) -> Path {
        let Self { timeline, start, end, term } = self;
        wal(project, branch).join(format!("{:08}-{:016X}-{:016X}-{term}.wal", timeline.0, start.0, end.0))
    }

    /// Reads the name of a chunk; `None` for what is none.
    pub fn parse(path: &Path) -> Option<WalChunkName> {
        let mut parts = path.filename()?.strip_suffix(".wal")?.split('-');
        let timeline = Timeline(parts.next()?.parse().ok()?);
        let mut position = || u64::from_str_radix(parts.next()?, 16).ok().map(Lsn);
        let (start, end) = (position()?, position()?);
        let term = Term(parts.next()?.parse().ok()?);
        (start < end && parts.next().is_none()).then_some(WalChunkName { timeline, start, end, term })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_were_written() {
        let name = ProjectName::new("shop").unwrap();
        let id = BranchId::random();
        let path = manifest(&name, id, ManifestNumber(42));
        assert_eq!(path.as_ref(), format!("projects/shop/branches/{id}/0000000000000042.manifest"));
        assert_eq!(manifest_number(&path), Some(ManifestNumber(42)));
        assert_eq!(manifest_number(&Path::from("x/42.manifest")), None);

        let layer = layer_of(&name, id, Term(7), LayerId(uuid::Uuid::nil()));
        assert_eq!(layer_id(&layer), Some((id, Term(7), LayerId(uuid::Uuid::nil()))));
        assert_eq!(layer_id(&Path::from("projects/shop/layers/x.layer")), None);

        let chunk = WalChunkName {
            timeline: Timeline(3),
            start: Lsn(0x1_0000_0000),
            end: Lsn(0x1_0000_2000),
            term: Term(9),
        };
        assert_eq!(WalChunkName::parse(&chunk.path(&name, id)), Some(chunk));
        assert_eq!(WalChunkName::parse(&Path::from("1-2-1-1.wal")), None);
        let claims = name_claims(&name, &BranchName::new("feature/7").unwrap());
        assert_eq!(claims.as_ref(), "projects/shop/names/feature%2F7");
        assert_eq!(crate::storage::last_part(&claims).unwrap(), "feature/7");
    }
}
