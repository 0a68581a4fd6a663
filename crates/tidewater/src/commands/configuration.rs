//! `tidewater config check|show|schema`.

use super::{CommandError, Outcome};
use crate::config::{self, Config};
use std::io::Write;
use std::path::Path;

/// The configuration has been loaded, so it is right: says so.
pub(super) fn check(path: &Path, config: &Config, json: bool) -> Result<Outcome, CommandError> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::json!({ "valid": true, "file": path }))?;
    } else {
        let databases = counted(config.databases.len(), "database");
        let syncs = counted(config.to_lake.len() + config.to_postgres.len(), "sync");
        writeln!(out, "{} is valid: {databases}, {syncs}", path.display())?;
    }
    Ok(Outcome::Done)
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

pub(super) fn show(config: &Config, json: bool) -> Result<Outcome, CommandError> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(config)?)?;
    } else {
        write!(out, "{}", serde_saphyr::to_string(config).map_err(CommandError::Yaml)?)?;
    }
    Ok(Outcome::Done)
}

pub(super) fn schema() -> Result<Outcome, CommandError> {
    write!(std::io::stdout().lock(), "{}", config::schema::json_schema()?)?;
    Ok(Outcome::Done)
}
