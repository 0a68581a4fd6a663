//! The keeper's protocol, as bytes.
//!
//! ```text
//!   frame     length u32, of what follows · kind u8 · contents              numbers are big-endian
//!   J         a request or an answer, as JSON
//!   A         append: term u64 · position u64 · archived u64 · WAL          proposer to keeper
//!   F         flushed: position u64                                         keeper to proposer
//!   W         WAL that was read: position u64 · WAL                         keeper to anyone
//! ```
//!
//! What is rare and may grow is JSON, what every commit waits for is not. A frame has a bound, and a length beyond
//! it ends the connection before a byte of it is kept.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wal_decoder::Lsn;

use super::keeper_log::{LogStatus, Refusal, TermBegin};
use super::log_name::LogName;
use crate::ids::Term;

/// The version of the protocol; another one is refused.
pub(crate) const PROTOCOL: u32 = 1;
/// WAL in one frame, at most.
pub(crate) const MAX_WAL: usize = 1 << 20;
/// A whole frame, at most: WAL with its positions, or the history of a log with very many unarchived terms.
pub(crate) const MAX_FRAME: usize = 8 << 20;
const LENGTH: usize = 4;

/// What is asked of a keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// The first thing on a connection.
    Hello { protocol: u32, token: Option<String> },
    /// What is known of a log.
    Status(LogName),
    /// A promise to serve no lower term.
    Promise {
        log: LogName,
        term: Term,
        #[serde(with = "super::uuid_text")]
        candidate: Uuid,
    },
    /// The proposer begins to write; only appends follow.
    Begin { log: LogName, begin: TermBegin },
    /// The bytes of a log.
    Read {
        log: LogName,
        #[serde(with = "super::lsn_text")]
        from: Lsn,
        #[serde(with = "super::lsn_text")]
        to: Lsn,
    },
    /// The branch is deleted, and its log with it.
    Delete(LogName),
}

/// What a keeper answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// To a hello: who this is.
    Welcome {
        #[serde(with = "super::uuid_text")]
        keeper: Uuid,
        version: String,
    },
    /// To a status or promise.
    Log(LogStatus),
    /// To a begin: WAL is needed from there.
    Begun {
        #[serde(with = "super::lsn_text")]
        flushed: Lsn,
    },
    /// After the last frame of WAL that was read, and to a delete.
    Done,
    /// To anything, and then the connection ends when it was begun.
    Refused(Refusal),
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    Request(Request),
    Answer(Answer),
    Append { term: Term, at: Lsn, archived: Lsn, wal: Bytes },
    Flushed(Lsn),
    Wal { at: Lsn, wal: Bytes },
}

/// Who speaks: JSON of one side means nothing on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Proposer,
    Keeper,
}

impl Frame {
    /// The frame's bytes, added to `out`.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        let length_at = out.len();
        out.put_u32(0);
        match self {
            Frame::Request(request) => put_json(out, request),
            Frame::Answer(answer) => put_json(out, answer),
            Frame::Append { term, at, archived, wal } => {
                out.put_u8(b'A');
                out.put_u64(term.0);
                out.put_u64(at.0);
                out.put_u64(archived.0);
                out.put_slice(wal);
            }
            Frame::Flushed(at) => {
                out.put_u8(b'F');
                out.put_u64(at.0);
            }
            Frame::Wal { at, wal } => {
                out.put_u8(b'W');
                out.put_u64(at.0);
                out.put_slice(wal);
            }
        }
        // What we send ourselves is far below 4 GiB.
        let length = u32::try_from(out.len() - length_at - LENGTH).unwrap_or(u32::MAX);
        if let Some(target) = out.get_mut(length_at..length_at + LENGTH) {
            target.copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Takes the frame at the front of `inbox`; `None` when not all of it is there.
    ///
    /// # Errors
    /// The bytes are no frame of that side.
    pub(crate) fn take(inbox: &mut BytesMut, from: From) -> Result<Option<Frame>, String> {
        let Some(length) = inbox.first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 || length > MAX_FRAME {
            return Err(format!("a frame of {length} bytes"));
        }
        if inbox.len() < LENGTH + length {
            return Ok(None);
        }
        inbox.advance(LENGTH);
        let mut contents = inbox.split_to(length).freeze();
        let kind = contents.get_u8();
        let frame = match (from, kind) {
            (From::Proposer, b'J') => Frame::Request(json(&contents)?),
            (From::Keeper, b'J') => Frame::Answer(json(&contents)?),
            (From::Proposer, b'A') if contents.len() >= 24 => Frame::Append {
                term: Term(contents.get_u64()),
                at: Lsn(contents.get_u64()),
                archived: Lsn(contents.get_u64()),
                wal: contents,
            },
            (From::Keeper, b'F') if contents.len() == 8 => Frame::Flushed(Lsn(contents.get_u64())),
            (From::Keeper, b'W') if contents.len() >= 8 => {
                Frame::Wal { at: Lsn(contents.get_u64()), wal: contents }
            }
            _ => return Err(format!("a frame of kind {kind:#04x} and {length} bytes")),
        };
        Ok(Some(frame))
    }
}

fn put_json(out: &mut BytesMut, value: &impl Serialize) {
    out.put_u8(b'J');
    // Numbers, texts and lists of them: there is nothing in a request or answer that JSON cannot hold.
    if let Ok(json) = serde_json::to_vec(value) {
        out.put_slice(&json);
    }
}

fn json<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("JSON that is not understood: {error}"))
}

/// For the fuzzer: reads frames until there is none.
#[doc(hidden)]
pub fn read_frames(bytes: &[u8]) {
    for from in [From::Proposer, From::Keeper] {
        let mut inbox = BytesMut::from(bytes);
        while let Ok(Some(frame)) = Frame::take(&mut inbox, from) {
            let mut out = BytesMut::new();
            frame.write(&mut out);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{BranchId, ProjectName};

    fn frames() -> Vec<(From, Frame)> {
        let log = LogName { project: ProjectName::new("shop").unwrap(), branch: BranchId::random() };
        let wal = Bytes::from_static(b"some WAL");
        vec![
            (From::Proposer, Frame::Request(Request::Hello { protocol: 1, token: Some("t".into()) })),
            (From::Proposer, Frame::Request(Request::Read { log, from: Lsn(1), to: Lsn(0x1_0000_0000) })),
            (From::Proposer, Frame::Append { term: Term(7), at: Lsn(5), archived: Lsn(2), wal: wal.clone() }),
            (From::Keeper, Frame::Flushed(Lsn(13))),
            (From::Keeper, Frame::Wal { at: Lsn(5), wal }),
            (From::Keeper, Frame::Answer(Answer::Refused(Refusal::StaleTerm { promised: Term(8) }))),
            (From::Keeper, Frame::Answer(Answer::Done)),
        ]
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        for (from, frame) in frames() {
            let mut bytes = BytesMut::new();
            frame.write(&mut bytes);
            for cut in 0..bytes.len() {
                assert_eq!(Frame::take(&mut BytesMut::from(&bytes[..cut]), from), Ok(None));
            }
            assert_eq!(Frame::take(&mut bytes, from), Ok(Some(frame)));
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_its_bytes_arrive() {
        for length in [0, MAX_FRAME as u32 + 1, u32::MAX] {
            Frame::take(&mut BytesMut::from(&length.to_be_bytes()[..]), From::Keeper).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            read_frames(&bytes);
        }
    }
}
