//! The writer over S3: conditional puts, multipart uploads, escaped names, lost answers.

mod support;

use delta_writer::{Lake, probe_put_if_absent};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use std::sync::Arc;
use support::Change::{Delete, Insert, Truncate, Update, UpdateKeepingNote};
use support::faulty_store::{Fault, FaultyStore};
use support::s3_service::s3_store;
use support::{Bench, Row, definition, flush, row};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_64_racing_conditional_puts_exactly_one_wins() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = Arc::new(s3_store(folder.path()));
    for round in 0..8 {
        let mut race = JoinSet::new();
        for racer in 0..64 {
            let store = Arc::clone(&store);
            race.spawn(async move {
                let path = Path::from(format!("race/{round}"));
                store.put_opts(&path, format!("{racer}").into(), PutMode::Create.into()).await
            });
        }
        let outcomes = race.join_all().await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        let exists = |error: &object_store::Error| matches!(error, object_store::Error::AlreadyExists { .. });
        assert!(
            outcomes.iter().all(|outcome| outcome.as_ref().map_or_else(exists, |_| true)),
            "{outcomes:?}"
        );
    }
    probe_put_if_absent(&Lake::over(store, Path::default(), "s3://lake")).await.unwrap();
}

/// A bench whose lake is in S3. The bucket `lake` is the folder `lake`, so that readers find the table there.
fn s3_bench() -> (Bench, Arc<FaultyStore<object_store::aws::AmazonS3>>) {
    let mut bench = Bench::new();
    let store = Arc::new(FaultyStore::new(s3_store(bench.folder.path())));
    bench.lake = Lake::over(Arc::clone(&store) as _, Path::default(), "s3://lake");
    (bench, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_in_s3_lives_as_one_on_disk_does() {
    let (bench, store) = s3_bench();
    let mut definition = definition();
    definition.partition_by = vec!["country".into()];
    let rows: Vec<Row> = (0..20).map(|id| row(id, if id % 2 == 0 { "a/b %" } else { "ü" }, "x")).collect();
    let mut table = bench.load(definition, &rows).await;
    assert_eq!(bench.read().await, rows);
    store.fail_commits([Fault::AnswerLost, Fault::Refused, Fault::AnswerLost]);
    flush(&mut table, &[Delete(0), Update(row(1, "ü", "y"))], 2).await.unwrap().unwrap();
    flush(&mut table, &[UpdateKeepingNote(1, None), Insert(row(0, "ü", "back"))], 3).await.unwrap().unwrap();
    table.checkpoint().write().await.unwrap();
    drop(table);
    std::fs::remove_dir_all(&bench.options.index_dir).unwrap();
    let mut table = bench.open().await;
    assert_eq!(table.version(), 2);
    flush(&mut table, &[Delete(3)], 4).await.unwrap().unwrap();
    let mut expected = rows;
    expected[0] = row(0, "ü", "back");
    expected[1] = (1, None, Some("y".into()));
    expected.remove(3);
    assert_eq!(bench.read().await, expected);
    flush(&mut table, &[Truncate], 5).await.unwrap().unwrap();
    assert_eq!(bench.read().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_larger_than_one_part_is_uploaded_in_parts() {
    let (bench, store) = s3_bench();
    // Random digits, so that the compressed file stays above the ten megabytes of a single put.
    let mut digits = 0x9E37_79B9_7F4A_7C15_u64;
    let mut noise = || {
        (0..300_000)
            .map(|_| {
                digits = digits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                char::from(33 + (digits >> 58) as u8)
            })
            .collect::<String>()
    };
    let rows: Vec<Row> = (0..60).map(|id| row(id, "DE", &noise())).collect();
    let mut table = bench.load(definition(), &[]).await;
    let list: Vec<_> = rows.iter().cloned().map(Insert).collect();
    let committed = flush(&mut table, &list, 2).await.unwrap().unwrap();
    assert!(committed.bytes_added > 10 << 20, "{}", committed.bytes_added);
    assert_eq!(bench.read().await, rows);
    let log = Path::from("shop/public/orders/_delta_log/00000000000000000001.json");
    assert!(store.head(&log).await.is_ok());
}
