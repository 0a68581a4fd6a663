//! One column of a batch, ready to be written field by field.
//!
//! Readers hand the same Delta type out in several Arrow forms (dictionaries, views, large offsets). Each column is
//! first brought into the one form its values are written from; what follows is one `match` a field.

use super::column::{Form, ServedColumn};
use super::value::{Misfit, write_json, write_numeric};
use crate::error::{Result, ReverseSyncError};
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array,
    Float64Array, Int16Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    TimeUnit, TimestampMicrosecondType,
};
use bytes::{BufMut, BytesMut};
use std::sync::Arc;
use uuid::Uuid;

/// Postgres's `MaxAllocSize`: no field is larger.
const LONGEST_FIELD: usize = 0x3FFF_FFFF;
/// The length that says that there is no value.
pub(super) const NULL_FIELD: i32 = -1;

/// Days from 1970-01-01 to Postgres's day zero, 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = 10_957 * 86_400_000_000;
/// 4714-11-24 BC, where Postgres's calendar begins, and 5874898-01-01, where its dates end: `datetime.h`.
const DATE_BEGIN: i32 = -2_451_545;
const DATE_END: i32 = 2_145_031_949;
/// The same beginning, and 294277-01-01, where timestamps end.
const TIMESTAMP_BEGIN: i64 = -211_813_488_000_000_000;
const TIMESTAMP_END: i64 = 9_223_371_331_200_000_000;

const JSONB_VERSION: u8 = 1;
/// pgvector's own limit.
const VECTOR_DIMENSIONS: usize = 16_000;

