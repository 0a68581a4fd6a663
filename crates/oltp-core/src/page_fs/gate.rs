//! The gate that every change of the data directory passes, and that a cut closes for an instant.
//!
//! ```text
//!   write, truncate, create, rename ──▶ pass (shared) ──▶ changes of epoch n
//!                                                             │
//!   cut ──▶ close (exclusive): n becomes n + 1; the list of touched files and the journal of names are
//!           taken as they are. Nothing is copied, whatever the size of the database.
//! ```
//!
//! A file notices by the number that a new epoch has begun, when it is changed for the first time in it,
//! and only then puts its dirty set aside for the capture. So the invariant: **what a change does, it
//! does while it holds its passage, and before it is answered**: every change is wholly before the cut or
//! wholly after it.
//!
//! The kernel may hand us an 8 KiB write as two requests (a page of the writer's memory was not
//! resident). Between them half a page is outstanding, and the gate does not close.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

use super::file::File;
use super::tree::Change;

/// The second half follows within microseconds, unless its writer was killed between the two: then there is
/// nothing to wait for, and the cut fails.
const HALF_PAGE_LIMIT: Duration = Duration::from_secs(2);

/// The number of cuts so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Epoch(pub(super) u64);

#[derive(Debug)]
pub(super) struct Gate {
    epoch: RwLock<Epoch>,
    touched: Mutex<Vec<Arc<File>>>,
    journal: Mutex<Vec<Change>>,
    halves: Mutex<usize>,
    whole: Condvar,
    /// Pages that are not captured yet, with those being captured.
    dirty_pages: AtomicU64,
}

/// The right to change something, in the epoch it names.
pub(super) struct Passage<'a> {
    gate: &'a Gate,
    epoch: RwLockReadGuard<'a, Epoch>,
}

/// What a cut took.
#[derive(Debug)]
pub(super) struct Closed {
    /// The epoch that ended.
    pub(super) epoch: Epoch,
    /// Every file that was changed in it.
    pub(super) touched: Vec<Arc<File>>,
    /// Every change of names in it, in order.
    pub(super) journal: Vec<Change>,
    /// How long changes were held up.
    pub(super) held: Duration,
}

/// Half a page stayed outstanding.
#[derive(Debug)]
pub(super) struct HalfWritten;

impl Gate {
    pub(super) fn new() -> Gate {
        Gate {
            epoch: RwLock::new(Epoch(1)),
            touched: Mutex::default(),
            journal: Mutex::default(),
            halves: Mutex::default(),
            whole: Condvar::new(),
            dirty_pages: AtomicU64::new(0),
        }
    }

    /// Waits while a cut is being made (microseconds), then lets the caller change things.
    pub(super) fn pass(&self) -> Passage<'_> {
        Passage { gate: self, epoch: self.epoch.read() }
    }

    /// Ends the epoch.
    pub(super) fn close(&self) -> Result<Closed, HalfWritten> {
        let deadline = Instant::now() + HALF_PAGE_LIMIT;
        loop {
            let started = Instant::now();
            let mut epoch = self.epoch.write();
            let mut halves = self.halves.lock();
            if *halves == 0 {
                let ended = *epoch;
                epoch.0 += 1;
                let touched = std::mem::take(&mut *self.touched.lock());
                let journal = std::mem::take(&mut *self.journal.lock());
                drop(epoch);
                return Ok(Closed { epoch: ended, touched, journal, held: started.elapsed() });
            }
            drop(epoch);
            if self.whole.wait_until(&mut halves, deadline).timed_out() {
                return Err(HalfWritten);
            }
        }
    }

    /// Pages that no completed capture holds.
    pub(super) fn dirty_pages(&self) -> u64 {
        self.dirty_pages.load(Ordering::Relaxed)
    }

    pub(super) fn dirty_pages_add(&self, more: u64) {
        self.dirty_pages.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn dirty_pages_subtract(&self, fewer: u64) {
        self.dirty_pages.fetch_sub(fewer, Ordering::Relaxed);
    }

    /// True when a cut now would hold anything that the last one did not.
    pub(super) fn has_changes(&self) -> bool {
        !self.touched.lock().is_empty() || !self.journal.lock().is_empty()
    }
}

impl Passage<'_> {
    pub(super) fn epoch(&self) -> Epoch {
        *self.epoch
    }

    pub(super) fn gate(&self) -> &Gate {
        self.gate
    }

    /// Notes that `file` changed in this epoch; each file says so once.
    pub(super) fn touch(&self, file: Arc<File>) {
        self.gate.touched.lock().push(file);
    }

    /// Notes a change of names. The caller holds the tree, so the order is the one of the tree.
    pub(super) fn note(&self, change: Change) {
        self.gate.journal.lock().push(change);
    }

    /// Half a page was written, or is no longer outstanding.
    pub(super) fn half_page(&self, outstanding: bool) {
        let mut halves = self.gate.halves.lock();
        if outstanding {
            *halves += 1;
            return;
        }
        *halves = halves.saturating_sub(1);
        if *halves == 0 {
            self.gate.whole.notify_all();
        }
    }
}
