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
    /// Another process of ours works there: a daemon on a project, a compute on a branch, a keeper on its logs.
    #[error(
        "`{directory}` is already in use by process {holder}. Stop that one first, or give this one a directory of its \
         own"
    )]
    AlreadyOpen {
        /// The directory.
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
        "Postgres of project `{project}` (process {pid}) was still running {limit:?} after it was told to stop; the \
         keepers or the store may be out of reach, see `tidewater compute list`"
    )]
    StopTimedOut {
        /// The project.
        project: String,
        /// The postmaster.
        pid: u32,
        /// The time it was given.
        limit: Duration,
    },
    /// The server ended while it was in service.
    #[error("Postgres of project `{project}` has ended ({end}). Its last words:\n{tail}")]
    PostgresEnded {
        /// The project.
        project: String,
        /// Exit status or signal.
        end: String,
        /// The last lines of its log.
        tail: String,
    },
    /// A start was interrupted on purpose.
    #[error("the start of project `{project}` was cancelled")]
    StartCancelled {
        /// The project.
        project: String,
    },
    /// The WAL does not reach as far as the pages need.
    #[error(
        "project `{project}` cannot be started: its pages need the WAL up to {need}, and keepers and store have it up to \
         {have}. Bring back the keepers that are missing, or restore the database to a point before {have}"
    )]
    PagesAheadOfWal {
        /// The project.
        project: String,
        /// Where the WAL ends.
        have: wal_decoder::Lsn,
        /// What the pages contain already.
        need: wal_decoder::Lsn,
    },
    /// The last of the WAL did not reach the keepers' majority and the store in time.
    #[error(
        "the last WAL of project `{project}` did not reach the keepers and the store within {limit:?}: nothing is lost, \
         the next start recovers. See `tidewater compute list` for what they said"
    )]
    DrainTimedOut {
        /// The project.
        project: String,
        /// The time it was given.
        limit: Duration,
    },
    /// Where the keeper's hard state lies is not said.
    #[error(
        "the storage `{storage}` is no local folder, so the WAL keeper needs one: name it in `core.keeper.dir`, or other \
         keepers in `core.keepers`"
    )]
    KeeperDirectoryUnnamed {
        /// The storage.
        storage: String,
    },
    /// A compute did not go down in order.
    #[error(
        "project `{project}` did not go to sleep in order, so its next start recovers; nothing is lost: {reason}"
    )]
    SuspendFailed {
        /// The project.
        project: String,
        /// What happened, with its causes.
        reason: String,
    },
    /// The compute is on its way down.
    #[error("the compute is ending")]
    ComputeEnding,
    /// The WAL stream from Postgres to the keepers broke.
    #[error("the WAL of project `{project}` no longer reaches the keepers: {problem}")]
    StreamLost {
        /// The project.
        project: String,
        /// Why.
        problem: String,
    },
    /// `pg_control` cannot be used.
    #[error(
        "`global/pg_control` cannot be used: {problem}. Restore the database to an earlier point; `tidewater core \
         inspect` says what else is damaged"
    )]
    ControlFile {
        /// What does not fit.
        problem: String,
    },
    /// A compute process refused or failed.
    #[error("the compute at `{socket}` refused: {reason}")]
    ComputeRefused {
        /// Its control socket.
        socket: PathBuf,
        /// What it said.
        reason: String,
    },
    /// A compute process does not answer.
    #[error(
        "the compute at `{socket}` did not answer within {limit:?}; `compute.log` beside it says what it does"
    )]
    ComputeSilent {
        /// Its control socket.
        socket: PathBuf,
        /// The time it was given.
        limit: Duration,
    },
    /// The point that was asked for cannot be reached.
    #[error("project `{project}` cannot go back to {point}: {reason}")]
    PointOutOfReach {
        /// The project.
        project: String,
        /// The time or position that was asked for.
        point: String,
        /// Why not, and what could be.
        reason: String,
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
        "manifest {number} of branch {branch}, or what should follow it, is not published: {reason}. This is a bug of Tidewater, please report it"
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
    /// The machine cannot mount the page filesystem.
    #[error(
        "there is no FUSE on this machine (`/dev/fuse` is missing). Load the kernel's `fuse` module, give the container \
         the device, or set `mount: copy` under `core`"
    )]
    NoFuse,
    /// The page filesystem could not be mounted or unmounted.
    #[error(
        "the page filesystem cannot be mounted at or taken from `{mount_point}`. An ordinary user needs `fusermount3`; \
         in a container, mounting needs the SYS_ADMIN capability"
    )]
    Mount {
        /// The data directory.
        mount_point: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process serves a mount there.
    #[error("another process has a page filesystem mounted at `{mount_point}`; stop that compute first")]
    MountPointInUse {
        /// The data directory.
        mount_point: PathBuf,
    },
    /// A cut was made while another one is not in the store yet.
    #[error("the cut before this one is not captured yet; make the next when it is")]
    CutUnderWay,
    /// The second half of a page never came.
    #[error(
        "half a page of a relation was written and the other half did not follow: its writer was killed. Stop this \
         compute and start it again; it continues from the last manifest and the write-ahead log"
    )]
    HalfPageWritten,
    /// The local disk failed under the page cache.
    #[error(
        "the local page cache failed, so nothing in it may be captured. Look at the disk of the state directory, then \
         stop this compute and start it again; it continues from the last manifest and the write-ahead log"
    )]
    PageCacheFailed,
    /// The names of the data directory do not add up.
    #[error(
        "the names of the data directory do not add up at {change}. This is a bug of Tidewater, please report it"
    )]
    JournalUnsound {
        /// The change or entry that did not fit.
        change: String,
        /// What the tree said.
        source: io::Error,
    },
    /// A data directory has no control file.
    #[error("{origin} has no `global/pg_control`: it is no Postgres cluster")]
    NoControlFile {
        /// Where it was looked for.
        origin: String,
    },
    /// A cluster cannot be brought into the page store.
    #[error("the cluster in `{directory}` cannot be brought into the page store: {reason}")]
    NotImportable {
        /// The data directory.
        directory: PathBuf,
        /// Why not, and what mends it.
        reason: String,
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
