//! The keeper's process: who may come in, and what each connection asks of a log.
//!
//! ```text
//!   connection ── hello ──┬── status · promise · read · delete        answered one by one
//!                         └── begin ── append, append, …              all that has arrived: one write, one sync,
//!                                      └── flushed                    one answer
//! ```
//!
//! Each connection has a thread of its own, on which it also waits for the disk: between the arrival of a commit's WAL and
//! its answer no other thread has to be woken. Each log is open once, behind a lock. A proposer that is writing is told at
//! once when a higher term has been promised.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;
use wal_decoder::Lsn;

use super::address::KeeperEndpoint;
use super::connection::{Duplex, FrameReader, FrameWriter, frames};
use super::frame::{Answer, Frame, From, MAX_WAL, PROTOCOL, Request};
use super::keeper_log::{KeeperLog, Refusal};
use super::log_name::LogName;
use super::open_logs::{OpenLog, OpenLogs};
use super::segment_files::SegmentFiles;
use crate::directory_lock::DirectoryLock;
use crate::event_loop;
use crate::ids::Term;
use crate::{CoreError, Result, private_file};

/// Who has not said hello by then is no proposer.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// One for each running branch, and a few that ask. Each holds a thread, a socket and a quarter of a mebibyte at most times.
const MAX_CONNECTIONS: usize = 2048;
/// Appends that are written and synced as one, at most.
const BATCH_BYTES: usize = 8 << 20;
/// After a failed accept (out of file handles), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a keeper is run.
#[derive(Debug, Clone)]
pub struct KeeperOptions {
    /// Its hard state.
    pub directory: PathBuf,
    /// Where it listens.
    pub listen: KeeperEndpoint,
    /// Certificate chain and private key, in PEM form.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// What proposers have to know.
    pub token: Option<SecretString>,
}

/// A keeper that listens.
pub struct KeeperServer {
    listener: Listener,
    shared: Arc<Shared>,
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

struct Shared {
    keeper: Uuid,
    tls: Option<TlsAcceptor>,
    token: Option<SecretString>,
    logs: OpenLogs,
    /// Held as long as the process lives: two keepers on one directory would both promise.
    _claim: DirectoryLock,
}

/// Runs a keeper until `shutdown`.
///
/// # Errors
/// As [`KeeperServer::bind`].
pub async fn serve(options: KeeperOptions, shutdown: impl Future<Output = ()>) -> Result<()> {
    KeeperServer::bind(options).await?.run(shutdown).await;
    Ok(())
}

impl KeeperServer {
    /// Takes the directory and the address.
    ///
    /// # Errors
    /// Another keeper has either, the directory or the certificate cannot be used, or the address can be reached from other
    /// machines and TLS or the token is missing.
    pub async fn bind(options: KeeperOptions) -> Result<KeeperServer> {
        let KeeperOptions { directory, listen, tls, token } = options;
        if !listen.is_local() && (tls.is_none() || token.is_none()) {
            return Err(CoreError::KeeperUnprotected { address: listen.to_string() });
        }
        private_file::create_directory(&directory, 0o700)?;
        let claim = DirectoryLock::take(&directory, "claim")?;
        let keeper = identity(&directory)?;
        let tls = tls.map(|(certificate, key)| acceptor(&certificate, &key)).transpose()?;
        let listener = Listener::bind(&listen).await?;
        tracing::info!(%keeper, address = %listen, "the WAL keeper listens");
        let logs = OpenLogs::below(&directory);
        let shared = Shared { keeper, tls, token, logs, _claim: claim };
        Ok(KeeperServer { listener, shared: Arc::new(shared) })
    }

    /// Its identity, drawn when its directory was made.
    pub fn identity(&self) -> Uuid {
        self.shared.keeper
    }

