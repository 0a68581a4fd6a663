//! Collection: deleting what nothing needs any more.
//!
//! ```text
//!   1  list the layers that are older than the grace period          candidates
//!   2  delete manifests that retention lets go
//!   3  list and read every manifest that is there now                marks
//!   4  delete the candidates without a mark, and WAL that no mark needs
//! ```
//!
//! A candidate without a mark stays nevertheless while its writer may name it yet: while the branch has not
//! published for a grace period after it was written, and no newer term has taken over. A compute whose
//! manifests cannot be published because the keepers are away reads from such layers for hours.
//!
//! The order is the proof. A manifest that appears after step 3 names layers of three origins:
//!
//! * its predecessor's: which was there at step 3, or by induction names what was;
//! * a manifest's that it copies (a branch, a restore): its publisher looks *afterwards* whether that one
//!   is still there, so it was not deleted in step 2, and marked;
//! * new ones: written at most half a grace period before its predecessor was published, on which
//!   [`publish`](PageStore::publish) insists.
//!
//! Ages compare the store's clock with ours and the publisher's; half a grace period is for their differences.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectMeta;
use object_store::path::Path;
use serde::Serialize;

use super::manifest::{BranchState, Manifest, ManifestHead, WalSpan};
use super::object_names::{self, WalChunkName};
use super::publishing::CONCURRENT_READS;
use super::{GRACE, PageStore, retention};
use crate::ids::{BranchId, LayerId, ProjectName, Term};
use crate::storage::last_part;
use crate::{CoreError, Result, Timestamp};

/// What a collection deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Collection {
    /// Manifests.
    pub manifests: u64,
    /// Layers.
    pub layers: u64,
    /// Chunks of WAL.
    pub wal_chunks: u64,
    /// Superseded claims on names, and puts that a crash interrupted.
    pub leftovers: u64,
    /// Bytes of layers and WAL.
    pub bytes: u64,
}

/// What the manifests that are there refer to.
#[derive(Default)]
struct Marks {
    layers: HashSet<LayerId>,
    wal: HashSet<WalSpan>,
    /// How far each live branch is.
    branches: BTreeMap<BranchId, Arc<ManifestHead>>,
}

impl Marks {
    fn add(&mut self, manifest: &Manifest) {
        self.layers.extend(manifest.body.layers.iter().map(|layer| layer.id));
        self.wal.extend(manifest.body.wal.iter().cloned());
    }

    /// Whether nobody has any use for a layer that nothing names.
    fn is_abandoned(&self, branch: BranchId, term: Term, written: Timestamp) -> bool {
        match self.branches.get(&branch) {
            Some(newest) => newest.term > term || written < newest.published_at.before(GRACE),
            None => true,
        }
    }

    fn needs(&self, project: &ProjectName, branch: BranchId, chunk: WalChunkName) -> bool {
        // WAL of a later timeline is of a compute that has not published yet.
        self.branches.get(&branch).is_some_and(|newest| chunk.timeline > newest.timeline)
            || self.wal.iter().any(|span| {
                (&span.project, span.branch, span.timeline) == (project, branch, chunk.timeline)
                    && span.from < chunk.end
                    && span.to.is_none_or(|to| chunk.start < to)
            })
    }
}

impl PageStore {
    /// Deletes what no point within `retention` of any branch needs, and what deleted branches left. Two
    /// collections at a time do no harm.
    ///
    /// # Errors
    /// The store failed, or a manifest is damaged: then nothing is deleted that it might have named.
    pub async fn collect(&self, project: &ProjectName, retention: Duration) -> Result<Collection> {
        self.collect_as_of(project, retention, Timestamp::now()).await
    }

