//! What a cut holds of one file, from the cut until its capture is through.
//!
//! ```text
//!                 first change after the cut                 capture is through
//!   Changes ───────── freeze ─────────▶ Frozen ───────────────── settle ──▶ clean
//!      ▲                                   │
//!      └─────────── give back ─────────────┘  the store refused: the pages are dirty again
//! ```
//!
//! A frozen page stays in its slot. Written again, it gets another one and the old slot is *displaced*:
//! out of the page table, still the cut's. So the capture reads frozen slots without any lock.

use std::collections::HashMap;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::file::{Changes, File, FileState, blocks_of};
use super::gate::{Epoch, Gate, Passage};
use super::page_cache::{PageCache, Slot};

#[derive(Debug)]
pub(super) struct Frozen {
    /// The size at the cut.
    pub(super) size: u64,
    /// What had changed since the cut before.
    pub(super) blocks: RoaringBitmap,
    /// Where the slots of those blocks are that were written, truncated or dropped since.
    pub(super) displaced: HashMap<u32, Slot>,
    /// The fewest blocks the file was truncated to before the cut.
    pub(super) truncated_to: Option<u32>,
}

/// The same for the capture, with the slots that hold the bytes.
#[derive(Debug)]
pub(super) struct FrozenFile {
    pub(super) size: u64,
    pub(super) truncated_to: Option<u32>,
    /// Ascending blocks.
    pub(super) pages: Vec<(u32, Slot)>,
}

impl Frozen {
    /// True when the slot that the page table has for `block` is the cut's.
    pub(super) fn pins(&self, block: u32) -> bool {
        self.blocks.contains(block) && !self.displaced.contains_key(&block)
    }
}

impl FileState {
    /// Puts the changes of the epoch that ended aside.
    pub(super) fn freeze(&mut self) {
        debug_assert!(self.frozen.is_none(), "one cut at a time");
        let epoch = self.changes.epoch;
        let dirty = RoaringBitmap::new();
        let empty = Changes { epoch, touched: false, withheld: false, dirty, truncated_to: None };
        let changes = std::mem::replace(&mut self.changes, empty);
        self.frozen = Some(Frozen {
            size: self.size,
            blocks: changes.dirty,
            displaced: HashMap::new(),
            truncated_to: changes.truncated_to,
        });
        self.low_since_cut = u32::MAX;
    }

    /// The frozen pages become dirty again, as far as nothing newer took their place.
    fn unfreeze(&mut self, cache: &PageCache, gate: &Gate) {
        let Some(frozen) = self.frozen.take() else { return };
        let before = self.changes.dirty.len() + frozen.blocks.len();
        let FileState { changes, pages, .. } = self;
        changes.dirty.extend(frozen.blocks.iter().filter(|block| pages.get(*block).is_some()));
        gate.dirty_pages_subtract(before - changes.dirty.len());
        changes.truncated_to = match (changes.truncated_to, frozen.truncated_to) {
            (Some(now), Some(then)) => Some(now.min(then)),
            (now, then) => now.or(then),
        };
        for slot in frozen.displaced.into_values() {
            cache.release(slot);
        }
    }
}

impl File {
    /// What the cut that ended `epoch` holds of this file.
    pub(super) fn frozen_at(&self, epoch: Epoch) -> Option<FrozenFile> {
        let mut state = self.hold();
        if state.changes.touched && state.changes.epoch <= epoch {
            state.freeze();
        }
        let frozen = state.frozen.as_ref()?;
        let slot = |block| frozen.displaced.get(&block).copied().or_else(|| state.pages.get(block));
        let pages = frozen.blocks.iter().filter_map(|block| Some((block, slot(block)?))).collect();
        Some(FrozenFile { size: frozen.size, truncated_to: frozen.truncated_to, pages })
    }

    /// The capture is through: what was frozen is in the store.
    pub(super) fn settle(&self, cache: &PageCache, gate: &Gate) {
        let mut state = self.hold();
        let Some(frozen) = state.frozen.take() else { return };
        gate.dirty_pages_subtract(frozen.blocks.len());
        state.local = false;
        state.stored_blocks = blocks_of(frozen.size).min(state.low_since_cut);
        for slot in frozen.displaced.into_values() {
            cache.release(slot);
        }
    }

    /// The capture failed: the next cut takes the changes again.
    pub(super) fn give_back(self: &Arc<File>, passage: &Passage<'_>, cache: &PageCache) {
        let mut state = self.change(passage);
        state.unfreeze(cache, passage.gate());
    }

    /// The capture leaves this file out: its pages stay dirty, and no cut is made because of them.
    pub(super) fn withhold(&self, cache: &PageCache, gate: &Gate) {
        let mut state = self.hold();
        state.unfreeze(cache, gate);
        state.changes.withheld = true;
        state.local = true;
    }

    /// Adds what was withheld so far to the cut being captured: nothing runs any more that could change it.
    pub(super) fn join_cut(&self) -> bool {
        let mut state = self.hold();
        let joins = state.changes.withheld && !state.changes.touched;
        state.changes.touched |= joins;
        joins
    }
}
