//! A listener's certificate: the gateway's, and whatever else of Tidewater listens with TLS.
//!
//! The gateway's encryption ends here: between gateway and Postgres lies a Unix socket. That is also why SCRAM with channel binding
//! (`SCRAM-SHA-256-PLUS`) cannot pass: it proves to the client that the one who knows its password also holds the
//! certificate, and those are two programs. Postgres does not offer it on a Unix socket, so clients take plain
//! `SCRAM-SHA-256` unless they insist (`channel_binding=require`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::{CoreError, Result};

/// The protocol name that clients announce when they begin with TLS at once (PostgreSQL 17).
pub(crate) const ALPN: &[u8] = b"postgresql";

/// A chain of certificates takes a few kilobytes.
const FILE_LIMIT: u64 = 1 << 20;

/// Where the certificate and its key lie, in PEM form.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate, followed by those between it and the authority.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// Follows the files: a renewed certificate serves the next connection without a restart.
pub struct ServerTls {
    files: TlsFiles,
    setting: &'static str,
    protocol: &'static [u8],
    loaded: Mutex<Loaded>,
}

struct Loaded {
    stamp: Option<Stamp>,
    config: Arc<ServerConfig>,
}

/// What changes when a file is replaced.
type Stamp = [(SystemTime, u64); 2];

impl ServerTls {
    /// Reads the files that `setting` of the configuration names, for a listener that speaks `protocol` (its name in ALPN).
    ///
    /// # Errors
    /// A file cannot be read, or does not hold what it should.
    pub fn load(files: TlsFiles, setting: &'static str, protocol: &'static [u8]) -> Result<ServerTls> {
        let loaded = Loaded { stamp: stamp_of(&files), config: read(&files, setting, protocol)? };
        Ok(ServerTls { files, setting, protocol, loaded: Mutex::new(loaded) })
    }

    /// Shakes hands with a client, for as long as it likes: whoever calls sets the limit.
    ///
    /// # Errors
    /// What the client sends is no TLS, or it does not take the certificate.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        TlsAcceptor::from(self.current()).accept(stream).await
    }

    /// The settings for one more connection.
    fn current(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp_of(&self.files);
        if stamp != loaded.stamp {
            // Also when it cannot be read: it is tried again when it has changed again, not at each connection.
            loaded.stamp = stamp;
            match read(&self.files, self.setting, self.protocol) {
                Ok(config) => {
                    tracing::info!(cert_file = %self.files.cert_file.display(), "the changed certificate is in use");
                    loaded.config = config;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        error,
                        "the changed certificate cannot be used; the one before stays in use"
                    );
                }
            }
        }
        Arc::clone(&loaded.config)
    }
}

fn stamp_of(files: &TlsFiles) -> Option<Stamp> {
    let stamp = |path: &Path| {
        let metadata = path.metadata().ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    Some([stamp(&files.cert_file)?, stamp(&files.key_file)?])
}

fn read(files: &TlsFiles, setting: &'static str, protocol: &[u8]) -> Result<Arc<ServerConfig>> {
    let unusable = |file: &Path| {
        let file = file.to_owned();
        move |source: Box<dyn std::error::Error + Send + Sync>| CoreError::Certificate {
            setting,
            file,
            source,
        }
    };
    for path in [&files.cert_file, &files.key_file] {
        let size = path.metadata().map_err(CoreError::io("read", path))?.len();
        if size > FILE_LIMIT {
            return Err(unusable(path)(format!("it is {size} bytes long").into()));
        }
    }
    let chain = CertificateDer::pem_file_iter(&files.cert_file)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|error| unusable(&files.cert_file)(error.into()))?;
    let key = PrivateKeyDer::from_pem_file(&files.key_file)
        .map_err(|error| unusable(&files.key_file)(error.into()))?;
    // Named explicitly: with a second provider linked into the binary, rustls would refuse to choose one.
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| unusable(&files.cert_file)(error.into()))?;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}
