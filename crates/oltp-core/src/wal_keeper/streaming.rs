//! From Postgres to the keepers, and the majority's answer back: what every commit waits for.
//!
//! ```text
//!   Postgres ──WAL──▶ Streaming ──▶ window ──▶ links ──▶ keepers
//!      ▲                 │ ▲                     │
//!      │                 │ └──── majority ◀──────┘ flushed
//!      └── flushed ──────┘
//!                        └ majority, whole records ──▶ archiver ──▶ store
//! ```
//!
//! The compute is the only standby that Postgres knows (`synchronous_standby_names = 'FIRST 1 (tidewater_keeper)'`) and
//! answers with the position that a *majority* has flushed; with `durability: store`, that is archived as well.
//! All of this but the archiver runs on one thread, so that a commit's way there and back wakes none besides.
//! A session that breaks is opened again at the head: what was received is not asked for twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use postgres_connector::{PhysicalEvent, PhysicalSession, PhysicalStream, SourceConfig};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use wal_decoder::Lsn;

use super::RecordScanner;
use super::archiver::{ArchiveTrouble, Archiver};
use super::election::{Durability, Elected, Quorum};
use super::keeper_link::Proposal;
use super::keeper_log::{Refusal, TermBegin};
use super::progress::KeeperProgress;
use super::term_history::{TermHistory, TermStart};
use crate::event_loop::EventLoop;
use crate::ids::{Term, Timeline};
use crate::{CoreError, Result, Timestamp};

/// How the compute is called in `synchronous_standby_names`.
pub const STANDBY_NAME: &str = "tidewater_keeper";
/// The server hears from us this often, whatever happens.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// WAL that no majority has is taken up to this; beyond, it stays with Postgres.
const UNFLUSHED_LIMIT: u64 = 32 << 20;
/// A session that was merely terminated is back at once; a server that is gone is not.
const RECONNECT_LIMIT: Duration = Duration::from_secs(5);
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// What is behind a broken connection has already arrived.
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(500);

/// How to stream.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// Where Postgres is, with a role that may replicate. The application name is set here.
    pub postgres: SourceConfig,
    /// Where the log of a new branch begins: the end of the record before its first. A log that has an end goes on there.
    pub origin: Lsn,
}

/// Why a stream has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEnd {
    /// Another compute has the branch: this one's Postgres must be stopped, and nothing it has be kept.
    Fenced {
        /// The term that has it.
        by: Term,
    },
    /// Postgres has stopped in order; all of its WAL is with the majority.
    ServerStopped,
    /// Postgres cannot be reached any more.
    PostgresLost {
        /// Why.
        problem: String,
    },
    /// What Postgres sent cannot be WAL, or is another cluster's.
    Failed {
        /// What is wrong.
        problem: String,
    },
}

/// A stream, as `status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct StreamStatus {
    /// The compute's term.
    pub term: Term,
    /// The end of what Postgres has sent.
    #[serde(with = "super::lsn_text")]
    pub received: Lsn,
    /// Everything below is with a majority.
    #[serde(with = "super::lsn_text")]
    pub majority: Lsn,
    /// Everything below is in the archive.
    #[serde(with = "super::lsn_text")]
    pub archived: Lsn,
    /// Each keeper.
    pub keepers: Vec<KeeperProgress>,
    /// Since when commits have been waiting for a majority without any progress.
    pub waiting_since: Option<Timestamp>,
    /// Why nothing can be archived.
    pub archive_trouble: Option<ArchiveTrouble>,
}

impl StreamStatus {
    /// What commits wait for, in words; `None` when they do not, or no longer than a disk takes.
    pub fn waiting_for(&self, longer_than: Duration) -> Option<String> {
        let since = self.waiting_since.filter(|since| Timestamp::now().since(*since) > longer_than)?;
        let reasons: Vec<String> = self
            .keepers
            .iter()
            .filter_map(|keeper| match &keeper.state {
                super::progress::KeeperState::Failing { problem, .. } => {
                    Some(format!("{}: {problem}", keeper.keeper))
                }
                _ => None,
            })
            .collect();
        let reasons = if reasons.is_empty() { "their disks".to_owned() } else { reasons.join("; ") };
        Some(format!("commits have waited since {since} for a majority of the WAL keepers ({reasons})"))
    }
}

