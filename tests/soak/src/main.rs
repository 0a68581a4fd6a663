//! `soak`: rounds of one seed, as many as asked for.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test program: a panic is a failed run")]

use clap::{Parser, ValueEnum};
use std::time::Instant;
use tidewater_soak::{Layout, Round, Soak};

/// Strikes a built-in database on the `tidewater` binary built beside this one, again and again.
#[derive(Parser)]
struct Arguments {
    /// How many rounds.
    #[arg(long, default_value_t = 200)]
    rounds: u64,
    /// Which schedule.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where pages and WAL are.
    #[arg(long, value_enum, default_value = "folder")]
    storage: Storage,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Storage {
    /// A folder with the keeper's log in it.
    Folder,
    /// A bucket, for which commits wait.
    Bucket,
    /// A bucket, and three keepers.
    ThreeKeepers,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let layout = match arguments.storage {
        Storage::Folder => Layout::Folder,
        Storage::Bucket => Layout::Bucket,
        Storage::ThreeKeepers => Layout::ThreeKeepers,
    };
    let mut soak = Soak::start(layout).await;
    for number in 1..=arguments.rounds {
        let round = Round::of(arguments.seed, number);
        println!("seed {}, {round}", arguments.seed);
        let began = Instant::now();
        soak.round(&round).await;
        println!("  right, {:.1} s", began.elapsed().as_secs_f64());
    }
    println!("{:#?}", soak.finish().await);
}
