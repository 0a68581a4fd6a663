//! Seeded cuts under pgbench and DDL, each recovered somewhere else with the WAL that was flushed by then.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use oltp_core::page_store::ManifestKind;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_postgres::Client;

use crate::cluster::{CORE_SETTINGS, Cluster, Server, assert_balances, assert_sound, flushed, number};

const CUTS: usize = 10;

/// What is done to the schema meanwhile; `$n` is a random number.
const CHANGES: &[&str] = &[
    "CREATE TABLE t$n (id int PRIMARY KEY, body text); INSERT INTO t$n SELECT i, repeat('x', i % 500) FROM generate_series(1, 2000) i",
    "DROP TABLE IF EXISTS t$n",
    "CREATE TABLE IF NOT EXISTS t$n (id int PRIMARY KEY, body text); TRUNCATE t$n; INSERT INTO t$n VALUES (1, repeat('y', 100000))",
    "CREATE TABLE IF NOT EXISTS t$n (id int PRIMARY KEY, body text); DELETE FROM t$n WHERE id > 700; VACUUM t$n",
    "CREATE TABLE IF NOT EXISTS t$n (id int PRIMARY KEY, body text); ALTER TABLE t$n ALTER id TYPE bigint",
    "CREATE TABLE IF NOT EXISTS t$n (id int PRIMARY KEY, body text); CREATE INDEX ON t$n USING hash (body); CLUSTER t$n USING t$n_pkey",
    "CREATE UNLOGGED TABLE IF NOT EXISTS u$n AS SELECT generate_series(1, 5000) AS n; INSERT INTO u$n SELECT 1",
    "DROP TABLE IF EXISTS u$n",
    "CREATE TEMP TABLE IF NOT EXISTS p AS SELECT generate_series(1, 10000) AS n; TRUNCATE p",
    "VACUUM FULL pgbench_tellers",
    "SELECT count(pg_logical_emit_message(true, 'noise', repeat('z', 1000))) FROM generate_series(1, 200)",
    "CREATE DATABASE d$n",
    "DROP DATABASE IF EXISTS d$n",
    "CHECKPOINT",
];

async fn change_schema(client: Client, seed: u64, stop: Arc<AtomicBool>) {
    let mut random = StdRng::seed_from_u64(seed);
    while !stop.load(Ordering::Relaxed) {
        let number = random.random_range(0..5).to_string();
        let change = CHANGES[random.random_range(0..CHANGES.len())].replace("$n", &number);
        for statement in change.split("; ") {
            // "exists already" and "does not exist" are part of the game.
            if let Err(error) = client.batch_execute(statement).await {
                let code = error.code().map_or("", |code| code.code());
                assert!(
                    ["42P07", "42P01", "42P04", "3D000", "55006", "42704", "23505"].contains(&code),
                    "{statement}: {error:?}"
                );
            }
        }
    }
}

/// Counts up, one commit a row; `acknowledged` is the last number whose commit returned.
async fn count_up(client: Client, acknowledged: Arc<AtomicI64>, stop: Arc<AtomicBool>) {
    let insert = client.prepare("INSERT INTO acknowledged VALUES ($1)").await.unwrap();
    let mut next = 1;
    while !stop.load(Ordering::Relaxed) {
        client.execute(&insert, &[&next]).await.unwrap();
        acknowledged.store(next, Ordering::Release);
        next += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cut_under_load_recovers_to_a_sound_database_with_what_was_acknowledged() {
    let seed: u64 = std::env::var("TIDEWATER_SEED").map_or(42, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::new().await;
    cluster.cache_limit = 64 << 20; // smaller than what the load touches
    let (first, wal) = cluster.imported().await;
    let mounted = cluster.mount("run", &first, &wal).await;
    let settings =
        [CORE_SETTINGS, &["shared_buffers=8MB", "checkpoint_timeout=30s", "max_wal_size=64MB"]].concat();
    let server = Server::start(&cluster, mounted.mount_point(), &settings).await;
    server.client("pgbench", &["-i", "-s", "5", "-q"]).await;
    let client = server.connect().await;
    for statement in [
        "CREATE TABLE acknowledged (n bigint PRIMARY KEY)",
        "SELECT pg_create_logical_replication_slot('kept', 'pgoutput')",
    ] {
        client.batch_execute(statement).await.unwrap();
    }

    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    let mut load = server.client_program("pgbench");
    load.args(["-c", "3", "-T", "600", "-n"]).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut load = load.spawn().unwrap();
    let schema = tokio::spawn(change_schema(server.connect().await, seed, Arc::clone(&stop)));
    let counter =
        tokio::spawn(count_up(server.connect().await, Arc::clone(&acknowledged), Arc::clone(&stop)));

    let mut manifest = first;
    let mut cuts = Vec::new();
    let mut longest = Duration::ZERO;
    for round in 0..CUTS {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..900))).await;
        let before = acknowledged.load(Ordering::Acquire);
        let cut = mounted.cut().unwrap();
        let flush = flushed(&client).await;
        longest = longest.max(cut.held());
        if random.random_bool(0.2) {
            drop(cut); // as if the store had been away
            continue;
        }
        let captured = mounted.capture(cut).await.unwrap();
        println!(
            "cut {round}: held {longest:?} at most, {} pages, {:?}",
            captured.pages,
            mounted.cache_use()
        );
        manifest = cluster.publish(&manifest, captured, ManifestKind::Running, flush).await;
        cuts.push((round, Arc::clone(&manifest), before));
        if mounted.compact().await.unwrap() {
            println!("layers were merged after cut {round}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    counter.await.unwrap();
    schema.await.unwrap();
    load.kill().await.unwrap();
    server.kill9().await;
    mounted.unmount().await.unwrap();

    for (round, manifest, before) in cuts {
        let head = &manifest.head;
        let kept = cluster.wal_between(&wal, &format!("wal-{round}"), head.redo_lsn, head.min_recovery_lsn);
        let mounted = cluster.mount(&format!("cut-{round}"), &manifest, &kept).await;
        let server = Server::start(&cluster, mounted.mount_point(), &settings).await;
        let client = server.connect().await;
        let (count, last) = (
            number(&client, "SELECT count(*) FROM acknowledged").await,
            number(&client, "SELECT coalesce(max(n), 0) FROM acknowledged").await,
        );
        assert!(
            count == last && last >= before,
            "cut {round}: {count} rows up to {last}, acknowledged {before}"
        );
        assert_eq!(
            number(&client, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'kept'").await,
            1
        );
        assert_balances(&client).await;
        assert_sound(&cluster, server, mounted.mount_point()).await;
        mounted.unmount().await.unwrap();
    }
}
