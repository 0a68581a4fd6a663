//! What is going on, for `status`, the API and the metrics.
//!
//! The daemon's tasks write to a [`StatusBoard`] as things happen; whoever asks gets a [`StatusReport`] of
//! that moment. Writers only hold a short lock over plain memory, never across an await, so reporting
//! cannot slow the sync. The report's shape is part of the contract.

use chrono::{DateTime, SecondsFormat};
use delta_writer::OldestVersion;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use wal_decoder::Lsn;

/// Where a table's rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Postgres -> Delta
    ToLake,
    /// Delta -> Postgres
    ToPostgres,
}

/// What a table is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableState {
    /// Nothing yet: its source cannot be reached, or its turn has not come.
    Waiting,
    /// The first load is under way.
    Loading {
        /// rows copied so far
        rows_done: u64,
        /// the source's estimate of all rows; absent where it has none
        rows_estimated: Option<u64>,
    },
    /// Changes arrive as they are committed.
    Streaming,
    /// As streaming, but the source can only publish inserts and truncates of this table.
    InsertsOnly,
    /// It stays at its version while a new copy is loaded beside it.
    Reloading {
        /// rows copied so far
        rows_done: u64,
        /// the source's estimate of all rows; absent where it has none
        rows_estimated: Option<u64>,
    },
    /// It is served from Postgres at its version, and follows the Delta table.
    Serving,
    /// Stopped by request.
    Paused,
    /// Stopped by an error, which `error` has.
    Failed,
}

impl TableState {
    /// The word that reports and metrics use.
    pub fn name(self) -> &'static str {
        match self {
            TableState::Waiting => "waiting",
            TableState::Loading { .. } => "loading",
            TableState::Streaming => "streaming",
            TableState::InsertsOnly => "inserts only",
            TableState::Reloading { .. } => "reloading",
            TableState::Serving => "serving",
            TableState::Paused => "paused",
            TableState::Failed => "failed",
        }
    }

    /// A load under way, beside a copy that is in the lake already or as the first.
    pub fn of_load(in_lake: bool, rows_done: u64, rows_estimated: Option<u64>) -> TableState {
        match in_lake {
            true => TableState::Reloading { rows_done, rows_estimated },
            false => TableState::Loading { rows_done, rows_estimated },
        }
    }

    /// Rows copied and their estimate, while a load is under way.
    pub fn load(self) -> Option<(u64, Option<u64>)> {
        match self {
            TableState::Loading { rows_done, rows_estimated }
            | TableState::Reloading { rows_done, rows_estimated } => Some((rows_done, rows_estimated)),
            _ => None,
        }
    }
}

impl fmt::Display for TableState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One table in one direction.
#[derive(Debug, Clone, PartialEq)]
pub struct TableStatus {
    /// which way
    pub direction: Direction,
    /// the database's name in the configuration
    pub database: String,
    /// `schema.table`
    pub table: String,
    /// where the Delta table is
    pub location: String,
    /// what it is doing
    pub state: TableState,
    /// up to where it holds every change
    pub position: Option<Lsn>,
    /// its Delta version at that position
    pub version: Option<i64>,
    /// WAL between its position and the source's
    pub lag_bytes: Option<u64>,
    /// age of the oldest change it lacks
    pub lag_seconds: Option<f64>,
    /// when that was so
    pub lag_shown: Option<Instant>,
    /// rows it holds, or has loaded so far
    pub rows: Option<u64>,
    /// the oldest version that can be read, and when it was committed
    pub oldest: Option<OldestVersion>,
    /// the last error, until it is overcome
    pub error: Option<String>,
    /// what else is worth knowing: rows that are kept out, why it was loaded anew
    pub note: Option<String>,
}

impl TableStatus {
    /// A table of which nothing is known yet.
    pub fn new(direction: Direction, database: &str, table: &str) -> TableStatus {
        TableStatus {
            direction,
            database: database.to_owned(),
            table: table.to_owned(),
            location: String::new(),
            state: TableState::Waiting,
            position: None,
            version: None,
            lag_bytes: None,
            lag_seconds: None,
            lag_shown: None,
            rows: None,
            oldest: None,
            error: None,
            note: None,
        }
    }
}

