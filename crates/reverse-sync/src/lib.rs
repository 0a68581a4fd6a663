//! Delta versions to Postgres rows.

mod crash_point;
pub mod serve;
