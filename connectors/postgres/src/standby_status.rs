//! What a receiver of WAL tells the sender: how far it has come.

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;
use std::io;
use std::time::{Duration, SystemTime};
use wal_decoder::Lsn;

/// 2000-01-01 in seconds since 1970: where Postgres counts from.
const POSTGRES_EPOCH_SECONDS: u64 = 946_684_800;

/// A standby status update: written, flushed, applied, the time, and no wish for a reply. What is flushed counts as
/// applied, so that `synchronous_commit = remote_apply` waits for no more than `on` does.
pub(crate) fn standby_status(written: Lsn, flushed: Lsn) -> io::Result<BytesMut> {
    let mut status = BytesMut::with_capacity(34);
    status.put_u8(b'r');
    status.put_u64(written.0);
    status.put_u64(flushed.0);
    status.put_u64(flushed.0);
    status.put_i64(micros_since_2000());
    status.put_u8(0);
    let mut message = BytesMut::new();
    frontend::CopyData::new(status.freeze())?.write(&mut message);
    Ok(message)
}

fn micros_since_2000() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(POSTGRES_EPOCH_SECONDS))
        .ok()
        .and_then(|since| i64::try_from(since.as_micros()).ok())
        .unwrap_or(0)
}
