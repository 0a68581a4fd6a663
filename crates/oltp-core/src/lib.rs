//! The built-in Postgres.
