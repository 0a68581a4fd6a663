//! The daemon: every configured database synced, supervised, and stopped in order.
//!
//! ```text
//!   run ─┬─ private Postgres of each `core` database
//!        └─ a SourceSync for each database ─ prepare ─▶ stream loop ─▶ table tasks
//!                                                   └──▶ first loads
//! ```

mod batch;
mod commit_info;
mod consistent_points;
mod crash_point;
mod dead_letters;
mod error;
mod first_load;
mod live_table;
mod load_target;
mod mending;
mod plan;
mod private_postgres;
mod retained_wal;
mod router;
mod row_comparison;
mod source_rows;
mod source_shape;
mod source_sync;
mod spool;
mod stream_loop;
mod supervisor;
mod sync_state;
mod table_comparison;
mod table_upkeep;
mod table_writer;

pub use error::{DaemonError, SyncError, error_chain};

use crate::config::{Config, Durability, Mount, SchemaChanges};
use crate::reload::Reload;
use crate::requests::Requests;
use crate::status::StatusBoard;
use supervisor::Supervisor;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How the daemon is to run.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Bring everything up to the sources' present position, then stop.
    pub until_caught_up: bool,
}

/// How a running daemon is watched, asked and stopped.
#[derive(Debug)]
pub struct Controls {
    /// What it does.
    pub board: StatusBoard,
    /// What people ask of its tables.
    pub requests: Requests,
    /// New configurations.
    pub reloads: mpsc::Receiver<Reload>,
    /// Ends it.
    pub shutdown: CancellationToken,
}

/// Runs until it is told to stop, everything has caught up (when asked for), or something cannot go on.
pub async fn run(config: Config, options: RunOptions, controls: Controls) -> Result<(), DaemonError> {
    refuse_what_is_not_built(&config)?;
    let store = config.lake.options.expose();
    let lake = delta_writer::open_lake(config.lake.uri.as_str(), &store).map_err(DaemonError::Lake)?;
    let reader = lake_sql::LakeSession::open(config.lake.uri.as_str(), &store).await;
    let reader = reader.map_err(DaemonError::LakeReader)?;
    let (computes, sources) = private_postgres::start_all(&config).await?;
    // The supervisors outlive the syncs, so that Postgres stops last.
    let supervision = CancellationToken::new();
    let supervisors = private_postgres::supervise(computes, &supervision);

    let board = controls.board.clone();
    let outcome = Supervisor::new(config, options, controls, lake, reader, sources).run().await;
    board.set_ready(false);
    supervision.cancel();
    let stopped = private_postgres::stopped(supervisors).await;
    outcome.and(stopped)
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
