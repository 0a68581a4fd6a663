//! Branches: made by one manifest, found by name, deleted in any order.
//!
//! A name belongs to the branch in the *last* of the claims in its folder. Making a branch claims the
//! name, puts the manifest, and looks at the claims once more:
//!
//! ```text
//!   names/feature/00000001 ──► branch A (deleted since)
//!   names/feature/00000002 ──► branch B          put if absent: of two creators one gets number 2
//! ```
//!
//! A claim whose branch was never made (its creator died in between) may be superseded after a while.
//! The creator may have only slept; that is why it looks again, and takes its branch back if it lost.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::manifest::{BranchState, Manifest, ManifestHead};
use super::publishing::CONCURRENT_READS;
use super::{PageStore, object_names};
use crate::ids::{BranchId, BranchName, ManifestUid, ProjectName};
use crate::storage::Put;
use crate::{CoreError, Result, Timestamp};

/// Far longer than it takes from the claim to the manifest.
const CLAIM_ABANDONED: Duration = Duration::from_secs(300);
/// A claim is some 60 bytes.
const CLAIM_LIMIT: u64 = 4096;
/// Every round lost means that somebody else got on; nobody loses this often by chance.
const ROUNDS: usize = 16;

/// What a claim on a name says: whose it is, or that it is nobody's any more.
#[derive(Debug, Serialize, Deserialize)]
struct NameClaim {
    branch: Option<BranchId>,
}

impl PageStore {
    /// Makes a branch by publishing its first manifest, a copy of `base` under a new [`BranchId`] (or the
    /// first of a project, without a base). Neither reads nor writes a page.
    ///
    /// # Errors
    /// [`CoreError::BranchExists`]; [`CoreError::BranchPointGone`] when `base` went out of retention
    /// meanwhile; or the store failed.
    pub async fn create_branch(&self, manifest: &Arc<Manifest>, base: Option<&ManifestHead>) -> Result<()> {
        let head = &manifest.head;
        let claim = self.claim_name(&head.project, &head.name, head.branch).await?;
        match base {
            Some(base) => self.publish_copy(manifest, base).await?,
            None => self.publish(manifest).await?,
        }
        let claims = self.claims(&head.project, &head.name).await?;
        if claims.last().is_some_and(|(last, _)| *last > claim) {
            self.delete_branch(&head.project, head.branch).await?;
            return Err(exists(&head.project, &head.name));
        }
        Ok(())
    }

    /// Makes a branch that takes its name over from `holder`, in one put: whoever looks finds the one or the other. What
    /// `holder` is called afterwards is the caller's to settle; its own manifests still have the name.
    ///
    /// # Errors
    /// [`CoreError::BranchExists`] when the name went to somebody else meanwhile; else as for
    /// [`create_branch`](PageStore::create_branch).
    pub async fn succeed_branch(
        &self,
        manifest: &Arc<Manifest>,
        base: &ManifestHead,
        holder: BranchId,
    ) -> Result<()> {
        let head = &manifest.head;
        let last = self.claims(&head.project, &head.name).await?.pop().map(|(number, _)| number);
        let Some(last) = last else { return Err(exists(&head.project, &head.name)) };
        if self.claimant(&head.project, &head.name, last).await? != Some(holder) {
            return Err(exists(&head.project, &head.name));
        }
        self.publish_copy(manifest, base).await?;
        if !self.put_claim(&head.project, &head.name, last.saturating_add(1), Some(head.branch)).await? {
            self.delete_branch(&head.project, head.branch).await?;
            return Err(exists(&head.project, &head.name));
        }
        Ok(())
    }

    /// The living branches whose name is another living branch's, each with that one: a branch that was rewound and
    /// should be called otherwise by now, or one that was to have the name and did not get it. Whoever was at it died,
    /// for they have been so for a while.
    ///
    /// # Errors
    /// The store failed, or an object is damaged.
    pub async fn superseded_branches(
        &self,
        project: &ProjectName,
    ) -> Result<Vec<(Arc<ManifestHead>, Arc<ManifestHead>)>> {
        let heads = self.branches(project).await?;
        let mut found = Vec::new();
        for same in heads.chunk_by(|left, right| left.name == right.name).filter(|same| same.len() > 1) {
            let Some(name) = same.first().map(|head| &head.name) else { continue };
            let Some(holder) = self.find_branch(project, name).await? else { continue };
            let settled = Timestamp::now().since(holder.created_at) > CLAIM_ABANDONED;
            let others = same.iter().filter(|head| {
                head.branch != holder.branch
                    && settled
                    && Timestamp::now().since(head.published_at) > CLAIM_ABANDONED
            });
            found.extend(others.map(|head| (Arc::clone(head), Arc::clone(&holder))));
        }
        Ok(found)
    }

