//! A built-in database of the major version before the newest. `make old-postgres` runs more on it, and older sources.

use std::time::{Duration, Instant};

use serde_json::json;
use tidewater_e2e::{Engine, LakeTable, Reader, Site, Source, assert_equal, free_port, repository};
use tokio_postgres::{Client, NoTls};

const SOON: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_millis(50);

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn count(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM orders", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_database_of_postgresql_17_syncs_branches_sleeps_and_is_restored() {
    let loopback = || format!("127.0.0.1:{}", free_port());
    let bin = repository().join(".tools/postgres-17/bin");
    let site = Site::new(
        &json!({
            "version": 1,
            "lake": {"uri": "./lake"},
            "listen": {"http": loopback()},
            "core": {"storage": "./core", "listen": loopback(), "suspend_after": "0s", "postgres_bin": bin},
            "databases": {"shop": {"core": {"postgres": 17}}},
            "to_lake": [{"database": "shop", "tables": ["public.*"], "flush": "200ms"}],
        })
        .to_string(),
    );
    let mut daemon = site.start().await;
    let url = site.branch_url("main").await;
    let client = connect(&url).await;
    let version: String = client.query_one("SHOW server_version", &[]).await.unwrap().get(0);
    assert!(version.starts_with("17."), "{version}");
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, v text);
             INSERT INTO orders SELECT n, md5(n::text) FROM generate_series(1, 3000) n",
        )
        .await
        .unwrap();
    daemon.wait_streaming(SOON).await;

    site.succeeds(&["branch", "create", "shop@dev"]).await;
    let dev = connect(&site.branch_url("dev").await).await;
    dev.batch_execute("DELETE FROM orders WHERE id > 10").await.unwrap();
    assert_eq!((count(&dev).await, count(&client).await), (10, 3000));
    drop(dev);

    let lsn: String = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    client.batch_execute("UPDATE orders SET v = 'wrong' WHERE id % 3 = 0").await.unwrap();
    drop(client);
    site.succeeds(&["compute", "suspend", "shop"]).await;
    let client = connect(&url).await;
    assert_eq!(count(&client).await, 3000);
    drop(client);
    site.succeeds(&["restore", "shop", "--to", &lsn]).await;
    let client = connect(&url).await;
    let wrong = "SELECT count(*) FROM orders WHERE v = 'wrong'";
    assert_eq!(client.query_one(wrong, &[]).await.unwrap().get::<_, i64>(0), 0);
    client.execute("INSERT INTO orders VALUES (99999, 'after the restore')", &[]).await.unwrap();

    let (mut reader, lake) = (Reader::start(), LakeTable::at(&site.table("shop/public/orders")));
    let deadline = Instant::now() + SOON;
    while reader.checksum(Engine::DuckDb, &lake).await
        != reader.source_checksum(&url, "public", "orders").await
        && Instant::now() < deadline
    {
        tokio::time::sleep(RETRY).await;
    }
    let source = Source { dsn: &url, schema: "public", table: "orders" };
    assert_equal(&mut reader, Engine::DuckDb, &source, &lake).await;
    daemon.stop().await;
    site.succeeds(&["core", "inspect"]).await;
}
