//! Bringing decoded Parquet columns into a table's types.
//!
//! A file has the columns that its writer knew, in its own order and under physical names; the table has what its
//! schema says now. Level by level: a field is found by its id or name, one that the file lacks is null, one that the
//! table lacks is left out, and a value of a narrower type is widened. Nothing else is converted: a file whose type is
//! another one is an error, never a guess.
//!
//! delta-kernel has the same in `arrow_utils`, which fails on a null map or list whose values need a cast (a map of
//! timestamps from Spark is one), because it takes the entries' nullability for the map's.

use arrow::array::{Array, ArrayRef, AsArray, ListArray, MapArray, StructArray, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType as ArrowType, Field, FieldRef, Fields};
use arrow::error::ArrowError;
use delta_kernel::schema::{ColumnMetadataKey, DataType, MetadataValue, StructField};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use std::sync::Arc;

type Result<T> = std::result::Result<T, ArrowError>;

/// Where in a file's fields the physical field of a table is.
pub(super) fn find(field: &StructField, in_file: &Fields) -> Option<usize> {
    let id = match field.get_config_value(&ColumnMetadataKey::ParquetFieldId) {
        Some(MetadataValue::Number(id)) => Some(id.to_string()),
        _ => None,
    };
    let id_of = |field: &FieldRef| field.metadata().get(PARQUET_FIELD_ID_META_KEY).cloned();
    match id {
        // With ids, names mean nothing: a dropped column's name may have been given to another.
        Some(id) if in_file.iter().any(|field| id_of(field).is_some()) => {
            in_file.iter().position(|field| id_of(field).as_ref() == Some(&id))
        }
        _ => in_file.iter().position(|found| found.name() == field.name()),
    }
}

/// A column of a file as the table has it: `physical` is its type with the names that files use, `target` the Arrow
/// type with the names that people use; the two have the same fields in the same order.
pub(super) fn conform(array: &ArrayRef, physical: &DataType, target: &ArrowType) -> Result<ArrayRef> {
    match (physical, target) {
        (DataType::Struct(fields), ArrowType::Struct(targets)) => {
            let array = array.as_struct_opt().ok_or_else(|| mismatch(array, target))?;
            let fields = fields.fields();
            Ok(Arc::new(conform_struct(array, fields, targets)?))
        }
        (DataType::Array(list), ArrowType::List(element)) => {
            let array: &ListArray = array.as_list_opt().ok_or_else(|| mismatch(array, target))?;
            let values = conform(array.values(), list.element_type(), element.data_type())?;
            let (offsets, nulls) = (array.offsets().clone(), array.nulls().cloned());
            Ok(Arc::new(ListArray::try_new(Arc::clone(element), offsets, values, nulls)?))
        }
        (DataType::Map(map), ArrowType::Map(entries, _)) => {
            let array = array.as_map_opt().ok_or_else(|| mismatch(array, target))?;
            let ArrowType::Struct(targets) = entries.data_type() else {
                return Err(mismatch(array, target));
            };
            let parts = [(array.keys(), map.key_type()), (array.values(), map.value_type())];
            let parts = parts.into_iter().zip(targets.iter());
            let parts = parts.map(|((part, kind), target)| conform(part, kind, target.data_type()));
            let pairs = StructArray::try_new(targets.clone(), parts.collect::<Result<_>>()?, None)?;
            let (offsets, nulls) = (array.offsets().clone(), array.nulls().cloned());
            Ok(Arc::new(MapArray::try_new(Arc::clone(entries), offsets, pairs, nulls, false)?))
        }
        (DataType::Variant(parts), ArrowType::Struct(targets)) => {
            let array = array.as_struct_opt().ok_or_else(|| mismatch(array, target))?;
            if array.column_by_name("typed_value").is_some() {
                return Err(ArrowError::NotYetImplemented("a shredded variant".to_owned()));
            }
            Ok(Arc::new(conform_struct(array, parts.fields(), targets)?))
        }
        _ => widen(array, target),
    }
}

fn conform_struct<'a>(
    array: &StructArray,
    fields: impl Iterator<Item = &'a StructField>,
    targets: &Fields,
) -> Result<StructArray> {
    let column = |(field, target): (&StructField, &FieldRef)| match find(field, array.fields()) {
        Some(at) => conform(array.column(at), field.data_type(), target.data_type()),
        None => Ok(new_null_array(target.data_type(), array.len())),
    };
    let columns = fields.zip(targets.iter()).map(column).collect::<Result<_>>()?;
    StructArray::try_new_with_length(targets.clone(), columns, array.nulls().cloned(), array.len())
}

