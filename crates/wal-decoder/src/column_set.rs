//! The columns of one batch while it is being built.

use crate::column::Column;
use crate::{ColumnSpec, RowError, Unrepresentable, ValueError, value_display};
use arrow::array::{ArrayRef, RecordBatch, StructArray};
use arrow::datatypes::SchemaRef;

/// Columns that grow together. Between two rows all of them have the same length; a row that fails is
/// cut off again by [`ColumnSet::truncate`].
pub(crate) struct ColumnSet {
    columns: Vec<Column>,
    schema: SchemaRef,
    rows: usize,
}

impl ColumnSet {
    pub(crate) fn new<'a>(specs: impl Iterator<Item = &'a ColumnSpec>, schema: SchemaRef) -> Self {
        ColumnSet { columns: specs.map(|spec| Column::new(&spec.pg_type)).collect(), schema, rows: 0 }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn column_mut(&mut self, at: usize) -> Option<&mut Column> {
        self.columns.get_mut(at)
    }

    /// The row whose values were appended is complete.
    pub(crate) fn end_row(&mut self) {
        self.rows += 1;
    }

    /// Cuts back to `rows` complete rows.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.rows = rows;
        for column in &mut self.columns {
            column.truncate(rows);
        }
    }

    pub(crate) fn byte_size(&self) -> usize {
        self.columns.iter().map(Column::byte_size).sum()
    }

    /// Some values of a row as text: one as it is, several in parentheses.
    pub(crate) fn key_text(&self, key: &[usize], row: usize) -> String {
        let mut values = key
            .iter()
            .filter_map(|&at| self.columns.get(at))
            .map(|column| column.text_at(row).unwrap_or_else(|| "NULL".to_owned()));
        let text = match (values.next(), values.next()) {
            (None, _) => return String::new(),
            (Some(only), None) => only,
            (Some(first), Some(second)) => {
                let rest: Vec<String> = [first, second].into_iter().chain(values).collect();
                format!("({})", rest.join(","))
            }
        };
        value_display::excerpt(text.as_bytes())
    }

    pub(crate) fn take(&mut self) -> RecordBatch {
        self.rows = 0;
        if self.columns.is_empty() {
            return RecordBatch::new_empty(self.schema.clone());
        }
        let arrays: Vec<ArrayRef> = self.columns.iter_mut().map(Column::take).collect();
        RecordBatch::from(StructArray::new(self.schema.fields().clone(), arrays, None))
    }
}

/// A value that Delta cannot hold and that is null in the lake instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The row's position in the batch that the value is null in.
    pub row: usize,
    /// Position of the column in the table's schema.
    pub column: usize,
    /// The row's key in text form, `(a,b)` for several columns, empty for a table without a key. At most
    /// a few hundred bytes.
    pub key: String,
    /// The value in Postgres's text form, or its beginning followed by `…`.
    pub value: String,
    /// What was in the way.
    pub reason: &'static str,
}

/// The dead letters of the rows in a [`ColumnSet`], and of the row that is just being appended.
#[derive(Default)]
pub(crate) struct DeadLetters {
    letters: Vec<DeadLetter>,
    settled: usize,
    bytes: usize,
}

impl DeadLetters {
    pub(crate) fn byte_size(&self) -> usize {
        self.bytes
    }

    /// Decides about a value that failed: under [`Unrepresentable::Null`] it becomes a dead letter.
    pub(crate) fn settle(
        &mut self,
        failed: ValueError,
        policy: Unrepresentable,
        column: usize,
        in_key: bool,
        value: impl FnOnce() -> String,
    ) -> Result<(), ValueError> {
        match (failed, policy) {
            (ValueError::Unrepresentable { reason }, Unrepresentable::Null) if !in_key => {
                self.letters.push(DeadLetter { row: 0, column, key: String::new(), value: value(), reason });
                Ok(())
            }
            _ => Err(failed),
        }
    }

    /// The row failed: its letters go with it.
    pub(crate) fn drop_row(&mut self) {
        self.letters.truncate(self.settled);
    }

    /// The row is complete: its letters get its place and key.
    #[inline]
    pub(crate) fn end_row(&mut self, row: usize, key: impl FnOnce() -> String) {
        if self.settled == self.letters.len() {
            return;
        }
        let key = key();
        for letter in self.letters.iter_mut().skip(self.settled) {
            letter.row = row;
            letter.key.clone_from(&key);
            self.bytes += size_of::<DeadLetter>() + letter.key.len() + letter.value.len();
        }
        self.settled = self.letters.len();
    }

    pub(crate) fn take(&mut self) -> Vec<DeadLetter> {
        std::mem::take(self).letters
    }
}

/// The error of a value, with its place.
pub(crate) fn value_row_error(spec: Option<&ColumnSpec>, excerpt: String, source: ValueError) -> RowError {
    RowError::Value { column: spec.map(|spec| spec.source_name.clone()).unwrap_or_default(), excerpt, source }
}
