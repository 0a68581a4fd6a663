//! One table's columns as the decoder builds them and the lake stores them.

use crate::PgType;
use arrow::datatypes::{Field, Schema, SchemaRef};
use std::sync::Arc;

/// A column of a synced table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnSpec {
    /// The name in Postgres, with which Relation messages are matched.
    pub source_name: String,
    /// The name in the lake (some characters are not allowed there).
    pub lake_name: String,
    /// `pg_attribute.attnum`: survives renames.
    pub attnum: i16,
    /// What its values are.
    pub pg_type: PgType,
}

/// A synced table's shape: its columns in the lake's order, and which of them are its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSchema {
    /// Schema and table as Postgres names them.
    pub source: (String, String),
    /// The columns, in order.
    pub columns: Vec<ColumnSpec>,
    /// Positions in `columns` of the replica identity's columns: all of them where it is the whole row. Empty: a
    /// table without an identity, which only grows.
    pub key: Vec<usize>,
}

impl TableSchema {
    /// The Arrow schema of new rows: every column nullable, as the contract says.
    pub fn arrow_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }

    /// The Arrow schema of old keys: the key's columns in key order.
    pub fn key_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(
            self.key.iter().filter_map(|&at| self.columns.get(at)).map(field).collect::<Vec<_>>(),
        ))
    }
}

/// The original name travels along, as readers of the lake's metadata know it.
fn field(column: &ColumnSpec) -> Field {
    let origin = [("tidewater.source_name".to_owned(), column.source_name.clone())];
    Field::new(&column.lake_name, column.pg_type.arrow_type(), true).with_metadata(origin.into())
}
