//! Publishing manifests, and reading them back.
//!
//! A branch's next manifest is put under the next number, if absent: of two writers one loses, and learns
//! from what is there whether it is fenced. Two more things can go wrong, both for a process that slept:
//!
//! * Its answer was lost: the manifest that took the name carries its own `uid`.
//! * Retention has meanwhile removed the manifest that had the number, so that the put succeeds though the
//!   branch is far beyond, or gone. So the numbers around it are listed *after* the put. Retention leaves
//!   alone what was superseded less than [`GRACE`] ago, so only a late put can be such a one, and is taken back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;

use super::manifest::{BranchState, LayerRef, Manifest, ManifestHead};
use super::manifest_format::{self, ManifestDefect};
use super::{GRACE, PageStore, object_names};
use crate::ids::{BranchId, ManifestNumber, ManifestUid, ProjectName, Term};
use crate::storage::Put;
use crate::{CoreError, Result, Timestamp};

/// Enough to hide a store's latency, few enough to leave it to others.
pub(super) const CONCURRENT_READS: usize = 16;
/// A put that comes later than this after the manifest was made may fill a number that retention freed.
const LATE: Duration = Duration::from_secs(600);

/// Rounds that a compute may lose against the last manifests of its predecessor.
const TAKE_OVER_ROUNDS: usize = 8;

impl PageStore {
    /// Publishes the next manifest of a branch. When this returns, the manifest survives a power cut, and
    /// is what [`latest`](PageStore::latest) returns until the next.
    ///
    /// # Errors
    /// [`CoreError::Fenced`] when a higher term published meanwhile, [`CoreError::NoSuchBranch`] when the
    /// branch was deleted: stop. [`CoreError::AlreadyPublished`] when the number was taken by a term that is
    /// not higher. [`CoreError::LayerTooOld`] when a new layer was written longer than half of [`GRACE`] before
    /// the manifest before this one, which should have named it: compact, or capture, again.
    pub async fn publish(&self, manifest: &Arc<Manifest>) -> Result<()> {
        self.check_ages(manifest).await?;
        self.put_manifest(manifest).await
    }

    /// Publishes a manifest whose layers are those of another one, maybe of another branch or long ago: a new
    /// branch's first, or a restore's.
    ///
    /// # Errors
    /// As [`publish`](PageStore::publish), and [`CoreError::BranchPointGone`] when `base` was collected meanwhile.
    pub async fn publish_copy(&self, manifest: &Arc<Manifest>, base: &ManifestHead) -> Result<()> {
        self.put_manifest(manifest).await?;
        // Only a base that outlived the put has kept collection from its layers.
        let path = object_names::manifest(&base.project, base.branch, base.number);
        if self.storage.head(&path).await?.is_some() {
            return Ok(());
        }
        let head = &manifest.head;
        self.storage.delete(&object_names::manifest(&head.project, head.branch, head.number)).await?;
        Err(CoreError::BranchPointGone { branch: base.branch, manifest: base.number })
    }

