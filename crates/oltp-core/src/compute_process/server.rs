//! The Postgres of a compute: launched on the mounted pages, watched, and ended.
//!
//! What a commit means must not depend on what a user of the database sets, so everything that durability
//! stands on is on the postmaster's command line, above `ALTER SYSTEM`. Three settings look reckless and
//! are not:
//!
//! * `fsync=off`: the compute's disk is never trusted. A machine that fails takes its pages with it, and the
//!   next start reads them from the store and its WAL from the keepers.
//! * `full_page_writes=off`: they repair pages torn by a power failure. A cut takes pages whole, and
//!   nothing else is ever recovered from.
//! * `restart_after_crash=off`: a restart in place would replay local WAL that the keepers may not have, and
//!   show commits that were never confirmed. The compute process ends instead, and the next one begins from
//!   what the keepers hold.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use secrecy::{ExposeSecret, SecretString};
use tokio::process::Child;
use tokio::sync::watch;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use super::directory::ComputeDirectory;
use super::owner_extensions;
use super::rewinding::on_mount;
use crate::installation::Installation;
pub(crate) use crate::project::SUPERUSER;
use crate::reachable_directory::ReachableDirectory;
use crate::server_command::{assignment, last_lines, server_command};
use crate::{CoreError, Result};

/// Names the socket and nothing else: every compute has a socket directory of its own.
pub const PORT: u16 = 5432;

/// On every command line, in each way of starting.
const FIXED: &[(&str, &str)] = &[
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("restart_after_crash", "off"),
    ("wal_level", "logical"),
    ("zero_damaged_pages", "off"),
    ("ignore_checksum_failure", "off"),
    ("archive_mode", "off"),
    ("hot_standby", "off"),
    // New segments are sparse until written: nobody relies on their blocks being there.
    ("wal_init_zero", "off"),
    // The log goes to a file that we opened.
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("listen_addresses", ""),
];

/// For a server that somebody works with: a commit waits for the keepers' majority, for which the compute
/// process answers as one standby.
const SERVING: &[(&str, &str)] = &[
    ("synchronous_standby_names", "FIRST 1 (tidewater_keeper)"),
    // A keeper session that reconnects continues from the majority's position.
    ("wal_keep_size", "1GB"),
];

/// For a server that only replays WAL up to a branch's beginning. Nothing of what lives in the database
/// may act before the branch has been cut off from its parent's world: no workers, no extensions' jobs.
const REWINDING: &[(&str, &str)] = &[
    ("synchronous_standby_names", ""),
    ("restore_command", "exit 1"),
    ("recovery_target_timeline", "current"),
    ("recovery_target_action", "promote"),
    ("max_logical_replication_workers", "0"),
    ("shared_preload_libraries", ""),
    ("session_preload_libraries", ""),
    ("autovacuum", "off"),
    ("event_triggers", "off"),
];

/// For a server that does not even answer: one that does, answers within milliseconds.
const SILENT_LIMIT: Duration = Duration::from_secs(60);

/// For one that says it is starting up: replaying the WAL since the last checkpoint takes its time.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Between two attempts to connect while the server comes up.
const RETRY: Duration = Duration::from_millis(2);
const SLOW_RETRY: Duration = Duration::from_millis(50);
const SLOW_AFTER: Duration = Duration::from_secs(1);

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A fast shutdown ends sessions and writes one checkpoint, through the keepers.
const FAST_LIMIT: Duration = Duration::from_secs(120);
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// A log larger than this makes room at the next start; one older log is kept.
const LOG_LIMIT: u64 = 16 << 20;

/// How much of the log's end an error shows, at most.
const LOG_TAIL_BYTES: u64 = 16 << 10;
const LOG_TAIL_LINES: usize = 15;

/// What a server is started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Sessions come, commits wait for the keepers.
    Serving,
    /// Replay to the end of the WAL in `pg_wal`, or to the last commit at or before a time.
    Rewinding {
        /// As Postgres writes times; all commits before the first, in WAL order, stamped later.
        until: Option<String>,
    },
}

/// A postmaster, ours. Dropping it kills the server at once.
#[derive(Debug)]
pub(crate) struct Server {
    project: String,
    pid: u32,
    password: SecretString,
    data: PathBuf,
    socket_directory: PathBuf,
    log: PathBuf,
    /// Where this server's lines begin in the log file.
    log_start: u64,
    ended: watch::Receiver<Option<String>>,
    _watcher: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Without its compute process a server can confirm nothing; a clean end goes through `stop`.
        if self.is_up()
            && let Err(error) = self.signal(Signal::KILL)
        {
            tracing::warn!(project = %self.project, pid = self.pid, %error, "Postgres could not be ended");
        }
    }
}

