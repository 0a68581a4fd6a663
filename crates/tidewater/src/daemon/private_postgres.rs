//! The Postgres servers that Tidewater brings along, one for each `core` database.
//!
//! They are started before the syncs and stopped after them. One that ends by itself is started again;
//! its sync notices only a lost connection.

use super::DaemonError;
use crate::config::{Config, CoreDatabase, Database};
use oltp_core::{Compute, CoreError, Listen, Project, ProjectOptions, find_installation};
use postgres_connector::SourceConfig;
use secrecy::ExposeSecret;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A server that does not come up again is tried again after this.
const RESTART_PAUSE: Duration = Duration::from_secs(5);

/// Where the projects are when `core.storage` does not say: beside the configuration's state.
const DEFAULT_STORAGE: &str = "core";

/// Starts every `core` database, and says how each database of the configuration is reached.
pub async fn start_all(
    config: &Config,
) -> Result<(BTreeMap<String, Compute>, BTreeMap<String, SourceConfig>), DaemonError> {
    let mut computes = BTreeMap::new();
    let mut sources = BTreeMap::new();
    for (name, database) in &config.databases {
        let source = match database {
            Database::Url(database) => database.source_config().map_err(|error| source_error(name, error))?,
            Database::Core(database) => {
                let failed = |source| DaemonError::Core { database: name.clone(), source };
                let compute = start(config, name, database).await.map_err(failed)?;
                let url = compute.superuser_url_with_password();
                let source = SourceConfig::from_url(url.expose_secret(), None, None, None)
                    .map_err(|error| source_error(name, error))?;
                tracing::info!(database = %name, url = %compute.url(), "built-in Postgres is running");
                computes.insert(name.clone(), compute);
                source
            }
        };
        sources.insert(name.clone(), source);
    }
    Ok((computes, sources))
}

fn source_error(database: &str, error: postgres_connector::Error) -> DaemonError {
    DaemonError::Sync { database: database.to_owned(), source: Box::new(error.into()) }
}

async fn start(config: &Config, name: &str, database: &CoreDatabase) -> Result<Compute, CoreError> {
    let explicit = config.core.as_ref().and_then(|core| core.postgres_bin.as_deref());
    let storage = match &config.core {
        Some(core) => PathBuf::from(core.storage.as_str()),
        None => config.state_dir.parent().map_or_else(PathBuf::new, PathBuf::from).join(DEFAULT_STORAGE),
    };
    let project = Project::open(ProjectOptions {
        name: name.to_owned(),
        directory: storage.join(name),
        installation: find_installation(explicit, database.postgres).await?,
        owner: database.owner.clone().unwrap_or_else(|| name.to_owned()),
        password: database.password.as_ref().map(|password| password.secret_string().clone()),
        settings: database.settings.clone(),
        listen: Listen::Loopback,
    })
    .await?;
    project.start().await
}

/// Keeps the servers running until told otherwise, then stops them.
pub fn supervise(
    computes: BTreeMap<String, Compute>,
    until: &CancellationToken,
) -> JoinSet<Result<(), DaemonError>> {
    let mut supervisors = JoinSet::new();
    for (database, compute) in computes {
        supervisors.spawn(keep_running(database, compute, until.clone()));
    }
    supervisors
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
