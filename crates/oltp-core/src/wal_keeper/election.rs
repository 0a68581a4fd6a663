//! Which compute may write a branch, and where its log goes on.
//!
//! ```text
//!   ask all ── term above every promise ── promised by a majority?  ── no: a higher one, or give up
//!                                               │ yes
//!              best log among them: highest (last term, end), cut after its last whole record
//!                                               │
//!              begin the term on them, copying what the others lack ── a majority has it all ──> Elected
//! ```
//!
//! Any two majorities share a keeper: the best log of one holds everything that another has ever acknowledged, and an
//! older compute finds no majority that would acknowledge its WAL any more.
//!
//! When the archive reaches further than every keeper, their disks were lost; the log then goes on from the archive.
//! What was acknowledged and not yet archived is gone in that case, and is said loudly.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;
use wal_decoder::Lsn;

use super::address::KeeperAddress;
use super::archive::WalArchive;
use super::connection::KeeperConnection;
use super::frame::{Answer, Request};
use super::keeper_link::{self, Proposal};
use super::keeper_log::{LogStatus, Refusal, TermBegin};
use super::log_name::LogName;
use super::progress::Progress;
use super::term_history::{TermHistory, TermStart};
use super::wal_window::WalWindow;
use crate::event_loop::EventLoop;
use crate::ids::{Term, Timeline};
use crate::{CoreError, Result};

/// Once a majority has answered, the others get this much longer: one of them may have the better log of a
/// lost majority, and it saves copying.
const STRAGGLERS: Duration = Duration::from_millis(300);
/// Elections that other candidates overtake.
const ATTEMPTS: u32 = 10;
/// Candidates that keep overtaking each other wait for a random part of this.
const CONTENTION_PAUSE: Duration = Duration::from_millis(300);
/// Copying the end of the best log to a majority; it is short, for the majority had nearly all of it.
const COPY_LIMIT: Duration = Duration::from_secs(120);

/// When a commit may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A majority of the keepers has its WAL.
    Keeper,
    /// And it is in the object store. Then the store decides who may write a branch, too: a compute may come with keepers
    /// that never heard of the one before.
    Store,
}

/// What an election is about.
#[derive(Debug, Clone)]
pub struct Election {
    /// The branch.
    pub log: LogName,
    /// Its keepers: an odd number, of which more than half must answer.
    pub keepers: Vec<KeeperAddress>,
    /// Its archive.
    pub archive: WalArchive,
    /// The term of the newest manifest: the new one will be higher.
    pub above: Term,
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// When its commits may return.
    pub durability: Durability,
}

/// The log of an elected compute, where it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    /// The end of the last whole record.
    pub end: Lsn,
    /// The timeline there.
    pub timeline: Timeline,
    /// Which term wrote what up to there, as far as it is not archived.
    pub history: TermHistory,
    /// Everything below is in the archive.
    pub archived: Lsn,
}

/// The right to write a branch, promised by a majority of its keepers.
pub struct Elected {
    pub(super) election: Election,
    pub(super) term: Term,
    pub(super) candidate: Uuid,
    pub(super) end: Option<LogEnd>,
    pub(super) quorum: Option<Quorum>,
    /// What every commit passes through.
    pub(super) events: EventLoop,
}

/// The links to the keepers; dropping it ends them.
pub(super) struct Quorum {
    pub(super) proposal: Arc<Proposal>,
    pub(super) links: JoinSet<()>,
}

impl Quorum {
    /// Begins the term on every keeper, now or whenever it comes back.
    pub(super) fn start(
        election: &Election,
        begin: TermBegin,
        (from, archived): (Lsn, Lsn),
        events: &EventLoop,
    ) -> Quorum {
        let proposal = Arc::new(Proposal {
            log: election.log.clone(),
            keepers: election.keepers.clone(),
            window: WalWindow::new(from),
            progress: Progress::new(election.keepers.iter().map(ToString::to_string)),
            begin: tokio::sync::watch::Sender::new(begin),
            archived: tokio::sync::watch::Sender::new(archived),
        });
        let mut links = JoinSet::new();
        for keeper in 0..election.keepers.len() {
            links.spawn_on(keeper_link::run(Arc::clone(&proposal), keeper), events.handle());
        }
        Quorum { proposal, links }
    }
}

impl Elected {
    /// The term that was promised.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Where the log ends; `None` when nothing was ever written to it.
    pub fn end(&self) -> Option<&LogEnd> {
        self.end.as_ref()
    }

    /// The branch.
    pub fn log(&self) -> &LogName {
        &self.election.log
    }

