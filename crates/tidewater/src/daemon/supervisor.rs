//! Which databases are synced, and what becomes of that when the configuration changes.
//!
//! One sync runs per database that has entries in `to_lake`. A reload compares what each was given with what the new file
//! says: what is equal is left alone, what changed is stopped in order and started again from its slot, what is
//! gone is stopped. Everything that belongs to the process (lake, state, listeners, built-in servers) stays
//! as it was started; a file that changes it is refused as a whole.

use super::retained_wal::RetainedWal;
use super::serving::{Serving, served_names};
use super::source_sync::SourceSync;
use super::table_upkeep::UpkeepPolicy;
use super::{Controls, DaemonError, RunOptions, dead_letters::DeadLetters, refuse_what_is_not_built};
use crate::built_in::BuiltInDatabase;
use crate::config::{Config, Database};
use delta_writer::{Lake, PendingBudget};
use lake_sql::LakeSession;
use postgres_connector::SourceConfig;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The syncs of all databases.
pub struct Supervisor {
    config: Config,
    options: RunOptions,
    controls: Controls,
    lake: Lake,
    reader: Arc<LakeSession>,
    /// How each database is reached.
    sources: BTreeMap<String, SourceConfig>,
    /// Those of them that are the core's.
    built_in: BTreeMap<String, BuiltInDatabase>,
    /// What ends each running sync.
    running: BTreeMap<String, CancellationToken>,
    syncs: JoinSet<(String, Result<(), DaemonError>)>,
    /// Memory for rows that wait to be written, shared by all tables of the daemon.
    pending_budget: PendingBudget,
    /// The tables that are served from Postgres.
    serving: Serving,
}

impl Supervisor {
    /// A supervisor of what the configuration names.
    pub fn new(
        config: Config,
        options: RunOptions,
        controls: Controls,
        lake: Lake,
        reader: LakeSession,
        (sources, built_in): (BTreeMap<String, SourceConfig>, BTreeMap<String, BuiltInDatabase>),
    ) -> Supervisor {
        let reader = Arc::new(reader);
        let (board, requests) = (controls.board.clone(), controls.requests.clone());
        Supervisor {
            serving: Serving::new(options, board, requests, controls.shutdown.clone(), reader.clone()),
            config,
            options,
            controls,
            lake,
            reader,
            sources,
            built_in,
            running: BTreeMap::new(),
            syncs: JoinSet::new(),
            pending_budget: PendingBudget::default(),
        }
    }

    /// Runs until it is told to stop, all have caught up (when asked for), or one cannot go on.
    pub async fn run(mut self) -> Result<(), DaemonError> {
        for database in self.sources.keys().cloned().collect::<Vec<_>>() {
            self.start(&database);
        }
        // What is to be caught up with may come from this daemon's own syncs.
        let mut serves = !self.options.until_caught_up || self.syncs.is_empty();
        if serves {
            self.serving.start(&self.config, &self.sources);
        }
        self.controls.board.set_ready(true);
        let mut outcome = Ok(());
        loop {
            if self.options.until_caught_up && self.syncs.is_empty() {
                if serves && self.serving.is_empty() {
                    break;
                }
                if !serves {
                    serves = true;
                    self.serving.start(&self.config, &self.sources);
                    continue;
                }
            }
            let shutdown = self.controls.shutdown.clone();
            tokio::select! {
                Some(ended) = self.syncs.join_next() => outcome = outcome.and(self.ended(ended)),
                // One table's trouble is no reason to stop the others.
                ended = self.serving.next_ended() => outcome = outcome.and(ended),
                Some(reload) = self.controls.reloads.recv() => {
                    let answer = self.reload(reload.config).await;
                    match &answer {
                        Ok(changes) => tracing::info!("configuration reloaded: {changes}"),
                        Err(reason) => tracing::error!("the configuration was not taken up: {reason}"),
                    }
                    // Whoever asked may have left.
                    let _ = reload.answer.send(answer);
                }
                () = shutdown.cancelled() => break,
            }
        }
        while let Some(ended) = self.syncs.join_next().await {
            outcome = outcome.and(self.ended(ended));
        }
        outcome.and(self.serving.all_ended().await)
    }

    fn ended(
        &mut self,
        ended: Result<(String, Result<(), DaemonError>), tokio::task::JoinError>,
    ) -> Result<(), DaemonError> {
        let (database, outcome) = ended.map_err(|_| DaemonError::TaskGone)?;
        self.running.remove(&database);
        if outcome.is_err() {
            // One configuration, one daemon: the others stop in order, with what they have committed.
            self.controls.shutdown.cancel();
        }
        outcome
    }

    /// Starts a database's sync, if something of it is to be synced.
    fn start(&mut self, database: &str) {
        let Some(source) = self.sources.get(database).cloned() else { return };
        let entries: Vec<_> =
            self.config.to_lake.iter().filter(|entry| entry.database == database).cloned().collect();
        if entries.is_empty() {
            return;
        }
        let shutdown = self.controls.shutdown.child_token();
        let state_dir = self.config.state_dir.join(wal_decoder::folder_name(database));
        let upkeep = UpkeepPolicy::new(&self.config.lake, self.pending_budget.clone());
        let letters = upkeep.writer_options(state_dir.join("index"));
        let sync = SourceSync {
            dead_letters: DeadLetters::new(&self.lake, &self.config.instance, database, letters),
            reader: self.reader.clone(),
            instance: self.config.instance.clone(),
            flush: self.config.flush_policy(database),
            source,
            built_in: self.built_in.get(database).cloned(),
            branch: None,
            gate: None,
            entries,
            served: served_names(&self.config, database),
            lake: self.lake.clone(),
            upkeep,
            retained_wal: Arc::new(RetainedWal::default()),
            state_dir,
            board: self.controls.board.clone(),
            requests: self.controls.requests.clone(),
            options: self.options,
            shutdown: shutdown.clone(),
            database: database.to_owned(),
        };
        self.controls.board.update_source(database, |_| {});
        self.running.insert(database.to_owned(), shutdown);
        let database = database.to_owned();
        self.syncs.spawn(async move {
            let outcome = sync.run().await;
            let failed = |source| DaemonError::Sync { database: database.clone(), source: Box::new(source) };
            (database.clone(), outcome.map_err(failed))
        });
    }

