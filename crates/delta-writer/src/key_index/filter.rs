//! The filter of a run: says "surely not here" without touching the disk.
//!
//! A Bloom filter whose bits for one key all lie in one cache line. The line is chosen by the *high*
//! bits of the hash in proportion, so lines follow the order of the run: sorted lookups walk the
//! filter front to back, and building it from sorted entries does too. The bits within the line
//! come from the low half of the hash, which is independent of the high one.
//!
//! At ten bits a key, one miss in a hundred reads a block in vain. [`MAX_BYTES`] bounds what one run may
//! keep in memory; beyond 27 million keys a filter has fewer bits for each and lets more misses through,
//! which costs reads and never answers.

use super::entry::KeyHash;

/// Words of a cache line.
const WORDS_PER_LINE: usize = 8;
/// Bytes of a cache line.
pub(super) const LINE_BYTES: usize = 64;
/// Past ten bits a key, memory grows faster than misses shrink.
const BITS_PER_KEY: u64 = 10;
/// What the filter of one run may take in memory.
const MAX_BYTES: u64 = 32 << 20;
/// Nine bits of the hash choose one of a line's 512 bits: the low half yields seven such choices.
const MAX_PROBES: u32 = 7;

type Line = [u64; WORDS_PER_LINE];

/// A cache-line-blocked Bloom filter.
#[derive(Debug)]
pub(super) struct Filter {
    lines: Vec<Line>,
    probes: u32,
}

impl Filter {
    /// An empty filter for at most `keys` keys.
    pub(super) fn for_keys(keys: u64) -> Self {
        let wanted =
            (keys.saturating_mul(BITS_PER_KEY) / 8).min(MAX_BYTES).div_ceil(LINE_BYTES as u64).max(1);
        let bits_per_key = wanted * 512 / keys.max(1);
        // The best number of probes is bits per key times ln 2.
        let probes = (bits_per_key.min(64) as u32 * 69 / 100).clamp(1, MAX_PROBES);
        Self { lines: vec![[0; WORDS_PER_LINE]; wanted as usize], probes }
    }

    /// A filter as [`Self::bytes`] gave it; `None` when the numbers cannot be one.
    pub(super) fn from_bytes(bytes: &[u8], probes: u32) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        let (lines, odd) = words.as_chunks::<WORDS_PER_LINE>();
        if !rest.is_empty() || !odd.is_empty() || lines.is_empty() || !(1..=MAX_PROBES).contains(&probes) {
            return None;
        }
        Some(Self { lines: lines.iter().map(|line| line.map(u64::from_le_bytes)).collect(), probes })
    }

    pub(super) fn bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.lines.iter().flatten().flat_map(|word| word.to_le_bytes())
    }

    pub(super) fn probes(&self) -> u32 {
        self.probes
    }

    pub(super) fn insert(&mut self, key: KeyHash) {
        let at = self.line_of(key);
        let mask = self.mask_of(key);
        if let Some(line) = self.lines.get_mut(at) {
            line.iter_mut().zip(mask).for_each(|(word, bits)| *word |= bits);
        }
    }

    /// False: the key was never inserted. True: it probably was.
    pub(super) fn may_contain(&self, key: KeyHash) -> bool {
        let mask = self.mask_of(key);
        self.lines
            .get(self.line_of(key))
            .is_none_or(|line| line.iter().zip(mask).all(|(word, bits)| word & bits == bits))
    }

    fn line_of(&self, key: KeyHash) -> usize {
        (((key.0 >> 64) * self.lines.len() as u128) >> 64) as usize
    }

    fn mask_of(&self, key: KeyHash) -> Line {
        let mut mask = [0; WORDS_PER_LINE];
        let mut source = key.0 as u64;
        for _ in 0..self.probes {
            if let Some(word) = mask.get_mut((source & 7) as usize) {
                *word |= 1 << ((source >> 3) & 63);
            }
            source >>= 9;
        }
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> KeyHash {
        KeyHash(siphasher::sip128::SipHasher13::new().hash(&n.to_le_bytes()).as_u128())
    }

    #[test]
    fn every_inserted_key_is_found_and_few_others() {
        for count in [1, 100, 50_000] {
            let mut filter = Filter::for_keys(count);
            (0..count).for_each(|n| filter.insert(key(n)));
            assert!((0..count).all(|n| filter.may_contain(key(n))));
            let false_alarms = (count..count + 20_000).filter(|n| filter.may_contain(key(*n))).count();
            assert!(false_alarms < 500, "{false_alarms} of 20000 strangers pass with {count} keys");
        }
    }

    #[test]
    fn a_filter_survives_its_bytes() {
        let mut filter = Filter::for_keys(1000);
        (0..1000).for_each(|n| filter.insert(key(n)));
        let read = Filter::from_bytes(&filter.bytes().collect::<Vec<_>>(), filter.probes()).unwrap();
        assert_eq!(read.lines, filter.lines);
    }

    #[test]
    fn memory_is_bounded_whatever_the_number_of_keys() {
        let filter = Filter::for_keys(1_000_000_000);
        assert_eq!(filter.lines.len() * LINE_BYTES, 32 << 20);
        assert_eq!(filter.probes(), 1);
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        assert!(Filter::from_bytes(&[0; 63], 3).is_none());
        assert!(Filter::from_bytes(&[], 3).is_none());
        assert!(Filter::from_bytes(&[0; 64], 0).is_none());
        assert!(Filter::from_bytes(&[0; 64], 8).is_none());
    }
}