    /// Waits until a majority has the whole log under this term: from then on nobody can be elected without it.
    async fn settle(mut self) -> Result<Elected> {
        let Some(end) = &self.end else { return Ok(self) };
        let start = TermStart { term: self.term, start: end.end, timeline: end.timeline };
        let begin = TermBegin {
            term: self.term,
            candidate: self.candidate,
            system_identifier: self.election.system_identifier,
            archived: end.archived,
            history: end.history.continued(end.end, start),
        };
        let quorum = Quorum::start(&self.election, begin, (end.end, end.archived), &self.events);
        let progress = &quorum.proposal.progress;
        let mut majority = progress.majority();
        let wanted = end.end;
        let copied = async {
            tokio::select! {
                // The sender lives in the proposal.
                _ = majority.wait_for(|majority| *majority >= wanted) => Ok(()),
                by = progress.fenced() => Err(by),
            }
        };
        match timeout(COPY_LIMIT, copied).await {
            Ok(Ok(())) => {
                self.quorum = Some(quorum);
                Ok(self)
            }
            Ok(Err(by)) => Err(CoreError::Fenced { branch: self.election.log.branch, term: self.term, by }),
            Err(_) => Err(no_majority(&self.election, &describe(progress))),
        }
    }
}

fn describe(progress: &Progress) -> Vec<String> {
    let line = |keeper: super::progress::KeeperProgress| match keeper.state {
        super::progress::KeeperState::Failing { problem, .. } => format!("{}: {problem}", keeper.keeper),
        state => format!("{}: {state:?} at {}", keeper.keeper, keeper.flushed),
    };
    progress.snapshot().into_iter().map(line).collect()
}

fn no_majority(election: &Election, answers: &[String]) -> CoreError {
    CoreError::NoMajority {
        log: election.log.to_string(),
        wanted: election.keepers.len() / 2 + 1,
        keepers: election.keepers.len(),
        answers: answers.iter().map(|answer| format!("  {answer}")).collect::<Vec<_>>().join("\n"),
    }
}

/// Wins the right to write a branch, and finds where its log goes on.
///
/// # Errors
/// Fewer than a majority of the keepers answer or agree, other computes keep overtaking this one, or the archive cannot be
/// read.
pub async fn elect(election: &Election) -> Result<Elected> {
    let candidate = Uuid::new_v4();
    let mut above = election.above;
    if election.durability == Durability::Store {
        above = above.max(election.archive.highest_claim().await?);
    }
    let mut overtaken_by = Term(0);
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            let pause = rand::rng().random_range(Duration::ZERO..CONTENTION_PAUSE);
            sleep(pause).await;
        }
        let known = ask_all(election, Request::Status(election.log.clone())).await?;
        let highest = known.iter().filter_map(|answer| answer.log()).map(|log| log.promised).max();
        let term = above.max(highest.unwrap_or_default()).next();
        let log = election.log.clone();
        let answers = ask_all(election, Request::Promise { log, term, candidate }).await?;
        let promised: Vec<&LogStatus> = answers.iter().filter_map(Promise::log).collect();
        if promised.len() * 2 > election.keepers.len() {
            // Before the archive is listed: what an older compute puts after this, it finds out and confirms to nobody.
            if election.durability == Durability::Store && !election.archive.claim(term).await? {
                (above, overtaken_by) = (term, term);
                continue;
            }
            let end = log_end(election, &promised).await?;
            let events = EventLoop::start("wal").map_err(CoreError::io("start a thread for", "the WAL"))?;
            let elected = Elected { election: election.clone(), term, candidate, end, quorum: None, events };
            return elected.settle().await;
        }
        let stale = answers.iter().filter_map(|answer| match answer {
            Promise::Refused(Refusal::StaleTerm { promised }) => Some(*promised),
            _ => None,
        });
        match stale.max() {
            Some(higher) => (above, overtaken_by) = (above.max(higher), higher),
            None => return Err(no_majority(election, &words(election, &answers))),
        }
    }
    Err(CoreError::Fenced { branch: election.log.branch, term: above, by: overtaken_by })
}

/// What became of asking one keeper.
enum Promise {
    Log(LogStatus),
    Refused(Refusal),
    Failed(CoreError),
    Silent,
}

impl Promise {
    fn log(&self) -> Option<&LogStatus> {
        match self {
            Promise::Log(status) => Some(status),
            _ => None,
        }
    }
}

