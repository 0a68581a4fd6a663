//! Everything that can go wrong between a Delta table and the rows that it serves: first what keeps it from being
//! read, then what keeps it from being served.

use datafusion::error::DataFusionError;
use postgres_connector::Error as PostgresError;

/// The crate's results.
pub type Result<T, E = ReverseSyncError> = std::result::Result<T, E>;

/// Why a table, a version or a range of versions could not be read, or not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReverseSyncError {
    /// The place cannot be opened.
    #[error(transparent)]
    Location(#[from] object_location::LocationError),
    /// A folder has a name that no object can have.
    #[error("the folder {} cannot be addressed; give it another name", folder.display())]
    Folder {
        /// the folder
        folder: std::path::PathBuf,
        /// what is wrong with it
        #[source]
        source: object_store::path::Error,
    },
    /// The object store answered with an error.
    #[error("reading `{at}` from the object store failed")]
    Store {
        /// the path inside the store, or the store's address
        at: String,
        /// what the store said
        #[source]
        source: Box<object_store::Error>,
    },
    /// There is no Delta table at the address.
    #[error("there is no Delta table at {table}: its folder holds no log")]
    NoTable {
        /// the table's address
        table: String,
    },
    /// The version is not there yet.
    #[error("{table} has no version {version}; its newest is {latest}")]
    NoSuchVersion {
        /// the table's address
        table: String,
        /// what was asked for
        version: u64,
        /// the newest version
        latest: u64,
    },
    /// The changes of the range, or the rows of the version, can no longer be told from the table; the rows of
    /// the newest version can be.
    #[error("what {table} held {} cannot be read any more: {reason}", range(*.from, *.to))]
    Unavailable {
        /// the table's address
        table: String,
        /// the version before the range
        from: u64,
        /// the range's last version
        to: u64,
        /// why
        reason: Unavailable,
    },
    /// The Delta log cannot be read, or asks for a feature that this reader lacks.
    #[error("the Delta log of {table} cannot be read")]
    Log {
        /// the table's address
        table: String,
        /// what the Delta reader said
        #[source]
        source: Box<delta_kernel::Error>,
    },
    /// A commit is not what the protocol says.
    #[error("commit {version} of {table} cannot be read: {reason}")]
    Commit {
        /// the table's address
        table: String,
        /// the commit
        version: u64,
        /// what is wrong with it
        reason: String,
    },
    /// A data file cannot be read.
    #[error("the data file `{path}` of {table} cannot be read")]
    DataFile {
        /// the table's address
        table: String,
        /// the file, as the log names it
        path: String,
        /// what the reader said
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A column whose type is outside of the contract.
    #[error("column `{column}` of {table} cannot be read: {reason}; leave it out with `columns`")]
    Column {
        /// the table's address
        table: String,
        /// the column
        column: String,
        /// what its type is
        reason: String,
    },
    /// A column that was asked for and is not there.
    #[error("{table} has no column `{column}` in version {version}")]
    NoSuchColumn {
        /// the table's address
        table: String,
        /// the version whose schema was looked at
        version: u64,
        /// the column
        column: String,
    },
    /// A condition that does not fit the table.
    #[error("the condition `{filter}` does not fit {table}")]
    Filter {
        /// the table's address
        table: String,
        /// the condition as written
        filter: String,
        /// what planning or evaluating it said
        #[source]
        source: Box<DataFusionError>,
    },
    /// The files that a comparison is spilled to cannot be written or read.
    #[error(
        "the folder `{folder}` does not take the spill files of a comparison; see that it can be written"
    )]
    Spill {
        /// the folder
        folder: String,
        /// what the file system said
        #[source]
        source: std::io::Error,
    },
    /// Rows could not be brought into shape.
    #[error("rows of {table} cannot be brought into shape")]
    Shape {
        /// the table's address
        table: String,
        /// what Arrow said
        #[source]
        source: arrow::error::ArrowError,
    },
    /// Reading ended early: the task that reads came down.
    #[error("the task that reads {table} came down; this is a defect, please report it")]
    Reader {
        /// the table's address
        table: String,
        /// how it ended
        #[source]
        source: tokio::task::JoinError,
    },
    /// The target refuses or is away.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// A column's type has no counterpart in Postgres.
    #[error(
        "column {column} is of type {data_type}, which has no counterpart in Postgres: leave it out with `columns`"
    )]
    UnsupportedColumn {
        /// the column
        column: String,
        /// its type
        data_type: String,
    },
    /// The Delta table lacks a column that is to be served or names rows.
    #[error(
        "the Delta table has no column {column}: mend the entry's `columns`, `primary_key` or `timeseries_key`"
    )]
    MissingColumn {
        /// the column
        column: String,
    },
    /// A column cannot be brought into the form it is written from.
    #[error("the values of column {column} cannot be read")]
    Arrow {
        /// the column
        column: String,
        /// Arrow's reason.
        #[source]
        source: arrow::error::ArrowError,
    },
    /// Postgres has tables of at most 1600 columns.
    #[error("the table has more columns than Postgres takes: choose some with `columns`")]
    TooManyColumns,
    /// The name is taken by something that Tidewater did not make.
    #[error(
        "{table} is there already and was not made by Tidewater: move it away, or serve `into` another name"
    )]
    ForeignTarget {
        /// `schema.table`
        table: String,
    },
    /// Another installation serves a table of this name.
    #[error(
        "{table} is served by the installation `{instance}`: serve `into` another name, or stop that entry there"
    )]
    OtherInstance {
        /// `schema.table`
        table: String,
        /// the other one's name
        instance: String,
    },
    /// Another session has the table's lock.
    #[error(
        "{table} is being served by another session: stop the other process, or wait until the server has noticed \
         that it is gone"
    )]
    ServedElsewhere {
        /// `schema.table`
        table: String,
    },
    /// The served table is not ours to change.
    #[error(
        "{table} belongs to the role {owner}: `ALTER TABLE {table} OWNER TO {role}`, or serve `into` another name"
    )]
    NotOwner {
        /// `schema.table`, quoted
        table: String,
        /// who has it
        owner: String,
        /// who should
        role: String,
    },
    /// Somebody else applied versions meanwhile.
    #[error("{table} was brought to another version meanwhile: another process serves it too")]
    MovedMeanwhile {
        /// `schema.table`
        table: String,
    },
    /// The server could not cast a value to its column's type.
    #[error("{key}: column {column} holds a value that is no {declared}: {shown}")]
    Uncastable {
        /// the row's key
        key: String,
        /// the column
        column: String,
        /// the column's type
        declared: String,
        /// the value, shortened
        shown: String,
    },
    /// A record of Tidewater's own cannot be understood.
    #[error(
        "the record of {table} in tidewater.served_tables is not usable: {problem}. Delete its row and the table to serve it anew"
    )]
    BadRecord {
        /// `schema.table`
        table: String,
        /// what is wrong with it
        problem: String,
    },
    /// A task that wrote rows ended out of turn.
    #[error("a task that copied rows came down; this is a defect, please report it")]
    CopierGone {
        /// How it ended, where that is known.
        #[source]
        source: Option<tokio::task::JoinError>,
    },
}

