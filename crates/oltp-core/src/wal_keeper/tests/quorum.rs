//! Three keepers, and more than one compute.

use std::time::Duration;

use tokio::time::timeout;

use super::cluster::{Branch, Keeper, PATIENCE, ids, insert_until_it_fails, number, until};
use crate::ids::Term;
use crate::wal_keeper::*;

const MOMENT: Duration = Duration::from_millis(300);

async fn three() -> Vec<Keeper> {
    vec![Keeper::start().await, Keeper::start().await, Keeper::start().await]
}

#[tokio::test(flavor = "multi_thread")]
async fn two_computes_never_write_one_branch() {
    let keepers = three().await;
    let branch = Branch::new(&keepers).await;
    let first = branch.start(Durability::Keeper).await;
    let client = first.postgres.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)").await.unwrap();
    let inserting = tokio::spawn(insert_until_it_fails(first.postgres.connect().await, 0));
    let mut majority = first.streaming.majority();
    let before = *majority.borrow();
    majority.wait_for(|now| now.0 > before.0 + 20_000).await.unwrap();

    let second = branch.start(Durability::Keeper).await;
    let mut ended = first.streaming.ended();
    let end = timeout(PATIENCE, ended.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert_eq!(end, Some(StreamEnd::Fenced { by: second.streaming.term() }));
    // The loser's next commit never returns; it has the transaction, and nobody sees it.
    let late = client.execute("INSERT INTO t VALUES (-1, 'the loser wrote this')", &[]);
    assert!(timeout(MOMENT, late).await.is_err(), "a fenced compute acknowledged a commit");
    first.kill().await;

    let acknowledged = inserting.await.unwrap();
    let client = second.postgres.connect().await;
    let there = ids(&client).await;
    assert!(!acknowledged.is_empty() && acknowledged.iter().all(|id| there.binary_search(id).is_ok()));
    assert!(!there.contains(&-1));
    client.execute("INSERT INTO t VALUES (-2, 'the winner goes on')", &[]).await.unwrap();
    assert!(second.streaming.term() > Term(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_keepers_are_enough_and_with_one_commits_wait_and_say_so() {
    let mut keepers = three().await;
    let branch = Branch::new(&keepers).await;
    let compute = branch.start(Durability::Keeper).await;
    let client = compute.postgres.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)").await.unwrap();

    keepers[2].kill().await;
    timeout(PATIENCE, client.execute("INSERT INTO t VALUES (1)", &[])).await.unwrap().unwrap();
    keepers[1].kill().await;
    let mut waiting = tokio::spawn(async move { client.execute("INSERT INTO t VALUES (2)", &[]).await });
    let streaming = &compute.streaming;
    until("the status says so", async || streaming.status().waiting_for(MOMENT).is_some()).await;
    assert!(timeout(MOMENT, &mut waiting).await.is_err(), "one of three keepers confirmed a commit");
    // An election finds no majority either, and names who is missing.
    let error = elect(&branch.election).await.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(&keepers[1].address.to_string()), "{error}");

    keepers[1].restart("").await;
    timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_was_away_or_lost_its_disk_catches_up_and_then_counts() {
    let mut keepers = three().await;
    let branch = Branch::new(&keepers).await;
    let compute = branch.start(Durability::Keeper).await;
    let client = compute.postgres.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)").await.unwrap();
    keepers[2].kill().await;
    // More than the proposer keeps in memory, and several segments.
    client
        .batch_execute("INSERT INTO t SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 60000) i")
        .await
        .unwrap();
    keepers[2].lose_disk();
    keepers[2].restart("").await;
    let streaming = &compute.streaming;
    let caught_up = async || {
        let status = streaming.status();
        status.keepers.iter().all(|keeper| keeper.flushed == status.received)
    };
    until("the third keeper has everything", caught_up).await;

    // Now the other two may lose theirs one after the other: what was acknowledged is still with a majority.
    keepers[0].kill().await;
    client.execute("INSERT INTO t VALUES (0, 'with the second and third')", &[]).await.unwrap();
    keepers[0].lose_disk();
    keepers[0].restart("").await;
    until("the first keeper has everything", caught_up).await;
    keepers[1].kill().await;
    client.execute("INSERT INTO t VALUES (-1, 'with the first and third')", &[]).await.unwrap();
    drop(client);
    compute.kill().await;

    let again = branch.start(Durability::Keeper).await;
    let client = again.postgres.connect().await;
    assert_eq!(number(&client, "SELECT count(*) FROM t").await, 60_002);
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_only_a_minority_had_is_cut_off_when_it_comes_back() {
    let mut keepers = three().await;
    let branch = Branch::new(&keepers).await;
    let compute = branch.start(Durability::Keeper).await;
    let client = compute.postgres.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)").await.unwrap();
    keepers[1].kill().await;
    keepers[2].kill().await;
    let before = *compute.streaming.majority().borrow();
    let lonely =
        tokio::spawn(
            async move { client.execute("INSERT INTO t VALUES (1, 'only one has this')", &[]).await },
        );
    let streaming = &compute.streaming;
    until("the first keeper has it", async || {
        streaming.status().keepers.iter().any(|keeper| keeper.flushed > before)
    })
    .await;
    compute.kill().await;
    keepers[0].kill().await;
    lonely.await.unwrap().unwrap_err();

    keepers[1].restart("").await;
    keepers[2].restart("").await;
    let compute = branch.start(Durability::Keeper).await;
    let client = compute.postgres.connect().await;
    client.execute("INSERT INTO t VALUES (2, 'the other two have this')", &[]).await.unwrap();
    keepers[0].restart("").await;
    let streaming = &compute.streaming;
    until("the first keeper is in step", async || {
        let status = streaming.status();
        status.keepers.iter().all(|keeper| keeper.flushed == status.received)
    })
    .await;
    drop(client);
    compute.kill().await;
    // With the one that came back and one other.
    keepers[1].kill().await;
    let compute = branch.start(Durability::Keeper).await;
    assert_eq!(ids(&compute.postgres.connect().await).await, [2]);
}