    /// The TCP address it listens on, if it is one.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Unix(_) => None,
            Listener::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    /// Serves until `shutdown`. What was acknowledged is on disk, so there is nothing to do at the end.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let KeeperServer { listener, shared } = self;
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let (connections, ending) = (TaskTracker::new(), CancellationToken::new());
        // Also when this future is dropped.
        let end_connections = ending.clone().drop_guard();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => accepted,
            };
            // Beyond the bound a connection is closed: proposers come again.
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
            let attended = accepted.and_then(|accepted| {
                let counted = (permit, connections.token());
                attend(Arc::clone(&shared), accepted, ending.clone(), counted)
            });
            if let Err(error) = attended {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        drop(end_connections);
        connections.close();
        connections.wait().await;
    }
}

/// Serves a connection on a thread of its own.
fn attend(
    shared: Arc<Shared>,
    accepted: Accepted,
    ending: CancellationToken,
    counted: (OwnedSemaphorePermit, TaskTrackerToken),
) -> std::io::Result<()> {
    let runtime = event_loop::runtime()?;
    let serve = move || {
        let served = runtime.block_on(async {
            tokio::select! {
                served = shared.serve(accepted) => served,
                () = ending.cancelled() => Ok(()),
            }
        });
        if let Err(error) = served {
            tracing::info!(error = &error as &dyn std::error::Error, "a proposer's connection ended");
        }
        // With it goes what the connection left to do ahead of time; then the claim on the directory, then the count.
        drop((runtime, shared));
        drop(counted);
    };
    std::thread::Builder::new().name("connection".to_owned()).spawn(serve).map(drop)
}

/// A connection that belongs to no event loop yet.
enum Accepted {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream, IpAddr),
}

impl Accepted {
    /// The stream on this thread's event loop, and whose it is unless that is on this machine for certain.
    fn open(self) -> std::io::Result<(Box<dyn Duplex>, Option<IpAddr>)> {
        match self {
            Accepted::Unix(stream) => Ok((Box::new(UnixStream::from_std(stream)?), None)),
            Accepted::Tcp(stream, peer) => Ok((Box::new(TcpStream::from_std(stream)?), Some(peer))),
        }
    }
}

impl Listener {
    async fn bind(endpoint: &KeeperEndpoint) -> Result<Listener> {
        let taken = |source| CoreError::KeeperListen { address: endpoint.to_string(), source };
        match endpoint {
            KeeperEndpoint::Unix(path) => {
                // Whoever left it is gone: the directory's claim is ours.
                if let Err(error) = std::fs::remove_file(path)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    return Err(taken(error));
                }
                let listener = UnixListener::bind(path).map_err(taken)?;
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
                std::fs::set_permissions(path, mode).map_err(taken)?;
                Ok(Listener::Unix(listener))
            }
            KeeperEndpoint::Tcp(host, port) => {
                Ok(Listener::Tcp(TcpListener::bind((host.as_str(), *port)).await.map_err(taken)?))
            }
        }
    }

    async fn accept(&self) -> std::io::Result<Accepted> {
        match self {
            Listener::Unix(listener) => listener.accept().await?.0.into_std().map(Accepted::Unix),
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream.into_std()?, peer.ip()))
            }
        }
    }
}

