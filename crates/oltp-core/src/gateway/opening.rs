//! From a fresh connection to what its client wants.
//!
//! ```text
//!   TLS at once (first byte 0x16) ─────────────► handshake ─┐
//!   SSLRequest ── 'S' ─────────────────────────► handshake ─┤
//!              └─ 'N' (no certificate configured) ──────────┼─► StartupMessage or CancelRequest
//!   GSSENCRequest ── 'N' ───────────────────────────────────┤
//!   StartupMessage or CancelRequest at once ────────────────┘
//! ```
//!
//! The caller bounds the time of all this together; the packets bound themselves. Exactly one packet is read before it
//! is answered, so that nothing an attacker slips in ahead of a handshake is ever taken for the client's words
//! (CVE-2021-23214).

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client_stream::ClientStream;
use super::refusal::Refusal;
use super::server_tls::{ALPN, ServerTls};
use super::startup_message::{CancelRequest, FirstPacket, PREFIX_BYTES, StartupMessage};

/// The first byte of a TLS handshake record; no Postgres packet of bearable length begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the client wants.
pub(crate) enum Opened {
    Session(ClientStream, StartupMessage),
    Cancel(ClientStream, CancelRequest),
}

/// Why it does not come to that.
pub(crate) enum OpeningError {
    /// The connection broke, or the other side is no Postgres client.
    Lost(io::Error),
    /// A client that can be told.
    Refused(Box<ClientStream>, Refusal),
}

impl From<io::Error> for OpeningError {
    fn from(error: io::Error) -> OpeningError {
        OpeningError::Lost(error)
    }
}

/// Negotiates encryption and reads the packet that says what the client wants. `needs_tls` is whether this client
/// may not go on without.
pub(crate) async fn open(
    socket: TcpStream,
    tls: Option<&ServerTls>,
    needs_tls: bool,
) -> Result<Opened, OpeningError> {
    let mut first = [0];
    if socket.peek(&mut first).await? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    if first == [TLS_HANDSHAKE] {
        let tls = tls.ok_or_else(|| unexpected("it begins with TLS, and no certificate is configured"))?;
        return wanted(handshake(socket, tls, true).await?).await;
    }
    let mut client = ClientStream::Plain(socket);
    let (mut tls_asked, mut gss_asked) = (false, false);
    loop {
        match read_packet(&mut client).await {
            Ok(Ok(FirstPacket::SslRequest)) if !tls_asked => {
                tls_asked = true;
                match (client, tls) {
                    (ClientStream::Plain(mut socket), Some(tls)) => {
                        socket.write_all(b"S").await?;
                        return wanted(handshake(socket, tls, false).await?).await;
                    }
                    (mut unchanged, _) => {
                        unchanged.write_all(b"N").await?;
                        client = unchanged;
                    }
                }
            }
            Ok(Ok(FirstPacket::GssRequest)) if !gss_asked => {
                gss_asked = true;
                client.write_all(b"N").await?;
            }
            Ok(Ok(FirstPacket::Startup(_))) if needs_tls => {
                return Err(OpeningError::Refused(Box::new(client), Refusal::not_encrypted()));
            }
            packet => return settled(client, packet),
        }
    }
}

/// What the client wants, once encryption is settled.
async fn wanted(mut client: ClientStream) -> Result<Opened, OpeningError> {
    let packet = read_packet(&mut client).await;
    settled(client, packet)
}

type ReadPacket = io::Result<Result<FirstPacket, Refusal>>;

fn settled(client: ClientStream, packet: ReadPacket) -> Result<Opened, OpeningError> {
    match packet? {
        Ok(FirstPacket::Startup(message)) => Ok(Opened::Session(client, message)),
        Ok(FirstPacket::Cancel(request)) => Ok(Opened::Cancel(client, request)),
        Ok(FirstPacket::SslRequest | FirstPacket::GssRequest) => {
            Err(unexpected("it asks for encryption a second time").into())
        }
        Err(refusal) => Err(OpeningError::Refused(Box::new(client), refusal)),
    }
}

async fn read_packet(client: &mut ClientStream) -> ReadPacket {
    let mut prefix = [0; PREFIX_BYTES];
    client.read_exact(&mut prefix).await?;
    // An impossible length is no client of ours: an HTTP request, or a scan. It gets no answer.
    let remaining = FirstPacket::remaining(prefix).map_err(io::Error::other)?;
    let mut body = vec![0; remaining];
    client.read_exact(&mut body).await?;
    Ok(FirstPacket::parse(prefix, Bytes::from(body)).map_err(Refusal::from))
}

/// `at_once` is TLS without asking for it first; such clients have to name the protocol, or another protocol's
/// client could be led here (as `SSLRequest` does it for the others).
async fn handshake(socket: TcpStream, tls: &ServerTls, at_once: bool) -> io::Result<ClientStream> {
    let stream = tls.accept(socket).await?;
    if at_once && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(unexpected("it begins with TLS at once and does not name the protocol (ALPN)"));
    }
    Ok(ClientStream::Tls(Box::new(stream)))
}

fn unexpected(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}
