//! The databases that Tidewater brings along, one for each `core` entry of the configuration.
//!
//! Their pages lie in the core's storage, and keeper, gateway and computes are processes of their own: here they are
//! started and watched, and a daemon that is killed leaves them serving. Where the system has no FUSE the pages
//! cannot be mounted; a database that is made there without `mount: copy` lies in an ordinary folder, under an ordinary
//! Postgres of the daemon's, and stays there.
//!
//! Those that are synced are up before the syncs and stop after them; the others sleep until somebody connects.

use super::DaemonError;
use super::core_metrics::{CoreMetrics, LOOK_EVERY};
use crate::built_in::{BuiltIn, BuiltInDatabase};
use crate::config::{Config, CoreDatabase, Database, Mount};
use oltp_core::ids::ProjectName;
use oltp_core::{Compute, CoreError, Listen, Project, ProjectOptions, Timestamp, find_installation};
use postgres_connector::SourceConfig;
use secrecy::ExposeSecret;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A server that does not come up again is tried again after this.
const RESTART_PAUSE: Duration = Duration::from_secs(5);

/// What the system offers file systems of programs through.
const FUSE_DEVICE: &str = "/dev/fuse";

/// How soon the end of a compute process is noticed that its Postgres outlived: a look at a few small files.
const COMPUTES_WATCHED_EVERY: Duration = Duration::from_secs(1);

/// How often what has expired is looked for.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(60);

/// How each database is reached, and what has to be watched for that.
#[derive(Default)]
pub struct Databases {
    /// For sessions that take the database as it is.
    pub sources: BTreeMap<String, SourceConfig>,
    /// Those whose pages are in the core's storage.
    pub built_in: BTreeMap<String, BuiltInDatabase>,
    ordinary: BTreeMap<String, Compute>,
    core: Option<BuiltIn>,
}

/// Makes every `core` database, starts those that are synced, and says how each database of the configuration is reached.
pub async fn start_all(config: &Config, file: &Path) -> Result<Databases, DaemonError> {
    let mut databases = Databases::default();
    let started = databases.start_each(config, file).await;
    if let (Err(_), Some(core)) = (&started, &databases.core) {
        stop_unless_needed(core).await;
    }
    started.map(|()| databases)
}

impl Databases {
    async fn start_each(&mut self, config: &Config, file: &Path) -> Result<(), DaemonError> {
        for (name, database) in &config.databases {
            let source = match database {
                Database::Url(database) => {
                    database.source_config().map_err(|error| source_error(name, error))?
                }
                Database::Core(database) if is_ordinary(config, name) => {
                    self.start_ordinary(config, name, database).await?
                }
                Database::Core(database) => self.start(config, file, name, database).await?,
            };
            self.sources.insert(name.clone(), source);
        }
        Ok(())
    }

    async fn start(
        &mut self,
        config: &Config,
        file: &Path,
        name: &str,
        database: &CoreDatabase,
    ) -> Result<SourceConfig, DaemonError> {
        let core = match self.core.clone() {
            Some(core) => core,
            None => {
                let core = start_core(config, file).await?;
                self.core = Some(core.clone());
                core
            }
        };
        let failed = |source| DaemonError::Core { database: name.to_owned(), source };
        let project = ProjectName::new(name).map_err(failed)?;
        let branch = core.ensure_project(&project, database).await?;
        let synced = is_synced(config, name);
        if synced {
            core.computes().ensure_running(&project, branch).await.map_err(failed)?;
        }
        let main = oltp_core::ids::BranchName::new(oltp_core::gateway::MAIN_BRANCH).map_err(failed)?;
        let url = core.url(config, &project, &main).await?;
        let source = SourceConfig::from_url(url.expose_secret(), None, None, None)
            .map_err(|error| source_error(name, error))?;
        if synced {
            tracing::info!(database = %name, place = %source.place(), "built-in Postgres is running");
        } else {
            tracing::info!(database = %name, place = %source.place(), "built-in Postgres is ready: its first connection starts it");
        }
        let built_in = BuiltInDatabase::new(core.pages().clone(), core.computes().clone(), project);
        self.built_in.insert(name.to_owned(), built_in);
        Ok(source)
    }

