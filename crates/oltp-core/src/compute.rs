//! A compute: the running Postgres of a project.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::postmaster::{self, Launch, Shutdown};
use crate::project::{Inner, Listen, Project, SUPERUSER};
use crate::{CoreError, Result, provision};

/// For a postmaster that does not even answer: one that does, answers within milliseconds.
const SILENT_LIMIT: Duration = Duration::from_secs(60);

/// For one that says it is starting up: replaying the WAL since the last checkpoint takes its time.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Between two attempts to connect while the server comes up.
const RETRY: Duration = Duration::from_millis(20);

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A fast shutdown ends sessions and writes one checkpoint.
const FAST_LIMIT: Duration = Duration::from_secs(60);
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(15);

/// After a killed postmaster its backends end by themselves, within a moment of noticing.
const ORPHANS_LIMIT: Duration = Duration::from_secs(30);
const ORPHANS_RETRY: Duration = Duration::from_millis(100);

/// Between choosing a free port and taking it, somebody else may have; then another is chosen.
const PORT_ATTEMPTS: usize = 3;

/// Everything that has a meaning in a URL, without the characters RFC 3986 lets stand.
const URL_ESCAPES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The running Postgres of a project. Dropping it leaves the server running; [`Compute::stop`] ends it.
#[derive(Debug)]
pub struct Compute {
    project: Project,
    pid: u32,
    listen: SocketAddr,
    socket_directory: PathBuf,
    ended: watch::Receiver<Option<String>>,
    adopted: bool,
    /// Where this server's lines begin in the log file.
    log_start: u64,
}

/// What [`Compute::ensure_running`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnsureRunning {
    /// The server was running.
    WasRunning,
    /// It had ended and was started again: sessions have to be opened anew.
    Restarted,
}

impl Project {
    /// Starts Postgres, or adopts the one that an earlier daemon left running, and returns once it
    /// accepts connections and the owner's role and database exist.
    ///
    /// # Errors
    /// The address is taken, the server ends or stays silent (the error shows the end of its log), or
    /// it refuses the core's own statements.
    pub async fn start(&self) -> Result<Compute> {
        let project = self.inner();
        let _one_at_a_time = project.starting.lock().await;
        let (socket_directory, socket_argument) = project.socket_directory()?;
        let changed = project.write_configuration()?;
        let adopted = postmaster::running(&project.data())?;
        let compute = match adopted {
            Some(running) => {
                tracing::info!(project = %project.name, pid = running.pid, port = running.port, "adopting the running Postgres");
                let ended = postmaster::watch_adopted(running.pid, project.data());
                let listen = SocketAddr::new(listen_address(project), running.port);
                Compute {
                    project: self.clone(),
                    pid: running.pid,
                    listen,
                    socket_directory,
                    ended,
                    adopted: true,
                    log_start: 0,
                }
            }
            None => self.launch(socket_directory, &socket_argument).await?,
        };
        let client = compute.wait_until_ready().await?;
        if adopted.is_some() && changed {
            client
                .batch_execute("SELECT pg_catalog.pg_reload_conf()")
                .await
                .map_err(CoreError::statement(&project.name, "read its changed settings"))?;
        }
        provision::provision(&client, &project.name, &project.owner, &project.owner_password).await?;
        compute.settle_password(&client).await?;
        project.remember_port(compute.port())?;
        tracing::info!(project = %project.name, pid = compute.pid, address = %compute.listen, "Postgres accepts connections");
        Ok(compute)
    }