impl TableStatus {
    /// Shows how long the oldest change that it lacks has waited.
    pub fn show_lag(&mut self, seconds: f64) {
        self.lag_seconds = Some(seconds);
        self.lag_shown = Some(Instant::now());
    }

    /// Nothing has arrived since the lag was shown last: it has grown with the time.
    pub fn let_lag_grow(&mut self) -> f64 {
        let passed = self.lag_shown.map_or(0.0, |shown| shown.elapsed().as_secs_f64());
        let seconds = self.lag_seconds.unwrap_or_default() + passed;
        self.show_lag(seconds);
        seconds
    }
}

/// One source database.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// the database's name in the configuration
    pub database: String,
    /// whether its stream is open
    pub connected: bool,
    /// the replication slot
    pub slot: Option<String>,
    /// WAL that the slot makes the source keep
    pub retained_wal_bytes: Option<u64>,
    /// what is being waited for
    pub waiting: Option<String>,
    /// the last error, until it is overcome
    pub error: Option<String>,
}

/// The report of one moment: `tables` as the contract has them, and the sources beside them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// every table, ordered by direction, database and name
    pub tables: Vec<TableReport>,
    /// every source database
    #[serde(default)]
    pub sources: Vec<SourceStatus>,
    /// loads under way
    #[serde(default)]
    pub loads: Vec<LoadReport>,
}

/// A table as the contract reports it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableReport {
    /// which way
    pub direction: Direction,
    /// the database's name in the configuration
    pub database: String,
    /// `schema.table`
    pub table: String,
    /// where the Delta table is
    pub location: String,
    /// [`TableState::name`]
    pub state: String,
    /// up to where it holds every change, as `0/16B3748`
    #[serde(serialize_with = "lsn_as_text", deserialize_with = "lsn_from_text")]
    pub position: Option<Lsn>,
    /// its Delta version
    pub version: Option<i64>,
    /// bytes of WAL behind
    pub lag_bytes: Option<u64>,
    /// seconds behind
    pub lag_seconds: Option<f64>,
    /// rows it holds
    pub rows: Option<u64>,
    /// the oldest version that can be read
    #[serde(default)]
    pub oldest_version: Option<i64>,
    /// when that version was committed, as `2026-11-20T10:00:00.000Z`
    #[serde(default)]
    pub oldest_timestamp: Option<String>,
    /// the last error
    pub error: Option<String>,
    /// what else is worth knowing
    #[serde(default)]
    pub note: Option<String>,
}

/// How far a load has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// the database's name in the configuration
    pub database: String,
    /// `schema.table`
    pub table: String,
    /// rows copied so far
    pub rows_done: u64,
    /// the source's estimate of all rows
    pub rows_estimated: Option<u64>,
}

fn lsn_as_text<S: Serializer>(lsn: &Option<Lsn>, serializer: S) -> Result<S::Ok, S::Error> {
    match lsn {
        Some(lsn) => serializer.collect_str(lsn),
        None => serializer.serialize_none(),
    }
}

fn lsn_from_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Lsn>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

/// Where tasks write what they do. Cheap to clone; all clones are one board.
#[derive(Debug, Clone, Default)]
pub struct StatusBoard {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    ready: AtomicBool,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    tables: BTreeMap<(Direction, String, String), TableStatus>,
    sources: BTreeMap<String, SourceStatus>,
}

/// Why a name stands for no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnknownTable {
    /// Nothing is called that.
    #[error("no synced table has this name; `tidewater status` lists them")]
    Unknown,
    /// Several databases have it.
    #[error(
        "several databases have a table of this name: put the database before it, as database.schema.table"
    )]
    Ambiguous,
}

impl StatusBoard {
    /// An empty board that is not ready.
    pub fn new() -> StatusBoard {
        StatusBoard::default()
    }

    /// Changes what is said of a table on its way to the lake; the table appears with its first change.
    pub fn update(&self, database: &str, table: &str, change: impl FnOnce(&mut TableStatus)) {
        self.update_in(Direction::ToLake, database, table, change);
    }

