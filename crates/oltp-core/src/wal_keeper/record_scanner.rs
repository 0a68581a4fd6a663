//! Where WAL records end.
//!
//! A keeper stores bytes, but what counts is records: a log that ends inside one is cut back to the end of the
//! last whole record, and only whole records are archived. This scanner is pushed the bytes of WAL in order,
//! in pieces of any size, and knows after each piece the end of the last record that is complete and right.
//! It keeps a record's running checksum and nothing else, so a record of a gigabyte costs no memory.
//!
//! ```text
//!   page (8 KiB)                                                   next page
//!   ├ header 24 ┬ record ─────────┬ pad ┬ record … ────────────────┤├ header 24: CONTRECORD, 812 to go ┬ …
//!   └ header 40 on the first page of a segment (16 MiB)
//!   record: length u32 · xid u32 · start of the one before u64 · info u8 · resource manager u8 · 2 · CRC-32C u32
//! ```
//!
//! The rules are those of xlogreader.c and xlogrecord.h, the same in PostgreSQL 17 and 18. Stale bytes of
//! another time cannot pass for records: each names the position of the one before it, each page its own.

use wal_decoder::Lsn;

/// The size of a page of WAL (`XLOG_BLCKSZ`).
pub(crate) const PAGE: u64 = 8192;
/// The size of a segment of WAL (`initdb --wal-segsize`, 16 MiB unless told otherwise, which we do not).
pub(crate) const SEGMENT: u64 = 16 << 20;

/// `XLOG_PAGE_MAGIC` of PostgreSQL 17 and 18.
const MAGICS: [u16; 2] = [0xD116, 0xD118];
const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;
const RECORD_HEADER: usize = 24;
/// The part of a record's header that its checksum covers: all before the checksum.
const SUMMED_HEADER: usize = 20;
/// `XLogRecordMaxSize`, just under a gigabyte.
const MAX_RECORD: u32 = 1020 << 20;
/// Records begin at multiples of this (`MAXIMUM_ALIGNOF`).
const ALIGNMENT: u64 = 8;

/// `XLP_FIRST_IS_CONTRECORD`: the page begins with the rest of a record.
const CONTINUES: u16 = 0x1;
/// `XLP_LONG_HEADER`.
const LONG: u16 = 0x2;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the record before was given up half-way, another begins.
const OVERWRITES: u16 = 0x8;
/// `XLP_ALL_FLAGS`.
const FLAGS: u16 = 0xF;
/// Resource manager and kind of the record after which the rest of the segment is not used.
const XLOG_MANAGER: u8 = 0;
const XLOG_SWITCH: u8 = 0x40;

/// Why bytes cannot be WAL that continues what came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotWal {
    /// The page or record that is wrong.
    pub(crate) at: Lsn,
    pub(crate) problem: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Expecting {
    /// The first byte of a record.
    Record,
    /// The rest of a record's header, so much of which is there.
    Header { got: usize },
    /// This many more bytes of the record.
    Body { rest: u32 },
    /// Bytes up to the next multiple of eight.
    Padding,
    /// The rest of a segment after a switch.
    Unused,
}

/// See the module's essay.
#[derive(Debug, Clone)]
pub(crate) struct RecordScanner {
    position: Lsn,
    end: Lsn,
    expecting: Expecting,
    /// Where the record under way began.
    record: Lsn,
    /// Where the last whole record began; `None` when that is not known.
    last_record: Option<Lsn>,
    header: [u8; RECORD_HEADER],
    body_sum: u32,
    /// The page header under way: so much of it is there.
    page_header: [u8; LONG_HEADER],
    page_header_got: usize,
    broken: Option<NotWal>,
}

impl RecordScanner {
    /// Begins at `at`, where a record ends; `last_record` is where that one began, if known.
    pub(crate) fn new(at: Lsn, last_record: Option<Lsn>) -> RecordScanner {
        RecordScanner {
            position: at,
            end: at,
            expecting: Expecting::Record,
            record: at,
            last_record,
            header: [0; RECORD_HEADER],
            body_sum: 0,
            page_header: [0; LONG_HEADER],
            page_header_got: 0,
            broken: None,
        }
    }

    /// The end of the last whole record.
    pub(crate) fn end(&self) -> Lsn {
        self.end
    }

    /// Where the last whole record began.
    pub(crate) fn last_record(&self) -> Option<Lsn> {
        self.last_record
    }

    /// How far it has read.
    pub(crate) fn position(&self) -> Lsn {
        self.position
    }

