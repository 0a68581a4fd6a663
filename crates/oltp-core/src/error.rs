//! What can go wrong between a name in the YAML and a Postgres that answers.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Every failure of the built-in Postgres: where it happened, what caused it and what mends it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// No PostgreSQL of the wanted major version was found.
    #[error(
        "no PostgreSQL {major} was found. Looked at:\n{looked_at}\nInstall PostgreSQL {major}, or name the folder \
         that holds `initdb` and `postgres` in `core.postgres_bin` or in the environment variable \
         TIDEWATER_POSTGRES_BIN"
    )]
    NoInstallation {
        /// The major version that was asked for.
        major: u32,
        /// One line for each place, with the reason it was turned down.
        looked_at: String,
    },
    /// The service user cannot execute the server's programs.
    #[error(
        "`{program}` cannot be run by the user `{user}`, as which Postgres has to run because Tidewater was started \
         by root: `{barrier}` lets nobody else in. Install PostgreSQL where every user can reach it, or start \
         Tidewater as an ordinary user"
    )]
    InstallationUnreachable {
        /// The program that could not be started.
        program: PathBuf,
        /// The user it should run as.
        user: String,
        /// The first directory on the way that refuses that user.
        barrier: PathBuf,
    },
    /// The directory of the project cannot be reached by the service user.
    #[error(
        "the user `{user}`, as which Postgres has to run because Tidewater was started by root, cannot reach \
         `{directory}`: `{barrier}` lets nobody else in. Choose another `core.storage`, or start Tidewater as an \
         ordinary user"
    )]
    DirectoryUnreachable {
        /// The project's directory.
        directory: PathBuf,
        /// The user Postgres runs as.
        user: String,
        /// The first directory on the way that refuses that user.
        barrier: PathBuf,
    },
    /// A name in the configuration cannot be used as a role or database.
    #[error("`{name}` cannot be the {role} of a project: {reason}")]
    UnusableName {
        /// The offending name.
        name: String,
        /// `name` or `owner`.
        role: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// A setting that the core keeps to itself, or one that is no setting.
    #[error("`settings.{name}` of project `{project}` cannot be set: {reason}")]
    UnusableSetting {
        /// The project it was written for.
        project: String,
        /// The setting's name as written.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// Another daemon holds the project.
    #[error(
        "the project in `{directory}` is already in use by process {holder}. Stop that one first, or give this one a \
         `core.storage` of its own"
    )]
    AlreadyOpen {
        /// The project's directory.
        directory: PathBuf,
        /// The process id that the holder wrote down, `?` when it did not get so far.
        holder: String,
    },
    /// The data directory belongs to another major version.
    #[error(
        "the cluster in `{directory}` was made by PostgreSQL {found}, and the programs found are PostgreSQL {wanted}. \
         Set `postgres: {found}` for this database, or upgrade the cluster with pg_upgrade"
    )]
    OtherMajor {
        /// The data directory.
        directory: PathBuf,
        /// What its PG_VERSION says.
        found: String,
        /// The major version of the installation.
        wanted: u32,
    },
    /// The configured address is taken.
    #[error(
        "the address {address} of project `{project}` cannot be listened on. Stop the program that uses it, or choose another address in `core.listen`"
    )]
    AddressInUse {
        /// The project.
        project: String,
        /// Where it should have listened.
        address: std::net::SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// A program of the installation ended badly.
    #[error("`{program}` failed ({end}). Its last words:\n{output}")]
    ProgramFailed {
        /// The program's path.
        program: PathBuf,
        /// Exit status or signal.
        end: String,
        /// The last lines it printed.
        output: String,
    },
    /// A program of the installation did not end in time.
    #[error("`{program}` did not end within {limit:?} and was ended")]
    ProgramTimedOut {
        /// The program's path.
        program: PathBuf,
        /// The time it was given.
        limit: Duration,
    },
    /// The server ended while it should have come up.
    #[error("Postgres of project `{project}` did not start ({end}). The last lines of `{log}`:\n{tail}")]
    StartFailed {
        /// The project.
        project: String,
        /// Exit status or signal.
        end: String,
        /// The server's log file.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The server lives but accepts no connection.
    #[error(
        "Postgres of project `{project}` accepts no connection after {limit:?}. The last lines of `{log}`:\n{tail}"
    )]
    StartTimedOut {
        /// The project.
        project: String,
        /// The time it was given.
        limit: Duration,
        /// The server's log file.
        log: PathBuf,
        /// Its last lines.
        tail: String,
        /// Why the last attempt to connect failed.
        source: Option<tokio_postgres::Error>,
    },
    /// The server did not go down.
    #[error(
        "Postgres of project `{project}` (process {pid}) is still running after a fast and an immediate shutdown; \
         look at what holds it and end it by hand"
    )]
    StopTimedOut {
        /// The project.
        project: String,
        /// The postmaster.
        pid: u32,
    },
    /// A statement of the core's own was refused.
    #[error("Postgres of project `{project}` refused to {action}")]
    Statement {
        /// The project.
        project: String,
        /// What the statement was for.
        action: &'static str,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// The gateway's address is taken.
    #[error(
        "the gateway cannot listen on {address}. Stop the program that uses it, or choose another address in \
         `core.listen`"
    )]
    GatewayAddress {
        /// Where it should have listened.
        address: std::net::SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Other machines could reach the gateway, and none would be let in.
    #[error(
        "the gateway at {address} is reachable from other machines, which it serves over TLS only, and there is no \
         certificate. Set `core.tls`, or let it listen on 127.0.0.1"
    )]
    GatewayUnprotected {
        /// Where it should listen.
        address: std::net::SocketAddr,
    },
    /// The gateway's certificate or key is none.
    #[error(
        "the file `{file}` in `core.tls` cannot be used. It has to hold a certificate, or its key, in PEM form"
    )]
    GatewayCertificate {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server does not say what its sessions do.
    #[error("Postgres does not say whether it is idle, so it stays awake")]
    IdleWatch {
        /// What the server said, if it said anything in time.
        source: Option<tokio_postgres::Error>,
    },
    /// The file system refused.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl CoreError {
    /// For `map_err`: the same action and path with whatever the operating system says.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> CoreError {
        let path = path.into();
        move |source| CoreError::Io { action, path, source }
    }

    /// For `map_err` on the core's own statements.
    pub(crate) fn statement(
        project: &str,
        action: &'static str,
    ) -> impl FnOnce(tokio_postgres::Error) -> CoreError + use<> {
        let project = project.to_owned();
        move |source| CoreError::Statement { project, action, source }
    }
}