impl Shared {
    async fn serve(&self, accepted: Accepted) -> Result<()> {
        let unusable = |source| CoreError::KeeperUnreachable {
            keeper: "a proposer".to_owned(),
            doing: "taking its connection",
            source,
        };
        let (stream, peer) = accepted.open().map_err(unusable)?;
        let place =
            peer.map_or_else(|| "a local proposer".to_owned(), |peer| format!("the proposer at {peer}"));
        let welcome = async {
            let stream: Box<dyn Duplex> = match (&self.tls, peer) {
                (Some(tls), Some(_)) => {
                    Box::new(tls.accept(stream).await.map_err(|source| CoreError::KeeperUnreachable {
                        keeper: place.clone(),
                        doing: "agreeing on TLS with it",
                        source,
                    })?)
                }
                _ => stream,
            };
            let (mut reader, mut writer) = frames(stream, From::Proposer, &place);
            let let_in = match reader.expect().await? {
                Frame::Request(Request::Hello { protocol, token }) => self.let_in(protocol, token),
                _ => Err("it did not say hello".to_owned()),
            };
            let answer = match &let_in {
                Ok(()) => {
                    Answer::Welcome { keeper: self.keeper, version: env!("CARGO_PKG_VERSION").to_owned() }
                }
                Err(problem) => Answer::Refused(Refusal::Failed { problem: problem.clone() }),
            };
            writer.send(&Frame::Answer(answer)).await?;
            match let_in {
                Ok(()) => Ok((reader, writer)),
                Err(problem) => Err(CoreError::KeeperProtocol { keeper: place.clone(), problem }),
            }
        };
        let welcomed = timeout(HELLO_LIMIT, welcome).await.map_err(|_| CoreError::KeeperSilent {
            keeper: place.clone(),
            doing: "waiting for its hello",
            limit: HELLO_LIMIT,
        })?;
        let (mut reader, mut writer) = welcomed?;
        while let Some(frame) = reader.next().await? {
            let Frame::Request(request) = frame else {
                let problem = "WAL before its term had begun".to_owned();
                return Err(CoreError::KeeperProtocol { keeper: place, problem });
            };
            self.answer(request, &mut reader, &mut writer).await?;
        }
        Ok(())
    }

    fn let_in(&self, protocol: u32, token: Option<String>) -> Result<(), String> {
        if protocol != PROTOCOL {
            return Err(format!(
                "this keeper speaks protocol {PROTOCOL}, not {protocol}: run the same version"
            ));
        }
        let Some(wanted) = &self.token else { return Ok(()) };
        let token = SecretString::from(token.unwrap_or_default());
        if bool::from(wanted.expose_secret().as_bytes().ct_eq(token.expose_secret().as_bytes())) {
            Ok(())
        } else {
            Err("the token is not this keeper's; compare the token files on both sides".to_owned())
        }
    }

    async fn answer(
        &self,
        request: Request,
        reader: &mut FrameReader,
        writer: &mut FrameWriter,
    ) -> Result<()> {
        let answer = match request {
            Request::Hello { .. } => Answer::Welcome { keeper: self.keeper, version: String::new() },
            Request::Status(name) => self.on_log(&name, |log| Ok(Answer::Log(log.status()))),
            Request::Promise { log, term, candidate } => {
                self.on_log(&log, |log| log.promise(term, candidate).map(Answer::Log))
            }
            Request::Read { log, from, to } => return self.send_wal(&log, from, to, writer).await,
            Request::Delete(name) => match self.logs.delete(&name) {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Refused(error.into()),
            },
            Request::Begin { log, begin } => {
                let term = begin.term;
                let opened = match self.logs.open(&log) {
                    Ok(opened) => opened,
                    Err(error) => return writer.send(&Frame::Answer(Answer::Refused(error.into()))).await,
                };
                return match opened.on_disk(|log| log.begin(&begin)) {
                    Ok(flushed) => {
                        writer.send(&Frame::Answer(Answer::Begun { flushed })).await?;
                        receive_wal(&opened, term, reader, writer).await
                    }
                    Err(refusal) => writer.send(&Frame::Answer(Answer::Refused(refusal))).await,
                };
            }
        };
        writer.send(&Frame::Answer(answer)).await
    }

    fn on_log(&self, name: &LogName, work: impl FnOnce(&mut KeeperLog) -> Result<Answer, Refusal>) -> Answer {
        let open = match self.logs.open(name) {
            Ok(open) => open,
            Err(error) => return Answer::Refused(error.into()),
        };
        open.on_disk(work).unwrap_or_else(Answer::Refused)
    }

