//! Checkpoints: the whole state in one Parquet file, so that opening a table reads one file and a few
//! commits instead of the log since its first day.
//!
//! A checkpoint is taken as a copy of the in-memory state (the files are shared, not copied) and written
//! off the commit path; commits go on meanwhile. Nothing depends on one being written: a failure costs
//! the next opening some time.
//!
//! Actions become rows and back through their JSON form, which both sides already speak; only the
//! Parquet schema of the protocol's "Checkpoint Schema" stands here.

use crate::action::{Action, Add, Remove, parse_actions};
use crate::crash_point::crash_point;
use crate::error::{DeltaError, Result};
use crate::lake::TableLocation;
use crate::parquet_source::ParquetSource;
use crate::table_state::TableState;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::json::writer::LineDelimited;
use arrow::json::{ReaderBuilder, WriterBuilder};
use futures::TryStreamExt;
use object_store::path::Path;
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Rows turned into Arrow at a time: some megabytes of statistics.
const ROWS_PER_BATCH: usize = 4096;
/// The top-level columns that the replay understands.
const KINDS: [&str; 5] = ["protocol", "metaData", "txn", "remove", "add"];

/// One file of a checkpoint: the only one, or one of several parts.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointFile {
    path: Path,
    size: u64,
    part: u32,
    parts: u32,
}

impl CheckpointFile {
    /// Reads `checkpoint.parquet` and `checkpoint.<part>.<parts>.parquet`, the kinds that need no table feature.
    pub fn from_name(path: Path, size: u64, kind: &str) -> Option<CheckpointFile> {
        let middle = kind.strip_prefix("checkpoint.")?;
        if middle == "parquet" {
            return Some(CheckpointFile { path, size, part: 1, parts: 1 });
        }
        let (part, parts) = middle.strip_suffix(".parquet")?.split_once('.')?;
        Some(CheckpointFile { path, size, part: part.parse().ok()?, parts: parts.parse().ok()? })
    }

    /// Where it lies.
    pub fn into_path(self) -> Path {
        self.path
    }

    /// Whether the checkpoint this file belongs to is there as a whole.
    pub fn is_complete_in(&self, files: &[CheckpointFile]) -> bool {
        files.iter().filter(|file| file.parts == self.parts && file.part <= file.parts).count()
            == self.parts as usize
    }
}

/// `_last_checkpoint`: a hint, never an authority.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hint {
    version: i64,
    size: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_in_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_of_add_files: Option<i64>,
}

/// The version that `_last_checkpoint` names, if the file is there and makes sense.
pub(crate) async fn read_hint(location: &TableLocation) -> Result<Option<i64>> {
    let path = location.log_folder().join("_last_checkpoint");
    let Some(bytes) = location.get(&path).await? else { return Ok(None) };
    match serde_json::from_slice::<Hint>(&bytes) {
        Ok(hint) if hint.version >= 0 => Ok(Some(hint.version)),
        _ => {
            tracing::warn!(%path, "the checkpoint hint is damaged and is passed over; the log is listed instead");
            Ok(None)
        }
    }
}

/// Reads the actions of a complete checkpoint.
pub(crate) async fn read(location: &TableLocation, files: &[CheckpointFile]) -> Result<Vec<Action>> {
    let mut actions = Vec::new();
    let whole = files.iter().find(|file| file.is_complete_in(files));
    for file in files.iter().filter(|file| whole.is_some_and(|whole| whole.parts == file.parts)) {
        let name = file.path.to_string();
        let failed = |source| DeltaError::DataFile { action: "read checkpoint", path: name.clone(), source };
        let reader = ParquetSource::new(location, file.path.clone(), file.size);
        let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(failed)?;
        let known: Vec<usize> = builder
            .parquet_schema()
            .root_schema()
            .get_fields()
            .iter()
            .enumerate()
            .filter(|(_, field)| KINDS.contains(&field.name()))
            .map(|(at, _)| at)
            .collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), known);
        let mut batches =
            builder.with_projection(mask).with_batch_size(ROWS_PER_BATCH).build().map_err(failed)?;
        while let Some(batch) = batches.try_next().await.map_err(failed)? {
            // Nulls are written out: a partition value that is null must not become one that is missing.
            let mut lines =
                WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
            lines.write(&batch).map_err(DeltaError::arrow("read checkpoint rows"))?;
            lines.finish().map_err(DeltaError::arrow("read checkpoint rows"))?;
            actions.extend(parse_actions(&name, &lines.into_inner())?);
        }
    }
    Ok(actions)
}

/// A table's state, taken at a version, to be written as a checkpoint in the background.
///
/// It is a copy that shares the files' records with its table, so taking one is cheap and writing it
/// holds nothing up.
#[derive(Debug)]
#[must_use = "a checkpoint exists once it is written"]
pub struct Checkpoint {
    location: TableLocation,
    state: TableState,
    retention: Duration,
}

impl Checkpoint {
    pub(crate) fn new(location: TableLocation, state: TableState, retention: Duration) -> Self {
        Self { location, state, retention }
    }

