//! What the tour plays on: a temporary folder with a configuration, and a daemon that runs on it.
//!
//! The daemon owns everything that lives: its Postgres ends when it ends. So one thing has to be ended in
//! order and one removed, and [`Stage::strike`] does both.

use super::DemoError;
use super::recommendations::{DELTA, SERVED};
use crate::built_in::BuiltIn;
use crate::commands::CommandError;
use crate::commands::run;
use crate::commands::state_lock::StateLock;
use crate::config::Config;
use crate::daemon::{self, Controls, DaemonError, RunOptions};
use crate::reload::Reloader;
use crate::requests::Requests;
use crate::status::{StatusBoard, StatusReport, TableReport};
use delta_writer::Lake;
use oltp_core::ids::ProjectName;
use oltp_core::{Secret, kept_secret};
use postgres_connector::{SourceConfig, TlsMode};
use secrecy::ExposeSecret;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wal_decoder::Lsn;

/// The shop's name in the configuration, in the lake and in Postgres.
pub(super) const DATABASE: &str = "shop";

/// Between two looks at the status board: far below what a person notices.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// No file that the core keeps beside the cluster is longer.
const MAX_KEPT_BYTES: u64 = 4096;

/// A running daemon in a folder of its own.
pub(super) struct Stage {
    folder: TempDir,
    keep: bool,
    config: Config,
    board: StatusBoard,
    shutdown: CancellationToken,
    ended: CancellationToken,
    daemon: JoinHandle<Result<(), DaemonError>>,
    _lock: StateLock,
}

impl Stage {
    /// Writes the configuration and starts the daemon, without waiting for it.
    pub(super) async fn set_up(keep: bool) -> Result<Stage, CommandError> {
        let folder = TempDir::with_prefix("tidewater-demo-")?;
        let file = folder.path().join("tidewater.yaml");
        std::fs::write(&file, configuration(free_port()?, free_port()?))
            .map_err(CommandError::file(&file))?;
        let config = Config::load(&file)?;
        let lock = StateLock::take(&config.state_dir).await?;
        let (board, shutdown, ended) =
            (StatusBoard::new(), CancellationToken::new(), CancellationToken::new());
        let (reloader, reloads) = Reloader::new(file.clone());
        let requests = Requests::default();
        if keep {
            // Only then is there time for `tidewater status` from another terminal.
            let api = run::api(&config, &file, &board, &requests, reloader)?;
            run::serve(&config, api, &shutdown.child_token()).await?;
        }
        let controls = Controls {
            configuration: file,
            board: board.clone(),
            requests,
            reloads,
            shutdown: shutdown.clone(),
        };
        let running = daemon::run(config.clone(), RunOptions::default(), controls);
        let says_so = ended.clone().drop_guard();
        let daemon = tokio::spawn(async move {
            let _says_so = says_so;
            running.await
        });
        Ok(Stage { folder, keep, config, board, shutdown, ended, daemon, _lock: lock })
    }

    /// The folder with everything in it.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether everything stays after the tour.
    pub(super) fn is_kept(&self) -> bool {
        self.keep
    }

    /// The configuration the daemon runs on.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// The lake, to write to.
    pub(super) fn lake(&self) -> Result<Lake, DemoError> {
        let lake = &self.config.lake;
        Ok(delta_writer::open_lake(lake.uri.as_str(), &lake.options.expose())?)
    }

    /// What the daemon says of its work.
    pub(super) fn report(&self) -> StatusReport {
        self.board.snapshot()
    }

    /// Comes back when the daemon has ended without having been asked to.
    pub(super) async fn daemon_ended(&self) {
        self.ended.cancelled().await;
    }

    /// The shop for its owner: the address without and with the password that the core has made up.
    pub(super) async fn address(&self) -> Result<Address, CommandError> {
        let Some(core) = self.core()? else {
            let ordinary = self.folder().join("core").join(DATABASE);
            let (port, password) = (kept(&ordinary.join("port"))?, kept(&ordinary.join("owner.password"))?);
            return Ok(Address { port, password });
        };
        let project = ProjectName::new(DATABASE).map_err(CommandError::core)?;
        let password = kept_secret(core.pages().storage(), &project, Secret::Owner).await;
        let password = password.map_err(CommandError::core)?.expose_secret().to_owned();
        Ok(Address { port: core.settings().listen.port().to_string(), password })
    }