/// The same values in a type that holds them all.
fn widen(array: &ArrayRef, target: &ArrowType) -> Result<ArrayRef> {
    if array.data_type() == target {
        return Ok(Arc::clone(array));
    }
    match is_wider(array.data_type(), target) {
        // Not safe in Arrow's sense, which would make null of what does not fit.
        true => cast_with_options(array, target, &CastOptions { safe: false, ..CastOptions::default() }),
        false => Err(mismatch(array, target)),
    }
}

/// Type widening as the protocol lists it, and types that writers leave their annotation off.
fn is_wider(from: &ArrowType, to: &ArrowType) -> bool {
    use ArrowType::{
        Binary, Date32, Decimal128, FixedSizeBinary, Float32, Float64, Int8, Int16, Int32, Int64, Timestamp,
        Utf8,
    };
    match (from, to) {
        (Int8 | Int16 | Int32, Int8 | Int16 | Int32 | Int64 | Float64 | Decimal128(..))
        | (Int64, Decimal128(..))
        | (Float32, Float64)
        | (Date32, Timestamp(..))
        | (Timestamp(..), Timestamp(..))
        | (Binary, Utf8)
        | (FixedSizeBinary(_), Binary) => true,
        (Decimal128(from_digits, from_scale), Decimal128(digits, scale)) => {
            scale >= from_scale
                && i16::from(*digits) - i16::from(*scale) >= i16::from(*from_digits) - i16::from(*from_scale)
        }
        _ => false,
    }
}

fn mismatch(array: &dyn Array, target: &ArrowType) -> ArrowError {
    let found = array.data_type();
    ArrowError::SchemaError(format!("the file has {found} where the table has {target}"))
}

/// The same field, for a value of one type in place of another.
pub(super) fn retyped(field: &FieldRef, data_type: ArrowType) -> FieldRef {
    Arc::new(Field::clone(field).with_data_type(data_type))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int32Array, StringArray};

    fn column(values: Vec<i32>) -> ArrayRef {
        Arc::new(Int32Array::from(values))
    }

    #[test]
    fn a_nested_field_is_found_by_its_physical_name_and_a_missing_one_is_null() {
        let in_file = Fields::from(vec![Field::new("p1", ArrowType::Int32, true)]);
        let array: ArrayRef = Arc::new(StructArray::new(in_file, vec![column(vec![1, 2])], None));
        let physical = delta_kernel::schema::StructType::try_new([
            StructField::nullable("p2", DataType::STRING),
            StructField::nullable("p1", DataType::LONG),
        ])
        .unwrap();
        let targets =
            vec![Field::new("new", ArrowType::Utf8, true), Field::new("old", ArrowType::Int64, true)];
        let target = ArrowType::Struct(targets.into());
        let conformed = conform(&array, &physical.into(), &target).unwrap();
        assert_eq!(conformed.data_type(), &target);
        assert_eq!(conformed.as_struct().column(0).null_count(), 2);
        assert_eq!(
            conformed.as_struct().column(1).as_primitive::<arrow::datatypes::Int64Type>().values(),
            &[1, 2]
        );
    }

    #[test]
    fn a_type_that_is_another_one_is_an_error_and_so_is_a_value_that_does_not_fit() {
        let text: ArrayRef = Arc::new(StringArray::from(vec!["1"]));
        assert!(conform(&text, &DataType::LONG, &ArrowType::Int64).is_err());
        assert!(conform(&column(vec![1 << 20]), &DataType::SHORT, &ArrowType::Int16).is_err());
        assert!(conform(&column(vec![1]), &DataType::SHORT, &ArrowType::Int16).is_ok());
    }

    #[test]
    fn with_field_ids_names_mean_nothing() {
        let field = |name: &str, id: &str| {
            let id = [(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_owned())];
            Field::new(name, ArrowType::Int32, true).with_metadata(id.into())
        };
        let in_file = Fields::from(vec![field("a", "1"), field("b", "2")]);
        let key = ColumnMetadataKey::ParquetFieldId.as_ref();
        let wanted = |name: &str, id: i64| {
            StructField::nullable(name, DataType::INTEGER).with_metadata([(key, MetadataValue::Number(id))])
        };
        assert_eq!(find(&wanted("a", 2), &in_file), Some(1));
        assert_eq!(find(&wanted("a", 3), &in_file), None);
        assert_eq!(find(&StructField::nullable("b", DataType::INTEGER), &in_file), Some(1));
    }
}
