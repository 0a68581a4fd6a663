//! Writes a run, front to back, in one pass.

use super::block::{self, BLOCK_BYTES, ENTRIES_PER_BLOCK};
use super::directory::IndexDirectory;
use super::entry::{Entry, KeyHash};
use super::error::{InPlace, KeyIndexError};
use super::filter::Filter;
use super::run::{Footer, Run, RunRecord, remove_run};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Written to the file at once.
const WRITE_BYTES: usize = 128 * BLOCK_BYTES;

/// A run being written. Dropped unfinished, it leaves no file.
#[derive(Debug)]
pub(super) struct RunWriter {
    directory: Arc<IndexDirectory>,
    path: PathBuf,
    /// `None` once the file belongs to a finished run.
    file: Option<File>,
    number: u64,
    tag: u32,
    entries: u64,
    bytes: u64,
    block: Vec<Entry>,
    unwritten: Vec<u8>,
    fences: Vec<KeyHash>,
    filter: Filter,
}

impl RunWriter {
    /// Begins a run of at most `entries` entries.
    pub(super) fn create(directory: &Arc<IndexDirectory>, entries: u64) -> Result<Self, KeyIndexError> {
        let number = directory.new_run_number();
        let path = directory.run(number);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        Ok(Self {
            directory: Arc::clone(directory),
            file: Some(file.in_place("create", &path)?),
            path,
            number,
            tag: rand::random(),
            entries: 0,
            bytes: 0,
            block: Vec::with_capacity(ENTRIES_PER_BLOCK),
            unwritten: Vec::with_capacity(WRITE_BYTES),
            fences: Vec::new(),
            filter: Filter::for_keys(entries),
        })
    }

    /// Writes a whole run of sorted entries.
    pub(super) fn write(directory: &Arc<IndexDirectory>, entries: &[Entry]) -> Result<Run, KeyIndexError> {
        let mut writer = Self::create(directory, entries.len() as u64)?;
        entries.iter().try_for_each(|entry| writer.push(*entry))?;
        writer.finish(false)
    }

    /// Adds an entry that is greater than all before.
    pub(super) fn push(&mut self, entry: Entry) -> Result<(), KeyIndexError> {
        if self.block.is_empty() {
            self.fences.push(entry.0);
        }
        debug_assert!(self.block.last().is_none_or(|last| *last < entry));
        self.filter.insert(entry.0);
        self.block.push(entry);
        self.entries += 1;
        if self.block.len() == ENTRIES_PER_BLOCK {
            self.seal_block()?;
        }
        Ok(())
    }

    fn seal_block(&mut self) -> Result<(), KeyIndexError> {
        let place = self.tag.wrapping_add((self.fences.len() - 1) as u32);
        if let Some(block) = block::encode(&self.block, place) {
            self.unwritten.extend_from_slice(&block);
        }
        self.block.clear();
        if self.unwritten.len() >= WRITE_BYTES { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> Result<(), KeyIndexError> {
        if let Some(file) = &mut self.file {
            file.write_all(&self.unwritten).in_place("write", &self.path)?;
        }
        self.bytes += self.unwritten.len() as u64;
        self.unwritten.clear();
        Ok(())
    }

    /// Ends the run. `sync`: only after the disk has it, which a flush does not wait for.
    pub(super) fn finish(mut self, sync: bool) -> Result<Run, KeyIndexError> {
        if !self.block.is_empty() {
            self.seal_block()?;
        }
        self.write_out()?;
        self.unwritten.extend(self.fences.iter().flat_map(|fence| fence.0.to_le_bytes()));
        let fence_bytes = self.unwritten.len();
        self.unwritten.extend(self.filter.bytes());
        let footer = Footer {
            entries: self.entries,
            filter_bytes: (self.unwritten.len() - fence_bytes) as u64,
            filter_probes: self.filter.probes(),
            tag: self.tag,
            index_checksum: crc32fast::hash(&self.unwritten),
        };
        let (footer, footer_checksum) = footer.to_bytes();
        self.unwritten.extend_from_slice(&footer);
        self.write_out()?;
        if let (true, Some(file)) = (sync, &self.file) {
            file.sync_data().in_place("flush", &self.path)?;
        }
        let Some(file) = self.file.take() else {
            return Err(KeyIndexError::Damaged { path: self.path.clone(), what: "it was finished twice" });
        };
        Ok(Run {
            file,
            path: std::mem::take(&mut self.path),
            record: RunRecord { number: self.number, entries: self.entries, footer_checksum, synced: sync },
            tag: self.tag,
            bytes: self.bytes,
            fences: std::mem::take(&mut self.fences),
            filter: std::mem::replace(&mut self.filter, Filter::for_keys(0)),
            kept: AtomicBool::new(false),
            directory: Arc::clone(&self.directory),
        })
    }
}

impl Drop for RunWriter {
    fn drop(&mut self) {
        if self.file.is_some() {
            remove_run(&self.path);
        }
    }
}
