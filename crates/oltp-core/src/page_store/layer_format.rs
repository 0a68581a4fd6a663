//! The bytes of a layer; `docs/core-format.md` is the same in prose.
//!
//! ```text
//!   magic | run | run | … | index: one entry of 32 bytes for each run | footer of 40 bytes
//! ```
//!
//! A *run* holds those pages of one aligned window of 16 blocks of a file that the layer has, compressed
//! together. So the pages that are read together lie together, and the place of a page in its run is a
//! count of bits. Runs are sorted by file and window. All numbers are little-endian; each run, the index
//! and the footer carry a CRC-32 (that of zlib), so no flipped bit is ever taken for a page.

use bytes::Bytes;

use super::manifest::LayerRef;
use super::page::{PAGE_BYTES, Page};
use crate::ids::{FileId, PageKey};

pub(super) const MAGIC: [u8; 8] = *b"TWLAYER1";
const END_MAGIC: [u8; 8] = *b"TWLAYEND";
const VERSION: u32 = 1;

/// Blocks in the window of a run: 128 KiB, what one large read of Postgres or the kernel asks for.
pub const WINDOW_BLOCKS: u32 = 16;

const ENTRY_BYTES: usize = 32;
pub(super) const FOOTER_BYTES: usize = 40;
/// No layer is larger, even one whose last pages do not compress.
pub(super) const OBJECT_LIMIT: u64 = 256 << 20;
/// An index of 2 MiB.
const RUNS_WANTED: usize = 1 << 16;
/// The index of a layer of the largest size has far fewer runs; more are damage.
const RUNS_LIMIT: usize = 1 << 20;
/// Fast enough to disappear behind the store, and most of what a higher level would save.
const COMPRESSION_LEVEL: i32 = 1;

/// Why bytes are no layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerDefect {
    /// The first bytes are others.
    #[error("it does not start as a layer does")]
    Magic,
    /// The last bytes are others.
    #[error("its footer is damaged")]
    Footer,
    /// A later version of the format.
    #[error("it has format {0}")]
    TooNew(u32),
    /// The index is not what was written, or not that of these bytes.
    #[error("its index is damaged ({0})")]
    Index(&'static str),
    /// The pages of a run are not what was written.
    #[error("the run at byte {offset} is damaged ({reason})")]
    Run {
        /// Where it starts.
        offset: u64,
        /// What does not fit.
        reason: &'static str,
    },
}

/// Where a run lies and which pages it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunEntry {
    pub(super) file: FileId,
    /// The number of the window: its first block divided by [`WINDOW_BLOCKS`].
    pub(super) window: u32,
    /// Bit n: the page of block n of the window is there.
    pub(super) present: u16,
    compressed: bool,
    pub(super) offset: u64,
    pub(super) length: u32,
    checksum: u32,
}

impl RunEntry {
    pub(super) fn key(&self) -> (FileId, u32) {
        (self.file, self.window)
    }

    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }

    pub(super) fn first_block(&self) -> u32 {
        self.window.saturating_mul(WINDOW_BLOCKS)
    }

    /// The blocks that are there, ascending.
    pub(super) fn blocks(self) -> impl Iterator<Item = u32> {
        let first = self.first_block();
        (0..WINDOW_BLOCKS)
            .filter(move |bit| self.present >> bit & 1 == 1)
            .map(move |bit| first.saturating_add(bit))
    }

    pub(super) fn has(&self, block: u32) -> bool {
        block / WINDOW_BLOCKS == self.window && self.present >> (block % WINDOW_BLOCKS) & 1 == 1
    }

    fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        let fields = self.file.0.to_le_bytes().into_iter();
        let fields = fields
            .chain(self.window.to_le_bytes())
            .chain(self.present.to_le_bytes())
            .chain([u8::from(self.compressed), 0])
            .chain(self.offset.to_le_bytes())
            .chain(self.length.to_le_bytes())
            .chain(self.checksum.to_le_bytes());
        for (byte, field) in bytes.iter_mut().zip(fields) {
            *byte = field;
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Result<RunEntry, LayerDefect> {
        let mut fields = Fields(bytes);
        let entry = RunEntry {
            file: FileId(u64::from_le_bytes(fields.take())),
            window: u32::from_le_bytes(fields.take()),
            present: u16::from_le_bytes(fields.take()),
            compressed: match fields.take() {
                [0, 0] => false,
                [1, 0] => true,
                _ => return Err(LayerDefect::Index("a run is stored in no way that is known")),
            },
            offset: u64::from_le_bytes(fields.take()),
            length: u32::from_le_bytes(fields.take()),
            checksum: u32::from_le_bytes(fields.take()),
        };
        if entry.present == 0 || entry.length == 0 || entry.window > u32::MAX / WINDOW_BLOCKS {
            return Err(LayerDefect::Index("a run has no pages"));
        }
        Ok(entry)
    }
}

