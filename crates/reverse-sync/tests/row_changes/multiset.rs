//! Rows as a multiset, to which changes are applied in the order they come.

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use futures::TryStreamExt;
use reverse_sync::{Changes, Result, Rows};
use std::collections::HashMap;

#[derive(Debug)]
pub struct Multiset {
    schema: SchemaRef,
    rows: HashMap<Vec<u8>, i64>,
}

impl PartialEq for Multiset {
    fn eq(&self, other: &Self) -> bool {
        self.schema == other.schema && self.rows == other.rows
    }
}

impl Multiset {
    /// All rows of a version.
    pub async fn of(rows: Rows, renamed: &[(&str, &str)]) -> Result<Multiset> {
        let empty = Multiset { schema: rows.schema.clone(), rows: HashMap::new() };
        Multiset::under(&empty, rows, renamed).await
    }

    /// All rows of a version as they are under another one's columns.
    pub async fn under(other: &Multiset, rows: Rows, renamed: &[(&str, &str)]) -> Result<Multiset> {
        let mut all = Multiset { schema: other.schema.clone(), rows: HashMap::new() };
        let mut stream = rows.stream;
        while let Some(batch) = stream.try_next().await? {
            let batch = under_schema(&batch, &all.schema, renamed);
            for row in bytes_of(&batch) {
                *all.rows.entry(row).or_default() += 1;
            }
        }
        Ok(all)
    }

    /// How many rows have to go and come to make the other of this one.
    pub fn distance(&self, other: &Multiset) -> u64 {
        let mut all: HashMap<&Vec<u8>, i64> = HashMap::new();
        for (row, count) in &self.rows {
            *all.entry(row).or_default() += count;
        }
        for (row, count) in &other.rows {
            *all.entry(row).or_default() -= count;
        }
        all.values().map(|count| count.unsigned_abs()).sum()
    }

    /// Applies changes; a row that goes must be there. How many there were.
    pub async fn apply(&mut self, changes: Changes, what: &str) -> Result<u64> {
        assert_eq!(changes.schema, self.schema, "{what}");
        let mut told = 0;
        let mut stream = changes.stream;
        while let Some(batch) = stream.try_next().await? {
            told += batch.rows.num_rows() as u64;
            for row in bytes_of(&batch.rows) {
                let count = self.rows.entry(row).or_default();
                *count += if batch.kind.removes_row() { -1 } else { 1 };
                assert!(*count >= 0, "{what}: {:?} of a row that is not there", batch.kind);
            }
        }
        self.rows.retain(|_, count| *count != 0);
        Ok(told)
    }
}

/// The batch's columns by name under a schema: missing ones null, others cast.
fn under_schema(batch: &RecordBatch, schema: &SchemaRef, renamed: &[(&str, &str)]) -> RecordBatch {
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .map(|field| {
            let earlier = renamed.iter().find(|(_, now)| *now == field.name()).map(|(before, _)| *before);
            let column = earlier.and_then(|name| batch.column_by_name(name));
            match column.or_else(|| batch.column_by_name(field.name())) {
                Some(column) => cast(column, field.data_type()).unwrap(),
                None => new_null_array(field.data_type(), batch.num_rows()),
            }
        })
        .collect();
    RecordBatch::try_new(schema.clone(), columns).unwrap()
}

fn bytes_of(batch: &RecordBatch) -> Vec<Vec<u8>> {
    let fields = batch.schema().fields().iter().map(|f| SortField::new(f.data_type().clone())).collect();
    let converter = RowConverter::new(fields).unwrap();
    let rows = converter.convert_columns(batch.columns()).unwrap();
    rows.iter().map(|row| row.as_ref().to_vec()).collect()
}
