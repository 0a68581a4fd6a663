//! The newest WAL, in memory: what keepers and archive have yet to take, and a little more.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use wal_decoder::Lsn;

/// WAL that everyone has is kept up to this, for a keeper that comes back after a moment.
const KEEP_BYTES: u64 = 16 << 20;

/// A stretch of WAL that ends at the head.
#[derive(Debug)]
pub(crate) struct WalWindow {
    pieces: Mutex<VecDeque<(Lsn, Bytes)>>,
    head: watch::Sender<Lsn>,
}

impl WalWindow {
    /// An empty one; WAL will come from `at` on.
    pub(crate) fn new(at: Lsn) -> WalWindow {
        WalWindow { pieces: Mutex::default(), head: watch::Sender::new(at) }
    }

    fn pieces(&self) -> MutexGuard<'_, VecDeque<(Lsn, Bytes)>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One past the last byte.
    pub(crate) fn head(&self) -> Lsn {
        *self.head.borrow()
    }

    /// Follows the head.
    pub(crate) fn follow(&self) -> watch::Receiver<Lsn> {
        self.head.subscribe()
    }

    /// Adds WAL at the head.
    pub(crate) fn push(&self, wal: Bytes) {
        let head = self.head();
        let next = Lsn(head.0.saturating_add(wal.len() as u64));
        self.pieces().push_back((head, wal));
        self.head.send_replace(next);
    }

    /// Up to `limit` bytes from `from` on; `None` when they are not in the window.
    pub(crate) fn read(&self, from: Lsn, limit: usize) -> Option<Bytes> {
        let pieces = self.pieces();
        let first = pieces.partition_point(|(start, _)| *start <= from).checked_sub(1)?;
        let (start, wal) = pieces.get(first)?;
        let offset = usize::try_from(from.bytes_since(*start)).ok()?;
        if offset >= wal.len() {
            return None;
        }
        let wal = wal.slice(offset..wal.len().min(offset.saturating_add(limit)));
        let more = pieces.len() > first + 1 && wal.len() < limit;
        if !more {
            return Some(wal);
        }
        // Many small commits become one frame and one sync.
        let mut joined = BytesMut::from(wal);
        for (_, wal) in pieces.iter().skip(first + 1) {
            let room = limit - joined.len();
            joined.extend_from_slice(wal.get(..room.min(wal.len())).unwrap_or_default());
            if joined.len() == limit {
                break;
            }
        }
        Some(joined.freeze())
    }

    /// What lies below `safe` need not be kept.
    pub(crate) fn release(&self, safe: Lsn) {
        let keep_from = self.head().0.saturating_sub(KEEP_BYTES).min(safe.0);
        let mut pieces = self.pieces();
        while pieces.front().is_some_and(|(start, wal)| start.0.saturating_add(wal.len() as u64) <= keep_from)
        {
            pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_gives_back_what_was_pushed_from_any_position() {
        let window = WalWindow::new(Lsn(100));
        assert_eq!(window.read(Lsn(100), 10), None);
        for piece in ["abc", "d", "efgh"] {
            window.push(Bytes::from_static(piece.as_bytes()));
        }
        assert_eq!(window.head(), Lsn(108));
        for from in 0..8usize {
            for limit in 1..10 {
                let expected = &b"abcdefgh"[from..(from + limit).min(8)];
                let read = window.read(Lsn(100 + from as u64), limit).unwrap();
                assert!(expected.starts_with(&read) && !read.is_empty(), "{from} {limit}");
            }
        }
        assert_eq!(window.read(Lsn(99), 10), None);
        assert_eq!(window.read(Lsn(108), 10), None);
    }

    #[test]
    fn what_somebody_still_needs_is_never_released() {
        let window = WalWindow::new(Lsn(0));
        for _ in 0..40 {
            window.push(Bytes::from(vec![1; 1 << 20]));
        }
        window.release(Lsn(3 << 20));
        assert!(window.read(Lsn((3 << 20) - 1), 1).is_none());
        assert!(window.read(Lsn(3 << 20), 1).is_some());
        window.release(Lsn(40 << 20));
        assert!(window.read(Lsn((24 << 20) - 1), 1).is_none());
        assert!(window.read(Lsn(24 << 20), 1).is_some());
    }
}
