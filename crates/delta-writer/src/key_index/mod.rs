//! The key index: where the row of a primary key is.
//!
//! A mirror deletes a row by setting a bit in its data file's deletion vector, so for every changed key
//! the writer needs the file and the row that hold it now. The index answers that for tables of any size
//! from the disk, with memory for fences and filters only (about 1.5 plus at most 10 bits per key, and no
//! more than 32 MiB of filter a run).
//!
//! ```text
//!   key columns --KeyHasher--> 128 bits --lookup--> (file, row)
//!
//!            stage                 commit                    merge, in the background
//!   entries -------> staged layers -------> runs, newest last -------> fewer, larger runs
//!                    (this flush)           (named by MANIFEST)
//! ```
//!
//! **The invariant: what the index answers is exactly what was committed up to [`KeyIndex::version`], plus what
//! the flush under way has staged.** Of several entries of a key the newest counts: staged before committed,
//! later runs before earlier ones.
//!
//! * *A killed process* leaves the last commit or the one under way, never a part: the manifest is replaced by a
//!   rename, and a run is written before a manifest names it.
//! * *The index is soft state.* It can always be rebuilt from the table's key columns, so it never waits for the disk
//!   on the commit path. Every byte is under a checksum; what a power cut or a bad disk leaves behind is found
//!   ([`KeyIndex::open`] gives `None`, a lookup gives [`KeyIndexError::Damaged`]) and rebuilt, not believed.
//! * *Entries may be stale.* Deleting a row leaves its entry: the caller looks into the deletion vector of the
//!   file it is sent to. Entries of [forgotten](KeyIndex::forget_files) files are never answered.
//! * *A key has one place*, except in the index of a table whose rows are named by all they hold: equal rows
//!   are one key with [many places](Places::Many), each an entry of its own.
//! * *Keys are told apart by their hash alone.* With 128 bits and a secret seed, the odds that any two of a billion
//!   keys collide are about 1.5 in 10^21.

mod block;
mod directory;
mod entry;
mod error;
mod fields;
mod file_registry;
mod filter;
mod key_hasher;
mod manifest;
mod merge;
mod run;
mod run_builder;
mod run_writer;
#[cfg(test)]
mod tests;

pub use entry::{FileId, KeyHash, Places, RowAddress};
pub use error::KeyIndexError;
pub use file_registry::FileNumbers;
pub use key_hasher::KeyHasher;
pub use run_builder::{RunBuilder, SealedRun};

use crate::crash_point::death_point;
use directory::IndexDirectory;
use entry::{Entry, count_up_to, merge_sorted, sort_newest_wins};
use error::InPlace;
use file_registry::FileRegistry;
use merge::BackgroundMerge;
use run::{Run, Sought};
use run_writer::RunWriter;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Staged entries beyond this many (8 MiB, and as much again while layers are merged) move to a file.
const MAX_STAGED_IN_MEMORY: usize = 1 << 18;
/// More committed runs than this, and a commit waits for the merge that makes them fewer.
const MAX_RUNS: usize = 40;

/// The index of one mirror table. See the [module](self).
#[derive(Debug)]
pub struct KeyIndex {
    directory: Arc<IndexDirectory>,
    places: Places,
    seed: [u8; 16],
    version: Option<i64>,
    /// Oldest first.
    runs: Vec<Arc<Run>>,
    /// Replaced by a merge, but still named by the manifest on disk.
    replaced: Vec<Arc<Run>>,
    files: FileRegistry,
    /// What the flush under way adds, oldest first.
    staged: Vec<Layer>,
    /// The flush under way emptied the table before what is staged.
    truncated: bool,
    merge: Option<BackgroundMerge>,
    manifest_bytes: u64,
}

/// A part of what is staged.
#[derive(Debug)]
enum Layer {
    /// Sorted by key, each key once.
    Entries(Vec<Entry>),
    Run(Arc<Run>),
}

