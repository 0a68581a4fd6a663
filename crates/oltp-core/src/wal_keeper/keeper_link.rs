//! A proposer's lasting tie to one keeper: brings it into step and sends it WAL, again and again, until another compute
//! has it.
//!
//! ```text
//!   open ── promise (again: a keeper that was away has not) ── begin ──> it needs WAL from there
//!     ▲                                                                  │
//!     │ a pause                            append, append, … ◀── window, or another keeper's log
//!     └────────── any failure ◀──────────── flushed ──▶ progress
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;
use wal_decoder::Lsn;

use super::address::KeeperAddress;
use super::connection::{FrameReader, FrameWriter, KeeperConnection};
use super::frame::{Answer, Frame, MAX_WAL, Request};
use super::keeper_log::{Refusal, TermBegin};
use super::log_name::LogName;
use super::progress::Progress;
use super::wal_window::WalWindow;
use crate::ids::Term;
use crate::{CoreError, Result};

/// Between two attempts: the first comes soon, for a keeper that was merely restarted.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A sync that takes longer is a disk that hangs.
const FLUSH_LIMIT: Duration = Duration::from_secs(60);
/// WAL read from another keeper at once.
const CATCH_UP_BYTES: u64 = 4 << 20;

/// What all links of a proposer share.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) log: LogName,
    pub(crate) keepers: Vec<KeeperAddress>,
    pub(crate) window: WalWindow,
    pub(crate) progress: Progress,
    /// What to begin with: the timeline may become known late.
    pub(crate) begin: watch::Sender<TermBegin>,
    /// The end of a record; everything below is in the archive.
    pub(crate) archived: watch::Sender<Lsn>,
}

impl Proposal {
    pub(crate) fn term(&self) -> Term {
        self.begin.borrow().term
    }

    /// WAL from `from` on, out of memory or else from any keeper that has it.
    pub(crate) async fn wal(&self, from: Lsn, limit: u64) -> Result<Vec<Bytes>> {
        if let Some(wal) = self.window.read(from, usize::try_from(limit).unwrap_or(MAX_WAL).min(MAX_WAL)) {
            return Ok(vec![wal]);
        }
        let to = Lsn(from.0.saturating_add(limit.min(CATCH_UP_BYTES))).min(self.window.head());
        let mut last = None;
        for (keeper, progress) in self.keepers.iter().zip(self.progress.snapshot()) {
            if progress.flushed <= from {
                continue;
            }
            let read = async { KeeperConnection::open(keeper).await?.read(&self.log, from, to).await };
            match read.await {
                Ok(pieces) if !pieces.is_empty() => return Ok(pieces),
                Ok(_) => {}
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| CoreError::WalMissing { log: self.log.to_string(), from, to }))
    }
}

/// Why a session with a keeper ended.
enum Ended {
    Lost(Term),
    Failed(CoreError),
    /// There is something new to begin with.
    BeginAgain,
}

impl From<CoreError> for Ended {
    fn from(error: CoreError) -> Self {
        Ended::Failed(error)
    }
}