impl Server {
    /// Starts a postmaster on the directory's mounted pages.
    ///
    /// # Errors
    /// The program cannot be run.
    pub(crate) fn launch(
        directory: &ComputeDirectory,
        installation: &Installation,
        project: &str,
        password: &SecretString,
        purpose: &Purpose,
    ) -> Result<Server> {
        let (socket_directory, socket_argument) = directory.socket_directory()?;
        let log = open_log(&directory.log())?;
        let log_start = log.metadata().map_err(CoreError::io("look at", directory.log()))?.len();
        let reachable = ReachableDirectory::open(directory.root(), directory.user())?;
        let program = installation.program("postgres");
        let mut command = server_command(&program, directory.user());
        command.arg("-D").arg(reachable.path().join("data"));
        let by_purpose = match purpose {
            Purpose::Serving => SERVING,
            Purpose::Rewinding { .. } => REWINDING,
        };
        for (name, value) in FIXED.iter().chain(by_purpose) {
            // Event triggers can be switched off since 17; before, they fire at nothing we do.
            if *name == "event_triggers" && installation.major() < 17 {
                continue;
            }
            command.arg("-c").arg(assignment(name, value));
        }
        if installation.major() >= owner_extensions::SINCE {
            command.arg("-c").arg(assignment("extension_control_path", owner_extensions::CONTROL_PATH));
        }
        if let Purpose::Rewinding { until: Some(time) } = purpose {
            command.arg("-c").arg(assignment("recovery_target_time", time));
        }
        command
            .arg("-c")
            .arg(assignment("port", PORT.to_string()))
            .arg("-c")
            .arg(assignment("unix_socket_directories", &socket_argument));
        let errors = log.try_clone().map_err(CoreError::io("open", directory.log()))?;
        // A process group of its own: ^C on a terminal is for the compute process, which stops it in order.
        command.stdout(log).stderr(errors).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        let child = command.spawn().map_err(CoreError::io("run", &program))?;
        let pid = child.id().unwrap_or_default();
        directory.remember_postmaster(pid)?;
        let (ended, watcher) = watch_child(child);
        Ok(Server {
            project: project.to_owned(),
            pid,
            password: password.clone(),
            data: directory.data(),
            socket_directory,
            log: directory.log(),
            log_start,
            ended,
            _watcher: watcher,
        })
    }

    fn is_up(&self) -> bool {
        self.ended.borrow().is_none()
    }

    /// The postmaster's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The directory of the Unix socket, as a client's `host`.
    pub(crate) fn socket_directory(&self) -> &Path {
        &self.socket_directory
    }

    /// The last lines this server wrote.
    pub(crate) fn last_words(&self) -> String {
        log_tail(&self.log, self.log_start)
    }

    /// A session of the core's own role.
    pub(crate) async fn connect(&self, database: &str) -> Result<Client> {
        self.try_connect(database)
            .await
            .map_err(CoreError::statement(&self.project, "let the core's own role in"))
    }

    /// Whether a role gets in with a password. Any refusal but that of the password (no slot free, logins off)
    /// says nothing against it.
    pub(crate) async fn takes_password(&self, database: &str, role: &str, password: &SecretString) -> bool {
        let attempt = self.try_connect_as(database, role, password).await;
        !matches!(attempt, Err(error) if error.code() == Some(&SqlState::INVALID_PASSWORD))
    }

