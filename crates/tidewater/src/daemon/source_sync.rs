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

use super::consistent_points::PointsTable;
use super::crash_point::death_point;
use super::dead_letters::DeadLetters;
use super::error::{error_chain, halts_table};
use super::plan::{PlannedTable, history_name, plan_tables, selection};
use super::router::Router;
use super::stream_loop::{HistoryBeside, LiveTable, StreamLoop, Target};
use super::sync_state::{Discontinuity, SyncState};
use super::table_upkeep::UpkeepPolicy;
use super::table_writer::Shown;
use super::{RunOptions, SyncError};
use crate::config::{FlushPolicy, Mode, ToLake};
use crate::requests::Requests;
use crate::status::{StatusBoard, TableState};
use crate::telemetry;
use delta_writer::{Lake, MirrorTable, TableDefinition, TableLocation, WriterOptions};
use globset::GlobSet;
use lake_sql::LakeSession;
use postgres_connector::{
    Client, ReplicationSession, SlotOptions, SlotStatus, SourceConfig, SourceTable, StreamOptions,
};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
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
    pub async fn run(self) -> Result<(), SyncError> {
        let mut wait = FIRST_RETRY;
        let mut lag = Interruption::default();
        let mut has_followed = false;
        loop {
            let began = Instant::now();
            let error = match self.follow(&mut has_followed).await {
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
                lag = Interruption::default();
            }
            lag.show(&self.board, &self.database);
            let text = error_chain(&error);
            tracing::warn!(database = %self.database, error = %text, retry_in = ?wait, "sync is interrupted");
            self.board.update_source(&self.database, |source| {
                source.connected = false;
                source.error = Some(text);
            });
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(LONGEST_RETRY),
            }
        }
    }

    /// One attempt. When it returns, nothing of it runs any more: the next one may open the same tables.
    async fn follow(&self, has_followed: &mut bool) -> Result<(), SyncError> {
        let tasks = TaskTracker::new();
        let prepared = tokio::select! {
            prepared = self.prepare(&tasks) => prepared,
            // Whatever it was waiting for (a lock, an old transaction): nothing of it is needed any more.
            () = self.shutdown.cancelled() => Ok(None),
        };
        let result = match prepared {
            Ok(Some(sync)) => {
                *has_followed = true;
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
        let planned = match self.plan(&client).await? {
            planned if !planned.is_empty() => planned,
            _ => return self.wait_for_tables(&client).await.map(|()| None),
        };
        let names = postgres_connector::publication_names(&self.instance, &self.database);
        let (inserts_only, keyed): (Vec<_>, Vec<_>) =
            planned.iter().partition(|table| table.inserts_only.is_some());
        let published = |tables: Vec<&PlannedTable>| {
            tables.into_iter().map(PlannedTable::published).collect::<Result<Vec<_>, _>>()
        };
        let (keyed, inserts_only) = (published(keyed)?, published(inserts_only)?);
        death_point!("publications-before-change");
        postgres_connector::ensure_publications(&mut client, &names, &keyed, &inserts_only).await?;
        death_point!("publications-after-change");

        let system_identifier = postgres_connector::system_identifier(&client).await?.to_string();
        let own_folder = self.lake.table(&[&wal_decoder::folder_name(&self.database), "_tidewater"]);
        let state_path = own_folder.root().clone().join("sync_state.json");
        let mut state = SyncState::read(self.lake.store().clone(), state_path).await?;
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
        let incarnation = (system_identifier.as_str(), generation);
        let confirmed = begins.unwrap_or(Lsn(u64::MAX));
        let opened = self.open_tables(tasks, &mut state, planned, incarnation, confirmed).await?;
        self.board.update_source(&self.database, |source| {
            source.connected = true;
            source.error = None;
            source.waiting = None;
            source.slot = Some(slot.clone());
        });
        Ok(Some(StreamLoop::new(self.clone(), stream, client, state, slot, opened, target)))
    }

    /// The tables to sync, as the catalog has them now.
    async fn plan(&self, client: &Client) -> Result<Vec<PlannedTable>, SyncError> {
        let types = Arc::new(TypeCatalog::new(postgres_connector::read_types(client).await?));
        let mut found =
            postgres_connector::list_tables(client, &selection(&self.entries)?, &GlobSet::empty()).await?;
        found.tables.retain(|table| !self.served.contains(&table.qualified_name()));
        for skipped in &found.skipped {
            let table = format!("{}.{}", skipped.schema, skipped.name);
            tracing::debug!(database = %self.database, %table, reason = %skipped.reason, "not synced");
        }
        plan_tables(&self.database, &self.entries, found.tables, types)
    }

    /// Which tables there are to sync, to notice when that changes.
    pub async fn table_names(&self, client: &Client) -> Result<BTreeSet<(u32, String)>, SyncError> {
        let found =
            postgres_connector::list_tables(client, &selection(&self.entries)?, &GlobSet::empty()).await?;
        let wanted = |table: &SourceTable| {
            !self.served.contains(&table.qualified_name())
                && self.entries.iter().any(|entry| entry.matches(&table.schema, &table.name))
        };
        Ok(found.tables.into_iter().filter(wanted).map(|table| (table.oid, table.qualified_name())).collect())
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
            if !self.table_names(client).await?.is_empty() {
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

    /// Opens what goes on and lists what must be loaded.
    async fn open_tables(
        &self,
        tasks: &TaskTracker,
        state: &mut SyncState,
        planned: Vec<PlannedTable>,
        (system_identifier, generation): (&str, u32),
        confirmed: Lsn,
    ) -> Result<OpenedTables, SyncError> {
        state.begin_incarnation(system_identifier, generation).await?;
        let incarnation = format!("{system_identifier}-{generation}");
        let mut opened = OpenedTables {
            router: Router::new(self.spool_directory()),
            tables: HashMap::new(),
            names: planned.iter().map(|table| (table.relation, table.name.clone())).collect(),
            to_load: Vec::new(),
            held: BTreeSet::new(),
            tasks: tasks.clone(),
            points: self.points_table(&incarnation),
            first_cut: Lsn::ZERO,
            confirmed,
            marks: Vec::new(),
        };
        let names: BTreeSet<String> = planned.iter().flat_map(PlannedTable::shown_names).collect();
        self.board.retain_tables(&self.database, |table| names.contains(table));
        for table in planned {
            self.open_table(state, table, &incarnation, &mut opened).await?;
        }
        let following = opened.tables.values().flat_map(LiveTable::table_ids).collect();
        state.follow(following, std::mem::take(&mut opened.marks)).await?;
        for relation in &opened.to_load {
            opened.router.start_loading(*relation)?;
        }
        Ok(opened)
    }

    async fn open_table(
        &self,
        state: &SyncState,
        planned: PlannedTable,
        incarnation: &str,
        opened: &mut OpenedTables,
    ) -> Result<(), SyncError> {
        let location = self.lake.table(&[&planned.folder[0], &planned.folder[1], &planned.folder[2]]);
        let shown =
            Shown { board: self.board.clone(), database: self.database.clone(), table: planned.name.clone() };
        self.board.update(&self.database, &planned.name, |status| {
            status.location = location.uri().to_owned();
        });
        let (found, broken) = self.look_for(&location).await?;
        let table_id = table_id(found.as_ref(), &planned.name, &location)?;
        let app_id = format!("tidewater/{}/{}/{table_id}/{incarnation}", self.instance, self.database);
        let OpenedHistory { table: history, beside, broken: broken_history } =
            self.open_history(&planned, incarnation).await?;
        let broken = broken.or(broken_history);
        if planned.mode != Mode::Mirror {
            opened.router.keep_origins(planned.relation);
        }
        let definition = planned.definition(&table_id);

        let mend = planned.can_be_mended()
            && found.as_ref().is_some_and(|table| same_shape(table.definition(), &definition));
        let mut entry = LiveTable {
            mend,
            planned,
            location,
            definition,
            table_id,
            app_id,
            shown,
            version: None,
            history: beside,
            writer: None,
            loading: false,
            clear_at_commit: false,
        };
        let left_out = entry.history.as_ref().and_then(|beside| state.discontinuity(&beside.table_id));
        let discontinuity = match (state.discontinuity(&entry.table_id), left_out) {
            // It was synced without its history for a while, which has missed what came then.
            (None | Some(Discontinuity::Loading), Some(missed)) => Some(missed),
            (own, _) => own,
        };
        let stays = match (&broken, discontinuity) {
            (Some(reason), _) | (None, Some(Discontinuity::Halted { reason })) => {
                tracing::error!(table = %entry.planned.name, %reason, "table is halted; the others go on");
                entry.all_shown().for_each(|shown| shown.show_halted(reason));
                true
            }
            (None, Some(Discontinuity::Paused { hold })) => {
                entry.all_shown().for_each(|shown| shown.show(TableState::Paused));
                opened.held.extend(hold.then_some(entry.planned.relation));
                true
            }
            (None, Some(Discontinuity::Loading | Discontinuity::Stale) | None) => false,
        };
        if stays {
            opened.router.halt(entry.planned.relation);
            opened.tables.insert(entry.planned.relation, entry);
            return Ok(());
        }
        let continues = found.filter(|table| same_shape(table.definition(), &entry.definition));
        let position = continues.as_ref().and_then(|table| position_of(table, &entry.app_id));
        let of_history = match &entry.history {
            Some(beside) => history.as_ref().and_then(|table| position_of(table, &beside.app_id)),
            None => position,
        };
        // A load whose join was interrupted is whole if the slot still has everything after it.
        let follows = |(own, of_history): &(Lsn, Lsn)| match discontinuity {
            None => true,
            Some(Discontinuity::Loading) => opened.confirmed <= *own.min(of_history),
            Some(_) => false,
        };
        let is_stale = discontinuity == Some(&Discontinuity::Stale);
        match (continues, position.zip(of_history).filter(follows)) {
            (Some(table), Some((position, of_history))) => {
                let from = position.min(of_history);
                opened.first_cut = opened.first_cut.max(position).max(of_history);
                opened.router.go_live(
                    entry.planned.relation,
                    entry.planned.schema.clone(),
                    entry.planned.builder.clone(),
                    from,
                );
                entry.clear_at_commit = discontinuity.is_some();
                entry.follow(table, history, [position, of_history], &self.upkeep, &opened.tasks);
            }
            _ => {
                entry.loading = true;
                opened.to_load.push(entry.planned.relation);
                let mark = if is_stale { Discontinuity::Stale } else { Discontinuity::Loading };
                opened.marks.push((entry.table_id.clone(), mark));
            }
        }
        opened.tables.insert(entry.planned.relation, entry);
        Ok(())
    }

    /// Where what does not fit into memory waits.
    pub fn spool_directory(&self) -> PathBuf {
        self.state_dir.join("spool")
    }

    fn points_table(&self, incarnation: &str) -> PointsTable {
        let folder = wal_decoder::folder_name(&self.database);
        PointsTable {
            location: self.lake.table(&[&folder, "_tidewater", "consistent_points"]),
            incarnation: incarnation.to_owned(),
            app_id: format!("tidewater/{}/{}/consistent_points/{incarnation}", self.instance, self.database),
            options: self.writer_options(),
        }
    }

    /// Looks for a table in the lake: what is there, or why it cannot be gone on from. Every opening finds the same, so
    /// nothing has to remember that.
    async fn look_for(
        &self,
        location: &TableLocation,
    ) -> Result<(Option<MirrorTable>, Option<String>), SyncError> {
        match MirrorTable::open(location.clone(), self.writer_options()).await {
            Ok(found) => Ok((found, None)),
            Err(error) if halts_table(&error) => Ok((None, Some(error_chain(&error)))),
            Err(error) => Err(error.into()),
        }
    }

    /// The history beside a mirror, with `mode: both`.
    async fn open_history(
        &self,
        planned: &PlannedTable,
        incarnation: &str,
    ) -> Result<OpenedHistory, SyncError> {
        let Some(folder) = &planned.history_folder else { return Ok(OpenedHistory::default()) };
        let location = self.lake.table(&folder.each_ref().map(String::as_str));
        let name = history_name(&planned.name);
        let shown = Shown { board: self.board.clone(), database: self.database.clone(), table: name.clone() };
        self.board.update(&self.database, &name, |status| status.location = location.uri().to_owned());
        let (found, broken) = self.look_for(&location).await?;
        let table_id = table_id(found.as_ref(), &name, &location)?;
        let definition = planned.history_definition(&table_id);
        let app_id = format!("tidewater/{}/{}/{table_id}/{incarnation}", self.instance, self.database);
        let table = found.filter(|table| same_shape(table.definition(), &definition));
        let beside = Some(HistoryBeside { location, definition, table_id, app_id, shown });
        Ok(OpenedHistory { table, beside, broken })
    }

    /// How a table's files are written.
    pub fn writer_options(&self) -> WriterOptions {
        self.upkeep.writer_options(self.state_dir.join("index"))
    }
}

/// Since when nothing arrives: the lag grows with it, whoever watches the figures must see that.
#[derive(Debug, Default)]
struct Interruption {
    since: Option<Instant>,
}

impl Interruption {
    fn show(&mut self, board: &StatusBoard, database: &str) {
        let seconds = self.since.get_or_insert_with(Instant::now).elapsed().as_secs_f64();
        board.update_all(database, |table| {
            table.lag_seconds = Some(table.lag_seconds.unwrap_or_default().max(seconds));
            // How much has been written meanwhile is not known.
            table.lag_bytes = None;
            let labels = [("database", table.database.clone()), ("table", table.table.clone())];
            metrics::gauge!(telemetry::SYNC_LAG_SECONDS, &labels).set(table.lag_seconds.unwrap_or_default());
        });
    }
}

/// A history beside a mirror, as it was found.
#[derive(Default)]
struct OpenedHistory {
    /// The table, if it has the shape to go on.
    table: Option<MirrorTable>,
    beside: Option<HistoryBeside>,
    /// Why it cannot be opened.
    broken: Option<String>,
}

/// What preparing found.
pub struct OpenedTables {
    /// Knows every table's stage.
    pub router: Router,
    /// Every table of the plan.
    pub tables: HashMap<u32, LiveTable>,
    /// All tables of the plan.
    pub names: BTreeSet<(u32, String)>,
    /// Which of them have to be loaded.
    pub to_load: Vec<u32>,
    /// Which of them are paused and keep the slot where it is.
    pub held: BTreeSet<u32>,
    /// The tables' tasks.
    pub tasks: TaskTracker,
    /// Where the cuts are recorded.
    pub points: PointsTable,
    /// The first cut lies at or above every table's position.
    pub first_cut: Lsn,
    /// Where the slot begins: what was committed later is sent.
    confirmed: Lsn,
    /// What `sync_state.json` is to say of those that have to be loaded.
    marks: Vec<(String, Discontinuity)>,
}

/// The id that a table of the lake was given when it was made, a new one if it is not there yet.
fn table_id(found: Option<&MirrorTable>, name: &str, location: &TableLocation) -> Result<String, SyncError> {
    let Some(found) = found else { return Ok(uuid::Uuid::new_v4().to_string()) };
    found.definition().configuration.get("tidewater.table_id").cloned().ok_or_else(|| {
        SyncError::ForeignTable { table: name.to_owned(), location: location.uri().to_owned() }
    })
}

/// Up to where a table holds every change.
fn position_of(table: &MirrorTable, app_id: &str) -> Option<Lsn> {
    table.txn(app_id).map(|position| Lsn(position.unsigned_abs()))
}

/// Whether changes of `wanted` fit the table as it stands.
fn same_shape(table: &TableDefinition, wanted: &TableDefinition) -> bool {
    let columns = |definition: &TableDefinition| -> Vec<_> {
        let fields = definition.schema.fields().iter();
        fields.map(|field| (field.name().clone(), field.data_type().clone())).collect()
    };
    columns(table) == columns(wanted)
        && table.kind == wanted.kind
        && table.key == wanted.key
        && table.partition_by == wanted.partition_by
        && table.deletion_vectors == wanted.deletion_vectors
}
