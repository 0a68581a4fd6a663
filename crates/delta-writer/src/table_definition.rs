//! What a table is: columns, key, partitioning, properties; and how that stands in the Delta metadata.
//!
//! The key is not a Delta notion, so its columns stand in the table property `tidewater.key`. With that a
//! table opens from its log alone, and everything the daemon keeps on disk stays soft state.

use crate::action::{Format, Metadata, Protocol};
use crate::change_row::HISTORY_COLUMNS;
use crate::delta_schema;
use crate::error::{DeltaError, Result};
use crate::key_index::Places;
use crate::partition_value::may_partition;
use crate::table_state::SHORT_LIVED;
use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Table property: the key's columns, a JSON array of lake names in key order.
const KEY_PROPERTY: &str = "tidewater.key";
/// Table property: what the rows are, where they are not simply the source's rows by their key.
const KIND_PROPERTY: &str = "tidewater.kind";
const DELETION_VECTORS_PROPERTY: &str = "delta.enableDeletionVectors";
/// How long versions can be read, for engines that clean the log up when they write a checkpoint.
const LOG_RETENTION_PROPERTY: &str = "delta.logRetentionDuration";
/// How long removed files stay, for engines that VACUUM.
const FILE_RETENTION_PROPERTY: &str = "delta.deletedFileRetentionDuration";
/// What this writer keeps true when it writes. Invariants and append-only come with legacy writer version 2.
const KEPT_FEATURES: [&str; 4] = ["deletionVectors", "timestampNtz", "appendOnly", "invariants"];

/// What a table's rows are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TableKind {
    /// The source's rows. A key, if the table has one, names one row.
    #[default]
    Mirror,
    /// The source's rows, which have no key but all their columns: any number of them may be equal.
    Multiset,
    /// Every change of the source's rows, under the source's columns and [`HISTORY_COLUMNS`]. The newest row of a
    /// key tells what the key holds.
    History,
}

impl TableKind {
    /// As [`KIND_PROPERTY`] has it; an ordinary mirror has no such property.
    fn name(self) -> Option<&'static str> {
        match self {
            TableKind::Mirror => None,
            TableKind::Multiset => Some("multiset"),
            TableKind::History => Some("history"),
        }
    }

    fn from_property(table: &str, value: Option<String>) -> Result<TableKind> {
        let kinds = [TableKind::Mirror, TableKind::Multiset, TableKind::History];
        kinds.into_iter().find(|kind| kind.name() == value.as_deref()).ok_or_else(|| {
            DeltaError::BadDefinition {
                table: table.to_owned(),
                reason: format!("its property {KIND_PROPERTY} is of a newer Tidewater: {value:?}"),
            }
        })
    }

    /// How many rows a key of it may name.
    pub(crate) fn places(self) -> Places {
        match self {
            TableKind::Mirror | TableKind::History => Places::One,
            TableKind::Multiset => Places::Many,
        }
    }
}

/// A table's shape and settings.
#[derive(Debug, Clone, PartialEq)]
pub struct TableDefinition {
    /// The columns in order. Field metadata goes into the Delta schema as it is (`tidewater.source_name`).
    pub schema: SchemaRef,
    /// What its rows are.
    pub kind: TableKind,
    /// Positions of the key's columns, in key order. Empty: only inserts and truncates.
    pub key: Vec<usize>,
    /// Names of the columns that part the files, in folder order.
    pub partition_by: Vec<String>,
    /// Delta table properties, such as `tidewater.source_name` and `tidewater.table_id`.
    pub configuration: BTreeMap<String, String>,
    /// Deleted rows are marked in deletion vectors; otherwise their files are rewritten.
    pub deletion_vectors: bool,
}