    /// Reads on. After an error it reads nothing more; [`RecordScanner::end`] stays what it was.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<(), NotWal> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        while !bytes.is_empty() {
            let step = match (self.expecting, self.in_page_header()) {
                (Expecting::Unused, _) => Ok(self.skip(bytes)),
                (_, true) => self.take_page_header(bytes),
                (Expecting::Record | Expecting::Header { .. }, false) => self.take_header(bytes),
                (Expecting::Body { rest }, false) => self.take_body(bytes, rest),
                (Expecting::Padding, false) => Ok(self.skip_padding(bytes)),
            };
            match step {
                Ok(taken) => {
                    bytes = bytes.get(taken..).unwrap_or_default();
                    self.position.0 = self.position.0.saturating_add(taken as u64);
                    self.settle();
                }
                Err(broken) => {
                    self.broken = Some(broken);
                    return Err(broken);
                }
            }
        }
        Ok(())
    }

    fn in_page_header(&self) -> bool {
        self.page_header_got > 0 || self.position.0.is_multiple_of(PAGE)
    }

    fn to_page_end(&self) -> usize {
        (PAGE - self.position.0 % PAGE) as usize
    }

    fn wrong(&self, at: Lsn, problem: &'static str) -> NotWal {
        NotWal { at, problem }
    }

    fn take_page_header(&mut self, bytes: &[u8]) -> Result<usize, NotWal> {
        let got = self.page_header_got;
        let page = Lsn(self.position.0 - got as u64);
        let long = page.0.is_multiple_of(SEGMENT);
        let length = if long { LONG_HEADER } else { SHORT_HEADER };
        let taken = copy_into(self.page_header.get_mut(got..length), bytes);
        self.page_header_got = got + taken;
        if self.page_header_got < length {
            return Ok(taken);
        }
        self.page_header_got = 0;
        let header = self.page_header;
        let flags = u16::from_le_bytes(array(&header, 2));
        let rest = u32::from_le_bytes(array(&header, 16));
        if !MAGICS.contains(&u16::from_le_bytes(array(&header, 0))) {
            return Err(self.wrong(page, "the page is not one of PostgreSQL 17 or 18"));
        }
        if u64::from_le_bytes(array(&header, 8)) != page.0 {
            return Err(self.wrong(page, "the page belongs to another position"));
        }
        if flags & !FLAGS != 0 || (flags & LONG != 0) != long {
            return Err(self.wrong(page, "the page's flags are not those of its place"));
        }
        if long
            && (u64::from(u32::from_le_bytes(array(&header, 32))) != SEGMENT
                || u64::from(u32::from_le_bytes(array(&header, 36))) != PAGE)
        {
            return Err(self.wrong(page, "its segments are not of 16 MiB, or its pages not of 8 KiB"));
        }
        if flags & OVERWRITES != 0 {
            // Whatever was under way will never be completed.
            self.expecting = Expecting::Record;
        } else if self.record_rest() != (flags & CONTINUES != 0).then_some(rest) {
            return Err(self.wrong(page, "the page does not continue the record before it"));
        }
        Ok(taken)
    }

    /// What is missing of the record under way.
    fn record_rest(&self) -> Option<u32> {
        match self.expecting {
            Expecting::Record | Expecting::Padding | Expecting::Unused => None,
            Expecting::Header { got } => Some(self.record_length().saturating_sub(got as u32)),
            Expecting::Body { rest } => Some(rest),
        }
    }

    fn record_length(&self) -> u32 {
        u32::from_le_bytes(array(&self.header, 0))
    }

    fn take_header(&mut self, bytes: &[u8]) -> Result<usize, NotWal> {
        let got = match self.expecting {
            Expecting::Header { got } => got,
            _ => {
                self.record = self.position;
                0
            }
        };
        let room = self.to_page_end().min(bytes.len());
        let taken = copy_into(self.header.get_mut(got..), bytes.get(..room).unwrap_or_default());
        let got = got + taken;
        self.expecting = Expecting::Header { got };
        // The length stands in the first four bytes, which are always on one page.
        if got >= 4 {
            let length = self.record_length();
            if length == 0 {
                return Err(self.wrong(self.record, "there is no record"));
            }
            if (length as usize) < RECORD_HEADER || length > MAX_RECORD {
                return Err(self.wrong(self.record, "the record's length is impossible"));
            }
        }
        if got == RECORD_HEADER {
            let before = Lsn(u64::from_le_bytes(array(&self.header, 8)));
            if self.last_record.map_or(before >= self.record, |last| last != before) {
                return Err(self.wrong(self.record, "the record does not follow the one before it"));
            }
            self.body_sum = 0;
            self.expecting = Expecting::Body { rest: self.record_length() - RECORD_HEADER as u32 };
        }
        Ok(taken)
    }

    fn take_body(&mut self, bytes: &[u8], rest: u32) -> Result<usize, NotWal> {
        let taken = self.to_page_end().min(bytes.len()).min(rest as usize);
        self.body_sum = crc32c::crc32c_append(self.body_sum, bytes.get(..taken).unwrap_or_default());
        let rest = rest - taken as u32;
        self.expecting = Expecting::Body { rest };
        if rest == 0 {
            self.check_sum()?;
        }
        Ok(taken)
    }

    fn check_sum(&self) -> Result<(), NotWal> {
        let summed = self.header.get(..SUMMED_HEADER).unwrap_or_default();
        let right = u32::from_le_bytes(array(&self.header, SUMMED_HEADER));
        if crc32c::crc32c_append(self.body_sum, summed) == right {
            Ok(())
        } else {
            Err(self.wrong(self.record, "the record's checksum is wrong"))
        }
    }

    fn skip_padding(&self, bytes: &[u8]) -> usize {
        let padding = self.position.0.next_multiple_of(ALIGNMENT) - self.position.0;
        bytes.len().min(padding as usize)
    }

    fn skip(&self, bytes: &[u8]) -> usize {
        let unused = self.position.0.next_multiple_of(SEGMENT) - self.position.0;
        bytes.len().min(usize::try_from(unused).unwrap_or(usize::MAX))
    }

    /// After each step: a record may now be whole.
    fn settle(&mut self) {
        if let Expecting::Body { rest: 0 } = self.expecting {
            self.expecting = Expecting::Padding;
        }
        if matches!(self.expecting, Expecting::Padding) && self.position.0.is_multiple_of(ALIGNMENT) {
            let manager = self.header.get(17).copied();
            let kind = self.header.get(16).map(|info| info & 0xF0);
            self.last_record = Some(self.record);
            self.expecting = if (manager, kind) == (Some(XLOG_MANAGER), Some(XLOG_SWITCH)) {
                Expecting::Unused
            } else {
                self.end = self.position;
                Expecting::Record
            };
        }
        if matches!(self.expecting, Expecting::Unused) && self.position.0.is_multiple_of(SEGMENT) {
            self.end = self.position;
            self.expecting = Expecting::Record;
        }
    }
}

