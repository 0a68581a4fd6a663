//! Twenty seeds that every change has to survive, and the oracle's own mechanism.

#![allow(clippy::unwrap_used, reason = "the whole binary is tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tidewater_e2e::Site;
use tidewater_oracle::{Bench, Script, Tally};
use tokio::task::JoinSet;

const SEEDS: u64 = 20;

/// Seeds that run side by side, each lane with a Postgres of its own: a seed waits for much of its time, for its
/// sessions' pauses and for whatever was killed or taken away to be back.
const LANES: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_seeds_of_crashes_and_faults_leave_the_lake_exactly_as_the_source() {
    let next = Arc::new(AtomicU64::new(1));
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        lanes.spawn(lane(Arc::clone(&next)));
    }
    let mut total = Tally::default();
    while let Some(ended) = lanes.join_next().await {
        total += ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    }
    assert_eq!(total.passed, SEEDS);
    // A daemon without crash points, or a store that never fails, would pass as well.
    assert!(total.deaths.len() > 5, "too few crash points were reached: {:?}", total.deaths);
    assert!(total.faults.values().sum::<u64>() > 20, "too few faults happened: {:?}", total.faults);
    assert!(total.looked.settled_versions > 5 && total.looked.ledger_versions > 50, "{:?}", total.looked);
}

/// Runs seeds until none is left.
async fn lane(next: Arc<AtomicU64>) -> Tally {
    let mut bench = Bench::start().await;
    let mut total = Tally::default();
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed > SEEDS {
            return total;
        }
        println!("oracle --seed {seed}");
        let began = Instant::now();
        total += bench.run(&Script::of(seed), &Site::new("")).await;
        println!("seed {seed}: right, {:.1} s", began.elapsed().as_secs_f64());
    }
}
