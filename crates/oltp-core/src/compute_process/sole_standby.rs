//! Nobody stands in for the keepers.
//!
//! Postgres lets a commit return once *a* walsender of the keepers' name has confirmed it. The gateway lets nobody have that
//! name (`replication_guard.rs`), and physical replication is closed to all roles but ours (`initdb`). One way is left: a
//! subscription of a database to its own server comes through the socket, past the gateway, with an `application_name` of
//! its owner's choice. No rule of Postgres's can tell it from a session of the gateway, so it is looked for and ended: before
//! the branch takes sessions, and every few seconds after. Between its coming and its end it confirms nothing as long as
//! our own session is there and came first, for of equal names the first walsender counts (`syncrep.c`).

use tokio_postgres::Client;

use super::server::SUPERUSER;
use crate::wal_keeper::STANDBY_NAME;
use crate::{CoreError, Result};

/// Ends every walsender called `$1` that is not of role `$2`, and returns once they are gone, or after five seconds.
const END: &str = "\
    SELECT pid, usename::text, pg_catalog.pg_terminate_backend(pid, 5000) FROM pg_catalog.pg_stat_replication \
    WHERE pg_catalog.lower(application_name) = $1 AND usename IS DISTINCT FROM $2";

/// Ends whoever calls itself what only the compute may.
///
/// # Errors
/// The server refuses.
pub(super) async fn defend(client: &Client, project: &str) -> Result<()> {
    let failed = || CoreError::statement(project, "look for walsenders with the keepers' name");
    for row in client.query(END, &[&STANDBY_NAME, &SUPERUSER]).await.map_err(failed())? {
        let (pid, role): (i32, Option<String>) =
            (row.try_get(0).map_err(failed())?, row.try_get(1).map_err(failed())?);
        tracing::warn!(%project, pid, role, "a walsender called itself {STANDBY_NAME} and was ended");
    }
    Ok(())
}
