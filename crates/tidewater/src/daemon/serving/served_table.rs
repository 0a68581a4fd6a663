//! One served table's task.
//!
//! An attempt opens the Delta table and a session with the target, and follows until something goes wrong; then both
//! are dropped and opened again after a pause. What people ask meanwhile is taken up by the next attempt.

use super::lake_table::{LakeTable, LakeVersion, ServingError};
use crate::config::{ServeMode, ToPostgres};
use crate::daemon::{RunOptions, error_chain};
use crate::requests::{Recipient, Request, Requests, TableRequest};
use crate::status::{Direction, StatusBoard, TableState, TableStatus};
use crate::telemetry;
use crate::verification::{DifferingKey, Verdict, Verification};
use lake_sql::LakeSession;
use postgres_connector::SourceConfig;
use reverse_sync::ReverseSyncError;
use reverse_sync::serve::{Applied, Comparison, Difference, Outcome, Record, ServedDefinition, Target};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// How soon the lake is asked again after it had something new, and the longest pause once it has not. Each asks for one
/// object, the next version's commit: a few dollars a month and table at the prices of object stores.
const SHORTEST_POLL: Duration = Duration::from_millis(200);
const LONGEST_POLL: Duration = Duration::from_secs(1);

/// That the next commit is not there does not say that the table is: it may be gone, made anew, or its log may have
/// expired up to a later version. Listing the log tells, and costs ten times as much.
const LISTING_PERIOD: Duration = Duration::from_secs(10);

/// Without `every`.
const DEFAULT_PERIOD: Duration = Duration::from_secs(300);

const FIRST_RETRY: Duration = Duration::from_millis(250);
/// An outage is noticed to have ended within this.
const LONGEST_RETRY: Duration = Duration::from_secs(15);
/// What somebody has to mend is looked at again this often,
const MENDED_RETRY: Duration = Duration::from_secs(30);
/// and the lake for a table that is not there, or not yet.
const MISSING_RETRY: Duration = Duration::from_secs(2);

const RESYNC: &str = "somebody asked for it";
const SNAPSHOT: &str = "its mode is `snapshot`";
const RECREATED: &str = "the Delta table was made anew";
const CHANGED_ENTRY: &str = "the entry or the table's columns changed";

/// Everything one served table is given.
pub(super) struct ServedTable {
    pub definition: ServedDefinition,
    pub entry: ToPostgres,
    /// The lake's address, and the options of its store.
    pub lake: String,
    pub store: BTreeMap<String, String>,
    pub spill_folder: PathBuf,
    pub target: SourceConfig,
    pub reader: Arc<LakeSession>,
    pub board: StatusBoard,
    pub requests: Requests,
    pub permits: Arc<Semaphore>,
    pub options: RunOptions,
    pub shutdown: CancellationToken,
}

/// What an attempt works with.
struct Attempt<'a> {
    table: &'a ServedTable,
    lake: LakeTable,
    target: Target,
    record: Option<Record>,
    /// The record is of this session and was compared with the entry.
    is_current: bool,
    /// When a version was first seen that is not applied.
    behind_since: Option<Instant>,
    /// When the log was listed the last time.
    listed: Option<Instant>,
}

impl ServedTable {
    /// Serves until it is told to stop, or has caught up when that is asked for.
    pub async fn run(self) -> Result<(), ServingError> {
        let recipient =
            Recipient::Served { database: self.entry.database.clone(), table: self.entry.into.clone() };
        let mut asked = VecDeque::new();
        let mut wait = FIRST_RETRY;
        // What is wrong is logged once, however often it is tried again.
        let mut told = None;
        self.show(|_| {});
        loop {
            let began = Instant::now();
            let attempt = tokio::select! {
                attempt = self.follow(&recipient, &mut asked) => attempt,
                // Whatever is under way, the server takes back when the session closes.
                () = self.shutdown.cancelled() => return Ok(()),
            };
            let error = match attempt {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let transient = error.is_transient();
            let text = error_chain(&error);
            if told.as_ref() != Some(&text) {
                tracing::warn!(database = %self.entry.database, table = %self.entry.into, error = %text, "serving is interrupted");
                told = Some(text.clone());
            }
            self.show(|status| {
                status.state = if transient { TableState::Waiting } else { TableState::Failed };
                status.error = Some(text.clone());
            });
            if self.options.until_caught_up && !transient {
                return Err(error);
            }
            if began.elapsed() > LONGEST_RETRY {
                wait = FIRST_RETRY;
                told = None;
            }
            let pause = match error {
                _ if transient => wait,
                _ if error.is_missing() => MISSING_RETRY,
                _ => MENDED_RETRY,
            };
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => wait = (wait * 2).min(LONGEST_RETRY),
                request = self.requests.next(&recipient) => asked.push_back(request),
            }
        }
    }

