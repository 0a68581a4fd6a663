//! Follows one database's slot: messages in, flushes out, positions confirmed.
//!
//! One task owns the router, the connection and the cut. A flush is cut between two transactions for
//! every table at once; while the tables' own tasks write and commit it, the stream goes on into the
//! next one. The slot is confirmed with the cut's position only after *every* table of the cut has
//! answered: committed, or halted and entered in `sync_state.json`.
//!
//! ```text
//!   slot ──▶ router ──▶ builders ──cut──▶ table tasks ──▶ Delta commits
//!    ▲                                                        │ all of the cut
//!    └────────────────────── confirm(end of the cut) ◀────────┘
//! ```

mod cuts;
mod loading;
mod requests;
mod reshaping;
mod verifying;

pub use reshaping::Look;

use super::SyncError;
use super::batch::Batch;
use super::consistent_points::PointRecorder;
use super::error::error_chain;
use super::first_load::{LoadFailed, Loaded};
use super::live_table::LiveTable;
use super::router::{CommitPoint, Router, Step, TransactionReplay};
use super::source_sync::{OpenedTables, SourceSync};
use super::sync_state::{Discontinuity, SyncState};
use crate::requests::Recipient;
use bytes::Bytes;
use cuts::{Flight, next_answer};
use postgres_connector::{Client, Event, LogicalStream};
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use verifying::Verifier;
use wal_decoder::Lsn;

/// Messages taken in one go before everything else gets its turn.
const MESSAGES_AT_ONCE: usize = 512;

/// How long a stop waits for the end of the transaction that is being received.
const LAST_TRANSACTION: Duration = Duration::from_secs(10);

/// How often figures are brought up to date.
const TICK: Duration = Duration::from_secs(1);

/// Every how many ticks the source is asked about its slot, and moved along when it is idle.
const SOURCE_TICKS: u64 = 10;

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// When told to.
    Shutdown,
    /// When everything up to here is in the lake.
    Position(Lsn),
}

/// See the module's essay.
pub struct StreamLoop {
    sync: SourceSync,
    stream: LogicalStream,
    client: Client,
    state: SyncState,
    tasks: TaskTracker,
    slot: String,
    load_slot: String,
    router: Router,
    tables: HashMap<u32, LiveTable>,
    points: PointRecorder,
    /// Paused tables for which the slot stays where it is.
    held: BTreeSet<u32>,
    verifier: Verifier,
    /// The plan that this loop follows.
    names: BTreeSet<(u32, String)>,
    to_load: Vec<u32>,
    loads: JoinSet<Result<BTreeSet<u32>, LoadFailed>>,
    loaded: (mpsc::Sender<Loaded>, mpsc::Receiver<Loaded>),
    flight: Option<Flight>,
    /// When the oldest change that is in no cut yet arrived.
    waiting_since: Option<Instant>,
    /// When the transaction of the oldest change that is in no cut yet was committed.
    oldest_commit: Option<i64>,
    last_commit: CommitPoint,
    /// The source's end of WAL as last heard.
    source_end: Lsn,
    confirmed: Lsn,
    /// Every transaction that ended up to here was received.
    passed: Lsn,
    /// What the catalog showed, until the stream has passed that.
    look: Option<Look>,
    first_cut: Lsn,
    target: Target,
    ticks: u64,
}

impl StreamLoop {
    /// A loop over what preparing found.
    pub fn new(
        sync: SourceSync,
        stream: LogicalStream,
        client: Client,
        state: SyncState,
        slot: String,
        opened: OpenedTables,
        target: Target,
    ) -> StreamLoop {
        let clearing = opened.tables.values().any(|table| table.clear_at_commit);
        StreamLoop {
            load_slot: format!("{}_load", slot.chars().take(58).collect::<String>()),
            router: opened.router,
            points: PointRecorder::start(opened.points, opened.tables.keys().copied(), &opened.tasks),
            tables: opened.tables,
            held: opened.held,
            verifier: Verifier::default(),
            names: opened.names,
            to_load: opened.to_load,
            first_cut: opened.first_cut,
            sync,
            stream,
            client,
            state,
            tasks: opened.tasks,
            slot,
            loads: JoinSet::new(),
            loaded: mpsc::channel(1),
            flight: None,
            // A table that was being loaded leaves `sync_state.json` with the first cut.
            waiting_since: clearing.then(Instant::now),
            oldest_commit: None,
            last_commit: CommitPoint { end_lsn: Lsn::ZERO, commit_time: 0 },
            source_end: Lsn::ZERO,
            confirmed: Lsn::ZERO,
            passed: Lsn::ZERO,
            look: Some(opened.look),
            target,
            ticks: 0,
        }
    }

