//! Writing the new files, beside everything else.
//!
//! Rows stream from the old files to the new ones, so memory holds some batches, one row group and the run of
//! keys being sorted, whatever the files' size. It works half of the time and rests the other half: a
//! compaction is never urgent, and a flush that waits for the processor is late.

use super::row_map::MovedFile;
use crate::action::Add;
use crate::data_file::DataFileWriter;
use crate::error::{DeltaError, Result};
use crate::key_index::{FileId, FileNumbers, KeyHasher, KeyIndex, RowAddress, RunBuilder, SealedRun};
use crate::lake::TableLocation;
use crate::row_reader::RowReader;
use crate::table_definition::TableDefinition;
use crate::vector_cache::VectorCache;
use crate::writer_options::WriterOptions;
use arrow::array::RecordBatch;
use object_store::ObjectStoreExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Work between two rests: long enough that resting is cheap, short beside a flush.
const WORK_AT_ONCE: Duration = Duration::from_millis(20);

/// Keys of moved rows held at once: 8 MiB, and half as much again while they are sorted. There is time to merge more of
/// smaller runs, and the daemon's memory is for its flushes.
const KEYS_HELD: usize = 1 << 18;

/// A compaction to be run. See the [module](super).
#[derive(Debug)]
#[must_use = "a compaction that is not run has to be abandoned at its table"]
pub struct Compaction {
    location: TableLocation,
    options: WriterOptions,
    definition: Arc<TableDefinition>,
    groups: Vec<Vec<Arc<Add>>>,
    keys: Option<KeyRun>,
}

/// Files written by a compaction, which no version names yet.
#[derive(Debug)]
#[must_use = "compacted files are nowhere to be seen until their table adopts them"]
pub struct CompactedFiles {
    pub(super) location: TableLocation,
    pub(super) definition: Arc<TableDefinition>,
    pub(super) old: Vec<MovedFile>,
    pub(super) new: Vec<NewFile>,
    pub(super) run: Option<SealedRun>,
}

/// A file that a compaction wrote.
#[derive(Debug)]
pub(super) struct NewFile {
    pub id: FileId,
    pub rows: u64,
    pub add: Add,
}

/// The moved rows' keys and new places, on their way into the index.
#[derive(Debug)]
pub(super) struct KeyRun {
    hasher: KeyHasher,
    numbers: FileNumbers,
    run: RunBuilder,
}

impl KeyRun {
    pub fn new(index: &KeyIndex) -> KeyRun {
        KeyRun {
            hasher: index.hasher(),
            numbers: index.file_numbers(),
            run: index.run_builder().with_budget(KEYS_HELD),
        }
    }
}

impl Compaction {
    pub(super) fn new(
        location: TableLocation,
        options: WriterOptions,
        definition: Arc<TableDefinition>,
        groups: Vec<Vec<Arc<Add>>>,
        keys: Option<KeyRun>,
    ) -> Compaction {
        Compaction { location, options, definition, groups, keys }
    }

    /// How many files it merges.
    pub fn files(&self) -> usize {
        self.groups.iter().map(Vec::len).sum()
    }

    /// Writes the new files. Dropped before its end, it leaves files that nothing names.
    pub async fn run(self) -> Result<CompactedFiles> {
        let vectors = VectorCache::new(self.location.clone());
        let mut rewrite = Rewrite {
            location: self.location,
            options: self.options,
            definition: self.definition,
            vectors,
            keys: self.keys,
            open: None,
            new: Vec::new(),
            pace: Pace::begin(),
        };
        let mut old = Vec::new();
        for group in self.groups {
            for add in group {
                old.push(rewrite.copy(&add).await?);
            }
            // The next group is of another partition.
            rewrite.close().await?;
        }
        let run = match rewrite.keys {
            Some(keys) => Some(keys.run.finish().map_err(DeltaError::index(rewrite.location.uri()))?),
            None => None,
        };
        Ok(CompactedFiles {
            location: rewrite.location,
            definition: rewrite.definition,
            old,
            new: rewrite.new,
            run,
        })
    }
}

