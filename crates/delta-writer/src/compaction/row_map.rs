//! Where the rows of a compacted file went.
//!
//! A compaction writes the live rows of its files one after the other, so a row's new place follows from
//! its rank among the live rows of its file:
//!
//! ```text
//!   old file   0  1  x  3  4  x  6      x: deleted when the compaction began
//!   rank       0  1     2  3     4
//!   stretches  [ file 0, from row 17 ][ file 1, from row 0 ]
//! ```
//!
//! The map therefore takes no memory beyond the vector itself, however many rows there are.

use crate::deletion_vector::DeletionVector;
use std::sync::Arc;

/// A compacted file.
#[derive(Debug)]
pub(super) struct MovedFile {
    /// As the log spells it.
    pub path: String,
    /// The rows that were not copied.
    pub hidden: Arc<DeletionVector>,
    /// Where the copied ones are, in their order.
    pub stretches: Vec<Stretch>,
}

/// Rows that lie beside each other in a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Which of the new files.
    pub file: usize,
    /// The first row there.
    pub first: u64,
    pub rows: u64,
}

impl MovedFile {
    /// Notes that the next live rows went to `first` and following of new file `file`.
    pub fn extend(&mut self, file: usize, first: u64, rows: u64) {
        match self.stretches.last_mut() {
            Some(last) if last.file == file && last.first + last.rows == first => last.rows += rows,
            _ => self.stretches.push(Stretch { file, first, rows }),
        }
    }

    /// Marks every copied row as dead in the new files' vectors.
    pub fn delete_all(&self, vectors: &mut [DeletionVector]) {
        for stretch in &self.stretches {
            if let Some(vector) = vectors.get_mut(stretch.file) {
                vector.insert_range(stretch.first..stretch.first + stretch.rows);
            }
        }
    }

    /// Marks what `now` hides and the copy did not. False if that cannot be: a row that was hidden is not
    /// any more, or one was never copied.
    pub fn translate(&self, now: &DeletionVector, vectors: &mut [DeletionVector]) -> bool {
        if !self.hidden.is_subset(now) {
            return false;
        }
        let mut hidden = self.hidden.iter().peekable();
        let mut hidden_before = 0;
        let mut stretches = self.stretches.iter();
        let (mut stretch, mut rank_at_stretch) = (stretches.next(), 0);
        for row in now.iter() {
            while hidden.next_if(|at| *at < row).is_some() {
                hidden_before += 1;
            }
            if hidden.peek() == Some(&row) {
                continue;
            }
            let rank = row - hidden_before;
            while let Some(passed) = stretch.filter(|stretch| rank >= rank_at_stretch + stretch.rows) {
                rank_at_stretch += passed.rows;
                stretch = stretches.next();
            }
            let Some((stretch, vector)) =
                stretch.and_then(|stretch| Some((stretch, vectors.get_mut(stretch.file)?)))
            else {
                return false;
            };
            vector.insert(stretch.first + (rank - rank_at_stretch));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn moved(hidden: &[u64], stretches: &[(usize, u64, u64)]) -> MovedFile {
        let hidden = Arc::new(hidden.iter().copied().collect());
        let mut moved = MovedFile { path: "old".into(), hidden, stretches: Vec::new() };
        stretches.iter().for_each(|&(file, first, rows)| moved.extend(file, first, rows));
        moved
    }

    #[test]
    fn a_bit_set_since_then_is_found_in_the_file_its_row_went_to() {
        let moved = moved(&[2, 5], &[(0, 17, 3), (1, 0, 2)]);
        let mut vectors = vec![DeletionVector::default(), DeletionVector::default()];
        assert!(moved.translate(&[1, 2, 4, 5, 6].into_iter().collect(), &mut vectors));
        assert_eq!(vectors, [[18].into_iter().collect(), [0, 1].into_iter().collect()]);
    }

    #[test]
    fn stretches_that_follow_each_other_are_one() {
        assert_eq!(moved(&[], &[(0, 5, 10), (0, 15, 5), (1, 0, 1)]).stretches.len(), 2);
    }

    #[test]
    fn a_row_that_came_back_or_was_never_copied_is_no_translation() {
        let moved = moved(&[2], &[(0, 0, 3)]);
        let mut vectors = vec![DeletionVector::default()];
        assert!(!moved.translate(&[1].into_iter().collect(), &mut vectors));
        assert!(!moved.translate(&[2, 9].into_iter().collect(), &mut vectors));
    }

    proptest! {
        #[test]
        fn a_translation_hides_the_rows_that_a_copy_would_hide(
            rows in proptest::collection::vec((any::<bool>(), any::<bool>()), 0..200),
            cut in 1..50_u64,
        ) {
            let numbered = || (0_u64..).zip(&rows);
            let hidden: Vec<u64> = numbered().filter(|(_, row)| row.0).map(|(at, _)| at).collect();
            let live: Vec<u64> = numbered().filter(|(_, row)| !row.0).map(|(at, _)| at).collect();
            let mut moved = MovedFile {
                path: "old".into(),
                hidden: Arc::new(hidden.iter().copied().collect()),
                stretches: Vec::new(),
            };
            // Every `cut` rows another file begins.
            for rank in 0..live.len() as u64 {
                moved.extend((rank / cut) as usize, rank % cut, 1);
            }
            let now: DeletionVector = numbered().filter(|(_, row)| row.0 || row.1).map(|(at, _)| at).collect();
            let mut vectors = vec![DeletionVector::default(); 200];
            prop_assert!(moved.translate(&now, &mut vectors));
            for (rank, row) in (0_u64..).zip(&live) {
                let found = vectors[(rank / cut) as usize].contains(rank % cut);
                prop_assert_eq!(found, now.contains(*row));
            }
        }
    }
}
