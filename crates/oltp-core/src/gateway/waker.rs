//! What the gateway asks of whoever runs the computes.

use std::error::Error;
use std::path::PathBuf;

use async_trait::async_trait;
use tokio_postgres::Config;

use super::target::BranchAddress;

/// Where a running Postgres is reached.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The directory of its Unix socket.
    pub socket_directory: PathBuf,
    /// The port, which names the socket inside the directory.
    pub port: u16,
    /// How the core's own role enters it, for looking at a session before its statement is cancelled.
    pub superuser: Config,
}

impl Endpoint {
    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        self.socket_directory.join(format!(".s.PGSQL.{}", self.port))
    }
}

/// Finds the Postgres of a branch, and starts it when it sleeps.
///
/// The gateway calls `wake` for every new connection, but only once at a time for one branch: all connections that
/// arrive meanwhile get the same answer. It calls again when the endpoint that it was given refuses it: because
/// Postgres is still recovering, or because it was being suspended at that moment. An answer is therefore allowed to
/// be out of date, but not twice.
#[async_trait]
pub trait Waker: Send + Sync + 'static {
    /// Returns once Postgres listens on its socket. The future is dropped when the time for waking is over: work
    /// that has to be completed belongs in a task of its own.
    async fn wake(&self, branch: &BranchAddress) -> Result<Endpoint, WakeError>;
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum WakeError {
    /// The project does not exist.
    #[error("there is no such project")]
    NoSuchProject,
    /// The project exists, the branch does not.
    #[error("the project has no such branch")]
    NoSuchBranch,
    /// No further compute may be started.
    #[error("as many databases are running as may")]
    TooMany,
    /// Anything else. The cause is logged, and not shown to clients.
    #[error("the database cannot be started")]
    Failed {
        /// What went wrong.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}