    pub(super) async fn collect_as_of(
        &self,
        project: &ProjectName,
        retention: Duration,
        now: Timestamp,
    ) -> Result<Collection> {
        let mut collection = Collection::default();
        let old = |object: &ObjectMeta| now.since(object.last_modified.into()) > GRACE;
        let mut layers = self.storage.list(&object_names::layers(project), None).await?;
        let mut wal = self.storage.list(&object_names::wal_of_project(project), None).await?;
        layers.retain(old);
        wal.retain(old);

        for branch in self.branch_ids(project).await? {
            let heads = self.manifests(project, branch).await?;
            let expired = retention::expired(&heads, now, retention);
            let paths =
                expired.iter().map(|number| object_names::manifest(project, branch, *number)).collect();
            collection.manifests += self.delete_all(paths).await?;
            if expired.len() == heads.len() {
                self.storage.forget_empty_folder(&object_names::branch(project, branch)).await?;
            }
        }

        let mut marks = Marks::default();
        self.mark(project, &mut marks).await?;
        let is_garbage = |marks: &Marks, object: &ObjectMeta| match object_names::layer_id(&object.location) {
            Some((branch, term, id)) => {
                !marks.layers.contains(&id) && marks.is_abandoned(branch, term, object.last_modified.into())
            }
            None => false,
        };
        layers.retain(|object| is_garbage(&marks, object));
        wal.retain(|object| is_wal_garbage(&marks, project, object));
        if !layers.is_empty() || !wal.is_empty() {
            // Only a template has children, and it seldom has garbage: reading all of theirs is rare.
            for child in self.projects_born_from(project).await? {
                self.mark(&child, &mut marks).await?;
            }
            layers.retain(|object| is_garbage(&marks, object));
            wal.retain(|object| is_wal_garbage(&marks, project, object));
        }
        collection.bytes = layers.iter().chain(&wal).map(|object| object.size).sum();
        collection.layers = self.delete_all(locations(layers)).await?;
        collection.wal_chunks = self.delete_all(locations(wal)).await?;
        collection.leftovers = self.collect_leftovers(project, now).await?;
        Ok(collection)
    }

    /// Marks what the manifests of a project name.
    async fn mark(&self, project: &ProjectName, marks: &mut Marks) -> Result<()> {
        for branch in self.branch_ids(project).await? {
            let numbers = self.numbers(project, branch).await?;
            let reads = numbers.into_iter().map(|number| async move {
                match self.manifest(project, branch, number).await {
                    // Another collection was faster.
                    Err(CoreError::ObjectMissing { .. }) => Ok(None),
                    outcome => outcome.map(Some),
                }
            });
            let mut newest = None;
            let mut manifests = stream::iter(reads).buffered(CONCURRENT_READS);
            while let Some(manifest) = manifests.try_next().await? {
                if let Some(manifest) = manifest {
                    marks.add(&manifest);
                    newest = Some(Arc::new(manifest.head.clone()));
                }
            }
            let live = newest.filter(|head| head.state == BranchState::Live);
            marks.branches.extend(live.map(|head| (branch, head)));
        }
        Ok(())
    }

    async fn collect_leftovers(&self, project: &ProjectName, now: Timestamp) -> Result<u64> {
        let mut claims: BTreeMap<Option<Path>, Vec<ObjectMeta>> = BTreeMap::new();
        for claim in self.storage.list(&object_names::names(project), None).await? {
            claims.entry(claim.location.parent()).or_default().push(claim);
        }
        // The last claim says whose the name is. It stays even when that branch is gone: a creator may
        // just be counting on from it.
        let superseded = claims.into_values().flat_map(|mut claims| {
            claims.pop();
            claims
        });
        let old = superseded.filter(|claim| now.since(claim.last_modified.into()) > GRACE).collect();
        let claims = self.delete_all(locations(old)).await?;
        Ok(claims + self.storage.delete_abandoned_puts(&object_names::project(project), GRACE).await?)
    }

    async fn delete_all(&self, paths: Vec<Path>) -> Result<u64> {
        // Each future owns its path: one that borrows it cannot be proven to be Send for every caller.
        let deleted = |path: Path| async move { self.storage.delete(&path).await };
        stream::iter(paths.into_iter().map(deleted))
            .buffer_unordered(CONCURRENT_READS)
            .try_fold(0, |deleted, ()| async move { Ok(deleted + 1) })
            .await
    }
}

fn is_wal_garbage(marks: &Marks, project: &ProjectName, object: &ObjectMeta) -> bool {
    let branch =
        object.location.parent().and_then(|folder| last_part(&folder)).and_then(|id| id.parse().ok());
    match (branch, WalChunkName::parse(&object.location)) {
        (Some(branch), Some(chunk)) => !marks.needs(project, branch, chunk),
        // What somebody else put there is not ours to delete.
        _ => false,
    }
}

fn locations(objects: Vec<ObjectMeta>) -> Vec<Path> {
    objects.into_iter().map(|object| object.location).collect()
}
