//! How rows are brought from data files into the shape that was asked for.
//!
//! ```text
//!   Parquet columns ─(by physical name or field id; missing: null; widened)─▶ physical batch
//!   physical batch + the file's partition values ─(evaluator)─▶ logical batch, all columns needed
//!   logical batch ─(condition)─▶ rows kept ─(projection)─▶ the columns asked for
//! ```
//!
//! A plan belongs to one version's schema and reads files of any earlier one. The kernel's own pieces do the
//! matching of Parquet columns and the evaluation, so column mapping, nested types and widened types are read as
//! delta-kernel reads them.

use super::row_filter::RowFilter;
use super::table_version::{Column, TableVersion, arrow_schema};
use crate::error::{Result, ReverseSyncError};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef as ArrowSchemaRef;
use delta_kernel::engine::arrow_data::{ArrowEngineData, EngineDataArrowExt};
use delta_kernel::engine::arrow_expression::ArrowEvaluationHandler;
use delta_kernel::expressions::Scalar;
use delta_kernel::schema::{DataType, PrimitiveType, SchemaRef, StructField, StructType};
use delta_kernel::{EvaluationHandler, Expression, ExpressionEvaluator};
use std::collections::HashMap;
use std::sync::Arc;

/// The column that files of a change data feed have besides the table's.
pub(crate) const CHANGE_TYPE: &str = "_change_type";

/// The part of a table that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// The columns, by logical name, in the order wanted; none named: all.
    pub columns: Vec<String>,
    /// A condition in SQL, as after WHERE, over all of the table's columns.
    pub filter: Option<String>,
}

/// How rows of one table are read under one schema.
#[derive(Debug)]
pub(crate) struct ReadPlan {
    table: String,
    /// Everything that is read: the columns asked for, then those that only the condition needs.
    columns: Vec<Column>,
    /// What is read from data files: columns that are not partitions.
    physical: SchemaRef,
    logical: DataType,
    filter: Option<RowFilter>,
    /// How many of `columns` were asked for.
    width: usize,
    schema: ArrowSchemaRef,
}

impl ReadPlan {
    /// Plans reading a part of a table under a version's schema.
    pub(crate) fn new(table: &str, version: &TableVersion, part: &Part) -> Result<ReadPlan> {
        ReadPlan::plan(table, version, part, None)
    }

    /// The same for files of the change data feed: their rows have [`CHANGE_TYPE`] behind the columns.
    pub(crate) fn of_feed(table: &str, version: &TableVersion, part: &Part) -> Result<ReadPlan> {
        let field = StructField::nullable(CHANGE_TYPE, DataType::STRING);
        let change_type = Column { logical: field.clone(), physical: field, is_partition: false };
        ReadPlan::plan(table, version, part, Some(change_type))
    }

    fn plan(table: &str, version: &TableVersion, part: &Part, last: Option<Column>) -> Result<ReadPlan> {
        let mut columns: Vec<Column> = match part.columns.as_slice() {
            [] => version.columns.clone(),
            names => names.iter().map(|name| column(table, version, name)).collect::<Result<_>>()?,
        };
        columns.extend(last);
        let width = columns.len();
        let shape = |source| ReverseSyncError::Shape { table: table.to_owned(), source };
        let filter = match &part.filter {
            Some(text) => {
                let all = version.arrow_schema().map_err(shape)?;
                let filter = RowFilter::parse(table, text, &all)?;
                for name in filter.columns() {
                    if !columns.iter().any(|column| column.logical.name() == name) {
                        columns.push(column(table, version, name)?);
                    }
                }
                Some(filter.over(table, arrow_schema(logical(&columns)).map_err(shape)?.as_ref())?)
            }
            None => None,
        };
        let in_files = columns.iter().filter(|column| !column.is_partition);
        Ok(ReadPlan {
            table: table.to_owned(),
            physical: Arc::new(StructType::new_unchecked(in_files.map(|column| column.physical.clone()))),
            logical: StructType::new_unchecked(logical(&columns)).into(),
            schema: arrow_schema(logical(&columns).take(width)).map_err(shape)?,
            columns,
            filter,
            width,
        })
    }

    /// The columns of the rows that come out.
    pub(crate) fn schema(&self) -> &ArrowSchemaRef {
        &self.schema
    }

    /// The table's address, for messages.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// What to ask Parquet files for.
    pub(crate) fn physical(&self) -> &SchemaRef {
        &self.physical
    }

    /// What makes the rows of one file logical, given its partition's values by physical name.
    pub(crate) fn evaluator(
        &self,
        partition_values: &HashMap<String, Option<String>>,
    ) -> Result<Arc<dyn ExpressionEvaluator>> {
        let log = |source| ReverseSyncError::Log { table: self.table.clone(), source: Box::new(source) };
        let mut expressions = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let name = column.physical.name();
            expressions.push(match (column.is_partition, column.logical.data_type()) {
                (false, _) => Expression::column([name]),
                (true, DataType::Primitive(kind)) => {
                    let text = partition_values.get(name).and_then(Option::as_deref);
                    Expression::literal(partition_value(kind, text).map_err(log)?)
                }
                (true, _) => {
                    return Err(ReverseSyncError::Column {
                        table: self.table.clone(),
                        column: column.logical.name().clone(),
                        reason: "a nested type cannot be a partition".to_owned(),
                    });
                }
            });
        }
        let expression = Arc::new(Expression::struct_from(expressions));
        ArrowEvaluationHandler
            .new_expression_evaluator(Arc::clone(&self.physical), expression, self.logical.clone())
            .map_err(log)
    }

    /// Makes physical rows logical, keeps what the condition keeps and the columns asked for. `positions` are the
    /// rows' places in their file, and stay in step with them.
    pub(crate) fn shape(
        &self,
        evaluator: &dyn ExpressionEvaluator,
        physical: ArrowEngineData,
        positions: Vec<u64>,
    ) -> Result<(RecordBatch, Vec<u64>)> {
        let log = |source| ReverseSyncError::Log { table: self.table.clone(), source: Box::new(source) };
        let batch = evaluator.evaluate(&physical).try_into_record_batch().map_err(log)?;
        let (batch, positions) = match &self.filter {
            Some(filter) => filter.keep(&self.table, batch, positions)?,
            None => (batch, positions),
        };
        let shape = |source| ReverseSyncError::Shape { table: self.table.clone(), source };
        let columns = batch.columns().iter().take(self.width).cloned().collect();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        Ok((batch.map_err(shape)?, positions))
    }
}

fn logical(columns: &[Column]) -> impl Iterator<Item = StructField> {
    columns.iter().map(|column| column.logical.clone())
}

fn column(table: &str, version: &TableVersion, name: &str) -> Result<Column> {
    let found = version.columns.iter().find(|column| column.logical.name() == name);
    found.cloned().ok_or_else(|| ReverseSyncError::NoSuchColumn {
        table: table.to_owned(),
        version: version.version,
        column: name.to_owned(),
    })
}

/// A partition's value from its text in the log, where both no text and an empty one mean null.
fn partition_value(kind: &PrimitiveType, text: Option<&str>) -> delta_kernel::DeltaResult<Scalar> {
    match text {
        Some(text) => kind.parse_scalar(text),
        None => Ok(Scalar::Null(DataType::Primitive(kind.clone()))),
    }
}
