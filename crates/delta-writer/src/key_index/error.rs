//! What can go wrong with a key index, and what its owner does about it.

use arrow::datatypes::DataType;
use std::io;
use std::path::PathBuf;

/// Errors of [`KeyIndex`](super::KeyIndex), [`KeyHasher`](super::KeyHasher) and [`RunBuilder`](super::RunBuilder).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyIndexError {
    /// The file system refused.
    #[error("cannot {action} {}: check that the disk has room and that the state directory is writable", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what was written to it. The index is soft state: create it anew and fill it from the table.
    #[error("the key index file {} is damaged ({what}): rebuild the index from the table", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        what: &'static str,
    },
    /// Another process, or another part of this one, works on the index.
    #[error("the key index in {} is in use: one daemon owns a state directory, stop the other one", dir.display())]
    InUse {
        /// The index's directory.
        dir: PathBuf,
    },
    /// A key column whose values have no canonical bytes here.
    #[error("key column {position} has the type {data_type}, which cannot be part of a primary key")]
    UnsupportedKeyColumn {
        /// Position among the key's columns, from zero.
        position: usize,
        /// Its Arrow type.
        data_type: DataType,
    },
    /// Key columns of different lengths, or none at all: a bug of the caller.
    #[error("a key needs at least one column, and all of the same length; got the lengths {lengths:?}")]
    UnevenKeyColumns {
        /// Rows in each column.
        lengths: Vec<usize>,
    },
    /// A run that was built for another index, whose keys are hashed with another seed.
    #[error("the sealed run {} belongs to another index", path.display())]
    ForeignRun {
        /// The run's file.
        path: PathBuf,
    },
    /// Versions of a Delta table only grow; an index that goes back would answer for rows that it no longer knows.
    #[error("the key index stands at version {current} and cannot go back to version {asked}: rebuild it")]
    VersionGoesBack {
        /// What the index matches.
        current: i64,
        /// What the commit asked for.
        asked: i64,
    },
    /// 2^32 - 1 data files were named since the index was created.
    #[error("the key index in {} has named every data file it can: rebuild it", dir.display())]
    FileIdsExhausted {
        /// The index's directory.
        dir: PathBuf,
    },
    /// The thread that merges runs ended without an answer.
    #[error("the merge of runs in {} ended without an answer", dir.display())]
    MergeLost {
        /// The index's directory.
        dir: PathBuf,
    },
}

impl KeyIndexError {
    /// Whether rebuilding the index from the table is the remedy, rather than mending the machine.
    pub fn wants_rebuild(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::VersionGoesBack { .. } | Self::FileIdsExhausted { .. })
    }
}

/// Gives an I/O error its place.
pub(super) trait InPlace<T> {
    fn in_place(self, action: &'static str, path: &std::path::Path) -> Result<T, KeyIndexError>;
}

impl<T> InPlace<T> for io::Result<T> {
    fn in_place(self, action: &'static str, path: &std::path::Path) -> Result<T, KeyIndexError> {
        self.map_err(|source| match source.kind() {
            // Lengths are checked when a file is opened: to hit its end later means that someone cut it.
            io::ErrorKind::UnexpectedEof => {
                KeyIndexError::Damaged { path: path.to_owned(), what: "it became shorter" }
            }
            _ => KeyIndexError::Io { action, path: path.to_owned(), source },
        })
    }
}