/// A running stream. Dropping it ends the session with Postgres and the links to the keepers: commits then wait.
pub struct Streaming {
    term: Term,
    durability: Durability,
    proposal: Arc<Proposal>,
    recoverable: watch::Receiver<Lsn>,
    waiting_since: watch::Receiver<Option<Timestamp>>,
    trouble: watch::Receiver<Option<ArchiveTrouble>>,
    hurry: watch::Sender<bool>,
    ended: watch::Receiver<Option<StreamEnd>>,
    _tasks: JoinSet<()>,
    _links: JoinSet<()>,
    _events: EventLoop,
}

impl Elected {
    /// Opens the session with Postgres and streams from the end of the log on. Postgres must have recovered exactly up to
    /// there.
    ///
    /// # Errors
    /// Postgres cannot be reached, or is another cluster.
    pub async fn stream(self, config: StreamConfig) -> Result<Streaming> {
        let (events, shared) = (self.events.handle().clone(), Handle::current());
        let streaming = AbortOnDropHandle::new(events.spawn(self.stream_here(config, shared)));
        streaming.await.map_err(|ended| CoreError::io("stream", "the WAL")(std::io::Error::other(ended)))?
    }

    /// On the thread of the event loop; what takes long goes to `shared`.
    async fn stream_here(mut self, config: StreamConfig, shared: Handle) -> Result<Streaming> {
        let mut postgres = config.postgres.clone();
        postgres.application_name = STANDBY_NAME.to_owned();
        let failed = |source| CoreError::WalSession { source: Box::new(source) };
        let mut session = PhysicalSession::connect(&postgres).await.map_err(failed)?;
        let identity = session.identify_system().await.map_err(failed)?;
        if identity.system_id != self.election.system_identifier {
            return Err(CoreError::OtherCluster {
                log: self.election.log.to_string(),
                wanted: self.election.system_identifier,
                found: identity.system_id,
            });
        }
        let timeline = Timeline(identity.timeline);
        let quorum = self.begin(config.origin, timeline);
        let Quorum { proposal, links } = quorum;
        let head = proposal.window.head();
        let stream = session.start(head, timeline.0).await.map_err(failed)?;

        let mut tasks = JoinSet::new();
        let recoverable = watch::Sender::new(head);
        let durability = self.election.durability;
        let hurry = watch::Sender::new(durability == Durability::Store);
        let trouble = watch::Sender::new(None);
        let (waiting, ended) = (watch::Sender::new(None), watch::Sender::new(None));
        let streaming = Streaming {
            term: self.term,
            durability,
            proposal: Arc::clone(&proposal),
            recoverable: recoverable.subscribe(),
            waiting_since: waiting.subscribe(),
            trouble: trouble.subscribe(),
            hurry: hurry.clone(),
            ended: ended.subscribe(),
            _tasks: JoinSet::new(),
            _links: links,
            _events: self.events,
        };
        let archiver = Archiver {
            proposal: Arc::clone(&proposal),
            archive: self.election.archive.clone(),
            recoverable: recoverable.subscribe(),
            hurry: hurry.subscribe(),
            durability,
            trouble,
        };
        tasks.spawn_on(archiver.run(), &shared);
        let pump = Pump {
            proposal,
            postgres,
            timeline,
            durability,
            scanner: RecordScanner::new(head, None),
            ends: VecDeque::from([(head, head)]),
            recoverable,
            waiting,
            reported: Lsn::ZERO,
        };
        tasks.spawn(async move {
            let end = pump.run(stream).await;
            ended.send_replace(Some(end));
        });
        Ok(Streaming { _tasks: tasks, ..streaming })
    }

