//! What the application was told, number by number, and what must therefore be in the database.

use std::collections::{BTreeMap, BTreeSet};

/// What is known of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Its commit was asked for and not answered: it may be there.
    Begun,
    /// Its commit was answered.
    Acknowledged,
    /// Another session has read it.
    Seen,
}

/// One writer's numbers, counted up from 1; one is begun after the other.
#[derive(Debug, Default)]
pub struct Ledger {
    begun: i64,
    /// Numbers up to here were judged, and so many of them are there, for ever.
    judged: i64,
    judged_present: i64,
    open: BTreeMap<i64, Fate>,
    acknowledged: u64,
}

impl Ledger {
    /// The next number, whose commit is about to be asked for.
    pub fn begin(&mut self) -> i64 {
        self.begun += 1;
        self.open.insert(self.begun, Fate::Begun);
        self.begun
    }

    /// Its commit was answered.
    pub fn acknowledge(&mut self, number: i64) {
        self.open.insert(number, Fate::Acknowledged);
        self.acknowledged += 1;
    }

    /// Another session has read it.
    pub fn see(&mut self, number: i64) {
        if let Some(fate @ Fate::Begun) = self.open.get_mut(&number) {
            *fate = Fate::Seen;
        }
    }

    /// Commits that were answered so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The last number that was judged.
    pub fn judged(&self) -> i64 {
        self.judged
    }

    /// Judges what the database has: `old` numbers up to [`judged`](Ledger::judged), and those after it. Returns how many
    /// commits were never answered; from now on they are what they turned out to be.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn judge(&mut self, old: i64, present: &BTreeSet<i64>) -> Result<u64, String> {
        if old != self.judged_present {
            return Err(format!(
                "of the numbers up to {} there are {old} where {} were",
                self.judged, self.judged_present
            ));
        }
        let lost: Vec<_> = self
            .open
            .iter()
            .filter(|(number, fate)| **fate != Fate::Begun && !present.contains(number))
            .collect();
        if !lost.is_empty() {
            return Err(format!("lost: {lost:?}, of {} to {}", self.judged + 1, self.begun));
        }
        if let Some(number) = present.iter().find(|number| !self.open.contains_key(number)) {
            return Err(format!("{number} was never begun"));
        }
        let unknown = self.open.values().filter(|fate| **fate == Fate::Begun).count() as u64;
        self.judged = self.begun;
        self.judged_present += present.len() as i64;
        self.open.clear();
        Ok(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worked() -> Ledger {
        let mut ledger = Ledger::default();
        for _ in 0..4 {
            ledger.begin();
        }
        ledger.acknowledge(1);
        ledger.acknowledge(2);
        ledger.see(2);
        ledger.see(4);
        ledger
    }

    #[test]
    fn what_was_acknowledged_or_seen_must_be_there_and_what_was_begun_may() {
        for (present, right) in [
            (vec![1, 2, 4], true),
            (vec![1, 2, 3, 4], true),
            (vec![1, 4], false),
            (vec![1, 2, 3], false),
            (vec![1, 2, 4, 5], false),
        ] {
            let judged = worked().judge(0, &present.iter().copied().collect());
            assert_eq!(judged.is_ok(), right, "{present:?}: {judged:?}");
        }
    }

    #[test]
    fn an_unknown_number_stays_what_it_was_found_to_be() {
        let mut ledger = worked();
        assert_eq!(ledger.judge(0, &[1, 2, 4].into()), Ok(1));
        ledger.judge(4, &[].into()).unwrap_err();
        ledger.judge(2, &[].into()).unwrap_err();
        assert_eq!((ledger.begin(), ledger.judged()), (5, 4));
        assert_eq!(ledger.judge(3, &[].into()), Ok(1));
    }
}
