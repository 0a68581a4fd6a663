//! `tidewater cleanup`: a source without any trace of this installation.

use super::{CommandError, Outcome};
use crate::config::{Config, Database};
use postgres_connector::RemovedObject;
use serde_json::json;
use std::io::Write;

pub(super) async fn clean_up(config: &Config, name: &str, json: bool) -> Result<Outcome, CommandError> {
    let at_address = || {
        config.databases.iter().filter_map(|(name, database)| match database {
            Database::Url(database) => Some((name, database)),
            Database::Core(_) => None,
        })
    };
    let database = at_address().find(|(known, _)| *known == name).map(|(_, database)| database);
    let database = database.ok_or_else(|| {
        let known: Vec<_> = at_address().map(|(name, _)| name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        CommandError::UnknownDatabase { database: name.to_owned(), known }
    })?;
    let failed = |source| CommandError::Source { database: name.to_owned(), source: Box::new(source) };
    let source = database.source_config().map_err(failed)?;
    let mut removed = Vec::new();
    let outcome = postgres_connector::cleanup(&source, &config.instance, name, &mut removed).await;
    print(&removed, outcome.is_ok(), json)?;
    outcome.map(|()| Outcome::Done).map_err(failed)
}

/// What was removed; that there was nothing is known only after everything was looked for.
fn print(removed: &[RemovedObject], complete: bool, json: bool) -> Result<(), CommandError> {
    let mut out = std::io::stdout().lock();
    let removed = removed.iter().map(|object| match object {
        RemovedObject::Slot(name) => ("slot", name),
        RemovedObject::Publication(name) => ("publication", name),
        RemovedObject::EventTrigger(name) => ("event trigger", name),
    });
    if json {
        let removed: Vec<_> = removed.map(|(kind, name)| json!({ "kind": kind, "name": name })).collect();
        writeln!(out, "{}", json!({ "removed": removed }))?;
        return Ok(());
    }
    let mut nothing = true;
    for (kind, name) in removed {
        writeln!(out, "removed {kind} {name}")?;
        nothing = false;
    }
    if nothing && complete {
        writeln!(out, "nothing of this installation is there")?;
    }
    Ok(())
}
