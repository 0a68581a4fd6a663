//! A block: 85 sorted entries in 2 KiB, and the checksum that makes damage visible.
//!
//! ```text
//!   0        24       48                          2040      2044      2048
//!   | entry  | entry  | ...                       | zeros   | CRC-32  |
//!
//!   entry:   low half of the hash, high half, file and row; each 8 bytes, little-endian
//! ```
//!
//! Two kibibytes are small enough that a random lookup copies and checks little, and large enough
//! that the in-memory fences (16 bytes a block) cost a bit and a half per key. A block's checksum starts
//! from the run's tag and the block's number, so that an intact block in the wrong place is
//! damage too.

use super::entry::{Entry, FileId, KeyHash, RowAddress};

/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = 2048;
/// Entries in a full block.
pub(super) const ENTRIES_PER_BLOCK: usize = 85;

/// A block as it is on disk.
pub(super) type Block = [u8; BLOCK_BYTES];
/// An entry as it is on disk.
type Slot = [[u8; 8]; 3];

/// Packs entries; `None` when they are more than a block holds.
pub(super) fn encode(entries: &[Entry], place: u32) -> Option<Block> {
    let mut block = [0; BLOCK_BYTES];
    let slots = block.as_chunks_mut::<8>().0.as_chunks_mut::<3>().0;
    if entries.len() > slots.len() {
        return None;
    }
    for (slot, (key, address)) in slots.iter_mut().zip(entries) {
        *slot = [
            (key.0 as u64).to_le_bytes(),
            ((key.0 >> 64) as u64).to_le_bytes(),
            (u64::from(address.file.0) << 32 | u64::from(address.row)).to_le_bytes(),
        ];
    }
    let (payload, checksum) = block.split_last_chunk_mut::<4>()?;
    *checksum = checksum_of(payload, place).to_le_bytes();
    Some(block)
}

/// Whether the block is what was written at this place.
pub(super) fn is_intact(block: &Block, place: u32) -> bool {
    block
        .split_last_chunk::<4>()
        .is_some_and(|(payload, stored)| checksum_of(payload, place) == u32::from_le_bytes(*stored))
}

/// The place of `key`'s row, if the key is among the block's first `count` entries.
pub(super) fn find(block: &Block, count: usize, key: KeyHash) -> Option<RowAddress> {
    let slots = slots(block).get(..count)?;
    let at = slots.binary_search_by_key(&key, key_of).ok()?;
    slots.get(at).map(|slot| decode(slot).1)
}

/// Every place of `key` among the block's first `count` entries.
pub(super) fn places(block: &Block, count: usize, key: KeyHash) -> impl Iterator<Item = RowAddress> {
    let slots = slots(block).get(..count).unwrap_or_default();
    let first = slots.partition_point(|slot| key_of(slot) < key);
    slots.iter().skip(first).take_while(move |slot| key_of(slot) == key).map(|slot| decode(slot).1)
}

/// The block's first `count` entries.
pub(super) fn entries(block: &Block, count: usize) -> impl Iterator<Item = Entry> {
    slots(block).iter().take(count).map(decode)
}

fn checksum_of(payload: &[u8], place: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(place);
    hasher.update(payload);
    hasher.finalize()
}

fn slots(block: &Block) -> &[Slot] {
    block.as_chunks::<8>().0.as_chunks::<3>().0
}

fn key_of(&[low, high, _]: &Slot) -> KeyHash {
    KeyHash(u128::from(u64::from_le_bytes(high)) << 64 | u128::from(u64::from_le_bytes(low)))
}

fn decode(slot: &Slot) -> Entry {
    let [_, _, address] = slot;
    let address = u64::from_le_bytes(*address);
    (key_of(slot), RowAddress { file: FileId((address >> 32) as u32), row: address as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_entries(count: u32) -> Vec<Entry> {
        (0..count)
            .map(|n| {
                (
                    KeyHash(u128::from(n) << 90 | 7),
                    RowAddress { file: FileId(u32::MAX - n), row: n * 50_000_000 },
                )
            })
            .collect()
    }

    #[test]
    fn a_block_gives_back_its_entries() {
        for count in [0, 1, 84, 85] {
            let written = some_entries(count);
            let block = encode(&written, 9).unwrap();
            assert!(is_intact(&block, 9));
            assert_eq!(entries(&block, written.len()).collect::<Vec<_>>(), written);
            for (key, address) in &written {
                assert_eq!(find(&block, written.len(), *key), Some(*address));
                assert_eq!(find(&block, written.len(), KeyHash(key.0 + 1)), None);
            }
        }
        assert!(encode(&some_entries(86), 9).is_none());
    }

    #[test]
    fn a_changed_byte_or_another_place_is_damage() {
        let block = encode(&some_entries(40), 9).unwrap();
        assert!(!is_intact(&block, 10));
        for at in 0..BLOCK_BYTES {
            let mut changed = block;
            changed[at] ^= 0x20;
            assert!(!is_intact(&changed, 9), "byte {at}");
        }
    }
}
