//! The rows of one `COPY … TO STDOUT`, straight out of the receive buffer.
//!
//! The server sends every row as a message of its own. They are handed on as they lie in the buffer, as many as
//! have arrived: a chunk costs one reference count, not one per row.
//!
//! ```text
//!   inbox:  d len row │ d len row │ d len row │ d len ro…        a chunk: all whole messages at the front
//!           c len     │ C len …   │ Z len I                      the end: the session can be used again
//! ```

use crate::error::Result;
use crate::wire::{HEADER_BYTES, MAX_MESSAGE_BYTES, Reply, broken, message_length};
use crate::wire_session::WireSession;
use bytes::Bytes;
use postgres_protocol::message::backend::Message;

/// What is asked of the socket at once: a few hundred rows, and well below what loopback hands over.
const READ_BYTES: usize = 256 << 10;
const COPY_DATA: u8 = b'd';

/// A COPY that is being read. See the module's essay.
///
/// Dropped before its end, it leaves the session unusable: the rest of the rows is still on its way.
pub struct CopyOut<'a> {
    session: &'a mut WireSession,
    doing: &'static str,
}

/// Rows' bytes as they arrived.
#[derive(Debug)]
pub struct CopyChunk(Bytes);

impl CopyChunk {
    /// The COPY's own bytes, piece by piece; pieces end where rows do.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            // Measured when the chunk was made.
            let length = message_length(rest, MAX_MESSAGE_BYTES).ok().flatten()?;
            let (message, after) = rest.split_at_checked(length)?;
            rest = after;
            message.get(HEADER_BYTES..)
        })
    }
}

impl<'a> CopyOut<'a> {
    /// Sends the COPY and waits for its beginning.
    pub(crate) async fn begin(
        session: &'a mut WireSession,
        doing: &'static str,
        sql: &str,
    ) -> Result<CopyOut<'a>> {
        session.send_query(doing, sql).await?;
        let mut copy = CopyOut { session, doing };
        match copy.session.wire.reply(&copy.session.place, doing).await? {
            Reply::Message(Message::CopyOutResponse(_)) => Ok(copy),
            Reply::Message(Message::ErrorResponse(body)) => {
                let error = copy.session.server_error(doing, &body);
                copy.settle().await?;
                Err(error)
            }
            other => Err(copy.unexpected(&other)),
        }
    }

    /// The session, once the COPY is over.
    pub(crate) fn session(&mut self) -> &mut WireSession {
        self.session
    }

    /// The next rows; `None` at the end, when the session can be used again.
    pub async fn next(&mut self) -> Result<Option<CopyChunk>> {
        loop {
            let whole = self.whole_rows()?;
            if whole > 0 {
                return Ok(Some(CopyChunk(self.session.wire.inbox.split_to(whole).freeze())));
            }
            if self.session.wire.inbox.first().is_none_or(|&kind| kind == COPY_DATA) {
                self.session.wire.read(&self.session.place, self.doing, READ_BYTES).await?;
                continue;
            }
            match self.session.wire.reply(&self.session.place, self.doing).await? {
                Reply::Message(Message::CopyDone | Message::CommandComplete(_)) => {}
                Reply::Message(Message::ReadyForQuery(_)) => {
                    self.session.ready();
                    return Ok(None);
                }
                Reply::Message(Message::ErrorResponse(body)) => {
                    let error = self.session.server_error(self.doing, &body);
                    self.settle().await?;
                    return Err(error);
                }
                other => return Err(self.unexpected(&other)),
            }
        }
    }

    /// Bytes of whole row messages at the front of the inbox.
    fn whole_rows(&self) -> Result<usize> {
        let inbox = &self.session.wire.inbox;
        let mut whole = 0;
        while let Some(rest) = inbox.get(whole..)
            && rest.first() == Some(&COPY_DATA)
        {
            let length = message_length(rest, MAX_MESSAGE_BYTES)
                .map_err(|problem| broken(&self.session.place, problem))?;
            match length.filter(|&length| length <= rest.len()) {
                Some(length) => whole += length,
                None => break,
            }
        }
        Ok(whole)
    }

    /// Reads up to the server's readiness for the next command, which follows an error.
    async fn settle(&mut self) -> Result<()> {
        loop {
            if let Reply::Message(Message::ReadyForQuery(_)) =
                self.session.wire.reply(&self.session.place, self.doing).await?
            {
                self.session.ready();
                return Ok(());
            }
        }
    }

    fn unexpected(&self, reply: &Reply) -> crate::error::Error {
        match reply {
            Reply::Message(message) => self.session.unexpected(self.doing, message),
            Reply::CopyBoth => {
                broken(&self.session.place, format!("it began to stream in answer to {}", self.doing))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_gives_back_each_messages_bytes() {
        let chunk = CopyChunk(Bytes::from_static(b"d\0\0\0\x07abcd\0\0\0\x04d\0\0\0\x05e"));
        assert_eq!(chunk.pieces().collect::<Vec<_>>(), [b"abc".as_slice(), b"", b"e"]);
    }

    #[test]
    fn a_damaged_chunk_ends_early_and_does_not_panic() {
        for bytes in [b"d\0\0".as_slice(), b"d\0\0\0\x03", b"d\xff\xff\xff\xff", b"d\0\0\0\x09abc"] {
            assert_eq!(CopyChunk(Bytes::copy_from_slice(bytes)).pieces().count(), 0);
        }
    }
}
