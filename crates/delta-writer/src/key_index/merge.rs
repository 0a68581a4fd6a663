//! Merging: fewer runs, without what newer entries supersede.
//!
//! Runs fall into tiers by size, each four times the one before. Four neighbouring runs of one tier
//! become one run of the next, in a thread of its own:
//!
//! ```text
//!   oldest                                    newest
//!   [ 9 M ] [ 2.1 M ] [ 140 k ] [ 10 k ] [ 10 k ] [ 10 k ] [ 10 k ]
//!                               \_____________ merge _____________/
//! ```
//!
//! So an entry is rewritten once per tier, and the number of runs grows with the logarithm of
//! the table. Only neighbours are merged: order among runs *is* age, and age decides which entry of a key
//! counts. Entries of forgotten files go when the oldest run takes part. Earlier, dropping one would
//! uncover an older entry of its key.

use super::directory::IndexDirectory;
use super::entry::{Entry, Places};
use super::error::KeyIndexError;
use super::run::{Run, RunReader};
use super::run_writer::RunWriter;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Runs of one tier that make a merge; also how much larger each tier is than the one before.
const FAN_IN: usize = 4;
/// Runs below this size are of the lowest tier.
const LOWEST_TIER: u64 = 4096;
/// Entries between two looks at whether the merge is still wanted.
const CANCEL_EVERY: u64 = 8192;

/// Which neighbouring runs to merge, given their sizes from oldest to newest.
pub(super) fn plan(sizes: &[u64]) -> Option<Range<usize>> {
    let mut tier = 0;
    let mut end = sizes.len();
    for (at, size) in sizes.iter().enumerate().rev() {
        // A run below a larger and newer one belongs with it: merging it along is cheap.
        let larger = tier.max(tier_of(*size));
        if larger > tier {
            if end - (at + 1) >= FAN_IN {
                return Some(at + 1..end);
            }
            tier = larger;
            end = at + 1;
        }
    }
    (end >= FAN_IN).then_some(0..end)
}

fn tier_of(size: u64) -> u32 {
    (size / LOWEST_TIER).checked_ilog(FAN_IN as u64).map_or(0, |tier| tier + 1)
}

/// Merges runs, given from oldest to newest. `live`: the files whose entries stay, all when absent.
/// `None` when cancelled.
pub(super) fn merge(
    directory: &Arc<IndexDirectory>,
    places: Places,
    runs: &[Arc<Run>],
    live: Option<&HashSet<u32>>,
    cancelled: &AtomicBool,
) -> Result<Option<Run>, KeyIndexError> {
    let mut writer = RunWriter::create(directory, runs.iter().map(|run| run.entries()).sum())?;
    let mut sources = Vec::with_capacity(runs.len());
    for run in runs.iter().rev() {
        let mut reader = RunReader::new(Arc::clone(run));
        sources.push((reader.next()?, reader));
    }
    let mut written: u64 = 0;
    while let Some(entry) = take_smallest(&mut sources, places)? {
        if live.is_none_or(|live| live.contains(&entry.1.file.0)) {
            writer.push(entry)?;
        }
        written += 1;
        if written.is_multiple_of(CANCEL_EVERY) && cancelled.load(Ordering::Relaxed) {
            return Ok(None);
        }
    }
    writer.finish(true).map(Some)
}

/// The smallest entry; of equal ones, that of the first source. Sources are few: looking at each is faster
/// than keeping them in a heap.
fn take_smallest(
    sources: &mut [(Option<Entry>, RunReader)],
    places: Places,
) -> Result<Option<Entry>, KeyIndexError> {
    let mut smallest: Option<Entry> = None;
    for (head, _) in sources.iter() {
        if let Some(entry) = head
            && smallest.is_none_or(|smallest| places.order(entry, &smallest).is_lt())
        {
            smallest = Some(*entry);
        }
    }
    let Some(taken) = smallest else { return Ok(None) };
    for (head, reader) in sources {
        if head.is_some_and(|other| places.order(&other, &taken).is_eq()) {
            *head = reader.next()?;
        }
    }
    Ok(smallest)
}

/// A merge under way.
#[derive(Debug)]
pub(super) struct BackgroundMerge {
    inputs: Vec<Arc<Run>>,
    cancelled: Arc<AtomicBool>,
    /// `None` once joined.
    thread: Option<JoinHandle<Result<Option<Run>, KeyIndexError>>>,
}

impl BackgroundMerge {
    pub(super) fn start(
        directory: &Arc<IndexDirectory>,
        places: Places,
        inputs: Vec<Arc<Run>>,
        live: Option<HashSet<u32>>,
    ) -> Result<Self, KeyIndexError> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("key-index-merge".into()).spawn({
            let (directory, inputs, cancelled) =
                (Arc::clone(directory), inputs.clone(), Arc::clone(&cancelled));
            move || merge(&directory, places, &inputs, live.as_ref(), &cancelled)
        });
        let thread = thread.map_err(|source| KeyIndexError::Io {
            action: "start a merge of runs in",
            path: directory.path().to_owned(),
            source,
        })?;
        Ok(Self { inputs, cancelled, thread: Some(thread) })
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the end. Gives the merged run and what it stands for.
    pub(super) fn join(
        mut self,
        directory: &IndexDirectory,
    ) -> Result<(Option<Run>, Vec<Arc<Run>>), KeyIndexError> {
        let merged = match self.thread.take().map(JoinHandle::join) {
            Some(Ok(merged)) => merged?,
            Some(Err(_)) | None => {
                return Err(KeyIndexError::MergeLost { dir: directory.path().to_owned() });
            }
        };
        Ok((merged, std::mem::take(&mut self.inputs)))
    }
}

impl Drop for BackgroundMerge {
    /// Nothing of the index runs on after it is gone.
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Ok(Err(error)) = thread.join()
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "a merge of key index runs failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_neighbours_of_one_tier_are_merged() {
        assert_eq!(plan(&[]), None);
        assert_eq!(plan(&[10, 10, 10]), None);
        assert_eq!(plan(&[10, 10, 10, 10]), Some(0..4));
        assert_eq!(plan(&[1_000_000, 10, 10, 10]), None);
        assert_eq!(plan(&[1_000_000, 10, 10, 10, 10]), Some(1..5));
        assert_eq!(plan(&[900_000, 900_000, 900_000, 900_000, 10]), Some(0..4));
    }

    #[test]
    fn a_small_run_below_a_large_one_goes_along() {
        assert_eq!(plan(&[10, 900_000, 10, 900_000, 10, 900_000]), Some(0..6));
    }

    #[test]
    fn the_number_of_runs_stays_logarithmic() {
        let mut sizes: Vec<u64> = Vec::new();
        for _ in 0..20_000 {
            sizes.push(10_000);
            while let Some(range) = plan(&sizes) {
                let merged = sizes.drain(range.clone()).sum();
                sizes.insert(range.start, merged);
            }
            assert!(sizes.len() <= 30, "{sizes:?}");
        }
    }
}
