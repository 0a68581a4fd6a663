//! One column while it is being built.
//!
//! Arrow's own builders only grow. A row that fails in its seventh column must take back the six values
//! before it, so these columns keep Arrow's buffers themselves and can be cut to any earlier length.
//! The invariant: every `append_…` that fails leaves the column exactly as it was.
//!
//! ```text
//!   validity   1 1 0 1          (no bitmap at all until the first null)
//!   Fixed      7 8 0 9
//!   Runs       offsets 0 2 5 5 6   bytes "abcde" "f"
//!   List       offsets 0 2 5 5 6   a column of elements
//! ```

use crate::value_error::{MULTI_DIMENSIONAL, ValueError, malformed};
use crate::value_text::{array, bytea, date_time, decimal, number};
use crate::{PgType, json_array, value_binary, value_display};
use arrow::array::{
    ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, BooleanBufferBuilder, ListArray,
    NullBufferBuilder, PrimitiveArray, StringArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, FieldRef, Float32Type, Float64Type, Int16Type, Int32Type,
    Int64Type, TimestampMicrosecondType,
};
use std::sync::Arc;

/// Slots that a column keeps ready for the next batch at most: what a large batch needed is not held on to.
const MOST_RESERVED: usize = 64 * 1024;

/// A column's values so far.
pub(crate) struct Column {
    values: Values,
    validity: NullBufferBuilder,
    arrow_type: DataType,
}

enum Values {
    Bool(BooleanBufferBuilder),
    Int2(Vec<i16>),
    Int4(Vec<i32>),
    Int8(Vec<i64>),
    Oid(Vec<i64>),
    Float4(Vec<f32>),
    Float8(Vec<f64>),
    Decimal { values: Vec<i128>, precision: u8, scale: i8 },
    Date(Vec<i32>),
    Timestamp(Vec<i64>),
    Timestamptz(Vec<i64>),
    Bytea(Runs),
    Text(Runs),
    Json { runs: Runs, array: PgType, scratch: Vec<u8> },
    List(Box<List>),
}

/// Values of any length, one after the other.
struct Runs {
    offsets: Vec<i32>,
    bytes: Vec<u8>,
}

struct List {
    offsets: Vec<i32>,
    elements: Column,
    field: FieldRef,
    form: ListForm,
    scratch: Vec<u8>,
}

#[derive(Clone, Copy)]
enum ListForm {
    Array { delimiter: u8 },
    Vector,
}

impl Column {
    pub(crate) fn new(pg_type: &PgType) -> Self {
        let list = |element: &PgType, form| {
            Values::List(Box::new(List {
                offsets: vec![0],
                elements: Column::new(element),
                field: element.element_field(),
                form,
                scratch: Vec::new(),
            }))
        };
        let values = match pg_type {
            PgType::Bool => Values::Bool(BooleanBufferBuilder::new(0)),
            PgType::Int2 => Values::Int2(Vec::new()),
            PgType::Int4 => Values::Int4(Vec::new()),
            PgType::Int8 => Values::Int8(Vec::new()),
            PgType::Oid => Values::Oid(Vec::new()),
            PgType::Float4 => Values::Float4(Vec::new()),
            PgType::Float8 => Values::Float8(Vec::new()),
            &PgType::Decimal { precision, scale } => Values::Decimal { values: Vec::new(), precision, scale },
            PgType::Date => Values::Date(Vec::new()),
            PgType::Timestamp => Values::Timestamp(Vec::new()),
            PgType::Timestamptz => Values::Timestamptz(Vec::new()),
            PgType::Bytea => Values::Bytea(Runs::new()),
            PgType::Vector => list(&PgType::Float4, ListForm::Vector),
            PgType::Array(element) => list(element, ListForm::Array { delimiter: b',' }),
            PgType::DelimitedArray { delimiter } => {
                list(&PgType::Text, ListForm::Array { delimiter: *delimiter })
            }
            PgType::JsonArray(array) => {
                Values::Json { runs: Runs::new(), array: (**array).clone(), scratch: Vec::new() }
            }
            PgType::Text => Values::Text(Runs::new()),
        };
        Column { values, validity: NullBufferBuilder::new(0), arrow_type: pg_type.arrow_type() }
    }

    /// How many values there are, nulls included.
    pub(crate) fn len(&self) -> usize {
        self.validity.len()
    }

