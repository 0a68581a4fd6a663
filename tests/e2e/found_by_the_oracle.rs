//! What seeds of the crash oracle found, made small: one test for each bug.

use std::time::Duration;

use serde_json::Value;
use tidewater_e2e::{Engine, LakeTable, Postgres, Reader, Site, Source, assert_equal};

const SOON: Duration = Duration::from_secs(60);

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
