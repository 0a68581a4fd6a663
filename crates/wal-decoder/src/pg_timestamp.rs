//! Postgres's own instant: microseconds since 2000-01-01 00:00 UTC.

/// Microseconds from 1970-01-01 to 2000-01-01, the two epochs.
pub(crate) const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// An instant as the replication protocol and binary values carry it: microseconds since 2000-01-01 UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTimestamp(pub i64);

impl PgTimestamp {
    /// Microseconds since 1970-01-01 UTC. The last 30 years before year 294277, which no 64-bit count
    /// from 1970 reaches, come out as the largest one.
    pub fn unix_micros(self) -> i64 {
        self.0.saturating_add(EPOCH_MICROS)
    }

    /// The instant that many microseconds after 1970-01-01 UTC.
    pub fn from_unix_micros(micros: i64) -> Self {
        PgTimestamp(micros.saturating_sub(EPOCH_MICROS))
    }
}