    pub(crate) fn append_null(&mut self) {
        match &mut self.values {
            Values::Bool(values) => values.append(false),
            Values::Int2(values) => values.push(0),
            Values::Int4(values) | Values::Date(values) => values.push(0),
            Values::Int8(values)
            | Values::Oid(values)
            | Values::Timestamp(values)
            | Values::Timestamptz(values) => values.push(0),
            Values::Float4(values) => values.push(0.0),
            Values::Float8(values) => values.push(0.0),
            Values::Decimal { values, .. } => values.push(0),
            Values::Bytea(runs) | Values::Text(runs) | Values::Json { runs, .. } => {
                runs.offsets.push(runs.end());
            }
            Values::List(list) => list.offsets.push(list.end()),
        }
        self.validity.append_null();
    }

    /// Appends a value in its text form.
    #[inline]
    pub(crate) fn append_text(&mut self, text: &[u8]) -> Result<(), ValueError> {
        match &mut self.values {
            Values::Bool(values) => values.append(number::bool(text)?),
            Values::Int2(values) => values.push(number::int2(text)?),
            Values::Int4(values) => values.push(number::int4(text)?),
            Values::Int8(values) => values.push(number::int8(text)?),
            Values::Oid(values) => values.push(number::oid(text)?),
            Values::Float4(values) => values.push(number::float4(text)?),
            Values::Float8(values) => values.push(number::float8(text)?),
            Values::Decimal { values, precision, scale } => {
                values.push(decimal::decimal(text, *precision, *scale)?);
            }
            Values::Date(values) => values.push(date_time::date(text)?),
            Values::Timestamp(values) => values.push(date_time::timestamp(text)?),
            Values::Timestamptz(values) => values.push(date_time::timestamptz(text)?),
            Values::Bytea(runs) => runs.append_with(|bytes| bytea::bytea(text, bytes))?,
            Values::Text(runs) => runs.append_utf8(text)?,
            Values::Json { runs, array, scratch } => {
                runs.append_with(|json| json_array::write(text, array, scratch, json))?;
            }
            Values::List(list) => list.append_text(text)?,
        }
        self.validity.append_non_null();
        Ok(())
    }

    /// Appends a field of a binary COPY: binary where [`PgType::copy_as_binary`], else text.
    #[inline]
    pub(crate) fn append_copy(&mut self, field: &[u8]) -> Result<(), ValueError> {
        match &mut self.values {
            Values::Bool(values) => values.append(value_binary::bool(field)?),
            Values::Int2(values) => {
                values.push(i16::from_be_bytes(value_binary::fixed(field, "a binary int2")?));
            }
            Values::Int4(values) => {
                values.push(i32::from_be_bytes(value_binary::fixed(field, "a binary int4")?));
            }
            Values::Int8(values) => {
                values.push(i64::from_be_bytes(value_binary::fixed(field, "a binary int8")?));
            }
            Values::Oid(values) => {
                values.push(i64::from(u32::from_be_bytes(value_binary::fixed(field, "a binary oid")?)));
            }
            Values::Float4(values) => {
                values.push(f32::from_be_bytes(value_binary::fixed(field, "a binary float4")?));
            }
            Values::Float8(values) => {
                values.push(f64::from_be_bytes(value_binary::fixed(field, "a binary float8")?));
            }
            Values::Decimal { values, precision, scale } => {
                values.push(value_binary::decimal(field, *precision, *scale)?);
            }
            Values::Date(values) => values.push(value_binary::date(field)?),
            Values::Timestamp(values) | Values::Timestamptz(values) => {
                values.push(value_binary::timestamp(field)?);
            }
            Values::Bytea(runs) => runs.append_with(|bytes| {
                bytes.extend_from_slice(field);
                Ok(())
            })?,
            Values::List(list) if matches!(list.form, ListForm::Vector) => {
                list.append_binary_vector(field)?
            }
            Values::Text(_) | Values::Json { .. } | Values::List(_) => return self.append_text(field),
        }
        self.validity.append_non_null();
        Ok(())
    }

    /// The text form of a COPY field that Delta cannot hold.
    pub(crate) fn unrepresentable_copy_text(&self, field: &[u8]) -> String {
        match &self.values {
            Values::Date(_) | Values::Timestamp(_) => value_binary::unrepresentable_date_text(field, ""),
            Values::Timestamptz(_) => value_binary::unrepresentable_date_text(field, "+00"),
            Values::Decimal { .. } => value_binary::not_finite_numeric_text(field),
            _ => value_display::excerpt(field),
        }
    }

