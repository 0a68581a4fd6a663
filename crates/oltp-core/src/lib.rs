//! The built-in Postgres: stock and unpatched, over pages and WAL in an object store.
//!
//! ```text
//!   clients ─► gateway ─► computes ─► compute_process ─┬─► page_fs ─────► page_store ─┐
//!                            ▲                          │   the data directory         ├─► storage
//!                        branches, template             └─► wal_keeper ─► archive ─────┘   a path or a bucket
//!                                                           where a commit is durable
//! ```
//!
//! A *project* is one cluster's history, a *branch* one line of it, a *compute* the Postgres that runs a branch. The
//! server's programs are found on the machine ([`Installation`]), never bundled; nobody has to know what `initdb` is
//! ([`ensure_project`] copies a template).
//!
//! The invariant that everything here serves: **what was acknowledged is at a majority of the keepers, and everything on
//! a compute's machine can be thrown away.**
//!
//! [`Project`] and [`Compute`] are the older way, a cluster in an ordinary local directory under Postgres's own
//! durability.

pub mod branches;
mod compute;
pub mod compute_process;
pub mod computes;
mod control_file;
mod directory_lock;
mod error;
mod event_loop;
pub mod gateway;
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
mod secrets;
mod server_command;
mod service_user;
mod settings;
pub mod storage;
mod template;
mod timestamp;
pub mod wal_keeper;

pub use compute::{Compute, EnsureRunning};
pub use error::CoreError;
pub use installation::{Installation, POSTGRES_BIN_VARIABLE, find_installation};
pub use project::{Listen, Project, ProjectOptions, SUPERUSER};
pub use secrets::{Secret, kept_secret};
pub use server_command::{CommandEnd, run_bounded, server_command};
pub use service_user::ServiceUser;
pub use template::{NewProject, ensure_project};
pub use timestamp::Timestamp;

/// What every fallible call of this crate returns.
pub type Result<T, E = CoreError> = std::result::Result<T, E>;
