//! The report of a `verify`: which tables equal their source, and where the others first differ.
//!
//! The daemon's syncs fill it in while they compare; the command asks for it until it is complete. What the daemon
//! drops unfinished, because a sync was interrupted, says so by itself: no report stays open for ever.

use crate::requests::Recipient;
use crate::status::Direction;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wal_decoder::Lsn;

/// Reports kept for asking.
const REPORTS_KEPT: usize = 16;

/// How far the comparison of one table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Its turn has not come.
    Waiting,
    /// Under way.
    Comparing,
    /// Every row is equal.
    Equal,
    /// Some rows differ.
    Different,
    /// It could not be compared; `error` says why.
    NotCompared,
}

/// A key whose rows differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferingKey {
    /// The key's values, as `id=7`; of a table without a key the whole row.
    pub key: String,
    /// `only at the source`, `only in the lake` or `other values`.
    pub difference: String,
}

/// What is known of one table. The source is Postgres, whichever way the rows go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedTable {
    /// which way its rows go
    pub direction: Direction,
    /// the database's name in the configuration
    pub database: String,
    /// `schema.table`
    pub table: String,
    /// how far it is
    pub verdict: Verdict,
    /// the position at which both sides were compared
    pub position: Option<String>,
    /// the lake's version there
    pub version: Option<i64>,
    /// rows at the source, so far
    pub source_rows: u64,
    /// rows in the lake
    pub lake_rows: Option<u64>,
    /// keys that differ
    pub differing_keys: Option<u64>,
    /// the first of them
    pub first: Vec<DifferingKey>,
    /// why it was not compared
    pub error: Option<String>,
}

/// A report, complete or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerificationReport {
    /// names the verification
    pub id: String,
    /// every table that was asked for
    pub tables: Vec<VerifiedTable>,
}

impl VerificationReport {
    /// Whether nothing more will come.
    pub fn is_complete(&self) -> bool {
        let open = |table: &VerifiedTable| matches!(table.verdict, Verdict::Waiting | Verdict::Comparing);
        !self.tables.iter().any(open)
    }
}

type SharedReport = Arc<Mutex<VerificationReport>>;

/// The reports of the last verifications. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Verifications {
    reports: Arc<Mutex<VecDeque<SharedReport>>>,
}

impl Verifications {
    /// Begins a report over tables, by direction, database and name. Gives its id, and a part for whoever compares: the
    /// sync of each database, the serving of each served table.
    pub fn begin(&self, tables: &[(Direction, String, String)]) -> (String, Vec<Verification>) {
        let id = uuid::Uuid::new_v4().to_string();
        let report = VerificationReport {
            id: id.clone(),
            tables: tables.iter().map(|(way, database, table)| waiting(*way, database, table)).collect(),
        };
        let report = Arc::new(Mutex::new(report));
        let recipients: BTreeSet<Recipient> =
            tables.iter().map(|(way, database, table)| recipient(*way, database, table)).collect();
        let parts = recipients
            .into_iter()
            .map(|recipient| Verification { report: report.clone(), recipient })
            .collect();
        let mut reports = locked(&self.reports);
        reports.push_back(report);
        while reports.len() > REPORTS_KEPT {
            reports.pop_front();
        }
        (id, parts)
    }

    /// A report as it stands.
    pub fn report(&self, id: &str) -> Option<VerificationReport> {
        let reports = locked(&self.reports);
        reports.iter().map(|report| locked(report).clone()).find(|report| report.id == id)
    }
}

/// Who compares a table.
fn recipient(direction: Direction, database: &str, table: &str) -> Recipient {
    match direction {
        Direction::ToLake => Recipient::Source { database: database.to_owned() },
        Direction::ToPostgres => Recipient::Served { database: database.to_owned(), table: table.to_owned() },
    }
}

fn waiting(direction: Direction, database: &str, table: &str) -> VerifiedTable {
    VerifiedTable {
        direction,
        database: database.to_owned(),
        table: table.to_owned(),
        verdict: Verdict::Waiting,
        position: None,
        version: None,
        source_rows: 0,
        lake_rows: None,
        differing_keys: None,
        first: Vec::new(),
        error: None,
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One recipient's part of a verification.
#[derive(Debug)]
pub struct Verification {
    report: SharedReport,
    recipient: Recipient,
}

impl Verification {
    /// Who is to compare.
    pub fn recipient(&self) -> &Recipient {
        &self.recipient
    }

    fn has(&self, table: &VerifiedTable) -> bool {
        recipient(table.direction, &table.database, &table.table) == self.recipient
    }

    /// Its tables that have no verdict yet, and where the lake's version and position of each is to be written.
    pub fn open_tables(&self) -> Vec<String> {
        let report = locked(&self.report);
        let of_it = report.tables.iter().filter(|table| self.has(table));
        of_it
            .filter(|table| matches!(table.verdict, Verdict::Waiting | Verdict::Comparing))
            .map(|table| table.table.clone())
            .collect()
    }

    /// Changes what is said of a table.
    pub fn update(&self, table: &str, change: impl FnOnce(&mut VerifiedTable)) {
        let mut report = locked(&self.report);
        let of_it = |found: &&mut VerifiedTable| found.table == table && self.has(found);
        if let Some(found) = report.tables.iter_mut().find(of_it) {
            change(found);
        }
    }

    /// A table cannot be compared.
    pub fn give_up(&self, table: &str, reason: &str) {
        self.update(table, |found| {
            found.verdict = Verdict::NotCompared;
            found.error = Some(reason.to_owned());
        });
    }

    /// The table was compared at a position with a version of the lake.
    pub fn compared_at(&self, table: &str, position: Lsn, version: i64) {
        self.update(table, |found| {
            found.verdict = Verdict::Comparing;
            found.position = Some(position.to_string());
            found.version = Some(version);
        });
    }
}

impl Drop for Verification {
    fn drop(&mut self) {
        for table in self.open_tables() {
            self.give_up(&table, "the sync was interrupted meanwhile: verify again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_complete_once_everyone_who_compares_has_answered_or_gone() {
        let verifications = Verifications::default();
        let tables = [("a", "public.x"), ("b", "public.x"), ("a", "public.y")];
        let to_lake =
            |(database, table): (&str, &str)| (Direction::ToLake, database.to_owned(), table.to_owned());
        let served = (Direction::ToPostgres, "a".to_owned(), "serving.x".to_owned());
        let tables: Vec<_> = tables.into_iter().map(to_lake).chain([served]).collect();
        let (id, mut parts) = verifications.begin(&tables);
        assert_eq!(parts.iter().map(|part| part.open_tables().len()).collect::<Vec<_>>(), [2, 1, 1]);
        parts[0].update("public.x", |table| table.verdict = Verdict::Equal);
        assert_eq!(parts[0].open_tables(), ["public.y"]);
        parts[0].give_up("public.y", "it is paused");
        assert!(!verifications.report(&id).unwrap().is_complete());
        parts.clear();
        let report = verifications.report(&id).unwrap();
        assert!(report.is_complete());
        assert_eq!(report.tables[1].verdict, Verdict::NotCompared);
        assert_eq!(report.tables[0].verdict, Verdict::Equal);
    }

    #[test]
    fn only_the_last_reports_are_kept() {
        let verifications = Verifications::default();
        let (first, _) = verifications.begin(&[]);
        for _ in 0..REPORTS_KEPT {
            verifications.begin(&[]);
        }
        assert!(verifications.report(&first).is_none());
    }
}
