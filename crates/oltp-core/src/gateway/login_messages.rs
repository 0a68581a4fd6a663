//! The server's messages between the startup packet and the first ReadyForQuery: authentication, settings, the key for
//! cancelling.
//!
//! They pass as they are, with two exceptions. A server that is not ready (SQLSTATE 57P03) is asked again by the
//! gateway, not by the client: [`FirstAnswer`]. And the key in BackendKeyData is replaced by one of ours
//! ([`LoginMessages`]), because a cancel request names nothing but this key, and two servers may give out equal ones.
//!
//! Only BackendKeyData is held until it is whole; of everything else any part passes on at once, so that the memory
//! in use is one read's.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::startup_message::CANCEL_KEY_LIMIT;

/// Tag and length.
const HEADER_BYTES: usize = 5;

const BACKEND_KEY_DATA: u8 = b'K';
const ERROR_RESPONSE: u8 = b'E';
const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';
const READY_FOR_QUERY: u8 = b'Z';

/// A process id and a key of at least one byte.
const KEY_DATA_BYTES: std::ops::RangeInclusive<usize> =
    HEADER_BYTES + 4 + 1..=HEADER_BYTES + 4 + CANCEL_KEY_LIMIT;

/// "The database system is starting up", "… shutting down", "… not yet accepting connections".
const CANNOT_CONNECT_NOW: &[u8] = b"57P03";

/// An error in answer to a startup packet takes a few hundred bytes.
const ERROR_LIMIT: usize = 64 << 10;

/// The server said something that the protocol does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server sent a message `{tag}` of {length} bytes while a session began", tag = char::from(*.tag).escape_default())]
pub(crate) struct UnexpectedMessage {
    tag: u8,
    length: u32,
}

/// What a server says first to a startup packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstAnswer {
    /// More bytes are needed to tell.
    Undecided,
    /// It does not take connections at this moment.
    NotNow,
    /// Anything else: it is the client's.
    ForClient,
}

impl FirstAnswer {
    /// Judges the bytes read so far, which stay where they are.
    pub(crate) fn of(mut bytes: &[u8]) -> Result<FirstAnswer, UnexpectedMessage> {
        loop {
            let Some((tag, length)) = header(bytes)? else { return Ok(FirstAnswer::Undecided) };
            if tag != ERROR_RESPONSE && tag != NEGOTIATE_PROTOCOL_VERSION {
                return Ok(FirstAnswer::ForClient);
            }
            if length > ERROR_LIMIT {
                return Err(UnexpectedMessage { tag, length: u32::try_from(length).unwrap_or(u32::MAX) });
            }
            let Some((message, rest)) = bytes.split_at_checked(length) else {
                return Ok(FirstAnswer::Undecided);
            };
            if tag == ERROR_RESPONSE {
                let fields = message.get(HEADER_BYTES..).unwrap_or_default();
                let not_now = fields.split(|byte| *byte == 0).any(|field| {
                    field
                        .split_first()
                        .is_some_and(|(kind, value)| *kind == b'C' && value == CANNOT_CONNECT_NOW)
                });
                return Ok(if not_now { FirstAnswer::NotNow } else { FirstAnswer::ForClient });
            }
            bytes = rest;
        }
    }
}

/// Passes the server's messages on until the session is ready.
#[derive(Debug, Default)]
pub(crate) struct LoginMessages {
    /// Bytes of the present message that are still to come.
    passing: usize,
    ready: bool,
}

/// Where the messages stand after some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Everything that can be passed on was.
    NeedsMore,
    /// The server gave this key; the caller puts another one into the output.
    Key { process_id: i32, key: Bytes },
    /// The session is ready. What is left in the input belongs to it.
    Ready,
}

impl LoginMessages {
    /// Moves what may pass from `input` to `output`, up to the next thing that the caller has to know.
    pub(crate) fn advance(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
    ) -> Result<Progress, UnexpectedMessage> {
        loop {
            let part = self.passing.min(input.len());
            output.unsplit(input.split_to(part));
            self.passing -= part;
            if self.passing > 0 {
                return Ok(Progress::NeedsMore);
            }
            if self.ready {
                return Ok(Progress::Ready);
            }
            let Some((tag, length)) = header(input)? else { return Ok(Progress::NeedsMore) };
            if tag == BACKEND_KEY_DATA {
                if !KEY_DATA_BYTES.contains(&length) {
                    return Err(UnexpectedMessage { tag, length: u32::try_from(length).unwrap_or(u32::MAX) });
                }
                if input.len() < length {
                    return Ok(Progress::NeedsMore);
                }
                let mut message = input.split_to(length).freeze();
                message.advance(HEADER_BYTES);
                let process_id = message.get_i32();
                return Ok(Progress::Key { process_id, key: message });
            }
            self.ready = tag == READY_FOR_QUERY;
            self.passing = length;
        }
    }
}

