//! The life of one branch: made, used, killed, moved, put to sleep.

use oltp_core::branches::Point;
use oltp_core::compute_process::{Answer, End, Mount, Question};
use oltp_core::page_store::ManifestKind;

use crate::lab::{Lab, number, project, until};

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_commit_survives_the_loss_of_everything_but_the_storage() {
    let mut lab = Lab::new().await;
    let main = lab.project().await;
    let compute = lab.start(main).await;
    let client = compute.owner().await;
    client.batch_execute("CREATE TABLE t (a int PRIMARY KEY)").await.unwrap();
    for row in 0..20 {
        client.execute("INSERT INTO t VALUES ($1)", &[&row]).await.unwrap();
    }
    let Answer::Published { .. } = compute.ask(Question::Cut).await else { panic!("no manifest") };
    for row in 20..40 {
        client.execute("INSERT INTO t VALUES ($1)", &[&row]).await.unwrap();
    }
    compute.kill().await;

    lab.move_elsewhere("another machine");
    let compute = lab.start(main).await;
    assert_eq!(number(&compute.owner().await, "SELECT count(*) FROM t").await, 40);
    compute.suspend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compute_killed_right_after_a_clean_wake_loses_nothing() {
    let lab = Lab::new().await;
    let main = lab.project().await;
    let compute = lab.start(main).await;
    compute.owner().await.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.unwrap();
    compute.suspend().await;

    let mut spec = lab.spec(main).await;
    spec.cut_every = std::time::Duration::from_secs(3600);
    let compute = lab.try_start(spec).await.unwrap();
    compute.owner().await.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    compute.kill().await;

    let compute = lab.start(main).await;
    assert_eq!(number(&compute.owner().await, "SELECT sum(a) FROM t").await, 3);
    compute.suspend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_branch_wakes_without_recovery_and_with_its_unlogged_rows_and_slots() {
    let mut lab = Lab::new().await;
    let main = lab.project().await;
    let compute = lab.start(main).await;
    let client = compute.owner().await;
    client
        .batch_execute("CREATE UNLOGGED TABLE u (a int); INSERT INTO u SELECT generate_series(1, 1000)")
        .await
        .unwrap();
    client
        .query("SELECT pg_create_logical_replication_slot('other_tool', 'test_decoding')", &[])
        .await
        .unwrap();
    client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2)").await.unwrap();
    drop(client);
    let End::Suspended(manifest) = compute.suspend().await;
    let newest = lab.pages.latest(&project(), main).await.unwrap().unwrap();
    assert_eq!((newest.head.number, &newest.head.kind), (manifest, &ManifestKind::CleanShutdown));

    lab.move_elsewhere("another machine");
    let compute = lab.start(main).await;
    let client = compute.owner().await;
    assert_eq!(number(&client, "SELECT count(*) FROM u").await, 1000);
    let changes = client
        .query("SELECT data FROM pg_logical_slot_get_changes('other_tool', NULL, NULL)", &[])
        .await
        .unwrap();
    let inserts = changes.iter().filter(|row| row.get::<_, String>(0).contains("INSERT")).count();
    assert_eq!(inserts, 2);
    let log =
        std::fs::read_to_string(lab.computes.directory_of(&project(), main).join("postgres.log")).unwrap();
    assert!(log.contains("database system was shut down"), "{log}");
    assert!(!log.contains("redo starts"), "{log}");
    compute.suspend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_without_fuse_is_copied_sleeps_branches_and_loses_nothing_when_it_is_killed() {
    let mut lab = Lab::new().await;
    lab.mount = Mount::Copy;
    let main = lab.project().await;
    let compute = lab.start(main).await;
    let client = compute.owner().await;
    client
        .batch_execute(
            "CREATE TABLE t (a int PRIMARY KEY, b text); CREATE TABLE gone (a int); CREATE UNLOGGED TABLE u (a int); \
             INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 20000) n; INSERT INTO u VALUES (1)",
        )
        .await
        .unwrap();
    let slot = "SELECT pg_create_logical_replication_slot('other_tool', 'test_decoding')";
    client.batch_execute(slot).await.unwrap();
    drop(client);
    assert_eq!(compute.status.mount, Mount::Copy);
    let End::Suspended(_) = compute.suspend().await;

    // As it was left here: nothing is fetched. Then killed, with everything since that start only in the WAL.
    let record = lab.computes.directory_of(&project(), main).join("data.copied");
    assert!(record.exists());
    let compute = lab.start(main).await;
    assert!(!record.exists());
    let client = compute.owner().await;
    assert_eq!(number(&client, "SELECT count(*) FROM u").await, 1);
    client
        .batch_execute(
            "UPDATE t SET b = 'new' WHERE a % 100 = 0; DELETE FROM t WHERE a % 7 = 0; DROP TABLE gone; \
             CREATE TABLE more AS SELECT * FROM t; CHECKPOINT; INSERT INTO more VALUES (0, 'last')",
        )
        .await
        .unwrap();
    let sum = "SELECT sum(hashtext(a || b))::bigint FROM (TABLE t UNION ALL TABLE more) s";
    let before = number(&client, sum).await;
    drop(client);
    compute.kill().await;
    let compute = lab.start(main).await;
    let client = compute.owner().await;
    assert_eq!(number(&client, sum).await, before);
    assert_eq!(number(&client, "SELECT count(*) FROM u").await, 0, "an unlogged table after a crash");

    // A branch of what runs, and the same pages behind a mount on another machine.
    client.batch_execute("DELETE FROM more WHERE a = 0").await.unwrap();
    let after = number(&client, sum).await;
    let branch = lab.branch_of_main("dev", Point::Now).await;
    client.batch_execute("TRUNCATE t").await.unwrap();
    assert_eq!(number(&branch.owner().await, sum).await, after);
    branch.suspend().await;
    client.batch_execute("INSERT INTO t SELECT n, 'again' FROM generate_series(1, 10) n").await.unwrap();
    drop(client);
    compute.suspend().await;
    lab.mount = Mount::Fuse;
    lab.move_elsewhere("another machine");
    let compute = lab.start(main).await;
    let superuser = compute.superuser(&lab).await;
    assert_eq!(number(&superuser, "SELECT count(*) FROM t").await, 10);
    superuser
        .batch_execute(
            "CREATE EXTENSION amcheck; SELECT bt_index_check(c.oid, true) FROM pg_class c \
             JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p'",
        )
        .await
        .unwrap();
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'other_tool'";
    assert_eq!(number(&superuser, slots).await, 1);
    drop(superuser);
    compute.suspend().await;
    lab.move_elsewhere("state");
    let here = lab.start(main).await;
    assert!(!lab.computes.directory_of(&project(), main).join("data.copied").exists());
    here.suspend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_computes_never_write_one_branch() {
    let mut lab = Lab::new().await;
    let main = lab.project().await;
    let first = lab.start(main).await;
    let client = first.owner().await;
    client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.unwrap();

    lab.move_elsewhere("another machine");
    let second = lab.start(main).await;
    let lost = client.batch_execute("INSERT INTO t VALUES (100)").await;
    assert!(lost.is_err(), "the fenced compute confirmed a commit");
    let error = first.end().await.unwrap_err();
    assert!(matches!(error, oltp_core::CoreError::Fenced { .. }), "{error}");
    let client = second.owner().await;
    client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    assert_eq!(number(&client, "SELECT sum(a) FROM t").await, 3);
    second.suspend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moved_on_before_a_crash_decodes_again_from_where_it_comes_back() {
    let lab = Lab::new().await;
    let main = lab.project().await;
    let mut spec = lab.spec(main).await;
    spec.cut_every = std::time::Duration::from_secs(3600);
    let compute = lab.try_start(spec).await.unwrap();
    let (client, superuser) = (compute.owner().await, compute.superuser(&lab).await);
    client.batch_execute("CREATE TABLE kept (a int)").await.unwrap();
    client.query("SELECT pg_create_logical_replication_slot('s', 'test_decoding')", &[]).await.unwrap();
    let Answer::Published { .. } = compute.ask(Question::Cut).await else { panic!("no manifest") };
    // Tables that are gone again: their rows are decoded with what the catalogs had of them.
    let changes = "SELECT data FROM pg_logical_slot_get_changes('s', NULL, NULL)";
    for round in 0..20 {
        client
            .batch_execute(&format!(
                "CREATE TABLE brief_{round} AS SELECT {round} AS n; DROP TABLE brief_{round}; \
                 INSERT INTO kept VALUES ({round})"
            ))
            .await
            .unwrap();
        superuser.batch_execute("SELECT pg_log_standby_snapshot()").await.unwrap();
        client.query(changes, &[]).await.unwrap();
    }
    for catalog in ["pg_class", "pg_attribute", "pg_type"] {
        superuser.batch_execute(&format!("VACUUM {catalog}")).await.unwrap();
    }
    client.batch_execute("INSERT INTO kept VALUES (100)").await.unwrap();
    drop((client, superuser));
    compute.kill().await;

    let compute = lab.start(main).await;
    let client = compute.owner().await;
    let decoded = client.query(changes, &[]).await.unwrap();
    let inserts = decoded.iter().filter(|row| row.get::<_, String>(0).contains("public.kept: INSERT"));
    assert_eq!(inserts.count(), 21);
    drop(client);
    compute.suspend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_wait_while_the_keeper_is_away_and_go_on_when_it_is_back() {
    let mut lab = Lab::new().await;
    let main = lab.project().await;
    let compute = lab.start(main).await;
    let client = compute.owner().await;
    client.batch_execute("CREATE TABLE t (a int)").await.unwrap();
    lab.stop_keeper().await;
    let commit = tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES (1)").await });
    let superuser = compute.superuser(&lab).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("the commit waits", async || number(&superuser, waiting).await > 0).await;
    assert_eq!(number(&superuser, "SELECT count(*) FROM t").await, 0);
    assert!(!commit.is_finished());
    lab.start_keeper().await;
    commit.await.unwrap().unwrap();
    compute.suspend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_branch_goes_to_sleep_by_itself_and_a_session_in_a_transaction_keeps_it_awake() {
    let lab = Lab::new().await;
    let main = lab.project().await;
    let mut spec = lab.spec(main).await;
    spec.suspend_after = Some(std::time::Duration::from_secs(1));
    let compute = lab.try_start(spec).await.unwrap();
    let client = compute.owner().await;
    client.batch_execute("BEGIN; SELECT 1").await.unwrap();
    // Longer than two looks.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    client.batch_execute("COMMIT").await.unwrap();
    assert!(matches!(compute.end().await, Ok(End::Suspended(_))));
    assert!(client.batch_execute("SELECT 1").await.is_err());
}
