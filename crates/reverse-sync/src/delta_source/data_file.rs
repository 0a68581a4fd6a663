//! Reading one data file: some of its rows, under a plan's schema, with their places in the file.
//!
//! Which rows is a [`RowSet`]: those that live, those that one deletion vector took beyond another, or those of a
//! list. It becomes a selection before anything is decoded, so that a few rows of a large file cost the row groups
//! and pages they lie in.
//!
//! Spark writes timestamps as INT96 by default, which Arrow takes for nanoseconds: the years before 1677 and after
//! 2262 wrap around without a word, in delta-kernel's reader as well. Such columns are asked for in microseconds.

use super::TableSource;
use super::conform::retyped;
use super::parquet_file::ParquetFile;
use super::read_plan::ReadPlan;
use crate::error::{Result, ReverseSyncError, Unavailable};
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, FieldRef, Fields, Schema as ArrowSchema, TimeUnit};
use delta_kernel::scan::state::DvInfo;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::basic::Type as PhysicalType;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, RowGroupMetaData};
use roaring::RoaringTreemap;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Rows decoded at a time: enough for columnar work,
const BATCH_ROWS: u64 = 8192;

/// and of a file with large rows so many as make this on the average, so that a few readers stay within megabytes.
const BATCH_BYTES: u64 = 8 << 20;

/// A data file, as an action of the log names it.
#[derive(Debug, Clone)]
pub(crate) struct DataFile {
    /// The version that the file's rows are read for.
    pub version: u64,
    /// Relative to the table and URL-encoded, or absolute.
    pub path: String,
    /// Its length in bytes, when the log has it.
    pub size: Option<u64>,
    /// By physical name.
    pub partition_values: HashMap<String, Option<String>>,
}

/// Which rows of a file.
#[derive(Debug, Clone)]
pub(crate) enum RowSet {
    /// All but those that a vector deletes.
    Live(DvInfo),
    /// Those that `inside` deletes and `outside` does not.
    Between {
        /// the vector that has the rows
        inside: DvInfo,
        /// the vector that does not have them
        outside: DvInfo,
    },
    /// These.
    Only(Arc<RoaringTreemap>),
}

/// Rows of a file in its order, each batch with the rows' places in the file.
pub(crate) type FileRows = BoxStream<'static, Result<(RecordBatch, Vec<u64>)>>;

impl TableSource {
    /// Opens a file and reads some of its rows.
    pub(crate) async fn read_file(
        &self,
        plan: &Arc<ReadPlan>,
        file: &DataFile,
        rows: &RowSet,
    ) -> Result<FileRows> {
        let chosen = self.chosen_rows(file, rows).await?;
        let path = self.path_of(file)?;
        let (reader, metadata) = match self.open_parquet(&path, file).await {
            Ok(opened) => opened,
            Err(source) => return Err(self.file_error(&path, file, source).await),
        };
        let total = metadata.metadata().file_metadata().num_rows().try_into().unwrap_or(0);
        let ranges = chosen.ranges(total);
        let columns = plan.file_columns(metadata.schema(), &file.partition_values)?;
        let mask = ProjectionMask::roots(metadata.parquet_schema(), columns.roots.iter().copied());
        let batch_rows = batch_rows(metadata.metadata());
        let mut builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata)
            .with_projection(mask)
            .with_batch_size(batch_rows);
        if !matches!(ranges.as_slice(), [all] if *all == (0..total)) {
            builder = builder.with_row_selection(selection(&ranges, total));
        }
        let decoded = builder.build();
        let decoded = decoded.map_err(|source| file_failure(self.uri(), file, Box::new(source)))?;
        let mut positions = ranges.into_iter().flatten();
        let (plan, file, table) = (Arc::clone(plan), file.clone(), self.uri().to_owned());
        let shaped = decoded.map(move |batch| {
            let batch = batch.map_err(|source| file_failure(&table, &file, Box::new(source)))?;
            let places = positions.by_ref().take(batch.num_rows()).collect();
            plan.shape(&columns, &batch, places)
        });
        Ok(shaped.try_filter(|(batch, _)| std::future::ready(batch.num_rows() > 0)).boxed())
    }

    async fn open_parquet(
        &self,
        path: &Path,
        file: &DataFile,
    ) -> parquet::errors::Result<(ParquetFile, ArrowReaderMetadata)> {
        let mut reader = ParquetFile::find(self.objects(), path, file.size).await?;
        // Types are matched with the table's schema, not with what a writer's Arrow happened to use.
        let options = ArrowReaderOptions::new()
            .with_skip_arrow_metadata(true)
            .with_page_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load_async(&mut reader, options.clone()).await?;
        let metadata = match has_int96(&metadata) {
            true => {
                let schema = Arc::new(in_microseconds(metadata.schema()));
                ArrowReaderMetadata::try_new(Arc::clone(metadata.metadata()), options.with_schema(schema))?
            }
            false => metadata,
        };
        Ok((reader, metadata))
    }

    async fn chosen_rows(&self, file: &DataFile, rows: &RowSet) -> Result<Chosen> {
        Ok(match rows {
            RowSet::Live(vector) => Chosen::AllBut(self.deleted_rows(file, vector).await?),
            RowSet::Between { inside, outside } => {
                let inside = self.deleted_rows(file, inside).await?;
                Chosen::Only(inside - self.deleted_rows(file, outside).await?)
            }
            RowSet::Only(rows) => Chosen::Only(rows.as_ref().clone()),
        })
    }

    /// The rows of a file that a deletion vector takes away.
    async fn deleted_rows(&self, file: &DataFile, vector: &DvInfo) -> Result<RoaringTreemap> {
        if !vector.has_vector() {
            return Ok(RoaringTreemap::new());
        }
        let vector = vector.clone();
        let read = self.with_engine(move |engine, url| vector.get_row_indexes(engine, url)).await?;
        match read {
            Ok(rows) => Ok(rows.unwrap_or_default().into_iter().collect()),
            Err(delta_kernel::Error::FileNotFound(_)) => Err(self.vacuumed(file)),
            Err(source) => Err(file_failure(self.uri(), file, Box::new(source))),
        }
    }

    /// A file that is not there any more is no damage: VACUUM took it.
    async fn file_error(
        &self,
        path: &Path,
        file: &DataFile,
        source: parquet::errors::ParquetError,
    ) -> ReverseSyncError {
        match self.objects().head(path).await {
            Err(object_store::Error::NotFound { .. }) => self.vacuumed(file),
            _ => file_failure(self.uri(), file, Box::new(source)),
        }
    }

    fn vacuumed(&self, file: &DataFile) -> ReverseSyncError {
        let (version, path) = (file.version, file.path.clone());
        self.unavailable(version, version, Unavailable::FileVacuumed { version, path })
    }
}

