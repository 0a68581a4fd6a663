//! Servers that do not keep to the protocol, or to one's expectations of it.

use postgres_connector::{Error, ReplicationSession, SourceConfig, TlsMode, connect};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Something on a port that reads one packet and answers with `answer`, for every connection.
async fn impostor(answer: &'static [u8], tls: TlsMode) -> SourceConfig {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut packet = [0; 1024];
                if socket.read(&mut packet).await.is_ok() && socket.write_all(answer).await.is_ok() {
                    // Stays open until the client goes.
                    while matches!(socket.read(&mut packet).await, Ok(1..)) {}
                }
            });
        }
    });
    let url = format!("postgres://sync@127.0.0.1:{port}/crm?connect_timeout=1");
    SourceConfig::from_url(&url, Some("hunter2".to_owned().into()), Some(tls), None).unwrap()
}

#[tokio::test]
async fn tls_is_demanded_of_a_server_that_has_none() {
    let config = impostor(b"N", TlsMode::Require).await;
    assert!(matches!(connect(&config).await, Err(Error::TlsRequired { .. })));
    assert!(matches!(ReplicationSession::connect(&config).await, Err(Error::TlsRequired { .. })));
}

#[tokio::test]
async fn what_is_no_postgres_server_is_told_so() {
    let config = impostor(b"HTTP/1.1 400 Bad Request\r\n\r\n", TlsMode::Require).await;
    assert!(matches!(connect(&config).await, Err(Error::Protocol { .. })));
}

#[tokio::test]
async fn a_password_never_goes_in_clear_text_over_an_open_wire() {
    let config = impostor(b"R\0\0\0\x08\0\0\0\x03", TlsMode::Disable).await;
    assert!(matches!(ReplicationSession::connect(&config).await, Err(Error::ClearTextPassword { .. })));
    assert!(matches!(connect(&config).await, Err(Error::ClearTextPassword { .. })));
}

#[tokio::test]
async fn a_message_of_two_gigabytes_is_refused_at_its_header() {
    let config = impostor(b"R\x7F\xFF\xFF\xFF\0\0\0\0", TlsMode::Disable).await;
    assert!(matches!(ReplicationSession::connect(&config).await, Err(Error::Protocol { .. })));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_not_waited_for() {
    let config = impostor(b"", TlsMode::Disable).await;
    let asked =
        tokio::time::timeout(Duration::from_secs(20), ReplicationSession::connect(&config)).await.unwrap();
    assert!(matches!(asked, Err(Error::Timeout { .. })));
    assert!(matches!(connect(&config).await, Err(Error::Timeout { .. })));
}

#[tokio::test]
async fn a_closed_port_is_unreachable_and_may_open_later() {
    let config = SourceConfig::from_url("postgres://sync@127.0.0.1:1/crm", None, None, None).unwrap();
    let error = connect(&config).await.err().unwrap();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_transient(), "{error:?}");
}
