//! Where the WAL of a branch lies: its own from its beginning on, its parents' before that.
//!
//! ```text
//!   main      ├──────────────────────── timeline 1 ───────────────────────▶
//!   dev            (main, 1, from floor, to 0/5000) ├── (dev, 2, from 0/5000, open) ──▶
//! ```
//!
//! A branch never looks past its own beginning on its parent: that is what makes it independent of what
//! happens there afterwards. Plain functions over the spans of a manifest.

use wal_decoder::Lsn;

use crate::ids::{BranchId, ProjectName, Timeline};
use crate::page_store::WalSpan;

/// The spans that are still needed when nothing below `floor` is.
pub(crate) fn above(spans: &[WalSpan], floor: Lsn) -> Vec<WalSpan> {
    spans
        .iter()
        .filter(|span| span.to.is_none_or(|to| to > floor))
        .map(|span| WalSpan { from: span.from.max(floor), ..span.clone() })
        .collect()
}

/// The same history ending at `end`: what a child inherits that begins there.
pub(crate) fn until(spans: &[WalSpan], end: Lsn) -> Vec<WalSpan> {
    spans
        .iter()
        .filter(|span| span.from < end)
        .map(|span| WalSpan { to: Some(span.to.map_or(end, |to| to.min(end))), ..span.clone() })
        .collect()
}

/// `spans`, and from `from` on the WAL of the branch itself.
pub(crate) fn continued(
    spans: &[WalSpan],
    project: &ProjectName,
    branch: BranchId,
    timeline: Timeline,
    from: Lsn,
) -> Vec<WalSpan> {
    let mut spans = until(spans, from);
    spans.push(WalSpan { project: project.clone(), branch, timeline, from, to: None });
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(branch: BranchId, timeline: u32, from: u64, to: Option<u64>) -> WalSpan {
        let project = ProjectName::new("shop").unwrap();
        WalSpan { project, branch, timeline: Timeline(timeline), from: Lsn(from), to: to.map(Lsn) }
    }

    #[test]
    fn a_child_sees_its_parent_up_to_its_own_beginning_and_itself_from_there_on() {
        let (main, dev) = (BranchId::random(), BranchId::random());
        let parent = vec![span(main, 1, 10, None)];
        let inherited = until(&parent, Lsn(50));
        assert_eq!(inherited, [span(main, 1, 10, Some(50))]);
        let project = ProjectName::new("shop").unwrap();
        let own = continued(&inherited, &project, dev, Timeline(2), Lsn(48));
        assert_eq!(own, [span(main, 1, 10, Some(48)), span(dev, 2, 48, None)]);
        assert_eq!(above(&own, Lsn(48)), [span(dev, 2, 48, None)]);
        assert_eq!(above(&own, Lsn(20)), [span(main, 1, 20, Some(48)), span(dev, 2, 48, None)]);
    }

    #[test]
    fn a_grandchild_that_begins_before_its_parent_did_has_nothing_of_it() {
        let (main, dev) = (BranchId::random(), BranchId::random());
        let spans = [span(main, 1, 10, Some(48)), span(dev, 2, 48, None)];
        assert_eq!(until(&spans, Lsn(30)), [span(main, 1, 10, Some(30))]);
        assert_eq!(until(&spans, Lsn(48)), [span(main, 1, 10, Some(48))]);
    }
}
