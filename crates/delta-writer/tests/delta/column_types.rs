//! Every type of the contract, written by us and read by delta-rs: as data, as statistics that let files be
//! skipped, as keys found again after the index is gone, and as values read back.

use arrow::array::*;
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Float32Type, Schema};
use delta_writer::{
    CommitSpec, MirrorTable, TableDefinition, TableKind, TableLoad, TableLocation, WriterOptions, open_lake,
};
use deltalake::datafusion::prelude::SessionContext;
use std::collections::BTreeMap;
use std::sync::Arc;
use tempfile::TempDir;
use url::Url;
use wal_decoder::{Op, RowChanges, UnchangedValue};

fn columns() -> Vec<(&'static str, ArrayRef)> {
    let floats = vec![Some(vec![Some(1.5_f32), None]), None, Some(vec![])];
    let mut texts =
        ListBuilder::new(StringBuilder::new()).with_field(Field::new("element", DataType::Utf8, true));
    texts.append_value([Some("a"), None]);
    texts.append_null();
    texts.append_value([Some("ü".repeat(200).as_str())]);
    let vectors = ListArray::from_iter_primitive::<Float32Type, _, _>(floats);
    let element = Arc::new(Field::new("element", DataType::Float32, true));
    let vectors = ListArray::new(
        element,
        vectors.offsets().clone(),
        vectors.values().clone(),
        vectors.nulls().cloned(),
    );
    vec![
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("short", Arc::new(Int16Array::from(vec![Some(i16::MIN), None, Some(i16::MAX)]))),
        ("int", Arc::new(Int32Array::from(vec![Some(i32::MIN), None, Some(i32::MAX)]))),
        ("long", Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(i64::MAX)]))),
        ("float", Arc::new(Float32Array::from(vec![Some(-0.0), None, Some(f32::INFINITY)]))),
        ("double", Arc::new(Float64Array::from(vec![Some(f64::NAN), None, Some(1e300)]))),
        (
            "decimal",
            Arc::new(
                Decimal128Array::from(vec![Some(-(10_i128.pow(38) - 1)), None, Some(10_i128.pow(38) - 1)])
                    .with_precision_and_scale(38, 9)
                    .unwrap(),
            ),
        ),
        (
            "small_decimal",
            Arc::new(
                Decimal128Array::from(vec![Some(-1), None, Some(99)]).with_precision_and_scale(4, 2).unwrap(),
            ),
        ),
        ("date", Arc::new(Date32Array::from(vec![Some(-700_000), None, Some(2_900_000)]))),
        ("at", Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), None, Some(1_700_000_000_123_456)]))),
        (
            "at_utc",
            Arc::new(
                TimestampMicrosecondArray::from(vec![Some(-1), None, Some(1_700_000_000_123_456)])
                    .with_timezone("UTC"),
            ),
        ),
        ("text", Arc::new(StringArray::from(vec![Some(""), None, Some("z".repeat(500).as_str())]))),
        ("bytes", Arc::new(BinaryArray::from_opt_vec(vec![Some(b"\0\xff"), None, Some(b"")]))),
        ("vector", Arc::new(vectors)),
        ("texts", Arc::new(texts.finish())),
    ]
}

struct Table {
    folder: TempDir,
    location: TableLocation,
    options: WriterOptions,
    schema: Arc<Schema>,
}

impl Table {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let lake = open_lake(folder.path().join("lake").to_str().unwrap(), &BTreeMap::new()).unwrap();
        let mut fields = vec![Field::new("id", DataType::Int64, true)];
        fields.extend(
            columns().iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)),
        );
        Self {
            location: lake.table(&["t"]),
            options: WriterOptions::new(folder.path().join("index")),
            schema: Arc::new(Schema::new(fields)),
            folder,
        }
    }

    fn rows(&self) -> RecordBatch {
        let mut all: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![0, 1, 2]))];
        all.extend(columns().into_iter().map(|(_, column)| column));
        RecordBatch::try_new(Arc::clone(&self.schema), all).unwrap()
    }

    async fn load(&self, key: Vec<usize>) -> MirrorTable {
        let definition = TableDefinition {
            schema: Arc::clone(&self.schema),
            kind: TableKind::Mirror,
            key,
            partition_by: Vec::new(),
            configuration: BTreeMap::new(),
            deletion_vectors: true,
        };
        let load = TableLoad::begin(self.location.clone(), definition, self.options.clone()).await.unwrap();
        let mut worker = load.worker();
        worker.write(self.rows()).await.unwrap();
        load.commit(vec![worker.finish().await.unwrap()], &spec(1)).await.unwrap()
    }

    async fn read(&self, filter: &str) -> RecordBatch {
        let url = Url::from_directory_path(self.folder.path().join("lake/t")).unwrap();
        let table = deltalake::open_table(url).await.unwrap();
        let context = SessionContext::new();
        context.register_table("t", table.table_provider().await.unwrap()).unwrap();
        let query = format!("SELECT * FROM t WHERE {filter} ORDER BY id");
        let batches = context.sql(&query).await.unwrap().collect().await.unwrap();
        let Some(first) = batches.first() else { return RecordBatch::new_empty(Arc::clone(&self.schema)) };
        let all = concat_batches(&first.schema(), &batches).unwrap();
        let cast =
            self.schema.fields().iter().zip(all.columns()).map(|(f, c)| cast(c, f.data_type()).unwrap());
        RecordBatch::try_new(Arc::clone(&self.schema), cast.collect()).unwrap()
    }
}

