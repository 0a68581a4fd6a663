//! A throwaway PostgreSQL cluster, ready for logical replication. It is of version 18, unless `TIDEWATER_POSTGRES_MAJOR` names
//! another, which then has to be what `TIDEWATER_POSTGRES_BIN` leads to (`make old-postgres`).
//!
//! `initdb` runs once per build directory; every cluster after that is a copy of its result, which
//! takes a fraction of the time. Copies share their system identifier, as clones of one backup would.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use oltp_core::{Installation, ServiceUser, find_installation, run_bounded, server_command};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio_postgres::{Client, NoTls};

use crate::daemon::free_port;
use crate::reader::repository;
use crate::small_disk::SmallDisk;

const MAJOR_VARIABLE: &str = "TIDEWATER_POSTGRES_MAJOR";
const NEWEST_MAJOR: u32 = 18;
const INITDB_LIMIT: Duration = Duration::from_secs(120);
const START_LIMIT: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(20);

/// What every cluster runs with. Nothing here outlives a test, and a killed process (unlike a lost
/// machine) loses nothing that was written without fsync.
const SETTINGS: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("fsync", "off"),
    ("listen_addresses", "127.0.0.1"),
    ("max_connections", "60"),
    // The least there is: transactions of a few hundred rows are sent in chunks while in progress already.
    ("logical_decoding_work_mem", "64kB"),
    ("max_replication_slots", "20"),
    ("max_wal_senders", "20"),
    ("max_prepared_transactions", "10"),
    ("shared_buffers", "32MB"),
    ("unix_socket_directories", ""),
];

/// A running cluster with a superuser `postgres` that needs no password on the loopback. Gone when dropped.
#[derive(Debug)]
pub struct Postgres {
    folder: TempDir,
    installation: Installation,
    user: ServiceUser,
    settings: Vec<(String, String)>,
    port: u16,
    process: Option<Child>,
}

impl Postgres {
    /// A cluster of its own, with the harness's settings.
    pub async fn start() -> Postgres {
        Postgres::start_with(&[]).await
    }

    /// A cluster of its own; `settings` come after the harness's.
    pub async fn start_with(settings: &[(&str, &str)]) -> Postgres {
        let installation =
            find_installation(None, postgres_major()).await.unwrap_or_else(|error| panic!("{error}"));
        let user = ServiceUser::for_new_cluster();
        let template = template(&installation, &user).await;
        let folder = open_folder();
        copy_cluster(&template, &folder.path().join("data"), &user);
        let settings = SETTINGS
            .iter()
            .chain(settings)
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut postgres =
            Postgres { folder, installation, user, settings, port: free_port(), process: None };
        postgres.restart().await;
        postgres
    }

    /// A URL for `database` as the superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The TCP port on 127.0.0.1; it stays through restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A session as the superuser.
    pub async fn connect(&self, database: &str) -> Client {
        connect(&self.url(database)).await.unwrap_or_else(|error| panic!("{error:?}\n{}", self.log()))
    }

    /// Makes a database and opens a session in it.
    pub async fn create_database(&self, name: &str) -> Client {
        let quoted = name.replace('"', "\"\"");
        self.connect("postgres").await.batch_execute(&format!("CREATE DATABASE \"{quoted}\"")).await.unwrap();
        self.connect(name).await
    }

    /// A small disk that the server may write to, for a tablespace. `None` where the test may not mount one.
    pub fn small_disk(&self, megabytes: u64) -> Option<SmallDisk> {
        let disk = SmallDisk::mount(&self.folder.path().join("small"), megabytes)?;
        self.user.own(disk.path()).unwrap();
        Some(disk)
    }

    /// Kills the postmaster with signal 9; its backends end by themselves. Start it again with [`Postgres::restart`].
    pub async fn kill9(&mut self) {
        self.signal(Signal::KILL).await;
    }

