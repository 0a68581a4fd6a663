//! What comes down the stream besides ordinary rows, while the daemon runs.

use std::time::Duration;

use tidewater_e2e::{
    Engine, LakeTable, Postgres, Reader, S3Server, Shop, Site, Source, Traffic, assert_equal,
};

use crate::followed::{Followed, SOON, followed, rows_of, wait_some};

/// A start, small loads and some flushes of 200 ms, by a debug build on a busy machine.
const CAUGHT_UP: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_large_value_survives_updates_that_leave_it_alone() {
    let mut followed = followed(
        "CREATE TABLE documents (id int PRIMARY KEY, body text, edition int);
         ALTER TABLE documents ALTER body SET STORAGE EXTERNAL;
         INSERT INTO documents SELECT n, repeat(md5(n::text), 4000), 0 FROM generate_series(1, 20) n",
    )
    .await;
    followed
        .client
        .batch_execute(
            "UPDATE documents SET edition = 1 WHERE id <= 15;
             INSERT INTO documents SELECT n, repeat(md5(n::text), 30000), 0 FROM generate_series(101, 110) n;
             BEGIN;
             UPDATE documents SET edition = edition + 1 WHERE id % 2 = 0;
             UPDATE documents SET id = id + 1000 WHERE id % 5 = 0;
             UPDATE documents SET edition = edition + 1 WHERE id > 1000;
             COMMIT;
             DELETE FROM documents WHERE id = 3",
        )
        .await
        .unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.documents") == Some(29)).await;
    followed.client.batch_execute("UPDATE documents SET edition = edition + 1").await.unwrap();
    followed.assert_equal_at_the_end(&["documents"]).await;
}

#[tokio::test]
async fn a_truncate_empties_the_mirror_and_what_follows_in_its_transaction_stays() {
    let mut followed = followed(
        "CREATE TABLE orders (id int PRIMARY KEY, v text);
         CREATE TABLE lines (id int PRIMARY KEY, v text);
         INSERT INTO orders SELECT n, 'old' FROM generate_series(1, 500) n;
         INSERT INTO lines SELECT n, 'old' FROM generate_series(1, 500) n",
    )
    .await;
    followed
        .client
        .batch_execute(
            "BEGIN;
             INSERT INTO orders VALUES (501, 'gone');
             TRUNCATE orders, lines;
             INSERT INTO orders VALUES (1, 'new'), (2, 'new');
             COMMIT",
        )
        .await
        .unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.orders") == Some(2)).await;
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.lines") == Some(0)).await;
    followed
        .client
        .batch_execute("BEGIN; TRUNCATE orders; ROLLBACK; INSERT INTO lines VALUES (7, 'new')")
        .await
        .unwrap();
    followed.assert_equal_at_the_end(&["orders", "lines"]).await;
}

#[tokio::test]
async fn a_transaction_of_300_000_rows_with_savepoints_arrives_whole() {
    let mut followed = followed("CREATE TABLE orders (id int PRIMARY KEY, v text)").await;
    followed
        .client
        .batch_execute(
            "BEGIN;
             INSERT INTO orders SELECT n, md5(n::text) FROM generate_series(1, 150000) n;
             SAVEPOINT one;
             INSERT INTO orders SELECT n, 'rolled back' FROM generate_series(150001, 200000) n;
             UPDATE orders SET v = 'rolled back' WHERE id % 3 = 0;
             ROLLBACK TO one;
             SAVEPOINT two;
             INSERT INTO orders SELECT n, md5(n::text) FROM generate_series(150001, 300000) n;
             RELEASE two;
             DELETE FROM orders WHERE id % 1000 = 0;
             COMMIT",
        )
        .await
        .unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.orders") == Some(299_700)).await;
    let mut reader = Reader::start();
    let lake = LakeTable::at(&followed.site.table("shop/public/orders"));
    for version in reader.versions(Engine::DeltaRs, &lake).await {
        let rows = reader.count(Engine::DuckDb, &lake.clone().version(version)).await;
        assert!(rows == 0 || rows == 299_700, "version {version} shows {rows} rows of one transaction");
    }
    followed.assert_equal_at_the_end(&["orders"]).await;
}

#[tokio::test]
async fn an_added_column_and_a_new_table_are_followed_while_the_daemon_runs() {
    let mut followed = followed(
        "CREATE TABLE orders (id int PRIMARY KEY, v text);
         INSERT INTO orders SELECT n, 'first' FROM generate_series(1, 100) n;
         CREATE TABLE lines (id int PRIMARY KEY, v text)",
    )
    .await;
    followed
        .client
        .batch_execute(
            "INSERT INTO orders VALUES (101, 'before');
             ALTER TABLE orders ADD COLUMN country text DEFAULT 'is';
             INSERT INTO orders VALUES (102, 'after', 'no');
             UPDATE orders SET country = 'se' WHERE id = 5;
             INSERT INTO lines VALUES (1, 'beside')",
        )
        .await
        .unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.orders") == Some(102)).await;
    followed
        .client
        .batch_execute(
            "CREATE TABLE customers (id int PRIMARY KEY, v text); INSERT INTO customers VALUES (1, 'new')",
        )
        .await
        .unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.customers") == Some(1)).await;
    followed
        .client
        .batch_execute("INSERT INTO customers VALUES (2, 'more'); DELETE FROM orders WHERE id = 1")
        .await
        .unwrap();
    followed.assert_equal_at_the_end(&["orders", "lines", "customers"]).await;
}

