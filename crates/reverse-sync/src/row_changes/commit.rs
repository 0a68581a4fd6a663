//! One commit of the log, as far as rows are concerned: what it added and removed, its change data feed, its
//! schema and its time.
//!
//! Actions with `dataChange = false` are not even kept: they move rows between files (OPTIMIZE, ZORDER, a
//! compaction), and the rows are the same ones after.

use crate::delta_source::{Column, DataFile, TableSource, columns};
use crate::error::{Result, ReverseSyncError, Unavailable};
use delta_kernel::actions::deletion_vector::DeletionVectorDescriptor;
use delta_kernel::scan::state::DvInfo;
use delta_kernel::schema::StructType;
use delta_kernel::table_features::ColumnMappingMode;
use object_store::ObjectStoreExt;
use serde::Deserialize;
use std::collections::HashMap;

/// A commit names files; one larger than this is no commit that a sane writer made.
const LARGEST_COMMIT: u64 = 256 * 1024 * 1024;

/// Base 85 makes five characters of four bytes, and a vector's bytes begin with four that tell its kind.
const SHORTEST_INLINE_VECTOR: usize = 5;

/// What one commit did to rows.
#[derive(Debug)]
pub(crate) struct Commit {
    pub version: u64,
    /// When it was made, in milliseconds since 1970: by its own record, else by its file's.
    pub timestamp: i64,
    pub added: Vec<FileChange>,
    pub removed: Vec<FileChange>,
    /// Files of the change data feed, which then say all that the commit did.
    pub feed: Vec<FileChange>,
    /// The table's schema and properties, when the commit sets them.
    pub metadata: Option<CommitMetadata>,
}

/// A file with the vector of its deleted rows.
#[derive(Debug, Clone)]
pub(crate) struct FileChange {
    pub file: DataFile,
    pub vector: Vector,
    /// A Remove may leave its partition out.
    pub has_partition_values: bool,
}

/// A deletion vector, or none, and what tells it from others.
#[derive(Debug, Clone, Default)]
pub(crate) struct Vector {
    pub id: String,
    pub rows: DvInfo,
}

