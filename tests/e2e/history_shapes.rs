//! Tables with a history whose columns, names and modes change while they are followed.
//!
//! What a history has to show for it is exact: each change of the time before and after, once, in columns that the
//! rows of both times share.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidewater_e2e::{
    Engine, LakeTable, Postgres, Reader, Site, Source, assert_equal, last_txn, operations, property, recorded,
};

use crate::followed::{Followed, ORDERS, SOON, followed_as, followed_by_its_owner, rows_of};
use crate::replayed::{assert_replays, configuration, history_of};

fn in_mode(mode: &'static str) -> impl FnOnce(&str) -> Site {
    move |url| Site::new(&configuration(url, mode))
}

fn history_folder(site: &Site) -> PathBuf {
    site.table("shop/public/orders_history")
}

/// How often a history was begun.
fn beginnings(site: &Site) -> usize {
    operations(&history_folder(site)).iter().filter(|operation| *operation == "LOAD").count()
}

/// Catches up and stops; the history of `orders` has this many rows and replays to the source, and so does the mirror.
async fn assert_recorded(mut followed: Followed, rows: usize) -> (Postgres, Site) {
    followed.wait_caught_up().await;
    let Followed { postgres, site, daemon, .. } = followed;
    daemon.stop().await;
    let (mut reader, url) = (Reader::start(), postgres.url("shop"));
    assert_eq!(assert_replays(&mut reader, &url, &site, "orders").await, rows);
    let mirror = site.table("shop/public/orders");
    if mirror.exists() {
        let source = Source { dsn: &url, schema: "public", table: "orders" };
        assert_equal(&mut reader, Engine::DuckDb, &source, &LakeTable::at(&mirror)).await;
    }
    (postgres, site)
}

const SEVERAL_CHANGES: &str = "UPDATE orders SET v = 'before' WHERE id <= 10;
    BEGIN;
    UPDATE orders SET v = 'inside' WHERE id = 1;
    ALTER TABLE orders ADD COLUMN five int DEFAULT 5;
    UPDATE orders SET five = 6 WHERE id = 7;
    ALTER TABLE orders RENAME COLUMN v TO remark;
    INSERT INTO orders VALUES (101, 'new', 1, 7);
    ALTER TABLE orders DROP COLUMN n;
    UPDATE orders SET remark = 'after' WHERE id = 2;
    COMMIT;
    DELETE FROM orders WHERE id = 8";
const THEIR_ROWS: usize = 2 * 10 + 2 + 2 + 1 + 2 + 1;

#[tokio::test]
async fn a_history_follows_columns_with_every_change_around_them_and_goes_on() {
    for mode in ["both", "history"] {
        let followed = followed_as(ORDERS, in_mode(mode)).await;
        followed.client.batch_execute(SEVERAL_CHANGES).await.unwrap();
        let (_postgres, site) = assert_recorded(followed, 99 + THEIR_ROWS).await;
        assert_eq!(beginnings(&site), 1, "{:?}", operations(&history_folder(&site)));
        let first = Reader::start().schema(Engine::DuckDb, &history_of(&site, "orders").version(0)).await;
        assert_eq!(first[1].0, "v", "the first version keeps its columns: {first:?}");
    }
}

#[tokio::test]
async fn a_history_follows_columns_without_the_event_trigger_too() {
    let mut followed = followed_by_its_owner(ORDERS, in_mode("both")).await;
    // One at a time, so that each is clear from what the stream and the catalog say.
    for sql in [
        "ALTER TABLE orders ADD COLUMN x int; INSERT INTO orders VALUES (101, 'a', 1, 2)",
        "ALTER TABLE orders ADD COLUMN y int DEFAULT 5; UPDATE orders SET y = 6 WHERE id < 5",
        "ALTER TABLE orders RENAME COLUMN v TO w; UPDATE orders SET w = 'b' WHERE id < 5",
        "ALTER TABLE orders DROP COLUMN n; DELETE FROM orders WHERE id = 7",
    ] {
        followed.client.batch_execute(sql).await.unwrap();
        followed.wait_caught_up().await;
    }
    let (_postgres, site) = assert_recorded(followed, 99 + 1 + 2 * 4 + 2 * 4 + 1).await;
    assert_eq!(beginnings(&site), 1, "{:?}", operations(&history_folder(&site)));
}

/// Whoever comes first to the store dies behind its put; or waits before it, and the other one dies.
const BETWEEN_COMMITS: [&str; 2] =
    ["commit-after-put=return(die)", "commit-before-put=1*sleep(1500);commit-after-put=return(die)"];

