//! `kill -9`, at random moments, of the daemon, of Postgres, and of both, while the application works.
//!
//! Every moment comes from one seed, printed first; `TIDEWATER_TEST_SEED` repeats a run's choices (not the
//! machine's timing). At each kill two things are looked at besides the rows at the end: the slot must not be
//! confirmed past what the lake holds, and every version must hold whole transactions.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidewater_e2e::{Engine, Postgres, Reader, Shop, Site, Traffic, is_behind_the_slot, last_txn};
use tokio_postgres::Client;

/// Takes long enough to load that some of the kills hit the load.
const BIG_ROWS: i32 = 200_000;

/// The longest life of a daemon between two kills.
const LIFE: u64 = 1500;

pub fn seed() -> u64 {
    let seed = std::env::var("TIDEWATER_TEST_SEED")
        .map_or_else(|_| rand::rng().random(), |text| text.parse().unwrap());
    println!("TIDEWATER_TEST_SEED={seed}");
    seed
}

/// Postgres's own account of what it sent: a slot that nothing but [`Observer::assert_confirmed_is_in_the_lake`] reads.
struct Observer {
    newest_transaction: u64,
    comparisons: u32,
}

impl Observer {
    async fn start(client: &Client) -> Observer {
        client
            .execute("SELECT pg_create_logical_replication_slot('observer', 'test_decoding')", &[])
            .await
            .unwrap();
        Observer { newest_transaction: 0, comparisons: 0 }
    }

    /// With the daemon dead: each transaction at or below the slot's confirmed position is in `accounts`, which
    /// every transaction of the traffic changes.
    async fn assert_confirmed_is_in_the_lake(&mut self, postgres: &Postgres, site: &Site) {
        // A session of its own each time, with memory to decode in: with the cluster's 64 kB, a backend of
        // PostgreSQL 18.6 was seen to crash when it decoded from SQL again and again.
        let client = postgres.connect("shop").await;
        client.batch_execute("SET logical_decoding_work_mem = '64MB'").await.unwrap();
        let confirmed = "SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE slot_name LIKE 'tidewater%' AND NOT temporary";
        let Some(row) = client.query_opt(confirmed, &[]).await.unwrap() else { return };
        let confirmed: i64 = row.get(0);
        let newest = format!(
            "SELECT max(lsn - '0/0')::int8 FROM pg_logical_slot_get_changes('observer', '0/0'::pg_lsn + {confirmed}, NULL, 'skip-empty-xacts', '1')
             WHERE data LIKE 'COMMIT%' AND lsn <= '0/0'::pg_lsn + {confirmed}"
        );
        let newest: Option<i64> = client.query_one(&newest, &[]).await.unwrap().get(0);
        self.newest_transaction = self.newest_transaction.max(newest.unwrap_or(0).unsigned_abs());
        if confirmed == 0 || is_behind_the_slot(&site.table("shop"), "public/accounts") {
            return;
        }
        self.comparisons += 1;
        let (newest, held) = (self.newest_transaction, last_txn(&site.table("shop/public/accounts")));
        assert!(
            held.is_some_and(|held| newest <= held),
            "the slot is confirmed past {newest}, the lake holds {held:?}"
        );
    }
}

async fn drop_observer(client: &Client) {
    client.execute("SELECT pg_drop_replication_slot('observer')", &[]).await.unwrap();
}

async fn assert_nothing_lost_or_doubled(url: &str, site: &Site, more: &[&str]) {
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    Shop::assert_mirrored(&mut reader, Engine::DuckDb, url, &site.lake(), more).await;
    Shop::assert_whole_transactions(&mut reader, Engine::DuckDb, &site.lake(), 60).await;
}

#[tokio::test]
async fn fifty_killed_daemons_lose_nothing_and_double_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    Shop::create_big(&client, BIG_ROWS.unsigned_abs()).await;
    let mut observer = Observer::start(&client).await;
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let traffic = Traffic::start(&url, random.random(), 2, Some(("big", BIG_ROWS)), Duration::from_millis(5));
    for _ in 0..50 {
        let daemon = site.spawn();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..LIFE))).await;
        daemon.kill9().await;
        observer.assert_confirmed_is_in_the_lake(&postgres, &site).await;
    }
    traffic.stop().await;
    assert!(observer.comparisons > 10, "only {} of the kills came after the load", observer.comparisons);
    drop_observer(&client).await;
    assert_nothing_lost_or_doubled(&url, &site, &["big"]).await;
}

#[tokio::test]
async fn ten_killed_servers_lose_nothing_and_double_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let mut daemon = site.spawn();
    let traffic = Traffic::start(&url, random.random(), 2, None, Duration::from_millis(5));
    for kill in 0..10 {
        traffic.wait_for(random.random_range(1..150)).await;
        if kill % 2 == 0 {
            // The other half is killed at whatever stage of coming back the daemon is.
            daemon.wait_streaming(Duration::from_secs(60)).await;
        }
        postgres.kill9().await;
        postgres.restart().await;
    }
    traffic.wait_for(50).await;
    traffic.stop().await;
    daemon.wait_ready().await;
    daemon.stop().await;
    assert_nothing_lost_or_doubled(&url, &site, &[]).await;
}

#[tokio::test]
async fn killing_both_sides_at_once_loses_nothing_and_doubles_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    let mut observer = Observer::start(&client).await;
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let traffic = Traffic::start(&url, random.random(), 2, None, Duration::from_millis(5));
    for _ in 0..8 {
        let daemon = site.spawn();
        tokio::time::sleep(Duration::from_millis(random.random_range(200..2 * LIFE))).await;
        if random.random() {
            daemon.kill9().await;
            postgres.kill9().await;
        } else {
            postgres.kill9().await;
            daemon.kill9().await;
        }
        postgres.restart().await;
        observer.assert_confirmed_is_in_the_lake(&postgres, &site).await;
    }
    traffic.wait_for(50).await;
    traffic.stop().await;
    drop_observer(&postgres.connect("shop").await).await;
    assert_nothing_lost_or_doubled(&url, &site, &[]).await;
}

#[tokio::test]
async fn a_daemon_killed_while_it_reloads_a_changed_table_loses_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    Shop::create_big(&client, 50_000).await;
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let mut daemon = site.start().await;
    daemon.wait_streaming(Duration::from_secs(60)).await;
    let traffic = Traffic::start(&url, random.random(), 2, Some(("big", 50_000)), Duration::from_millis(5));
    for column in 0..6 {
        for table in ["big", "keyed"] {
            let add = format!("ALTER TABLE {table} ADD COLUMN c{column} int DEFAULT {column}");
            client.batch_execute(&add).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..LIFE))).await;
        daemon.kill9().await;
        daemon = site.spawn();
    }
    traffic.wait_for(20).await;
    traffic.stop().await;
    daemon.wait_streaming(Duration::from_secs(60)).await;
    daemon.stop().await;
    assert_nothing_lost_or_doubled(&url, &site, &["big"]).await;
}
