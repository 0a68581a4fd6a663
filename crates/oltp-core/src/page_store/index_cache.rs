//! The indexes of layers that were read lately.
//!
//! Layers never change, so an index once read is right for ever; only memory is short. Each index is
//! loaded once however many readers ask for it at the same time.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use super::layer_format::LayerIndex;
use crate::Result;
use crate::ids::LayerId;

/// Indexes of some 16 GiB of fully packed layers, or of a few hundred million bytes of scattered pages.
const LIMIT_BYTES: usize = 64 << 20;

#[derive(Debug, Default)]
pub(super) struct IndexCache {
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    by_layer: HashMap<LayerId, Slot>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Slot {
    index: Arc<OnceCell<Arc<LayerIndex>>>,
    /// Zero until it is loaded.
    bytes: usize,
    used_at: u64,
}

impl IndexCache {
    /// The index of a layer, by `load` unless it is there.
    pub(super) async fn get<Load>(
        &self,
        layer: LayerId,
        load: impl FnOnce() -> Load,
    ) -> Result<Arc<LayerIndex>>
    where
        Load: Future<Output = Result<LayerIndex>>,
    {
        let cell = self.lock().cell(layer);
        if let Some(index) = cell.get() {
            return Ok(Arc::clone(index));
        }
        let index = cell.get_or_try_init(|| async { load().await.map(Arc::new) }).await?;
        self.lock().loaded(layer, index.weight(), LIMIT_BYTES);
        Ok(Arc::clone(index))
    }

    /// A panic while the lock was held cannot leave the map half-changed in a way that matters.
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn cell(&mut self, layer: LayerId) -> Arc<OnceCell<Arc<LayerIndex>>> {
        self.clock += 1;
        let used_at = self.clock;
        let slot =
            self.by_layer.entry(layer).or_insert_with(|| Slot { index: Arc::default(), bytes: 0, used_at });
        slot.used_at = used_at;
        Arc::clone(&slot.index)
    }

    fn loaded(&mut self, layer: LayerId, bytes: usize, limit: usize) {
        if let Some(slot) = self.by_layer.get_mut(&layer)
            && slot.bytes == 0
        {
            slot.bytes = bytes;
            self.bytes += bytes;
        }
        while self.bytes > limit {
            let loaded = self.by_layer.iter().filter(|(id, slot)| **id != layer && slot.bytes > 0);
            let Some(oldest) = loaded.min_by_key(|(_, slot)| slot.used_at).map(|(id, _)| *id) else { break };
            if let Some(slot) = self.by_layer.remove(&oldest) {
                self.bytes -= slot.bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_that_was_used_longest_ago_makes_room() {
        let mut slots = Slots::default();
        let layers: Vec<LayerId> = (0..4).map(|_| LayerId::random()).collect();
        for layer in &layers[..3] {
            slots.cell(*layer);
            slots.loaded(*layer, 10, 30);
        }
        slots.cell(layers[0]);
        slots.cell(layers[3]);
        slots.loaded(layers[3], 10, 30);
        assert_eq!(slots.bytes, 30);
        assert!(!slots.by_layer.contains_key(&layers[1]));
        slots.cell(layers[1]);
        slots.loaded(layers[1], 100, 30);
        assert_eq!((slots.bytes, slots.by_layer.len()), (100, 1), "one that is too large stays alone");
    }
}
