//! Compaction: fewer layers, without the pages that nobody sees any more.
//!
//! Every cut adds a stratum, and a lookup asks strata from the newest on. Neighbouring strata of like
//! size are merged into one, which takes the age of the newest; so their number grows with the logarithm
//! of the database's size over a cut's, and every page is rewritten about as often.
//!
//! ```text
//!   ▂ ▂ ▂ ▂ ▆ ████████      newest … oldest: each stratum before which the newer ones together are
//!   └──┬──┘                 less than half its size is a border
//!      ▆    ▆ ████████
//! ```
//!
//! When the layers have twice the pages that the files can have, everything is merged: that bounds the
//! room that overwritten and dropped pages take. A layer whose files are all gone is dropped unread, and
//! one that no other stratum of the merge touches is taken over as it is.
//!
//! The result is applied to whatever manifest is published next ([`Compaction::apply`]): captures go on
//! meanwhile. The pages of dropped files and truncated tails can go because nothing will ask for them:
//! file numbers are never used again, and a tail that was cut off stays dead to layers as old as these. A
//! compaction that takes longer than half a grace period comes too late, and is made anew.

use std::collections::HashSet;
use std::ops::Range;

use super::PageStore;
use super::layer_format::WINDOW_BLOCKS;
use super::layer_merge::LayerMerge;
use super::manifest::{LayerRef, Manifest, ManifestBody, layer_defect};
use super::manifest_view::{ManifestView, Stratum};
use crate::ids::{FileId, LayerId, LayerSequence, PageKey, Term};
use crate::{CoreError, Result};

/// Fewer strata of one size are not worth a rewrite.
const FAN_IN: usize = 4;
/// A stratum this many times larger than all newer ones is left alone by them.
const BORDER: u64 = 2;
/// A few thousand pages of garbage (32 MiB) cost nothing.
const GARBAGE_ALLOWANCE: u64 = 4096;

/// Layers that take the place of others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compaction {
    /// What goes.
    pub removed: Vec<LayerId>,
    /// What comes in its place.
    pub added: Vec<LayerRef>,
}

impl Compaction {
    /// Puts the new layers in the place of the old ones, and forgets truncations that concern no layer
    /// any more. False, and nothing changed, when the manifest does not have all that should go: it descends
    /// from another one.
    #[must_use]
    pub fn apply(&self, body: &mut ManifestBody) -> bool {
        let present: HashSet<LayerId> = body.layers.iter().map(|layer| layer.id).collect();
        if !self.removed.iter().all(|id| present.contains(id)) {
            return false;
        }
        let removed: HashSet<LayerId> = self.removed.iter().copied().collect();
        body.layers.retain(|layer| !removed.contains(&layer.id));
        body.layers.extend(self.added.iter().cloned());
        let oldest = body.layers.iter().map(|layer| layer.sequence).min();
        for file in &mut body.files {
            file.truncations.retain(|cut| oldest.is_some_and(|oldest| oldest < cut.sequence));
        }
        true
    }
}

impl PageStore {
    /// Merges layers of a manifest if that is worth it; `None` when all is well. One compaction of a branch at a
    /// time, by whoever publishes its manifests; the new layers lie in its project.
    ///
    /// # Errors
    /// The store failed, or a layer or page is damaged: then everything stays as it is.
    pub async fn compact(&self, view: &ManifestView, term: Term) -> Result<Option<Compaction>> {
        let plan = Plan::of(view);
        let mut compaction = Compaction { removed: plan.dropped, added: Vec::new() };
        let strata = view.strata().get(plan.merged).unwrap_or_default();
        if let Some(newest) = strata.first().filter(|_| strata.len() > 1) {
            let dropped: HashSet<LayerId> = compaction.removed.iter().copied().collect();
            let taken_over = self.untouched(view, strata, newest.sequence).await?;
            let mut merged = Vec::new();
            for stratum in strata {
                let layers = stratum.layers().iter().filter(|layer| !dropped.contains(&layer.id));
                let (whole, parts): (Vec<_>, Vec<_>) =
                    layers.cloned().partition(|layer| taken_over.contains(&layer.id));
                compaction.removed.extend(whole.iter().chain(&parts).map(|layer| layer.id));
                compaction
                    .added
                    .extend(whole.into_iter().map(|layer| LayerRef { sequence: newest.sequence, ..layer }));
                merged.push(parts);
            }
            let head = &view.manifest().head;
            let mut writer = self.write_layers(&head.project, head.branch, term, newest.sequence)?;
            // A run may not span a layer that is taken over: two layers of one age would overlap.
            let borders = compaction.added.iter().map(|layer| layer.first).collect();
            LayerMerge::new(self, view, merged).run(&mut writer, borders).await?;
            compaction.added.extend(writer.finish().await?);
        }
        // A merge gone wrong would stand in every manifest from now on, and none could be published.
        let Manifest { head, body } = &**view.manifest();
        let removed: HashSet<LayerId> = compaction.removed.iter().copied().collect();
        let kept = body.layers.iter().filter(|layer| !removed.contains(&layer.id));
        if let Some(reason) = layer_defect(kept.chain(&compaction.added), body.next_layer_sequence) {
            return Err(CoreError::ManifestUnsound { branch: head.branch, number: head.number, reason });
        }
        Ok((!compaction.removed.is_empty()).then_some(compaction))
    }

