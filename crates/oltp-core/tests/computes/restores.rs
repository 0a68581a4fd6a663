//! Any moment of a database under load comes back as a client saw it that wrote down what it did.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use oltp_core::Timestamp;
use oltp_core::branches::Point;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::lab::{Lab, named, project};

/// What the client's table has.
type Rows = BTreeMap<i32, i32>;

const KEYS: i32 = 40;

/// Inserts, changes and deletes, one commit each, and keeps count.
struct Checking {
    client: Client,
    random: StdRng,
    rows: Rows,
}

impl Checking {
    async fn commit(&mut self) {
        let (key, value) = (self.random.random_range(0..KEYS), self.random.random());
        let sql = match self.rows.contains_key(&key) {
            false => "INSERT INTO checked VALUES ($1, $2)",
            true if self.random.random_bool(0.3) => {
                "DELETE FROM checked WHERE key = $1 AND $2::int IS NOT NULL"
            }
            true => "UPDATE checked SET value = $2 WHERE key = $1",
        };
        assert_eq!(self.client.execute(sql, &[&key, &value]).await.unwrap(), 1);
        if sql.starts_with("DELETE") {
            self.rows.remove(&key);
        } else {
            self.rows.insert(key, value);
        }
    }

    async fn lsn(&self) -> Point {
        let sql = "SELECT pg_current_wal_insert_lsn()::text";
        let lsn: String = self.client.query_one(sql, &[]).await.unwrap().get(0);
        Point::Lsn(lsn.parse().unwrap())
    }
}

async fn rows(client: &Client) -> Rows {
    let rows = client.query("SELECT key, value FROM checked", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn restores_to_random_moments_under_load_equal_what_a_checking_client_recorded() {
    let lab = Lab::new().await;
    let main = lab.project().await;
    let compute = lab.start(main).await;
    let client = compute.owner().await;
    client
        .batch_execute(
            "CREATE TABLE checked (key int PRIMARY KEY, value int); CREATE TABLE load (n int, t text)",
        )
        .await
        .unwrap();
    let (mut load, stop) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
    for _ in 0..2 {
        let (client, stop) = (compute.owner().await, Arc::clone(&stop));
        load.spawn(async move {
            let statement = "INSERT INTO load SELECT n, md5(n::text) FROM generate_series(1, 50) n";
            while !stop.load(Ordering::Relaxed) && client.batch_execute(statement).await.is_ok() {}
        });
    }
    let mut checking = Checking { client, random: StdRng::seed_from_u64(7), rows: Rows::new() };
    let mut moments = Vec::new();
    for _ in 0..6 {
        for _ in 0..checking.random.random_range(5..60) {
            checking.commit().await;
        }
        // Between two of its commits, and in the middle of the others'.
        let point = match checking.random.random_bool(0.5) {
            true => Point::Time(Timestamp::now()),
            false => checking.lsn().await,
        };
        moments.push((point, checking.rows.clone()));
        // So that some moments lie before a cut and some behind it.
        tokio::time::sleep(Duration::from_millis(checking.random.random_range(0..800))).await;
    }
    for _ in 0..20 {
        checking.commit().await;
    }
    assert!(moments.iter().any(|(point, _)| matches!(point, Point::Time(_))));
    assert!(moments.iter().any(|(point, _)| matches!(point, Point::Lsn(_))));

    // Branches while the load goes on, and in the end the database itself, taken back under it.
    let (last, others) = moments.split_last().unwrap();
    for (number, (point, expected)) in others.iter().enumerate() {
        let branch = lab.branch_of_main(&format!("at-{number}"), *point).await;
        assert_eq!(rows(&branch.owner().await).await, *expected, "at {point}");
        branch.suspend().await;
    }
    let restored = lab.branches.restore(&project(), &named("main"), last.0).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    load.join_all().await;
    compute.end().await.unwrap();
    let rewound = lab.start(restored.branch).await;
    assert_eq!(rows(&rewound.owner().await).await, last.1, "at {}", last.0);
    rewound.suspend().await;
    let before = lab.start(main).await;
    assert_eq!(rows(&before.owner().await).await, checking.rows, "the state before");
    before.suspend().await;
}
