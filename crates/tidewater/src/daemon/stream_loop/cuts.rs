//! Cuts: when one is due, what lands with it, and when the slot may follow.
//!
//! One cut is under way at a time. Its tables commit side by side; with the last answer it has landed, and only then is the
//! slot confirmed.

use super::StreamLoop;
use super::Target;
use crate::daemon::SyncError;
use crate::daemon::commit_info;
use crate::daemon::crash_point::death_point;
use crate::daemon::live_table::LiveTable;
use crate::daemon::router::CommitPoint;
use crate::daemon::table_writer::Outcome;
use crate::telemetry;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};
use wal_decoder::Lsn;

type Answer = Pin<Box<dyn Future<Output = (u32, Option<Outcome>)> + Send>>;

/// A cut whose commits are under way.
pub(super) struct Flight {
    pub point: CommitPoint,
    began: Instant,
    answers: FuturesUnordered<Answer>,
    /// When its oldest transaction was committed.
    pub oldest_commit: Option<i64>,
    /// Tables that leave `sync_state.json` when it lands.
    pub clear: Vec<u32>,
}

impl StreamLoop {
    pub(super) fn clearing(&self) -> bool {
        self.tables.values().any(|table| table.clear_at_commit)
    }

    pub(super) fn cut_is_due(&self) -> bool {
        if self.flight.is_some() || !self.router.between_transactions() {
            return false;
        }
        let Some(since) = self.waiting_since else { return false };
        self.last_commit.end_lsn >= self.first_cut
            && (since.elapsed() >= self.flush_every()
                || self.router.ops_since_cut() >= self.sync.flush.rows
                || self.router.bytes_since_cut() >= self.sync.flush.bytes.bytes())
    }

    /// How long changes wait for more; not at all once the target is in sight.
    fn flush_every(&self) -> Duration {
        match self.target {
            Target::Position(target) if self.last_commit.end_lsn.max(self.source_end) >= target => {
                Duration::ZERO
            }
            _ => self.sync.flush.every.duration(),
        }
    }

    pub(super) fn flush_due_at(&self) -> Option<Instant> {
        let waiting = self.flight.is_none() && self.router.between_transactions();
        let ready = self.last_commit.end_lsn >= self.first_cut;
        self.waiting_since.filter(|_| waiting && ready).map(|since| since + self.flush_every())
    }

    /// Cuts here for every table with changes, and sends the commits on their way.
    pub(super) async fn cut(&mut self) -> Result<(), SyncError> {
        let point = self.last_commit;
        let mut flight = Flight {
            point,
            began: Instant::now(),
            answers: FuturesUnordered::new(),
            oldest_commit: self.oldest_commit.take(),
            clear: Vec::new(),
        };
        for (relation, changes) in self.router.cut() {
            if let Some(changes) = changes {
                self.apply(relation, changes).await?;
            }
            let Some(table) = self.tables.get(&relation) else { continue };
            let Some(writer) = &table.writer else { continue };
            let spec =
                commit_info::of_stream(&table.app_id, self.confirmed, point.end_lsn, point.commit_time);
            let answer = writer.commit(spec).await?;
            flight.answers.push(Box::pin(async move { (relation, answer.await) }));
        }
        for (relation, table) in &mut self.tables {
            if std::mem::take(&mut table.clear_at_commit) {
                flight.clear.push(*relation);
            }
        }
        self.waiting_since = None;
        self.flight = Some(flight);
        Ok(())
    }

    /// One table of the cut has answered; with the last of them the slot moves.
    pub(super) async fn answered(&mut self, answer: Option<(u32, Option<Outcome>)>) -> Result<(), SyncError> {
        let Some((relation, outcome)) = answer else { return self.landed().await };
        let Some(table) = self.tables.get_mut(&relation) else { return Ok(()) };
        let point = self.flight.as_ref().map_or(self.last_commit, |flight| flight.point);
        match outcome {
            Some(Outcome::Committed { committed, rows }) => {
                let labels =
                    [("database", table.shown.database.clone()), ("table", table.shown.table.clone())];
                metrics::counter!(telemetry::SYNC_ROWS_TOTAL, &labels)
                    .increment(committed.rows_added + committed.rows_deleted);
                table.version = Some(committed.version);
                self.points.changed(relation);
                table.shown.board.update(&table.shown.database, &table.shown.table, |status| {
                    status.position = Some(point.end_lsn);
                    status.version = Some(committed.version);
                    status.rows = Some(rows);
                });
                Ok(())
            }
            Some(Outcome::Unchanged) => Ok(()),
            Some(Outcome::Halted(reason)) => {
                self.reload_if_changed_unseen(relation).await?;
                self.halt(relation, reason).await
            }
            Some(Outcome::Failed(error)) => Err(error),
            None => Err(SyncError::WriterGone),
        }
    }

    async fn landed(&mut self) -> Result<(), SyncError> {
        let Some(flight) = self.flight.take() else { return Ok(()) };
        if !flight.clear.is_empty() {
            let ids: Vec<String> = flight
                .clear
                .iter()
                .filter_map(|relation| self.tables.get(relation))
                .filter(|table| !table.loading)
                .flat_map(LiveTable::table_ids)
                .collect();
            self.state.clear(&ids).await?;
            flight.clear.iter().for_each(|relation| self.points.changed(*relation));
        }
        self.points.landed(flight.point, &self.tables).await?;
        metrics::histogram!(telemetry::SYNC_COMMIT_SECONDS, "database" => self.sync.database.clone())
            .record(flight.began.elapsed().as_secs_f64());
        self.confirm(flight.point.end_lsn).await?;
        Ok(())
    }

    async fn confirm(&mut self, position: Lsn) -> Result<(), SyncError> {
        if position > self.confirmed {
            self.confirmed = position;
            if self.held.is_empty() {
                death_point!("slot-before-confirm");
                self.stream.confirm(position).await?;
                death_point!("slot-after-confirm");
            }
        }
        Ok(())
    }

    /// With nothing received that is not in the lake, the slot may follow the source's idle WAL.
    pub(super) async fn confirm_idle(&mut self, position: Lsn) -> Result<(), SyncError> {
        let idle = self.flight.is_none()
            && !self.router.has_changes()
            && self.router.between_transactions()
            && !self.clearing();
        if idle { self.confirm(position).await } else { Ok(()) }
    }
}

/// The next answer of the cut under way; `None` once all have answered. Never ready without a cut.
pub(super) async fn next_answer(flight: &mut Option<Flight>) -> Option<(u32, Option<Outcome>)> {
    match flight {
        Some(flight) => flight.answers.next().await,
        None => std::future::pending().await,
    }
}
