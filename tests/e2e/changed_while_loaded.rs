//! Tables that are altered between the moment their load shows and the moment it reads them.
//!
//! What `ALTER TABLE` or `TRUNCATE` writes anew is invisible to every older snapshot (PostgreSQL's manual, "Caveats" of
//! MVCC), and a statement finds tables and columns by the names they have when it runs, not by those of its snapshot.

use std::time::Duration;

use tidewater_e2e::{Daemon, Engine, LakeTable, Postgres, Reader, Site, Source, assert_equal};
use tokio_postgres::Client;

use crate::followed::SOON;

/// Between the snapshot's export and its first use.
const PAUSE: &str = "snapshot-after-export=1*sleep(2500)";

/// A daemon whose first load has its snapshot and has read nothing yet.
struct Loading {
    postgres: Postgres,
    client: Client,
    site: Site,
    daemon: Daemon,
}

async fn loading(tables: &str) -> Loading {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client.batch_execute(tables).await.unwrap();
    let site = Site::of_shop(&postgres.url("shop"));
    let daemon = site.spawn_armed(PAUSE);
    wait_snapshot(&client).await;
    Loading { postgres, client, site, daemon }
}

/// Waits until a snapshot is exported.
async fn wait_snapshot(client: &Client) {
    let exported =
        "SELECT count(*) FROM pg_replication_slots WHERE temporary AND confirmed_flush_lsn IS NOT NULL";
    let deadline = std::time::Instant::now() + SOON;
    while client.query_one(exported, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(std::time::Instant::now() < deadline, "no snapshot is exported");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Loading {
    /// Every table follows the stream, and DuckDB finds in each folder the rows of its table.
    async fn assert_whole(mut self, tables: &[(&str, &str)]) {
        wait_all_follow(&mut self.daemon).await;
        self.daemon.stop().await;
        self.site.run_until_caught_up().await;
        let (mut reader, dsn) = (Reader::start(), self.postgres.url("shop"));
        for (table, folder) in tables {
            let source = Source { dsn: &dsn, schema: "public", table };
            let lake = LakeTable::at(&self.site.table(&format!("shop/public/{folder}")));
            assert_equal(&mut reader, Engine::DuckDb, &source, &lake).await;
        }
    }
}

async fn wait_all_follow(daemon: &mut Daemon) {
    daemon
        .wait_status(SOON, |status| {
            let tables = status["tables"].as_array().unwrap();
            assert!(tables.iter().all(|table| table["state"] != "failed"), "{status}");
            !tables.is_empty() && tables.iter().all(|table| table["state"] == "streaming")
        })
        .await;
}

#[tokio::test]
async fn a_table_rewritten_while_it_is_loaded_is_loaded_whole() {
    let loading = loading(
        "CREATE TABLE retyped (id int PRIMARY KEY, v text, n int);
         CREATE TABLE emptied (id int PRIMARY KEY, v text);
         CREATE TABLE grown (id int PRIMARY KEY, v text);
         INSERT INTO retyped SELECT n, 'old', n FROM generate_series(1, 100) n;
         INSERT INTO emptied SELECT n, 'old' FROM generate_series(1, 100) n;
         INSERT INTO grown SELECT n, 'old' FROM generate_series(1, 100) n",
    )
    .await;
    for sql in [
        "UPDATE retyped SET v = 'before' WHERE id = 1",
        "ALTER TABLE retyped ALTER COLUMN n TYPE int USING n * 2",
        "DELETE FROM retyped WHERE id = 2",
        "UPDATE emptied SET v = 'before' WHERE id = 1",
        "TRUNCATE emptied",
        "INSERT INTO emptied VALUES (7, 'after')",
        "UPDATE grown SET v = 'before' WHERE id = 1",
        "ALTER TABLE grown ADD COLUMN r float8 DEFAULT random()",
        "DELETE FROM grown WHERE id = 2",
    ] {
        loading.client.batch_execute(sql).await.unwrap();
    }
    loading.assert_whole(&[("retyped", "retyped"), ("emptied", "emptied"), ("grown", "grown")]).await;
}

#[tokio::test]
async fn tables_and_columns_that_swap_names_while_they_are_loaded_keep_their_rows() {
    let loading = loading(
        "CREATE TABLE columns (id int PRIMARY KEY, v text, w text);
         CREATE TABLE one (id int PRIMARY KEY, v text);
         CREATE TABLE two (id int PRIMARY KEY, v text);
         INSERT INTO columns SELECT n, 'v', 'w' FROM generate_series(1, 100) n;
         INSERT INTO one SELECT n, 'one' FROM generate_series(1, 100) n;
         INSERT INTO two SELECT n, 'two' FROM generate_series(1, 100) n",
    )
    .await;
    for sql in [
        "ALTER TABLE columns RENAME COLUMN v TO t",
        "ALTER TABLE columns RENAME COLUMN w TO v",
        "ALTER TABLE columns RENAME COLUMN t TO w",
        "ALTER TABLE one RENAME TO aside",
        "ALTER TABLE two RENAME TO one",
        "ALTER TABLE aside RENAME TO two",
        "DELETE FROM columns WHERE id = 2",
        "DELETE FROM one WHERE id = 1",
        "DELETE FROM two WHERE id = 2",
    ] {
        loading.client.batch_execute(sql).await.unwrap();
    }
    loading.assert_whole(&[("columns", "columns"), ("one", "two"), ("two", "one")]).await;
}

#[tokio::test]
async fn partitions_that_come_and_go_while_their_table_is_loaded_bring_and_take_their_rows() {
    let loading = loading(
        "CREATE TABLE came (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE came_1 PARTITION OF came FOR VALUES FROM (0) TO (100);
         CREATE TABLE went (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE went_1 PARTITION OF went FOR VALUES FROM (0) TO (100);
         CREATE TABLE went_2 PARTITION OF went FOR VALUES FROM (100) TO (200);
         INSERT INTO came SELECT n, 'old' FROM generate_series(1, 50) n;
         INSERT INTO went SELECT n, 'old' FROM generate_series(51, 150) n;
         CREATE SCHEMA elsewhere;
         CREATE TABLE elsewhere.came_2 (id int PRIMARY KEY, v text);
         INSERT INTO elsewhere.came_2 SELECT n, 'old' FROM generate_series(101, 150) n",
    )
    .await;
    for sql in [
        "UPDATE elsewhere.came_2 SET v = 'before' WHERE id = 101",
        "ALTER TABLE came ATTACH PARTITION elsewhere.came_2 FOR VALUES FROM (100) TO (200)",
        "UPDATE came SET v = 'after' WHERE id IN (1, 102)",
        "UPDATE went SET v = 'before' WHERE id IN (51, 101)",
        "ALTER TABLE went DETACH PARTITION went_2",
        "ALTER TABLE went_2 SET SCHEMA elsewhere",
        "DELETE FROM went WHERE id = 52",
    ] {
        loading.client.batch_execute(sql).await.unwrap();
    }
    loading.assert_whole(&[("came", "came"), ("went", "went")]).await;
}
