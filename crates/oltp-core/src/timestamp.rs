//! Moments, to the microsecond, as Postgres keeps them.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// Microseconds since 1970-01-01 00:00 UTC; a plain number in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This moment by the machine's clock.
    pub fn now() -> Timestamp {
        SystemTime::now().into()
    }

    /// The moment `period` earlier.
    pub fn before(self, period: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(micros(period)))
    }

    /// The moment `period` later.
    pub fn after(self, period: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(micros(period)))
    }

    /// The time since `earlier`, zero when that is not earlier.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

fn micros(period: Duration) -> i64 {
    i64::try_from(period.as_micros()).unwrap_or(i64::MAX)
}

impl From<Timestamp> for SystemTime {
    fn from(moment: Timestamp) -> SystemTime {
        let distance = Duration::from_micros(moment.0.unsigned_abs());
        let exact =
            if moment.0 < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
        exact.unwrap_or(UNIX_EPOCH)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Timestamp(micros(since)),
            Err(before) => Timestamp(micros(before.duration()).saturating_neg()),
        }
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(time: DateTime<Utc>) -> Self {
        Timestamp(time.timestamp_micros())
    }
}

/// RFC 3339 in UTC; the bare number when the year has no such form.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::<Utc>::from_timestamp_micros(self.0) {
            Some(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true)),
            None => write!(f, "{} µs", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_counted_and_shown_in_microseconds() {
        let moment = Timestamp(1_700_000_000_000_001);
        assert_eq!(moment.to_string(), "2023-11-14T22:13:20.000001Z");
        assert_eq!(moment.before(Duration::from_secs(1)).0, 1_699_999_999_000_001);
        assert_eq!(moment.since(moment.after(Duration::from_secs(1))), Duration::ZERO);
        assert_eq!(moment.after(Duration::from_secs(2)).since(moment), Duration::from_secs(2));
    }
}
