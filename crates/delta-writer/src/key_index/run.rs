//! A run: entries sorted by key in one file that never changes.
//!
//! ```text
//!   | block 0 | block 1 | ... | fences: first key of each block | filter | footer |
//! ```
//!
//! Fences and filter are in memory while the run is open, about 1.5 and at most 10 bits per key; blocks
//! are read with `pread` and cached by nobody but the operating system. So a key that is not in the
//! run usually costs nothing, and one that is costs one block.
//!
//! The footer covers fences, filter and the run's tag with checksums, and the manifest repeats the
//! footer's: a run of another life under the same number is noticed.

use super::block::{self, BLOCK_BYTES, Block, ENTRIES_PER_BLOCK};
use super::directory::IndexDirectory;
use super::entry::{Entry, KeyHash, RowAddress, count_up_to};
use super::error::{InPlace, KeyIndexError};
use super::fields::Fields;
use super::filter::Filter;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const MAGIC: [u8; 8] = *b"TWKEYRUN";
pub(super) const FOOTER_BYTES: usize = 48;
pub(super) const FENCE_BYTES: usize = 16;
/// Blocks this close are read in one go: skipping 8 KiB costs less than another system call.
const NEAR_BLOCKS: usize = 4;
/// A read takes at most this many blocks (128 KiB).
const READ_BLOCKS: usize = 64;

/// How the manifest names a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunRecord {
    pub(super) number: u64,
    pub(super) entries: u64,
    pub(super) footer_checksum: u32,
    /// Whether the file was flushed to the disk before it was named.
    pub(super) synced: bool,
}

/// The end of a run's file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Footer {
    pub(super) entries: u64,
    pub(super) filter_bytes: u64,
    pub(super) filter_probes: u32,
    pub(super) tag: u32,
    pub(super) index_checksum: u32,
}

impl Footer {
    /// The footer's bytes, and the checksum at their end.
    pub(super) fn to_bytes(self) -> ([u8; FOOTER_BYTES], u32) {
        let mut bytes = [0; FOOTER_BYTES];
        let fields = MAGIC
            .into_iter()
            .chain(self.entries.to_le_bytes())
            .chain(self.filter_bytes.to_le_bytes())
            .chain(self.filter_probes.to_le_bytes())
            .chain(self.tag.to_le_bytes())
            .chain(self.index_checksum.to_le_bytes());
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        let mut footer_checksum = 0;
        if let Some((payload, checksum)) = bytes.split_last_chunk_mut::<4>() {
            footer_checksum = crc32fast::hash(payload);
            *checksum = footer_checksum.to_le_bytes();
        }
        (bytes, footer_checksum)
    }

    /// The footer and its checksum.
    fn parse(bytes: &[u8; FOOTER_BYTES]) -> Option<(Self, u32)> {
        let (payload, stored) = bytes.split_last_chunk::<4>()?;
        let checksum = u32::from_le_bytes(*stored);
        let mut fields = Fields(payload);
        if crc32fast::hash(payload) != checksum || fields.array()? != MAGIC {
            return None;
        }
        let footer = Self {
            entries: fields.u64()?,
            filter_bytes: fields.u64()?,
            filter_probes: fields.u32()?,
            tag: fields.u32()?,
            index_checksum: fields.u32()?,
        };
        Some((footer, checksum))
    }

    /// The length of the file that this footer ends.
    fn file_bytes(&self) -> Option<u64> {
        self.entries
            .div_ceil(ENTRIES_PER_BLOCK as u64)
            .checked_mul((BLOCK_BYTES + FENCE_BYTES) as u64)?
            .checked_add(self.filter_bytes)?
            .checked_add(FOOTER_BYTES as u64)
    }
}

/// A key that a lookup still seeks, and its position in the question.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sought {
    pub(super) key: KeyHash,
    pub(super) at: usize,
}

/// An open run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) record: RunRecord,
    pub(super) tag: u32,
    pub(super) bytes: u64,
    pub(super) fences: Vec<KeyHash>,
    pub(super) filter: Filter,
    pub(super) kept: AtomicBool,
    /// Also keeps the lock: while this run can remove its file, nobody else makes one of that name.
    pub(super) directory: Arc<IndexDirectory>,
}

