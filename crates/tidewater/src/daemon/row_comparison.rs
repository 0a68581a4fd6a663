//! Which rows differ between a table's source and its lake, in bounded memory and without order.
//!
//! Each row of either side becomes 32 bytes, a hash of its key and a hash of all of it, in one of
//! [`BUCKETS`] buckets chosen by the key's hash. A bucket holds what both sides have under its keys, and is
//! small enough to be sorted in memory:
//!
//! ```text
//!   source rows ──┐                       ┌─ bucket 0    key 17: source 8fa2…, lake 8fa2…   equal
//!                 ├─▶ (key hash, row hash)┼─ bucket 1    key 42: source 01bc…, lake 77d0…   changed
//!   lake rows ────┘                       └─ …           key 99: source only                missing
//! ```
//!
//! **The invariant: rows are equal here if and only if they are equal as typed values** (up to a collision of
//! 128-bit hashes under a random seed). Both sides are brought to the same Arrow types first; every NaN is one
//! value, and `-0.0` is not `0.0`, as text from Postgres has them. Neither the key index nor any position in a file
//! has a say. A table without a key is compared as a multiset of whole rows.

use super::SyncError;
use super::spool::Spool;
use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Float64Type, SchemaRef};
use arrow::row::{RowConverter, SortField};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::{BTreeSet, HashMap};
use std::hash::Hasher;
use std::path::Path;
use std::sync::Arc;

/// Buckets of a comparison. Each keeps up to 256 KiB in memory while it is filled; of a billion rows on each side
/// one bucket has a gigabyte.
const BUCKETS: usize = 128;

/// A row as it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowHash {
    /// Of the key's values.
    pub key: u128,
    /// Of all values.
    pub row: u128,
}

/// Hashes rows of one table, whichever side they come from.
pub struct RowHasher {
    schema: SchemaRef,
    /// Empty: the whole row is the key.
    key: Vec<usize>,
    rows: RowConverter,
    keys: RowConverter,
    seed: SipHasher13,
}

impl RowHasher {
    /// A hasher for rows of these columns; `key` are the positions of the key's columns.
    pub fn new(schema: SchemaRef, key: Vec<usize>) -> Result<RowHasher, SyncError> {
        let sort = |at: usize| schema.fields().get(at).map(|field| SortField::new(field.data_type().clone()));
        let rows = (0..schema.fields().len()).filter_map(sort).collect();
        let keys = key.iter().filter_map(|at| sort(*at)).collect();
        Ok(RowHasher {
            rows: RowConverter::new(rows).map_err(SyncError::Compare)?,
            keys: RowConverter::new(keys).map_err(SyncError::Compare)?,
            seed: SipHasher13::new_with_key(&rand::random()),
            schema,
            key,
        })
    }

    /// The columns in the order in which [`RowHasher::hash`] takes them.
    pub fn column_names(&self) -> Vec<&str> {
        self.schema.fields().iter().map(|field| field.name().as_str()).collect()
    }

    /// One hash per row. Columns are matched by position.
    pub fn hash(&self, batch: &RecordBatch) -> Result<Vec<RowHash>, SyncError> {
        let columns = self.normalised(batch.columns(), 0..self.schema.fields().len())?;
        let rows = self.digest(&self.rows, &columns)?;
        let keys = if self.key.is_empty() {
            rows.clone()
        } else {
            let key: Vec<ArrayRef> = self.key.iter().filter_map(|at| columns.get(*at)).cloned().collect();
            self.digest(&self.keys, &key)?
        };
        Ok(keys.into_iter().zip(rows).map(|(key, row)| RowHash { key, row }).collect())
    }

    /// The key's hash for each row of a batch that has only the key's columns, in key order.
    pub fn hash_keys(&self, batch: &RecordBatch) -> Result<Vec<u128>, SyncError> {
        let key = self.normalised(batch.columns(), self.key.iter().copied())?;
        self.digest(&self.keys, &key)
    }

    fn digest(&self, converter: &RowConverter, columns: &[ArrayRef]) -> Result<Vec<u128>, SyncError> {
        let rows = converter.convert_columns(columns).map_err(SyncError::Compare)?;
        let digest = |row: arrow::row::Row<'_>| {
            let mut sip = self.seed;
            sip.write(row.as_ref());
            sip.finish128().as_u128()
        };
        Ok(rows.iter().map(digest).collect())
    }

    /// The columns in the table's types, with one NaN.
    fn normalised(
        &self,
        columns: &[ArrayRef],
        positions: impl Iterator<Item = usize>,
    ) -> Result<Vec<ArrayRef>, SyncError> {
        let fields = positions.filter_map(|at| self.schema.fields().get(at));
        fields
            .zip(columns)
            .map(|(field, column)| {
                let column = cast(column, field.data_type()).map_err(SyncError::Compare)?;
                Ok(match field.data_type() {
                    DataType::Float32 => {
                        one_nan::<Float32Type>(&column, |value| if value.is_nan() { f32::NAN } else { value })
                    }
                    DataType::Float64 => {
                        one_nan::<Float64Type>(&column, |value| if value.is_nan() { f64::NAN } else { value })
                    }
                    _ => column,
                })
            })
            .collect()
    }
}

