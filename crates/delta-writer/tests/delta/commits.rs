//! Commits that meet trouble: lost answers, refusals, second daemons, foreign writers, crashes in between.

use crate::support;
use crate::support::Change::{Delete, Insert, Truncate, Update, UpdateKeepingNote};
use crate::support::faulty_store::{Fault, FaultyStore};
use crate::support::{Bench, definition, flush, row, rows_batch, spec};
use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use delta_writer::{DeltaError, Lake, MirrorTable, TableLocation, open_lake, probe_put_if_absent};
use deltalake::datafusion::prelude::SessionContext;
use object_location::LocationError;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use url::Url;

type Store = Arc<FaultyStore<LocalFileSystem>>;

/// A bench whose lake goes through a faulty store.
fn faulty_bench() -> (Bench, Store) {
    let mut bench = Bench::new();
    let folder = bench.folder.path().join("lake");
    let store = Arc::new(FaultyStore::new(LocalFileSystem::new_with_prefix(&folder).unwrap()));
    bench.lake = Lake::over(Arc::clone(&store) as _, Path::default(), "faulty");
    (bench, store)
}

fn commit_files(bench: &Bench) -> usize {
    let log = bench.folder.path().join("lake/shop/public/orders/_delta_log");
    let names = std::fs::read_dir(log).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().ends_with(".json")).count()
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_to_be_our_own() {
    let (bench, store) = faulty_bench();
    let mut table = bench.load(definition(), &[row(1, "DE", "x")]).await;
    store.fail_commits([Fault::AnswerLost]);
    let committed = flush(&mut table, &[Insert(row(2, "DE", "x"))], 2).await.unwrap().unwrap();
    assert_eq!(committed.version, 1);
    store.fail_commits([Fault::Refused, Fault::AnswerLost]);
    let committed = flush(&mut table, &[Delete(1)], 3).await.unwrap().unwrap();
    assert_eq!(committed.version, 2);
    assert_eq!((commit_files(&bench), bench.read().await), (3, vec![row(2, "DE", "x")]));
}

#[tokio::test]
async fn a_refused_commit_is_visible_and_can_be_repeated() {
    let (mut bench, store) = faulty_bench();
    bench.options.commit_attempts = 2;
    let mut table = bench.load(definition(), &[row(1, "DE", "x")]).await;
    table.apply(support::changes(&[Update(row(1, "DE", "y"))])).await.unwrap();
    let written = table.write().await.unwrap().unwrap();
    // All attempts of one call fail; the last one arrives, unknown to us.
    store.fail_commits([Fault::Refused]);
    store.fail_commits([Fault::AnswerLost]);
    let failure = table.commit(written, &spec(2)).await.unwrap_err();
    assert!(matches!(failure.error, DeltaError::Store { .. }), "{:?}", failure.error);
    let committed = table.commit(*failure.flush.unwrap(), &spec(2)).await.unwrap();
    assert_eq!((committed.version, commit_files(&bench)), (1, 2));
    flush(&mut table, &[Update(row(1, "DE", "z"))], 3).await.unwrap().unwrap();
    assert_eq!(bench.read().await, [row(1, "DE", "z")]);
}

#[tokio::test]
async fn an_abandoned_flush_that_arrived_after_all_stops_the_table_until_it_is_opened_again() {
    let (mut bench, store) = faulty_bench();
    bench.options.commit_attempts = 2;
    let mut table = bench.load(definition(), &[row(1, "DE", "x")]).await;
    table.apply(support::changes(&[Insert(row(2, "DE", "x"))])).await.unwrap();
    let written = table.write().await.unwrap().unwrap();
    store.fail_commits([Fault::Refused]);
    store.fail_commits([Fault::AnswerLost]);
    table.commit(written, &spec(2)).await.unwrap_err();
    table.abandon();
    let error = flush(&mut table, &[Insert(row(2, "DE", "x"))], 2).await.unwrap_err();
    assert!(matches!(error, DeltaError::UnexpectedState { .. }), "{error}");
    drop(table);
    let table = bench.open().await;
    assert_eq!((table.version(), table.txn(support::APP)), (1, Some(2)));
    assert_eq!(bench.read().await, [row(1, "DE", "x"), row(2, "DE", "x")]);
}

#[tokio::test]
async fn a_second_daemon_is_told_apart_and_nothing_is_acknowledged() {
    let mut bench = Bench::new();
    let mut first = bench.load(definition(), &[row(1, "DE", "x")]).await;
    bench.options.index_dir = bench.folder.path().join("another index");
    let mut second = bench.open().await;
    flush(&mut first, &[Insert(row(2, "DE", "first"))], 2).await.unwrap().unwrap();
    let error = flush(&mut second, &[Insert(row(2, "DE", "second"))], 2).await.unwrap_err();
    assert!(matches!(error, DeltaError::SecondWriter { version: 1, .. }), "{error}");
    let error = flush(&mut second, &[], 2).await.unwrap_err();
    assert!(matches!(error, DeltaError::UnexpectedState { .. }), "{error}");
    assert_eq!(bench.read().await, [row(1, "DE", "x"), row(2, "DE", "first")]);
}

