//! Which version of a table belongs to a position of its source's log.
//!
//! The daemon records after each cut which version every changed table has then; a table's state at a
//! position is its newest row at or below it. Tables read at one position therefore show the same transactions.
//! Positions begin anew with an incarnation (a restored server, a new slot), and the newest incarnation counts:
//! the number at its name's end, which only grows.

use crate::error::LakeSqlError;
use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::logical_expr::{col, lit};
use datafusion::prelude::DataFrame;
use object_store::path::Path;
use wal_decoder::Lsn;

/// Where a database's points are.
pub(crate) fn location(lake: &Path, database_folder: &str) -> Path {
    lake.clone().join(database_folder).join("_tidewater").join("consistent_points")
}

/// The table's version at a position, or why none is known.
pub(crate) async fn version_at(
    points: DataFrame,
    table: &str,
    lsn: Lsn,
) -> Result<Result<u64, &'static str>, LakeSqlError> {
    let Some(incarnation) = newest_incarnation(points.clone()).await? else {
        return Ok(Err("nothing was recorded for its database yet"));
    };
    // LSNs count bytes of WAL: one beyond the largest long is beyond every point.
    let lsn = i64::try_from(lsn.0).unwrap_or(i64::MAX);
    let column = |name: &str| col(format!("\"{name}\""));
    let newest = points
        .filter(column("incarnation").eq(lit(incarnation)))?
        .filter(column("table").eq(lit(table)).and(column("lsn").lt_eq(lit(lsn))))?
        // A run that begins at the position where the one before ended names its tables once more.
        .sort(vec![column("lsn").sort(false, false), column("version").sort(false, false)])?
        .limit(0, Some(1))?
        .select(vec![column("version")])?
        .collect()
        .await?;
    let versions = newest.iter().filter_map(|batch| batch.columns().first());
    let version = versions.filter_map(|column| column.as_primitive_opt::<Int64Type>()).flatten().next();
    Ok(match version {
        Some(Some(version)) => u64::try_from(version).map_err(|_| "its recorded version is negative"),
        Some(None) => Err("it was being loaded, paused or stopped then"),
        None => Err("it was not in the lake yet"),
    })
}

async fn newest_incarnation(points: DataFrame) -> Result<Option<String>, LakeSqlError> {
    let found = points.select(vec![col("incarnation")])?.distinct()?.collect().await?;
    let mut names = Vec::new();
    for column in found.iter().filter_map(|batch| batch.columns().first()) {
        let column =
            cast(column, &DataType::Utf8).map_err(|source| LakeSqlError::Query(Box::new(source.into())))?;
        names.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
    }
    Ok(names.into_iter().max_by_key(|name| generation(name)))
}

fn generation(incarnation: &str) -> Option<u32> {
    incarnation.rsplit_once('-')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use datafusion::prelude::SessionContext;
    use std::sync::Arc;

    /// Incarnation, position, version of `public.t`.
    async fn at(rows: &[(&str, i64, Option<i64>)], lsn: u64) -> Result<u64, &'static str> {
        let columns: [(&str, ArrayRef); 4] = [
            ("incarnation", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0)))),
            ("lsn", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1)))),
            ("table", Arc::new(StringArray::from_iter_values(rows.iter().map(|_| "public.t")))),
            ("version", Arc::new(rows.iter().map(|row| row.2).collect::<Int64Array>())),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let frame = SessionContext::new().read_batch(batch).unwrap();
        version_at(frame, "public.t", Lsn(lsn)).await.unwrap()
    }

    #[tokio::test]
    async fn the_newest_row_at_or_below_the_position_counts() {
        let rows = [("7-1", 10, Some(1)), ("7-1", 20, Some(2)), ("7-1", 30, None), ("7-1", 40, Some(5))];
        assert_eq!(at(&rows, 10).await, Ok(1));
        assert_eq!(at(&rows, 29).await, Ok(2));
        assert_eq!(at(&rows, 35).await, Err("it was being loaded, paused or stopped then"));
        assert_eq!(at(&rows, u64::MAX).await, Ok(5));
        assert_eq!(at(&rows, 9).await, Err("it was not in the lake yet"));
    }

    #[tokio::test]
    async fn positions_of_an_earlier_incarnation_do_not_count() {
        let rows = [("7-9", 10, Some(1)), ("6-10", 50, Some(4))];
        assert_eq!(at(&rows, 60).await, Ok(4));
        assert_eq!(at(&rows, 20).await, Err("it was not in the lake yet"));
    }
}