impl TableDefinition {
    /// Refuses what cannot be kept: unknown or doubled columns, types without a Delta form, everything
    /// partitioned away.
    pub(crate) fn check(&self, table: &str) -> Result<()> {
        let bad = |reason: String| DeltaError::BadDefinition { table: table.to_owned(), reason };
        delta_schema::to_delta(table, &self.schema)?;
        let mut names = BTreeSet::new();
        for field in self.schema.fields() {
            if !names.insert(field.name().to_lowercase()) {
                return Err(bad(format!("two columns are called `{}` (ignoring case)", field.name())));
            }
        }
        for &at in &self.key {
            let field =
                self.schema.fields().get(at).ok_or_else(|| bad(format!("no column {at} for the key")))?;
            if field.data_type().is_nested() && self.kind != TableKind::Multiset {
                return Err(DeltaError::UnsupportedColumn {
                    table: table.to_owned(),
                    column: field.name().clone(),
                    data_type: field.data_type().to_string(),
                    role: "part of the key",
                });
            }
        }
        if self.kind == TableKind::History {
            let added = self.schema.fields().iter().skip(self.source_columns());
            if !added.map(|field| field.name().as_str()).eq(HISTORY_COLUMNS) || self.is_partitioned() {
                return Err(bad(
                    "a history ends with the columns that say what happened, in one partition".into()
                ));
            }
        }
        let mut partitions = BTreeSet::new();
        for name in &self.partition_by {
            let (_, field) = self
                .schema
                .column_with_name(name)
                .ok_or_else(|| bad(format!("partition_by names `{name}`, which is no column")))?;
            if !partitions.insert(name) {
                return Err(bad(format!("partition_by names `{name}` twice")));
            }
            if !may_partition(field.data_type()) {
                return Err(DeltaError::UnsupportedColumn {
                    table: table.to_owned(),
                    column: name.clone(),
                    data_type: field.data_type().to_string(),
                    role: "a partition column",
                });
            }
        }
        if !self.schema.fields().is_empty() && partitions.len() == self.schema.fields().len() {
            return Err(bad(
                "partition_by names every column; at least one has to be left for the files".into()
            ));
        }
        Ok(())
    }

    /// Features this table needs, in the order they are written.
    fn features(&self) -> Vec<String> {
        let mut features = Vec::new();
        if self.deletion_vectors {
            features.push("deletionVectors".to_owned());
        }
        if self.schema.fields().iter().any(|field| delta_schema::has_timestamp_ntz(field.data_type())) {
            features.push("timestampNtz".to_owned());
        }
        features
    }

    pub(crate) fn protocol(&self) -> Protocol {
        let features = self.features();
        if features.is_empty() {
            return Protocol {
                min_reader_version: 1,
                min_writer_version: 2,
                reader_features: None,
                writer_features: None,
            };
        }
        Protocol {
            min_reader_version: 3,
            min_writer_version: 7,
            reader_features: Some(features.clone()),
            writer_features: Some(features),
        }
    }

    /// The protocol of a table that is loaded anew: features are added and never taken away, because
    /// earlier versions stay readable.
    pub(crate) fn protocol_after(&self, previous: &Protocol) -> Protocol {
        let needed = self.features();
        let held = previous.writer_features.clone().unwrap_or_default();
        if needed.iter().all(|feature| held.contains(feature)) {
            return previous.clone();
        }
        let legacy = match previous.min_writer_version {
            // What the legacy version meant has to be spelled out from version 7 on.
            2 => vec!["appendOnly".to_owned(), "invariants".to_owned()],
            _ => Vec::new(),
        };
        let joined = |held: Vec<String>| {
            let missing: Vec<_> = needed.iter().filter(|feature| !held.contains(feature)).cloned().collect();
            Some(held.into_iter().chain(missing).collect())
        };
        Protocol {
            min_reader_version: 3,
            min_writer_version: 7,
            reader_features: joined(previous.reader_features.clone().unwrap_or_default()),
            writer_features: joined(held.into_iter().chain(legacy).collect()),
        }
    }

    /// The metadata of a new table, or of the next shape of the table with the metadata `previous`.
    pub(crate) fn metadata(&self, table: &str, previous: Option<&Metadata>, now: i64) -> Result<Metadata> {
        let key: Vec<&str> = self
            .key
            .iter()
            .filter_map(|&at| self.schema.fields().get(at))
            .map(|field| field.name().as_str())
            .collect();
        let key = serde_json::to_string(&key)
            .map_err(|source| DeltaError::Json { what: "a table's key", source })?;
        let mut configuration = self.configuration.clone();
        configuration.insert(KEY_PROPERTY.to_owned(), key);
        configuration.extend(self.kind.name().map(|kind| (KIND_PROPERTY.to_owned(), kind.to_owned())));
        configuration.insert(DELETION_VECTORS_PROPERTY.to_owned(), self.deletion_vectors.to_string());
        Ok(Metadata {
            id: previous.map_or_else(|| Uuid::new_v4().to_string(), |previous| previous.id.clone()),
            name: previous.and_then(|previous| previous.name.clone()),
            description: previous.and_then(|previous| previous.description.clone()),
            format: Format { provider: "parquet".to_owned(), options: BTreeMap::new() },
            schema_string: delta_schema::to_delta(table, &self.schema)?,
            partition_columns: self.partition_by.clone(),
            configuration,
            created_time: previous.map_or(Some(now), |previous| previous.created_time),
        })
    }

