//! `tidewater.telemetry.dead_letters`: values that Delta cannot hold and that are null in the lake.
//!
//! A value of a table's rows becomes null only if `unrepresentable` allows it, and then its text is kept
//! here, with its row's key. **The invariant: the letter is in the lake before the row's own commit.** After a
//! crash in between the source sends the row again, and its letter stands here twice: never lost, seldom doubled.

use super::SyncError;
use super::plan::PlannedTable;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use delta_writer::{AppendTable, CommitSpec, DeltaError, Lake, TableLocation, WriterOptions};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Mutex;
use wal_decoder::{DeadLetter, Lsn};

/// Where the table lies below the lake. No database can be called `tidewater`.
const FOLDER: [&str; 3] = ["tidewater", "telemetry", "dead_letters"];

/// One database's way to the table, which all databases share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    database: String,
    app_id: String,
    location: TableLocation,
    options: WriterOptions,
    /// Opened by the first letter.
    table: Arc<Mutex<Option<AppendTable>>>,
}

impl DeadLetters {
    /// The way of `database`.
    pub fn new(lake: &Lake, instance: &str, database: &str, options: WriterOptions) -> DeadLetters {
        DeadLetters {
            database: database.to_owned(),
            app_id: format!("tidewater/{instance}/{database}/dead_letters"),
            location: lake.table(&FOLDER),
            options,
            table: Arc::default(),
        }
    }

    /// Puts letters of a table into the lake; `position` is where its source was read.
    pub async fn record(
        &self,
        table: &PlannedTable,
        letters: Vec<DeadLetter>,
        position: Lsn,
    ) -> Result<(), SyncError> {
        if letters.is_empty() {
            return Ok(());
        }
        report(table, &letters);
        let rows = self.batch(table, &letters, position)?;
        let spec = CommitSpec {
            app_id: self.app_id.clone(),
            version: position.0.cast_signed(),
            info: serde_json::Map::new(),
        };
        let mut open = self.table.lock().await;
        let mut letters = match open.take() {
            Some(opened) => opened,
            None => AppendTable::open(self.location.clone(), schema(), self.options.clone()).await?,
        };
        letters.append(&rows, &spec).await?;
        // After an error it is opened anew: what it knew of the log may be behind.
        *open = Some(letters);
        Ok(())
    }

    fn batch(
        &self,
        table: &PlannedTable,
        letters: &[DeadLetter],
        position: Lsn,
    ) -> Result<RecordBatch, DeltaError> {
        let now = chrono::Utc::now().timestamp_micros();
        let same = |text: &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(letters.iter().map(|_| text.to_owned())))
        };
        let each = |text: &dyn Fn(&DeadLetter) -> String| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(letters.iter().map(text)))
        };
        let columns: Vec<ArrayRef> = vec![
            same(&self.database),
            same(&table.name),
            each(&|letter| letter.key.clone()),
            each(&|letter| column_name(table, letter.column).to_owned()),
            each(&|letter| letter.value.clone()),
            each(&|letter| letter.reason.to_owned()),
            Arc::new(Int64Array::from_value(position.0.cast_signed(), letters.len())),
            Arc::new(TimestampMicrosecondArray::from_value(now, letters.len()).with_timezone("UTC")),
        ];
        RecordBatch::try_new(schema(), columns)
            .map_err(|source| DeltaError::Arrow { action: "write dead letters", source })
    }
}

fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        text("database"),
        text("table"),
        text("key"),
        text("column"),
        text("value"),
        text("reason"),
        Field::new("lsn", DataType::Int64, true),
        Field::new("recorded_at", timestamp, true),
    ]))
}

fn column_name(table: &PlannedTable, at: usize) -> &str {
    table.schema.columns.get(at).map_or("?", |column| column.source_name.as_str())
}

/// Says which columns lost values to null, and why: once a batch and column, not once a value.
fn report(table: &PlannedTable, letters: &[DeadLetter]) {
    let mut by_column: BTreeMap<(usize, &str), u64> = BTreeMap::new();
    for letter in letters {
        *by_column.entry((letter.column, letter.reason)).or_default() += 1;
    }
    for ((column, reason), count) in by_column {
        let column = column_name(table, column);
        tracing::warn!(table = %table.name, column, reason, count, "values that Delta cannot hold became null; tidewater.telemetry.dead_letters has them");
    }
}
