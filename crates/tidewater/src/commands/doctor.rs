//! `tidewater doctor`: sources and lake, looked at live before they are relied on.

mod serving;

use super::{CommandError, Outcome};
use crate::config::{Config, Database, UrlDatabase};
use crate::daemon::error_chain;
use globset::GlobSetBuilder;
use postgres_connector::{Finding, RequestedTables, Severity, preflight};
use serde_json::json;
use std::io::Write;

pub(super) async fn doctor(config: &Config, json: bool) -> Result<Outcome, CommandError> {
    let mut findings = vec![("lake".to_owned(), lake(config).await)];
    for (name, database) in &config.databases {
        match database {
            // One that is only served in needs no logical decoding; what it does need is looked at below.
            Database::Url(_) if is_only_served_in(config, name) => {}
            Database::Url(database) => {
                let found = source(config, name, database).await?;
                findings.extend(found.into_iter().map(|finding| (name.clone(), finding)));
            }
            Database::Core(database) => {
                let bin = config.core.as_ref().and_then(|core| core.postgres_bin.as_deref());
                let found = match oltp_core::find_installation(bin, database.postgres).await {
                    Ok(found) => finding(
                        Severity::Ok,
                        "postgres",
                        "PostgreSQL",
                        format!("in {}", found.bin().display()),
                    ),
                    Err(error) => finding(Severity::Error, "postgres", "PostgreSQL", error_chain(&error)),
                };
                findings.push((name.clone(), found));
            }
        }
    }
    findings.extend(serving::findings(config).await);
    print(&findings, json)?;
    let failed = findings.iter().any(|(_, finding)| finding.severity == Severity::Error);
    Ok(if failed { Outcome::FoundDifference } else { Outcome::Done })
}

fn is_only_served_in(config: &Config, name: &str) -> bool {
    config.to_postgres.iter().any(|entry| entry.database == name)
        && !config.to_lake.iter().any(|entry| entry.database == name)
}

async fn lake(config: &Config) -> Finding {
    let uri = config.lake.uri.as_str();
    let probed = match delta_writer::open_lake(uri, &config.lake.options.expose()) {
        Ok(lake) => delta_writer::probe_put_if_absent(&lake).await,
        Err(error) => Err(error),
    };
    match probed {
        Ok(()) => {
            finding(Severity::Ok, "lake", uri, "of racing conditional puts exactly one wins".to_owned())
        }
        Err(error) => finding(Severity::Error, "lake", uri, error_chain(&error)),
    }
}

async fn source(config: &Config, name: &str, database: &UrlDatabase) -> Result<Vec<Finding>, CommandError> {
    let failed = |source| CommandError::Source { database: name.to_owned(), source: Box::new(source) };
    let source = database.source_config().map_err(failed)?;
    match preflight(&source, &config.instance, name, &requested(config, name)).await {
        Ok(findings) => Ok(findings),
        Err(error) => Ok(vec![finding(Severity::Error, "preflight", &source.place(), error_chain(&error))]),
    }
}

/// Everything that the configuration asks of one database. Each entry's exclusions are its own, so they only count here
/// where there is one entry; a table more than is synced is looked at otherwise.
fn requested(config: &Config, name: &str) -> RequestedTables {
    let entries: Vec<_> = config.to_lake.iter().filter(|entry| entry.database == name).collect();
    let set = |patterns: &mut dyn Iterator<Item = &String>| {
        let mut set = GlobSetBuilder::new();
        // Globs that do not compile were refused when the configuration was loaded.
        patterns.filter_map(|pattern| globset::Glob::new(pattern).ok()).for_each(|glob| {
            set.add(glob);
        });
        set.build().unwrap_or_default()
    };
    let exclude = match entries.as_slice() {
        [only] => set(&mut only.exclude.iter()),
        _ => set(&mut std::iter::empty()),
    };
    let excluded_columns = entries
        .iter()
        .flat_map(|entry| &entry.overrides)
        .map(|(table, exception)| (table.clone(), exception.exclude_columns.clone()))
        .collect();
    RequestedTables {
        include: set(&mut entries.iter().flat_map(|entry| &entry.tables)),
        exclude,
        excluded_columns,
    }
}

fn finding(severity: Severity, code: &'static str, subject: &str, problem: String) -> Finding {
    Finding { severity, code, subject: subject.to_owned(), problem, remedy: None, remedy_sql: None }
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

fn print(findings: &[(String, Finding)], json: bool) -> Result<(), CommandError> {
    let mut out = std::io::stdout().lock();
    if json {
        let findings: Vec<_> = findings
            .iter()
            .map(|(place, found)| {
                json!({
                    "place": place, "severity": word(found.severity), "code": found.code,
                    "subject": found.subject, "problem": found.problem,
                    "remedy": found.remedy, "remedy_sql": found.remedy_sql,
                })
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&json!({ "findings": findings }))?)?;
        return Ok(());
    }
    for (place, found) in findings {
        writeln!(out, "{:<8}{place}: {}: {}", word(found.severity), found.subject, found.problem)?;
        if let Some(remedy) = &found.remedy {
            writeln!(out, "        {remedy}")?;
        }
        if let Some(statement) = &found.remedy_sql {
            writeln!(out, "        mend it with:  {statement}")?;
        }
    }
    Ok(())
}
