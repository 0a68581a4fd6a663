//! Delta tables as the writer makes them, judged by delta-rs with DataFusion.
//!
//! | module | asks |
//! |---|---|
//! | `mirror` | does a table equal its source after any changes, restarts and checkpoints? |
//! | `multiset` | the same, where rows have no key and may be equal |
//! | `history` | does a history hold every change, with whole old rows? |
//! | `column_types` | does every type survive, as data, statistics, key and value read back? |
//! | `commits` | what do lost answers, second daemons and foreign writers do? |
//! | `s3` | is it the same over S3? |
//! | `crash_points` | does dying at any durable step lose or repeat anything? |
//!
//! Crash points are armed for the whole process, so with the `failpoints` feature they are all that runs.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "test support: a panic is a failed test, with the place it failed at"
)]
#![cfg_attr(
    feature = "failpoints",
    allow(dead_code, reason = "the crash points need only a part of the support")
)]

#[cfg(not(feature = "failpoints"))]
mod column_types;
#[cfg(not(feature = "failpoints"))]
mod commits;
#[cfg(feature = "failpoints")]
mod crash_points;
#[cfg(not(feature = "failpoints"))]
mod history;
#[cfg(not(feature = "failpoints"))]
mod mirror;
#[cfg(not(feature = "failpoints"))]
mod multiset;
#[cfg(not(feature = "failpoints"))]
mod s3;
mod support;
