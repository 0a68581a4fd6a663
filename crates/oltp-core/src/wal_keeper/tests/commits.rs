//! One keeper: what is acknowledged is there, whatever is killed.

use std::time::Duration;

use tokio::time::timeout;

use super::cluster::{Branch, Keeper, PATIENCE, base, ids, insert_until_it_fails, lsn, number, until};
use crate::wal_keeper::record_scanner::{RecordScanner, SEGMENT};
use crate::wal_keeper::*;

const MOMENT: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_commit_is_never_lost() {
    let mut keepers = vec![Keeper::start().await];
    let branch = Branch::new(&keepers).await;
    let mut compute = branch.start(Durability::Keeper).await;
    compute
        .postgres
        .connect()
        .await
        .batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
        .await
        .unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        let client = compute.postgres.connect().await;
        let inserting = tokio::spawn(insert_until_it_fails(client, round * 1_000_000));
        let before = *compute.streaming.majority().borrow();
        let mut majority = compute.streaming.majority();
        majority.wait_for(|now| now.0 > before.0 + 20_000).await.unwrap();
        if round % 2 == 1 {
            keepers[0].kill().await;
            // Whatever is acknowledged from here on is gone.
            let streaming = &compute.streaming;
            until("the status says so", async || streaming.status().waiting_for(MOMENT).is_some()).await;
        }
        compute.kill().await;
        if round % 2 == 1 {
            keepers[0].restart("").await;
        }
        acknowledged.extend(inserting.await.unwrap());
        compute = branch.start(Durability::Keeper).await;
        let there = ids(&compute.postgres.connect().await).await;
        let lost: Vec<_> = acknowledged.iter().filter(|id| there.binary_search(id).is_err()).collect();
        assert!(lost.is_empty(), "round {round}: {} acknowledged, lost {lost:?}", acknowledged.len());
    }
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_wait_while_the_keeper_is_gone_and_say_so_and_go_on_when_it_is_back() {
    let mut keepers = vec![Keeper::start().await];
    let branch = Branch::new(&keepers).await;
    let compute = branch.start(Durability::Keeper).await;
    let client = compute.postgres.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)").await.unwrap();
    assert_eq!(compute.streaming.status().waiting_for(PATIENCE), None);

    keepers[0].kill().await;
    let mut waiting = tokio::spawn(async move { client.execute("INSERT INTO t VALUES (1)", &[]).await });
    let streaming = &compute.streaming;
    until("the status says so", async || streaming.status().waiting_for(MOMENT).is_some()).await;
    assert!(timeout(MOMENT, &mut waiting).await.is_err(), "a commit returned without a keeper");
    let said = streaming.status().waiting_for(MOMENT).unwrap();
    assert!(said.contains(&keepers[0].address.to_string()), "{said}");
    // Nobody else sees it meanwhile.
    assert_eq!(number(&compute.postgres.connect().await, "SELECT count(*) FROM t").await, 0);

    keepers[0].restart("").await;
    timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(number(&compute.postgres.connect().await, "SELECT count(*) FROM t").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_stop_in_order_everything_is_archived_and_nothing_has_to_be_recovered() {
    let keepers = vec![Keeper::start().await];
    let branch = Branch::new(&keepers).await;
    let mut compute = branch.start(Durability::Keeper).await;
    let client = compute.postgres.connect().await;
    client.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 1000)::bigint AS id").await.unwrap();
    drop(client);
    compute.postgres.stop().await;
    let mut ended = compute.streaming.ended();
    let end = timeout(PATIENCE, ended.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert_eq!(end, Some(StreamEnd::ServerStopped));
    compute.streaming.archive_all().await;
    let status = compute.streaming.status();
    assert_eq!((status.majority, status.archived), (status.received, status.received));

    // The shutdown checkpoint is the log's last record.
    let data = compute.postgres.data();
    drop(compute.streaming);
    let elected = elect(&branch.election).await.unwrap();
    assert_eq!(elected.end().unwrap().end, status.received);
    let mut controldata =
        crate::server_command(&base().await.installation.program("pg_controldata"), &base().await.user);
    controldata.arg(&data);
    let text = crate::run_bounded(controldata, PATIENCE).await.unwrap().stdout;
    assert!(text.contains("shut down"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walsender_that_is_terminated_is_replaced_at_once() {
    let keepers = vec![Keeper::start().await];
    let branch = Branch::new(&keepers).await;
    let compute = branch.start(Durability::Keeper).await;
    let client = compute.postgres.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint)").await.unwrap();
    for id in 0..5i64 {
        let terminated =
            number(&client, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication").await;
        assert_eq!(terminated, 1);
        timeout(PATIENCE, client.execute("INSERT INTO t VALUES ($1)", &[&id])).await.unwrap().unwrap();
        until("the session is back", async || {
            number(&client, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").await == 1
        })
        .await;
    }
    assert_eq!(*compute.streaming.ended().borrow(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scanner_agrees_with_postgres_about_where_its_wal_ends() {
    let keepers = vec![Keeper::start().await];
    let branch = Branch::new(&keepers).await;
    let compute = branch.start(Durability::Keeper).await;
    let client = compute.postgres.connect().await;
    // Large records and small ones, indexes of several kinds, switches of segments.
    for statement in [
        "CREATE TABLE t (id bigint PRIMARY KEY, v text)",
        "CREATE INDEX ON t USING hash (v)",
        "CREATE INDEX ON t USING gin (to_tsvector('simple', v))",
        "INSERT INTO t SELECT i, repeat(md5(i::text), i % 50) FROM generate_series(1, 3000) i",
        "SELECT pg_logical_emit_message(true, 'test', repeat('x', 3000000))",
        "SELECT pg_switch_wal()",
        "UPDATE t SET v = v || 'y'",
        "DELETE FROM t WHERE id % 3 = 0",
        "VACUUM t",
        "CHECKPOINT",
        "SELECT pg_switch_wal()",
        "INSERT INTO t VALUES (-1, 'last')",
    ] {
        client.batch_execute(statement).await.unwrap();
    }
    let end = lsn(&client, "SELECT pg_current_wal_flush_lsn()").await;
    let mut recoverable = compute.streaming.recoverable();
    timeout(PATIENCE, recoverable.wait_for(|now| *now >= end)).await.unwrap().unwrap();
    // Our own reading of the files says the same as the server.
    let flushed = lsn(&client, "SELECT pg_current_wal_flush_lsn()").await;
    let from = base().await.redo;
    let mut scanner = RecordScanner::new(from, None);
    'files: for segment in from.0 / SEGMENT.. {
        let name = format!("pg_wal/{:08X}{:08X}{:08X}", 1, segment / 256, segment % 256);
        let Ok(wal) = std::fs::read(compute.postgres.data().join(name)) else { break };
        let begin = (scanner.position().0 - segment * SEGMENT) as usize;
        if scanner.push(&wal[begin..]).is_err() {
            break 'files;
        }
    }
    assert!(scanner.end() >= flushed, "{:?} < {flushed:?}", scanner.end());
    assert!(scanner.end().0 > from.0 + SEGMENT);
}
