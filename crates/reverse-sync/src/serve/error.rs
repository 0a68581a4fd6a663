//! Why a table could not be served.

use crate::{ReverseSyncError, Unavailable};
use postgres_connector::Error as PostgresError;

/// Why a table could not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The target refuses or is away.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// A column's type has no counterpart in Postgres.
    #[error(
        "column {column} is of type {data_type}, which has no counterpart in Postgres: leave it out with `columns`"
    )]
    UnsupportedColumn {
        /// The column.
        column: String,
        /// Its type.
        data_type: String,
    },
    /// The Delta table lacks a column that is to be served or names rows.
    #[error(
        "the Delta table has no column {column}: mend the entry's `columns`, `primary_key` or `timeseries_key`"
    )]
    MissingColumn {
        /// The column.
        column: String,
    },
    /// A column cannot be brought into the form it is written from.
    #[error("the values of column {column} cannot be read")]
    Arrow {
        /// The column.
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
        /// The other one's name.
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
        /// The row's key.
        key: String,
        /// The column.
        column: String,
        /// The column's type.
        declared: String,
        /// The value, shortened.
        shown: String,
    },
    /// The rows could not be read from the lake.
    #[error(transparent)]
    Read(#[from] ReverseSyncError),
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
    #[error("a task that copied rows ended unexpectedly; its reason stands in the log")]
    CopierGone,
}

impl ServeError {
    /// Whether the same may well succeed later without anyone mending anything.
    pub fn is_transient(&self) -> bool {
        match self {
            ServeError::Postgres(error) => error.is_transient(),
            ServeError::MovedMeanwhile { .. }
            | ServeError::ServedElsewhere { .. }
            | ServeError::CopierGone => true,
            ServeError::Read(error) => {
                matches!(error, ReverseSyncError::Store { .. } | ReverseSyncError::Spill { .. })
            }
            _ => false,
        }
    }

    /// Why the changes cannot be told, when loading the table anew is the remedy.
    pub fn unavailable(&self) -> Option<&Unavailable> {
        match self {
            ServeError::Read(error) => error.unavailable(),
            _ => None,
        }
    }
}
