//! End to end, as one binary: the tests share what is slow to start.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "the whole binary is tests")]

mod changed_while_loaded;
mod consistent_points;
mod core_conformance;
mod core_daemon;
mod core_older_postgres;
mod core_sizes;
mod core_trouble;
mod crashes;
mod dead_letters;
mod endurance;
mod first_load;
mod followed;
mod found_by_the_oracle;
mod gold;
mod guides;
mod harness;
mod history;
mod history_shapes;
mod http;
mod keyless;
mod living_with_it;
mod mending;
mod mirror;
mod object_store;
mod order_system;
mod partitions;
mod replayed;
mod schema_changes;
mod second_daemon;
mod serving;
mod serving_crashes;
mod serving_disk_full;
mod serving_operations;
mod serving_spark;
mod serving_trouble;
mod serving_writers;
mod streaming;
mod table_changes;
mod trouble;
mod type_map;
mod upkeep;
