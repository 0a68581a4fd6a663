//! What must hold of the tables that are served, and that nothing of them goes around in a circle.
//!
//! A served table is never mirrored: the sync of its database leaves it out. So a circle needs a name for it that the
//! sync does not know: the served table's own folder in the lake, or the same database under a second name.

use super::Check;
use crate::config::{Config, Database, ServeMode, ToPostgres};

/// Whoever may write to a served table would find the writes gone after the next version.
const GRANTABLE: [&str; 2] = ["select", "references"];

/// What Tidewater keeps for itself in a target, and what is Postgres's.
const RESERVED_SCHEMAS: [&str; 2] = ["tidewater", "information_schema"];

impl Check<'_> {
    pub(super) fn served_table(&mut self, at: &str, entry: &ToPostgres) {
        self.known_database(&["to_postgres", at, "database"], &entry.database);
        if entry.table.is_some() == entry.uri.is_some() {
            self.wrong(
                &["to_postgres", at],
                "where the rows come from is not clear",
                "expected either `table` or `uri`",
            );
        }
        self.served_name(at, entry);
        self.served_columns(at, entry);
        if entry.mode == ServeMode::Continuous && entry.every.is_some() {
            self.wrong(
                &["to_postgres", at, "every"],
                "continuous has no period",
                "expected `mode: triggered` with it",
            );
        }
        if entry.every.is_some_and(|every| every.is_zero()) {
            self.wrong(
                &["to_postgres", at, "every"],
                "a period of nothing never ends",
                "expected 1s or more",
            );
        }
        for privilege in entry.grants.keys() {
            if !GRANTABLE.contains(&privilege.to_ascii_lowercase().as_str()) {
                self.wrong(
                    &["to_postgres", at, "grants", privilege],
                    format!("`{privilege}` cannot be granted: a served table is read-only"),
                    "expected select or references",
                );
            }
        }
        self.loops(at, entry);
    }

    fn served_name(&mut self, at: &str, entry: &ToPostgres) {
        let path = ["to_postgres", at, "into"];
        let parts: Vec<&str> = entry.into.split('.').collect();
        match parts.as_slice() {
            [schema, table] if !schema.is_empty() && !table.is_empty() => {
                if RESERVED_SCHEMAS.contains(schema) || schema.starts_with("pg_") {
                    self.wrong(
                        &path,
                        format!("nothing can be served in the schema `{schema}`"),
                        "expected a schema of your own",
                    );
                }
            }
            _ => {
                self.wrong(
                    &path,
                    format!("`{}` is not a schema and a table", entry.into),
                    "expected `schema.table`",
                );
            }
        }
        let config = self.config;
        let same = |other: &&ToPostgres| {
            other.into == entry.into && same_place(config, &other.database, &entry.database)
        };
        let second = config.to_postgres.iter().filter(same).nth(1);
        if second.is_some_and(|second| std::ptr::eq(second, entry)) {
            self.wrong(&path, format!("`{}` is served twice", entry.into), "an earlier entry has it");
        }
    }

    fn served_columns(&mut self, at: &str, entry: &ToPostgres) {
        if entry.primary_key.is_empty() {
            self.wrong(&["to_postgres", at, "primary_key"], "rows need a key", "expected one column or more");
        }
        let served = |name: &String| entry.columns.is_empty() || entry.columns.contains(name);
        let named = entry.primary_key.iter().map(|name| ("primary_key", name));
        let named = named.chain(entry.timeseries_key.iter().map(|name| ("timeseries_key", name)));
        for (key, name) in named.chain(entry.type_overrides.keys().map(|name| ("type_overrides", name))) {
            if !served(name) {
                self.wrong(
                    &["to_postgres", at, key],
                    format!("`{name}` is not among `columns`"),
                    "expected a column that is served",
                );
            }
        }
    }

    fn loops(&mut self, at: &str, entry: &ToPostgres) {
        let config = self.config;
        let path = ["to_postgres", at, "into"];
        let Some((schema, table)) = entry.into.split_once('.') else { return };
        if config
            .databases
            .keys()
            .any(|name| same_place(config, name, &entry.database) && entry.is_mirror_of(config, name))
        {
            self.wrong(
                &path,
                "this table would feed itself",
                "expected another table than the lake's source",
            );
        }
        for (lake_entry, to_lake) in config.to_lake.iter().enumerate() {
            let literal = to_lake.tables.iter().position(|pattern| *pattern == entry.into);
            if to_lake.database == entry.database {
                if let Some(item) = literal {
                    self.wrong(
                        &["to_lake", &lake_entry.to_string(), "tables", &item.to_string()],
                        format!("`{}` is served from the lake, and cannot be synced to it", entry.into),
                        "expected a table that is not in `to_postgres`",
                    );
                }
            } else if same_place(config, &to_lake.database, &entry.database) && to_lake.matches(schema, table)
            {
                self.wrong(
                    &path,
                    format!(
                        "`{}` is the same database as `{}`, whose sync would take this table back to the lake",
                        entry.database, to_lake.database
                    ),
                    "expected one name for one database, or an `exclude` there",
                );
            }
        }
    }
}

