//! What must hold beyond each value by itself. Every mistake is reported, not just the first.

mod serving;

use super::document::Node;
use super::mistake::Mistake;
use super::{Config, Durability, Mode, ToLake};
use globset::Glob;
use std::collections::BTreeMap;

/// Names that mean something of their own in lake SQL.
const RESERVED_DATABASES: [&str; 2] = ["live", "tidewater"];

/// Postgres cuts longer names off; instance and database share a slot's name.
const MAX_NAME: usize = 63;

/// The instance is part of names that have to hold much else.
const MAX_INSTANCE: usize = 20;

/// A flush smaller than this would write more metadata than rows.
const MIN_FLUSH_BYTES: u64 = 64 * 1024;

/// Everything wrong with a configuration that parsed.
pub(super) fn check(config: &Config, tree: &Node) -> Vec<Mistake> {
    let mut check = Check { config, tree, mistakes: Vec::new() };
    check.header();
    check.core();
    check.databases();
    for (at, entry) in config.to_lake.iter().enumerate() {
        check.lake_entry(&at.to_string(), entry);
    }
    check.tables_claimed_twice();
    check.one_flush_per_database();
    for (at, entry) in config.to_postgres.iter().enumerate() {
        check.served_table(&at.to_string(), entry);
    }
    check.mistakes
}

struct Check<'a> {
    config: &'a Config,
    tree: &'a Node,
    mistakes: Vec<Mistake>,
}

