//! Builds runs in bulk, for a first load or a rebuild, many at once on as many threads.
//!
//! Entries are collected, sorted and written out as a partial run whenever the budget is full; the end
//! merges the partial runs into one. Memory stays within the budget whatever the number of entries.

use super::directory::IndexDirectory;
use super::entry::{KeyHash, Places, RowAddress, sort_newest_wins};
use super::error::KeyIndexError;
use super::merge::merge;
use super::run::Run;
use super::run_writer::RunWriter;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Entries held before they are written out: 64 MiB, and half as much again while they are sorted.
const BUDGET: usize = 2 << 20;
/// Partial runs that are merged before more are made, so that the files open at once stay few.
const MAX_PARTS: usize = 64;

/// Collects the entries of one run. Of several entries of one key, the last one pushed counts (all do where a
/// key may have many places).
#[derive(Debug)]
pub struct RunBuilder {
    directory: Arc<IndexDirectory>,
    places: Places,
    budget: usize,
    collected: Vec<(KeyHash, RowAddress)>,
    parts: Vec<Arc<Run>>,
}

/// A finished run that no index counts yet. Dropped unstaged, it leaves no file.
#[derive(Debug)]
pub struct SealedRun {
    pub(super) run: Run,
}

impl SealedRun {
    /// Its number of entries.
    pub fn entries(&self) -> u64 {
        self.run.entries()
    }
}

impl RunBuilder {
    pub(super) fn new(directory: Arc<IndexDirectory>, places: Places) -> Self {
        Self { directory, places, budget: BUDGET, collected: Vec::new(), parts: Vec::new() }
    }

    /// The same, holding no more than so many entries, of 32 bytes each.
    #[must_use]
    pub fn with_budget(self, budget: usize) -> Self {
        Self { budget, ..self }
    }

    /// Adds an entry.
    pub fn push(&mut self, key: KeyHash, address: RowAddress) -> Result<(), KeyIndexError> {
        if self.collected.len() >= self.budget {
            self.write_part()?;
        }
        self.collected.push((key, address));
        Ok(())
    }

    /// Ends the run; the disk has it when this returns.
    pub fn finish(mut self) -> Result<SealedRun, KeyIndexError> {
        let run = if self.parts.is_empty() {
            sort_newest_wins(&mut self.collected, self.places);
            let mut writer = RunWriter::create(&self.directory, self.collected.len() as u64)?;
            self.collected.iter().try_for_each(|entry| writer.push(*entry))?;
            writer.finish(true)?
        } else {
            if !self.collected.is_empty() {
                self.write_part()?;
            }
            self.collected = Vec::new();
            self.merge_parts()?
        };
        Ok(SealedRun { run })
    }

    fn write_part(&mut self) -> Result<(), KeyIndexError> {
        if self.parts.len() >= MAX_PARTS {
            let merged = self.merge_parts()?;
            self.parts = vec![Arc::new(merged)];
        }
        sort_newest_wins(&mut self.collected, self.places);
        self.parts.push(Arc::new(RunWriter::write(&self.directory, &self.collected)?));
        self.collected.clear();
        Ok(())
    }

    fn merge_parts(&self) -> Result<Run, KeyIndexError> {
        merge(&self.directory, self.places, &self.parts, None, &AtomicBool::new(false))?
            .ok_or_else(|| KeyIndexError::MergeLost { dir: self.directory.path().to_owned() })
    }
}
