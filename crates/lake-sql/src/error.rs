//! Everything that can go wrong between a query's text and its rows.

use crate::table_name::TableName;
use datafusion::error::DataFusionError;
use deltalake::DeltaTableError;
use object_store::path::Path;
use reverse_sync::ReverseSyncError;
use wal_decoder::Lsn;

/// Why a lake SQL query, or the lake itself, could not be read.
///
/// Sources are chained and boxed where they are large; a message says where, what and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LakeSqlError {
    /// The lake or one of its tables cannot be opened, or its changes cannot be told.
    #[error(transparent)]
    Source(#[from] ReverseSyncError),
    /// The object store answered with an error.
    #[error("reading `{at}` from the lake's store failed")]
    Store {
        /// the path inside the store, or the lake's address
        at: String,
        /// what the store said
        #[source]
        source: Box<object_store::Error>,
    },
    /// The query does not parse.
    #[error("the query is not understood")]
    Syntax(#[source] sqlparser::parser::ParserError),
    /// Nothing, or more than one statement.
    #[error("expected one statement, found {found}; send statements one at a time")]
    NotOneStatement {
        /// how many there were
        found: usize,
    },
    /// The statement would change something, or is no query.
    #[error("`{statement}` is refused: lake SQL only reads; write SELECT, EXPLAIN or SHOW TABLES")]
    ReadOnly {
        /// the statement's beginning
        statement: String,
    },
    /// A clause on a table that would otherwise be ignored without a word.
    #[error("`{clause}` on table {table} is not supported; take it out")]
    UnsupportedTableClause {
        /// the table as written
        table: String,
        /// the clause as written
        clause: String,
    },
    /// Version syntax that lake SQL does not have.
    #[error(
        "`{clause}` on {table} is no supported version; write VERSION AS OF n, TIMESTAMP AS OF t, \
         AT (VERSION => n), AT (TIMESTAMP => t) or AT (LSN => '0/16B3748')"
    )]
    UnsupportedVersion {
        /// the table as written
        table: String,
        /// the clause as written
        clause: String,
    },
    /// A version on something that has none, such as a WITH query.
    #[error("{table} is a WITH query and has no versions; put the version on the tables inside it")]
    VersionOfCte {
        /// the name as written
        table: String,
    },
    /// Part of the contract that this release does not have yet.
    #[error("{what} is not available yet; {instead}")]
    NotAvailableYet {
        /// the construct
        what: String,
        /// what to use today
        instead: &'static str,
    },
    /// No table of that name.
    #[error(
        "the lake has no table {name}; SHOW TABLES lists what there is, and quoted names keep their case"
    )]
    NoSuchTable {
        /// the name as written, folded
        name: String,
    },
    /// A table without a history.
    #[error(
        "there is no table {name} in the lake: only tables synced with `mode: history` or `mode: both` have a history"
    )]
    NoHistory {
        /// the name of the table that would hold it, folded
        name: String,
    },
    /// `history` of something else than a table's name.
    #[error("{written} does not name a table: write its name in quotes, as in history('public.orders')")]
    HistoryOfWhat {
        /// the function as written
        written: String,
    },
    /// `changes` of something else than a table's name and two versions.
    #[error(
        "{written} names no table and range: write the table's name in quotes and the first and last version, as in \
         changes('public.orders', 3, 5)"
    )]
    ChangesOfWhat {
        /// the function as written
        written: String,
    },
    /// Several tables answer to the name.
    #[error("{name} could be {}; write the full name", list(.candidates))]
    AmbiguousTable {
        /// the name as written, folded
        name: String,
        /// the tables it could mean
        candidates: Vec<TableName>,
    },
    /// The version is not in the table's log.
    #[error("{table} has no version {version}; its log reaches from {earliest} to {latest}")]
    NoSuchVersion {
        /// the table
        table: TableName,
        /// what was asked for
        version: u64,
        /// the oldest version that can still be read
        earliest: u64,
        /// the newest version
        latest: u64,
    },
    /// The version was there once.
    #[error(
        "version {version} of {table} has expired; the oldest that can be read is {earliest}. How far tables \
         reach back is set by `lake.retention` and `lake.max_versions`"
    )]
    VersionExpired {
        /// the table
        table: TableName,
        /// what was asked for
        version: u64,
        /// the oldest version that can still be read
        earliest: u64,
    },
    /// The moment lies before everything that the table's log still holds.
    #[error("{table} does not reach back to {asked}; its earliest version is {earliest}, of {earliest_time}")]
    BeforeFirstVersion {
        /// the table
        table: TableName,
        /// what was asked for, RFC 3339
        asked: String,
        /// the oldest version that can still be read
        earliest: u64,
        /// its commit time, RFC 3339
        earliest_time: String,
    },
    /// No version of the table is known to belong to the position.
    #[error("{table} has no version that belongs to position {lsn}: {reason}")]
    NoConsistentPoint {
        /// the table
        table: TableName,
        /// what was asked for
        lsn: Lsn,
        /// what is there instead
        reason: &'static str,
    },
    /// The expression of `TIMESTAMP AS OF` is no single moment.
    #[error(
        "`{expression}` is not a moment in time ({reason}); write a timestamp, or an expression without columns"
    )]
    NotATimestamp {
        /// the expression as written
        expression: String,
        /// what was found instead
        reason: String,
    },
    /// The expression of `TIMESTAMP AS OF` could not be evaluated.
    #[error("`{expression}` cannot be evaluated as a moment in time; write an expression without columns")]
    TimestampExpression {
        /// the expression as written
        expression: String,
        /// what evaluation said
        #[source]
        source: Box<DataFusionError>,
    },
    /// A commit of the log is larger than any commit should be, or does not read as one.
    #[error("commit {version} of {table} cannot be read for its time: {reason}")]
    Commit {
        /// the table
        table: TableName,
        /// the commit
        version: u64,
        /// what is wrong with it
        reason: &'static str,
    },
    /// The Delta log of a table cannot be read.
    #[error("the Delta table at `{location}` cannot be read")]
    Table {
        /// the table's folder in the store
        location: Path,
        /// what the Delta reader said
        #[source]
        source: Box<DeltaTableError>,
    },
    /// Planning or running the query failed.
    #[error("the query failed")]
    Query(#[source] Box<DataFusionError>),
    /// The columns of a table have no form in Arrow.
    #[error("the table's columns have no form in a query")]
    Columns(#[from] arrow::error::ArrowError),
    /// Writing the result failed.
    #[error("writing the result failed")]
    Output(#[source] std::io::Error),
    /// A value could not be written in the chosen format.
    #[error("the result cannot be written as {format}")]
    Format {
        /// the format's name
        format: &'static str,
        /// what the encoder said
        #[source]
        source: arrow::error::ArrowError,
    },
}

impl From<DataFusionError> for LakeSqlError {
    fn from(source: DataFusionError) -> Self {
        LakeSqlError::Query(Box::new(source))
    }
}

impl LakeSqlError {
    /// The same, if it was said of a history that a query asks for by its table.
    pub(crate) fn of_history(self, is_history: bool) -> LakeSqlError {
        match self {
            LakeSqlError::NoSuchTable { name } if is_history => LakeSqlError::NoHistory { name },
            other => other,
        }
    }
}

fn list(names: &[TableName]) -> String {
    names.iter().map(TableName::to_string).collect::<Vec<_>>().join(" or ")
}
