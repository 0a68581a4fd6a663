//! What each keeper has, and so what a majority has.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::watch;
use wal_decoder::Lsn;

use crate::Timestamp;
use crate::ids::Term;

/// How it stands with one keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeeperState {
    /// Not yet reached.
    Connecting,
    /// It takes WAL.
    Streaming,
    /// It does not; it is tried again and again.
    Failing {
        /// Since when.
        since: Timestamp,
        /// Why.
        problem: String,
    },
    /// It has promised a higher term to another compute.
    Lost {
        /// That term.
        to: Term,
    },
}

/// One keeper, as the compute sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeeperProgress {
    /// Its address.
    pub keeper: String,
    /// Everything below is on its disk; zero until it has said so.
    #[serde(with = "super::lsn_text")]
    pub flushed: Lsn,
    /// How it stands.
    pub state: KeeperState,
}

/// All keepers of a log.
#[derive(Debug)]
pub(crate) struct Progress {
    keepers: Mutex<Vec<KeeperProgress>>,
    majority: watch::Sender<Lsn>,
    fenced: watch::Sender<Option<Term>>,
}

impl Progress {
    pub(crate) fn new(keepers: impl Iterator<Item = String>) -> Progress {
        let keepers = keepers
            .map(|keeper| KeeperProgress { keeper, flushed: Lsn::ZERO, state: KeeperState::Connecting })
            .collect();
        let (majority, fenced) = (watch::Sender::new(Lsn::ZERO), watch::Sender::new(None));
        Progress { keepers: Mutex::new(keepers), majority, fenced }
    }

    fn keepers(&self) -> MutexGuard<'_, Vec<KeeperProgress>> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy for people.
    pub(crate) fn snapshot(&self) -> Vec<KeeperProgress> {
        self.keepers().clone()
    }

    /// Follows the position that a majority has flushed; it never goes back.
    pub(crate) fn majority(&self) -> watch::Receiver<Lsn> {
        self.majority.subscribe()
    }

    /// Waits until no majority can be had any more; the term that took it.
    pub(crate) async fn fenced(&self) -> Term {
        let mut fenced = self.fenced.subscribe();
        // The sender lives in `self`.
        fenced.wait_for(Option::is_some).await.map_or(None, |by| *by).unwrap_or_default()
    }

    /// A keeper has flushed.
    pub(crate) fn flushed(&self, keeper: usize, flushed: Lsn) {
        let mut keepers = self.keepers();
        if let Some(keeper) = keepers.get_mut(keeper) {
            keeper.flushed = flushed;
            keeper.state = KeeperState::Streaming;
        }
        let mut positions: Vec<Lsn> = keepers.iter().map(|keeper| keeper.flushed).collect();
        positions.sort_unstable();
        // Sorted ascending, more than half of them stand at or above this one.
        let have = positions.get((positions.len() - 1) / 2).copied().unwrap_or_default();
        // Telling waits for whoever looks at the position now, and they may look at the keepers next.
        drop(keepers);
        self.majority.send_if_modified(|majority| {
            let more = have > *majority;
            *majority = have.max(*majority);
            more
        });
    }

    /// A keeper does not take WAL now.
    pub(crate) fn failing(&self, keeper: usize, problem: String) {
        if let Some(keeper) = self.keepers().get_mut(keeper) {
            let since = match &keeper.state {
                KeeperState::Failing { since, .. } => *since,
                _ => Timestamp::now(),
            };
            keeper.state = KeeperState::Failing { since, problem };
        }
    }

    /// A keeper has gone over to another compute.
    pub(crate) fn lost(&self, keeper: usize, to: Term) {
        let mut keepers = self.keepers();
        if let Some(keeper) = keepers.get_mut(keeper) {
            keeper.state = KeeperState::Lost { to };
        }
        let lost = keepers.iter().filter(|keeper| matches!(keeper.state, KeeperState::Lost { .. })).count();
        let majority_is_lost = keepers.len() - lost < keepers.len() / 2 + 1;
        drop(keepers);
        if majority_is_lost {
            self.fenced.send_replace(Some(to));
        }
    }

    /// Another compute has claimed the branch where no keeper of ours knows of it.
    pub(crate) fn taken_over(&self, by: Term) {
        self.fenced.send_replace(Some(by));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn progress(flushed: &[u64]) -> Progress {
        let progress = Progress::new(flushed.iter().map(ToString::to_string));
        for (keeper, flushed) in flushed.iter().enumerate() {
            progress.flushed(keeper, Lsn(*flushed));
        }
        progress
    }

    #[test]
    fn a_commit_the_majority_lacks_is_not_confirmed() {
        for (flushed, majority) in [
            (vec![7], 7),
            (vec![7, 9], 7),
            (vec![0, 9, 7], 7),
            (vec![9, 0, 0], 0),
            (vec![5, 9, 7, 6], 6),
            (vec![5, 9, 7, 6, 8], 7),
        ] {
            assert_eq!(*progress(&flushed).majority().borrow(), Lsn(majority), "{flushed:?}");
        }
    }

    #[test]
    fn a_keeper_that_lost_a_little_takes_nothing_back_from_the_majority() {
        let progress = progress(&[9, 9, 0]);
        progress.flushed(0, Lsn(5));
        assert_eq!(*progress.majority().borrow(), Lsn(9));
    }

    #[test]
    fn who_looks_at_the_majority_and_then_at_the_keepers_stops_nobody() {
        let progress = Arc::new(progress(&[1]));
        let receiver = progress.majority();
        let looking = receiver.borrow();
        let flushing = {
            let progress = Arc::clone(&progress);
            std::thread::spawn(move || progress.flushed(0, Lsn(9)))
        };
        let (seen, sees) = std::sync::mpsc::channel();
        {
            let progress = Arc::clone(&progress);
            std::thread::spawn(move || {
                while progress.snapshot().iter().any(|keeper| keeper.flushed < Lsn(9)) {
                    std::thread::yield_now();
                }
                seen.send(()).unwrap();
            });
        }
        let limit = std::time::Duration::from_secs(60);
        sees.recv_timeout(limit).expect("the keepers are seen while somebody looks at the majority");
        drop(looking);
        flushing.join().unwrap();
        assert_eq!(*progress.majority().borrow(), Lsn(9));
    }

    #[test]
    fn only_losing_the_majority_fences() {
        let progress = progress(&[9, 9, 9]);
        progress.lost(0, Term(5));
        assert_eq!(*progress.fenced.borrow(), None);
        progress.lost(2, Term(5));
        assert_eq!(*progress.fenced.borrow(), Some(Term(5)));
    }
}