    /// Cuts the column back to its first `len` values.
    pub(crate) fn truncate(&mut self, len: usize) {
        match &mut self.values {
            Values::Bool(values) => values.truncate(len),
            Values::Int2(values) => values.truncate(len),
            Values::Int4(values) | Values::Date(values) => values.truncate(len),
            Values::Int8(values)
            | Values::Oid(values)
            | Values::Timestamp(values)
            | Values::Timestamptz(values) => values.truncate(len),
            Values::Float4(values) => values.truncate(len),
            Values::Float8(values) => values.truncate(len),
            Values::Decimal { values, .. } => values.truncate(len),
            Values::Bytea(runs) | Values::Text(runs) | Values::Json { runs, .. } => runs.truncate(len),
            Values::List(list) => {
                list.offsets.truncate(len + 1);
                let end = list.end();
                list.elements.truncate(position(end));
            }
        }
        self.validity.truncate(len);
    }

    /// Bytes of values and offsets held.
    pub(crate) fn byte_size(&self) -> usize {
        match &self.values {
            Values::Bool(values) => values.len() / 8,
            Values::Int2(values) => size_of_val(values.as_slice()),
            Values::Int4(values) | Values::Date(values) => size_of_val(values.as_slice()),
            Values::Int8(values)
            | Values::Oid(values)
            | Values::Timestamp(values)
            | Values::Timestamptz(values) => size_of_val(values.as_slice()),
            Values::Float4(values) => size_of_val(values.as_slice()),
            Values::Float8(values) => size_of_val(values.as_slice()),
            Values::Decimal { values, .. } => size_of_val(values.as_slice()),
            Values::Bytea(runs) | Values::Text(runs) | Values::Json { runs, .. } => {
                runs.bytes.len() + size_of_val(runs.offsets.as_slice()) - size_of::<i32>()
            }
            Values::List(list) => {
                list.elements.byte_size() + size_of_val(list.offsets.as_slice()) - size_of::<i32>()
            }
        }
    }

    /// Takes the values out as an Arrow array and leaves the column empty.
    pub(crate) fn take(&mut self) -> ArrayRef {
        let nulls = self.validity.finish();
        match &mut self.values {
            Values::Bool(values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Int2(values) => primitive::<Int16Type>(values, nulls, &self.arrow_type),
            Values::Int4(values) => primitive::<Int32Type>(values, nulls, &self.arrow_type),
            Values::Int8(values) | Values::Oid(values) => {
                primitive::<Int64Type>(values, nulls, &self.arrow_type)
            }
            Values::Float4(values) => primitive::<Float32Type>(values, nulls, &self.arrow_type),
            Values::Float8(values) => primitive::<Float64Type>(values, nulls, &self.arrow_type),
            Values::Decimal { values, .. } => primitive::<Decimal128Type>(values, nulls, &self.arrow_type),
            Values::Date(values) => primitive::<Date32Type>(values, nulls, &self.arrow_type),
            Values::Timestamp(values) | Values::Timestamptz(values) => {
                primitive::<TimestampMicrosecondType>(values, nulls, &self.arrow_type)
            }
            Values::Bytea(runs) => {
                let (offsets, bytes) = runs.take();
                Arc::new(BinaryArray::new(offsets, bytes, nulls))
            }
            Values::Text(runs) | Values::Json { runs, .. } => {
                let (offsets, bytes) = runs.take();
                Arc::new(StringArray::new(offsets, bytes, nulls))
            }
            Values::List(list) => {
                let offsets = take_offsets(&mut list.offsets);
                Arc::new(ListArray::new(Arc::clone(&list.field), offsets, list.elements.take(), nulls))
            }
        }
    }

    /// The text form of one value, for people to read: `None` for null or past the end.
    pub(crate) fn text_at(&self, row: usize) -> Option<String> {
        if row >= self.len() || !self.validity.is_valid(row) {
            return None;
        }
        match &self.values {
            Values::Bool(values) => Some(if values.get_bit(row) { "t" } else { "f" }.to_owned()),
            Values::Int2(values) => values.get(row).map(i16::to_string),
            Values::Int4(values) => values.get(row).map(i32::to_string),
            Values::Int8(values) | Values::Oid(values) => values.get(row).map(i64::to_string),
            Values::Float4(values) => values.get(row).map(f32::to_string),
            Values::Float8(values) => values.get(row).map(f64::to_string),
            Values::Decimal { values, scale, .. } => {
                values.get(row).map(|&value| value_display::decimal(value, *scale))
            }
            Values::Date(values) => values.get(row).map(|&days| value_display::date(i64::from(days))),
            Values::Timestamp(values) => values.get(row).map(|&micros| value_display::timestamp(micros)),
            Values::Timestamptz(values) => values.get(row).map(|&micros| value_display::timestamptz(micros)),
            Values::Bytea(runs) => runs.get(row).map(value_display::bytea),
            Values::Text(runs) | Values::Json { runs, .. } => runs.get(row).map(value_display::excerpt),
            Values::List(list) => {
                let (start, end) = (list.offsets.get(row)?, list.offsets.get(row + 1)?);
                let elements: Vec<_> = (position(*start)..position(*end))
                    .map(|at| list.elements.text_at(at).unwrap_or_else(|| "NULL".to_owned()))
                    .collect();
                Some(format!("{{{}}}", elements.join(",")))
            }
        }
    }
}

/// Offsets are never negative: they start at zero and only grow.
fn position(offset: i32) -> usize {
    usize::try_from(offset).unwrap_or_default()
}

fn offset(length: usize) -> Result<i32, ValueError> {
    i32::try_from(length).map_err(|_| ValueError::BatchFull)
}

fn primitive<T: ArrowPrimitiveType>(
    values: &mut Vec<T::Native>,
    nulls: Option<NullBuffer>,
    arrow_type: &DataType,
) -> ArrayRef {
    let next = Vec::with_capacity(values.len().min(MOST_RESERVED));
    let values = std::mem::replace(values, next);
    Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::from(values), nulls).with_data_type(arrow_type.clone()))
}

