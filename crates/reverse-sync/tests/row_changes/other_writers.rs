//! Tables that delta-rs and Tidewater write.

use crate::{every_range_leads_from_one_version_to_the_other, open};
use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use delta_writer::{CommitSpec, TableDefinition, TableKind, TableLoad, WriterOptions, open_lake};
use deltalake::datafusion::prelude::{col, lit};
use deltalake::kernel::{DataType as DeltaType, PrimitiveType, StructField};
use deltalake::{DeltaTable, DeltaTableBuilder};
use futures::TryStreamExt;
use reverse_sync::{ChangeKind, Detail, Part, ReverseSyncError, TableSource};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use wal_decoder::{Op, RowChanges};

fn batch(ids: impl Iterator<Item = i64> + Clone, text: &str) -> RecordBatch {
    let texts: ArrayRef =
        Arc::new(StringArray::from_iter_values(ids.clone().map(|id| format!("{text}{id}"))));
    let columns: [(&str, ArrayRef); 2] = [("id", Arc::new(Int64Array::from_iter_values(ids))), ("v", texts)];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, values)| (name, values, true))).unwrap()
}

async fn delta_rs_table(folder: &Path) -> DeltaTable {
    std::fs::create_dir_all(folder).unwrap();
    let url = deltalake::ensure_table_uri(folder.to_str().unwrap()).unwrap();
    let column = |name: &str, kind| StructField::new(name, DeltaType::Primitive(kind), true);
    let table = DeltaTableBuilder::from_url(url).unwrap().build().unwrap();
    let columns = [column("id", PrimitiveType::Long), column("v", PrimitiveType::String)];
    table.create().with_columns(columns).await.unwrap()
}

/// Ids and texts of what is told, with what happened.
async fn told(table: &TableSource, from: u64, to: u64, part: Part) -> Vec<(ChangeKind, i64, String)> {
    told_as(Detail::Net(vec!["id".to_owned()]), table, from, to, part).await
}

async fn told_as(
    detail: Detail,
    table: &TableSource,
    from: u64,
    to: u64,
    part: Part,
) -> Vec<(ChangeKind, i64, String)> {
    let mut changes = table.row_changes(Some(from), to, &part, detail).await.unwrap().stream;
    let mut told = Vec::new();
    while let Some(batch) = changes.try_next().await.unwrap() {
        let ids = batch.rows.column(0).as_primitive::<Int64Type>();
        let texts = batch.rows.column(1).as_string::<i32>();
        told.extend((0..ids.len()).map(|at| (batch.kind, ids.value(at), texts.value(at).to_owned())));
    }
    told
}

#[tokio::test]
async fn tables_of_delta_rs_are_told_from_their_copied_files() {
    let folder = tempfile::tempdir().unwrap();
    let table = delta_rs_table(folder.path()).await;
    let table = table.write([batch(0..40, "a")]).await.unwrap();
    let table = table.write([batch(40..60, "b")]).await.unwrap();
    let (table, _) = table.delete().with_predicate(col("id").gt(lit(50))).await.unwrap();
    let (table, _) = table.optimize().await.unwrap();
    let updated = table.update().with_predicate(col("id").eq(lit(7))).with_update("v", lit("changed"));
    let (table, _) = updated.await.unwrap();
    let (table, _) = table.restore().with_version_to_restore(2).await.unwrap();
    table.write([batch(60..61, "c")]).await.unwrap();
    every_range_leads_from_one_version_to_the_other(&open(folder.path()), "delta-rs", &["id"], &[]).await;
}

#[tokio::test]
async fn one_row_updated_in_a_large_copied_file_is_all_that_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let table = delta_rs_table(folder.path()).await;
    let table = table.write([batch(0..200_000, "a")]).await.unwrap();
    let updated = table.update().with_predicate(col("id").eq(lit(123_456))).with_update("v", lit("changed"));
    updated.await.unwrap();
    let table = open(folder.path());
    let expected = [
        (ChangeKind::UpdatePreimage, 123_456, "a123456".to_owned()),
        (ChangeKind::UpdatePostimage, 123_456, "changed".to_owned()),
    ];
    assert_eq!(told(&table, 1, 2, Part::default()).await, expected);
    let upserts = Detail::Upserts(vec!["id".to_owned()]);
    assert_eq!(told_as(upserts, &table, 1, 2, Part::default()).await, expected[1..]);
}