impl ToPostgres {
    /// Whether its rows come from the folder that its own served table would be mirrored to.
    fn is_mirror_of(&self, config: &Config, database: &str) -> bool {
        let own = format!("{database}.{}", self.into);
        if self.table.as_ref() == Some(&own) {
            return true;
        }
        let parts = self.into.split('.').map(wal_decoder::folder_name);
        let folders: Vec<String> = std::iter::once(wal_decoder::folder_name(database)).chain(parts).collect();
        let folder = format!("{}/{}", config.lake.uri.as_str().trim_end_matches('/'), folders.join("/"));
        self.uri.as_ref().is_some_and(|uri| uri.as_str().trim_end_matches('/') == folder)
    }
}

/// Whether two names stand for one database, as far as their addresses tell.
fn same_place(config: &Config, one: &str, other: &str) -> bool {
    one == other || place_of(config, one).is_some_and(|place| Some(place) == place_of(config, other))
}

fn place_of(config: &Config, name: &str) -> Option<String> {
    match config.databases.get(name)? {
        Database::Url(url) => Some(url.source_config().ok()?.place()),
        Database::Core(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::config::reader::Surroundings;

    const DATABASES: &str = "version: 1\nlake: {uri: l}\ndatabases:\n  a: {url: \"postgres://me@h/x\"}\n  \
        b: {url: \"postgres://you@h:5432/x\"}\n  c: {url: \"postgres://me@h/y\"}\n";

    fn mistakes(rest: &str) -> String {
        let surroundings = Surroundings { folder: "/site".into(), variable: &|_| None };
        let loaded = Config::from_source("tidewater.yaml", &format!("{DATABASES}{rest}"), &surroundings);
        loaded.map_or_else(|error| format!("{:?}", miette::Report::new(error)), |_| String::new())
    }

    fn served(entry: &str) -> String {
        format!("to_postgres:\n  - {{mode: continuous, primary_key: [id], {entry}}}\n")
    }

    #[test]
    fn a_table_that_would_feed_itself_is_refused() {
        let direct = served("table: a.s.t, database: a, into: s.t");
        assert!(mistakes(&direct).contains("feed itself"), "{}", mistakes(&direct));
        let by_folder = served("uri: ./l/a/s/t, database: a, into: s.t");
        assert!(mistakes(&by_folder).contains("feed itself"), "{}", mistakes(&by_folder));
        let by_another_name = served("table: b.s.t, database: a, into: s.t");
        assert!(mistakes(&by_another_name).contains("feed itself"), "{}", mistakes(&by_another_name));
        assert_eq!(mistakes(&served("table: c.s.t, database: a, into: s.t")), "");
    }

    #[test]
    fn a_circle_by_way_of_a_second_name_is_refused() {
        let served = served("table: a.public.t, database: b, into: public.u");
        let circle = format!("to_lake:\n  - {{database: a, tables: [\"public.*\"]}}\n{served}");
        assert!(mistakes(&circle).contains("same database as `a`"), "{}", mistakes(&circle));
        let excluded = circle.replace("[\"public.*\"]", "[\"public.*\"], exclude: [\"public.u\"]");
        assert_eq!(mistakes(&excluded), "");
    }

    #[test]
    fn a_database_may_be_source_and_target_but_no_table_both() {
        let served = served("table: gold.t, database: a, into: public.t");
        let both = |tables: &str| format!("to_lake:\n  - {{database: a, tables: [{tables}]}}\n{served}");
        assert_eq!(mistakes(&both("\"public.*\"")), "");
        assert!(mistakes(&both("\"public.t\"")).contains("cannot be synced to it"));
    }

    #[test]
    fn privileges_to_write_and_columns_that_are_not_served_are_refused() {
        let writing = served("table: g.t, database: a, into: s.t, grants: {insert: [me]}");
        assert!(mistakes(&writing).contains("read-only"), "{}", mistakes(&writing));
        let columns = served("table: g.t, database: a, into: s.t, columns: [v]");
        assert!(mistakes(&columns).contains("`id` is not among"), "{}", mistakes(&columns));
        let reserved = served("table: g.t, database: a, into: tidewater.t");
        assert!(mistakes(&reserved).contains("schema `tidewater`"), "{}", mistakes(&reserved));
    }
}
