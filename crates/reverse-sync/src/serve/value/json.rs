//! Nested values as JSON text, for jsonb.
//!
//! Structs and maps are objects, lists arrays. Numbers keep all their digits, decimals included; what JSON has no
//! number for (NaN, infinities) is text, as are dates, timestamps (ISO 8601) and binary (base64). A null field of a
//! struct is there as null. A variant is the JSON that it stands for. jsonb cannot hold a zero character, so no text here may.

use super::Misfit;
use super::variant::write_variant;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, FieldRef, Fields, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType, TimestampNanosecondType,
};
use arrow::temporal_conversions::{date32_to_datetime, timestamp_ns_to_datetime, timestamp_us_to_datetime};
use std::fmt::{Display, Write};

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Writes the value at `row`. The array's type was checked when its column was planned.
pub fn write_json(array: &dyn Array, row: usize, out: &mut String) -> Result<(), Misfit> {
    if array.is_null(row) {
        out.push_str("null");
        return Ok(());
    }
    match array.data_type() {
        DataType::Struct(fields) if is_variant(fields) => {
            let parts = array.as_struct();
            let (metadata, value) = (parts.column(0).as_binary::<i32>(), parts.column(1).as_binary::<i32>());
            write_variant(metadata.value(row), value.value(row), out)
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct();
            let pairs = fields.iter().zip(columns.columns());
            object(out, pairs.map(|(field, column)| (Name::Text(field.name()), column.as_ref(), row)))
        }
        DataType::Map(_, _) => {
            let map = array.as_map();
            let entries = map.value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            object(out, (0..entries.len()).map(|at| (Name::Cell(keys.as_ref(), at), values.as_ref(), at)))
        }
        DataType::List(_) => elements(array.as_list::<i32>().value(row).as_ref(), out),
        DataType::LargeList(_) => elements(array.as_list::<i64>().value(row).as_ref(), out),
        DataType::ListView(_) => elements(array.as_list_view::<i32>().value(row).as_ref(), out),
        _ => scalar(array, row, out),
    }
}

/// A variant's two parts are never null; in every other struct, as rows are read, all fields may be.
fn is_variant(fields: &Fields) -> bool {
    let part = |field: &FieldRef| (field.name().clone(), field.data_type().clone(), field.is_nullable());
    let parts = ["metadata", "value"].map(|name| (name.to_owned(), DataType::Binary, false));
    fields.iter().map(part).eq(parts)
}

/// What names a member of an object.
enum Name<'a> {
    Text(&'a str),
    Cell(&'a dyn Array, usize),
}

fn object<'a>(
    out: &mut String,
    members: impl Iterator<Item = (Name<'a>, &'a dyn Array, usize)>,
) -> Result<(), Misfit> {
    out.push('{');
    for (at, (name, values, row)) in members.enumerate() {
        if at > 0 {
            out.push(',');
        }
        match name {
            Name::Text(name) => text(name, out)?,
            Name::Cell(keys, key) => {
                let mut name = String::new();
                write_json(keys, key, &mut name)?;
                // A text is quoted already; anything else is quoted now.
                if name.starts_with('"') { out.push_str(&name) } else { text(&name, out)? }
            }
        }
        out.push(':');
        write_json(values, row, out)?;
    }
    out.push('}');
    Ok(())
}

fn elements(values: &dyn Array, out: &mut String) -> Result<(), Misfit> {
    out.push('[');
    for row in 0..values.len() {
        if row > 0 {
            out.push(',');
        }
        write_json(values, row, out)?;
    }
    out.push(']');
    Ok(())
}

fn scalar(array: &dyn Array, row: usize, out: &mut String) -> Result<(), Misfit> {
    match array.data_type() {
        DataType::Boolean => out.push_str(if array.as_boolean().value(row) { "true" } else { "false" }),
        DataType::Int8 => display(&array.as_primitive::<Int8Type>().value(row), out),
        DataType::Int16 => display(&array.as_primitive::<Int16Type>().value(row), out),
        DataType::Int32 => display(&array.as_primitive::<Int32Type>().value(row), out),
        DataType::Int64 => display(&array.as_primitive::<Int64Type>().value(row), out),
        DataType::Float32 => {
            let value = array.as_primitive::<Float32Type>().value(row);
            float(f64::from(value), &value.to_string(), out)
        }
        DataType::Float64 => {
            let value = array.as_primitive::<Float64Type>().value(row);
            float(value, &value.to_string(), out)
        }
        DataType::Decimal128(_, _) => {
            out.push_str(&array.as_primitive::<Decimal128Type>().value_as_string(row))
        }
        DataType::Utf8 => text(array.as_string::<i32>().value(row), out)?,
        DataType::LargeUtf8 => text(array.as_string::<i64>().value(row), out)?,
        DataType::Utf8View => text(array.as_string_view().value(row), out)?,
        DataType::Binary => base64(array.as_binary::<i32>().value(row), out),
        DataType::LargeBinary => base64(array.as_binary::<i64>().value(row), out),
        DataType::BinaryView => base64(array.as_binary_view().value(row), out),
        DataType::FixedSizeBinary(_) => base64(array.as_fixed_size_binary().value(row), out),
        DataType::Date32 => {
            let day = date32_to_datetime(array.as_primitive::<Date32Type>().value(row));
            let day = day.ok_or(Misfit::OutOfRange { what: "date" })?;
            display(&format_args!("\"{}\"", day.date()), out);
        }
        DataType::Timestamp(unit, zone) => {
            let moment = match unit {
                TimeUnit::Nanosecond => {
                    timestamp_ns_to_datetime(array.as_primitive::<TimestampNanosecondType>().value(row))
                }
                _ => timestamp_us_to_datetime(array.as_primitive::<TimestampMicrosecondType>().value(row)),
            };
            let moment = moment.ok_or(Misfit::OutOfRange { what: "timestamp" })?;
            let zone = if zone.is_some() { "+00:00" } else { "" };
            display(&format_args!("\"{}{zone}\"", moment.format("%Y-%m-%dT%H:%M:%S%.f")), out);
        }
        // Planning lets no other type through.
        _ => out.push_str("null"),
    }
    Ok(())
}

