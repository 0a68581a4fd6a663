//! One table of the lake against its source, as `verify` reports it.
//!
//! As in mending, but nothing is written: the rows of a snapshot and of a Delta version are compared by hash, and of
//! the first keys that differ the values are read once more, to be shown.

use super::SyncError;
use super::mending::{add_lake, add_source, differences};
use super::plan::PlannedTable;
use super::row_comparison::{Difference, Differences, RowComparison, RowHasher};
use super::source_rows::{Piece, PieceReader, pieces};
use crate::verification::DifferingKey;
use arrow::array::RecordBatch;
use arrow::util::display::array_value_to_string;
use futures::TryStreamExt;
use lake_sql::LakeSession;
use postgres_connector::SnapshotSession;
use std::collections::BTreeMap;
use std::path::Path;

/// Differing keys that are shown.
const SHOWN_KEYS: usize = 10;

/// Characters of a value that are shown.
const SHOWN_CHARS: usize = 80;

/// What was found.
pub struct Compared {
    /// Rows at the source.
    pub source_rows: u64,
    /// Rows in the lake.
    pub lake_rows: u64,
    /// Keys that differ.
    pub differing_keys: u64,
    /// Some of them.
    pub first: Vec<DifferingKey>,
}

/// Compares the rows of a snapshot with a version of the lake.
pub async fn compare(
    session: &mut SnapshotSession,
    lake: &LakeSession,
    spool: &Path,
    planned: &PlannedTable,
    version: u64,
    progress: impl Fn(u64),
) -> Result<Compared, SyncError> {
    let hasher = RowHasher::new(planned.schema.arrow_schema(), planned.schema.key.clone())?;
    let pieces: Vec<Piece> = pieces(session, planned.relation).await?.into();
    let mut comparison = RowComparison::new(spool);
    add_source(session, planned, &pieces, &hasher, &mut comparison, progress).await?;
    add_lake(lake, &planned.folder, version, &hasher, &mut comparison).await?;
    let found = differences(comparison, SHOWN_KEYS).await?;
    let shown = Shown { planned, hasher: &hasher, found: &found };
    let mut texts = BTreeMap::new();
    shown.collect_source(session, &pieces, &mut texts).await?;
    shown.collect_lake(lake, version, &mut texts).await?;
    Ok(Compared {
        source_rows: found.source_rows,
        lake_rows: found.lake_rows,
        differing_keys: found.count,
        first: texts.into_iter().map(|(key, difference)| DifferingKey { key, difference }).collect(),
    })
}

/// Finds the values behind the hashes of keys that differ.
struct Shown<'a> {
    planned: &'a PlannedTable,
    hasher: &'a RowHasher,
    found: &'a Differences,
}

impl Shown<'_> {
    async fn collect_source(
        &self,
        session: &mut SnapshotSession,
        pieces: &[Piece],
        texts: &mut BTreeMap<String, String>,
    ) -> Result<(), SyncError> {
        let wanted = self.found.pieces();
        for (_, piece) in (0u32..).zip(pieces).filter(|(number, _)| wanted.contains(number)) {
            let mut rows = PieceReader::open(session, self.planned, piece).await?;
            while let Some(batch) = rows.next().await? {
                self.collect(&batch.rows, texts)?;
            }
        }
        Ok(())
    }

    /// What only the lake has.
    async fn collect_lake(
        &self,
        lake: &LakeSession,
        version: u64,
        texts: &mut BTreeMap<String, String>,
    ) -> Result<(), SyncError> {
        if !self.found.keys.values().any(|difference| *difference == Difference::Extra) {
            return Ok(());
        }
        let mut rows = lake.rows_at(&self.planned.folder, version, &self.hasher.column_names()).await?;
        while let Some(batch) = rows.try_next().await.map_err(lake_sql::LakeSqlError::from)? {
            self.collect(&batch, texts)?;
        }
        Ok(())
    }

    fn collect(&self, batch: &RecordBatch, texts: &mut BTreeMap<String, String>) -> Result<(), SyncError> {
        for (row, hash) in self.hasher.hash(batch)?.iter().enumerate() {
            let difference = match self.found.keys.get(&hash.key) {
                None => continue,
                Some(Difference::Missing(_)) => "only at the source",
                Some(Difference::Changed(_)) => "other values",
                Some(Difference::Extra) => "only in the lake",
            };
            texts.insert(self.key_text(batch, row), difference.to_owned());
        }
        Ok(())
    }

    /// `id=7, country=DE`, under the names of the source.
    fn key_text(&self, batch: &RecordBatch, row: usize) -> String {
        let schema = &self.planned.schema;
        let whole: Vec<usize> = (0..schema.columns.len()).collect();
        let key = if schema.key.is_empty() { &whole } else { &schema.key };
        let values = key.iter().filter_map(|at| {
            let (spec, column) = schema.columns.get(*at).zip(batch.columns().get(*at))?;
            let value = array_value_to_string(column, row).unwrap_or_else(|_| "?".to_owned());
            let value: String = value.chars().take(SHOWN_CHARS).collect();
            Some(format!("{}={value}", spec.source_name))
        });
        values.collect::<Vec<_>>().join(", ")
    }
}