/// Fields of fixed width, one after the other. What lies past the end reads as zeros; callers hand in
/// whole records.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *field
    }
}

/// The end of a layer, from which everything else is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) index_offset: u64,
    pub(super) runs: u32,
    pub(super) pages: u32,
    pub(super) index_checksum: u32,
}

impl Footer {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FOOTER_BYTES);
        bytes.extend(self.index_offset.to_le_bytes());
        bytes.extend(self.runs.to_le_bytes());
        bytes.extend(self.pages.to_le_bytes());
        bytes.extend((PAGE_BYTES as u32).to_le_bytes());
        bytes.extend(self.index_checksum.to_le_bytes());
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes.extend(END_MAGIC);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Footer, LayerDefect> {
        let (summed, _) = bytes.split_at_checked(FOOTER_BYTES - 12).ok_or(LayerDefect::Footer)?;
        let mut fields = Fields(bytes);
        let footer = Footer {
            index_offset: u64::from_le_bytes(fields.take()),
            runs: u32::from_le_bytes(fields.take()),
            pages: u32::from_le_bytes(fields.take()),
            index_checksum: {
                let page_bytes = u32::from_le_bytes(fields.take());
                if page_bytes as usize != PAGE_BYTES {
                    return Err(LayerDefect::Footer);
                }
                u32::from_le_bytes(fields.take())
            },
        };
        let version = u32::from_le_bytes(fields.take());
        if crc32fast::hash(summed) != u32::from_le_bytes(fields.take()) || fields.take() != END_MAGIC {
            return Err(LayerDefect::Footer);
        }
        if version != VERSION {
            return Err(LayerDefect::TooNew(version));
        }
        Ok(footer)
    }
}

/// Builds one layer in memory.
pub(super) struct LayerBuilder {
    bytes: Vec<u8>,
    index: Vec<RunEntry>,
    open: Option<OpenRun>,
    compressor: zstd::bulk::Compressor<'static>,
    pages: u32,
    first: Option<PageKey>,
    last: Option<PageKey>,
}

struct OpenRun {
    file: FileId,
    window: u32,
    present: u16,
    bytes: Vec<u8>,
}

/// A finished layer and what is said of it elsewhere.
pub(super) struct BuiltLayer {
    pub(super) bytes: Vec<u8>,
    pub(super) footer: Footer,
    pub(super) first: PageKey,
    pub(super) last: PageKey,
}

impl LayerBuilder {
    pub(super) fn new() -> std::io::Result<LayerBuilder> {
        Ok(LayerBuilder {
            bytes: MAGIC.to_vec(),
            index: Vec::new(),
            open: None,
            compressor: zstd::bulk::Compressor::new(COMPRESSION_LEVEL)?,
            pages: 0,
            first: None,
            last: None,
        })
    }

    /// Whether the next run belongs into another layer: this one has `bytes`, or an index that is no
    /// longer read in a moment (pages of zeros take no bytes to speak of).
    pub(super) fn is_full(&self, bytes: usize) -> bool {
        self.bytes.len() + self.index.len() * ENTRY_BYTES >= bytes || self.index.len() >= RUNS_WANTED
    }

    /// Whether a page of this key would start a new run.
    pub(super) fn starts_a_run(&self, key: PageKey) -> bool {
        !self.open.as_ref().is_some_and(|run| run.file == key.file && run.window == key.block / WINDOW_BLOCKS)
    }

    /// Adds a page; keys must ascend.
    pub(super) fn add(&mut self, key: PageKey, page: &Page) -> std::io::Result<()> {
        if self.starts_a_run(key) {
            self.close_run()?;
            let (file, window) = (key.file, key.block / WINDOW_BLOCKS);
            self.open = Some(OpenRun { file, window, present: 0, bytes: Vec::with_capacity(PAGE_BYTES) });
        }
        if let Some(run) = &mut self.open {
            run.present |= 1 << (key.block % WINDOW_BLOCKS);
            run.bytes.extend_from_slice(page.bytes());
        }
        self.pages = self.pages.saturating_add(1);
        self.first.get_or_insert(key);
        self.last = Some(key);
        Ok(())
    }

    fn close_run(&mut self) -> std::io::Result<()> {
        let Some(run) = self.open.take() else { return Ok(()) };
        let packed = self.compressor.compress(&run.bytes)?;
        let compressed = packed.len() < run.bytes.len();
        let stored = if compressed { &packed } else { &run.bytes };
        self.index.push(RunEntry {
            file: run.file,
            window: run.window,
            present: run.present,
            compressed,
            offset: self.bytes.len() as u64,
            length: u32::try_from(stored.len()).map_err(std::io::Error::other)?,
            checksum: crc32fast::hash(stored),
        });
        self.bytes.extend_from_slice(stored);
        Ok(())
    }