fn take_offsets(offsets: &mut Vec<i32>) -> OffsetBuffer<i32> {
    let mut next = Vec::with_capacity(offsets.len().min(MOST_RESERVED));
    next.push(0);
    OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, next)))
}

impl Runs {
    fn new() -> Self {
        Runs { offsets: vec![0], bytes: Vec::new() }
    }

    fn end(&self) -> i32 {
        self.offsets.last().copied().unwrap_or_default()
    }

    #[inline]
    fn append_utf8(&mut self, text: &[u8]) -> Result<(), ValueError> {
        if simdutf8::basic::from_utf8(text).is_err() {
            return Err(ValueError::NotUtf8);
        }
        let end = offset(self.bytes.len() + text.len())?;
        self.bytes.extend_from_slice(text);
        self.offsets.push(end);
        Ok(())
    }

    /// Appends what `write` adds to the bytes, or nothing if it fails.
    fn append_with(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), ValueError>,
    ) -> Result<(), ValueError> {
        let start = self.bytes.len();
        match write(&mut self.bytes).and_then(|()| offset(self.bytes.len())) {
            Ok(end) => {
                self.offsets.push(end);
                Ok(())
            }
            Err(error) => {
                self.bytes.truncate(start);
                Err(error)
            }
        }
    }

    fn get(&self, row: usize) -> Option<&[u8]> {
        let (start, end) = (self.offsets.get(row)?, self.offsets.get(row + 1)?);
        self.bytes.get(position(*start)..position(*end))
    }

    fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len + 1);
        self.bytes.truncate(position(self.end()));
    }

    fn take(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let next = Vec::with_capacity(self.bytes.len().min(MOST_RESERVED));
        (take_offsets(&mut self.offsets), Buffer::from_vec(std::mem::replace(&mut self.bytes, next)))
    }
}

impl List {
    fn end(&self) -> i32 {
        self.offsets.last().copied().unwrap_or_default()
    }

    fn append_text(&mut self, text: &[u8]) -> Result<(), ValueError> {
        let elements = &mut self.elements;
        let read = match self.form {
            ListForm::Array { delimiter } => {
                array::elements(text, delimiter, &mut self.scratch, |element| match element {
                    Some(text) => elements.append_text(text),
                    None => {
                        elements.append_null();
                        Ok(())
                    }
                })
            }
            ListForm::Vector => vector_elements(text, elements),
        };
        self.close(read)
    }

    fn append_binary_vector(&mut self, field: &[u8]) -> Result<(), ValueError> {
        let elements = &mut self.elements;
        let read = value_binary::vector(field)
            .and_then(|mut values| values.try_for_each(|value| elements.append_copy(&value.to_be_bytes())));
        self.close(read)
    }

    /// Ends a list whose elements were appended, or takes them back.
    fn close(&mut self, read: Result<(), ValueError>) -> Result<(), ValueError> {
        match read.and_then(|()| offset(self.elements.len())) {
            Ok(end) => {
                self.offsets.push(end);
                Ok(())
            }
            Err(error) => {
                self.elements.truncate(position(self.end()));
                Err(error)
            }
        }
    }
}

/// pgvector writes `[1,2,3]` and allows neither nulls nor nesting.
fn vector_elements(text: &[u8], elements: &mut Column) -> Result<(), ValueError> {
    const ERROR: ValueError = malformed("a vector ([…])");
    let inner = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")).ok_or(ERROR)?;
    if inner.is_empty() {
        return Ok(());
    }
    if inner.starts_with(b"[") {
        return Err(MULTI_DIMENSIONAL);
    }
    inner.split(|&byte| byte == b',').try_for_each(|element| elements.append_text(element))
}