fn one_nan<T: arrow::datatypes::ArrowPrimitiveType>(
    column: &ArrayRef,
    canonical: impl Fn(T::Native) -> T::Native,
) -> ArrayRef {
    match column.as_primitive_opt::<T>() {
        Some(floats) => Arc::new(floats.unary::<_, T>(canonical)),
        None => Arc::clone(column),
    }
}

/// Where a row was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// In the source's snapshot, in the piece of this number.
    Source(u32),
    /// In the lake.
    Lake,
}

/// [`Side::Lake`] as a spooled tag.
const LAKE_TAG: u64 = u64::MAX;

/// Rows of both sides, by bucket.
pub struct RowComparison {
    buckets: Vec<Spool>,
    source_rows: u64,
    lake_rows: u64,
}

/// How a key differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// The source has it, the lake has not; in the piece of this number.
    Missing(u32),
    /// Both have it, with other values; the source in the piece of this number.
    Changed(u32),
    /// The lake has it, the source has not.
    Extra,
}

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Differences {
    /// Rows at the source.
    pub source_rows: u64,
    /// Rows in the lake.
    pub lake_rows: u64,
    /// Keys that differ.
    pub count: u64,
    /// Some of them, by their hash: all if there are no more than the limit.
    pub keys: HashMap<u128, Difference>,
    /// Some key that differs has several rows on one side.
    pub repeated: bool,
}

impl Differences {
    /// Whether every differing key is in [`Differences::keys`].
    pub fn is_complete(&self) -> bool {
        self.count == self.keys.len() as u64
    }

    /// The pieces of the source that hold rows of [`Differences::keys`].
    pub fn pieces(&self) -> BTreeSet<u32> {
        let piece = |difference: &Difference| match difference {
            Difference::Missing(piece) | Difference::Changed(piece) => Some(*piece),
            Difference::Extra => None,
        };
        self.keys.values().filter_map(piece).collect()
    }
}

impl RowComparison {
    /// An empty comparison, which spills into unlinked files of `directory`.
    pub fn new(directory: &Path) -> RowComparison {
        let buckets = (0..BUCKETS).map(|_| Spool::new(directory)).collect();
        RowComparison { buckets, source_rows: 0, lake_rows: 0 }
    }

    /// Adds rows of one side.
    pub fn add(&mut self, side: Side, hashes: &[RowHash]) -> Result<(), SyncError> {
        let tag = match side {
            Side::Source(piece) => u64::from(piece),
            Side::Lake => LAKE_TAG,
        };
        match side {
            Side::Source(_) => self.source_rows += hashes.len() as u64,
            Side::Lake => self.lake_rows += hashes.len() as u64,
        }
        let mut entry = [0; 32];
        for hash in hashes {
            let bucket = (hash.key % BUCKETS as u128) as usize;
            let (key, row) = entry.split_at_mut(16);
            key.copy_from_slice(&hash.key.to_le_bytes());
            row.copy_from_slice(&hash.row.to_le_bytes());
            if let Some(bucket) = self.buckets.get_mut(bucket) {
                bucket.push(tag, &entry).map_err(SyncError::Spool)?;
            }
        }
        Ok(())
    }

    /// Compares the two sides, and keeps up to `limit` of the keys that differ. Reads the spooled rows: not for a
    /// thread that others wait for.
    pub fn differences(self, limit: usize) -> Result<Differences, SyncError> {
        let mut found = Differences {
            source_rows: self.source_rows,
            lake_rows: self.lake_rows,
            ..Differences::default()
        };
        for bucket in self.buckets {
            let mut rows = Vec::new();
            let mut reader = bucket.into_reader().map_err(SyncError::Spool)?;
            let mut entry = Vec::new();
            while let Some(tag) = reader.next(&mut entry).map_err(SyncError::Spool)? {
                let half = |part: Option<&[u8; 16]>| part.copied().map_or(0, u128::from_le_bytes);
                let hash =
                    RowHash { key: half(entry.first_chunk::<16>()), row: half(entry.last_chunk::<16>()) };
                let side = u32::try_from(tag).map_or(Side::Lake, Side::Source);
                rows.push((hash, side));
            }
            rows.sort_unstable();
            for same_key in rows.chunk_by(|(one, _), (other, _)| one.key == other.key) {
                found.compare(same_key, limit);
            }
        }
        Ok(found)
    }
}