    async fn launch(&self, socket_directory: PathBuf, socket_argument: &Path) -> Result<Compute> {
        let project = self.inner();
        postmaster::mark_stale(&project.data(), &project.user)?;
        let (mut attempt, started) = (1, Instant::now());
        loop {
            let listen = project.choose_address()?;
            let (child, log_start) = postmaster::spawn(&Launch {
                directory: &project.directory,
                data: &project.data(),
                log: &project.log(),
                socket_argument,
                listen,
                installation: &project.installation,
                user: &project.user,
            })?;
            let pid = child.id().unwrap_or_default();
            let compute = Compute {
                project: self.clone(),
                pid,
                listen,
                socket_directory: socket_directory.clone(),
                ended: postmaster::watch_child(child),
                adopted: false,
                log_start,
            };
            match compute.wait_until_ready().await {
                Err(CoreError::StartFailed { tail, .. })
                    if project.listen == Listen::Loopback
                        && attempt < PORT_ATTEMPTS
                        && tail.contains("Address already in use") =>
                {
                    attempt += 1;
                }
                // Postgres's own interlock: a backend of a killed postmaster is still at the data.
                Err(CoreError::StartFailed { tail, .. })
                    if tail.contains("pre-existing shared memory block")
                        && started.elapsed() < ORPHANS_LIMIT =>
                {
                    tokio::time::sleep(ORPHANS_RETRY).await;
                }
                Err(error) => {
                    // A server that never came up must not be left behind half alive.
                    postmaster::shut_down(pid, Shutdown::Immediate, &project.data())?;
                    return Err(error);
                }
                Ok(_) => return Ok(compute),
            }
        }
    }
}

impl Compute {
    /// The address clients on this machine connect to.
    pub fn host(&self) -> IpAddr {
        match self.listen.ip() {
            address if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            address => address,
        }
    }

    /// The TCP port, which also names the Unix socket.
    pub fn port(&self) -> u16 {
        self.listen.port()
    }

    /// The project's database.
    pub fn database(&self) -> &str {
        &self.project.inner().name
    }

    /// The role that owns it.
    pub fn owner(&self) -> &str {
        &self.project.inner().owner
    }

    /// The owner's password: the configured one, or the generated one.
    pub fn owner_password(&self) -> &SecretString {
        &self.project.inner().owner_password
    }

    /// The password of [`SUPERUSER`], which is let in through the Unix socket only.
    pub fn superuser_password(&self) -> &SecretString {
        &self.project.inner().superuser_password
    }

