//! The rounds that every change has to survive.

use tidewater_soak::{Layout, Round, Soak, Totals};

async fn rounds(layout: Layout, seed: u64, count: u64) -> Totals {
    let mut soak = Soak::start(layout).await;
    for number in 1..=count {
        let round = Round::of(seed, number);
        println!("soak --seed {seed}: {round}");
        soak.round(&round).await;
    }
    let totals = soak.finish().await;
    println!("{totals:#?}");
    totals
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifteen_rounds_of_kills_lose_no_acknowledged_commit() {
    let totals = rounds(Layout::Folder, 1, 15).await;
    // Kills that missed, or a client that wrote nothing, would pass as well.
    assert!(totals.kills >= 15 && totals.acknowledged >= 100, "{totals:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_durability_store_losing_every_local_disk_loses_no_acknowledged_commit() {
    let totals = rounds(Layout::Bucket, 1, 5).await;
    assert!(totals.kills >= 5 && totals.acknowledged >= 50, "{totals:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_of_three_keepers_left_no_acknowledged_commit_is_lost() {
    let totals = rounds(Layout::ThreeKeepers, 1, 5).await;
    assert!(totals.kills >= 5 && totals.acknowledged >= 50, "{totals:#?}");
}
