//! Rounds of killing: writers work, everything is killed at a random moment, and what was acknowledged is looked for.
//!
//! In this process, so that nothing but the compute itself is in play; `tests/soak` strikes the real processes.
//! Reproducible from the seed as far as a race with the machine can be. `TIDEWATER_KILL_ROUNDS` and
//! `TIDEWATER_KILL_SEED` choose how many and which.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use oltp_core::compute_process::{Answer, Question};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::lab::{Lab, Running, number, until};

const WRITERS: i32 = 4;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_commit_is_never_lost_whenever_everything_is_killed() {
    let rounds = from_environment("TIDEWATER_KILL_ROUNDS", 3);
    let seed = from_environment("TIDEWATER_KILL_SEED", 1);
    let mut random = StdRng::seed_from_u64(seed);
    let mut lab = Lab::new().await;
    let main = lab.project().await;
    let acknowledged: Arc<Vec<AtomicI64>> = Arc::new((0..WRITERS).map(|_| AtomicI64::new(0)).collect());
    for round in 0..rounds {
        if random.random_bool(0.5) {
            lab.move_elsewhere(&format!("machine {round}"));
        }
        let compute = lab.start(main).await;
        check(&lab, &compute, &acknowledged, round, seed).await;
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(write(compute.owner().await, writer, Arc::clone(&acknowledged)));
        }
        for _ in 0..random.random_range(0..3) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
            compute.ask(Question::Cut).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(50..600))).await;
        // Every other time the keeper goes first: whatever is acknowledged without it is gone.
        let without_keeper = round % 2 == 1;
        if without_keeper {
            lab.stop_keeper().await;
            until("the status says that commits wait", async || commits_wait(&compute).await).await;
        }
        compute.kill().await;
        writers.join_all().await;
        if without_keeper {
            lab.start_keeper().await;
        }
    }
    let compute = lab.start(main).await;
    check(&lab, &compute, &acknowledged, rounds, seed).await;
    compute.suspend().await;
}

async fn commits_wait(compute: &Running) -> bool {
    matches!(compute.ask(Question::Status).await, Answer::Status(status) if status.commits_wait.is_some())
}

/// Counts up, one commit a step, until the server is gone. A step is acknowledged once its answer is here.
async fn write(client: tokio_postgres::Client, writer: i32, acknowledged: Arc<Vec<AtomicI64>>) {
    let Some(mine) = acknowledged.get(usize::try_from(writer).unwrap_or_default()) else { return };
    let statement = "INSERT INTO steps SELECT $1, coalesce(max(step), 0) + 1, repeat(md5(random()::text), 20) \
                     FROM steps WHERE writer = $1 RETURNING step";
    while let Ok(row) = client.query_one(statement, &[&writer]).await {
        mine.store(row.get(0), Ordering::SeqCst);
        let _ = client.execute("UPDATE totals SET steps = steps + 1 WHERE writer = $1", &[&writer]).await;
    }
}

/// Each writer's steps are all there without a gap, to at least the one last acknowledged; indexes agree with tables.
async fn check(lab: &Lab, compute: &Running, acknowledged: &[AtomicI64], round: u64, seed: u64) {
    let client = compute.superuser(lab).await;
    client
        .batch_execute(
            "CREATE EXTENSION IF NOT EXISTS amcheck; \
             CREATE TABLE IF NOT EXISTS steps (writer int, step bigint, filler text, PRIMARY KEY (writer, step)); \
             CREATE TABLE IF NOT EXISTS totals (writer int PRIMARY KEY, steps bigint); \
             INSERT INTO totals SELECT w, 0 FROM generate_series(0, 31) w ON CONFLICT DO NOTHING; \
             GRANT ALL ON steps, totals TO shop",
        )
        .await
        .unwrap();
    for (writer, last) in acknowledged.iter().enumerate() {
        let found =
            number(&client, &format!("SELECT coalesce(max(step), 0) FROM steps WHERE writer = {writer}"))
                .await;
        let count = number(&client, &format!("SELECT count(*) FROM steps WHERE writer = {writer}")).await;
        let last = last.load(Ordering::SeqCst);
        assert!(
            found >= last,
            "seed {seed}, round {round}: writer {writer} has {found}, {last} was acknowledged"
        );
        assert!(
            found <= last + 1,
            "seed {seed}, round {round}: writer {writer} has {found}, {last} was the last"
        );
        assert_eq!(found, count, "seed {seed}, round {round}: writer {writer} has gaps");
    }
    client
        .batch_execute(
            "SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid \
             JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence <> 't' AND i.indisvalid",
        )
        .await
        .unwrap();
}