fn spec(version: i64) -> CommitSpec {
    CommitSpec { app_id: "tidewater/test".into(), version, info: Default::default() }
}

#[tokio::test]
async fn every_type_reads_as_it_was_written() {
    let table = Table::new();
    table.load(vec![0]).await;
    let (read, written) = (table.read("true").await, table.rows());
    for (read, (written, field)) in
        read.columns().iter().zip(written.columns().iter().zip(table.schema.fields()))
    {
        assert_eq!(format!("{read:?}"), format!("{written:?}"), "{}", field.name());
    }
}

#[tokio::test]
async fn statistics_never_hide_a_row() {
    let table = Table::new();
    table.load(vec![0]).await;
    let filters = [
        ("short = 32767", 1),
        ("int <= -2147483648", 1),
        ("long = 9223372036854775807", 1),
        ("double > 1e299", 2),
        ("float > 1e30", 1),
        ("at >= TIMESTAMP '2023-11-14 22:13:20.123456'", 1),
        ("at < TIMESTAMP '1970-01-01 00:00:00'", 1),
        ("at_utc >= TIMESTAMP '2023-11-14T22:13:20.123456Z'", 1),
        ("text > 'zz'", 1),
        ("text = ''", 1),
        ("date > DATE '2200-01-01'", 1),
        ("small_decimal >= 0.99", 1),
        ("text IS NULL", 1),
        ("bool", 1),
    ];
    for (filter, rows) in filters {
        assert_eq!(table.read(filter).await.num_rows(), rows, "{filter}");
    }
}

#[tokio::test]
async fn every_flat_type_is_a_key_that_a_new_index_finds_again() {
    let table = Table::new();
    let flat: Vec<usize> = (0..table.schema.fields().len())
        .filter(|&at| !table.schema.field(at).data_type().is_nested())
        .collect();
    drop(table.load(flat.clone()).await);
    std::fs::remove_dir_all(&table.options.index_dir).unwrap();
    let mut mirror = MirrorTable::open(table.location.clone(), table.options.clone()).await.unwrap().unwrap();
    let rows = table.rows();
    mirror
        .apply(RowChanges {
            old_keys: rows.project(&flat).unwrap(),
            rows: RecordBatch::new_empty(Arc::clone(&table.schema)),
            ops: vec![Op::Delete; 3],
            unchanged: Vec::new(),
        })
        .await
        .unwrap();
    let flush = mirror.write().await.unwrap().unwrap();
    assert_eq!(mirror.commit(flush, &spec(2)).await.unwrap().rows_deleted, 3);
    assert_eq!(table.read("true").await.num_rows(), 0);
}

#[tokio::test]
async fn every_type_is_read_back_where_an_update_left_it_untouched() {
    let table = Table::new();
    let mut mirror = table.load(vec![0]).await;
    let width = table.schema.fields().len();
    let mut columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![2, 0, 1]))];
    columns.extend((1..width).map(|at| new_null_array(table.schema.field(at).data_type(), 3)));
    let unchanged =
        (0..3).flat_map(|row| (1..width as u32).map(move |column| UnchangedValue { row, column })).collect();
    let key = table.schema.project(&[0]).unwrap();
    mirror
        .apply(RowChanges {
            rows: RecordBatch::try_new(Arc::clone(&table.schema), columns).unwrap(),
            old_keys: RecordBatch::new_empty(Arc::new(key)),
            ops: vec![Op::Update; 3],
            unchanged,
        })
        .await
        .unwrap();
    let flush = mirror.write().await.unwrap().unwrap();
    mirror.commit(flush, &spec(2)).await.unwrap();
    assert_eq!(format!("{:?}", table.read("true").await), format!("{:?}", table.rows()));
}
