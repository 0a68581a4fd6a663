//! Which term wrote which part of a log.
//!
//! Two logs that were written under the same term from the same start agree as far as both reach: a term has
//! one proposer, and a proposer one log. So two histories tell how far two logs agree without a byte of WAL
//! being compared, and a keeper that comes back truncates at the first difference.
//!
//! ```text
//!   mine      (term 1, 0/100) (term 2, 0/500) ─────────── 0/900
//!   elected   (term 1, 0/100) (term 2, 0/500) (term 4, 0/700) …      agree up to 0/700
//! ```

use serde::{Deserialize, Serialize};
use wal_decoder::Lsn;

use crate::ids::{Term, Timeline};

/// A history of this many terms is damaged: one entry is added at each start, and archived ones are dropped.
const MAX_ENTRIES: usize = 1 << 20;

/// A term and the position of the first byte that was written under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermStart {
    /// The term.
    pub term: Term,
    /// Where it began: the end of a record.
    #[serde(with = "super::lsn_text")]
    pub start: Lsn,
    /// The timeline of what was written under it.
    pub timeline: Timeline,
}

/// The terms of a log in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<TermStart>", into = "Vec<TermStart>")]
pub struct TermHistory(Vec<TermStart>);

impl TryFrom<Vec<TermStart>> for TermHistory {
    type Error = &'static str;

    fn try_from(entries: Vec<TermStart>) -> Result<Self, Self::Error> {
        let ascending =
            entries.iter().zip(entries.iter().skip(1)).all(|(a, b)| a.term < b.term && a.start <= b.start);
        if ascending && entries.len() <= MAX_ENTRIES {
            Ok(TermHistory(entries))
        } else {
            Err("the terms of a history do not ascend")
        }
    }
}

impl From<TermHistory> for Vec<TermStart> {
    fn from(history: TermHistory) -> Self {
        history.0
    }
}

impl TermHistory {
    /// The entries, oldest first.
    pub fn entries(&self) -> &[TermStart] {
        &self.0
    }

    /// Whether nothing was ever written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The term of a log that ends at `end`: the last one that began at or below.
    pub fn at(&self, end: Lsn) -> Option<TermStart> {
        self.0.iter().rev().find(|entry| entry.start <= end).copied()
    }

    /// The history of this log cut at `end`, followed by `next`.
    pub(crate) fn continued(&self, end: Lsn, next: TermStart) -> TermHistory {
        let kept = self.0.iter().filter(|entry| entry.start <= end && entry.term < next.term).copied();
        TermHistory(kept.chain([next]).collect())
    }

    /// Without the entries of WAL that lies wholly below `archived`.
    pub(crate) fn without_archived(&self, archived: Lsn) -> TermHistory {
        let first = self.0.iter().rposition(|entry| entry.start <= archived).unwrap_or(0);
        TermHistory(self.0.get(first..).unwrap_or_default().to_vec())
    }

    /// Up to where a log with this history that ends at `end` agrees with the elected proposer's log, whose last
    /// term is still being written. `None`: they have no term in common.
    pub(crate) fn agrees_until(&self, end: Lsn, elected: &TermHistory) -> Option<Lsn> {
        let end_of = |entries: &[TermStart], at: usize| entries.get(at + 1).map(|next| next.start);
        self.0.iter().enumerate().rev().find_map(|(mine, entry)| {
            let theirs =
                elected.0.iter().position(|other| (other.term, other.start) == (entry.term, entry.start))?;
            let my_end = end_of(&self.0, mine).unwrap_or(end).min(end);
            Some(end_of(&elected.0, theirs).map_or(my_end, |their_end| their_end.min(my_end)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(entries: &[(u64, u64)]) -> TermHistory {
        let entry = |(term, start): &(u64, u64)| TermStart {
            term: Term(*term),
            start: Lsn(*start),
            timeline: Timeline(1),
        };
        entries.iter().map(entry).collect::<Vec<_>>().try_into().unwrap()
    }

    #[test]
    fn logs_agree_up_to_the_first_difference() {
        let elected = history(&[(1, 100), (2, 500), (4, 700)]);
        for (mine, end, agree) in [
            (history(&[(1, 100), (2, 500)]), 900, Some(700)),
            (history(&[(1, 100), (2, 500)]), 600, Some(600)),
            (history(&[(1, 100), (3, 450)]), 800, Some(450)),
            (history(&[(1, 100)]), 900, Some(500)),
            (history(&[(1, 100), (2, 500), (4, 700)]), 900, Some(900)),
            (history(&[(3, 50)]), 900, None),
            (history(&[]), 0, None),
            // The history is ahead of the bytes: a keeper that was told it and then received nothing.
            (history(&[(1, 100), (2, 500)]), 300, Some(300)),
        ] {
            assert_eq!(mine.agrees_until(Lsn(end), &elected), agree.map(Lsn), "{mine:?} up to {end}");
        }
    }

    #[test]
    fn the_term_of_a_log_is_the_last_that_it_reaches() {
        let history = history(&[(1, 100), (2, 500), (4, 700)]);
        let term = |end| history.at(Lsn(end)).map(|entry| entry.term.0);
        assert_eq!([term(99), term(499), term(500), term(10_000)], [None, Some(1), Some(2), Some(4)]);
    }

    #[test]
    fn archived_terms_are_forgotten_but_the_one_under_way_is_not() {
        let whole = history(&[(1, 100), (2, 500), (4, 700)]);
        assert_eq!(whole.without_archived(Lsn(600)), history(&[(2, 500), (4, 700)]));
        assert_eq!(whole.without_archived(Lsn(700)), history(&[(4, 700)]));
        assert_eq!(whole.without_archived(Lsn(50)), whole);
    }

    #[test]
    fn a_history_that_does_not_ascend_is_refused() {
        let text = r#"[{"term":2,"start":"0/10","timeline":1},{"term":2,"start":"0/20","timeline":1}]"#;
        assert!(serde_json::from_str::<TermHistory>(text).is_err());
    }
}
