//! Reading rows of a data file back: chosen columns, all rows or chosen ones, in the table's types.
//!
//! Three things need it: values that Postgres did not send because an update left them untouched, the
//! key columns when the index is rebuilt, and whole rows when a file is rewritten. The file may be a foreign
//! writer's (OPTIMIZE in Spark), so every column is cast to the table's type, a column the file does not
//! have is null, and partition columns come from the log.

use crate::action::Add;
use crate::deletion_vector::DeletionVector;
use crate::error::{DeltaError, Result};
use crate::lake::TableLocation;
use crate::parquet_source::ParquetSource;
use crate::partition_value;
use arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{Schema, SchemaRef};
use futures::TryStreamExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use parquet::arrow::async_reader::{ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use parquet::file::metadata::ParquetMetaData;
use std::sync::Arc;

/// Rows read at a time...
const ROWS_PER_BATCH: usize = 4096;
/// ...or fewer, where rows are large: one may hold megabytes.
const BYTES_PER_BATCH: i64 = 8 << 20;

/// What fills a column of the table.
enum Source {
    /// A column of the file, by position in the projected batch.
    File(usize),
    /// A constant of the file's partition.
    Partition(Option<String>),
    /// The column came later than the file.
    Absent,
}

/// A stream of a data file's rows.
pub(crate) struct RowReader {
    path: String,
    schema: SchemaRef,
    sources: Vec<Source>,
    batches: ParquetRecordBatchStream<ParquetSource>,
    /// Rows given so far.
    given: u64,
}

impl RowReader {
    /// Opens a live file to read the table's `columns`, and of its rows only `rows` (ascending) if given.
    pub async fn open(
        location: &TableLocation,
        table: &Schema,
        add: &Add,
        columns: &[usize],
        rows: Option<&[u32]>,
    ) -> Result<RowReader> {
        let failed = |source| DeltaError::DataFile { action: "read", path: add.path.clone(), source };
        let schema = Arc::new(table.project(columns).map_err(DeltaError::arrow("choose columns to read"))?);
        let path = location.resolve(&add.path)?;
        let reader = ParquetSource::new(location, path, add.size.max(0).unsigned_abs());
        let mut builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(failed)?;
        let file_schema = Arc::clone(builder.schema());
        let mut wanted: Vec<usize> = schema
            .fields()
            .iter()
            .filter(|field| !add.partition_values.contains_key(field.name()))
            .filter_map(|field| file_schema.index_of(field.name()).ok())
            .collect();
        wanted.sort_unstable();
        let sources = schema
            .fields()
            .iter()
            .map(|field| {
                if let Some(value) = add.partition_values.get(field.name()) {
                    return Source::Partition(value.clone());
                }
                let at = file_schema.index_of(field.name()).ok();
                at.and_then(|at| wanted.binary_search(&at).ok()).map_or(Source::Absent, Source::File)
            })
            .collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
        if let Some(rows) = rows {
            let total = builder.metadata().file_metadata().num_rows().max(0).unsigned_abs() as usize;
            builder = builder.with_row_selection(select(rows, total));
        }
        let rows_at_once = rows_per_batch(builder.metadata());
        let batches = builder.with_projection(mask).with_batch_size(rows_at_once).build().map_err(failed)?;
        Ok(RowReader { path: add.path.clone(), schema, sources, batches, given: 0 })
    }

    /// The columns it gives.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The next rows, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let read = self.batches.try_next().await.map_err(|source| DeltaError::DataFile {
            action: "read",
            path: self.path.clone(),
            source,
        })?;
        let Some(read) = read else { return Ok(None) };
        let rows = read.num_rows();
        self.given += rows as u64;
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.sources.len());
        for (source, field) in self.sources.iter().zip(self.schema.fields()) {
            columns.push(match source {
                Source::File(at) => {
                    cast(read.columns().get(*at).ok_or_else(|| self.misread())?, field.data_type())
                        .map_err(DeltaError::arrow("read a column in the table's type"))?
                }
                Source::Partition(value) => {
                    partition_value::decode_column(value.as_deref(), field.data_type(), rows)?
                }
                Source::Absent => new_null_array(field.data_type(), rows),
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map(Some)
            .map_err(DeltaError::arrow("read rows of a data file"))
    }

    /// The next rows that `dead` does not mark, `None` at the end. For a reader of all rows.
    pub async fn next_live(&mut self, dead: &DeletionVector) -> Result<Option<RecordBatch>> {
        loop {
            let first = self.given;
            let Some(batch) = self.next().await? else { return Ok(None) };
            let alive: BooleanArray = (first..self.given).map(|row| Some(!dead.contains(row))).collect();
            let batch =
                filter_record_batch(&batch, &alive).map_err(DeltaError::arrow("leave deleted rows out"))?;
            if batch.num_rows() > 0 {
                return Ok(Some(batch));
            }
        }
    }

    fn misread(&self) -> DeltaError {
        DeltaError::CorruptLog {
            path: self.path.clone(),
            reason: "the file lost a column while it was read".into(),
        }
    }
}

/// As many rows as fill a batch, going by the file's average.
fn rows_per_batch(file: &ParquetMetaData) -> usize {
    let bytes: i64 = file.row_groups().iter().map(|group| group.total_byte_size().max(0)).sum();
    let row_bytes = bytes / file.file_metadata().num_rows().max(1);
    let rows = BYTES_PER_BATCH / row_bytes.max(1);
    usize::try_from(rows).unwrap_or(ROWS_PER_BATCH).clamp(1, ROWS_PER_BATCH)
}

/// Runs of rows to skip and to read.
fn select(rows: &[u32], total: usize) -> RowSelection {
    let mut selectors: Vec<RowSelector> = Vec::new();
    let mut at = 0;
    for &row in rows {
        let row = row as usize;
        if row >= total {
            break;
        }
        if row > at {
            selectors.push(RowSelector::skip(row - at));
        }
        selectors.push(RowSelector::select(1));
        at = row + 1;
    }
    if total > at {
        selectors.push(RowSelector::skip(total - at));
    }
    RowSelection::from(selectors)
}
