//! What a process remembers of manifests: they never change.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::manifest::{Manifest, ManifestHead};
use crate::Timestamp;
use crate::ids::{BranchId, LayerId, ManifestNumber};

/// Heads in memory; at some 600 bytes each.
const HEADS_LIMIT: usize = 20_000;
/// Branches whose layers are remembered.
const NAMED_BRANCHES: usize = 64;

/// The layers of a manifest, and when it was published.
pub(super) type Named = (Arc<HashSet<LayerId>>, Timestamp);

/// What the newest manifest of each branch named, as far as it was published or looked at here.
#[derive(Debug, Default)]
pub(super) struct NamedLayers {
    by_branch: Mutex<HashMap<BranchId, (ManifestNumber, Named)>>,
}

impl NamedLayers {
    pub(super) fn of(&self, branch: BranchId, number: ManifestNumber) -> Option<Named> {
        let by_branch = self.by_branch.lock().unwrap_or_else(PoisonError::into_inner);
        by_branch.get(&branch).filter(|(known, _)| *known == number).map(|(_, named)| named.clone())
    }

    pub(super) fn remember(&self, manifest: &Manifest) -> Named {
        let layers = manifest.body.layers.iter().map(|layer| layer.id).collect();
        let named = (Arc::new(layers), manifest.head.published_at);
        let mut by_branch = self.by_branch.lock().unwrap_or_else(PoisonError::into_inner);
        // A process publishes for a few branches; one that makes thousands needs none of this.
        if by_branch.len() >= NAMED_BRANCHES {
            by_branch.clear();
        }
        by_branch.insert(manifest.head.branch, (manifest.head.number, named.clone()));
        named
    }
}

/// Heads of manifests, which never change.
#[derive(Debug, Default)]
pub(super) struct HeadCache {
    heads: Mutex<HashMap<(BranchId, ManifestNumber), Arc<ManifestHead>>>,
}

impl HeadCache {
    pub(super) fn get(&self, branch: BranchId, number: ManifestNumber) -> Option<Arc<ManifestHead>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).get(&(branch, number)).cloned()
    }

    pub(super) fn insert(&self, head: ManifestHead) -> Arc<ManifestHead> {
        let head = Arc::new(head);
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        // Rare enough that starting over is cheaper than keeping an order.
        if heads.len() >= HEADS_LIMIT {
            heads.clear();
        }
        heads.insert((head.branch, head.number), Arc::clone(&head));
        head
    }
}
