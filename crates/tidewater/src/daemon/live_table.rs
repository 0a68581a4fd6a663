//! One table of the plan while its database is followed: what it is, where it is, and who writes it.

use super::first_load::LoadTable;
use super::plan::PlannedTable;
use super::source_sync::SourceSync;
use super::table_upkeep::{TableUpkeep, UpkeepPolicy};
use super::table_writer::{Shown, TableWriter};
use crate::status::TableState;
use delta_writer::{MirrorTable, TableLocation};
use tokio_util::task::TaskTracker;
use wal_decoder::Lsn;

/// One table of the plan while its database is followed.
pub struct LiveTable {
    /// What it is.
    pub planned: PlannedTable,
    /// Where it is.
    pub location: TableLocation,
    /// Drawn once, kept in the table's metadata.
    pub table_id: String,
    /// The application id of its `txn` entries.
    pub app_id: String,
    /// Where its state is shown.
    pub shown: Shown,
    /// The Delta version of its last data commit, once it was opened or loaded.
    pub version: Option<i64>,
    /// It is in the lake in its present shape: what it lacks is found by comparing.
    pub mend: bool,
    /// The history beside it, with `mode: both`.
    pub history: Option<HistoryBeside>,
    /// Its task, once it is live.
    pub writer: Option<TableWriter>,
    /// Its load is under way or waiting.
    pub loading: bool,
    /// The lake has a version of it.
    pub in_lake: bool,
    /// It is caught up once the next cut is committed, and leaves `sync_state.json` then.
    pub clear_at_commit: bool,
}

/// The second table of the lake that a source table has with `mode: both`.
#[derive(Debug, Clone)]
pub struct HistoryBeside {
    /// Where it is.
    pub location: TableLocation,
    /// Drawn once, kept in its metadata.
    pub table_id: String,
    /// The application id of its `txn` entries.
    pub app_id: String,
    /// Where its state is shown.
    pub shown: Shown,
}

impl LiveTable {
    /// The ids of all that the stream keeps going for it in the lake: its own and that of its history. What is said of
    /// one is said of both, so that it stays true when the configuration parts them.
    pub fn table_ids(&self) -> impl Iterator<Item = String> {
        std::iter::once(self.table_id.clone())
            .chain(self.history.as_ref().map(|beside| beside.table_id.clone()))
    }

    /// What its load is to do.
    pub fn load_request(&self, sync: &SourceSync) -> LoadTable {
        LoadTable {
            planned: self.planned.clone(),
            location: self.location.clone(),
            options: sync.writer_options(),
            app_id: self.app_id.clone(),
            shown: self.shown.clone(),
            dead_letters: sync.dead_letters.clone(),
            mend: self.mend,
            lake: sync.reader.clone(),
            spool: sync.spool_directory(),
            history: self.history.clone(),
            table_id: self.table_id.clone(),
            in_lake: self.in_lake,
        }
    }

    /// It holds what its database's last landed cut holds.
    pub fn is_at_the_cut(&self) -> bool {
        self.writer.is_some() && !self.loading && !self.clear_at_commit
    }

    /// It is known by this name, or its history is.
    pub fn is_called(&self, name: &str) -> bool {
        self.all_shown().any(|shown| shown.table == name)
    }

    /// Where its state is shown, and that of its history.
    pub fn all_shown(&self) -> impl Iterator<Item = &Shown> {
        std::iter::once(&self.shown).chain(self.history.as_ref().map(|beside| &beside.shown))
    }

    /// Starts the task of its table in the lake, and of its history. `from` is what each has already.
    pub fn follow(
        &mut self,
        table: MirrorTable,
        history: Option<MirrorTable>,
        from: [Lsn; 2],
        upkeep: &UpkeepPolicy,
        tasks: &TaskTracker,
    ) {
        let [own, of_history] = from;
        let upkeep_of = |shown: &Shown| TableUpkeep::new(shown.clone(), upkeep.clone());
        self.version = Some(table.version());
        self.shown.show_live(&table, self.streaming_state(), own);
        let mut writer = TableWriter::spawn(table, own, upkeep_of(&self.shown), tasks);
        if let Some((beside, table)) = self.history.as_ref().zip(history) {
            beside.shown.show_live(&table, self.streaming_state(), of_history);
            let history = TableWriter::spawn(table, of_history, upkeep_of(&beside.shown), tasks);
            writer = writer.with_history(history, beside.app_id.clone(), beside.shown.clone());
        }
        self.writer = Some(writer);
    }

    /// What it does while it follows the stream.
    pub fn streaming_state(&self) -> TableState {
        if self.planned.inserts_only.is_some() { TableState::InsertsOnly } else { TableState::Streaming }
    }
}
