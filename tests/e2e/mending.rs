//! Tables made equal to their source by comparing: resync, a new incarnation.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tidewater_e2e::{Daemon, Engine, LakeTable, Postgres, Reader, Site, Source, Traffic, assert_equal};

const SOON: Duration = Duration::from_secs(90);

const ROWS: u32 = 20_000;

async fn shop() -> (Postgres, tokio_postgres::Client, Site) {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(&format!(
            "CREATE TABLE orders (id int PRIMARY KEY, v text, n int, f float8);
             INSERT INTO orders SELECT n, md5(n::text), n % 100, n / 7.0 FROM generate_series(1, {ROWS}) n;
             CREATE TABLE other (id int PRIMARY KEY, v text);
             INSERT INTO other VALUES (1, 'one')"
        ))
        .await
        .unwrap();
    let site = Site::of_shop(&postgres.url("shop"));
    (postgres, client, site)
}

fn state(status: &Value, table: &str) -> String {
    let tables = status["tables"].as_array().unwrap();
    let found = tables.iter().find(|found| found["table"] == table).unwrap();
    found["state"].as_str().unwrap().to_owned()
}

/// The names of the data files that a table's commits ever added.
fn data_files(table: &Path) -> usize {
    let files = std::fs::read_dir(table).unwrap();
    files.filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().ends_with(".parquet")).count()
}

