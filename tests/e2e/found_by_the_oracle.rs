//! What seeds of the crash oracle found, made small: one test for each bug.

use serde_json::{Value, json};
use tidewater_e2e::{
    Engine, Fault, LakeTable, Postgres, Reader, S3Server, Site, Source, assert_equal, free_port,
};

use crate::followed::{Followed, SOON, wait_some};

fn state_of<'a>(status: &'a Value, table: &str) -> Option<&'a str> {
    status["tables"].as_array()?.iter().find(|shown| shown["table"] == table)?["state"].as_str()
}

/// Seed 108: the COPY named a column that was gone by then, and the table was halted for good.
#[tokio::test]
async fn a_column_dropped_between_the_plan_and_the_load_does_not_halt_the_table() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, v text, gone text);
             INSERT INTO orders SELECT n, 'v', 'g' FROM generate_series(1, 100) n",
        )
        .await
        .unwrap();
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let mut daemon = site.spawn_armed("snapshot-before-export=1*sleep(2000)");
    daemon.wait_status(SOON, |status| state_of(status, "public.orders") == Some("loading")).await;
    client.batch_execute("ALTER TABLE orders DROP COLUMN gone").await.unwrap();
    daemon.wait_status(SOON, |status| state_of(status, "public.orders") == Some("streaming")).await;
    daemon.stop().await;
    let source = Source { dsn: &url, schema: "public", table: "orders" };
    let lake = LakeTable::at(&site.table("shop/public/orders"));
    assert_equal(&mut Reader::start(), Engine::DuckDb, &source, &lake).await;
}

/// Seed 18: the table was renamed between the plan and the publications, and the daemon ended with an error.
#[tokio::test]
async fn a_table_renamed_between_the_plan_and_the_publications_does_not_end_the_daemon() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute("CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1)")
        .await
        .unwrap();
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let mut daemon = site.spawn_armed("publications-before-change=1*sleep(2000)");
    // Its plan is made once it waits there, and has not been made before it has connected.
    let connected = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_current_wal%' AND pid <> pg_backend_pid()";
    wait_some(&client, connected).await;
    client.batch_execute("ALTER TABLE orders RENAME TO sales").await.unwrap();
    daemon.wait_status(SOON, |status| state_of(status, "public.sales") == Some("streaming")).await;
    daemon.stop().await;
    let source = Source { dsn: &url, schema: "public", table: "sales" };
    let lake = LakeTable::at(&site.table("shop/public/sales"));
    assert_equal(&mut Reader::start(), Engine::DuckDb, &source, &lake).await;
}

/// Seed 122: a table was shown at the slot's position while what was set aside during its load was not in the lake
/// yet.
#[tokio::test]
async fn status_shows_no_position_beyond_what_the_lake_holds_of_a_table() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute("CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1)")
        .await
        .unwrap();
    let site = Site::of_shop(&postgres.url("shop"));
    // The load's commit is the first, that of the changes set aside meanwhile the second: it takes three seconds.
    let slow = "snapshot-after-export=1*sleep(1500);commit-before-put=1*off->1*sleep(3000)";
    let mut daemon = site.spawn_armed(slow);
    daemon.wait_status(SOON, |status| state_of(status, "public.orders") == Some("loading")).await;
    // Behind the snapshot, which is exported while the table is shown as loading.
    let exported =
        "SELECT count(*) FROM pg_replication_slots WHERE temporary AND confirmed_flush_lsn IS NOT NULL";
    wait_some(&client, exported).await;
    client.batch_execute("INSERT INTO orders VALUES (2)").await.unwrap();
    let position: String =
        client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0);
    daemon.wait_status(SOON, |status| is_past(status, "public.orders", &position)).await;
    let lake = LakeTable::at(&site.table("shop/public/orders"));
    assert_eq!(Reader::start().count(Engine::DuckDb, &lake).await, 2);
    daemon.stop().await;
}

/// Seed 181: the pause was taken up and not written down yet, so `resume` said that the table was not paused, and it
/// stayed so.
#[tokio::test]
async fn a_table_is_resumed_whose_pause_is_still_being_written_down() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client.batch_execute("CREATE TABLE orders (id int PRIMARY KEY)").await.unwrap();
    let store = S3Server::start().await;
    let mut options = store.lake_options();
    options["timeout"] = json!("5s");
    let site = Site::new(
        &json!({
            "version": 1,
            "lake": {"uri": "s3://lake/main", "options": options},
            "listen": {"http": format!("127.0.0.1:{}", free_port())},
            "databases": {"shop": {"url": postgres.url("shop"), "tls": "disable"}},
            "to_lake": [{"database": "shop", "tables": ["public.*"], "flush": "200ms"}],
        })
        .to_string(),
    );
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    // Where the pause is written down first.
    store.faults().fail_next("PUT", "sync_state", Fault::Hung, 1);
    site.succeeds(&["pause", "--hold", "public.orders"]).await;
    site.succeeds(&["resume", "public.orders"]).await;
    client.batch_execute("INSERT INTO orders VALUES (1)").await.unwrap();
    Followed { postgres, client, site, daemon }.wait_position().await;
}

fn is_past(status: &Value, table: &str, position: &str) -> bool {
    let number = |text: &str| {
        let (high, low) = text.split_once('/').unwrap();
        (u64::from_str_radix(high, 16).unwrap(), u64::from_str_radix(low, 16).unwrap())
    };
    let shown = status["tables"].as_array().into_iter().flatten().find(|shown| shown["table"] == table);
    let reached = shown.and_then(|shown| shown["position"].as_str());
    reached.is_some_and(|reached| number(reached) >= number(position))
}
