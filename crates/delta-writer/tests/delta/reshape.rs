//! Columns that come, go and change their names, judged by delta-rs with DataFusion.

use crate::support::Change::{Delete, Insert, Truncate, Update};
use crate::support::{Bench, Row, changes, definition, flush, row, rows_batch, spec};
use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::array_value_to_string;
use delta_writer::{
    ColumnOrigin, DeltaError, HistoryDifference, MirrorTable, Reshape, TableDefinition, TableKind, TableLoad,
    history_schema, loaded_rows,
};
use deltalake::datafusion::prelude::SessionContext;
use std::sync::Arc;
use url::Url;
use wal_decoder::{ChangeOrigin, Lsn, Op, PgTimestamp, RowChanges};

fn with_fields(fields: Vec<Field>) -> TableDefinition {
    TableDefinition { schema: Arc::new(Schema::new(fields)), ..definition() }
}

/// `id, country, note` and a number that the rows so far do not have.
fn with_number() -> Reshape {
    let fields = vec![
        Field::new("id", DataType::Int64, true),
        Field::new("country", DataType::Utf8, true),
        Field::new("note", DataType::Utf8, true),
        Field::new("number", DataType::Int32, true),
    ];
    let origins =
        vec![ColumnOrigin::Kept(0), ColumnOrigin::Kept(1), ColumnOrigin::Kept(2), ColumnOrigin::Null];
    Reshape { definition: with_fields(fields), origins }
}

/// `id, remark, stars`: the country is gone, the note is called otherwise, and every row so far has five stars.
fn without_country() -> Reshape {
    let fields = vec![
        Field::new("id", DataType::Int64, true),
        Field::new("remark", DataType::Utf8, true),
        Field::new("stars", DataType::Int32, true),
    ];
    let five: ArrayRef = Arc::new(Int32Array::from(vec![5]));
    let origins = vec![ColumnOrigin::Kept(0), ColumnOrigin::Kept(2), ColumnOrigin::Constant(five)];
    Reshape { definition: with_fields(fields), origins }
}

/// Inserts and updates of rows `(id, text, number)` in the shape of a reshape; the text is its last text column.
fn rows_of(reshape: &Reshape, ops: &[(Op, i64, &str, i32)]) -> RowChanges {
    let schema = Arc::clone(&reshape.definition.schema);
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(ops.iter().map(|op| op.1)));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(ops.iter().map(|op| op.2)));
    let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values(ops.iter().map(|op| op.3)));
    let columns = match schema.fields().len() {
        3 => vec![ids, texts, numbers],
        _ => vec![ids, Arc::clone(&texts), texts, numbers],
    };
    let key = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true)]));
    RowChanges {
        rows: RecordBatch::try_new(schema, columns).unwrap(),
        old_keys: RecordBatch::new_empty(key),
        ops: ops.iter().map(|op| op.0).collect(),
        unchanged: Vec::new(),
    }
}

async fn commit(table: &mut MirrorTable, lsn: i64) -> delta_writer::Committed {
    let flush = table.write().await.unwrap().unwrap();
    table.commit(flush, &spec(lsn)).await.unwrap()
}

/// Every row as `a|b|c`, nulls as `-`.
async fn read(bench: &Bench, columns: &str) -> Vec<String> {
    let url = Url::from_directory_path(bench.folder.path().join("lake/shop/public/orders")).unwrap();
    let table = deltalake::open_table(url).await.unwrap();
    let context = SessionContext::new();
    context.register_table("t", table.table_provider().await.unwrap()).unwrap();
    let frame = context.sql(&format!("SELECT {columns} FROM t ORDER BY id")).await.unwrap();
    let mut rows = Vec::new();
    for batch in frame.collect().await.unwrap() {
        for at in 0..batch.num_rows() {
            let text = |column: &ArrayRef| match column.is_null(at) {
                true => "-".to_owned(),
                false => array_value_to_string(column, at).unwrap(),
            };
            rows.push(batch.columns().iter().map(text).collect::<Vec<_>>().join("|"));
        }
    }
    rows
}

fn three_rows() -> Vec<Row> {
    (1..=3).map(|id| row(id, "DE", "old")).collect()
}

