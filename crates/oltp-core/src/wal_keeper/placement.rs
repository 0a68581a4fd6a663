//! Giving Postgres the WAL that it recovers from.
//!
//! WAL of a lineage lies in pieces: an ancestor's archive up to where the branch began, then the branch's own archive
//! and, for the newest, its keepers. Placed in `pg_wal` it is whole segments again, each named by the timeline that it
//! ends on, zeros after the last byte; and where the timeline changes, the history file that tells Postgres so.
//!
//! ```text
//!   span 1 (parent, timeline 1)     span 2 (this branch, timeline 2)
//!   ───────────────┬──────────┬─────┴────┬──────────────────┐ end
//!        00000001…05          00000002…06          00000002…07 (then zeros)
//! ```
//!
//! Of the first segment only its first page, which Postgres checks when it opens the file, and what lies from `from` on.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use wal_decoder::Lsn;

use super::SEGMENT;
use super::address::KeeperAddress;
use super::archive::{WalArchive, cover};
use super::connection::KeeperConnection;
use super::election::Elected;
use super::log_name::LogName;
use super::record_scanner::PAGE;
use crate::ids::Timeline;
use crate::page_store::{WalChunkName, WalSpan};
use crate::{CoreError, Result, ServiceUser};

/// Read from a keeper and written at once.
const READ_BYTES: u64 = 4 << 20;

/// What to place, and where it may be found.
#[derive(Debug, Clone)]
pub struct WalPlacement<'a> {
    /// Any archive of the storage.
    pub archive: &'a WalArchive,
    /// Keepers that may have what is not archived yet.
    pub keepers: &'a [KeeperAddress],
    /// The lineage in the order of replay. The first span is taken to reach down as far as needed.
    pub spans: &'a [WalSpan],
    /// The redo position, or the oldest slot's restart position when that is lower.
    pub from: Lsn,
    /// Where to stop; `None`: as far as there is WAL.
    pub to: Option<Lsn>,
}

impl Elected {
    /// Places the lineage's WAL from `from` up to the end of the log in `pg_wal`, for Postgres to recover from. Returns the
    /// end.
    ///
    /// # Errors
    /// WAL is missing or damaged, or the disk refuses.
    pub async fn place_wal(
        &self,
        spans: &[WalSpan],
        from: Lsn,
        pg_wal: &Path,
        owner: &ServiceUser,
    ) -> Result<Lsn> {
        let LogName { project, branch } = self.election.log.clone();
        let mut spans: Vec<WalSpan> = spans.iter().filter(|span| span.branch != branch).cloned().collect();
        let mut to = None;
        if let Some(end) = self.end() {
            let terms = end.history.entries();
            let begin = spans.last().and_then(|span| span.to).unwrap_or_default();
            let first = terms.first().map_or(end.timeline, |first| first.timeline);
            let mut own = vec![(begin, first)];
            own.extend(terms.iter().map(|term| (term.start, term.timeline)));
            own.dedup_by_key(|(_, timeline)| *timeline);
            for (at, (from, timeline)) in own.iter().enumerate() {
                let to = own.get(at + 1).map_or(end.end, |(next, _)| *next);
                let (project, timeline) = (project.clone(), *timeline);
                spans.push(WalSpan { project, branch, timeline, from: *from, to: Some(to) });
            }
            to = Some(end.end);
        }
        let placement = WalPlacement {
            archive: &self.election.archive,
            keepers: &self.election.keepers,
            spans: &spans,
            from,
            to,
        };
        placement.place(pg_wal, owner).await
    }
}

impl WalPlacement<'_> {
    /// Places the WAL; returns its end.
    ///
    /// # Errors
    /// There is none at `from`, or none up to `to`; a chunk is damaged; or the disk refuses.
    pub async fn place(&self, pg_wal: &Path, owner: &ServiceUser) -> Result<Lsn> {
        let mut files = PlacedSegments { pg_wal, owner, spans: self.spans, open: None };
        let mut sources = Sources { placement: self, listed: HashMap::new() };
        let first_segment = Lsn(self.from.0 / SEGMENT * SEGMENT);
        let first_page = Lsn(self.from.0 / PAGE * PAGE);
        let header_end = Lsn(first_segment.0 + PAGE);
        if first_page >= header_end {
            self.copy(&mut sources, &mut files, first_segment, Some(header_end)).await?;
        }
        let end = self.copy(&mut sources, &mut files, first_page, self.to).await?;
        files.write_history(end)?;
        Ok(end)
    }

    /// Copies `from..to`; with no `to`, as far as there is WAL, but at least up to the placement's `from`.
    async fn copy(
        &self,
        sources: &mut Sources<'_>,
        files: &mut PlacedSegments<'_>,
        from: Lsn,
        to: Option<Lsn>,
    ) -> Result<Lsn> {
        let mut position = from;
        while to.is_none_or(|to| position < to) {
            let Some(span) = self.span_at(position) else { break };
            let limit = to.unwrap_or(Lsn(u64::MAX)).min(span.to.unwrap_or(Lsn(u64::MAX)));
            let pieces = sources.read(span, position, limit).await?;
            if pieces.is_empty() {
                break;
            }
            for piece in pieces {
                files.write(position, &piece)?;
                position.0 = position.0.saturating_add(piece.len() as u64);
            }
        }
        let enough = to.unwrap_or(self.from);
        if position < enough {
            let log = self
                .span_at(position)
                .map_or_else(|| "the lineage".to_owned(), |span| span.branch.to_string());
            return Err(CoreError::WalMissing { log, from: position, to: enough });
        }
        Ok(position)
    }

    fn span_at(&self, position: Lsn) -> Option<&WalSpan> {
        span_at(self.spans, position)
    }
}

