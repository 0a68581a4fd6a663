//! Ordered row changes of one table, in columns.
//!
//! This is what travels from the decoder to the lake's writer. New row images stand in `rows`, old
//! keys in `old_keys`, and `ops` says in commit order how to consume the two: each operation takes the
//! next row, the next old key, both or none.
//!
//! ```text
//!   ops       Insert   Update   Delete   UpdateKey      Truncate   Insert
//!   rows      row 0    row 1             row 2                     row 3
//!   old_keys                    key 0    key 1
//! ```

use crate::{Lsn, PgTimestamp};
use arrow::array::RecordBatch;

/// What happened, and what it consumes of the two batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// A new row: takes the next of `rows`.
    Insert,
    /// A row changed under the same key: takes the next of `rows`, whose key columns name the old row.
    Update,
    /// A row changed together with its key: takes the next of `old_keys` and the next of `rows`.
    UpdateKey,
    /// A row went: takes the next of `old_keys`.
    Delete,
    /// Every row went: takes nothing.
    Truncate,
}

/// A value that Postgres did not send because the update left it untouched (an unchanged TOAST value),
/// and that was in no old tuple either. The column's slot in `rows` is null until it is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnchangedValue {
    /// Position in `rows`.
    pub row: u32,
    /// Position of the column.
    pub column: u32,
}

/// Changes of one table in the order they were committed.
#[derive(Debug, Clone)]
pub struct RowChanges {
    /// New row images, every column of the table.
    pub rows: RecordBatch,
    /// Keys of rows that go or move: the key's columns in key order.
    pub old_keys: RecordBatch,
    /// The operations, in order.
    pub ops: Vec<Op>,
    /// Sorted by row, then column. Only rows that `Update` or `UpdateKey` takes occur.
    pub unchanged: Vec<UnchangedValue>,
}

/// Where a row change stands in the source's log, for whoever keeps the changes themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChangeOrigin {
    /// Start of its transaction's commit record.
    pub commit_lsn: Lsn,
    /// When the transaction was committed.
    pub commit_time: PgTimestamp,
    /// The (top) transaction's id.
    pub xid: u32,
    /// Its place among the transaction's row changes, those of other tables included; the first is 1.
    pub seq: i64,
}
