//! What `SHOW TABLES` prints: one row per table, by its original name.

use crate::error::LakeSqlError;
use crate::session::LakeTable;
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::error::DataFusionError;
use std::sync::Arc;

/// The rows for these tables, in their order.
pub(crate) fn rows(tables: Vec<LakeTable>) -> Result<RecordBatch, LakeSqlError> {
    let column = |value: fn(&LakeTable) -> Option<&str>| -> ArrayRef {
        Arc::new(tables.iter().map(value).collect::<StringArray>())
    };
    let columns = [
        ("database", column(|table| table.name.database.as_deref())),
        ("schema", column(|table| Some(&table.name.schema))),
        ("table", column(|table| Some(&table.name.table))),
        ("location", column(|table| Some(&table.location))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, values)| (name, values, true)))
        .map_err(|source| DataFusionError::from(source).into())
}