impl Check<'_> {
    fn wrong(&mut self, path: &[&str], message: impl Into<String>, label: impl Into<String>) {
        let span = self.tree.span_at(path);
        self.mistakes.push(Mistake::new("tidewater::config::bad_value", span, message).label(label));
    }

    fn header(&mut self) {
        let config = self.config;
        if config.version != 1 {
            self.wrong(&["version"], format!("version {} is not known", config.version), "expected 1");
        }
        let mut bytes = config.instance.bytes();
        let name = bytes.next().is_some_and(|b| b.is_ascii_lowercase())
            && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && config.instance.len() <= MAX_INSTANCE;
        if !name {
            self.wrong(
                &["instance"],
                format!("`{}` cannot be part of slot and publication names", config.instance),
                format!("expected a lower-case letter, then letters, digits and `_`, at most {MAX_INSTANCE}"),
            );
        }
        if config.lake.max_versions == 0 {
            self.wrong(&["lake", "max_versions"], "a table has at least one version", "expected 1 or more");
        }
        if config.listen.lake_sql == Some(config.listen.http) && config.listen.http.port() != 0 {
            self.wrong(
                &["listen", "lake_sql"],
                "two services cannot share an address",
                "`http` has it already",
            );
        }
        if config.telemetry.as_ref().is_some_and(|telemetry| telemetry.every.is_zero()) {
            self.wrong(&["telemetry", "every"], "a period of nothing never ends", "expected 1s or more");
        }
    }

    fn core(&mut self) {
        let Some(core) = &self.config.core else { return };
        let keeper = core.keeper.is_some() || !core.keepers.is_empty();
        if core.storage.is_object_store() && core.durability == Durability::Keeper && !keeper {
            self.wrong(
                &["core"],
                "WAL that is not in the object store yet needs a keeper's disk",
                "expected `keeper: {dir: …}`, or `durability: store`",
            );
        }
        if core.storage == self.config.lake.uri {
            self.wrong(
                &["core", "storage"],
                "the core and the lake share a place",
                "expected another place than lake.uri",
            );
        }
    }

    fn databases(&mut self) {
        let config = self.config;
        let mut by_folder: BTreeMap<String, &str> = BTreeMap::new();
        for name in config.databases.keys() {
            let path = ["databases", name.as_str()];
            if RESERVED_DATABASES.contains(&name.to_ascii_lowercase().as_str()) {
                self.wrong(
                    &path,
                    format!("a database cannot be named `{name}`"),
                    "lake SQL uses this name itself",
                );
            }
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
                && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
            if !plain || name.len() > MAX_NAME {
                self.wrong(
                    &path,
                    format!("`{name}` cannot name a database"),
                    format!("expected letters, digits, `_` and `-`, at most {MAX_NAME}"),
                );
            }
            if let Some(other) = by_folder.insert(name.to_ascii_lowercase(), name) {
                self.wrong(
                    &path,
                    format!("`{other}` and `{name}` would share a folder in the lake"),
                    "expected names that differ in more than case",
                );
            }
        }
    }

    fn known_database(&mut self, path: &[&str], name: &str) {
        if !self.config.databases.contains_key(name) {
            let known: Vec<_> = self.config.databases.keys().map(String::as_str).collect();
            let known =
                if known.is_empty() { "an entry in `databases`".to_owned() } else { known.join(", ") };
            self.wrong(path, format!("there is no database `{name}`"), format!("expected {known}"));
        }
    }

    fn lake_entry(&mut self, at: &str, entry: &ToLake) {
        self.known_database(&["to_lake", at, "database"], &entry.database);
        if entry.tables.is_empty() {
            self.wrong(
                &["to_lake", at, "tables"],
                "no table is named",
                "expected globs such as \"public.*\"",
            );
        }
        for (list, patterns) in [("tables", &entry.tables), ("exclude", &entry.exclude)] {
            for (item, pattern) in patterns.iter().enumerate() {
                let item = item.to_string();
                let path = ["to_lake", at, list, &item];
                if Glob::new(pattern).is_err() {
                    self.wrong(
                        &path,
                        format!("`{pattern}` is not a glob"),
                        "expected closed brackets and braces",
                    );
                } else if !pattern.contains('.') {
                    self.wrong(
                        &path,
                        format!("`{pattern}` can match no table"),
                        format!("expected `schema.table`, such as \"public.{pattern}\""),
                    );
                }
            }
        }
        if entry.flush.is_some_and(|flush| flush.is_zero()) {
            self.wrong(&["to_lake", at, "flush"], "a flush needs some time", "expected 100ms or more");
        }
        if entry.flush_rows == Some(0) {
            self.wrong(&["to_lake", at, "flush_rows"], "a flush holds at least a row", "expected 1 or more");
        }
        if entry.flush_bytes.is_some_and(|size| size.bytes() < MIN_FLUSH_BYTES) {
            self.wrong(&["to_lake", at, "flush_bytes"], "too small for a flush", "expected 64KiB or more");
        }
        for (table, exception) in &entry.overrides {
            let path = ["to_lake", at, "overrides", table.as_str()];
            match table.split_once('.') {
                Some((schema, name)) if entry.matches(schema, name) => {}
                Some(_) => {
                    self.wrong(
                        &path,
                        format!("`{table}` is not among this entry's tables"),
                        "matched by none of `tables`, or excluded",
                    );
                }
                None => {
                    self.wrong(&path, format!("`{table}` is not a table's name"), "expected `schema.table`")
                }
            }
            if entry.mode == Mode::History && !exception.partition_by.is_empty() {
                self.wrong(
                    &path,
                    "a history is not partitioned, and there is no mirror",
                    "expected no `partition_by`, or `mode: both`",
                );
            }
            if let Some(column) =
                exception.partition_by.iter().find(|c| exception.exclude_columns.contains(c))
            {
                self.wrong(
                    &path,
                    format!("`{column}` is both excluded and partitioned by"),
                    "expected one of the two",
                );
            }
        }
    }

    /// Equal globs claim the same tables for certain; whether different ones do is seen once tables are known.
    fn tables_claimed_twice(&mut self) {
        let mut claimed: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (at, entry) in self.config.to_lake.iter().enumerate() {
            for (item, pattern) in entry.tables.iter().enumerate() {
                let Some(first) = claimed.insert((&entry.database, pattern), at) else { continue };
                self.wrong(
                    &["to_lake", &at.to_string(), "tables", &item.to_string()],
                    format!("`{pattern}` of `{}` is there twice", entry.database),
                    format!("to_lake[{first}] has it already"),
                );
            }
        }
    }

    fn one_flush_per_database(&mut self) {
        for (at, entry) in self.config.to_lake.iter().enumerate() {
            let policy = self.config.flush_policy(&entry.database);
            let differing = [
                ("flush", entry.flush.is_some_and(|every| every != policy.every)),
                ("flush_rows", entry.flush_rows.is_some_and(|rows| rows != policy.rows)),
                ("flush_bytes", entry.flush_bytes.is_some_and(|bytes| bytes != policy.bytes)),
            ];
            for (key, _) in differing.iter().filter(|(_, differs)| *differs) {
                self.wrong(
                    &["to_lake", &at.to_string(), key],
                    format!("`{}` has two values of `{key}`: its tables share one cut", entry.database),
                    "expected one value per database",
                );
            }
        }
    }
}
