//! pgoutput and binary COPY bytes to typed row changes in Arrow. No I/O.

mod lsn;
mod pg_type;
mod row_changes;
mod table_schema;

pub use lsn::{Lsn, ParseLsnError};
pub use pg_type::{MAX_DECIMAL_PRECISION, PgType};
pub use row_changes::{Op, RowChanges, UnchangedValue};
pub use table_schema::{ColumnSpec, TableSchema};