impl Run {
    /// Opens a run that the manifest names. Checks everything but the blocks, which are checked as they are
    /// read, and those too unless the file is known to have reached the disk.
    pub(super) fn open(
        directory: &Arc<IndexDirectory>,
        record: RunRecord,
    ) -> Result<Arc<Self>, KeyIndexError> {
        let path = directory.run(record.number);
        let damaged = |what| KeyIndexError::Damaged { path: path.clone(), what };
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged("it is missing")),
            other => other.in_place("open", &path)?,
        };
        let bytes = file.metadata().in_place("inspect", &path)?.len();
        let Some(footer_at) = bytes.checked_sub(FOOTER_BYTES as u64) else {
            return Err(damaged("it is shorter than a footer"));
        };
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, footer_at).in_place("read", &path)?;
        let (footer, checksum) = Footer::parse(&footer).ok_or_else(|| damaged("its footer is broken"))?;
        if checksum != record.footer_checksum || footer.entries != record.entries {
            return Err(damaged("it is another run than the manifest names"));
        }
        if footer.file_bytes() != Some(bytes) {
            return Err(damaged("its length does not fit its footer"));
        }

        // The lengths fit the file, so nothing larger than the file is allocated.
        let blocks = footer.entries.div_ceil(ENTRIES_PER_BLOCK as u64);
        let mut index = vec![0; (footer_at - blocks * BLOCK_BYTES as u64) as usize];
        file.read_exact_at(&mut index, blocks * BLOCK_BYTES as u64).in_place("read", &path)?;
        if crc32fast::hash(&index) != footer.index_checksum {
            return Err(damaged("its fences or its filter are broken"));
        }
        let (fences, filter) = index
            .split_at_checked(blocks as usize * FENCE_BYTES)
            .ok_or_else(|| damaged("its fences are cut off"))?;
        let fences =
            fences.as_chunks().0.iter().map(|fence| KeyHash(u128::from_le_bytes(*fence))).collect::<Vec<_>>();
        let filter = Filter::from_bytes(filter, footer.filter_probes)
            .ok_or_else(|| damaged("its filter is malformed"))?;
        let run = Arc::new(Self {
            file,
            path,
            record,
            tag: footer.tag,
            bytes,
            fences,
            filter,
            kept: AtomicBool::new(true),
            directory: Arc::clone(directory),
        });
        if !record.synced {
            let mut reader = RunReader::new(Arc::clone(&run));
            while reader.next()?.is_some() {}
        }
        Ok(run)
    }

    /// Finds what it can of `sought`, which is sorted by key, and takes it off the list.
    pub(super) fn find(
        &self,
        sought: &mut Vec<Sought>,
        found: &mut [Option<RowAddress>],
    ) -> Result<(), KeyIndexError> {
        let mut reads = Vec::new();
        let mut fence = 0;
        for wanted in sought.iter().filter(|wanted| self.filter.may_contain(wanted.key)) {
            fence = count_up_to(&self.fences, fence, wanted.key, |first| *first);
            if let Some(block) = fence.checked_sub(1) {
                reads.push((block, *wanted));
            }
        }
        let mut buffer = Vec::new();
        let mut rest = reads.as_slice();
        while let Some(&(first, _)) = rest.first() {
            let mut last = first;
            let together = rest
                .iter()
                .take_while(|(block, _)| {
                    let near = block - last <= NEAR_BLOCKS && block - first < READ_BLOCKS;
                    last = if near { *block } else { last };
                    near
                })
                .count();
            let (group, later) = rest.split_at(together);
            rest = later;
            self.read_blocks(first, last + 1 - first, &mut buffer)?;
            self.find_in(&buffer, first, group, found)?;
        }
        sought.retain(|wanted| found.get(wanted.at).is_some_and(Option::is_none));
        Ok(())
    }

    /// Shows every place of `key` until `visit` has seen enough, and says whether it has.
    pub(super) fn visit(
        &self,
        key: KeyHash,
        visit: &mut dyn FnMut(RowAddress) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, KeyIndexError> {
        if !self.filter.may_contain(key) {
            return Ok(ControlFlow::Continue(()));
        }
        // A key's places may begin before the first block that starts with it.
        let mut next = self.fences.partition_point(|fence| *fence < key).saturating_sub(1);
        let end = self.fences.partition_point(|fence| *fence <= key);
        let mut buffer = Vec::new();
        while next < end {
            let count = (end - next).min(READ_BLOCKS);
            self.read_blocks(next, count, &mut buffer)?;
            for (number, block) in (next..).zip(buffer.as_chunks::<BLOCK_BYTES>().0) {
                self.check(block, number)?;
                for address in block::places(block, self.entries_in(number), key) {
                    if visit(address).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
            next += count;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn find_in(
        &self,
        buffer: &[u8],
        first: usize,
        group: &[(usize, Sought)],
        found: &mut [Option<RowAddress>],
    ) -> Result<(), KeyIndexError> {
        let blocks = buffer.as_chunks::<BLOCK_BYTES>().0;
        let mut intact = None;
        for (number, wanted) in group {
            let Some(block) = blocks.get(number - first) else { continue };
            if intact != Some(*number) {
                self.check(block, *number)?;
                intact = Some(*number);
            }
            let address = block::find(block, self.entries_in(*number), wanted.key);
            if let (Some(address), Some(answer)) = (address, found.get_mut(wanted.at)) {
                *answer = Some(address);
            }
        }
        Ok(())
    }

    fn read_blocks(&self, first: usize, count: usize, buffer: &mut Vec<u8>) -> Result<(), KeyIndexError> {
        buffer.resize(count * BLOCK_BYTES, 0);
        self.file.read_exact_at(buffer, (first * BLOCK_BYTES) as u64).in_place("read", &self.path)
    }

    fn check(&self, block: &Block, number: usize) -> Result<(), KeyIndexError> {
        if block::is_intact(block, self.tag.wrapping_add(number as u32)) {
            return Ok(());
        }
        Err(KeyIndexError::Damaged { path: self.path.clone(), what: "a block fails its checksum" })
    }

    /// Entries in a block: all that fit, except in the last.
    fn entries_in(&self, block: usize) -> usize {
        let before = block as u64 * ENTRIES_PER_BLOCK as u64;
        self.record.entries.saturating_sub(before).min(ENTRIES_PER_BLOCK as u64) as usize
    }

    pub(super) fn entries(&self) -> u64 {
        self.record.entries
    }

    /// The manifest names it: its file stays.
    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// No manifest names it any more: its file goes once nobody reads it.
    pub(super) fn retire(&self) {
        self.kept.store(false, Ordering::Relaxed);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Relaxed) {
            remove_run(&self.path);
        }
    }
}

/// Removes a run's file where nobody can be told of a failure; the next opening removes it otherwise.
pub(super) fn remove_run(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "an unused key index run stays until the next start");
        }
        _ => {}
    }
}

/// Reads a run from front to back.
#[derive(Debug)]
pub(super) struct RunReader {
    run: Arc<Run>,
    next_block: usize,
    /// Entries in reverse, so that the next one is at the end.
    ahead: Vec<Entry>,
    buffer: Vec<u8>,
}

impl RunReader {
    pub(super) fn new(run: Arc<Run>) -> Self {
        Self { run, next_block: 0, ahead: Vec::new(), buffer: Vec::new() }
    }

    pub(super) fn next(&mut self) -> Result<Option<Entry>, KeyIndexError> {
        if self.ahead.is_empty() {
            self.read_ahead()?;
        }
        Ok(self.ahead.pop())
    }

    fn read_ahead(&mut self) -> Result<(), KeyIndexError> {
        let count = self.run.fences.len().saturating_sub(self.next_block).min(READ_BLOCKS);
        self.run.read_blocks(self.next_block, count, &mut self.buffer)?;
        for (number, block) in (self.next_block..).zip(self.buffer.as_chunks::<BLOCK_BYTES>().0) {
            self.run.check(block, number)?;
            self.ahead.extend(block::entries(block, self.run.entries_in(number)));
        }
        self.ahead.reverse();
        self.next_block += count;
        Ok(())
    }
}