/// Writes a BackendKeyData.
pub(crate) fn put_key(output: &mut BytesMut, process_id: i32, key: &[u8]) {
    output.put_u8(BACKEND_KEY_DATA);
    output.put_u32(u32::try_from(4 + 4 + key.len()).unwrap_or(u32::MAX));
    output.put_i32(process_id);
    output.put_slice(key);
}

/// The tag of the message at the front and its whole length, tag included.
fn header(bytes: &[u8]) -> Result<Option<(u8, usize)>, UnexpectedMessage> {
    let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    match usize::try_from(length) {
        // Postgres allocates at most a gigabyte for a message.
        Ok(counted) if (4..=1 << 30).contains(&counted) => Ok(Some((tag, counted + 1))),
        _ => Err(UnexpectedMessage { tag, length }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![tag];
        message.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        message.extend(body);
        message
    }

    fn login(key: &[u8]) -> Vec<u8> {
        let key_data = message(b'K', &[&77_i32.to_be_bytes(), key].concat());
        [message(b'R', &[0; 4]), message(b'S', b"TimeZone\0UTC\0"), key_data, message(b'Z', b"I")].concat()
    }

    /// What a client reads when the server's bytes arrive in pieces, and what is left for the session.
    fn relayed(bytes: &[u8], piece: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut messages, mut input, mut output) = <(LoginMessages, BytesMut, BytesMut)>::default();
        for piece in bytes.chunks(piece) {
            input.extend_from_slice(piece);
            while let Progress::Key { process_id, key } = messages.advance(&mut input, &mut output).unwrap() {
                put_key(&mut output, process_id + 1, &vec![7; key.len()]);
            }
        }
        (output.to_vec(), input.to_vec())
    }

    #[test]
    fn only_the_key_is_replaced_however_the_bytes_arrive() {
        let rest = message(b'N', b"hello");
        for key in [vec![1; 4], vec![1; 32], vec![1; 256]] {
            let mut expected = login(&vec![7; key.len()]);
            let at = expected.windows(4).position(|window| window == 77_i32.to_be_bytes()).unwrap();
            expected[at + 3] = 78;
            for piece in [1, 3, 7, 1000] {
                let (client, left) = relayed(&[login(&key), rest.clone()].concat(), piece);
                assert_eq!(client, expected);
                assert_eq!(left, rest);
            }
        }
    }

    #[test]
    fn a_server_that_is_starting_up_is_told_from_one_that_refuses() {
        let error = |code: &str| message(b'E', format!("SFATAL\0C{code}\0Mno\0\0").as_bytes());
        assert_eq!(FirstAnswer::of(&error("57P03")), Ok(FirstAnswer::NotNow));
        assert_eq!(FirstAnswer::of(&error("3D000")), Ok(FirstAnswer::ForClient));
        assert_eq!(FirstAnswer::of(&message(b'R', &[0; 4])[..5]), Ok(FirstAnswer::ForClient));
        assert_eq!(FirstAnswer::of(&error("57P03")[..12]), Ok(FirstAnswer::Undecided));
        let negotiated = [message(b'v', &[0; 8]), error("57P03")].concat();
        assert_eq!(FirstAnswer::of(&negotiated), Ok(FirstAnswer::NotNow));
        assert_eq!(FirstAnswer::of(&negotiated[..13]), Ok(FirstAnswer::Undecided));
    }

    #[test]
    fn a_key_of_impossible_length_ends_the_session() {
        for length in [0, 4, 4 + CANCEL_KEY_LIMIT + 1] {
            let mut input = BytesMut::from(&message(b'K', &vec![0; length])[..]);
            LoginMessages::default().advance(&mut input, &mut BytesMut::new()).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_passed_on_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = FirstAnswer::of(&bytes);
            let (mut input, mut output) = (BytesMut::from(&bytes[..]), BytesMut::new());
            let mut messages = LoginMessages::default();
            while let Ok(Progress::Key { .. }) = messages.advance(&mut input, &mut output) {}
            prop_assert!(input.len() + output.len() <= bytes.len());
        }
    }
}
