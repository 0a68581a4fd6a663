//! The local page cache: one file of 8 KiB slots.
//!
//! A page lies in any slot; its file's page table knows which. So a page that a cut has frozen is never
//! copied when it is written again: the new contents take another slot, and the frozen one stays as it is
//! until the capture has uploaded it. Dropping a relation frees slots and touches no other file.
//!
//! ```text
//!   free ──allocate──▶ owned by (file, block) ──release──▶ free
//!            ▲                    │ clean, not read lately
//!            └──── evict ◀────────┘ (the clock; dirty and frozen pages are passed over)
//! ```
//!
//! The invariant: **a slot that a page table or a cut refers to is never handed out**. Whoever takes a
//! slot out of its last place releases it, and nobody else.
//!
//! What every start of Postgres reads (the catalogs above all) is passed over by the clock, up to a quarter of the limit:
//! while Postgres runs the kernel has these pages and nobody asks us for them, so they look forgotten, and the next start
//! would have to fetch each of them.
//!
//! Eviction keeps to the limit. When nothing clean is left, dirty pages may take as much again (the
//! capture that the pressure asks for needs time); beyond that writers wait. Scratch pages (temporary and
//! unlogged relations) are not captured, so waiting would make no room for them: they do not count, and
//! are bounded by the disk alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use parking_lot::Mutex;

use super::tree::Ino;

/// The unit of everything here, and Postgres's block size.
pub(super) const PAGE: usize = crate::page_store::PAGE_BYTES;
/// The same as a file offset.
pub(super) const PAGE_BYTES: u64 = PAGE as u64;

/// Page tables keep one bit of the slot number for themselves, and one value for "not cached".
const SLOTS_AT_MOST: u32 = (1 << 31) - 2;

/// With fewer slots than this a single request of 1 MiB could not be served.
const SLOTS_AT_LEAST: u32 = 1024;

/// What every start reads has this part of the limit for itself.
const STANDING_SHARE: usize = 4;

/// One page frame of the cache file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Slot(pub(super) u32);

impl Slot {
    fn offset(self) -> u64 {
        u64::from(self.0) * PAGE_BYTES
    }
}

/// Which page lies in a slot: what the eviction clock needs to find its page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) ino: Ino,
    pub(super) block: u32,
    pub(super) claim: Claim,
}

/// No room, and eviction cannot make any: everything is dirty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom;

/// What a page that wants room is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// A page that is in the store or will be: up to twice the limit.
    Stored,
    /// The same, of a file that every start reads.
    Standing,
    /// A page that is not captured while Postgres runs: as far as the disk goes.
    Scratch,
}

#[derive(Debug)]
pub(super) struct PageCache {
    file: File,
    limit: u32,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    free: Vec<Slot>,
    owners: Vec<Option<Owner>>,
    hand: usize,
    scratch: usize,
    standing: usize,
}

impl Slots {
    fn count(&mut self, claim: Claim) {
        match claim {
            Claim::Stored => {}
            Claim::Standing => self.standing += 1,
            Claim::Scratch => self.scratch += 1,
        }
    }

    fn count_no_more(&mut self, claim: Claim) {
        match claim {
            Claim::Stored => {}
            Claim::Standing => self.standing = self.standing.saturating_sub(1),
            Claim::Scratch => self.scratch = self.scratch.saturating_sub(1),
        }
    }

    fn in_use(&self) -> usize {
        self.owners.len() - self.free.len()
    }

    /// Those that count against the limit.
    fn counted(&self) -> usize {
        self.in_use() - self.scratch
    }
}

impl PageCache {
    /// Opens the cache file; `keep` keeps its contents, which only a recorded clean stop justifies.
    pub(super) fn open(path: &Path, limit_bytes: u64, keep: bool) -> io::Result<PageCache> {
        let file = File::options().read(true).write(true).create(true).truncate(!keep).open(path)?;
        let limit = u32::try_from(limit_bytes / PAGE_BYTES)
            .unwrap_or(SLOTS_AT_MOST)
            .clamp(SLOTS_AT_LEAST, SLOTS_AT_MOST / 4);
        Ok(PageCache { file, limit, slots: Mutex::default() })
    }

    /// The configured limit in pages.
    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Slots that hold a page now.
    pub(super) fn in_use(&self) -> u64 {
        self.slots.lock().in_use() as u64
    }

    /// Slots that do not count against the limit.
    pub(super) fn scratch(&self) -> u64 {
        self.slots.lock().scratch as u64
    }

    /// Whether pages of this claim may be evicted before anything else was tried.
    pub(super) fn may_evict(&self, claim: Claim) -> bool {
        claim != Claim::Standing || self.slots.lock().standing > self.limit as usize / STANDING_SHARE
    }

    /// How many slots would have to be evicted before `wanted` more fit under the limit.
    pub(super) fn shortage(&self, wanted: usize) -> usize {
        let slots = self.slots.lock();
        (slots.counted() + wanted).saturating_sub(self.limit as usize)
    }

