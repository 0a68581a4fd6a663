//! Connections that wait for a sleeping database.

use std::sync::atomic::Ordering;
use std::time::Duration;

use oltp_core::gateway::GatewayLimits;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::house::{Furnishing, House, connect, text, until};

#[tokio::test]
async fn connections_wait_for_a_sleeping_database_and_it_is_woken_once() {
    let house = House::new().await;
    let bed = house.waker.bed.lock().await;
    let mut many: JoinSet<_> = (0..20)
        .map(|_| {
            let config = house.config("shop");
            async move { connect(&config).await }
        })
        .collect();
    house.until(|counters| counters.waiting_now == 20).await;
    drop(bed);
    while let Some(client) = many.join_next().await {
        assert_eq!(text(&client.unwrap().unwrap(), "SELECT current_database()::text").await, "shop");
    }
    assert_eq!(house.waker.asked.load(Ordering::SeqCst), 1);
    assert_eq!(house.counters().waiting_now, 0);
    house.close().await;
}

#[tokio::test]
async fn a_pool_finds_its_sessions_ended_by_a_suspend_and_wakes_the_database() {
    let house = House::new().await;
    let pooled = house.connect("shop").await.unwrap();
    pooled.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (7)").await.unwrap();
    house.suspend().await;
    let error = pooled.query_one("SELECT 1", &[]).await.unwrap_err();
    assert!(error.is_closed() || error.code().is_some_and(|code| code.code() == "57P01"), "{error}");
    let again = house.connect("shop").await.unwrap();
    assert_eq!(text(&again, "SELECT a::text FROM t").await, "7");
    house.close().await;
}

#[tokio::test]
async fn a_client_that_gives_up_leaves_its_place_to_the_next() {
    let limits = GatewayLimits { waiting_per_branch: 1, ..GatewayLimits::default() };
    let house = House::furnished(Furnishing { limits, tls: false }).await;
    let bed = house.waker.bed.lock().await;
    {
        let waits = house.connect("shop");
        tokio::pin!(waits);
        tokio::select! {
            _ = &mut waits => panic!("the database sleeps"),
            () = house.until(|counters| counters.waiting_now == 1) => {}
        }
        let error = house.connect("shop").await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "53300");
    }
    house.until(|counters| counters.waiting_now == 0).await;
    let second = house.connect("shop");
    let release = async {
        house.until(|counters| counters.waiting_now == 1).await;
        drop(bed);
    };
    let (second, ()) = tokio::join!(second, release);
    second.unwrap();
    house.close().await;
}

#[tokio::test]
async fn waiting_has_an_end() {
    let limits = GatewayLimits { wake: Duration::from_millis(300), ..GatewayLimits::default() };
    let house = House::furnished(Furnishing { limits, tls: false }).await;
    let bed = house.waker.bed.lock().await;
    let error = house.connect("shop").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57P03");
    assert!(error.as_db_error().unwrap().hint().is_some());
    drop(bed);
    house.close().await;
}

#[tokio::test]
async fn a_server_that_is_still_starting_is_asked_again_and_not_by_the_client() {
    let house = House::new().await;
    house.connect("shop").await.unwrap();
    // Killed with work to recover: connections meet "the database system is starting up".
    let client = house.connect("shop").await.unwrap();
    client.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 300000) AS a").await.unwrap();
    let superuser = house.superuser().await;
    let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(backend).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    // The postmaster has noticed once it has ended the others too.
    until("the server is down", async || superuser.query_one("SELECT 1", &[]).await.is_err()).await;
    let asked = house.counters().wakes;
    let again = house.connect("shop").await.unwrap();
    assert_eq!(text(&again, "SELECT count(*)::text FROM t").await, "300000");
    assert!(house.counters().wakes > asked + 1, "it was not asked again");
    house.close().await;
}

#[tokio::test]
async fn a_gateway_that_shuts_down_tells_those_who_wait_and_lets_go_of_its_port() {
    let house = House::new().await;
    let bed = house.waker.bed.lock().await;
    let stop = async {
        house.until(|counters| counters.waiting_now == 1).await;
        house.shutdown.cancel();
    };
    let (refused, ()) = tokio::join!(house.connect("shop"), stop);
    assert_eq!(refused.unwrap_err().code().unwrap().code(), "57P03");
    drop(bed);
    let address = house.address;
    house.close().await;
    TcpStream::connect(address).await.unwrap_err();
}
