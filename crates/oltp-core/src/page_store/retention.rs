//! Which manifests of a branch stay.
//!
//! A restore starts from the newest manifest at or before its target and replays WAL from there. So of
//! the past, any manifest may go as long as an older one is left, for the price of a longer replay. The
//! further back, the further apart they may lie:
//!
//! ```text
//!   older than the period     only the newest of them: the base for the period's first moment
//!   within the period         one every sixteenth of their age, at most an hour apart
//!   superseded lately         all: somebody may be making a branch of one
//!   the newest                always
//! ```

use std::sync::Arc;
use std::time::Duration;

use super::GRACE;
use super::manifest::{BranchState, ManifestHead};
use crate::Timestamp;
use crate::ids::ManifestNumber;

/// Replaying more WAL than that of an hour takes minutes.
const SPACING_LIMIT: Duration = Duration::from_secs(3600);
/// A restore to last Monday may take somewhat longer than one to a minute ago.
const AGE_SHARE: u32 = 16;

/// The manifests that nobody needs any more, of one branch's in order.
pub(super) fn expired(heads: &[Arc<ManifestHead>], now: Timestamp, period: Duration) -> Vec<ManifestNumber> {
    let Some((newest, older)) = heads.split_last() else { return Vec::new() };
    if newest.state == BranchState::Deleted {
        // The tombstone outlives what it ends, so that no compute goes on where it left off.
        let done = now.since(newest.published_at) > GRACE;
        return if done { heads.iter().map(|head| head.number).collect() } else { Vec::new() };
    }
    let horizon = now.before(period);
    let mut expired = Vec::new();
    let mut kept: Option<Timestamp> = None;
    for (head, next) in older.iter().zip(heads.iter().skip(1)) {
        // Until the next one it is the base for every target.
        let superseded_at = next.published_at;
        let needed = if now.since(superseded_at) <= GRACE {
            true
        } else if superseded_at <= horizon {
            false
        } else {
            let spacing = (now.since(head.published_at) / AGE_SHARE).min(SPACING_LIMIT);
            kept.is_none_or(|kept| superseded_at.since(kept) > spacing)
        };
        if needed {
            kept = Some(head.published_at);
        } else {
            expired.push(head.number);
        }
    }
    expired
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::BranchId;
    use crate::page_store::tests::manifest;
    use proptest::prelude::*;

    const DAY: u64 = 86_400;

    fn heads(ages: &[u64], now: Timestamp) -> Vec<Arc<ManifestHead>> {
        let branch = BranchId::random();
        let numbered = ages.iter().enumerate().map(|(at, age)| {
            let mut head = manifest(branch, at as u64 + 1, 1).head;
            head.published_at = now.before(Duration::from_secs(*age));
            Arc::new(head)
        });
        numbered.collect()
    }

    fn kept(ages: &[u64], period: u64) -> Vec<u64> {
        let now = Timestamp::now();
        let heads = heads(ages, now);
        let expired = expired(&heads, now, Duration::from_secs(period));
        let kept = heads.iter().zip(ages).filter(|(head, _)| !expired.contains(&head.number));
        kept.map(|(_, age)| *age).collect()
    }

    #[test]
    fn the_newest_stays_however_old_and_so_does_what_was_superseded_lately() {
        assert_eq!(kept(&[30 * DAY], DAY), [30 * DAY]);
        assert_eq!(kept(&[30 * DAY, 29 * DAY, 10], DAY), [29 * DAY, 10]);
        assert_eq!(kept(&[300, 200, 100], 0), [300, 200, 100]);
    }

    #[test]
    fn a_week_of_cuts_every_five_seconds_thins_out_to_a_thousand_and_some() {
        let ages: Vec<u64> = (1..7 * DAY / 5).rev().map(|cut| cut * 5).collect();
        let kept = kept(&ages, 7 * DAY);
        assert!(kept.len() < 1200, "{}", kept.len());
        assert!(kept[0] >= 7 * DAY - 3600);
    }

    proptest! {
        #[test]
        fn every_moment_of_the_period_keeps_a_base_near_it(
            gaps in prop::collection::vec(1u64..40_000, 1..200), period in 0u64..10 * DAY
        ) {
            let mut age = 0;
            let mut ages: Vec<u64> = gaps.into_iter().map(|gap| { age += gap; age }).collect();
            ages.reverse();
            let kept = kept(&ages, period);
            for target in (0..period.min(ages[0])).step_by(997) {
                let base = |ages: &[u64]| ages.iter().copied().filter(|age| *age >= target).min();
                let (ideal, actual) = (base(&ages).unwrap(), base(&kept));
                let actual = actual.expect("no base is left");
                prop_assert!(actual - ideal <= actual / 16 + 1, "target {target}: {actual} instead of {ideal}");
            }
        }

        #[test]
        fn thinning_again_later_is_like_thinning_once(gaps in prop::collection::vec(1u64..4000, 1..100)) {
            let mut age = 2 * DAY;
            let mut ages: Vec<u64> = gaps.into_iter().map(|gap| { age += gap; age }).collect();
            ages.reverse();
            let once = kept(&ages, 30 * DAY);
            prop_assert_eq!(kept(&once, 30 * DAY), once.clone());
        }
    }
}
