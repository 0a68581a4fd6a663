//! Which files to compact.
//!
//! Files are sorted into tiers by the bytes of their live rows, each tier eight times the one before.
//! When eight files of a tier have gathered, they and everything smaller become one file, which then is of
//! a higher tier. So a row is rewritten once per tier, five times on its way to a full file, and a
//! partition has at most seven files of each tier besides the full ones: some forty, however often it is flushed.
//!
//! ```text
//!   16 KiB   128 KiB   1 MiB   8 MiB   64 MiB ─▶ full
//!   ||||||||   |||       ||      |        ||| ...
//!   \______/ eight: merge
//! ```
//!
//! A file of some size that lost much of its rows is rewritten in any case: every flush that touches it writes
//! its vector again, and every reader reads its dead rows.

use crate::action::Add;
use crate::table_state::LiveFile;
use crate::writer_options::WriterOptions;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Files of one tier that make a merge, and how much larger each tier is than the one before.
const FAN_IN: usize = 8;
/// The upper end of the lowest tier: a second of a slow table. Below, a file's footer is most of it.
const LOWEST_TIER: u64 = 16 << 10;
/// Share of deleted rows, in percent, from which a file is rewritten whatever its neighbours are. The rows
/// rewritten per row deleted are (100 - 30) / 30, a little more than two.
const DELETED_PERCENT: u64 = 30;
/// Smaller files wait for neighbours: their vectors and dead rows cost little.
const WORTH_REWRITING_ALONE: u64 = 4 << 20;
/// Live bytes of one compaction: what is thrown away if it has to be abandoned, and a bound on its time.
const MOST_BYTES: u64 = 1 << 30;
/// Files of one compaction: each has a vector in memory, and a Remove in the commit.
const MOST_FILES: usize = 500;

struct Candidate {
    add: Arc<Add>,
    since: i64,
    live_bytes: u64,
    live_rows: u64,
    deleted_percent: u64,
}

impl Candidate {
    fn of(file: &LiveFile) -> Candidate {
        let bytes = file.add.size.max(0).unsigned_abs();
        // Of a foreign file without statistics nothing is known but its size.
        let rows = file.rows.unwrap_or(0).max(1);
        let deleted = file.deleted().min(rows);
        Candidate {
            add: Arc::clone(&file.add),
            since: file.since,
            live_bytes: (u128::from(bytes) * u128::from(rows - deleted) / u128::from(rows)) as u64,
            live_rows: rows - deleted,
            deleted_percent: deleted.saturating_mul(100) / rows,
        }
    }

    /// Tier 0 up to [`LOWEST_TIER`], then one more for each factor of [`FAN_IN`].
    fn tier(&self) -> u32 {
        (self.live_bytes / LOWEST_TIER).checked_ilog(FAN_IN as u64).map_or(0, |tier| tier + 1)
    }

    fn is_full(&self, options: &WriterOptions) -> bool {
        self.live_bytes >= options.target_file_bytes / 2 || self.live_rows >= options.target_file_rows / 2
    }

    fn is_mostly_dead(&self) -> bool {
        self.deleted_percent >= DELETED_PERCENT
            && self.add.size.max(0).unsigned_abs() >= WORTH_REWRITING_ALONE
    }
}

/// Groups of files, each to become one file or more: all of a group are of one partition, oldest first.
pub(super) fn choose<'a>(
    files: impl Iterator<Item = &'a LiveFile>,
    options: &WriterOptions,
) -> Vec<Vec<Arc<Add>>> {
    let mut partitions: BTreeMap<_, Vec<Candidate>> = BTreeMap::new();
    for file in files {
        partitions.entry(&file.add.partition_values).or_default().push(Candidate::of(file));
    }
    let mut groups: Vec<Vec<Candidate>> = partitions
        .into_values()
        .map(|files| choose_in_partition(files, options))
        .filter(|group| !group.is_empty())
        .collect();
    // Where most is won comes first, should not everything fit.
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    let (mut bytes, mut count) = (0, 0);
    let mut chosen = Vec::new();
    for mut group in groups {
        group.sort_by_key(|file| file.live_bytes);
        group.retain(|file| {
            bytes += file.live_bytes;
            count += 1;
            // One file larger than all that is allowed must not stay as it is for ever.
            count <= MOST_FILES && (bytes <= MOST_BYTES || count == 1)
        });
        group.sort_by_key(|file| file.since);
        // A single file is rewritten for its deleted rows only.
        if group.len() > 1 || group.iter().any(Candidate::is_mostly_dead) {
            chosen.push(group.into_iter().map(|file| file.add).collect());
        }
    }
    chosen
}

