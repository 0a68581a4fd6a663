//! The built-in Postgres.
//!
//! A *project* is one PostgreSQL cluster that Tidewater owns: it makes it, starts it, watches it and
//! stops it, and nobody has to know what `initdb` is. The server is stock and unpatched; it is found
//! on the machine ([`Installation`]), never bundled.
//!
//! ```text
//!   find_installation ──► Installation ─┐
//!                                       ├─► Project::open ──► Project ── start ──► Compute
//!   ProjectOptions (name, owner, …) ────┘     (initdb once,      (spawn or        (address, URLs,
//!                                              one daemon)        adopt)           stop, restart)
//! ```
//!
//! The invariant that everything here serves: **one directory, one postmaster, one daemon**, through
//! any crash of either. The daemon's claim is an `flock` (it dies with the daemon); the postmaster's
//! is Postgres's own `postmaster.pid` with its shared-memory check (it outlives the daemon on
//! purpose: databases keep serving while Tidewater is upgraded or restarted, and the next daemon
//! adopts them).
//!
//! Today a project's pages lie in an ordinary local directory under Postgres's own durability. The
//! page-separated store slots in beneath the same two types.

mod compute;
mod error;
pub mod ids;
mod initdb;
mod installation;
pub mod page_fs;
pub mod page_store;
mod postmaster;
mod private_file;
mod project;
mod provision;
mod reachable_directory;
mod server_command;
mod service_user;
mod settings;
pub mod storage;
mod timestamp;
pub mod wal_keeper;

pub use compute::{Compute, EnsureRunning};
pub use error::CoreError;
pub use installation::{Installation, POSTGRES_BIN_VARIABLE, find_installation};
pub use project::{Listen, Project, ProjectOptions, SUPERUSER};
pub use server_command::{CommandEnd, run_bounded, server_command};
pub use service_user::ServiceUser;
pub use timestamp::Timestamp;

/// What every fallible call of this crate returns.
pub type Result<T, E = CoreError> = std::result::Result<T, E>;