/// Rows of texts that do not compress, so that a file of them is large.
fn large_batch(ids: impl Iterator<Item = Option<i64>> + Clone) -> RecordBatch {
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    let mut text = |_| -> String {
        let mut letter = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'!' + (random >> 58) as u8)
        };
        (0..240).map(|_| letter()).collect()
    };
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(ids.clone().map(&mut text)));
    let columns: [(&str, ArrayRef); 2] = [("id", Arc::new(Int64Array::from_iter(ids))), ("v", texts)];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, values)| (name, values, true))).unwrap()
}

#[tokio::test]
async fn of_large_copied_files_just_the_rows_that_differ_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let table = delta_rs_table(folder.path()).await;
    // Some rows share their key, some have none.
    let ids = (0..30_000).map(|row| (row % 5_000 != 17).then_some(if row % 7_000 == 0 { 7 } else { row }));
    let table = table.write([large_batch(ids)]).await.unwrap();
    let several = col("id").eq(lit(7)).or(col("id").gt(lit(29_990))).or(col("id").is_null());
    let (table, _) = table.update().with_predicate(several).with_update("v", lit("changed")).await.unwrap();
    table
        .delete()
        .with_predicate(col("id").between(lit(100), lit(110)).or(col("id").is_null()))
        .await
        .unwrap();
    let source = open(folder.path());
    every_range_leads_from_one_version_to_the_other(&source, "large files", &["id"], &[]).await;
    let part = Part { columns: vec!["id".into(), "v".into()], filter: Some("id < 20 OR id > 29998".into()) };
    let mut found = told(&source, 1, 3, part).await;
    found.sort_by_key(|(kind, id, _)| (*id, !matches!(kind, ChangeKind::UpdatePreimage)));
    let kinds = found.iter().map(|(kind, id, _)| (*kind, *id)).collect::<Vec<_>>();
    let update = |id| [(ChangeKind::UpdatePreimage, id), (ChangeKind::UpdatePostimage, id)];
    // Six rows have the key 7: those of 7,000, 14,000 and so on, the first row, and its own.
    let expected: Vec<_> = std::iter::repeat_n(ChangeKind::UpdatePreimage, 6)
        .chain(std::iter::repeat_n(ChangeKind::UpdatePostimage, 6))
        .map(|kind| (kind, 7))
        .chain(update(29_999))
        .collect();
    assert_eq!(kinds, expected);
}

#[tokio::test]
async fn a_row_that_leaves_the_part_asked_for_is_deleted_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let table = delta_rs_table(folder.path()).await;
    let table = table.write([batch(0..10, "a")]).await.unwrap();
    let (table, _) =
        table.update().with_predicate(col("id").lt(lit(3))).with_update("v", lit("out")).await.unwrap();
    table.update().with_predicate(col("id").eq(lit(1))).with_update("v", lit("a1 again")).await.unwrap();
    let table = open(folder.path());
    let part =
        |filter: &str| Part { columns: vec!["id".into(), "v".into()], filter: Some(filter.to_owned()) };
    let mut found = told(&table, 1, 3, part("v LIKE 'a%'")).await;
    found.sort_by_key(|(_, id, _)| *id);
    let expected = [
        (ChangeKind::Delete, 0, "a0".to_owned()),
        (ChangeKind::UpdatePreimage, 1, "a1".to_owned()),
        (ChangeKind::UpdatePostimage, 1, "a1 again".to_owned()),
        (ChangeKind::Delete, 2, "a2".to_owned()),
    ];
    assert_eq!(found, expected);
    let error = table.snapshot(1, &part("nothing = 1")).await.unwrap_err();
    assert!(matches!(error, ReverseSyncError::Filter { .. }), "{error}");
    let error = table.snapshot(1, &Part { columns: vec!["x".into()], filter: None }).await.unwrap_err();
    assert!(matches!(error, ReverseSyncError::NoSuchColumn { .. }), "{error}");
}

