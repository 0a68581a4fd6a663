//! The WAL keeper: where a commit is durable.
//!
//! A compute is disposable, so a commit must not rest on it. Its Postgres streams WAL to the compute process, the
//! *proposer*, which forwards it to the *keepers* and confirms to Postgres what a majority of them has on disk. Keepers
//! are processes of their own with a log for each branch; below the majority's position the WAL goes on to the
//! object store, and the keepers forget it.
//!
//! ```text
//!   elect ──▶ Elected ── place_wal ──▶ (Postgres recovers) ── stream ──▶ Streaming ── majority · archived · ended
//!     │  a term promised by a majority;                                     │
//!     │  the best log, copied to a majority,                                ▼
//!     │  cut after its last whole record            keepers: KeeperServer ── KeeperLog ── segment files, state file
//!     └──────────────────────────────────────────▶  archive: WalArchive ── chunks in the object store
//! ```
//!
//! The invariants: an acknowledged commit is never lost, because every majority has a keeper that has it and an election
//! goes on from the best log; two computes never write one branch, because no keeper takes WAL of a term below the
//! one that it promised. `docs/core-keeper.md` has the protocol and the files.

mod address;
mod archive;
mod archiver;
mod connection;
mod crash_point;
mod election;
pub(crate) mod frame;
mod keeper_link;
mod keeper_log;
mod log_name;
mod log_state;
pub(crate) mod lsn_text;
mod open_logs;
mod optional_lsn_text;
mod placement;
mod progress;
mod record_scanner;
mod segment_files;
mod server;
mod streaming;
mod term_history;
#[cfg(test)]
mod tests;
mod uuid_text;
mod wal_window;

pub use address::{KeeperAddress, KeeperEndpoint};
pub use archive::{WalArchive, WalChunk};
pub use archiver::ArchiveTrouble;
pub use connection::hello;
pub use election::{Durability, Elected, Election, LogEnd, elect};
#[doc(hidden)]
pub use frame::read_frames;
pub use keeper_log::{LogStatus, Refusal};
pub use log_name::LogName;
pub use placement::WalPlacement;
pub use progress::{KeeperProgress, KeeperState};
pub(crate) use record_scanner::{RecordScanner, SEGMENT};
pub use server::{KeeperOptions, KeeperServer, serve};
pub use streaming::{STANDBY_NAME, StreamConfig, StreamEnd, StreamStatus, Streaming};
pub use term_history::{TermHistory, TermStart};
