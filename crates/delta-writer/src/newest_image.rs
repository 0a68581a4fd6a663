//! Making a history's key index anew: which row is the newest of its key.
//!
//! Rows say themselves when they came about, by (`_pg_lsn`, `_pg_seq`), so the order of files and of the rows inside
//! them does not matter: compaction and an OPTIMIZE of another engine may shuffle them. A history has many rows of
//! each key and may be of any size, so rows are dealt to buckets by their key's hash, in files without a name, and each
//! bucket is settled in memory:
//!
//! ```text
//!   data files ──▶ (key, moment, place) ──by hash──▶ bucket 0 … bucket n ──newest of each key──▶ index run
//! ```
//!
//! What came before the newest TRUNCATE names nothing any more.

use crate::action::Add;
use crate::change_row::{ChangeType, HISTORY_COLUMNS, Moment, change_at};
use crate::error::{DeltaError, Result};
use crate::file_stats::bounds_of_integers;
use crate::key_index::{FileId, KeyHash, KeyIndex, RowAddress, SealedRun};
use crate::lake::TableLocation;
use crate::log::LoadedLog;
use crate::row_reader::RowReader;
use crate::table_definition::TableDefinition;
use crate::writer_options::WriterOptions;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// Rows that a bucket is meant to hold: some 50 MiB while it is settled.
const ROWS_PER_BUCKET: u64 = 500_000;
/// Buckets at most, each an open file.
const MAX_BUCKETS: u64 = 256;
/// Bytes of a row in a bucket: hash, LSN, sequence number, file and row.
const RECORD_BYTES: usize = 40;

/// A row that may be the newest of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    key: KeyHash,
    moment: Moment,
    address: RowAddress,
}

impl Candidate {
    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let fields = self.key.0.to_le_bytes().into_iter();
        let fields = fields.chain(self.moment.lsn.to_le_bytes()).chain(self.moment.seq.to_le_bytes());
        let fields = fields.chain(self.address.file.0.to_le_bytes()).chain(self.address.row.to_le_bytes());
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        bytes
    }

    fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Option<Candidate> {
        let (key, rest) = bytes.split_first_chunk::<16>()?;
        let (lsn, rest) = rest.split_first_chunk::<8>()?;
        let (seq, rest) = rest.split_first_chunk::<8>()?;
        let (file, rest) = rest.split_first_chunk::<4>()?;
        let row = rest.first_chunk::<4>()?;
        Some(Candidate {
            key: KeyHash(u128::from_le_bytes(*key)),
            moment: Moment { lsn: i64::from_le_bytes(*lsn), seq: i64::from_le_bytes(*seq) },
            address: RowAddress { file: FileId(u32::from_le_bytes(*file)), row: u32::from_le_bytes(*row) },
        })
    }
}

/// Whether all rows of the files that came after `version` are younger than all others: then the index of that
/// version only has to learn these. Compaction brings files with old rows.
pub(crate) fn only_younger_rows_came(loaded: &LoadedLog, version: i64) -> bool {
    let [_, lsn, ..] = HISTORY_COLUMNS;
    let (mut oldest_new, mut newest_old) = (i64::MAX, i64::MIN);
    for file in loaded.state.files.values() {
        let bounds = file.add.stats.as_deref().and_then(|stats| bounds_of_integers(stats, lsn));
        let Some((lowest, highest)) = bounds else { return false };
        if file.since > version {
            oldest_new = oldest_new.min(lowest);
        } else {
            newest_old = newest_old.max(highest);
        }
    }
    oldest_new > newest_old
}

/// Stages the newest row of each key that occurs in `files`; a TRUNCATE among them empties the index first.
pub(crate) async fn stage(
    location: &TableLocation,
    options: &WriterOptions,
    definition: &TableDefinition,
    files: &[Arc<Add>],
    index: &mut KeyIndex,
) -> Result<()> {
    let rows =
        files.iter().map(|add| crate::table_state::rows_of(add).unwrap_or(ROWS_PER_BUCKET)).sum::<u64>();
    let mut buckets = Buckets::create(&options.index_dir, rows)?;
    let mut emptied: Option<Moment> = None;
    for add in files {
        let file = index.file_id(&add.path);
        let hasher = index.hasher();
        let added = definition.source_columns()..definition.schema.fields().len();
        let columns: Vec<usize> = definition.key.iter().copied().chain(added).collect();
        let mut reader = RowReader::open(location, &definition.schema, add, &columns, None).await?;
        let mut first = 0_u32;
        while let Some(batch) = reader.next().await? {
            let (key, added) = batch.columns().split_at(definition.key.len());
            let keys = hasher.hash(key).map_err(DeltaError::index(location.uri()))?;
            for ((key, row), number) in keys.into_iter().zip(0..).zip(first..) {
                let (change, moment) = what_and_when(location, &batch, added, row)?;
                if change == ChangeType::Truncate {
                    emptied = emptied.max(Some(moment));
                } else {
                    let address = RowAddress { file, row: number };
                    buckets.put(Candidate { key, moment, address })?;
                }
            }
            // A file is closed long before its rows outgrow 32 bits.
            first += batch.num_rows() as u32;
        }
    }
    let run = buckets.settle(location, emptied, index)?;
    if emptied.is_some() {
        index.truncate_staged();
    }
    index.stage_run(run).map_err(DeltaError::index(location.uri()))
}