    /// The links to the keepers, begun with the timeline that Postgres is on.
    fn begin(&mut self, origin: Lsn, timeline: Timeline) -> Quorum {
        if let (Some(quorum), Some(end)) = (self.quorum.take(), &self.end) {
            if end.timeline != timeline {
                let start = TermStart { term: self.term, start: end.end, timeline };
                quorum
                    .proposal
                    .begin
                    .send_modify(|begin| begin.history = begin.history.continued(end.end, start));
            }
            return quorum;
        }
        let start = TermStart { term: self.term, start: origin, timeline };
        let begin = TermBegin {
            term: self.term,
            candidate: self.candidate,
            system_identifier: self.election.system_identifier,
            archived: origin,
            history: TermHistory::default().continued(origin, start),
        };
        Quorum::start(&self.election, begin, (origin, origin), &self.events)
    }
}

impl Streaming {
    /// The compute's term.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Follows the position below which a majority has everything. A manifest is published, and the lake may see a commit,
    /// only at or below.
    pub fn majority(&self) -> watch::Receiver<Lsn> {
        self.proposal.progress.majority()
    }

    /// Follows the position below which nothing can be lost that a commit was confirmed for: the majority's, or with
    /// `durability: store` the archive's, for the keepers' disks may be lost with the machine. Only what lies below may be
    /// shown to others.
    pub fn confirmed(&self) -> watch::Receiver<Lsn> {
        match self.durability {
            Durability::Keeper => self.majority(),
            Durability::Store => self.archived(),
        }
    }

    /// Follows the end of the last whole record that a majority has. A start always recovers at least up to there, while
    /// the majority's position itself may lie inside a record that a crash cuts off: the smaller of this and a cut's
    /// sampled position is the cut's minimum recovery position.
    pub fn recoverable(&self) -> watch::Receiver<Lsn> {
        self.recoverable.clone()
    }

    /// Follows the position below which everything is in the archive; the end of a record.
    pub fn archived(&self) -> watch::Receiver<Lsn> {
        self.proposal.archived.subscribe()
    }

    /// How it stands.
    pub fn status(&self) -> StreamStatus {
        // One after the other: what is borrowed from a channel keeps its sender waiting, and inside one expression all
        // of it would be borrowed together.
        let majority = *self.majority().borrow();
        let archived = *self.proposal.archived.borrow();
        let waiting_since = *self.waiting_since.borrow();
        let archive_trouble = self.trouble.borrow().clone();
        StreamStatus {
            term: self.term,
            received: self.proposal.window.head(),
            majority,
            archived,
            keepers: self.proposal.progress.snapshot(),
            waiting_since,
            archive_trouble,
        }
    }

    /// Follows why it has ended, once it has.
    pub fn ended(&self) -> watch::Receiver<Option<StreamEnd>> {
        self.ended.clone()
    }

    /// Archives everything up to the last whole record that a majority has, and returns when it is there: the last step of a
    /// clean suspend. It takes as long as the store does.
    pub async fn archive_all(&self) {
        self.hurry.send_replace(true);
        let target = *self.recoverable.borrow();
        // The sender lives in the proposal.
        let _ = self.archived().wait_for(|archived| *archived >= target).await;
    }
}

/// Whether the server's last words, behind an answer of ours that came too late for it, were that it stops in order: it
/// asks for a reply and may be gone before it has read that.
async fn stopped_in_order(stream: &mut PhysicalStream) -> bool {
    let last_words = async {
        loop {
            match stream.next().await {
                Ok(PhysicalEvent::Keepalive { .. }) => {}
                Ok(PhysicalEvent::Ended) => return true,
                // What was not yet taken is asked for again.
                Ok(PhysicalEvent::Wal { .. }) | Err(_) => return false,
            }
        }
    };
    timeout(LAST_WORDS_LIMIT, last_words).await.unwrap_or(false)
}

/// Between Postgres and the window.
struct Pump {
    proposal: Arc<Proposal>,
    postgres: SourceConfig,
    timeline: Timeline,
    durability: Durability,
    scanner: RecordScanner,
    /// After each piece of WAL: its end, and the end of the last whole record so far. From the majority's position on.
    ends: VecDeque<(Lsn, Lsn)>,
    recoverable: watch::Sender<Lsn>,
    waiting: watch::Sender<Option<Timestamp>>,
    reported: Lsn,
}

