//! Where each page of one file lies in the local cache.
//!
//! Two levels: a directory of chunks, each with the slots of 32 neighbouring blocks (256 KiB). A file that
//! nobody read costs nothing, a 1 GiB segment of a relation that is cached whole costs 160 KiB.
//!
//! The top bit of an entry is the *recently read* mark of the eviction clock. Readers set it while they
//! hold the file's lock only shared, hence the atomics; everything else changes under the exclusive lock.

use std::sync::atomic::{AtomicU32, Ordering};

use super::page_cache::Slot;

const CHUNK: usize = 32;
const EMPTY: u32 = u32::MAX;
const RECENT: u32 = 1 << 31;

type Chunk = Box<[AtomicU32; CHUNK]>;

#[derive(Debug, Default)]
pub(super) struct PageTable {
    chunks: Vec<Option<Chunk>>,
}

fn place(block: u32) -> (usize, usize) {
    (block as usize / CHUNK, block as usize % CHUNK)
}

fn slot_of(entry: u32) -> Option<Slot> {
    (entry != EMPTY).then_some(Slot(entry & !RECENT))
}

impl PageTable {
    /// The slot of `block`, when it is cached.
    pub(super) fn get(&self, block: u32) -> Option<Slot> {
        let (chunk, index) = place(block);
        let entry = self.chunks.get(chunk)?.as_ref()?.get(index)?;
        slot_of(entry.load(Ordering::Relaxed))
    }

    /// The slot of `block`, marked as recently read.
    pub(super) fn get_for_read(&self, block: u32) -> Option<Slot> {
        let (chunk, index) = place(block);
        let entry = self.chunks.get(chunk)?.as_ref()?.get(index)?;
        let value = entry.load(Ordering::Relaxed);
        if value != EMPTY && value & RECENT == 0 {
            entry.store(value | RECENT, Ordering::Relaxed);
        }
        slot_of(value)
    }

    /// Takes the mark of `block` away and tells whether it was there: the second chance of the clock.
    pub(super) fn forgive(&self, block: u32) -> bool {
        let (chunk, index) = place(block);
        self.chunks
            .get(chunk)
            .and_then(Option::as_ref)
            .and_then(|chunk| chunk.get(index))
            .map(|entry| (entry, entry.load(Ordering::Relaxed)))
            .filter(|(_, value)| *value != EMPTY && value & RECENT != 0)
            .inspect(|(entry, value)| entry.store(value & !RECENT, Ordering::Relaxed))
            .is_some()
    }

    /// Puts `slot` in the place of `block` and returns the one that was there.
    pub(super) fn set(&mut self, block: u32, slot: Slot) -> Option<Slot> {
        let (chunk, index) = place(block);
        if self.chunks.len() <= chunk {
            self.chunks.resize_with(chunk + 1, || None);
        }
        let chunk = self.chunks.get_mut(chunk)?;
        let chunk = chunk.get_or_insert_with(|| Box::new([const { AtomicU32::new(EMPTY) }; CHUNK]));
        let entry = chunk.get_mut(index)?.get_mut();
        slot_of(std::mem::replace(entry, slot.0 | RECENT))
    }

    /// Takes `block` out.
    pub(super) fn remove(&mut self, block: u32) -> Option<Slot> {
        let (chunk, index) = place(block);
        let entry = self.chunks.get_mut(chunk)?.as_mut()?.get_mut(index)?.get_mut();
        slot_of(std::mem::replace(entry, EMPTY))
    }

    /// Takes out every block at or above `first`.
    pub(super) fn remove_from(&mut self, first: u32) -> Vec<(u32, Slot)> {
        let removed: Vec<(u32, Slot)> = self.cached_from(first).collect();
        for (block, _) in &removed {
            self.remove(*block);
        }
        self.chunks.truncate((first as usize).div_ceil(CHUNK));
        removed
    }

    /// Every cached block, ascending.
    pub(super) fn cached(&self) -> impl Iterator<Item = (u32, Slot)> + '_ {
        self.cached_from(0)
    }

    fn cached_from(&self, first: u32) -> impl Iterator<Item = (u32, Slot)> + '_ {
        let (first_chunk, _) = place(first);
        self.chunks
            .iter()
            .enumerate()
            .skip(first_chunk)
            .filter_map(|(index, chunk)| Some((index, chunk.as_ref()?)))
            .flat_map(|(index, chunk)| {
                chunk.iter().enumerate().filter_map(move |(offset, entry)| {
                    let block = u32::try_from(index * CHUNK + offset).ok()?;
                    Some((block, slot_of(entry.load(Ordering::Relaxed))?))
                })
            })
            .filter(move |(block, _)| *block >= first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncation_takes_out_what_lies_above_it_and_nothing_else() {
        let mut table = PageTable::default();
        for block in [0, 31, 32, 33, 70, 100_000] {
            assert_eq!(table.set(block, Slot(block + 1)), None);
        }
        assert_eq!(table.set(33, Slot(7)), Some(Slot(34)));
        let removed = table.remove_from(33);
        assert_eq!(removed, [(33, Slot(7)), (70, Slot(71)), (100_000, Slot(100_001))]);
        assert_eq!(table.cached().collect::<Vec<_>>(), [(0, Slot(1)), (31, Slot(32)), (32, Slot(33))]);
        assert_eq!(table.get(70), None);
    }

    #[test]
    fn a_page_that_was_read_is_passed_over_once() {
        let mut table = PageTable::default();
        table.set(5, Slot(9));
        assert!(table.forgive(5), "new pages count as read");
        assert!(!table.forgive(5));
        assert_eq!(table.get_for_read(5), Some(Slot(9)));
        assert!(table.forgive(5));
        assert!(!table.forgive(6));
    }
}
