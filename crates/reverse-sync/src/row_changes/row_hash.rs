//! Rows as 128-bit hashes, of their key and of all their values.
//!
//! ```text
//!   column by column, every row's state takes in the value's words:   state := fold((state ^ word) × secret)
//!   two lanes with secrets of their own are the two halves of the hash
//! ```
//!
//! `fold` is the product's upper half over its lower half. A column at a time, the work on one row does not wait for
//! that on the row before, which makes it several times as fast as hashing row after row. Rows come from outside, so the
//! secrets are drawn anew for each comparison: nobody can arrange that two rows share their hash.
//!
//! Plain values are taken in as they lie in memory. Nested ones are first brought into Arrow's row format, one sequence
//! of bytes for equal values whatever files they came from.

use crate::error::{Result, ReverseSyncError};
use arrow::array::{
    Array, ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, AsArray, PrimitiveArray, RecordBatch,
};
use arrow::datatypes::{DataType, ToByteSlice};
use arrow::downcast_primitive_array;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// Hashes rows of one schema.
#[derive(Debug)]
pub(crate) struct RowHasher {
    table: String,
    key: Vec<usize>,
    secrets: Secrets,
}

/// The hashes of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowHash {
    /// None for a row whose key has a null in it: that is no key. Without key columns, the whole row is the key.
    pub key: Option<u128>,
    pub row: u128,
}

#[derive(Debug, Clone, Copy)]
struct Secrets {
    start: [u64; 2],
    factor: [u64; 2],
    /// Stands for a value that is not there.
    null: u64,
}

/// A row's hash under way.
type State = [u64; 2];

impl RowHasher {
    /// For rows of whose columns those at `key` are the key. Without a key, the whole row is it.
    pub(crate) fn new(table: &str, key: Vec<usize>) -> RowHasher {
        let random = RandomState::new();
        let drawn = |number: u64| random.hash_one(number);
        let secrets = Secrets {
            start: [drawn(0), drawn(1)],
            // Odd: an even factor would lose the state's highest bits.
            factor: [drawn(2) | 1, drawn(3) | 1],
            null: drawn(4),
        };
        RowHasher { table: table.to_owned(), key, secrets }
    }

    /// The hashes of each row.
    pub(crate) fn hash(&self, batch: &RecordBatch) -> Result<Vec<RowHash>> {
        let rows = self.hash_columns(batch.columns(), batch.num_rows())?;
        if self.key.is_empty() {
            return Ok(rows.into_iter().map(|row| RowHash { key: Some(row), row }).collect());
        }
        let key: Vec<ArrayRef> = self.key.iter().filter_map(|at| batch.columns().get(*at).cloned()).collect();
        let keys = self.hash_keys(&key, batch.num_rows())?;
        Ok(keys.into_iter().zip(rows).map(|(key, row)| RowHash { key, row }).collect())
    }

    /// The hashes of rows' keys, of which only the columns are given.
    pub(crate) fn hash_keys(&self, key: &[ArrayRef], rows: usize) -> Result<Vec<Option<u128>>> {
        let hashes = self.hash_columns(key, rows)?;
        let is_key = |at: usize| key.iter().all(|column| column.is_valid(at));
        Ok(hashes.into_iter().enumerate().map(|(at, hash)| is_key(at).then_some(hash)).collect())
    }

    fn hash_columns(&self, columns: &[ArrayRef], rows: usize) -> Result<Vec<u128>> {
        let mut states = vec![self.secrets.start; rows];
        for column in columns {
            self.secrets
                .take_in(column, &mut states)
                .map_err(|source| ReverseSyncError::Shape { table: self.table.clone(), source })?;
        }
        let finish = |mut state: State| {
            // Sums are made of hashes: what the last value changed has to reach every bit.
            self.secrets.take_in_word(&mut state, self.secrets.null);
            let [high, low] = state;
            u128::from(high) << 64 | u128::from(low)
        };
        Ok(states.into_iter().map(finish).collect())
    }
}

impl Secrets {
    fn take_in(&self, column: &ArrayRef, states: &mut [State]) -> std::result::Result<(), ArrowError> {
        downcast_primitive_array!(
            column => self.take_in_plain(column, states),
            DataType::Boolean => {
                for (value, state) in column.as_boolean().iter().zip(states) {
                    self.take_in_word(state, value.map_or(self.null, u64::from));
                }
            }
            DataType::Utf8 => self.take_in_bytes(column.as_string::<i32>().iter().map(|text| text.map(str::as_bytes)), states),
            DataType::Binary => self.take_in_bytes(column.as_binary::<i32>().iter(), states),
            _ => {
                let converter = RowConverter::new(vec![SortField::new(column.data_type().clone())])?;
                let rows = converter.convert_columns(&[ArrayRef::clone(column)])?;
                // What is null is null in the row's bytes, too.
                for (row, state) in rows.iter().zip(states) {
                    self.take_in_sequence(state, row.as_ref());
                }
            }
        );
        Ok(())
    }

    fn take_in_plain<T: ArrowPrimitiveType>(&self, column: &PrimitiveArray<T>, states: &mut [State]) {
        let values = column.values().iter().zip(states);
        match column.nulls() {
            None => values.for_each(|(value, state)| self.take_in_value(state, *value)),
            Some(nulls) => {
                for ((value, state), is_there) in values.zip(nulls) {
                    if is_there {
                        self.take_in_value(state, *value);
                    } else {
                        self.take_in_word(state, self.null);
                    }
                }
            }
        }
    }

