//! End to end: real Postgres, real readers.
