//! A page, and how Postgres says that it is whole.
//!
//! Only files that hold relations carry checksums: those named by numbers below `base/<database>` and
//! `global`. The checksum is that of `storage/checksum_impl.h`, an FNV-1a variant that hashes 32 columns
//! of the page side by side; it includes the page's number in its *relation*, which goes on from one
//! 1 GiB segment file to the next. A page that was never filled is all zeros and has none.

use std::fmt;

use bytes::Bytes;

/// Postgres's block size; servers built with another one are not supported.
pub const PAGE_BYTES: usize = 8192;

/// Pages in a segment file of a relation (`RELSEG_SIZE`).
const SEGMENT_PAGES: u32 = 131_072;

const COLUMNS: usize = 32;
const PRIME: u32 = 16_777_619;
/// Where each column starts; arbitrary, and part of the format.
const SEEDS: [u32; COLUMNS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];
/// `pd_checksum` lies in the upper half of this 32-bit word of the page header.
const CHECKSUM_WORD: usize = 2;
/// `pd_upper`: zero on a page that was never filled.
const UPPER_AT: usize = 14;
const CHECKSUM_AT: usize = 8;

/// The bytes of one page.
#[derive(Clone, PartialEq, Eq)]
pub struct Page(Bytes);

impl Page {
    /// Takes bytes that are exactly one page.
    pub fn new(bytes: Bytes) -> Option<Page> {
        (bytes.len() == PAGE_BYTES).then_some(Page(bytes))
    }

    /// Copies what may be less than a page (the end of a file that is none of a relation's), filled up
    /// with zeros; bytes past a page are left out.
    pub fn padded(bytes: &[u8]) -> Page {
        let mut page = bytes.get(..PAGE_BYTES).unwrap_or(bytes).to_vec();
        page.resize(PAGE_BYTES, 0);
        Page(page.into())
    }

    /// A page that was never written.
    pub fn zeroed() -> Page {
        static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        Page(Bytes::from_static(&ZEROS))
    }

    /// The page's bytes, [`PAGE_BYTES`] of them.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Page(crc {:08x})", crc32fast::hash(&self.0))
    }
}

/// Why a page of a relation cannot be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageDefect {
    /// The header carries another checksum than the bytes have.
    #[error("its checksum is {found}, and its bytes have {computed}")]
    Checksum {
        /// What the page says.
        found: u16,
        /// What it should say.
        computed: u16,
    },
    /// A page that says it was never filled, but was.
    #[error("its header is empty but the page is not")]
    NotEmpty,
    /// Not a whole page.
    #[error("it has {0} bytes instead of 8192")]
    Length(usize),
}

/// A file of the data directory whose pages carry checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationFile {
    /// The number of the file's first page in its relation.
    pub first_block: u32,
}

impl RelationFile {
    /// Looks at a path below the data directory: `base/5/16384`, `base/5/16384_fsm.1`, `global/1262`.
    pub fn of(path: &str) -> Option<RelationFile> {
        let name = match path.split_once('/')? {
            ("global", name) => name,
            ("base", rest) => {
                let (database, name) = rest.split_once('/')?;
                is_number(database).then_some(name)?
            }
            _ => return None,
        };
        let (relation, segment) = name.split_once('.').unwrap_or((name, "0"));
        let (node, fork) = relation.split_once('_').unwrap_or((relation, ""));
        if !is_number(node) || !matches!(fork, "" | "fsm" | "vm" | "init") || !is_number(segment) {
            return None;
        }
        Some(RelationFile { first_block: segment.parse::<u32>().ok()?.checked_mul(SEGMENT_PAGES)? })
    }

    /// Checks a page of this file.
    ///
    /// # Errors
    /// The page is neither all zeros nor carries the checksum of its bytes and place.
    pub fn verify(self, block: u32, page: &[u8]) -> Result<(), PageDefect> {
        if page.len() != PAGE_BYTES {
            return Err(PageDefect::Length(page.len()));
        }
        let half = |at: usize| {
            page.get(at..).and_then(<[u8]>::first_chunk::<2>).map_or(0, |bytes| u16::from_ne_bytes(*bytes))
        };
        if half(UPPER_AT) == 0 {
            return if page.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(PageDefect::NotEmpty) };
        }
        let (found, computed) = (half(CHECKSUM_AT), checksum(page, self.first_block.wrapping_add(block)));
        if found == computed { Ok(()) } else { Err(PageDefect::Checksum { found, computed }) }
    }
}

