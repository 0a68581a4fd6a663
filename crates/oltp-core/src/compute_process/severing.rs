//! Cutting a branch off its parent's world, before anybody works with it.
//!
//! A copy of a database also copies its ties: replication slots that other tools read from the original,
//! subscriptions that would pull and apply a second time, prepared transactions that a coordinator will
//! finish on the original only. A branch begins with none of them. Slots are files and go before
//! Postgres starts; the rest goes by SQL while the server takes nobody else in.

use std::io::ErrorKind;
use std::path::Path;

use tokio_postgres::Client;

use super::server::Server;
use crate::provision::{quote_identifier, quote_literal};
use crate::{CoreError, Result};

/// Removes the inherited slots from the data directory of a server that does not run yet.
///
/// # Errors
/// The files cannot be removed.
pub(crate) fn remove_slots(data: &Path) -> Result<()> {
    let slots = data.join("pg_replslot");
    for entry in std::fs::read_dir(&slots).map_err(CoreError::io("list", &slots))? {
        let path = entry.map_err(CoreError::io("list", &slots))?.path();
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(CoreError::io("remove the inherited slot", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Rolls back prepared transactions and drops subscriptions, in every database.
///
/// # Errors
/// The server refuses.
pub(crate) async fn sever(server: &Server, project: &str, client: &Client) -> Result<()> {
    let failed = |action| CoreError::statement(project, action);
    let ties = client
        .query(
            "SELECT x.database::text, 'ROLLBACK PREPARED', x.gid FROM pg_catalog.pg_prepared_xacts x \
             UNION ALL \
             SELECT d.datname::text, 'DROP SUBSCRIPTION', s.subname::text FROM pg_catalog.pg_subscription s \
             JOIN pg_catalog.pg_database d ON d.oid = s.subdbid ORDER BY 1",
            &[],
        )
        .await
        .map_err(failed("look for inherited subscriptions and prepared transactions"))?;
    for tie in ties {
        let read =
            |column: usize| tie.try_get::<_, String>(column).map_err(failed("read what a branch inherits"));
        let (database, kind, name) = (read(0)?, read(1)?, read(2)?);
        let session = server.connect(&database).await?;
        if kind == "ROLLBACK PREPARED" {
            let statement = format!("ROLLBACK PREPARED {}", quote_literal(&name));
            session
                .batch_execute(&statement)
                .await
                .map_err(failed("roll back an inherited prepared transaction"))?;
        } else {
            // The slot at the publisher is the original's: it stays there.
            let name = quote_identifier(&name);
            for statement in [
                format!("ALTER SUBSCRIPTION {name} DISABLE"),
                format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)"),
                format!("DROP SUBSCRIPTION {name}"),
            ] {
                session.batch_execute(&statement).await.map_err(failed("drop an inherited subscription"))?;
            }
        }
    }
    Ok(())
}