#[tokio::test]
async fn a_crash_between_the_commits_of_mirror_and_history_leaves_both_in_one_shape() {
    let mut followed = followed_as(ORDERS, in_mode("both")).await;
    followed.wait_caught_up().await;
    let Followed { postgres, client, site, mut daemon } = followed;
    let mirror = site.table("shop/public/orders");
    // Which of the two comes first is up to the machine: until each was ahead of the other.
    let (mut ahead, mut rounds) = (BTreeSet::new(), 0);
    while ahead.len() < 2 {
        assert!(rounds < 16, "a crash never left one of them ahead: {ahead:?}");
        daemon.stop().await;
        client
            .batch_execute(&format!(
                "ALTER TABLE orders ADD COLUMN c{rounds} int DEFAULT {rounds};
                 UPDATE orders SET c{rounds} = 100 WHERE id <= 3;
                 ALTER TABLE orders RENAME COLUMN c{rounds} TO d{rounds};
                 INSERT INTO orders (id) VALUES ({})",
                200 + rounds
            ))
            .await
            .unwrap();
        daemon = site.spawn_armed(BETWEEN_COMMITS[rounds % 2]);
        daemon.ended(SOON).await;
        match last_txn(&mirror).cmp(&last_txn(&history_folder(&site))) {
            Ordering::Equal => {}
            order => drop(ahead.insert(order)),
        }
        daemon = site.start().await;
        daemon.wait_streaming(SOON).await;
        rounds += 1;
    }
    let followed = Followed { postgres, client, site, daemon };
    let (_postgres, site) = assert_recorded(followed, 99 + rounds * (2 * 3 + 1)).await;
    assert_eq!(beginnings(&site), 1, "{:?}", operations(&history_folder(&site)));
}

