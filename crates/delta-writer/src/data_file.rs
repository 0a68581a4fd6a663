//! Data files: Parquet, written as a stream, addressed by physical row.
//!
//! A [`DataFileWriter`] is one growing file. A [`FileSink`] is a sequence of them, and gives each row it
//! takes its address. An unpartitioned sink fills one file until it is full, however often rows arrive;
//! a partitioned one closes a file per partition with every call, so that no more than one is open.
//!
//! ```text
//!   append(batches) --> [ file | file | open file ]   unpartitioned
//!   append(batches) --> [ DE ][ FR ][ .. ]            partitioned: closed at once
//! ```

use crate::action::Add;
use crate::crash_point::crash_point;
use crate::error::{DeltaError, Result};
use crate::file_stats::{self, ColumnCounts};
use crate::key_index::{FileId, RowAddress};
use crate::lake::TableLocation;
use crate::partition_value;
use crate::table_definition::{TableDefinition, TableKind};
use crate::writer_options::WriterOptions;
use arrow::array::{Array, StringArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use object_store::buffered::BufWriter;
use parquet::arrow::AsyncArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// Rows of a row group at most: what readers parallelise over and skip by.
const ROW_GROUP_ROWS: usize = 1_000_000;
/// A row group is held in memory until it is full, and once more while its pages are put together and sent; so fat
/// rows make smaller groups. Scans are as fast with these as with larger ones.
const ROW_GROUP_BYTES: usize = 16 << 20;

/// What the store's writer gathers before it sends a part: its default.
const UPLOAD_PART: usize = 10 << 20;
/// Parts of a file that are on their way at once: more than rows are made for, and each is in memory.
const PARTS_UNDER_WAY: usize = 2;

type PartitionValues = BTreeMap<String, Option<String>>;

/// A closed data file that no commit names yet.
#[derive(Debug, Clone)]
pub(crate) struct SealedFile {
    pub id: FileId,
    pub rows: u64,
    pub add: Add,
}

/// One data file being written.
pub(crate) struct DataFileWriter {
    location: TableLocation,
    /// Below the table's folder, unescaped.
    relative: String,
    partition: PartitionValues,
    schema: SchemaRef,
    counts: ColumnCounts,
    rows: u64,
    tight: bool,
    bytes: u64,
    /// Never locked: inside a mutex it is `Sync`, so that a table may be shared across an await of a
    /// spawned task although Parquet's and the store's writers are only `Send`.
    writer: Mutex<AsyncArrowWriter<BufWriter>>,
}

impl DataFileWriter {
    /// Opens a new file in the folder of a partition (no values: the table's own folder).
    pub fn open(
        location: &TableLocation,
        definition: &TableDefinition,
        options: &WriterOptions,
        partition: PartitionValues,
    ) -> Result<Self> {
        let folder = partition_value::folder(&definition.partition_by, &partition);
        let relative = format!("{folder}part-{}.zstd.parquet", Uuid::new_v4());
        let failed = data_file_error("open", &relative);
        let level = ZstdLevel::try_new(options.zstd_level).map_err(&failed)?;
        let schema = definition.file_schema();
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
            .set_created_by(crate::table_state::ENGINE.to_owned());
        for field in schema.fields().iter().filter(|field| is_mostly_distinct(field, definition)) {
            properties =
                properties.set_column_dictionary_enabled(ColumnPath::from(field.name().as_str()), false);
        }
        // The Arrow schema in the footer would be a second truth beside Parquet's own.
        let options =
            ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true);
        let output =
            BufWriter::with_capacity(Arc::clone(location.store()), location.child(&relative)?, UPLOAD_PART)
                .with_max_concurrency(PARTS_UNDER_WAY);
        let writer =
            AsyncArrowWriter::try_new_with_options(output, Arc::clone(&schema), options).map_err(&failed)?;
        Ok(Self {
            location: location.clone(),
            counts: ColumnCounts::new(schema.fields().len()),
            rows: 0,
            tight: definition.deletion_vectors,
            relative,
            partition,
            schema,
            bytes: 0,
            writer: Mutex::new(writer),
        })
    }

    /// The path as an Add names it. Our names hold no character that has to be escaped but `%` itself.
    pub fn log_path(&self) -> String {
        self.relative.replace('%', "%25")
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What of the file is still in memory: the open row group, and the part that the store takes next.
    pub fn bytes_in_memory(&mut self) -> usize {
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        writer.memory_size() + writer.bytes_written().min(UPLOAD_PART)
    }

    /// Appends rows (without partition columns).
    pub async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        // Names and nullability may differ from the declared schema in metadata only; the file has one schema.
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), batch.columns().to_vec())
            .map_err(DeltaError::arrow("give rows the table's schema"))?;
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        writer.write(&batch).await.map_err(data_file_error("write", &self.relative))?;
        self.bytes = (writer.bytes_written() + writer.in_progress_size()) as u64;
        self.counts.add(&batch);
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Closes the file and makes it durable.
    pub async fn finish(mut self) -> Result<(u64, Add)> {
        crash_point!("data-file-before-put");
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        let metadata = writer.finish().await.map_err(data_file_error("finish", &self.relative))?;
        let size = i64::try_from(writer.bytes_written()).unwrap_or(i64::MAX);
        self.location.sync(&[self.location.child(&self.relative)?]).await?;
        crash_point!("data-file-after-put");
        let stats = file_stats::collect(&self.relative, &self.schema, &self.counts, &metadata, self.tight)?;
        let add = Add {
            path: self.log_path(),
            size,
            partition_values: self.partition,
            modification_time: chrono::Utc::now().timestamp_millis(),
            data_change: true,
            stats: Some(stats),
            tags: None,
            deletion_vector: None,
        };
        Ok((self.rows, add))
    }
}

