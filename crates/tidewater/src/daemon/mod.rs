//! The daemon: every configured database synced, supervised, and stopped in order.
//!
//! ```text
//!   run ─┬─ built-in Postgres of each `core` database: keeper, gateway, computes
//!        ├─ a SourceSync for each database ─ prepare ─▶ stream loop ─▶ table tasks
//!        │                                          └──▶ first loads
//!        └─ a ServedTable for each table that is served from Postgres
//! ```

mod batch;
mod built_in_databases;
mod commit_info;
mod consistent_points;
mod core_metrics;
mod crash_point;
mod dead_letters;
mod error;
mod first_load;
mod live_table;
mod load_target;
mod mending;
mod plan;
mod retained_wal;
mod router;
mod row_comparison;
mod serving;
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
pub use serving::{LakeTable, ServingError, definition as served_definition};

use crate::config::{Config, SchemaChanges};
use crate::reload::Reload;
use crate::requests::Requests;
use crate::status::StatusBoard;
use std::path::PathBuf;
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
    /// The file that the configuration was read from: the core's processes read it for themselves.
    pub configuration: PathBuf,
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
    let mut databases = built_in_databases::start_all(&config, &controls.configuration).await?;
    let sources = std::mem::take(&mut databases.sources);
    let built_in = databases.built_in.clone();
    // The supervisors outlive the syncs, so that Postgres stops last.
    let supervision = CancellationToken::new();
    let supervisors = built_in_databases::supervise(databases, &supervision);

    let board = controls.board.clone();
    let outcome = Supervisor::new(config, options, controls, lake, reader, (sources, built_in)).run().await;
    board.set_ready(false);
    supervision.cancel();
    let stopped = built_in_databases::stopped(supervisors).await;
    outcome.and(stopped)
}

/// The configuration file knows the whole contract; what this version does not do yet is refused, not ignored.
fn refuse_what_is_not_built(config: &Config) -> Result<(), DaemonError> {
    let not_built = |what: &str| {
        Err(DaemonError::Configuration(format!(
            "{what} is not available in this version of Tidewater: take it out of the configuration"
        )))
    };
    if config.telemetry.is_some() {
        return not_built("`telemetry`");
    }
    if config.listen.lake_sql.is_some() {
        return not_built("`listen.lake_sql`");
    }
    for entry in &config.to_lake {
        if entry.schema_changes != SchemaChanges::Rewrite {
            return not_built("`schema_changes: column_mapping`");
        }
    }
    Ok(())
}