#[tokio::test]
async fn a_lake_in_s3_reads_the_same_over_s3() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    let url = postgres.url("shop");
    let store = S3Server::start().await;
    let site = Site::in_s3(&url, &store);
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let traffic = Traffic::start(&url, 17, 2, None, Duration::from_millis(2));
    traffic.wait_for(200).await;
    traffic.stop().await;
    daemon.stop().await;
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    for table in Shop::MIRRORED {
        let source = Source { dsn: &url, schema: "public", table };
        assert_equal(
            &mut reader,
            Engine::DuckDb,
            &source,
            &store.table(&format!("main/shop/public/{table}")),
        )
        .await;
    }
}

#[tokio::test]
async fn a_transaction_that_was_open_when_the_daemon_started_arrives_once() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders VALUES (1, 'one')",
        )
        .await
        .unwrap();
    let open = postgres.connect("shop").await;
    open.batch_execute(
        "BEGIN; INSERT INTO orders VALUES (2, 'open'); UPDATE orders SET v = 'moved' WHERE id = 1",
    )
    .await
    .unwrap();
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let mut daemon = site.spawn();
    // A slot begins only once every transaction that is open then has ended: the server says who waits for it.
    let waits = "SELECT count(*) FROM pg_stat_activity
                 WHERE query LIKE 'CREATE_REPLICATION_SLOT%' AND wait_event = 'transactionid'";
    wait_some(&client, waits).await;
    client.batch_execute("INSERT INTO orders VALUES (3, 'meanwhile')").await.unwrap();
    open.batch_execute("INSERT INTO orders VALUES (4, 'late'); COMMIT").await.unwrap();
    daemon.wait_streaming(SOON).await;
    Followed { postgres, client, site, daemon }.assert_equal_at_the_end(&["orders"]).await;
}

#[tokio::test]
async fn a_prepared_transaction_arrives_when_it_is_committed_also_after_a_crash_in_between() {
    let mut followed = followed("CREATE TABLE orders (id int PRIMARY KEY, v text)").await;
    followed
        .client
        .batch_execute(
            "BEGIN; INSERT INTO orders SELECT n, 'prepared' FROM generate_series(1, 2000) n; PREPARE TRANSACTION 'p';
             BEGIN; INSERT INTO orders VALUES (5000, 'never'); PREPARE TRANSACTION 'q'",
        )
        .await
        .unwrap();
    followed.client.batch_execute("INSERT INTO orders VALUES (3000, 'between')").await.unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.orders") == Some(1)).await;
    followed.daemon.kill9().await;
    followed.daemon = followed.site.start().await;
    followed.client.batch_execute("COMMIT PREPARED 'p'").await.unwrap();
    followed.client.batch_execute("ROLLBACK PREPARED 'q'").await.unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.orders") == Some(2001)).await;
    followed.assert_equal_at_the_end(&["orders"]).await;
}

#[tokio::test]
async fn a_run_until_caught_up_ends_although_the_application_goes_on() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    Shop::create_big(&client, 20_000).await;
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let traffic = Traffic::start(&url, 29, 2, Some(("big", 20_000)), Duration::from_millis(2));
    traffic.wait_for(50).await;
    for _ in 0..3 {
        // Within a few flushes, not when the application happens to pause.
        tokio::time::timeout(CAUGHT_UP, site.run_until_caught_up()).await.unwrap();
        traffic.wait_for(20).await;
    }
    traffic.stop().await;
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    Shop::assert_mirrored(&mut reader, Engine::DuckDb, &url, &site.lake(), &["big"]).await;
    Shop::assert_whole_transactions(&mut reader, Engine::DuckDb, &site.lake(), 30).await;
}

#[tokio::test]
async fn a_sigterm_during_the_first_load_ends_the_daemon_and_the_next_run_loads_anew() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create_big(&client, 500_000).await;
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let mut daemon = site.spawn();
    daemon.wait_status(SOON, |status| status["tables"][0]["state"] == "loading").await;
    daemon.stop().await;
    client.batch_execute("DELETE FROM big WHERE id % 3 = 0").await.unwrap();
    let daemon = site.start().await;
    Followed { postgres, client, site, daemon }.assert_equal_at_the_end(&["big"]).await;
}

#[tokio::test]
async fn a_dropped_table_leaves_the_others_following() {
    let mut followed = followed(
        "CREATE TABLE orders (id int PRIMARY KEY, v text);
         CREATE TABLE lines (id int PRIMARY KEY, v text);
         INSERT INTO lines VALUES (1, 'one')",
    )
    .await;
    followed
        .client
        .batch_execute(
            "INSERT INTO lines VALUES (2, 'last');
             DROP TABLE lines;
             INSERT INTO orders VALUES (1, 'on we go')",
        )
        .await
        .unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.orders") == Some(1)).await;
    followed.assert_equal_at_the_end(&["orders"]).await;
}
