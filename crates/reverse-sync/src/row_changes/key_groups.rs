//! Which keys' rows differ at all, told without keeping any row.
//!
//! ```text
//!   a row that came    + its hash ┐
//!   a row that went    − its hash ┴─▶ the sum of its key's group      0: the same rows on both sides
//! ```
//!
//! Of a rewritten file nearly every row is in its successor again. What is equal on both sides leaves nothing in a sum,
//! in whatever order it lies in the files, so only rows of groups whose sum is not zero need a closer look: those that
//! differ, and the few whose keys happen to share a group with them.
//!
//! The sums are modulo 2¹²⁸ and the hashes keyed at random, so different rows leave zero once in about 10³⁸ groups.

use super::row_hash::RowHash;

/// Of one group: it has about two rows of a file with rows of 64 bytes, until there are as many groups as there may be.
const BYTES_A_GROUP: u64 = 32;

/// A megabyte of sums at the least, and 32 at the most.
const GROUPS: (u64, u64) = (1 << 16, 1 << 21);

/// A sum for each group of keys.
#[derive(Debug)]
pub(crate) struct KeyGroups {
    /// As many as a power of two.
    sums: Vec<u128>,
    /// Rows without a key.
    keyless: u128,
}

impl KeyGroups {
    /// As many groups as are right for files of so many bytes.
    pub(crate) fn for_bytes(bytes: u64) -> KeyGroups {
        let (least, most) = GROUPS;
        let groups = (bytes / BYTES_A_GROUP).clamp(least, most).next_power_of_two();
        KeyGroups { sums: vec![0; usize::try_from(groups).unwrap_or(1)], keyless: 0 }
    }

    /// Takes a row in.
    pub(crate) fn enter(&mut self, hash: RowHash, is_added: bool) {
        let sum = match hash.key.map(|key| self.place(key)) {
            Some(place) => self.sums.get_mut(place),
            None => Some(&mut self.keyless),
        };
        if let Some(sum) = sum {
            *sum = if is_added { sum.wrapping_add(hash.row) } else { sum.wrapping_sub(hash.row) };
        }
    }

    /// Whether rows of this key may differ.
    pub(crate) fn differ(&self, key: Option<u128>) -> bool {
        match key {
            Some(key) => self.sums.get(self.place(key)).is_some_and(|sum| *sum != 0),
            None => self.keyless != 0,
        }
    }

    /// The share of groups that differ, in percent.
    pub(crate) fn differing_percent(&self) -> usize {
        let differing = self.sums.iter().filter(|sum| **sum != 0).count();
        differing * 100 / self.sums.len().max(1)
    }

    /// Whether nothing differs.
    pub(crate) fn all_equal(&self) -> bool {
        self.keyless == 0 && self.sums.iter().all(|sum| *sum == 0)
    }

    fn place(&self, key: u128) -> usize {
        let last = self.sums.len().saturating_sub(1);
        // The low bits.
        key as usize & last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(key: u64, row: u64) -> RowHash {
        // Hashes are spread over all bits; small numbers are not.
        let spread =
            |number: u64| u128::from(number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        RowHash { key: (key != 0).then(|| spread(key)), row: spread(row) }
    }

    #[test]
    fn rows_that_only_move_leave_nothing_and_of_others_the_key_is_known() {
        let mut groups = KeyGroups::for_bytes(0);
        for row in 1..1000 {
            groups.enter(hash(row, row), false);
        }
        for row in (1..1000).rev() {
            groups.enter(hash(row, if row == 7 { 5000 } else { row }), true);
        }
        assert!(!groups.all_equal() && groups.differ(hash(7, 0).key));
        let differing = (1..1000).filter(|key| groups.differ(hash(*key, 0).key)).count();
        assert!(differing < 10, "{differing}");
    }

    #[test]
    fn two_rows_of_a_key_that_swap_their_values_with_others_do_not_go_unseen() {
        let mut groups = KeyGroups::for_bytes(0);
        for (key, row, is_added) in [(1, 10, false), (1, 11, false), (1, 10, true), (1, 12, true)] {
            groups.enter(hash(key, row), is_added);
        }
        assert!(groups.differ(hash(1, 0).key));
    }

    #[test]
    fn rows_without_a_key_are_a_group_of_their_own() {
        let mut groups = KeyGroups::for_bytes(1 << 40);
        groups.enter(hash(0, 1), false);
        groups.enter(hash(0, 2), true);
        assert!(groups.differ(None) && !groups.differ(hash(1, 0).key) && !groups.all_equal());
        groups.enter(hash(0, 1), true);
        groups.enter(hash(0, 2), false);
        assert!(groups.all_equal());
    }
}
