//! `tidewater pause|resume|resync|verify`: what the daemon is asked to do with tables.

use super::status::printable;
use super::{CommandError, Outcome};
use crate::config::Config;
use crate::http::ControlClient;
use crate::status::Direction;
use crate::verification::{Verdict, VerificationReport, VerifiedTable};
use indicatif::ProgressBar;
use std::io::Write;
use std::time::Duration;

/// Often enough to see it move.
const POLL: Duration = Duration::from_millis(200);

pub(super) async fn pause(config: &Config, table: &str, hold: bool) -> Result<Outcome, CommandError> {
    daemon(config).pause(table, hold).await?;
    let meanwhile = match hold {
        true => "the slot keeps the WAL of its whole database meanwhile",
        false => "its changes are not kept; resuming brings it up to its source again",
    };
    writeln!(std::io::stdout(), "{table} stays at its version until `tidewater resume`; {meanwhile}")?;
    Ok(Outcome::Done)
}

pub(super) async fn resume(config: &Config, table: &str) -> Result<Outcome, CommandError> {
    daemon(config).resume(table).await?;
    writeln!(std::io::stdout(), "{table} resumes; `tidewater status` shows how far it is")?;
    Ok(Outcome::Done)
}

pub(super) async fn resync(config: &Config, table: &str) -> Result<Outcome, CommandError> {
    daemon(config).resync(table).await?;
    writeln!(
        std::io::stdout(),
        "{table} is compared with its source and mended; `tidewater status` shows how far it is"
    )?;
    Ok(Outcome::Done)
}

/// Compares, and ends with 3 where something differs. A table that was asked for by name has to be comparable.
pub(super) async fn verify(config: &Config, tables: &[String], json: bool) -> Result<Outcome, CommandError> {
    let daemon = daemon(config);
    let mut report = daemon.verify(tables).await?;
    let progress = ProgressBar::new_spinner();
    while !report.is_complete() {
        tokio::time::sleep(POLL).await;
        report = daemon.verification(&report.id).await?;
        progress.set_message(under_way(&report));
        progress.tick();
    }
    progress.finish_and_clear();
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(out, "{}", text(&report))?;
    }
    let is = |verdict: Verdict| report.tables.iter().any(|table| table.verdict == verdict);
    if is(Verdict::Different) {
        return Ok(Outcome::FoundDifference);
    }
    if is(Verdict::NotCompared) && !tables.is_empty() {
        return Err(CommandError::NotCompared);
    }
    Ok(Outcome::Done)
}

fn daemon(config: &Config) -> ControlClient {
    ControlClient::new(&config.control_socket())
}

fn under_way(report: &VerificationReport) -> String {
    let comparing = report.tables.iter().find(|table| table.verdict == Verdict::Comparing);
    comparing.map_or_else(
        || "waiting for a position".to_owned(),
        |table| printable(&format!("{}.{}: {} rows", table.database, table.table, table.source_rows)),
    )
}

fn text(report: &VerificationReport) -> String {
    report.tables.iter().map(line).collect()
}

fn line(table: &VerifiedTable) -> String {
    let name = format!("{}.{}", table.database, table.table);
    let version = table.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
    let at = match (&table.position, table.direction) {
        // A Delta table has no WAL.
        (_, Direction::ToPostgres) => format!("at version {version}"),
        (position, Direction::ToLake) => {
            format!("at {}, version {version}", position.as_deref().unwrap_or("-"))
        }
    };
    let mut text = match table.verdict {
        Verdict::Equal => format!("{name}: equal, {} rows {at}", table.source_rows),
        Verdict::Different => format!(
            "{name}: different, {} keys differ {at}; {} rows in Postgres, {} in the lake",
            table.differing_keys.unwrap_or_default(),
            table.source_rows,
            table.lake_rows.unwrap_or_default()
        ),
        Verdict::Waiting | Verdict::Comparing | Verdict::NotCompared => {
            format!("{name}: not compared: {}", table.error.as_deref().unwrap_or("it is under way"))
        }
    };
    for differing in &table.first {
        text.push_str(&format!("\n  {}: {}", differing.key, differing.difference));
    }
    text.split('\n').map(|line| printable(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verification::{DifferingKey, Verifications};

    #[test]
    fn a_report_says_what_differs_and_what_was_not_compared() {
        let verifications = Verifications::default();
        let tables = ["public.a", "public.b"];
        let tables = tables.map(|table| (Direction::ToLake, "shop".to_owned(), table.to_owned()));
        let (id, parts) = verifications.begin(&tables);
        parts[0].update("public.a", |table| {
            table.verdict = Verdict::Different;
            table.differing_keys = Some(1);
            let key = "id=\u{1b}7".to_owned();
            table.first = vec![DifferingKey { key, difference: "only in the lake".to_owned() }];
        });
        drop(parts);
        let text = text(&verifications.report(&id).unwrap());
        assert!(text.contains("shop.public.a: different, 1 keys differ"), "{text}");
        assert!(text.contains("only in the lake") && !text.contains('\u{1b}'), "{text:?}");
        assert!(text.contains("shop.public.b: not compared: the sync was interrupted"), "{text}");
    }
}
