//! TLS in its two forms, and who may go without.

use std::sync::Arc;

use oltp_core::CoreError;
use oltp_core::gateway::{Gateway, GatewayLimits, GatewayOptions, Unencrypted};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::house::{Furnishing, House, complaint, issue_certificate, printed, text};

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

async fn house() -> House {
    House::furnished(Furnishing { limits: GatewayLimits::default(), tls: true }).await
}

async fn handshake(
    house: &House,
    socket: TcpStream,
    alpn: Option<&str>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(house.file("ca.pem")).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.into_iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), socket).await
}

async fn asked(house: &House) -> std::io::Result<TlsStream<TcpStream>> {
    let mut socket = TcpStream::connect(house.address).await.unwrap();
    socket.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'S');
    handshake(house, socket, None).await
}

#[tokio::test]
async fn tls_is_spoken_when_asked_for_and_at_once() {
    let house = house().await;
    let at_once =
        handshake(&house, TcpStream::connect(house.address).await.unwrap(), Some("postgresql")).await;
    for stream in [asked(&house).await.unwrap(), at_once.unwrap()] {
        let (client, connection) = house.config("shop").connect_raw(stream, NoTls).await.unwrap();
        tokio::spawn(connection);
        // The password went through SCRAM without channel binding, which ends where TLS ends.
        assert_eq!(text(&client, "SELECT repeat('x', 300000)").await.len(), 300_000);
    }
    house.close().await;
}

#[tokio::test]
async fn a_cancel_request_over_tls_ends_with_a_proper_goodbye() {
    let house = house().await;
    let mut stream = asked(&house).await.unwrap();
    let request = [0, 0, 0, 16, 0x04, 0xD2, 0x16, 0x2E, 0, 0, 0, 77, 1, 2, 3, 4];
    stream.write_all(&request).await.unwrap();
    // Without it this is an error: the answer might have been cut off by somebody on the way.
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    house.until(|counters| counters.cancels_dropped == 1).await;
    house.close().await;
}

#[tokio::test]
async fn tls_at_once_needs_the_name_of_the_protocol() {
    let house = house().await;
    let mut unnamed =
        handshake(&house, TcpStream::connect(house.address).await.unwrap(), None).await.unwrap();
    assert_eq!(unnamed.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let other = handshake(&house, TcpStream::connect(house.address).await.unwrap(), Some("h2")).await;
    assert!(other.is_err());
    house.until(|counters| counters.connections_refused == 2).await;
    house.close().await;
}

#[tokio::test]
async fn nothing_sent_ahead_of_the_handshake_is_taken_for_the_clients_words() {
    let house = house().await;
    let mut socket = TcpStream::connect(house.address).await.unwrap();
    let startup = b"\0\0\0\x17\0\x03\0\0user\0ann\0database\0\0";
    socket.write_all(&[SSL_REQUEST.as_slice(), startup].concat()).await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'S');
    assert!(handshake(&house, socket, None).await.is_err());
    house.until(|counters| counters.connections_refused == 1).await;
    house.close().await;
}

#[tokio::test]
async fn encryption_that_is_not_there_is_declined_and_the_client_decides() {
    let house = House::new().await;
    let mut socket = TcpStream::connect(house.address).await.unwrap();
    socket.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'N');
    let gss_request = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x30];
    socket.write_all(&gss_request).await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'N');
    let (client, connection) = house.config("shop").connect_raw(socket, NoTls).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(text(&client, "SELECT 'plain'").await, "plain");
    printed(house.psql("dbname=shop gssencmode=disable sslmode=prefer", "SELECT 1").await);
    house.close().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let house = house().await;
    let first = shown(&asked(&house).await.unwrap());
    issue_certificate(house.file("").as_path(), "renewed");
    // Half of the renewal: certificate and key do not belong together, and those before stay in use.
    std::fs::rename(house.file("renewed.crt"), house.file("server.crt")).unwrap();
    assert_eq!(shown(&asked(&house).await.unwrap()), first);
    std::fs::rename(house.file("renewed.key"), house.file("server.key")).unwrap();
    let second = CertificateDer::from_pem_file(house.file("server.crt")).unwrap();
    assert_ne!(second, first);
    assert_eq!(shown(&asked(&house).await.unwrap()), second);
    house.close().await;
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn a_gateway_for_other_machines_has_a_certificate_or_says_why_not() {
    let house = House::new().await;
    let options = |unencrypted| GatewayOptions {
        listen: "0.0.0.0:0".parse().unwrap(),
        tls: None,
        unencrypted,
        limits: GatewayLimits::default(),
    };
    let refused = Gateway::bind(options(Unencrypted::Loopback), house.waker.clone()).await.err().unwrap();
    assert!(matches!(refused, CoreError::GatewayUnprotected { .. }), "{refused}");
    Gateway::bind(options(Unencrypted::Anywhere), house.waker.clone()).await.unwrap();
    let mut taken = options(Unencrypted::Loopback);
    taken.listen = house.address;
    let refused = Gateway::bind(taken, house.waker.clone()).await.err().unwrap();
    assert!(matches!(refused, CoreError::GatewayAddress { .. }), "{refused}");
    let complaint = complaint(&house.psql("dbname=shop sslmode=require", "SELECT 1").await);
    assert!(complaint.contains("SSL"), "{complaint}");
    house.close().await;
}
