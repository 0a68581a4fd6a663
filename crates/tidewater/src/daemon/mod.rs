//! The daemon: every configured database synced, supervised, and stopped in order.
//!
//! ```text
//!   run ─┬─ private Postgres of each `core` database
//!        └─ a SourceSync for each database ─ prepare ─▶ stream loop ─▶ table tasks
//!                                                   └──▶ first loads
//! ```

mod batch;
mod commit_info;
mod dead_letters;
mod error;
mod first_load;
mod load_target;
mod plan;
mod private_postgres;
mod router;
mod source_sync;
mod spool;
mod stream_loop;
mod sync_state;
mod table_writer;

pub use error::{DaemonError, SyncError, error_chain};

use crate::config::{Config, Durability, Mount, SchemaChanges};
use crate::status::StatusBoard;
use postgres_connector::SourceConfig;
use source_sync::SourceSync;
use std::collections::BTreeMap;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How the daemon is to run.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Bring everything up to the sources' present position, then stop.
    pub until_caught_up: bool,
}

/// Runs until `shutdown` is cancelled, everything has caught up (when asked for), or something cannot go on.
pub async fn run(
    config: Config,
    options: RunOptions,
    board: StatusBoard,
    shutdown: CancellationToken,
) -> Result<(), DaemonError> {
    refuse_what_is_not_built(&config)?;
    let lake = delta_writer::open_lake(config.lake.uri.as_str(), &config.lake.options.expose())
        .map_err(DaemonError::Lake)?;
    let (computes, sources) = private_postgres::start_all(&config).await?;
    // The supervisors outlive the syncs, so that Postgres stops last.
    let supervision = CancellationToken::new();
    let supervisors = private_postgres::supervise(computes, &supervision);

    let outcome = sync_all(&config, options, &board, lake, sources, &shutdown).await;
    board.set_ready(false);
    supervision.cancel();
    let stopped = private_postgres::stopped(supervisors).await;
    outcome.and(stopped)
}

async fn sync_all(
    config: &Config,
    options: RunOptions,
    board: &StatusBoard,
    lake: delta_writer::Lake,
    sources: BTreeMap<String, SourceConfig>,
    shutdown: &CancellationToken,
) -> Result<(), DaemonError> {
    let mut syncs = JoinSet::new();
    for (database, source) in sources {
        let entries: Vec<_> =
            config.to_lake.iter().filter(|entry| entry.database == database).cloned().collect();
        if entries.is_empty() {
            continue;
        }
        let sync = SourceSync {
            instance: config.instance.clone(),
            flush: config.flush_policy(&database),
            source,
            entries,
            lake: lake.clone(),
            state_dir: config.state_dir.join(wal_decoder::folder_name(&database)),
            board: board.clone(),
            options,
            shutdown: shutdown.clone(),
            database: database.clone(),
        };
        board.update_source(&database, |_| {});
        syncs.spawn(async move {
            let outcome = sync.run().await;
            outcome.map_err(|source| DaemonError::Sync { database, source: Box::new(source) })
        });
    }
    board.set_ready(true);
    if syncs.is_empty() {
        shutdown.cancelled().await;
    }
    let mut outcome = Ok(());
    while let Some(ended) = syncs.join_next().await {
        let ended = ended.unwrap_or(Err(DaemonError::TaskGone));
        if ended.is_err() {
            // One configuration, one daemon: the others stop in order, with what they have committed.
            shutdown.cancel();
        }
        outcome = outcome.and(ended);
    }
    outcome
}

/// The configuration file knows the whole contract; what this version does not do yet is refused, not ignored.
fn refuse_what_is_not_built(config: &Config) -> Result<(), DaemonError> {
    let not_built = |what: &str| {
        Err(DaemonError::Configuration(format!(
            "{what} is not available in this version of Tidewater: take it out of the configuration"
        )))
    };
    if !config.to_postgres.is_empty() {
        return not_built("`to_postgres`");
    }
    if config.telemetry.is_some() {
        return not_built("`telemetry`");
    }
    if config.listen.lake_sql.is_some() {
        return not_built("`listen.lake_sql`");
    }
    if config.listen.tls.is_some() {
        return not_built("`listen.tls`");
    }
    if let Some(core) = &config.core {
        if core.storage.is_object_store() {
            return not_built("`core.storage` in an object store");
        }
        if core.tls.is_some() || !core.keepers.is_empty() || core.keeper.is_some() {
            return not_built("`core.tls`, `core.keeper` and `core.keepers`");
        }
        if core.durability != Durability::default() || core.mount != Mount::default() {
            return not_built("`core.durability` and `core.mount`");
        }
    }
    for entry in &config.to_lake {
        if entry.schema_changes != SchemaChanges::Rewrite {
            return not_built("`schema_changes: column_mapping`");
        }
    }
    Ok(())
}