    /// Stops a database's sync in order and waits for its end.
    async fn stop(&mut self, database: &str) -> Result<(), DaemonError> {
        let Some(token) = self.running.get(database) else { return Ok(()) };
        token.cancel();
        let mut outcome = Ok(());
        while self.running.contains_key(database) {
            let Some(ended) = self.syncs.join_next().await else { break };
            outcome = outcome.and(self.ended(ended));
        }
        outcome
    }

    /// Follows a new configuration, and says what changed.
    async fn reload(&mut self, config: Config) -> Result<String, String> {
        refuse_what_is_not_built(&config).map_err(|error| error.to_string())?;
        if let Some(key) = needs_a_restart(&self.config, &config) {
            return Err(format!(
                "`{key}` cannot change while the daemon runs: restart it, or take that change back"
            ));
        }
        let sources = sources(&config, &self.sources)?;
        let mut changes = Vec::new();
        let before = std::mem::replace(&mut self.config, config);
        let known: Vec<String> = self.sources.keys().chain(sources.keys()).cloned().collect();
        self.sources = sources;
        for database in known {
            let (was, is) = (what_is_given(&before, &database), what_is_given(&self.config, &database));
            if was == is && self.same_source(&before, &database) {
                continue;
            }
            self.stop(&database).await.map_err(|error| error.to_string())?;
            if is.is_none() {
                self.controls.board.remove_source(&database);
                tracing::warn!(%database, "it is synced no more; its slot goes on keeping WAL at the source until `tidewater cleanup` removes it");
            }
            self.start(&database);
            let change = match (was.is_some(), is.is_some()) {
                (false, true) => format!("database `{database}` is synced now"),
                (true, false) => format!("database `{database}` is synced no more"),
                _ => format!("database `{database}` follows its new settings"),
            };
            if !changes.contains(&change) {
                changes.push(change);
            }
        }
        let names = self.sources.keys().filter(|database| self.same_source(&before, database));
        let unchanged: BTreeSet<String> = names.cloned().collect();
        let same_target = |database: &str| unchanged.contains(database);
        let served = self.serving.reload(&before, &self.config, &self.sources, same_target).await;
        changes.extend(served.map_err(|error| error.to_string())?);
        Ok(if changes.is_empty() { "nothing changed".to_owned() } else { changes.join("; ") })
    }

    /// Whether a database is reached as before. Secrets do not show in a configuration's text, so they are compared here.
    fn same_source(&self, before: &Config, database: &str) -> bool {
        let address = |config: &Config| match config.databases.get(database) {
            Some(Database::Url(url)) => {
                let password = url.password.as_ref().map(|password| password.expose().to_owned());
                Some((url.url.expose().to_owned(), password))
            }
            Some(Database::Core(_)) | None => None,
        };
        address(before) == address(&self.config)
    }
}

/// What a database's sync is made of, as text; `None` if nothing of it is synced.
fn what_is_given(config: &Config, database: &str) -> Option<String> {
    let entries: Vec<_> = config.to_lake.iter().filter(|entry| entry.database == database).collect();
    if entries.is_empty() {
        return None;
    }
    serde_json::to_string(&(entries, config.databases.get(database), served_names(config, database))).ok()
}

/// The first key that differs of what is fixed while the daemon runs.
fn needs_a_restart(before: &Config, after: &Config) -> Option<&'static str> {
    let built_in = |config: &Config| -> Vec<String> {
        let databases = config.databases.iter();
        databases
            .filter(|(_, database)| matches!(database, Database::Core(_)))
            .map(|(name, database)| format!("{name} {}", serde_json::json!(database)))
            .collect()
    };
    let json = |value: serde_json::Result<serde_json::Value>| value.unwrap_or_default();
    if before.instance != after.instance {
        Some("instance")
    } else if json(serde_json::to_value(&before.lake)) != json(serde_json::to_value(&after.lake))
        || before.lake.options.expose() != after.lake.options.expose()
    {
        Some("lake")
    } else if before.state_dir.to_path_buf() != after.state_dir.to_path_buf() {
        Some("state_dir")
    } else if json(serde_json::to_value(&before.listen)) != json(serde_json::to_value(&after.listen)) {
        Some("listen")
    } else if json(serde_json::to_value(&before.core)) != json(serde_json::to_value(&after.core)) {
        Some("core")
    } else if built_in(before) != built_in(after) {
        Some("databases: {core: …}")
    } else {
        None
    }
}

/// How each database is reached: the built-in ones as they were started.
fn sources(
    config: &Config,
    started: &BTreeMap<String, SourceConfig>,
) -> Result<BTreeMap<String, SourceConfig>, String> {
    let mut sources = BTreeMap::new();
    for (name, database) in &config.databases {
        let source = match database {
            Database::Url(database) => Some(
                database
                    .source_config()
                    .map_err(|error| format!("database `{name}`: {}", super::error_chain(&error)))?,
            ),
            Database::Core(_) => started.get(name).cloned(),
        };
        sources.extend(source.map(|source| (name.clone(), source)));
    }
    Ok(sources)
}
