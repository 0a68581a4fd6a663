//! One file: its size, which of its pages are here, which of those are dirty.
//!
//! For every block exactly one of these holds, and they are asked in this order:
//!
//! ```text
//!   in the page table            its bytes are in that slot
//!   below `stored_blocks`        its bytes are in the store (or it was never written: zeros)
//!   otherwise                    zeros: the file was extended over it, or truncated below it and extended again
//! ```
//!
//! A dirty page, and one that a cut has frozen, is always in the page table or displaced from it into the
//! frozen set; it is never evicted. Bytes of a slot past the end of the file are zeros, so growing a file
//! touches no page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use roaring::RoaringBitmap;
use rustix::io::Errno;

use super::file_role::FileRole;
use super::frozen::Frozen;
use super::gate::{Epoch, Passage};
use super::page_cache::{Claim, NoRoom, Owner, PAGE, PAGE_BYTES, PageCache, Slot};
use super::page_table::PageTable;
use super::tree::Ino;
use crate::ids::FileId;
use crate::page_store::WINDOW_BLOCKS;

/// No file of a cluster comes near; it keeps a write at a wild offset from growing the page table without
/// bound.
const LARGEST_FILE: u64 = 1 << 40;

#[derive(Debug)]
pub(super) struct File {
    pub(super) id: FileId,
    pub(super) ino: Ino,
    /// How often the kernel was told of this node and did not forget it yet.
    pub(super) lookups: AtomicU64,
    /// Where a reader that goes forwards misses next (upper half), and how much it gets (lower half).
    ahead: AtomicU64,
    state: RwLock<FileState>,
}

#[derive(Debug)]
pub(super) struct FileState {
    pub(super) role: FileRole,
    pub(super) size: u64,
    pub(super) modified: SystemTime,
    /// The last capture left it out: what is written to it stays on this machine until a clean stop.
    pub(super) local: bool,
    /// No name leads here any more; the handles that are open go on.
    pub(super) unlinked: bool,
    /// The kernel has forgotten it too.
    pub(super) dropped: bool,
    pub(super) pages: PageTable,
    /// Pages below may be in the store.
    pub(super) stored_blocks: u32,
    /// The fewest blocks the file had since the last cut.
    pub(super) low_since_cut: u32,
    pub(super) changes: Changes,
    /// What a cut holds of this file until its capture is through.
    pub(super) frozen: Option<Frozen>,
    /// Where a page that was written half has to go on.
    pub(super) half: Option<u64>,
}

/// What changed since the last cut that took this file's changes.
#[derive(Debug)]
pub(super) struct Changes {
    /// The epoch they were made in.
    pub(super) epoch: Epoch,
    /// The file is on the epoch's list of touched files.
    pub(super) touched: bool,
    /// A capture left them out; a clean stop takes them.
    pub(super) withheld: bool,
    pub(super) dirty: RoaringBitmap,
    /// The fewest blocks the file was truncated to.
    pub(super) truncated_to: Option<u32>,
}

/// Why a request cannot be answered at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// This page has to come from the store first.
    Missing(u32),
    /// Everything in the cache is dirty.
    NoRoom,
    /// It cannot be answered at all.
    Failed(Errno),
}