    /// Follows until the target is reached.
    pub async fn run(mut self) -> Result<(), SyncError> {
        let result = self.follow().await;
        self.loads.shutdown().await;
        self.verifier.shutdown().await;
        match result {
            Ok(()) => self.stream.close().await.map_err(SyncError::from),
            Err(error) => Err(error),
        }
    }

    async fn follow(&mut self) -> Result<(), SyncError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let asked = Recipient::Source { database: self.sync.database.clone() };
        loop {
            self.begin_loads();
            self.begin_verification();
            self.drain().await?;
            self.take_look().await?;
            if self.cut_is_due() {
                self.cut().await?;
            }
            if self.is_done() {
                return self.stop().await;
            }
            let shutdown = self.sync.shutdown.clone();
            let due = earliest(self.flush_due_at(), self.verifier.hold_ends());
            let held = self.verifier.holds_stream();
            tokio::select! {
                event = self.stream.next(), if !held => self.event(event?).await?,
                answer = next_answer(&mut self.flight) => self.answered(answer).await?,
                Some(loaded) = self.loaded.1.recv() => self.join_stream(loaded).await?,
                Some(ended) = self.loads.join_next() => self.load_ended(ended).await?,
                request = self.sync.requests.next(&asked) => self.request(request).await?,
                Some(ended) = self.verifier.exported() => self.export_ended(ended).await?,
                () = at(due) => {}
                _ = tick.tick() => self.tick().await?,
                () = shutdown.cancelled() => return self.stop().await,
            }
        }
    }

    /// Takes what the connection has buffered already.
    async fn drain(&mut self) -> Result<(), SyncError> {
        for _ in 0..MESSAGES_AT_ONCE {
            if self.verifier.holds_stream() {
                return Ok(());
            }
            match self.stream.try_next()? {
                Some(event) => self.event(event).await?,
                None => return Ok(()),
            }
            if self.cut_is_due() {
                self.cut().await?;
            }
        }
        Ok(())
    }

    async fn event(&mut self, event: Event) -> Result<(), SyncError> {
        match event {
            Event::Wal { end, data, .. } => {
                self.source_end = self.source_end.max(end);
                if self.verifier.cuts_before(self.commit_of(&data)) {
                    self.cut_for_verification().await?;
                }
                let step = match self.router.message(&data)? {
                    Step::Reshape(relation) => {
                        self.reshape(relation).await?;
                        self.router.message(&data)?
                    }
                    step => step,
                };
                self.step(step).await
            }
            Event::Keepalive { wal_end, .. } => {
                self.source_end = self.source_end.max(wal_end);
                if self.router.between_transactions() {
                    self.passed = self.passed.max(wal_end);
                }
                let all_below_received = wal_end >= self.first_cut && self.router.between_transactions();
                if all_below_received && self.last_commit.end_lsn < self.first_cut {
                    // Nothing was committed since the youngest table's position: a cut may be there.
                    self.last_commit.end_lsn = self.first_cut;
                }
                if self.router.between_transactions() && self.verifier.cuts_before(Some(wal_end)) {
                    self.cut_for_verification().await?;
                }
                self.confirm_idle(wal_end).await
            }
        }
    }

    async fn step(&mut self, step: Step) -> Result<(), SyncError> {
        match step {
            Step::Continue => Ok(()),
            Step::HandOver => self.hand_over().await,
            Step::Committed(point) => {
                self.last_commit = point;
                self.passed = self.passed.max(point.end_lsn);
                if self.router.has_changes() {
                    if self.waiting_since.is_none() {
                        self.waiting_since = Some(Instant::now());
                    }
                    self.oldest_commit.get_or_insert(point.commit_time);
                } else {
                    self.confirm_idle(point.end_lsn).await?;
                }
                Ok(())
            }
            Step::Replay(replay) => self.replay(*replay).await,
            Step::Announced(columns) => self.take_announced(*columns).await,
            // The message was given again by whoever reshaped the table; it cannot ask for that twice.
            Step::Reshape(relation) => {
                self.reload(relation, "its columns change faster than they are read").await
            }
            Step::Stopped(relation, error) => self.halt(relation, error_chain(&error)).await,
        }
    }

    async fn replay(&mut self, mut replay: TransactionReplay) -> Result<(), SyncError> {
        let mut message = Vec::new();
        while let Some(subxid) = replay.messages.next(&mut message).map_err(SyncError::Spool)? {
            let bytes = Bytes::copy_from_slice(&message);
            let step = match self.router.replay_message(&replay, subxid, &bytes)? {
                Step::Reshape(relation) => {
                    self.reshape(relation).await?;
                    self.router.replay_message(&replay, subxid, &bytes)?
                }
                step => step,
            };
            if !matches!(step, Step::Continue) {
                Box::pin(self.step(step)).await?;
            }
        }
        match self.router.replay_done(&replay) {
            Step::Committed(point) => Box::pin(self.step(Step::Committed(point))).await,
            _ => Ok(()),
        }
    }

    /// Hands full builders to their tables.
    async fn hand_over(&mut self) -> Result<(), SyncError> {
        for (relation, changes) in self.router.hand_over() {
            self.apply(relation, changes).await?;
        }
        Ok(())
    }

    async fn apply(&mut self, relation: u32, changes: Batch) -> Result<(), SyncError> {
        if let Some(table) = self.tables.get(&relation) {
            let letters = self.router.take_dead_letters(relation);
            self.sync.dead_letters.record(&table.planned, letters, self.last_commit.end_lsn).await?;
            if let Some(writer) = &table.writer
                && let Err(gone) = writer.apply(changes).await
                && self.flight.is_none()
            {
                // With a cut under way the task has ended because of it, and its answer says why.
                return Err(gone);
            }
        }
        Ok(())
    }

    /// A table leaves the stream for good; the others go on.
    async fn halt(&mut self, relation: u32, reason: String) -> Result<(), SyncError> {
        self.router.halt(relation);
        self.points.changed(relation);
        if let Some(table) = self.tables.get_mut(&relation) {
            tracing::error!(table = %table.planned.name, %reason, "table is halted; the others go on");
            if let Some(writer) = table.writer.take() {
                writer.close().await;
            }
            table.loading = false;
            table.clear_at_commit = false;
            table.all_shown().for_each(|shown| shown.show_halted(&reason));
            let reason = Discontinuity::Halted { reason };
            self.state.enter(table.table_ids().map(|id| (id, reason.clone())).collect()).await?;
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        match self.target {
            Target::Shutdown => false,
            Target::Position(position) => {
                // What came later may still wait: under load something always does.
                self.confirmed >= position
                    && self.flight.as_ref().is_none_or(|flight| flight.clear.is_empty())
                    && self.loads.is_empty()
                    // A load that has ended may still wait in the channel to join the stream.
                    && !self.tables.values().any(|table| table.loading)
                    && !self.clearing()
                    && self.look.is_none()
            }
        }
    }

    /// Stops cleanly: the transaction being received is finished, cut, committed and confirmed.
    async fn stop(&mut self) -> Result<(), SyncError> {
        let deadline = tokio::time::Instant::now() + LAST_TRANSACTION;
        while !self.router.between_transactions() {
            tokio::select! {
                event = self.stream.next() => self.event(event?).await?,
                () = tokio::time::sleep_until(deadline) => return Ok(()),
            }
        }
        for _ in 0..2 {
            // First what is on its way, then what came after it.
            while self.flight.is_some() {
                let answer = tokio::select! {
                    answer = next_answer(&mut self.flight) => answer,
                    () = tokio::time::sleep_until(deadline) => {
                        tracing::warn!(database = %self.sync.database, "the lake does not answer; what is not committed is sent again after the next start");
                        return Ok(());
                    }
                };
                self.answered(answer).await?;
            }
            if self.waiting_since.is_some() && self.last_commit.end_lsn >= self.first_cut {
                self.cut().await?;
            }
        }
        Ok(())
    }

    async fn tick(&mut self) -> Result<(), SyncError> {
        self.ticks += 1;
        let in_flight = self.flight.as_ref().and_then(|flight| flight.oldest_commit);
        let oldest_commit = in_flight.or(self.oldest_commit);
        let idle = oldest_commit.is_none() && self.flight.is_none();
        let lag_bytes = if idle { 0 } else { self.source_end.bytes_since(self.confirmed) };
        let lag_seconds = oldest_commit.map_or(0.0, seconds_since);
        for (relation, table) in &self.tables {
            // What was set aside during its load is not committed yet, and the slot does not wait for it.
            let lands = |flight: &Flight| flight.clear.contains(relation);
            if table.clear_at_commit || self.flight.as_ref().is_some_and(lands) {
                continue;
            }
            for shown in table.all_shown() {
                shown.show_lag(self.confirmed, lag_bytes, lag_seconds);
            }
        }
        self.reap_comparisons();
        if self.ticks % SOURCE_TICKS == 1 {
            self.look_at_source().await?;
        }
        Ok(())
    }

    /// What the slot retains at the source, and whether there are other tables now; and a heartbeat, so
    /// that WAL of other databases does not pile up behind an idle slot.
    async fn look_at_source(&mut self) -> Result<(), SyncError> {
        self.sync.retained_wal.look(&self.sync, &self.client, &self.slot).await?;
        self.look_at_catalog().await?;
        if self.oldest_commit.is_none() {
            postgres_connector::heartbeat(&self.client).await?;
        }
        Ok(())
    }
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// Seconds between 1970-01-01 and 2000-01-01, where Postgres counts from.
const POSTGRES_EPOCH: f64 = 946_684_800.0;

fn seconds_since(commit_time: i64) -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    (now - POSTGRES_EPOCH - commit_time as f64 / 1e6).max(0.0)
}