/// What a row of a history is and when it came about.
fn what_and_when(
    location: &TableLocation,
    batch: &RecordBatch,
    added: &[arrow::array::ArrayRef],
    row: usize,
) -> Result<(ChangeType, Moment)> {
    let read = || {
        let [change, lsn, _, _, seq] = added else { return None };
        let (lsn, seq) = (lsn.as_primitive_opt::<Int64Type>()?, seq.as_primitive_opt::<Int64Type>()?);
        let complete = row < batch.num_rows() && lsn.is_valid(row) && seq.is_valid(row);
        complete
            .then(|| Some((change_at(change, row)?, Moment { lsn: lsn.value(row), seq: seq.value(row) })))
            .flatten()
    };
    read().ok_or_else(|| DeltaError::BadChanges {
        table: location.uri().to_owned(),
        reason: "a row of the history does not say what it is or when it came about".to_owned(),
    })
}

/// Candidates by their key's hash.
struct Buckets {
    files: Vec<BufWriter<File>>,
}

impl Buckets {
    fn create(folder: &Path, rows: u64) -> Result<Buckets> {
        let count = (rows / ROWS_PER_BUCKET + 1).min(MAX_BUCKETS);
        let create = |_| {
            std::fs::create_dir_all(folder)?;
            let path = folder.join(format!("scratch-{}", Uuid::new_v4()));
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            // It goes with its handle, also when the process is killed.
            std::fs::remove_file(&path)?;
            Ok(BufWriter::new(file))
        };
        let files = (0..count).map(create).collect::<io::Result<Vec<_>>>().map_err(scratch_failed)?;
        Ok(Buckets { files })
    }

    fn put(&mut self, candidate: Candidate) -> Result<()> {
        let count = self.files.len().max(1) as u128;
        let bucket = usize::try_from(candidate.key.0 % count).unwrap_or_default();
        match self.files.get_mut(bucket) {
            Some(file) => file.write_all(&candidate.to_bytes()).map_err(scratch_failed),
            None => Ok(()),
        }
    }

    /// A run of each key's newest row, but for keys that a TRUNCATE emptied later.
    fn settle(
        self,
        location: &TableLocation,
        emptied: Option<Moment>,
        index: &KeyIndex,
    ) -> Result<SealedRun> {
        let failed = |source| DeltaError::index(location.uri())(source);
        let mut run = index.run_builder();
        for bucket in self.files {
            let mut file = bucket.into_inner().map_err(|error| scratch_failed(error.into_error()))?;
            file.rewind().map_err(scratch_failed)?;
            let mut newest: HashMap<KeyHash, (Moment, RowAddress)> = HashMap::new();
            let mut records = BufReader::new(file);
            let mut bytes = [0; RECORD_BYTES];
            while records.read(&mut bytes[..1]).map_err(scratch_failed)? == 1 {
                records.read_exact(&mut bytes[1..]).map_err(scratch_failed)?;
                let Some(Candidate { key, moment, address }) = Candidate::from_bytes(&bytes) else { break };
                let entry = newest.entry(key).or_insert((moment, address));
                if moment >= entry.0 {
                    *entry = (moment, address);
                }
            }
            for (key, (moment, address)) in newest {
                if emptied.is_none_or(|emptied| moment > emptied) {
                    run.push(key, address).map_err(failed)?;
                }
            }
        }
        run.finish().map_err(failed)
    }
}

fn scratch_failed(source: io::Error) -> DeltaError {
    DeltaError::LocalFile { action: "use a scratch file beside", path: "the key indexes".into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_reads_back_from_its_bytes() {
        let candidate = Candidate {
            key: KeyHash(u128::MAX - 7),
            moment: Moment { lsn: 1 << 40, seq: -1 },
            address: RowAddress { file: FileId(9), row: u32::MAX - 1 },
        };
        assert_eq!(Candidate::from_bytes(&candidate.to_bytes()), Some(candidate));
    }
}
