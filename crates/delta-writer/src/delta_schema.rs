//! Arrow schemas as Delta's schema JSON and back.
//!
//! The contract's types only: whatever Postgres holds has one of these as its Delta type. Structs and
//! maps do not occur in tables this crate writes, so meeting one is an error and not a guess.

use crate::error::{DeltaError, Result};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Serialize, Deserialize)]
struct StructType {
    #[serde(rename = "type")]
    kind: String,
    fields: Vec<StructField>,
}

#[derive(Serialize, Deserialize)]
struct StructField {
    name: String,
    #[serde(rename = "type")]
    data_type: Value,
    nullable: bool,
    #[serde(default)]
    metadata: Map<String, Value>,
}

/// Delta's `schemaString`. Field metadata (a column's name at its source) goes along.
pub(crate) fn to_delta(table: &str, schema: &Schema) -> Result<String> {
    let mut fields = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let data_type = type_to_delta(field.data_type()).ok_or_else(|| DeltaError::UnsupportedColumn {
            table: table.to_owned(),
            column: field.name().clone(),
            data_type: field.data_type().to_string(),
            role: "stored in a Delta table",
        })?;
        let mut metadata: Vec<_> = field.metadata().iter().collect();
        metadata.sort();
        fields.push(StructField {
            name: field.name().clone(),
            data_type,
            nullable: field.is_nullable(),
            metadata: metadata.into_iter().map(|(k, v)| (k.clone(), Value::String(v.clone()))).collect(),
        });
    }
    serde_json::to_string(&StructType { kind: "struct".into(), fields })
        .map_err(|source| DeltaError::Json { what: "a table's schema", source })
}

/// The Arrow schema behind a `schemaString`.
pub(crate) fn from_delta(table: &str, schema_string: &str) -> Result<SchemaRef> {
    let parsed: StructType = serde_json::from_str(schema_string).map_err(|source| {
        DeltaError::CorruptAction { path: format!("{table} (schemaString)"), line: 1, source }
    })?;
    let mut fields = Vec::with_capacity(parsed.fields.len());
    for field in parsed.fields {
        let data_type = type_from_delta(&field.data_type).ok_or_else(|| DeltaError::UnsupportedColumn {
            table: table.to_owned(),
            column: field.name.clone(),
            data_type: field.data_type.to_string().chars().take(100).collect(),
            role: "kept by this writer",
        })?;
        // Metadata that is not text belongs to features that the protocol check refuses.
        let metadata: HashMap<String, String> = field
            .metadata
            .into_iter()
            .filter_map(|(key, value)| match value {
                Value::String(text) => Some((key, text)),
                _ => None,
            })
            .collect();
        fields.push(Field::new(field.name, data_type, field.nullable).with_metadata(metadata));
    }
    Ok(Arc::new(Schema::new(fields)))
}

fn type_to_delta(data_type: &DataType) -> Option<Value> {
    let name = match data_type {
        DataType::Boolean => "boolean".to_owned(),
        DataType::Int8 => "byte".to_owned(),
        DataType::Int16 => "short".to_owned(),
        DataType::Int32 => "integer".to_owned(),
        DataType::Int64 => "long".to_owned(),
        DataType::Float32 => "float".to_owned(),
        DataType::Float64 => "double".to_owned(),
        DataType::Decimal128(precision, scale) if *scale >= 0 && *precision <= 38 => {
            format!("decimal({precision},{scale})")
        }
        DataType::Date32 => "date".to_owned(),
        DataType::Timestamp(TimeUnit::Microsecond, None) => "timestamp_ntz".to_owned(),
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if &**zone == "UTC" => "timestamp".to_owned(),
        DataType::Utf8 => "string".to_owned(),
        DataType::Binary => "binary".to_owned(),
        DataType::List(element) => {
            let mut array = Map::new();
            array.insert("type".into(), "array".into());
            array.insert("elementType".into(), type_to_delta(element.data_type())?);
            array.insert("containsNull".into(), element.is_nullable().into());
            return Some(Value::Object(array));
        }
        _ => return None,
    };
    Some(Value::String(name))
}

fn type_from_delta(value: &Value) -> Option<DataType> {
    if let Value::Object(object) = value {
        if object.get("type")? != "array" {
            return None;
        }
        let element = type_from_delta(object.get("elementType")?)?;
        let nullable = object.get("containsNull").and_then(Value::as_bool).unwrap_or(true);
        return Some(DataType::List(Arc::new(Field::new("element", element, nullable))));
    }
    let name = value.as_str()?;
    Some(match name {
        "boolean" => DataType::Boolean,
        "byte" => DataType::Int8,
        "short" => DataType::Int16,
        "integer" => DataType::Int32,
        "long" => DataType::Int64,
        "float" => DataType::Float32,
        "double" => DataType::Float64,
        "date" => DataType::Date32,
        "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        "timestamp_ntz" => DataType::Timestamp(TimeUnit::Microsecond, None),
        "string" => DataType::Utf8,
        "binary" => DataType::Binary,
        _ => {
            let (precision, scale) = name.strip_prefix("decimal(")?.strip_suffix(')')?.split_once(',')?;
            let (precision, scale): (u8, i8) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
            if precision == 0 || precision > 38 || scale < 0 || scale as u8 > precision {
                return None;
            }
            DataType::Decimal128(precision, scale)
        }
    })
}

/// Whether a column needs the `timestampNtz` feature.
pub(crate) fn has_timestamp_ntz(data_type: &DataType) -> bool {
    match data_type {
        DataType::Timestamp(_, None) => true,
        DataType::List(element) => has_timestamp_ntz(element.data_type()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list_of(data_type: DataType) -> DataType {
        DataType::List(Arc::new(Field::new("element", data_type, true)))
    }

    #[test]
    fn every_type_of_the_contract_survives_the_journey() {
        let types = [
            DataType::Boolean,
            DataType::Int16,
            DataType::Int32,
            DataType::Int64,
            DataType::Float32,
            DataType::Float64,
            DataType::Decimal128(38, 10),
            DataType::Date32,
            DataType::Timestamp(TimeUnit::Microsecond, None),
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            DataType::Utf8,
            DataType::Binary,
            list_of(DataType::Float32),
            list_of(DataType::Decimal128(10, 0)),
        ];
        let fields: Vec<_> = types
            .into_iter()
            .enumerate()
            .map(|(at, data_type)| {
                Field::new(format!("c{at}"), data_type, true)
                    .with_metadata(HashMap::from([("tidewater.source_name".into(), format!("C {at}"))]))
            })
            .collect();
        let schema = Schema::new(fields);
        let text = to_delta("t", &schema).unwrap();
        assert_eq!(*from_delta("t", &text).unwrap(), schema);
    }

    #[test]
    fn a_type_outside_the_contract_is_refused_by_name() {
        let schema = Schema::new(vec![Field::new("odd", DataType::Utf8View, true)]);
        assert!(to_delta("shop.t", &schema).unwrap_err().to_string().contains("`odd`"));
        for text in ["\"decimal(39,0)\"", "\"decimal(3,4)\"", "\"variant\"", "{\"type\":\"map\"}", "7"] {
            let json = format!(
                "{{\"type\":\"struct\",\"fields\":[{{\"name\":\"odd\",\"type\":{text},\"nullable\":true,\"metadata\":{{}}}}]}}"
            );
            assert!(from_delta("t", &json).is_err(), "{text}");
        }
    }
}