    /// The head of the newest manifest of the branch of this name; `None` when there is no such branch.
    ///
    /// # Errors
    /// The store failed, or an object is damaged.
    pub async fn find_branch(
        &self,
        project: &ProjectName,
        name: &BranchName,
    ) -> Result<Option<Arc<ManifestHead>>> {
        let Some((number, _)) = self.claims(project, name).await?.pop() else { return Ok(None) };
        let Some(branch) = self.claimant(project, name, number).await? else { return Ok(None) };
        let head = self.latest_head(project, branch).await?;
        Ok(head.filter(|head| head.state == BranchState::Live && head.name == *name))
    }

    /// All branches of a project by name: the heads of their newest manifests.
    ///
    /// # Errors
    /// The store failed, or a manifest is damaged.
    pub async fn branches(&self, project: &ProjectName) -> Result<Vec<Arc<ManifestHead>>> {
        let mut heads = self.branch_heads(project).await?;
        heads.retain(|head| head.state == BranchState::Live);
        heads.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(heads)
    }

    /// Gives a branch another name; the one that it had is free then. No compute may run on it: its next
    /// manifest would be refused.
    ///
    /// # Errors
    /// [`CoreError::NoSuchBranch`], [`CoreError::BranchExists`], or the store failed. A rename that was cut short
    /// between two puts leaves the branch under its new name and frees the old one a few minutes later.
    pub async fn rename_branch(
        &self,
        project: &ProjectName,
        branch: BranchId,
        name: &BranchName,
    ) -> Result<Arc<Manifest>> {
        let present = self.live(project, branch).await?;
        let old = present.head.name.clone();
        if old == *name {
            return Ok(present);
        }
        let claim = self.claim_name(project, name, branch).await?;
        let renamed = self.publish_next(project, branch, |head| head.name = name.clone()).await?;
        if self.claims(project, name).await?.last().is_some_and(|(last, _)| *last > claim) {
            self.publish_next(project, branch, |head| head.name = old.clone()).await?;
            return Err(exists(project, name));
        }
        if let Some((last, _)) = self.claims(project, &old).await?.pop()
            && self.claimant(project, &old, last).await? == Some(branch)
        {
            // Whoever takes the number first has seen that the name is free.
            self.put_claim(project, &old, last.saturating_add(1), None).await?;
        }
        Ok(renamed)
    }

    /// Deletes a branch. Its children stay what they are; a compute that runs on it learns of it when it
    /// publishes next. The objects go with the next [`collect`](PageStore::collect) after the grace period.
    ///
    /// # Errors
    /// [`CoreError::NoSuchBranch`], or the store failed.
    pub async fn delete_branch(&self, project: &ProjectName, branch: BranchId) -> Result<()> {
        self.publish_next(project, branch, |head| head.state = BranchState::Deleted).await.map(drop)
    }

