//! Binary COPY to Arrow.
//!
//! ```text
//!   PGCOPY\n\377\r\n\0  flags  extension | fields  (length value)…  | fields … | -1
//!   header, once                         | a row                    |          | trailer
//! ```
//!
//! The bytes come as the connection cuts them. Whole rows are decoded where they lie; only the part of a
//! row at the end of a chunk is kept until the rest of it arrives. Fields stand in the order of the
//! table's columns, written as [`crate::PgType::copy_expression`] selects them.

use crate::column_set::{ColumnSet, DeadLetter, DeadLetters, value_row_error};
use crate::value_display::excerpt;
use crate::{BuilderOptions, RowError, TableSchema};
use arrow::array::RecordBatch;
use std::sync::Arc;

/// The stream is not a binary COPY of this table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// The first bytes are not a binary COPY's.
    #[error("the data does not begin as a binary COPY: run COPY with (FORMAT binary)")]
    BadSignature,
    /// The header asks for something we do not know.
    #[error("the COPY header's flags are {0:#010x}: this server writes a newer format")]
    UnknownFlags(u32),
    /// A length that no COPY has.
    #[error("{value} is no valid {what} in a binary COPY: the connection delivered damaged data")]
    BadLength {
        /// what is counted
        what: &'static str,
        /// the number
        value: i64,
    },
    /// A row could not be taken. The rows before it are intact.
    #[error("row {row} of the COPY")]
    Row {
        /// counted from 1 over the whole COPY
        row: u64,
        /// what is wrong with it
        #[source]
        source: RowError,
    },
    /// Bytes after the trailer.
    #[error("data follows the end of the COPY: two copies were fed into one decoder")]
    AfterTrailer,
    /// The stream ended before the trailer.
    #[error("the COPY ended before its trailer, after {rows} rows: the connection was cut; run it again")]
    Unfinished {
        /// complete rows so far
        rows: u64,
    },
    /// An earlier error left the decoder inside a row.
    #[error("the COPY failed before: make a new decoder and run it again")]
    Failed,
}

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// Signature, flags and the extension's length.
const HEADER: usize = SIGNATURE.len() + 8;
/// The upper half of the flags is for changes that a reader must know; bit 16 (OIDs) died with version 12.
const CRITICAL_FLAGS: u32 = 0xFFFF_0000;
/// No version has written a header extension. One that is larger than this is damage.
const LONGEST_EXTENSION: usize = 64 * 1024;
/// Postgres's `MaxAllocSize`: no field is larger.
const LONGEST_FIELD: usize = 0x3FFF_FFFF;
/// The length that stands for null.
const NULL_FIELD: i32 = -1;
/// The number of fields that stands for the end.
const TRAILER: i16 = -1;

/// Decodes one COPY.
pub struct CopyDecoder {
    schema: Arc<TableSchema>,
    options: BuilderOptions,
    in_key: Vec<bool>,
    columns: ColumnSet,
    dead_letters: DeadLetters,
    state: State,
    /// What is left of the last chunk: the beginning of something incomplete.
    pending: Vec<u8>,
    decoded: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Extension { length: usize },
    Rows,
    Ended,
    Failed,
}

/// What one step found.
enum Step {
    /// that many bytes are done with
    Took(usize),
    /// not complete yet
    NeedMore,
}

impl CopyDecoder {
    /// A decoder of a COPY of all columns of `schema`, in order. Of the options only `unrepresentable`
    /// matters here.
    pub fn new(schema: Arc<TableSchema>, options: BuilderOptions) -> Self {
        CopyDecoder {
            in_key: {
                let in_key = |at| !options.key_is_whole_row && schema.key.contains(&at);
                (0..schema.columns.len()).map(in_key).collect()
            },
            columns: ColumnSet::new(schema.columns.iter(), schema.arrow_schema()),
            dead_letters: DeadLetters::default(),
            state: State::Header,
            pending: Vec::new(),
            decoded: 0,
            options,
            schema,
        }
    }