impl CompactedFiles {
    /// Removes the files, which no version will ever name.
    pub(super) async fn discard(self) {
        for file in &self.new {
            let removed = match self.location.resolve(&file.add.path) {
                Ok(path) => self.location.store().delete(&path).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = removed {
                // Expiry sweeps what is left over.
                tracing::warn!(path = %file.add.path, error, "a file of an abandoned compaction stays for now");
            }
        }
    }
}

struct Rewrite {
    location: TableLocation,
    options: WriterOptions,
    definition: Arc<TableDefinition>,
    vectors: VectorCache,
    keys: Option<KeyRun>,
    open: Option<(FileId, DataFileWriter)>,
    new: Vec<NewFile>,
    pace: Pace,
}

impl Rewrite {
    /// Copies a file's live rows.
    async fn copy(&mut self, add: &Add) -> Result<MovedFile> {
        let hidden = self.vectors.get(add).await?;
        let mut moved =
            MovedFile { path: add.path.clone(), hidden: Arc::clone(&hidden), stretches: Vec::new() };
        let columns: Vec<usize> = (0..self.definition.schema.fields().len()).collect();
        let mut reader =
            RowReader::open(&self.location, &self.definition.schema, add, &columns, None).await?;
        while let Some(batch) = reader.next_live(&hidden).await? {
            let rows = batch.num_rows() as u64;
            let (file, first) = self.append(add, batch).await?;
            moved.extend(file, first, rows);
            self.pace.rest().await;
        }
        self.vectors.forget(&add.path);
        Ok(moved)
    }

    /// Appends rows of one partition. Gives the number of their new file and their first row there.
    async fn append(&mut self, like: &Add, batch: RecordBatch) -> Result<(usize, u64)> {
        let (id, mut writer) = match self.open.take() {
            Some(open) => open,
            None => {
                let id = self.keys.as_ref().map_or(FileId(0), |keys| keys.numbers.next());
                let partition = like.partition_values.clone();
                (id, DataFileWriter::open(&self.location, &self.definition, &self.options, partition)?)
            }
        };
        let first = writer.rows();
        writer.write(&self.definition.file_batch(&batch)?).await?;
        let full = writer.bytes() >= self.options.target_file_bytes
            || writer.rows() >= self.options.target_file_rows;
        self.open = Some((id, writer));
        self.push_keys(id, first, &batch)?;
        let file = self.new.len();
        if full {
            self.close().await?;
        }
        Ok((file, first))
    }

    fn push_keys(&mut self, file: FileId, first: u64, batch: &RecordBatch) -> Result<()> {
        let Some(keys) = &mut self.keys else { return Ok(()) };
        let failed = |source| DeltaError::index(self.location.uri())(source);
        let columns: Vec<_> =
            self.definition.key.iter().filter_map(|&at| batch.columns().get(at)).cloned().collect();
        for (row, key) in (first..).zip(keys.hasher.hash(&columns).map_err(failed)?) {
            // Files are closed long before their rows outgrow 32 bits: see WriterOptions::target_file_rows.
            keys.run.push(key, RowAddress { file, row: row as u32 }).map_err(failed)?;
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        if let Some((id, writer)) = self.open.take() {
            let (rows, add) = writer.finish().await?;
            self.new.push(NewFile { id, rows, add: Add { data_change: false, ..add } });
        }
        Ok(())
    }
}

/// Rests as long as it has worked.
struct Pace {
    working_since: Instant,
}

impl Pace {
    fn begin() -> Pace {
        Pace { working_since: Instant::now() }
    }

    async fn rest(&mut self) {
        let worked = self.working_since.elapsed();
        if worked >= WORK_AT_ONCE {
            tokio::time::sleep(worked).await;
            self.working_since = Instant::now();
        }
    }
}
