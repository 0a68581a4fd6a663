//! End to end, as one binary: the tests share what is slow to start.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "the whole binary is tests")]

mod crashes;
mod first_load;
mod found_by_the_oracle;
mod harness;
mod mirror;
mod object_store;
mod second_daemon;
mod streaming;
mod trouble;
mod type_map;