    /// The version it stands for.
    pub fn version(&self) -> i64 {
        self.state.version
    }

    /// Writes the checkpoint, then the hint that lets readers find it.
    pub async fn write(self) -> Result<()> {
        let Self { location, state, retention } = self;
        let version = state.version;
        let files = state.files.len();
        let path = location.log_folder().join(format!("{version:020}.checkpoint.parquet"));
        let name = path.to_string();
        let encoded = tokio::task::spawn_blocking(move || encode(&name, state, retention)).await;
        let (bytes, rows) = encoded.map_err(|source| {
            DeltaError::store("write", path.to_string())(object_store::Error::JoinError { source })
        })??;
        let hint = Hint {
            version,
            size: rows as i64,
            size_in_bytes: Some(bytes.len() as i64),
            num_of_add_files: Some(files as i64),
        };
        crash_point!("checkpoint-before-put");
        location.put(&path, bytes.into()).await?;
        crash_point!("checkpoint-before-hint");
        let hint = serde_json::to_vec(&hint)
            .map_err(|source| DeltaError::Json { what: "the checkpoint hint", source })?;
        location.put(&location.log_folder().join("_last_checkpoint"), hint.into()).await?;
        crash_point!("checkpoint-after-hint");
        Ok(())
    }
}

fn encode(path: &str, state: TableState, retention: Duration) -> Result<(Vec<u8>, usize)> {
    let failed = |source: ParquetError| DeltaError::DataFile {
        action: "write checkpoint",
        path: path.to_owned(),
        source,
    };
    let expired =
        chrono::Utc::now().timestamp_millis() - retention.as_millis().min(i64::MAX as u128 / 2) as i64;
    let actions: Vec<Action> = [Action::Protocol(state.protocol), Action::MetaData(state.metadata)]
        .into_iter()
        .chain(state.txns.into_values().map(Action::Txn))
        .chain(
            state
                .tombstones
                .iter()
                .filter(|remove| remove.deletion_timestamp.is_some_and(|at| at > expired))
                .map(|remove| Action::Remove(Remove { data_change: false, ..Remove::clone(remove) })),
        )
        .chain(
            state.files.values().map(|file| Action::Add(Add { data_change: false, ..Add::clone(&file.add) })),
        )
        .collect();
    let schema = schema();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).map_err(failed)?))
        .build();
    let mut writer =
        ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties)).map_err(failed)?;
    for chunk in actions.chunks(ROWS_PER_BATCH) {
        let what = "write checkpoint rows";
        let mut decoder = ReaderBuilder::new(Arc::clone(&schema))
            .with_batch_size(ROWS_PER_BATCH)
            .build_decoder()
            .map_err(DeltaError::arrow(what))?;
        decoder.serialize(chunk).map_err(DeltaError::arrow(what))?;
        if let Some(batch) = decoder.flush().map_err(DeltaError::arrow(what))? {
            writer.write(&batch).map_err(failed)?;
        }
    }
    Ok((writer.into_inner().map_err(failed)?, actions.len()))
}

/// The protocol's checkpoint schema, as far as this writer's actions fill it.
fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let long = |name: &str| Field::new(name, DataType::Int64, true);
    let int = |name: &str| Field::new(name, DataType::Int32, true);
    let flag = |name: &str| Field::new(name, DataType::Boolean, true);
    let group =
        |name: &str, fields: Vec<Field>| Field::new(name, DataType::Struct(Fields::from(fields)), true);
    let map = |name: &str| {
        let entry = vec![Field::new("key", DataType::Utf8, false), text("value")];
        let entries = Field::new("key_value", DataType::Struct(entry.into()), false);
        Field::new(name, DataType::Map(Arc::new(entries), false), true)
    };
    let texts = |name: &str| Field::new(name, DataType::List(Arc::new(text("element"))), true);
    let vector = || {
        let fields = vec![
            text("storageType"),
            text("pathOrInlineDv"),
            int("offset"),
            int("sizeInBytes"),
            long("cardinality"),
        ];
        group("deletionVector", fields)
    };
    Arc::new(Schema::new(vec![
        group("txn", vec![text("appId"), long("version"), long("lastUpdated")]),
        group(
            "add",
            vec![
                text("path"),
                map("partitionValues"),
                long("size"),
                long("modificationTime"),
                flag("dataChange"),
                text("stats"),
                map("tags"),
                vector(),
            ],
        ),
        group(
            "remove",
            vec![
                text("path"),
                long("deletionTimestamp"),
                flag("dataChange"),
                flag("extendedFileMetadata"),
                map("partitionValues"),
                long("size"),
                vector(),
            ],
        ),
        group(
            "metaData",
            vec![
                text("id"),
                text("name"),
                text("description"),
                group("format", vec![text("provider"), map("options")]),
                text("schemaString"),
                texts("partitionColumns"),
                map("configuration"),
                long("createdTime"),
            ],
        ),
        group(
            "protocol",
            vec![
                int("minReaderVersion"),
                int("minWriterVersion"),
                texts("readerFeatures"),
                texts("writerFeatures"),
            ],
        ),
    ]))
}