#[tokio::test]
async fn a_commit_lists_and_reads_nothing_however_long_the_log() {
    let (bench, store) = faulty_bench();
    let mut table = bench.load(definition(), &[row(0, "DE", "x")]).await;
    for lsn in 2..40 {
        flush(&mut table, &[Insert(row(lsn, "DE", "x")), Update(row(0, "DE", "y"))], lsn)
            .await
            .unwrap()
            .unwrap();
    }
    let before = (store.lists.load(Ordering::SeqCst), store.gets.load(Ordering::SeqCst));
    flush(&mut table, &[Insert(row(100, "DE", "x")), Delete(7)], 100).await.unwrap().unwrap();
    assert_eq!((store.lists.load(Ordering::SeqCst), store.gets.load(Ordering::SeqCst)), before);
}

#[tokio::test]
async fn an_index_left_behind_by_a_crash_catches_up_with_the_table() {
    let mut bench = Bench::new();
    let mut table = bench.load(definition(), &(0..20).map(|id| row(id, "DE", "x")).collect::<Vec<_>>()).await;
    flush(&mut table, &[Update(row(1, "DE", "y"))], 2).await.unwrap().unwrap();
    drop(table);
    let saved = bench.folder.path().join("saved");
    support::copy_folder(&bench.options.index_dir, &saved);
    let mut table = bench.open().await;
    let list = [Update(row(1, "DE", "z")), Insert(row(50, "DE", "z")), Delete(3)];
    flush(&mut table, &list, 3).await.unwrap().unwrap();
    flush(&mut table, &[Delete(50), Update(row(4, "DE", "z"))], 4).await.unwrap().unwrap();
    drop(table);
    bench.options.index_dir = saved;
    let mut table = bench.open().await;
    let list = [Delete(1), Delete(4), Insert(row(50, "FR", "again")), UpdateKeepingNote(5, None)];
    flush(&mut table, &list, 5).await.unwrap().unwrap();
    let rows = bench.read().await;
    assert_eq!(rows.len(), 18);
    assert!(rows.contains(&row(50, "FR", "again")) && rows.contains(&(5, None, Some("x".into()))));
}

/// Puts every live row into one new file, last row first, as an OPTIMIZE of another engine would.
pub async fn foreign_optimize(bench: &Bench, table: &MirrorTable, data_change: bool) {
    let mut rows = bench.read().await;
    rows.reverse();
    replace_files(bench, table.version(), &rows_batch(&rows), data_change);
}

/// The same for a table with any columns.
pub async fn foreign_optimize_any(bench: &Bench, version: i64) {
    let url = Url::from_directory_path(bench.folder.path().join("lake/shop/public/orders")).unwrap();
    let table = deltalake::open_table(url).await.unwrap();
    let context = SessionContext::new();
    context.register_table("t", table.table_provider().await.unwrap()).unwrap();
    let batches = context.sql("SELECT * FROM t").await.unwrap().collect().await.unwrap();
    let all = concat_batches(&batches[0].schema(), &batches).unwrap();
    let backwards = UInt32Array::from_iter_values((0..all.num_rows() as u32).rev());
    replace_files(bench, version, &take_record_batch(&all, &backwards).unwrap(), false);
}

/// One commit by another engine that has `batch` in place of all files.
fn replace_files(bench: &Bench, version: i64, batch: &RecordBatch, data_change: bool) {
    let folder = bench.folder.path().join("lake/shop/public/orders");
    let name = format!("foreign-{version}.parquet");
    let file = std::fs::File::create(folder.join(&name)).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    let mut live: BTreeMap<String, Value> = BTreeMap::new();
    for version in 0..=version {
        let text = std::fs::read_to_string(folder.join(format!("_delta_log/{version:020}.json"))).unwrap();
        let actions: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for remove in actions.iter().filter_map(|action| action.get("remove")) {
            live.remove(remove["path"].as_str().unwrap());
        }
        for add in actions.iter().filter_map(|action| action.get("add")) {
            live.insert(add["path"].as_str().unwrap().to_owned(), add.clone());
        }
    }
    let mut lines = vec![
        json!({"commitInfo": {"engineInfo": "Apache-Spark/4.0", "operation": "OPTIMIZE", "timestamp": 1}}),
    ];
    for add in live.into_values() {
        let mut remove = json!({"path": add["path"], "dataChange": data_change, "deletionTimestamp": 1,
            "extendedFileMetadata": true, "partitionValues": add["partitionValues"], "size": add["size"]});
        if let Some(vector) = add.get("deletionVector") {
            remove["deletionVector"] = vector.clone();
        }
        lines.push(json!({"remove": remove}));
    }
    let size = std::fs::metadata(folder.join(&name)).unwrap().len();
    let stats = json!({"numRecords": batch.num_rows()}).to_string();
    lines.push(json!({"add": {"path": name, "dataChange": data_change, "modificationTime": 1, "size": size,
        "partitionValues": {}, "stats": stats}}));
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    let next = version + 1;
    std::fs::write(folder.join(format!("_delta_log/{next:020}.json")), lines.join("\n")).unwrap();
}

