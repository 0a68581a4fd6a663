//! What the seeds of a run did, added up.

use crate::script::Event;
use crate::verdict::Looked;
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// Totals of one seed or of many.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// Seeds that were right to the end.
    pub passed: u64,
    /// Seeds that were not.
    pub failed: Vec<u64>,
    /// Transactions whose commit was answered.
    pub committed: u64,
    /// What happened to processes, by kind.
    pub events: BTreeMap<&'static str, u64>,
    /// Deaths at crash points, by name.
    pub deaths: BTreeMap<&'static str, u64>,
    /// Faults of the store, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// What the readers compared.
    pub looked: Looked,
    /// Times that `verify` found every table equal.
    pub verified: u64,
}

impl Tally {
    /// Counts an event that took place.
    pub fn event(&mut self, event: Event) {
        let kind = match event {
            Event::Nothing | Event::Weather(_) | Event::DieAt(..) => return,
            Event::StopDaemon => "daemon stopped",
            Event::KillDaemon | Event::KillDaemonAndLoseState => "daemon killed",
            Event::FailAt(..) => "step failed",
            Event::KillPostgres => "Postgres killed",
            Event::KillWalsender => "walsender killed",
            Event::KillBoth => "both killed",
            Event::StoreAway => "store away",
            Event::Pause { .. } => "table paused",
            Event::Resync(_) => "table resynced",
        };
        *self.events.entry(kind).or_default() += 1;
    }

    /// Seeds run.
    pub fn seeds(&self) -> u64 {
        self.passed + self.failed.len() as u64
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.committed += other.committed;
        for (mine, theirs) in [
            (&mut self.events, other.events),
            (&mut self.deaths, other.deaths),
            (&mut self.faults, other.faults),
        ] {
            for (kind, count) in theirs {
                *mine.entry(kind).or_default() += count;
            }
        }
        self.looked.tables += other.looked.tables;
        self.looked.rows += other.looked.rows;
        self.looked.settled_versions += other.looked.settled_versions;
        self.looked.ledger_versions += other.looked.ledger_versions;
        self.looked.points += other.looked.points;
        self.looked.histories += other.looked.histories;
        self.verified += other.verified;
    }
}
