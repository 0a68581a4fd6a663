//! `bench/ORACLE.md`: one line for each run, the newest last.
//!
//! Only the table of runs is written here; what stands around it is written by people and stays.

use crate::tally::Tally;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// The table's head, by which it is found again.
const HEAD: &str = "| commit | seeds | passed | minutes | transactions | rows compared | versions judged | histories replayed | verified | daemon at crash points | kills and stops | store faults | failed seeds |";

/// Seeds below are the fixed ones of `make test`.
const FIRST: u64 = 101;

/// The report's file.
#[derive(Debug)]
pub struct Report {
    file: PathBuf,
    text: String,
}

impl Report {
    /// Reads a report; a file that is not there yet begins one.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(file: PathBuf) -> std::io::Result<Report> {
        let text = match std::fs::read_to_string(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        Ok(Report { file, text })
    }

    /// The seed after the last one that any run has had.
    pub fn next_seed(&self) -> u64 {
        let last =
            self.rows().filter_map(|row| row.split('|').nth(2)?.trim().rsplit('–').next()?.parse().ok());
        last.max().map_or(FIRST, |last: u64| last + 1)
    }

    fn rows(&self) -> impl Iterator<Item = &str> {
        let table = self.text.lines().skip_while(|line| *line != HEAD);
        table.skip(2).take_while(|line| line.starts_with('|'))
    }

    /// Adds a run and writes the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&mut self, commit: &str, first: u64, minutes: u64, tally: &Tally) -> std::io::Result<()> {
        let row = row(commit, first, minutes, tally);
        if self.rows().next().is_none() {
            let columns = HEAD.matches('|').count() - 1;
            write!(self.text, "\n{HEAD}\n|{}\n", "---|".repeat(columns)).expect("a string takes everything");
        }
        let behind = self.rows().last().unwrap_or_default();
        let at = if behind.is_empty() {
            self.text.len()
        } else {
            let begin = behind.as_ptr() as usize - self.text.as_ptr() as usize;
            begin + behind.len() + 1
        };
        self.text.insert_str(at.min(self.text.len()), &row);
        std::fs::write(&self.file, &self.text)
    }
}

fn row(commit: &str, first: u64, minutes: u64, tally: &Tally) -> String {
    let last = first + tally.seeds().saturating_sub(1);
    let deaths: u64 = tally.deaths.values().sum();
    let looked = &tally.looked;
    let failed: Vec<String> = tally.failed.iter().map(u64::to_string).collect();
    let cells = [
        commit.to_owned(),
        format!("{first}–{last}"),
        tally.passed.to_string(),
        minutes.to_string(),
        tally.committed.to_string(),
        looked.rows.to_string(),
        (looked.settled_versions + looked.ledger_versions + looked.points).to_string(),
        looked.histories.to_string(),
        tally.verified.to_string(),
        format!("{deaths} ({} points)", tally.deaths.len()),
        by_kind(&tally.events),
        by_kind(&tally.faults),
        if failed.is_empty() { "none".to_owned() } else { failed.join(", ") },
    ];
    format!("| {} |\n", cells.join(" | "))
}

fn by_kind(counts: &BTreeMap<&'static str, u64>) -> String {
    counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_numbers_continue_and_the_text_around_the_table_stays() {
        let file = std::env::temp_dir().join(format!("oracle-report-{}.md", std::process::id()));
        std::fs::write(&file, "# Head\n").unwrap();
        let mut report = Report::read(file.clone()).unwrap();
        assert_eq!(report.next_seed(), 101);
        let tally = Tally { passed: 7, ..Tally::default() };
        report.add("abc", 101, 2, &tally).unwrap();
        std::fs::write(&file, format!("{}\nBelow.\n", std::fs::read_to_string(&file).unwrap())).unwrap();
        let mut report = Report::read(file.clone()).unwrap();
        assert_eq!(report.next_seed(), 108);
        report.add("def", 108, 2, &tally).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(text.starts_with("# Head\n") && text.ends_with("\nBelow.\n"), "{text}");
        let (first, second) =
            (text.find("| abc | 101–107 |").unwrap(), text.find("| def | 108–114 |").unwrap());
        assert!(first < second, "{text}");
    }
}
