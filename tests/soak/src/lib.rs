//! The soak: rounds of work and kills against a built-in database, on its real processes.
//!
//! ```text
//!   seed, round ──▶ Round: how long to work, what to strike, whether to strike again while it recovers
//!                     │
//!   Application ──▶ gateway ──▶ Postgres ◀── Machine: daemon, gateway, compute, keepers; storage in a folder or S3
//!       │ Ledger: begun, acknowledged, seen by others                │ kill -9, or everything but the storage lost
//!       └──────────────────────▶ judge ◀── rows, indexes, pages, lake ┘
//! ```
//!
//! The rule: **a number of the application is begun, then perhaps acknowledged or seen by another session.** What was
//! acknowledged or seen must be there after every strike; what was only begun may be there or not, but once a round has
//! been judged it stays what it was. The seed decides what is struck and when; which commit that meets is the machine's
//! to say, so a seed reproduces a schedule, not an instant.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test support: a panic is a failed round, with the place it failed at"
)]

mod application;
mod judge;
mod ledger;
mod machine;
mod round;
mod run;

pub use machine::Layout;
pub use round::{Blow, Round, Victim};
pub use run::{Soak, Totals};
