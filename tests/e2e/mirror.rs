//! The main path: rows written to Postgres are the rows a stock reader finds in the lake.

use tidewater_e2e::{Engine, LakeTable, Postgres, Reader, Site, Source, assert_equal};

#[tokio::test]
async fn a_mirror_follows_inserts_updates_and_deletes_across_runs() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, country text, amount numeric(12, 2));
             INSERT INTO orders SELECT n, 'c' || n % 7, n / 3.0 FROM generate_series(1, 1000) n",
        )
        .await
        .unwrap();
    let url = postgres.url("shop");
    let site = Site::mirroring(&url, r#"["public.*"]"#);
    let source = Source { dsn: &url, schema: "public", table: "orders" };
    let lake = LakeTable::at(&site.table("shop/public/orders"));
    let mut reader = Reader::start();

    site.run_until_caught_up().await;
    assert_equal(&mut reader, Engine::DuckDb, &source, &lake).await;

    client
        .batch_execute(
            "UPDATE orders SET country = 'moved' WHERE id % 10 = 0;
             UPDATE orders SET id = id + 10000 WHERE id % 100 = 1;
             DELETE FROM orders WHERE id % 10 = 5;
             INSERT INTO orders VALUES (5000, NULL, NULL), (5001, '', 0)",
        )
        .await
        .unwrap();
    site.run_until_caught_up().await;
    for engine in [Engine::DuckDb, Engine::Polars, Engine::DeltaRs] {
        assert_equal(&mut reader, engine, &source, &lake).await;
    }
}
