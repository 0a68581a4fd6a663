//! The open lakebase: one binary over the house's libraries.
//!
//! `config` is the file, `commands` the command line, `daemon` what it starts, `http` the API, `status`
//! and `telemetry` what they tell of it; `built_in` is the Postgres that comes along; `requests`, `verification` and `reload` are what can be asked of it.

pub mod built_in;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod http;
pub mod reload;
pub mod requests;
pub mod status;
pub mod telemetry;
pub mod verification;