    /// The core, where the system lets it separate pages from servers.
    pub(super) fn core(&self) -> Result<Option<BuiltIn>, CommandError> {
        let core = BuiltIn::open(&self.config, &self.folder().join("tidewater.yaml"))?;
        let separated = self.folder().join("core/projects").join(DATABASE).exists();
        Ok(separated.then_some(core))
    }

    /// Waits until `found` finds what it looks for in the daemon's report.
    pub(super) async fn until<T>(
        &self,
        what: &'static str,
        limit: Duration,
        mut found: impl FnMut(&StatusReport) -> Option<T>,
    ) -> Result<T, DemoError> {
        let deadline = Instant::now() + limit;
        loop {
            let report = self.report();
            if let Some(found) = found(&report) {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                return Err(DemoError::Late { what, limit, trouble: trouble(&report) });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Stops the daemon, and with it Postgres. The folder goes too, or is returned when it is to stay.
    pub(super) async fn strike(self) -> Result<Option<PathBuf>, CommandError> {
        self.shutdown.cancel();
        let ended = self.daemon.await.unwrap_or(Err(DaemonError::TaskGone));
        let kept = if self.keep {
            Some(self.folder.keep())
        } else {
            let path = self.folder.path().to_owned();
            self.folder.close().map_err(CommandError::file(&path))?;
            None
        };
        ended?;
        Ok(kept)
    }
}

/// Where the shop's Postgres takes connections.
pub(super) struct Address {
    port: String,
    password: String,
}

impl Address {
    /// To be shown.
    pub(super) fn shown(&self) -> String {
        format!("postgres://{DATABASE}@127.0.0.1:{}/{DATABASE}", self.port)
    }

    /// Ready for psql. Only `--keep` prints it: the role is of this one database, on the loopback.
    pub(super) fn with_password(&self) -> String {
        format!("postgres://{DATABASE}:{}@127.0.0.1:{}/{DATABASE}", self.password, self.port)
    }

    /// For sessions of our own.
    pub(super) fn source(&self) -> Result<SourceConfig, DemoError> {
        Ok(SourceConfig::from_url(&self.with_password(), None, Some(TlsMode::Disable), None)?)
    }
}

/// The table's line in a report.
pub(super) fn line<'a>(report: &'a StatusReport, table: &str) -> Option<&'a TableReport> {
    report.tables.iter().find(|line| line.database == DATABASE && line.table == format!("public.{table}"))
}

/// Whether all of `tables` hold the commit that came right after `position`.
pub(super) fn is_past(report: &StatusReport, tables: &[&str], position: Lsn) -> bool {
    let past =
        |table: &&str| line(report, table).and_then(|line| line.position).is_some_and(|at| at > position);
    tables.iter().all(past)
}

fn trouble(report: &StatusReport) -> Option<String> {
    let tables = report.tables.iter().filter_map(|table| table.error.clone());
    let sources =
        report.sources.iter().flat_map(|source| source.error.iter().chain(&source.waiting).cloned());
    tables.chain(sources).next()
}

fn configuration(http_port: u16, gateway_port: u16) -> String {
    format!(
        "# Written by `tidewater demo`. Everything else has its default.\n\
         version: 1\n\
         lake: {{uri: ./lake}}\n\
         # A PostgreSQL 18 that Tidewater brings along: its pages and WAL lie in `storage`.\n\
         core: {{storage: ./core, listen: \"127.0.0.1:{gateway_port}\"}}\n\
         databases:\n  {DATABASE}: {{core: {{}}}}\n\
         to_lake:\n  - database: {DATABASE}\n    tables: [\"public.*\"]\n\
         to_postgres:\n  - table: {}\n    database: {DATABASE}\n    into: {SERVED}\n    mode: continuous\n    \
         primary_key: [customer_id]\n    timeseries_key: computed_at\n\
         listen: {{http: \"127.0.0.1:{http_port}\"}}\n",
        DELTA.join(".")
    )
}

/// A port that nobody has: the one of a running daemon is left alone.
fn free_port() -> Result<u16, io::Error> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// One line that the core has written down.
fn kept(path: &Path) -> Result<String, CommandError> {
    use std::io::Read;
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_KEPT_BYTES).read_to_string(&mut text));
    read.map_err(CommandError::file(path))?;
    Ok(text.trim().to_owned())
}
