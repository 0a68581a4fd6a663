//! Delta tables as the writer makes them, judged by delta-rs with DataFusion.
//!
//! | module | asks |
//! |---|---|
//! | `mirror` | does a table equal its source after any changes, restarts and checkpoints? |
//! | `multiset` | the same, where rows have no key and may be equal |
//! | `append` | do tables that only grow hold every row once, in few files? |
//! | `history` | does a history hold every change, with whole old rows? |
//! | `column_types` | does every type survive, as data, statistics, key and value read back? |
//! | `commits` | what do lost answers, second daemons and foreign writers do? |
//! | `compaction` | do rows survive being moved, and deleted ones stay deleted? |
//! | `expiry` | does every version inside the promise stay readable, and does the rest go? |
//! | `reshape` | do columns come, go and change their names without a row lost? |
//! | `s3` | is it the same over S3? |
//!
//! Crash points are armed for a whole process, so their tests are a binary of their own beside this one.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "test support: a panic is a failed test, with the place it failed at"
)]

mod append;
mod column_types;
mod commits;
mod compaction;
mod expiry;
mod history;
mod mirror;
mod multiset;
mod reshape;
mod s3;
mod support;
