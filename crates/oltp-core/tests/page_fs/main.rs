//! The page filesystem with a stock Postgres on it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the whole crate is tests; clippy excuses only the functions marked so"
)]

mod cluster;
mod cuts;
mod files;
mod life;
mod measurements;
