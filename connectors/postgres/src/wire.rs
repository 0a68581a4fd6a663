//! Messages of the Postgres protocol over a [`Transport`], for the sessions that are our own.
//!
//! Messages are framed here; their bodies are left to postgres-protocol. Every read has a bound: a length that no honest server sends in that phase ends the session
//! before a byte of it is buffered.

use crate::error::{Error, Place, Result, ServerError};
use crate::transport::Transport;
use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::{self, ErrorFields, Message};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::fallible_iterator::FallibleIterator;

/// Answers to commands are a handful of short rows; an error's text is the longest of them.
const MAX_REPLY_BYTES: usize = 1 << 20;
/// Postgres allocates no more than this for one value or message (`MaxAllocSize`), plus the header.
pub(crate) const MAX_MESSAGE_BYTES: usize = (1 << 30) + 64;
/// Room for the usual answer.
const REPLY_ROOM: usize = 4 << 10;
/// `CopyBothResponse`, which postgres-protocol does not know.
const COPY_BOTH_RESPONSE: u8 = b'W';
/// One tag byte and a length that counts itself.
pub(crate) const HEADER_BYTES: usize = 5;

/// What the server answers to a command.
pub(crate) enum Reply {
    Message(Message),
    /// Both sides send copy data from here on.
    CopyBoth,
}

/// A connection and the bytes that were read from it but not yet used.
pub(crate) struct Wire {
    pub transport: Transport,
    pub inbox: BytesMut,
}

impl Wire {
    pub(crate) fn new(transport: Transport) -> Self {
        Wire { transport, inbox: BytesMut::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.transport.write_all(bytes).await?;
        self.transport.flush().await
    }

    /// Waits for more bytes, with room for `at_once` of them.
    pub(crate) async fn read(&mut self, place: &Place, doing: &'static str, at_once: usize) -> Result<()> {
        let lost = |source| Error::ConnectionLost { place: place.name.clone(), doing, source };
        self.inbox.reserve(at_once);
        match self.transport.read_buf(&mut self.inbox).await.map_err(lost)? {
            0 => Err(lost(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(()),
        }
    }

    /// The next message. Notices and parameter reports are for nobody here and are passed over.
    pub(crate) async fn reply(&mut self, place: &Place, doing: &'static str) -> Result<Reply> {
        loop {
            let Some(total) = whole_message(&self.inbox, MAX_REPLY_BYTES).map_err(|p| broken(place, p))?
            else {
                self.read(place, doing, REPLY_ROOM).await?;
                continue;
            };
            if self.inbox.first() == Some(&COPY_BOTH_RESPONSE) {
                self.inbox.advance(total);
                return Ok(Reply::CopyBoth);
            }
            let mut frame = self.inbox.split_to(total);
            match Message::parse(&mut frame).map_err(|err| broken(place, err.to_string()))? {
                Some(Message::NoticeResponse(notice)) => {
                    let notice = server_error(notice.fields());
                    tracing::debug!(place = %place.name, notice = %notice, "notice");
                }
                Some(Message::ParameterStatus(_)) => {}
                Some(message) => return Ok(Reply::Message(message)),
                None => return Err(broken(place, "a message is shorter than its length says".into())),
            }
        }
    }
}

pub(crate) fn broken(place: &Place, problem: String) -> Error {
    Error::Protocol { place: place.name.clone(), problem }
}

/// The length of the message at the front of `bytes` with its header, once all of it is there.
pub(crate) fn whole_message(bytes: &[u8], limit: usize) -> std::result::Result<Option<usize>, String> {
    let total = message_length(bytes, limit)?;
    Ok(total.filter(|&total| bytes.len() >= total))
}

/// The length of the message at the front of `bytes` with its header, once the header is there.
pub(crate) fn message_length(bytes: &[u8], limit: usize) -> std::result::Result<Option<usize>, String> {
    let Some(header) = backend::Header::parse(bytes).map_err(|err| err.to_string())? else {
        return Ok(None);
    };
    match usize::try_from(header.len()) {
        Ok(length) if length <= limit => Ok(Some(length + 1)),
        _ => Err(format!(
            "a message `{}` of {} bytes, more than the {limit} allowed here",
            char::from(header.tag()).escape_default(),
            header.len()
        )),
    }
}

/// The parts of an ErrorResponse. A broken part ends the reading, what was understood stays.
pub(crate) fn server_error(mut fields: ErrorFields<'_>) -> ServerError {
    let mut error = ServerError { code: String::new(), message: String::new(), detail: None, hint: None };
    while let Ok(Some(field)) = fields.next() {
        // Before the encoding is agreed on, messages come in the server's own.
        let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => error.code = text,
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            b'H' => error.hint = Some(text),
            _ => {}
        }
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_its_bytes_arrive() {
        let header = [b'd', 0x7F, 0xFF, 0xFF, 0xFF];
        assert!(whole_message(&header, MAX_REPLY_BYTES).is_err());
        assert!(whole_message(&[b'd', 0xFF, 0xFF, 0xFF, 0xFF], MAX_REPLY_BYTES).is_err());
        assert!(whole_message(&[b'd', 0, 0, 0, 3], MAX_REPLY_BYTES).is_err());
    }

    #[test]
    fn a_message_counts_only_once_all_of_it_is_there() {
        assert_eq!(whole_message(&[b'Z', 0, 0, 0], 100), Ok(None));
        assert_eq!(whole_message(&[b'Z', 0, 0, 0, 5], 100), Ok(None));
        assert_eq!(whole_message(&[b'Z', 0, 0, 0, 5, b'I', b'x'], 100), Ok(Some(6)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some(total)) = whole_message(&bytes, 1 << 20) {
                prop_assert!(total >= HEADER_BYTES && total <= bytes.len());
            }
        }
    }
}
