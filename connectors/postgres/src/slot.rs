//! Replication slots as SQL shows them: what they are called, how they fare, who is in their way.
//!
//! A slot's name ends in its *generation*. Each new slot of a database (after a loss, a restore, a failover without
//! slots) gets the next number, so that positions of two unbroken sequences are never mistaken for one.

use crate::client::Client;
use crate::error::{Error, Result, ServerError};
use crate::object_name::object_stem;
use std::time::Duration;
use tokio_postgres::Row;
use wal_decoder::Lsn;

/// `_g` and the ten digits of the largest `u32`.
const SUFFIX_ROOM: usize = 12;

/// The name of a database's slot: `tidewater_<instance>_<database>_g<generation>`, hashed where that would be too long or
/// ambiguous.
pub fn slot_name(instance: &str, database: &str, generation: u32) -> String {
    format!("{}_g{generation}", slot_stem(instance, database))
}

/// What the names of a database's slots begin with.
pub(crate) fn slot_stem(instance: &str, database: &str) -> String {
    object_stem(instance, database, SUFFIX_ROOM)
}

/// Whether a slot's WAL is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond it, but kept.
    Extended,
    /// Beyond `max_slot_wal_keep_size`: gone at the next checkpoint unless the slot moves.
    Unreserved,
    /// Gone.
    Lost,
}

/// One slot of this installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotStatus {
    /// Its name.
    pub name: String,
    /// The number at its name's end.
    pub generation: u32,
    /// The process that reads from it now.
    pub active_pid: Option<u32>,
    /// The oldest WAL it still needs.
    pub restart_lsn: Option<Lsn>,
    /// What was confirmed last.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// Whether its WAL is still there.
    pub wal_status: WalStatus,
    /// How much more WAL may be written before it is in danger; none where there is no limit.
    pub safe_wal_size: Option<i64>,
    /// WAL kept for it, in bytes.
    pub retained_bytes: u64,
    /// Why the server invalidated it (Postgres 17 and later say so).
    pub invalidation_reason: Option<String>,
}

impl SlotStatus {
    /// Whether it can never be read again.
    pub fn is_lost(&self) -> bool {
        self.wal_status == WalStatus::Lost || self.invalidation_reason.is_some()
    }
}

/// The slots of one database of this installation, oldest generation first.
pub async fn list_slots(client: &Client, instance: &str, database: &str) -> Result<Vec<SlotStatus>> {
    let doing = "listing replication slots";
    // Columns that only some versions have are taken out of the row's JSON, null elsewhere.
    let sql = "SELECT s.slot_name::text, s.active_pid, s.restart_lsn::text, s.confirmed_flush_lsn::text, s.wal_status, \
                 s.safe_wal_size, to_jsonb(s) ->> 'invalidation_reason', \
                 greatest(0, (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END \
                   - s.restart_lsn))::int8 \
               FROM pg_replication_slots s \
               WHERE s.slot_type = 'logical' AND s.database = current_database() AND s.slot_name::text ~ $1";
    let pattern = format!("^{}_g[0-9]{{1,10}}$", slot_stem(instance, database));
    let rows = client.query(sql, &[&pattern]).await.map_err(|source| client.error(doing, source))?;
    let mut slots = rows
        .iter()
        .map(|row| slot_status(client, row).map_err(|source| client.error(doing, source)))
        .collect::<Result<Vec<_>>>()?;
    slots.sort_by_key(|slot| slot.generation);
    Ok(slots)
}

fn slot_status(client: &Client, row: &Row) -> std::result::Result<SlotStatus, tokio_postgres::Error> {
    let name: String = row.try_get(0)?;
    let lsn = |text: Option<String>| text.and_then(|text| text.parse().ok());
    let status: Option<String> = row.try_get(4)?;
    Ok(SlotStatus {
        generation: name.rsplit("_g").next().and_then(|digits| digits.parse().ok()).unwrap_or(0),
        active_pid: row.try_get::<_, Option<i32>>(1)?.and_then(|pid| u32::try_from(pid).ok()),
        restart_lsn: lsn(row.try_get(2)?),
        confirmed_flush_lsn: lsn(row.try_get(3)?),
        wal_status: match status.as_deref() {
            Some("reserved") => WalStatus::Reserved,
            Some("extended") => WalStatus::Extended,
            Some("unreserved") => WalStatus::Unreserved,
            Some("lost") => WalStatus::Lost,
            // Null while a slot is being made: nothing is in danger yet.
            other => {
                if let Some(status) = other {
                    tracing::warn!(
                        place = client.place(),
                        slot = name,
                        status,
                        "unknown wal_status of a slot"
                    );
                }
                WalStatus::Reserved
            }
        },
        safe_wal_size: row.try_get(5)?,
        invalidation_reason: row.try_get(6)?,
        retained_bytes: row
            .try_get::<_, Option<i64>>(7)?
            .and_then(|bytes| u64::try_from(bytes).ok())
            .unwrap_or(0),
        name,
    })
}

