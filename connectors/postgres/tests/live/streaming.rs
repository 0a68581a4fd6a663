//! Slots and the stream.

use crate::server::{database, until_true};
use postgres_connector::{
    Client, Error, Event, HEARTBEAT_PREFIX, LogicalStream, ReplicationSession, SlotOptions, SourceConfig,
    StreamOptions, WalStatus, cleanup, connect, current_wal_lsn, drop_slot, heartbeat, list_slots, slot_name,
    system_identifier, transactions_blocking,
};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use wal_decoder::Lsn;

const PATIENCE: Duration = Duration::from_secs(30);
const TEMPORARY: SlotOptions = SlotOptions { temporary: true, export_snapshot: false, failover: false };
const PERMANENT: SlotOptions = SlotOptions { temporary: false, export_snapshot: false, failover: true };

async fn table(name: &str) -> (SourceConfig, Client) {
    let (config, client) = database(name).await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE t")
        .await
        .unwrap();
    (config, client)
}

async fn make_slot(config: &SourceConfig, name: &str) -> Lsn {
    let mut session = ReplicationSession::connect(config).await.unwrap();
    let slot = session.create_logical_slot(name, PERMANENT).await.unwrap();
    session.close().await.unwrap();
    slot.consistent_point
}

async fn stream(config: &SourceConfig, slot: &str, from: Lsn) -> Result<LogicalStream, Error> {
    let session = ReplicationSession::connect(config).await.unwrap();
    session.start_logical(slot, from, &["p"], StreamOptions::for_server(180_000)).await
}

/// Reads messages until a Commit, or a StreamCommit; returns them with the commit's end position.
async fn transaction(stream: &mut LogicalStream) -> (Vec<u8>, Vec<usize>, Lsn) {
    let (mut kinds, mut sizes) = (Vec::new(), Vec::new());
    loop {
        if let Event::Wal { data, .. } = timeout(PATIENCE, stream.next()).await.unwrap().unwrap() {
            kinds.push(data[0]);
            sizes.push(data.len());
            // Commit: kind, flags, commit LSN, end LSN. StreamCommit has its transaction's id before the flags.
            let end = match data[0] {
                b'C' => 10,
                b'c' => 14,
                _ => continue,
            };
            return (kinds, sizes, Lsn(u64::from_be_bytes(data[end..end + 8].try_into().unwrap())));
        }
    }
}

#[tokio::test]
async fn what_was_confirmed_never_comes_again() {
    let (config, client) = table("confirmed").await;
    let slot = slot_name("t", "confirmed", 1);
    let from = make_slot(&config, &slot).await;
    client.batch_execute("INSERT INTO t VALUES (1, 'one'); INSERT INTO t VALUES (2, 'two')").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (3, 'three')").await.unwrap();

    let mut first = stream(&config, &slot, from).await.unwrap();
    let (kinds, _, end) = transaction(&mut first).await;
    assert_eq!(kinds, b"BRIIC");
    first.confirm(end).await.unwrap();
    first.close().await.unwrap();
    until_true(
        &client,
        "SELECT active_pid IS NULL FROM pg_replication_slots WHERE slot_name = 'tidewater_t_confirmed_g1'",
    )
    .await;
    let slots = list_slots(&client, "t", "confirmed").await.unwrap();
    assert_eq!((slots.len(), slots[0].generation, slots[0].wal_status), (1, 1, WalStatus::Reserved));
    assert_eq!(slots[0].confirmed_flush_lsn, Some(end));

    let mut second = stream(&config, &slot, end).await.unwrap();
    let (kinds, _, end_of_second) = transaction(&mut second).await;
    assert_eq!(kinds, b"BRIC");
    assert!(end_of_second > end);
    second.close().await.unwrap();
    drop_slot(&client, &slot).await.unwrap();
    assert!(list_slots(&client, "t", "confirmed").await.unwrap().is_empty());
}

#[tokio::test]
async fn an_unconfirmed_transaction_comes_again() {
    let (config, client) = table("unconfirmed").await;
    let from = make_slot(&config, "unconfirmed_1").await;
    client.batch_execute("INSERT INTO t VALUES (1, 'one')").await.unwrap();
    for _ in 0..2 {
        let mut stream = stream(&config, "unconfirmed_1", from).await.unwrap();
        assert_eq!(transaction(&mut stream).await.0, b"BRIC");
        stream.close().await.unwrap();
    }
    drop_slot(&client, "unconfirmed_1").await.unwrap();
}

