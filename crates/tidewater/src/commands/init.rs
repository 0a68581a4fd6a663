//! `tidewater init`: a configuration to begin with.
//!
//! A password in the given URL is used to look at the database and never written: the file asks an
//! environment variable for it.

use super::{CommandError, Outcome};
use globset::{Glob, GlobSet};
use postgres_connector::{ReplicaIdentity, SourceConfig, TableListing, connect, list_tables};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use url::Url;

const HEAD: &str = "\
# yaml-language-server: $schema=./tidewater.schema.json
# `tidewater config check` checks this file; `tidewater config schema > tidewater.schema.json` helps editors.
version: 1
instance: main              # part of slot and publication names: two installations never collide

lake:
  uri: ./lake               # a path, or s3://bucket/prefix with `options`
  # options: {endpoint: \"http://127.0.0.1:9000\", access_key_id: \"${S3_KEY}\", secret_access_key: \"${S3_SECRET}\"}
  retention: 7d             # how far back VERSION AS OF works

state_dir: ./.tidewater     # soft state only: deleting it loses nothing

";

const TAIL: &str = "
listen:
  http: 127.0.0.1:8080      # health, metrics, status
";

/// Without a database to look at: one of the built-in Postgres.
const BUILT_IN: &str = "\
databases:
  shop: {core: {}}          # the built-in Postgres; or {url: \"postgres://user@host/db\", password: \"${SHOP_PASSWORD:?set it}\"}

to_lake:                    # Postgres -> Delta
  - database: shop
    tables: [\"public.*\"]    # globs over schema.table
    # exclude: [\"public.*_tmp\"]
    # flush: 1s             # upper bound on freshness
";

pub(super) async fn init(path: &Path, from: Option<&str>) -> Result<Outcome, CommandError> {
    if path.exists() {
        return Err(CommandError::Exists { path: path.to_owned() });
    }
    let databases = match from {
        None => BUILT_IN.to_owned(),
        Some(url) => proposal(url).await?,
    };
    let failed = |source| CommandError::File { path: path.to_owned(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    file.write_all([HEAD, &databases, TAIL].concat().as_bytes()).map_err(failed)?;
    writeln!(std::io::stdout(), "wrote {}; next: `tidewater doctor`, then `tidewater run`", path.display())?;
    Ok(Outcome::Done)
}

async fn proposal(url: &str) -> Result<String, CommandError> {
    let config = SourceConfig::from_url(url, None, None, None)
        .map_err(|error| cannot_look("the address of `--from`".to_owned(), error))?;
    let failed = |error| cannot_look(config.place(), error);
    let client = connect(&config).await.map_err(failed)?;
    let all = Glob::new("*").and_then(|glob| GlobSet::builder().add(glob).build()).unwrap_or_default();
    let listing = list_tables(&client, &all, &GlobSet::empty()).await.map_err(failed)?;
    Ok(describe(url, &config, &listing))
}

fn cannot_look(place: String, source: postgres_connector::Error) -> CommandError {
    let remedy = match &source {
        postgres_connector::Error::PasswordMissing { .. } => {
            "put the password into the address, as postgres://user:password@host/database: it is used to look at the \
             database, and the file asks an environment variable for it"
        }
        _ => "correct the address of `--from`",
    };
    CommandError::InitSource { place, remedy, source: Box::new(source) }
}

/// The sections `databases` and `to_lake` for what was found.
fn describe(url: &str, config: &SourceConfig, listing: &TableListing) -> String {
    let name = database_name(&config.dbname);
    let password = match config.password {
        Some(_) => {
            format!(", password: \"${{{}_PASSWORD:?set it}}\"", name.to_ascii_uppercase().replace('-', "_"))
        }
        None => String::new(),
    };
    let mut text = format!(
        "databases:\n  {name}: {{url: {}{password}}}\n\nto_lake:                    # Postgres -> Delta\n  - database: {name}\n    tables:\n",
        quoted(&without_password(url))
    );
    let schemas: BTreeSet<&str> = listing.tables.iter().map(|table| table.schema.as_str()).collect();
    for schema in &schemas {
        let _ = writeln!(text, "      - {}", quoted(&format!("{}.*", globset::escape(schema))));
    }
    if schemas.is_empty() {
        text.push_str("      - \"public.*\"         # no table was found yet\n");
    }
    for table in &listing.tables {
        let keyed = matches!(table.identity, ReplicaIdentity::Key(_) | ReplicaIdentity::Full);
        let note = if keyed { "" } else { ": inserts only, it has no key" };
        let size = match table.estimated_rows {
            Some(1) => "about 1 row".to_owned(),
            Some(rows) => format!("about {rows} rows"),
            None => "not analysed yet".to_owned(),
        };
        let _ = writeln!(text, "    # {} ({size}){note}", comment(&table.qualified_name()));
    }
    for table in &listing.skipped {
        let _ = writeln!(
            text,
            "    # not {}.{}: {}",
            comment(&table.schema),
            comment(&table.name),
            comment(&table.reason.to_string())
        );
    }
    text
}

/// A name that the configuration takes: letters, digits, `_`, `-`, and none of lake SQL's own.
fn database_name(dbname: &str) -> String {
    let plain: String = dbname
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' })
        .take(50)
        .collect();
    match plain.to_ascii_lowercase().as_str() {
        "" | "live" | "tidewater" => format!("db_{plain}"),
        _ if !plain.starts_with(|c: char| c.is_ascii_alphanumeric()) => format!("db{plain}"),
        _ => plain,
    }
}

fn without_password(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else { return String::new() };
    // Only an address that cannot have a password refuses to lose it.
    let _ = parsed.set_password(None);
    let kept: Vec<(String, String)> = parsed
        .query_pairs()
        .filter(|(name, _)| !name.contains("password"))
        .map(|(n, v)| (n.into(), v.into()))
        .collect();
    parsed.set_query(None);
    if !kept.is_empty() {
        parsed.query_pairs_mut().extend_pairs(kept);
    }
    parsed.into()
}

/// A JSON string is a YAML string, whatever is in it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Names come from outside: none may end the comment it stands in.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[tokio::test]
    async fn the_file_it_writes_is_a_valid_configuration_and_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tidewater.yaml");
        init(&path, None).await.unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(config.to_lake[0].database, "shop");
        let refused = init(&path, None).await.unwrap_err();
        assert_eq!((refused.exit_code(), matches!(refused, CommandError::Exists { .. })), (2, true));
    }

    #[test]
    fn a_proposal_never_holds_the_password() {
        let url = "postgres://me:hunter2@localhost/my.db?sslmode=disable";
        let config = SourceConfig::from_url(url, None, None, None).unwrap();
        let text = describe(url, &config, &TableListing::default());
        assert!(!text.contains("hunter2") && text.contains("${MY_DB_PASSWORD:?set it}"), "{text}");
        assert!(text.contains("sslmode=disable"), "{text}");
    }

    #[test]
    fn a_database_gets_a_name_that_the_configuration_takes() {
        assert_eq!(database_name("shop"), "shop");
        assert_eq!(database_name("a b.c"), "a_b_c");
        assert_eq!(database_name("Live"), "db_Live");
        assert_eq!(database_name("_x"), "db_x");
    }
}
