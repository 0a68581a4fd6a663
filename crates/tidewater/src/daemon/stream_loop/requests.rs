//! What people ask of a table while the stream goes on: pause, resume, resync.
//!
//! A table leaves the stream between two messages, and the others do not notice:
//!
//! ```text
//!   wait for the cut under way ─▶ name the table in sync_state.json ─▶ drop its changes from here on ─▶ close it
//!                                 (before the slot can move past it)
//! ```
//!
//! A paused table never holds the slot, unless asked: its changes are dropped, and resuming compares it with the
//! source. Held, the slot is not confirmed at all until it resumes; then the stream begins again where the slot is,
//! the other tables drop what they have, and the resumed one lacks nothing.

use super::StreamLoop;
use super::cuts::next_answer;
use crate::daemon::SyncError;
use crate::daemon::sync_state::Discontinuity;
use crate::requests::{Request, TableRequest};
use crate::status::TableState;

impl StreamLoop {
    /// Takes up a request.
    pub(super) async fn request(&mut self, request: Request) -> Result<(), SyncError> {
        let (table, request) = match request {
            Request::Table { table, request } => (table, request),
            Request::Verify(verification) => {
                self.verifier.request(verification);
                return Ok(());
            }
        };
        let Some(relation) = self.tables.iter().find(|(_, live)| live.is_called(&table)).map(|(id, _)| *id)
        else {
            tracing::warn!(database = %self.sync.database, %table, ?request, "this table is not synced any more");
            return Ok(());
        };
        tracing::info!(database = %self.sync.database, %table, ?request, "asked for");
        match request {
            TableRequest::Pause { hold } => self.pause(relation, hold).await,
            TableRequest::Resume => self.resume(relation).await,
            TableRequest::Resync => self.resync(relation).await,
        }
    }

    /// Waits until the cut under way has landed.
    pub(super) async fn land(&mut self) -> Result<(), SyncError> {
        while self.flight.is_some() {
            let answer = next_answer(&mut self.flight).await;
            self.answered(answer).await?;
        }
        Ok(())
    }

    /// Takes a table out of the stream: it stays at its version, for the reason that is kept of it.
    async fn leave_stream(&mut self, relation: u32, reason: Discontinuity) -> Result<(), SyncError> {
        self.land().await?;
        let Some(table) = self.tables.get_mut(&relation) else { return Ok(()) };
        self.state.enter(table.table_ids().map(|id| (id, reason.clone())).collect()).await?;
        self.router.halt(relation);
        self.points.changed(relation);
        table.clear_at_commit = false;
        if let Some(writer) = table.writer.take() {
            // Whoever opens the table next must find it closed.
            writer.close().await;
        }
        Ok(())
    }

    async fn pause(&mut self, relation: u32, hold: bool) -> Result<(), SyncError> {
        let Some(table) = self.tables.get(&relation) else { return Ok(()) };
        if table.loading {
            // Its load would join the stream behind the pause's back.
            tracing::warn!(table = %table.planned.name, "a table that is being loaded cannot be paused: ask again once it streams");
            return Ok(());
        }
        if hold {
            self.held.insert(relation);
        }
        self.leave_stream(relation, Discontinuity::Paused { hold }).await?;
        if let Some(table) = self.tables.get(&relation) {
            table.all_shown().for_each(|shown| shown.show(TableState::Paused));
        }
        Ok(())
    }

    async fn resume(&mut self, relation: u32) -> Result<(), SyncError> {
        let Some(table) = self.tables.get(&relation) else { return Ok(()) };
        let ids: Vec<String> = table.table_ids().collect();
        match ids.iter().filter_map(|id| self.state.discontinuity(id)).max() {
            Some(Discontinuity::Paused { hold: true }) => {
                // The slot has every change since: streaming begins again from there.
                self.land().await?;
                self.state.clear(&ids).await?;
                Err(SyncError::TablesChanged)
            }
            Some(Discontinuity::Paused { hold: false }) => self.resync(relation).await,
            _ => Ok(()),
        }
    }

    /// Has a table compared with its source, or loaded, from a new snapshot.
    async fn resync(&mut self, relation: u32) -> Result<(), SyncError> {
        if self.tables.get(&relation).is_none_or(|table| table.loading) {
            return Ok(());
        }
        self.leave_stream(relation, Discontinuity::Stale).await?;
        self.held.remove(&relation);
        self.router.start_loading(relation)?;
        if let Some(table) = self.tables.get_mut(&relation) {
            table.loading = true;
            table.all_shown().for_each(|shown| shown.show(TableState::Waiting));
        }
        self.to_load.push(relation);
        Ok(())
    }
}
