//! Stopping a statement, without making an unsafe commit visible.
//!
//! A cancel request comes on a connection of its own and names a session by its key. The key is one of ours: it leads
//! to the compute and the backend.
//!
//! **A commit that waits for the keepers is not cancelled.** Postgres would end the wait with a warning, and the commit
//! would be seen by everybody although the keepers do not have it. So the request is held while the backend waits in
//! `SyncRep`. If the same statement goes on afterwards (a procedure that commits in a loop, a list of statements), it
//! is cancelled then; if it is over, the request is too: passed on, it would hit the next one.
//!
//! Looking and cancelling are one statement over one row of the server's process table. A backend that begins to wait
//! in the microseconds between the two is still hit, and nothing outside of Postgres can prevent it; the guide says so.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngCore;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use super::counters::Counters;
use super::startup_message::CancelRequest;
use super::waker::Endpoint;

/// The core's own role has few connections to itself; cancelling uses up to this many at a time.
const SUPERUSER_SESSIONS: usize = 2;

/// A statement of the core's own is answered within milliseconds.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at a backend that waits, growing: the keepers usually answer within milliseconds, or not soon.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// Looks at a backend and, if that does no harm, cancels its statement. `$2` is the statement that was seen waiting,
/// named by its start; nothing else is cancelled then.
const LOOK: &str = "\
    SELECT coalesce(a.wait_event = 'SyncRep', false), coalesce(a.state <> 'idle', false), a.query_start::text, \
           CASE WHEN a.wait_event IS DISTINCT FROM 'SyncRep' \
                 AND ($2::text IS NULL OR (a.state <> 'idle' AND a.query_start::text = $2)) \
                THEN pg_catalog.pg_cancel_backend(a.pid) ELSE false END \
    FROM pg_catalog.pg_stat_get_activity($1) AS a";

/// The sessions that can be named in a cancel request.
pub(crate) struct CancelKeys {
    sessions: Mutex<HashMap<i32, Vec<Arc<Session>>>>,
    superuser_sessions: Semaphore,
    counters: Arc<Counters>,
}

struct Session {
    process_id: i32,
    key: Vec<u8>,
    endpoint: Endpoint,
    /// A request for this session is being held: one is enough.
    held: AtomicBool,
    ended: CancellationToken,
}

/// A session's entry. Its key means nothing from the moment this is dropped.
pub(crate) struct Registration {
    keys: Arc<CancelKeys>,
    session: Arc<Session>,
}

impl CancelKeys {
    pub(crate) fn new(counters: Arc<Counters>) -> Arc<CancelKeys> {
        Arc::new(CancelKeys {
            sessions: Mutex::default(),
            superuser_sessions: Semaphore::new(SUPERUSER_SESSIONS),
            counters,
        })
    }

    /// Makes a key as long as the server's, for the session of its backend `process_id`.
    pub(crate) fn register(
        self: &Arc<Self>,
        endpoint: Endpoint,
        process_id: i32,
        length: usize,
    ) -> Registration {
        let mut key = vec![0; length];
        let mut sessions = self.sessions();
        let namesakes = sessions.entry(process_id).or_default();
        loop {
            rand::rng().fill_bytes(&mut key);
            // Two computes may have given out one process id.
            if namesakes.iter().all(|other| other.key != key) {
                break;
            }
        }
        let session = Arc::new(Session {
            process_id,
            key,
            endpoint,
            held: AtomicBool::default(),
            ended: CancellationToken::new(),
        });
        namesakes.push(Arc::clone(&session));
        Registration { keys: Arc::clone(self), session }
    }

    /// Serves a cancel request. Like the server's own, it has no answer but the end of the connection.
    pub(crate) async fn cancel(&self, request: &CancelRequest) {
        let Some(session) = self.find(request) else {
            tracing::debug!(process_id = request.process_id, "a cancel request has a key of no session");
            return self.counters.cancels_dropped.one();
        };
        if session.held.swap(true, Ordering::AcqRel) {
            return self.counters.cancels_dropped.one();
        }
        tokio::select! {
            () = self.cancel_statement(&session) => {}
            () = session.ended.cancelled() => self.counters.cancels_dropped.one(),
        }
        session.held.store(false, Ordering::Release);
    }

