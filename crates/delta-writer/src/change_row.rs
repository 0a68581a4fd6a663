//! The columns that a history adds to its source's, and what they say of a row.
//!
//! ```text
//!   source's columns …  | _pg_change_type   | _pg_lsn | _pg_timestamp | _pg_xid | _pg_seq
//!   7, 'open'           | insert            | 0/1A0   | 10:00:01      | 733     | 2
//!   7, 'open'           | update_preimage   | 0/2B0   | 10:00:02      | 734     | 1
//!   7, 'paid'           | update_postimage  | 0/2B0   | 10:00:02      | 734     | 2
//!   7, 'paid'           | delete            | 0/3C0   | 10:00:03      | 735     | 2
//! ```
//!
//! **Ordered by (`_pg_lsn`, `_pg_seq`) a history replays its source.** `_pg_lsn` is where the transaction's
//! commit record begins, which orders transactions as they were committed; `_pg_seq` counts the row changes of
//! a transaction over all its tables, two numbers each, so that an update's preimage stands right before its
//! postimage. Rows that no transaction brought (a load's, at the load's position) have no xid and timestamp and
//! a `_pg_seq` of at most 0, and so stand before the first transaction that the load does not hold.

use crate::error::{DeltaError, Result};
use arrow::array::{
    Array, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;
use wal_decoder::{ChangeOrigin, Lsn};

/// Names of the added columns, in their order.
pub const HISTORY_COLUMNS: [&str; 5] = ["_pg_change_type", "_pg_lsn", "_pg_timestamp", "_pg_xid", "_pg_seq"];

/// What a history's row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeType {
    Insert,
    UpdatePreimage,
    UpdatePostimage,
    Delete,
    Truncate,
}

impl ChangeType {
    const ALL: [ChangeType; 5] = [
        ChangeType::Insert,
        ChangeType::UpdatePreimage,
        ChangeType::UpdatePostimage,
        ChangeType::Delete,
        ChangeType::Truncate,
    ];

    pub fn name(self) -> &'static str {
        match self {
            ChangeType::Insert => "insert",
            ChangeType::UpdatePreimage => "update_preimage",
            ChangeType::UpdatePostimage => "update_postimage",
            ChangeType::Delete => "delete",
            ChangeType::Truncate => "truncate",
        }
    }

    /// What a row of a history says it is; `None` if no history's row says so.
    pub fn parse(name: &str) -> Option<ChangeType> {
        ChangeType::ALL.into_iter().find(|change| change.name() == name)
    }

    /// Whether the row is what its key holds from then on; the others tell what it held.
    pub fn is_image(self) -> bool {
        matches!(self, ChangeType::Insert | ChangeType::UpdatePostimage)
    }
}

/// Where a row of a history stands in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    pub lsn: i64,
    pub seq: i64,
}

/// A history's columns, of a source with these.
pub fn history_schema(source: &Schema) -> SchemaRef {
    let [change_type, lsn, timestamp, xid, seq] = HISTORY_COLUMNS;
    let timestamps = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let added = [
        Field::new(change_type, DataType::Utf8, true),
        Field::new(lsn, DataType::Int64, true),
        Field::new(timestamp, timestamps, true),
        Field::new(xid, DataType::Int64, true),
        Field::new(seq, DataType::Int64, true),
    ];
    let fields = source.fields().iter().cloned().chain(added.map(Arc::new));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Rows of a load as a history has them: inserted at the load's position.
///
/// # Errors
/// If `rows` are not the source's columns.
pub fn loaded_rows(rows: &RecordBatch, position: Lsn) -> Result<RecordBatch> {
    let count = rows.num_rows();
    let moment = Moment { lsn: position.0.cast_signed(), seq: 0 };
    let mut origins = OriginColumns::default();
    (0..count).for_each(|_| origins.push_loaded(ChangeType::Insert, moment));
    let columns = rows.columns().iter().cloned().chain(origins.finish());
    RecordBatch::try_new(history_schema(&rows.schema()), columns.collect())
        .map_err(DeltaError::arrow("make rows of a history"))
}

/// The added columns of rows being made.
#[derive(Debug, Default)]
pub(crate) struct OriginColumns {
    change_types: Vec<&'static str>,
    lsns: Vec<i64>,
    timestamps: Vec<Option<i64>>,
    xids: Vec<Option<i64>>,
    seqs: Vec<i64>,
}

impl OriginColumns {
    /// A row that a transaction brought.
    pub fn push(&mut self, change: ChangeType, origin: &ChangeOrigin) {
        let at = origin.seq.saturating_mul(2);
        self.change_types.push(change.name());
        // LSNs count bytes of WAL: none reaches 2^63.
        self.lsns.push(origin.commit_lsn.0.cast_signed());
        self.timestamps.push(Some(origin.commit_time.unix_micros()));
        self.xids.push(Some(origin.xid.into()));
        self.seqs.push(if change == ChangeType::UpdatePreimage { at - 1 } else { at });
    }

    /// A row that a load found.
    pub fn push_loaded(&mut self, change: ChangeType, moment: Moment) {
        self.change_types.push(change.name());
        self.lsns.push(moment.lsn);
        self.timestamps.push(None);
        self.xids.push(None);
        self.seqs.push(moment.seq);
    }

    /// The columns, in the order of [`HISTORY_COLUMNS`].
    pub fn finish(self) -> [ArrayRef; 5] {
        [
            Arc::new(StringArray::from(self.change_types)),
            Arc::new(Int64Array::from(self.lsns)),
            Arc::new(TimestampMicrosecondArray::from(self.timestamps).with_timezone("UTC")),
            Arc::new(Int64Array::from(self.xids)),
            Arc::new(Int64Array::from(self.seqs)),
        ]
    }
}

/// A row that holds nothing: what stands in a TRUNCATE's.
pub(crate) fn no_row(columns: &[DataType]) -> Vec<ArrayRef> {
    columns.iter().map(|data_type| new_null_array(data_type, 1)).collect()
}

/// What a row read back says it is.
pub(crate) fn change_at(column: &dyn Array, row: usize) -> Option<ChangeType> {
    let names = column.as_any().downcast_ref::<StringArray>()?;
    (names.len() > row && names.is_valid(row)).then(|| ChangeType::parse(names.value(row)))?
}
