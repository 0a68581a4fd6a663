//! `kill -9` of the daemon and of Postgres at random moments, under a reader that never may see an empty, half loaded
//! or mixed table.
//!
//! Money only moves between the rows of `accounts`: a version that is served in part shows another sum, or another
//! number of rows. `TIDEWATER_SERVING_KILLS` says how many kills there are, `TIDEWATER_TEST_SEED` repeats their choice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::serving::{Served, wait_state};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidewater_e2e::{Reader, Shop, Traffic};
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

/// The longest life of a daemon between two kills.
const LIFE: u64 = 1500;
const RECONNECT: Duration = Duration::from_millis(20);

fn seed() -> u64 {
    let seed = std::env::var("TIDEWATER_TEST_SEED")
        .map_or_else(|_| rand::rng().random(), |text| text.parse().unwrap());
    println!("TIDEWATER_TEST_SEED={seed}");
    seed
}

fn kills() -> u32 {
    std::env::var("TIDEWATER_SERVING_KILLS").map_or(15, |text| text.parse().unwrap())
}

/// An application that reads the served accounts all the time.
struct Watcher {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Watcher {
    fn start(url: String) -> Watcher {
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn(watch(url, stop.clone(), reads.clone()));
        Watcher { stop, reads, task }
    }

    /// Fails if it ever saw part of a version. Gives how often it looked.
    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.reads.load(Ordering::Relaxed)
    }
}

async fn watch(url: String, stop: Arc<AtomicBool>, reads: Arc<AtomicU64>) {
    // One statement, one snapshot: the version belongs to the rows beside it.
    let sql = "SELECT count(*), sum(balance)::int8,
                 (SELECT version FROM tidewater.served_tables WHERE table_name = 'accounts') FROM serving.accounts";
    let mut newest = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await else {
            tokio::time::sleep(RECONNECT).await;
            continue;
        };
        tokio::spawn(connection);
        while !stop.load(Ordering::Relaxed) {
            match client.query_one(sql, &[]).await {
                Ok(row) => {
                    let (count, sum, version): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
                    assert_eq!((count, sum), (200, 200_000), "version {version} is served in part");
                    assert!(version >= newest, "version {version} is served after {newest}");
                    newest = version;
                    reads.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    assert!(
                        error.as_db_error().is_none_or(|error| error.code().code().starts_with("57")),
                        "{error:?}"
                    );
                    break;
                }
            }
        }
    }
}

fn accounts() -> Vec<&'static str> {
    vec![
        "table: shop.public.accounts, into: serving.accounts, mode: continuous, primary_key: [id]",
        "table: shop.public.keyed, into: serving.keyed, mode: continuous, primary_key: [id]",
    ]
}

#[tokio::test]
async fn a_reader_sees_whole_versions_only_while_everything_is_killed() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut served = Served::new("", &accounts()).await;
    Shop::create(&served.source).await;
    served.site.run_until_caught_up().await;
    let url = served.postgres.url("shop");
    let watcher = Watcher::start(served.postgres.url("app"));
    let traffic = Traffic::start(&url, random.random(), 2, None, Duration::from_millis(5));
    for kill in 0..kills() {
        let daemon = served.site.spawn();
        tokio::time::sleep(Duration::from_millis(random.random_range(200..LIFE))).await;
        if kill % 3 == 1 {
            // A reload is killed as well as changes are.
            served.site.command(&["resync", "serving.accounts"]).await;
        }
        let postgres_too = kill % 4 == 3;
        if postgres_too {
            served.postgres.kill9().await;
        }
        daemon.kill9().await;
        if postgres_too {
            served.postgres.restart().await;
        }
    }
    traffic.wait_for(20).await;
    traffic.stop().await;
    served.site.run_until_caught_up().await;
    assert!(watcher.stop().await > 100, "the reader hardly read");
    served.target = served.postgres.connect("app").await;
    let mut reader = Reader::start();
    for table in ["accounts", "keyed"] {
        served.assert_served(&mut reader, table).await;
    }
}

#[tokio::test]
async fn a_daemon_that_dies_around_a_commit_applies_each_version_once() {
    let served = Served::new("", &accounts()).await;
    Shop::create(&served.source).await;
    let mut reader = Reader::start();
    let points = ["serving-before-first-commit", "serving-after-first-commit"];
    for point in points {
        let daemon = served.site.spawn_armed(&format!("{point}=return"));
        daemon.ended(Duration::from_secs(60)).await;
    }
    served.site.run_until_caught_up().await;
    for (round, point) in ["serving-before-commit", "serving-after-commit"].into_iter().enumerate() {
        let change = format!(
            "UPDATE accounts SET balance = balance + 1 WHERE id = {}; UPDATE accounts SET balance = balance - 1 WHERE id = 1",
            round + 2
        );
        let daemon = served.site.spawn_armed(&format!("{point}=return"));
        served.source.batch_execute(&change).await.unwrap();
        daemon.ended(Duration::from_secs(60)).await;
        served.site.run_until_caught_up().await;
        served.assert_served(&mut reader, "accounts").await;
    }
    for point in ["serving-before-reload-commit", "serving-after-reload-commit"] {
        let mut daemon = served.site.spawn_armed(&format!("{point}=return"));
        wait_state(&mut daemon, "serving.accounts", "serving").await;
        served.source.batch_execute("UPDATE keyed SET n = n + 1").await.unwrap();
        served.site.command(&["resync", "serving.accounts"]).await;
        daemon.ended(Duration::from_secs(60)).await;
        served.site.run_until_caught_up().await;
        served.assert_served(&mut reader, "accounts").await;
    }
}
