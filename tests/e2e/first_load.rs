//! The first load while the application works on.

use std::time::Duration;

use tidewater_e2e::{Engine, Postgres, Reader, Shop, Site, Traffic};

/// Long enough to be met in the middle by hundreds of transactions.
const BIG_ROWS: i32 = 1_000_000;

#[tokio::test]
async fn changes_during_the_first_load_of_a_million_rows_are_all_there_once() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    Shop::create_big(&client, BIG_ROWS.unsigned_abs()).await;
    let url = postgres.url("shop");
    let traffic = Traffic::start(&url, 11, 3, Some(("big", BIG_ROWS)), Duration::from_millis(3));
    traffic.wait_for(100).await;

    let site = Site::of_shop(&url);
    let mut daemon = site.spawn();
    daemon
        .wait_status(Duration::from_secs(60), |status| {
            let tables = status["tables"].as_array().unwrap();
            tables.iter().any(|table| table["table"] == "public.big" && table["state"] == "loading")
        })
        .await;
    traffic.wait_for(100).await;
    daemon.wait_streaming(Duration::from_secs(180)).await;
    traffic.wait_for(300).await;
    traffic.stop().await;
    daemon.stop().await;
    site.run_until_caught_up().await;

    let mut reader = Reader::start();
    Shop::assert_mirrored(&mut reader, Engine::DuckDb, &url, &site.lake(), &["big"]).await;
    Shop::assert_whole_transactions(&mut reader, Engine::DuckDb, &site.lake(), 60).await;
}
