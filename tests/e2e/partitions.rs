//! Partitions that come, go and are emptied alone: one lake table, always equal to the root.

use std::time::{Duration, Instant};

use tidewater_e2e::operations;

use crate::followed::{Followed, SOON, followed, rows_of};

const EVENTS: &str =
    "CREATE TABLE events (id int, day int, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);
    CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (10) TO (20);
    INSERT INTO events SELECT n, n % 20, 'old' FROM generate_series(1, 200) n";

async fn events() -> Followed {
    followed(EVENTS).await
}

async fn wait_rows(followed: &mut Followed, rows: u64) {
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.events") == Some(rows)).await;
}

#[tokio::test]
async fn an_attached_partition_brings_its_rows_and_they_can_be_changed() {
    let mut followed = events().await;
    followed
        .client
        .batch_execute(
            "CREATE TABLE events_3 (LIKE events INCLUDING ALL);
             INSERT INTO events_3 SELECT n, 25, 'attached' FROM generate_series(1000, 1099) n;
             ALTER TABLE events ATTACH PARTITION events_3 FOR VALUES FROM (20) TO (30);
             UPDATE events SET v = 'changed' WHERE id = 1005",
        )
        .await
        .unwrap();
    wait_rows(&mut followed, 300).await;
    followed.client.batch_execute("DELETE FROM events WHERE id > 1090").await.unwrap();
    wait_rows(&mut followed, 291).await;
    followed.assert_equal_at_the_end(&["events"]).await;
}

#[tokio::test]
async fn a_detached_partition_takes_its_rows_away_and_so_does_a_dropped_one() {
    let mut followed = events().await;
    followed.client.batch_execute("ALTER TABLE events DETACH PARTITION events_2").await.unwrap();
    wait_rows(&mut followed, 100).await;
    followed
        .client
        .batch_execute("CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM (30) TO (40); INSERT INTO events VALUES (500, 31, 'new')")
        .await
        .unwrap();
    wait_rows(&mut followed, 101).await;
    followed.client.batch_execute("DROP TABLE events_1").await.unwrap();
    wait_rows(&mut followed, 1).await;
    followed.assert_equal_at_the_end(&["events"]).await;
}

#[tokio::test]
async fn a_partition_that_is_truncated_alone_is_empty_in_the_lake_too() {
    let mut followed = events().await;
    followed
        .client
        .batch_execute("TRUNCATE events_1; INSERT INTO events VALUES (500, 1, 'new')")
        .await
        .unwrap();
    wait_rows(&mut followed, 101).await;
    followed.assert_equal_at_the_end(&["events"]).await;
}

#[tokio::test]
async fn a_new_partition_costs_no_load() {
    let mut followed = events().await;
    followed
        .client
        .batch_execute(
            "CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM (20) TO (30);
             INSERT INTO events SELECT n, 25, 'new' FROM generate_series(1000, 1099) n",
        )
        .await
        .unwrap();
    wait_rows(&mut followed, 300).await;
    let table = followed.site.table("shop/public/events");
    // The look at the catalog that finds the new partition leaves a version of its own.
    let deadline = Instant::now() + SOON;
    while !operations(&table).iter().any(|operation| operation == "CHANGE COLUMNS") {
        assert!(Instant::now() < deadline, "{:?}", operations(&table));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(operations(&table).iter().filter(|operation| *operation == "LOAD").count(), 1);
    followed.assert_equal_at_the_end(&["events"]).await;
}

#[tokio::test]
async fn the_partitions_columns_follow_their_root() {
    let mut followed = events().await;
    followed
        .client
        .batch_execute(
            "ALTER TABLE events ADD COLUMN note text;
             UPDATE events SET note = 'n' WHERE id < 20;
             ALTER TABLE events ADD COLUMN five int DEFAULT 5;
             UPDATE events SET five = 6 WHERE id = 1;
             ALTER TABLE events RENAME COLUMN v TO w;
             INSERT INTO events VALUES (500, 1, 'new', 'n', 7)",
        )
        .await
        .unwrap();
    wait_rows(&mut followed, 201).await;
    followed.assert_equal_at_the_end(&["events"]).await;
}

#[tokio::test]
async fn a_partition_attached_while_the_daemon_is_down_is_noticed() {
    let Followed { postgres, client, site, daemon } = events().await;
    daemon.stop().await;
    client
        .batch_execute(
            "ALTER TABLE events DETACH PARTITION events_1;
             INSERT INTO events_1 VALUES (900, 1, 'aside');
             ALTER TABLE events ATTACH PARTITION events_1 FOR VALUES FROM (0) TO (10)",
        )
        .await
        .unwrap();
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    Followed { postgres, client, site, daemon }.assert_equal_at_the_end(&["events"]).await;
}
