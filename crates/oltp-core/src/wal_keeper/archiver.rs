//! Puts WAL that a majority has into the archive, whole records at a time.
//!
//! A chunk every second while there is anything, or sooner when 16 MiB have come together; with
//! `durability: store` at once, for commits wait for it. A store that fails is tried again and again: WAL meanwhile
//! stays with the keepers, as long as they have room.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use wal_decoder::Lsn;

use super::archive::{WalArchive, WalChunk, cover};
use super::election::Durability;
use super::keeper_link::Proposal;
use super::keeper_log::Refusal;
use super::record_scanner::SEGMENT;
use crate::page_store::WalChunkName;
use crate::{CoreError, Result, Timestamp};

/// An acknowledged commit is in the archive at most this much later.
const EVERY: Duration = Duration::from_secs(1);
/// Meanwhile it is looked at so often whether a segment has come together: being told of every commit would be a task
/// to run for every commit.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Between two attempts at a failing store.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A store that is merely slow is said to be, too: its own retries may go on for minutes.
const SILENCE_IS_NOTICED: Duration = Duration::from_secs(10);

/// A failing archive.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ArchiveTrouble {
    /// Since when nothing could be archived.
    pub since: Timestamp,
    /// Why.
    pub problem: String,
}

pub(super) struct Archiver {
    pub(super) proposal: Arc<Proposal>,
    pub(super) archive: WalArchive,
    /// The end of the last whole record that a majority has.
    pub(super) recoverable: watch::Receiver<Lsn>,
    /// Do not wait for more to come together.
    pub(super) hurry: watch::Receiver<bool>,
    pub(super) durability: Durability,
    pub(super) trouble: watch::Sender<Option<ArchiveTrouble>>,
}

impl Archiver {
    /// Archives until it is dropped.
    pub(super) async fn run(mut self) {
        let mut from = self.until_it_works(|| self.first_missing()).await;
        loop {
            let archived = *self.proposal.archived.borrow();
            // Who sets them ends with us.
            if self.recoverable.wait_for(|end| *end > archived).await.is_err() {
                return;
            }
            let enough = Lsn(archived.0.saturating_add(SEGMENT));
            let _ = timeout(EVERY, async {
                tokio::select! {
                    _ = self.hurry.wait_for(|hurry| *hurry) => {}
                    () = reached(&self.recoverable, enough) => {}
                }
            })
            .await;
            let target = *self.recoverable.borrow();
            while from < target {
                from = self.until_it_works(|| self.put_next(from, target)).await;
            }
            if self.durability == Durability::Store {
                // Who claimed a higher term before this may have missed what was just put: it counts for nothing.
                let claimed = self.until_it_works(|| self.archive.highest_claim()).await;
                if claimed > self.proposal.term() {
                    return self.proposal.progress.taken_over(claimed);
                }
            }
            self.proposal.archived.send_replace(target);
        }
    }

    /// Where the archive's unbroken WAL of this log ends: a compute before this one may have put more than the keepers
    /// were told.
    async fn first_missing(&self) -> Result<Lsn> {
        let archived = *self.proposal.archived.borrow();
        let chunks = self.archive.list().await?;
        let covered = cover(&chunks, archived, self.proposal.window.head());
        Ok(covered.last().map_or(archived, |piece| piece.to))
    }

    /// Puts the chunk that begins at `from`; returns its end.
    async fn put_next(&self, from: Lsn, target: Lsn) -> Result<Lsn> {
        let (term, next_term) = {
            let begin = self.proposal.begin.borrow();
            let next = begin.history.entries().iter().map(|entry| entry.start).find(|start| *start > from);
            (begin.history.at(from), next)
        };
        let missing = || CoreError::WalMissing { log: self.proposal.log.to_string(), from, to: target };
        let term = term.ok_or_else(missing)?;
        let segment_end = Lsn((from.0 / SEGMENT + 1).saturating_mul(SEGMENT));
        let end = target.min(segment_end).min(next_term.unwrap_or(target));
        let mut wal = BytesMut::new();
        while (wal.len() as u64) < end.bytes_since(from) {
            let at = Lsn(from.0 + wal.len() as u64);
            for piece in self.proposal.wal(at, end.bytes_since(at)).await? {
                wal.extend_from_slice(&piece);
            }
        }
        let name = WalChunkName { timeline: term.timeline, start: from, end, term: term.term };
        let ends_at_record = end == target || Some(end) == next_term;
        self.archive.put(&WalChunk { name, ends_at_record, wal: wal.freeze() }).await?;
        Ok(end)
    }

    async fn until_it_works<T, F: Future<Output = Result<T>>>(&self, attempt: impl Fn() -> F) -> T {
        let mut pause = FIRST_PAUSE;
        loop {
            let mut answer = std::pin::pin!(attempt());
            let outcome = match timeout(SILENCE_IS_NOTICED, &mut answer).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    self.notice(format!("the store has not answered for {} s", SILENCE_IS_NOTICED.as_secs()));
                    answer.await
                }
            };
            match outcome {
                Ok(done) => {
                    self.trouble.send_if_modified(|trouble| trouble.take().is_some());
                    return done;
                }
                Err(error) => {
                    self.notice(Refusal::from(error).describe());
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn notice(&self, problem: String) {
        tracing::warn!(log = %self.proposal.log, problem, "WAL cannot be archived now; the keepers hold it");
        self.trouble.send_modify(|trouble| {
            let since = trouble.as_ref().map_or_else(Timestamp::now, |trouble| trouble.since);
            *trouble = Some(ArchiveTrouble { since, problem });
        });
    }
}

/// Looks until the log has come so far.
async fn reached(end: &watch::Receiver<Lsn>, wanted: Lsn) {
    while *end.borrow() < wanted {
        sleep(LOOK_EVERY).await;
    }
}
