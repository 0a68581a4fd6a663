//! A sign of life in the WAL.
//!
//! When the published tables are idle and others are not, nothing in the stream would carry a position for us to confirm
//! and the slot would hold ever more WAL. A logical message does, without a table, a trigger or a transaction.

use crate::client::Client;
use crate::error::Result;
use crate::slot::current_wal_lsn;
use wal_decoder::Lsn;

/// The prefix of Tidewater's logical messages.
pub const HEARTBEAT_PREFIX: &str = "tidewater";

/// Writes a logical message with no content and returns its position. It stands outside any transaction, so it passes
/// through the stream at once and alone, and reading it changes nothing. Every role may do this unless EXECUTE on
/// `pg_logical_emit_message` was revoked from PUBLIC. A standby cannot: it gets its server's position instead.
pub async fn heartbeat(client: &Client) -> Result<Lsn> {
    let doing = "writing a heartbeat";
    let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN NULL \
               ELSE pg_logical_emit_message(false, $1::text, ''::text) END::text";
    let written: Option<String> = client
        .query_one(sql, &[&HEARTBEAT_PREFIX])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|source| client.error(doing, source))?;
    match written.and_then(|text| text.parse().ok()) {
        Some(lsn) => Ok(lsn),
        None => current_wal_lsn(client).await,
    }
}
