//! Keeps the catalogs that replication slots need when they come back from a cut.
//!
//! A logical slot decodes old WAL with the catalogs of that time, and Postgres keeps their dead rows from the slot's
//! `catalog_xmin` on. It writes that into the slot's file before it lets vacuum go further, which is enough on a disk of
//! its own. Here a slot comes back as the last published manifest has it, while the WAL that is replayed goes on to the
//! end, vacuums included. So a slot that had moved on since the cut would find rows gone that it needs again:
//!
//! ```text
//!   cut, published            slot moves on        vacuum             crash
//!   slot: catalog_xmin 700    catalog_xmin 900     drops up to 900    slot: 700 again
//!                                                                     "could not map filenumber … to relation OID"
//! ```
//!
//! The invariant: **nothing is vacuumed that a slot of the newest published manifest still needs.** Before each cut the
//! hindmost slot is copied into a temporary one, which holds its `catalog_xmin` (and restart position), and lives until
//! the next manifest is published. Catalogs only: rows of tables are not kept any longer. Where there are no logical
//! slots there is no copy either.

use tokio_postgres::Client;

use crate::{CoreError, Result};

/// Two take turns: one of the newest manifest, one of the cut under way.
const NAMES: [&str; 2] = ["tidewater_horizon_0", "tidewater_horizon_1"];

/// Copies the slot that needs the oldest catalogs; no row, no such slot.
const HOLD: &str = "\
    SELECT pg_catalog.pg_copy_logical_replication_slot(hindmost.slot_name, $1, true) IS NULL FROM \
    (SELECT slot_name FROM pg_catalog.pg_replication_slots \
     WHERE slot_type = 'logical' AND NOT temporary AND catalog_xmin IS NOT NULL AND wal_status <> 'lost' \
     ORDER BY pg_catalog.age(catalog_xmin) DESC LIMIT 1) hindmost";

/// Drops a slot, if it is there.
const RELEASE: &str = "\
    SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";

/// What is held, by the session that all of this goes through: temporary slots end with it.
#[derive(Debug, Default)]
pub(crate) struct CatalogHorizon {
    /// Which name holds for the newest manifest.
    newest: usize,
}

impl CatalogHorizon {
    /// Holds what the slots need as they are now, beside what is held already. Goes before a cut, so that what the cut
    /// has of the slots needs nothing older. A slot that cannot be copied is not worth a cut: it is said, and risked.
    pub(crate) async fn hold(&self, client: &Client, project: &str) {
        if let Err(error) = self.try_hold(client, project).await {
            let error = super::control::chain(&error);
            tracing::warn!(%project, %error, "after a crash before the next cut a replication slot may lack catalog rows");
        }
    }

    async fn try_hold(&self, client: &Client, project: &str) -> Result<()> {
        let name = self.coming();
        // Of a cut that failed.
        release(client, project, name).await?;
        let failed = CoreError::statement(project, "hold back vacuum for its replication slots");
        client.query_opt(HOLD, &[&name]).await.map(drop).map_err(failed)
    }

    /// The manifest of the cut is published: what was held for the one before it may go.
    ///
    /// # Errors
    /// The server refuses.
    pub(crate) async fn published(&mut self, client: &Client, project: &str) -> Result<()> {
        let old = NAMES.get(self.newest).copied().unwrap_or_default();
        self.newest = 1 - self.newest;
        release(client, project, old).await
    }

    fn coming(&self) -> &'static str {
        NAMES.get(1 - self.newest).copied().unwrap_or_default()
    }
}

async fn release(client: &Client, project: &str, name: &str) -> Result<()> {
    let failed = CoreError::statement(project, "let vacuum go on");
    client.execute(RELEASE, &[&name]).await.map(drop).map_err(failed)
}