    async fn send_wal(&self, name: &LogName, from: Lsn, to: Lsn, writer: &mut FrameWriter) -> Result<()> {
        let open = match self.logs.open(name) {
            Ok(open) => open,
            Err(error) => return writer.send(&Frame::Answer(Answer::Refused(error.into()))).await,
        };
        let mut at = from;
        let last = loop {
            match open.on_disk(|log| log.read(at, to)) {
                Ok(wal) if wal.is_empty() => break Answer::Done,
                Ok(wal) => {
                    let wal = Bytes::from(wal);
                    let next = Lsn(at.0.saturating_add(wal.len() as u64));
                    writer.send(&Frame::Wal { at, wal }).await?;
                    at = next;
                }
                Err(refusal) => break Answer::Refused(refusal),
            }
        };
        writer.send(&Frame::Answer(last)).await
    }
}

/// A proposer has begun: takes its WAL until it goes or is fenced.
async fn receive_wal(
    open: &Arc<OpenLog>,
    term: Term,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) -> Result<()> {
    let mut promised = open.promised.subscribe();
    let mut made_ahead = 0;
    loop {
        let first = tokio::select! {
            frame = reader.next() => match frame? {
                Some(frame) => frame,
                None => return Ok(()),
            },
            promised = above(&mut promised, term) => {
                let refusal = Refusal::StaleTerm { promised };
                return writer.send(&Frame::Answer(Answer::Refused(refusal))).await;
            }
        };
        let mut batch = vec![first];
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some(frame) = reader.try_next()?
        {
            bytes += MAX_WAL;
            batch.push(frame);
        }
        match open.on_disk(|log| append_all(log, batch)) {
            Ok((flushed, next_segment)) => {
                writer.send(&Frame::Flushed(flushed)).await?;
                if let Some((directory, segment)) = next_segment.filter(|(_, segment)| *segment > made_ahead)
                {
                    made_ahead = segment;
                    // So that no commit waits for it. Failing is for the append that will need it.
                    drop(tokio::task::spawn_blocking(move || SegmentFiles::new(&directory).prepare(segment)));
                }
            }
            Err(refusal) => return writer.send(&Frame::Answer(Answer::Refused(refusal))).await,
        }
    }
}

/// Waits for a promise of a higher term.
async fn above(promised: &mut watch::Receiver<Term>, term: Term) -> Term {
    // The sender lives in the log, which the caller holds.
    promised.wait_for(|promised| *promised > term).await.map_or(term, |promised| *promised)
}

/// Writes and syncs a batch; the new end, and the segment that should be made ahead of time.
fn append_all(log: &mut KeeperLog, batch: Vec<Frame>) -> Result<(Lsn, Option<(PathBuf, u64)>), Refusal> {
    let append = || {
        let mut safe = Lsn::ZERO;
        for frame in batch {
            let Frame::Append { term, at, archived, wal } = frame else {
                let problem = "something else than WAL came after its term had begun".to_owned();
                return Err(Refusal::Failed { problem });
            };
            log.append(term, at, &wal)?;
            safe = safe.max(archived);
        }
        log.sync()?;
        log.trim(safe)?;
        Ok(())
    };
    match append() {
        Ok(()) => {
            let next = log.next_segment().map(|segment| (log.directory().to_owned(), segment));
            Ok((log.flushed(), next))
        }
        Err(refusal) => {
            log.forget_unflushed();
            Err(refusal)
        }
    }
}

/// The keeper's identity, drawn at the first start.
fn identity(directory: &Path) -> Result<Uuid> {
    let path = directory.join("keeper-id");
    match private_file::read(&path)? {
        Some(text) => text
            .parse()
            .map_err(|_| CoreError::KeeperStateDamaged { path, problem: "it is no UUID".to_owned() }),
        None => {
            let keeper = Uuid::new_v4();
            private_file::write(&path, &format!("{keeper}\n"))?;
            Ok(keeper)
        }
    }
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor> {
    let unusable =
        |file: &Path, problem: String| CoreError::KeeperCertificate { file: file.to_owned(), problem };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(certificate, error.to_string()))?;
    let private_key = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private_key))
        .map_err(|error| unusable(certificate, error.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