impl Pump {
    async fn run(mut self, mut stream: PhysicalStream) -> StreamEnd {
        loop {
            let lost = match self.pump(&mut stream).await {
                Ok(end) => return end,
                Err(error) => error,
            };
            if stopped_in_order(&mut stream).await {
                return StreamEnd::ServerStopped;
            }
            let problem = Refusal::from(CoreError::WalSession { source: Box::new(lost) }).describe();
            tracing::info!(log = %self.proposal.log, problem, "the WAL session with Postgres ended");
            match self.reconnect().await {
                Some(again) => stream = again,
                None => return StreamEnd::PostgresLost { problem },
            }
        }
    }

    async fn reconnect(&mut self) -> Option<PhysicalStream> {
        let deadline = Instant::now() + RECONNECT_LIMIT;
        self.reported = Lsn::ZERO;
        loop {
            let again = async {
                let session = PhysicalSession::connect(&self.postgres).await?;
                session.start(self.proposal.window.head(), self.timeline.0).await
            };
            match again.await {
                Ok(stream) => return Some(stream),
                Err(_) if Instant::now() < deadline => sleep(RECONNECT_PAUSE).await,
                Err(_) => return None,
            }
        }
    }

    /// Moves WAL one way and positions the other.
    async fn pump(&mut self, stream: &mut PhysicalStream) -> Result<StreamEnd, postgres_connector::Error> {
        let mut majority = self.proposal.progress.majority();
        let mut archived = self.proposal.archived.subscribe();
        let proposal = Arc::clone(&self.proposal);
        let mut fenced = std::pin::pin!(proposal.progress.fenced());
        let mut ticks = interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let have = *majority.borrow_and_update();
            self.settle(have);
            let safe = match self.durability {
                Durability::Keeper => have,
                Durability::Store => have.min(*archived.borrow_and_update()),
            };
            if safe > self.reported {
                stream.report(safe).await?;
                self.reported = safe;
            }
            let room = self.proposal.window.head().bytes_since(have) < UNFLUSHED_LIMIT;
            tokio::select! {
                // The senders live in the proposal.
                _ = majority.changed() => {}
                _ = archived.changed(), if self.durability == Durability::Store => {}
                by = &mut fenced => return Ok(StreamEnd::Fenced { by }),
                _ = ticks.tick() => stream.report(self.reported).await?,
                event = stream.next(), if room => match event? {
                    PhysicalEvent::Wal { start, data } => {
                        if let Err(problem) = self.take(start, data) {
                            return Ok(StreamEnd::Failed { problem });
                        }
                    }
                    PhysicalEvent::Keepalive { reply_requested: true } => stream.report(self.reported).await?,
                    PhysicalEvent::Keepalive { .. } => {}
                    PhysicalEvent::Ended => return Ok(StreamEnd::ServerStopped),
                },
            }
        }
    }

    fn take(&mut self, start: Lsn, wal: bytes::Bytes) -> Result<(), String> {
        let head = self.proposal.window.head();
        if start != head {
            return Err(format!("Postgres sent WAL from {start} where {head} came next"));
        }
        self.scanner.push(&wal).map_err(|broken| {
            format!("Postgres sent what is no WAL: at {}, {}", broken.at, broken.problem)
        })?;
        self.proposal.window.push(wal);
        self.ends.push_back((self.proposal.window.head(), self.scanner.end()));
        self.waiting.send_if_modified(|waiting| {
            let first = waiting.is_none();
            waiting.get_or_insert_with(Timestamp::now);
            first
        });
        Ok(())
    }

    /// A majority has everything below `have`.
    fn settle(&mut self, have: Lsn) {
        let mut whole = None;
        while let Some((_, record_end)) = self.ends.front().copied().filter(|(end, _)| *end <= have) {
            whole = Some(record_end);
            self.ends.pop_front();
        }
        let Some(whole) = whole else { return };
        self.recoverable.send_if_modified(|recoverable| {
            let more = whole > *recoverable;
            *recoverable = whole.max(*recoverable);
            more
        });
        let all = self.ends.is_empty();
        self.waiting.send_replace((!all).then(Timestamp::now));
        self.proposal.window.release(whole);
    }
}
