//! A row's values as they stand in a message.

use super::ProtocolError;
use super::reader::Reader;

/// One value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL null.
    Null,
    /// Not sent, because the update left a large (TOASTed) value untouched.
    Unchanged,
    /// Its text form.
    Text(&'a [u8]),
    /// Its binary form (only with `binary 'true'`, which our sessions do not ask for).
    Binary(&'a [u8]),
}

/// A row's values, checked when they were parsed and walked as often as needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TupleData<'a> {
    columns: u16,
    bytes: &'a [u8],
}

/// What a message says about the row before the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldRow<'a> {
    /// The whole row (REPLICA IDENTITY FULL).
    Full(TupleData<'a>),
    /// The replica identity's columns; the others are null and mean nothing.
    Key(TupleData<'a>),
    /// Nothing: the replica identity did not change.
    Absent,
}

impl<'a> TupleData<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ProtocolError> {
        let columns = reader.u16("number of values")?;
        let start = reader.rest();
        for _ in 0..columns {
            match reader.u8("value kind")? {
                b'n' | b'u' => {}
                b't' | b'b' => {
                    let length = reader.count_u32("value's length", 1)?;
                    reader.bytes(length, "value")?;
                }
                value => return Err(ProtocolError::BadTag { what: "value kind", value }),
            }
        }
        let length = start.len() - reader.rest().len();
        Ok(TupleData { columns, bytes: start.get(..length).unwrap_or_default() })
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// Whether there is none (a table without columns).
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The values, in the order of the Relation's columns.
    pub fn columns(&self) -> TupleColumns<'a> {
        TupleColumns { left: self.columns, rest: self.bytes }
    }
}

/// Walks the values of a [`TupleData`].
#[derive(Debug, Clone)]
pub struct TupleColumns<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Iterator for TupleColumns<'a> {
    type Item = Value<'a>;

    /// `None` before the last value cannot happen: `TupleData::read` walked the same bytes.
    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (&kind, rest) = self.rest.split_first()?;
        if kind == b'n' || kind == b'u' {
            self.rest = rest;
            return Some(if kind == b'n' { Value::Null } else { Value::Unchanged });
        }
        let (&length, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(length) as usize)?;
        self.rest = rest;
        Some(if kind == b't' { Value::Text(value) } else { Value::Binary(value) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for TupleColumns<'_> {}