#[tokio::test]
async fn an_optimize_by_another_engine_is_followed() {
    let bench = Bench::new();
    let rows: Vec<_> = (0..10).map(|id| row(id, "DE", "x")).collect();
    let mut table = bench.load(definition(), &rows).await;
    flush(&mut table, &[Update(row(0, "DE", "y")), Delete(9)], 2).await.unwrap().unwrap();
    let list = [Delete(1), Update(row(2, "DE", "z")), Insert(row(11, "DE", "z")), Update(row(0, "DE", "z"))];
    table.apply(support::changes(&list)).await.unwrap();
    let written = table.write().await.unwrap().unwrap();
    foreign_optimize(&bench, &table, false).await;
    let committed = table.commit(written, &spec(3)).await.unwrap();
    assert_eq!(committed.version, 3);
    // Moved rows, rows of the flush and rows untouched by it are all found again.
    let list = [UpdateKeepingNote(3, None), Delete(11), Update(row(2, "DE", "last")), Delete(0)];
    flush(&mut table, &list, 4).await.unwrap().unwrap();
    let mut expected: Vec<_> = (4..9).map(|id| row(id, "DE", "x")).collect();
    expected.insert(0, (3, None, Some("x".into())));
    expected.insert(0, row(2, "DE", "last"));
    assert_eq!(bench.read().await, expected);
    drop(table);
    assert_eq!(bench.open().await.stats().rows, 7);
}

#[tokio::test]
async fn a_truncate_that_meets_an_optimize_empties_the_new_files_too() {
    let bench = Bench::new();
    let mut table = bench.load(definition(), &[row(1, "DE", "x"), row(2, "DE", "x")]).await;
    table.apply(support::changes(&[Delete(1), Truncate, Insert(row(1, "FR", "y"))])).await.unwrap();
    let written = table.write().await.unwrap().unwrap();
    foreign_optimize(&bench, &table, false).await;
    table.commit(written, &spec(2)).await.unwrap();
    assert_eq!(bench.read().await, [row(1, "FR", "y")]);
}

#[tokio::test]
async fn copy_on_write_starts_over_when_its_files_were_optimized_away() {
    let bench = Bench::new();
    let mut definition = definition();
    definition.deletion_vectors = false;
    let mut table = bench.load(definition, &[row(1, "DE", "x"), row(2, "DE", "x")]).await;
    table.apply(support::changes(&[Delete(1)])).await.unwrap();
    let written = table.write().await.unwrap().unwrap();
    foreign_optimize(&bench, &table, false).await;
    let failure = table.commit(written, &spec(2)).await.unwrap_err();
    assert!(failure.flush.is_none() && matches!(failure.error, DeltaError::RowsMoved { version: 1, .. }));
    drop(table);
    let mut table = bench.open().await;
    flush(&mut table, &[Delete(1)], 2).await.unwrap().unwrap();
    assert_eq!(bench.read().await, [row(2, "DE", "x")]);
}

#[tokio::test]
async fn rows_written_by_another_engine_stop_the_table_until_it_is_loaded_again() {
    let bench = Bench::new();
    let mut table = bench.load(definition(), &[row(1, "DE", "x"), row(2, "DE", "x")]).await;
    table.apply(support::changes(&[Delete(1)])).await.unwrap();
    let written = table.write().await.unwrap().unwrap();
    foreign_optimize(&bench, &table, true).await;
    let failure = table.commit(written, &spec(2)).await.unwrap_err();
    let is_named = |error: &DeltaError| matches!(error, DeltaError::ForeignWrite { version: 1, writer, .. } if writer.contains("Spark"));
    assert!(is_named(&failure.error), "{:?}", failure.error);
    drop(table);
    let error = MirrorTable::open(bench.location(), bench.options.clone()).await.unwrap_err();
    assert!(is_named(&error), "{error}");
    let table = bench.load(definition(), &[row(1, "DE", "x")]).await;
    assert_eq!(table.version(), 2);
    drop(table);
    assert_eq!(bench.open().await.version(), 2);
}

#[tokio::test]
async fn the_doctor_proves_conditional_puts_and_leaves_nothing_behind() {
    let bench = Bench::new();
    probe_put_if_absent(&bench.lake).await.unwrap();
    let probes = bench.folder.path().join("lake/_tidewater_probe");
    assert!(!probes.exists() || std::fs::read_dir(probes).unwrap().next().is_none());
}

#[tokio::test]
async fn a_store_nobody_supports_is_refused_by_name() {
    let error = open_lake("ftp://host/lake", &BTreeMap::new()).unwrap_err();
    assert!(error.to_string().contains("ftp://"), "{error}");
    let options = BTreeMap::from([("colour".to_owned(), "red".to_owned())]);
    let error = open_lake("s3://bucket/lake", &options).unwrap_err();
    assert!(
        matches!(&error, DeltaError::Location(LocationError::UnknownOption { option, .. }) if option == "colour"),
        "{error}"
    );
    let nowhere: TableLocation = Bench::new().lake.table(&["a", "b"]);
    let options = delta_writer::WriterOptions::new("unused");
    assert!(MirrorTable::open(nowhere, options).await.unwrap().is_none());
}
