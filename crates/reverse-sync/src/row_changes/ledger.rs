//! Which rows differ between what was taken away and what was put in place, however many there are.
//!
//! Every row is entered as two 128-bit hashes, of its key and of all its values, with its file and its place there:
//! 48 bytes, whatever the row holds. Entries are dealt out to buckets by their key's hash; what does not fit in
//! memory goes to one unlinked file. Then one bucket after another is sorted, and in each key
//!
//! ```text
//!   rows taken away   r1 r1 r2        equal ones cancel, one for one: a rewritten file's untouched rows
//!   rows put in       r1 r3           ------------------------------------------------------------------
//!   left              r1 r2 | r3      pairs: an update from r1 to r3; the rest: r2 was deleted
//! ```
//!
//! What comes out is a set of row places for each file and kind of change, for a second reading of just those rows.
//!
//! **The bound**: 48 MiB of entries in memory, a bucket (a 1,024th of the rows, 48 bytes each) while it is sorted, and
//! the bitmaps of the rows that differ. On disk 48 bytes a row. Two different rows share a hash with a probability of
//! n²/2¹²⁹: one in 10²⁰ for a billion rows. The hashes are keyed at random, so nobody can arrange it.

use super::ChangeKind;
use roaring::RoaringTreemap;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// A billion rows make a million entries a bucket, 48 MB.
const BUCKETS: usize = 1024;

/// 48 MiB of entries.
const ENTRIES_IN_MEMORY: usize = 1 << 20;

const ENTRY_BYTES: usize = 48;

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    /// The hash of its key.
    pub key: u128,
    /// The hash of all of it.
    pub row: u128,
    /// Whether it was put in or taken away. Sorts before the file, so that what was taken away comes first.
    pub is_added: bool,
    /// The file, by its number in the caller's list.
    pub file: u32,
    /// The row's place in the file.
    pub position: u64,
}

/// The rows of one file that changed, by how.
#[derive(Debug, Default)]
pub(crate) struct Differing {
    by_kind: [RoaringTreemap; 4],
}

impl Differing {
    /// The rows to which this happened.
    pub(crate) fn rows(&self, kind: ChangeKind) -> &RoaringTreemap {
        let [insert, before, after, delete] = &self.by_kind;
        match kind {
            ChangeKind::Insert => insert,
            ChangeKind::UpdatePreimage => before,
            ChangeKind::UpdatePostimage => after,
            ChangeKind::Delete => delete,
        }
    }

    fn add(&mut self, kind: ChangeKind, position: u64) {
        let [insert, before, after, delete] = &mut self.by_kind;
        match kind {
            ChangeKind::Insert => insert,
            ChangeKind::UpdatePreimage => before,
            ChangeKind::UpdatePostimage => after,
            ChangeKind::Delete => delete,
        }
        .insert(position);
    }
}

/// Rows on their way into a comparison.
#[derive(Debug)]
pub(crate) struct Ledger {
    buckets: Vec<Bucket>,
    in_memory: usize,
    limit: usize,
    spill: Option<File>,
}

#[derive(Debug, Default)]
struct Bucket {
    entries: Vec<Entry>,
    /// Where the rest lies in the spill file: offset and number of entries.
    spilled: Vec<(u64, usize)>,
}

impl Ledger {
    pub(crate) fn new() -> Ledger {
        Ledger::with_limit(ENTRIES_IN_MEMORY)
    }

    fn with_limit(limit: usize) -> Ledger {
        let buckets = std::iter::repeat_with(Bucket::default).take(BUCKETS).collect();
        Ledger { buckets, in_memory: 0, limit, spill: None }
    }

    /// Enters a row.
    pub(crate) fn enter(&mut self, entry: Entry) {
        // The low bits: the bucket's entries are sorted by the high ones.
        let bucket = usize::try_from(entry.key % BUCKETS as u128).unwrap_or(0);
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            bucket.entries.push(entry);
            self.in_memory += 1;
        }
    }

    /// Whether [`Ledger::spill`] is due.
    pub(crate) fn is_full(&self) -> bool {
        self.in_memory >= self.limit
    }

    /// Moves what is in memory to disk.
    pub(crate) fn spill(&mut self, folder: &Path) -> io::Result<()> {
        let file = match &mut self.spill {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(folder)?),
        };
        let mut offset = file.seek(SeekFrom::End(0))?;
        let mut out = io::BufWriter::new(file);
        for bucket in self.buckets.iter_mut().filter(|bucket| !bucket.entries.is_empty()) {
            for entry in &bucket.entries {
                out.write_all(&entry.to_bytes())?;
            }
            let count = bucket.entries.len();
            bucket.spilled.push((offset, count));
            offset += (count * ENTRY_BYTES) as u64;
            bucket.entries = Vec::new();
        }
        self.in_memory = 0;
        out.flush()
    }

    /// The rows that differ, by file.
    pub(crate) fn settle(mut self) -> io::Result<BTreeMap<u32, Differing>> {
        let mut differing = BTreeMap::new();
        for mut bucket in std::mem::take(&mut self.buckets) {
            if let Some(file) = &mut self.spill {
                bucket.read_back(file)?;
            }
            bucket.entries.sort_unstable();
            for key in bucket.entries.chunk_by(|a, b| a.key == b.key) {
                settle_key(key, &mut differing);
            }
        }
        Ok(differing)
    }
}

