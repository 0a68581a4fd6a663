//! Arrow batches as the bytes of a binary COPY.
//!
//! ```text
//!   PGCOPY\n\377\r\n\0  flags  extension | fields  (length value)… | fields … | -1
//!   header, once                         | a row                   |          | trailer, once
//! ```
//!
//! Plain functions over memory. The invariant: **a row is written whole or not at all.** A row whose key is null, or
//! that holds a value Postgres cannot, is left out, counted, and the first of them are named. Whether a row is left
//! out depends on the row alone, so that taking it back later finds nothing to take back, and is counted as well.

use super::apply::Change;
use super::cells::{Cells, NULL_FIELD};
use super::column::ServedColumn;
use super::definition::SHOWN_CHARACTERS;
use super::kept_out::{KeptOut, KeptOutRow};
use super::value::Misfit;
use crate::error::{Result, ReverseSyncError};
use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::{BufMut, BytesMut};
use std::sync::Arc;

const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: i16 = -1;

/// Writes batches of one table.
#[derive(Debug, Clone)]
pub struct BinaryCopy {
    columns: Arc<[ServedColumn]>,
    /// Places of the key's columns among `columns`.
    key: Arc<[usize]>,
}

impl BinaryCopy {
    /// For rows of `columns`, named by the columns at `key`.
    pub fn new(columns: Arc<[ServedColumn]>, key: Arc<[usize]>) -> BinaryCopy {
        BinaryCopy { columns, key }
    }

    /// The bytes that begin every COPY.
    pub fn header(out: &mut BytesMut) {
        out.put_slice(HEADER);
    }

    /// The bytes that end every COPY.
    pub fn trailer(out: &mut BytesMut) {
        out.put_i16(TRAILER);
    }

    /// Writes the rows of a batch, whose columns are found by name. In a staging table of changes the sign of what
    /// happened stands before them. Gives the number of rows written.
    pub fn write(
        &self,
        batch: &RecordBatch,
        change: Option<Change>,
        out: &mut BytesMut,
        kept_out: &mut KeptOut,
    ) -> Result<u64> {
        let arrays = self.columns.iter().map(|column| Cells::conform(batch, column));
        let arrays = arrays.collect::<Result<Vec<ArrayRef>, _>>()?;
        let cells = self.columns.iter().zip(&arrays).map(|(column, array)| Cells::of(array, column));
        let cells = cells.collect::<Result<Vec<Cells<'_>>, _>>()?;
        let fields = cells.len() + usize::from(change.is_some());
        let fields = i16::try_from(fields).map_err(|_| ReverseSyncError::TooManyColumns)?;
        let counted = if change == Some(Change::Went) { -1 } else { 1 };
        let mut written = 0;
        for row in 0..batch.num_rows() {
            if self.key.iter().any(|at| arrays.get(*at).is_none_or(|array| array.is_null(row))) {
                kept_out.null_key(counted, || self.describe(&arrays, row));
                continue;
            }
            let start = out.len();
            begin_row(fields, change, out);
            let Err((column, misfit)) = write_cells(&cells, row, out) else {
                written += 1;
                continue;
            };
            out.truncate(start);
            kept_out.misfit(counted, || KeptOutRow {
                column: self.columns.get(column).map(|column| column.name.clone()),
                reason: misfit.to_string(),
                ..self.describe(&arrays, row)
            });
            // The row that it would have replaced is no more, either.
            if change == Some(Change::Replaced) && self.write_key(&cells, fields, row, out) {
                written += 1;
            }
        }
        Ok(written)
    }

