//! A database that a daemon follows while a test works in it.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidewater_e2e::{
    Daemon, Engine, LakeTable, Postgres, Reader, Site, Source, assert_equal, kinds, none_is_behind_the_slot,
    operations,
};
use tokio_postgres::Client;

/// Enough for a start, a load and some flushes on a busy machine.
pub const SOON: Duration = Duration::from_secs(90);

/// A small table, of ninety-nine rows.
pub const ORDERS: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text, n int);
    INSERT INTO orders SELECT n, 'old', n FROM generate_series(1, 100) n;
    DELETE FROM orders WHERE id = 50";

/// A database with one small table, followed by a daemon.
pub struct Followed {
    pub postgres: Postgres,
    pub client: Client,
    pub site: Site,
    pub daemon: Daemon,
}

pub async fn followed(tables: &str) -> Followed {
    followed_as(tables, Site::of_shop).await
}

/// As [`followed`], by the site that `site` makes for the database's address.
pub async fn followed_as(tables: &str, site: impl FnOnce(&str) -> Site) -> Followed {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client.batch_execute(tables).await.unwrap();
    let site = site(&postgres.url("shop"));
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    Followed { postgres, client, site, daemon }
}

/// As [`followed_as`], by a role that owns the database and is no superuser: without an event trigger.
pub async fn followed_by_its_owner(tables: &str, site: impl FnOnce(&str) -> Site) -> Followed {
    let postgres = Postgres::start().await;
    let superuser = postgres.connect("postgres").await;
    superuser.batch_execute("CREATE ROLE app LOGIN REPLICATION").await.unwrap();
    superuser.batch_execute("CREATE DATABASE shop OWNER app").await.unwrap();
    let url = format!("postgres://app@127.0.0.1:{}/shop", postgres.port());
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(tables).await.unwrap();
    let site = site(&url);
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let installed = "SELECT count(*) FROM pg_event_trigger";
    assert_eq!(client.query_one(installed, &[]).await.unwrap().get::<_, i64>(0), 0);
    Followed { postgres, client, site, daemon }
}

impl Followed {
    /// Waits until everything that is committed now is in the lake, and nothing of the lake is behind the slot.
    pub async fn wait_caught_up(&mut self) {
        self.wait_position().await;
        let database = self.site.table("shop");
        self.daemon.wait_status(SOON, |_| none_is_behind_the_slot(&database)).await;
    }

    /// Waits until everything that is committed now is in the lake.
    pub async fn wait_position(&mut self) {
        let now = "SELECT pg_current_wal_lsn()::text";
        let now: String = self.client.query_one(now, &[]).await.unwrap().get(0);
        self.daemon
            .wait_status(SOON, |status| {
                let tables = status["tables"].as_array().unwrap();
                let is_there = |table: &Value| {
                    let follows = table["state"] == "streaming" || table["state"] == "inserts only";
                    follows && table["position"].as_str().is_some_and(|at| lsn(at) >= lsn(&now))
                };
                !tables.is_empty() && tables.iter().all(is_there)
            })
            .await;
    }

    /// Stops the daemon, brings the rest over, and compares these tables of schema `public`.
    pub async fn assert_equal_at_the_end(self, tables: &[&str]) {
        self.daemon.stop().await;
        self.site.run_until_caught_up().await;
        let (mut reader, dsn) = (Reader::start(), self.postgres.url("shop"));
        for table in tables {
            let lake = LakeTable::at(&self.site.table(&format!("shop/public/{table}")));
            let source = Source { dsn: &dsn, schema: "public", table };
            assert_equal(&mut reader, Engine::DuckDb, &source, &lake).await;
            assert_equal(&mut reader, Engine::Polars, &source, &lake).await;
        }
    }
}

/// Catches up, stops, and compares one table of schema `public` by several readers.
pub async fn end(mut followed: Followed, table: &str) -> (Postgres, Site) {
    followed.wait_caught_up().await;
    let Followed { postgres, site, daemon, .. } = followed;
    daemon.stop().await;
    let (mut reader, dsn) = (Reader::start(), postgres.url("shop"));
    let lake = LakeTable::at(&site.table(&format!("shop/public/{table}")));
    let source = Source { dsn: &dsn, schema: "public", table };
    for engine in [Engine::DuckDb, Engine::Polars, Engine::DeltaRs] {
        assert_equal(&mut reader, engine, &source, &lake).await;
    }
    (postgres, site)
}

/// How often a table was read from its source, the first load included: where the columns are still the same, a load
/// writes only what differs.
pub fn loads(table: &Path) -> usize {
    kinds(table).iter().filter(|kind| ["LOAD", "MEND"].contains(&kind.as_str())).count()
}

/// Waits until a query counts something.
pub async fn wait_some(client: &Client, count: &str) {
    let deadline = Instant::now() + SOON;
    while client.query_one(count, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(Instant::now() < deadline, "none: {count}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a table was loaded this often.
pub async fn wait_loads(table: &Path, count: usize) {
    let deadline = Instant::now() + SOON;
    while loads(table) < count {
        assert!(Instant::now() < deadline, "{:?}", operations(table));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn rows_of(status: &Value, table: &str) -> Option<u64> {
    let tables = status["tables"].as_array()?;
    let found = tables.iter().find(|found| found["table"] == table && found["state"] == "streaming")?;
    found["rows"].as_u64()
}

/// `16/B374D848` as a number.
fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}
