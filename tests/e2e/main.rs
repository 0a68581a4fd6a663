//! End to end, as one binary: the tests share what is slow to start.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "the whole binary is tests")]

mod crashes;
mod first_load;
mod harness;
mod history;
mod keyless;
mod mirror;
mod second_daemon;
mod streaming;
mod trouble;
mod type_map;
