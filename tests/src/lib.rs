//! The end-to-end harness: a real Postgres, the real binary, and stock readers of the lake.
//!
//! ```text
//!   Postgres (throwaway cluster) ──► Daemon (the `tidewater` binary in a Site) ──► a Delta table
//!        ▲                                                                           │
//!        └──────────── assert_equal ◄── Reader (Spark, DuckDB, Polars, delta-rs) ◄───┘
//! ```
//!
//! The rule that matters: **the product is judged from outside**. Nothing here links the crates that
//! do the work; a test writes SQL, runs commands, and compares what Postgres says with what a stock
//! reader says. Waiting is always for a condition, with a deadline that ends in the daemon's own log.
//!
//! The harness panics where a test would: a cluster that does not start *is* the failed test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test support: a panic is a failed test, with the place it failed at"
)]

mod comparison;
mod daemon;
mod delta_log;
mod keeper;
mod postgres;
mod reader;
mod replay;
mod s3_faults;
mod s3_server;
mod shop;
mod small_disk;
mod traffic;

pub use comparison::{Difference, Source, assert_equal, first_difference};
pub use daemon::{CoreProcess, Daemon, Finished, Site, binary, free_port};
pub use delta_log::{
    compactions, is_behind_the_slot, kinds, last_txn, none_is_behind_the_slot, operations, property,
};
pub use keeper::KeeperProcess;
pub use postgres::{Postgres, kill9, pgbench, postgres_major, postgres_program, signal};
pub use reader::{Engine, LakeTable, Reader, repository};
pub use replay::{Cells, Recorded, recorded, replay};
pub use s3_faults::{Fault, Faults};
pub use s3_server::S3Server;
pub use shop::Shop;
pub use small_disk::SmallDisk;
pub use traffic::{Traffic, TrafficReport};