pub(super) fn display(value: &dyn Display, out: &mut String) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{value}");
}

pub(super) fn float(value: f64, digits: &str, out: &mut String) {
    if value.is_finite() {
        out.push_str(digits);
    } else {
        let word = if value.is_nan() {
            "NaN"
        } else if value > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        };
        display(&format_args!("\"{word}\""), out);
    }
}

pub(super) fn text(value: &str, out: &mut String) -> Result<(), Misfit> {
    out.push('"');
    for character in value.chars() {
        match character {
            '\0' => return Err(Misfit::ZeroByte),
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if u32::from(control) < 0x20 => {
                display(&format_args!("\\u{:04x}", u32::from(control)), out)
            }
            other => out.push(other),
        }
    }
    out.push('"');
    Ok(())
}

pub(super) fn base64(bytes: &[u8], out: &mut String) {
    out.push('"');
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let index = usize::try_from(word >> (18 - 6 * at) & 0x3f).unwrap_or_default();
            let letter = BASE64.get(index).copied().unwrap_or(b'=');
            out.push(if at as usize > chunk.len() { '=' } else { char::from(letter) });
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        ArrayRef, BinaryArray, Decimal128Array, Float64Array, Int32Builder, Int64Array, MapBuilder,
        StringArray, StringBuilder, StructArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::Field;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn json(array: &dyn Array) -> String {
        let mut out = String::new();
        write_json(array, 0, &mut out).unwrap();
        out
    }

    fn structure(columns: Vec<(&str, ArrayRef)>) -> StructArray {
        let columns = columns
            .into_iter()
            .map(|(name, column)| (Arc::new(Field::new(name, column.data_type().clone(), true)), column));
        StructArray::from(columns.collect::<Vec<_>>())
    }

    #[test]
    fn a_struct_keeps_nulls_digits_and_times() {
        let decimal = Decimal128Array::from(vec![-12345]).with_precision_and_scale(38, 3).unwrap();
        let moment = TimestampMicrosecondArray::from(vec![1_767_225_600_123_456]).with_timezone("UTC");
        let array = structure(vec![
            ("n", Arc::new(Int64Array::from(vec![None::<i64>]))),
            ("d", Arc::new(decimal)),
            ("t", Arc::new(moment)),
            ("f", Arc::new(Float64Array::from(vec![f64::NAN]))),
            ("b", Arc::new(BinaryArray::from_vec(vec![b"any carnal pleas"]))),
        ]);
        let expected = r#"{"n":null,"d":-12.345,"t":"2026-01-01T00:00:00.123456+00:00","f":"NaN","b":"YW55IGNhcm5hbCBwbGVhcw=="}"#;
        assert_eq!(json(&array), expected);
    }

    #[test]
    fn keys_of_a_map_are_texts_whatever_their_type() {
        let mut builder = MapBuilder::new(None, Int32Builder::new(), StringBuilder::new());
        builder.keys().append_value(7);
        builder.values().append_value("x\"\u{1}");
        builder.append(true).unwrap();
        assert_eq!(json(&builder.finish()), r#"{"7":"x\"\u0001"}"#);
    }

    #[test]
    fn a_zero_character_does_not_fit() {
        let array = structure(vec![("s", Arc::new(StringArray::from(vec!["a\0b"])))]);
        assert_eq!(write_json(&array, 0, &mut String::new()), Err(Misfit::ZeroByte));
    }

    proptest! {
        #[test]
        fn every_text_and_number_is_read_back_by_another_parser(s in "[^\0]{0,40}", f in any::<f64>(), b in prop::collection::vec(any::<u8>(), 0..20)) {
            let array = structure(vec![
                ("s", Arc::new(StringArray::from(vec![s.clone()]))),
                ("f", Arc::new(Float64Array::from(vec![f]))),
                ("b", Arc::new(BinaryArray::from_vec(vec![&b]))),
            ]);
            let value: serde_json::Value = serde_json::from_str(&json(&array)).unwrap();
            prop_assert_eq!(value["s"].as_str().unwrap(), s);
            if f.is_finite() {
                prop_assert!((value["f"].as_f64().unwrap() - f).abs() <= f.abs() * 1e-15);
            }
            prop_assert_eq!(value["b"].as_str().unwrap().len(), b.len().div_ceil(3) * 4);
        }
    }
}
