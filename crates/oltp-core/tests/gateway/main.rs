//! The gateway in front of a real Postgres: what clients get through it, and what they do not.
//!
//! | module | about |
//! |---|---|
//! | `house` | a project, a waker that starts it, and a gateway before it |
//! | `sessions` | names, authentication, psql, pgbench and pg_dump, replication |
//! | `waking` | connections that wait for a sleeping database |
//! | `cancelling` | cancel requests, and commits that wait for the keepers |
//! | `encryption` | TLS in its two forms, and who may go without |
//! | `hostile` | clients that are slow, wrong or too many |
//! | `sleeping` | when a database may sleep |

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the whole folder is tests; clippy excuses only the functions marked so"
)]

mod cancelling;
mod encryption;
mod hostile;
mod house;
mod sessions;
mod sleeping;
mod waking;
