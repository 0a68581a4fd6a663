//! The socket under every session: TCP or unix, encrypted or not, with a bound on how long opening it takes.
//!
//! TLS is negotiated here and not in the client library, so that SQL sessions, replication sessions and cancel
//! requests are protected in exactly the same way.

use crate::error::{Error, Result};
use crate::source_config::{Host, SourceConfig};
use crate::tls::{self, TlsMode};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use rustls_pki_types::ServerName;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A peer that vanished without a word is noticed after idle + 3 × interval: one minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// An open connection.
pub(crate) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Connects to the first host that takes the connection.
    pub(crate) async fn open(config: &SourceConfig) -> Result<Transport> {
        let place = config.place();
        let mut last = None;
        for (host, port) in &config.hosts {
            match timeout(config.connect_timeout, open_host(config, &place, host, *port)).await {
                Ok(Ok(transport)) => return Ok(transport),
                Ok(Err(error)) => last = Some(error),
                Err(_) => {
                    let after = config.connect_timeout;
                    last = Some(Error::Timeout { place: place.clone(), doing: "connecting", after });
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::InvalidUrl { shown: place, problem: "it names no host".into() }))
    }

    /// Whether nobody on the way can read along: a password may pass as it stands.
    pub(crate) fn is_private(&self) -> bool {
        !matches!(self, Transport::Tcp(_))
    }
}

async fn open_host(config: &SourceConfig, place: &str, host: &Host, port: u16) -> Result<Transport> {
    let unreachable = |source| Error::Unreachable { place: place.to_owned(), source };
    let name = match host {
        Host::Unix(dir) => {
            let socket =
                UnixStream::connect(dir.join(format!(".s.PGSQL.{port}"))).await.map_err(unreachable)?;
            return Ok(Transport::Unix(socket));
        }
        Host::Tcp(name) => name,
    };
    let socket = TcpStream::connect((name.as_str(), port)).await.map_err(unreachable)?;
    set_options(&socket).map_err(unreachable)?;
    if config.tls == TlsMode::Disable {
        return Ok(Transport::Tcp(socket));
    }
    negotiate_tls(config, place, name, socket).await
}

fn set_options(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    Ok(())
}

/// Asks with an SSLRequest and reads exactly the one byte of the answer, so that nothing an attacker slips in before
/// the handshake is ever taken for the server's words (CVE-2021-23222).
async fn negotiate_tls(
    config: &SourceConfig,
    place: &str,
    host: &str,
    mut socket: TcpStream,
) -> Result<Transport> {
    let lost = |source| Error::ConnectionLost { place: place.to_owned(), doing: "asking for TLS", source };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(lost)?;
    match socket.read_u8().await.map_err(lost)? {
        b'S' => {}
        b'N' if config.tls == TlsMode::Prefer => return Ok(Transport::Tcp(socket)),
        b'N' => return Err(Error::TlsRequired { place: place.to_owned() }),
        other => {
            let problem =
                format!("it answered an SSLRequest with byte {other:#04x}; is this a Postgres server?");
            return Err(Error::Protocol { place: place.to_owned(), problem });
        }
    }
    let handshake_failed = |source| Error::TlsHandshake { place: place.to_owned(), source };
    let name =
        ServerName::try_from(host.to_owned()).map_err(|err| handshake_failed(io::Error::other(err)))?;
    let stream = TlsConnector::from(tls::client_config(config)?)
        .connect(name, socket)
        .await
        .map_err(handshake_failed)?;
    Ok(Transport::Tls(Box::new(stream)))
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Transport::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Transport::Unix(socket) => Pin::new(socket).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Transport::Unix(socket) => Pin::new(socket).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Transport::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
