//! Tables that are altered between the moment their load shows and the moment it reads them.
//!
//! What `ALTER TABLE` or `TRUNCATE` writes anew is invisible to every older snapshot (PostgreSQL's manual, "Caveats" of
//! MVCC), and a statement finds tables and columns by the names they have when it runs, not by those of its snapshot.

use std::time::{Duration, Instant};

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
    wait_rows(
        client,
        "SELECT 1 FROM pg_replication_slots WHERE temporary AND confirmed_flush_lsn IS NOT NULL",
    )
    .await;
}

/// Waits until a query finds something.
async fn wait_rows(client: &Client, sql: &str) {
    let deadline = Instant::now() + SOON;
    while client.query(sql, &[]).await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "no row of {sql}");
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
         CREATE TABLE grown (id int PRIMARY KEY, v text);
         INSERT INTO retyped SELECT n, 'old', n FROM generate_series(1, 100) n;
         INSERT INTO grown SELECT n, 'old' FROM generate_series(1, 100) n",
    )
    .await;
    for sql in [
        "UPDATE retyped SET v = 'before' WHERE id = 1",
        "ALTER TABLE retyped ALTER COLUMN n TYPE int USING n * 2",
        "DELETE FROM retyped WHERE id = 2",
        "UPDATE grown SET v = 'before' WHERE id = 1",
        "ALTER TABLE grown ADD COLUMN r float8 DEFAULT random()",
        "DELETE FROM grown WHERE id = 2",
    ] {
        loading.client.batch_execute(sql).await.unwrap();
    }
    loading.assert_whole(&[("retyped", "retyped"), ("grown", "grown")]).await;
}

#[tokio::test]
async fn a_table_emptied_while_it_is_loaded_is_not_missed_by_the_changes_before() {
    let loading = loading(
        "CREATE TABLE emptied (id int PRIMARY KEY, v text);
         INSERT INTO emptied SELECT n, 'old' FROM generate_series(1, 100) n",
    )
    .await;
    for sql in [
        "UPDATE emptied SET v = 'before' WHERE id = 1",
        "TRUNCATE emptied",
        "INSERT INTO emptied VALUES (7, 'after')",
    ] {
        loading.client.batch_execute(sql).await.unwrap();
    }
    loading.assert_whole(&[("emptied", "emptied")]).await;
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

#[tokio::test]
async fn a_table_rewritten_while_it_is_compared_is_mended_and_verified_as_it_is() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE mended (id int PRIMARY KEY, v text);
             CREATE TABLE verified (id int PRIMARY KEY, v text);
             INSERT INTO mended SELECT n, 'old' FROM generate_series(1, 100) n;
             INSERT INTO verified SELECT n, 'old' FROM generate_series(1, 100) n",
        )
        .await
        .unwrap();
    let site = Site::of_shop(&postgres.url("shop"));
    let points = "snapshot-after-export=1*off->1*sleep(2500);verify-before-comparison=1*sleep(2500)";
    let mut daemon = site.spawn_armed(points);
    daemon.wait_streaming(SOON).await;
    site.succeeds(&["resync", "public.mended"]).await;
    wait_snapshot(&client).await;
    for sql in [
        "UPDATE mended SET v = 'before' WHERE id = 1",
        "TRUNCATE mended",
        "INSERT INTO mended SELECT n, 'after' FROM generate_series(1, 20) n",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    wait_all_follow(&mut daemon).await;

    let changes = async {
        wait_rows(
            &client,
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%SET TRANSACTION SNAPSHOT%SAVEPOINT%'",
        )
        .await;
        client.batch_execute("TRUNCATE verified; INSERT INTO verified VALUES (1, 'after')").await.unwrap();
    };
    let (verified, ()) = tokio::join!(site.command(&["verify", "public.verified"]), changes);
    assert_eq!(verified.code, Some(0), "{}\n{}", verified.stdout, verified.stderr);
    let loading = Loading { postgres, client, site, daemon };
    loading.assert_whole(&[("mended", "mended"), ("verified", "verified")]).await;
}

#[tokio::test]
async fn a_table_that_somebody_keeps_locked_is_loaded_later_and_the_others_meanwhile() {
    let mut loading = loading(
        "CREATE TABLE locked (id int PRIMARY KEY, v text);
         CREATE TABLE free (id int PRIMARY KEY, v text);
         INSERT INTO locked SELECT n, 'old' FROM generate_series(1, 100) n;
         INSERT INTO free SELECT n, 'old' FROM generate_series(1, 100) n",
    )
    .await;
    loading.client.batch_execute("BEGIN; LOCK TABLE locked; UPDATE locked SET v = 'new'").await.unwrap();
    let state = |status: &serde_json::Value, table: &str| {
        let tables = status["tables"].as_array().unwrap();
        let shown = tables.iter().find(|shown| shown["table"] == table);
        shown.map(|shown| shown["state"].as_str().unwrap().to_owned())
    };
    let status = loading
        .daemon
        .wait_status(SOON, |status| state(status, "public.free").as_deref() == Some("streaming"))
        .await;
    assert_eq!(state(&status, "public.locked").as_deref(), Some("loading"), "{status}");
    loading.client.batch_execute("COMMIT").await.unwrap();
    loading.assert_whole(&[("locked", "locked"), ("free", "free")]).await;
}
