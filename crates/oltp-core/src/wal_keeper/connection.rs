//! A connection between a proposer and a keeper: frames in both directions.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postgres_connector::{Host, SourceConfig, TlsMode, tls_client_config};
use rustls_pki_types::ServerName;
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use uuid::Uuid;
use wal_decoder::Lsn;

use super::address::{KeeperAddress, KeeperEndpoint};
use super::frame::{Answer, Frame, From, PROTOCOL, Request};
use super::keeper_log::Refusal;
use super::log_name::LogName;
use crate::{CoreError, Result};

/// A keeper that is there answers a hello in milliseconds; one across an ocean in a second.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// A begin may cut 16 MiB, and a slow disk may be syncing meanwhile.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// A peer that takes none of our bytes for so long is gone.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// Room for one read: a commit's WAL is far less, a bulk load's frames are whole with four.
const READ_BYTES: usize = 256 << 10;

/// What frames travel over: TCP, a Unix socket, TLS.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The receiving half.
pub(crate) struct FrameReader {
    stream: ReadHalf<Box<dyn Duplex>>,
    inbox: BytesMut,
    from: From,
    place: String,
}

/// The sending half.
pub(crate) struct FrameWriter {
    stream: WriteHalf<Box<dyn Duplex>>,
    out: BytesMut,
    place: String,
}

/// Both halves of `stream`; `from` is who speaks at its other end, `place` its name in errors.
pub(crate) fn frames(stream: Box<dyn Duplex>, from: From, place: &str) -> (FrameReader, FrameWriter) {
    let (read, write) = tokio::io::split(stream);
    let reader = FrameReader { stream: read, inbox: BytesMut::new(), from, place: place.to_owned() };
    (reader, FrameWriter { stream: write, out: BytesMut::new(), place: place.to_owned() })
}

impl FrameReader {
    /// The next frame; `None` at the end of the connection. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.try_next()? {
                return Ok(Some(frame));
            }
            self.inbox.reserve(READ_BYTES);
            let read = self.stream.read_buf(&mut self.inbox).await;
            if read.map_err(|source| lost(&self.place, "receiving from it", source))? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next frame if it has arrived.
    pub(crate) fn try_next(&mut self) -> Result<Option<Frame>> {
        Frame::take(&mut self.inbox, self.from)
            .map_err(|problem| CoreError::KeeperProtocol { keeper: self.place.clone(), problem })
    }

    /// The next frame of a connection that should not end here.
    pub(crate) async fn expect(&mut self) -> Result<Frame> {
        let ended = || lost(&self.place, "waiting for its answer", io::ErrorKind::UnexpectedEof.into());
        let ended = ended();
        self.next().await?.ok_or(ended)
    }
}

impl FrameWriter {
    /// Sends a frame. The future must be awaited to its end.
    pub(crate) async fn send(&mut self, frame: &Frame) -> Result<()> {
        self.out.clear();
        frame.write(&mut self.out);
        let write = async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        };
        let doing = "sending to it";
        match timeout(WRITE_LIMIT, write).await {
            Ok(written) => written.map_err(|source| lost(&self.place, doing, source)),
            Err(_) => Err(silent(&self.place, doing, WRITE_LIMIT)),
        }
    }
}

/// A proposer's connection.
pub(crate) struct KeeperConnection {
    pub(crate) reader: FrameReader,
    pub(crate) writer: FrameWriter,
}

impl KeeperConnection {
    /// Connects and says hello.
    pub(crate) async fn open(address: &KeeperAddress) -> Result<KeeperConnection> {
        let place = address.to_string();
        match timeout(OPEN_LIMIT, KeeperConnection::open_unbounded(address, &place)).await {
            Ok(opened) => opened.map(|(connection, _)| connection),
            Err(_) => Err(silent(&place, "connecting to it", OPEN_LIMIT)),
        }
    }

    async fn open_unbounded(address: &KeeperAddress, place: &str) -> Result<(KeeperConnection, Uuid)> {
        let stream = dial(address, place).await?;
        let (reader, writer) = frames(stream, From::Keeper, place);
        let mut connection = KeeperConnection { reader, writer };
        let token = address.token.as_ref().map(|token| token.expose_secret().to_owned());
        match connection.call(Request::Hello { protocol: PROTOCOL, token }).await? {
            Answer::Welcome { keeper, .. } => Ok((connection, keeper)),
            other => Err(connection.unexpected(other)),
        }
    }

