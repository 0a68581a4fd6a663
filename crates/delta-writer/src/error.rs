//! Everything that can go wrong between a row change and its Delta version.

use crate::deletion_vector::DeletionVectorError;
use crate::key_index::KeyIndexError;

/// The result of this crate's operations.
pub type Result<T, E = DeltaError> = std::result::Result<T, E>;

/// Why a table cannot be opened, written or committed. Each message names the place and the remedy;
/// causes are chained as sources.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// The lake's place cannot be opened.
    #[error(transparent)]
    Location(#[from] object_location::LocationError),
    /// The store could not be set up, read or written.
    #[error("cannot {action} {path}")]
    Store {
        /// what was tried
        action: &'static str,
        /// the object
        path: String,
        /// the store's own error
        #[source]
        source: object_store::Error,
    },
    /// A local file could not be written durably.
    #[error("cannot {action} {path}")]
    LocalFile {
        /// what was tried
        action: &'static str,
        /// the file
        path: String,
        /// the system's error
        #[source]
        source: std::io::Error,
    },
    /// The store lets two writers create the same object.
    #[error(
        "{uri}: {winners} of {racers} racing conditional puts won instead of one; this store cannot hold a lake"
    )]
    NoConditionalPut {
        /// the lake
        uri: String,
        /// how many puts succeeded
        winners: usize,
        /// how many raced
        racers: usize,
    },
    /// A commit or checkpoint holds something that is not Delta.
    #[error("{path} is not a valid Delta log file: {reason}")]
    CorruptLog {
        /// the log file
        path: String,
        /// what is wrong
        reason: String,
    },
    /// A commit line is not an action.
    #[error("{path}, line {line}: not a Delta action")]
    CorruptAction {
        /// the log file
        path: String,
        /// counted from 1
        line: usize,
        /// the parser's error
        #[source]
        source: serde_json::Error,
    },
    /// Something could not be put into JSON.
    #[error("cannot write {what} as JSON")]
    Json {
        /// what was written
        what: &'static str,
        /// the serializer's error
        #[source]
        source: serde_json::Error,
    },
    /// The table asks for more of its writer than this one can.
    #[error(
        "{table}: the table needs the Delta feature `{feature}`, which this writer does not keep; load it anew into another folder"
    )]
    UnsupportedFeature {
        /// the table
        table: String,
        /// the feature or protocol version
        feature: String,
    },
    /// A column's type has no place in a mirror.
    #[error("{table}: column `{column}` of type {data_type} cannot be {role}")]
    UnsupportedColumn {
        /// the table
        table: String,
        /// the column
        column: String,
        /// its type
        data_type: String,
        /// the use it was meant for
        role: &'static str,
    },
    /// The definition contradicts itself.
    #[error("{table}: {reason}")]
    BadDefinition {
        /// the table
        table: String,
        /// what is wrong
        reason: String,
    },
    /// Row changes do not fit the table.
    #[error("{table}: row changes do not fit the table: {reason}")]
    BadChanges {
        /// the table
        table: String,
        /// what is wrong
        reason: String,
    },
    /// An update or delete names a row that the mirror does not hold.
    #[error(
        "{table}: {operation} of a row that the mirror does not hold, key ({key}); mirror and source differ: run `resync` on the table"
    )]
    MissingRow {
        /// the table
        table: String,
        /// update or delete
        operation: &'static str,
        /// the key's values
        key: String,
    },
    /// A row was inserted twice within one flush.
    #[error("{table}: two rows with the key ({key}); mirror and source differ: run `resync` on the table")]
    DuplicateKey {
        /// the table
        table: String,
        /// the key's values
        key: String,
    },
    /// A partition column holds a value that Delta reads back as another.
    #[error(
        "{table}: an empty string in partition column `{column}` would be read back as null; leave the column out of `partition_by`"
    )]
    EmptyPartitionValue {
        /// the table
        table: String,
        /// the column
        column: String,
    },
    /// A data file could not be written or read.
    #[error("cannot {action} data file {path}")]
    DataFile {
        /// what was tried
        action: &'static str,
        /// the file
        path: String,
        /// Parquet's error
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// Columns could not be transformed.
    #[error("cannot {action}")]
    Arrow {
        /// what was tried
        action: &'static str,
        /// Arrow's error
        #[source]
        source: arrow::error::ArrowError,
    },
    /// The key index failed; it is soft state, and reopening the table mends it.
    #[error("{table}: the key index failed; it is rebuilt when the table is opened again")]
    KeyIndex {
        /// the table
        table: String,
        /// the index's error
        #[source]
        source: KeyIndexError,
    },
    /// A deletion vector cannot be read.
    #[error("{table}: a deletion vector cannot be read or written")]
    DeletionVector {
        /// the table
        table: String,
        /// the vector's error
        #[source]
        source: DeletionVectorError,
    },
    /// Another process writes this table under our own name.
    #[error(
        "{table}: version {version} was written by a second daemon under the same name ({app_id}); stop one of the two, or give them different `instance` names. Nothing was acknowledged"
    )]
    SecondWriter {
        /// the table
        table: String,
        /// the version found
        version: i64,
        /// our name
        app_id: String,
    },
    /// Somebody else changed rows.
    #[error(
        "{table}: version {version} changed rows and was written by {writer}; the mirror no longer equals its source. Run `resync` on the table, and keep other writers away from it"
    )]
    ForeignWrite {
        /// the table
        table: String,
        /// the version found
        version: i64,
        /// its engine, as it names itself
        writer: String,
    },
    /// Somebody moved rows while a flush was being written, and the flush cannot follow.
    #[error(
        "{table}: version {version}, written by {writer}, moved rows under the flush being committed; open the table again and repeat the flush"
    )]
    RowsMoved {
        /// the table
        table: String,
        /// the version found
        version: i64,
        /// its engine
        writer: String,
        /// why the flush could not follow
        #[source]
        source: Box<DeltaError>,
    },
    /// A table stands where a new one should be made, or vanished.
    #[error("{table}: {reason}")]
    UnexpectedState {
        /// the table
        table: String,
        /// what was found
        reason: String,
    },
    /// A crash point fired (tests only).
    #[error("crash point {name}")]
    CrashPoint {
        /// its name
        name: &'static str,
    },
}

impl DeltaError {
    pub(crate) fn store(
        action: &'static str,
        path: impl Into<String>,
    ) -> impl FnOnce(object_store::Error) -> Self {
        let path = path.into();
        move |source| Self::Store { action, path, source }
    }

    pub(crate) fn arrow(action: &'static str) -> impl FnOnce(arrow::error::ArrowError) -> Self {
        move |source| Self::Arrow { action, source }
    }

    pub(crate) fn index(table: &str) -> impl FnOnce(KeyIndexError) -> Self {
        let table = table.to_owned();
        move |source| Self::KeyIndex { table, source }
    }
}