fn choose_in_partition(files: Vec<Candidate>, options: &WriterOptions) -> Vec<Candidate> {
    let small = |file: &Candidate| !file.is_full(options);
    let mut tiers: BTreeMap<u32, usize> = BTreeMap::new();
    for file in files.iter().filter(|file| small(file)) {
        *tiers.entry(file.tier()).or_default() += 1;
    }
    let crowded = tiers.into_iter().filter(|(_, files)| *files >= FAN_IN).map(|(tier, _)| tier).max();
    files
        .into_iter()
        .filter(|file| {
            file.is_mostly_dead() || small(file) && crowded.is_some_and(|tier| file.tier() <= tier)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deletion_vector::{DvDescriptor, DvStorage};

    fn file(name: &str, size: u64, deleted_percent: i64) -> LiveFile {
        let vector = DvDescriptor {
            storage_type: DvStorage::Inline,
            path_or_inline_dv: String::new(),
            offset: None,
            size_in_bytes: 0,
            cardinality: deleted_percent,
        };
        let add = Add {
            path: name.to_owned(),
            partition_values: BTreeMap::new(),
            size: size as i64,
            modification_time: 0,
            data_change: true,
            stats: None,
            tags: None,
            deletion_vector: Some(vector),
        };
        LiveFile { add: Arc::new(add), rows: Some(100), since: 0, written_at: 0 }
    }

    fn chosen(files: &[LiveFile]) -> Vec<Vec<String>> {
        let options = WriterOptions::new("unused");
        let groups = choose(files.iter(), &options);
        groups.iter().map(|group| group.iter().map(|add| add.path.clone()).collect()).collect()
    }

    #[test]
    fn seven_small_files_wait_for_the_eighth() {
        let mut files: Vec<_> = (0..7).map(|n| file(&n.to_string(), 10_000, 0)).collect();
        files.push(file("larger", 1 << 20, 0));
        assert!(chosen(&files).is_empty());
        files.push(file("7", 10_000, 0));
        assert_eq!(chosen(&files).len(), 1);
        assert_eq!(chosen(&files)[0].len(), 8, "the larger file is of a higher tier and stays");
    }

    #[test]
    fn a_merge_takes_everything_smaller_along() {
        let mut files: Vec<_> = (0..8).map(|n| file(&n.to_string(), 500_000, 0)).collect();
        files.push(file("tiny", 1000, 0));
        assert_eq!(chosen(&files)[0].len(), 9);
    }

    #[test]
    fn a_large_file_is_rewritten_alone_once_much_of_it_is_dead() {
        assert!(chosen(&[file("a", 100 << 20, 29)]).is_empty());
        assert_eq!(chosen(&[file("a", 100 << 20, 30), file("b", 100 << 20, 0)]), [["a"]]);
        assert!(chosen(&[file("small", 1 << 20, 90)]).is_empty());
    }

    #[test]
    fn full_files_stay_as_they_are() {
        let files: Vec<_> = (0..50).map(|n| file(&n.to_string(), 64 << 20, 0)).collect();
        assert!(chosen(&files).is_empty());
    }

    #[test]
    fn partitions_are_not_mixed() {
        let files: Vec<_> = (0..16)
            .map(|n| {
                let mut file = file(&n.to_string(), 1000, 0);
                let values = BTreeMap::from([("country".to_owned(), Some((n % 2).to_string()))]);
                file.add = Arc::new(Add { partition_values: values, ..Add::clone(&file.add) });
                file
            })
            .collect();
        assert_eq!(chosen(&files).iter().map(Vec::len).collect::<Vec<_>>(), [8, 8]);
    }

    #[test]
    fn however_many_files_there_are_one_compaction_stays_bounded() {
        let files: Vec<_> = (0..2000).map(|n| file(&n.to_string(), 1000, 0)).collect();
        assert_eq!(chosen(&files).iter().map(Vec::len).sum::<usize>(), MOST_FILES);
        let files: Vec<_> = (0..100).map(|n| file(&n.to_string(), 60 << 20, 0)).collect();
        assert_eq!(chosen(&files)[0].len(), 17);
    }
}