    /// Changes what is said of a table in either direction.
    pub fn update_in(
        &self,
        direction: Direction,
        database: &str,
        table: &str,
        change: impl FnOnce(&mut TableStatus),
    ) {
        let key = (direction, database.to_owned(), table.to_owned());
        change(
            self.entries().tables.entry(key).or_insert_with(|| TableStatus::new(direction, database, table)),
        );
    }

    /// Changes what is said of every table of a database on its way to the lake.
    pub fn update_all(&self, database: &str, change: impl Fn(&mut TableStatus)) {
        let mut entries = self.entries();
        let of_it =
            |status: &&mut TableStatus| status.direction == Direction::ToLake && status.database == database;
        entries.tables.values_mut().filter(of_it).for_each(change);
    }

    /// Changes what is said of a source; the source appears with its first change.
    pub fn update_source(&self, database: &str, change: impl FnOnce(&mut SourceStatus)) {
        change(
            self.entries()
                .sources
                .entry(database.to_owned())
                .or_insert_with(|| SourceStatus { database: database.to_owned(), ..SourceStatus::default() }),
        );
    }

    /// The slot of a source, once it has one.
    pub fn slot_of(&self, database: &str) -> Option<String> {
        self.entries().sources.get(database)?.slot.clone()
    }

    /// Says that every source is on the board, or that the daemon is stopping.
    pub fn set_ready(&self, ready: bool) {
        self.shared.ready.store(ready, Ordering::Release);
    }

    /// Whether the daemon does its work: it runs, and every source is connected.
    pub fn is_ready(&self) -> bool {
        self.shared.ready.load(Ordering::Acquire)
            && self.entries().sources.values().all(|source| source.connected)
    }

    /// The direction, database and name of the table that is called `name`: `schema.table`, or `database.schema.table`
    /// where several have it. A served table is never synced to the lake, so no database has a name twice.
    pub fn find_table(&self, name: &str) -> Result<(Direction, String, String), UnknownTable> {
        let entries = self.entries();
        let named = |(_, database, table): &&(Direction, String, String)| {
            table == name || format!("{database}.{table}") == name
        };
        let mut found = entries.tables.keys().filter(named);
        let only = found.next().ok_or(UnknownTable::Unknown)?;
        match found.next() {
            Some(_) => Err(UnknownTable::Ambiguous),
            None => Ok(only.clone()),
        }
    }

    /// Takes a database's tables off the board that are not synced any more.
    pub fn retain_tables(&self, database: &str, keep: impl Fn(&str) -> bool) {
        self.entries().tables.retain(|(direction, of, table), _| {
            *direction != Direction::ToLake || of != database || keep(table)
        });
    }

    /// Takes a served table off the board.
    pub fn remove_served(&self, database: &str, table: &str) {
        self.entries().tables.remove(&(Direction::ToPostgres, database.to_owned(), table.to_owned()));
    }

    /// Takes a source and its tables off the board.
    pub fn remove_source(&self, database: &str) {
        self.retain_tables(database, |_| false);
        self.entries().sources.remove(database);
    }

    /// One table as it stands.
    pub fn table(&self, direction: Direction, database: &str, table: &str) -> Option<TableStatus> {
        self.entries().tables.get(&(direction, database.to_owned(), table.to_owned())).cloned()
    }

    /// Everything as it stands.
    pub fn snapshot(&self) -> StatusReport {
        let entries = self.entries();
        StatusReport {
            tables: entries.tables.values().map(TableReport::from).collect(),
            sources: entries.sources.values().cloned().collect(),
            loads: entries.tables.values().filter_map(load_report).collect(),
        }
    }

    /// A task that panicked while it held the lock left at worst one stale line; the others go on.
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<&TableStatus> for TableReport {
    fn from(status: &TableStatus) -> Self {
        TableReport {
            direction: status.direction,
            database: status.database.clone(),
            table: status.table.clone(),
            location: status.location.clone(),
            state: status.state.name().to_owned(),
            position: status.position,
            version: status.version,
            lag_bytes: status.lag_bytes,
            lag_seconds: status.lag_seconds,
            rows: status.rows.or_else(|| status.state.load().map(|(done, _)| done)),
            oldest_version: status.oldest.map(|oldest| oldest.version),
            oldest_timestamp: status
                .oldest
                .and_then(|oldest| DateTime::from_timestamp_millis(oldest.committed_at))
                .map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true)),
            error: status.error.clone(),
            note: status.note.clone(),
        }
    }
}

