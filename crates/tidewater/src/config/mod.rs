//! `tidewater.yaml`: the one file that says what Tidewater does.
//!
//! ```text
//!   bytes ──document──▶ tree of spans ──reader──▶ Config ──checks──▶ Config
//!                          │              ▲ fills in ${VAR}, paths, secrets
//!                          └── mistake ◀──┴─────────────── each points at bytes of the file
//! ```
//!
//! A [`Config`] that exists is valid: defaults are filled in, paths absolute, secrets fetched, names checked.
//! What cannot be known without a live source is checked there: whether two globs match one table. No secret leaves through `Debug`, `Serialize` or an error.

mod checks;
mod core;
mod database;
mod document;
mod interpolation;
mod lake;
mod listen;
mod mistake;
mod path;
mod quantity;
mod reader;
pub mod schema;
mod secret;
mod to_lake;
mod to_postgres;

pub use self::core::{Core, CoreDatabase, Durability, Keeper, Mount};
pub use database::{Database, Tls, UrlDatabase};
pub use lake::{Lake, StoreOptions};
pub use listen::{Listen, Telemetry, TlsFiles};
pub use mistake::{ConfigError, MistakeReport};
pub use path::{LocalPath, Location};
pub use quantity::{ByteSize, ParseQuantityError, Period};
pub use secret::{DatabaseUrl, Secret};
pub use to_lake::{Arrays, FlushPolicy, Mode, SchemaChanges, TableOverride, ToLake, Unrepresentable};
pub use to_postgres::{ServeMode, ToPostgres};

use reader::Surroundings;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Thousands of tables fit; a data file named by mistake does not.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// The whole configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "tidewater.yaml")]
pub struct Config {
    /// The version of this file's format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// Part of slot, publication and txn names: two installations on one source never collide.
    #[serde(default = "default_instance")]
    #[schemars(regex(pattern = r"^[a-z][a-z0-9_]{0,19}$"))]
    pub instance: String,
    /// Where the Delta tables are.
    pub lake: Lake,
    /// Soft state only: key indexes, spill files, the control socket. Deleting it loses nothing.
    #[serde(default = "default_state_dir")]
    pub state_dir: LocalPath,
    /// The built-in Postgres; leave out to use only your own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<Core>,
    /// Databases by name; the name is their folder in the lake.
    #[serde(default)]
    pub databases: BTreeMap<String, Database>,
    /// Postgres -> Delta.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to_lake: Vec<ToLake>,
    /// Delta -> Postgres.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to_postgres: Vec<ToPostgres>,
    /// What Tidewater writes about itself into the lake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<Telemetry>,
    /// Where it can be reached.
    #[serde(default)]
    pub listen: Listen,
}

fn default_instance() -> String {
    "main".to_owned()
}

fn default_state_dir() -> LocalPath {
    LocalPath::unresolved(".tidewater")
}

impl Config {
    /// Reads and checks the file at `path` against the process's environment.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let source = read_bounded(path)?;
        let absolute = std::path::absolute(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let folder = absolute.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned);
        let surroundings = Surroundings { folder, variable: &|name| std::env::var(name).ok() };
        Config::from_source(&path.display().to_string(), &source, &surroundings)
    }

    fn from_source(file: &str, source: &str, surroundings: &Surroundings<'_>) -> Result<Config, ConfigError> {
        let tree = document::Node::parse(source)
            .map_err(|mistake| mistake::report(file, source, None, vec![*mistake]))?;
        let mut config: Config = reader::read(&tree, surroundings)
            .map_err(|mistake| mistake::report(file, source, Some(&tree), vec![*mistake]))?;
        let mistakes = checks::check(&config, &tree);
        config.fill_in(surroundings);
        if mistakes.is_empty() {
            Ok(config)
        } else {
            Err(mistake::report(file, source, Some(&tree), mistakes))
        }
    }

    /// Fills in the defaults that depend on something else: every entry shows the flush of its database.
    fn fill_in(&mut self, surroundings: &Surroundings<'_>) {
        self.state_dir = self.state_dir.resolved(&surroundings.folder);
        let policies: Vec<_> = self.to_lake.iter().map(|entry| self.flush_policy(&entry.database)).collect();
        for (entry, policy) in self.to_lake.iter_mut().zip(policies) {
            entry.flush.get_or_insert(policy.every);
            entry.flush_rows.get_or_insert(policy.rows);
            entry.flush_bytes.get_or_insert(policy.bytes);
        }
    }

    /// When this database's changes are flushed: what any of its entries says, else the default.
    pub fn flush_policy(&self, database: &str) -> FlushPolicy {
        let entries = || self.to_lake.iter().filter(|entry| entry.database == database);
        let default = FlushPolicy::default();
        FlushPolicy {
            every: entries().find_map(|entry| entry.flush).unwrap_or(default.every),
            rows: entries().find_map(|entry| entry.flush_rows).unwrap_or(default.rows),
            bytes: entries().find_map(|entry| entry.flush_bytes).unwrap_or(default.bytes),
        }
    }

    /// The built-in Postgres with its defaults: what the file says of it, if anything.
    pub fn core_settings(&self) -> Core {
        let beside = || self.state_dir.parent().unwrap_or(&self.state_dir).to_owned();
        self.core.clone().unwrap_or_else(|| Core::in_folder(&beside()))
    }

    /// The socket that commands speak to the daemon over.
    pub fn control_socket(&self) -> PathBuf {
        self.state_dir.join("control.sock")
    }
}

