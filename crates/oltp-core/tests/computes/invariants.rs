//! The invariants of the core that take a whole compute to show. `docs/core-computes.md` lists all seven with their tests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use oltp_core::CoreError;
use oltp_core::branches::Point;
use oltp_core::compute_process::{Answer, PORT, Question};
use oltp_core::wal_keeper::STANDBY_NAME;
use postgres_connector::{Host, PhysicalSession, ReplicationSession, SourceConfig, StreamOptions, TlsMode};
use tokio_postgres::Client;
use wal_decoder::Lsn;

use crate::lab::{Lab, PASSWORD, Running, named, number, project, until};

/// What must not happen would have happened by then: it needs nothing but a few milliseconds.
const A_WHILE: Duration = Duration::from_millis(700);

/// The files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_published_only_when_a_majority_has_the_wal_sampled_after_its_cut() {
    let mut lab = Lab::new().await;
    let main = lab.project().await;
    let mut spec = lab.spec(main).await;
    spec.cut_every = Duration::from_secs(3600);
    let compute = lab.try_start(spec).await.unwrap();
    let client = compute.owner().await;
    client.batch_execute("CREATE TABLE t (a int)").await.unwrap();
    let Answer::Published { manifest: before } = compute.ask(Question::Cut).await else {
        panic!("no manifest")
    };
    let layers = lab.folder.path().join("storage/projects/shop/layers");
    let layers_before = files(&layers).len();

    lab.stop_keeper().await;
    // Pages that are ahead of every keeper: nobody waits for these commits, and the WAL is flushed here only.
    client.batch_execute("SET synchronous_commit = local").await.unwrap();
    let flushed: String =
        client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    client.batch_execute("INSERT INTO t SELECT generate_series(1, 20000)").await.unwrap();
    let cut = tokio::spawn(compute.asking(Question::Cut));
    until("the cut is in the store", async || files(&layers).len() > layers_before).await;
    tokio::time::sleep(A_WHILE).await;
    assert!(!cut.is_finished(), "a manifest was published of pages whose WAL no keeper has");
    let newest = lab.pages.latest_head(&project(), main).await.unwrap().unwrap();
    assert_eq!(newest.number, before);

    lab.start_keeper().await;
    let Answer::Published { manifest } = cut.await.unwrap() else { panic!("no manifest") };
    let published = lab.pages.manifest(&project(), main, manifest).await.unwrap();
    assert!(published.head.min_recovery_lsn > flushed.parse().unwrap(), "{:?}", published.head);
    compute.suspend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_below_the_minimum_recovery_position_is_refused() {
    let mut lab = Lab::new().await;
    let main = lab.project().await;
    let mut spec = lab.spec(main).await;
    spec.cut_every = Duration::from_secs(3600);
    let compute = lab.try_start(spec).await.unwrap();
    let client = compute.owner().await;
    client.batch_execute("CREATE TABLE t (a int)").await.unwrap();
    compute.ask(Question::Settle).await;
    let archive = lab.folder.path().join("storage/projects/shop/wal").join(main.to_string());
    let archived = files(&archive);
    client.batch_execute("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
    let Answer::Published { manifest } = compute.ask(Question::Cut).await else { panic!("no manifest") };
    let need = lab.pages.manifest(&project(), main, manifest).await.unwrap().head.min_recovery_lsn;
    drop(client);
    compute.kill().await;

    // The WAL between is lost: with the keeper's disk, and as if the archive had never had it.
    lab.stop_keeper().await;
    std::fs::remove_dir_all(lab.folder.path().join("keeper")).unwrap();
    lab.start_keeper().await;
    for chunk in files(&archive).into_iter().filter(|chunk| !archived.contains(chunk)) {
        std::fs::remove_file(chunk).unwrap();
    }
    let Err(error) = lab.try_start(lab.spec(main).await).await else {
        panic!("it started on pages from the future");
    };
    let CoreError::PagesAheadOfWal { have, need: needed, .. } = &error else { panic!("{error}") };
    assert!(*needed == need && have < needed, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_keepers_lack_is_seen_by_nobody_and_lost_with_its_compute() {
    let mut lab = Lab::new().await;
    let main = lab.project().await;
    let compute = lab.start(main).await;
    let (client, other) = (compute.owner().await, compute.owner().await);
    client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.unwrap();
    lab.stop_keeper().await;
    let commit = tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES (2)").await });
    let superuser = compute.superuser(&lab).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("the commit waits", async || number(&superuser, waiting).await > 0).await;
    assert_eq!(number(&other, "SELECT count(*) FROM t").await, 1, "another session sees it");
    assert!(!commit.is_finished(), "it was acknowledged");
    drop((superuser, other));
    compute.kill().await;
    commit.await.unwrap().unwrap_err();

    lab.start_keeper().await;
    let compute = lab.start(main).await;
    assert_eq!(number(&compute.owner().await, "SELECT count(*) FROM t").await, 1);
    compute.suspend().await;
}

/// The owner, past the gateway, under the keepers' name.
fn impostor(compute: &Running) -> SourceConfig {
    SourceConfig {
        hosts: vec![(Host::Unix(compute.status.socket_directory.clone().unwrap()), PORT)],
        user: "shop".to_owned(),
        dbname: "shop".to_owned(),
        password: Some(PASSWORD.to_owned().into()),
        tls: TlsMode::Disable,
        ca_file: None,
        application_name: STANDBY_NAME.to_owned(),
        connect_timeout: Duration::from_secs(60),
        options: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walsender_that_takes_the_keepers_name_confirms_no_commit_and_is_ended() {
    let mut lab = Lab::new().await;
    let main = lab.project().await;
    let compute = lab.start(main).await;
    let (client, other) = (compute.owner().await, compute.owner().await);
    client.batch_execute("CREATE TABLE t (a int); CREATE PUBLICATION p FOR TABLE t").await.unwrap();
    client.batch_execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await.unwrap();
    let impostor = impostor(&compute);
    let Err(refused) = PhysicalSession::connect(&impostor).await else { panic!("a physical stream") };
    let said = std::error::Error::source(&refused).map_or(refused.to_string(), ToString::to_string);
    assert!(said.contains("pg_hba.conf"), "{said}");

    lab.stop_keeper().await;
    let commit = tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES (1)").await });
    let superuser = compute.superuser(&lab).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("the commit waits", async || number(&superuser, waiting).await > 0).await;
    let session = ReplicationSession::connect(&impostor).await.unwrap();
    let options = StreamOptions::for_server(session.server_version());
    let mut stream = session.start_logical("s", Lsn::ZERO, &["p"], options).await.unwrap();
    let confirmer = stream.confirmer();
    let far: String =
        superuser.query_one("SELECT (pg_current_wal_flush_lsn() + 1000)::text", &[]).await.unwrap().get(0);
    confirmer.confirm(far.parse().unwrap()).await.unwrap();
    let ended = async { while stream.next().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(120), ended).await.expect("the impostor lives");
    assert_eq!(number(&other, "SELECT count(*) FROM t").await, 0, "another session sees the commit");
    assert!(!commit.is_finished(), "the impostor has confirmed a commit");

    lab.start_keeper().await;
    commit.await.unwrap().unwrap();
    drop((other, superuser));
    compute.suspend().await;
}

/// Everything in the tables, and how they are made.
async fn contents(client: &Client) -> Vec<String> {
    let sql = "SELECT 'kept ' || kept::text FROM kept UNION ALL SELECT 'cut ' || cut::text FROM cut \
               UNION ALL SELECT relname || ' ' || relnatts::text FROM pg_class WHERE relnamespace = 'public'::regnamespace \
               ORDER BY 1";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_never_changes_because_of_what_happens_on_its_parent_or_its_children() {
    let mut lab = Lab::new().await;
    let main = lab.project().await;
    let parent = lab.start(main).await;
    let on_parent = parent.owner().await;
    on_parent
        .batch_execute(
            "CREATE TABLE kept (a int PRIMARY KEY, b text); INSERT INTO kept SELECT n, md5(n::text) FROM generate_series(1, 3000) n; \
             CREATE TABLE cut (a int); INSERT INTO cut SELECT generate_series(1, 3000)",
        )
        .await
        .unwrap();
    let at_its_point = contents(&on_parent).await;
    let made = lab.branches.create(&project(), &named("main"), named("dev"), Point::Now, None).await.unwrap();

    // Changed, dropped, cut off and written again on the parent before the branch has ever been started,
    let destroy = "UPDATE kept SET b = 'wrong' WHERE a % 3 = 0; DELETE FROM kept WHERE a % 7 = 0; TRUNCATE cut; \
                   INSERT INTO cut SELECT -n FROM generate_series(1, 5000) n; ALTER TABLE kept ADD c int DEFAULT 5; \
                   CREATE TABLE more AS SELECT * FROM kept; CHECKPOINT";
    on_parent.batch_execute(destroy).await.unwrap();
    parent.ask(Question::Cut).await;
    let branch = lab.start(made.head.branch).await;
    assert_eq!(contents(&branch.owner().await).await, at_its_point, "changed by its parent");

    // and on a child of the branch, while it sleeps.
    branch.suspend().await;
    let child =
        lab.branches.create(&project(), &named("dev"), named("deeper"), Point::Now, None).await.unwrap();
    let child = lab.start(child.head.branch).await;
    child.owner().await.batch_execute(destroy).await.unwrap();
    child.ask(Question::Cut).await;
    child.suspend().await;
    let after_destroying = contents(&on_parent).await;
    lab.move_elsewhere("another machine");
    let branch = lab.start(made.head.branch).await;
    assert_eq!(contents(&branch.owner().await).await, at_its_point, "changed by its child");
    branch.owner().await.batch_execute("DROP TABLE kept, cut").await.unwrap();
    branch.suspend().await;
    assert_eq!(contents(&on_parent).await, after_destroying, "the parent was changed by its branch");
    drop(on_parent);
    parent.suspend().await;
}
