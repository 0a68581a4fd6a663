//! One connection, from what its client wants to a Postgres that answers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Shared;
use super::client_stream::ClientStream;
use super::login_messages::{FirstAnswer, UnexpectedMessage};
use super::refusal::Refusal;
use super::relay::Relay;
use super::replication_guard::{self, ReplicationGuard};
use super::startup_message::{STARTUP_LIMIT, StartupMessage};
use super::target::{BranchAddress, Target};
use super::waker::Endpoint;
use crate::SUPERUSER;

/// Between two attempts at a Postgres that starts or stops, growing.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// What a client may send before it was asked anything. No driver sends a byte.
const EARLY_LIMIT: usize = 8 << 10;

/// Room for everything a server says before it asks for a password.
const FIRST_ANSWER: usize = 1 << 10;

/// Serves a client until it leaves or its session ends.
pub(crate) async fn serve(shared: &Arc<Shared>, mut client: ClientStream, mut startup: StartupMessage) {
    let (guard, branch) = match admit(&mut startup) {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(shared, client, &refusal).await,
    };
    let Ok(permit) = shared.sessions.try_acquire() else {
        return refuse(shared, client, &Refusal::too_many_connections(shared.limits.connections)).await;
    };
    let packet = startup.encode();
    if packet.len() > STARTUP_LIMIT {
        return refuse(shared, client, &Refusal::startup_too_long()).await;
    }
    let mut early = BytesMut::new();
    let reached = tokio::select! {
        reached = reach(shared, &branch, &packet) => reached,
        () = client_leaves(&mut client, &mut early) => {
            tracing::debug!(%branch, "a client left while it waited");
            return shared.counters.connections_refused.one();
        }
        () = shared.shutdown.cancelled() => Err(Refusal::shutting_down()),
    };
    let (endpoint, server, answered) = match reached {
        Ok(reached) => reached,
        Err(refusal) => return refuse(shared, client, &refusal).await,
    };
    shared.counters.sessions_opened.one();
    let _open = shared.counters.sessions_now.hold();
    let (keys, counters) = (Arc::clone(&shared.keys), Arc::clone(&shared.counters));
    let relay = Relay { client, early, server, answered, endpoint, guard, keys, counters };
    tokio::select! {
        () = relay.run() => {}
        () = shared.shutdown.cancelled() => {}
    }
    // Before the count: who sees that a session is gone finds its place free.
    drop(permit);
}

/// Says no, and counts it.
pub(crate) async fn refuse(shared: &Shared, mut client: ClientStream, refusal: &Refusal) {
    tracing::debug!(code = refusal.code, message = refusal.message, "a connection is refused");
    shared.counters.connections_refused.one();
    refusal.send(&mut client).await;
}

/// Judges a startup message and makes it the one for the server.
fn admit(startup: &mut StartupMessage) -> Result<(Option<ReplicationGuard>, BranchAddress), Refusal> {
    // The server lets this role in through the socket, and the socket is where we stand.
    if startup.user == SUPERUSER {
        return Err(Refusal::core_role());
    }
    let guard = replication_guard::admit(startup)?;
    // As in Postgres, the database is named like the user when it is not named.
    let Target { branch, database } = Target::parse(startup.database.as_ref().unwrap_or(&startup.user))?;
    startup.database = Some(Bytes::from(database));
    Ok((guard, branch))
}

/// Waits for the branch's Postgres and knocks until it opens.
async fn reach(
    shared: &Arc<Shared>,
    branch: &BranchAddress,
    packet: &[u8],
) -> Result<(Endpoint, UnixStream, BytesMut), Refusal> {
    let place = shared.room.enter(branch)?;
    let mut last = None;
    let attempts = async {
        let mut pause = FIRST_PAUSE;
        loop {
            let endpoint = place.wake().await?;
            match knock(&endpoint, packet).await {
                Ok((server, answered)) => return Ok((endpoint, server, answered)),
                Err(KnockError::Unexpected(error)) => {
                    tracing::warn!(%branch, %error, "a session cannot begin");
                    return Err(Refusal::unintelligible_server());
                }
                Err(error @ (KnockError::NotNow | KnockError::Io(_))) => last = Some(error),
            }
            // It was awake a moment ago and is on its way up or down; nothing tells us when it is there.
            tokio::time::sleep(pause).await;
            pause = LAST_PAUSE.min(pause * 2);
        }
    };
    match timeout(shared.limits.wake, attempts).await {
        Ok(reached) => reached,
        Err(_) => {
            let error = last.as_ref().map(|error| error as &(dyn std::error::Error + 'static));
            tracing::warn!(%branch, error, "a database takes no connections");
            Err(Refusal::too_slow(branch, shared.limits.wake))
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum KnockError {
    #[error("it says that it takes no connections at this moment")]
    NotNow,
    #[error("its socket cannot be used")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Unexpected(#[from] UnexpectedMessage),
}

/// Sends the startup packet and waits for the beginning of an answer that is the client's.
async fn knock(endpoint: &Endpoint, packet: &[u8]) -> Result<(UnixStream, BytesMut), KnockError> {
    let mut server = UnixStream::connect(endpoint.socket()).await?;
    server.write_all(packet).await?;
    let mut answered = BytesMut::with_capacity(FIRST_ANSWER);
    loop {
        if server.read_buf(&mut answered).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match FirstAnswer::of(&answered)? {
            FirstAnswer::Undecided => {}
            FirstAnswer::NotNow => return Err(KnockError::NotNow),
            FirstAnswer::ForClient => return Ok((server, answered)),
        }
    }
}

/// Returns when the client closes the connection. What it sends meanwhile is kept for its server.
async fn client_leaves(client: &mut ClientStream, early: &mut BytesMut) {
    while early.len() < EARLY_LIMIT {
        match client.read_buf(early).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
    // So much ahead of the first question: it is not listened to further, and waits like everybody.
    std::future::pending().await
}