    /// The directory of the Unix socket, as a client's `host`.
    pub fn socket_directory(&self) -> &Path {
        &self.socket_directory
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether an earlier daemon had started it.
    pub fn was_adopted(&self) -> bool {
        self.adopted
    }

    /// The project it runs.
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// The server's log file.
    pub fn log_file(&self) -> PathBuf {
        self.project.inner().log()
    }

    /// For the owner, over TCP, without the password: safe to print.
    pub fn url(&self) -> String {
        self.tcp_url("")
    }

    /// For the owner, over TCP, ready for `psql`.
    pub fn url_with_password(&self) -> SecretString {
        self.tcp_url(&format!(":{}", escape(self.owner_password().expose_secret()))).into()
    }

    /// For the core's own role, over the Unix socket, without the password: safe to print.
    pub fn superuser_url(&self) -> String {
        self.socket_url("")
    }

    /// For the core's own role, over the Unix socket, with its password.
    pub fn superuser_url_with_password(&self) -> SecretString {
        self.socket_url(&format!(":{}", escape(self.superuser_password().expose_secret()))).into()
    }

    /// A session of the core's own role in the project's database.
    ///
    /// # Errors
    /// The server is gone or refuses.
    pub async fn connect_superuser(&self) -> Result<Client> {
        let database = self.database().to_owned();
        self.try_connect(&database, SUPERUSER, self.superuser_password())
            .await
            .map_err(CoreError::statement(self.database(), "let the core's own role in"))
    }

    /// Whether the postmaster lives.
    pub fn is_running(&self) -> bool {
        self.ended.borrow().is_none() && postmaster::serves(self.pid, &self.project.inner().data())
    }

    /// Waits until the postmaster ends, for whatever reason, and says how it ended.
    pub async fn wait_exit(&self) -> String {
        let mut ended = self.ended.clone();
        let end = ended.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        end.unwrap_or_else(|| "its end was not observed".to_owned())
    }

    /// Starts the server again if it has ended.
    ///
    /// # Errors
    /// As [`Project::start`].
    pub async fn ensure_running(&mut self) -> Result<EnsureRunning> {
        if self.is_running() {
            return Ok(EnsureRunning::WasRunning);
        }
        tracing::warn!(project = %self.database(), pid = self.pid, "Postgres has ended; starting it again");
        *self = self.project.start().await?;
        Ok(EnsureRunning::Restarted)
    }

    /// Ends the server: fast (sessions are ended, a checkpoint is written), and if that takes too
    /// long immediately (the next start recovers). Returns once it is gone.
    ///
    /// # Errors
    /// It cannot be signalled, or survives both.
    pub async fn stop(&self) -> Result<()> {
        let data = self.project.inner().data();
        for (how, limit) in [(Shutdown::Fast, FAST_LIMIT), (Shutdown::Immediate, IMMEDIATE_LIMIT)] {
            postmaster::shut_down(self.pid, how, &data)?;
            if tokio::time::timeout(limit, self.wait_exit()).await.is_ok() {
                return Ok(());
            }
            tracing::warn!(project = %self.database(), pid = self.pid, ?how, "Postgres is still running");
        }
        Err(CoreError::StopTimedOut {
            project: self.database().to_owned(),
            pid: self.pid,
            limit: FAST_LIMIT + IMMEDIATE_LIMIT,
        })
    }

    fn tcp_url(&self, password: &str) -> String {
        let host = match self.host() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        format!(
            "postgres://{}{password}@{host}:{}/{}",
            escape(self.owner()),
            self.port(),
            escape(self.database())
        )
    }

    fn socket_url(&self, password: &str) -> String {
        format!(
            "postgres://{SUPERUSER}{password}@/{}?host={}&port={}",
            escape(self.database()),
            escape(&self.socket_directory.to_string_lossy()),
            self.port()
        )
    }

    async fn try_connect(
        &self,
        database: &str,
        user: &str,
        password: &SecretString,
    ) -> std::result::Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.socket_directory)
            .port(self.port())
            .dbname(database)
            .user(user)
            .password(password.expose_secret())
            .application_name("tidewater")
            .connect_timeout(CONNECT_LIMIT);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a session of the core with its Postgres ended");
            }
        });
        Ok(client)
    }

    /// Connects as the superuser until that works: the only proof that the server serves.
    async fn wait_until_ready(&self) -> Result<Client> {
        let started = Instant::now();
        let mut ended = self.ended.clone();
        loop {
            let error = match self.try_connect("postgres", SUPERUSER, self.superuser_password()).await {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            if let Some(end) = ended.borrow().clone() {
                return Err(self.start_failed(end));
            }
            let limit = match error.code() {
                // "The database system is starting up", or a predecessor's backends still hold slots.
                Some(&SqlState::CANNOT_CONNECT_NOW | &SqlState::TOO_MANY_CONNECTIONS) => RECOVERY_LIMIT,
                None => SILENT_LIMIT,
                Some(_) => {
                    return Err(CoreError::statement(self.database(), "let the core's own role in")(error));
                }
            };
            if started.elapsed() > limit {
                return Err(CoreError::StartTimedOut {
                    project: self.database().to_owned(),
                    limit,
                    log: self.log_file(),
                    tail: postmaster::log_tail(&self.log_file(), self.log_start),
                    source: Some(error),
                });
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                // A sender that is gone changes nothing: the next round sees the last value.
                _ = ended.changed() => {}
            }
        }
    }

    fn start_failed(&self, end: String) -> CoreError {
        let log = self.log_file();
        CoreError::StartFailed {
            project: self.database().to_owned(),
            end,
            tail: postmaster::log_tail(&log, self.log_start),
            log,
        }
    }

    /// The owner's password in the server follows the configured one.
    async fn settle_password(&self, superuser: &Client) -> Result<()> {
        match self.try_connect(self.database(), self.owner(), self.owner_password()).await {
            Err(error) if error.code() == Some(&SqlState::INVALID_PASSWORD) => {
                provision::set_password(superuser, self.database(), self.owner(), self.owner_password()).await
            }
            // Any other refusal (no slot free, logins off) says nothing about the password.
            _ => Ok(()),
        }
    }
}

fn listen_address(project: &Inner) -> IpAddr {
    match project.listen {
        Listen::Loopback => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Listen::At(address) => address.ip(),
    }
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, URL_ESCAPES).to_string()
}
