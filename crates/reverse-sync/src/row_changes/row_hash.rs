//! Rows as 128-bit hashes, of their key and of all their values.
//!
//! Values are hashed in Arrow's row format, which is one sequence of bytes for equal rows whatever files they came
//! from, nested types and nulls included. SipHash with random keys: rows come from outside.

use crate::error::{Result, ReverseSyncError};
use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::Schema;
use arrow::row::{RowConverter, SortField};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// Hashes rows of one schema.
pub(crate) struct RowHasher {
    table: String,
    all: RowConverter,
    key: Vec<usize>,
    key_rows: RowConverter,
    seed: (u64, u64),
}

/// The hashes of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowHash {
    pub key: u128,
    pub row: u128,
}

impl RowHasher {
    /// For rows of these columns, of which those at `key` are the key. Without a key, the whole row is it.
    pub(crate) fn new(table: &str, schema: &Schema, key: Vec<usize>) -> Result<RowHasher> {
        let shape = |source| ReverseSyncError::Shape { table: table.to_owned(), source };
        let field =
            |at: usize| schema.fields().get(at).map(|field| SortField::new(field.data_type().clone()));
        let all = RowConverter::new((0..schema.fields().len()).filter_map(field).collect());
        let key_rows = RowConverter::new(key.iter().copied().filter_map(field).collect());
        let random = RandomState::new();
        Ok(RowHasher {
            table: table.to_owned(),
            all: all.map_err(shape)?,
            key,
            key_rows: key_rows.map_err(shape)?,
            seed: (random.hash_one(0), random.hash_one(1)),
        })
    }

    /// One pair of hashes a row. A key with a null in it is no key: such a row stands for itself.
    pub(crate) fn hash(&self, batch: &RecordBatch) -> Result<Vec<RowHash>> {
        let shape = |source| ReverseSyncError::Shape { table: self.table.clone(), source };
        let all = self.all.convert_columns(batch.columns()).map_err(shape)?;
        let whole: Vec<u128> = all.iter().map(|row| self.hash_bytes(row.as_ref())).collect();
        if self.key.is_empty() {
            return Ok(whole.into_iter().map(|row| RowHash { key: row, row }).collect());
        }
        let key: Vec<ArrayRef> = self.key.iter().filter_map(|at| batch.columns().get(*at).cloned()).collect();
        let keys = self.key_rows.convert_columns(&key).map_err(shape)?;
        let hash = |(at, (key_row, row)): (usize, (arrow::row::Row<'_>, u128))| {
            let is_key = key.iter().all(|column| column.is_valid(at));
            RowHash { key: if is_key { self.hash_bytes(key_row.as_ref()) } else { row }, row }
        };
        Ok(keys.iter().zip(whole).enumerate().map(hash).collect())
    }

    fn hash_bytes(&self, bytes: &[u8]) -> u128 {
        let mut hasher = SipHasher13::new_with_keys(self.seed.0, self.seed.1);
        hasher.write(bytes);
        hasher.finish128().as_u128()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};
    use std::sync::Arc;

    fn batch(ids: Vec<Option<i64>>, texts: Vec<&str>) -> RecordBatch {
        let columns: [(&str, ArrayRef); 2] =
            [("id", Arc::new(Int64Array::from(ids))), ("v", Arc::new(StringArray::from(texts)))];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, values)| (name, values, true))).unwrap()
    }

    #[test]
    fn rows_of_one_key_share_its_hash_and_rows_without_a_key_share_none() {
        let rows =
            batch(vec![Some(1), Some(1), Some(2), None, None, None], vec!["a", "b", "a", "a", "b", "b"]);
        let hasher = RowHasher::new("t", &rows.schema(), vec![0]).unwrap();
        let hashes = hasher.hash(&rows).unwrap();
        assert_eq!(hashes[0].key, hashes[1].key);
        assert_ne!(hashes[0].row, hashes[1].row);
        assert_ne!(hashes[0].key, hashes[2].key);
        assert_ne!(hashes[3].key, hashes[4].key, "two nulls are not one key");
        assert_eq!(hashes[4], hashes[5], "equal rows still cancel");
    }
}
