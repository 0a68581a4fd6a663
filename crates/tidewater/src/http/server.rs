//! Listeners and connections.

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use oltp_core::gateway::{ServerTls, TlsFiles};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// A caller that is slower than this with its headers is not waited for.
const HEADER_LIMIT: Duration = Duration::from_secs(10);

/// The protocol's name in TLS (ALPN).
const HTTP: &[u8] = b"http/1.1";

/// No request of these takes this long; a connection that idles longer is closed.
const CONNECTION_LIMIT: Duration = Duration::from_secs(120);

/// More callers at once than any monitoring has.
const MAX_CONNECTIONS: usize = 256;

/// After a failed accept (too many open files), time for connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The kernel's `sun_path` less its final zero byte; macOS has four bytes less than Linux.
const MAX_SOCKET_PATH: usize = 103;

/// A listener cannot be had.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ServeError {
    /// The TCP address cannot be listened on.
    #[error("cannot listen on {address} (`listen.http`)")]
    #[diagnostic(
        code(tidewater::http::address),
        help("another process may have the port: choose another in `listen.http`")
    )]
    Address {
        /// the address
        address: SocketAddr,
        /// what the system said
        source: io::Error,
    },
    /// The certificate or its key is of no use.
    #[error("nobody could be answered with TLS on `listen.http`")]
    #[diagnostic(
        code(tidewater::http::certificate),
        help(
            "give the PEM files of a certificate and its key in `listen.tls`, or leave it out and listen on loopback"
        )
    )]
    Certificate {
        /// what is wrong with it
        source: Box<oltp_core::CoreError>,
    },
    /// The control socket cannot be made.
    #[error("cannot make the control socket {}", path.display())]
    #[diagnostic(
        code(tidewater::http::socket),
        help("`state_dir` has to be a folder that this user may write, on a local disk")
    )]
    Socket {
        /// its path
        path: PathBuf,
        /// what the system said
        source: io::Error,
    },
    /// Socket paths are short by the kernel's rule.
    #[error("the path of the control socket is too long: {} is over {MAX_SOCKET_PATH} bytes", path.display())]
    #[diagnostic(code(tidewater::http::socket_path), help("choose a shorter `state_dir`"))]
    PathTooLong {
        /// the path
        path: PathBuf,
    },
}

/// Makes the control socket, in place of what an earlier daemon left. The state folder's lock must be held.
pub fn bind_control_socket(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Socket { path: path.to_owned(), source };
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(ServeError::PathTooLong { path: path.to_owned() });
    }
    // Its mode is right before it has its name, so nobody can open it in between.
    let unnamed = path.with_file_name(".control");
    match std::fs::remove_file(&unnamed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&unnamed).map_err(failed)?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    std::fs::rename(&unnamed, path).map_err(failed)?;
    Ok(listener)
}

/// Reads the certificate of `listen.tls`.
pub fn load_certificate(files: TlsFiles) -> Result<ServerTls, ServeError> {
    ServerTls::load(files, "listen.tls", HTTP)
        .map_err(|source| ServeError::Certificate { source: Box::new(source) })
}

/// Answers on a TCP address until `shutdown`; with a certificate, only who speaks TLS.
pub async fn serve_tcp(
    listener: TcpListener,
    tls: Option<ServerTls>,
    router: Router,
    shutdown: CancellationToken,
) {
    let accept = || async { listener.accept().await.map(|(stream, _)| stream) };
    let Some(tls) = tls.map(Arc::new) else { return serve(accept, answer, router, shutdown).await };
    let answer_encrypted = |stream, router| {
        let tls = Arc::clone(&tls);
        async move {
            match tokio::time::timeout(HEADER_LIMIT, tls.accept(stream)).await {
                Ok(Ok(stream)) => answer(stream, router).await,
                Ok(Err(error)) => tracing::debug!(%error, "a caller went away before TLS was agreed on"),
                Err(_) => tracing::debug!("a caller took too long to agree on TLS"),
            }
        }
    };
    serve(accept, answer_encrypted, router, shutdown).await;
}

/// Answers on the control socket until `shutdown`.
pub async fn serve_control_socket(listener: UnixListener, router: Router, shutdown: CancellationToken) {
    serve(|| async { listener.accept().await.map(|(stream, _)| stream) }, answer, router, shutdown).await;
}

async fn serve<S, F, A>(
    mut accept: impl FnMut() -> F,
    answer: impl Fn(S, Router) -> A,
    router: Router,
    shutdown: CancellationToken,
) where
    F: Future<Output = io::Result<S>>,
    A: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (accept().await, slot)
        };
        let (stream, slot) = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = accepted => accepted,
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (answered, shutdown) = (answer(stream, router.clone()), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = answered => {}
            }
            drop(slot);
        });
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, router: Router) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a caller went away"),
        Err(_) => tracing::debug!("a connection was open for too long"),
    }
}
