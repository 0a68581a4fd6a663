//! Cancel requests, and commits that wait for the keepers.

use std::time::Duration;

use tokio_postgres::{Client, NoTls};

use crate::house::{House, text, until};

#[tokio::test]
async fn a_statement_is_cancelled_and_its_session_goes_on() {
    let house = House::new().await;
    let client = house.connect("shop").await.unwrap();
    let superuser = house.superuser().await;
    let cancel = async {
        until_backend(&superuser, "wait_event = 'PgSleep'").await;
        client.cancel_token().cancel_query(NoTls).await.unwrap();
    };
    let (slept, ()) = tokio::join!(client.batch_execute("SELECT pg_sleep(600)"), cancel);
    assert_eq!(slept.unwrap_err().code().unwrap().code(), "57014");
    assert_eq!(text(&client, "SELECT 'alive'").await, "alive");
    // It is counted when the server has said so, and the statement may have ended before.
    house.until(|counters| counters.cancels_delivered == 1).await;
    assert_eq!(house.counters().cancels_held, 0);
    house.close().await;
}

#[tokio::test]
async fn psql_cancels_with_the_long_keys_of_protocol_3_2() {
    let house = House::new().await;
    house.connect("shop").await.unwrap();
    let superuser = house.superuser().await;
    for version in ["3.0", "3.2"] {
        let mut psql = house.program("psql");
        let connection = format!("dbname=shop max_protocol_version={version} min_protocol_version={version}");
        let psql = psql.args(["-X", "-c", "SELECT pg_sleep(600)", &connection]).spawn().unwrap();
        until_backend(&superuser, "wait_event = 'PgSleep'").await;
        let pid = rustix::process::Pid::from_raw(i32::try_from(psql.id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let output = psql.wait_with_output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("canceling statement due to user request"), "{version}: {said}");
    }
    house.close().await;
}

#[tokio::test]
async fn a_wrong_key_cancels_nothing() {
    let house = House::new().await;
    let client = house.connect("shop").await.unwrap();
    let process_id: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let mut request = vec![0, 0, 0, 16, 0x04, 0xD2, 0x16, 0x2E];
    request.extend(process_id.to_be_bytes());
    request.extend([1, 2, 3, 4]);
    let mut stranger = tokio::net::TcpStream::connect(house.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stranger, &request).await.unwrap();
    house.until(|counters| counters.cancels_dropped == 1).await;
    assert_eq!(house.counters().cancels_delivered, 0);
    house.close().await;
}

/// Invariant 2: a commit that the keepers' majority lacks is never seen by another session.
#[tokio::test]
async fn a_commit_that_waits_for_the_keepers_is_not_cancelled() {
    let house = House::new().await;
    let client = house.connect("shop").await.unwrap();
    client.batch_execute("CREATE TABLE t (a int)").await.unwrap();
    let superuser = house.superuser().await;
    keepers_answer(&superuser, false).await;

    let cancel = async {
        until_backend(&superuser, "wait_event = 'SyncRep'").await;
        let token = client.cancel_token();
        let held = tokio::spawn(async move { token.cancel_query(NoTls).await });
        house.until(|counters| counters.cancels_held == 1).await;
        // A second one, and more time than any of Postgres's own timers needs.
        client.cancel_token().cancel_query(NoTls).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(text(&superuser, "SELECT count(*)::text FROM t").await, "0");
        keepers_answer(&superuser, true).await;
        // The connection of the request is closed when nothing can come of it any more.
        held.await.unwrap().unwrap();
    };
    let (inserted, ()) = tokio::join!(client.batch_execute("INSERT INTO t VALUES (7)"), cancel);
    inserted.unwrap();
    assert_eq!(text(&superuser, "SELECT count(*)::text FROM t").await, "1");
    // The statement after it is not hit.
    client.batch_execute("SELECT pg_sleep(0.1)").await.unwrap();
    assert_eq!(house.counters().cancels_delivered, 0);
    house.close().await;
}

#[tokio::test]
async fn what_follows_such_a_commit_in_the_same_statement_is_cancelled() {
    let house = House::new().await;
    let client = house.connect("shop").await.unwrap();
    client.batch_execute("CREATE TABLE t (a int)").await.unwrap();
    let superuser = house.superuser().await;
    keepers_answer(&superuser, false).await;
    let cancel = async {
        until_backend(&superuser, "wait_event = 'SyncRep'").await;
        let token = client.cancel_token();
        tokio::spawn(async move { token.cancel_query(NoTls).await });
        house.until(|counters| counters.cancels_held == 1).await;
        keepers_answer(&superuser, true).await;
    };
    let statements = "BEGIN; INSERT INTO t VALUES (7); COMMIT; SELECT pg_sleep(600)";
    let (ended, ()) = tokio::join!(client.batch_execute(statements), cancel);
    assert_eq!(ended.unwrap_err().code().unwrap().code(), "57014");
    assert_eq!(text(&client, "SELECT count(*)::text FROM t").await, "1");
    house.close().await;
}

/// With `false`, commits wait for a standby that never comes.
async fn keepers_answer(superuser: &Client, answer: bool) {
    let names = if answer { "" } else { "tidewater_keeper" };
    let statement = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
    superuser.batch_execute("SET synchronous_commit = local").await.unwrap();
    superuser.batch_execute(&statement).await.unwrap();
    superuser.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    until("the server has read its settings anew", async || {
        text(superuser, "SHOW synchronous_standby_names").await == names
    })
    .await;
    // The backends learn from the checkpointer whether there is anybody to wait for. It was told when this session
    // was, and reads its settings before it begins a checkpoint; the first one may have begun before it was told.
    superuser.batch_execute("CHECKPOINT").await.unwrap();
    superuser.batch_execute("CHECKPOINT").await.unwrap();
}

/// Waits until the owner's backend is so.
async fn until_backend(superuser: &Client, condition: &str) {
    let query = format!("SELECT count(*)::text FROM pg_stat_activity WHERE usename = 'ann' AND {condition}");
    until(condition, async || text(superuser, &query).await != "0").await;
}
