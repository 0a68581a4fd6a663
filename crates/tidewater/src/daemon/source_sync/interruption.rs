//! While nothing arrives in the lake: what the source shows must go on being true.
//!
//! The lag grows with the time, and so does the WAL that the slot keeps at the source. That is when people look.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::SourceSync;
use crate::daemon::SyncError;
use crate::daemon::error::error_chain;
use crate::telemetry;

const SHOW_LAG: Duration = Duration::from_secs(1);

/// How often the slot is looked at, each time by a session of its own.
const LOOK_AT_SLOT: Duration = Duration::from_secs(10);
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// From an error until the stream is followed again.
#[derive(Default)]
pub struct Interruption {
    present: Option<Present>,
}

struct Present {
    sync: SourceSync,
    looked: Option<Instant>,
}

impl Interruption {
    /// Begins, or goes on.
    pub fn began(&mut self, sync: &SourceSync) {
        let looked = self.present.take().and_then(|present| present.looked);
        self.present = Some(Present { sync: sync.clone(), looked });
    }

    pub fn is_over(&mut self) {
        self.present = None;
    }

    /// Does `work`, and shows how things are until that follows the stream, which knows better.
    pub async fn shown_while<T>(&mut self, work: impl Future<Output = T>, follows: &AtomicBool) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(SHOW_LAG) => {}
            }
            let Some(present) = self.present.as_mut().filter(|_| !follows.load(Ordering::Relaxed)) else {
                continue;
            };
            present.show_lag();
            if present.looked.is_none_or(|looked| looked.elapsed() >= LOOK_AT_SLOT) {
                tokio::select! {
                    done = &mut work => return done,
                    () = present.look_at_slot() => {}
                }
            }
        }
    }
}

impl Present {
    fn show_lag(&self) {
        self.sync.board.update_all(&self.sync.database, |table| {
            let seconds = table.let_lag_grow();
            // How much has been written meanwhile is not known.
            table.lag_bytes = None;
            let labels = [("database", table.database.clone()), ("table", table.table.clone())];
            metrics::gauge!(telemetry::SYNC_LAG_SECONDS, &labels).set(seconds);
        });
    }

    async fn look_at_slot(&mut self) {
        let sync = &self.sync;
        let look = async {
            let Some(slot) = sync.board.slot_of(&sync.database) else { return Ok(()) };
            let client = postgres_connector::connect(&sync.source).await?;
            sync.retained_wal.look(sync, &client, &slot).await
        };
        let looked = tokio::time::timeout(LOOK_LIMIT, look).await;
        // The source may be what is away, which is told already.
        if let Ok(Err(error)) = looked {
            let error: SyncError = error;
            tracing::debug!(database = %sync.database, error = %error_chain(&error), "the slot cannot be looked at");
        }
        self.looked = Some(Instant::now());
    }
}