    /// Reads the definition back from a table's log.
    pub(crate) fn from_log(table: &str, protocol: &Protocol, metadata: &Metadata) -> Result<TableDefinition> {
        check_protocol(table, protocol)?;
        let schema = delta_schema::from_delta(table, &metadata.schema_string)?;
        let mut configuration = metadata.configuration.clone();
        let kind = TableKind::from_property(table, configuration.remove(KIND_PROPERTY))?;
        let key = match configuration.remove(KEY_PROPERTY) {
            None => Vec::new(),
            Some(text) => key_positions(table, &schema, &text)?,
        };
        let enabled = configuration.remove(DELETION_VECTORS_PROPERTY).is_some_and(|value| value == "true");
        let has_feature =
            protocol.writer_features.iter().flatten().any(|feature| feature == "deletionVectors");
        let definition = TableDefinition {
            schema,
            kind,
            key,
            partition_by: metadata.partition_columns.clone(),
            configuration,
            deletion_vectors: enabled && has_feature,
        };
        definition.check(table)?;
        Ok(definition)
    }

    pub(crate) fn is_partitioned(&self) -> bool {
        !self.partition_by.is_empty()
    }

    /// How many columns are the source's; they come first.
    pub(crate) fn source_columns(&self) -> usize {
        let added = if self.kind == TableKind::History { HISTORY_COLUMNS.len() } else { 0 };
        self.schema.fields().len().saturating_sub(added)
    }

    /// The source's columns.
    pub(crate) fn source_schema(&self) -> Result<SchemaRef> {
        if self.kind != TableKind::History {
            return Ok(Arc::clone(&self.schema));
        }
        let columns: Vec<usize> = (0..self.source_columns()).collect();
        let projected =
            self.schema.project(&columns).map_err(DeltaError::arrow("choose the source's columns"))?;
        Ok(Arc::new(projected))
    }

    pub(crate) fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// The columns that stand in data files: all but the partition columns.
    pub(crate) fn file_schema(&self) -> SchemaRef {
        let fields: Vec<_> = self
            .schema
            .fields()
            .iter()
            .filter(|field| !self.partition_by.contains(field.name()))
            .cloned()
            .collect();
        Arc::new(Schema::new(fields))
    }

    /// A batch of the table without its partition columns.
    pub(crate) fn file_batch(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let kept: Vec<usize> = (0..self.schema.fields().len())
            .filter(|&at| {
                self.schema.fields().get(at).is_some_and(|field| !self.partition_by.contains(field.name()))
            })
            .collect();
        batch.project(&kept).map_err(DeltaError::arrow("leave partition columns out of a file"))
    }
}

/// The table properties that tell other engines to keep what can still be read.
pub(crate) fn retention_properties(retention: Duration) -> [(String, String); 2] {
    let interval = |duration: Duration| format!("interval {} seconds", duration.as_secs().max(1));
    [
        (LOG_RETENTION_PROPERTY.to_owned(), interval(retention)),
        // Files removed young are spared for their age alone, which counts from when they were written.
        (FILE_RETENTION_PROPERTY.to_owned(), interval(retention + SHORT_LIVED)),
    ]
}

/// Whether a table's metadata switches deletion vectors on.
pub(crate) fn has_deletion_vectors(metadata: &Metadata) -> bool {
    metadata.configuration.get(DELETION_VECTORS_PROPERTY).is_some_and(|value| value == "true")
}

fn key_positions(table: &str, schema: &Schema, text: &str) -> Result<Vec<usize>> {
    let names: Vec<String> = serde_json::from_str(text).map_err(|source| DeltaError::CorruptAction {
        path: format!("{table} (table property {KEY_PROPERTY})"),
        line: 1,
        source,
    })?;
    names
        .iter()
        .map(|name| {
            schema.column_with_name(name).map(|(at, _)| at).ok_or_else(|| DeltaError::BadDefinition {
                table: table.to_owned(),
                reason: format!("its property {KEY_PROPERTY} names `{name}`, which is no column"),
            })
        })
        .collect()
}

