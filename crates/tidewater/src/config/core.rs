//! `core:` the built-in Postgres.

use super::lake::week;
use super::listen::TlsFiles;
use super::path::{LocalPath, Location};
use super::quantity::{ByteSize, Period};
use super::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

/// The built-in Postgres as a whole.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Core {
    /// Pages and WAL: a path or an object store.
    pub storage: Location,
    /// Options of the object store.
    #[serde(default, skip_serializing_if = "super::StoreOptions::is_empty")]
    pub options: super::StoreOptions,
    /// Where the gateway takes connections.
    #[serde(default = "gateway_address")]
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// Certificate and key of the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// An idle compute goes to sleep after this time; 0 = never.
    #[serde(default = "suspend_after")]
    pub suspend_after: Period,
    /// How far back a database can be restored.
    #[serde(default = "week")]
    pub retention: Period,
    /// Size of the local page cache.
    #[serde(default = "cache")]
    pub cache: ByteSize,
    /// How computes reach their pages.
    #[serde(default)]
    pub mount: Mount,
    /// What a commit waits for.
    #[serde(default)]
    pub durability: Durability,
    /// The WAL keeper inside this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<Keeper>,
    /// host:port of keepers that run as processes of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keepers: Vec<String>,
    /// The folder with postgres and initdb; found on its own when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres_bin: Option<LocalPath>,
}

impl Core {
    /// The core of a file that has no word on it.
    pub(super) fn in_folder(folder: &Path) -> Core {
        Core {
            storage: Location::local(&folder.join("core")),
            options: super::StoreOptions::default(),
            listen: gateway_address(),
            tls: None,
            suspend_after: suspend_after(),
            retention: week(),
            cache: cache(),
            mount: Mount::default(),
            durability: Durability::default(),
            keeper: None,
            keepers: Vec::new(),
            postgres_bin: None,
        }
    }
}

fn gateway_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 5432))
}

/// Long enough that a person who looks something up meanwhile does not notice.
const fn suspend_after() -> Period {
    Period::from_secs(300)
}

const fn cache() -> ByteSize {
    ByteSize::new(10 << 30)
}

/// How a compute reaches its pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mount {
    /// Through a file system of ours.
    #[default]
    Fuse,
    /// As ordinary files, copied at start.
    Copy,
}

/// What a commit waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Its WAL is on the keepers' disks.
    #[default]
    Keeper,
    /// Its WAL is in the object store.
    Store,
}

/// The WAL keeper inside this process.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Keeper {
    /// Hard state: losing it loses commits that are not in the store yet.
    pub dir: LocalPath,
}

/// One project of the core: a Postgres cluster of its own.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CoreDatabase {
    /// The major version of Postgres.
    #[serde(default = "postgres_version")]
    #[schemars(range(min = 14, max = 18))]
    pub postgres: u32,
    /// The role that owns the database; the database's name when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The owner's password; generated when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Settings of the server.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

const fn postgres_version() -> u32 {
    18
}
