//! What the index holds: a key's hash, and where the key's row is.

use std::cmp::Ordering;

/// A primary key, as the 128 bits that [`KeyHasher`](super::KeyHasher) makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u128);

/// A data file, by the number the index gave it. Never given twice during an index's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// A row's place: its position in a data file, counted from zero over the file's physical rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowAddress {
    /// The data file.
    pub file: FileId,
    /// The row in it.
    pub row: u32,
}

/// How many places a key can have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Places {
    /// One: of several entries of a key the newest counts.
    #[default]
    One,
    /// Any number, for rows that are named by all they hold and may therefore be equal.
    Many,
}

/// A key and the place of its row.
pub(super) type Entry = (KeyHash, RowAddress);

impl Places {
    /// The order in which entries stand. Of those that are equal in it, the newest counts.
    pub(super) fn order(self, left: &Entry, right: &Entry) -> Ordering {
        match self {
            Places::One => left.0.cmp(&right.0),
            Places::Many => left.cmp(right),
        }
    }
}

/// Sorts entries; of several that are equal in the order of `places` the last one stays.
pub(super) fn sort_newest_wins(entries: &mut Vec<Entry>, places: Places) {
    // Stable, so that entries of one key stay in the order they came.
    match places {
        Places::One => entries.sort_by_key(|(key, _)| *key),
        Places::Many => entries.sort(),
    }
    entries.dedup_by(|later, kept| {
        let same = places.order(later, kept).is_eq();
        if same {
            *kept = *later;
        }
        same
    });
}

/// Merges two sorted lists; of an entry in both, the newer one stays.
pub(super) fn merge_sorted(older: Vec<Entry>, newer: Vec<Entry>, places: Places) -> Vec<Entry> {
    let mut merged = Vec::with_capacity(older.len() + newer.len());
    let mut older = older.into_iter().peekable();
    for entry in newer {
        while let Some(before) = older.next_if(|before| places.order(before, &entry).is_lt()) {
            merged.push(before);
        }
        let _superseded = older.next_if(|same| places.order(same, &entry).is_eq());
        merged.push(entry);
    }
    merged.extend(older);
    merged
}

/// How many of the sorted `items` lie at or below `key`, knowing that at least `from` do.
///
/// Keys come in ascending order, so the answer is near the previous one: steps double from there
/// instead of halving the whole.
pub(super) fn count_up_to<T>(
    items: &[T],
    from: usize,
    key: KeyHash,
    key_of: impl Fn(&T) -> KeyHash,
) -> usize {
    let mut low = from;
    let mut step = 1;
    while items.get(low + step - 1).is_some_and(|item| key_of(item) <= key) {
        low += step;
        step *= 2;
    }
    let end = items.len().min(low + step);
    low + items.get(low..end).map_or(0, |near| near.partition_point(|item| key_of(item) <= key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(key: u128, row: u32) -> Entry {
        (KeyHash(key), RowAddress { file: FileId(0), row })
    }

    #[test]
    fn of_one_key_the_last_entry_stays() {
        let mut entries = vec![entry(2, 0), entry(1, 1), entry(2, 2), entry(1, 3), entry(2, 4)];
        sort_newest_wins(&mut entries, Places::One);
        assert_eq!(entries, [entry(1, 3), entry(2, 4)]);
    }

    #[test]
    fn a_merge_keeps_the_newer_entry_of_a_key() {
        let older = vec![entry(1, 1), entry(3, 1), entry(5, 1)];
        let newer = vec![entry(0, 2), entry(3, 2), entry(6, 2)];
        let merged = merge_sorted(older, newer, Places::One);
        assert_eq!(merged, [entry(0, 2), entry(1, 1), entry(3, 2), entry(5, 1), entry(6, 2)]);
    }

    #[test]
    fn where_a_key_has_many_places_only_the_same_place_is_one_entry() {
        let mut entries = vec![entry(2, 1), entry(1, 1), entry(2, 0), entry(2, 1)];
        sort_newest_wins(&mut entries, Places::Many);
        assert_eq!(entries, [entry(1, 1), entry(2, 0), entry(2, 1)]);
        let merged = merge_sorted(entries, vec![entry(1, 0), entry(2, 1), entry(2, 2)], Places::Many);
        assert_eq!(merged, [entry(1, 0), entry(1, 1), entry(2, 0), entry(2, 1), entry(2, 2)]);
    }

    proptest! {
        #[test]
        fn counting_from_a_known_place_equals_counting_from_the_start(
            mut items in proptest::collection::vec(0u128..200, 0..200),
            mut keys in proptest::collection::vec(0u128..220, 0..50),
        ) {
            items.sort_unstable();
            keys.sort_unstable();
            let mut from = 0;
            for key in keys {
                from = count_up_to(&items, from, KeyHash(key), |item| KeyHash(*item));
                prop_assert_eq!(from, items.iter().filter(|item| **item <= key).count());
            }
        }
    }
}
