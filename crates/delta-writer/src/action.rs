//! The actions of a Delta commit, as the protocol spells them in JSON.
//!
//! One commit is a file of lines, one action each. Only the fields that this writer writes or has to
//! carry on are named; unknown actions and fields in files of other writers are skipped, because the
//! protocol action says beforehand whether anything in them matters (see `table_state`).

use crate::deletion_vector::DvDescriptor;
use crate::error::{DeltaError, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Who may read and write the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Protocol {
    pub min_reader_version: i32,
    pub min_writer_version: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reader_features: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writer_features: Option<Vec<String>>,
}

/// The encoding of data files: always Parquet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Format {
    pub provider: String,
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// Schema, partitioning and properties.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub format: Format,
    pub schema_string: String,
    pub partition_columns: Vec<String>,
    #[serde(default)]
    pub configuration: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_time: Option<i64>,
}

/// A data file joins the table, or its deletion vector changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Add {
    /// Relative to the table, URL-encoded.
    pub path: String,
    pub partition_values: BTreeMap<String, Option<String>>,
    pub size: i64,
    pub modification_time: i64,
    pub data_change: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, Option<String>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_vector: Option<DvDescriptor>,
}

/// A data file leaves the table; with a deletion vector, the one it had until now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Remove {
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<i64>,
    pub data_change: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extended_file_metadata: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition_values: Option<BTreeMap<String, Option<String>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_vector: Option<DvDescriptor>,
}

/// How far an application has come: the record that makes a replay harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Txn {
    pub app_id: String,
    pub version: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<i64>,
}

/// One action, and one line of a commit.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Action {
    CommitInfo(Map<String, Value>),
    Protocol(Protocol),
    MetaData(Metadata),
    Txn(Txn),
    Remove(Remove),
    Add(Add),
}

/// A line as other writers may write it: kinds unknown here are skipped.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    commit_info: Option<Map<String, Value>>,
    protocol: Option<Protocol>,
    meta_data: Option<Metadata>,
    txn: Option<Txn>,
    remove: Option<Remove>,
    add: Option<Add>,
}

impl Line {
    fn into_action(self) -> Option<Action> {
        self.commit_info
            .map(Action::CommitInfo)
            .or(self.protocol.map(Action::Protocol))
            .or(self.meta_data.map(Action::MetaData))
            .or(self.txn.map(Action::Txn))
            .or(self.remove.map(Action::Remove))
            .or(self.add.map(Action::Add))
    }
}

/// Reads the lines of a commit, or of a checkpoint turned into lines.
pub(crate) fn parse_actions(path: &str, bytes: &[u8]) -> Result<Vec<Action>> {
    let mut actions = Vec::new();
    for (at, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let line: Line = serde_json::from_slice(line).map_err(|source| DeltaError::CorruptAction {
            path: path.to_owned(),
            line: at + 1,
            source,
        })?;
        actions.extend(line.into_action());
    }
    Ok(actions)
}

/// Writes actions as the lines of a commit.
pub(crate) fn render_actions(actions: &[Action]) -> Result<Bytes> {
    let mut lines = Vec::with_capacity(256 * actions.len());
    for action in actions {
        serde_json::to_writer(&mut lines, action)
            .map_err(|source| DeltaError::Json { what: "a Delta action", source })?;
        lines.push(b'\n');
    }
    Ok(lines.into())
}

/// The writer's name as a commit gives it, for error messages.
pub(crate) fn engine_of(info: Option<&Map<String, Value>>) -> String {
    let text = |key| info.and_then(|info| info.get(key)).and_then(Value::as_str);
    match (text("engineInfo"), text("operation")) {
        (Some(engine), Some(operation)) => format!("{engine} ({operation})"),
        (Some(name), None) | (None, Some(name)) => name.to_owned(),
        (None, None) => "a writer without a name".to_owned(),
    }
}

impl Add {
    /// The Remove that takes this file, with its current vector, out of the table.
    pub fn removal(&self, now: i64, data_change: bool) -> Remove {
        Remove {
            path: self.path.clone(),
            deletion_timestamp: Some(now),
            data_change,
            extended_file_metadata: Some(true),
            partition_values: Some(self.partition_values.clone()),
            size: Some(self.size),
            deletion_vector: self.deletion_vector.clone(),
        }
    }
}