/// What keeps a range of versions from being told. The remedy is always to load the newest version anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The log does not reach back far enough.
    #[error("its log begins with version {earliest}, and version {version} is needed")]
    LogExpired {
        /// the version that is needed
        version: u64,
        /// the oldest version that can be read
        earliest: u64,
    },
    /// VACUUM took a file away.
    #[error("the file `{path}` of version {version} is gone, as after VACUUM")]
    FileVacuumed {
        /// the version that names the file
        version: u64,
        /// the file, as the log names it
        path: String,
    },
    /// Rows from before a change of the schema have no form under the schema after it.
    #[error("version {version} changed column `{column}`: {reason}")]
    SchemaIncompatible {
        /// the version that brought the change
        version: u64,
        /// the column
        column: String,
        /// what changed
        reason: String,
    },
    /// The writer left out of the log what the changes would follow from.
    #[error("version {version} removes `{path}` without naming its partition")]
    NoPartitionValues {
        /// the version
        version: u64,
        /// the file, as the log names it
        path: String,
    },
}

impl ReverseSyncError {
    /// Why changes cannot be told, when loading the newest version anew is the remedy.
    pub fn unavailable(&self) -> Option<&Unavailable> {
        match self {
            ReverseSyncError::Unavailable { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Whether the same may well succeed later without anyone mending anything.
    pub fn is_transient(&self) -> bool {
        match self {
            ReverseSyncError::Postgres(error) => error.is_transient(),
            ReverseSyncError::Store { .. }
            | ReverseSyncError::Spill { .. }
            | ReverseSyncError::MovedMeanwhile { .. }
            | ReverseSyncError::ServedElsewhere { .. }
            | ReverseSyncError::CopierGone { .. } => true,
            _ => false,
        }
    }
}

fn range(from: u64, to: u64) -> String {
    if from == to { format!("in version {to}") } else { format!("from version {from} to {to}") }
}