/// A column's values and how they are written.
pub(super) enum Cells<'a> {
    Bool(&'a BooleanArray),
    Int2(&'a Int16Array),
    Int4(&'a Int32Array),
    Int8(&'a Int64Array),
    Float4(&'a Float32Array),
    Float8(&'a Float64Array),
    Numeric(&'a Decimal128Array, u8),
    Text(&'a StringArray, Option<u32>),
    Uuid(&'a StringArray),
    Bytea(&'a BinaryArray),
    Date(&'a Date32Array),
    Timestamp(&'a TimestampMicrosecondArray),
    Jsonb(&'a dyn Array),
    Array { lists: &'a ListArray, elements: Box<Cells<'a>>, oid: u32 },
    Vector { lists: &'a ListArray, elements: &'a Float32Array, dimensions: Option<u16> },
}

impl<'a> Cells<'a> {
    /// The column of a batch in the form that [`Cells::of`] takes.
    pub(super) fn conform(batch: &RecordBatch, column: &ServedColumn) -> Result<ArrayRef> {
        let found = batch.column_by_name(&column.name);
        let array = found.ok_or_else(|| ReverseSyncError::MissingColumn { column: column.name.clone() })?;
        let Some(wanted) = conforming_type(&column.form, array.data_type()) else { return Ok(array.clone()) };
        if *array.data_type() == wanted {
            return Ok(array.clone());
        }
        cast(array, &wanted).map_err(|source| ReverseSyncError::Arrow { column: column.name.clone(), source })
    }

    /// The cells of a conforming array.
    pub(super) fn of(array: &'a ArrayRef, column: &ServedColumn) -> Result<Cells<'a>> {
        Cells::of_form(array.as_ref(), &column.form, column.zoned).ok_or_else(|| {
            ReverseSyncError::UnsupportedColumn {
                column: column.name.clone(),
                data_type: array.data_type().to_string(),
            }
        })
    }

    fn of_form(array: &'a dyn Array, form: &Form, zoned: bool) -> Option<Cells<'a>> {
        Some(match form {
            Form::Bool => Cells::Bool(array.as_boolean_opt()?),
            Form::Int2 => Cells::Int2(array.as_primitive_opt::<Int16Type>()?),
            Form::Int4 => Cells::Int4(array.as_primitive_opt::<Int32Type>()?),
            Form::Int8 => Cells::Int8(array.as_primitive_opt::<Int64Type>()?),
            Form::Float4 => Cells::Float4(array.as_primitive_opt::<Float32Type>()?),
            Form::Float8 => Cells::Float8(array.as_primitive_opt::<Float64Type>()?),
            Form::Numeric { scale } => Cells::Numeric(array.as_primitive_opt::<Decimal128Type>()?, *scale),
            Form::Text { limit } => Cells::Text(array.as_string_opt::<i32>()?, *limit),
            Form::Uuid => Cells::Uuid(array.as_string_opt::<i32>()?),
            Form::Bytea => Cells::Bytea(array.as_binary_opt::<i32>()?),
            Form::Date => Cells::Date(array.as_primitive_opt::<Date32Type>()?),
            Form::Timestamp => Cells::Timestamp(array.as_primitive_opt::<TimestampMicrosecondType>()?),
            Form::Jsonb => Cells::Jsonb(array),
            Form::Array(element) => {
                let lists = array.as_list_opt::<i32>()?;
                let elements = Box::new(Cells::of_form(lists.values().as_ref(), element, zoned)?);
                Cells::Array { lists, elements, oid: element.element_oid(zoned)? }
            }
            Form::Vector { dimensions } => {
                let lists = array.as_list_opt::<i32>()?;
                let elements = lists.values().as_primitive_opt::<Float32Type>()?;
                Cells::Vector { lists, elements, dimensions: *dimensions }
            }
        })
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Cells::Bool(array) => array.is_null(row),
            Cells::Int2(array) => array.is_null(row),
            Cells::Int4(array) => array.is_null(row),
            Cells::Int8(array) => array.is_null(row),
            Cells::Float4(array) => array.is_null(row),
            Cells::Float8(array) => array.is_null(row),
            Cells::Numeric(array, _) => array.is_null(row),
            Cells::Text(array, _) | Cells::Uuid(array) => array.is_null(row),
            Cells::Bytea(array) => array.is_null(row),
            Cells::Date(array) => array.is_null(row),
            Cells::Timestamp(array) => array.is_null(row),
            Cells::Jsonb(array) => array.is_null(row),
            Cells::Array { lists, .. } | Cells::Vector { lists, .. } => lists.is_null(row),
        }
    }

    /// Writes a field: its length, then its value.
    pub(super) fn write(&self, row: usize, out: &mut BytesMut) -> Result<(), Misfit> {
        if self.is_null(row) {
            out.put_i32(NULL_FIELD);
            return Ok(());
        }
        let place = out.len();
        out.put_i32(0);
        self.write_value(row, out)?;
        let length = out.len() - place - 4;
        if length > LONGEST_FIELD {
            return Err(Misfit::TooLarge);
        }
        // Checked a line above: it fits.
        let length = i32::try_from(length).map_err(|_| Misfit::TooLarge)?;
        if let Some(prefix) = out.get_mut(place..place + 4) {
            prefix.copy_from_slice(&length.to_be_bytes());
        }
        Ok(())
    }

    fn write_value(&self, row: usize, out: &mut BytesMut) -> Result<(), Misfit> {
        match self {
            Cells::Bool(array) => out.put_u8(u8::from(array.value(row))),
            Cells::Int2(array) => out.put_i16(array.value(row)),
            Cells::Int4(array) => out.put_i32(array.value(row)),
            Cells::Int8(array) => out.put_i64(array.value(row)),
            Cells::Float4(array) => out.put_f32(array.value(row)),
            Cells::Float8(array) => out.put_f64(array.value(row)),
            Cells::Numeric(array, scale) => write_numeric(array.value(row), *scale, out),
            Cells::Text(array, limit) => write_text(array.value(row), *limit, out)?,
            Cells::Uuid(array) => {
                let uuid = Uuid::try_parse(array.value(row)).map_err(|_| Misfit::NoUuid)?;
                out.put_slice(uuid.as_bytes());
            }
            Cells::Bytea(array) => out.put_slice(array.value(row)),
            Cells::Date(array) => {
                let day = array.value(row).checked_sub(EPOCH_DAYS);
                let day = day.filter(|day| (DATE_BEGIN..DATE_END).contains(day));
                out.put_i32(day.ok_or(Misfit::OutOfRange { what: "date" })?);
            }
            Cells::Timestamp(array) => {
                let moment = array.value(row).checked_sub(EPOCH_MICROS);
                let moment = moment.filter(|moment| (TIMESTAMP_BEGIN..TIMESTAMP_END).contains(moment));
                out.put_i64(moment.ok_or(Misfit::OutOfRange { what: "timestamp" })?);
            }
            Cells::Jsonb(array) => {
                let mut text = String::new();
                write_json(*array, row, &mut text)?;
                out.put_u8(JSONB_VERSION);
                out.put_slice(text.as_bytes());
            }
            Cells::Array { lists, elements, oid } => write_array(lists, row, elements, *oid, out)?,
            Cells::Vector { lists, elements, dimensions } => {
                write_vector(lists, row, elements, *dimensions, out)?;
            }
        }
        Ok(())
    }
}

/// The Arrow type that a form is written from; none where any will do.
fn conforming_type(form: &Form, from: &DataType) -> Option<DataType> {
    Some(match form {
        Form::Bool => DataType::Boolean,
        Form::Int2 => DataType::Int16,
        Form::Int4 => DataType::Int32,
        Form::Int8 => DataType::Int64,
        Form::Float4 => DataType::Float32,
        Form::Float8 => DataType::Float64,
        Form::Text { .. } | Form::Uuid => DataType::Utf8,
        Form::Bytea => DataType::Binary,
        Form::Date => DataType::Date32,
        Form::Numeric { .. } => match from {
            DataType::Dictionary(_, values) => values.as_ref().clone(),
            _ => return None,
        },
        Form::Timestamp => {
            let plain = match from {
                DataType::Dictionary(_, values) => values.as_ref(),
                other => other,
            };
            let DataType::Timestamp(_, zone) = plain else { return None };
            DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
        }
        Form::Jsonb => return None,
        Form::Array(element) => {
            let inner = element_type(from)?;
            let inner = conforming_type(element, &inner).unwrap_or(inner);
            DataType::List(Arc::new(Field::new("element", inner, true)))
        }
        Form::Vector { .. } => DataType::List(Arc::new(Field::new("element", DataType::Float32, true))),
    })
}

fn element_type(list: &DataType) -> Option<DataType> {
    match list {
        DataType::List(field) | DataType::LargeList(field) | DataType::ListView(field) => {
            Some(field.data_type().clone())
        }
        _ => None,
    }
}

fn write_text(value: &str, limit: Option<u32>, out: &mut BytesMut) -> Result<(), Misfit> {
    if value.as_bytes().contains(&0) {
        return Err(Misfit::ZeroByte);
    }
    if let Some(limit) = limit {
        let length = value.chars().count();
        if u32::try_from(length).map_or(true, |length| length > limit) {
            return Err(Misfit::TooLong { length, limit });
        }
    }
    out.put_slice(value.as_bytes());
    Ok(())
}

/// `array_recv`: dimensions, whether there are nulls, the element type; then each dimension's size and lower bound.
fn write_array(
    lists: &ListArray,
    row: usize,
    elements: &Cells<'_>,
    oid: u32,
    out: &mut BytesMut,
) -> Result<(), Misfit> {
    let (from, to) = bounds(lists, row);
    let size = i32::try_from(to.saturating_sub(from)).map_err(|_| Misfit::TooLarge)?;
    let has_null = (from..to).any(|at| elements.is_null(at));
    out.put_i32(i32::from(size > 0));
    out.put_i32(i32::from(has_null));
    out.put_u32(oid);
    if size > 0 {
        out.put_i32(size);
        out.put_i32(1);
    }
    (from..to).try_for_each(|at| elements.write(at, out))
}

/// `vector_recv` of pgvector: dimensions, an unused half word, then the elements.
fn write_vector(
    lists: &ListArray,
    row: usize,
    elements: &Float32Array,
    expected: Option<u16>,
    out: &mut BytesMut,
) -> Result<(), Misfit> {
    let (from, to) = bounds(lists, row);
    let found = to.saturating_sub(from);
    let fits = (1..=VECTOR_DIMENSIONS).contains(&found)
        && expected.is_none_or(|expected| usize::from(expected) == found);
    let dimensions = u16::try_from(found).ok().filter(|_| fits);
    out.put_u16(dimensions.ok_or(Misfit::Dimensions { found, expected })?);
    out.put_u16(0);
    for at in from..to {
        if elements.is_null(at) || !elements.value(at).is_finite() {
            return Err(Misfit::NotFinite);
        }
        out.put_f32(elements.value(at));
    }
    Ok(())
}

fn bounds(lists: &ListArray, row: usize) -> (usize, usize) {
    let offsets = lists.value_offsets();
    let at =
        |row: usize| offsets.get(row).and_then(|offset| usize::try_from(*offset).ok()).unwrap_or_default();
    (at(row), at(row + 1))
}
