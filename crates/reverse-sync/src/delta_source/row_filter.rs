//! The condition that picks the served part of a table: SQL as after WHERE, in Postgres's dialect.
//!
//! It is evaluated by DataFusion over whole batches. A row for which it is null is not kept, as in SQL.

use crate::error::{Result, ReverseSyncError};
use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Schema;
use datafusion::common::DFSchema;
use datafusion::config::Dialect;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::prelude::{SessionConfig, SessionContext};
use std::sync::Arc;

/// A condition over a table's columns.
#[derive(Debug)]
pub(crate) struct RowFilter {
    text: String,
    planned: Arc<dyn PhysicalExpr>,
}

/// A condition that is understood, and not yet bound to the columns that will be read.
#[derive(Debug)]
pub(crate) struct ParsedFilter {
    text: String,
    expression: Expr,
    columns: Vec<String>,
}

impl RowFilter {
    /// Understands a condition over a table of these columns.
    pub(crate) fn parse(table: &str, text: &str, columns: &Schema) -> Result<ParsedFilter> {
        let failed = |source| filter_error(table, text, source);
        let schema = DFSchema::try_from(columns.clone()).map_err(failed)?;
        let expression = context().parse_sql_expr(text, &schema).map_err(failed)?;
        let mut columns: Vec<String> =
            expression.column_refs().into_iter().map(|column| column.name.clone()).collect();
        columns.sort();
        Ok(ParsedFilter { text: text.to_owned(), expression, columns })
    }

    /// The rows that meet the condition.
    pub(crate) fn keep(
        &self,
        table: &str,
        batch: RecordBatch,
        positions: Vec<u64>,
    ) -> Result<(RecordBatch, Vec<u64>)> {
        let failed = |source| filter_error(table, &self.text, source);
        let values = self.planned.evaluate(&batch).map_err(failed)?;
        let values = values.into_array(batch.num_rows()).map_err(failed)?;
        let not_boolean =
            || DataFusionError::Plan("it is not a condition: its value is not boolean".to_owned());
        let mask = values.as_any().downcast_ref::<BooleanArray>().ok_or_else(|| failed(not_boolean()))?;
        let kept = filter_record_batch(&batch, mask)
            .map_err(|source| ReverseSyncError::Shape { table: table.to_owned(), source })?;
        let mut at = 0;
        let is_kept = |_: &u64| {
            let kept = mask.is_valid(at) && mask.value(at);
            at += 1;
            kept
        };
        let positions = positions.into_iter().filter(is_kept).collect();
        Ok((kept, positions))
    }
}

impl ParsedFilter {
    /// The columns that the condition looks at.
    pub(crate) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Binds the condition to batches of these columns.
    pub(crate) fn over(self, table: &str, columns: &Schema) -> Result<RowFilter> {
        let failed = |source| filter_error(table, &self.text, source);
        let schema = DFSchema::try_from(columns.clone()).map_err(failed)?;
        let planned = context().create_physical_expr(self.expression.clone(), &schema).map_err(failed)?;
        Ok(RowFilter { planned, text: self.text })
    }
}

fn context() -> SessionContext {
    let mut config = SessionConfig::new();
    config.options_mut().sql_parser.dialect = Dialect::PostgreSQL;
    SessionContext::new_with_config(config)
}

fn filter_error(table: &str, filter: &str, source: DataFusionError) -> ReverseSyncError {
    ReverseSyncError::Filter { table: table.to_owned(), filter: filter.to_owned(), source: Box::new(source) }
}
