//! What the gateway counts. Whoever publishes metrics takes a [`CountersSnapshot`] when it is asked for them.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident),* $(,)?) => {
        /// The gateway's running counts.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(pub(crate) $name: Count,)*
        }

        /// The counts at one moment. Those that end in `_now` are gauges; the rest only grow.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct CountersSnapshot {
            $($(#[doc = $doc])+ pub $name: u64,)*
        }

        impl Counters {
            /// Reads all of them.
            pub fn snapshot(&self) -> CountersSnapshot {
                CountersSnapshot { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Connections taken from the operating system.
    connections_accepted,
    /// Connections closed unheard, because too many others were still saying what they want.
    connections_dropped,
    /// Connections that did not come to a session: malformed, too slow, refused, or gone while they waited.
    connections_refused,
    /// Sessions forwarded to a Postgres.
    sessions_opened,
    /// Sessions that are open.
    sessions_now,
    /// Connections that wait for a Postgres to answer.
    waiting_now,
    /// Times a Postgres was asked for.
    wakes,
    /// Cancel requests passed on to a Postgres.
    cancels_delivered,
    /// Cancel requests that met a commit waiting for the keepers and were held back.
    cancels_held,
    /// Cancel requests with a wrong key, or whose statement was over.
    cancels_dropped,
    /// Bytes from clients.
    bytes_from_clients,
    /// Bytes to clients.
    bytes_to_clients,
}

/// One of them.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: usize) {
        self.0.fetch_add(u64::try_from(n).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    /// Counts one more until the guard is dropped.
    pub(crate) fn hold(&self) -> Held<'_> {
        self.one();
        Held(self)
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something that is there now.
pub(crate) struct Held<'a>(&'a Count);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