fn file_failure(
    table: &str,
    file: &DataFile,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> ReverseSyncError {
    ReverseSyncError::DataFile { table: table.to_owned(), path: file.path.clone(), source }
}

enum Chosen {
    AllBut(RoaringTreemap),
    Only(RoaringTreemap),
}

impl Chosen {
    /// The chosen among `total` rows, as ranges in order.
    fn ranges(self, total: u64) -> Vec<Range<u64>> {
        match self {
            Chosen::AllBut(rows) => {
                let (mut ranges, mut next) = (Vec::new(), 0);
                for row in rows.iter().take_while(|row| *row < total) {
                    if next < row {
                        ranges.push(next..row);
                    }
                    next = row + 1;
                }
                if next < total {
                    ranges.push(next..total);
                }
                ranges
            }
            Chosen::Only(rows) => {
                let mut ranges: Vec<Range<u64>> = Vec::new();
                for row in rows.iter().take_while(|row| *row < total) {
                    match ranges.last_mut() {
                        Some(last) if last.end == row => last.end += 1,
                        _ => ranges.push(row..row + 1),
                    }
                }
                ranges
            }
        }
    }
}

fn selection(ranges: &[Range<u64>], total: u64) -> RowSelection {
    let place = |row: u64| usize::try_from(row).unwrap_or(usize::MAX);
    let ranges = ranges.iter().map(|range| place(range.start)..place(range.end));
    RowSelection::from_consecutive_ranges(ranges, place(total))
}

/// How many rows of a file are decoded at a time.
fn batch_rows(file: &ParquetMetaData) -> usize {
    let size = |group: &RowGroupMetaData| u64::try_from(group.total_byte_size()).unwrap_or(0);
    let bytes: u64 = file.row_groups().iter().map(size).fold(0, u64::saturating_add);
    let rows = u64::try_from(file.file_metadata().num_rows()).unwrap_or(0);
    let row_bytes = bytes.checked_div(rows).unwrap_or(0).max(1);
    usize::try_from((BATCH_BYTES / row_bytes).clamp(1, BATCH_ROWS)).unwrap_or(1)
}

fn has_int96(metadata: &ArrowReaderMetadata) -> bool {
    metadata.parquet_schema().columns().iter().any(|column| column.physical_type() == PhysicalType::INT96)
}

fn in_microseconds(schema: &ArrowSchema) -> ArrowSchema {
    let fields: Fields = schema.fields().iter().map(field_in_microseconds).collect();
    ArrowSchema::new(fields)
}

fn field_in_microseconds(field: &FieldRef) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
            DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
        }
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field_in_microseconds).collect()),
        DataType::List(element) => DataType::List(field_in_microseconds(element)),
        DataType::Map(entries, sorted) => DataType::Map(field_in_microseconds(entries), *sorted),
        _ => return Arc::clone(field),
    };
    retyped(field, data_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_as_ranges_within_the_file() {
        let rows = |rows: &[u64]| rows.iter().copied().collect::<RoaringTreemap>();
        let none: [Range<u64>; 0] = [];
        assert_eq!(Chosen::AllBut(rows(&[])).ranges(5), vec![Range { start: 0, end: 5 }]);
        assert_eq!(Chosen::AllBut(rows(&[0, 2, 3])).ranges(5), [1..2, 4..5]);
        assert_eq!(Chosen::AllBut(rows(&[0, 1])).ranges(2), none);
        assert_eq!(Chosen::Only(rows(&[1, 2, 4])).ranges(5), [1..3, 4..5]);
        assert_eq!(
            Chosen::Only(rows(&[1, 7])).ranges(5),
            vec![Range { start: 1, end: 2 }],
            "a vector longer than its file"
        );
        assert_eq!(Chosen::Only(rows(&[])).ranges(5), none);
    }

    #[test]
    fn large_rows_are_decoded_a_few_at_a_time() {
        let batch_rows_of = |value: &str| {
            let values = arrow::array::StringArray::from_iter_values((0..100).map(|n| format!("{n}{value}")));
            let columns: [(&str, arrow::array::ArrayRef); 1] = [("v", Arc::new(values))];
            let batch = RecordBatch::try_from_iter(columns).unwrap();
            let mut writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
            writer.write(&batch).unwrap();
            batch_rows(&writer.close().unwrap())
        };
        assert_eq!(batch_rows_of("short"), 8192);
        assert!((30..90).contains(&batch_rows_of(&"x".repeat(100_000))));
    }
}
