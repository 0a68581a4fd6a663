//! The WAL of a branch in the object store, in chunks.
//!
//! ```text
//!   projects/<project>/wal/<branch>/<timeline>-<start>-<end>-<term>.wal
//!
//!   chunk     "TWWAL\0\0\x01" · CRC-32C u32 of all that follows · flags u32 · start u64 · end u64 · term u64
//!             · timeline u32 · 0 u32 · end − start bytes of WAL                         numbers are little-endian
//!   flags     1: the chunk ends where a record ends
//! ```
//!
//! A chunk is put once, holds only WAL that a majority of the keepers has, lies inside one segment and one term.
//! With `durability: store` a compute also puts `projects/<project>/claims/<branch>/<term, 20 digits>.claim`, if absent,
//! before it lists the chunks; one of a lower term looks for that after each put and before it confirms anything.
//!
//! Chunks may overlap where two computes archived the same WAL. And a compute that lost its branch may have put a chunk
//! after its successor began: therefore **a chunk of a term counts only below the first chunk of any higher term**.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use object_store::path::Path;
use wal_decoder::Lsn;

use super::log_name::LogName;
use super::record_scanner::SEGMENT;
use crate::ids::Term;
use crate::page_store::{self, WalChunkName};
use crate::storage::{Put, Storage};
use crate::{CoreError, Result};

const MAGIC: [u8; 8] = *b"TWWAL\0\0\x01";
const HEADER: usize = 48;
/// What the checksum does not cover: the magic and itself.
const BEFORE_SUM: usize = 12;
const ENDS_AT_RECORD: u32 = 1;

/// The archived WAL of one branch.
#[derive(Debug, Clone)]
pub struct WalArchive {
    storage: Storage,
    log: LogName,
}

/// A chunk's contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalChunk {
    /// What its name says.
    pub name: WalChunkName,
    /// Whether it ends where a record ends.
    pub ends_at_record: bool,
    /// The WAL.
    pub wal: Bytes,
}

impl WalChunk {
    /// The object's bytes.
    pub fn encode(&self) -> Bytes {
        let mut rest = BytesMut::with_capacity(HEADER + self.wal.len());
        rest.put_u32_le(if self.ends_at_record { ENDS_AT_RECORD } else { 0 });
        rest.put_u64_le(self.name.start.0);
        rest.put_u64_le(self.name.end.0);
        rest.put_u64_le(self.name.term.0);
        rest.put_u32_le(self.name.timeline.0);
        rest.put_u32_le(0);
        rest.put_slice(&self.wal);
        let mut bytes = BytesMut::with_capacity(HEADER + self.wal.len());
        bytes.put_slice(&MAGIC);
        bytes.put_u32_le(crc32c::crc32c(&rest));
        bytes.put_slice(&rest);
        bytes.freeze()
    }

    /// Reads the object that is called `name`.
    ///
    /// # Errors
    /// In words, what is wrong with the bytes.
    pub fn decode(name: WalChunkName, mut bytes: Bytes) -> Result<WalChunk, &'static str> {
        if bytes.len() < HEADER || !bytes.starts_with(&MAGIC) {
            return Err("it does not begin as a chunk of WAL does");
        }
        let sum = crc32c::crc32c(bytes.get(BEFORE_SUM..).unwrap_or_default());
        bytes.advance(MAGIC.len());
        if bytes.get_u32_le() != sum {
            return Err("its checksum is wrong");
        }
        let flags = bytes.get_u32_le();
        let inside = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u32_le());
        if inside != (name.start.0, name.end.0, name.term.0, name.timeline.0) {
            return Err("it is another chunk than its name says");
        }
        bytes.advance(4);
        if bytes.len() as u64 != name.end.bytes_since(name.start) {
            return Err("it is not as long as its name says");
        }
        Ok(WalChunk { name, ends_at_record: flags & ENDS_AT_RECORD != 0, wal: bytes })
    }
}

impl WalArchive {
    /// The archive of a branch.
    pub fn new(storage: Storage, log: LogName) -> WalArchive {
        WalArchive { storage, log }
    }

