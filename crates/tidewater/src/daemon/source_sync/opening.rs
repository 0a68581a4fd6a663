//! Which tables go on from where they are in the lake, and which have to be loaded.
//!
//! A table goes on if nothing is said against it in `sync_state.json`, it carries a `txn` of this incarnation, and its shape
//! there is one that its source's present shape can follow on. With `mode: both` this has to hold for the mirror and for
//! the history beside it; from there on the stream gives each what it lacks. A crash between their commits leaves one of
//! them ahead, perhaps in a later shape: the stream begins again in the shape of the one that is behind.

use super::SourceSync;
use crate::config::Mode;
use crate::daemon::SyncError;
use crate::daemon::consistent_points::PointsTable;
use crate::daemon::error::{error_chain, halts_table};
use crate::daemon::live_table::{HistoryBeside, LiveTable};
use crate::daemon::plan::{PlannedTable, history_name};
use crate::daemon::router::Router;
use crate::daemon::source_shape::{self, Change};
use crate::daemon::stream_loop::Look;
use crate::daemon::sync_state::{Discontinuity, SyncState};
use crate::daemon::table_writer::Shown;
use crate::status::TableState;
use delta_writer::{MirrorTable, TableLocation};
use std::collections::{BTreeSet, HashMap};
use tokio_util::task::TaskTracker;
use wal_decoder::Lsn;

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
    /// What the catalog shows of tables that the stream has yet to show.
    pub look: Look,
    /// Where the slot begins: what was committed later is sent.
    confirmed: Lsn,
    /// What `sync_state.json` is to say of those that have to be loaded.
    marks: Vec<(String, Discontinuity)>,
    /// Ids of tables in the lake whose places others take.
    replaced: BTreeSet<String>,
}

/// Where source and slot were found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Positions {
    /// Where the slot begins.
    pub confirmed: Lsn,
    /// Later than everything that the catalog showed when the plan was made.
    pub looked_at: Lsn,
}

/// One unbroken sequence of positions.
#[derive(Debug)]
pub(super) struct Incarnation {
    pub system_identifier: String,
    pub generation: u32,
}

impl Incarnation {
    fn name(&self) -> String {
        format!("{}-{}", self.system_identifier, self.generation)
    }

    fn app_id(&self, instance: &str, database: &str, table_id: &str) -> String {
        format!("tidewater/{instance}/{database}/{table_id}/{}", self.name())
    }
}

/// A table of the lake, as it was found.
struct Found {
    /// The table, if it can be opened.
    table: Option<MirrorTable>,
    /// Why it cannot be. Every opening finds the same, so nobody has to remember the reason.
    broken: Option<String>,
    /// Drawn once, kept in its metadata.
    table_id: String,
    /// The id of another source's table that is in its place.
    replaces: Option<String>,
    /// The application id of its `txn` entries.
    app_id: String,
    location: TableLocation,
    shown: Shown,
}

impl Found {
    /// Up to where it holds every change.
    fn position(&self) -> Option<Lsn> {
        self.table.as_ref()?.txn(&self.app_id).map(|position| Lsn(position.unsigned_abs()))
    }

    /// The plan of the shape that it has.
    fn shape(&self, planned: &PlannedTable) -> Option<PlannedTable> {
        source_shape::as_in_lake(planned, self.table.as_ref()?.definition())
    }
}

/// What of a source table is in the lake.
struct InLake {
    own: Found,
    /// The history beside it, with `mode: both`.
    history: Option<Found>,
}

impl InLake {
    /// Up to where the table and the history beside it hold every change, if both say so.
    fn positions(&self) -> Option<(Lsn, Lsn)> {
        let own = self.own.position();
        own.zip(self.history.as_ref().map_or(own, Found::position))
    }

    /// The shape in which the stream begins again: that of the table, or of the history beside it where that is behind.
    /// `None` where neither says enough, or they are as far as each other and differ.
    fn shape_so_far(&self, planned: &PlannedTable) -> Option<PlannedTable> {
        let shape = self.own.shape(planned)?;
        let Some(history) = &self.history else { return Some(shape) };
        let found = history.table.as_ref()?;
        let expected = source_shape::history_definition(&shape, &history.table_id);
        let (own, of_history) = (self.own.position(), history.position());
        if source_shape::have_same_columns(found.definition(), &expected) || own < of_history {
            return Some(shape);
        }
        let laid_out = |earlier: PlannedTable| PlannedTable {
            kind: shape.kind,
            partition_by: shape.partition_by.clone(),
            deletion_vectors: shape.deletion_vectors,
            ..earlier
        };
        history.shape(planned).filter(|_| of_history < own).map(laid_out)
    }

    /// Ids of tables that were dropped at the source and made again under their names.
    fn replaced(&self) -> impl Iterator<Item = String> {
        std::iter::once(&self.own).chain(&self.history).filter_map(|found| found.replaces.clone())
    }

    fn broken(&self) -> Option<&str> {
        self.own.broken.as_deref().or_else(|| self.history.as_ref()?.broken.as_deref())
    }