#[tokio::test]
async fn a_column_that_joins_costs_no_file_and_stands_in_order_with_the_rows_around_it() {
    let bench = Bench::new();
    let mut table = bench.load(definition(), &three_rows()).await;
    table.apply(changes(&[Insert(row(10, "FR", "before")), Update(row(1, "DE", "before"))])).await.unwrap();
    let reshape = with_number();
    table.reshape(reshape.clone()).await.unwrap();
    let after = [(Op::Insert, 11, "after", 7), (Op::Update, 10, "again", 8), (Op::Update, 2, "again", 9)];
    table.apply(rows_of(&reshape, &after)).await.unwrap();
    let committed = commit(&mut table, 2).await;
    // One vector on the loaded file: nothing was rewritten.
    assert_eq!((committed.version, committed.files_removed), (1, 1));
    let expected = ["1|before|-", "2|again|9", "3|old|-", "10|again|8", "11|after|7"];
    assert_eq!(read(&bench, "id, note, number").await, expected);
    assert_eq!(bench.read_version(Some(0)).await, three_rows());

    drop(table);
    let mut table = bench.open().await;
    assert_eq!(table.definition().schema, reshape.definition.schema);
    table.apply(rows_of(&reshape, &[(Op::Update, 3, "late", 1)])).await.unwrap();
    commit(&mut table, 3).await;
    assert_eq!(read(&bench, "id, note, number").await[2], "3|late|1");
}

async fn a_rewrite_carries_every_live_row(base: TableDefinition) {
    let bench = Bench::new();
    let mut rows = three_rows();
    rows.extend((4..=6).map(|id| row(id, "FR", "old")));
    let mut table = bench.load(base.clone(), &rows).await;
    flush(&mut table, &[Delete(4), Update(row(5, "FR", "committed"))], 2).await.unwrap().unwrap();
    let before = [Insert(row(10, "IT", "before")), Update(row(1, "DE", "before")), Delete(2)];
    table.apply(changes(&before)).await.unwrap();
    let mut reshape = without_country();
    reshape.definition.deletion_vectors = base.deletion_vectors;
    table.reshape(reshape.clone()).await.unwrap();
    let after = [(Op::Insert, 11, "after", 1), (Op::Update, 10, "again", 2), (Op::Update, 3, "again", 3)];
    table.apply(rows_of(&reshape, &after)).await.unwrap();
    commit(&mut table, 3).await;
    let expected = ["1|before|5", "3|again|3", "5|committed|5", "6|old|5", "10|again|2", "11|after|1"];
    assert_eq!(read(&bench, "id, remark, stars").await, expected);
    assert_eq!(table.stats().rows, 6);
    assert_eq!(bench.read_version(Some(0)).await, rows);

    // The index followed: also when it is lost, and built anew from the new files.
    table.apply(rows_of(&reshape, &[(Op::Update, 6, "late", 6)])).await.unwrap();
    commit(&mut table, 4).await;
    drop(table);
    std::fs::remove_dir_all(&bench.options.index_dir).unwrap();
    let mut table = bench.open().await;
    table.apply(rows_of(&reshape, &[(Op::Update, 5, "late", 0)])).await.unwrap();
    commit(&mut table, 5).await;
    let expected = ["1|before|5", "3|again|3", "5|late|0", "6|late|6", "10|again|2", "11|after|1"];
    assert_eq!(read(&bench, "id, remark, stars").await, expected);
}

#[tokio::test]
async fn a_rewrite_for_columns_that_go_carries_rows_of_its_own_flush_and_leaves_deleted_ones_out() {
    a_rewrite_carries_every_live_row(definition()).await;
}

#[tokio::test]
async fn a_rewrite_needs_no_deletion_vectors() {
    a_rewrite_carries_every_live_row(TableDefinition { deletion_vectors: false, ..definition() }).await;
}

#[tokio::test]
async fn a_rewrite_keeps_every_row_in_its_partition() {
    let bench = Bench::new();
    let base = TableDefinition { partition_by: vec!["country".into()], ..definition() };
    let rows: Vec<Row> = (1..=40).map(|id| row(id, ["DE", "FR"][id as usize % 2], "old")).collect();
    let mut table = bench.load(base, &rows).await;
    let mut reshape = with_number();
    reshape.definition.partition_by = vec!["country".into()];
    reshape.origins[3] = ColumnOrigin::Constant(Arc::new(Int32Array::from(vec![5])));
    table.reshape(reshape).await.unwrap();
    let committed = commit(&mut table, 2).await;
    assert_eq!(committed.files_added, 2);
    assert_eq!(bench.read().await, rows);
    assert!(read(&bench, "id, number").await.iter().all(|row| row.ends_with("|5")));
}