    /// The whole layer; `None` when no page was added.
    pub(super) fn finish(mut self) -> std::io::Result<Option<BuiltLayer>> {
        self.close_run()?;
        let (Some(first), Some(last)) = (self.first, self.last) else { return Ok(None) };
        let index_offset = self.bytes.len();
        for entry in &self.index {
            self.bytes.extend_from_slice(&entry.to_bytes());
        }
        let footer = Footer {
            index_offset: index_offset as u64,
            runs: u32::try_from(self.index.len()).map_err(std::io::Error::other)?,
            pages: self.pages,
            index_checksum: crc32fast::hash(self.bytes.get(index_offset..).unwrap_or_default()),
        };
        self.bytes.extend(footer.to_bytes());
        Ok(Some(BuiltLayer { bytes: self.bytes, footer, first, last }))
    }
}

/// The index of one layer: which pages it has and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LayerIndex {
    runs: Vec<RunEntry>,
    pub(super) footer: Footer,
}

impl LayerIndex {
    /// Reads the end of a layer, from the first byte of its index on; `starts_at` is that byte's place.
    pub(super) fn from_tail(tail: &[u8], starts_at: u64) -> Result<LayerIndex, LayerDefect> {
        let index_bytes = tail.len().checked_sub(FOOTER_BYTES).ok_or(LayerDefect::Footer)?;
        let (index, footer) = tail.split_at_checked(index_bytes).ok_or(LayerDefect::Footer)?;
        let footer = Footer::from_bytes(footer)?;
        if footer.index_offset != starts_at || footer.runs as usize > RUNS_LIMIT {
            return Err(LayerDefect::Footer);
        }
        if index.len() != footer.runs as usize * ENTRY_BYTES {
            return Err(LayerDefect::Index("its length is another one"));
        }
        if crc32fast::hash(index) != footer.index_checksum {
            return Err(LayerDefect::Index("its checksum is another one"));
        }
        let runs: Vec<RunEntry> =
            index.as_chunks().0.iter().map(RunEntry::from_bytes).collect::<Result<_, _>>()?;
        let mut expected = MAGIC.len() as u64;
        let mut pages = 0_u64;
        let mut before = None;
        for run in &runs {
            if run.offset != expected || before.is_some_and(|before| before >= run.key()) {
                return Err(LayerDefect::Index("its runs are out of order"));
            }
            before = Some(run.key());
            expected = run.end();
            pages += u64::from(run.present.count_ones());
        }
        if expected != footer.index_offset || pages != u64::from(footer.pages) {
            return Err(LayerDefect::Index("it does not cover the layer"));
        }
        Ok(LayerIndex { runs, footer })
    }

    /// Whether any page of the layer lies in a window from that of `first` to that of `last`.
    pub(super) fn has_runs_between(&self, first: PageKey, last: PageKey) -> bool {
        let from = (first.file, first.block / WINDOW_BLOCKS);
        let start = self.runs.partition_point(|run| run.key() < from);
        self.runs.get(start).is_some_and(|run| run.key() <= (last.file, last.block / WINDOW_BLOCKS))
    }

    /// A whole layer, as a program reads it that was told nothing about it.
    pub(super) fn from_layer(layer: &[u8]) -> Result<LayerIndex, LayerDefect> {
        if layer.first_chunk() != Some(&MAGIC) {
            return Err(LayerDefect::Magic);
        }
        let footer_at = layer.len().checked_sub(FOOTER_BYTES).ok_or(LayerDefect::Footer)?;
        let footer = Footer::from_bytes(layer.get(footer_at..).unwrap_or_default())?;
        let tail = usize::try_from(footer.index_offset).ok().and_then(|at| layer.get(at..));
        LayerIndex::from_tail(tail.ok_or(LayerDefect::Footer)?, footer.index_offset)
    }

    pub(super) fn runs(&self) -> &[RunEntry] {
        &self.runs
    }

    /// The place of the run of this window among the runs, if the layer has it.
    pub(super) fn position(&self, file: FileId, window: u32) -> Option<usize> {
        self.runs.binary_search_by_key(&(file, window), RunEntry::key).ok()
    }

    pub(super) fn run(&self, file: FileId, window: u32) -> Option<&RunEntry> {
        self.runs.get(self.position(file, window)?)
    }

    /// The memory it takes.
    pub(super) fn weight(&self) -> usize {
        size_of::<Self>() + self.runs.capacity() * size_of::<RunEntry>()
    }
}

/// A whole layer in memory.
#[derive(Debug)]
pub struct LayerObject<'a> {
    bytes: &'a [u8],
    index: LayerIndex,
}

