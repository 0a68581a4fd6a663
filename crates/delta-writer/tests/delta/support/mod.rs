//! What the table tests share: a table of three columns, changes to it, and a reader that is not ours.
pub mod faulty_store;
pub mod model;
pub mod s3_service;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use delta_writer::{
    CommitSpec, Committed, DeltaError, Lake, MirrorTable, TableDefinition, TableKind, TableLoad,
    TableLocation, WriterOptions, open_lake,
};
use deltalake::datafusion::prelude::SessionContext;
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use tempfile::TempDir;
use url::Url;
use wal_decoder::{Op, RowChanges, UnchangedValue};

pub const APP: &str = "tidewater/test/shop/orders/1";

/// A row of the test table: id, country (the partition column where there is one), note.
pub type Row = (i64, Option<String>, Option<String>);

pub fn row(id: i64, country: &str, note: &str) -> Row {
    (id, Some(country.to_owned()), Some(note.to_owned()))
}

pub fn hundred_rows() -> Vec<Row> {
    (0..100).map(|id| row(id, "DE", "first")).collect()
}

pub fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("country", DataType::Utf8, true),
        Field::new("note", DataType::Utf8, true),
    ]))
}

pub fn definition() -> TableDefinition {
    TableDefinition {
        schema: schema(),
        kind: TableKind::Mirror,
        key: vec![0],
        partition_by: Vec::new(),
        configuration: BTreeMap::from([("tidewater.source_name".into(), "public.orders".into())]),
        deletion_vectors: true,
    }
}

pub fn rows_batch(rows: &[Row]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
        Arc::new(StringArray::from_iter(rows.iter().map(|row| row.1.as_deref()))),
        Arc::new(StringArray::from_iter(rows.iter().map(|row| row.2.as_deref()))),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// A change as a test writes it down.
#[derive(Debug, Clone)]
pub enum Change {
    Insert(Row),
    Update(Row),
    /// The note stays what it is.
    UpdateKeepingNote(i64, Option<String>),
    UpdateKey(i64, Row),
    Delete(i64),
    Truncate,
}

pub fn changes(list: &[Change]) -> RowChanges {
    let (mut rows, mut old, mut ops, mut unchanged) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for change in list {
        let op = match change.clone() {
            Change::Insert(row) => {
                rows.push(row);
                Op::Insert
            }
            Change::Update(row) => {
                rows.push(row);
                Op::Update
            }
            Change::UpdateKeepingNote(id, country) => {
                unchanged.push(UnchangedValue { row: rows.len() as u32, column: 2 });
                rows.push((id, country, None));
                Op::Update
            }
            Change::UpdateKey(id, row) => {
                old.push(id);
                rows.push(row);
                Op::UpdateKey
            }
            Change::Delete(id) => {
                old.push(id);
                Op::Delete
            }
            Change::Truncate => Op::Truncate,
        };
        ops.push(op);
    }
    let key = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true)]));
    RowChanges {
        rows: rows_batch(&rows),
        old_keys: RecordBatch::try_new(key, vec![Arc::new(Int64Array::from(old))]).unwrap(),
        ops,
        unchanged,
    }
}

pub fn spec(lsn: i64) -> CommitSpec {
    CommitSpec {
        app_id: APP.into(),
        version: lsn,
        info: Map::from_iter([("lsnRange".to_owned(), json!(["0/0", lsn.to_string()]))]),
    }
}

/// A lake in a temporary folder, with one table's settings.
pub struct Bench {
    pub folder: TempDir,
    pub lake: Lake,
    pub options: WriterOptions,
}

impl Bench {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let lake = open_lake(folder.path().join("lake").to_str().unwrap(), &BTreeMap::new()).unwrap();
        let options = WriterOptions::new(folder.path().join("index"));
        Self { folder, lake, options }
    }

    pub fn location(&self) -> TableLocation {
        self.lake.table(&["shop", "public", "orders"])
    }

    pub async fn load(&self, definition: TableDefinition, rows: &[Row]) -> MirrorTable {
        let load = TableLoad::begin(self.location(), definition, self.options.clone()).await.unwrap();
        let mut workers = Vec::new();
        for part in rows.chunks(rows.len().div_ceil(2).max(1)) {
            let mut worker = load.worker();
            worker.write(rows_batch(part)).await.unwrap();
            workers.push(worker.finish().await.unwrap());
        }
        load.commit(workers, &spec(1)).await.unwrap()
    }

    /// Loads [`hundred_rows`] into ten files: more small ones than a table should have.
    pub async fn load_many_files(&self, definition: TableDefinition) -> MirrorTable {
        let load = TableLoad::begin(self.location(), definition, self.options.clone()).await.unwrap();
        let mut workers = Vec::new();
        for part in hundred_rows().chunks(10) {
            let mut worker = load.worker();
            worker.write(rows_batch(part)).await.unwrap();
            workers.push(worker.finish().await.unwrap());
        }
        load.commit(workers, &spec(1)).await.unwrap()
    }

    pub async fn open(&self) -> MirrorTable {
        MirrorTable::open(self.location(), self.options.clone()).await.unwrap().unwrap()
    }

    /// The newest version, as delta-rs and DataFusion read it, in key order.
    pub async fn read(&self) -> Vec<Row> {
        self.read_version(None).await
    }

    pub async fn read_version(&self, version: Option<u64>) -> Vec<Row> {
        let url = Url::from_directory_path(self.folder.path().join("lake/shop/public/orders")).unwrap();
        let mut table = deltalake::open_table(url).await.unwrap();
        if let Some(version) = version {
            table.load_version(version).await.unwrap();
        }
        let context = SessionContext::new();
        context.register_table("t", table.table_provider().await.unwrap()).unwrap();
        let frame = context.sql("SELECT id, country, note FROM t ORDER BY id, note").await.unwrap();
        let mut rows = Vec::new();
        for batch in frame.collect().await.unwrap() {
            let text = |at: usize| {
                let column = arrow::compute::cast(batch.column(at), &DataType::Utf8).unwrap();
                column.as_string::<i32>().iter().map(|value| value.map(str::to_owned)).collect::<Vec<_>>()
            };
            let ids = batch.column(0).as_primitive::<Int64Type>().values().to_vec();
            for ((id, country), note) in ids.into_iter().zip(text(1)).zip(text(2)) {
                rows.push((id, country, note));
            }
        }
        rows
    }
}

/// Applies, writes and commits.
pub async fn flush(
    table: &mut MirrorTable,
    list: &[Change],
    lsn: i64,
) -> Result<Option<Committed>, DeltaError> {
    table.apply(changes(list)).await?;
    match table.write().await? {
        Some(flush) => Ok(Some(table.commit(flush, &spec(lsn)).await.map_err(|failure| failure.error)?)),
        None => Ok(None),
    }
}

/// Copies a folder with everything below it.
pub fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
