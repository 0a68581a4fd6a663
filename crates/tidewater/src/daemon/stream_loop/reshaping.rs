//! Tables whose source changes its shape, while they follow the stream.
//!
//! The stream describes a table before the first row after a change, and the catalog says which attribute numbers
//! those columns have. Where the two agree, the table takes its new shape between the row before and the row after:
//!
//! ```text
//!   row  row  │ Relation │  row  row            catalog as of a later moment
//!   ──────────┴─────┬────┴───────────              │
//!     old shape     └── same names and types? ─────┤ yes: new shape, in the same Delta version
//!                                                  └ no: the table is loaded anew
//! ```
//!
//! Where the source has our event trigger, a message in the stream says the numbers itself, and no catalog is asked: then
//! several changes with rows in between, inside one transaction too, are each followed at their place.
//!
//! A change that no row follows is found by looking at the catalog now and then. What a look found counts once the
//! stream has passed the position at which it was made: by then every row before the change has been taken.

use super::StreamLoop;
use crate::config::Mode;
use crate::daemon::SyncError;
use crate::daemon::plan::{PlannedTable, plan_announced};
use crate::daemon::source_shape::{self, Change};
use crate::daemon::sync_state::Discontinuity;
use delta_writer::{ColumnOrigin, Reshape, TableKind};
use postgres_connector::AnnouncedColumns;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wal_decoder::{Lsn, TypeCatalog};

/// How long a committed change may be missing from the catalog: the WAL shows a commit a moment before other sessions
/// see it, and with a synchronous standby only once that has answered.
const CATALOG_PATIENCE: Duration = Duration::from_secs(10);
const CATALOG_RETRY: Duration = Duration::from_millis(20);

/// What the catalog showed at one moment.
#[derive(Debug)]
pub struct Look {
    /// Later than everything the catalog showed.
    pub position: Lsn,
    /// Tables, as planned from it.
    pub planned: Vec<PlannedTable>,
    /// Some table's part of it counts no more.
    pub overtaken: bool,
}

impl StreamLoop {
    /// Gives a table the shape that the stream has just described. Afterwards its next row fits, or this is an error.
    pub(super) async fn reshape(&mut self, relation: u32) -> Result<(), SyncError> {
        let deadline = Instant::now() + CATALOG_PATIENCE;
        loop {
            let Some(described) = self.router.relation(relation) else { return Ok(()) };
            let described = described.clone();
            let plan = self.sync.plan(&self.client, self.state.folders()).await?;
            let Some(live) = self.tables.get(&relation) else { return Ok(()) };
            let Some(mut now) = plan.into_iter().find(|table| table.relation == relation) else {
                return self.reload(relation, "it is no longer among the tables to sync").await;
            };
            source_shape::keep_choices(&mut now, &live.planned);
            let change = source_shape::change(&live.planned, &now);
            if source_shape::is_described(&described, &now) {
                return match change {
                    Change::Follow(origins) if self.router.fits(relation, &now.schema, &now.builder) => {
                        self.take_shape(relation, now, origins).await
                    }
                    Change::Reload(reason) | Change::Unclear(reason) => self.reload(relation, &reason).await,
                    Change::Follow(_) | Change::None => {
                        self.reload(relation, "its key or replica identity is another one").await
                    }
                };
            }
            if !matches!(change, Change::None) || Instant::now() >= deadline {
                return self.reload(relation, "its columns have changed again since").await;
            }
            tokio::time::sleep(CATALOG_RETRY).await;
        }
    }

    /// Takes over the columns that the source's event trigger announces, where they say enough. Where they do not, the
    /// table's next row or the next look at the catalog does.
    pub(super) async fn take_announced(&mut self, announced: AnnouncedColumns) -> Result<(), SyncError> {
        let relation = announced.relation;
        let types = Arc::new(TypeCatalog::new(postgres_connector::read_types(&self.client).await?));
        let Some(live) = self.tables.get(&relation) else { return Ok(()) };
        if live.writer.is_none() {
            return Ok(());
        }
        let Some(mut now) = plan_announced(&self.sync.entries, &live.planned, announced, types) else {
            return Ok(());
        };
        source_shape::keep_choices(&mut now, &live.planned);
        match source_shape::announced_change(&live.planned, &now) {
            Change::None => Ok(()),
            Change::Follow(origins) => self.take_shape(relation, now, origins).await,
            Change::Reload(reason) | Change::Unclear(reason) => self.reload(relation, &reason).await,
        }
    }