#[tokio::test]
async fn a_table_without_a_key_takes_another_shape_too() {
    let bench = Bench::new();
    let keyless = TableDefinition { key: Vec::new(), ..definition() };
    let mut table = bench.load(keyless, &[row(1, "DE", "x"), row(1, "DE", "x")]).await;
    let mut reshape = without_country();
    reshape.definition.key = Vec::new();
    table.reshape(reshape).await.unwrap();
    commit(&mut table, 2).await;
    assert_eq!(read(&bench, "id, remark, stars").await, ["1|x|5", "1|x|5"]);
}

#[tokio::test]
async fn two_shapes_in_one_flush_are_one_version() {
    let bench = Bench::new();
    let mut table = bench.load(definition(), &three_rows()).await;
    let first = with_number();
    table.reshape(first.clone()).await.unwrap();
    table.apply(rows_of(&first, &[(Op::Update, 1, "between", 7)])).await.unwrap();
    let fields = vec![
        Field::new("id", DataType::Int64, true),
        Field::new("note", DataType::Utf8, true),
        Field::new("count", DataType::Int32, true),
    ];
    let origins = vec![ColumnOrigin::Kept(0), ColumnOrigin::Kept(2), ColumnOrigin::Kept(3)];
    table.reshape(Reshape { definition: with_fields(fields), origins }).await.unwrap();
    let committed = commit(&mut table, 2).await;
    assert_eq!((committed.version, committed.rows_added, committed.rows_deleted), (1, 1, 1));
    assert_eq!(read(&bench, "id, note, count").await, ["1|between|7", "2|old|-", "3|old|-"]);
}

#[tokio::test]
async fn a_flush_that_is_given_up_leaves_the_shape_as_it_was() {
    let bench = Bench::new();
    let mut table = bench.load(definition(), &three_rows()).await;
    table.reshape(without_country()).await.unwrap();
    table.abandon();
    assert_eq!(table.definition().schema, definition().schema);
    flush(&mut table, &[Update(row(1, "DE", "new"))], 2).await.unwrap().unwrap();
    assert_eq!(bench.read().await[0], row(1, "DE", "new"));
}

#[tokio::test]
async fn a_shape_with_another_key_is_refused() {
    let bench = Bench::new();
    let mut table = bench.load(definition(), &three_rows()).await;
    let mut reshape = with_number();
    reshape.definition.key = vec![1];
    let error = table.reshape(reshape).await.unwrap_err();
    assert!(matches!(error, DeltaError::BadDefinition { .. }), "{error}");
}

/// A reshape as a history beside the mirror takes it: its own columns stay behind the source's.
fn of_history(reshape: Reshape, known: usize) -> Reshape {
    let Reshape { mut definition, mut origins } = reshape;
    definition.schema = history_schema(&definition.schema);
    definition.kind = TableKind::History;
    definition.deletion_vectors = false;
    origins.extend((known..known + 5).map(ColumnOrigin::Kept));
    Reshape { definition, origins }
}

fn history() -> TableDefinition {
    of_history(Reshape::with_same_columns(definition()), 3).definition
}

/// Changes of a source in the shape of `reshape`, all of one transaction.
async fn record(table: &mut MirrorTable, changes: RowChanges, lsn: u64) {
    let origins: Vec<ChangeOrigin> = (1..=changes.ops.len() as i64)
        .map(|seq| ChangeOrigin { commit_lsn: Lsn(lsn), commit_time: PgTimestamp(0), xid: 700, seq })
        .collect();
    table.record(changes, &origins).await.unwrap();
}

/// Every row of a history in the order of time.
async fn read_history(bench: &Bench, columns: &str) -> Vec<String> {
    let time = "lpad(cast(_pg_lsn as text), 3, '0') || '.' || cast(_pg_seq as text) AS time";
    let mut rows = read(bench, &format!("{time}, _pg_change_type, {columns}")).await;
    rows.sort();
    rows
}

async fn load_history(bench: &Bench) -> MirrorTable {
    let load = TableLoad::begin(bench.location(), history(), bench.options.clone()).await.unwrap();
    let mut worker = load.worker();
    worker.write(loaded_rows(&rows_batch(&three_rows()), Lsn(1)).unwrap()).await.unwrap();
    load.commit(vec![worker.finish().await.unwrap()], &spec(1)).await.unwrap()
}