    /// The table as it will be followed, and what of it can be opened.
    fn into_live(self, planned: PlannedTable) -> (LiveTable, Option<MirrorTable>, Option<MirrorTable>) {
        let Found { table: own, table_id, app_id, location, shown, .. } = self.own;
        let definition = source_shape::definition(&planned, &table_id);
        let fits = |table: &MirrorTable| source_shape::have_same_columns(table.definition(), &definition);
        let (of_history, beside) = match self.history {
            Some(Found { table, table_id, app_id, location, shown, .. }) => {
                (table, Some(HistoryBeside { location, table_id, app_id, shown }))
            }
            None => (None, None),
        };
        let live = LiveTable {
            mend: planned.can_be_mended() && own.as_ref().is_some_and(fits),
            planned,
            location,
            table_id,
            app_id,
            shown,
            version: None,
            history: beside,
            writer: None,
            loading: false,
            in_lake: own.is_some(),
            clear_at_commit: false,
        };
        (live, own, of_history)
    }
}

/// What a table can go on from.
struct Continuation {
    own: Option<MirrorTable>,
    history: Option<MirrorTable>,
    /// Up to where each holds every change, if both say so.
    positions: Option<(Lsn, Lsn)>,
    /// The plan of the shape from which it goes on.
    before: Option<PlannedTable>,
}

impl SourceSync {
    /// Opens what goes on and lists what must be loaded.
    pub(super) async fn open_tables(
        &self,
        tasks: &TaskTracker,
        state: &mut SyncState,
        planned: Vec<PlannedTable>,
        incarnation: &Incarnation,
        positions: Positions,
    ) -> Result<OpenedTables, SyncError> {
        state.begin_incarnation(&incarnation.system_identifier, incarnation.generation).await?;
        let kept = |relation: &u32| state.folders().get(relation).cloned().unwrap_or_default();
        let folders =
            planned.iter().map(|table| (table.relation, table.folders().or(kept(&table.relation)))).collect();
        let mut opened = OpenedTables {
            router: Router::new(self.spool_directory()),
            tables: HashMap::new(),
            names: planned.iter().map(|table| (table.relation, table.name.clone())).collect(),
            to_load: Vec::new(),
            held: BTreeSet::new(),
            tasks: tasks.clone(),
            points: self.points_table(incarnation),
            first_cut: Lsn::ZERO,
            look: Look { position: positions.looked_at, planned: Vec::new(), overtaken: false },
            confirmed: positions.confirmed,
            marks: Vec::new(),
            replaced: BTreeSet::new(),
        };
        let names: BTreeSet<String> = planned.iter().flat_map(PlannedTable::shown_names).collect();
        self.board.retain_tables(&self.database, |table| names.contains(table));
        for table in planned {
            self.open_table(state, table, incarnation, &mut opened).await?;
        }
        let following = opened.tables.values().flat_map(LiveTable::table_ids).collect();
        let marks = std::mem::take(&mut opened.marks);
        state.follow(following, folders, marks, &opened.replaced).await?;
        for relation in &opened.to_load {
            opened.router.start_loading(*relation)?;
        }
        Ok(opened)
    }

    async fn open_table(
        &self,
        state: &SyncState,
        mut planned: PlannedTable,
        incarnation: &Incarnation,
        opened: &mut OpenedTables,
    ) -> Result<(), SyncError> {
        let found = self.look_for_all(state, &planned, incarnation).await?;
        opened.replaced.extend(found.replaced());
        let (positions, before) = (found.positions(), found.shape_so_far(&planned));
        if let Some(before) = &before {
            source_shape::keep_choices(&mut planned, before);
        }
        if planned.mode != Mode::Mirror {
            opened.router.keep_origins(planned.relation);
        }
        let broken = found.broken().map(str::to_owned);
        let (entry, own, history) = found.into_live(planned);
        // Its history may have been left out for a while, or the mirror beside that: then both lack the same.
        let discontinuity = entry.table_ids().filter_map(|id| state.discontinuity(&id)).max();
        if opened.stays(&entry, broken.as_deref(), discontinuity) {
            opened.router.halt(entry.planned.relation);
            opened.tables.insert(entry.planned.relation, entry);
            return Ok(());
        }
        self.take_up(entry, Continuation { own, history, positions, before }, discontinuity, opened);
        Ok(())
    }

    /// Lets a table go on, or has it loaded.
    fn take_up(
        &self,
        mut entry: LiveTable,
        tables: Continuation,
        discontinuity: Option<&Discontinuity>,
        opened: &mut OpenedTables,
    ) {
        let relation = entry.planned.relation;
        // A load whose join was interrupted is whole if the slot still has everything after it.
        let follows = |(own, of_history): &(Lsn, Lsn)| match discontinuity {
            None => true,
            Some(Discontinuity::Loading) => opened.confirmed <= *own.min(of_history),
            Some(_) => false,
        };
        let positions = tables.positions.filter(follows);
        let fits =
            positions.is_some() && tables.before.is_some_and(|before| opened.go_on_from(&mut entry, before));
        match (tables.own, positions) {
            (Some(table), Some((position, of_history))) if fits => {
                let (schema, options) = (entry.planned.schema.clone(), entry.planned.builder.clone());
                opened.first_cut = opened.first_cut.max(position).max(of_history);
                opened.router.go_live(relation, schema, options, position.min(of_history));
                entry.mend = entry.planned.can_be_mended();
                entry.clear_at_commit = discontinuity.is_some();
                entry.follow(table, tables.history, [position, of_history], &self.upkeep, &opened.tasks);
            }
            _ => {
                entry.loading = true;
                opened.to_load.push(relation);
                let is_stale = discontinuity == Some(&Discontinuity::Stale);
                let mark = if is_stale { Discontinuity::Stale } else { Discontinuity::Loading };
                opened.marks.extend(entry.table_ids().map(|id| (id, mark.clone())));
            }
        }
        opened.tables.insert(relation, entry);
    }

