//! Databases that are larger than what is near: than the page cache, and than anybody would list at a start.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use tidewater_e2e::{Site, kill9};
use tokio_postgres::{Client, NoTls};

use crate::core_conformance::{check_structure, compute_directory};

const SOON: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_millis(50);

/// What the cache may hold, and how many rows of half a page make a table of five times as much.
const CACHE_BYTES: u64 = 32 << 20;
const WIDE_ROWS: i64 = 40_000;

/// Relations, tables with a primary key counting twice. `TIDEWATER_RELATIONS=100000` is the whole of it.
const RELATIONS: usize = 10_000;

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn checksum(client: &Client) -> String {
    let sql = "SELECT count(*) || md5(string_agg(md5(v), '' ORDER BY id)) FROM wide";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// What the files below a folder take on the disk.
fn disk_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test]
async fn a_database_of_five_times_the_cache_limit_works_and_the_limit_holds() {
    let site = Site::with_unsynced_core_of("{}", &format!(", cache: {CACHE_BYTES}B"));
    let daemon = site.start().await;
    let url = site.branch_url("main").await;
    let client = connect(&url).await;
    client
        .batch_execute(
            "CREATE TABLE wide (id bigint PRIMARY KEY, v text STORAGE PLAIN, n int NOT NULL DEFAULT 0)",
        )
        .await
        .unwrap();
    let fill = "INSERT INTO wide SELECT n, repeat(md5(n::text), 120) FROM generate_series($1::bigint, $2) n";
    for from in (0..WIDE_ROWS).step_by(5000) {
        client.execute(fill, &[&from, &(from + 4999)]).await.unwrap();
    }
    let size: i64 = client.query_one("SELECT pg_table_size('wide')", &[]).await.unwrap().get(0);
    assert!(size as u64 > 4 * CACHE_BYTES, "{size} bytes are not enough");
    let before = checksum(&client).await;
    // All over the table, and back again.
    client.batch_execute("UPDATE wide SET n = n + 1 WHERE id % 17 = 0").await.unwrap();
    client.batch_execute("VACUUM wide").await.unwrap();
    assert_eq!(checksum(&client).await, before);
    check_structure(&site).await;
    let cache = disk_bytes(&compute_directory(&site).await.join("cache"));
    // Dirty pages may take as much again, and what never goes to the store, such as temporary files, comes on top.
    assert!(cache < 2 * CACHE_BYTES + CACHE_BYTES / 4, "the cache has {cache} bytes");

    drop(client);
    site.succeeds(&["compute", "suspend", "shop"]).await;
    let client = connect(&url).await;
    assert_eq!(checksum(&client).await, before);
    let changed = "SELECT count(*) FROM wide WHERE n = 1";
    assert_eq!(client.query_one(changed, &[]).await.unwrap().get::<_, i64>(0), (WIDE_ROWS + 16) / 17);
    daemon.stop().await;
}

#[tokio::test]
async fn a_database_of_many_relations_starts_after_a_clean_stop_and_after_a_crash() {
    let relations = std::env::var("TIDEWATER_RELATIONS").map_or(RELATIONS, |count| count.parse().unwrap());
    let site = Site::with_unsynced_core("{}");
    let daemon = site.start().await;
    let url = site.branch_url("main").await;
    let client = connect(&url).await;
    client
        .batch_execute(
            "SET synchronous_commit = off;
             CREATE PROCEDURE fill(tables int) LANGUAGE plpgsql AS $$
             BEGIN
                 FOR n IN 1..tables LOOP
                     EXECUTE format('CREATE TABLE t_%s (id int PRIMARY KEY)', n);
                     IF n % 500 = 0 THEN COMMIT; END IF;
                 END LOOP;
             END $$",
        )
        .await
        .unwrap();
    client.batch_execute(&format!("CALL fill({})", relations / 2)).await.unwrap();
    drop(client);

    site.succeeds(&["compute", "suspend", "shop"]).await;
    println!("{relations} relations, after a clean stop: {:?}", woken(&url, relations).await);
    let lock = std::fs::read_to_string(compute_directory(&site).await.join("lock")).unwrap();
    kill9(lock.trim().parse().unwrap());
    println!("{relations} relations, after a crash: {:?}", woken(&url, relations).await);
    daemon.stop().await;
}

/// How long the first answer takes; it has to be there in time and name every table.
async fn woken(url: &str, relations: usize) -> Duration {
    let started = Instant::now();
    let (client, connection) = loop {
        // The gateway may still be losing the sessions of the compute that was killed.
        match tokio_postgres::connect(url, NoTls).await {
            Ok(connected) => break connected,
            Err(error) => assert!(started.elapsed() < SOON, "{error:?}"),
        }
        tokio::time::sleep(RETRY).await;
    };
    tokio::spawn(connection);
    let last = format!("SELECT count(*) FROM t_{}", relations / 2);
    client.query_one(&last, &[]).await.unwrap();
    let took = started.elapsed();
    let sql = "SELECT count(*) FROM pg_class WHERE relname ~ '^t_[0-9]+(_pkey)?$'";
    let found: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(found, i64::try_from(relations).unwrap());
    took
}
