//! One database's way into the lake: prepare, then follow its slot.
//!
//! Preparing is the same on the first start and after any crash; there is no recovery code apart from it:
//!
//! 1. look at the source, plan the tables, make the publications what the plan wants;
//! 2. find the slot or make it, and start streaming from it, which nobody else can do from then on;
//! 3. open every table in the lake: what carries a `txn` of this incarnation and is not named in
//!    `sync_state.json` goes on from there, everything else is loaded;
//! 4. follow the stream ([`super::stream_loop`]).
//!
//! When a connection breaks, all of it is dropped and done again.

mod interruption;
mod opening;

use super::crash_point::death_point;
use super::dead_letters::DeadLetters;
use super::error::error_chain;
use super::plan::{PlannedTable, plan_tables, selection};
use super::retained_wal::RetainedWal;
use super::stream_loop::{StreamLoop, Target};
use super::sync_state::{Folders, SyncState};
use super::table_upkeep::UpkeepPolicy;
use super::{RunOptions, SyncError};
use crate::built_in::{BuiltInDatabase, Gate};
use crate::config::{FlushPolicy, ToLake};
use crate::requests::Requests;
use crate::status::StatusBoard;
use delta_writer::{Lake, WriterOptions};
use interruption::Interruption;
use lake_sql::LakeSession;
use oltp_core::ids::BranchId;
pub use opening::OpenedTables;
use opening::{Incarnation, Positions};
use postgres_connector::{
    Client, PublicationNames, ReplicationSession, SlotOptions, SlotStatus, SourceConfig, StreamOptions,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wal_decoder::{Lsn, TypeCatalog};

/// How long another walsender may hold the slot before it counts as a second daemon: a killed daemon's
/// walsender notices the closed socket within this.
const SLOT_PATIENCE: Duration = Duration::from_secs(10);

/// How often an empty database is looked at again.
const TABLES_EVERY: Duration = Duration::from_secs(2);

const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(15);

/// Everything one database's sync is given.
#[derive(Debug, Clone)]
pub struct SourceSync {
    /// The installation's name.
    pub instance: String,
    /// The database's name in the configuration.
    pub database: String,
    /// How to reach it.
    pub source: SourceConfig,
    /// Where it is looked up before every attempt, if it is the core's.
    pub built_in: Option<BuiltInDatabase>,
    /// Which branch of it is followed.
    pub branch: Option<BranchId>,
    /// What its commits have to pass before others may see them.
    pub gate: Option<Gate>,
    /// Its entries of `to_lake`.
    pub entries: Vec<ToLake>,
    /// Its tables that are served from the lake, `schema.table`: they stay out of it, and so out of the publication.
    pub served: BTreeSet<String>,
    /// When its changes are flushed.
    pub flush: FlushPolicy,
    /// Where the tables go.
    pub lake: Lake,
    /// How the tables are kept up.
    pub upkeep: UpkeepPolicy,
    /// Reads the lake as any reader would.
    pub reader: Arc<LakeSession>,
    /// Where values go that the lake cannot hold.
    pub dead_letters: DeadLetters,
    /// Key indexes and spools.
    pub state_dir: PathBuf,
    /// What was warned of.
    pub retained_wal: Arc<RetainedWal>,
    /// What everyone sees.
    pub board: StatusBoard,
    /// What people ask of its tables.
    pub requests: Requests,
    /// How to run.
    pub options: RunOptions,
    /// Ends it.
    pub shutdown: CancellationToken,
}

impl SourceSync {
    /// Syncs until it is told to stop, has caught up (when that is asked for), or cannot go on.
    pub async fn run(mut self) -> Result<(), SyncError> {
        let mut wait = FIRST_RETRY;
        let mut interruption = Interruption::default();
        let mut has_followed = false;
        loop {
            let began = Instant::now();
            let follows = AtomicBool::new(false);
            let attempt = async {
                self.reach(has_followed).await?;
                self.follow(&follows).await
            };
            let attempt = interruption.shown_while(attempt, &follows).await;
            if follows.swap(false, Ordering::Relaxed) {
                has_followed = true;
                interruption.is_over();
            }
            let error = match attempt {
                Ok(()) => return Ok(()),
                Err(error) if self.shutdown.is_cancelled() => {
                    tracing::info!(database = %self.database, %error, "stopped");
                    return Ok(());
                }
                Err(error) => error,
            };
            // What is wrong at the start is for whoever starts it. What goes wrong later, a privilege taken
            // away say, is shown and waited for: the other databases go on.
            if error.is_for_another_daemon() || !(error.is_passing() || has_followed) {
                return Err(error);
            }
            if error.is_a_new_plan() {
                tracing::info!(database = %self.database, reason = %error_chain(&error), "planning anew");
                continue;
            }
            if began.elapsed() > LONGEST_RETRY {
                wait = FIRST_RETRY;
            }
            let text = error_chain(&error);
            tracing::warn!(database = %self.database, error = %text, retry_in = ?wait, "sync is interrupted");
            self.board.update_source(&self.database, |source| {
                source.connected = false;
                source.error = Some(text);
            });
            interruption.began(&self);
            let pause = interruption.shown_while(tokio::time::sleep(wait), &follows);
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(()),
                () = pause => wait = (wait * 2).min(LONGEST_RETRY),
            }
        }
    }

    /// Finds a built-in database, which a restore may have put elsewhere. One that sleeps is left asleep, unless it was
    /// never followed.
    async fn reach(&mut self, has_followed: bool) -> Result<(), SyncError> {
        let Some(database) = &self.built_in else { return Ok(()) };
        let followed = self.branch.filter(|_| has_followed);
        let asleep = || {
            self.board.update_source(&self.database, |source| {
                source.connected = false;
                source.error = None;
                source.waiting = Some("it sleeps; the sync goes on when it is woken".to_owned());
            });
        };
        let reached = tokio::select! {
            reached = database.awake(followed, asleep) => reached?,
            () = self.shutdown.cancelled() => return Ok(()),
        };
        self.source = reached.source;
        self.branch = Some(reached.branch);
        self.gate = Some(reached.gate);
        Ok(())
    }

    /// Returns once everything below `position` may be shown to others.
    pub async fn pass_gate(&self, position: Lsn) -> Result<(), SyncError> {
        match &self.gate {
            Some(gate) => Ok(gate.pass(position).await?),
            None => Ok(()),
        }
    }

    /// One attempt. When it returns, nothing of it runs any more: the next one may open the same tables.
    async fn follow(&self, follows: &AtomicBool) -> Result<(), SyncError> {
        let tasks = TaskTracker::new();
        let prepared = tokio::select! {
            prepared = self.prepare(&tasks) => prepared,
            // Whatever it was waiting for (a lock, an old transaction): nothing of it is needed any more.
            () = self.shutdown.cancelled() => Ok(None),
        };
        let result = match prepared {
            Ok(Some(sync)) => {
                follows.store(true, Ordering::Relaxed);
                sync.run().await
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        tasks.close();
        tasks.wait().await;
        result
    }

    /// Everything up to the stream; `None` if there is nothing to follow.
    async fn prepare(&self, tasks: &TaskTracker) -> Result<Option<StreamLoop>, SyncError> {
        let mut client = postgres_connector::connect(&self.source).await?;
        let mut system_identifier = postgres_connector::system_identifier(&client).await?.to_string();
        if let Some(branch) = self.branch {
            // All branches have the cluster's identifier, and each has positions of its own.
            system_identifier = format!("{system_identifier}-{branch}");
        }
        let own_folder = self.lake.table(&[&wal_decoder::folder_name(&self.database), "_tidewater"]);
        let state_path = own_folder.root().clone().join("sync_state.json");
        let mut state = SyncState::read(self.lake.store().clone(), state_path).await?;
        let planned = match self.plan(&client, state.folders()).await? {
            planned if !planned.is_empty() => planned,
            _ => return self.wait_for_tables(&client).await.map(|()| None),
        };
        let looked_at = postgres_connector::current_wal_lsn(&client).await?;
        let names = self.publications();
        let (inserts_only, keyed): (Vec<_>, Vec<_>) =
            planned.iter().partition(|table| table.inserts_only.is_some());
        let published = |tables: Vec<&PlannedTable>| {
            tables.into_iter().map(PlannedTable::published).collect::<Result<Vec<_>, _>>()
        };
        let (keyed, inserts_only) = (published(keyed)?, published(inserts_only)?);
        death_point!("publications-before-change");
        let ensured =
            postgres_connector::ensure_publications(&mut client, &names, &keyed, &inserts_only).await;
        ensured.map_err(|error| match error {
            // A table or a column of the plan is called otherwise by now.
            error if error.is_unknown_name() => SyncError::TablesChanged,
            error => error.into(),
        })?;
        death_point!("publications-after-change");

        self.ensure_event_trigger(&client).await;
        let generation = self.ensure_slot(&client, &state, &system_identifier).await?;
        let slot = postgres_connector::slot_name(&self.instance, &self.database, generation);
        let session = ReplicationSession::connect(&self.source).await?;
        let version = postgres_connector::server_version(&client).await?;
        let stream = self
            .start_streaming(
                session,
                &slot,
                &[&names.keyed, &names.inserts],
                StreamOptions::for_server(version),
            )
            .await?;

        // From here on the slot is ours alone, and so is everything under the database's folder.
        let target = if self.options.until_caught_up {
            let position = postgres_connector::current_wal_lsn(&client).await?;
            // Something behind it, so that an idle source reports that it has come so far.
            postgres_connector::heartbeat(&client).await?;
            Target::Position(position)
        } else {
            Target::Shutdown
        };
        let slots = postgres_connector::list_slots(&client, &self.instance, &self.database).await?;
        let begins =
            slots.iter().find(|found| found.name == slot).and_then(|found| found.confirmed_flush_lsn);
        let positions = Positions { confirmed: begins.unwrap_or(Lsn(u64::MAX)), looked_at };
        let incarnation = Incarnation { system_identifier, generation };
        let opened = self.open_tables(tasks, &mut state, planned, &incarnation, positions).await?;
        self.board.update_source(&self.database, |source| {
            source.connected = true;
            source.error = None;
            source.waiting = None;
            source.slot = Some(slot.clone());
        });
        Ok(Some(StreamLoop::new(self.clone(), stream, client, state, slot, opened, target)))
    }

    /// What carries its tables.
    pub fn publications(&self) -> PublicationNames {
        postgres_connector::publication_names(&self.instance, &self.database)
    }

    /// Where the role may not install it, changes of columns are followed all the same.
    async fn ensure_event_trigger(&self, client: &Client) {
        match postgres_connector::ensure_event_trigger(client, &self.instance, &self.database).await {
            Ok(installed) => tracing::debug!(database = %self.database, installed, "event trigger"),
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(database = %self.database, %error, "the event trigger cannot be installed; the sync goes on without");
            }
        }
    }

    /// The tables to sync, as the catalog has them now. Those in `folders` keep theirs.
    pub async fn plan(
        &self,
        client: &Client,
        folders: &BTreeMap<u32, Folders>,
    ) -> Result<Vec<PlannedTable>, SyncError> {
        let types = Arc::new(TypeCatalog::new(postgres_connector::read_types(client).await?));
        let (globs, publications) = (selection(&self.entries)?, self.publications());
        let mut found = postgres_connector::list_followed_tables(client, &globs, &publications).await?;
        found.tables.retain(|table| !self.served.contains(&table.qualified_name()));
        for skipped in &found.skipped {
            let table = format!("{}.{}", skipped.schema, skipped.name);
            tracing::debug!(database = %self.database, %table, reason = %skipped.reason, "not synced");
        }
        plan_tables(&self.database, &self.entries, found.tables, types, folders)
    }

    /// A database may be empty yet: its first tables start the sync.
    async fn wait_for_tables(&self, client: &Client) -> Result<(), SyncError> {
        let waiting = "no table matches `to_lake` yet".to_owned();
        tracing::warn!(database = %self.database, "{waiting}; looking again every {TABLES_EVERY:?}");
        self.board.update_source(&self.database, |source| {
            source.connected = true;
            source.error = None;
            source.waiting = Some(waiting);
        });
        if self.options.until_caught_up {
            return Ok(());
        }
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(TABLES_EVERY) => {}
            }
            if !self.plan(client, &BTreeMap::new()).await?.is_empty() {
                return Err(SyncError::TablesChanged);
            }
        }
    }

    /// The generation whose slot is there, made when there is none or it has lost its WAL.
    async fn ensure_slot(
        &self,
        client: &Client,
        state: &SyncState,
        system_identifier: &str,
    ) -> Result<u32, SyncError> {
        let slots = postgres_connector::list_slots(client, &self.instance, &self.database).await?;
        let newest = slots.iter().max_by_key(|slot| slot.generation);
        let same_source =
            state.system_identifier().is_empty() || state.system_identifier() == system_identifier;
        if let Some(slot) = newest.filter(|slot| !slot.is_lost() && same_source) {
            return Ok(slot.generation);
        }
        for slot in &slots {
            tracing::warn!(database = %self.database, slot = %slot.name, status = ?slot.wal_status, reason = ?slot.invalidation_reason, "dropping a slot that cannot go on; its tables are compared with their source");
            postgres_connector::drop_slot(client, &slot.name).await?;
        }
        let past = slots.iter().map(|slot: &SlotStatus| slot.generation).max().unwrap_or(0);
        let generation = past.max(state.generation()) + 1;
        let name = postgres_connector::slot_name(&self.instance, &self.database, generation);
        let mut session = ReplicationSession::connect(&self.source).await?;
        let options = SlotOptions { failover: true, ..SlotOptions::default() };
        let waiting =
            "the replication slot is being made, which waits for older transactions to end".to_owned();
        self.board.update_source(&self.database, |source| source.waiting = Some(waiting));
        death_point!("slot-before-create");
        let created = session.create_logical_slot(&name, options).await?;
        death_point!("slot-after-create");
        tracing::info!(database = %self.database, slot = %name, position = %created.consistent_point, "replication slot created");
        session.close().await?;
        Ok(generation)
    }

    async fn start_streaming(
        &self,
        session: ReplicationSession,
        slot: &str,
        publications: &[&str],
        options: StreamOptions,
    ) -> Result<postgres_connector::LogicalStream, SyncError> {
        let deadline = tokio::time::Instant::now() + SLOT_PATIENCE;
        let mut session = Some(session);
        loop {
            let current = match session.take() {
                Some(session) => session,
                None => ReplicationSession::connect(&self.source).await?,
            };
            match current.start_logical(slot, Lsn::ZERO, publications, options).await {
                Ok(stream) => return Ok(stream),
                Err(error)
                    if matches!(error, postgres_connector::Error::SlotInUse { .. })
                        && tokio::time::Instant::now() < deadline =>
                {
                    tokio::select! {
                        () = self.shutdown.cancelled() => return Err(error.into()),
                        () = tokio::time::sleep(FIRST_RETRY) => {}
                    }
                }
                Err(error) if matches!(error, postgres_connector::Error::SlotInUse { .. }) => {
                    return Err(SyncError::SecondDaemon { database: self.database.clone(), source: error });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where what does not fit into memory waits.
    pub fn spool_directory(&self) -> PathBuf {
        self.state_dir.join("spool")
    }

    /// How a table's files are written.
    pub fn writer_options(&self) -> WriterOptions {
        self.upkeep.writer_options(self.state_dir.join("index"))
    }
}
