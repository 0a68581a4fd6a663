//! Primary keys to 128 bits.
//!
//! A key is written as canonical bytes, column after column, and those are hashed with SipHash-1-3 under
//! the index's own random seed: users choose key values, and without a seed they could choose colliding
//! ones. Each column is a tag for its kind of value, then the value, with a length before it where
//! lengths vary; so no two keys share their bytes, and null is a value of its own.
//!
//! The bytes depend on the value, not on how Arrow holds it: `Utf8` and `Utf8View` of one text are equal, and so
//! are the widths of an integer. Floats are hashed by their bits: `-0.0` and `0.0` differ, which is what is
//! wanted, since Postgres names a row's old key by the exact value it had. Only NaNs are all alike: they are in
//! the text that the stream sends, whatever bits a binary COPY found.

use super::entry::KeyHash;
use super::error::KeyIndexError;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, ListArray, PrimitiveArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    TimeUnit, TimestampMicrosecondType,
};
use siphasher::sip128::SipHasher13;

/// What a key column's value is; the byte that stands before it.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Tag {
    Null,
    Bool,
    Integer,
    Float32,
    Float64,
    Decimal,
    Date,
    Timestamp,
    Timestamptz,
    Text,
    Bytes,
    List,
}

/// Hashes keys for one index. Cheap to copy, and usable from any thread.
#[derive(Clone, Copy)]
pub struct KeyHasher {
    sip: SipHasher13,
}

/// The seed is a secret of the index.
impl std::fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyHasher").finish_non_exhaustive()
    }
}

impl KeyHasher {
    pub(super) fn new(seed: &[u8; 16]) -> Self {
        Self { sip: SipHasher13::new_with_key(seed) }
    }

    /// One hash per row of the key's columns, given in key order.
    pub fn hash(&self, columns: &[ArrayRef]) -> Result<Vec<KeyHash>, KeyIndexError> {
        let mut hashes = Vec::new();
        self.hash_into(columns, &mut hashes)?;
        Ok(hashes)
    }

