//! Delta tables served from Postgres: one task a table.
//!
//! ```text
//!   Serving ─┬─ ServedTable ─ lake: newest version? ─▶ changes or whole ─▶ target, one transaction ─▶ status
//!            ├─ ServedTable        ▲ every second or two, at every `every`, or because somebody asks
//!            └─ …
//! ```
//!
//! The tables share nothing but permits to work: what goes wrong with one is shown and tried again with growing pauses,
//! and the others go on. Nothing is remembered here. The version that a table holds stands beside its rows in the
//! target, so a start after a crash is an ordinary start.

mod lake_table;
mod served_table;

use super::{DaemonError, RunOptions};
use crate::config::{Config, ToPostgres};
use crate::requests::Requests;
use crate::status::StatusBoard;
use lake_sql::LakeSession;
pub use lake_table::{LakeTable, ServingError};
use postgres_connector::SourceConfig;
use reverse_sync::serve::ServedDefinition;
use served_table::ServedTable;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Tables that read the lake and write to Postgres at a time: each holds a few batches and up to four sessions.
const WORKING: usize = 4;

/// A served table's name: database and `schema.table`.
type Name = (String, String);

/// How the serving of a table ended.
pub type Ended = (Name, Result<(), DaemonError>);

/// The served tables of the daemon.
pub struct Serving {
    options: RunOptions,
    board: StatusBoard,
    requests: Requests,
    shutdown: CancellationToken,
    reader: Arc<LakeSession>,
    permits: Arc<Semaphore>,
    running: BTreeMap<Name, CancellationToken>,
    tables: JoinSet<Ended>,
}

impl Serving {
    /// Nothing is served yet.
    pub fn new(
        options: RunOptions,
        board: StatusBoard,
        requests: Requests,
        shutdown: CancellationToken,
        reader: Arc<LakeSession>,
    ) -> Serving {
        let permits = Arc::new(Semaphore::new(WORKING));
        let (running, tables) = (BTreeMap::new(), JoinSet::new());
        Serving { options, board, requests, shutdown, reader, permits, running, tables }
    }

    /// Whether nothing is served any more.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Starts every configured table that does not run.
    pub fn start(&mut self, config: &Config, targets: &BTreeMap<String, SourceConfig>) {
        for entry in &config.to_postgres {
            let name = (entry.database.clone(), entry.into.clone());
            let Some(target) = targets.get(&entry.database).filter(|_| !self.running.contains_key(&name))
            else {
                continue;
            };
            let Some(definition) = definition(&config.instance, entry) else { continue };
            let shutdown = self.shutdown.child_token();
            let table = ServedTable {
                definition,
                entry: entry.clone(),
                lake: config.lake.uri.as_str().to_owned(),
                store: config.lake.options.expose(),
                spill_folder: config.state_dir.to_path_buf(),
                target: target.clone(),
                reader: self.reader.clone(),
                board: self.board.clone(),
                requests: self.requests.clone(),
                permits: self.permits.clone(),
                options: self.options,
                shutdown: shutdown.clone(),
            };
            self.running.insert(name.clone(), shutdown);
            self.tables.spawn(async move {
                let outcome = table.run().await;
                let failed =
                    |source| DaemonError::Serving { table: name.1.clone(), source: Box::new(source) };
                (name.clone(), outcome.map_err(failed))
            });
        }
    }

    /// The end of a table's task; never, while none runs.
    pub async fn next_ended(&mut self) -> Result<(), DaemonError> {
        match self.tables.join_next().await {
            Some(ended) => self.ended(ended),
            None => std::future::pending().await,
        }
    }

    fn ended(&mut self, ended: Result<Ended, JoinError>) -> Result<(), DaemonError> {
        let (name, outcome) = ended.map_err(|_| DaemonError::TaskGone)?;
        self.running.remove(&name);
        outcome
    }

    /// Waits until all have ended, which they have been told to.
    pub async fn all_ended(&mut self) -> Result<(), DaemonError> {
        let mut outcome = Ok(());
        while let Some(ended) = self.tables.join_next().await {
            outcome = outcome.and(self.ended(ended));
        }
        outcome
    }

    /// Follows a new configuration: stops what is gone or changed and starts what is new. Says what changed.
    pub async fn reload(
        &mut self,
        before: &Config,
        config: &Config,
        targets: &BTreeMap<String, SourceConfig>,
        same_target: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, DaemonError> {
        let (was, is) = (entries(before), entries(config));
        let mut changes = Vec::new();
        for (name, entry) in &was {
            if is.get(name) == Some(entry) && same_target(&name.0) {
                continue;
            }
            self.stop(name).await?;
            if !is.contains_key(name) {
                self.board.remove_served(&name.0, &name.1);
                changes.push(format!("table `{}` is served no more; it stays as it is", name.1));
            } else {
                changes.push(format!("table `{}` follows its new settings", name.1));
            }
        }
        let new = is.keys().filter(|name| !was.contains_key(*name));
        changes.extend(new.map(|name| format!("table `{}` is served now", name.1)));
        self.start(config, targets);
        Ok(changes)
    }

    async fn stop(&mut self, name: &Name) -> Result<(), DaemonError> {
        let Some(token) = self.running.get(name) else { return Ok(()) };
        token.cancel();
        let mut outcome = Ok(());
        while self.running.contains_key(name) {
            let Some(ended) = self.tables.join_next().await else { break };
            outcome = outcome.and(self.ended(ended));
        }
        outcome
    }
}

/// Every entry as text, by its table.
fn entries(config: &Config) -> BTreeMap<Name, String> {
    let entry = |entry: &ToPostgres| {
        let text = serde_json::to_string(entry).unwrap_or_default();
        ((entry.database.clone(), entry.into.clone()), text)
    };
    config.to_postgres.iter().map(entry).collect()
}

/// The served tables of a database: its sync leaves them alone.
pub fn served_names(config: &Config, database: &str) -> BTreeSet<String> {
    let of_it = config.to_postgres.iter().filter(|entry| entry.database == database);
    of_it.map(|entry| entry.into.clone()).collect()
}

/// The entry as Postgres is to have it; a name without a schema was refused when the file was read.
pub fn definition(instance: &str, entry: &ToPostgres) -> Option<ServedDefinition> {
    let (schema, table) = entry.into.split_once('.')?;
    Some(ServedDefinition {
        instance: instance.to_owned(),
        schema: schema.to_owned(),
        table: table.to_owned(),
        primary_key: entry.primary_key.clone(),
        timeseries_key: entry.timeseries_key.clone(),
        columns: entry.columns.clone(),
        condition: entry.condition.clone(),
        type_overrides: entry.type_overrides.clone(),
        indexes: entry.indexes.clone(),
        extra_columns: entry.extra_columns.clone(),
        grants: entry.grants.clone(),
    })
}