    /// Decodes what `bytes` completes. After an error the rows before it can be taken, and nothing more pushed.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        let result = if self.pending.is_empty() {
            self.decode(bytes)
                .map(|taken| self.pending.extend_from_slice(bytes.get(taken..).unwrap_or_default()))
        } else {
            let mut pending = std::mem::take(&mut self.pending);
            pending.extend_from_slice(bytes);
            let result = self.decode(&pending).map(|taken| {
                pending.drain(..taken);
            });
            self.pending = pending;
            result
        };
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    /// Complete rows that are waiting to be taken.
    pub fn rows(&self) -> usize {
        self.columns.rows()
    }

    /// Bytes held: complete rows, dead letters, and the incomplete row.
    pub fn byte_size(&self) -> usize {
        self.columns.byte_size() + self.dead_letters.byte_size() + self.pending.len()
    }

    /// Takes out the complete rows.
    pub fn take_batch(&mut self) -> RecordBatch {
        self.columns.take()
    }

    /// Takes out the values that were replaced by null since the last call.
    pub fn take_dead_letters(&mut self) -> Vec<DeadLetter> {
        self.dead_letters.take()
    }

    /// The connection says that the COPY is over: checks that the trailer came.
    pub fn finish(self) -> Result<(), CopyError> {
        match self.state {
            State::Ended => Ok(()),
            State::Failed => Err(CopyError::Failed),
            State::Header | State::Extension { .. } | State::Rows => {
                Err(CopyError::Unfinished { rows: self.decoded })
            }
        }
    }

    /// Decodes as much as is complete and says how many bytes that was.
    fn decode(&mut self, bytes: &[u8]) -> Result<usize, CopyError> {
        let mut taken = 0;
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            let step = match self.state {
                State::Header => self.header(rest)?,
                State::Extension { length } if rest.len() >= length => {
                    self.state = State::Rows;
                    Step::Took(length)
                }
                State::Extension { .. } => Step::NeedMore,
                State::Rows => self.row(rest)?,
                State::Ended => return Err(CopyError::AfterTrailer),
                State::Failed => return Err(CopyError::Failed),
            };
            match step {
                Step::Took(length) => taken += length,
                Step::NeedMore => break,
            }
        }
        Ok(taken)
    }

    fn header(&mut self, bytes: &[u8]) -> Result<Step, CopyError> {
        let compared = bytes.len().min(SIGNATURE.len());
        if bytes.get(..compared) != SIGNATURE.get(..compared) {
            return Err(CopyError::BadSignature);
        }
        let fields = bytes.get(SIGNATURE.len()..).and_then(|rest| rest.first_chunk::<8>());
        let Some(&[f1, f2, f3, f4, l1, l2, l3, l4]) = fields else { return Ok(Step::NeedMore) };
        let flags = u32::from_be_bytes([f1, f2, f3, f4]);
        if flags & CRITICAL_FLAGS != 0 {
            return Err(CopyError::UnknownFlags(flags));
        }
        let length = checked_length(
            i32::from_be_bytes([l1, l2, l3, l4]),
            LONGEST_EXTENSION,
            "length of the header's extension",
        )?;
        self.state = if length == 0 { State::Rows } else { State::Extension { length } };
        Ok(Step::Took(HEADER))
    }

    /// Appends one row. It is measured first, so that an incomplete one costs no more than a walk over
    /// its lengths, however often it is looked at.
    fn row(&mut self, bytes: &[u8]) -> Result<Step, CopyError> {
        let Some((count, fields)) = bytes.split_first_chunk::<2>() else { return Ok(Step::NeedMore) };
        let count = i16::from_be_bytes(*count);
        if count == TRAILER {
            self.state = State::Ended;
            return Ok(Step::Took(2));
        }
        let expected = self.schema.columns.len();
        let found = usize::try_from(count)
            .map_err(|_| CopyError::BadLength { what: "number of fields", value: i64::from(count) })?;
        if found != expected {
            return Err(self.row_error(RowError::ColumnCount { expected, found }));
        }
        let Some(length) = row_length(fields, count)? else { return Ok(Step::NeedMore) };
        if let Err(source) = self.append_row(fields) {
            self.columns.truncate(self.columns.rows());
            self.dead_letters.drop_row();
            return Err(self.row_error(source));
        }
        self.decoded += 1;
        Ok(Step::Took(2 + length))
    }

    fn row_error(&self, source: RowError) -> CopyError {
        CopyError::Row { row: self.decoded + 1, source }
    }

    fn append_row(&mut self, mut fields: &[u8]) -> Result<(), RowError> {
        for (at, &in_key) in self.in_key.iter().enumerate() {
            // Measured before, so nothing is missing here.
            let (Some((field, rest)), Some(column)) = (next_field(fields), self.columns.column_mut(at))
            else {
                break;
            };
            fields = rest;
            let Some(value) = field else {
                column.append_null();
                continue;
            };
            if let Err(failed) = column.append_copy(value) {
                let text = || column.unrepresentable_copy_text(value);
                self.dead_letters.settle(failed, self.options.unrepresentable, at, in_key, text).map_err(
                    |source| {
                        let binary =
                            self.schema.columns.get(at).is_some_and(|spec| spec.pg_type.copy_as_binary());
                        let shown = match source {
                            crate::ValueError::Unrepresentable { .. } => {
                                column.unrepresentable_copy_text(value)
                            }
                            _ if binary => crate::value_display::bytea(value.get(..32).unwrap_or(value)),
                            _ => excerpt(value),
                        };
                        value_row_error(self.schema.columns.get(at), shown, source)
                    },
                )?;
                column.append_null();
            }
        }
        let row = self.columns.rows();
        self.columns.end_row();
        self.dead_letters.end_row(row, || self.columns.key_text(&self.schema.key, row));
        Ok(())
    }
}

fn checked_length(value: i32, most: usize, what: &'static str) -> Result<usize, CopyError> {
    usize::try_from(value)
        .ok()
        .filter(|length| *length <= most)
        .ok_or(CopyError::BadLength { what, value: i64::from(value) })
}

/// Bytes of the row's fields, `None` if they are not all there yet.
fn row_length(fields: &[u8], count: i16) -> Result<Option<usize>, CopyError> {
    let mut rest = fields;
    for _ in 0..count {
        let Some((length, after)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = match i32::from_be_bytes(*length) {
            NULL_FIELD => 0,
            length => checked_length(length, LONGEST_FIELD, "length of a field")?,
        };
        let Some(after) = after.get(length..) else { return Ok(None) };
        rest = after;
    }
    Ok(Some(fields.len() - rest.len()))
}

/// A field (`None`: null) and what follows it.
#[inline]
fn next_field(fields: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (length, rest) = fields.split_first_chunk::<4>()?;
    match i32::from_be_bytes(*length) {
        NULL_FIELD => Some((None, rest)),
        length => {
            let (field, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            Some((Some(field), rest))
        }
    }
}

#[cfg(test)]
mod tests;
