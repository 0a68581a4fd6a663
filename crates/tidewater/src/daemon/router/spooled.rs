//! Messages that wait in a table's own spool while it is loaded, and what stands before each.

use crate::daemon::SyncError;
use crate::daemon::spool::Spool;
use bytes::Bytes;
use wal_decoder::{ChangeOrigin, Lsn, PgTimestamp};

/// How many bytes stand before a message in a table's own spool: when its transaction was committed, its id, and
/// the change's number in it.
pub(super) const SPOOLED_ORIGIN: usize = 20;

/// Marks a spooled message that carries a transaction id. No LSN reaches 2^63.
pub(super) const CHUNKED: u64 = 1 << 63;

pub(super) fn tag(lsn: Lsn, xid: Option<u32>) -> u64 {
    lsn.0 | if xid.is_some() { CHUNKED } else { 0 }
}

/// Sets a message aside with where it comes from.
pub(super) fn push_to(
    spool: &mut Spool,
    tag: u64,
    origin: ChangeOrigin,
    message: &[u8],
) -> Result<(), SyncError> {
    let mut record = Vec::with_capacity(SPOOLED_ORIGIN + message.len());
    record.extend(origin.commit_time.0.to_le_bytes());
    record.extend(origin.xid.to_le_bytes());
    record.extend(origin.seq.to_le_bytes());
    record.extend_from_slice(message);
    spool.push(tag, &record).map_err(SyncError::Spool)
}

/// What [`push_to`] put before a message.
pub(super) fn spooled_origin(commit_lsn: Lsn, bytes: &[u8]) -> ChangeOrigin {
    let parts = || {
        let (time, rest) = bytes.split_first_chunk::<8>()?;
        let (xid, seq) = rest.split_first_chunk::<4>()?;
        let seq = seq.first_chunk::<8>()?;
        Some((i64::from_le_bytes(*time), u32::from_le_bytes(*xid), i64::from_le_bytes(*seq)))
    };
    // Our own file of this very run: it has what was put there.
    let (time, xid, seq) = parts().unwrap_or_default();
    ChangeOrigin { commit_lsn, commit_time: PgTimestamp(time), xid, seq }
}

/// A Relation message as it would stand outside a chunk: the transaction id (four bytes after the
/// kind) left out, so that it parses the same wherever it is kept.
pub(super) fn plain_relation(bytes: &Bytes, xid: Option<u32>) -> Bytes {
    match (xid, bytes.split_first_chunk::<5>()) {
        (Some(_), Some(([kind, ..], rest))) => {
            let mut plain = Vec::with_capacity(1 + rest.len());
            plain.push(*kind);
            plain.extend_from_slice(rest);
            plain.into()
        }
        // Kept for as long as the relation is known: not as a slice of a whole read buffer.
        _ => Bytes::copy_from_slice(bytes),
    }
}