#[tokio::test]
async fn a_slot_in_use_names_its_reader_and_is_not_dropped() {
    let (config, client) = table("in_use").await;
    let from = make_slot(&config, "in_use_1").await;
    let _reader = stream(&config, "in_use_1", from).await.unwrap();
    let sql = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'in_use_1'";
    let reader: i32 = client.query_one(sql, &[]).await.unwrap().get(0);
    let second = stream(&config, "in_use_1", from).await.err().unwrap();
    let dropped = drop_slot(&client, "in_use_1").await.err().unwrap();
    for error in [second, dropped] {
        assert!(
            matches!(&error, Error::SlotInUse { pid: Some(pid), .. } if *pid as i32 == reader),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_slot_that_is_not_there_is_missing() {
    let (config, client) = table("missing").await;
    assert!(matches!(stream(&config, "nowhere", Lsn::ZERO).await, Err(Error::SlotMissing { .. })));
    assert!(matches!(drop_slot(&client, "nowhere").await, Err(Error::SlotMissing { .. })));
    make_slot(&config, "twice").await;
    let mut session = ReplicationSession::connect(&config).await.unwrap();
    assert!(matches!(session.create_logical_slot("twice", PERMANENT).await, Err(Error::SlotExists { .. })));
    // An error leaves the session usable.
    let identity = session.identify_system().await.unwrap();
    assert_eq!(identity.system_id, system_identifier(&client).await.unwrap());
    assert!(identity.xlogpos <= current_wal_lsn(&client).await.unwrap());
    drop_slot(&client, "twice").await.unwrap();
}

#[tokio::test]
async fn a_killed_walsender_ends_the_stream_with_the_servers_reason() {
    let (config, client) = table("killed").await;
    let mut session = ReplicationSession::connect(&config).await.unwrap();
    let slot = session.create_logical_slot("killed_1", TEMPORARY).await.unwrap();
    let pid = session.backend_pid();
    let mut stream = session
        .start_logical("killed_1", slot.consistent_point, &["p"], StreamOptions::for_server(180_000))
        .await
        .unwrap();
    let confirmer = stream.confirmer();
    client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
    let error = loop {
        match timeout(PATIENCE, stream.next()).await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::SessionEnded { .. }) && error.is_transient(), "{error:?}");
    assert!(matches!(stream.next().await, Err(Error::StreamEnded { .. })));
    assert!(matches!(confirmer.confirm(slot.consistent_point).await, Err(Error::StreamEnded { .. })));
    stream.close().await.unwrap();
}

#[tokio::test]
async fn a_large_transaction_arrives_whole_while_it_is_open() {
    let (config, client) = table("large").await;
    client.batch_execute("ALTER TABLE t ALTER v SET STORAGE EXTERNAL").await.unwrap();
    let mut large = config.clone();
    large.options = Some("-c logical_decoding_work_mem=64kB".into());
    let mut session = ReplicationSession::connect(&large).await.unwrap();
    let slot = session.create_logical_slot("large_1", TEMPORARY).await.unwrap();
    let mut stream = session
        .start_logical("large_1", slot.consistent_point, &["p"], StreamOptions::for_server(180_000))
        .await
        .unwrap();
    let lengths = "SELECT i, repeat('x', 3000000 + i) FROM generate_series(1, 8) i";
    client.batch_execute(&format!("BEGIN; INSERT INTO t {lengths}")).await.unwrap();
    let first = loop {
        if let Event::Wal { data, .. } = timeout(PATIENCE, stream.next()).await.unwrap().unwrap() {
            break data[0];
        }
    };
    assert_eq!(first, b'S', "the first chunk comes before the commit");
    client.batch_execute("COMMIT").await.unwrap();
    let (kinds, sizes, _) = transaction(&mut stream).await;
    let inserts: Vec<usize> =
        kinds.iter().zip(sizes).filter(|(kind, _)| **kind == b'I').map(|(_, size)| size).collect();
    // Kind, transaction, relation, `N`, count, id as `t` with length and digit, value as `t` with length.
    let expected: Vec<usize> = (1..=8).map(|i| 1 + 4 + 4 + 1 + 2 + 6 + 5 + 3_000_000 + i).collect();
    assert_eq!(inserts, expected);
    stream.close().await.unwrap();
}

#[tokio::test]
async fn a_reader_that_is_busy_for_long_keeps_its_stream() {
    let (mut config, client) = table("busy").await;
    config.options = Some("-c wal_sender_timeout=2s".into());
    let mut session = ReplicationSession::connect(&config).await.unwrap();
    let slot = session.create_logical_slot("busy_1", TEMPORARY).await.unwrap();
    let mut stream = session
        .start_logical("busy_1", slot.consistent_point, &["p"], StreamOptions::for_server(180_000))
        .await
        .unwrap();
    // More than all buffers hold, so that the server is kept waiting too.
    client
        .batch_execute("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 40000) i")
        .await
        .unwrap();
    // The time that passes is what is tested: three times the server's timeout.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let (kinds, _, end) = transaction(&mut stream).await;
    assert_eq!(kinds.iter().filter(|kind| **kind == b'I').count(), 40_000);
    stream.confirm(end).await.unwrap();
    stream.close().await.unwrap();
}

#[tokio::test]
async fn a_heartbeat_passes_through_an_idle_stream() {
    let (config, client) = table("heartbeat").await;
    let mut session = ReplicationSession::connect(&config).await.unwrap();
    let slot = session.create_logical_slot("heartbeat_1", TEMPORARY).await.unwrap();
    let mut stream = session
        .start_logical("heartbeat_1", slot.consistent_point, &["p"], StreamOptions::for_server(180_000))
        .await
        .unwrap();
    let written = heartbeat(&client).await.unwrap();
    let (end, data) = loop {
        if let Event::Wal { end, data, .. } = timeout(PATIENCE, stream.next()).await.unwrap().unwrap() {
            break (end, data);
        }
    };
    assert_eq!(data[0], b'M');
    assert!(data.windows(HEARTBEAT_PREFIX.len()).any(|part| part == HEARTBEAT_PREFIX.as_bytes()));
    // Another test may have written in between: the WAL is one for all databases.
    assert!(end >= slot.consistent_point && written > slot.consistent_point);
    stream.close().await.unwrap();
}

#[tokio::test]
async fn making_a_slot_says_whom_it_waits_for_and_can_be_given_up() {
    let (config, client) = table("waiting").await;
    let holder = connect(&config).await.unwrap();
    holder
        .batch_execute("SET application_name = 'holder'; BEGIN; INSERT INTO public.t VALUES (1, 'open')")
        .await
        .unwrap();
    let mut session = ReplicationSession::connect(&config).await.unwrap();
    let pid = session.backend_pid();
    let making =
        tokio::spawn(async move { session.create_logical_slot("waiting_1", PERMANENT).await.map(drop) });
    // The slot waits for one transaction after the other, and other tests have theirs.
    let deadline = Instant::now() + PATIENCE;
    let blocking = loop {
        let blocking = transactions_blocking(&client, pid).await.unwrap();
        if let Some(found) = blocking.into_iter().find(|by| by.application_name.as_deref() == Some("holder"))
        {
            break found;
        }
        assert!(Instant::now() < deadline, "the holder was never named");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(blocking.pid.is_some() && blocking.open_for.is_some(), "{blocking:?}");
    making.abort();
    until_true(&client, "SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'waiting_1')")
        .await;
    holder.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn cleanup_removes_what_is_ours_and_only_when_nobody_uses_it() {
    let (config, client) = table("cleaned").await;
    client
        .batch_execute("CREATE PUBLICATION tidewater_t_cleaned_inserts; CREATE PUBLICATION tidewater_t_other")
        .await
        .unwrap();
    let slot = slot_name("t", "cleaned", 7);
    let from = make_slot(&config, &slot).await;
    let reader = stream(&config, &slot, from).await.unwrap();
    let mut removed = Vec::new();
    let refused = cleanup(&config, "t", "cleaned", &mut removed).await;
    assert!(matches!(refused, Err(Error::InvalidRequest { .. })) && removed.is_empty());
    reader.close().await.unwrap();
    until_true(
        &client,
        &format!("SELECT active_pid IS NULL FROM pg_replication_slots WHERE slot_name = '{slot}'"),
    )
    .await;
    cleanup(&config, "t", "cleaned", &mut removed).await.unwrap();
    assert_eq!(removed.len(), 2);
    cleanup(&config, "t", "cleaned", &mut removed).await.unwrap();
    assert_eq!(removed.len(), 2);
    until_true(&client, "SELECT count(*) = 2 FROM pg_publication").await;
}
