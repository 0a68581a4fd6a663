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

/// The slot that needs the oldest catalogs, and how old.
const HINDMOST: &str = "\
    SELECT slot_name::text, catalog_xmin::text FROM pg_catalog.pg_replication_slots \
    WHERE slot_type = 'logical' AND NOT temporary AND catalog_xmin IS NOT NULL AND wal_status <> 'lost' \
    ORDER BY pg_catalog.age(catalog_xmin) DESC LIMIT 1";

const COPY: &str =
    "SELECT FROM pg_catalog.pg_copy_logical_replication_slot($1::text::name, $2::text::name, true)";

/// Drops a slot, if it is there.
const DROP: &str = "\
    SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
    WHERE slot_name = $1::text::name";

/// What is held, by the session that all of this goes through: temporary slots end with it.
#[derive(Debug, Default)]
pub(crate) struct CatalogHorizon {
    /// Which name holds for the newest manifest, and since which transaction; nothing without slots.
    newest: usize,
    held: Option<String>,
    /// What the cut under way needs, when that is something else.
    coming: Option<Option<String>>,
}

impl CatalogHorizon {
    /// Holds what the slots need as they are now, beside what is held already. Goes before a cut, so that what the cut
    /// has of the slots needs nothing older. A slot that cannot be copied is not worth a cut: it is said, and risked.
    pub(crate) async fn hold(&mut self, client: &Client, project: &str) {
        if let Err(error) = self.try_hold(client, project).await {
            let error = super::control::chain(&error);
            tracing::warn!(%project, %error, "after a crash before the next cut a replication slot may lack catalog rows");
        }
    }

    async fn try_hold(&mut self, client: &Client, project: &str) -> Result<()> {
        let failed = || CoreError::statement(project, "hold back vacuum for its replication slots");
        // Of a cut that failed; its copy goes before the next one.
        self.coming = None;
        let hindmost = client.query_opt(HINDMOST, &[]).await.map_err(failed())?;
        let hindmost: Option<(String, String)> = match hindmost {
            Some(row) => Some((row.try_get(0).map_err(failed())?, row.try_get(1).map_err(failed())?)),
            None => None,
        };
        let since = hindmost.as_ref().map(|(_, since)| since.clone());
        if since == self.held {
            // Nothing has moved, and nothing is written: a database where nothing happens needs no cut.
            return Ok(());
        }
        let name = NAMES.get(1 - self.newest).copied().unwrap_or_default();
        client.execute(DROP, &[&name]).await.map_err(failed())?;
        if let Some((slot, _)) = hindmost {
            client.execute(COPY, &[&slot, &name]).await.map_err(failed())?;
        }
        self.coming = Some(since);
        Ok(())
    }

    /// The manifest of the cut is published: what was held for the one before it may go.
    ///
    /// # Errors
    /// The server refuses.
    pub(crate) async fn published(&mut self, client: &Client, project: &str) -> Result<()> {
        let Some(held) = self.coming.take() else { return Ok(()) };
        let old = NAMES.get(self.newest).copied().unwrap_or_default();
        (self.newest, self.held) = (1 - self.newest, held);
        let failed = CoreError::statement(project, "let vacuum go on");
        client.execute(DROP, &[&old]).await.map(drop).map_err(failed)
    }
}
