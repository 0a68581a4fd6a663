//! A table's changes on their way from the router to its task.

use delta_writer::{DeltaError, MirrorTable, TableKind};
use wal_decoder::{ChangeOrigin, Lsn, Op, RowChanges};

/// Row changes of one table in commit order, with where each comes from if the table keeps a history.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The changes.
    pub changes: RowChanges,
    /// One for each operation; empty where nobody needs them.
    pub origins: Vec<ChangeOrigin>,
}

impl Batch {
    /// What is left without transactions whose commit record begins below `from`. Without origins all of it is:
    /// the router has left the others out.
    pub fn since(self, from: Lsn) -> Batch {
        let done = self.origins.iter().take_while(|origin| origin.commit_lsn < from).count();
        if done == 0 {
            return self;
        }
        let taken = |kinds: &[Op]| self.changes.ops.iter().take(done).filter(|op| kinds.contains(op)).count();
        let rows = taken(&[Op::Insert, Op::Update, Op::UpdateKey]);
        let olds = taken(&[Op::Delete, Op::UpdateKey]);
        let RowChanges { rows: all_rows, old_keys, ops, unchanged } = self.changes;
        let left = |count: usize, done: usize| count.saturating_sub(done);
        // Fewer rows than a batch can number.
        let first = u32::try_from(rows).unwrap_or(u32::MAX);
        let unchanged = unchanged.into_iter().filter(|value| value.row >= first).map(|mut value| {
            value.row -= first;
            value
        });
        Batch {
            changes: RowChanges {
                rows: all_rows.slice(rows, left(all_rows.num_rows(), rows)),
                old_keys: old_keys.slice(olds, left(old_keys.num_rows(), olds)),
                ops: ops.into_iter().skip(done).collect(),
                unchanged: unchanged.collect(),
            },
            origins: self.origins.into_iter().skip(done).collect(),
        }
    }

    /// Gives the changes to the table, as rows of its own or as what happened to its source's.
    pub async fn give_to(self, table: &mut MirrorTable) -> Result<(), DeltaError> {
        if self.changes.ops.is_empty() {
            // All of it is there already, and may be in a shape that the table has left behind.
            return Ok(());
        }
        match table.definition().kind {
            TableKind::History => table.record(self.changes, &self.origins).await,
            TableKind::Mirror | TableKind::Multiset => table.apply(self.changes).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{AsArray, Int32Array, RecordBatch};
    use arrow::datatypes::Int32Type;
    use std::sync::Arc;
    use wal_decoder::UnchangedValue;

    fn ids(values: Vec<i32>) -> RecordBatch {
        RecordBatch::try_from_iter([("id", Arc::new(Int32Array::from(values)) as _)]).unwrap()
    }

    #[test]
    fn what_a_table_has_already_is_cut_off_with_its_rows_keys_and_untouched_values() {
        let origin = |lsn| ChangeOrigin { commit_lsn: Lsn(lsn), ..ChangeOrigin::default() };
        let batch = Batch {
            changes: RowChanges {
                rows: ids(vec![1, 2, 3]),
                old_keys: ids(vec![10, 20]),
                ops: vec![Op::Insert, Op::Delete, Op::UpdateKey, Op::Truncate, Op::Update],
                unchanged: vec![UnchangedValue { row: 1, column: 0 }, UnchangedValue { row: 2, column: 0 }],
            },
            origins: [10, 10, 20, 20, 30].map(origin).to_vec(),
        };
        assert_eq!(batch.clone().since(Lsn(10)).changes.ops.len(), 5);
        let left = batch.clone().since(Lsn(11));
        assert_eq!(left.changes.ops, [Op::UpdateKey, Op::Truncate, Op::Update]);
        assert_eq!(left.changes.rows.column(0).as_primitive::<Int32Type>().values(), &[2, 3]);
        assert_eq!(left.changes.old_keys.column(0).as_primitive::<Int32Type>().values(), &[20]);
        assert_eq!(left.changes.unchanged.iter().map(|value| value.row).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(left.origins.len(), 3);
        let none = batch.since(Lsn(31));
        assert!(none.changes.ops.is_empty() && none.changes.rows.num_rows() == 0);
    }
}
