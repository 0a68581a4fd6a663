//! Every type of the contract, through the first load and through the stream, as all four readers see it.
//!
//! This is the one test that asks Spark, whose JVM is slow to start; so the tables of the shop are in the
//! same database, and Spark judges updates, deletes and moved keys of every kind of table here as well.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tidewater_e2e::{Postgres, Shop, Site, Traffic, free_port};
use tokio::process::Command;

/// Spark's start included, on a busy machine.
const COMPARE_LIMIT: Duration = Duration::from_secs(400);

fn readers_folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/readers"))
}

#[tokio::test]
async fn every_type_and_shape_reads_the_same_in_spark_duckdb_polars_and_delta_rs() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    let sql = |name: &str| std::fs::read_to_string(readers_folder().join(name)).unwrap();
    client.batch_execute(&sql("type_map.sql")).await.unwrap();
    Shop::create(&client).await;
    let url = postgres.url("shop");
    let site = Site::new(&format!(
        "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
         databases:\n  shop: {{url: \"{url}\", tls: disable}}\n\
         to_lake:\n  - {{database: shop, tables: [\"*.*\"], exclude: [\"collisions.*\"], flush: 200ms}}\n",
        free_port()
    ));

    let mut daemon = site.start().await;
    daemon.wait_streaming(Duration::from_secs(60)).await;
    let traffic = Traffic::start(&url, 7, 2, None, Duration::from_millis(2));
    client.batch_execute(&sql("type_map_changes.sql")).await.unwrap();
    traffic.wait_for(500).await;
    traffic.stop().await;
    daemon.stop().await;
    site.run_until_caught_up().await;

    let mut compare = Command::new(readers_folder().join("../../.venv/bin/python"));
    compare.arg(readers_folder().join("type_map_compare.py"));
    compare.args(["--dsn", &url, "--lake", "lake", "--database", "shop", "--exclude", "collisions.*"]);
    for table in Shop::INSERTS_ONLY {
        compare.args(["--exclude", &format!("public.{table}")]);
    }
    compare.current_dir(site.path()).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(COMPARE_LIMIT, compare.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}
