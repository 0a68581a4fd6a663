//! `to_postgres:` which Delta tables are served from Postgres, and how.

use super::path::Location;
use super::quantity::Period;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One served table.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToPostgres {
    /// The lake table, `schema.table` or `database.schema.table`. Or give `uri`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The place of a Delta table outside the lake. Or give `table`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<Location>,
    /// One of `databases`.
    pub database: String,
    /// `schema.table` to serve it as.
    pub into: String,
    /// When it is brought up to date.
    pub mode: ServeMode,
    /// With triggered and snapshot: how often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Period>,
    /// The columns that name a row.
    #[schemars(length(min = 1))]
    pub primary_key: Vec<String>,
    /// Keep only the latest row of each key, by this column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeseries_key: Option<String>,
    /// Serve only these columns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Serve only rows for which this condition holds.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Postgres types of columns that should not follow the type map.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub type_overrides: BTreeMap<String, String>,
    /// Indexes, as in `create index on … (here)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indexes: Vec<String>,
    /// Further columns that Postgres fills in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_columns: BTreeMap<String, String>,
    /// Who may do what: privilege to roles.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub grants: BTreeMap<String, Vec<String>>,
}

/// When a served table is brought up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServeMode {
    /// As a whole, every now and then.
    Snapshot,
    /// By its changes, every now and then.
    Triggered,
    /// By its changes, as they come.
    Continuous,
}
