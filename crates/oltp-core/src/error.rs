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
    /// The core's storage cannot be opened.
    #[error("the storage of the core (`core.storage`) cannot be used")]
    StorageUnusable {
        /// What is wrong with its address, options or credentials.
        source: object_location::LocationError,
    },
    /// The object store does not keep the promise that everything rests on.
    #[error(
        "the store at `{uri}` let {winners} of {racers} racing writers put one object that only the first may put. \
         Use a store that honours `If-None-Match: *`"
    )]
    NoConditionalPut {
        /// The storage's address.
        uri: String,
        /// How many were told that they had put it.
        winners: u32,
        /// How many tried.
        racers: u32,
    },
    /// The object store refused, or could not be reached after several attempts.
    #[error("cannot {action} `{object}`")]
    Object {
        /// What was tried.
        action: &'static str,
        /// The object's full name.
        object: String,
        /// What the store said last.
        source: object_store::Error,
    },
    /// The object store did not answer in time.
    #[error("the store did not {action} `{object}` within {limit:?}; look at the store and the way to it")]
    ObjectTimedOut {
        /// What was tried.
        action: &'static str,
        /// The object's full name.
        object: String,
        /// The time it was given.
        limit: Duration,
    },
    /// Something refers to an object that is not there.
    #[error(
        "`{object}` is missing though something refers to it. If it was deleted by hand, put it back; `tidewater core \
         inspect` lists what else is missing"
    )]
    ObjectMissing {
        /// The object's full name.
        object: String,
    },
    /// An object's bytes are not what was written.
    #[error(
        "`{object}` is damaged: {reason}. Put it back from a copy of the storage, or restore the database to a point \
         before it; `tidewater core inspect` lists what else is damaged"
    )]
    ObjectDamaged {
        /// The object's full name.
        object: String,
        /// What does not fit, and where.
        reason: String,
    },
    /// An object was written by a newer Tidewater.
    #[error(
        "`{object}` has format {found}, and this Tidewater knows formats up to {known}: run the newer one"
    )]
    ObjectTooNew {
        /// The object's full name.
        object: String,
        /// The version it says.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// A page of Postgres does not carry the checksum it should.
    #[error(
        "page {block} of `{path}` is damaged ({reason}); it was read from {origin}. Restore the database to a point \
         before the damage, or restore the page with `zero_damaged_pages` knowingly"
    )]
    PageDamaged {
        /// The file in the data directory.
        path: String,
        /// The page's number in that file.
        block: u32,
        /// What does not fit.
        reason: crate::page_store::PageDefect,
        /// The layer object, or the data directory.
        origin: String,
    },
    /// Pages were given to a layer in another order than theirs.
    #[error(
        "page {key} was written to a layer after page {after}. This is a bug of Tidewater, please report it"
    )]
    PageOutOfOrder {
        /// The page.
        key: crate::ids::PageKey,
        /// The one before.
        after: crate::ids::PageKey,
    },
    /// A manifest that this process made breaks a rule of the format.
    #[error(
        "manifest {number} of branch {branch} was not published: {reason}. This is a bug of Tidewater, please report it"
    )]
    ManifestUnsound {
        /// The branch.
        branch: crate::ids::BranchId,
        /// The manifest's number.
        number: crate::ids::ManifestNumber,
        /// The broken rule.
        reason: String,
    },
    /// Another process published a manifest of this number.
    #[error(
        "manifest {number} of branch {branch} was published by somebody else: two processes write this branch; stop one"
    )]
    AlreadyPublished {
        /// The branch.
        branch: crate::ids::BranchId,
        /// The manifest's number.
        number: crate::ids::ManifestNumber,
    },
    /// A newer compute has the branch.
    #[error("the compute of term {term} may not write branch {branch} any more: term {by} has taken over")]
    Fenced {
        /// The branch.
        branch: crate::ids::BranchId,
        /// The term of the loser.
        term: crate::ids::Term,
        /// The newer term.
        by: crate::ids::Term,
    },
    /// The branch is deleted, or never was.
    #[error("project `{project}` has no branch `{branch}`; `tidewater branch list` shows those there are")]
    NoSuchBranch {
        /// The project.
        project: String,
        /// The branch's name or id.
        branch: String,
    },
    /// Two branches of one project cannot have one name.
    #[error(
        "project `{project}` already has a branch `{branch}`; choose another name, or delete that one first"
    )]
    BranchExists {
        /// The project.
        project: String,
        /// The name.
        branch: String,
    },
    /// What a branch was being made from is gone.
    #[error(
        "manifest {manifest} of branch {branch}, from which another one was being made, went out of retention \
         meanwhile; try again, or choose a later point"
    )]
    BranchPointGone {
        /// The branch that was copied from.
        branch: crate::ids::BranchId,
        /// The manifest that was copied.
        manifest: crate::ids::ManifestNumber,
    },
    /// Layers waited too long for their manifest.
    #[error(
        "layer {layer} is new in manifest {number} of branch {branch} and was written {age:?} before the one before \
         was published: it may have been collected, and its pages have to be written again"
    )]
    LayerTooOld {
        /// The layer.
        layer: crate::ids::LayerId,
        /// How long before the manifest before it was written.
        age: Duration,
        /// The branch.
        branch: crate::ids::BranchId,
        /// The manifest that was not published.
        number: crate::ids::ManifestNumber,
    },
    /// The storage has no such project.
    #[error("there is no project `{project}` in this storage; add it to `databases` in the configuration")]
    NoSuchProject {
        /// The project.
        project: String,
    },
    /// Somebody made a project of this name before.
    #[error("there is a project `{project}` in this storage already; choose another name")]
    ProjectExists {
        /// The project.
        project: String,
    },
    /// The address of a WAL keeper cannot be understood.
    #[error("`{text}` is no address of a WAL keeper: write unix:PATH or host:port")]
    KeeperAddress {
        /// What was written.
        text: String,
    },
    /// A keeper would listen to other machines without protection.
    #[error(
        "a WAL keeper at {address} can be reached from other machines, and whoever can write to it decides what a \
         database's history is: give it a certificate (--tls-cert, --tls-key) and a token (--token-file), or let it \
         listen on loopback or a Unix socket"
    )]
    KeeperUnprotected {
        /// Where it should have listened.
        address: String,
    },
    /// A keeper cannot listen.
    #[error(
        "the WAL keeper cannot listen at {address}; stop the program that does, or choose another address"
    )]
    KeeperListen {
        /// Where.
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A keeper's certificate or key is of no use.
    #[error(
        "`{file}` cannot protect the WAL keeper: {problem}. It should hold a certificate chain or a private key in PEM form"
    )]
    KeeperCertificate {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What a keeper's certificate is checked against is of no use.
    #[error("no WAL keeper can be believed without its authority's certificate")]
    KeeperTls {
        /// Which file, and what is wrong with it.
        source: Box<postgres_connector::Error>,
    },
    /// Two keepers on one directory would both promise.
    #[error(
        "another WAL keeper already uses `{directory}`: stop that one, or give this one a directory of its own"
    )]
    KeeperDirectoryInUse {
        /// The directory.
        directory: PathBuf,
    },
    /// What a keeper must not forget cannot be read.
    #[error(
        "the WAL keeper's file `{path}` cannot be used: {problem}. It holds promises that other machines rely on, so it is \
         not made anew: put it back from a copy. If there is none, and this is the only keeper, move its folder away; the \
         database then goes on from the archive, without what was committed in the last moments before"
    )]
    KeeperStateDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A keeper, or a proposer from a keeper's side, cannot be reached.
    #[error(
        "the connection with the WAL keeper at {keeper} failed while {doing}; see whether it runs and can be reached"
    )]
    KeeperUnreachable {
        /// Its address.
        keeper: String,
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// A keeper does not answer.
    #[error(
        "the WAL keeper at {keeper} was silent for {limit:?} while {doing}; look at its disk and the way to it"
    )]
    KeeperSilent {
        /// Its address.
        keeper: String,
        /// What was waited for.
        doing: &'static str,
        /// How long.
        limit: Duration,
    },
    /// Bytes that are not the protocol's.
    #[error(
        "{keeper} does not speak the WAL keepers' protocol as it should: {problem}. Run the same version on both sides"
    )]
    KeeperProtocol {
        /// Its address.
        keeper: String,
        /// What it sent.
        problem: String,
    },
    /// A keeper says no.
    #[error("the WAL keeper at {keeper} refuses: {reason}")]
    KeeperRefused {
        /// Its address.
        keeper: String,
        /// Why, and what mends it.
        reason: String,
    },
    /// Too few keepers.
    #[error(
        "branch {log} needs {wanted} of its {keepers} WAL keepers and does not have them:\n{answers}\nStart those that \
         are missing; nothing that was acknowledged is lost"
    )]
    NoMajority {
        /// The branch.
        log: String,
        /// How many are needed.
        wanted: usize,
        /// How many there are.
        keepers: usize,
        /// A line for each.
        answers: String,
    },
    /// The session that carries the WAL cannot be had.
    #[error("no WAL can be streamed from Postgres, so its commits wait")]
    WalSession {
        /// Why.
        source: Box<postgres_connector::Error>,
    },
    /// Postgres is not the cluster whose branch this is.
    #[error(
        "Postgres is cluster {found}, and branch {log} belongs to cluster {wanted}: it was started on another data directory"
    )]
    OtherCluster {
        /// The branch.
        log: String,
        /// The branch's cluster.
        wanted: u64,
        /// The server's.
        found: u64,
    },
    /// WAL that somebody needs is nowhere.
    #[error(
        "WAL of {log} from {from} to {to} is with none of the keepers that answer and not in the archive. Start the missing \
         keepers, or restore to a point before"
    )]
    WalMissing {
        /// The branch.
        log: String,
        /// The first byte that is missing.
        from: wal_decoder::Lsn,
        /// How far it is needed.
        to: wal_decoder::Lsn,
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
