//! Computes, branches and restores on real Postgres, page store, mount and keeper.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests; clippy excuses only the functions marked so"
)]

mod branching;
mod invariants;
mod kill_rounds;
mod lab;
mod lives;
mod restores;
