//! When a branch may sleep.
//!
//! Idle means: for `suspend_after` no statement and no open transaction on any session, no LISTEN, no prepared
//! transaction, no walsender of another tool, no subscription. Sessions that merely exist do not count: pools hold them
//! for hours. Ours ([`SUPERUSER`]'s) do not count either; whoever does work of its own in a compute keeps it awake by
//! other means.
//!
//! All of this is the server's own view, so it holds for every way in, and for the gateway after a restart. Two things
//! the server shows only indirectly:
//!
//! * *Sessions that came and went between two looks.* `pg_stat_database.sessions` counts every session once; growth
//!   that our own sessions do not explain is activity.
//! * *LISTEN.* No view shows another session's channels. But NOTIFY, to any channel, wakes every listening backend of
//!   its database and no other (`listeners.rs` says how that is seen). It is asked last, when everything else is
//!   quiet, since it costs a small commit.
//!
//! A session that begins between the verdict and the shutdown is not lost: the gateway holds it, and wakes the branch
//! again. A *statement* of a session that was idle until then ends with 57P01, as the pool's idle sessions do.

mod listeners;

use std::time::{Duration, Instant, SystemTime};

use tokio::time::timeout;
use tokio_postgres::{Client, Config};

use crate::{CoreError, Result, SUPERUSER};

/// The server answers within milliseconds; one that does not is anything but idle.
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// `$1` is our role, `$2` the server's time of the look before.
const LOOK: &str = "\
    WITH other AS MATERIALIZED ( \
        SELECT pid, backend_type, state, state_change FROM pg_catalog.pg_stat_activity \
        WHERE usename IS DISTINCT FROM $1 \
          AND (backend_type IN ('client backend', 'walsender') OR backend_type LIKE 'logical replication%worker')), \
    busy AS ( \
        SELECT pid, CASE WHEN backend_type = 'walsender' THEN 'walsender' \
                         WHEN backend_type <> 'client backend' THEN 'subscription' \
                         WHEN state LIKE 'idle in transaction%' THEN 'transaction' \
                         ELSE 'statement' END AS reason \
        FROM other WHERE backend_type <> 'client backend' OR state IS DISTINCT FROM 'idle' \
        ORDER BY pid LIMIT 1) \
    SELECT (SELECT reason FROM busy), (SELECT pid FROM busy), \
           (SELECT gid FROM pg_catalog.pg_prepared_xacts ORDER BY prepared LIMIT 1), \
           (SELECT extract(epoch FROM clock_timestamp() - max(state_change))::float8 FROM other \
            WHERE backend_type = 'client backend'), \
           (SELECT coalesce(sum(sessions), 0)::int8 FROM pg_catalog.pg_stat_database), \
           (SELECT count(*) FROM pg_catalog.pg_stat_activity \
            WHERE usename = $1 AND backend_type = 'client backend' AND backend_start > $2), \
           clock_timestamp()";

/// Why a branch stays awake.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Busy {
    /// A session runs a statement, or is just logging in.
    Statement {
        /// Its backend.
        process_id: i32,
    },
    /// A session has a transaction open.
    Transaction {
        /// Its backend.
        process_id: i32,
    },
    /// A transaction was prepared for two-phase commit and not finished.
    Prepared {
        /// Its global identifier.
        gid: String,
    },
    /// Another tool streams from here.
    Walsender {
        /// Its backend.
        process_id: i32,
    },
    /// This database follows another one.
    Subscription {
        /// The worker that applies its changes.
        process_id: i32,
    },
    /// A session listens for notifications, or it cannot be ruled out.
    Listens {
        /// Its backend.
        process_id: i32,
    },
}

/// What a look at a branch came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Something goes on.
    Busy(Busy),
    /// Nothing goes on, but not yet for long enough; look again then.
    Quiet {
        /// How much longer it has to stay so.
        remaining: Duration,
    },
    /// It may be suspended, now.
    MaySuspend,
}

/// Follows one compute. Look every few seconds; what happens between two looks is seen at the second.
#[derive(Debug)]
pub struct IdleWatch {
    suspend_after: Duration,
    last_activity: Instant,
    /// Sessions of others that the server has counted.
    sessions: Option<i64>,
    /// Sessions of ours among those it counted.
    own_sessions: i64,
    looked_at: SystemTime,
}

impl IdleWatch {
    /// Begins when the compute does: that is its first activity.
    pub fn new(suspend_after: Duration) -> IdleWatch {
        let (last_activity, looked_at) = (Instant::now(), SystemTime::now());
        IdleWatch { suspend_after, last_activity, sessions: None, own_sessions: 0, looked_at }
    }

