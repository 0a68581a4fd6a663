//! Values that an update left untouched and Postgres therefore did not send (large, TOASTed ones).
//!
//! Each is found where the row it replaces is: in a row of the same piece of changes (a chain of updates, followed
//! to its beginning), in a pending row of this flush, or in a data file, from which only the needed columns
//! and rows are read, one pass per file. A value is never made up: what cannot be found is an error.

use crate::action::Add;
use crate::error::{DeltaError, Result};
use crate::flush::OldRow;
use crate::key_index::FileId;
use crate::mirror_table::MirrorTable;
use crate::pending_rows::PendingRow;
use crate::read_back::{Found, Wanted, read};
use arrow::array::{Array, RecordBatch};
use arrow::compute::interleave;
use std::collections::{BTreeMap, HashMap, HashSet};
use wal_decoder::UnchangedValue;

/// Which row each incomplete row of a batch replaces.
pub(crate) struct Origins {
    batch: usize,
    incomplete: HashSet<usize>,
    values: HashSet<(usize, usize)>,
    replaced: HashMap<usize, OldRow>,
}

impl Origins {
    pub fn new(batch: usize, unchanged: &[UnchangedValue]) -> Self {
        Self {
            batch,
            incomplete: unchanged.iter().map(|value| value.row as usize).collect(),
            values: unchanged.iter().map(|value| (value.row as usize, value.column as usize)).collect(),
            replaced: HashMap::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.incomplete.is_empty()
    }

    pub fn record(&mut self, row: usize, old: OldRow) {
        if self.incomplete.contains(&row) {
            self.replaced.insert(row, old);
        }
    }

    /// The row that really holds a value: updates of one batch are followed back.
    fn find(&self, row: usize, column: usize) -> Option<OldRow> {
        let mut row = row;
        loop {
            match self.replaced.get(&row).copied()? {
                // Rows stand in the order of their operations, so the chain only goes down and ends.
                OldRow::Pending(at) if at.batch == self.batch && self.values.contains(&(at.row, column)) => {
                    row = at.row;
                }
                found => return Some(found),
            }
        }
    }
}

/// Puts the untouched values into `rows`.
pub(crate) async fn fill(
    table: &mut MirrorTable,
    rows: RecordBatch,
    unchanged: &[UnchangedValue],
    origins: Origins,
) -> Result<RecordBatch> {
    let bad = |reason: &str| DeltaError::BadChanges {
        table: table.location.uri().to_owned(),
        reason: reason.to_owned(),
    };
    let mut by_column: BTreeMap<usize, Vec<(usize, OldRow)>> = BTreeMap::new();
    let mut wanted: BTreeMap<FileId, Wanted> = BTreeMap::new();
    for value in unchanged {
        let (row, column) = (value.row as usize, value.column as usize);
        let origin = origins
            .find(row, column)
            .ok_or_else(|| bad("an unchanged value belongs to a row that replaces no other"))?;
        if let OldRow::Stored(address) = origin {
            let wanted = wanted.entry(address.file).or_default();
            wanted.columns.insert(column);
            wanted.rows.insert(address.row);
        }
        by_column.entry(column).or_default().push((row, origin));
    }
    if wanted.keys().any(|file| table.flush.sink.is_open(*file)) {
        table.flush.sink.close().await?;
    }
    let mut files = BTreeMap::new();
    for (file, wanted) in wanted {
        let add =
            file_of(table, file).ok_or_else(|| bad("an unchanged value lies in a file that is gone"))?;
        files.insert(file, read(table, &add, wanted).await?);
    }
    let mut columns = rows.columns().to_vec();
    for (column, values) in by_column {
        let filled = fill_column(table, &rows, column, &values, origins.batch, &files)?;
        if let Some(slot) = columns.get_mut(column) {
            *slot = filled;
        }
    }
    RecordBatch::try_new(rows.schema(), columns).map_err(DeltaError::arrow("put unchanged values into rows"))
}

fn file_of(table: &MirrorTable, file: FileId) -> Option<Add> {
    if let Some(sealed) = table.flush.sink.sealed_file(file) {
        return Some(sealed.add.clone());
    }
    let touched = table.flush.touched.get(&file)?;
    table.state.files.get(&touched.path).map(|live| Add::clone(&live.add))
}

fn fill_column(
    table: &MirrorTable,
    rows: &RecordBatch,
    column: usize,
    values: &[(usize, OldRow)],
    current: usize,
    files: &BTreeMap<FileId, Found>,
) -> Result<arrow::array::ArrayRef> {
    let lost = || DeltaError::BadChanges {
        table: table.location.uri().to_owned(),
        reason: "an unchanged value lies in a row that is gone".to_owned(),
    };
    let mut sources: Vec<&dyn Array> = vec![rows.columns().get(column).ok_or_else(lost)?.as_ref()];
    let mut pending_at: HashMap<usize, usize> = HashMap::from([(current, 0)]);
    let mut file_at: HashMap<FileId, usize> = HashMap::new();
    let mut places: Vec<(usize, usize)> = (0..rows.num_rows()).map(|row| (0, row)).collect();
    for (row, origin) in values {
        let place = match origin {
            OldRow::Pending(PendingRow { batch, row }) => {
                let source = match pending_at.get(batch) {
                    Some(source) => *source,
                    None => {
                        let pending = table.flush.pending.rows(*batch).ok_or_else(lost)?;
                        sources.push(pending.columns().get(column).ok_or_else(lost)?.as_ref());
                        pending_at.insert(*batch, sources.len() - 1);
                        sources.len() - 1
                    }
                };
                (source, *row)
            }
            OldRow::Stored(address) => {
                let found = files.get(&address.file).ok_or_else(lost)?;
                let source = match file_at.get(&address.file) {
                    Some(source) => *source,
                    None => {
                        let at = found.columns.binary_search(&column).map_err(|_| lost())?;
                        sources.push(found.batch.columns().get(at).ok_or_else(lost)?.as_ref());
                        file_at.insert(address.file, sources.len() - 1);
                        sources.len() - 1
                    }
                };
                (source, found.rows.binary_search(&address.row).map_err(|_| lost())?)
            }
        };
        if let Some(slot) = places.get_mut(*row) {
            *slot = place;
        }
    }
    interleave(&sources, &places).map_err(DeltaError::arrow("put unchanged values into a column"))
}
