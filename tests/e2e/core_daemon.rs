//! The built-in Postgres under the daemon: gateway, sync, branches, restore, sleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
             INSERT INTO orders SELECT n, md5(n::text), n % 100 FROM generate_series(1, 5000) n",
        )
        .await
        .unwrap();
}

async fn count(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM orders", &[]).await.unwrap().get(0)
}

/// Waits until the lake has what the source has now; the last look says what differs.
async fn assert_lake_equals(url: &str, site: &Site, client: &Client) {
    let mut reader = Reader::start();
    let lake = LakeTable::at(&site.table("shop/public/orders"));
    let deadline = Instant::now() + SOON;
    loop {
        let found = reader.checksum(Engine::DuckDb, &lake).await;
        let rows = i64::try_from(found.0).unwrap();
        if rows == count(client).await && found == reader.source_checksum(url, "public", "orders").await {
            break;
        }
        if Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(RETRY).await;
    }
    let source = Source { dsn: url, schema: "public", table: "orders" };
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
async fn a_killed_daemon_leaves_its_databases_serving_and_finds_them_again() {
    let site = Site::with_core("");
    let daemon = site.start().await;
    let url = site.branch_url("main").await;
    let client = connect(&url).await;
    open_shop(&client).await;

    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writer = {
        let (stop, written, url) = (stop.clone(), written.clone(), url.clone());
        tokio::spawn(async move {
            let client = connect(&url).await;
            let mut id = 10_000;
            while !stop.load(Ordering::Relaxed) {
                client.execute("INSERT INTO orders VALUES ($1, 'running', 1)", &[&id]).await.unwrap();
                id += 1;
                written.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let more = async |than: u64| {
        let deadline = Instant::now() + SOON;
        while written.load(Ordering::Relaxed) <= than {
            assert!(Instant::now() < deadline && !writer.is_finished(), "the client does not go on");
            tokio::time::sleep(RETRY).await;
        }
    };
    more(20).await;
    daemon.kill9().await;
    more(written.load(Ordering::Relaxed) + 20).await;
    // Also for those that come now, with no daemon at all.
    assert!(count(&connect(&url).await).await > 5000);
    let mut daemon = site.start().await;
    more(written.load(Ordering::Relaxed) + 20).await;
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    daemon.wait_streaming(SOON).await;
    assert_lake_equals(&url, &site, &client).await;
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
    assert_lake_equals(&url, &site, &client).await;

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
    assert_lake_equals(&url, &site, &client).await;
    let told = site.succeeds(&["restore", "shop", "--to", &lsn, "--json"]).await;
    let before = serde_json::from_str::<Value>(&told).unwrap()["before"].as_str().unwrap().to_owned();
    let client = connect(&url).await;
    assert_eq!(count(&client).await, 5000);
    let wrong: i64 =
        client.query_one("SELECT count(*) FROM orders WHERE v = 'wrong'", &[]).await.unwrap().get(0);
    assert_eq!(wrong, 0);
    client.execute("INSERT INTO orders VALUES (99999, 'after the restore', 0)", &[]).await.unwrap();
    assert_lake_equals(&url, &site, &client).await;
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
    assert_lake_equals(&url, &site, &client).await;
    // An idle session of a pool and the sync itself keep nobody awake.
    let deadline = Instant::now() + SOON;
    while site.succeeds(&["compute", "list"]).await.contains("shop@main") {
        assert!(Instant::now() < deadline, "it does not go to sleep");
        tokio::time::sleep(RETRY).await;
    }
    let client = connect(&url).await;
    client.execute("INSERT INTO orders VALUES (99999, 'woken', 0)", &[]).await.unwrap();
    assert_lake_equals(&url, &site, &client).await;
    daemon.stop().await;
}
