//! The moment that `TIMESTAMP AS OF` names, from any expression without columns.
//!
//! DataFusion evaluates it, so casts, `now()` and interval arithmetic work as they do elsewhere in a
//! query. Text and timestamps without a zone are UTC.

use crate::error::LakeSqlError;
use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use datafusion::prelude::SessionContext;
use sqlparser::ast::{Expr, Statement};
use std::fmt;
use std::sync::Arc;

/// A moment in microseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(i64);

impl Moment {
    pub(crate) fn from_millis(millis: i64) -> Self {
        Moment(millis.saturating_mul(1000))
    }

    pub(crate) fn micros(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match arrow::temporal_conversions::timestamp_us_to_datetime(self.0) {
            Some(time) => write!(f, "{}Z", time.format("%Y-%m-%dT%H:%M:%S%.3f")),
            None => write!(f, "{} microseconds after 1970", self.0),
        }
    }
}

/// Evaluates the expression of `TIMESTAMP AS OF`.
pub(crate) async fn evaluate(context: &SessionContext, expression: &Expr) -> Result<Moment, LakeSqlError> {
    let failed = |source| LakeSqlError::TimestampExpression {
        expression: expression.to_string(),
        source: Box::new(source),
    };
    let not = |reason: &str| LakeSqlError::NotATimestamp {
        expression: expression.to_string(),
        reason: reason.to_owned(),
    };
    let select = select_of(expression)?;
    let state = context.state();
    let plan = state
        .statement_to_plan(datafusion::sql::parser::Statement::Statement(Box::new(select)))
        .await
        .map_err(failed)?;
    let frame = context.execute_logical_plan(plan).await.map_err(failed)?;
    let batches = frame.collect().await.map_err(failed)?;
    let value = batches
        .iter()
        .find(|batch| batch.num_rows() == 1 && batch.num_columns() == 1)
        .and_then(|batch| batch.columns().first())
        .ok_or_else(|| not("it gives no value"))?;
    let value = match value.data_type() {
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => Arc::clone(value),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            let text = cast(value, &DataType::Utf8).map_err(|source| failed(source.into()))?;
            let text = text.as_string_opt::<i32>().into_iter().flatten();
            Arc::new(text.map(|text| text.map(with_seconds)).collect::<StringArray>()) as ArrayRef
        }
        other => return Err(not(&format!("it gives a value of type {other}"))),
    };
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
    // A text that is no timestamp becomes null rather than an error: one message for both.
    let lenient = CastOptions { safe: true, ..CastOptions::default() };
    let moment =
        cast_with_options(&value, &utc, &lenient).map_err(|_| not("it cannot be read as a timestamp"))?;
    let moment = moment.as_primitive_opt::<TimestampMicrosecondType>().filter(|array| array.is_valid(0));
    moment
        .map(|array| Moment(array.value(0)))
        .ok_or_else(|| not("it is null or cannot be read as a timestamp"))
}

/// Postgres reads `2026-11-20 10:00`, with or without a zone after it; Arrow insists on the seconds.
fn with_seconds(text: &str) -> String {
    // Where `YYYY-MM-DD HH:MM` has its colon, and its end.
    const COLON: usize = 13;
    const MINUTES_END: usize = 16;
    let text = text.trim();
    match (text.get(..MINUTES_END), text.get(MINUTES_END..)) {
        (Some(minutes), Some(rest))
            if minutes.as_bytes().get(COLON) == Some(&b':') && !rest.starts_with(':') =>
        {
            format!("{minutes}:00{rest}")
        }
        _ => text.to_owned(),
    }
}

/// `SELECT <expression>`, as a tree: the expression is never pasted into text.
fn select_of(expression: &Expr) -> Result<Statement, LakeSqlError> {
    use sqlparser::ast::{SelectItem, SetExpr};
    let mut statements =
        sqlparser::parser::Parser::parse_sql(&crate::dialect::LakeDialect::default(), "SELECT 1")
            .map_err(LakeSqlError::Syntax)?;
    if let Some(Statement::Query(query)) = statements.first_mut()
        && let SetExpr::Select(select) = query.body.as_mut()
    {
        select.projection = vec![SelectItem::UnnamedExpr(expression.clone())];
    }
    statements.pop().ok_or(LakeSqlError::NotOneStatement { found: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_time_without_seconds_gets_them() {
        for (text, whole) in [
            ("2026-11-20 10:00", "2026-11-20 10:00:00"),
            ("2026-11-20T10:00Z", "2026-11-20T10:00:00Z"),
            (" 2026-11-20 10:00+02:00 ", "2026-11-20 10:00:00+02:00"),
            ("2026-11-20 10:00:05.5", "2026-11-20 10:00:05.5"),
            ("2026-11-20", "2026-11-20"),
            ("soon", "soon"),
            ("ééééééééééééééééééééé", "ééééééééééééééééééééé"),
        ] {
            assert_eq!(with_seconds(text), whole);
        }
    }

    #[test]
    fn a_moment_prints_as_rfc_3339() {
        assert_eq!(Moment::from_millis(1_767_225_600_001).to_string(), "2026-01-01T00:00:00.001Z");
        assert!(!Moment(i64::MAX).to_string().is_empty());
    }
}
