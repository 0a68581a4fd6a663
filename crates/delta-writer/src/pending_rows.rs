//! Rows of the flush under way that are not in a data file yet.
//!
//! Batches stay as they came; a row that is superseded or deleted before it reaches a file is only marked
//! dead, and left out when the rows move on. So a counter that changes a thousand times within a flush
//! costs one row in the lake.

use crate::error::{DeltaError, Result};
use crate::key_index::KeyHash;
use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A pending row's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PendingRow {
    pub batch: usize,
    pub row: usize,
}

/// Keys are hashed already, with a secret seed; hashing them again would be waste.
#[derive(Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

#[derive(Debug)]
struct PendingBatch {
    /// Absent while the batch's operations are still being consumed.
    rows: Option<RecordBatch>,
    /// One per row; empty for a table without a key.
    keys: Vec<KeyHash>,
    alive: Vec<bool>,
}

/// The rows and where each key's row is among them.
#[derive(Debug, Default)]
pub(crate) struct PendingRows {
    batches: Vec<PendingBatch>,
    by_key: HashMap<KeyHash, PendingRow, BuildHasherDefault<AlreadyHashed>>,
    /// Of equal rows, from each to the one that came before it.
    equals: HashMap<PendingRow, PendingRow>,
    bytes: usize,
}

/// Live rows on their way to a file, with their keys.
#[derive(Debug, Default)]
pub(crate) struct LiveRows {
    pub batches: Vec<RecordBatch>,
    pub keys: Vec<Vec<KeyHash>>,
}

impl PendingRows {
    /// Makes room for a batch of `rows` rows, none of them alive yet.
    pub fn begin_batch(&mut self, keys: Vec<KeyHash>, rows: usize) -> usize {
        self.batches.push(PendingBatch { rows: None, keys, alive: vec![false; rows] });
        self.batches.len() - 1
    }

    /// Gives a begun batch its rows.
    pub fn fill_batch(&mut self, batch: usize, rows: RecordBatch) {
        self.bytes += bytes_of(&rows);
        if let Some(pending) = self.batches.get_mut(batch) {
            pending.rows = Some(rows);
        }
    }

    /// Whether no batch was begun.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// A batch filled earlier.
    pub fn rows(&self, batch: usize) -> Option<&RecordBatch> {
        self.batches.get(batch)?.rows.as_ref()
    }

    /// Makes a row live. False if another row of this key is.
    pub fn insert(&mut self, key: Option<KeyHash>, at: PendingRow) -> bool {
        if key.is_some_and(|key| self.by_key.insert(key, at).is_some()) {
            return false;
        }
        self.mark(at, true);
        true
    }

    /// Makes a row live beside others that may equal it.
    pub fn insert_equal(&mut self, key: KeyHash, at: PendingRow) {
        if let Some(before) = self.by_key.insert(key, at) {
            self.equals.insert(at, before);
        }
        self.mark(at, true);
    }

    /// Adds rows that all stay; each is its key's newest from then on.
    pub fn append(&mut self, keys: Vec<KeyHash>, rows: RecordBatch) {
        let batch = self.batches.len();
        for (row, key) in keys.iter().enumerate() {
            self.by_key.insert(*key, PendingRow { batch, row });
        }
        self.bytes += bytes_of(&rows);
        let alive = vec![true; rows.num_rows()];
        self.batches.push(PendingBatch { rows: Some(rows), keys, alive });
    }

    /// The newest row of a key.
    pub fn newest(&self, key: KeyHash) -> Option<PendingRow> {
        self.by_key.get(&key).copied()
    }

    /// Takes the live row of a key out; of several equal ones, the youngest.
    pub fn remove(&mut self, key: KeyHash) -> Option<PendingRow> {
        let at = self.by_key.remove(&key)?;
        if !self.equals.is_empty()
            && let Some(before) = self.equals.remove(&at)
        {
            self.by_key.insert(key, before);
        }
        self.mark(at, false);
        Some(at)
    }

