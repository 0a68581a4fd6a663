//! Delta versions to Postgres rows.