fn words(election: &Election, answers: &[Promise]) -> Vec<String> {
    let line = |(keeper, answer): (&KeeperAddress, &Promise)| match answer {
        Promise::Log(_) => format!("{keeper}: it agrees"),
        Promise::Refused(refusal) => format!("{keeper}: {}", refusal.describe()),
        Promise::Failed(CoreError::KeeperUnreachable { doing, source, .. }) => {
            format!("{keeper}: {doing}: {source}")
        }
        Promise::Failed(error) => format!("{keeper}: {error}"),
        Promise::Silent => format!("{keeper}: no answer in time"),
    };
    election.keepers.iter().zip(answers).map(line).collect()
}

/// Asks every keeper the same, and waits for a majority and a little longer.
async fn ask_all(election: &Election, request: Request) -> Result<Vec<Promise>> {
    let mut asked = JoinSet::new();
    for (at, keeper) in election.keepers.iter().enumerate() {
        let (keeper, request) = (keeper.clone(), request.clone());
        asked.spawn(async move { (at, ask(&keeper, request).await) });
    }
    let mut answers: Vec<Promise> = election.keepers.iter().map(|_| Promise::Silent).collect();
    let mut deadline: Option<Instant> = None;
    loop {
        let next: Option<Result<(usize, Promise), JoinError>> = match deadline {
            // Every request is bounded in time.
            None => asked.join_next().await,
            Some(deadline) => timeout_at(deadline, asked.join_next()).await.unwrap_or(None),
        };
        let Some(Ok((at, answer))) = next else { break };
        if let Some(place) = answers.get_mut(at) {
            *place = answer;
        }
        if answers.iter().filter(|answer| answer.log().is_some()).count() * 2 > answers.len() {
            deadline.get_or_insert_with(|| Instant::now() + STRAGGLERS);
        }
    }
    if answers.iter().filter(|answer| !matches!(answer, Promise::Failed(_) | Promise::Silent)).count() * 2
        > answers.len()
    {
        Ok(answers)
    } else {
        Err(no_majority(election, &words(election, &answers)))
    }
}

async fn ask(keeper: &KeeperAddress, request: Request) -> Promise {
    let exchange = async {
        let mut connection = KeeperConnection::open(keeper).await?;
        match connection.call(request).await? {
            Answer::Log(status) => Ok(Promise::Log(status)),
            other => connection.refusal(other).map(Promise::Refused),
        }
    };
    exchange.await.unwrap_or_else(Promise::Failed)
}

/// Where the log goes on: the end of the best log among a majority's, or of the archive when that is further.
async fn log_end(election: &Election, promised: &[&LogStatus]) -> Result<Option<LogEnd>> {
    let best = promised
        .iter()
        .filter_map(|log| log.history.at(log.flushed).map(|last| ((last.term, log.flushed), last, *log)))
        .max_by_key(|(rank, ..)| *rank);
    let chunks = election.archive.list().await?;
    let archived_last = chunks.iter().map(|chunk| (chunk.term, chunk.end)).max();
    let Some((rank, last, log)) = best else {
        return from_archive(election, &chunks, Lsn::ZERO).await;
    };
    if log.system_identifier != election.system_identifier {
        let found = log.system_identifier;
        let reason = Refusal::OtherCluster { found }.describe();
        return Err(CoreError::KeeperRefused { keeper: election.log.to_string(), reason });
    }
    if archived_last > Some(rank) {
        return from_archive(election, &chunks, log.flushed).await;
    }
    let end = log.record_end;
    let archived = promised.iter().map(|log| log.start).max().unwrap_or_default().min(end);
    Ok(Some(LogEnd {
        end,
        timeline: last.timeline,
        history: log.history.without_archived(archived),
        archived,
    }))
}

async fn from_archive(
    election: &Election,
    chunks: &[crate::page_store::WalChunkName],
    keepers_end: Lsn,
) -> Result<Option<LogEnd>> {
    let Some(last) = election.archive.end_of_records(chunks).await? else { return Ok(None) };
    if keepers_end == Lsn::ZERO {
        // A branch whose first WAL was archived before it had keepers; or every keeper's disk was lost.
        tracing::info!(log = %election.log, end = %last.end, "no keeper has WAL of this branch: it goes on from the archive");
    } else {
        tracing::error!(
            log = %election.log, archive = %last.end, keepers = %keepers_end,
            "the keepers have less WAL than the archive: disks were lost, and with them what was acknowledged and not yet archived"
        );
    }
    let history = TermHistory::default();
    Ok(Some(LogEnd { end: last.end, timeline: last.timeline, history, archived: last.end }))
}
