//! Delta versions to Postgres rows.
//!
//! ```text
//!   TableSource ──snapshot(v)──────────▶ the rows of a version
//!              └──row_changes(a, b)────▶ what became of them between two versions
//!   serve::Target ◀─ rows, net changes ── a table in Postgres that holds one version, and says which
//! ```
//!
//! Rows and changes come as Arrow batches under the names and types of one version's schema. The invariant that
//! everything here rests on: the rows of `a` with the changes from `a` to `b` applied are the rows of `b`.

mod crash_point;
mod delta_source;
mod error;
mod row_changes;
pub mod serve;

pub use delta_source::{LakeStore, Part, Rows, TableSource, TableVersion};
pub use error::{Result, ReverseSyncError, Unavailable};
pub use row_changes::{ChangeBatch, ChangeKind, Changes, Detail};
