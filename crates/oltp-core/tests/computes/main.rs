//! Computes, branches and restores on real Postgres, page store, mount and keeper.

mod branching;
mod lab;
mod lives;