/// Serves keeper number `keeper` until it is lost to another compute.
pub(crate) async fn run(proposal: Arc<Proposal>, keeper: usize) {
    let Some(address) = proposal.keepers.get(keeper) else { return };
    let mut pause = FIRST_PAUSE;
    loop {
        let mut streamed = false;
        match session(&proposal, keeper, address, &mut streamed).await {
            Ended::Lost(to) => {
                tracing::info!(log = %proposal.log, keeper = %address, term = %to, "the keeper has gone over to a newer compute");
                return proposal.progress.lost(keeper, to);
            }
            Ended::BeginAgain => continue,
            Ended::Failed(error) => {
                let problem = Refusal::from(error).describe();
                tracing::warn!(log = %proposal.log, keeper = %address, problem, "the keeper takes no WAL now");
                proposal.progress.failing(keeper, problem);
            }
        }
        pause = if streamed { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        tokio::time::sleep(pause).await;
    }
}

async fn session(proposal: &Proposal, keeper: usize, address: &KeeperAddress, streamed: &mut bool) -> Ended {
    match stream(proposal, keeper, address, streamed).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

async fn stream(
    proposal: &Proposal,
    keeper: usize,
    address: &KeeperAddress,
    streamed: &mut bool,
) -> Result<std::convert::Infallible, Ended> {
    let mut begins = proposal.begin.subscribe();
    let begin = TermBegin { archived: *proposal.archived.borrow(), ..begins.borrow_and_update().clone() };
    let mut connection = KeeperConnection::open(address).await?;
    let (term, candidate, log) = (begin.term, begin.candidate, proposal.log.clone());
    match connection.call(Request::Promise { log: log.clone(), term, candidate }).await? {
        Answer::Log(_) => {}
        other => return Err(refused(&connection, other)?),
    }
    let flushed = match connection.call(Request::Begin { log, begin }).await? {
        Answer::Begun { flushed } => flushed,
        other => return Err(refused(&connection, other)?),
    };
    *streamed = true;
    proposal.progress.flushed(keeper, flushed);
    let KeeperConnection { reader, writer } = connection;
    let sent = AtomicU64::new(flushed.0);
    tokio::select! {
        ended = send(proposal, writer, flushed, &sent) => ended,
        ended = receive(proposal, keeper, reader, &sent, address) => ended,
        // The sender lives in the proposal.
        _ = begins.changed() => Err(Ended::BeginAgain),
    }
}

fn refused(connection: &KeeperConnection, answer: Answer) -> Result<Ended, Ended> {
    Ok(match connection.refusal(answer)? {
        Refusal::StaleTerm { promised } => Ended::Lost(promised),
        other => Ended::Failed(connection.unexpected(Answer::Refused(other))),
    })
}

async fn send(
    proposal: &Proposal,
    mut writer: FrameWriter,
    from: Lsn,
    sent: &AtomicU64,
) -> Result<std::convert::Infallible, Ended> {
    let (mut head, term) = (proposal.window.follow(), proposal.term());
    let mut position = from;
    loop {
        // The sender lives in the proposal.
        let _ = head.wait_for(|head| *head > position).await;
        for wal in proposal.wal(position, MAX_WAL as u64).await? {
            let (at, archived) = (position, *proposal.archived.borrow());
            position.0 = position.0.saturating_add(wal.len() as u64);
            sent.store(position.0, Ordering::Relaxed);
            writer.send(&Frame::Append { term, at, archived, wal }).await?;
        }
    }
}

async fn receive(
    proposal: &Proposal,
    keeper: usize,
    mut reader: FrameReader,
    sent: &AtomicU64,
    address: &KeeperAddress,
) -> Result<std::convert::Infallible, Ended> {
    let mut flushed = 0;
    loop {
        let frame = match timeout(FLUSH_LIMIT, reader.expect()).await {
            Ok(frame) => frame?,
            Err(_) if sent.load(Ordering::Relaxed) <= flushed => continue,
            Err(_) => {
                let (keeper, limit) = (address.to_string(), FLUSH_LIMIT);
                return Err(CoreError::KeeperSilent { keeper, doing: "waiting for its disk", limit }.into());
            }
        };
        match frame {
            Frame::Flushed(position) => {
                flushed = position.0;
                proposal.progress.flushed(keeper, position);
            }
            Frame::Answer(Answer::Refused(Refusal::StaleTerm { promised })) => {
                return Err(Ended::Lost(promised));
            }
            Frame::Answer(Answer::Refused(refusal)) => {
                let reason = refusal.describe();
                return Err(CoreError::KeeperRefused { keeper: address.to_string(), reason }.into());
            }
            _ => {
                let problem = "something else than positions in answer to WAL".to_owned();
                return Err(CoreError::KeeperProtocol { keeper: address.to_string(), problem }.into());
            }
        }
    }
}
