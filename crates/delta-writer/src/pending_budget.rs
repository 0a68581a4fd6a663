//! What all tables of a process may hold in memory together.
//!
//! Each flush holds rows until it is committed. A table alone may hold a lot; hundreds at once may not. So they
//! share one budget: while it is exceeded, a table that holds more than an equal part of it moves its rows to
//! a data file early. Of any tables that exceed a budget together, one exceeds its equal part; so
//! whoever goes on growing is the one that gives way, and the quiet ones are left alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A quarter of the memory that the smallest daemon is meant to need.
const DEFAULT_BYTES: usize = 256 << 20;

/// A budget; clones are one.
#[derive(Debug, Clone)]
pub struct PendingBudget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bytes: usize,
    held: AtomicUsize,
    /// Tables that hold something.
    holders: AtomicUsize,
}

impl Default for PendingBudget {
    fn default() -> Self {
        PendingBudget::new(DEFAULT_BYTES)
    }
}

impl PendingBudget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> PendingBudget {
        let (held, holders) = (AtomicUsize::new(0), AtomicUsize::new(0));
        PendingBudget { shared: Arc::new(Shared { bytes, held, holders }) }
    }

    /// What all tables hold now.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::Relaxed)
    }

    pub(crate) fn share(&self) -> PendingShare {
        PendingShare { budget: self.clone(), held: 0 }
    }
}

/// What one table takes of a budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct PendingShare {
    budget: PendingBudget,
    held: usize,
}

impl PendingShare {
    /// The table holds so much now.
    pub fn set(&mut self, bytes: usize) {
        let shared = &self.budget.shared;
        // Figures for a decision that may come a moment late: no other memory depends on their order.
        match (self.held, bytes) {
            (0, 0) => {}
            (0, _) => _ = shared.holders.fetch_add(1, Ordering::Relaxed),
            (_, 0) => _ = shared.holders.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
        shared.held.fetch_add(bytes, Ordering::Relaxed);
        shared.held.fetch_sub(self.held, Ordering::Relaxed);
        self.held = bytes;
    }

    /// Whether all hold too much together and this table more than its equal part.
    pub fn is_exceeded(&self) -> bool {
        let holders = self.budget.shared.holders.load(Ordering::Relaxed).max(1);
        let bytes = self.budget.shared.bytes;
        self.budget.held() > bytes && self.held >= bytes / holders
    }
}

impl Drop for PendingShare {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_tables_that_exceed_the_budget_together_the_larger_gives_way() {
        let budget = PendingBudget::new(100);
        let (mut small, mut large) = (budget.share(), budget.share());
        small.set(30);
        large.set(70);
        assert!(!small.is_exceeded() && !large.is_exceeded());
        large.set(71);
        assert!(!small.is_exceeded() && large.is_exceeded());
        large.set(0);
        assert_eq!(budget.held(), 30);
        drop(small);
        assert_eq!((budget.held(), budget.shared.holders.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn a_table_alone_has_the_whole_budget() {
        let budget = PendingBudget::new(100);
        let mut only = budget.share();
        only.set(100);
        assert!(!only.is_exceeded());
        only.set(101);
        assert!(only.is_exceeded());
    }
}
