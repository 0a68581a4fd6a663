//! TLS in front of the server. PostgreSQL builds for tests are often made without it, so this speaks the server's side of the
//! negotiation, ends the encryption and passes the rest through.

use crate::server::server;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Length 8 and the code of an SSLRequest.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

/// A port where only encrypted sessions are taken.
pub async fn tls_front() -> u16 {
    let certificate = CertificateDer::from_pem_file(server().file("server.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(server().file("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut request = [0; 8];
                client.read_exact(&mut request).await?;
                assert_eq!(request, SSL_REQUEST, "an unencrypted session");
                client.write_all(b"S").await?;
                let mut encrypted = acceptor.accept(client).await?;
                let mut plain = TcpStream::connect(("127.0.0.1", server().port)).await?;
                copy_bidirectional(&mut encrypted, &mut plain).await
            });
        }
    });
    port
}
