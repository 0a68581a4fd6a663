//! Bytes between a client and its Postgres, for as long as both are there.
//!
//! ```text
//!   client ──► (ReplicationGuard, in replication sessions only) ──► Postgres
//!   client ◄── LoginMessages until the session is ready, then (AnswerWatch, in the same) ◄── Postgres
//! ```
//!
//! Each direction has one buffer and reads only when that is empty: a side that does not read stops the other.
//! A client that closes is passed on as a closed sending side, and Postgres decides when it notices, as it would without
//! us. When Postgres closes the session is over, once its last words are with the client.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::cancel::{CancelKeys, Registration};
use super::client_stream::ClientStream;
use super::counters::{Count, Counters};
use super::login_messages::{LoginMessages, Progress, UnexpectedMessage, put_key};
use super::refusal::{Refusal, part};
use super::replication_guard::ReplicationGuard;
use super::waker::Endpoint;
use super::walsender_answers::AnswerWatch;

/// Twice what Postgres sends at once.
const BUFFER: usize = 16 << 10;

/// A client and the Postgres that has begun to answer it.
pub(crate) struct Relay {
    pub(crate) client: ClientStream,
    /// What the client sent before its Postgres answered.
    pub(crate) early: BytesMut,
    pub(crate) server: UnixStream,
    /// What Postgres has answered so far.
    pub(crate) answered: BytesMut,
    pub(crate) endpoint: Endpoint,
    pub(crate) guard: Option<ReplicationGuard>,
    pub(crate) keys: Arc<CancelKeys>,
    pub(crate) counters: Arc<Counters>,
}

/// Why a session ended before one of its sides closed it.
enum Ended {
    ByClient,
    ByServer,
    Refused(Refusal),
}

impl Relay {
    /// Runs the session to its end.
    pub(crate) async fn run(self) {
        let Relay { client, early, server, answered, endpoint, guard, keys, counters } = self;
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_server, mut to_server) = server.into_split();
        let answers = guard.as_ref().map(ReplicationGuard::answer_watch);
        let ended = {
            let upward = async {
                let upward = up(&mut from_client, &mut to_server, early, guard, &counters.bytes_from_clients);
                let ended = upward.await;
                // Passing on the end of the client's sending side; a server that is gone needs no telling.
                let _ = to_server.shutdown().await;
                ended
            };
            let downward = async {
                let mut rest = answered;
                let registered =
                    log_in(&mut from_server, &mut to_client, &mut rest, &endpoint, &keys, &counters).await;
                match registered {
                    Ok(Some(_registration)) => {
                        down(&mut from_server, &mut to_client, rest, answers, &counters).await
                    }
                    Ok(None) => Ended::ByServer,
                    Err(ended) => ended,
                }
            };
            tokio::pin!(upward, downward);
            tokio::select! {
                biased;
                ended = &mut downward => ended,
                ended = &mut upward => match ended {
                    Ended::Refused(refusal) => Ended::Refused(refusal),
                    Ended::ByClient | Ended::ByServer => downward.await,
                },
            }
        };
        let mut client = from_client.unsplit(to_client);
        match ended {
            Ended::Refused(refusal) => refusal.send(&mut client).await,
            Ended::ByServer => part(&mut client).await,
            Ended::ByClient => {}
        }
    }
}

/// From the client until it closes, or asks for what it may not have.
async fn up(
    client: &mut (impl AsyncRead + Unpin),
    server: &mut (impl AsyncWrite + Unpin),
    mut buffer: BytesMut,
    mut guard: Option<ReplicationGuard>,
    count: &Count,
) -> Ended {
    buffer.reserve(BUFFER);
    loop {
        if !buffer.is_empty() {
            count.add(buffer.len());
            if let Some(Err(refusal)) = guard.as_mut().map(|guard| guard.watch(&buffer)) {
                return Ended::Refused(refusal);
            }
            if pass_on(&mut buffer, server).await.is_err() {
                return Ended::ByServer;
            }
        }
        match client.read_buf(&mut buffer).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Ended::ByClient,
        }
    }
}

/// From the server until it closes.
async fn down(
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
    mut buffer: BytesMut,
    mut answers: Option<AnswerWatch>,
    counters: &Counters,
) -> Ended {
    buffer.reserve(BUFFER);
    loop {
        if !buffer.is_empty() {
            counters.bytes_to_clients.add(buffer.len());
            if let Some(answers) = &mut answers {
                answers.watch(&buffer);
            }
            if pass_on(&mut buffer, client).await.is_err() {
                return Ended::ByClient;
            }
        }
        match server.read_buf(&mut buffer).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Ended::ByServer,
        }
    }
}

/// Writes what is in the buffer and leaves it empty at its full size.
async fn pass_on(buffer: &mut BytesMut, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    to.write_all(buffer).await?;
    to.flush().await?;
    buffer.clear();
    Ok(())
}

/// From the server until the session is ready. The registration is to be kept for as long as the session lives;
/// there is none when the server closed before that.
async fn log_in(
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
    input: &mut BytesMut,
    endpoint: &Endpoint,
    keys: &Arc<CancelKeys>,
    counters: &Counters,
) -> Result<Option<Option<Registration>>, Ended> {
    let (mut messages, mut output) = (LoginMessages::default(), BytesMut::new());
    let mut registration = None;
    let unintelligible = |error: UnexpectedMessage| {
        tracing::warn!(%error, socket = %endpoint.socket().display(), "a session cannot begin");
        Ended::Refused(Refusal::unintelligible_server())
    };
    loop {
        let progress = messages.advance(input, &mut output).map_err(unintelligible)?;
        if let Progress::Key { process_id, key } = &progress {
            let registered = keys.register(endpoint.clone(), *process_id, key.len());
            put_key(&mut output, *process_id, registered.key());
            registration = Some(registered);
            continue;
        }
        counters.bytes_to_clients.add(output.len());
        pass_on(&mut output, client).await.map_err(|_| Ended::ByClient)?;
        if progress == Progress::Ready {
            return Ok(Some(registration));
        }
        input.reserve(BUFFER);
        match server.read_buf(input).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Ok(None),
        }
    }
}
