//! Tables that are being loaded, beside the stream that goes on.
//!
//! All that have to be loaded share one snapshot and one task ([`first_load`]). Until a table's load is in the
//! lake, the router sets its changes aside; then they follow, and the table is live like the others.

use super::StreamLoop;
use crate::daemon::SyncError;
use crate::daemon::error::error_chain;
use crate::daemon::first_load::{self, LoadFailed, Loaded};
use crate::daemon::router::Step;
use crate::status::TableState;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::time::Instant;

impl StreamLoop {
    pub(super) fn begin_loads(&mut self) {
        if self.to_load.is_empty() || !self.loads.is_empty() {
            return;
        }
        let mut requests = Vec::new();
        for relation in std::mem::take(&mut self.to_load) {
            if let Some(table) = self.tables.get(&relation) {
                let estimated = table.planned.source.estimated_rows;
                let state = TableState::of_load(table.in_lake, 0, estimated);
                table.all_shown().for_each(|shown| shown.show(state));
                requests.push(table.load_request(&self.sync));
            }
        }
        let sessions = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        let slot = self.load_slot.clone();
        let (source, publications) = (self.sync.source.clone(), self.sync.publications());
        let gate = self.sync.gate.clone();
        let loaded = self.loaded.0.clone();
        self.loads.spawn(first_load::load((source, gate), publications, slot, requests, sessions, loaded));
    }

    /// A table's load is in the lake: what was set aside meanwhile follows, then it is live.
    pub(super) async fn join_stream(&mut self, loaded: Loaded) -> Result<(), SyncError> {
        let relation = loaded.planned.relation;
        let Some(table) = self.tables.get_mut(&relation) else { return Ok(()) };
        let Some(spool) = self.router.take_spool(relation) else { return Ok(()) };
        table.planned = loaded.planned;
        let from = [loaded.snapshot; 2];
        table.follow(loaded.table, loaded.history, from, &self.sync.upkeep, &self.tasks);
        table.loading = false;
        table.in_lake = true;
        table.mend = table.planned.can_be_mended();
        table.clear_at_commit = true;
        let (schema, options) = (table.planned.schema.clone(), table.planned.builder.clone());
        tracing::info!(table = %table.planned.name, changes = spool.messages(), "joining the stream");
        self.router.go_live(relation, schema, options, loaded.snapshot);
        self.first_cut = self.first_cut.max(loaded.snapshot);
        // Whatever was confirmed was received: a cut may be there, also when nothing was committed since.
        self.last_commit.end_lsn = self.last_commit.end_lsn.max(self.confirmed);
        self.overtake_look(relation);

        let mut reader = spool.into_reader().map_err(SyncError::Spool)?;
        let mut message = Vec::new();
        while let Some(tag) = reader.next(&mut message).map_err(SyncError::Spool)? {
            let bytes = Bytes::copy_from_slice(&message);
            let step = match self.router.spooled_message(relation, tag, &bytes)? {
                Step::Reshape(relation) => {
                    self.reshape(relation).await?;
                    self.router.spooled_message(relation, tag, &bytes)?
                }
                step => step,
            };
            self.step(step).await?;
        }
        // Even without changes a cut follows: with it the table leaves `sync_state.json`.
        self.waiting_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    pub(super) async fn load_ended(
        &mut self,
        ended: Result<Result<BTreeSet<u32>, LoadFailed>, tokio::task::JoinError>,
    ) -> Result<(), SyncError> {
        let LoadFailed { relation, error } = match ended {
            Ok(Ok(left)) => {
                self.to_load.extend(left);
                return Ok(());
            }
            Ok(Err(failed)) => failed,
            Err(_) => return Err(SyncError::WriterGone),
        };
        match relation {
            // Its columns were others when the load was planned.
            Some(_) if matches!(&error, SyncError::Source(source) if source.is_unknown_name()) => {
                Err(SyncError::TablesChanged)
            }
            Some(relation) if !error.is_passing() => {
                self.plan_anew_if_changed(relation).await?;
                self.halt(relation, error_chain(&error)).await?;
                // The others' load ended with it: they start over from another snapshot.
                self.to_load =
                    self.tables.iter().filter(|(_, table)| table.loading).map(|(id, _)| *id).collect();
                Ok(())
            }
            _ => Err(error),
        }
    }
}