/// Copies as much as fits and says how much that was.
fn copy_into(target: Option<&mut [u8]>, source: &[u8]) -> usize {
    let target = target.unwrap_or_default();
    let length = target.len().min(source.len());
    for (to, from) in target.iter_mut().zip(source) {
        *to = *from;
    }
    length
}

/// `N` bytes of a header from `at` on; the callers' offsets lie inside.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk().copied()).unwrap_or([0; N])
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes WAL as Postgres lays it out: for tests that need a log of a given shape.
    pub(crate) struct WalWriter {
        pub(crate) position: Lsn,
        pub(crate) bytes: Vec<u8>,
        last_record: Lsn,
        magic: u16,
    }

    impl WalWriter {
        pub(crate) fn new(at: Lsn, last_record: Lsn) -> WalWriter {
            WalWriter { position: at, bytes: Vec::new(), last_record, magic: 0xD118 }
        }

        fn raw(&mut self, bytes: &[u8]) {
            self.bytes.extend_from_slice(bytes);
            self.position.0 += bytes.len() as u64;
        }

        fn page_header(&mut self, rest: u32) {
            let long = self.position.0.is_multiple_of(SEGMENT);
            let flags = if rest > 0 { CONTINUES } else { 0 } | if long { LONG } else { 0 };
            let mut header = Vec::new();
            header.extend(self.magic.to_le_bytes());
            header.extend(flags.to_le_bytes());
            header.extend(1u32.to_le_bytes());
            header.extend(self.position.0.to_le_bytes());
            header.extend(rest.to_le_bytes());
            header.extend([0; 4]);
            if long {
                header.extend(7u64.to_le_bytes());
                header.extend((SEGMENT as u32).to_le_bytes());
                header.extend((PAGE as u32).to_le_bytes());
            }
            self.raw(&header);
        }

        /// Adds a record with this body; returns its end.
        pub(crate) fn record(&mut self, body: &[u8]) -> Lsn {
            self.record_of(body, 10, 0)
        }

        pub(crate) fn record_of(&mut self, body: &[u8], manager: u8, info: u8) -> Lsn {
            if self.position.0.is_multiple_of(PAGE) {
                self.page_header(0);
            }
            let start = self.position;
            let mut record = Vec::new();
            record.extend(((RECORD_HEADER + body.len()) as u32).to_le_bytes());
            record.extend(3u32.to_le_bytes());
            record.extend(self.last_record.0.to_le_bytes());
            record.extend([info, manager, 0, 0]);
            let sum = crc32c::crc32c_append(crc32c::crc32c(body), &record);
            record.extend(sum.to_le_bytes());
            record.extend(body);
            let mut rest = record.as_slice();
            while !rest.is_empty() {
                if self.position.0.is_multiple_of(PAGE) {
                    self.page_header(rest.len() as u32);
                }
                let room = (PAGE - self.position.0 % PAGE) as usize;
                let (now, later) = rest.split_at(room.min(rest.len()));
                self.raw(now);
                rest = later;
            }
            let padding = self.position.0.next_multiple_of(ALIGNMENT) - self.position.0;
            self.raw(&vec![0; padding as usize]);
            self.last_record = start;
            if (manager, info & 0xF0) == (XLOG_MANAGER, XLOG_SWITCH) {
                let unused = self.position.0.next_multiple_of(SEGMENT) - self.position.0;
                self.raw(&vec![0; unused as usize]);
            }
            self.position
        }
    }

    const START: Lsn = Lsn(3 * SEGMENT + 5 * PAGE + 64);

    fn scan(bytes: &[u8], piece: usize) -> RecordScanner {
        let mut scanner = RecordScanner::new(START, None);
        for piece in bytes.chunks(piece) {
            let _ = scanner.push(piece);
        }
        scanner
    }

    #[test]
    fn a_log_cut_anywhere_ends_after_its_last_whole_record() {
        let mut wal = WalWriter::new(START, Lsn(5));
        let ends: Vec<Lsn> =
            [0, 1, 7, 8, 100, 8000, 20_000, 3].map(|size| wal.record(&vec![9; size])).to_vec();
        for cut in 0..=wal.bytes.len() {
            let position = Lsn(START.0 + cut as u64);
            let expected = ends.iter().rev().find(|end| **end <= position).copied().unwrap_or(START);
            let scanner = scan(&wal.bytes[..cut], 977);
            assert_eq!(scanner.end(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn after_a_switch_the_next_record_begins_in_the_next_segment() {
        let mut wal = WalWriter::new(START, Lsn(5));
        let before = wal.record(b"before");
        let end = wal.record_of(b"", XLOG_MANAGER, XLOG_SWITCH);
        assert!(end.0.is_multiple_of(SEGMENT));
        assert_eq!(scan(&wal.bytes[..wal.bytes.len() - 1], 4096).end(), before);
        assert_eq!(scan(&wal.bytes, 4096).end(), end);
        let last = wal.record(b"in the next segment");
        assert_eq!(scan(&wal.bytes, 65_536).end(), last);
    }

    #[test]
    fn stale_records_of_another_time_do_not_pass() {
        let mut old = WalWriter::new(START, Lsn(5));
        old.record(b"an old record");
        let after = old.record(b"one that came after it");
        let mut new = WalWriter::new(START, Lsn(5));
        let end = new.record(b"a new record of another length");
        let mut mixed = old.bytes.clone();
        mixed[..new.bytes.len()].copy_from_slice(&new.bytes[..new.bytes.len()]);
        assert!(after > end);
        let mut scanner = RecordScanner::new(START, Some(Lsn(5)));
        scanner.push(&mixed).unwrap_err();
        assert_eq!(scanner.end(), end);
        RecordScanner::new(START, Some(Lsn(6))).push(&old.bytes).unwrap_err();
    }

    proptest! {
        #[test]
        fn a_flipped_bit_ends_the_log_no_later_than_its_record(
            sizes in prop::collection::vec(0usize..3000, 1..20), at in any::<prop::sample::Index>(), bit in 0..8u8,
        ) {
            let mut wal = WalWriter::new(START, Lsn(5));
            let ends: Vec<Lsn> = sizes.iter().map(|size| wal.record(&vec![1; *size])).collect();
            let at = at.index(wal.bytes.len());
            let mut bytes = wal.bytes.clone();
            bytes[at] ^= 1 << bit;
            let position = Lsn(START.0 + at as u64);
            // The record that holds the bit, its padding included, and all after it: unless the bit is one that nobody reads.
            let first_lost = ends.iter().find(|end| **end > position).copied().unwrap();
            let whole = scan(&bytes, 500).end();
            let unread = whole == *ends.last().unwrap();
            prop_assert!(whole < first_lost || unread);
            prop_assert!(ends.contains(&whole) || whole == START);
        }

        #[test]
        fn the_size_of_the_pieces_does_not_matter(
            sizes in prop::collection::vec(0usize..9000, 1..8), piece in 1usize..9000,
        ) {
            let mut wal = WalWriter::new(START, Lsn(5));
            for size in sizes {
                wal.record(&vec![4; size]);
            }
            prop_assert_eq!(scan(&wal.bytes, piece).end(), wal.position);
        }

        #[test]
        fn arbitrary_bytes_are_no_records(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
            prop_assert_eq!(scan(&bytes, 1000).end(), START);
        }
    }
}
