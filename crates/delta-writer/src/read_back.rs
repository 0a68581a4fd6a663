//! Chosen rows of a data file, read back in one pass and found again by their place.

use crate::action::Add;
use crate::error::{DeltaError, Result};
use crate::mirror_table::MirrorTable;
use crate::row_reader::RowReader;
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use std::collections::BTreeSet;

/// Columns and rows wanted of one data file.
#[derive(Default)]
pub(crate) struct Wanted {
    pub columns: BTreeSet<usize>,
    pub rows: BTreeSet<u32>,
}

/// What was read of one data file.
pub(crate) struct Found {
    pub columns: Vec<usize>,
    pub rows: Vec<u32>,
    pub batch: RecordBatch,
}

/// Reads columns and rows of a file of the table.
pub(crate) async fn read(table: &MirrorTable, add: &Add, wanted: Wanted) -> Result<Found> {
    let columns: Vec<usize> = wanted.columns.into_iter().collect();
    let rows: Vec<u32> = wanted.rows.into_iter().collect();
    let schema = &table.definition.schema;
    let mut reader = RowReader::open(&table.location, schema, add, &columns, Some(&rows)).await?;
    let mut batches = Vec::new();
    while let Some(batch) = reader.next().await? {
        batches.push(batch);
    }
    let batch =
        concat_batches(reader.schema(), &batches).map_err(DeltaError::arrow("join rows read back"))?;
    if batch.num_rows() != rows.len() {
        return Err(DeltaError::CorruptLog {
            path: add.path.clone(),
            reason: format!("{} rows were read where {} should be", batch.num_rows(), rows.len()),
        });
    }
    Ok(Found { columns, rows, batch })
}