#[tokio::test]
async fn a_table_made_anew_in_the_same_folder_is_not_taken_for_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("t");
    let table = delta_rs_table(&place).await;
    table.write([batch(0..10, "a")]).await.unwrap().write([batch(10..20, "a")]).await.unwrap();
    let source = open(&place);
    let latest = source.latest_version().await.unwrap();
    let id = source.table_at(latest).await.unwrap().id.clone();
    std::fs::remove_dir_all(&place).unwrap();
    assert!(matches!(source.latest_version().await, Err(ReverseSyncError::NoTable { .. })));
    let table = delta_rs_table(&place).await;
    let table = table.write([batch(0..1, "b")]).await.unwrap();
    table.write([batch(1..2, "b")]).await.unwrap().write([batch(2..3, "b")]).await.unwrap();
    assert_eq!(source.latest_version().await.unwrap(), latest + 1);
    assert_ne!(source.table_at(latest).await.unwrap().id, id);
    let rows: Vec<_> =
        source.snapshot(latest, &Part::default()).await.unwrap().stream.try_collect().await.unwrap();
    assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
}

#[tokio::test]
async fn versions_that_are_not_there_say_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let table = delta_rs_table(folder.path()).await;
    table.write([batch(0..10, "a")]).await.unwrap();
    let source = open(folder.path());
    let error = source.table_at(2).await.unwrap_err();
    assert!(matches!(error, ReverseSyncError::NoSuchVersion { version: 2, latest: 1, .. }), "{error:?}");
    std::fs::remove_file(folder.path().join("_delta_log/00000000000000000000.json")).unwrap();
    let error = open(folder.path()).table_at(0).await.unwrap_err();
    assert!(error.unavailable().is_some(), "{error:?}");
}

/// A change to a row of two columns.
fn change(op: Op, id: i64, text: &str) -> RowChanges {
    let key = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true)]));
    let (rows, old) = match op {
        Op::Delete => (batch(0..0, ""), vec![id]),
        _ => (batch(id..id + 1, text), vec![]),
    };
    RowChanges {
        rows,
        old_keys: RecordBatch::try_new(key, vec![Arc::new(Int64Array::from(old))]).unwrap(),
        ops: vec![op],
        unchanged: Vec::new(),
    }
}

#[tokio::test]
async fn a_mirror_of_tidewater_is_told_from_its_deletion_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let lake = open_lake(folder.path().join("lake").to_str().unwrap(), &BTreeMap::new()).unwrap();
    let definition = TableDefinition {
        schema: batch(0..0, "").schema(),
        kind: TableKind::Mirror,
        key: vec![0],
        partition_by: Vec::new(),
        configuration: BTreeMap::new(),
        deletion_vectors: true,
    };
    let spec = |version| CommitSpec {
        app_id: "tidewater/test/shop/t/1".to_owned(),
        version,
        info: serde_json::Map::new(),
    };
    let options = WriterOptions::new(folder.path().join("index"));
    let load = TableLoad::begin(lake.table(&["t"]), definition, options).await.unwrap();
    let mut worker = load.worker();
    worker.write(batch(0..30, "first")).await.unwrap();
    let mut table = load.commit(vec![worker.finish().await.unwrap()], &spec(1)).await.unwrap();
    let list = [
        change(Op::Update, 3, "once"),
        change(Op::Update, 3, "twice"),
        change(Op::Delete, 4, ""),
        change(Op::Insert, 100, "new"),
        change(Op::Delete, 100, ""),
    ];
    for (lsn, change) in (2..).zip(list) {
        table.apply(change).await.unwrap();
        let flush = table.write().await.unwrap().unwrap();
        assert!(table.commit(flush, &spec(lsn)).await.is_ok());
    }
    let source = open(&folder.path().join("lake/t"));
    every_range_leads_from_one_version_to_the_other(&source, "a mirror", &["id"], &[]).await;
    let expected = [
        (ChangeKind::Delete, 4, "first4".to_owned()),
        (ChangeKind::UpdatePreimage, 3, "first3".to_owned()),
        (ChangeKind::UpdatePostimage, 3, "twice3".to_owned()),
    ];
    assert_eq!(told(&source, 0, 5, Part::default()).await, expected);
}