impl Differences {
    /// Compares the rows of one key, which are sorted by their hash.
    fn compare(&mut self, rows: &[(RowHash, Side)], limit: usize) {
        let of_source = rows.iter().filter(|(_, side)| *side != Side::Lake);
        let of_lake = rows.iter().filter(|(_, side)| *side == Side::Lake);
        if of_source.clone().map(|(hash, _)| hash.row).eq(of_lake.clone().map(|(hash, _)| hash.row)) {
            return;
        }
        let (in_source, in_lake) = (of_source.clone().count(), of_lake.count());
        self.repeated |= in_source > 1 || in_lake > 1;
        self.count += 1;
        let piece = of_source.clone().find_map(|(_, side)| match side {
            Side::Source(piece) => Some(*piece),
            Side::Lake => None,
        });
        let difference = match (piece, in_lake) {
            (Some(piece), 0) => Difference::Missing(piece),
            (Some(piece), _) => Difference::Changed(piece),
            (None, _) => Difference::Extra,
        };
        if let Some((hash, _)) = rows.first().filter(|_| self.keys.len() < limit) {
            self.keys.insert(hash.key, difference);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, Int64Array, ListArray, StringArray};
    use arrow::datatypes::{Field, Int32Type, Schema};

    fn table(rows: &[(i64, Option<&str>)]) -> RecordBatch {
        let schema =
            Schema::new(vec![Field::new("id", DataType::Int64, true), Field::new("v", DataType::Utf8, true)]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
            Arc::new(StringArray::from_iter(rows.iter().map(|row| row.1))),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    fn compare(key: Vec<usize>, source: &[(i64, Option<&str>)], lake: &[(i64, Option<&str>)]) -> Differences {
        let directory = tempfile::tempdir().unwrap();
        let hasher = RowHasher::new(table(&[]).schema(), key).unwrap();
        let mut comparison = RowComparison::new(directory.path());
        comparison.add(Side::Source(3), &hasher.hash(&table(source)).unwrap()).unwrap();
        comparison.add(Side::Lake, &hasher.hash(&table(lake)).unwrap()).unwrap();
        comparison.differences(1000).unwrap()
    }

    #[test]
    fn missing_changed_and_extra_rows_are_told_apart_whatever_their_order() {
        let found = compare(
            vec![0],
            &[(1, Some("a")), (2, Some("b")), (3, None), (4, Some(""))],
            &[(5, Some("e")), (4, None), (2, Some("b")), (1, Some("A"))],
        );
        assert_eq!((found.source_rows, found.lake_rows, found.count), (4, 4, 4));
        let mut kinds: Vec<_> = found.keys.values().map(|found| format!("{found:?}")).collect();
        kinds.sort();
        assert_eq!(kinds, ["Changed(3)", "Changed(3)", "Extra", "Missing(3)"]);
        assert!(found.is_complete() && !found.repeated);
    }

    #[test]
    fn a_row_that_is_doubled_in_the_lake_is_found() {
        let found = compare(vec![0], &[(1, Some("a"))], &[(1, Some("a")), (1, Some("a"))]);
        assert!(found.count == 1 && found.repeated, "{found:?}");
    }

    #[test]
    fn without_a_key_equal_rows_are_counted() {
        let rows = [(1, Some("a")), (1, Some("a")), (2, None)];
        assert_eq!(compare(Vec::new(), &rows, &rows).count, 0);
        assert_eq!(compare(Vec::new(), &rows, &rows[1..]).count, 1);
    }

    #[test]
    fn many_rows_spill_and_every_difference_is_found() {
        let rows: Vec<_> = (0..200_000).map(|id| (id, Some("v"))).collect();
        let mut lake = rows.clone();
        lake.reverse();
        lake[500].1 = Some("w");
        lake.swap_remove(77);
        let found = compare(vec![0], &rows, &lake);
        assert_eq!((found.count, found.keys.len()), (2, 2));
    }

    #[test]
    fn values_are_equal_by_type_and_not_by_how_arrow_holds_them() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("f", DataType::Float64, true),
            Field::new("l", DataType::new_list(DataType::Int32, true), true),
        ]));
        let hasher = RowHasher::new(schema, Vec::new()).unwrap();
        let row = |float: f64, list: Vec<Option<i32>>| {
            let columns: [(&str, ArrayRef); 2] = [
                ("f", Arc::new(Float64Array::from(vec![float]))),
                ("l", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some(list)]))),
            ];
            hasher.hash(&RecordBatch::try_from_iter(columns).unwrap()).unwrap()
        };
        assert_eq!(row(f64::NAN, vec![Some(1)]), row(-f64::NAN, vec![Some(1)]));
        assert_ne!(row(0.0, vec![]), row(-0.0, vec![]));
        assert_ne!(row(0.0, vec![None]), row(0.0, vec![]));
    }
}