    /// Layers that can stay as they are: no other stratum of the merge has a page among theirs, nor in a window
    /// where they begin or end, and no truncation or drop concerns them.
    async fn untouched(
        &self,
        view: &ManifestView,
        strata: &[Stratum],
        sequence: LayerSequence,
    ) -> Result<HashSet<LayerId>> {
        let mut untouched = HashSet::new();
        for (at, stratum) in strata.iter().enumerate() {
            for layer in stratum.layers() {
                if !is_all_alive(view, layer, sequence) {
                    continue;
                }
                let others = strata.iter().enumerate().filter(|(other, _)| *other != at);
                let (first, last) = whole_windows(layer);
                let overlapping = others.flat_map(|(_, other)| other.between(first, last));
                let mut alone = true;
                for other in overlapping {
                    if self.index(other).await?.has_runs_between(first, last) {
                        alone = false;
                        break;
                    }
                }
                if alone {
                    untouched.insert(layer.id);
                }
            }
        }
        Ok(untouched)
    }
}

/// The pages of the windows that a layer has something of. Merging goes window by window, so a layer that shared one
/// with what is merged would come to lie inside a new layer.
fn whole_windows(layer: &LayerRef) -> (PageKey, PageKey) {
    let first = layer.first.block - layer.first.block % WINDOW_BLOCKS;
    let last = layer.last.block | (WINDOW_BLOCKS - 1);
    (PageKey { block: first, ..layer.first }, PageKey { block: last, ..layer.last })
}

/// Whether every page of a layer would still count if it were as young as `sequence`.
fn is_all_alive(view: &ManifestView, layer: &LayerRef, sequence: LayerSequence) -> bool {
    // A wide range of file numbers is looked at file by file; beyond this it is as well to merge.
    const FILES_LIMIT: u64 = 4096;
    let files = layer.first.file.0..=layer.last.file.0;
    layer.last.file.0.saturating_sub(layer.first.file.0) < FILES_LIMIT
        && files.into_iter().all(|id| {
            view.file(FileId(id)).is_some_and(|file| {
                file.truncations.iter().all(|cut| cut.sequence <= layer.sequence || cut.sequence > sequence)
            })
        })
}

/// What is worth doing.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Layers whose files are all gone.
    dropped: Vec<LayerId>,
    /// Neighbouring strata, newest first.
    merged: Range<usize>,
}

impl Plan {
    fn of(view: &ManifestView) -> Plan {
        let mut files: Vec<FileId> = view.manifest().body.files.iter().map(|file| file.id).collect();
        files.sort();
        let is_gone = |layer: &&LayerRef| {
            let first = files.partition_point(|file| *file < layer.first.file);
            files.get(first).is_none_or(|file| *file > layer.last.file)
        };
        let layers = &view.manifest().body.layers;
        let dropped: Vec<LayerId> = layers.iter().filter(is_gone).map(|layer| layer.id).collect();
        let sizes: Vec<u64> = view
            .strata()
            .iter()
            .map(|stratum| {
                let alive = stratum.layers().iter().filter(|layer| !is_gone(layer));
                alive.map(|layer| u64::from(layer.pages)).sum()
            })
            .collect();
        let possible: u64 = view.manifest().body.files.iter().map(|file| file.blocks()).sum();
        Plan { dropped, merged: merged(&sizes, possible) }
    }
}

/// Which of the strata to merge, by their pages, newest first.
fn merged(sizes: &[u64], possible: u64) -> Range<usize> {
    let all: u64 = sizes.iter().sum();
    if sizes.len() > 1 && all > possible.saturating_mul(2).saturating_add(GARBAGE_ALLOWANCE) {
        return 0..sizes.len();
    }
    for start in 0..sizes.len() {
        let mut together = 0_u64;
        let older = sizes.iter().skip(start);
        let count = older
            .take_while(|size| {
                let belongs = together == 0 || **size <= together.saturating_mul(BORDER);
                together = together.saturating_add(**size);
                belongs
            })
            .count();
        if count >= FAN_IN {
            return start..start + count;
        }
    }
    0..0
}

/// The first page of a window, for comparing keys with runs.
pub(super) fn window_start(key: PageKey) -> (FileId, u32) {
    (key.file, key.block / WINDOW_BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strata_of_like_size_are_merged_and_a_far_larger_one_is_left_alone() {
        assert_eq!(merged(&[10, 10, 10], 10_000), 0..0);
        assert_eq!(merged(&[10, 10, 10, 10, 9000], 10_000), 0..4);
        assert_eq!(merged(&[1, 10, 10, 10, 10, 9000], 10_000), 1..5);
        assert_eq!(merged(&[], 0), 0..0);
    }

    #[test]
    fn when_most_pages_are_garbage_everything_is_merged() {
        assert_eq!(merged(&[100, 9000], 1000), 0..2);
        assert_eq!(merged(&[9000], 1000), 0..0);
    }

    #[test]
    fn ten_thousand_cuts_leave_few_strata_and_each_page_is_rewritten_a_few_times() {
        let mut sizes: Vec<u64> = vec![250_000];
        let (mut deepest, mut rewritten) = (0, 0);
        for cut in 0..10_000_u64 {
            sizes.insert(0, 50 + cut * 37 % 101);
            let range = merged(&sizes, 10_000_000);
            if !range.is_empty() {
                let sum: u64 = sizes.drain(range.clone()).sum();
                rewritten += sum;
                sizes.insert(range.start, sum);
            }
            deepest = deepest.max(sizes.len());
        }
        let written: u64 = (0..10_000_u64).map(|cut| 50 + cut * 37 % 101).sum();
        assert!(deepest <= 16, "{deepest} strata");
        assert!(rewritten < 12 * written, "{rewritten} of {written}");
    }
}
