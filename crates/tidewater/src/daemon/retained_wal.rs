//! Warnings about WAL that a slot makes its source keep.
//!
//! A slot that does not move keeps every byte written since, until the disk is full or `max_slot_wal_keep_size` loses
//! it. Whoever runs the source has to hear of that early, and not every ten seconds.

use postgres_connector::{Client, SlotStatus, WalStatus};

use super::SyncError;
use super::source_sync::SourceSync;
use crate::telemetry;
use std::sync::{Mutex, PoisonError};

/// Below this nobody's disk is in danger.
const FIRST_WARNING: u64 = 1 << 30;

/// Remembers what was warned of, for all looks at a sync's slot: those of a stream that is followed, and those between two
/// of them.
#[derive(Debug, Default)]
pub struct RetainedWal(Mutex<Warned>);

#[derive(Debug, Default)]
struct Warned {
    at: u64,
    in_danger: bool,
}

impl RetainedWal {
    /// Looks at a sync's slot, shows what it retains, and warns of it if need be.
    pub async fn look(&self, sync: &SourceSync, client: &Client, slot: &str) -> Result<(), SyncError> {
        let slots = postgres_connector::list_slots(client, &sync.instance, &sync.database).await?;
        let Some(slot) = slots.iter().find(|found| found.name == slot) else { return Ok(()) };
        let warning = self.0.lock().unwrap_or_else(PoisonError::into_inner).warning(slot);
        if let Some(warning) = warning {
            tracing::warn!(database = %sync.database, "{warning}");
        }
        let retained = slot.retained_bytes;
        metrics::gauge!(telemetry::SYNC_SLOT_RETAINED_WAL_BYTES, "database" => sync.database.clone())
            .set(retained as f64);
        sync.board.update_source(&sync.database, |source| source.retained_wal_bytes = Some(retained));
        Ok(())
    }
}

impl Warned {
    /// What is to be said of the slot now, if anything: at 1 GiB and at each doubling, and once when it is about to be
    /// lost.
    fn warning(&mut self, slot: &SlotStatus) -> Option<String> {
        let retained = slot.retained_bytes;
        let in_danger = slot.wal_status == WalStatus::Unreserved;
        let newly_in_danger = in_danger && !self.in_danger;
        self.in_danger = in_danger;
        if retained < FIRST_WARNING && !in_danger {
            self.at = 0;
            return None;
        }
        if !newly_in_danger && (retained < FIRST_WARNING || retained < self.at.saturating_mul(2)) {
            return None;
        }
        self.at = retained.max(FIRST_WARNING);
        let gigabytes = retained as f64 / (1u64 << 30) as f64;
        let then = match (in_danger, slot.safe_wal_size) {
            (true, _) => {
                "it is beyond max_slot_wal_keep_size, and the slot is lost at the next checkpoint unless it moves".to_owned()
            }
            (false, Some(left)) => {
                format!("{:.1} GiB more and the slot is lost", left.max(0) as f64 / (1u64 << 30) as f64)
            }
            (false, None) => "max_slot_wal_keep_size sets no limit, so it may fill the disk".to_owned(),
        };
        Some(format!(
            "slot {} makes its source keep {gigabytes:.1} GiB of WAL: {then}. Look for a lake that is away or slow, for \
             tables paused with --hold, and for transactions left open at the source",
            slot.name
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(retained_gib: u64, wal_status: WalStatus) -> SlotStatus {
        SlotStatus {
            name: "tidewater_main_shop_g1".into(),
            generation: 1,
            active_pid: None,
            restart_lsn: None,
            confirmed_flush_lsn: None,
            wal_status,
            safe_wal_size: Some(5 << 30),
            retained_bytes: retained_gib << 30,
            invalidation_reason: None,
        }
    }

    #[test]
    fn growing_wal_is_told_at_each_doubling_and_before_the_slot_is_lost() {
        let mut retained = Warned::default();
        let warned: Vec<bool> = [0, 1, 1, 2, 3, 4, 0, 1]
            .into_iter()
            .map(|gib| retained.warning(&slot(gib, WalStatus::Extended)).is_some())
            .collect();
        assert_eq!(warned, [false, true, false, true, false, true, false, true]);
        let text = retained.warning(&slot(1, WalStatus::Unreserved)).unwrap();
        assert!(text.contains("lost at the next checkpoint"), "{text}");
        assert!(retained.warning(&slot(1, WalStatus::Unreserved)).is_none());
    }
}