    /// Everything before this is in the old shape, everything after it in the new one.
    async fn take_shape(
        &mut self,
        relation: u32,
        now: PlannedTable,
        origins: Vec<ColumnOrigin>,
    ) -> Result<(), SyncError> {
        let Some(live) = self.tables.get(&relation) else { return Ok(()) };
        let definition = source_shape::definition(&now, &live.table_id);
        if now.kind == TableKind::Multiset {
            let before = source_shape::definition(&live.planned, &live.table_id);
            if !source_shape::have_same_columns(&before, &definition) {
                let reason = "columns of a table without a key do not change in place";
                return self.reload(relation, reason).await;
            }
        }
        let known = live.planned.schema.columns.len();
        let of_history = live.history.as_ref().map(|beside| {
            let definition = source_shape::history_definition(&now, &beside.table_id);
            source_shape::history_reshape(definition, &origins, known)
        });
        let own = match now.mode {
            Mode::History => source_shape::history_reshape(definition, &origins, known),
            Mode::Mirror | Mode::Both => Reshape { definition, origins },
        };
        self.hand_over().await?;
        if let Some(changes) = self.router.take(relation) {
            self.apply(relation, changes).await?;
        }
        let Some(live) = self.tables.get_mut(&relation) else { return Ok(()) };
        let Some(writer) = &live.writer else { return Ok(()) };
        tracing::info!(table = %live.shown.table, columns = now.schema.columns.len(), "table takes its source's new shape");
        // Outside of a transaction it is later than all that a table holds.
        let at = self.router.commit_under_way().unwrap_or(Lsn(u64::MAX));
        let handed = writer.reshape(own, of_history, at).await;
        // With a cut under way the task may have ended because of it: its answer says why.
        if self.flight.is_none() {
            handed?;
        }
        self.router.reshape(relation, now.schema.clone(), now.builder.clone());
        live.planned = now;
        self.overtake_look(relation);
        self.waiting_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Plans everything anew; the table, named as discontinuous, is loaded then and replaced in one commit.
    pub(super) async fn reload(&mut self, relation: u32, reason: &str) -> Result<(), SyncError> {
        let Some(table) = self.tables.get(&relation) else { return Ok(()) };
        self.state.enter(table.table_ids().map(|id| (id, Discontinuity::Stale)).collect()).await?;
        Err(SyncError::Reload { table: table.shown.table.clone(), reason: reason.to_owned() })
    }

    /// Looks at the catalog, unless an earlier look has not been taken yet.
    pub(super) async fn look_at_catalog(&mut self) -> Result<(), SyncError> {
        if self.look.is_some() {
            return Ok(());
        }
        let planned = self.sync.plan(&self.client, self.state.folders()).await?;
        let names: BTreeSet<(u32, String)> =
            planned.iter().map(|table| (table.relation, table.name.clone())).collect();
        if names != self.names {
            return Err(SyncError::TablesChanged);
        }
        let position = postgres_connector::current_wal_lsn(&self.client).await?;
        self.look = Some(Look { position, planned, overtaken: false });
        Ok(())
    }

    /// The stream has told more of a table than a look made before: taken now, the look would turn it back.
    pub(super) fn overtake_look(&mut self, relation: u32) {
        if let Some(look) = &mut self.look {
            look.planned.retain(|table| table.relation != relation);
            look.overtaken = true;
        }
    }

    /// Follows what a look at the catalog found, once the stream has passed it.
    pub(super) async fn take_look(&mut self) -> Result<(), SyncError> {
        let passed = self.router.between_transactions() && self.passed >= self.first_cut;
        let Some(look) = self.look.take_if(|look| passed && self.passed >= look.position) else {
            return Ok(());
        };
        for mut now in look.planned {
            let relation = now.relation;
            let Some(live) = self.tables.get(&relation) else { continue };
            if live.writer.is_none() || live.loading {
                continue;
            }
            source_shape::keep_choices(&mut now, &live.planned);
            match source_shape::change(&live.planned, &now) {
                Change::None => {}
                Change::Follow(origins) => self.take_shape(relation, now, origins).await?,
                Change::Reload(reason) | Change::Unclear(reason) => self.reload(relation, &reason).await?,
            }
        }
        if look.overtaken {
            self.look_at_catalog().await?;
            // Something behind it, so that an idle source reports that it has come so far.
            postgres_connector::heartbeat(&self.client).await?;
        }
        Ok(())
    }

    /// A change that a table cannot take may be the consequence of one that the stream does not show, such as rows
    /// that came with an attached partition: then it is loaded anew.
    pub(super) async fn reload_if_changed_unseen(&mut self, relation: u32) -> Result<(), SyncError> {
        match self.change_since(relation).await? {
            Change::Reload(reason) | Change::Unclear(reason) => self.reload(relation, &reason).await,
            Change::None | Change::Follow(_) => Ok(()),
        }
    }

    /// A load that fails because its table changed under it starts over.
    pub(super) async fn plan_anew_if_changed(&mut self, relation: u32) -> Result<(), SyncError> {
        match self.change_since(relation).await? {
            Change::None => Ok(()),
            Change::Follow(_) | Change::Unclear(_) | Change::Reload(_) => Err(SyncError::TablesChanged),
        }
    }

    /// What the catalog shows now, compared with the shape a table has.
    async fn change_since(&mut self, relation: u32) -> Result<Change, SyncError> {
        let plan = self.sync.plan(&self.client, self.state.folders()).await?;
        let Some(live) = self.tables.get(&relation) else { return Ok(Change::None) };
        let Some(mut now) = plan.into_iter().find(|table| table.relation == relation) else {
            return Ok(Change::Reload("it is no longer among the tables to sync".to_owned()));
        };
        source_shape::keep_choices(&mut now, &live.planned);
        Ok(source_shape::change(&live.planned, &now))
    }
}
