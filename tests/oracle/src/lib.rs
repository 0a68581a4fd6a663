//! The crash oracle: seeded programs against the real daemon.
//!
//! A seed draws tables, an application's sessions with transactions of every shape, and what happens to the
//! processes and the store meanwhile. The daemon is killed at random moments and at its crash points, Postgres
//! is killed, the store answers badly or not at all; and in the end, and at remembered moments before it, the
//! lake must be the source, row for row, as readers see it that are not ours.
//!
//! ```text
//!   seed ──▶ Script ──▶ Bench::run ─┬─▶ application (sessions) ──▶ Postgres ──▶ daemon ──▶ lake (folder or S3)
//!                                   └─▶ events: kills, crash points, faults      │            │
//!                                       Judge ◀── source rows ───────────────────┘            │
//!                                             ◀── readers' rows, newest and earlier versions ─┘
//! ```
//!
//! The rule: **all choices come from the seed**, and are made before anything runs. A failing seed is run again
//! with `oracle --seed N`; its script, printed, can be replayed by hand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test support: a panic is a failed seed, with the place it failed at"
)]

mod application;
mod column_kind;
mod consistent_point;
mod dice;
mod ledger;
mod report;
mod script;
mod seed_run;
mod table_plan;
mod tally;
mod verdict;
mod work;

pub use report::Report;
pub use script::Script;
pub use seed_run::Bench;
pub use tally::Tally;