fn load_report(status: &TableStatus) -> Option<LoadReport> {
    let (rows_done, rows_estimated) = status.state.load()?;
    Some(LoadReport {
        database: status.database.clone(),
        table: status.table.clone(),
        rows_done,
        rows_estimated,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streaming(board: &StatusBoard) {
        board.update("shop", "public.orders", |table| {
            table.location = "/lake/shop/public/orders".into();
            table.state = TableState::Streaming;
            table.position = Some(Lsn(0x16B_3748));
            table.version = Some(12);
            table.lag_bytes = Some(0);
            table.lag_seconds = Some(0.25);
            table.rows = Some(3);
            table.oldest = Some(OldestVersion { version: 7, committed_at: 1_767_225_600_000 });
        });
    }

    #[test]
    fn a_table_is_reported_with_the_keys_of_the_contract() {
        let board = StatusBoard::new();
        streaming(&board);
        assert_eq!(
            serde_json::to_value(board.snapshot()).unwrap()["tables"],
            serde_json::json!([{
                "direction": "to_lake", "database": "shop", "table": "public.orders",
                "location": "/lake/shop/public/orders", "state": "streaming", "position": "0/16B3748",
                "version": 12, "lag_bytes": 0, "lag_seconds": 0.25, "rows": 3,
                "oldest_version": 7, "oldest_timestamp": "2026-01-01T00:00:00.000Z", "error": null, "note": null
            }])
        );
    }

    #[test]
    fn a_report_survives_its_way_over_the_socket() {
        let board = StatusBoard::new();
        streaming(&board);
        board.update("shop", "public.items", |table| {
            table.state = TableState::Loading { rows_done: 5, rows_estimated: Some(10) };
        });
        board.update_source("shop", |source| source.slot = Some("tidewater_main_shop_1".into()));
        let report = board.snapshot();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<StatusReport>(&text).unwrap(), report);
        assert_eq!(report.loads[0].rows_estimated, Some(10));
        assert_eq!(report.tables[0].rows, Some(5));
    }

    #[test]
    fn a_table_is_found_by_its_name_and_by_its_databases_where_several_have_it() {
        let board = StatusBoard::new();
        streaming(&board);
        board.update("crm", "public.items", |_| {});
        board.update("shop", "public.items", |_| {});
        board.update_in(Direction::ToPostgres, "shop", "serving.best", |_| {});
        let to_lake = Direction::ToLake;
        let found = |database: &str, table: &str| Ok((to_lake, database.to_owned(), table.to_owned()));
        let served = Ok((Direction::ToPostgres, "shop".to_owned(), "serving.best".to_owned()));
        assert_eq!(board.find_table("serving.best"), served);
        assert_eq!(board.find_table("public.orders"), found("shop", "public.orders"));
        assert_eq!(board.find_table("public.none"), Err(UnknownTable::Unknown));
        assert_eq!(board.find_table("public.items"), Err(UnknownTable::Ambiguous));
        assert_eq!(board.find_table("crm.public.items"), found("crm", "public.items"));
    }

    #[test]
    fn the_daemon_is_ready_when_every_source_is_connected() {
        let board = StatusBoard::new();
        board.update_source("shop", |_| {});
        board.set_ready(true);
        assert!(!board.is_ready());
        board.update_source("shop", |source| source.connected = true);
        assert!(board.is_ready());
    }

    #[test]
    fn clones_share_one_board_and_a_removed_table_is_gone() {
        let board = StatusBoard::new();
        streaming(&board.clone());
        board.clone().set_ready(true);
        assert!(board.is_ready());
        assert_eq!(board.snapshot().tables.len(), 1);
        board.update("shop", "public.items", |_| {});
        board.retain_tables("shop", |table| table == "public.items");
        assert_eq!(board.snapshot().tables.len(), 1);
        board.remove_source("shop");
        assert!(board.snapshot().tables.is_empty());
    }
}