impl<'a> LayerObject<'a> {
    /// Reads everything but the pages.
    ///
    /// # Errors
    /// Footer or index are damaged.
    pub fn parse(bytes: &'a [u8]) -> Result<LayerObject<'a>, LayerDefect> {
        Ok(LayerObject { bytes, index: LayerIndex::from_layer(bytes)? })
    }

    /// The pages of one run after the other.
    pub fn runs(&self) -> impl Iterator<Item = Result<Vec<(PageKey, Page)>, LayerDefect>> {
        self.index.runs.iter().map(|run| {
            let range = usize::try_from(run.offset).ok().zip(usize::try_from(run.end()).ok());
            unpack(run, range.and_then(|(start, end)| self.bytes.get(start..end)).unwrap_or_default())
        })
    }

    /// Whether this is the layer that a manifest means.
    pub(super) fn is_named_by(&self, reference: &LayerRef) -> bool {
        let footer = &self.index.footer;
        (footer.index_checksum, footer.pages, footer.index_offset, self.bytes.len() as u64)
            == (reference.index_checksum, reference.pages, reference.index_offset, reference.bytes)
    }
}

/// The pages of a run from its stored bytes.
pub(super) fn unpack(run: &RunEntry, stored: &[u8]) -> Result<Vec<(PageKey, Page)>, LayerDefect> {
    let defect = |reason| LayerDefect::Run { offset: run.offset, reason };
    if stored.len() != run.length as usize || crc32fast::hash(stored) != run.checksum {
        return Err(defect("its checksum is another one"));
    }
    let length = run.present.count_ones() as usize * PAGE_BYTES;
    let plain = if run.compressed {
        zstd::bulk::decompress(stored, length).map_err(|_| defect("it cannot be decompressed"))?
    } else {
        stored.to_vec()
    };
    if plain.len() != length {
        return Err(defect("its length is another one"));
    }
    let plain = Bytes::from(plain);
    let pages = (0..length).step_by(PAGE_BYTES).filter_map(|at| Page::new(plain.slice(at..at + PAGE_BYTES)));
    Ok(run.blocks().map(|block| PageKey { file: run.file, block }).zip(pages).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn page(seed: u64) -> Page {
        // Half of it repeats, half does not: runs of both kinds come about.
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let noisy = if seed.is_multiple_of(3) { PAGE_BYTES } else { 64 };
        let bytes: Vec<u8> = (0..PAGE_BYTES)
            .map(|at| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                if at < noisy { state as u8 } else { seed as u8 }
            })
            .collect();
        Page::padded(&bytes)
    }

    fn layer(pages: &BTreeMap<PageKey, Page>) -> BuiltLayer {
        let mut builder = LayerBuilder::new().unwrap();
        for (key, page) in pages {
            builder.add(*key, page).unwrap();
        }
        builder.finish().unwrap().unwrap()
    }

    fn read_all(bytes: &[u8]) -> Result<BTreeMap<PageKey, Page>, LayerDefect> {
        let layer = LayerObject::parse(bytes)?;
        let runs: Vec<_> = layer.runs().collect::<Result<_, _>>()?;
        Ok(runs.into_iter().flatten().collect())
    }

    fn key(file: u64, block: u32) -> PageKey {
        PageKey { file: FileId(file), block }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn every_page_that_was_written_is_read(keys in prop::collection::btree_set(
            (0u64..4, prop_oneof![0u32..40, Just(u32::MAX), 131_060u32..131_090]), 1..60)
        ) {
            let pages: BTreeMap<PageKey, Page> =
                keys.into_iter().map(|(file, block)| (key(file, block), page(file * 97 + u64::from(block)))).collect();
            let built = layer(&pages);
            prop_assert_eq!((built.first, built.last), (*pages.keys().next().unwrap(), *pages.keys().last().unwrap()));
            prop_assert_eq!(built.footer.pages as usize, pages.len());
            prop_assert_eq!(read_all(&built.bytes).unwrap(), pages);
        }

        #[test]
        fn bytes_that_are_no_layer_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(read_all(&bytes).is_err());
        }
    }

    #[test]
    fn every_flipped_byte_of_a_layer_is_an_error() {
        let pages = [(key(1, 3), page(1)), (key(1, 17), page(2)), (key(9, 0), page(3))].into();
        let built = layer(&pages);
        for at in 0..built.bytes.len() {
            let mut damaged = built.bytes.clone();
            damaged[at] ^= 0x04;
            assert!(read_all(&damaged).is_err(), "byte {at} of {}", built.bytes.len());
        }
    }

    #[test]
    fn every_cut_off_layer_is_an_error() {
        let built = layer(&[(key(1, 3), page(1)), (key(1, 4), page(2))].into());
        for length in 0..built.bytes.len() {
            assert!(read_all(&built.bytes[..length]).is_err(), "{length} bytes");
        }
    }
}