    /// Like [`Self::hash`], appended to `hashes`, which is untouched on error.
    pub fn hash_into(&self, columns: &[ArrayRef], hashes: &mut Vec<KeyHash>) -> Result<(), KeyIndexError> {
        let lengths = || columns.iter().map(|column| column.len());
        let rows = match lengths().next() {
            Some(rows) if lengths().all(|length| length == rows) => rows,
            _ => return Err(KeyIndexError::UnevenKeyColumns { lengths: lengths().collect() }),
        };
        let columns = columns
            .iter()
            .enumerate()
            .map(|(position, column)| {
                KeyColumn::of(column).ok_or_else(|| KeyIndexError::UnsupportedKeyColumn {
                    position,
                    data_type: column.data_type().clone(),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut bytes = Vec::new();
        hashes.reserve(rows);
        for row in 0..rows {
            bytes.clear();
            columns.iter().for_each(|column| column.write(row, &mut bytes));
            hashes.push(KeyHash(self.sip.hash(&bytes).as_u128()));
        }
        Ok(())
    }
}

/// A key column as its typed array, found once and not per row.
enum KeyColumn<'a> {
    Bool(&'a BooleanArray),
    Int16(&'a PrimitiveArray<Int16Type>),
    Int32(&'a PrimitiveArray<Int32Type>),
    Int64(&'a PrimitiveArray<Int64Type>),
    Float32(&'a PrimitiveArray<Float32Type>),
    Float64(&'a PrimitiveArray<Float64Type>),
    Decimal(&'a PrimitiveArray<Decimal128Type>, i8),
    Date(&'a PrimitiveArray<Date32Type>),
    Timestamp(&'a PrimitiveArray<TimestampMicrosecondType>, Tag),
    Text(&'a arrow::array::StringArray),
    LargeText(&'a arrow::array::LargeStringArray),
    TextView(&'a arrow::array::StringViewArray),
    Bytes(&'a arrow::array::BinaryArray),
    LargeBytes(&'a arrow::array::LargeBinaryArray),
    BytesView(&'a arrow::array::BinaryViewArray),
    List(&'a ListArray, Box<KeyColumn<'a>>),
}

impl<'a> KeyColumn<'a> {
    fn of(column: &'a ArrayRef) -> Option<Self> {
        Some(match column.data_type() {
            DataType::Boolean => Self::Bool(column.as_boolean_opt()?),
            DataType::Int16 => Self::Int16(column.as_primitive_opt()?),
            DataType::Int32 => Self::Int32(column.as_primitive_opt()?),
            DataType::Int64 => Self::Int64(column.as_primitive_opt()?),
            DataType::Float32 => Self::Float32(column.as_primitive_opt()?),
            DataType::Float64 => Self::Float64(column.as_primitive_opt()?),
            DataType::Decimal128(_, scale) => Self::Decimal(column.as_primitive_opt()?, *scale),
            DataType::Date32 => Self::Date(column.as_primitive_opt()?),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                let tag = if zone.is_some() { Tag::Timestamptz } else { Tag::Timestamp };
                Self::Timestamp(column.as_primitive_opt()?, tag)
            }
            DataType::Utf8 => Self::Text(column.as_string_opt()?),
            DataType::LargeUtf8 => Self::LargeText(column.as_string_opt()?),
            DataType::Utf8View => Self::TextView(column.as_string_view_opt()?),
            DataType::Binary => Self::Bytes(column.as_binary_opt()?),
            DataType::LargeBinary => Self::LargeBytes(column.as_binary_opt()?),
            DataType::BinaryView => Self::BytesView(column.as_binary_view_opt()?),
            DataType::List(_) => {
                let lists = column.as_list_opt()?;
                Self::List(lists, Box::new(Self::of(lists.values())?))
            }
            _ => return None,
        })
    }

    fn write(&self, row: usize, to: &mut Vec<u8>) {
        if self.array().is_null(row) {
            to.push(Tag::Null as u8);
            return;
        }
        match self {
            Self::Bool(values) => to.extend([Tag::Bool as u8, u8::from(values.value(row))]),
            Self::Int16(values) => write_integer(values.value(row).into(), to),
            Self::Int32(values) => write_integer(values.value(row).into(), to),
            Self::Int64(values) => write_integer(values.value(row), to),
            Self::Float32(values) => {
                let value = values.value(row);
                let value = if value.is_nan() { f32::NAN } else { value };
                write_fixed(Tag::Float32, value.to_bits().to_le_bytes(), to);
            }
            Self::Float64(values) => {
                let value = values.value(row);
                let value = if value.is_nan() { f64::NAN } else { value };
                write_fixed(Tag::Float64, value.to_bits().to_le_bytes(), to);
            }
            Self::Decimal(values, scale) => {
                write_fixed(Tag::Decimal, values.value(row).to_le_bytes(), to);
                to.extend(scale.to_le_bytes());
            }
            Self::Date(values) => write_fixed(Tag::Date, values.value(row).to_le_bytes(), to),
            Self::Timestamp(values, tag) => write_fixed(*tag, values.value(row).to_le_bytes(), to),
            Self::Text(values) => write_varying(Tag::Text, values.value(row).as_bytes(), to),
            Self::LargeText(values) => write_varying(Tag::Text, values.value(row).as_bytes(), to),
            Self::TextView(values) => write_varying(Tag::Text, values.value(row).as_bytes(), to),
            Self::Bytes(values) => write_varying(Tag::Bytes, values.value(row), to),
            Self::LargeBytes(values) => write_varying(Tag::Bytes, values.value(row), to),
            Self::BytesView(values) => write_varying(Tag::Bytes, values.value(row), to),
            Self::List(lists, elements) => {
                let bounds = lists.value_offsets().get(row..row + 2).unwrap_or_default();
                let (first, end) = match bounds {
                    [first, end] => (*first as usize, *end as usize),
                    _ => (0, 0),
                };
                write_fixed(Tag::List, ((end - first) as u64).to_le_bytes(), to);
                (first..end).for_each(|element| elements.write(element, to));
            }
        }
    }

    fn array(&self) -> &dyn Array {
        match self {
            Self::Bool(values) => *values,
            Self::Int16(values) => *values,
            Self::Int32(values) => *values,
            Self::Int64(values) => *values,
            Self::Float32(values) => *values,
            Self::Float64(values) => *values,
            Self::Decimal(values, _) => *values,
            Self::Date(values) => *values,
            Self::Timestamp(values, _) => *values,
            Self::Text(values) => *values,
            Self::LargeText(values) => *values,
            Self::TextView(values) => *values,
            Self::Bytes(values) => *values,
            Self::LargeBytes(values) => *values,
            Self::BytesView(values) => *values,
            Self::List(lists, _) => *lists,
        }
    }
}

fn write_integer(value: i64, to: &mut Vec<u8>) {
    write_fixed(Tag::Integer, value.to_le_bytes(), to);
}

fn write_fixed<const N: usize>(tag: Tag, value: [u8; N], to: &mut Vec<u8>) {
    to.push(tag as u8);
    to.extend_from_slice(&value);
}

fn write_varying(tag: Tag, value: &[u8], to: &mut Vec<u8>) {
    to.push(tag as u8);
    to.extend_from_slice(&(value.len() as u64).to_le_bytes());
    to.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::*;
    use std::collections::HashSet;
    use std::sync::Arc;

    fn hash(columns: &[ArrayRef]) -> Vec<KeyHash> {
        KeyHasher::new(&[3; 16]).hash(columns).unwrap()
    }

    fn text(values: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    #[test]
    fn where_one_column_ends_and_the_next_begins_matters() {
        let keys = hash(&[
            text(&[Some("ab"), Some("a"), Some(""), None, Some("ab"), None]),
            text(&[Some("c"), Some("bc"), Some("abc"), Some("abc"), None, None]),
        ]);
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 6);
    }

    #[test]
    fn equal_values_are_equal_keys_however_arrow_holds_them() {
        let texts: Vec<ArrayRef> = vec![
            text(&[Some("Zürich")]),
            Arc::new(LargeStringArray::from(vec!["Zürich"])),
            Arc::new(StringViewArray::from(vec!["Zürich"])),
        ];
        let bytes: Vec<ArrayRef> = vec![
            Arc::new(BinaryArray::from(vec![b"raw".as_slice()])),
            Arc::new(LargeBinaryArray::from(vec![b"raw".as_slice()])),
            Arc::new(BinaryViewArray::from(vec![b"raw".as_slice()])),
        ];
        let integers: Vec<ArrayRef> = vec![
            Arc::new(Int16Array::from(vec![-5])),
            Arc::new(Int32Array::from(vec![-5])),
            Arc::new(Int64Array::from(vec![-5])),
        ];
        for same in [texts, bytes, integers] {
            let keys = same.into_iter().map(|column| hash(&[column])).collect::<HashSet<_>>();
            assert_eq!(keys.len(), 1);
        }
    }

    #[test]
    fn kinds_of_values_never_meet() {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(BooleanArray::from(vec![false])),
            Arc::new(Int64Array::from(vec![0])),
            Arc::new(Float32Array::from(vec![0.0])),
            Arc::new(Float64Array::from(vec![0.0])),
            Arc::new(Float64Array::from(vec![-0.0])),
            Arc::new(Decimal128Array::from(vec![0]).with_precision_and_scale(10, 2).unwrap()),
            Arc::new(Date32Array::from(vec![0])),
            Arc::new(TimestampMicrosecondArray::from(vec![0])),
            Arc::new(TimestampMicrosecondArray::from(vec![0]).with_timezone("UTC")),
            text(&[Some("")]),
            Arc::new(BinaryArray::from(vec![b"".as_slice()])),
            text(&[None]),
        ];
        let keys = columns.iter().map(|column| hash(&[Arc::clone(column)])).collect::<HashSet<_>>();
        assert_eq!(keys.len(), columns.len());
    }

    #[test]
    fn another_seed_gives_other_hashes() {
        let column = text(&[Some("key")]);
        assert_ne!(KeyHasher::new(&[4; 16]).hash(&[Arc::clone(&column)]).unwrap(), hash(&[column]));
    }

    #[test]
    fn a_slice_hashes_like_the_whole() {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]));
        assert_eq!(hash(&[column.slice(1, 2)]), hash(&[column])[1..]);
    }

    #[test]
    fn every_nan_is_the_same_value() {
        let nans = [f64::NAN, -f64::NAN, f64::from_bits(0x7ff0_0000_0000_0001)];
        let keys = hash(&[Arc::new(Float64Array::from(nans.to_vec()))]);
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 1);
    }

    #[test]
    fn lists_are_told_apart_by_length_order_and_nulls() {
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([
            Some(vec![Some(1), Some(2)]),
            Some(vec![Some(2), Some(1)]),
            Some(vec![Some(1), Some(2), None]),
            Some(vec![]),
            Some(vec![None]),
            None,
            Some(vec![Some(1), Some(2)]),
        ]);
        let keys = hash(&[Arc::new(lists)]);
        assert_eq!(keys.first(), keys.last());
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 6);
    }

    #[test]
    fn what_cannot_be_a_key_is_named() {
        let list: ArrayRef = Arc::new(arrow::array::new_null_array(
            &DataType::Interval(arrow::datatypes::IntervalUnit::DayTime),
            1,
        ));
        let hasher = KeyHasher::new(&[3; 16]);
        let mut hashes = vec![KeyHash(1)];
        let error = hasher.hash_into(&[text(&[None]), list], &mut hashes).unwrap_err();
        assert!(matches!(error, KeyIndexError::UnsupportedKeyColumn { position: 1, .. }));
        assert_eq!(hashes, [KeyHash(1)]);
        assert!(matches!(hasher.hash(&[]), Err(KeyIndexError::UnevenKeyColumns { .. })));
        let uneven = hasher.hash(&[text(&[None]), text(&[None, None])]).unwrap_err();
        assert!(matches!(uneven, KeyIndexError::UnevenKeyColumns { lengths } if lengths == [1, 2]));
    }
}
