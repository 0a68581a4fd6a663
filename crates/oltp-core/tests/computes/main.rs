//! Computes, branches and restores on real Postgres, page store, mount and keeper.

mod branching;
mod kill_rounds;
mod lab;
mod lives;