/// What the first commit whose kind is `kind` says of itself. A run that ends before the cut that follows leaves another
/// one, in which nothing differs.
fn first_commit(table: &Path, kind: &str) -> Value {
    let mut commits: Vec<_> = std::fs::read_dir(table.join("_delta_log"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    commits.sort();
    let infos = commits.iter().map(|path| {
        let text = std::fs::read_to_string(path).unwrap();
        let info: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        info["commitInfo"].clone()
    });
    infos.into_iter().find(|info| info["tidewater"] == kind).unwrap()
}

async fn assert_mirrored(postgres: &Postgres, site: &Site, reader: &mut Reader, tables: &[&str]) {
    let url = postgres.url("shop");
    for table in tables {
        let source = Source { dsn: &url, schema: "public", table };
        let lake = LakeTable::at(&site.table(&format!("shop/public/{table}")));
        assert_equal(reader, Engine::DuckDb, &source, &lake).await;
    }
}

async fn streaming_again(daemon: &mut Daemon, table: &str) {
    daemon.wait_status(SOON, |status| state(status, table) == "streaming").await;
}

#[tokio::test]
async fn a_resync_mends_what_differs_in_one_commit_and_rewrites_nothing_else() {
    let (postgres, client, site) = shop().await;
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let table = site.table("shop/public/orders");
    let mut reader = Reader::start();
    daemon.stop().await;
    // Changes that the stream never carries: the lake cannot know of them.
    client
        .batch_execute(
            "UPDATE orders SET v = 'lost' WHERE id % 1000 = 1; DELETE FROM orders WHERE id % 1000 = 2;
             INSERT INTO orders VALUES (100001, 'lost too', NULL, 'NaN')",
        )
        .await
        .unwrap();
    client
        .batch_execute(
            "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn())
               FROM pg_replication_slots WHERE slot_name LIKE 'tidewater%'",
        )
        .await
        .unwrap();
    let before = data_files(&table);
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let ended = site.command(&["resync", "public.orders"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    daemon.wait_status(SOON, |_| commit_exists(&table, "MEND")).await;
    streaming_again(&mut daemon, "public.orders").await;
    client.batch_execute("UPDATE orders SET n = -1 WHERE id = 3").await.unwrap();
    daemon.stop().await;
    site.run_until_caught_up().await;

    let mend = first_commit(&table, "MEND");
    assert_eq!(mend["keysThatDiffered"], 41, "{mend}");
    assert_eq!(mend["operationMetrics"]["numOutputRows"], "21", "{mend}");
    assert!(data_files(&table) <= before + 3, "the table was written anew");
    assert_mirrored(&postgres, &site, &mut reader, &["orders", "other"]).await;
    // The version before is still there.
    let first = LakeTable::at(&table).version(0);
    assert_eq!(reader.count(Engine::DeltaRs, &first).await, u64::from(ROWS));
}

fn commit_exists(table: &Path, kind: &str) -> bool {
    let Ok(log) = std::fs::read_dir(table.join("_delta_log")) else { return false };
    log.map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .any(|path| std::fs::read_to_string(path).unwrap().contains(&format!("\"tidewater\":\"{kind}\"")))
}

#[tokio::test]
async fn a_resync_under_traffic_is_gap_free_and_the_other_tables_go_on() {
    let (postgres, client, site) = shop().await;
    let url = postgres.url("shop");
    tidewater_e2e::Shop::create(&client).await;
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let traffic = Traffic::start(&url, 41, 2, None, Duration::from_millis(2));
    traffic.wait_for(50).await;
    for table in ["public.keyed", "public.accounts", "public.composite", "public.keyed"] {
        let ended = site.command(&["resync", table]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        traffic.wait_for(50).await;
        streaming_again(&mut daemon, table).await;
    }
    traffic.wait_for(50).await;
    traffic.stop().await;
    daemon.stop().await;
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    tidewater_e2e::Shop::assert_mirrored(&mut reader, Engine::DuckDb, &url, &site.lake(), &["orders"]).await;
    tidewater_e2e::Shop::assert_whole_transactions(&mut reader, Engine::DuckDb, &site.lake(), 40).await;
}

#[tokio::test]
async fn a_lost_slot_is_mended_by_comparing_and_equal_rows_stay_where_they_are() {
    let (postgres, client, site) = shop().await;
    site.run_until_caught_up().await;
    let table = site.table("shop/public/orders");
    let before = data_files(&table);
    client
        .batch_execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'tidewater%';
             UPDATE orders SET v = 'changed' WHERE id <= 10; DELETE FROM orders WHERE id BETWEEN 11 AND 15",
        )
        .await
        .unwrap();
    site.run_until_caught_up().await;
    assert_eq!(first_commit(&table, "MEND")["keysThatDiffered"], 15);
    assert!(data_files(&table) <= before + 2, "the table was written anew");
    // A table without any difference carries the new incarnation's position as well.
    assert_eq!(first_commit(&site.table("shop/public/other"), "MEND")["keysThatDiffered"], 0);
    client.batch_execute("UPDATE orders SET n = -5 WHERE id = 20").await.unwrap();
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    assert_mirrored(&postgres, &site, &mut reader, &["orders", "other"]).await;
}

#[tokio::test]
async fn a_table_that_differs_in_most_rows_is_loaded_anew() {
    let (postgres, client, site) = shop().await;
    site.run_until_caught_up().await;
    client
        .batch_execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'tidewater%';
             UPDATE orders SET v = 'all'",
        )
        .await
        .unwrap();
    site.run_until_caught_up().await;
    assert!(!commit_exists(&site.table("shop/public/orders"), "MEND"));
    let mut reader = Reader::start();
    assert_mirrored(&postgres, &site, &mut reader, &["orders"]).await;
}

#[tokio::test]
async fn kill_9_while_tables_are_mended_leaves_no_gap_and_nothing_twice() {
    let (postgres, client, site) = shop().await;
    let url = postgres.url("shop");
    tidewater_e2e::Shop::create(&client).await;
    site.run_until_caught_up().await;
    let traffic = Traffic::start(&url, 53, 2, None, Duration::from_millis(2));
    for round in 0..4u64 {
        let mut daemon = site.start().await;
        daemon.wait_streaming(SOON).await;
        let ended = site.command(&["resync", "public.accounts"]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let ended = site.command(&["resync", "public.orders"]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        // Each round ends at another place: before, in and after the comparison.
        if round > 0 {
            let orders = site.table("shop/public/orders");
            let begun = |status: &Value| state(status, "public.orders") != "streaming";
            daemon.wait_status(SOON, |status| begun(status) || commit_exists(&orders, "MEND")).await;
        }
        traffic.wait_for(20 * round).await;
        daemon.kill9().await;
    }
    traffic.stop().await;
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    tidewater_e2e::Shop::assert_mirrored(&mut reader, Engine::DuckDb, &url, &site.lake(), &["orders"]).await;
    tidewater_e2e::Shop::assert_whole_transactions(&mut reader, Engine::DuckDb, &site.lake(), 40).await;
}
