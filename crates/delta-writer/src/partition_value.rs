//! Partition values: text in the log, typed constants in a batch, and folder names.
//!
//! Delta keeps a partition column out of the data files and in the log as text, null as JSON null. The
//! folder names are decoration (readers take the log's values), so ours escape everything but letters,
//! digits and `_ . -`, and no file system or object store ever sees a surprising character.

use crate::error::{DeltaError, Result};
use arrow::array::{Array, ArrayRef, StringArray, new_null_array};
use arrow::compute::{CastOptions, cast_with_options, take};
use arrow::datatypes::DataType;
use arrow::util::display::FormatOptions;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Formats as the protocol's "Partition Value Serialization" asks: microseconds in full, UTC unsaid.
const FORMAT: FormatOptions<'static> = FormatOptions::new()
    .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.6f"))
    .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.6f"))
    .with_date_format(Some("%Y-%m-%d"));

/// Types whose text form reads back as the same value.
pub(crate) fn may_partition(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Boolean
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Decimal128(..)
            | DataType::Date32
            | DataType::Timestamp(..)
            | DataType::Utf8
    )
}

/// Every value of a column as partition text.
pub(crate) fn encode_column(table: &str, column: &str, values: &ArrayRef) -> Result<StringArray> {
    let options = CastOptions { safe: false, format_options: FORMAT };
    let text = cast_with_options(values, &DataType::Utf8, &options)
        .map_err(DeltaError::arrow("write a partition value as text"))?;
    let text =
        text.as_any().downcast_ref::<StringArray>().cloned().ok_or_else(|| DeltaError::BadDefinition {
            table: table.to_owned(),
            reason: format!("column `{column}` cannot be written as partition text"),
        })?;
    if text.iter().any(|value| value == Some("")) {
        return Err(DeltaError::EmptyPartitionValue { table: table.to_owned(), column: column.to_owned() });
    }
    Ok(text)
}

/// A partition's value as a column of `rows` equal values.
pub(crate) fn decode_column(value: Option<&str>, data_type: &DataType, rows: usize) -> Result<ArrayRef> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(new_null_array(data_type, rows));
    };
    let text: ArrayRef = std::sync::Arc::new(StringArray::from(vec![value]));
    let options = CastOptions { safe: false, format_options: FORMAT };
    let one = cast_with_options(&text, data_type, &options)
        .map_err(DeltaError::arrow("read a partition value from the log"))?;
    let zeros = arrow::array::UInt32Array::from(vec![0; rows]);
    take(&one, &zeros, None).map_err(DeltaError::arrow("repeat a partition value"))
}

/// The Hive-style folder of a partition, with a slash at its end; empty for an unpartitioned table.
pub(crate) fn folder(columns: &[String], values: &BTreeMap<String, Option<String>>) -> String {
    let mut folder = String::new();
    for column in columns {
        escape_into(&mut folder, column);
        folder.push('=');
        match values.get(column).and_then(Option::as_deref) {
            Some(value) => escape_into(&mut folder, value),
            None => folder.push_str("__HIVE_DEFAULT_PARTITION__"),
        }
        folder.push('/');
    }
    folder
}

fn escape_into(folder: &mut String, text: &str) {
    // Nobody reads the name back, so a long value is cut: at most 180 bytes, where a file name ends at 255.
    for byte in text.bytes().take(60) {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-') {
            folder.push(byte as char);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(folder, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{BooleanArray, Date32Array, Decimal128Array, Int64Array, TimestampMicrosecondArray};
    use std::sync::Arc;

    #[test]
    fn every_type_reads_back_as_written() {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
            Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(7)])),
            Arc::new(
                Decimal128Array::from(vec![Some(-12345), None, Some(10)])
                    .with_precision_and_scale(20, 3)
                    .unwrap(),
            ),
            Arc::new(Date32Array::from(vec![Some(-1), None, Some(20_000)])),
            Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), None, Some(1_700_000_000_000_001)])),
            Arc::new(
                TimestampMicrosecondArray::from(vec![Some(-1), None, Some(1_700_000_000_000_001)])
                    .with_timezone("UTC"),
            ),
            Arc::new(StringArray::from(vec![Some("a/b=c%d ü"), None, Some("..")])),
        ];
        for column in columns {
            let text = encode_column("t", "c", &column).unwrap();
            for row in 0..column.len() {
                let value = text.is_valid(row).then(|| text.value(row));
                let back = decode_column(value, column.data_type(), 2).unwrap();
                assert_eq!(back.slice(0, 1).to_data(), column.slice(row, 1).to_data(), "{value:?}");
                assert_eq!(back.slice(1, 1).to_data(), column.slice(row, 1).to_data(), "{value:?}");
            }
        }
    }

    #[test]
    fn an_empty_string_is_refused_because_delta_reads_it_as_null() {
        let column: ArrayRef = Arc::new(StringArray::from(vec!["x", ""]));
        assert!(matches!(encode_column("t", "c", &column), Err(DeltaError::EmptyPartitionValue { .. })));
    }

    #[test]
    fn folders_hold_only_plain_characters() {
        let values = BTreeMap::from([
            ("land".to_owned(), Some("Côte/d'Ivoire".to_owned())),
            ("year".to_owned(), None),
        ]);
        assert_eq!(
            folder(&["land".into(), "year".into()], &values),
            "land=C%C3%B4te%2Fd%27Ivoire/year=__HIVE_DEFAULT_PARTITION__/"
        );
    }
}
