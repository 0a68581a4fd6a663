//! How a table is written.

use crate::pending_budget::PendingBudget;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of a table's writer. None of them shows in the table: they may change at any restart.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Folder for key indexes; each table gets a folder of its own below it, named by its Delta id.
    pub index_dir: PathBuf,
    /// Rows after which a data file is closed. Must stay below 2^31: rows are addressed in 32 bits.
    pub target_file_rows: u64,
    /// Bytes after which a data file is closed.
    pub target_file_bytes: u64,
    /// zstd level of data files. Level 1 is fast enough to keep up, and close to the higher ones in size.
    pub zstd_level: i32,
    /// Bytes of rows that a flush holds in memory before it moves them to a data file.
    pub pending_bytes: usize,
    /// How often a commit without an answer is put again, with doubling pauses from 80 ms, before the error is shown.
    pub commit_attempts: u32,
    /// The most commits between two checkpoints; small tables have more checkpoints.
    pub checkpoint_every: u64,
    /// How far back versions can be read, and how long removed files stay on record for VACUUM.
    pub retention: Duration,
    /// The most versions that the log holds, whatever `retention` says.
    pub max_versions: u64,
    /// What this table's flush and those of the tables that share it may hold together.
    pub pending_budget: PendingBudget,
}

impl WriterOptions {
    /// The defaults, with key indexes below `index_dir`.
    pub fn new(index_dir: impl Into<PathBuf>) -> Self {
        Self {
            index_dir: index_dir.into(),
            target_file_rows: 16_000_000,
            target_file_bytes: 128 << 20,
            zstd_level: 1,
            // Buffers grow by doubling and keys are kept beside the rows, so this is about a third of what is held.
            pending_bytes: 16 << 20,
            // Some ten seconds for a store to come back.
            commit_attempts: 8,
            checkpoint_every: 100,
            retention: Duration::from_secs(7 * 24 * 3600),
            max_versions: 20_000,
            pending_budget: PendingBudget::default(),
        }
    }

    /// Commits between two checkpoints: often enough that a short log can be cut at one.
    pub(crate) fn checkpoint_every(&self) -> i64 {
        let every = self.checkpoint_every.min(self.max_versions / 4).max(1);
        i64::try_from(every).unwrap_or(i64::MAX)
    }
}
