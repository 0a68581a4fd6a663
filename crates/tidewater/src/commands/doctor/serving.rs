//! The tables that are to be served: whether the lake has them, and whether their targets take them.

use super::finding;
use crate::config::{Config, Database, ToPostgres};
use crate::daemon::{LakeTable, error_chain, served_definition};
use lake_sql::LakeSession;
use postgres_connector::{Finding, Severity};

/// A finding or more for each entry of `to_postgres`, by the name of its database.
pub(super) async fn findings(config: &Config) -> Vec<(String, Finding)> {
    if config.to_postgres.is_empty() {
        return Vec::new();
    }
    let lake = LakeSession::open(config.lake.uri.as_str(), &config.lake.options.expose()).await;
    let mut findings = Vec::new();
    for entry in &config.to_postgres {
        let found = match &lake {
            Ok(lake) => vec![in_lake(config, lake, entry).await],
            Err(error) => vec![finding(Severity::Error, "served-source", &entry.into, error_chain(error))],
        };
        let found = found.into_iter().chain(at_target(config, entry).await);
        findings.extend(found.map(|finding| (entry.database.clone(), finding)));
    }
    findings
}

async fn in_lake(config: &Config, lake: &LakeSession, entry: &ToPostgres) -> Finding {
    let Some(definition) = served_definition(&config.instance, entry) else {
        return finding(Severity::Error, "served-source", &entry.into, "its name has no schema".to_owned());
    };
    let looked = async {
        let store = config.lake.options.expose();
        let table = LakeTable::open(entry, config.lake.uri.as_str(), &store, lake, &config.state_dir).await?;
        let newest = table.latest_version().await?;
        let columns = table.version(newest, &definition).await?.layout.columns.len();
        Ok::<_, crate::daemon::ServingError>(format!(
            "{} at version {newest}, {columns} columns",
            table.uri()
        ))
    };
    match looked.await {
        Ok(seen) => finding(Severity::Ok, "served-source", &entry.into, seen),
        Err(error) => finding(Severity::Error, "served-source", &entry.into, error_chain(&error)),
    }
}

async fn at_target(config: &Config, entry: &ToPostgres) -> Vec<Finding> {
    // A built-in server takes everything, and runs only while the daemon does.
    let Some(Database::Url(database)) = config.databases.get(&entry.database) else { return Vec::new() };
    let Some(definition) = served_definition(&config.instance, entry) else { return Vec::new() };
    let failed = |text| vec![finding(Severity::Error, "served-target", &entry.into, text)];
    let target = match database.source_config() {
        Ok(target) => target,
        Err(error) => return failed(error_chain(&error)),
    };
    match reverse_sync::serve::preflight(&target, &definition).await {
        Ok(shortcomings) if shortcomings.is_empty() => {
            vec![finding(Severity::Ok, "served-target", &entry.into, format!("{} takes it", target.place()))]
        }
        Ok(shortcomings) => shortcomings
            .into_iter()
            .map(|missing| Finding {
                remedy_sql: missing.remedy,
                ..finding(Severity::Error, "served-target", &entry.into, missing.problem)
            })
            .collect(),
        Err(error) => failed(error_chain(&error)),
    }
}
