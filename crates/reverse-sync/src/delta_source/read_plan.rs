//! How rows are brought from data files into the shape that was asked for.
//!
//! ```text
//!   Parquet columns ─(by physical name or field id; missing: null; widened)─▶ logical columns
//!   the file's partition values ──────────────────────────────────────────▶ all columns needed
//!   all columns ─(condition)─▶ rows kept ─(projection)─▶ the columns asked for
//! ```
//!
//! A plan belongs to one version's schema and reads files of any earlier one.

use super::conform::{conform, find};
use super::row_filter::RowFilter;
use super::table_version::{Column, TableVersion, arrow_schema};
use crate::error::{Result, ReverseSyncError};
use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::{Schema as ArrowSchema, SchemaRef as ArrowSchemaRef};
use delta_kernel::expressions::Scalar;
use delta_kernel::schema::{DataType, StructField};
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
    /// Their Arrow schema.
    read: ArrowSchemaRef,
    filter: Option<RowFilter>,
    /// How many of `columns` were asked for.
    width: usize,
    schema: ArrowSchemaRef,
}

/// How one file's columns become the table's.
#[derive(Debug)]
pub(crate) struct FileColumns {
    /// The file's own columns that are decoded, in its order.
    pub roots: Vec<usize>,
    sources: Vec<Source>,
}

/// Where a column of the table comes from.
#[derive(Debug)]
enum Source {
    /// A decoded column, by its place among them.
    Root(usize),
    /// The file is older than the column.
    Missing,
    /// The log.
    Partition(Scalar),
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
        let read = arrow_schema(logical(&columns)).map_err(shape)?;
        Ok(ReadPlan {
            table: table.to_owned(),
            read,
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

    /// How one file's columns become the table's, given its Parquet schema and its partition's values.
    pub(crate) fn file_columns(
        &self,
        in_file: &ArrowSchema,
        partition_values: &HashMap<String, Option<String>>,
    ) -> Result<FileColumns> {
        let mut roots = Vec::new();
        let mut sources = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            sources.push(match column.is_partition {
                true => Source::Partition(self.partition_value(column, partition_values)?),
                false => match find(&column.physical, in_file.fields()) {
                    Some(root) => {
                        roots.push(root);
                        Source::Root(root)
                    }
                    None => Source::Missing,
                },
            });
        }
        // The reader decodes what it is asked for in the file's order.
        roots.sort_unstable();
        roots.dedup();
        for source in &mut sources {
            if let Source::Root(root) = source {
                *root = roots.binary_search(root).unwrap_or_else(|place| place);
            }
        }
        Ok(FileColumns { roots, sources })
    }

    fn partition_value(&self, column: &Column, values: &HashMap<String, Option<String>>) -> Result<Scalar> {
        let bad = |reason| ReverseSyncError::Column {
            table: self.table.clone(),
            column: column.logical.name().clone(),
            reason,
        };
        let DataType::Primitive(kind) = column.logical.data_type() else {
            return Err(bad("a nested type cannot be a partition".to_owned()));
        };
        // Both no text and an empty one mean null.
        match values.get(column.physical.name()).and_then(Option::as_deref) {
            Some(text) => kind.parse_scalar(text).map_err(|error| bad(error.to_string())),
            None => Ok(Scalar::Null(column.logical.data_type().clone())),
        }
    }

    /// Makes decoded rows the table's, keeps what the condition keeps and the columns asked for. `positions` are the
    /// rows' places in their file, and stay in step with them.
    pub(crate) fn shape(
        &self,
        file: &FileColumns,
        decoded: &RecordBatch,
        positions: Vec<u64>,
    ) -> Result<(RecordBatch, Vec<u64>)> {
        let shape = |source| ReverseSyncError::Shape { table: self.table.clone(), source };
        let rows = decoded.num_rows();
        let mut columns = Vec::with_capacity(self.columns.len());
        for ((column, source), field) in self.columns.iter().zip(&file.sources).zip(self.read.fields()) {
            columns.push(match source {
                Source::Root(at) => {
                    conform(decoded.column(*at), column.physical.data_type(), field.data_type()).map_err(
                        |source| ReverseSyncError::Column {
                            table: self.table.clone(),
                            column: column.logical.name().clone(),
                            reason: source.to_string(),
                        },
                    )?
                }
                Source::Missing => new_null_array(field.data_type(), rows),
                Source::Partition(value) => value.to_array(rows).map_err(|source| ReverseSyncError::Log {
                    table: self.table.clone(),
                    source: Box::new(source),
                })?,
            });
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.read), columns).map_err(shape)?;
        let (batch, positions) = match &self.filter {
            Some(filter) => filter.keep(&self.table, batch, positions)?,
            None => (batch, positions),
        };
        let columns = batch.columns().iter().take(self.width).cloned().collect();
        Ok((RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(shape)?, positions))
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