#[tokio::test]
async fn a_history_takes_its_sources_new_columns_and_still_knows_the_newest_row_of_each_key() {
    let bench = Bench::new();
    let mut table = load_history(&bench).await;
    record(&mut table, changes(&[Update(row(1, "DE", "b")), Delete(2), Truncate]), 10).await;
    record(&mut table, changes(&[Insert(row(1, "DE", "c")), Insert(row(4, "FR", "c"))]), 20).await;
    commit(&mut table, 20).await;
    record(&mut table, changes(&[Update(row(4, "FR", "d"))]), 30).await;
    let reshape = without_country();
    table.reshape(of_history(reshape.clone(), 3)).await.unwrap();
    record(&mut table, rows_of(&reshape, &[(Op::Update, 4, "e", 6), (Op::Update, 1, "e", 7)]), 40).await;
    let committed = commit(&mut table, 40).await;
    assert_eq!((committed.rows_added, committed.rows_deleted), (2 + 4, 0));
    let expected = [
        "001.0|insert|1|old|5",
        "001.0|insert|2|old|5",
        "001.0|insert|3|old|5",
        "010.1|update_preimage|1|old|5",
        "010.2|update_postimage|1|b|5",
        "010.4|delete|2|old|5",
        // Of nothing, so without the default.
        "010.6|truncate|-|-|-",
        "020.2|insert|1|c|5",
        "020.4|insert|4|c|5",
        "030.1|update_preimage|4|c|5",
        "030.2|update_postimage|4|d|5",
        "040.1|update_preimage|4|d|5",
        "040.2|update_postimage|4|e|6",
        "040.3|update_preimage|1|c|5",
        "040.4|update_postimage|1|e|7",
    ];
    assert_eq!(read_history(&bench, "id, remark, stars").await, expected);

    // The index followed: also when it is lost, and built anew from the new files.
    for lose_index in [false, true] {
        drop(table);
        if lose_index {
            std::fs::remove_dir_all(&bench.options.index_dir).unwrap();
        }
        table = bench.open().await;
        let (lsn, text) = if lose_index { (60, "g") } else { (50, "f") };
        record(&mut table, rows_of(&reshape, &[(Op::Update, 1, text, 8)]), lsn).await;
        commit(&mut table, 60).await;
    }
    let late = read_history(&bench, "id, remark, stars").await;
    assert_eq!(late[15], "050.1|update_preimage|1|e|7");
    assert_eq!(late[17], "060.1|update_preimage|1|f|8");
    let first = bench.read_version(Some(0)).await;
    assert_eq!(first.len(), 3, "the first version keeps its columns");
}

#[tokio::test]
async fn a_history_that_is_compared_with_its_source_takes_that_ones_columns_first() {
    let bench = Bench::new();
    drop(load_history(&bench).await);
    let reshape = without_country();
    let wanted = of_history(reshape.clone(), 3);
    let origins = |_: &TableDefinition| Some(wanted.origins.clone());
    let location = bench.location();
    let begun =
        HistoryDifference::begin(location, &wanted.definition, bench.options.clone(), Lsn(50), origins);
    let difference = begun.await.unwrap().unwrap();
    // Of the three rows one is as it was, one was updated, one is gone; a fourth came.
    let snapshot = [(Op::Insert, 1, "old", 5), (Op::Insert, 2, "new", 5), (Op::Insert, 4, "new", 9)];
    difference.worker().write(rows_of(&reshape, &snapshot).rows).await.unwrap();
    let mut table = difference.commit(&spec(50)).await.unwrap();
    let expected = [
        "001.0|insert|1|old|5",
        "001.0|insert|2|old|5",
        "001.0|insert|3|old|5",
        "050.-1|update_preimage|2|old|5",
        "050.0|delete|3|old|5",
        "050.0|insert|4|new|9",
        "050.0|update_postimage|2|new|5",
    ];
    assert_eq!(read_history(&bench, "id, remark, stars").await, expected);
    record(&mut table, rows_of(&reshape, &[(Op::Update, 1, "later", 5)]), 60).await;
    commit(&mut table, 60).await;
    assert_eq!(read_history(&bench, "id, remark").await[7], "060.1|update_preimage|1|old");
}
