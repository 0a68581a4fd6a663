//! One port for every database of every branch, awake or asleep.
//!
//! Clients speak to it as to any Postgres. It reads one packet, the one that names the database
//! (`project[.database][@branch]`), finds the Postgres of that branch, starting it if it sleeps, and from then on
//! passes bytes. Passwords are checked by that Postgres; the gateway never sees one.
//!
//! ```text
//!            TLS ends here                                      Unix socket
//!   client ───────────────► opening ─► session ─► waiting room ─────────────► Postgres
//!                              │          │            │ Waker: once per branch
//!                              │          └─► relay: bounded buffers, both ways
//!                              └─► cancel: held while the commit waits for the keepers
//! ```
//!
//! The invariant: **a client gets through the gateway what it would get from its Postgres, or one error that says what
//! to do.** Three things are changed on the way, and no others: the database's name, the key for cancelling (ours, see
//! `cancel.rs`), and `replication` (logical only, see `replication_guard.rs`). The core's own role is not let in, because
//! Postgres takes whoever comes through the socket for one of the house.
//!
//! A session stays on one of a few threads, which has an event loop of its own (`event_loop`): what arrives is passed on
//! by whoever sees it.
//!
//! Everything a stranger can make it spend is bounded: packets, buffers, time until the first packet, connections that
//! have not said what they want, that wait, and altogether.

mod cancel;
mod client_stream;
mod counters;
pub mod idle;
mod login_messages;
mod message_frames;
mod opening;
mod refusal;
mod relay;
mod replication_guard;
mod server_tls;
mod session;
pub mod startup_message;
mod target;
mod waiting_room;
mod waker;
mod walsender_answers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::cancel::CancelKeys;
use self::client_stream::ClientStream;
pub use self::counters::{Counters, CountersSnapshot};
use self::opening::{Opened, OpeningError};
use self::server_tls::ALPN;
pub use self::server_tls::{ServerTls, TlsFiles};
use self::startup_message::CancelRequest;
pub use self::target::{BranchAddress, MAIN_BRANCH, Target, TargetError};
use self::waiting_room::WaitingRoom;
pub use self::waker::{Endpoint, WakeError, Waker};
use crate::event_loop::EventLoop;
use crate::{CoreError, Result};

/// Out of file descriptors, most likely: others have to end before the next can be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Threads that pass bytes, one for each processor: with fewer, sessions wait for their turn on a busy machine. Eight pass
/// gigabytes a second.
const LOOPS_AT_MOST: usize = 8;

/// How a gateway serves.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Its certificate; without one nothing is encrypted.
    pub tls: Option<TlsFiles>,
    /// Who may connect without TLS.
    pub unencrypted: Unencrypted,
    /// What it may spend.
    pub limits: GatewayLimits,
}

/// Who may connect without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unencrypted {
    /// Programs on this machine.
    #[default]
    Loopback,
    /// Everybody: where something else encrypts, as in a private network of containers.
    Anywhere,
}

/// What a gateway may spend.
#[derive(Debug, Clone, Copy)]
pub struct GatewayLimits {
    /// Sessions, those that wait included. Each has two buffers of 16 KiB, and with TLS as much again.
    pub connections: usize,
    /// Connections that have not yet said what they want.
    pub opening: usize,
    /// How long they have for it, TLS handshake included.
    pub opening_time: Duration,
    /// Connections that wait for a Postgres.
    pub waiting: usize,
    /// Of them, those for one branch.
    pub waiting_per_branch: usize,
    /// How long they wait. Recovery of a busy database takes its time.
    pub wake: Duration,
    /// Cancel requests being served, those held included.
    pub cancels: usize,
}

impl Default for GatewayLimits {
    fn default() -> GatewayLimits {
        GatewayLimits {
            connections: 2000,
            opening: 256,
            opening_time: Duration::from_secs(15),
            waiting: 1000,
            waiting_per_branch: 500,
            wake: Duration::from_secs(60),
            cancels: 64,
        }
    }
}

/// A gateway that has its port.
pub struct Gateway {
    listener: TcpListener,
    address: SocketAddr,
    loops: Vec<EventLoop>,
    shared: Arc<Shared>,
}

/// What all connections share.
struct Shared {
    tls: Option<ServerTls>,
    unencrypted: Unencrypted,
    limits: GatewayLimits,
    counters: Arc<Counters>,
    room: Arc<WaitingRoom>,
    keys: Arc<CancelKeys>,
    opening: Arc<Semaphore>,
    sessions: Semaphore,
    cancels: Semaphore,
    shutdown: CancellationToken,
}