/// Drops a slot. One that is in use stays, and the error names its process.
pub async fn drop_slot(client: &Client, name: &str) -> Result<()> {
    let doing = "dropping a replication slot";
    let dropped = client.execute("SELECT pg_drop_replication_slot($1::text::name)", &[&name]).await;
    dropped.map(drop).map_err(|source| match source.as_db_error() {
        Some(db) => Error::from_slot_command(client.error_place(), doing, name, ServerError::from(db)),
        None => client.error(doing, source),
    })
}

/// How far the server's WAL is flushed (on a standby: replayed).
pub async fn current_wal_lsn(client: &Client) -> Result<Lsn> {
    let doing = "reading the WAL position";
    let sql = "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)::text";
    let text: Option<String> = client
        .query_one(sql, &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|source| client.error(doing, source))?;
    text.and_then(|text| text.parse().ok()).ok_or_else(|| Error::Protocol {
        place: client.place().to_owned(),
        problem: "its WAL position is no LSN".to_owned(),
    })
}

/// The number drawn when the cluster was made; the same for every clone and branch of it.
pub async fn system_identifier(client: &Client) -> Result<u64> {
    let doing = "reading the system identifier";
    let signed: i64 = client
        .query_one("SELECT system_identifier FROM pg_control_system()", &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|source| client.error(doing, source))?;
    // SQL has no unsigned integers: Postgres shows the same 64 bits as a signed number.
    Ok(signed.cast_unsigned())
}

/// A transaction that must end before a slot is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockingTransaction {
    /// Its transaction id.
    pub xid: String,
    /// Its session; none for a prepared transaction.
    pub pid: Option<i32>,
    /// The prepared transaction's identifier.
    pub prepared_gid: Option<String>,
    /// The session's role.
    pub user: Option<String>,
    /// The session's application name.
    pub application_name: Option<String>,
    /// `active`, `idle in transaction`, … as far as we may see it.
    pub state: Option<String>,
    /// How long the transaction has been open, as far as we may see it.
    pub open_for: Option<Duration>,
}

/// For whom the session with process id `pid` waits, such as one that makes a slot
/// ([`ReplicationSession::backend_pid`](crate::ReplicationSession::backend_pid)).
pub async fn transactions_blocking(client: &Client, pid: i32) -> Result<Vec<BlockingTransaction>> {
    let doing = "looking for open transactions";
    let sql = "SELECT w.transactionid::text, h.pid, p.gid, coalesce(a.usename, p.owner)::text, a.application_name, a.state, \
                 extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8 \
               FROM pg_locks w \
               LEFT JOIN pg_locks h ON h.locktype = 'transactionid' AND h.transactionid = w.transactionid AND h.granted \
               LEFT JOIN pg_stat_activity a ON a.pid = h.pid \
               LEFT JOIN pg_prepared_xacts p ON p.transaction = w.transactionid \
               WHERE w.pid = $1 AND NOT w.granted AND w.locktype = 'transactionid'";
    let read = |row: &Row| -> std::result::Result<BlockingTransaction, tokio_postgres::Error> {
        Ok(BlockingTransaction {
            xid: row.try_get(0)?,
            pid: row.try_get(1)?,
            prepared_gid: row.try_get(2)?,
            user: row.try_get(3)?,
            application_name: row.try_get(4)?,
            state: row.try_get(5)?,
            open_for: row
                .try_get::<_, Option<f64>>(6)?
                .and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok()),
        })
    };
    let rows = client.query(sql, &[&pid]).await.map_err(|source| client.error(doing, source))?;
    rows.iter().map(|row| read(row).map_err(|source| client.error(doing, source))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_name_tells_instance_database_and_generation() {
        assert_eq!(slot_name("main", "shop", 1), "tidewater_main_shop_g1");
    }

    #[test]
    fn long_and_odd_names_give_valid_slots_that_differ() {
        let long = "a".repeat(70);
        let first = slot_name(&long, "Crm-é", u32::MAX);
        let second = slot_name(&long, "Crm-è", u32::MAX);
        assert_ne!(first, second);
        for name in [first, second] {
            assert!(name.len() <= 63, "{name}");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{name}"
            );
        }
    }
}
