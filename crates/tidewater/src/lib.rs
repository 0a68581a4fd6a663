//! The open lakebase: one binary over the house's libraries.
//!
//! `config` is the file, `commands` the command line, `http` the API, `status` what they tell of the daemon.

pub mod config;
pub mod daemon;
pub mod http;
pub mod status;
pub mod telemetry;