    /// Asks and waits for the answer.
    pub(crate) async fn call(&mut self, request: Request) -> Result<Answer> {
        let exchange = async {
            self.writer.send(&Frame::Request(request)).await?;
            self.reader.expect().await
        };
        match timeout(CALL_LIMIT, exchange).await {
            Ok(Ok(Frame::Answer(answer))) => Ok(answer),
            Ok(Ok(_)) => {
                let problem = "WAL instead of an answer".to_owned();
                Err(CoreError::KeeperProtocol { keeper: self.reader.place.clone(), problem })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(silent(&self.reader.place, "waiting for its answer", CALL_LIMIT)),
        }
    }

    /// The WAL of a log in `from..to`, in pieces, as much of it as the keeper has.
    pub(crate) async fn read(&mut self, log: &LogName, from: Lsn, to: Lsn) -> Result<Vec<Bytes>> {
        self.writer.send(&Frame::Request(Request::Read { log: log.clone(), from, to })).await?;
        let (mut pieces, mut position) = (Vec::new(), from);
        loop {
            let frame = timeout(CALL_LIMIT, self.reader.expect())
                .await
                .map_err(|_| silent(&self.reader.place, "waiting for WAL from it", CALL_LIMIT))??;
            match frame {
                Frame::Wal { at, wal } if at == position && wal.len() as u64 <= to.bytes_since(at) => {
                    position.0 = position.0.saturating_add(wal.len() as u64);
                    pieces.push(wal);
                }
                Frame::Answer(Answer::Done) => return Ok(pieces),
                Frame::Answer(other) => return Err(self.unexpected(other)),
                _ => {
                    let problem = format!("it sent other WAL than was asked for at {position}");
                    return Err(CoreError::KeeperProtocol { keeper: self.reader.place.clone(), problem });
                }
            }
        }
    }

    /// The error for an answer that says no, or that does not belong here.
    pub(crate) fn unexpected(&self, answer: Answer) -> CoreError {
        let keeper = self.reader.place.clone();
        match answer {
            Answer::Refused(refusal) => CoreError::KeeperRefused { keeper, reason: refusal.describe() },
            _ => CoreError::KeeperProtocol { keeper, problem: "an answer to another question".to_owned() },
        }
    }

    /// The refusal in an answer, or the error that it is.
    pub(crate) fn refusal(&self, answer: Answer) -> Result<Refusal> {
        match answer {
            Answer::Refused(refusal) => Ok(refusal),
            other => Err(self.unexpected(other)),
        }
    }
}

/// Asks a keeper for its identity, which is drawn when its folder is made: the proof that it lives.
///
/// # Errors
/// Nobody answers within seconds, or whoever does is no keeper or does not let us in.
pub async fn hello(address: &KeeperAddress) -> Result<Uuid> {
    let place = address.to_string();
    match timeout(OPEN_LIMIT, KeeperConnection::open_unbounded(address, &place)).await {
        Ok(opened) => opened.map(|(_, keeper)| keeper),
        Err(_) => Err(silent(&place, "connecting to it", OPEN_LIMIT)),
    }
}

async fn dial(address: &KeeperAddress, place: &str) -> Result<Box<dyn Duplex>> {
    let doing = "connecting to it";
    let (host, port) = match &address.endpoint {
        KeeperEndpoint::Unix(path) => {
            let socket = UnixStream::connect(path).await.map_err(|source| lost(place, doing, source))?;
            return Ok(Box::new(socket));
        }
        KeeperEndpoint::Tcp(host, port) => (host, *port),
    };
    let socket =
        TcpStream::connect((host.as_str(), port)).await.map_err(|source| lost(place, doing, source))?;
    socket.set_nodelay(true).map_err(|source| lost(place, doing, source))?;
    if address.endpoint.is_local() && address.ca_file.is_none() {
        return Ok(Box::new(socket));
    }
    // Trust is the same thing for a keeper as for a Postgres server, and is decided in the same place.
    let like = SourceConfig {
        hosts: vec![(Host::Tcp(host.clone()), port)],
        user: String::new(),
        dbname: String::new(),
        password: None,
        tls: TlsMode::VerifyFull,
        ca_file: address.ca_file.clone(),
        application_name: String::new(),
        connect_timeout: OPEN_LIMIT,
        options: None,
    };
    let config =
        tls_client_config(&like).map_err(|source| CoreError::KeeperTls { source: Box::new(source) })?;
    let name =
        ServerName::try_from(host.clone()).map_err(|error| lost(place, doing, io::Error::other(error)))?;
    let stream = TlsConnector::from(config)
        .connect(name, socket)
        .await
        .map_err(|source| lost(place, "agreeing on TLS with it", source))?;
    Ok(Box::new(stream))
}

fn lost(place: &str, doing: &'static str, source: io::Error) -> CoreError {
    CoreError::KeeperUnreachable { keeper: place.to_owned(), doing, source }
}

fn silent(place: &str, doing: &'static str, limit: Duration) -> CoreError {
    CoreError::KeeperSilent { keeper: place.to_owned(), doing, limit }
}