    async fn start_ordinary(
        &mut self,
        config: &Config,
        name: &str,
        database: &CoreDatabase,
    ) -> Result<SourceConfig, DaemonError> {
        tracing::warn!(database = %name, "its pages are in an ordinary folder: no branches, no restore, no sleep. A database made where {FUSE_DEVICE} exists, or with `core.mount: copy`, has them");
        let failed = |source| DaemonError::Core { database: name.to_owned(), source };
        let compute = start_ordinary(config, name, database).await.map_err(failed)?;
        let url = compute.superuser_url_with_password();
        let source = SourceConfig::from_url(url.expose_secret(), None, None, None)
            .map_err(|error| source_error(name, error))?;
        tracing::info!(database = %name, url = %compute.url(), "built-in Postgres is running");
        self.ordinary.insert(name.to_owned(), compute);
        Ok(source)
    }
}

/// Keeper and gateway; everything else comes when a database needs it.
async fn start_core(config: &Config, file: &Path) -> Result<BuiltIn, DaemonError> {
    let core = BuiltIn::open(config, file)?;
    if let Some(keeper) = core.keeper() {
        keeper.ensure().await?;
    }
    let (gateway, wanted) = (core.gateway(), core.settings().listen);
    let left_over = gateway.address()?.filter(|address| *address != wanted.to_string());
    if left_over.is_some() && wanted.port() != 0 {
        // Of an earlier configuration.
        gateway.stop().await?;
    }
    if let Err(error) = gateway.ensure().await {
        stop_unless_needed(&core).await;
        return Err(error.into());
    }
    Ok(core)
}

/// After a start that failed: keeper and gateway go again, unless a compute of an earlier daemon needs them.
async fn stop_unless_needed(core: &BuiltIn) {
    if !core.computes().list().await.is_ok_and(|running| running.is_empty()) {
        return;
    }
    for process in std::iter::once(core.gateway()).chain(core.keeper()) {
        if let Err(error) = process.stop().await {
            let error = super::error_chain(&error);
            tracing::warn!(%error, "a process of the core is left running");
        }
    }
}

fn storage_folder(config: &Config) -> PathBuf {
    PathBuf::from(config.core_settings().storage.as_str())
}

/// Whether somebody connects at once, and all day. Every other database sleeps until it is needed, however many
/// there are.
fn is_synced(config: &Config, name: &str) -> bool {
    config.to_lake.iter().any(|entry| entry.database == name)
        || config.to_postgres.iter().any(|entry| entry.database == name)
}

/// Whether a database lies in an ordinary folder, or has to be made in one.
fn is_ordinary(config: &Config, name: &str) -> bool {
    let storage = storage_folder(config);
    if storage.join("projects").join(name).exists() {
        return false;
    }
    let mount = config.core.as_ref().map(|core| core.mount).unwrap_or_default();
    storage.join(name).join("data").exists() || mount == Mount::Fuse && !Path::new(FUSE_DEVICE).exists()
}

fn source_error(database: &str, error: postgres_connector::Error) -> DaemonError {
    DaemonError::Sync { database: database.to_owned(), source: Box::new(error.into()) }
}

async fn start_ordinary(config: &Config, name: &str, database: &CoreDatabase) -> Result<Compute, CoreError> {
    let explicit = config.core.as_ref().and_then(|core| core.postgres_bin.as_deref());
    let project = Project::open(ProjectOptions {
        name: name.to_owned(),
        directory: storage_folder(config).join(name),
        installation: find_installation(explicit, database.postgres).await?,
        owner: database.owner.clone().unwrap_or_else(|| name.to_owned()),
        password: database.password.as_ref().map(|password| password.secret_string().clone()),
        settings: database.settings.clone(),
        listen: Listen::Loopback,
    })
    .await?;
    project.start().await
}

/// Keeps everything running until told otherwise, then stops it.
pub fn supervise(databases: Databases, until: &CancellationToken) -> JoinSet<Result<(), DaemonError>> {
    let mut supervisors = JoinSet::new();
    for (database, compute) in databases.ordinary {
        supervisors.spawn(keep_running(database, compute, until.clone()));
    }
    if let Some(core) = databases.core {
        supervisors.spawn(keep_core(core, databases.built_in.keys().cloned().collect(), until.clone()));
    }
    supervisors
}

