//! A cursor over one message's bytes: every read is bounded and names what it was reading.

use super::ProtocolError;
use crate::{Lsn, PgTimestamp};

/// What is left of a message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The bytes not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ProtocolError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(ProtocolError::Truncated { what })?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, ProtocolError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, ProtocolError> {
        self.array(what).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, ProtocolError> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self, what: &'static str) -> Result<i32, ProtocolError> {
        self.array(what).map(i32::from_be_bytes)
    }

    pub(super) fn lsn(&mut self, what: &'static str) -> Result<Lsn, ProtocolError> {
        self.array(what).map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    pub(super) fn timestamp(&mut self, what: &'static str) -> Result<PgTimestamp, ProtocolError> {
        self.array(what).map(|bytes| PgTimestamp(i64::from_be_bytes(bytes)))
    }

    pub(super) fn bytes(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], ProtocolError> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(ProtocolError::Truncated { what })?;
        self.rest = rest;
        Ok(head)
    }

    /// A count of things that take at least `each` bytes: more than the message can hold is refused
    /// before anything is allocated for them.
    pub(super) fn count_u32(&mut self, what: &'static str, each: usize) -> Result<usize, ProtocolError> {
        let value = i64::from(self.i32(what)?);
        match usize::try_from(value) {
            Ok(count) if count <= self.rest.len() / each.max(1) => Ok(count),
            _ => Err(ProtocolError::BadLength { what, value }),
        }
    }

    /// A string ended by a zero byte.
    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a str, ProtocolError> {
        let end = memchr::memchr(0, self.rest).ok_or(ProtocolError::Truncated { what })?;
        let text = self.bytes(end, what)?;
        self.bytes(1, what)?;
        std::str::from_utf8(text).map_err(|source| ProtocolError::NotUtf8 { what, source })
    }

    pub(super) fn end(&self, message: &'static str) -> Result<(), ProtocolError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(ProtocolError::TrailingBytes { message, count: self.rest.len() })
        }
    }
}