fn check_protocol(table: &str, protocol: &Protocol) -> Result<()> {
    let refuse = |feature: String| DeltaError::UnsupportedFeature { table: table.to_owned(), feature };
    if !matches!(protocol.min_reader_version, 1 | 3) {
        return Err(refuse(format!("reader version {}", protocol.min_reader_version)));
    }
    if !matches!(protocol.min_writer_version, 1 | 2 | 7) {
        return Err(refuse(format!("writer version {}", protocol.min_writer_version)));
    }
    let mut features = protocol.reader_features.iter().chain(&protocol.writer_features).flatten();
    match features.find(|feature| !KEPT_FEATURES.contains(&feature.as_str())) {
        Some(feature) => Err(refuse(feature.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{DataType, Field, TimeUnit};

    fn definition() -> TableDefinition {
        TableDefinition {
            schema: Arc::new(Schema::new(vec![
                Field::new("id", DataType::Int64, true),
                Field::new("country", DataType::Utf8, true),
                Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), true),
            ])),
            kind: TableKind::Mirror,
            key: vec![1, 0],
            partition_by: vec!["country".into()],
            configuration: BTreeMap::from([("tidewater.table_id".into(), "7".into())]),
            deletion_vectors: true,
        }
    }

    #[test]
    fn a_definition_reads_back_from_the_metadata() {
        let definition = definition();
        let metadata = definition.metadata("t", None, 5).unwrap();
        let back = TableDefinition::from_log("t", &definition.protocol(), &metadata).unwrap();
        assert_eq!(back, definition);
        assert_eq!(definition.protocol().writer_features.unwrap(), ["deletionVectors", "timestampNtz"]);
        let multiset = TableDefinition { kind: TableKind::Multiset, key: vec![0, 1, 2], ..definition };
        let metadata = multiset.metadata("t", None, 5).unwrap();
        assert_eq!(TableDefinition::from_log("t", &multiset.protocol(), &metadata).unwrap(), multiset);
    }

    #[test]
    fn a_table_without_features_stays_readable_by_the_oldest_readers() {
        let mut definition = definition();
        definition.deletion_vectors = false;
        definition.schema = Arc::new(Schema::new(definition.schema.fields()[..2].to_vec()));
        let protocol = definition.protocol();
        assert_eq!((protocol.min_reader_version, protocol.min_writer_version), (1, 2));
    }

    #[test]
    fn a_protocol_only_grows() {
        let with = definition();
        let without = TableDefinition { deletion_vectors: false, ..definition() };
        assert_eq!(without.protocol_after(&with.protocol()), with.protocol());
        let grown = with.protocol_after(&without.protocol());
        assert_eq!(grown.reader_features.unwrap(), ["timestampNtz", "deletionVectors"]);
        let legacy = Protocol {
            min_reader_version: 1,
            min_writer_version: 2,
            reader_features: None,
            writer_features: None,
        };
        let grown = with.protocol_after(&legacy);
        assert_eq!(
            grown.writer_features.unwrap(),
            ["appendOnly", "invariants", "deletionVectors", "timestampNtz"]
        );
        check_protocol("t", &with.protocol_after(&legacy)).unwrap();
    }

    #[test]
    fn a_feature_this_writer_does_not_keep_is_refused_by_name() {
        let definition = definition();
        let metadata = definition.metadata("t", None, 5).unwrap();
        let mut protocol = definition.protocol();
        protocol.writer_features.as_mut().unwrap().push("rowTracking".into());
        let error = TableDefinition::from_log("t", &protocol, &metadata).unwrap_err();
        assert!(error.to_string().contains("rowTracking"), "{error}");
    }

    #[test]
    fn contradictions_are_refused() {
        let breakages: [fn(&mut TableDefinition); 4] = [
            |d| d.key = vec![9],
            |d| d.partition_by = vec!["nowhere".into()],
            |d| d.partition_by = vec!["country".into(), "country".into()],
            |d| d.partition_by = vec!["id".into(), "country".into(), "at".into()],
        ];
        for breakage in breakages {
            let mut definition = definition();
            breakage(&mut definition);
            assert!(definition.check("t").is_err(), "{definition:?}");
        }
    }
}
