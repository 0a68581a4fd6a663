//! Statistics of a data file, as the `stats` text of its Add.
//!
//! Bounds come from Parquet's own chunk statistics, which the file's writer computed anyway; null counts
//! and NaNs are counted while the rows pass. Bounds let readers skip files, so a bound that might be
//! wrong is left out rather than guessed:
//!
//! * a float column that holds a NaN has none (Parquet ignores NaN, Spark orders it above everything);
//! * timestamps widen to whole milliseconds, the precision some readers cut them to;
//! * years that four digits cannot write, booleans, binary and nested columns have none.

use crate::change_row::HISTORY_COLUMNS;
use crate::error::{DeltaError, Result};
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::{max, max_string, min, min_string};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Schema, TimestampMicrosecondType,
};
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Datelike, Duration, NaiveDate};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::file::metadata::ParquetMetaData;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use std::collections::BTreeMap;

/// `delta.dataSkippingNumIndexedCols`' default: a wide table must not make its log as big as its data.
const INDEXED_COLUMNS: usize = 32;

/// What is counted while rows go into a file.
#[derive(Debug)]
pub(crate) struct ColumnCounts {
    nulls: Vec<u64>,
    has_nan: Vec<bool>,
}

impl ColumnCounts {
    pub fn new(columns: usize) -> Self {
        Self { nulls: vec![0; columns], has_nan: vec![false; columns] }
    }

    pub fn add(&mut self, batch: &RecordBatch) {
        for ((column, nulls), has_nan) in batch.columns().iter().zip(&mut self.nulls).zip(&mut self.has_nan) {
            *nulls += column.null_count() as u64;
            *has_nan = *has_nan || holds_nan(column);
        }
    }
}

fn holds_nan(column: &ArrayRef) -> bool {
    if let Some(floats) = column.as_primitive_opt::<Float32Type>() {
        return floats.values().iter().any(|value| value.is_nan());
    }
    column.as_primitive_opt::<Float64Type>().is_some_and(|floats| floats.values().iter().any(|v| v.is_nan()))
}

/// The statistics as they stand in an Add. Values keep their text: a decimal of 38 digits is no float.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    num_records: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tight_bounds: Option<bool>,
    #[serde(default)]
    min_values: BTreeMap<String, Box<RawValue>>,
    #[serde(default)]
    max_values: BTreeMap<String, Box<RawValue>>,
    #[serde(default)]
    null_count: BTreeMap<String, Box<RawValue>>,
}

/// The `stats` of a file just written. `tight` tells whether to say that the bounds are exact, which only
/// tables with deletion vectors do.
pub(crate) fn collect(
    path: &str,
    schema: &Schema,
    counts: &ColumnCounts,
    metadata: &ParquetMetaData,
    tight: bool,
) -> Result<String> {
    let rows = metadata.file_metadata().num_rows().max(0).unsigned_abs();
    let mut stats = Stats {
        num_records: rows,
        tight_bounds: tight.then_some(true),
        min_values: BTreeMap::new(),
        max_values: BTreeMap::new(),
        null_count: BTreeMap::new(),
    };
    let columns = schema.fields().iter().zip(&counts.nulls).zip(&counts.has_nan);
    for (at, ((field, &nulls), &has_nan)) in columns.enumerate() {
        // What a history is read by stands behind all other columns.
        if at >= INDEXED_COLUMNS && !HISTORY_COLUMNS.contains(&field.name().as_str()) {
            continue;
        }
        stats.null_count.insert(field.name().clone(), raw(&nulls)?);
        if has_nan || !has_bounds(field.data_type()) {
            continue;
        }
        let (lowest, highest) = bounds(path, schema, field, metadata)?;
        if let (Some(lowest), Some(highest)) = (lowest, highest) {
            stats.min_values.insert(field.name().clone(), lowest);
            stats.max_values.insert(field.name().clone(), highest);
        }
    }
    text(&stats)
}

/// The bounds of an integer column in a file's statistics.
pub(crate) fn bounds_of_integers(stats: &str, column: &str) -> Option<(i64, i64)> {
    let stats: Stats = serde_json::from_str(stats).ok()?;
    let bound = |values: &BTreeMap<String, Box<RawValue>>| values.get(column)?.get().parse().ok();
    Some((bound(&stats.min_values)?, bound(&stats.max_values)?))
}

/// The same statistics for a file that gets a deletion vector: still true, no longer exact.
pub(crate) fn loosen(stats: Option<&str>) -> Result<Option<String>> {
    let Some(stats) = stats else { return Ok(None) };
    let Ok(mut parsed) = serde_json::from_str::<Stats>(stats) else {
        // A foreign writer's statistics in a shape unknown here: dropping them costs speed, nothing else.
        return Ok(None);
    };
    parsed.tight_bounds = Some(false);
    text(&parsed).map(Some)
}

fn has_bounds(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Float32
            | DataType::Float64
            | DataType::Decimal128(..)
            | DataType::Date32
            | DataType::Timestamp(..)
            | DataType::Utf8
    )
}

type Bound = Option<Box<RawValue>>;

