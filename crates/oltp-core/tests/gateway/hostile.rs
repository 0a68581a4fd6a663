//! Clients that are slow, wrong or too many.

use std::time::Duration;

use oltp_core::gateway::GatewayLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::house::{Furnishing, House, text};

async fn limited(limits: GatewayLimits) -> House {
    House::furnished(Furnishing { limits, tls: false }).await
}

/// Sends bytes and reads until the gateway closes.
async fn answer(house: &House, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(house.address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // Closing on unread bytes is a reset, which is an end like the other.
    let _ = socket.read_to_end(&mut answer).await;
    answer
}

#[tokio::test]
async fn a_client_that_does_not_say_in_time_what_it_wants_is_let_go() {
    let house =
        limited(GatewayLimits { opening_time: Duration::from_millis(100), ..Default::default() }).await;
    assert_eq!(answer(&house, b"").await, b"");
    assert_eq!(answer(&house, &[0, 0, 0]).await, b"");
    assert_eq!(answer(&house, &[0, 0, 0x20, 0, 0, 3, 0, 0, b'u']).await, b"");
    // It is counted when the connection has been closed.
    house.until(|counters| counters.connections_refused == 3).await;
    house.close().await;
}

#[tokio::test]
async fn of_those_who_say_nothing_only_so_many_are_listened_to() {
    let house = limited(GatewayLimits { opening: 2, ..Default::default() }).await;
    let first = TcpStream::connect(house.address).await.unwrap();
    let _second = TcpStream::connect(house.address).await.unwrap();
    house.until(|counters| counters.connections_accepted == 2).await;
    assert_eq!(answer(&house, b"").await, b"");
    assert_eq!(house.counters().connections_dropped, 1);
    drop(first);
    house.until(|counters| counters.connections_refused == 1).await;
    house.connect("shop").await.unwrap();
    house.close().await;
}

#[tokio::test]
async fn one_session_too_many_is_told_so() {
    let house = limited(GatewayLimits { connections: 1, ..Default::default() }).await;
    let only = house.connect("shop").await.unwrap();
    let error = house.connect("shop").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "53300");
    assert_eq!(text(&only, "SELECT 'served'").await, "served");
    drop(only);
    house.until(|counters| counters.sessions_now == 0).await;
    house.connect("shop").await.unwrap();
    house.close().await;
}

#[tokio::test]
async fn what_no_postgres_client_sends_gets_no_answer_or_an_error() {
    let house = House::new().await;
    assert_eq!(answer(&house, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await, b"");
    assert_eq!(answer(&house, &[0xFF; 64]).await, b"");
    assert_eq!(answer(&house, &[0; 64]).await, b"");
    // TLS at once, where there is no certificate.
    assert_eq!(answer(&house, &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]).await, b"");
    let says = |answer: Vec<u8>, code: &str| {
        assert_eq!(answer.first(), Some(&b'E'));
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(text.contains(&format!("C{code}\0")), "{text}");
    };
    says(answer(&house, b"\0\0\0\x08\0\x02\0\0").await, "0A000");
    says(answer(&house, b"\0\0\0\x0c\0\x03\0\0abcd").await, "08P01");
    says(answer(&house, b"\0\0\0\x09\0\x03\0\0\0").await, "28000");
    let endless = [b"\0\0\x27\x10\0\x03\0\0user\0ann\0x\0".to_vec(), vec![b'x'; 9979], vec![0, 0]].concat();
    says(answer(&house, &endless).await, "08P01");
    house.connect("shop").await.unwrap();
    house.close().await;
}

#[tokio::test]
async fn what_a_client_sends_before_it_is_asked_reaches_its_server() {
    let house = House::new().await;
    let bed = house.waker.bed.lock().await;
    let mut socket = TcpStream::connect(house.address).await.unwrap();
    socket.write_all(b"\0\0\0\x20\0\x03\0\0user\0ann\0database\0shop\0\0").await.unwrap();
    house.until(|counters| counters.waiting_now == 1).await;
    // A password message that answers no question: the server takes it for the answer to its own.
    socket.write_all(&[b"p\0\0\x40\0".to_vec(), vec![b'x'; 0x4000 - 4]].concat()).await.unwrap();
    drop(bed);
    let mut said = Vec::new();
    let _ = socket.read_to_end(&mut said).await;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("SCRAM-SHA-256") && said.contains("28P01"), "{said}");
    house.close().await;
}
