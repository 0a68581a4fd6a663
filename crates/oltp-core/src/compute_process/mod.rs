//! A compute: one Postgres on one branch, with everything it stands on.
//!
//! ```text
//!   claim the directory ─► elect (a majority of keepers promises the term; older computes are fenced)
//!        ─► newest manifest ─► [first start of a branch: rewind] ─► WAL from the keepers and the store
//!        ─► mount the pages ─► Postgres (crash recovery, or none after a clean stop) ─► stream to the keepers
//!        ─► serve, cut every few seconds ─► suspend: stop, last cut, gone
//! ```
//!
//! The invariant: **nothing that only this machine knows is ever needed.** What was acknowledged is at a
//! majority of the keepers, what was cut is in the store, and everything local is a cache. So a compute that
//! loses its Postgres, its keepers or its term does not repair anything: it ends, and the next one starts
//! from what the majority holds.
//!
//! The order of the first two steps matters. After the election no older compute can get another commit
//! acknowledged, so the manifest that is read then, and the log that was elected, are the branch.

mod branch_beginning;
mod catalog_horizon;
mod control;
mod cutting;
mod data_files;
mod directory;
mod idleness;
mod local_wal;
mod owner_extensions;
mod rewinding;
mod server;
mod serving;
mod severing;
mod sole_standby;
mod starting;
mod wal_floor;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wal_decoder::Lsn;

use crate::ids::{BranchId, ManifestNumber, ProjectName, Term, Timeline};
use crate::installation::Installation;
use crate::page_store::PageStore;
use crate::wal_keeper::{Durability, KeeperAddress};
use crate::{CoreError, Result, Timestamp};

pub(crate) use branch_beginning::archive_shut_down_wal;
pub use control::{Answer, Question, State, Status, ask};
pub use data_files::Mount;
pub(crate) use directory::{ComputeDirectory, control_socket, is_orphaned};
pub use server::PORT;
pub(crate) use server::{Purpose, Server, log_tail, open_log};
pub(crate) use wal_floor::read_control_file;

/// How often a branch with dirty pages is cut. What a start replays is the WAL since the last checkpoint
/// that a cut has seen.
pub const CUT_EVERY: Duration = Duration::from_secs(3);

/// What a compute runs, and with what.
#[derive(Debug, Clone)]
pub struct ComputeSpec {
    /// The pages.
    pub pages: PageStore,
    /// The project.
    pub project: ProjectName,
    /// The branch.
    pub branch: BranchId,
    /// Its directory on this machine: soft state.
    pub directory: PathBuf,
    /// The server's programs.
    pub installation: Installation,
    /// The keepers, all of them.
    pub keepers: Vec<KeeperAddress>,
    /// What a commit waits for.
    pub durability: Durability,
    /// How Postgres gets its data directory.
    pub mount: Mount,
    /// How much of the local disk fetched pages may take.
    pub cache_limit: u64,
    /// How long nothing has to happen for the branch to go to sleep by itself; `None`: never.
    pub suspend_after: Option<Duration>,
    /// How often the branch is cut while pages are dirty.
    pub cut_every: Duration,
    /// The role that owns the project's database, which has the project's name.
    pub owner: String,
    /// That role's password.
    pub owner_password: SecretString,
    /// The password of the core's own role.
    pub superuser_password: SecretString,
    /// Settings from the configuration.
    pub settings: BTreeMap<String, String>,
}

/// How a compute ended that was not killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order: the next start needs no recovery.
    Suspended(ManifestNumber),
}

/// Runs a branch's compute until it is suspended, by a question at its socket or by `shutdown`.
///
/// # Errors
/// Another process runs the branch on this machine, no majority of keepers promises a term, the store
/// or the WAL lacks what a start needs, Postgres ends, or a newer compute takes over. Then nothing is left
/// running, and starting again is all there is to do.
pub async fn run(spec: ComputeSpec, shutdown: CancellationToken) -> Result<End> {
    let directory = ComputeDirectory::claim(&spec.directory).await?;
    let (board, watched) = watch::channel(Status {
        project: spec.project.clone(),
        branch: spec.branch,
        name: None,
        mount: spec.mount,
        state: State::Starting,
        pid: std::process::id(),
        postgres_pid: None,
        socket_directory: None,
        term: Term(0),
        timeline: Timeline(0),
        manifest: ManifestNumber(0),
        cut_at: None,
        majority: Lsn::ZERO,
        archived: Lsn::ZERO,
        commits_wait: None,
        store_trouble: None,
        archive_trouble: None,
        started_at: Timestamp::now(),
    });
    let (socket, requests) = control::listen(directory.control_socket(), watched)?;
    let started = tokio::select! {
        started = starting::start(&spec, &directory, &board) => started?,
        () = shutdown.cancelled() => return Err(CoreError::StartCancelled { project: spec.project.to_string() }),
    };
    let outcome = serving::serve(started, requests, board, shutdown).await;
    socket.leave().await;
    outcome
}
