//! `oracle`: seeds one after the other, for so many minutes, or one seed again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test program: a panic is a failed run")]

use clap::Parser;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidewater_e2e::Site;
use tidewater_oracle::{Bench, Report, Script, Tally};

/// Seeds that share a Postgres.
const BATCH: u64 = 20;

/// A seed takes seconds, the one with the million rows a minute or two.
const SEED_LIMIT: Duration = Duration::from_secs(900);

/// Runs seeded crash tests against the `tidewater` binary built beside this one.
#[derive(Parser)]
struct Arguments {
    /// Runs seeds for so many minutes.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Where the totals are added; seed numbers continue where they end.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Runs this one seed instead, and prints its script first.
    #[arg(long)]
    seed: Option<u64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        println!("{}", Script::of(seed));
        let mut bench = Some(Bench::start().await);
        let tally = run(&mut bench, seed).await;
        println!("{tally:#?}");
        return if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let mut report = arguments.report.map(|file| Report::read(file).unwrap());
    let first = report.as_ref().map_or(1, Report::next_seed);
    let tally = run_for(Duration::from_secs(60 * arguments.minutes), first).await;
    println!("{tally:#?}");
    if let Some(report) = &mut report {
        report.add(&commit(), first, arguments.minutes, &tally).unwrap();
    }
    if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run_for(limit: Duration, first: u64) -> Tally {
    let (began, mut total, mut bench) = (Instant::now(), Tally::default(), None);
    let mut seed = first;
    while began.elapsed() < limit {
        if (seed - first).is_multiple_of(BATCH) {
            bench = None;
        }
        total += run(&mut bench, seed).await;
        seed += 1;
    }
    total
}

/// One seed; when it fails, its folder stays, with its script in it.
async fn run(bench: &mut Option<Bench>, seed: u64) -> Tally {
    let began = Instant::now();
    let mut taken = match bench.take() {
        Some(bench) => bench,
        None => Bench::start().await,
    };
    let site = Arc::new(Site::new(""));
    let work = tokio::spawn({
        let site = site.clone();
        async move {
            let tally = taken.run(&Script::of(seed), &site).await;
            (taken, tally)
        }
    });
    let ended = tokio::time::timeout(SEED_LIMIT, work).await;
    let seconds = began.elapsed().as_secs_f64();
    if let Ok(Ok((taken, tally))) = ended {
        *bench = Some(taken);
        println!("seed {seed}: right, {seconds:.1} s, {} transactions", tally.committed);
        return tally;
    }
    let reason = if ended.is_err() { "did not end" } else { "FAILED, see above" };
    std::fs::write(site.path().join("script.sql"), Script::of(seed).to_string()).unwrap();
    match Arc::into_inner(site) {
        Some(site) => println!("seed {seed}: {reason}, {seconds:.1} s; kept in {}", site.keep().display()),
        None => println!("seed {seed}: {reason}, {seconds:.1} s"),
    }
    Tally { failed: vec![seed], ..Tally::default() }
}

/// The commit these sources are at.
fn commit() -> String {
    let output =
        Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