    fn mark(&mut self, at: PendingRow, alive: bool) {
        if let Some(slot) = self.batches.get_mut(at.batch).and_then(|batch| batch.alive.get_mut(at.row)) {
            *slot = alive;
        }
    }

    /// Bytes held, dead rows included: they are freed with their batch.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Hands the live rows over and forgets everything.
    pub fn take(&mut self) -> Result<LiveRows> {
        let taken = std::mem::take(self);
        let mut live = LiveRows::default();
        for batch in taken.batches {
            let Some(rows) = batch.rows else { continue };
            let count = batch.alive.iter().filter(|alive| **alive).count();
            if count == 0 {
                continue;
            }
            if count == batch.alive.len() {
                live.batches.push(rows);
                live.keys.push(batch.keys);
                continue;
            }
            let keys = batch.keys.iter().zip(&batch.alive).filter(|(_, alive)| **alive).map(|(key, _)| *key);
            live.keys.push(keys.collect());
            let mask = BooleanArray::from(batch.alive);
            live.batches
                .push(filter_record_batch(&rows, &mask).map_err(DeltaError::arrow("leave dead rows out"))?);
        }
        Ok(live)
    }
}

/// Bytes of the rows themselves, where a slice shares its buffers with others.
fn bytes_of(rows: &RecordBatch) -> usize {
    rows.columns()
        .iter()
        .map(|column| {
            column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;
    use std::sync::Arc;

    fn batch(values: Vec<i64>) -> RecordBatch {
        RecordBatch::try_from_iter([("v", Arc::new(Int64Array::from(values)) as ArrayRef)]).unwrap()
    }

    #[test]
    fn a_superseded_row_does_not_move_on() {
        let mut pending = PendingRows::default();
        let keys = vec![KeyHash(1), KeyHash(2), KeyHash(1)];
        let at = pending.begin_batch(keys.clone(), 3);
        assert!(pending.insert(Some(keys[0]), PendingRow { batch: at, row: 0 }));
        assert!(pending.insert(Some(keys[1]), PendingRow { batch: at, row: 1 }));
        assert_eq!(pending.remove(keys[0]), Some(PendingRow { batch: at, row: 0 }));
        assert!(pending.insert(Some(keys[2]), PendingRow { batch: at, row: 2 }));
        pending.fill_batch(at, batch(vec![10, 20, 30]));
        let live = pending.take().unwrap();
        assert_eq!(live.keys, [vec![KeyHash(2), KeyHash(1)]]);
        assert_eq!(live.batches[0].column(0).as_primitive::<Int64Type>().values(), &[20, 30]);
        assert_eq!(pending.bytes(), 0);
    }

    #[test]
    fn equal_rows_are_taken_out_one_by_one() {
        let mut pending = PendingRows::default();
        let at = pending.begin_batch(vec![KeyHash(1); 3], 3);
        (0..3).for_each(|row| pending.insert_equal(KeyHash(1), PendingRow { batch: at, row }));
        assert_eq!(pending.remove(KeyHash(1)), Some(PendingRow { batch: at, row: 2 }));
        assert_eq!(pending.remove(KeyHash(1)), Some(PendingRow { batch: at, row: 1 }));
        pending.fill_batch(at, batch(vec![7, 7, 7]));
        assert_eq!(pending.rows(at).unwrap().num_rows(), 3);
        assert_eq!(pending.remove(KeyHash(1)), Some(PendingRow { batch: at, row: 0 }));
        assert_eq!(pending.remove(KeyHash(1)), None);
    }

    #[test]
    fn a_second_row_of_a_live_key_is_told() {
        let mut pending = PendingRows::default();
        let at = pending.begin_batch(vec![KeyHash(1), KeyHash(1)], 2);
        assert!(pending.insert(Some(KeyHash(1)), PendingRow { batch: at, row: 0 }));
        assert!(!pending.insert(Some(KeyHash(1)), PendingRow { batch: at, row: 1 }));
    }
}
