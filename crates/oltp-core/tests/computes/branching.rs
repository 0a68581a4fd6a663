//! Branches and restores.

use oltp_core::Timestamp;
use oltp_core::branches::Point;

use crate::lab::{Lab, named, number, project};

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_of_a_running_parent_has_all_it_acknowledged_and_neither_sees_the_other_afterwards() {
    let lab = Lab::new().await;
    let main = lab.project().await;
    let parent = lab.start(main).await;
    let client = parent.owner().await;
    client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.unwrap();
    client.query("SELECT pg_create_logical_replication_slot('parents', 'test_decoding')", &[]).await.unwrap();
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (1000); PREPARE TRANSACTION 'coordinated'")
        .await
        .unwrap();
    client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();

    let dev = lab.branches.create(&project(), &named("main"), named("dev"), Point::Now, None).await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (4)").await.unwrap();
    let child = lab.start(dev.head.branch).await;
    let on_child = child.owner().await;
    assert_eq!(number(&on_child, "SELECT sum(a) FROM t").await, 3);
    assert_eq!(number(&on_child, "SELECT count(*) FROM pg_replication_slots").await, 0);
    assert_eq!(number(&on_child, "SELECT count(*) FROM pg_prepared_xacts").await, 0);
    assert_eq!(number(&client, "SELECT count(*) FROM pg_prepared_xacts").await, 1);
    on_child.batch_execute("INSERT INTO t VALUES (8)").await.unwrap();
    assert_eq!(number(&client, "SELECT sum(a) FROM t").await, 7);

    // A branch of the branch, of a sleeping parent this time.
    child.suspend().await;
    let deeper =
        lab.branches.create(&project(), &named("dev"), named("deeper"), Point::Now, None).await.unwrap();
    let grandchild = lab.start(deeper.head.branch).await;
    assert_eq!(number(&grandchild.owner().await, "SELECT sum(a) FROM t").await, 11);
    grandchild.kill().await;
    let grandchild = lab.start(deeper.head.branch).await;
    assert_eq!(number(&grandchild.owner().await, "SELECT sum(a) FROM t").await, 11);
    grandchild.suspend().await;
    parent.suspend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_to_a_time_or_a_position_has_what_was_committed_then_and_keeps_the_state_before() {
    let lab = Lab::new().await;
    let main = lab.project().await;
    let compute = lab.start(main).await;
    let client = compute.owner().await;
    client.batch_execute("CREATE TABLE t (a int)").await.unwrap();
    let mut moments = Vec::new();
    for row in 1..=10 {
        client.execute("INSERT INTO t VALUES ($1)", &[&row]).await.unwrap();
        let lsn: String =
            client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0);
        moments.push((Timestamp::now(), lsn.parse().unwrap()));
        if row % 3 == 0 {
            compute.ask(oltp_core::compute_process::Question::Cut).await;
        }
    }
    let (time, _) = moments[4];
    let (_, lsn) = moments[6];
    let at_five = lab.branch_of_main("five", Point::Time(time)).await;
    assert_eq!(number(&at_five.owner().await, "SELECT count(*) FROM t").await, 5);
    at_five.suspend().await;
    let at_seven = lab.branch_of_main("seven", Point::Lsn(lsn)).await;
    assert_eq!(number(&at_seven.owner().await, "SELECT count(*) FROM t").await, 7);
    at_seven.suspend().await;

    // A time after the last commit is all of it.
    let last = lab.branch_of_main("last", Point::Time(Timestamp::now())).await;
    assert_eq!(number(&last.owner().await, "SELECT count(*) FROM t").await, 10);
    last.suspend().await;

    let restored = lab.branches.restore(&project(), &named("main"), Point::Time(moments[1].0)).await.unwrap();
    assert!(compute.end().await.is_ok());
    let rewound = lab.start(restored.branch).await;
    assert_eq!(number(&rewound.owner().await, "SELECT count(*) FROM t").await, 2);
    let names: Vec<String> =
        lab.branches.list(&project()).await.unwrap().iter().map(|head| head.name.to_string()).collect();
    assert!(names.contains(&restored.before.to_string()) && names.contains(&"main".to_owned()), "{names:?}");

    // From the rewound branch further back than it begins, and from the state before as well.
    let again = lab.branch_of_main("again", Point::Time(moments[0].0)).await;
    assert_eq!(number(&again.owner().await, "SELECT count(*) FROM t").await, 1);
    again.suspend().await;
    let before = lab.start(main).await;
    assert_eq!(number(&before.owner().await, "SELECT count(*) FROM t").await, 10);
    before.suspend().await;
    rewound.suspend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_of_a_parent_that_was_never_cut_has_what_it_acknowledged() {
    let lab = Lab::new().await;
    let main = lab.project().await;
    let mut spec = lab.spec(main).await;
    spec.cut_every = std::time::Duration::from_secs(3600);
    let parent = lab.try_start(spec).await.unwrap();
    let client = parent.owner().await;
    client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2)").await.unwrap();
    let child = lab.branch_of_main("dev", Point::Now).await;
    client.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
    assert_eq!(number(&child.owner().await, "SELECT sum(a) FROM t").await, 3);
    child.suspend().await;
    // Before the first manifest there is nothing to go back to, and that is said.
    let long_ago = Timestamp::now().before(std::time::Duration::from_secs(3600));
    let (project, old) = (project(), Point::Time(long_ago));
    let refused = lab.branches.create(&project, &named("main"), named("old"), old, None).await;
    let error = refused.map(drop).unwrap_err();
    assert!(matches!(error, oltp_core::CoreError::PointOutOfReach { .. }), "{error}");
    drop(client);
    parent.suspend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_are_compared_reset_expired_and_deleted_in_any_order() {
    let lab = Lab::new().await;
    let main = lab.project().await;
    let parent = lab.start(main).await;
    let client = parent.owner().await;
    client
        .batch_execute(
            "CREATE TABLE kept (a int); CREATE TABLE dropped (b text); INSERT INTO kept VALUES (1)",
        )
        .await
        .unwrap();
    let child = lab.branch_of_main("dev", Point::Now).await;
    let on_child = child.owner().await;
    on_child
        .batch_execute(
            "DROP TABLE dropped; CREATE TABLE made (c int PRIMARY KEY); INSERT INTO kept VALUES (2); \
             ALTER TABLE kept ADD COLUMN d date",
        )
        .await
        .unwrap();
    let (project, dev) = (project(), named("dev"));
    let found = lab.branches.diff(&project, &named("main"), &dev).await.unwrap();
    let rows: Vec<_> =
        found.iter().map(|table| (table.table.as_str(), table.rows, table.other_rows)).collect();
    assert_eq!(
        rows,
        [
            ("public.dropped", Some(0), None),
            ("public.kept", Some(1), Some(2)),
            ("public.made", None, Some(0))
        ]
    );
    assert!(found[1].other_shape.as_ref().unwrap().contains("d date"), "{:?}", found[1]);

    let reset = lab.branches.reset(&project, &dev).await.unwrap();
    child.end().await.unwrap_err();
    let child = lab.start(reset.head.branch).await;
    assert_eq!(lab.branches.diff(&project, &named("main"), &dev).await.unwrap(), []);

    // A branch of the branch outlives it, and one with a time to live goes when that is over.
    child.suspend().await;
    let hour = std::time::Duration::from_secs(3600);
    lab.branches.create(&project, &dev, named("deeper"), Point::Now, Some(hour)).await.unwrap();
    lab.branches.delete(&project, &dev).await.unwrap();
    assert!(lab.branches.delete(&project, &dev).await.is_err());
    let deeper =
        lab.branches.create(&project, &named("deeper"), named("deepest"), Point::Now, None).await.unwrap();
    assert_eq!(lab.branches.delete_expired(&project, Timestamp::now()).await.unwrap(), []);
    let later = Timestamp::now().after(2 * hour);
    assert_eq!(lab.branches.delete_expired(&project, later).await.unwrap(), [named("deeper")]);
    let deepest = lab.start(deeper.head.branch).await;
    assert_eq!(number(&deepest.owner().await, "SELECT count(*) FROM kept").await, 1);
    deepest.suspend().await;
    parent.suspend().await;
}
