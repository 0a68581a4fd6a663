//! `lake:` where the Delta tables are and how far back they reach.

use super::path::Location;
use super::quantity::Period;
use super::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;

/// Options whose values are no secrets. What is not listed here is hidden: a store's new option is
/// better hidden for no reason than shown for none.
const PUBLIC_OPTIONS: [&str; 12] = [
    "access_key_id",
    "account_name",
    "allow_http",
    "bucket",
    "conditional_put",
    "container_name",
    "endpoint",
    "region",
    "skip_signature",
    "timeout",
    "use_path_style",
    "virtual_hosted_style_request",
];

/// The lake.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lake {
    /// The folder of all tables: a path, s3://bucket/prefix, gs://… or az://….
    pub uri: Location,
    /// Options of the object store: endpoint, region, access_key_id, secret_access_key, ….
    #[serde(default, skip_serializing_if = "StoreOptions::is_empty")]
    pub options: StoreOptions,
    /// How far back VERSION AS OF works.
    #[serde(default = "week")]
    pub retention: Period,
    /// The most versions that a table's log holds.
    #[serde(default = "max_versions")]
    #[schemars(range(min = 1))]
    pub max_versions: u64,
}

/// A week covers a long weekend's outage of whoever reads the tables.
pub(super) const fn week() -> Period {
    Period::from_secs(7 * 24 * 3600)
}

/// At a version a second, more than five hours: reading a log far longer than this slows every reader's start.
const fn max_versions() -> u64 {
    20_000
}

/// An object store's options by name.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct StoreOptions(BTreeMap<String, Secret>);

impl StoreOptions {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names and values as a store takes them: never to be printed.
    pub fn expose(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect()
    }
}

impl Serialize for StoreOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| {
            let public = PUBLIC_OPTIONS.contains(&name.to_ascii_lowercase().trim_start_matches("aws_"))
                && !value.expose().contains('@');
            (name, if public { value.expose() } else { "(hidden)" })
        }))
    }
}
