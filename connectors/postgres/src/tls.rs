//! How a connection is protected, in the words of Postgres's `sslmode`.
//!
//! ```text
//!   mode         encrypted      certificate is checked       host name is checked
//!   disable      no             -                            -
//!   prefer       if offered     only against a `ca_file`     no
//!   require      yes            only against a `ca_file`     no
//!   verify-ca    yes            yes                          no
//!   verify-full  yes            yes                          yes
//! ```
//!
//! Without a `ca_file` the system's certificate authorities are trusted. A certificate that stands in the `ca_file`
//! itself is trusted as it is: a self-signed server certificate handed out as "the CA" is common with Postgres, and
//! OpenSSL-based clients accept it.

use crate::error::{Error, Result};
use crate::source_config::SourceConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// A certificate bundle of every public authority is a quarter of this.
const MAX_CA_FILE_BYTES: u64 = 4 << 20;

/// How far a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsMode {
    /// Never encrypted.
    Disable,
    /// Encrypted where the server offers it.
    #[default]
    Prefer,
    /// Always encrypted; whoever answers is believed unless a CA file is given.
    Require,
    /// Encrypted, and the certificate comes from a trusted authority.
    VerifyCa,
    /// As `VerifyCa`, and the certificate names the host.
    VerifyFull,
}

impl FromStr for TlsMode {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "disable" => Ok(TlsMode::Disable),
            "prefer" => Ok(TlsMode::Prefer),
            "require" => Ok(TlsMode::Require),
            "verify-ca" => Ok(TlsMode::VerifyCa),
            "verify-full" => Ok(TlsMode::VerifyFull),
            other => {
                Err(format!("`{other}` is no TLS mode: disable, prefer, require, verify-ca or verify-full"))
            }
        }
    }
}

/// The TLS settings for one configuration. Files are read at each connection, so a renewed CA needs no restart.
pub fn client_config(config: &SourceConfig) -> Result<Arc<ClientConfig>> {
    // Named explicitly: with a second provider linked into the binary, rustls would refuse to choose one.
    let provider = Arc::new(ring::default_provider());
    let verifier = ServerCertificateCheck::new(config, &provider)?;
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| Error::TlsHandshake {
            place: config.place(),
            source: std::io::Error::other(source),
        })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(tls))
}

/// What is believed about the server's certificate.
#[derive(Debug)]
enum Trust {
    /// Anything (`require` and `prefer` without a CA file).
    Anyone,
    /// A chain to one of `roots`, or one of `pinned` itself.
    Authorities { roots: RootCertStore, pinned: Vec<CertificateDer<'static>> },
}

#[derive(Debug)]
struct ServerCertificateCheck {
    trust: Trust,
    check_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertificateCheck {
    fn new(config: &SourceConfig, provider: &CryptoProvider) -> Result<Self> {
        let trust = match (&config.ca_file, config.tls) {
            (Some(file), _) => authorities_from_file(file)?,
            (None, TlsMode::VerifyCa | TlsMode::VerifyFull) => system_authorities()?,
            (None, TlsMode::Disable | TlsMode::Prefer | TlsMode::Require) => Trust::Anyone,
        };
        Ok(ServerCertificateCheck {
            trust,
            check_name: config.tls == TlsMode::VerifyFull,
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

fn authorities_from_file(file: &Path) -> Result<Trust> {
    let unusable = |problem: String| Error::CaFile { file: file.display().to_string(), problem };
    let size = std::fs::metadata(file).map_err(|err| unusable(err.to_string()))?.len();
    if size > MAX_CA_FILE_BYTES {
        return Err(unusable(format!("it is {size} bytes long, more than any list of certificates")));
    }
    let pinned = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|err| unusable(err.to_string()))?;
    if pinned.is_empty() {
        return Err(unusable("it holds no certificate in PEM form".into()));
    }
    let mut roots = RootCertStore::empty();
    // A certificate that is no usable trust anchor still counts when the server presents exactly it.
    roots.add_parsable_certificates(pinned.iter().cloned());
    Ok(Trust::Authorities { roots, pinned })
}

fn system_authorities() -> Result<Trust> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let problem = found.errors.first().map_or_else(|| "there is none".to_owned(), ToString::to_string);
        return Err(Error::CaFile {
            file: "the system's list of certificate authorities".into(),
            problem: format!("{problem}; name one with `ca_file`"),
        });
    }
    Ok(Trust::Authorities { roots, pinned: Vec::new() })
}

impl ServerCertVerifier for ServerCertificateCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if let Trust::Authorities { roots, pinned } = &self.trust {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            if !pinned.contains(end_entity) {
                verify_server_cert_signed_by_trust_anchor(
                    &certificate,
                    roots,
                    intermediates,
                    now,
                    self.algorithms.all,
                )?;
            }
            if self.check_name {
                verify_server_name(&certificate, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