    /// The branch.
    pub fn log(&self) -> &LogName {
        &self.log
    }

    /// The archive of another branch in the same storage.
    pub fn of(&self, log: LogName) -> WalArchive {
        WalArchive { storage: self.storage.clone(), log }
    }

    /// Every chunk, in order of position.
    ///
    /// # Errors
    /// The store failed.
    pub async fn list(&self) -> Result<Vec<WalChunkName>> {
        let folder = page_store::wal_folder(&self.log.project, self.log.branch);
        let objects = self.storage.list(&folder, None).await?;
        let mut chunks: Vec<_> =
            objects.iter().filter_map(|object| WalChunkName::parse(&object.location)).collect();
        chunks.sort_by_key(|chunk| (chunk.start, chunk.end, chunk.term));
        Ok(chunks)
    }

    /// Puts a chunk; it is there for good when this returns.
    ///
    /// # Errors
    /// The store failed.
    pub async fn put(&self, chunk: &WalChunk) -> Result<()> {
        let path = chunk.name.path(&self.log.project, self.log.branch);
        // One of that name is ours too: a term has one compute, and the answer to its first attempt was lost.
        match self.storage.put_if_absent(&path, chunk.encode()).await? {
            Put::Created | Put::NameTaken => Ok(()),
        }
    }

    /// Reads a chunk.
    ///
    /// # Errors
    /// The store failed, or the chunk is missing or damaged.
    pub async fn get(&self, name: WalChunkName) -> Result<WalChunk> {
        let path = name.path(&self.log.project, self.log.branch);
        let bytes = self
            .storage
            .get(&path, SEGMENT + HEADER as u64)
            .await?
            .ok_or_else(|| CoreError::ObjectMissing { object: self.storage.name_of(&path) })?;
        WalChunk::decode(name, bytes).map_err(|reason| CoreError::ObjectDamaged {
            object: self.storage.name_of(&path),
            reason: reason.to_owned(),
        })
    }

    /// Claims a term for one compute: with `durability: store`, what makes terms unique and a late compute notice.
    /// `false`: another has it. Lower claims have done their work and go.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn claim(&self, term: Term) -> Result<bool> {
        let claim = self.claims().join(claim_name(term));
        let claimed = self.storage.put_if_absent(&claim, Bytes::from_static(b"\n")).await?;
        if claimed == Put::NameTaken {
            return Ok(false);
        }
        for object in self.storage.list(&self.claims(), None).await? {
            if claimed_term(&object.location).is_some_and(|claimed| claimed < term) {
                self.storage.delete(&object.location).await?;
            }
        }
        Ok(true)
    }

    /// The highest term that was claimed.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn highest_claim(&self) -> Result<Term> {
        let objects = self.storage.list(&self.claims(), None).await?;
        Ok(objects.iter().filter_map(|object| claimed_term(&object.location)).max().unwrap_or_default())
    }

    fn claims(&self) -> Path {
        let LogName { project, branch } = &self.log;
        Path::from("projects").join(project.as_str()).join("claims").join(branch.to_string())
    }

    /// Deletes the chunks that lie wholly below `below`; returns how many.
    ///
    /// # Errors
    /// The store failed; some may be gone.
    pub async fn trim(&self, below: Lsn) -> Result<usize> {
        let old: Vec<_> = self.list().await?.into_iter().filter(|chunk| chunk.end <= below).collect();
        for chunk in &old {
            self.storage.delete(&chunk.path(&self.log.project, self.log.branch)).await?;
        }
        Ok(old.len())
    }

    /// The end of the last whole record of an unbroken stretch of chunks, with the chunk it is in: how far the archive
    /// alone can bring the branch.
    ///
    /// # Errors
    /// The store failed, or a chunk is missing or damaged.
    pub async fn end_of_records(&self, chunks: &[WalChunkName]) -> Result<Option<WalChunkName>> {
        let Some(first) = chunks.first() else { return Ok(None) };
        let covered = cover(chunks, first.start, Lsn(u64::MAX));
        for piece in covered.iter().rev() {
            // A chunk whose end a higher term overrules ends nowhere in particular.
            if piece.to == piece.chunk.end && self.get(piece.chunk).await?.ends_at_record {
                return Ok(Some(piece.chunk));
            }
        }
        Ok(None)
    }
}