    /// Looks through `client`, a session of [`SUPERUSER`]; `superuser` opens further ones, to other databases of the
    /// same server, and only when nothing else keeps it awake.
    ///
    /// # Errors
    /// The server does not answer, or not in time.
    pub async fn look(&mut self, client: &Client, superuser: &Config) -> Result<Verdict> {
        let looked = timeout(LOOK_LIMIT, self.look_now(client, superuser)).await;
        looked.unwrap_or(Err(CoreError::IdleWatch { source: None }))
    }

    async fn look_now(&mut self, client: &Client, superuser: &Config) -> Result<Verdict> {
        let row = client.query_one(LOOK, &[&SUPERUSER, &self.looked_at]).await.map_err(refused)?;
        let (reason, process_id): (Option<&str>, Option<i32>) = (get(&row, 0)?, get(&row, 1)?);
        let prepared: Option<String> = get(&row, 2)?;
        let last_change: Option<f64> = get(&row, 3)?;
        self.own_sessions += get::<i64>(&row, 5)?;
        self.looked_at = get(&row, 6)?;
        let now = Instant::now();
        if self.count_sessions(get(&row, 4)?) {
            self.last_activity = now;
        }
        if let Some(age) = last_change.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
            let changed = now.checked_sub(age).unwrap_or(self.last_activity);
            self.last_activity = self.last_activity.max(changed);
        }
        let process_id = process_id.unwrap_or_default();
        let busy = match (reason, prepared) {
            (Some("walsender"), _) => Some(Busy::Walsender { process_id }),
            (Some("subscription"), _) => Some(Busy::Subscription { process_id }),
            (Some("transaction"), _) => Some(Busy::Transaction { process_id }),
            (Some(_), _) => Some(Busy::Statement { process_id }),
            (None, Some(gid)) => Some(Busy::Prepared { gid }),
            (None, None) => None,
        };
        if let Some(busy) = busy {
            self.last_activity = now;
            return Ok(Verdict::Busy(busy));
        }
        let remaining = self.suspend_after.saturating_sub(now.duration_since(self.last_activity));
        if !remaining.is_zero() {
            return Ok(Verdict::Quiet { remaining });
        }
        let found = listeners::find(client, superuser).await.map_err(refused)?;
        self.own_sessions += found.sessions_opened;
        if let Some(process_id) = found.process_id {
            // Asked again when it has been quiet for as long once more: each time costs a commit.
            self.last_activity = now;
            return Ok(Verdict::Busy(Busy::Listens { process_id }));
        }
        Ok(Verdict::MaySuspend)
    }

    /// Whether the server's count of sessions shows one of others that was not there before.
    fn count_sessions(&mut self, counted: i64) -> bool {
        // A session is counted a moment after it began: ours may be known here before the server counts it. Only a new
        // maximum is news.
        let others = counted.saturating_sub(self.own_sessions);
        let before = self.sessions.unwrap_or(others);
        // Far below: the statistics were reset.
        self.sessions = Some(if counted < before { others } else { others.max(before) });
        self.sessions > Some(before) || counted < before
    }
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a tokio_postgres::Row, column: usize) -> Result<T> {
    row.try_get(column).map_err(refused)
}

fn refused(source: tokio_postgres::Error) -> CoreError {
    CoreError::IdleWatch { source: Some(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> IdleWatch {
        let mut watch = IdleWatch::new(Duration::from_secs(300));
        assert!(!watch.count_sessions(10), "the first look has nothing to compare with");
        watch
    }

    #[test]
    fn a_session_that_came_and_went_is_activity() {
        let mut watch = watch();
        assert!(!watch.count_sessions(10));
        assert!(watch.count_sessions(11));
        assert!(!watch.count_sessions(11));
    }

    #[test]
    fn a_session_of_ours_is_none_also_when_the_server_counts_it_late() {
        let mut watch = watch();
        watch.own_sessions += 1;
        assert!(!watch.count_sessions(10));
        assert!(!watch.count_sessions(11));
        assert!(watch.count_sessions(12));
    }

    #[test]
    fn statistics_that_were_reset_count_as_activity_once() {
        let mut watch = watch();
        watch.own_sessions = 4;
        assert!(watch.count_sessions(1));
        assert!(!watch.count_sessions(1));
        assert!(watch.count_sessions(2));
    }
}