/// The span that has the byte at `position`: the last that begins at or below, and ends above.
fn span_at(spans: &[WalSpan], position: Lsn) -> Option<&WalSpan> {
    let span = spans.iter().rev().find(|span| span.from <= position).or(spans.first())?;
    span.to.is_none_or(|to| position < to).then_some(span)
}

/// Where WAL is read from: the keepers first, which are near and have the newest, then the archive.
struct Sources<'a> {
    placement: &'a WalPlacement<'a>,
    listed: HashMap<LogName, Vec<WalChunkName>>,
}

impl Sources<'_> {
    /// Some of the WAL of a span from `from` on, in pieces; none when there is none.
    async fn read(&mut self, span: &WalSpan, from: Lsn, to: Lsn) -> Result<Vec<Bytes>> {
        let log = LogName { project: span.project.clone(), branch: span.branch };
        let archive = self.placement.archive.of(log.clone());
        let near = Lsn(from.0.saturating_add(READ_BYTES)).min(to);
        for keeper in self.placement.keepers {
            let read = async { KeeperConnection::open(keeper).await?.read(&log, from, near).await };
            match read.await {
                Ok(pieces) if !pieces.is_empty() => return Ok(pieces),
                Ok(_) => {}
                // What a keeper does not have or cannot say, the archive or the next one may.
                Err(error) => {
                    tracing::debug!(%keeper, %log, error = &error as &dyn std::error::Error, "no WAL from this keeper");
                }
            }
        }
        if !self.listed.contains_key(&log) {
            self.listed.insert(log.clone(), archive.list().await?);
        }
        let chunks = self.listed.get(&log).map(Vec::as_slice).unwrap_or_default();
        let Some(part) = cover(chunks, from, to).first().copied() else { return Ok(Vec::new()) };
        let chunk = archive.get(part.chunk).await?;
        let range = |at: Lsn| usize::try_from(at.bytes_since(part.chunk.start)).unwrap_or(chunk.wal.len());
        let (begin, end) = (range(part.from), range(part.to).min(chunk.wal.len()));
        Ok(vec![chunk.wal.slice(begin.min(end)..end)])
    }
}

/// The segments in `pg_wal`.
struct PlacedSegments<'a> {
    pg_wal: &'a Path,
    owner: &'a ServiceUser,
    spans: &'a [WalSpan],
    open: Option<(u64, File, PathBuf)>,
}

impl PlacedSegments<'_> {
    fn write(&mut self, at: Lsn, mut wal: &[u8]) -> Result<()> {
        let mut position = at;
        while !wal.is_empty() {
            let (segment, offset) = (position.0 / SEGMENT, position.0 % SEGMENT);
            let room = usize::try_from(SEGMENT - offset).unwrap_or(usize::MAX).min(wal.len());
            let (now, later) = wal.split_at(room);
            if self.open.as_ref().is_none_or(|(open, ..)| *open != segment) {
                let path = self.pg_wal.join(segment_name(self.timeline_of(segment), segment));
                self.open = Some((segment, self.make(&path)?, path));
            }
            if let Some((_, file, path)) = &self.open {
                file.write_all_at(now, offset).map_err(CoreError::io("write", path))?;
            }
            position.0 = position.0.saturating_add(room as u64);
            wal = later;
        }
        Ok(())
    }

    /// The timeline that a segment ends on.
    fn timeline_of(&self, segment: u64) -> Timeline {
        let last = Lsn((segment + 1).saturating_mul(SEGMENT) - 1);
        let span = self.spans.iter().rev().find(|span| span.from <= last).or(self.spans.first());
        span.map_or(Timeline(1), |span| span.timeline)
    }

    fn make(&self, path: &Path) -> Result<File> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(CoreError::io("create", path))?;
        file.set_len(SEGMENT).map_err(CoreError::io("make room in", path))?;
        self.owner.own(path)?;
        Ok(file)
    }

    /// `<timeline>.history`: its ancestors and where each was left (timeline.c).
    fn write_history(&self, end: Lsn) -> Result<()> {
        let mut lines = String::new();
        let mut last: Option<&WalSpan> = None;
        for span in self.spans.iter().filter(|span| span.from < end) {
            if let Some(before) = last.filter(|before| before.timeline != span.timeline) {
                // Writing to a String cannot fail.
                let _ = writeln!(lines, "{}\t{}\tbranched by Tidewater\n", before.timeline, span.from);
            }
            last = Some(span);
        }
        let Some(last) = last.filter(|_| !lines.is_empty()) else { return Ok(()) };
        let path = self.pg_wal.join(format!("{:08X}.history", last.timeline.0));
        std::fs::write(&path, lines).map_err(CoreError::io("write", &path))?;
        self.owner.own(&path)
    }
}

fn segment_name(timeline: Timeline, segment: u64) -> String {
    let per_file_id = (1 << 32) / SEGMENT;
    format!("{:08X}{:08X}{:08X}", timeline.0, segment / per_file_id, segment % per_file_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_named_as_postgres_names_them() {
        assert_eq!(segment_name(Timeline(1), 1), "000000010000000000000001");
        assert_eq!(segment_name(Timeline(0x1F), 0x1FF), "0000001F00000001000000FF");
    }
}