fn bounds(path: &str, schema: &Schema, field: &Field, metadata: &ParquetMetaData) -> Result<(Bound, Bound)> {
    let failed =
        |source| DeltaError::DataFile { action: "read statistics of", path: path.to_owned(), source };
    let converter =
        StatisticsConverter::try_new(field.name(), schema, metadata.file_metadata().schema_descr())
            .map_err(failed)?;
    let lowest = converter.row_group_mins(metadata.row_groups()).map_err(failed)?;
    let highest = converter.row_group_maxes(metadata.row_groups()).map_err(failed)?;
    // A row group of nulls has no bounds and does not hide those of others; a row group with values but
    // without bounds (they were too long to keep) does.
    let nulls = converter.row_group_null_counts(metadata.row_groups()).map_err(failed)?;
    let unknown = metadata.row_groups().iter().enumerate().any(|(at, group)| {
        let all_null = nulls.is_valid(at) && i64::try_from(nulls.value(at)) == Ok(group.num_rows());
        !all_null && (lowest.is_null(at) || highest.is_null(at))
    });
    if unknown {
        return Ok((None, None));
    }
    Ok((extreme(&lowest, false)?, extreme(&highest, true)?))
}

/// The least or greatest of the row groups' bounds, as JSON.
fn extreme(bounds: &ArrayRef, highest: bool) -> Result<Bound> {
    macro_rules! pick {
        ($kind:ty) => {{
            let bounds = bounds.as_primitive::<$kind>();
            if highest { max(bounds) } else { min(bounds) }
        }};
    }
    let json = match bounds.data_type() {
        DataType::Int16 => pick!(Int16Type).map(|value| raw(&value)),
        DataType::Int32 => pick!(Int32Type).map(|value| raw(&value)),
        DataType::Int64 => pick!(Int64Type).map(|value| raw(&value)),
        DataType::Float32 => pick!(Float32Type).filter(|value| value.is_finite()).map(|value| raw(&value)),
        DataType::Float64 => pick!(Float64Type).filter(|value| value.is_finite()).map(|value| raw(&value)),
        DataType::Decimal128(_, scale) => {
            pick!(Decimal128Type).map(|value| raw_text(decimal_text(value, scale.unsigned_abs().into())))
        }
        DataType::Date32 => pick!(Date32Type).and_then(date_text).map(|text| raw(&text)),
        DataType::Timestamp(_, zone) => pick!(TimestampMicrosecondType)
            .and_then(|micros| timestamp_text(micros, highest, zone.is_some()))
            .map(|text| raw(&text)),
        DataType::Utf8 => {
            let bounds = bounds.as_string::<i32>();
            if highest { max_string(bounds) } else { min_string(bounds) }.map(|value| raw(&value))
        }
        _ => None,
    };
    json.transpose()
}

fn decimal_text(value: i128, scale: usize) -> String {
    if scale == 0 {
        return value.to_string();
    }
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    format!("{}{whole}.{part}", if value < 0 { "-" } else { "" })
}

fn date_text(days: i32) -> Option<String> {
    let date = NaiveDate::from_num_days_from_ce_opt(days.checked_add(719_163)?)?;
    (1..=9999).contains(&date.year()).then(|| date.format("%Y-%m-%d").to_string())
}

fn timestamp_text(micros: i64, up: bool, utc: bool) -> Option<String> {
    let time = DateTime::from_timestamp_micros(micros)?;
    let time = if up { time.checked_add_signed(Duration::microseconds(999))? } else { time };
    let format = if utc { "%Y-%m-%dT%H:%M:%S%.3fZ" } else { "%Y-%m-%dT%H:%M:%S%.3f" };
    (1..=9999).contains(&time.year()).then(|| time.format(format).to_string())
}

fn raw<T: Serialize>(value: &T) -> Result<Box<RawValue>> {
    to_raw_value(value).map_err(|source| DeltaError::Json { what: "file statistics", source })
}

fn raw_text(number: String) -> Result<Box<RawValue>> {
    RawValue::from_string(number).map_err(|source| DeltaError::Json { what: "file statistics", source })
}

fn text(stats: &Stats) -> Result<String> {
    serde_json::to_string(stats).map_err(|source| DeltaError::Json { what: "file statistics", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_keep_every_digit() {
        assert_eq!(decimal_text(-5, 3), "-0.005");
        assert_eq!(decimal_text(12345, 2), "123.45");
        assert_eq!(decimal_text(10_i128.pow(37), 0), format!("1{}", "0".repeat(37)));
    }

    #[test]
    fn timestamps_widen_to_milliseconds() {
        assert_eq!(timestamp_text(-1, false, true).unwrap(), "1969-12-31T23:59:59.999Z");
        assert_eq!(timestamp_text(-1, true, false).unwrap(), "1970-01-01T00:00:00.000");
        assert_eq!(timestamp_text(1_001, true, true).unwrap(), "1970-01-01T00:00:00.002Z");
        assert_eq!(timestamp_text(i64::MAX, true, true), None);
        assert_eq!(date_text(-1_000_000), None);
    }

    #[test]
    fn loosened_statistics_keep_their_bounds_and_stop_being_tight() {
        let stats = r#"{"numRecords":3,"tightBounds":true,"minValues":{"a":0.00000000000000000001},"maxValues":{},"nullCount":{"a":1}}"#;
        let loose = loosen(Some(stats)).unwrap().unwrap();
        assert_eq!(loose, stats.replace("true", "false"));
        assert_eq!(loosen(Some("[]")).unwrap(), None);
    }
}