    /// Publishes the newest manifest of a branch again, in the name of a new term, and returns it. From then on
    /// every manifest of an older compute is refused, so nothing of what this one starts from goes away.
    ///
    /// # Errors
    /// [`CoreError::Fenced`] when a manifest of this term or a higher one is there; [`CoreError::NoSuchBranch`]; or
    /// the store failed.
    pub async fn take_over(
        &self,
        project: &ProjectName,
        branch: BranchId,
        term: Term,
    ) -> Result<Arc<Manifest>> {
        let mut rounds = TAKE_OVER_ROUNDS;
        loop {
            let latest = self.latest(project, branch).await?;
            let Some(latest) = latest.filter(|latest| latest.head.state == BranchState::Live) else {
                return Err(CoreError::NoSuchBranch {
                    project: project.to_string(),
                    branch: branch.to_string(),
                });
            };
            if latest.head.term >= term {
                return Err(CoreError::Fenced { branch, term, by: latest.head.term });
            }
            let mut taken = Manifest::clone(&latest);
            taken.head.number = latest.head.number.next();
            taken.head.uid = ManifestUid::random();
            taken.head.term = term;
            taken.head.published_at = Timestamp::now();
            let taken = Arc::new(taken);
            rounds -= 1;
            match self.put_manifest(&taken).await {
                Ok(()) => return Ok(taken),
                // The last word of the compute before.
                Err(CoreError::AlreadyPublished { .. }) if rounds > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) async fn put_manifest(&self, manifest: &Arc<Manifest>) -> Result<()> {
        let head = &manifest.head;
        let encoded = Arc::clone(manifest);
        // Some hundred milliseconds for 100,000 files: not on a thread that others wait for.
        let bytes = tokio::task::spawn_blocking(move || manifest_format::encode(&encoded))
            .await
            .map_err(|ended| CoreError::io("encode", "a manifest")(std::io::Error::other(ended)))?
            .map_err(|defect| CoreError::ManifestUnsound {
                branch: head.branch,
                number: head.number,
                reason: defect.to_string(),
            })?;
        let path = object_names::manifest(&head.project, head.branch, head.number);
        match self.storage.put_if_absent(&path, Bytes::from(bytes)).await? {
            Put::Created => {}
            Put::NameTaken => {
                let there = self.head(&head.project, head.branch, head.number).await?;
                if there.uid != head.uid {
                    return Err(refusal(head, &there));
                }
            }
        }
        self.confirm(head, &path).await?;
        self.named.remember(manifest);
        Ok(())
    }

    /// Looks whether the branch had gone on, or was gone, before the put.
    async fn confirm(&self, head: &ManifestHead, path: &Path) -> Result<()> {
        let folder = object_names::branch(&head.project, head.branch);
        let before = ManifestNumber(head.number.0.saturating_sub(1));
        let from =
            object_names::manifest(&head.project, head.branch, ManifestNumber(before.0.saturating_sub(1)));
        let listed = self.storage.list(&folder, Some(&from)).await?;
        let numbers: Vec<ManifestNumber> =
            listed.iter().filter_map(|object| object_names::manifest_number(&object.location)).collect();
        let newest = numbers.iter().copied().max().unwrap_or(head.number);
        if newest > head.number {
            if Timestamp::now().since(head.published_at) > LATE {
                self.storage.delete(path).await?;
            }
            return Err(refusal(head, &*self.head(&head.project, head.branch, newest).await?));
        }
        if head.number.0 > 1 && !numbers.contains(&before) {
            self.storage.delete(path).await?;
            return Err(CoreError::NoSuchBranch {
                project: head.project.to_string(),
                branch: head.name.to_string(),
            });
        }
        Ok(())
    }

    /// Refuses layers that collection may already have taken for garbage: new ones that are older than the
    /// predecessor, by more than clocks differ.
    async fn check_ages(&self, manifest: &Manifest) -> Result<()> {
        let head = &manifest.head;
        let before = ManifestNumber(head.number.0.saturating_sub(1));
        let (named, since) = if before.0 == 0 {
            (Arc::default(), Timestamp::now())
        } else {
            match self.named.of(head.branch, before) {
                Some(named) => named,
                None => self.named.remember(&*self.manifest(&head.project, head.branch, before).await?),
            }
        };
        let horizon = since.before(GRACE / 2);
        let too_old = |layer: &&LayerRef| layer.written_at < horizon && !named.contains(&layer.id);
        match manifest.body.layers.iter().find(too_old) {
            None => Ok(()),
            Some(layer) => Err(CoreError::LayerTooOld {
                layer: layer.id,
                age: since.since(layer.written_at),
                branch: head.branch,
                number: head.number,
            }),
        }
    }

    /// The newest manifest of a branch; `None` when there is no such branch. That of a deleted branch says so.
    ///
    /// # Errors
    /// The store failed, or the manifest is damaged.
    pub async fn latest(&self, project: &ProjectName, branch: BranchId) -> Result<Option<Arc<Manifest>>> {
        match self.numbers(project, branch).await?.last() {
            Some(number) => self.manifest(project, branch, *number).await.map(Some),
            None => Ok(None),
        }
    }

    /// The head of the newest manifest of a branch.
    ///
    /// # Errors
    /// As [`latest`](PageStore::latest).
    pub async fn latest_head(
        &self,
        project: &ProjectName,
        branch: BranchId,
    ) -> Result<Option<Arc<ManifestHead>>> {
        match self.numbers(project, branch).await?.last() {
            Some(number) => self.head(project, branch, *number).await.map(Some),
            None => Ok(None),
        }
    }

    /// One manifest.
    ///
    /// # Errors
    /// It is missing or damaged, or the store failed.
    pub async fn manifest(
        &self,
        project: &ProjectName,
        branch: BranchId,
        number: ManifestNumber,
    ) -> Result<Arc<Manifest>> {
        let path = object_names::manifest(project, branch, number);
        let bytes = self.storage.get(&path, manifest_format::OBJECT_LIMIT).await?;
        let bytes = bytes.ok_or_else(|| CoreError::ObjectMissing { object: self.storage.name_of(&path) })?;
        let decoded = tokio::task::spawn_blocking(move || manifest_format::decode(&bytes))
            .await
            .map_err(|ended| CoreError::io("decode", "a manifest")(std::io::Error::other(ended)))?;
        let manifest = decoded.map_err(|defect| self.manifest_damaged(&path, &defect))?;
        self.check_place(&manifest.head, &path)?;
        Ok(Arc::new(manifest))
    }

    /// The heads of all manifests of a branch, oldest first: the points that a restore may start from.
    ///
    /// # Errors
    /// The store failed, or a manifest is damaged.
    pub async fn manifests(&self, project: &ProjectName, branch: BranchId) -> Result<Vec<Arc<ManifestHead>>> {
        let numbers = self.numbers(project, branch).await?;
        stream::iter(numbers.into_iter().map(|number| self.head(project, branch, number)))
            .buffered(CONCURRENT_READS)
            .try_collect()
            .await
    }

    /// The numbers of a branch's manifests, ascending.
    pub(super) async fn numbers(
        &self,
        project: &ProjectName,
        branch: BranchId,
    ) -> Result<Vec<ManifestNumber>> {
        let objects = self.storage.list(&object_names::branch(project, branch), None).await?;
        let mut numbers: Vec<ManifestNumber> =
            objects.iter().filter_map(|object| object_names::manifest_number(&object.location)).collect();
        numbers.sort();
        Ok(numbers)
    }

    /// The head of one manifest, from memory or by one small read.
    pub(super) async fn head(
        &self,
        project: &ProjectName,
        branch: BranchId,
        number: ManifestNumber,
    ) -> Result<Arc<ManifestHead>> {
        if let Some(head) = self.heads.get(branch, number) {
            return Ok(head);
        }
        let path = object_names::manifest(project, branch, number);
        let bytes = self.storage.get_range(&path, 0..manifest_format::HEAD_READ).await?;
        let bytes = bytes.ok_or_else(|| CoreError::ObjectMissing { object: self.storage.name_of(&path) })?;
        let decoded = manifest_format::decode_head(&bytes);
        let head = match decoded.map_err(|defect| self.manifest_damaged(&path, &defect))? {
            Some(head) => head,
            None => self.manifest(project, branch, number).await?.head.clone(),
        };
        self.check_place(&head, &path)?;
        Ok(self.heads.insert(head))
    }

    /// An object that was copied to another name is no manifest of that name.
    fn check_place(&self, head: &ManifestHead, path: &Path) -> Result<()> {
        if object_names::manifest(&head.project, head.branch, head.number) == *path {
            return Ok(());
        }
        let reason =
            format!("it is manifest {} of branch {} of project `{}`", head.number, head.branch, head.project);
        Err(self.damaged(path, reason))
    }

    pub(super) fn manifest_damaged(&self, path: &Path, defect: &ManifestDefect) -> CoreError {
        match defect {
            ManifestDefect::TooNew(found) => {
                CoreError::ObjectTooNew { object: self.storage.name_of(path), found: *found, known: 1 }
            }
            other => self.damaged(path, other.to_string()),
        }
    }
}

/// Why a manifest may not be published beside the one that is there.
fn refusal(ours: &ManifestHead, there: &ManifestHead) -> CoreError {
    if there.state == BranchState::Deleted {
        CoreError::NoSuchBranch { project: ours.project.to_string(), branch: ours.name.to_string() }
    } else if there.term > ours.term {
        CoreError::Fenced { branch: ours.branch, term: ours.term, by: there.term }
    } else {
        CoreError::AlreadyPublished { branch: ours.branch, number: there.number }
    }
}
