//! Which sessions LISTEN, asked of the only one who knows: the backend itself.
//!
//! A committed NOTIFY makes Postgres signal every listening backend of the database, whatever channel it listens to
//! (`SignalBackends` in `async.c`, 14 to 18), and no other. A backend whose session is idle sleeps until its client or
//! such a signal comes; so one that woke within the moment of our NOTIFY listens. That it woke shows in
//! `/proc/<pid>/status`: it is not sleeping, or it has gone to sleep once more than before. A signal makes a sleeping
//! process runnable before `kill` returns, so a backend that was signalled can be late in running but not in showing it.
//!
//! What else wakes an idle backend (a reload, much DDL) is rare and looks the same: the branch then stays awake for one
//! more `suspend_after`. Nothing that listens looks idle.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::{Client, Config, Error, NoTls};

use crate::SUPERUSER;

/// The channel is nobody's; its name explains itself to whoever reads a server log.
const PROBE: &str = "SET synchronous_commit = off; SET lock_timeout = '2s'; NOTIFY tidewater_idle_probe";

/// A process that goes to sleep is shown as sleeping a moment before that sleep is counted.
const SETTLE: Duration = Duration::from_millis(50);

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    /// A backend that listens, or of which it cannot be told.
    pub(super) process_id: Option<i32>,
    /// How many sessions of ours the question took.
    pub(super) sessions_opened: i64,
}

/// Looks at each database in which somebody has a session. The sessions have to be idle.
pub(super) async fn find(client: &Client, superuser: &Config) -> Result<Listeners, Error> {
    let sessions = "SELECT a.datname::text, a.pid FROM pg_catalog.pg_stat_activity a \
                    JOIN pg_catalog.pg_database d ON d.oid = a.datid AND d.datallowconn \
                    WHERE a.backend_type = 'client backend' AND a.usename IS DISTINCT FROM $1";
    let mut databases = BTreeMap::<String, Vec<i32>>::new();
    for row in client.query(sessions, &[&SUPERUSER]).await? {
        databases.entry(row.try_get(0)?).or_default().push(row.try_get(1)?);
    }
    let mut found = Listeners::default();
    for (database, process_ids) in databases {
        found.sessions_opened += 1;
        found.process_id = find_in(superuser, &database, &process_ids).await?;
        if found.process_id.is_some() {
            break;
        }
    }
    Ok(found)
}

async fn find_in(superuser: &Config, database: &str, process_ids: &[i32]) -> Result<Option<i32>, Error> {
    let (client, connection) = superuser.clone().dbname(database).connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let before: Vec<_> = process_ids.iter().map(|process_id| (*process_id, sleeps(*process_id))).collect();
    client.batch_execute(PROBE).await?;
    let mut woken = first_woken(&before);
    if woken.is_none() {
        tokio::time::sleep(SETTLE).await;
        woken = first_woken(&before);
    }
    drop(client);
    match connection.await {
        Ok(ended) => ended?,
        Err(error) => tracing::debug!(%error, "the session that looked for listeners ended badly"),
    }
    Ok(woken)
}

/// A backend that is not as asleep as before.
fn first_woken(before: &[(i32, Option<u64>)]) -> Option<i32> {
    let woken = before.iter().find(|(process_id, slept)| slept.is_none() || sleeps(*process_id) != *slept);
    woken.map(|(process_id, _)| *process_id)
}

/// How often a process has gone to sleep, if it sleeps.
fn sleeps(process_id: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process_id}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let asleep = field("State:")?.starts_with('S');
    let count = field("voluntary_ctxt_switches:")?.parse().ok()?;
    asleep.then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_sleep_or_is_not_there_cannot_be_told_from_a_listener() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(first_woken(&[(own, None)]), Some(own));
        assert_eq!(first_woken(&[(i32::MAX, Some(3))]), Some(i32::MAX));
    }
}
