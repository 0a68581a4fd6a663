//! Where connections wait while their Postgres starts.
//!
//! However many wait for one branch, its waker is asked once, and all get that answer. The room is bounded as a whole
//! and for each branch, so that one branch that does not come up cannot keep the others out. A connection holds its
//! place by a guard: whoever gives up, for whatever reason, leaves it at that moment.
//!
//! The asking goes on when all who waited have left: most of them come back, and find it done. It has its own time
//! limit, and no more of them run than connections may wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::counters::{Counters, Held};
use super::refusal::Refusal;
use super::target::BranchAddress;
use super::waker::{Endpoint, WakeError, Waker};

type Answer = Result<Endpoint, Arc<WakeError>>;

pub(crate) struct WaitingRoom {
    waker: Arc<dyn Waker>,
    counters: Arc<Counters>,
    limit: usize,
    limit_per_branch: usize,
    wake_limit: Duration,
    /// Where a branch is woken, which takes long, apart from where sessions are served.
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: usize,
    per_branch: HashMap<BranchAddress, usize>,
    /// The questions under way; the sender is the task that asks.
    asked: HashMap<BranchAddress, watch::Receiver<Option<Answer>>>,
}

/// A connection's place.
pub(crate) struct Place<'a> {
    room: &'a Arc<WaitingRoom>,
    branch: &'a BranchAddress,
    _counted: Held<'a>,
}

impl WaitingRoom {
    /// Asks `waker` on the runtime that this is called on.
    pub(crate) fn new(
        waker: Arc<dyn Waker>,
        counters: Arc<Counters>,
        (limit, limit_per_branch): (usize, usize),
        wake_limit: Duration,
    ) -> Arc<WaitingRoom> {
        let (runtime, state) = (Handle::current(), Mutex::default());
        Arc::new(WaitingRoom { waker, counters, limit, limit_per_branch, wake_limit, runtime, state })
    }