impl Gateway {
    /// Takes the port and reads the certificate.
    ///
    /// # Errors
    /// The address is taken, the certificate cannot be used, or the address is reachable from other machines and
    /// nothing lets them in.
    pub async fn bind(options: GatewayOptions, waker: Arc<dyn Waker>) -> Result<Gateway> {
        let GatewayOptions { listen, tls, unencrypted, limits } = options;
        if tls.is_none() && unencrypted == Unencrypted::Loopback && !is_loopback(listen) {
            return Err(CoreError::GatewayUnprotected { address: listen });
        }
        let tls = tls.map(|files| ServerTls::load(files, "core.tls", ALPN)).transpose()?;
        let taken = |source| CoreError::GatewayAddress { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(taken)?;
        let address = listener.local_addr().map_err(taken)?;
        let counters = Arc::<Counters>::default();
        let waiting = (limits.waiting, limits.waiting_per_branch);
        let shared = Shared {
            tls,
            unencrypted,
            limits,
            room: WaitingRoom::new(waker, Arc::clone(&counters), waiting, limits.wake),
            keys: CancelKeys::new(Arc::clone(&counters)),
            counters,
            opening: Arc::new(Semaphore::new(limits.opening)),
            sessions: Semaphore::new(limits.connections),
            cancels: Semaphore::new(limits.cancels),
            shutdown: CancellationToken::new(),
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let loops = (0..cores.clamp(1, LOOPS_AT_MOST)).map(|_| EventLoop::start("sessions"));
        let loops = loops
            .collect::<std::io::Result<_>>()
            .map_err(CoreError::io("start a thread for", "the gateway's sessions"))?;
        Ok(Gateway { listener, address, loops, shared: Arc::new(shared) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it counts, also while it serves.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    /// Serves until `shutdown`. Then no connection is taken any more, those that wait are told, and sessions end.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Gateway { listener, shared, address, loops } = self;
        tracing::info!(%address, "the gateway takes connections");
        let connections = TaskTracker::new();
        let mut turns = loops.iter().map(EventLoop::handle).cycle();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted.and_then(|(socket, peer)| Ok((socket.into_std()?, peer))) {
                Ok((socket, peer)) => {
                    shared.counters.connections_accepted.one();
                    let Ok(permit) = Arc::clone(&shared.opening).try_acquire_owned() else {
                        shared.counters.connections_dropped.one();
                        continue;
                    };
                    let attended = attend(Arc::clone(&shared), socket, peer, permit);
                    if let Some(events) = turns.next() {
                        connections.spawn_on(attended, events);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        shared.shutdown.cancel();
        connections.close();
        connections.wait().await;
    }
}

/// One connection, from its first byte to its last.
async fn attend(
    shared: Arc<Shared>,
    socket: std::net::TcpStream,
    peer: SocketAddr,
    opening: OwnedSemaphorePermit,
) {
    let socket = TcpStream::from_std(socket).and_then(|socket| {
        client_stream::set_options(&socket)?;
        Ok(socket)
    });
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => {
            // It is gone already.
            tracing::debug!(%peer, %error, "a connection ended at once");
            return shared.counters.connections_refused.one();
        }
    };
    let needs_tls = shared.unencrypted == Unencrypted::Loopback && !is_loopback(peer);
    let opened = tokio::select! {
        opened = timeout(shared.limits.opening_time, opening::open(socket, shared.tls.as_ref(), needs_tls)) => opened,
        () = shared.shutdown.cancelled() => return,
    };
    drop(opening);
    match opened {
        Ok(Ok(Opened::Session(client, startup))) => session::serve(&shared, client, startup).await,
        Ok(Ok(Opened::Cancel(client, request))) => cancel(&shared, client, &request).await,
        Ok(Err(OpeningError::Refused(client, refusal))) => session::refuse(&shared, *client, &refusal).await,
        Ok(Err(OpeningError::Lost(error))) => {
            tracing::debug!(%peer, %error, "a connection ended before it said what it wants");
            shared.counters.connections_refused.one();
        }
        Err(_) => {
            tracing::debug!(%peer, "a connection did not say in time what it wants");
            shared.counters.connections_refused.one();
        }
    }
}

async fn cancel(shared: &Shared, mut client: ClientStream, request: &CancelRequest) {
    let Ok(permit) = shared.cancels.try_acquire() else {
        return shared.counters.cancels_dropped.one();
    };
    tokio::select! {
        () = shared.keys.cancel(request) => {}
        () = shared.shutdown.cancelled() => {}
    }
    drop(permit);
    // Closed only now, and properly: a client that has waited for it knows that no later statement is hit, and one that
    // came over TLS takes a connection that merely breaks off for a failure.
    refusal::part(&mut client).await;
}

/// Also for an IPv4 address as a socket of both families shows it.
fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