    /// Starts the cluster, after a fast shutdown if it is running, and waits until it answers.
    pub async fn restart(&mut self) {
        self.signal(Signal::INT).await;
        let deadline = Instant::now() + START_LIMIT;
        self.process = Some(self.spawn());
        loop {
            if connect(&self.url("postgres")).await.is_ok() {
                return;
            }
            assert!(Instant::now() < deadline, "Postgres did not start:\n{}", self.log());
            if self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_some()) {
                // Backends of a killed postmaster keep the next one out until they have ended.
                assert!(self.log().contains("pre-existing shared memory"), "Postgres ended:\n{}", self.log());
                self.process = Some(self.spawn());
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// A client program of the same installation, such as `pgbench`, that works in `database`.
    pub fn client_program(&self, name: &str, database: &str) -> Command {
        let mut command = Command::new(postgres_program(name));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", database)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("postgres.log")
    }

    fn spawn(&self) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = server_command(&self.installation.program("postgres"), &self.user);
        command.arg("-D").arg(self.folder.path().join("data")).arg("-p").arg(self.port.to_string());
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null()).kill_on_drop(true);
        command.spawn().unwrap()
    }

    /// Sends `signal` to the postmaster, if it runs, and waits for its end.
    async fn signal(&mut self, signal: Signal) {
        let Some(mut process) = self.process.take() else { return };
        if let Some(pid) = process.id() {
            super::postgres::signal(pid, signal);
        }
        process.wait().await.unwrap();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Immediate shutdown, so that the backends go too; kill_on_drop covers a postmaster that hangs.
        if let Some(pid) = self.process.as_ref().and_then(Child::id) {
            signal(pid, Signal::QUIT);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(4000);
            let tail = log.get(from..).unwrap_or(&log);
            eprintln!("--- the end of Postgres's log\n{tail}");
        }
    }
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // A test that kills the server learns of the broken session from its own statements.
    tokio::spawn(connection);
    Ok(client)
}

/// The version that the servers of the tests are of.
pub fn postgres_major() -> u32 {
    std::env::var(MAJOR_VARIABLE).map_or(NEWEST_MAJOR, |major| major.parse().unwrap())
}

/// One of PostgreSQL's own programs; the folder that holds them for no name. Older servers come without client
/// programs, and those of 18 serve them as well.
pub fn postgres_program(name: &str) -> PathBuf {
    let newest = repository().join(".tools/postgres/bin");
    let bin = std::env::var_os("TIDEWATER_POSTGRES_BIN").map_or_else(|| newest.clone(), PathBuf::from);
    let program = bin.join(name);
    if program.exists() { program } else { newest.join(name) }
}

/// The `pgbench` of the installation that the tests run on; ends with whoever holds it.
pub fn pgbench() -> tokio::process::Command {
    let mut command = tokio::process::Command::new(postgres_program("pgbench"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Ends a process the hard way.
pub fn kill9(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal; a process that is gone is no error.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("cannot signal process {}: {error}", pid.as_raw_nonzero()),
    }
}

/// A temporary folder through which the server's user can pass.
fn open_folder() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::with_prefix("tidewater-e2e-").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

/// A finished, never started cluster, made at the first need and kept beside the test binaries.
async fn template(installation: &Installation, user: &ServiceUser) -> PathBuf {
    static MAKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one_maker = MAKING.lock().await;
    let (major, minor) = installation.version();
    let place = build_folder().join(format!("e2e-postgres-{major}.{minor}"));
    if place.exists() {
        return place;
    }
    let scratch = open_folder();
    user.own(scratch.path()).unwrap();
    let made = scratch.path().join("data");
    let mut command = server_command(&installation.program("initdb"), user);
    command.arg("--pgdata").arg(&made).args([
        "--username=postgres",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
        "--no-instructions",
    ]);
    if major >= 17 {
        // The builtin provider came with 17.
        command.args(["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]);
    }
    run_bounded(command, INITDB_LIMIT).await.unwrap_or_else(|error| panic!("{error}"));
    // Renamed into place when complete; another test process may have been first, with the same result.
    let staged = TempDir::with_prefix_in("e2e-postgres-", build_folder()).unwrap();
    copy_cluster(&made, &staged.path().join("data"), user);
    if let Err(error) = std::fs::rename(staged.path().join("data"), &place) {
        assert!(place.exists(), "cannot keep the template cluster: {error}");
    }
    place
}

/// `target/debug`, from wherever below it this binary runs.
pub(crate) fn build_folder() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let folder = exe.parent().unwrap();
    if folder.ends_with("deps") { folder.parent().unwrap().to_owned() } else { folder.to_owned() }
}

fn copy_cluster(from: &Path, to: &Path, user: &ServiceUser) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_cluster(&entry.path(), &target, user);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
            user.own(&target).unwrap();
        }
    }
    user.own(to).unwrap();
}