    fn points_table(&self, incarnation: &Incarnation) -> PointsTable {
        let folder = wal_decoder::folder_name(&self.database);
        PointsTable {
            location: self.lake.table(&[&folder, "_tidewater", "consistent_points"]),
            incarnation: incarnation.name(),
            app_id: incarnation.app_id(&self.instance, &self.database, "consistent_points"),
            options: self.writer_options(),
        }
    }

    /// Looks for a table in the lake, and for the history beside it.
    async fn look_for_all(
        &self,
        state: &SyncState,
        planned: &PlannedTable,
        incarnation: &Incarnation,
    ) -> Result<InLake, SyncError> {
        let own = self.look_for(state, planned, &planned.folder, &planned.name, incarnation).await?;
        let history = match &planned.history_folder {
            Some(folder) => {
                let name = history_name(&planned.name);
                Some(self.look_for(state, planned, folder, &name, incarnation).await?)
            }
            None => None,
        };
        Ok(InLake { own, history })
    }

    /// Looks for one table of the lake, which is shown under this name.
    async fn look_for(
        &self,
        state: &SyncState,
        planned: &PlannedTable,
        folder: &[String; 3],
        name: &str,
        incarnation: &Incarnation,
    ) -> Result<Found, SyncError> {
        let location = self.lake.table(&folder.each_ref().map(String::as_str));
        let shown =
            Shown { board: self.board.clone(), database: self.database.clone(), table: name.to_owned() };
        self.board.update(&self.database, name, |status| {
            status.location = location.uri().to_owned();
        });
        let (table, broken) = match MirrorTable::open(location.clone(), self.writer_options()).await {
            Ok(found) => (found, None),
            Err(error) if halts_table(&error) => (None, Some(error_chain(&error))),
            Err(error) => return Err(error.into()),
        };
        let id = |table: &MirrorTable| table.definition().configuration.get(source_shape::TABLE_ID).cloned();
        let existing = table.as_ref().and_then(id);
        if table.is_some() && existing.is_none() {
            return Err(SyncError::ForeignTable {
                table: shown.table.clone(),
                location: location.uri().to_owned(),
            });
        }
        // A table that was dropped and made again under its name is another one in the same place.
        let is_known = table.as_ref().is_some_and(|table| {
            state.folders().is_empty() || source_shape::is_of(table.definition(), planned.relation)
        });
        let (table_id, replaces) = if is_known { (existing, None) } else { (None, existing) };
        let table_id = table_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let app_id = incarnation.app_id(&self.instance, &self.database, &table_id);
        Ok(Found { table, broken, table_id, replaces, app_id, location, shown })
    }
}

impl OpenedTables {
    /// Whether a table stays as it is, halted or paused; shows it so.
    fn stays(
        &mut self,
        entry: &LiveTable,
        broken: Option<&str>,
        discontinuity: Option<&Discontinuity>,
    ) -> bool {
        let reason = match (broken, discontinuity) {
            (Some(reason), None) => {
                // The slot moves on without it: should it ever be found whole, that is what it lacks.
                self.marks.extend(entry.table_ids().map(|id| (id, Discontinuity::Stale)));
                reason
            }
            (Some(reason), Some(_)) => reason,
            (None, Some(Discontinuity::Halted { reason })) => reason,
            (None, Some(Discontinuity::Paused { hold })) => {
                entry.all_shown().for_each(|shown| shown.show(TableState::Paused));
                self.held.extend(hold.then_some(entry.planned.relation));
                return true;
            }
            (None, Some(Discontinuity::Loading | Discontinuity::Stale) | None) => return false,
        };
        tracing::error!(table = %entry.planned.name, %reason, "table is halted; the others go on");
        entry.all_shown().for_each(|shown| shown.show_halted(reason));
        true
    }

    /// Whether a table can go on from the shape it has in the lake. Where the catalog is ahead of that, the stream
    /// has yet to come to the change.
    fn go_on_from(&mut self, entry: &mut LiveTable, before: PlannedTable) -> bool {
        match source_shape::change(&before, &entry.planned) {
            Change::None => true,
            Change::Follow(_) | Change::Unclear(_) => {
                self.look.planned.push(std::mem::replace(&mut entry.planned, before));
                true
            }
            Change::Reload(reason) => {
                tracing::info!(table = %entry.shown.table, %reason, "table is loaded anew");
                false
            }
        }
    }
}