    /// Takes a slot for the page of `owner`.
    pub(super) fn allocate(&self, owner: Owner) -> Result<Slot, NoRoom> {
        let mut slots = self.slots.lock();
        if owner.claim != Claim::Scratch && slots.counted() >= self.limit as usize * 2 {
            return Err(NoRoom);
        }
        slots.count(owner.claim);
        if let Some(slot) = slots.free.pop() {
            if let Some(entry) = slots.owners.get_mut(slot.0 as usize) {
                *entry = Some(owner);
            }
            return Ok(slot);
        }
        // 16 TiB: the disk ends first, and says so when the page is written.
        let slot = u32::try_from(slots.owners.len()).ok().filter(|slot| *slot < SLOTS_AT_MOST);
        let slot = Slot(slot.ok_or(NoRoom)?);
        slots.owners.push(Some(owner));
        Ok(slot)
    }

    /// Takes over what lies in the file already, slot by slot, as a recorded clean stop lists it.
    pub(super) fn restore(&self, owners: Vec<Option<Owner>>) {
        let free =
            (0..).zip(&owners).filter(|(_, owner)| owner.is_none()).map(|(slot, _)| Slot(slot)).collect();
        let mut slots = Slots { free, owners, hand: 0, scratch: 0, standing: 0 };
        let claims: Vec<Claim> = slots.owners.iter().flatten().map(|owner| owner.claim).collect();
        claims.into_iter().for_each(|claim| slots.count(claim));
        *self.slots.lock() = slots;
    }

    /// Gives a slot back that nothing refers to any more.
    pub(super) fn release(&self, slot: Slot) {
        let mut slots = self.slots.lock();
        if let Some(owner) = slots.owners.get_mut(slot.0 as usize) {
            debug_assert!(owner.is_some(), "slot {} is released twice", slot.0);
            if let Some(owner) = owner.take() {
                slots.free.push(slot);
                slots.count_no_more(owner.claim);
            }
        }
    }

    /// The next slots under the clock's hand, at most `count`, with their owners.
    pub(super) fn sweep(&self, count: usize) -> Vec<(Slot, Owner)> {
        let mut slots = self.slots.lock();
        let total = slots.owners.len();
        let mut found = Vec::with_capacity(count.min(total));
        for _ in 0..total {
            if found.len() == count {
                break;
            }
            let hand = slots.hand % total;
            slots.hand = hand + 1;
            if let Some(owner) = slots.owners.get(hand).copied().flatten() {
                found.push((Slot(hand as u32), owner));
            }
        }
        found
    }

    /// Slots of the file, free ones included.
    pub(super) fn slots(&self) -> usize {
        self.slots.lock().owners.len()
    }

    /// Reads from one page.
    pub(super) fn read(&self, slot: Slot, offset: usize, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, slot.offset() + offset as u64)
    }

    /// Writes into one page.
    pub(super) fn write(&self, slot: Slot, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, slot.offset() + offset as u64)
    }

    /// Makes the contents outlive the machine: before a clean stop is recorded.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Groups neighbouring slots, so that a request of many pages is one system call where it can be.
///
/// Yields (first slot, index of its page in the request, number of pages).
pub(super) fn runs(slots: &[Slot]) -> Vec<(Slot, usize, usize)> {
    let mut runs: Vec<(Slot, usize, usize)> = Vec::new();
    for (index, slot) in slots.iter().enumerate() {
        match runs.last_mut() {
            Some((first, _, length)) if first.0.checked_add(*length as u32) == Some(slot.0) => *length += 1,
            _ => runs.push((*slot, index, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(pages: u64) -> PageCache {
        let folder = tempfile::tempdir().unwrap();
        PageCache::open(&folder.path().join("pages"), pages * PAGE_BYTES, false).unwrap()
    }

    fn owner(block: u32) -> Owner {
        Owner { ino: Ino(9), block, claim: Claim::Stored }
    }

    #[test]
    fn dirty_pages_may_take_twice_the_limit_and_scratch_ones_what_the_disk_has() {
        let cache = cache(1024);
        for block in 0..2048 {
            cache.allocate(owner(block)).unwrap();
        }
        assert_eq!(cache.shortage(1), 1025);
        let scratch = Owner { claim: Claim::Scratch, ..owner(0) };
        assert_eq!(cache.allocate(owner(0)), Err(NoRoom));
        assert_eq!(cache.allocate(scratch), Ok(Slot(2048)));
        assert_eq!(cache.shortage(1), 1025);
        cache.release(Slot(2048));
        cache.release(Slot(5));
        cache.release(Slot(6));
        assert_eq!(cache.allocate(owner(3)), Ok(Slot(6)));
    }

    #[test]
    fn the_clock_passes_every_owned_slot_once_a_round() {
        let cache = cache(1024);
        for block in 0..5 {
            cache.allocate(owner(block)).unwrap();
        }
        cache.release(Slot(2));
        let round = [cache.sweep(3), cache.sweep(1)].concat();
        assert_eq!(round.iter().map(|(slot, _)| slot.0).collect::<Vec<_>>(), [0, 1, 3, 4]);
        assert_eq!(cache.sweep(100).len(), 4);
    }

    #[test]
    fn neighbouring_slots_are_one_run() {
        let slots = [4, 5, 6, 2, 3, 9].map(Slot);
        assert_eq!(runs(&slots), [(Slot(4), 0, 3), (Slot(2), 3, 2), (Slot(9), 5, 1)]);
    }
}