/// Checks a page of any file; those without checksums pass.
///
/// # Errors
/// As [`RelationFile::verify`].
pub fn verify_page(path: &str, block: u32, page: &[u8]) -> Result<(), PageDefect> {
    RelationFile::of(path).map_or(Ok(()), |relation| relation.verify(block, page))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 10 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The checksum that Postgres writes into a page of [`PAGE_BYTES`] at this place in its relation.
fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = SEEDS;
    let round = |sum: u32, value: u32| {
        let mixed = sum ^ value;
        mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
    };
    for (row_number, row) in page.chunks_exact(4 * COLUMNS).enumerate() {
        for (column, (sum, word)) in sums.iter_mut().zip(row.as_chunks::<4>().0).enumerate() {
            let mut value = u32::from_ne_bytes(*word);
            if row_number == 0 && column == CHECKSUM_WORD {
                // The field itself counts as zero.
                let [_, _, flags_low, flags_high] = *word;
                value = u32::from_ne_bytes([0, 0, flags_low, flags_high]);
            }
            *sum = round(*sum, value);
        }
    }
    let folded = sums.iter().map(|sum| round(round(*sum, 0), 0)).fold(0, |all, sum| all ^ sum);
    // Never zero: that stands for "no checksum" elsewhere.
    u16::try_from((folded ^ block) % 65_535 + 1).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page as Postgres would write it: some header, some bytes, the right checksum.
    fn page(block: u32, fill: u8) -> Vec<u8> {
        let mut page = vec![fill; PAGE_BYTES];
        page[UPPER_AT..UPPER_AT + 2].copy_from_slice(&8192u16.to_ne_bytes());
        let sum = checksum(&page, block);
        page[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.to_ne_bytes());
        page
    }

    #[test]
    fn relation_files_are_told_from_others() {
        let first = |path| RelationFile::of(path).map(|relation| relation.first_block);
        assert_eq!(first("base/5/16384"), Some(0));
        assert_eq!(first("base/5/16384.2"), Some(2 * SEGMENT_PAGES));
        assert_eq!(first("base/5/16384_fsm.1"), Some(SEGMENT_PAGES));
        assert_eq!(first("global/1262_vm"), Some(0));
        for path in [
            "global/pg_control",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/pgsql_tmp/7.0",
            "base/5/t3_16384",
            "pg_xact/0000",
            "base/5",
            "base/5/16384_fsm.x",
            "base/5/1.99999",
            "PG_VERSION",
            "base/5/16384.",
        ] {
            assert_eq!(first(path), None, "{path}");
        }
    }

    #[test]
    fn a_page_at_another_place_or_with_another_byte_is_noticed() {
        let relation = RelationFile::of("base/5/16384.1").unwrap();
        let good = page(SEGMENT_PAGES + 7, 0x5A);
        relation.verify(7, &good).unwrap();
        assert!(matches!(relation.verify(8, &good), Err(PageDefect::Checksum { .. })));
        for at in (0..PAGE_BYTES).step_by(61) {
            let mut damaged = good.clone();
            damaged[at] ^= 0x10;
            assert!(relation.verify(7, &damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_page_of_zeros_is_legal_and_one_nearly_so_is_not() {
        let relation = RelationFile::of("base/5/16384").unwrap();
        let mut page = vec![0; PAGE_BYTES];
        relation.verify(3, &page).unwrap();
        page[8000] = 1;
        assert_eq!(relation.verify(3, &page), Err(PageDefect::NotEmpty));
        assert_eq!(relation.verify(3, &page[1..]), Err(PageDefect::Length(PAGE_BYTES - 1)));
        verify_page("PG_VERSION", 0, b"18\n").unwrap();
    }
}
