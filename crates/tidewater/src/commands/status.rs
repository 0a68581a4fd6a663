//! `tidewater status`: what the daemon does.

use super::{CommandError, Outcome};
use crate::config::Config;
use crate::http::ControlClient;
use crate::status::{Direction, StatusReport, TableReport};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Often enough to see a load move, seldom enough to read.
const WATCH_PERIOD: Duration = Duration::from_secs(2);

pub(super) async fn status(config: &Config, watch: bool, json: bool) -> Result<Outcome, CommandError> {
    let daemon = ControlClient::new(&config.control_socket());
    loop {
        let report = daemon.status().await?;
        let text = if json { serde_json::to_string_pretty(&report)? + "\n" } else { table(&report) };
        let mut out = std::io::stdout().lock();
        if watch && !json && out.is_terminal() {
            // Clear and home: the same lines again instead of ever more.
            write!(out, "\x1b[2J\x1b[H")?;
        }
        write!(out, "{text}")?;
        out.flush()?;
        drop(out);
        if !watch {
            return Ok(Outcome::Done);
        }
        tokio::time::sleep(WATCH_PERIOD).await;
    }
}

fn table(report: &StatusReport) -> String {
    let mut text = String::new();
    for source in &report.sources {
        let state = if source.connected { "connected" } else { "not connected" };
        let slot = source.slot.as_ref().map_or_else(String::new, |slot| format!(", slot {slot}"));
        let retained =
            source.retained_wal_bytes.map_or_else(String::new, |n| format!(", {} of WAL retained", bytes(n)));
        text.push_str(&format!("{}: {state}{slot}{retained}\n", source.database));
        for trouble in source.waiting.iter().chain(&source.error) {
            text.push_str(&format!("  {}\n", printable(trouble)));
        }
    }
    if report.tables.is_empty() {
        text.push_str("no tables yet\n");
        return text;
    }
    let head = ["DIRECTION", "TABLE", "STATE", "POSITION", "VERSION", "OLDEST", "LAG", "BEHIND", "ROWS"]
        .map(str::to_owned);
    let rows: Vec<_> =
        std::iter::once(head).chain(report.tables.iter().map(|row| cells(report, row))).collect();
    text.push_str(&columns(&rows));
    for row in &report.tables {
        for trouble in row.error.iter().chain(&row.note) {
            text.push_str(&printable(&format!("{}.{}: {trouble}", row.database, row.table)));
            text.push('\n');
        }
    }
    text
}

fn cells(report: &StatusReport, row: &TableReport) -> [String; 9] {
    let optional = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let load = report.loads.iter().find(|load| load.database == row.database && load.table == row.table);
    let state =
        match load.and_then(|load| Some((load.rows_done, load.rows_estimated.filter(|rows| *rows > 0)?))) {
            // The estimate may be old: a load is not over before it says so.
            Some((done, of)) => format!("{} {}%", row.state, (done.saturating_mul(100) / of).min(99)),
            None => row.state.clone(),
        };
    [
        match row.direction {
            Direction::ToLake => "to lake",
            Direction::ToPostgres => "to postgres",
        }
        .to_owned(),
        printable(&format!("{}.{}", row.database, row.table)),
        state,
        optional(row.position.map(|position| position.to_string())),
        optional(row.version.map(|version| version.to_string())),
        optional(row.oldest_version.map(|version| version.to_string())),
        optional(row.lag_bytes.map(bytes)),
        optional(row.lag_seconds.map(|seconds| format!("{seconds:.1} s"))),
        optional(row.rows.map(|rows| rows.to_string())),
    ]
}

/// Left-aligned columns as wide as their widest cell.
fn columns(rows: &[[String; 9]]) -> String {
    let mut widths = [0; 9];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; 9]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Names come from outside: what could move the cursor is shown instead.
pub(super) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// With one digit after the point from KiB on.
fn bytes(count: u64) -> String {
    let mut size = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{StatusBoard, TableState};

    #[test]
    fn every_table_has_a_line_and_errors_stand_below() {
        let board = StatusBoard::new();
        board.update("shop", "public.orders", |table| {
            table.state = TableState::Loading { rows_done: 5, rows_estimated: Some(10) };
        });
        board.update("shop", "public.\u{1b}[2Jx", |table| {
            table.state = TableState::Failed;
            table.lag_bytes = Some(3 << 20);
            table.error = Some("line\u{7}".into());
        });
        let text = table(&board.snapshot());
        assert!(text.contains("loading 50%") && text.contains("3.0 MiB"), "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }
}