fn read_bounded(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => ConfigError::Missing { path: path.to_owned() },
        _ => unreadable(source),
    })?;
    let mut text = String::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if u64::try_from(text.len()).is_ok_and(|bytes| bytes > MAX_CONFIG_BYTES) {
        return Err(ConfigError::TooLong { path: path.to_owned(), limit: MAX_CONFIG_BYTES });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every place where a secret can stand, directly or through the environment.
    const SECRETS_EVERYWHERE: &str = r#"
version: 1
lake:
  uri: s3://bucket/lake
  options: {endpoint: "http://127.0.0.1:9000", secret_access_key: "SECRET", session: "${SECRET}"}
databases:
  a: {url: "postgres://me:${SECRET}@host/db"}
  b: {url: "postgres://me@host/db", password: 'SECRET'}
  c: {core: {password: "x${SECRET}"}}
listen:
  token: "SECRET"
"#;

    fn load(source: &str, secret: &str) -> Result<Config, ConfigError> {
        let variable = |name: &str| (name == "SECRET").then(|| secret.to_owned());
        let surroundings = Surroundings { folder: "/site".into(), variable: &variable };
        Config::from_source("tidewater.yaml", source, &surroundings)
    }

    /// Everything that a person or a log could get to see of a load's outcome.
    fn shown(loaded: Result<Config, ConfigError>) -> String {
        match loaded {
            Ok(config) => [
                format!("{config:?}"),
                serde_json::to_string(&config).unwrap(),
                serde_saphyr::to_string(&config).unwrap(),
            ]
            .concat(),
            Err(error) => [error.to_string(), format!("{:?}", miette::Report::new(error))].concat(),
        }
    }

    #[test]
    fn paths_count_from_the_files_folder_and_defaults_are_filled_in() {
        let config = load("version: 1\nlake: {uri: ./lake}\n", "").unwrap();
        assert_eq!(config.lake.uri.as_str(), "/site/lake");
        assert_eq!(config.control_socket(), Path::new("/site/.tidewater/control.sock"));
        assert_eq!(config.listen.http.to_string(), "127.0.0.1:8080");
        assert_eq!(config.flush_policy("any"), FlushPolicy::default());
    }

    #[test]
    fn what_a_variable_holds_cannot_change_the_files_structure() {
        let source = "version: 1\nlake: {uri: \"${SECRET}\"}\n";
        let config = load(source, "x\", retention: 1d}\nlisten: {http: \"0.0.0.0:1").unwrap();
        assert_eq!(config.lake.retention, lake::week());
        assert!(config.listen.http.ip().is_loopback());
    }

    #[test]
    fn one_flush_counts_for_all_entries_of_a_database() {
        let source = "version: 1\nlake: {uri: l}\ndatabases: {d: {core: {}}}\nto_lake:\n  \
                      - {database: d, tables: [\"a.*\"]}\n  - {database: d, tables: [\"b.*\"], flush: 3s}\n";
        let config = load(source, "").unwrap();
        assert_eq!(config.to_lake[0].flush, Some(Period::from_secs(3)));
    }

    proptest! {
        /// With any one line broken off or doubled, the file is right or wrong in many ways; the secret shows in none.
        #[test]
        fn a_secret_is_never_shown(secret in "[A-Z]{3}[a-zA-Z0-9]{6,20}", line in 0usize..11, cut in 0usize..90) {
            let source = SECRETS_EVERYWHERE.replace("\"SECRET\"", &format!("\"{secret}\"")).replace("'SECRET'", &format!("'{secret}'"));
            prop_assert!(!shown(load(&source, &secret)).contains(&secret));
            let mut lines: Vec<&str> = source.lines().collect();
            let broken = lines[line].get(..cut).unwrap_or(lines[line]).to_owned();
            let doubled = lines[line].to_owned();
            lines.insert(line, &doubled);
            prop_assert!(!shown(load(&lines.join("\n"), &secret)).contains(&secret));
            lines[line] = &broken;
            prop_assert!(!shown(load(&lines.join("\n"), &secret)).contains(&secret));
        }
    }
}
