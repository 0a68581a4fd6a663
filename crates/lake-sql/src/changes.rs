//! `changes('t', from, to)`: what versions `from` to `to` of a table did to its rows.
//!
//! The columns are the table's under their original names, then those of Spark's `table_changes`: `_change_type`,
//! `_commit_version` and `_commit_timestamp`. So are the rows, where the table has a Change Data Feed; without one
//! they are told from the log, as inserts and deletes.
//!
//! They are read while the query runs: nothing is held but a few batches.

use crate::error::LakeSqlError;
use crate::source_names;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::{StreamExt, TryStreamExt, stream};
use reverse_sync::{ChangeBatch, Detail, Part, ReverseSyncError, TableSource};
use std::sync::Arc;

const UTC: &str = "UTC";

/// The changes of a range of versions, as rows of a query.
pub(crate) async fn provider(
    source: TableSource,
    from: u64,
    to: u64,
) -> Result<Arc<dyn TableProvider>, LakeSqlError> {
    let table = source.table_at(to).await?;
    let columns = table.arrow_schema()?;
    let renamed = columns.fields().iter().map(|field| {
        let original = table.schema.field(field.name()).and_then(source_names::original);
        original.map_or_else(|| Arc::clone(field), |name| Arc::new(Field::clone(field).with_name(name)))
    });
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()));
    let own =
        [("_change_type", DataType::Utf8), ("_commit_version", DataType::Int64), ("_commit_timestamp", time)];
    let own = own.map(|(name, data_type)| Arc::new(Field::new(name, data_type, true)));
    let schema = Arc::new(Schema::new(renamed.chain(own).collect::<Vec<_>>()));
    let range = VersionRange { source, from, to, schema: Arc::clone(&schema) };
    Ok(Arc::new(StreamingTable::try_new(schema, vec![Arc::new(range)])?))
}

/// What is read when a query runs.
#[derive(Debug)]
struct VersionRange {
    source: TableSource,
    from: u64,
    to: u64,
    schema: SchemaRef,
}

impl PartitionStream for VersionRange {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (source, after, to) = (self.source.clone(), self.from.checked_sub(1), self.to);
        let failed = |error: ReverseSyncError| DataFusionError::External(Box::new(error));
        let changes =
            async move { source.row_changes(after, to, &Part::default(), Detail::AsRecorded).await };
        let schema = Arc::clone(&self.schema);
        let rows = stream::once(changes)
            .map_ok(|changes| changes.stream)
            .try_flatten()
            .map_err(failed)
            .map(move |batch| batch.and_then(|batch| with_own_columns(&schema, batch)));
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows))
    }
}

fn with_own_columns(schema: &SchemaRef, batch: ChangeBatch) -> Result<RecordBatch, DataFusionError> {
    let rows = batch.rows.num_rows();
    let version = i64::try_from(batch.version).unwrap_or(i64::MAX);
    let micros = batch.timestamp.saturating_mul(1000);
    let kind: ArrayRef =
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(batch.kind.as_str(), rows)));
    let version: ArrayRef = Arc::new(Int64Array::from_value(version, rows));
    let time = TimestampMicrosecondArray::from_value(micros, rows).with_timezone(UTC);
    let mut columns = batch.rows.columns().to_vec();
    columns.extend([kind, version, Arc::new(time)]);
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}
