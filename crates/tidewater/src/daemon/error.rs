//! What ends or interrupts a sync.

use super::serving::ServingError;
use crate::built_in::BuiltInError;
use delta_writer::DeltaError;
use std::io;

/// The daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A part of the configuration that this version does not act on, or that contradicts the source.
    #[error("{0}")]
    Configuration(String),
    /// A database's private Postgres cannot be had.
    #[error("the built-in Postgres of database `{database}` does not run")]
    Core {
        /// The database's name in the configuration.
        database: String,
        /// The reason.
        #[source]
        source: oltp_core::CoreError,
    },
    /// The core cannot be had.
    #[error("the built-in Postgres does not run")]
    BuiltIn(#[source] Box<BuiltInError>),
    /// The lake cannot be opened.
    #[error("the lake cannot be used")]
    Lake(#[source] DeltaError),
    /// The lake cannot be opened for reading.
    #[error("the lake cannot be read")]
    LakeReader(#[source] lake_sql::LakeSqlError),
    /// A database's sync cannot go on.
    #[error("sync of database `{database}` has stopped")]
    Sync {
        /// The database's name in the configuration.
        database: String,
        /// The reason.
        #[source]
        source: Box<SyncError>,
    },
    /// A table is not served up to its newest version.
    #[error("table `{table}` is not served as it should be")]
    Serving {
        /// `schema.table`
        table: String,
        /// The reason.
        #[source]
        source: Box<ServingError>,
    },
    /// A task of the daemon ended out of turn.
    #[error("a task of the daemon ended unexpectedly; its reason stands in the log")]
    TaskGone,
}

impl From<BuiltInError> for DaemonError {
    fn from(error: BuiltInError) -> Self {
        DaemonError::BuiltIn(Box::new(error))
    }
}

/// One database's sync is interrupted, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The configuration contradicts itself or the source.
    #[error("{0}")]
    Configuration(String),
    /// The source refuses or is away.
    #[error(transparent)]
    Source(#[from] postgres_connector::Error),
    /// A built-in database is away, or its commits are not confirmed.
    #[error(transparent)]
    BuiltIn(#[from] BuiltInError),
    /// Another daemon follows the slot.
    #[error(
        "another process is syncing database `{database}` already: stop it, or give this installation \
         another `instance` name"
    )]
    SecondDaemon {
        /// The database's name in the configuration.
        database: String,
        /// The server's answer, with the process id there.
        #[source]
        source: postgres_connector::Error,
    },
    /// Another daemon writes the same lake.
    #[error(transparent)]
    SecondWriter(DeltaError),
    /// The lake is away, or a table in it cannot be read.
    #[error(transparent)]
    Lake(#[from] DeltaError),
    /// The database's sync state in the lake cannot be read or written.
    #[error("cannot read or write {path} in the lake")]
    LakeState {
        /// The object.
        path: String,
        /// The store's answer.
        #[source]
        source: object_store::Error,
    },
    /// The database's sync state is not what this build writes.
    #[error(
        "{path} in the lake is not usable: {reason}. Restore it from a backup of the lake, or remove it \
         to load every table of this database anew"
    )]
    LakeStateUnreadable {
        /// The object.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A folder holds a Delta table that Tidewater did not make.
    #[error(
        "{location} holds a Delta table that Tidewater did not make, and table {table} would overwrite it: \
         move it away, or exclude the table"
    )]
    ForeignTable {
        /// `schema.table`
        table: String,
        /// Its folder.
        location: String,
    },
    /// The stream is not what pgoutput sends.
    #[error(transparent)]
    Protocol(#[from] wal_decoder::ProtocolError),
    /// Rows of a first load cannot be taken.
    #[error(transparent)]
    Copy(#[from] wal_decoder::CopyError),
    /// The stream ends a transaction that it never began.
    #[error("the stream continues transaction {xid}, which it never began")]
    UnknownTransaction {
        /// The transaction's id at the source.
        xid: u32,
    },
    /// The stream changes a relation that it never described.
    #[error("the stream changes relation {relation}, which it never described")]
    UnknownRelation {
        /// Its oid.
        relation: u32,
    },
    /// A table's source changed in a way that cannot be followed in place: all is planned anew from the catalog.
    #[error("table {table} is loaded anew: {reason}")]
    Reload {
        /// `schema.table`
        table: String,
        /// What happened to it at the source.
        reason: String,
    },
    /// Tables came, went or were renamed, or one goes on that the slot was held for.
    #[error("the tables to sync are other ones now, or one goes on that the slot was held for")]
    TablesChanged,
    /// A spool file cannot be written or read.
    #[error("cannot use the spool under `state_dir`: check its disk")]
    Spool(#[source] io::Error),
    /// The server made a slot without a snapshot.
    #[error("the server exported no snapshot with its temporary slot")]
    NoSnapshot,
    /// The lake did not take a table's rows, and somebody waited for the table's lock.
    #[error("the lake takes no rows at present, and the table was wanted by others meanwhile")]
    GaveWay,
    /// The lake cannot be read for a comparison.
    #[error(transparent)]
    LakeRows(#[from] lake_sql::LakeSqlError),
    /// Rows cannot be compared.
    #[error("rows of source and lake cannot be compared; load the table into another folder if it stays so")]
    Compare(#[source] arrow::error::ArrowError),
    /// A table's task ended out of turn.
    #[error("a table's task ended unexpectedly; its reason stands in the log")]
    WriterGone,
}

impl SyncError {
    /// A configuration error.
    pub fn configuration(text: String) -> SyncError {
        SyncError::Configuration(text)
    }

    /// Doing the same again may well succeed without anyone mending anything.
    pub fn is_passing(&self) -> bool {
        match self {
            SyncError::Source(error) => error.is_transient(),
            SyncError::Lake(error) => !halts_table(error),
            SyncError::LakeState { .. }
            | SyncError::BuiltIn(_)
            | SyncError::Reload { .. }
            | SyncError::TablesChanged
            | SyncError::Spool(_)
            | SyncError::LakeRows(_)
            | SyncError::WriterGone => true,
            _ => false,
        }
    }

    /// A table cannot be read in the snapshot that was taken, and may well be in the next one.
    pub fn asks_for_another_snapshot(&self) -> bool {
        match self {
            SyncError::Source(error) => error.asks_for_another_snapshot(),
            SyncError::GaveWay => true,
            _ => false,
        }
    }

    /// Another daemon does this work: to go on beside it would only do harm.
    pub fn is_for_another_daemon(&self) -> bool {
        matches!(self, SyncError::SecondDaemon { .. } | SyncError::SecondWriter(_))
    }

    /// Nothing is wrong; the source has changed, and the sync starts again to follow it.
    pub fn is_a_new_plan(&self) -> bool {
        matches!(self, SyncError::Reload { .. } | SyncError::TablesChanged)
    }
}

/// The error is about one table's rows: it stops that table, and neither time nor another attempt mends it.
pub fn halts_table(error: &DeltaError) -> bool {
    matches!(
        error,
        DeltaError::MissingRow { .. }
            | DeltaError::DuplicateKey { .. }
            | DeltaError::ForeignWrite { .. }
            | DeltaError::BadChanges { .. }
            | DeltaError::BadDefinition { .. }
            | DeltaError::EmptyPartitionValue { .. }
            | DeltaError::UnsupportedFeature { .. }
            | DeltaError::UnsupportedColumn { .. }
            | DeltaError::CorruptLog { .. }
            | DeltaError::CorruptAction { .. }
            | DeltaError::DeletionVector { .. }
    )
}

/// An error and its causes in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        // Transparent errors repeat their source's words.
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}