    /// Publishes the newest manifest of a branch again with another head; that of a deleted one names nothing.
    async fn publish_next(
        &self,
        project: &ProjectName,
        branch: BranchId,
        change: impl Fn(&mut ManifestHead),
    ) -> Result<Arc<Manifest>> {
        let mut rounds = ROUNDS;
        loop {
            let mut next = Manifest::clone(&*self.live(project, branch).await?);
            next.head.number = next.head.number.next();
            next.head.uid = ManifestUid::random();
            next.head.published_at = Timestamp::now();
            change(&mut next.head);
            if next.head.state == BranchState::Deleted {
                next.body.clear();
            }
            let next = Arc::new(next);
            rounds -= 1;
            match self.put_manifest(&next).await {
                Ok(()) => return Ok(next),
                // A compute published in between: its manifest is the one to follow.
                Err(CoreError::AlreadyPublished { .. } | CoreError::Fenced { .. }) if rounds > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn live(&self, project: &ProjectName, branch: BranchId) -> Result<Arc<Manifest>> {
        let latest = self.latest(project, branch).await?;
        latest.filter(|latest| latest.head.state == BranchState::Live).ok_or_else(|| {
            CoreError::NoSuchBranch { project: project.to_string(), branch: branch.to_string() }
        })
    }

    /// The heads of the newest manifests of all branches, deleted ones included.
    pub(super) async fn branch_heads(&self, project: &ProjectName) -> Result<Vec<Arc<ManifestHead>>> {
        let ids = self.branch_ids(project).await?;
        let heads: Vec<Option<Arc<ManifestHead>>> =
            stream::iter(ids.into_iter().map(|branch| self.latest_head(project, branch)))
                .buffered(CONCURRENT_READS)
                .try_collect()
                .await?;
        Ok(heads.into_iter().flatten().collect())
    }

    pub(super) async fn branch_ids(&self, project: &ProjectName) -> Result<Vec<BranchId>> {
        let folders = self.storage.folders(&object_names::branches(project)).await?;
        Ok(folders.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Takes a name for a branch that is about to be made; the number of the claim.
    async fn claim_name(&self, project: &ProjectName, name: &BranchName, branch: BranchId) -> Result<u32> {
        for _ in 0..ROUNDS {
            let last = self.claims(project, name).await?.pop();
            let next = match &last {
                None => 1,
                // Ours, by an attempt that was cut short.
                Some((number, _)) if self.claimant(project, name, *number).await? == Some(branch) => {
                    return Ok(*number);
                }
                Some((number, meta)) if self.is_free(project, name, *number, meta).await? => {
                    number.saturating_add(1)
                }
                Some(_) => return Err(exists(project, name)),
            };
            if self.put_claim(project, name, next, Some(branch)).await? {
                return Ok(next);
            }
        }
        Err(exists(project, name))
    }

    /// Whether the claim of this number is the one given here.
    async fn put_claim(
        &self,
        project: &ProjectName,
        name: &BranchName,
        number: u32,
        branch: Option<BranchId>,
    ) -> Result<bool> {
        let path = object_names::name_claim(project, name, number);
        let json = serde_json::to_vec(&NameClaim { branch })
            .map_err(|error| self.damaged(&path, error.to_string()))?;
        Ok(self.storage.put_if_absent(&path, Bytes::from(json)).await? == Put::Created
            || self.claimant(project, name, number).await? == branch)
    }

    /// Whether the last claim on a name holds no longer.
    async fn is_free(
        &self,
        project: &ProjectName,
        name: &BranchName,
        claim: u32,
        meta: &ObjectMeta,
    ) -> Result<bool> {
        let Some(holder) = self.claimant(project, name, claim).await? else { return Ok(true) };
        match self.latest_head(project, holder).await? {
            Some(head) if head.state == BranchState::Deleted => Ok(true),
            Some(head) if head.name == *name => Ok(false),
            // Being made or renamed, unless whoever was at it died.
            _ => Ok(Timestamp::now().since(meta.last_modified.into()) > CLAIM_ABANDONED),
        }
    }

    async fn claimant(
        &self,
        project: &ProjectName,
        name: &BranchName,
        claim: u32,
    ) -> Result<Option<BranchId>> {
        let path = object_names::name_claim(project, name, claim);
        let json = self.storage.get(&path, CLAIM_LIMIT).await?;
        let json = json.ok_or_else(|| CoreError::ObjectMissing { object: self.storage.name_of(&path) })?;
        let claim: NameClaim =
            serde_json::from_slice(&json).map_err(|error| self.damaged(&path, error.to_string()))?;
        Ok(claim.branch)
    }

    /// The claims on a name, in order.
    pub(super) async fn claims(
        &self,
        project: &ProjectName,
        name: &BranchName,
    ) -> Result<Vec<(u32, ObjectMeta)>> {
        let objects = self.storage.list(&object_names::name_claims(project, name), None).await?;
        let numbered = objects
            .into_iter()
            .filter_map(|object| Some((object_names::name_claim_number(&object.location)?, object)));
        let mut claims: Vec<(u32, ObjectMeta)> = numbered.collect();
        claims.sort_by_key(|(number, _)| *number);
        Ok(claims)
    }
}

fn exists(project: &ProjectName, name: &BranchName) -> CoreError {
    CoreError::BranchExists { project: project.to_string(), branch: name.to_string() }
}