fn claim_name(term: Term) -> String {
    format!("{:020}.claim", term.0)
}

fn claimed_term(path: &Path) -> Option<Term> {
    path.filename()?.strip_suffix(".claim")?.parse().ok().map(Term)
}

/// A part of a chunk that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Covered {
    pub(crate) chunk: WalChunkName,
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
}

/// Which chunks give the WAL in `from..to`, as far as it is there without a gap.
pub(crate) fn cover(chunks: &[WalChunkName], from: Lsn, to: Lsn) -> Vec<Covered> {
    let mut newest_first: Vec<_> = chunks.to_vec();
    newest_first.sort_by_key(|chunk| (std::cmp::Reverse(chunk.term), chunk.start));
    let mut counting = Vec::new();
    let (mut overruled_from, mut next_overruled, mut term) = (u64::MAX, u64::MAX, None);
    for chunk in newest_first {
        if term != Some(chunk.term) {
            overruled_from = next_overruled;
            term = Some(chunk.term);
        }
        next_overruled = next_overruled.min(chunk.start.0);
        counting.push(Covered { chunk, from: chunk.start, to: Lsn(chunk.end.0.min(overruled_from)) });
    }
    counting.sort_by_key(|part| (part.from, part.to));
    let (mut covered, mut position) = (Vec::new(), from);
    let mut parts = counting.into_iter().peekable();
    while position < to {
        let mut best: Option<Covered> = None;
        while let Some(part) = parts.next_if(|part| part.from <= position) {
            if part.to > position && best.is_none_or(|best| part.to > best.to) {
                best = Some(part);
            }
        }
        let Some(best) = best else { break };
        let end = best.to.min(to);
        covered.push(Covered { from: position, to: end, ..best });
        position = end;
    }
    covered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Timeline;

    fn chunk(start: u64, end: u64, term: u64) -> WalChunkName {
        WalChunkName { timeline: Timeline(1), start: Lsn(start), end: Lsn(end), term: Term(term) }
    }

    fn covered(chunks: &[WalChunkName], from: u64, to: u64) -> Vec<(u64, u64, u64)> {
        cover(chunks, Lsn(from), Lsn(to)).iter().map(|c| (c.from.0, c.to.0, c.chunk.term.0)).collect()
    }

    #[test]
    fn a_chunk_that_a_fenced_compute_put_late_does_not_count() {
        let chunks = [chunk(0, 100, 1), chunk(100, 150, 1), chunk(100, 120, 2)];
        assert_eq!(covered(&chunks, 0, 1000), [(0, 100, 1), (100, 120, 2)]);
        assert_eq!(covered(&chunks, 10, 50), [(10, 50, 1)]);
        assert_eq!(covered(&chunks, 130, 1000), []);
    }

    #[test]
    fn chunks_that_overlap_or_repeat_are_read_once_and_a_gap_ends_the_reading() {
        let chunks = [chunk(0, 40, 1), chunk(0, 90, 1), chunk(30, 60, 1), chunk(90, 95, 1), chunk(97, 99, 1)];
        assert_eq!(covered(&chunks, 5, 1000), [(5, 90, 1), (90, 95, 1)]);
    }

    #[test]
    fn a_chunk_changed_anywhere_is_damaged() {
        let name = chunk(64, 72, 3);
        let chunk = WalChunk { name, ends_at_record: true, wal: Bytes::from_static(b"8 bytes.") };
        let bytes = chunk.encode();
        assert_eq!(WalChunk::decode(name, bytes.clone()), Ok(chunk));
        for at in 0..bytes.len() {
            let mut bad = bytes.to_vec();
            bad[at] ^= 4;
            assert!(WalChunk::decode(name, bad.into()).is_err(), "byte {at}");
            assert!(WalChunk::decode(name, bytes.slice(..at)).is_err());
        }
        assert!(WalChunk::decode(WalChunkName { term: Term(4), ..name }, bytes).is_err());
    }
}