impl Bucket {
    fn read_back(&mut self, file: &mut File) -> io::Result<()> {
        let mut bytes = [0; ENTRY_BYTES];
        for (offset, count) in std::mem::take(&mut self.spilled) {
            file.seek(SeekFrom::Start(offset))?;
            let mut part = io::BufReader::new(&mut *file).take((count * ENTRY_BYTES) as u64);
            for _ in 0..count {
                part.read_exact(&mut bytes)?;
                self.entries.push(Entry::from_bytes(&bytes));
            }
        }
        Ok(())
    }
}

/// Cancels equal rows of one key and pairs what is left. Entries come sorted.
fn settle_key(entries: &[Entry], differing: &mut BTreeMap<u32, Differing>) {
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    for equal in entries.chunk_by(|a, b| a.row == b.row) {
        let (gone, new) = equal.split_at(equal.partition_point(|entry| !entry.is_added));
        let cancelled = gone.len().min(new.len());
        removed.extend(gone.iter().skip(cancelled));
        added.extend(new.iter().skip(cancelled));
    }
    let pairs = removed.len().min(added.len());
    let mut note = |rows: Vec<&Entry>, paired: ChangeKind, alone: ChangeKind| {
        for (at, entry) in rows.into_iter().enumerate() {
            let kind = if at < pairs { paired } else { alone };
            differing.entry(entry.file).or_default().add(kind, entry.position);
        }
    };
    note(removed, ChangeKind::UpdatePreimage, ChangeKind::Delete);
    note(added, ChangeKind::UpdatePostimage, ChangeKind::Insert);
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        let place = (u64::from(self.file) << 1) | u64::from(self.is_added);
        let parts = self.key.to_le_bytes().into_iter().chain(self.row.to_le_bytes());
        let parts = parts.chain(place.to_le_bytes()).chain(self.position.to_le_bytes());
        for (to, from) in bytes.iter_mut().zip(parts) {
            *to = from;
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Entry {
        let mut parts = bytes.iter().copied();
        let mut number = |width: usize| {
            parts
                .by_ref()
                .take(width)
                .enumerate()
                .fold(0, |all, (at, byte)| all | u128::from(byte) << (8 * at))
        };
        let (key, row, place, position) = (number(16), number(16), number(8), number(8));
        Entry {
            key,
            row,
            is_added: place & 1 == 1,
            file: u32::try_from(place >> 1).unwrap_or(u32::MAX),
            position: u64::try_from(position).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: u128, row: u128, is_added: bool, position: u64) -> Entry {
        Entry { key, row, is_added, file: u32::from(is_added), position }
    }

    fn settle(entries: &[Entry], limit: usize) -> BTreeMap<u32, Differing> {
        let mut ledger = Ledger::with_limit(limit);
        for entry in entries {
            ledger.enter(*entry);
            if ledger.is_full() {
                ledger.spill(&std::env::temp_dir()).unwrap();
            }
        }
        ledger.settle().unwrap()
    }

    fn rows(differing: &BTreeMap<u32, Differing>, file: u32, kind: ChangeKind) -> Vec<u64> {
        differing.get(&file).map(|file| file.rows(kind).iter().collect()).unwrap_or_default()
    }

    #[test]
    fn an_entry_survives_the_way_through_the_spill_file() {
        let entry =
            Entry { key: u128::MAX - 5, row: 1 << 100, is_added: true, file: u32::MAX, position: 1 << 60 };
        assert_eq!(Entry::from_bytes(&entry.to_bytes()), entry);
    }

    #[test]
    fn one_updated_row_of_a_rewritten_file_is_all_that_differs_also_when_spilled() {
        let mut entries = Vec::new();
        for at in 0..5_000_u128 {
            let position = u64::try_from(at).unwrap();
            entries.push(entry(at, at, false, position));
            entries.push(entry(at, if at == 777 { 1 << 90 } else { at }, true, position));
        }
        for limit in [usize::MAX, 100] {
            let differing = settle(&entries, limit);
            assert_eq!(rows(&differing, 0, ChangeKind::UpdatePreimage), [777]);
            assert_eq!(rows(&differing, 1, ChangeKind::UpdatePostimage), [777]);
            assert!(rows(&differing, 0, ChangeKind::Delete).is_empty());
            assert!(rows(&differing, 1, ChangeKind::Insert).is_empty());
        }
    }

    #[test]
    fn equal_rows_cancel_one_for_one() {
        let entries = [
            entry(1, 1, false, 0),
            entry(1, 1, false, 1),
            entry(1, 1, false, 2),
            entry(1, 1, true, 0),
            entry(2, 9, true, 1),
        ];
        let differing = settle(&entries, usize::MAX);
        assert_eq!(rows(&differing, 0, ChangeKind::Delete).len(), 2);
        assert_eq!(rows(&differing, 1, ChangeKind::Insert), [1]);
    }

    #[test]
    fn of_several_rows_of_one_key_as_many_as_possible_are_updates() {
        let entries = [entry(1, 1, false, 0), entry(1, 2, false, 1), entry(1, 3, true, 0)];
        let differing = settle(&entries, usize::MAX);
        assert_eq!(rows(&differing, 0, ChangeKind::UpdatePreimage).len(), 1);
        assert_eq!(rows(&differing, 0, ChangeKind::Delete).len(), 1);
        assert_eq!(rows(&differing, 1, ChangeKind::UpdatePostimage), [0]);
    }
}