/// Watches keeper and gateway, and takes down in order what runs: gateway, computes, keeper.
async fn keep_core(
    core: BuiltIn,
    projects: Vec<String>,
    until: CancellationToken,
) -> Result<(), DaemonError> {
    let keeper = core.keeper();
    let watch_keeper = async {
        if let Some(keeper) = &keeper {
            keeper.supervise(until.clone()).await;
        }
    };
    let gateway = core.gateway();
    tokio::join!(
        watch_keeper,
        gateway.supervise(until.clone()),
        watch_computes(&core, &until),
        keep_house(&core, &projects, &until),
        keep_metrics(&core, &until)
    );
    gateway.stop().await?;
    let listed = |source| DaemonError::BuiltIn(Box::new(source));
    let running = core.computes().list().await.map_err(|source| listed(source.into()))?;
    let mut outcome = Ok(());
    for compute in running {
        // Whoever suspends it at this moment has done it for us.
        if let Err(source) = core.computes().suspend(&compute.project, compute.branch).await {
            let database = compute.project.to_string();
            outcome = outcome.and(Err(DaemonError::Core { database, source }));
        }
    }
    if let Some(keeper) = keeper {
        keeper.stop().await?;
    }
    outcome
}

async fn keep_metrics(core: &BuiltIn, until: &CancellationToken) {
    let mut metrics = CoreMetrics::default();
    loop {
        if let Err(error) = metrics.look(core.computes()).await {
            tracing::debug!(error = %super::error_chain(&error), "how the branches are cannot be told");
        }
        tokio::select! {
            () = until.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Starts again what lost its compute process and cannot notice. A branch that sleeps or whose Postgres ended as well is
/// woken by whoever needs it.
async fn watch_computes(core: &BuiltIn, until: &CancellationToken) {
    loop {
        tokio::select! {
            () = until.cancelled() => return,
            () = tokio::time::sleep(COMPUTES_WATCHED_EVERY) => {}
        }
        let revived = tokio::select! {
            () = until.cancelled() => return,
            revived = core.computes().revive_orphans() => revived,
        };
        match revived {
            Ok(revived) => {
                for (project, branch) in revived {
                    tracing::error!(database = %project, %branch, "its compute process had ended and was started again");
                }
            }
            Err(error) => {
                let error = super::error_chain(&error);
                tracing::error!(%error, "a branch whose compute process has ended does not come up again");
            }
        }
    }
}

/// Deletes branches whose time is over, and what nobody can come back to any more.
async fn keep_house(core: &BuiltIn, projects: &[String], until: &CancellationToken) {
    loop {
        tokio::select! {
            () = until.cancelled() => return,
            () = tokio::time::sleep(HOUSEKEEPING_EVERY) => {}
        }
        for project in projects {
            let kept = tokio::select! {
                () = until.cancelled() => return,
                kept = tidy(core, project) => kept,
            };
            if let Err(error) = kept {
                let error = super::error_chain(&error);
                tracing::warn!(database = %project, %error, "its expired branches and pages stay for now");
            }
        }
    }
}

async fn tidy(core: &BuiltIn, project: &str) -> Result<(), CoreError> {
    let project = ProjectName::new(project)?;
    for branch in core.branches().delete_expired(&project, Timestamp::now()).await? {
        tracing::info!(%project, %branch, "its time is over: deleted");
    }
    for branch in core.branches().settle_names(&project).await? {
        tracing::warn!(%project, %branch, "a restore or reset was cut short: the state before has this name now");
    }
    core.pages().collect(&project, core.settings().retention.duration()).await?;
    Ok(())
}

async fn keep_running(
    database: String,
    mut compute: Compute,
    until: CancellationToken,
) -> Result<(), DaemonError> {
    loop {
        tokio::select! {
            () = until.cancelled() => break,
            end = compute.wait_exit() => {
                tracing::error!(%database, %end, "the built-in Postgres has ended");
                if let Err(error) = compute.ensure_running().await {
                    tracing::error!(%database, error = %super::error::error_chain(&error), retry_in = ?RESTART_PAUSE, "it does not come up again");
                    tokio::select! {
                        () = until.cancelled() => break,
                        () = tokio::time::sleep(RESTART_PAUSE) => {}
                    }
                }
            }
        }
    }
    compute.stop().await.map_err(|source| DaemonError::Core { database, source })
}

/// Waits until every server has stopped.
pub async fn stopped(mut supervisors: JoinSet<Result<(), DaemonError>>) -> Result<(), DaemonError> {
    let mut outcome = Ok(());
    while let Some(ended) = supervisors.join_next().await {
        outcome = outcome.and(ended.unwrap_or(Err(DaemonError::TaskGone)));
    }
    outcome
}
