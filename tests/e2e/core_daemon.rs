//! The built-in Postgres under the daemon: gateway, sync, branches, restore, sleep.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tidewater_e2e::{Engine, LakeTable, Reader, Site, Source, assert_equal};
use tokio_postgres::{Client, NoTls};

const SOON: Duration = Duration::from_secs(90);
const RETRY: Duration = Duration::from_millis(50);

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn open_shop(client: &Client) {
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, v text, n int);
             INSERT INTO orders SELECT n, md5(n::text), n % 100 FROM generate_series(1, 5000) n;
             CREATE TABLE load (id int PRIMARY KEY); INSERT INTO load VALUES (0)",
        )
        .await
        .unwrap();
}

async fn count(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM orders", &[]).await.unwrap().get(0)
}

/// Waits until the lake has what the source has now; the last look says what differs.
async fn assert_lake_equals(url: &str, site: &Site, table: &str) {
    let mut reader = Reader::start();
    let lake = LakeTable::at(&site.table("shop/public").join(table));
    let deadline = Instant::now() + SOON;
    loop {
        let found = reader.checksum(Engine::DuckDb, &lake).await;
        if found == reader.source_checksum(url, "public", table).await {
            break;
        }
        if Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(RETRY).await;
    }
    let source = Source { dsn: url, schema: "public", table };
    assert_equal(&mut reader, Engine::DuckDb, &source, &lake).await;
}

#[tokio::test]
async fn a_sort_that_spills_works_although_postgres_cannot_walk_to_the_site() {
    let site = Site::with_core("");
    let daemon = site.start().await;
    let client = connect(&site.branch_url("main").await).await;
    let sql =
        "SELECT count(*) FROM (SELECT md5(n::text) AS v FROM generate_series(1, 200000) n ORDER BY v) sorted";
    client.batch_execute("SET work_mem = '64kB'").await.unwrap();
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 200_000);
    daemon.stop().await;
}

#[tokio::test]
async fn databases_outlive_the_daemon_and_the_next_one_finds_them_again() {
    let site = Site::with_core("");
    let daemon = site.start().await;
    let url = site.branch_url("main").await;
    let client = connect(&url).await;
    open_shop(&client).await;
    client.batch_execute("CREATE SEQUENCE ids START 10000").await.unwrap();

    let script = site.path().join("insert.sql");
    std::fs::write(&script, "INSERT INTO orders VALUES (nextval('ids'), 'running', 1);\n").unwrap();
    let mut pgbench = tidewater_e2e::pgbench();
    pgbench.args(["-n", "-c", "3", "-T", "3600", "-f"]).arg(&script).arg(&url);
    let mut pgbench = pgbench.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut more = async |than: i64| {
        let deadline = Instant::now() + SOON;
        // Also for those that come now, with no daemon at all.
        while count(&connect(&url).await).await <= than {
            assert!(Instant::now() < deadline, "nothing is written any more");
            assert!(pgbench.try_wait().unwrap().is_none(), "pgbench has ended");
            tokio::time::sleep(RETRY).await;
        }
    };
    more(5020).await;
    daemon.kill9().await;
    more(count(&client).await + 20).await;
    let mut daemon = site.start().await;
    more(count(&client).await + 20).await;
    pgbench.start_kill().unwrap();
    let said = pgbench.wait_with_output().await.unwrap().stderr;
    let said = String::from_utf8_lossy(&said).to_lowercase();
    assert!(!["error", "fatal", "aborted"].iter().any(|word| said.contains(word)), "{said}");
    daemon.wait_streaming(SOON).await;
    assert_lake_equals(&url, &site, "orders").await;
    daemon.stop().await;
    let left = site.succeeds(&["compute", "list", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&left).unwrap(), Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_destructive_change_on_a_branch_leaves_main_alone_and_a_restore_mends_the_lake() {
    let site = Site::with_core("");
    let mut daemon = site.start().await;
    let url = site.branch_url("main").await;
    let client = connect(&url).await;
    open_shop(&client).await;
    daemon.wait_streaming(SOON).await;
    assert_lake_equals(&url, &site, "orders").await;

    site.succeeds(&["branch", "create", "shop@dev"]).await;
    let dev = connect(&site.branch_url("dev").await).await;
    assert_eq!(count(&dev).await, 5000);
    dev.batch_execute("DELETE FROM orders WHERE id > 10; ALTER TABLE orders DROP COLUMN n").await.unwrap();
    assert_eq!((count(&dev).await, count(&client).await), (10, 5000));
    let different = site.command(&["branch", "diff", "shop@dev"]).await;
    assert_eq!(different.code, Some(3), "{}{}", different.stdout, different.stderr);
    assert!(different.stdout.contains("public.orders"), "{}", different.stdout);
    drop(dev);
    site.succeeds(&["branch", "reset", "shop@dev"]).await;
    assert_eq!(count(&connect(&site.branch_url("dev").await).await).await, 5000);
    site.succeeds(&["branch", "delete", "shop@dev"]).await;

    let lsn: String = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    client
        .batch_execute("UPDATE orders SET v = 'wrong' WHERE id % 3 = 0; DELETE FROM orders WHERE id % 7 = 0")
        .await
        .unwrap();
    assert_lake_equals(&url, &site, "orders").await;
    // Somebody writes all the while, and takes the lost session for an accident.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (stop, url) = (Arc::clone(&stop), url.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await else { continue };
                tokio::spawn(connection);
                let insert = "INSERT INTO load SELECT max(id) + 1 FROM load";
                while !stop.load(Ordering::Relaxed) && client.batch_execute(insert).await.is_ok() {}
            }
        }
    });
    let told = site.succeeds(&["restore", "shop", "--to", &lsn, "--json"]).await;
    let before = serde_json::from_str::<Value>(&told).unwrap()["before"].as_str().unwrap().to_owned();
    let client = connect(&url).await;
    assert_eq!(count(&client).await, 5000);
    let wrong: i64 =
        client.query_one("SELECT count(*) FROM orders WHERE v = 'wrong'", &[]).await.unwrap().get(0);
    assert_eq!(wrong, 0);
    client.execute("INSERT INTO orders VALUES (99999, 'after the restore', 0)", &[]).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    assert_lake_equals(&url, &site, "orders").await;
    assert_lake_equals(&url, &site, "load").await;
    let state_before = connect(&site.branch_url(&before).await).await;
    assert_eq!(count(&state_before).await, 5000 - 5000 / 7);
    daemon.stop().await;
}

#[tokio::test]
async fn a_sleeping_database_wakes_by_a_connection_and_its_sync_goes_on() {
    let site = Site::with_core(", suspend_after: 2s");
    let mut daemon = site.start().await;
    let url = site.branch_url("main").await;
    let client = connect(&url).await;
    open_shop(&client).await;
    daemon.wait_streaming(SOON).await;
    assert_lake_equals(&url, &site, "orders").await;
    // An idle session of a pool and the sync itself keep nobody awake.
    let deadline = Instant::now() + SOON;
    while site.succeeds(&["compute", "list"]).await.contains("shop@main") {
        assert!(Instant::now() < deadline, "it does not go to sleep");
        tokio::time::sleep(RETRY).await;
    }
    let client = connect(&url).await;
    client.execute("INSERT INTO orders VALUES (99999, 'woken', 0)", &[]).await.unwrap();
    assert_lake_equals(&url, &site, "orders").await;
    daemon.stop().await;
}
