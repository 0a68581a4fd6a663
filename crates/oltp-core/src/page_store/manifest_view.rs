//! A manifest arranged for looking pages up.
//!
//! Layers of one sequence form a *stratum*: they have no page in common and are sorted, so at most one
//! of them has a page, found by bisection. Strata are searched from the newest to the oldest. How many
//! there are is what a lookup costs, and what compaction keeps low.

use std::collections::HashMap;
use std::sync::Arc;

use super::manifest::{FileEntry, LayerRef, Manifest};
use crate::ids::{FileId, LayerSequence, PageKey};

/// A manifest with its layers in order of age and its files by number. Cheap to share.
#[derive(Debug)]
pub struct ManifestView {
    manifest: Arc<Manifest>,
    files: HashMap<FileId, usize>,
    strata: Vec<Stratum>,
}

/// Layers of one age, sorted by their pages.
#[derive(Debug)]
pub(super) struct Stratum {
    pub(super) sequence: LayerSequence,
    layers: Vec<LayerRef>,
}

impl ManifestView {
    /// Arranges a manifest.
    pub fn new(manifest: Arc<Manifest>) -> ManifestView {
        let files = manifest.body.files.iter().enumerate().map(|(at, file)| (file.id, at)).collect();
        let strata = strata(&manifest.body.layers);
        ManifestView { manifest, files, strata }
    }

    /// The manifest itself.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// A file by its number.
    pub fn file(&self, id: FileId) -> Option<&FileEntry> {
        self.manifest.body.files.get(*self.files.get(&id)?)
    }

    /// How many layers a lookup may have to ask.
    pub fn depth(&self) -> usize {
        self.strata.len()
    }

    /// Newest first.
    pub(super) fn strata(&self) -> &[Stratum] {
        &self.strata
    }
}

/// Groups layers by age, the newest first.
pub(super) fn strata(layers: &[LayerRef]) -> Vec<Stratum> {
    let mut layers = layers.to_vec();
    layers.sort_by(|left, right| right.sequence.cmp(&left.sequence).then(left.first.cmp(&right.first)));
    let groups = layers.chunk_by(|left, right| left.sequence == right.sequence);
    groups
        .filter_map(|group| Some(Stratum { sequence: group.first()?.sequence, layers: group.to_vec() }))
        .collect()
}

impl Stratum {
    /// Sorted by their pages.
    pub(super) fn layers(&self) -> &[LayerRef] {
        &self.layers
    }

    /// The layers that may have pages between these two, ends included.
    pub(super) fn between(&self, first: PageKey, last: PageKey) -> impl Iterator<Item = &LayerRef> {
        let start = self.layers.partition_point(|layer| layer.last < first);
        self.layers.iter().skip(start).take_while(move |layer| layer.first <= last)
    }
}