#[tokio::test]
async fn a_history_outlives_a_rewrite_of_its_table_and_records_what_it_changed() {
    let mut followed = followed_as(ORDERS, in_mode("both")).await;
    let mut rows = 99;
    for (sql, more) in [
        // The same values in a wider type, then as text: nothing differs.
        ("ALTER TABLE orders ALTER COLUMN n TYPE bigint", 0),
        ("ALTER TABLE orders ALTER COLUMN n TYPE text", 0),
        // Every row is another one.
        ("ALTER TABLE orders ALTER COLUMN n TYPE text USING n || '!'", 2 * 99),
        ("ALTER TABLE orders ADD COLUMN twice text GENERATED ALWAYS AS (n || n) STORED", 2 * 99),
    ] {
        followed.wait_caught_up().await;
        let loads = operations(&followed.site.table("shop/public/orders")).len();
        followed.client.batch_execute(sql).await.unwrap();
        let deadline = Instant::now() + SOON;
        let mirror = followed.site.table("shop/public/orders");
        while !operations(&mirror).iter().skip(loads).any(|operation| operation == "LOAD") {
            assert!(Instant::now() < deadline, "{sql}: {:?}", operations(&mirror));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        rows += more;
    }
    followed.client.batch_execute("UPDATE orders SET v = 'after' WHERE id = 1").await.unwrap();
    let (_postgres, site) = assert_recorded(followed, rows + 2).await;
    assert_eq!(beginnings(&site), 1, "{:?}", operations(&history_folder(&site)));
}

#[tokio::test]
async fn a_renamed_and_truncated_table_keeps_its_history_in_its_place() {
    let mut followed = followed_as(ORDERS, in_mode("both")).await;
    let id = property(&history_folder(&followed.site), "tidewater.table_id").unwrap();
    followed
        .client
        .batch_execute(
            "UPDATE orders SET v = 'before' WHERE id = 1;
             ALTER TABLE orders RENAME TO sales;
             UPDATE sales SET v = 'after' WHERE id = 2;
             TRUNCATE sales;
             BEGIN; INSERT INTO sales VALUES (1, 'gone', 1); TRUNCATE sales; INSERT INTO sales VALUES (1, 'a', 1); COMMIT;
             UPDATE sales SET v = 'b'",
        )
        .await
        .unwrap();
    let called = |status: &Value, name: &str| {
        let tables = status["tables"].as_array().unwrap();
        tables.iter().find(|table| table["table"] == name).map(|table| table["location"].clone())
    };
    followed.daemon.wait_status(SOON, |status| called(status, "public.sales_history").is_some()).await;
    followed.wait_caught_up().await;
    let Followed { postgres, site, daemon, .. } = followed;
    daemon.stop().await;
    let (mut reader, folder) = (Reader::start(), history_folder(&site));
    let history = recorded(&mut reader, &LakeTable::at(&folder)).await;
    let changes: Vec<&str> = history.iter().skip(99).map(|row| row.change.as_str()).collect();
    let update = ["update_preimage", "update_postimage"];
    let rest = ["truncate", "insert", "truncate", "insert"];
    assert_eq!(changes, [&update[..], &update, &rest, &update].concat());
    assert_eq!(history.last().unwrap().cells[1].as_deref(), Some("b"));
    assert_eq!((beginnings(&site), property(&folder, "tidewater.table_id").unwrap()), (1, id));
    let source = Source { dsn: &postgres.url("shop"), schema: "public", table: "sales" };
    assert_equal(&mut reader, Engine::DuckDb, &source, &LakeTable::at(&site.table("shop/public/orders")))
        .await;
    let sql = "SELECT count(*) FROM history('shop.public.sales')";
    let counted = site.command(&["sql", sql, "--format", "csv"]).await;
    assert!(counted.stdout.lines().any(|line| line == history.len().to_string()), "{counted:?}");
}

#[tokio::test]
async fn a_table_keeps_its_folders_while_its_mode_goes_back_and_forth() {
    let mut postgres = Postgres::start().await;
    let mut client = postgres.create_database("shop").await;
    client.batch_execute(ORDERS).await.unwrap();
    let url = postgres.url("shop");
    let mut site = Site::new(&configuration(&url, "both"));
    site.run_until_caught_up().await;
    // Named otherwise by now: what is there already stays where it is, in each mode.
    client.batch_execute("ALTER TABLE orders RENAME TO sales").await.unwrap();
    let mut reader = Reader::start();
    let mut rows = 99;
    for (at, mode) in
        ["both", "history", "both", "mirror", "both", "history", "mirror", "both"].iter().enumerate()
    {
        site.configure(&configuration(&url, mode));
        // Changed while it is followed, and before: what a mode misses, the next has to find.
        client.batch_execute(&format!("UPDATE sales SET v = 'down {at}' WHERE id = 1")).await.unwrap();
        let mut daemon = site.start().await;
        daemon.wait_streaming(SOON).await;
        client.batch_execute(&format!("UPDATE sales SET v = 'up {at}' WHERE id = 2")).await.unwrap();
        let mut followed = Followed { postgres, client, site, daemon };
        // What the mode leaves out stays behind.
        followed.wait_position().await;
        followed.daemon.stop().await;
        Followed { postgres, client, site, .. } = followed;
        let source = Source { dsn: &url, schema: "public", table: "sales" };
        if *mode != "history" {
            let mirror = LakeTable::at(&site.table("shop/public/orders"));
            assert_equal(&mut reader, Engine::DuckDb, &source, &mirror).await;
        }
        if *mode != "mirror" {
            let history = recorded(&mut reader, &LakeTable::at(&history_folder(&site))).await;
            assert!(history.len() > rows, "{mode}: {} rows", history.len());
            rows = history.len();
            let newest = |id: &str| {
                let of = history.iter().rfind(|row| row.cells[0].as_deref() == Some(id));
                of.and_then(|row| row.cells[1].clone())
            };
            assert_eq!(newest("1"), Some(format!("down {at}")));
            assert_eq!(newest("2"), Some(format!("up {at}")));
        }
    }
    assert_eq!(beginnings(&site), 1, "{:?}", operations(&history_folder(&site)));
    let folders = std::fs::read_dir(site.table("shop/public")).unwrap();
    let mut folders: Vec<String> =
        folders.map(|folder| folder.unwrap().file_name().to_string_lossy().into_owned()).collect();
    folders.sort();
    assert_eq!(folders, ["orders", "orders_history"]);
}

#[tokio::test]
async fn a_table_made_again_under_its_name_goes_on_in_its_history_with_what_differs() {
    let mut followed = followed_as(ORDERS, in_mode("both")).await;
    followed.wait_caught_up().await;
    let made_again = "BEGIN; DROP TABLE orders; CREATE TABLE orders (id int PRIMARY KEY, v text, n int);
        INSERT INTO orders SELECT n, 'old', n FROM generate_series(1, 97) n; INSERT INTO orders VALUES (200, 'new', 1); COMMIT;
        UPDATE orders SET v = 'new' WHERE id = 1";
    followed.client.batch_execute(made_again).await.unwrap();
    let is_there = |status: &Value| rows_of(status, "public.orders") == Some(98);
    followed.daemon.wait_status(SOON, is_there).await;
    followed.client.batch_execute("DELETE FROM orders WHERE id = 2").await.unwrap();
    // Three are gone (98 to 100), two came (50 and 200), one is another; then the deletion.
    let (_postgres, site) = assert_recorded(followed, 99 + 3 + 2 + 2 + 1).await;
    assert_eq!(beginnings(&site), 1, "{:?}", operations(&history_folder(&site)));
}

#[tokio::test]
async fn a_history_whose_key_becomes_another_begins_anew_and_keeps_what_it_held_in_its_versions() {
    let mut followed = followed_as(ORDERS, in_mode("both")).await;
    followed.client.batch_execute("UPDATE orders SET v = 'before' WHERE id < 10").await.unwrap();
    followed.wait_caught_up().await;
    let held = operations(&history_folder(&followed.site)).len() as u64 - 1;
    let other_key = "BEGIN; ALTER TABLE orders DROP CONSTRAINT orders_pkey; ALTER TABLE orders ADD PRIMARY KEY (n); COMMIT;
        UPDATE orders SET v = 'after' WHERE n = 7";
    followed.client.batch_execute(other_key).await.unwrap();
    followed
        .daemon
        .wait_log(SOON, &["this history cannot be compared with its source and begins anew"])
        .await;
    followed.daemon.wait_streaming(SOON).await;
    followed.wait_caught_up().await;
    followed
        .client
        .batch_execute("UPDATE orders SET id = -id, v = 'by the new key' WHERE n = 8")
        .await
        .unwrap();
    let (_postgres, site) = assert_recorded(followed, 99 + 2).await;
    let before = history_of(&site, "orders").version(held);
    assert_eq!(Reader::start().count(Engine::DuckDb, &before).await, 99 + 2 * 9);
}
