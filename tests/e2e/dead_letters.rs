//! Values that Delta cannot hold are null in the lake, and kept where a stock reader finds them.

use std::time::Duration;

use tidewater_e2e::{Engine, LakeTable, Postgres, Reader, Site};

const COLUMNS: [&str; 6] = ["database", "table", "key", "column", "value", "reason"];

#[tokio::test]
async fn a_value_that_delta_cannot_hold_is_recorded_with_its_key_and_text() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE events (id int PRIMARY KEY, day date, amount numeric(10, 2));
             INSERT INTO events VALUES (1, 'infinity', 1), (2, '2026-01-01', 2)",
        )
        .await
        .unwrap();
    let site = Site::of_shop(&postgres.url("shop"));
    let mut daemon = site.start().await;
    daemon.wait_streaming(Duration::from_secs(60)).await;
    client
        .batch_execute(
            "INSERT INTO events VALUES (3, '-infinity', 'NaN'); UPDATE events SET amount = 5 WHERE id = 2",
        )
        .await
        .unwrap();
    daemon.stop().await;
    site.run_until_caught_up().await;

    let letters = LakeTable::at(&site.table("tidewater/telemetry/dead_letters"));
    let mut reader = Reader::start();
    for engine in [Engine::DuckDb, Engine::DeltaRs, Engine::Polars] {
        let mut rows = reader.columns(engine, &letters, &COLUMNS).await;
        rows.sort();
        rows.dedup();
        let shown: Vec<String> = rows
            .iter()
            .map(|row| row.iter().take(5).flatten().map(String::as_str).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            shown,
            [
                "shop public.events 1 day infinity",
                "shop public.events 3 amount NaN",
                "shop public.events 3 day -infinity"
            ],
            "{engine:?}"
        );
        assert!(rows.iter().all(|row| row[5].as_deref().is_some_and(|reason| !reason.is_empty())));
    }
    // Lake SQL has it under the name of the contract.
    let answer = site
        .command(&["sql", "SELECT count(*) FROM tidewater.telemetry.dead_letters", "--format", "csv"])
        .await;
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
}