    async fn follow(&self, recipient: &Recipient, asked: &mut VecDeque<Request>) -> Result<(), ServingError> {
        let lake =
            LakeTable::open(&self.entry, &self.lake, &self.store, &self.reader, &self.spill_folder).await?;
        self.show(|status| status.location = lake.uri().to_owned());
        let target = Target::open(&self.target, self.definition.clone()).await?;
        let record = target.record().await?;
        if record.is_some() {
            target.ensure_fittings().await?;
        }
        let mut attempt = Attempt {
            table: self,
            lake,
            target,
            record,
            is_current: false,
            behind_since: None,
            listed: None,
        };
        let mut poll = SHORTEST_POLL;
        let mut is_shown = false;
        loop {
            while let Some(request) = asked.pop_front() {
                attempt.answer(request).await?;
            }
            let moved = attempt.catch_up(None).await?;
            // Not before: what went wrong the last time stays in sight until it is overcome.
            if !is_shown && !moved {
                attempt.show_record(None);
            }
            is_shown = true;
            if self.options.until_caught_up {
                return Ok(());
            }
            poll = if moved { SHORTEST_POLL } else { (poll * 5 / 4).min(LONGEST_POLL) };
            let pause = match self.entry.mode {
                ServeMode::Continuous => poll,
                ServeMode::Triggered | ServeMode::Snapshot => {
                    self.entry.every.map_or(DEFAULT_PERIOD, |every| every.duration())
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                request = self.requests.next(recipient) => asked.push_back(request),
            }
        }
    }

    fn show(&self, change: impl FnOnce(&mut TableStatus)) {
        self.board.update_in(Direction::ToPostgres, &self.entry.database, &self.entry.into, change);
    }

    fn labels(&self) -> [(&'static str, String); 2] {
        [("database", self.entry.database.clone()), ("table", self.entry.into.clone())]
    }
}

impl Attempt<'_> {
    /// Brings the table to the newest version. Says whether anything was new.
    async fn catch_up(&mut self, asked: Option<&'static str>) -> Result<bool, ServingError> {
        if self.record.as_ref().is_some_and(|record| record.paused) && asked.is_none() {
            self.table.show(|status| status.state = TableState::Paused);
            return Ok(false);
        }
        let applied = self.record.as_ref().map(|record| record.version).filter(|_| self.is_current);
        let newest = self.newest_version(applied).await?;
        if applied == Some(newest) && asked.is_none() {
            self.show_lag();
            return Ok(false);
        }
        self.behind_since.get_or_insert_with(Instant::now);
        self.show_lag();
        // Whoever waits here holds no transaction.
        let permit = self.table.permits.clone().acquire_owned().await;
        let began = Instant::now();
        let lake = self.lake.version(newest, &self.table.definition).await?;
        let moved = match self.reason_to_reload(&lake, asked) {
            Some(reason) => self.reload(&lake, reason).await.map(|()| true),
            None => match &self.record {
                None => self.first_load(&lake).await.map(|()| true),
                Some(record) if record.version == newest => Ok(false),
                Some(record) => self.follow_changes(record.clone(), &lake).await.map(|()| true),
            },
        }?;
        drop(permit);
        self.is_current = true;
        self.behind_since = None;
        if moved {
            let seconds = began.elapsed().as_secs_f64();
            metrics::histogram!(telemetry::SERVING_APPLY_SECONDS, &self.table.labels()).record(seconds);
        }
        self.show_lag();
        Ok(moved)
    }

    /// The newest version. When one is applied, and the log was listed lately, it is enough that the next is not there.
    async fn newest_version(&mut self, applied: Option<u64>) -> Result<u64, ServingError> {
        let is_recent = self.listed.is_some_and(|listed| listed.elapsed() < LISTING_PERIOD);
        if let Some(applied) = applied.filter(|_| is_recent)
            && !self.lake.has_commit(applied.saturating_add(1)).await?
        {
            return Ok(applied);
        }
        let newest = self.lake.latest_version().await?;
        self.listed = Some(Instant::now());
        Ok(newest)
    }

    /// Why the changes since the applied version would not do.
    fn reason_to_reload(&self, lake: &LakeVersion, asked: Option<&'static str>) -> Option<&'static str> {
        let record = self.record.as_ref()?;
        if asked.is_some() {
            return asked;
        }
        if record.table_id != lake.version.table_id || record.version > lake.version.number {
            return Some(RECREATED);
        }
        if record.version == lake.version.number {
            return record.differs_from(&lake.layout, &self.table.definition).then_some(CHANGED_ENTRY);
        }
        (self.table.entry.mode == ServeMode::Snapshot).then_some(SNAPSHOT)
    }

    async fn first_load(&mut self, lake: &LakeVersion) -> Result<(), ServingError> {
        self.load(lake, None, |rows_done| TableState::Loading { rows_done, rows_estimated: None }).await
    }

    async fn reload(&mut self, lake: &LakeVersion, reason: &str) -> Result<(), ServingError> {
        if reason != SNAPSHOT {
            tracing::info!(database = %self.table.entry.database, table = %self.table.entry.into, version = lake.version.number, reason, "compared as a whole");
        }
        metrics::counter!(telemetry::SERVING_RELOADS_TOTAL, &self.table.labels()).increment(1);
        let note = format!("version {} was compared as a whole: {reason}", lake.version.number);
        let rows_estimated = self.record.as_ref().and_then(|record| u64::try_from(record.rows).ok());
        let note = (reason != SNAPSHOT).then_some(note);
        self.load(lake, note, |rows_done| TableState::Reloading { rows_done, rows_estimated }).await
    }

    async fn load(
        &mut self,
        lake: &LakeVersion,
        note: Option<String>,
        state: impl Fn(u64) -> TableState + Send + Sync,
    ) -> Result<(), ServingError> {
        let rows = self.lake.rows(lake.version.number).await?;
        let table = self.table;
        table.show(|status| status.note = note.clone());
        let progress = |rows| table.show(|status| status.state = state(rows));
        progress(0);
        let applied = self.target.load(&lake.layout, &lake.version, rows, &progress).await?;
        self.applied(applied, note);
        Ok(())
    }

    async fn follow_changes(&mut self, record: Record, lake: &LakeVersion) -> Result<(), ServingError> {
        let preimages = record.needs_preimages(&lake.layout);
        let changes = match self.lake.changes(record.version, lake.version.number, preimages).await {
            Ok(changes) => changes,
            Err(ServingError::Serve(error)) => return self.reload_if_unavailable(error, lake).await,
            Err(error) => return Err(error),
        };
        match self.target.apply(&lake.layout, &record, &lake.version, changes).await {
            Ok(Outcome::Applied(applied)) => {
                self.applied(applied, None);
                Ok(())
            }
            Ok(Outcome::Reload { reason }) => self.reload(lake, reason).await,
            Err(error) => self.reload_if_unavailable(error, lake).await,
        }
    }

    /// The log or a file of the versions in between is gone: the newest version is still there.
    async fn reload_if_unavailable(
        &mut self,
        error: ReverseSyncError,
        lake: &LakeVersion,
    ) -> Result<(), ServingError> {
        let Some(reason) = error.unavailable().map(ToString::to_string) else { return Err(error.into()) };
        // A COPY that was under way ended with its changes; the session goes on.
        self.reload(lake, &reason).await
    }

    fn applied(&mut self, applied: Applied, note: Option<String>) {
        let labels = self.table.labels();
        metrics::counter!(telemetry::SERVING_ROWS_TOTAL, &labels).increment(applied.changed);
        tracing::debug!(table = %self.table.entry.into, version = applied.record.version, rows = applied.changed, "applied");
        self.record = Some(applied.record);
        self.show_record(note);
    }

    fn show_record(&self, note: Option<String>) {
        let Some(record) = &self.record else { return };
        let labels = self.table.labels();
        // Figures for people: beyond 2^53 a digit may be lost.
        metrics::gauge!(telemetry::SERVING_VERSION, &labels).set(record.version as f64);
        metrics::gauge!(telemetry::SERVING_KEPT_OUT_ROWS, &labels).set(record.kept_out.rows() as f64);
        let kept_out = (record.kept_out.rows() != 0).then(|| record.kept_out.to_string());
        let notes: Vec<String> = note.into_iter().chain(kept_out).collect();
        self.table.show(|status| {
            status.state = if record.paused { TableState::Paused } else { TableState::Serving };
            status.version = i64::try_from(record.version).ok();
            status.rows = u64::try_from(record.rows).ok();
            status.error = None;
            status.note = (!notes.is_empty()).then(|| notes.join("; "));
        });
    }

    fn show_lag(&self) {
        let seconds = self.behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        metrics::gauge!(telemetry::SERVING_LAG_SECONDS, &self.table.labels()).set(seconds);
        self.table.show(|status| status.lag_seconds = Some(seconds));
    }

    async fn answer(&mut self, request: Request) -> Result<(), ServingError> {
        match request {
            Request::Table { request: TableRequest::Pause { .. }, .. } => self.set_paused(true).await,
            Request::Table { request: TableRequest::Resume, .. } => self.set_paused(false).await,
            Request::Table { request: TableRequest::Resync, .. } => {
                self.set_paused(false).await?;
                self.catch_up(Some(RESYNC)).await.map(drop)
            }
            Request::Verify(verification) => self.verify(&verification).await,
        }
    }

    async fn set_paused(&mut self, paused: bool) -> Result<(), ServingError> {
        self.target.set_paused(paused).await?;
        if let Some(record) = &mut self.record {
            record.paused = paused;
        }
        self.show_record(None);
        Ok(())
    }

    /// Compares the served rows with the version that they are of.
    async fn verify(&mut self, verification: &Verification) -> Result<(), ServingError> {
        let name = &self.table.entry.into;
        let Some(record) = self.record.clone() else {
            verification.give_up(name, "it is not loaded yet");
            return Ok(());
        };
        verification.update(name, |table| {
            table.verdict = Verdict::Comparing;
            table.version = i64::try_from(record.version).ok();
        });
        match self.compare(&record, verification).await {
            Ok(compared) => verification.update(name, |table| fill_in(table, compared)),
            Err(error) => verification.give_up(name, &error_chain(&error)),
        }
        Ok(())
    }

    async fn compare(
        &mut self,
        record: &Record,
        verification: &Verification,
    ) -> Result<Comparison, ServingError> {
        let lake = self.lake.version(record.version, &self.table.definition).await?;
        let rows = self.lake.rows(record.version).await?;
        let name = &self.table.entry.into;
        let progress = |rows| verification.update(name, |table| table.lake_rows = Some(rows));
        Ok(self.target.compare(&lake.layout, record, rows, &progress).await?)
    }
}

fn fill_in(table: &mut crate::verification::VerifiedTable, compared: Comparison) {
    let difference = |difference| match difference {
        Difference::OnlyInLake => "only in the lake",
        Difference::OnlyServed => "only in Postgres",
        Difference::OtherValues => "other values",
    };
    table.verdict = if compared.differing_keys == 0 { Verdict::Equal } else { Verdict::Different };
    table.source_rows = u64::try_from(compared.served_rows).unwrap_or_default();
    table.lake_rows = u64::try_from(compared.lake_rows).ok();
    table.differing_keys = u64::try_from(compared.differing_keys).ok();
    let named = compared.first.into_iter();
    table.first =
        named.map(|(key, how)| DifferingKey { key, difference: difference(how).to_owned() }).collect();
}
