//! All rows of one version.
//!
//! The files are read [side by side](super::side_by_side), so the order of rows is nobody's promise.

use super::read_plan::{Part, ReadPlan};
use super::side_by_side::side_by_side;
use super::{DataFile, RowSet, TableSource, TableVersion};
use crate::error::Result;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use delta_kernel::scan::StatsOptions;
use delta_kernel::scan::state::ScanFile;
use delta_kernel::snapshot::SnapshotRef;
use futures::TryStreamExt;
use futures::stream::{self, BoxStream};
use std::fmt;
use std::sync::Arc;

/// Rows of a table as they come.
pub struct Rows {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub stream: BoxStream<'static, Result<RecordBatch>>,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl TableSource {
    /// The rows of a version, in no order. A file that VACUUM took away shows as
    /// [`Unavailable`](crate::Unavailable) in the stream.
    pub async fn snapshot(&self, version: u64, part: &Part) -> Result<Rows> {
        let snapshot = self.snapshot_at(version).await?;
        let state = TableVersion::new(&snapshot).map_err(|source| self.log_error(source))?;
        let plan = Arc::new(ReadPlan::new(self.uri(), &state, part)?);
        let files = self.files_at(snapshot).await?;
        let schema = Arc::clone(plan.schema());
        let source = self.clone();
        let read = move |(file, rows): (DataFile, RowSet)| {
            let (source, plan) = (source.clone(), Arc::clone(&plan));
            let opened = async move { source.read_file(&plan, &file, &rows).await };
            stream::once(opened).try_flatten().map_ok(|(batch, _)| batch)
        };
        Ok(Rows { schema, stream: side_by_side(self.uri().to_owned(), files, read) })
    }

    /// The files of a version with the rows that live in them.
    pub(crate) async fn files_at(&self, snapshot: SnapshotRef) -> Result<Vec<(DataFile, RowSet)>> {
        let version = snapshot.version();
        let scanned = self
            .with_engine(move |engine, _| {
                // Files are not skipped by their statistics here, so none are parsed.
                let scan = snapshot.scan_builder().with_stats(StatsOptions::none()).build()?;
                let mut files = Vec::new();
                for metadata in scan.scan_metadata(engine)? {
                    files = metadata?.visit_scan_files(files, |files, file| files.push(file))?;
                }
                Ok(files)
            })
            .await?;
        let scanned: Vec<ScanFile> = scanned.map_err(|source| self.log_error(source))?;
        let file = |file: ScanFile| {
            let partition_values = file.partition_values.into_iter();
            let data_file = DataFile {
                version,
                path: file.path,
                size: u64::try_from(file.size).ok(),
                partition_values: partition_values.map(|(name, value)| (name, Some(value))).collect(),
            };
            (data_file, RowSet::Live(file.dv_info))
        };
        Ok(scanned.into_iter().map(file).collect())
    }
}