    /// Takes a place, if there is one.
    pub(crate) fn enter<'a>(self: &'a Arc<Self>, branch: &'a BranchAddress) -> Result<Place<'a>, Refusal> {
        let mut state = self.state();
        let of_branch = state.per_branch.get(branch).copied().unwrap_or_default();
        if state.waiting >= self.limit || of_branch >= self.limit_per_branch {
            return Err(Refusal::too_many_waiting(branch));
        }
        state.waiting += 1;
        state.per_branch.insert(branch.clone(), of_branch + 1);
        Ok(Place { room: self, branch, _counted: self.counters.waiting_now.hold() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer that is on its way, or a new one's.
    fn ask(self: &Arc<Self>, branch: &BranchAddress) -> Result<watch::Receiver<Option<Answer>>, Refusal> {
        let mut state = self.state();
        if let Some(asked) = state.asked.get(branch) {
            return Ok(asked.clone());
        }
        if state.asked.len() >= self.limit {
            return Err(Refusal::too_many_waiting(branch));
        }
        let (sender, receiver) = watch::channel(None);
        state.asked.insert(branch.clone(), receiver.clone());
        self.counters.wakes.one();
        let question = Question { room: Arc::clone(self), branch: branch.clone() };
        self.runtime.spawn(async move {
            let room = &question.room;
            let asked_at = Instant::now();
            let Ok(answer) = tokio::time::timeout(room.wake_limit, room.waker.wake(&question.branch)).await
            else {
                tracing::warn!(branch = %question.branch, limit = ?room.wake_limit, "a database did not start in time");
                return;
            };
            if let Err(WakeError::Failed { source }) = &answer {
                let error: &(dyn std::error::Error + 'static) = source.as_ref();
                tracing::warn!(branch = %question.branch, error, "a database cannot be started");
            }
            tracing::debug!(branch = %question.branch, took = ?asked_at.elapsed(), "a database was asked for");
            // Off the list first: whoever asks from here on has seen this answer and asks anew.
            drop(question);
            sender.send_replace(Some(answer.map_err(Arc::new)));
        });
        Ok(receiver)
    }
}

impl Place<'_> {
    /// Asks for the branch's Postgres, or joins those who have.
    pub(crate) async fn wake(&self) -> Result<Endpoint, Refusal> {
        let mut answer = self.room.ask(self.branch)?;
        // A sender that goes without an answer ran out of time, or its waker panicked.
        let answer = match answer.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone(),
            Err(_) => None,
        };
        match answer {
            Some(answer) => answer.map_err(|error| Refusal::not_woken(self.branch, &error)),
            None => Err(Refusal::too_slow(self.branch, self.room.wake_limit)),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.room.state();
        state.waiting = state.waiting.saturating_sub(1);
        if let Some(of_branch) = state.per_branch.get_mut(self.branch) {
            *of_branch = of_branch.saturating_sub(1);
            if *of_branch == 0 {
                state.per_branch.remove(self.branch);
            }
        }
    }
}

/// A question under way; off the list when dropped, a panic of the waker included.
struct Question {
    room: Arc<WaitingRoom>,
    branch: BranchAddress,
}

impl Drop for Question {
    fn drop(&mut self) {
        self.room.state().asked.remove(&self.branch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;

    /// Answers once for each permit, and counts how often it was asked.
    struct Gate {
        open: Semaphore,
        asked: AtomicUsize,
    }

    #[async_trait]
    impl Waker for Gate {
        async fn wake(&self, _: &BranchAddress) -> Result<Endpoint, WakeError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.open.acquire().await.unwrap().forget();
            Ok(Endpoint {
                socket_directory: "run".into(),
                port: 5432,
                superuser: tokio_postgres::Config::new(),
            })
        }
    }

    fn room(limits: (usize, usize), wake_limit: Duration) -> (Arc<Gate>, Arc<WaitingRoom>) {
        let gate = Arc::new(Gate { open: Semaphore::new(0), asked: AtomicUsize::new(0) });
        let waker: Arc<dyn Waker> = gate.clone();
        (gate, WaitingRoom::new(waker, Arc::default(), limits, wake_limit))
    }

    fn branch(name: &str) -> BranchAddress {
        BranchAddress { project: "shop".to_owned(), branch: name.to_owned() }
    }

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn many_who_wait_for_one_branch_ask_once() {
        let (gate, room) = room((100, 100), LONG);
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let room = Arc::clone(&room);
                tokio::spawn(async move {
                    let branch = branch("main");
                    room.enter(&branch).unwrap().wake().await.map(|endpoint| endpoint.port)
                })
            })
            .collect();
        while room.counters.snapshot().waiting_now < 20 {
            tokio::task::yield_now().await;
        }
        gate.open.add_permits(1);
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap(), Ok(5432));
        }
        assert_eq!(gate.asked.load(Ordering::SeqCst), 1);
        gate.open.add_permits(1);
        room.enter(&branch("main")).unwrap().wake().await.unwrap();
        assert_eq!(gate.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_full_branch_leaves_room_for_others_and_a_full_room_for_none() {
        let (_gate, room) = room((3, 2), LONG);
        let (main, dev) = (branch("main"), branch("dev"));
        let first = room.enter(&main).ok().unwrap();
        let _second = room.enter(&main).ok().unwrap();
        assert_eq!(room.enter(&main).err(), Some(Refusal::too_many_waiting(&main)));
        let _third = room.enter(&dev).ok().unwrap();
        assert_eq!(room.enter(&dev).err(), Some(Refusal::too_many_waiting(&dev)));
        drop(first);
        assert!(room.enter(&main).is_ok());
    }

    #[tokio::test]
    async fn a_branch_that_does_not_start_in_time_is_given_up_and_asked_for_again() {
        let (gate, room) = room((3, 3), Duration::from_millis(50));
        let main = branch("main");
        let refusal = room.enter(&main).unwrap().wake().await.err();
        assert_eq!(refusal, Some(Refusal::too_slow(&main, Duration::from_millis(50))));
        gate.open.add_permits(1);
        assert!(room.enter(&main).unwrap().wake().await.is_ok());
        assert_eq!(room.counters.snapshot().waiting_now, 0);
    }
}
