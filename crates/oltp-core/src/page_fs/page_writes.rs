//! What a write does to the pages of a file.
//!
//! A page goes to its own slot, or to a new one when it has none or when a cut holds the one it has. All
//! slots are allocated before the first byte is written, and the page table changes after the last: a
//! write happens wholly or not at all, also when there is no room.

use super::file::{FileState, Stop, block_at, place_in_page};
use super::gate::Passage;
use super::page_cache::{Claim, Owner, PAGE, PAGE_BYTES, PageCache, Slot, runs};
use super::tree::Ino;

/// One page of a write: where its bytes go.
struct Target {
    block: u32,
    slot: Slot,
    /// The slot is new; with the page's present contents, if it has any.
    fresh: Option<Option<Slot>>,
}

impl FileState {
    /// True when reading `block` gives anything but zeros that come from nowhere.
    pub(super) fn holds_bytes(&self, block: u32) -> bool {
        block < self.stored_blocks || self.pages.get(block).is_some()
    }

    /// What pages are to the cache that come from the store.
    pub(super) fn stored_claim(&self) -> Claim {
        if self.role.standing { Claim::Standing } else { Claim::Stored }
    }

    /// Writes into pages and marks them dirty; the size is the caller's.
    pub(super) fn put(
        &mut self,
        passage: &Passage<'_>,
        cache: &PageCache,
        ino: Ino,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Stop> {
        let end = offset + bytes.len() as u64;
        self.need_present(offset, end)?;
        let targets = self.targets(cache, ino, block_at(offset), block_at(end - 1))?;
        if let Err(error) = write_pages(cache, &targets, place_in_page(offset), bytes) {
            for target in targets.iter().filter(|target| target.fresh.is_some()) {
                cache.release(target.slot);
            }
            return Err(error.into());
        }
        for target in &targets {
            if target.fresh.is_some()
                && let Some(before) = self.pages.set(target.block, target.slot)
                && let Some(frozen) = &mut self.frozen
            {
                frozen.displaced.insert(target.block, before);
            }
            if self.changes.dirty.insert(target.block) {
                passage.gate().dirty_pages_add(1);
            }
        }
        Ok(())
    }

    /// The bytes of a page that stay beside those being written have to be here.
    fn need_present(&self, offset: u64, end: u64) -> Result<(), Stop> {
        let absent = |block| self.pages.get(block).is_none() && block < self.stored_blocks;
        let (first, last) = (block_at(offset), block_at(end - 1));
        if place_in_page(offset) != 0 && absent(first) {
            return Err(Stop::Missing(first));
        }
        if place_in_page(end) != 0 && end < self.size && absent(last) {
            return Err(Stop::Missing(last));
        }
        Ok(())
    }

    /// Where each page of a write goes: its own slot, or a new one when it has none or a cut has frozen it.
    fn targets(&self, cache: &PageCache, ino: Ino, first: u32, last: u32) -> Result<Vec<Target>, Stop> {
        let claim = if self.role.scratch || self.local { Claim::Scratch } else { self.stored_claim() };
        let mut targets: Vec<Target> = Vec::with_capacity((last - first + 1) as usize);
        for block in first..=last {
            let present = self.pages.get(block);
            let frozen = self.frozen.as_ref().is_some_and(|frozen| frozen.pins(block));
            let target = match present {
                Some(slot) if !frozen => Target { block, slot, fresh: None },
                present => match cache.allocate(Owner { ino, block, claim }) {
                    Ok(slot) => Target { block, slot, fresh: Some(present) },
                    Err(no_room) => {
                        for target in targets.iter().filter(|target| target.fresh.is_some()) {
                            cache.release(target.slot);
                        }
                        return Err(no_room.into());
                    }
                },
            };
            targets.push(target);
        }
        Ok(targets)
    }

    /// Zeros from `offset` to the end of its page, unless they are there already.
    pub(super) fn zero_tail(
        &mut self,
        passage: &Passage<'_>,
        cache: &PageCache,
        ino: Ino,
        offset: u64,
    ) -> Result<(), Stop> {
        let end = offset.next_multiple_of(PAGE_BYTES);
        if offset < end && self.holds_bytes(block_at(offset)) {
            self.zero_in_page(passage, cache, ino, offset, end)?;
        }
        Ok(())
    }

    pub(super) fn zero_in_page(
        &mut self,
        passage: &Passage<'_>,
        cache: &PageCache,
        ino: Ino,
        from: u64,
        to: u64,
    ) -> Result<(), Stop> {
        let length = usize::try_from(to - from).unwrap_or(PAGE).min(PAGE);
        let zeros = [0; PAGE];
        self.put(passage, cache, ino, from, zeros.get(..length).unwrap_or(&zeros))
    }

    /// Takes the pages from `blocks` on away, for now and, by a tombstone, in the store.
    pub(super) fn cut_off(&mut self, passage: &Passage<'_>, cache: &PageCache, blocks: u32) {
        for (block, slot) in self.pages.remove_from(blocks) {
            match &mut self.frozen {
                Some(frozen) if frozen.pins(block) => {
                    frozen.displaced.insert(block, slot);
                }
                _ => cache.release(slot),
            }
        }
        let before = self.changes.dirty.len();
        self.changes.dirty.remove_range(blocks..);
        passage.gate().dirty_pages_subtract(before - self.changes.dirty.len());
        self.stored_blocks = self.stored_blocks.min(blocks);
        self.low_since_cut = self.low_since_cut.min(blocks);
        self.changes.truncated_to = Some(self.changes.truncated_to.unwrap_or(blocks).min(blocks));
    }

    /// Keeps account of a page that Postgres writes whole and the kernel handed over in two parts.
    pub(super) fn watch_half_page(&mut self, passage: &Passage<'_>, offset: u64, end: u64) {
        if !self.role.paged {
            return;
        }
        // The page that was left half is whole once a write reaches from there to its end.
        if let Some(from) = self.half
            && offset <= from
            && end >= from.next_multiple_of(PAGE_BYTES)
        {
            self.half = None;
            passage.half_page(false);
        }
        if !end.is_multiple_of(PAGE_BYTES) && self.half.replace(end).is_none() {
            passage.half_page(true);
        }
    }
}

/// Brings the bytes of a write to their slots.
fn write_pages(cache: &PageCache, targets: &[Target], place: usize, bytes: &[u8]) -> std::io::Result<()> {
    let slots: Vec<Slot> = targets.iter().map(|target| target.slot).collect();
    for (first, index, count) in runs(&slots) {
        let mut whole: Option<(Slot, usize, usize)> = None;
        for (offset, target) in targets.iter().skip(index).take(count).enumerate() {
            let page = index + offset;
            // The part of this page that the write covers, and where that part lies in the write.
            let from = if page == 0 { place } else { 0 };
            let start = (page * PAGE + from).saturating_sub(place);
            let end = ((page + 1) * PAGE - place).min(bytes.len());
            let part = bytes.get(start..end).unwrap_or_default();
            if part.len() == PAGE {
                let (slot, start, _) = whole.unwrap_or((Slot(first.0 + offset as u32), start, end));
                whole = Some((slot, start, end));
                continue;
            }
            if let Some((slot, start, end)) = whole.take() {
                cache.write(slot, 0, bytes.get(start..end).unwrap_or_default())?;
            }
            write_part(cache, target, from, part)?;
        }
        if let Some((slot, start, end)) = whole {
            cache.write(slot, 0, bytes.get(start..end).unwrap_or_default())?;
        }
    }
    Ok(())
}

/// Brings less than a page to its slot: in place, or with what was around it to a new one.
fn write_part(cache: &PageCache, target: &Target, from: usize, part: &[u8]) -> std::io::Result<()> {
    let Some(before) = target.fresh else { return cache.write(target.slot, from, part) };
    let mut page = vec![0; PAGE];
    if let Some(before) = before {
        cache.read(before, 0, &mut page)?;
    }
    if let Some(into) = page.get_mut(from..from + part.len()) {
        into.copy_from_slice(part);
    }
    cache.write(target.slot, 0, &page)
}
