//! `<lake>/<database>/_tidewater/consistent_points`: which versions of a database's tables belong together.
//!
//! Tables are committed one after the other, so the newest versions of two of them may lie on both sides
//! of a cut. Once every table of a cut has landed, its *point* is written: a row for each table that changed
//! since the last one.
//!
//! ```text
//!   incarnation   lsn   commit_timestamp   table           version
//!   7301…-1       100   10:00:01           public.orders   12
//!   7301…-1       100   10:00:01           public.items     4
//!   7301…-1       140   10:00:02           public.orders   13        items as of 140: its row at 100
//!   7301…-1       180   10:00:03           public.items    null      left the sync: no state belongs to 180
//! ```
//!
//! **The invariant: the newest row of a table at or below an LSN is its state there.** A point is one commit, so
//! nobody sees half of one. A crash may lose a point, and with it rows; therefore the first point of a run names
//! *every* table, and a point that could not be written ends the run. Between the lost point and that one a
//! reader is sent to the cut before: older, and whole.
//!
//! Writing happens on a task of its own: the slot and the next cut do not wait for it, unless it falls far behind.

use super::SyncError;
use super::error::error_chain;
use super::live_table::LiveTable;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use delta_writer::{AppendTable, CommitSpec, DeltaError, TableLocation, WriterOptions};
use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use wal_decoder::{Lsn, PgTimestamp};

use super::router::CommitPoint;

/// Points that may wait for the lake before cuts wait for them: minutes of one-second flushes.
const QUEUE: usize = 256;

/// One table in a point.
struct PointRow {
    lsn: Lsn,
    /// Microseconds since 2000; 0 where no transaction was committed yet.
    commit_time: i64,
    table: String,
    /// None: the table is in no known state there.
    version: Option<i64>,
}

/// Where a database's points go.
#[derive(Debug, Clone)]
pub struct PointsTable {
    /// The Delta table.
    pub location: TableLocation,
    /// Which sequence of positions the points belong to.
    pub incarnation: String,
    /// The `txn` application id of its commits.
    pub app_id: String,
    /// How its files are written.
    pub options: WriterOptions,
}

/// Knows which tables the next point has to name.
pub struct PointRecorder {
    changed: BTreeSet<u32>,
    points: mpsc::Sender<Vec<PointRow>>,
}

impl PointRecorder {
    /// A recorder whose first point names all `tables`.
    pub fn start(
        place: PointsTable,
        tables: impl Iterator<Item = u32>,
        tasks: &TaskTracker,
    ) -> PointRecorder {
        let (points, queue) = mpsc::channel(QUEUE);
        tasks.spawn(write_points(place, queue));
        PointRecorder { changed: tables.collect(), points }
    }

    /// The table has a new version, or came to or left the stream: the next point names it.
    pub fn changed(&mut self, relation: u32) {
        self.changed.insert(relation);
    }

    /// Every table of the cut at `point` has landed.
    pub async fn landed(
        &mut self,
        point: CommitPoint,
        tables: &HashMap<u32, LiveTable>,
    ) -> Result<(), SyncError> {
        let rows: Vec<PointRow> = std::mem::take(&mut self.changed)
            .into_iter()
            .filter_map(|relation| tables.get(&relation))
            .map(|table| PointRow {
                lsn: point.end_lsn,
                commit_time: point.commit_time,
                table: table.planned.name.clone(),
                version: table.version.filter(|_| table.is_at_the_cut()),
            })
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        self.points.send(rows).await.map_err(|_| SyncError::WriterGone)
    }
}

/// Ends with the recorder, or at the first failure, which ends the run: see the module's essay.
async fn write_points(place: PointsTable, mut queue: mpsc::Receiver<Vec<PointRow>>) {
    let mut table = None;
    while let Some(mut rows) = queue.recv().await {
        // What has piled up goes into one commit.
        while let Ok(more) = queue.try_recv() {
            rows.extend(more);
        }
        if let Err(error) = write(&place, &mut table, &rows).await {
            tracing::error!(table = place.location.uri(), error = %error_chain(&error), "consistent points cannot be written");
            return;
        }
    }
}

async fn write(
    place: &PointsTable,
    table: &mut Option<AppendTable>,
    rows: &[PointRow],
) -> Result<(), DeltaError> {
    let table = match table {
        Some(table) => table,
        none => {
            let opened = AppendTable::open(place.location.clone(), schema(), place.options.clone());
            none.insert(opened.await?)
        }
    };
    let newest = rows.iter().map(|row| row.lsn).max().unwrap_or_default();
    let spec = CommitSpec {
        app_id: place.app_id.clone(),
        version: newest.0.cast_signed(),
        info: Map::from_iter([("toLsn".to_owned(), Value::from(newest.to_string()))]),
    };
    table.append(&batch(&place.incarnation, rows)?, &spec).await.map(drop)
}

fn schema() -> SchemaRef {
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("incarnation", DataType::Utf8, true),
        Field::new("lsn", DataType::Int64, true),
        Field::new("commit_timestamp", timestamp, true),
        Field::new("table", DataType::Utf8, true),
        Field::new("version", DataType::Int64, true),
    ]))
}

fn batch(incarnation: &str, rows: &[PointRow]) -> Result<RecordBatch, DeltaError> {
    let committed =
        rows.iter().map(|row| (row.commit_time != 0).then(|| PgTimestamp(row.commit_time).unix_micros()));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|_| incarnation))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.lsn.0.cast_signed()))),
        Arc::new(committed.collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.table))),
        Arc::new(rows.iter().map(|row| row.version).collect::<Int64Array>()),
    ];
    RecordBatch::try_new(schema(), columns)
        .map_err(|source| DeltaError::Arrow { action: "write a consistent point", source })
}