/// Whether a dictionary would be built only to be thrown away: it was a tenth of the time of writing a file.
fn is_mostly_distinct(field: &Field, definition: &TableDefinition) -> bool {
    let names_rows =
        |&at: &usize| definition.schema.fields().get(at).is_some_and(|key| key.name() == field.name());
    let is_key = definition.kind != TableKind::Multiset && definition.key.iter().any(names_rows);
    is_key || field.data_type().is_floating() || matches!(field.data_type(), DataType::Timestamp(..))
}

fn data_file_error(action: &'static str, path: &str) -> impl Fn(ParquetError) -> DeltaError + use<> {
    let path = path.to_owned();
    move |source| DeltaError::DataFile { action, path: path.clone(), source }
}

/// Gives numbers to new data files.
pub(crate) type NumberFile<'a> = dyn FnMut(&str) -> Result<FileId> + Send + 'a;

/// Writes rows into as many files as they need.
pub(crate) struct FileSink {
    location: TableLocation,
    definition: Arc<TableDefinition>,
    options: WriterOptions,
    open: Option<(FileId, DataFileWriter)>,
    sealed: Vec<SealedFile>,
    /// Of the closed files.
    numbers: HashSet<FileId>,
}

impl FileSink {
    pub fn new(location: TableLocation, definition: Arc<TableDefinition>, options: WriterOptions) -> Self {
        Self { location, definition, options, open: None, sealed: Vec::new(), numbers: HashSet::new() }
    }

    /// Writes the files that follow in another shape. The open one has to be closed before.
    pub fn redefine(&mut self, definition: Arc<TableDefinition>) {
        self.definition = definition;
    }

    /// Forgets everything written so far; the files stay behind, unreferenced.
    pub fn clear(&mut self) {
        self.open = None;
        self.sealed.clear();
        self.numbers.clear();
    }

    /// What is written and still in memory.
    pub fn bytes_in_memory(&mut self) -> usize {
        self.open.as_mut().map_or(0, |(_, writer)| writer.bytes_in_memory())
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.open.is_none() && self.sealed.is_empty()
    }

    /// The closed files so far.
    pub fn sealed(&self) -> &[SealedFile] {
        &self.sealed
    }

    /// Whether this file is one of this sink's.
    pub fn holds(&self, file: FileId) -> bool {
        self.is_open(file) || self.numbers.contains(&file)
    }

    /// The closed file of this number.
    pub fn sealed_file(&self, file: FileId) -> Option<&SealedFile> {
        self.sealed.iter().find(|sealed| sealed.id == file)
    }

    /// Whether a row of this file can be read back only after [`FileSink::close`].
    pub fn is_open(&self, file: FileId) -> bool {
        self.open.as_ref().is_some_and(|(id, _)| *id == file)
    }