    fn find(&self, request: &CancelRequest) -> Option<Arc<Session>> {
        let sessions = self.sessions();
        let namesakes = sessions.get(&request.process_id)?;
        namesakes.iter().find(|session| bool::from(session.key.as_slice().ct_eq(&request.key))).cloned()
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<i32, Vec<Arc<Session>>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn cancel_statement(&self, session: &Session) {
        let mut waiting: Option<String> = None;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.look(session, waiting.as_deref()).await {
                Ok(Seen::Cancelled) => return self.counters.cancels_delivered.one(),
                Ok(Seen::Over) => return self.counters.cancels_dropped.one(),
                Ok(Seen::WaitsForKeepers { since }) => match &waiting {
                    None => {
                        tracing::info!(
                            process_id = session.process_id,
                            "a cancel request is held: the commit waits for the keepers"
                        );
                        self.counters.cancels_held.one();
                        waiting = Some(since);
                    }
                    // Another statement waits now; the one that was meant is over.
                    Some(meant) if *meant != since => return self.counters.cancels_dropped.one(),
                    Some(_) => {}
                },
                // Unseen is not cancelled: a lost cancel can be asked for again, a lost commit cannot.
                Err(error) => {
                    let error: &(dyn std::error::Error + 'static) = &error;
                    tracing::warn!(process_id = session.process_id, error, "a cancel request is dropped");
                    return self.counters.cancels_dropped.one();
                }
            }
            tokio::time::sleep(pause).await;
            pause = LAST_PAUSE.min(pause * 2);
        }
    }

    async fn look(&self, session: &Session, meant: Option<&str>) -> Result<Seen, LookError> {
        // Never closed; without a permit there would only be more sessions at once than intended.
        let _permit = self.superuser_sessions.acquire().await.ok();
        let look = async {
            let client = connect(&session.endpoint).await?;
            client.query_opt(LOOK, &[&session.process_id, &meant]).await
        };
        let row = timeout(LOOK_LIMIT, look).await.map_err(|_| LookError::Slow)??;
        let Some(row) = row else { return Ok(Seen::Over) };
        let (waits, busy): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
        let since: Option<String> = row.try_get(2)?;
        Ok(match (row.try_get(3)?, since) {
            (true, _) => Seen::Cancelled,
            (false, Some(since)) if waits && busy => Seen::WaitsForKeepers { since },
            (false, _) => Seen::Over,
        })
    }
}

impl Registration {
    pub(crate) fn key(&self) -> &[u8] {
        &self.session.key
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.session.ended.cancel();
        let mut sessions = self.keys.sessions();
        if let Some(namesakes) = sessions.get_mut(&self.session.process_id) {
            namesakes.retain(|other| !Arc::ptr_eq(other, &self.session));
            if namesakes.is_empty() {
                sessions.remove(&self.session.process_id);
            }
        }
    }
}

/// What one look at a backend came to.
enum Seen {
    Cancelled,
    WaitsForKeepers { since: String },
    Over,
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("the server did not say within {LOOK_LIMIT:?} what the session does")]
    Slow,
    #[error("the server cannot be asked what the session does")]
    Postgres(#[from] tokio_postgres::Error),
}

async fn connect(endpoint: &Endpoint) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = endpoint.superuser.connect(NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a session for cancelling ended");
        }
    });
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn endpoint() -> Endpoint {
        Endpoint { socket_directory: "run".into(), port: 5432, superuser: tokio_postgres::Config::new() }
    }

    #[test]
    fn a_key_names_its_session_until_that_ends_and_no_other() {
        let keys = CancelKeys::new(Arc::default());
        let (first, second) = (keys.register(endpoint(), 77, 32), keys.register(endpoint(), 77, 4));
        let request =
            |of: &Registration| CancelRequest { process_id: 77, key: Bytes::copy_from_slice(of.key()) };
        let (to_first, to_second) = (request(&first), request(&second));
        assert!(Arc::ptr_eq(&keys.find(&to_first).unwrap(), &first.session));
        assert!(Arc::ptr_eq(&keys.find(&to_second).unwrap(), &second.session));
        assert!(keys.find(&CancelRequest { process_id: 78, ..to_first.clone() }).is_none());
        assert!(keys.find(&CancelRequest { key: to_first.key.slice(..31), ..to_first.clone() }).is_none());
        drop(first);
        assert!(keys.find(&to_first).is_none());
        assert!(keys.find(&to_second).is_some());
        drop(second);
        assert!(keys.sessions().is_empty());
    }
}