    /// Writes that the row of a key went: the key, and nulls. Not if it is the key that does not fit: then none was served.
    fn write_key(&self, cells: &[Cells<'_>], fields: i16, row: usize, out: &mut BytesMut) -> bool {
        let start = out.len();
        begin_row(fields, Some(Change::Went), out);
        for (at, cell) in cells.iter().enumerate() {
            if !self.key.contains(&at) {
                out.put_i32(NULL_FIELD);
            } else if cell.write(row, out).is_err() {
                out.truncate(start);
                return false;
            }
        }
        true
    }

    /// A row that is left out because its key is null, by what there is of its key.
    fn describe(&self, arrays: &[ArrayRef], row: usize) -> KeptOutRow {
        let parts = self.key.iter().filter_map(|at| {
            let (column, array) = (self.columns.get(*at)?, arrays.get(*at)?);
            Some(format!("{}={}", column.name, shown(array, row)))
        });
        KeptOutRow {
            key: parts.collect::<Vec<_>>().join(", "),
            column: None,
            reason: "a null key".to_owned(),
        }
    }
}

fn begin_row(fields: i16, change: Option<Change>, out: &mut BytesMut) {
    out.put_i16(fields);
    if let Some(change) = change {
        out.put_i32(2);
        out.put_i16(change.sign());
    }
}

fn write_cells(cells: &[Cells<'_>], row: usize, out: &mut BytesMut) -> Result<(), (usize, Misfit)> {
    for (at, cell) in cells.iter().enumerate() {
        cell.write(row, out).map_err(|misfit| (at, misfit))?;
    }
    Ok(())
}

fn shown(array: &ArrayRef, row: usize) -> String {
    let options = FormatOptions::new().with_null("null");
    match ArrayFormatter::try_new(array.as_ref(), &options) {
        Ok(formatter) => match formatter.value(row).try_to_string() {
            Ok(text) => text.chars().take(SHOWN_CHARACTERS).flat_map(char::escape_debug).collect(),
            Err(_) => "?".to_owned(),
        },
        Err(_) => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    fn batch(ids: Vec<Option<i64>>, names: Vec<Option<&str>>) -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("name", DataType::Utf8, true),
        ]);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Int64Array::from(ids)), Arc::new(StringArray::from(names))];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    fn copy(batch: &RecordBatch, limit: Option<&str>) -> BinaryCopy {
        let schema = batch.schema();
        let columns = vec![
            ServedColumn::plan(schema.field(0), None).unwrap(),
            ServedColumn::plan(schema.field(1), limit).unwrap(),
        ];
        BinaryCopy::new(columns.into(), vec![0].into())
    }

    #[test]
    fn a_row_is_its_fields_with_their_lengths() {
        let batch = batch(vec![Some(7)], vec![Some("ab")]);
        let (mut out, mut kept_out) = (BytesMut::new(), KeptOut::default());
        copy(&batch, None).write(&batch, Some(Change::Went), &mut out, &mut kept_out).unwrap();
        let expected = [
            [0, 3].as_slice(),
            &[0, 0, 0, 2, 0xff, 0xff],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7],
            &[0, 0, 0, 2, b'a', b'b'],
        ];
        assert_eq!(out.as_ref(), expected.concat());
    }

    #[test]
    fn a_row_that_does_not_fit_leaves_no_bytes_and_is_named() {
        let batch =
            batch(vec![None, Some(8), Some(9), Some(10)], vec![None, Some("a\0b"), Some("long"), Some("ok")]);
        let (mut out, mut kept_out) = (BytesMut::new(), KeptOut::default());
        let written = copy(&batch, Some("varchar(3)")).write(&batch, None, &mut out, &mut kept_out).unwrap();
        assert_eq!((written, out.len()), (1, 2 + 12 + 6));
        assert_eq!((kept_out.null_keys, kept_out.misfits), (1, 2));
        let text = kept_out.to_string();
        assert!(text.contains("id=8: column name holds a text with a zero byte"), "{text}");
        assert!(text.contains("id=9: column name holds a text of 4 characters where 3 fit"), "{text}");
    }

    #[test]
    fn a_row_that_was_left_out_and_goes_away_is_counted_back() {
        let batch = batch(vec![Some(8)], vec![Some("\0")]);
        let (mut out, mut kept_out) = (BytesMut::new(), KeptOut::default());
        let copy = copy(&batch, None);
        copy.write(&batch, Some(Change::Came), &mut out, &mut kept_out).unwrap();
        assert_eq!(kept_out.misfits, 1);
        copy.write(&batch, Some(Change::Went), &mut out, &mut kept_out).unwrap();
        assert_eq!((out.len(), kept_out.misfits), (0, 0));
    }

    #[test]
    fn a_row_that_does_not_fit_takes_the_one_that_it_replaces_with_it() {
        let batch = batch(vec![Some(8)], vec![Some("long")]);
        let (mut out, mut kept_out) = (BytesMut::new(), KeptOut::default());
        let copy = copy(&batch, Some("varchar(3)"));
        let written = copy.write(&batch, Some(Change::Replaced), &mut out, &mut kept_out).unwrap();
        assert_eq!((written, kept_out.misfits), (1, 1));
        let expected = [
            [0, 3].as_slice(),
            &[0, 0, 0, 2, 0xff, 0xff],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 8],
            &[0xff, 0xff, 0xff, 0xff],
        ];
        assert_eq!(out.as_ref(), expected.concat());
    }
}
