//! Twenty seeds that every change has to survive, and the oracle's own mechanism.

#![allow(clippy::unwrap_used, reason = "the whole binary is tests")]

use tidewater_e2e::Site;
use tidewater_oracle::{Bench, Script, Tally};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_seeds_of_crashes_and_faults_leave_the_lake_exactly_as_the_source() {
    let mut bench = Bench::start().await;
    let mut total = Tally::default();
    for seed in 1..=20 {
        println!("oracle --seed {seed}");
        let site = Site::new("");
        total += bench.run(&Script::of(seed), &site).await;
    }
    // A daemon without crash points, or a store that never fails, would pass as well.
    assert!(total.deaths.len() > 5, "too few crash points were reached: {:?}", total.deaths);
    assert!(total.faults.values().sum::<u64>() > 20, "too few faults happened: {:?}", total.faults);
    assert!(total.looked.settled_versions > 5 && total.looked.ledger_versions > 50, "{:?}", total.looked);
}
