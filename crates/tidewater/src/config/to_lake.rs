//! `to_lake:` which tables of which database become Delta tables, and how.

use super::quantity::{ByteSize, Period};
use globset::{Glob, GlobSet, GlobSetBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One entry: tables of one database that are treated alike.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToLake {
    /// One of `databases`.
    pub database: String,
    /// Globs of `schema.table`.
    #[schemars(length(min = 1))]
    pub tables: Vec<String>,
    /// Globs of `schema.table` to leave out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// What the lake holds of each table.
    #[serde(default)]
    pub mode: Mode,
    /// Upper bound on freshness: a flush begins no later than this after a change. One value per database.
    pub flush: Option<Period>,
    /// A flush also begins once this many row changes wait. One value per database.
    #[schemars(range(min = 1))]
    pub flush_rows: Option<u64>,
    /// A flush also begins once this many bytes wait. One value per database.
    pub flush_bytes: Option<ByteSize>,
    /// What becomes of a value that Delta cannot hold.
    #[serde(default, deserialize_with = "null_is_a_choice")]
    pub unrepresentable: Unrepresentable,
    /// Off: files are rewritten instead (copy on write), for readers that know no deletion vectors.
    #[serde(default = "on")]
    #[schemars(with = "super::schema::Switch")]
    pub deletion_vectors: bool,
    /// How dropped and renamed columns are followed.
    #[serde(default)]
    pub schema_changes: SchemaChanges,
    /// How arrays are held.
    #[serde(default)]
    pub arrays: Arrays,
    /// Exceptions by `schema.table`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub overrides: BTreeMap<String, TableOverride>,
}

/// What the lake holds of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Its current state.
    #[default]
    Mirror,
    /// Every change.
    History,
    /// Both, side by side.
    Both,
}

/// What becomes of a value that Delta cannot hold; recorded either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unrepresentable {
    /// Null in its place.
    #[default]
    Null,
    /// The table stops.
    Fail,
}

/// How dropped and renamed columns are followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchemaChanges {
    /// The table's files are rewritten: every reader goes on.
    #[default]
    Rewrite,
    /// Metadata only: some readers cannot read the table any more.
    ColumnMapping,
}

/// How arrays are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Arrays {
    /// As array<T>.
    #[default]
    Native,
    /// As a JSON text.
    Json,
}

/// What is different for one table.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableOverride {
    /// Columns that the Delta table is partitioned by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partition_by: Vec<String>,
    /// Columns that stay out of the lake.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_columns: Vec<String>,
}

/// When a database's changes are flushed: its tables share one cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlushPolicy {
    /// No later than this after a change.
    pub every: Period,
    /// Or once this many row changes wait.
    pub rows: u64,
    /// Or once this many bytes wait.
    pub bytes: ByteSize,
}

impl Default for FlushPolicy {
    fn default() -> Self {
        FlushPolicy {
            // The contract's promise: readable about a second later.
            every: Period::from_secs(1),
            // About a second of a busy source, and a file size that readers like once compacted.
            rows: 200_000,
            // Held in memory as Arrow before it is written; larger flushes gain nothing measurable.
            bytes: ByteSize::new(64 << 20),
        }
    }
}

impl ToLake {
    /// The compiled `tables` and `exclude`, to be matched against `schema.table`.
    pub fn globs(&self) -> Result<(GlobSet, GlobSet), globset::Error> {
        Ok((glob_set(&self.tables)?, glob_set(&self.exclude)?))
    }

    /// Whether the entry is for this table. A glob that does not compile, refused at load, matches nothing.
    pub fn matches(&self, schema: &str, table: &str) -> bool {
        let name = format!("{schema}.{table}");
        self.globs().is_ok_and(|(include, exclude)| include.is_match(&name) && !exclude.is_match(&name))
    }

    /// What is different for this table.
    pub fn table_override(&self, schema: &str, table: &str) -> Option<&TableOverride> {
        self.overrides.get(&format!("{schema}.{table}"))
    }
}

fn glob_set(patterns: &[String]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern)?);
    }
    set.build()
}

const fn on() -> bool {
    true
}

/// YAML reads a bare `null` as nothing, and here it means `"null"`.
fn null_is_a_choice<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Unrepresentable, D::Error> {
    Ok(Option::<Unrepresentable>::deserialize(deserializer)?.unwrap_or_default())
}