    async fn try_connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        self.try_connect_as(database, SUPERUSER, &self.password).await
    }

    async fn try_connect_as(
        &self,
        database: &str,
        role: &str,
        password: &SecretString,
    ) -> Result<Client, tokio_postgres::Error> {
        let config = self.config(database, role, password);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a session of the core with its Postgres ended");
            }
        });
        Ok(client)
    }

    /// How the core's own role reaches a database.
    pub(crate) fn superuser(&self, database: &str) -> tokio_postgres::Config {
        self.config(database, SUPERUSER, &self.password)
    }

    fn config(&self, database: &str, role: &str, password: &SecretString) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.socket_directory)
            .port(PORT)
            .dbname(database)
            .user(role)
            .password(password.expose_secret())
            .application_name("tidewater")
            // Whatever the database's owner set for everybody is not meant for these sessions.
            .options("-c statement_timeout=0 -c idle_session_timeout=0 -c default_transaction_read_only=off")
            .connect_timeout(CONNECT_LIMIT);
        config
    }

    /// Connects until that works: the only proof that the server serves. Knocking too early makes the postmaster fork a
    /// process to say so, which holds it up; so at first it is asked only once its file in the data directory says that it is
    /// ready.
    ///
    /// # Errors
    /// The server ended, refuses, or stays silent; the error shows the end of its log.
    pub(crate) async fn wait_until_ready(&self) -> Result<Client> {
        let started = Instant::now();
        let mut ended = self.ended.clone();
        while started.elapsed() < SLOW_AFTER && self.is_up() && !on_mount(&self.data, says_ready).await? {
            tokio::time::sleep(RETRY).await;
        }
        loop {
            let error = match self.try_connect("postgres").await {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            if let Some(end) = ended.borrow().clone() {
                return Err(self.start_failed(end));
            }
            let limit = match error.code() {
                // "The database system is starting up", or all slots are taken for a moment.
                Some(&SqlState::CANNOT_CONNECT_NOW | &SqlState::TOO_MANY_CONNECTIONS) => RECOVERY_LIMIT,
                None => SILENT_LIMIT,
                Some(_) => {
                    return Err(CoreError::statement(&self.project, "let the core's own role in")(error));
                }
            };
            if started.elapsed() > limit {
                return Err(CoreError::StartTimedOut {
                    project: self.project.clone(),
                    limit,
                    log: self.log.clone(),
                    tail: self.last_words(),
                    source: Some(error),
                });
            }
            let retry = if started.elapsed() < SLOW_AFTER { RETRY } else { SLOW_RETRY };
            tokio::select! {
                () = tokio::time::sleep(retry) => {}
                // A sender that is gone changes nothing: the next round sees the last value.
                _ = ended.changed() => {}
            }
        }
    }

    /// Ends the server in order: sessions are ended, a checkpoint is written and, while the keepers'
    /// session lives, streamed to its end.
    ///
    /// # Errors
    /// It does not go down in time; it is killed then.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.signal(Signal::INT)?;
        if tokio::time::timeout(FAST_LIMIT, self.wait_exit()).await.is_ok() {
            return Ok(());
        }
        self.kill().await?;
        Err(CoreError::StopTimedOut { project: self.project.clone(), pid: self.pid, limit: FAST_LIMIT })
    }

    /// Ends the server at once. What it had not confirmed is lost, which is what happens in any failure.
    ///
    /// # Errors
    /// The process survives.
    pub(crate) async fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        if tokio::time::timeout(KILL_LIMIT, self.wait_exit()).await.is_ok() {
            return Ok(());
        }
        Err(CoreError::StopTimedOut { project: self.project.clone(), pid: self.pid, limit: KILL_LIMIT })
    }

    /// Waits until the postmaster ends, for whatever reason, and says how it ended.
    pub(crate) async fn wait_exit(&self) -> String {
        let mut ended = self.ended.clone();
        let end = ended.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        end.unwrap_or_else(|| "its end was not observed".to_owned())
    }

    /// Signals our own child, whose number nobody else can have before its end was observed.
    fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_up() {
            return Ok(());
        }
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
        match rustix::process::kill_process(pid, signal) {
            Err(error) if error != rustix::io::Errno::SRCH => {
                Err(CoreError::io("signal the postmaster of", &self.log)(error.into()))
            }
            _ => Ok(()),
        }
    }

    fn start_failed(&self, end: String) -> CoreError {
        CoreError::StartFailed {
            project: self.project.clone(),
            end,
            tail: self.last_words(),
            log: self.log.clone(),
        }
    }
}

/// Watches a postmaster until it ends; the receiver then holds how.
fn watch_child(mut child: Child) -> (watch::Receiver<Option<String>>, tokio::task::JoinHandle<()>) {
    let (sender, receiver) = watch::channel(None);
    let watcher = tokio::spawn(async move {
        let end = match child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        sender.send_replace(Some(end));
    });
    (receiver, watcher)
}

/// Whether line 8 of the postmaster's file (`miscinit.c`, `pidfile.h`) says that sessions may come.
fn says_ready(data: &Path) -> Result<bool> {
    let path = data.join("postmaster.pid");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().nth(7).is_some_and(|status| status.trim_end() == "ready")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(CoreError::io("read", path)(error)),
    }
}

pub(crate) fn open_log(path: &Path) -> Result<File> {
    if path.metadata().is_ok_and(|metadata| metadata.len() > LOG_LIMIT) {
        std::fs::rename(path, path.with_extension("log.1")).map_err(CoreError::io("put aside", path))?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(CoreError::io("open", path))
}

/// The end of the server's log from `start` on: an earlier start's trouble is not this one's.
pub(crate) fn log_tail(path: &Path, start: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES).max(start)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => last_lines(&text, LOG_TAIL_LINES),
        Err(error) if error.kind() == ErrorKind::NotFound => "  (it was never written)".to_owned(),
        Err(error) => format!("  (it cannot be read: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal_keeper::STANDBY_NAME;

    #[test]
    fn a_large_log_makes_room_for_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgres.log");
        File::create(&path).unwrap().set_len(LOG_LIMIT + 1).unwrap();
        open_log(&path).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 0);
        assert!(folder.path().join("postgres.log.1").exists());
    }

    #[test]
    fn what_durability_stands_on_is_out_of_reach_of_alter_system() {
        let value = |wanted: &str| {
            FIXED.iter().chain(SERVING).find(|(name, _)| *name == wanted).map(|(_, value)| *value)
        };
        assert_eq!(value("synchronous_standby_names"), Some("FIRST 1 (tidewater_keeper)"));
        assert!(value("synchronous_standby_names").is_some_and(|names| names.contains(STANDBY_NAME)));
        for name in ["fsync", "full_page_writes", "restart_after_crash"] {
            assert_eq!(value(name), Some("off"), "{name}");
        }
    }
}