    fn take_in_bytes<'a>(&self, values: impl Iterator<Item = Option<&'a [u8]>>, states: &mut [State]) {
        for (value, state) in values.zip(states) {
            match value {
                Some(bytes) => self.take_in_sequence(state, bytes),
                None => self.take_in_word(state, self.null),
            }
        }
    }

    #[inline]
    fn take_in_value(&self, state: &mut State, value: impl ArrowNativeTypeOp) {
        words(value.to_byte_slice()).for_each(|word| self.take_in_word(state, word));
    }

    /// The length goes first, so that what ends here and begins there is not the same as what does so elsewhere.
    #[inline]
    fn take_in_sequence(&self, state: &mut State, bytes: &[u8]) {
        self.take_in_word(state, bytes.len() as u64);
        words(bytes).for_each(|word| self.take_in_word(state, word));
    }

    #[inline]
    fn take_in_word(&self, [one, other]: &mut State, word: u64) {
        let [one_factor, other_factor] = self.factor;
        *one = fold(*one ^ word, one_factor);
        *other = fold(*other ^ word, other_factor);
    }
}

#[inline]
fn fold(state: u64, factor: u64) -> u64 {
    let product = u128::from(state) * u128::from(factor);
    (product >> 64) as u64 ^ product as u64
}

/// Bytes by eights, the last filled up with zeroes.
#[inline]
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (whole, rest) = bytes.as_chunks::<8>();
    let last =
        (!rest.is_empty()).then(|| rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)));
    whole.iter().map(|word| u64::from_le_bytes(*word)).chain(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{BinaryArray, BooleanArray, Decimal128Array, Int64Array, ListArray, StringArray};
    use arrow::datatypes::Int32Type;
    use std::collections::HashSet;
    use std::sync::Arc;

    fn batch(columns: Vec<ArrayRef>) -> RecordBatch {
        let named = columns.into_iter().enumerate().map(|(at, column)| (at.to_string(), column, true));
        RecordBatch::try_from_iter_with_nullable(named).unwrap()
    }

    fn ids(values: Vec<Option<i64>>) -> ArrayRef {
        Arc::new(Int64Array::from(values))
    }

    fn texts(values: Vec<Option<&str>>) -> ArrayRef {
        Arc::new(StringArray::from(values))
    }

    #[test]
    fn rows_of_one_key_share_its_hash_and_a_null_is_no_key() {
        let rows = batch(vec![
            ids(vec![Some(1), Some(1), Some(2), None, None, None]),
            texts(["a", "b", "a", "a", "b", "b"].map(Some).to_vec()),
        ]);
        let hasher = RowHasher::new("t", vec![0]);
        let hashes = hasher.hash(&rows).unwrap();
        assert_eq!(hashes[0].key, hashes[1].key);
        assert_ne!(hashes[0].row, hashes[1].row);
        assert_ne!(hashes[0].key, hashes[2].key);
        assert_eq!(hashes[3].key, None);
        assert_ne!(hashes[3].row, hashes[4].row);
        assert_eq!(hashes[4], hashes[5], "equal rows still cancel");
        let alone = hasher.hash_keys(&rows.columns()[..1], 6).unwrap();
        assert_eq!(alone, hashes.iter().map(|hash| hash.key).collect::<Vec<_>>());
    }

    #[test]
    fn a_value_that_moves_to_the_next_column_makes_another_row() {
        let hasher = RowHasher::new("t", vec![]);
        let rows = [
            batch(vec![texts(vec![Some("ab")]), texts(vec![Some("c")]), texts(vec![None])]),
            batch(vec![texts(vec![Some("a")]), texts(vec![Some("bc")]), texts(vec![None])]),
            batch(vec![texts(vec![Some("ab")]), texts(vec![None]), texts(vec![Some("c")])]),
            batch(vec![texts(vec![None]), texts(vec![Some("ab")]), texts(vec![Some("c")])]),
            batch(vec![texts(vec![Some("ab")]), texts(vec![Some("c")]), texts(vec![Some("")])]),
            batch(vec![texts(vec![Some("ab")]), texts(vec![Some("c\0")]), texts(vec![None])]),
        ];
        let hashes: HashSet<u128> = rows.iter().map(|row| hasher.hash(row).unwrap()[0].row).collect();
        assert_eq!(hashes.len(), rows.len());
    }

    #[test]
    fn every_kind_of_column_tells_its_values_apart_and_knows_equal_ones() {
        let lists = |values: Vec<Option<Vec<Option<i32>>>>| -> ArrayRef {
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(values))
        };
        let columns: [ArrayRef; 6] = [
            ids(vec![Some(0), Some(1), Some(0), None]),
            texts(vec![Some(""), Some("a longer text"), Some(""), None]),
            Arc::new(BooleanArray::from(vec![Some(false), Some(true), Some(false), None])),
            Arc::new(BinaryArray::from(vec![Some([0_u8].as_slice()), Some(&[0, 0]), Some(&[0]), None])),
            Arc::new(Decimal128Array::from(vec![Some(0), Some(1 << 100), Some(0), None])),
            lists(vec![Some(vec![]), Some(vec![None]), Some(vec![]), None]),
        ];
        for column in columns {
            let kind = column.data_type().clone();
            let hashes = RowHasher::new("t", vec![]).hash(&batch(vec![column])).unwrap();
            assert_eq!(hashes[0], hashes[2], "{kind}");
            let different: HashSet<u128> = hashes.iter().map(|hash| hash.row).collect();
            assert_eq!(different.len(), 3, "{kind}");
        }
    }
}
