//! The WAL itself, byte for byte, as a standby receives it.
//!
//! ```text
//!   PhysicalSession ── identify_system ── start(from, timeline) ──> PhysicalStream ── next ──> PhysicalEvent
//!                                                                        └─ report(flushed) ──> server
//! ```
//!
//! Commits wait for what is reported here when the session's `application_name` stands in
//! `synchronous_standby_names`. So there is no task between the socket and the caller, as in a logical stream: each
//! would add to every commit's wait. The caller waits for [`PhysicalStream::next`] and reports from the same task; it
//! has to report at least every few seconds, or `wal_sender_timeout` ends the stream.
//!
//! The one rule: what is reported as flushed is reported as written too, and never more than that. A session with
//! `synchronous_commit = remote_write` then waits for exactly what all others wait for.

use crate::error::{Error, Place, Result};
use crate::replication_session::SystemIdentity;
use crate::source_config::SourceConfig;
use crate::standby_status::standby_status;
use crate::wire::{HEADER_BYTES, Reply, Wire, broken, server_error, whole_message};
use crate::wire_session::{Backend, COMMAND_TIMEOUT, WireSession};
use bytes::{Buf, Bytes};
use postgres_protocol::message::backend::Message;
use std::io;
use std::time::Duration;
use tokio::time::timeout;
use wal_decoder::Lsn;

/// A walsender sends at most 128 KiB of WAL at once (`MAX_SEND_SIZE`); errors are shorter still.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Room for two full messages.
const READ_BYTES: usize = 256 << 10;
/// A server that takes none of our few bytes for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

const DOING: &str = "streaming the WAL";

/// What the stream brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PhysicalEvent {
    /// The bytes of WAL from `start` on. They follow those of the event before without a gap, and need not end at a record.
    Wal {
        /// The position of the first byte.
        start: Lsn,
        /// The bytes.
        data: Bytes,
    },
    /// Nothing new.
    Keepalive {
        /// Whether the server wants to be told our position now.
        reply_requested: bool,
    },
    /// The server has stopped in order: everything was sent, and our report of it received.
    Ended,
}

/// A session that can only send WAL.
pub struct PhysicalSession {
    session: WireSession,
}

impl PhysicalSession {
    /// Opens a session of a standby's kind. The configured database plays no part.
    pub async fn connect(config: &SourceConfig) -> Result<PhysicalSession> {
        Ok(PhysicalSession { session: WireSession::connect(config, Backend::PhysicalReplication).await? })
    }

    /// IDENTIFY_SYSTEM.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        self.session.identify_system().await
    }

    /// Turns the session into the stream of WAL from `from` on.
    pub async fn start(mut self, from: Lsn, timeline: u32) -> Result<PhysicalStream> {
        let doing = "START_REPLICATION";
        let session = &mut self.session;
        session.send_query(doing, &format!("START_REPLICATION PHYSICAL {from} TIMELINE {timeline}")).await?;
        let reply = timeout(COMMAND_TIMEOUT, session.wire.reply(&session.place, doing)).await;
        match reply.map_err(|_| session.timed_out(doing, COMMAND_TIMEOUT))?? {
            Reply::CopyBoth => {
                let WireSession { wire, place, .. } = self.session;
                Ok(PhysicalStream { wire, place })
            }
            Reply::Message(Message::ErrorResponse(body)) => Err(session.server_error(doing, &body)),
            Reply::Message(other) => Err(session.unexpected(doing, &other)),
        }
    }
}

/// A running stream. Dropping it closes the connection.
pub struct PhysicalStream {
    wire: Wire,
    place: Place,
}

impl PhysicalStream {
    /// The next event. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<PhysicalEvent> {
        loop {
            let total = whole_message(&self.wire.inbox, MAX_MESSAGE_BYTES);
            match total.map_err(|problem| broken(&self.place, problem))? {
                None => self.wire.read(&self.place, DOING, READ_BYTES).await?,
                Some(total) => {
                    let message = self.wire.inbox.split_to(total);
                    if let Some(event) = self.event(message.freeze())? {
                        return Ok(event);
                    }
                }
            }
        }
    }

    /// What a message says. `None`: it means nothing here (a notice, a changed setting).
    fn event(&self, mut message: Bytes) -> Result<Option<PhysicalEvent>> {
        match message.first() {
            Some(b'd') => message.advance(HEADER_BYTES),
            Some(b'c' | b'C') => return Ok(Some(PhysicalEvent::Ended)),
            Some(b'E') => {
                let mut message = bytes::BytesMut::from(message);
                return Err(match Message::parse(&mut message) {
                    Ok(Some(Message::ErrorResponse(body))) => {
                        Error::from_server(&self.place, DOING, server_error(body.fields()))
                    }
                    _ => Error::StreamEnded { place: self.place.name.clone() },
                });
            }
            _ => return Ok(None),
        }
        match message.first() {
            Some(b'w') if message.len() >= 25 => {
                message.advance(1);
                let start = Lsn(message.get_u64());
                // The server's end of WAL and its clock.
                message.advance(16);
                Ok(Some(PhysicalEvent::Wal { start, data: message }))
            }
            Some(b'k') if message.len() == 18 => {
                let reply_requested = message.last() != Some(&0);
                Ok(Some(PhysicalEvent::Keepalive { reply_requested }))
            }
            kind => {
                let problem =
                    format!("copy data of kind {kind:?} and {} bytes in a physical stream", message.len());
                Err(broken(&self.place, problem))
            }
        }
    }

    /// Tells the server that everything below `flushed` is safe: commits that end there return. The future must be
    /// awaited to its end.
    pub async fn report(&mut self, flushed: Lsn) -> Result<()> {
        let lost = |source: io::Error| Error::ConnectionLost {
            place: self.place.name.clone(),
            doing: DOING,
            source,
        };
        let status = standby_status(flushed, flushed).map_err(lost)?;
        match timeout(WRITE_TIMEOUT, self.wire.send(&status)).await {
            Ok(written) => written.map_err(lost),
            Err(_) => {
                Err(Error::Timeout { place: self.place.name.clone(), doing: DOING, after: WRITE_TIMEOUT })
            }
        }
    }
}