impl From<NoRoom> for Stop {
    fn from(_: NoRoom) -> Stop {
        Stop::NoRoom
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Stop {
        Stop::Failed(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// How many pages hold `size` bytes.
pub(super) fn blocks_of(size: u64) -> u32 {
    u32::try_from(size.div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX)
}

pub(super) fn block_at(offset: u64) -> u32 {
    u32::try_from(offset / PAGE_BYTES).unwrap_or(u32::MAX)
}

pub(super) fn place_in_page(offset: u64) -> usize {
    usize::try_from(offset % PAGE_BYTES).unwrap_or(0)
}

impl File {
    /// A file of `size` bytes, all of whose pages are in the store (or were never written).
    pub(super) fn stored(id: FileId, role: FileRole, size: u64, modified: SystemTime) -> Arc<File> {
        Arc::new(File {
            id,
            ino: Ino::of(id),
            lookups: AtomicU64::new(0),
            ahead: AtomicU64::new(u64::MAX),
            state: RwLock::new(FileState {
                role,
                size,
                modified,
                local: false,
                unlinked: false,
                dropped: false,
                pages: PageTable::default(),
                stored_blocks: blocks_of(size),
                low_since_cut: u32::MAX,
                changes: Changes {
                    epoch: Epoch(0),
                    touched: false,
                    withheld: false,
                    dirty: RoaringBitmap::new(),
                    truncated_to: None,
                },
                frozen: None,
                half: None,
            }),
        })
    }

    /// A file that was just created.
    pub(super) fn empty(id: FileId, role: FileRole) -> Arc<File> {
        File::stored(id, role, 0, SystemTime::now())
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, FileState> {
        self.state.read()
    }

    /// For what changes no contents: marks, eviction, copies of stored pages.
    pub(super) fn hold(&self) -> RwLockWriteGuard<'_, FileState> {
        self.state.write()
    }

    /// For changes: puts the last epoch's changes aside when these are the first of a new one.
    pub(super) fn change(self: &Arc<File>, passage: &Passage<'_>) -> RwLockWriteGuard<'_, FileState> {
        let mut state = self.state.write();
        if state.changes.epoch != passage.epoch() {
            if state.changes.touched {
                state.freeze();
            }
            state.changes.epoch = passage.epoch();
        }
        if !state.changes.touched {
            state.changes.touched = true;
            passage.touch(Arc::clone(self));
        }
        state
    }

    /// True when `block` can be read without the store.
    pub(super) fn is_here(&self, block: u32) -> bool {
        let state = self.state.read();
        block >= state.stored_blocks || state.pages.get(block).is_some()
    }

    /// How many pages to bring for a miss at `block`: twice as many each time a reader goes on where the
    /// last fetch ended, at most `most`. Only a guess, so racing readers may spoil it for each other.
    pub(super) fn readahead(&self, block: u32, most: u32) -> u32 {
        let before = self.ahead.load(Ordering::Relaxed);
        let (expected, last) = ((before >> 32) as u32, before as u32);
        let pages = if block.wrapping_sub(expected) < WINDOW_BLOCKS {
            last.saturating_mul(2).clamp(WINDOW_BLOCKS, most)
        } else {
            WINDOW_BLOCKS
        };
        let next = block.saturating_add(pages) / WINDOW_BLOCKS * WINDOW_BLOCKS;
        self.ahead.store(u64::from(next) << 32 | u64::from(pages), Ordering::Relaxed);
        pages
    }

    /// The bytes at `offset`, fewer at the end of the file.
    pub(super) fn read_at(&self, cache: &PageCache, offset: u64, length: usize) -> Result<Vec<u8>, Stop> {
        let state = self.state.read();
        let end = offset.saturating_add(length as u64).min(state.size);
        if offset >= end {
            return Ok(Vec::new());
        }
        let length = usize::try_from(end - offset).map_err(|_| Stop::Failed(Errno::INVAL))?;
        let mut bytes = vec![0; length];
        let mut run: Option<Run> = None;
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let (block, from) = (block_at(at), place_in_page(at));
            let part = (PAGE - from).min(length - done);
            let slot = state.pages.get_for_read(block);
            if slot.is_none() && block < state.stored_blocks {
                return Err(Stop::Missing(block));
            }
            match (&mut run, slot) {
                (Some(run), Some(slot)) if run.continues_at(slot, done) => run.end = done + part,
                (before, slot) => {
                    if let Some(run) = before.take() {
                        run.read(cache, &mut bytes)?;
                    }
                    run = slot.map(|first| Run { first, from, start: done, end: done + part });
                }
            }
            done += part;
        }
        if let Some(run) = run {
            run.read(cache, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Writes `bytes` at `offset`, or changes nothing.
    pub(super) fn write_at(
        self: &Arc<File>,
        passage: &Passage<'_>,
        cache: &PageCache,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Stop> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > LARGEST_FILE {
            return Err(Stop::Failed(Errno::FBIG));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let mut state = self.change(passage);
        state.put(passage, cache, self.ino, offset, bytes)?;
        state.size = state.size.max(end);
        state.modified = SystemTime::now();
        state.watch_half_page(passage, offset, end);
        Ok(())
    }

    /// Cuts the file off at `size`, or extends it with zeros up to there.
    pub(super) fn truncate(
        self: &Arc<File>,
        passage: &Passage<'_>,
        cache: &PageCache,
        size: u64,
    ) -> Result<(), Stop> {
        if size > LARGEST_FILE {
            return Err(Stop::Failed(Errno::FBIG));
        }
        let mut state = self.change(passage);
        if size < state.size {
            state.zero_tail(passage, cache, self.ino, size)?;
            state.cut_off(passage, cache, blocks_of(size));
            if state.half.take_if(|half| *half >= size).is_some() {
                passage.half_page(false);
            }
        }
        state.size = size;
        state.modified = SystemTime::now();
        Ok(())
    }

    /// Makes the bytes from `offset` to `end` zeros without changing the size: a punched hole.
    pub(super) fn zero_range(
        self: &Arc<File>,
        passage: &Passage<'_>,
        cache: &PageCache,
        offset: u64,
        end: u64,
    ) -> Result<(), Stop> {
        let mut state = self.change(passage);
        let end = end.min(state.size);
        let mut at = offset;
        while at < end {
            let block = block_at(at);
            let next = (u64::from(block) + 1).saturating_mul(PAGE_BYTES).min(end);
            if state.holds_bytes(block) {
                state.zero_in_page(passage, cache, self.ino, at, next)?;
            }
            at = next;
        }
        state.modified = SystemTime::now();
        Ok(())
    }

    /// Extends the file with zeros up to `size`; a smaller one changes nothing.
    pub(super) fn extend(self: &Arc<File>, passage: &Passage<'_>, size: u64) -> Result<(), Stop> {
        if size > LARGEST_FILE {
            return Err(Stop::Failed(Errno::FBIG));
        }
        let mut state = self.change(passage);
        if size > state.size {
            state.size = size;
            state.modified = SystemTime::now();
        }
        Ok(())
    }

    /// Puts a page of the store into the cache, unless the file has something newer at that place.
    ///
    /// `current` tells whether the store still has this version. It is asked under the file's lock: only
    /// a page that a capture settled can have been evicted, and the capture changes what `current` sees
    /// before it settles.
    pub(super) fn keep_copy(
        &self,
        cache: &PageCache,
        block: u32,
        page: &[u8],
        current: impl FnOnce() -> bool,
    ) -> Result<(), Stop> {
        let mut state = self.state.write();
        if !current() || state.dropped || block >= state.stored_blocks || state.pages.get(block).is_some() {
            return Ok(());
        }
        let slot = cache.allocate(Owner { ino: self.ino, block, claim: state.stored_claim() })?;
        if let Err(error) = cache.write(slot, 0, page) {
            cache.release(slot);
            return Err(error.into());
        }
        state.pages.set(block, slot);
        Ok(())
    }

    /// Takes a clean page that nobody read lately out of the cache.
    pub(super) fn evict(&self, cache: &PageCache, block: u32, slot: Slot) -> bool {
        let mut state = self.state.write();
        let evictable = state.pages.get(block) == Some(slot)
            && block < state.stored_blocks
            && !state.changes.dirty.contains(block)
            && !state.frozen.as_ref().is_some_and(|frozen| frozen.blocks.contains(block))
            && !state.pages.forgive(block);
        if evictable {
            state.pages.remove(block);
            cache.release(slot);
        }
        evictable
    }

    /// Takes over a page that lies in `slot` since a clean stop; what it is to the cache, if it is wanted.
    pub(super) fn adopt(&self, block: u32, slot: Slot) -> Option<Claim> {
        let mut state = self.state.write();
        if block >= state.stored_blocks || state.pages.get(block).is_some() {
            return None;
        }
        state.pages.set(block, slot);
        Some(state.stored_claim())
    }

    /// The pages here that the store has as well.
    pub(super) fn clean_pages(&self) -> Vec<(u32, Slot)> {
        let state = self.state.read();
        let dirty = |block| {
            state.changes.dirty.contains(block)
                || state.frozen.as_ref().is_some_and(|frozen| frozen.blocks.contains(block))
        };
        state
            .pages
            .cached()
            .filter(|(block, _)| *block < state.stored_blocks && !state.unlinked && !dirty(*block))
            .collect()
    }

    /// Frees everything once neither a name nor the kernel refers to the file.
    pub(super) fn drop_pages(self: &Arc<File>, passage: &Passage<'_>, cache: &PageCache) {
        let mut state = self.change(passage);
        state.dropped = true;
        if state.half.take().is_some() {
            passage.half_page(false);
        }
        state.cut_off(passage, cache, 0);
    }
}

/// Neighbouring slots that one request reads: a sequential scan finds its pages as they were fetched.
struct Run {
    first: Slot,
    /// Where in the first page.
    from: usize,
    /// Which bytes of the answer.
    start: usize,
    end: usize,
}

impl Run {
    fn continues_at(&self, slot: Slot, done: usize) -> bool {
        let bytes = self.from + self.end - self.start;
        self.end == done
            && bytes.is_multiple_of(PAGE)
            && self.first.0 as usize + bytes / PAGE == slot.0 as usize
    }

    fn read(self, cache: &PageCache, bytes: &mut [u8]) -> std::io::Result<()> {
        match bytes.get_mut(self.start..self.end) {
            Some(into) => cache.read(self.first, self.from, into),
            None => Ok(()),
        }
    }
}
