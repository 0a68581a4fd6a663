//! A look at the server's first words before tokio-postgres acts on them.
//!
//! The library sends the password in clear text to whoever asks for it. Over a wire that others can read, a single forged
//! message would do; so the first message, which is where Postgres names its authentication method, is read along.

use crate::transport::Transport;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `R`, a length, and the method's number.
const FIRST_WORDS: usize = 9;
/// From the protocol's `Authentication…` messages.
const CLEAR_TEXT: u32 = 3;
const MD5: u32 = 5;
const SASL: u32 = 10;

/// Why the log-in was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the server asked for the password in clear text")]
    ClearText,
    #[error("the server asked for a password and there is none")]
    NoPassword,
}

pub(crate) struct GuardedTransport {
    transport: Transport,
    has_password: bool,
    seen: Vec<u8>,
}

impl GuardedTransport {
    pub(crate) fn new(transport: Transport, has_password: bool) -> Self {
        GuardedTransport { transport, has_password, seen: Vec::with_capacity(FIRST_WORDS) }
    }

    /// Nothing can be made of the message before its last byte is here, so looking then is soon enough.
    fn look(&mut self, new: &[u8]) -> io::Result<()> {
        if self.seen.len() == FIRST_WORDS {
            return Ok(());
        }
        self.seen.extend(new.iter().take(FIRST_WORDS - self.seen.len()));
        let [b'R', _, _, _, _, method @ ..] = self.seen.as_slice() else { return Ok(()) };
        match <[u8; 4]>::try_from(method).map(u32::from_be_bytes) {
            Ok(CLEAR_TEXT | MD5 | SASL) if !self.has_password => Err(io::Error::other(Refusal::NoPassword)),
            Ok(CLEAR_TEXT) if !self.transport.is_private() => Err(io::Error::other(Refusal::ClearText)),
            _ => Ok(()),
        }
    }
}

/// The refusal inside an error of the client library.
pub(crate) fn refusal(error: &tokio_postgres::Error) -> Option<Refusal> {
    let io = std::error::Error::source(error)?.downcast_ref::<io::Error>()?;
    io.get_ref()?.downcast_ref::<Refusal>().copied()
}

impl AsyncRead for GuardedTransport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.transport).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = &polled {
            this.look(buf.filled().get(before..).unwrap_or_default())?;
        }
        polled
    }
}

impl AsyncWrite for GuardedTransport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }
}