    /// Writes batches of the table and returns each row's address, batch by batch.
    pub async fn append(
        &mut self,
        batches: &[RecordBatch],
        number: &mut NumberFile<'_>,
    ) -> Result<Vec<Vec<RowAddress>>> {
        if self.definition.is_partitioned() {
            return self.append_partitioned(batches, number).await;
        }
        let mut addresses = Vec::with_capacity(batches.len());
        for batch in batches {
            addresses.push(self.append_to_open(batch, PartitionValues::new(), number).await?);
        }
        Ok(addresses)
    }

    async fn append_to_open(
        &mut self,
        batch: &RecordBatch,
        partition: PartitionValues,
        number: &mut NumberFile<'_>,
    ) -> Result<Vec<RowAddress>> {
        let (file, mut writer) = match self.open.take() {
            Some(open) => open,
            None => {
                let writer =
                    DataFileWriter::open(&self.location, &self.definition, &self.options, partition)?;
                (number(&writer.log_path())?, writer)
            }
        };
        let first = writer.rows();
        writer.write(batch).await?;
        let last = writer.rows();
        let full = writer.bytes() >= self.options.target_file_bytes || last >= self.options.target_file_rows;
        self.open = Some((file, writer));
        if full {
            self.close().await?;
        }
        // A file is closed long before its rows outgrow 32 bits: see WriterOptions::target_file_rows.
        Ok((first..last).map(|row| RowAddress { file, row: row as u32 }).collect())
    }

    async fn append_partitioned(
        &mut self,
        batches: &[RecordBatch],
        number: &mut NumberFile<'_>,
    ) -> Result<Vec<Vec<RowAddress>>> {
        let mut parts: BTreeMap<PartitionValues, Vec<(usize, Vec<u32>)>> = BTreeMap::new();
        for (at, batch) in batches.iter().enumerate() {
            for (values, rows) in self.part(batch)? {
                parts.entry(values).or_default().push((at, rows));
            }
        }
        let nowhere = RowAddress { file: FileId(u32::MAX), row: u32::MAX };
        let mut addresses: Vec<Vec<RowAddress>> =
            batches.iter().map(|batch| vec![nowhere; batch.num_rows()]).collect();
        for (values, chosen) in parts {
            for (at, rows) in chosen {
                let Some((batch, placed)) = batches.get(at).zip(addresses.get_mut(at)) else { continue };
                let taken = take_record_batch(batch, &UInt32Array::from(rows.clone()))
                    .map_err(DeltaError::arrow("pick a partition's rows"))?;
                let taken = self.definition.file_batch(&taken)?;
                let new = self.append_to_open(&taken, values.clone(), number).await?;
                for (row, address) in rows.into_iter().zip(new) {
                    if let Some(slot) = placed.get_mut(row as usize) {
                        *slot = address;
                    }
                }
            }
            self.close().await?;
        }
        Ok(addresses)
    }

    /// The rows of a batch by their partition values.
    fn part(&self, batch: &RecordBatch) -> Result<BTreeMap<PartitionValues, Vec<u32>>> {
        let mut columns: Vec<(&String, StringArray)> = Vec::with_capacity(self.definition.partition_by.len());
        for name in &self.definition.partition_by {
            let values = batch.column_by_name(name).ok_or_else(|| DeltaError::BadChanges {
                table: self.location.uri().to_owned(),
                reason: format!("the partition column `{name}` is missing"),
            })?;
            columns.push((name, partition_value::encode_column(self.location.uri(), name, values)?));
        }
        let mut parts: BTreeMap<Vec<Option<&str>>, Vec<u32>> = BTreeMap::new();
        for row in 0..batch.num_rows() {
            let values =
                columns.iter().map(|(_, column)| column.is_valid(row).then(|| column.value(row))).collect();
            parts.entry(values).or_default().push(row as u32);
        }
        Ok(parts
            .into_iter()
            .map(|(values, rows)| {
                let values = columns
                    .iter()
                    .zip(values)
                    .map(|((name, _), value)| ((*name).clone(), value.map(str::to_owned)))
                    .collect();
                (values, rows)
            })
            .collect())
    }

    /// Closes the file being written, if there is one.
    pub async fn close(&mut self) -> Result<()> {
        if let Some((id, writer)) = self.open.take() {
            let (rows, add) = writer.finish().await?;
            self.numbers.insert(id);
            self.sealed.push(SealedFile { id, rows, add });
        }
        Ok(())
    }

    /// Closes the last file and hands all of them over.
    pub async fn finish(&mut self) -> Result<Vec<SealedFile>> {
        self.close().await?;
        self.numbers.clear();
        Ok(std::mem::take(&mut self.sealed))
    }
}