impl KeyIndex {
    /// Opens the index in `dir`.
    ///
    /// `None`: there is none, or it was damaged or of another format (a warning says so, and its files are
    /// removed). Either way the caller [creates](Self::create) one and fills it from the table.
    pub fn open(dir: &Path) -> Result<Option<Self>, KeyIndexError> {
        if !dir.try_exists().in_place("look for", dir)? {
            return Ok(None);
        }
        let directory = Arc::new(IndexDirectory::own(dir)?);
        match Self::load(Arc::clone(&directory)) {
            Ok(Some(index)) => return Ok(Some(index)),
            Ok(None) => {}
            Err(error) if error.wants_rebuild() => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(dir = %dir.display(), error, "the key index is removed and will be rebuilt");
            }
            Err(error) => return Err(error),
        }
        directory.clear()?;
        Ok(None)
    }

    fn load(directory: Arc<IndexDirectory>) -> Result<Option<Self>, KeyIndexError> {
        let Some((manifest, manifest_bytes)) = manifest::read(&directory)? else { return Ok(None) };
        let numbers = manifest.runs.iter().map(|run| run.number).collect();
        directory.remove_leftovers(&numbers)?;
        let mut runs = Vec::with_capacity(manifest.runs.len());
        for record in manifest.runs {
            directory.reserve_up_to(record.number);
            runs.push(Run::open(&directory, record)?);
        }
        Ok(Some(Self {
            directory,
            places: Places::One,
            seed: manifest.seed,
            version: Some(manifest.version),
            runs,
            replaced: Vec::new(),
            files: manifest.files,
            staged: Vec::new(),
            truncated: false,
            merge: None,
            manifest_bytes,
        }))
    }

    /// An empty index in `dir`, in place of whatever index was there. Until its first commit, opening
    /// the directory finds none.
    pub fn create(dir: &Path) -> Result<Self, KeyIndexError> {
        let directory = Arc::new(IndexDirectory::own(dir)?);
        directory.clear()?;
        Ok(Self {
            directory,
            places: Places::One,
            seed: rand::random(),
            version: None,
            runs: Vec::new(),
            replaced: Vec::new(),
            files: FileRegistry::default(),
            staged: Vec::new(),
            truncated: false,
            merge: None,
            manifest_bytes: 0,
        })
    }

    /// The index, for keys with this many places. All of its life it has to be the same.
    #[must_use]
    pub fn with_places(self, places: Places) -> Self {
        Self { places, ..self }
    }

    /// The Delta version that the committed entries match; `None` before the first commit.
    pub fn version(&self) -> Option<i64> {
        self.version
    }

    /// What hashes keys for this index. Hashes of another index mean nothing here.
    pub fn hasher(&self) -> KeyHasher {
        KeyHasher::new(&self.seed)
    }

    /// The number of a data file, given on first sight. Committed with the flush, or discarded with it.
    pub fn file_id(&mut self, path: &str) -> FileId {
        self.files.id(path)
    }

    /// What gives numbers to files that another thread writes, to be [registered](Self::register_file) later.
    pub fn file_numbers(&self) -> FileNumbers {
        self.files.numbers()
    }

    /// Adds a data file under a number that [`Self::file_numbers`] gave. Committed with the flush, or discarded
    /// with it.
    pub fn register_file(&mut self, id: FileId, path: &str) {
        self.files.register(id, path);
    }

    /// The data file of a number, `None` when it was forgotten.
    pub fn path(&self, id: FileId) -> Option<&str> {
        self.files.path(id)
    }

    /// These files left the table: none of their rows is answered any more. Committed with the flush, or
    /// discarded with it.
    pub fn forget_files(&mut self, ids: impl IntoIterator<Item = FileId>) {
        ids.into_iter().for_each(|id| self.files.forget(id));
    }

    /// Adds entries to the flush under way. Lookups see them at once; a crash or a discard forgets them.
    /// Later entries of a key override earlier ones, within a call as between calls.
    pub fn stage(&mut self, mut entries: Vec<(KeyHash, RowAddress)>) -> Result<(), KeyIndexError> {
        sort_newest_wins(&mut entries, self.places);
        // Layers halve in size from one to the next, so that each entry is merged a logarithm of times.
        while let Some(Layer::Entries(last)) = self.staged.last_mut()
            && last.len() <= 2 * entries.len()
        {
            entries = merge_sorted(std::mem::take(last), entries, self.places);
            self.staged.pop();
        }
        if entries.len() >= MAX_STAGED_IN_MEMORY {
            let run = RunWriter::write(&self.directory, &entries)?;
            self.staged.push(Layer::Run(Arc::new(run)));
        } else if !entries.is_empty() {
            self.staged.push(Layer::Entries(entries));
        }
        Ok(())
    }

    /// Begins a run for [`Self::stage_run`]; usable on another thread.
    pub fn run_builder(&self) -> RunBuilder {
        RunBuilder::new(Arc::clone(&self.directory), self.places)
    }

    /// Adds a run to the flush under way, as if its entries were staged now.
    pub fn stage_run(&mut self, run: SealedRun) -> Result<(), KeyIndexError> {
        if !Arc::ptr_eq(&run.run.directory, &self.directory) {
            return Err(KeyIndexError::ForeignRun { path: run.run.path.clone() });
        }
        if run.entries() > 0 {
            self.staged.push(Layer::Run(Arc::new(run.run)));
        }
        Ok(())
    }

    /// Where the rows of these keys are, in the order of the question. A row that was deleted since may
    /// still be answered: its file's deletion vector has the bit.
    pub fn lookup(&self, keys: &[KeyHash]) -> Result<Vec<Option<RowAddress>>, KeyIndexError> {
        let mut found = vec![None; keys.len()];
        let mut sought =
            keys.iter().enumerate().map(|(at, key)| Sought { key: *key, at }).collect::<Vec<_>>();
        // Neighbouring keys share filter lines, blocks and reads.
        sought.sort_unstable_by_key(|sought| sought.key);
        for layer in self.staged.iter().rev() {
            match layer {
                Layer::Entries(entries) => find_in(entries, &mut sought, &mut found),
                Layer::Run(run) => run.find(&mut sought, &mut found)?,
            }
        }
        if !self.truncated {
            for run in self.runs.iter().rev() {
                run.find(&mut sought, &mut found)?;
            }
        }
        for answer in &mut found {
            *answer = answer.filter(|address| self.files.path(address.file).is_some());
        }
        Ok(found)
    }

    /// Shows every place of a key, newest layers first, until `visit` has seen enough. As with a lookup, rows
    /// that were deleted since may be among them, and a place may be shown twice.
    pub fn visit_places(
        &self,
        key: KeyHash,
        visit: &mut dyn FnMut(RowAddress) -> ControlFlow<()>,
    ) -> Result<(), KeyIndexError> {
        let mut visit = |address: RowAddress| match self.files.path(address.file) {
            Some(_) => visit(address),
            None => ControlFlow::Continue(()),
        };
        for layer in self.staged.iter().rev() {
            let enough = match layer {
                Layer::Run(run) => run.visit(key, &mut visit)?,
                Layer::Entries(entries) => {
                    let first = entries.partition_point(|(other, _)| *other < key);
                    let mut places = entries.iter().skip(first).take_while(|(other, _)| *other == key);
                    places.try_for_each(|(_, address)| visit(*address))
                }
            };
            if enough.is_break() {
                return Ok(());
            }
        }
        for run in self.runs.iter().rev().filter(|_| !self.truncated) {
            if run.visit(key, &mut visit)?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Undoes the flush under way: entries, emptied table, new and forgotten files.
    pub fn discard_staged(&mut self) {
        self.staged.clear();
        self.truncated = false;
        self.files.discard();
    }

    /// The table was emptied within the flush: whatever was there before, committed or staged, is gone.
    pub fn truncate_staged(&mut self) {
        self.staged.clear();
        self.truncated = true;
    }

    /// What is staged becomes part of the index, which from now on matches `version` of the table.
    ///
    /// On error nothing is committed and everything stays staged: commit again, or discard.
    pub fn commit(&mut self, version: i64) -> Result<(), KeyIndexError> {
        if let Some(current) = self.version.filter(|current| version < *current) {
            return Err(KeyIndexError::VersionGoesBack { current, asked: version });
        }
        if self.files.is_exhausted() {
            return Err(KeyIndexError::FileIdsExhausted { dir: self.directory.path().to_owned() });
        }
        self.tend_runs()?;
        let staged = self.seal_staged()?;
        let committed = if self.truncated { Vec::new() } else { self.runs.clone() };
        let runs = committed.into_iter().chain(staged).collect::<Vec<_>>();
        let mut files = std::mem::take(&mut self.files);
        if self.truncated {
            files.forget_committed();
        }
        death_point!("index-before-manifest");
        let written =
            manifest::write(&self.directory, &self.seed, version, runs.iter().map(|run| run.record), &files);
        self.files = files;
        self.manifest_bytes = written?;
        death_point!("index-after-manifest");

        runs.iter().for_each(|run| run.keep());
        self.replaced.drain(..).for_each(|run| run.retire());
        if self.truncated {
            self.runs.iter().for_each(|run| run.retire());
            self.merge = None;
        }
        self.files.commit();
        self.staged.clear();
        self.truncated = false;
        self.version = Some(version);
        self.runs = runs;
        Ok(())
    }

    /// Entries on disk and staged, superseded and stale ones included.
    pub fn entries(&self) -> u64 {
        let staged = self.staged.iter().map(|layer| match layer {
            Layer::Entries(entries) => entries.len() as u64,
            Layer::Run(run) => run.entries(),
        });
        self.runs.iter().map(|run| run.entries()).chain(staged).sum()
    }

    /// Bytes that the committed index takes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.manifest_bytes + self.runs.iter().map(|run| run.bytes).sum::<u64>()
    }

    /// Makes runs of the staged entries, in place, so that a failed commit can be tried again.
    fn seal_staged(&mut self) -> Result<Vec<Arc<Run>>, KeyIndexError> {
        let mut sealed: Vec<Layer> = Vec::new();
        for layer in std::mem::take(&mut self.staged) {
            match (sealed.last_mut(), layer) {
                (Some(Layer::Entries(older)), Layer::Entries(newer)) => {
                    *older = merge_sorted(std::mem::take(older), newer, self.places);
                }
                (_, layer) => sealed.push(layer),
            }
        }
        self.staged = sealed;
        let mut runs = Vec::with_capacity(self.staged.len());
        for layer in &mut self.staged {
            let run = match layer {
                Layer::Entries(entries) => Arc::new(RunWriter::write(&self.directory, entries)?),
                Layer::Run(run) => Arc::clone(run),
            };
            runs.push(Arc::clone(&run));
            *layer = Layer::Run(run);
        }
        Ok(runs)
    }

    /// Takes over a merge that ended, and starts the next one if enough runs are alike. Waits for a merge
    /// only when far too many runs gathered behind it.
    fn tend_runs(&mut self) -> Result<(), KeyIndexError> {
        let crowded = self.runs.len() > MAX_RUNS;
        if self.merge.as_ref().is_some_and(|merge| crowded || merge.is_finished()) {
            self.adopt_merge()?;
        }
        if self.merge.is_some() || self.truncated {
            return Ok(());
        }
        let sizes = self.runs.iter().map(|run| run.entries()).collect::<Vec<_>>();
        let Some(range) = merge::plan(&sizes) else { return Ok(()) };
        let live = (range.start == 0).then(|| self.files.committed());
        let inputs = self.runs.get(range).unwrap_or_default().to_vec();
        self.merge = Some(BackgroundMerge::start(&self.directory, self.places, inputs, live)?);
        Ok(())
    }

    /// Puts the merged run in place of what it was made of. The next manifest makes that last.
    fn adopt_merge(&mut self) -> Result<(), KeyIndexError> {
        let Some(merge) = self.merge.take() else { return Ok(()) };
        let (merged, inputs) = merge.join(&self.directory)?;
        let Some((merged, first)) = merged.zip(inputs.first()) else { return Ok(()) };
        // Runs are only ever added behind the inputs while a merge goes on, or all dropped with it.
        if let Some(at) = self.runs.iter().position(|run| Arc::ptr_eq(run, first)) {
            let merged = (merged.entries() > 0).then(|| Arc::new(merged));
            self.replaced.extend(self.runs.splice(at..at + inputs.len(), merged));
        }
        Ok(())
    }
}

/// Finds what it can of `sought` among sorted entries, and takes it off the list.
fn find_in(entries: &[Entry], sought: &mut Vec<Sought>, found: &mut [Option<RowAddress>]) {
    let mut from = 0;
    sought.retain(|wanted| {
        from = count_up_to(entries, from, wanted.key, |(key, _)| *key);
        let entry = from.checked_sub(1).and_then(|at| entries.get(at)).filter(|(key, _)| *key == wanted.key);
        if let (Some((_, address)), Some(answer)) = (entry, found.get_mut(wanted.at)) {
            *answer = Some(*address);
        }
        entry.is_none()
    });
}
