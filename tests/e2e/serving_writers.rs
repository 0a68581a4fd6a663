//! Tables that delta-rs and DuckDB write, in a folder and in an object store, served row for row at each version.

use crate::gold::Gold;
use serde_json::{Value, json};
use tidewater_e2e::Engine;

const ENTRY: &str = "table: gold.t, into: serving.t, mode: continuous, primary_key: [id]";

const COLUMNS: [&str; 6] = ["id", "name", "ratio", "amount", "at", "part"];

const FIRST: &str = "SELECT i AS id, 'n' || i AS name, i / 7 AS ratio, CAST(i AS DECIMAL(12,2)) AS amount,
    TIMESTAMPTZ '2026-01-01 00:00:00+00' + to_seconds(i) AS at, i % 3 AS part FROM range(400) r(i)";

fn merge(factor: u32, name: &str) -> Value {
    let source =
        format!("SELECT i * {factor} AS id, '{name}' AS name, i % 5 = 0 AS gone FROM range(200) r(i)");
    json!([{"merge": source, "on": "t.id = s.id"}])
}

fn update(column: &str, expression: &str, condition: &str) -> Value {
    json!([{"update": {column: expression}, "where": condition}])
}

/// A table's life under delta-rs: what changes rows and what only moves them, without a Change Data Feed and with one.
fn life() -> Vec<Value> {
    vec![
        json!([{"overwrite": FIRST}]),
        merge(3, "merged"),
        update("amount", "amount * 2", "id between 10 and 40"),
        json!([{"delete": "id > 500"}]),
        json!([{"optimize": null}]),
        json!([{"z_order": ["id"]}]),
        json!([{"properties": {"delta.enableChangeDataFeed": "true"}}]),
        update("name", "'fed'", "id % 7 = 0"),
        merge(2, "merged under a feed"),
        json!([{"delete": "part = 1"}]),
        json!([{"append": "SELECT i AS id, 'added' AS name, 'x' AS added FROM range(2000, 2010) r(i)"}]),
        json!([{"restore": 3}]),
        json!([{"overwrite": FIRST.replace("400", "90")}]),
    ]
}

async fn live(gold: &mut Gold, steps: Vec<Value>) {
    for step in steps {
        gold.write("deltalake", "gold/t", step).await;
        gold.assert_served(Engine::DeltaRs, "gold/t", "t", &COLUMNS).await;
    }
}

#[tokio::test]
async fn whatever_delta_rs_and_duckdb_do_to_a_table_is_served_at_each_version() {
    let mut gold = Gold::new(&[ENTRY]).await;
    let daemon = gold.site.start().await;
    let mut steps = life();
    live(&mut gold, vec![steps.remove(0)]).await;
    // DuckDB's extension appends, with every column named, to tables in folders that have no features.
    let rows = "INSERT INTO {t} SELECT i, 'duck', 0.5, 1.25, TIMESTAMPTZ '2026-02-02 02:02:02+00', 7 FROM range(3000, 3010) r(i)";
    gold.write("duckdb", "gold/t", json!([rows])).await;
    gold.assert_served(Engine::DuckDb, "gold/t", "t", &COLUMNS).await;
    live(&mut gold, steps).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_table_in_an_object_store_is_served_as_one_in_a_folder() {
    let mut gold = Gold::in_s3(&[ENTRY]).await;
    let daemon = gold.site.start().await;
    let steps = vec![json!([{"overwrite": FIRST}]), merge(3, "merged"), json!([{"delete": "id > 500"}])];
    live(&mut gold, steps).await;
    assert!(gold.folder("gold/t/_delta_log").is_dir());
    daemon.stop().await;
}
