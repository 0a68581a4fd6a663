//! Why a row or a table's shape did not fit.

use crate::{PgType, ValueError};

/// What to do with a value that Delta cannot hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unrepresentable {
    /// Null in the lake, and a [`crate::DeadLetter`].
    #[default]
    Null,
    /// An error, which stops the table.
    Fail,
}

/// A Relation does not fit the schema that the builder was made for: the table changed its shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// A column of the schema is not in the Relation: dropped, renamed, or no longer published.
    #[error(
        "table {table} no longer sends its column \"{column}\": it was dropped, renamed or left out of the publication"
    )]
    MissingColumn {
        /// schema and table
        table: String,
        /// the source's name of the column
        column: String,
    },
    /// The Relation has a column that the schema does not know and that is not excluded.
    #[error("table {table} sends a column \"{column}\" that the lake's table does not have yet")]
    UnknownColumn {
        /// schema and table
        table: String,
        /// the source's name of the column
        column: String,
    },
    /// A column's values are of another type now.
    #[error("column \"{column}\" of table {table} is {found:?} now and was {expected:?}")]
    TypeChanged {
        /// schema and table
        table: String,
        /// the source's name of the column
        column: String,
        /// the type in the schema
        expected: PgType,
        /// the type that the Relation's resolves to
        found: PgType,
    },
    /// The replica identity consists of other columns now.
    #[error("the replica identity of table {table} is ({found}) now and was ({expected})", expected = .expected.join(", "), found = .found.join(", "))]
    KeyChanged {
        /// schema and table
        table: String,
        /// the schema's key columns
        expected: Vec<String>,
        /// the Relation's key columns
        found: Vec<String>,
    },
}

/// A row that was not appended: the builder is as it was before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// A row came before the table's Relation.
    #[error("a row came before the table's Relation message: the stream was joined in the middle")]
    NotBound,
    /// The row does not have as many values as the Relation has columns.
    #[error(
        "the row has {found} values where its table has {expected} columns: the connection delivered a damaged message"
    )]
    ColumnCount {
        /// columns of the table
        expected: usize,
        /// values of the row
        found: usize,
    },
    /// A value could not be taken.
    #[error("column \"{column}\", value `{excerpt}`")]
    Value {
        /// the source's name of the column
        column: String,
        /// the value, or its beginning
        excerpt: String,
        /// what is wrong with it
        #[source]
        source: ValueError,
    },
    /// A value came in pgoutput's binary format, which our sessions do not ask for.
    #[error("column \"{column}\" came in binary format: start replication without the option `binary`")]
    BinaryFormat {
        /// the source's name of the column
        column: String,
    },
    /// A key column's value was left out as unchanged, and no old row came with the update.
    #[error(
        "key column \"{column}\" was not sent because its large value did not change, and the old row has none either: \
         set REPLICA IDENTITY FULL, or take a smaller column as the key"
    )]
    UnchangedKey {
        /// the source's name of the column
        column: String,
    },
    /// An inserted row leaves out a value.
    #[error(
        "an inserted row leaves out the value of column \"{column}\": the connection delivered a damaged message"
    )]
    UnchangedInsert {
        /// the source's name of the column
        column: String,
    },
    /// An update or delete of a table without a key.
    #[error(
        "the table has no replica identity, so its updates and deletes name no row: set REPLICA IDENTITY FULL or add a primary key"
    )]
    NoKey,
    /// A delete that does not say which row.
    #[error("a delete came without the old row: the connection delivered a damaged message")]
    NoOldRow,
}

impl RowError {
    /// Whether the row fits once the batch was taken out: offer it again then.
    pub fn is_batch_full(&self) -> bool {
        matches!(self, RowError::Value { source: ValueError::BatchFull, .. })
    }
}