/// The metadata that a commit sets.
#[derive(Debug)]
pub(crate) struct CommitMetadata {
    pub columns: Vec<Column>,
    pub has_feed: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    commit_info: Option<CommitInfo>,
    meta_data: Option<Metadata>,
    add: Option<FileAction>,
    remove: Option<FileAction>,
    cdc: Option<FileAction>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CommitInfo {
    in_commit_timestamp: Option<i64>,
    timestamp: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    schema_string: String,
    #[serde(default)]
    partition_columns: Vec<String>,
    #[serde(default)]
    configuration: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileAction {
    path: String,
    partition_values: Option<HashMap<String, Option<String>>>,
    size: Option<u64>,
    data_change: bool,
    deletion_vector: Option<VectorDescriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VectorDescriptor {
    storage_type: String,
    path_or_inline_dv: String,
    offset: Option<i32>,
    size_in_bytes: i32,
    cardinality: i64,
}

/// Whether a table's properties turn its change data feed on.
pub(crate) fn has_feed(configuration: &HashMap<String, String>) -> bool {
    configuration.get("delta.enableChangeDataFeed").is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

impl TableSource {
    /// Reads the commit of a version.
    pub(crate) async fn commit(&self, version: u64) -> Result<Commit> {
        let path = self.commit_path(version);
        let found = match self.objects().get(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => {
                let earliest = self.log_range().await?.map_or(version, |(earliest, _)| earliest);
                // The log may reach back by a checkpoint further than its commits do.
                let earliest = earliest.max(version.saturating_add(1));
                return Err(self.unavailable(
                    version,
                    version,
                    Unavailable::LogExpired { version, earliest },
                ));
            }
            Err(source) => return Err(self.store_error(&path, source)),
        };
        let damaged = |reason| ReverseSyncError::Commit { table: self.uri().to_owned(), version, reason };
        if found.meta.size > LARGEST_COMMIT {
            return Err(damaged("the file is too large to be a commit".to_owned()));
        }
        let written = found.meta.last_modified.timestamp_millis();
        let bytes = found.bytes().await.map_err(|source| self.store_error(&path, source))?;
        Commit::parse(version, written, &bytes).map_err(damaged)
    }
}

impl Commit {
    /// Reads a commit's lines; an error is what is wrong with them.
    fn parse(version: u64, written: i64, bytes: &[u8]) -> std::result::Result<Commit, String> {
        let mut commit = Commit {
            version,
            timestamp: written,
            added: Vec::new(),
            removed: Vec::new(),
            feed: Vec::new(),
            metadata: None,
        };
        for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if !line.trim_ascii().is_empty() {
                let in_line = |reason: String| format!("line {}: {reason}", at + 1);
                let line = serde_json::from_slice(line).map_err(|error| in_line(error.to_string()))?;
                commit.take(line).map_err(in_line)?;
            }
        }
        Ok(commit)
    }

    fn take(&mut self, line: Line) -> std::result::Result<(), String> {
        if let Some(info) = line.commit_info {
            self.timestamp = info.in_commit_timestamp.or(info.timestamp).unwrap_or(self.timestamp);
        }
        if let Some(metadata) = line.meta_data {
            self.metadata = Some(CommitMetadata::parse(&metadata)?);
        }
        let version = self.version;
        for (action, list) in [(line.add, &mut self.added), (line.remove, &mut self.removed)] {
            if let Some(action) = action.filter(|action| action.data_change) {
                list.push(FileChange::of(version, action)?);
            }
        }
        // A file of the feed is no part of the table, so its own `dataChange` is false.
        if let Some(action) = line.cdc {
            self.feed.push(FileChange::of(version, action)?);
        }
        Ok(())
    }
}

impl CommitMetadata {
    fn parse(metadata: &Metadata) -> std::result::Result<CommitMetadata, String> {
        let schema: StructType = serde_json::from_str(&metadata.schema_string)
            .map_err(|error| format!("its schema is not understood: {error}"))?;
        let mode = match metadata.configuration.get("delta.columnMapping.mode").map(String::as_str) {
            None | Some("none") => ColumnMappingMode::None,
            Some("id") => ColumnMappingMode::Id,
            Some("name") => ColumnMappingMode::Name,
            Some(other) => return Err(format!("`{other}` is no mode of column mapping")),
        };
        let columns = columns(&schema, mode, &metadata.partition_columns)
            .map_err(|error| format!("its schema does not fit its column mapping: {error}"))?;
        Ok(CommitMetadata { columns, has_feed: has_feed(&metadata.configuration) })
    }
}

impl FileChange {
    fn of(version: u64, action: FileAction) -> std::result::Result<FileChange, String> {
        let vector = match action.deletion_vector {
            Some(descriptor) => Vector::of(descriptor)?,
            None => Vector::default(),
        };
        let has_partition_values = action.partition_values.is_some();
        let file = DataFile {
            version,
            path: action.path,
            size: action.size.filter(|size| *size > 0),
            partition_values: action.partition_values.unwrap_or_default(),
        };
        Ok(FileChange { file, vector, has_partition_values })
    }
}

impl Vector {
    fn of(descriptor: VectorDescriptor) -> std::result::Result<Vector, String> {
        let invalid = |error: delta_kernel::Error| format!("its deletion vector is invalid: {error}");
        if descriptor.storage_type == "i" && descriptor.path_or_inline_dv.len() < SHORTEST_INLINE_VECTOR {
            return Err("its inline deletion vector is cut short".to_owned());
        }
        let descriptor = DeletionVectorDescriptor::try_new(
            descriptor.storage_type.parse().map_err(invalid)?,
            descriptor.path_or_inline_dv,
            descriptor.offset,
            descriptor.size_in_bytes,
            descriptor.cardinality,
        )
        .map_err(invalid)?;
        Ok(Vector { id: descriptor.unique_id(), rows: DvInfo::from(descriptor) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &str) -> std::result::Result<Commit, String> {
        Commit::parse(7, 1_000, lines.as_bytes())
    }

    #[test]
    fn actions_that_only_move_rows_are_passed_over() {
        let commit = parse(concat!(
            r#"{"add":{"path":"a","partitionValues":{},"size":1,"dataChange":true}}"#,
            "\n",
            r#"{"add":{"path":"b","partitionValues":{},"size":1,"dataChange":false}}"#,
            "\n\n",
            r#"{"remove":{"path":"c","dataChange":true}}"#,
            "\n",
            r#"{"remove":{"path":"d","dataChange":false}}"#,
            "\n",
            r#"{"domainMetadata":{"domain":"x","configuration":"","removed":false}}"#,
        ))
        .unwrap();
        let paths = |files: &[FileChange]| files.iter().map(|f| f.file.path.clone()).collect::<Vec<_>>();
        assert_eq!((paths(&commit.added), paths(&commit.removed)), (vec!["a".into()], vec!["c".into()]));
        assert!(!commit.removed[0].has_partition_values);
    }

    #[test]
    fn a_commit_has_the_time_of_its_own_record() {
        let info = |fields: &str| parse(&format!(r#"{{"commitInfo":{{{fields}}}}}"#)).unwrap().timestamp;
        assert_eq!(info(r#""timestamp":5"#), 5);
        assert_eq!(info(r#""timestamp":5,"inCommitTimestamp":6"#), 6);
        assert_eq!(info(r#""operation":"WRITE""#), 1_000);
    }

    #[test]
    fn damaged_lines_are_errors_that_name_them() {
        for line in [
            "{",
            r#"{"add":{"path":"a"}}"#,
            r#"{"add":{"path":"a","dataChange":true,"deletionVector":{"storageType":"i","pathOrInlineDv":"x","sizeInBytes":1,"cardinality":1}}}"#,
            r#"{"add":{"path":"a","dataChange":true,"deletionVector":{"storageType":"u","pathOrInlineDv":"short","sizeInBytes":1,"cardinality":1}}}"#,
            r#"{"add":{"path":"a","dataChange":true,"deletionVector":{"storageType":"z","pathOrInlineDv":"","sizeInBytes":1,"cardinality":1}}}"#,
            r#"{"metaData":{"schemaString":"no schema"}}"#,
        ] {
            let error = parse(&format!("{{}}\n{line}")).unwrap_err();
            assert!(error.starts_with("line 2: "), "{error}");
        }
    }
}
