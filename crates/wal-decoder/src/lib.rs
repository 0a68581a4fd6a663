//! `pgoutput` and binary COPY bytes to typed row changes in Arrow. No I/O.
//!
//! ```text
//!   replication stream --> pgoutput::parse --> ChangeBuilder --> RowChanges --> the lake's writer
//!   COPY (FORMAT binary) --------------------> CopyDecoder ----> RecordBatch -'
//!                                TypeCatalog --^ says what each column's values are
//! ```
//!
//! Values go from the wire into Arrow's buffers without a row object between. The one rule of this crate:
//! whatever the bytes are, the answer is rows or an error that names the place, never a panic and never a
//! value that differs from the source's. `fuzz/` holds the crate to it.

mod change_builder;
mod column;
mod column_set;
pub mod copy;
mod json_array;
mod lake_names;
mod lsn;
mod pg_timestamp;
mod pg_type;
pub mod pgoutput;
mod row_changes;
mod row_error;
mod table_schema;
mod type_catalog;
mod value_binary;
mod value_display;
mod value_error;
mod value_text;

pub use change_builder::{BuilderOptions, ChangeBuilder};
pub use column_set::DeadLetter;
pub use copy::{CopyDecoder, CopyError};
pub use lake_names::{folder_name, lake_column_names, lake_column_names_beside, table_folders};
pub use lsn::{Lsn, ParseLsnError};
pub use pg_timestamp::PgTimestamp;
pub use pg_type::{MAX_DECIMAL_PRECISION, PgType};
pub use pgoutput::{
    Message, OldRow, Prepared, ProtocolError, Relation, RelationColumn, ReplicaIdentity, TupleData, Value,
};
pub use row_changes::{ChangeOrigin, Op, RowChanges, UnchangedValue};
pub use row_error::{BindError, RowError, Unrepresentable};
pub use table_schema::{ColumnSpec, TableSchema};
pub use type_catalog::{ArrayForm, TypeCatalog, TypeEntry, TypeOptions};
pub use value_error::ValueError;
