//! The built-in Postgres when its keepers, its store or its computes are in trouble, on the real processes.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidewater_e2e::{
    CoreProcess, Engine, KeeperProcess, LakeTable, Reader, S3Server, Site, free_port, kill9, signal,
};
use tokio_postgres::{Client, NoTls};

const SOON: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_millis(50);
/// What must not happen would have happened by then: the sync writes a cut every 200 ms.
const A_WHILE: Duration = Duration::from_secs(2);

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// As [`connect`], after trouble: a start that began in the midst of it says so to whoever waits for it.
async fn connect_after_trouble(url: &str) -> Client {
    let deadline = Instant::now() + SOON;
    loop {
        match tokio_postgres::connect(url, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error) => assert!(Instant::now() < deadline, "no session within {SOON:?}: {error:?}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(RETRY).await;
    }
}

async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.unwrap().get(0)
}

/// A database whose core is configured so, without a lake to follow.
fn site(core: Value) -> Site {
    let loopback = || format!("127.0.0.1:{}", free_port());
    let mut core = core;
    core["listen"] = json!(loopback());
    let yaml = json!({
        "version": 1, "lake": {"uri": "./lake"}, "listen": {"http": loopback()},
        "core": core, "databases": {"shop": {"core": {}}},
    });
    // YAML takes JSON as it is.
    Site::new(&yaml.to_string())
}

/// What `compute list` says of the only compute.
async fn compute(site: &Site) -> Value {
    let listed: Value = serde_json::from_str(&site.succeeds(&["compute", "list", "--json"]).await).unwrap();
    listed[0].clone()
}

#[tokio::test]
async fn a_commit_that_the_keepers_lack_is_not_in_the_lake() {
    let site = Site::with_core("");
    let mut daemon = site.start().await;
    let url = site.branch_url("main").await;
    let client = connect(&url).await;
    client
        .batch_execute("CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1)")
        .await
        .unwrap();
    daemon.wait_streaming(SOON).await;
    let lake = LakeTable::at(&site.table("shop/public/orders"));
    let mut reader = Reader::start();
    let deadline = Instant::now() + SOON;
    while reader.checksum(Engine::DuckDb, &lake).await.0 < 1 {
        assert!(Instant::now() < deadline, "the first row does not arrive");
        tokio::time::sleep(RETRY).await;
    }

    let keeper = site.core_processes(CoreProcess::Keeper)[0];
    signal(keeper, Signal::STOP);
    let commit = tokio::spawn(async move { client.batch_execute("INSERT INTO orders VALUES (2)").await });
    let looking_on = connect(&url).await;
    // The sync has been sent the commit that nobody may see.
    let sent = "SELECT count(*) FROM pg_stat_replication r, pg_stat_activity waiting \
                WHERE waiting.wait_event = 'SyncRep' AND r.application_name <> 'tidewater_keeper' \
                AND r.sent_lsn >= pg_current_wal_flush_lsn()";
    until("the sync is sent the commit", async || number(&looking_on, sent).await > 0).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(number(&looking_on, "SELECT count(*) FROM orders").await, 1, "another session sees it");
    assert_eq!(reader.checksum(Engine::DuckDb, &lake).await.0, 1, "the lake has what the keepers lack");
    assert!(!commit.is_finished(), "it was acknowledged");

    signal(keeper, Signal::CONT);
    commit.await.unwrap().unwrap();
    let deadline = Instant::now() + SOON;
    while reader.checksum(Engine::DuckDb, &lake).await.0 < 2 {
        assert!(Instant::now() < deadline, "the confirmed row does not arrive");
        tokio::time::sleep(RETRY).await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_session_that_waits_when_the_compute_process_is_killed_gets_its_end_without_anybody_new() {
    let site = site(json!({"storage": "./core", "suspend_after": "0s"}));
    let daemon = site.start().await;
    let url = site.branch_url("main").await;
    let client = connect(&url).await;
    client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.unwrap();
    for pid in site.core_processes(CoreProcess::Compute) {
        kill9(pid);
    }
    // Its outcome is unknown; that it has one is what counts.
    let answered = tokio::time::timeout(SOON, client.batch_execute("INSERT INTO t VALUES (2)")).await;
    assert!(answered.is_ok(), "the commit of a branch without a compute process has no end");
    let client = connect(&url).await;
    assert!([1, 2].contains(&number(&client, "SELECT count(*) FROM t").await));
    drop(client);
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_that_cannot_start_leaves_no_process_behind() {
    let site = Site::with_core("");
    let configuration = std::fs::read_to_string(site.path().join("tidewater.yaml")).unwrap();
    let (_, listen) = configuration.split_once("storage: ./core, listen: \"").unwrap();
    let taken = std::net::TcpListener::bind(listen.split('"').next().unwrap()).unwrap();
    let ended = site.command(&["run"]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("gateway"), "{}", ended.stderr);
    for kind in [CoreProcess::Keeper, CoreProcess::Gateway, CoreProcess::Compute] {
        assert!(site.core_processes(kind).is_empty(), "{kind:?}");
    }
    drop(taken);
    site.start().await.stop().await;
}

#[tokio::test]
async fn two_of_three_keepers_are_enough_and_with_one_commits_wait_and_the_status_says_so() {
    let folder = TempDir::with_prefix("tidewater-keepers-").unwrap();
    let mut keepers: Vec<KeeperProcess> =
        (1..=3).map(|number| KeeperProcess::new(&folder.path().join(number.to_string()))).collect();
    keepers.iter_mut().for_each(KeeperProcess::start);
    let addresses: Vec<String> = keepers.iter().map(KeeperProcess::address).collect();
    let site = site(json!({"storage": "./core", "keepers": addresses}));
    let daemon = site.start().await;
    let url = site.branch_url("main").await;
    let client = connect(&url).await;
    client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.unwrap();
    keepers[2].kill9().await;
    client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();

    keepers[1].kill9().await;
    let commit = tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES (3)").await });
    until("the status says so", async || {
        compute(&site).await["commits_wait"].as_str().is_some_and(|words| words.contains(&addresses[1]))
    })
    .await;
    assert!(!commit.is_finished(), "one of three keepers confirmed a commit");
    let plain = site.succeeds(&["compute", "list"]).await;
    assert!(plain.contains("for a majority of the WAL keepers"), "{plain}");
    assert_eq!(number(&connect(&url).await, "SELECT count(*) FROM t").await, 2);

    // With another one than before it goes on.
    keepers[2].start();
    tokio::time::timeout(SOON, commit).await.unwrap().unwrap().unwrap();
    until("the status is well again", async || compute(&site).await["commits_wait"].is_null()).await;
    keepers[1].start();
    daemon.stop().await;
}

#[tokio::test]
async fn of_two_computes_forced_onto_one_branch_one_is_fenced_and_nothing_is_lost() {
    let site_of_one = site(json!({"storage": "./core", "suspend_after": "0s"}));
    let daemon = site_of_one.start().await;
    let url = site_of_one.branch_url("main").await;
    let client = connect(&url).await;
    client.batch_execute("CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    let first = compute(&site_of_one).await;

    // Another machine with the same storage and keeper, which knows nothing of the first.
    let storage = site_of_one.path().join("core");
    let keeper = format!("unix:{}", site_of_one.state().join("keeper.sock").display());
    let site_of_other = site(json!({"storage": storage, "keepers": [keeper], "suspend_after": "0s"}));
    site_of_other.succeeds(&["compute", "wake", "shop"]).await;
    let second = compute(&site_of_other).await;
    assert!(second["term"].as_u64() > first["term"].as_u64(), "{first} {second}");
    let late = tokio::time::timeout(SOON, client.batch_execute("INSERT INTO t VALUES (100)")).await;
    late.expect("the loser's commit has no end").expect_err("the fenced compute confirmed a commit");
    until("the first compute has ended", async || {
        site_of_one
            .core_processes(CoreProcess::Compute)
            .iter()
            .all(|pid| Some(u64::from(*pid)) != first["pid"].as_u64())
    })
    .await;
    let log =
        site_of_one.state().join("computes/shop").join(first["branch"].as_str().unwrap()).join("compute.log");
    let words = std::fs::read_to_string(log).unwrap();
    assert!(words.contains("term"), "{words}");

    // The first machine's next connection takes the branch back, in order.
    let client = connect(&url).await;
    assert_eq!(number(&client, "SELECT sum(a) FROM t").await, 1);
    client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    until("the second compute has ended", async || {
        site_of_other.core_processes(CoreProcess::Compute).is_empty()
    })
    .await;
    drop(client);
    daemon.stop().await;
    site_of_one.succeeds(&["core", "inspect"]).await;
}

#[tokio::test]
async fn while_the_store_fails_commits_return_the_status_says_so_and_nothing_is_lost() {
    let mut store = S3Server::start().await;
    let mut options = store.lake_options();
    options["timeout"] = json!("2s");
    let core = json!({"storage": "s3://lake/core", "options": options, "keeper": {"dir": "./keeper"}, "suspend_after": "0s"});
    let site = site(core);
    let daemon = site.start().await;
    let url = site.branch_url("main").await;
    let client = connect(&url).await;
    client.batch_execute("CREATE TABLE t (a int, b text)").await.unwrap();
    let insert = "INSERT INTO t SELECT 1, repeat(md5(n::text), 10) FROM generate_series(1, 5000) n";
    // So that what these statements read of the catalogs is here: pages that are not cannot be fetched for a while.
    client.batch_execute(insert).await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (0, 'the store is well')").await.unwrap();
    store.stop().await;
    for _ in 0..2 {
        client.batch_execute(insert).await.unwrap();
    }
    until("the status says so", async || {
        let trouble = compute(&site).await;
        trouble["archive_trouble"].is_string() || trouble["store_trouble"].is_string()
    })
    .await;
    client.batch_execute("INSERT INTO t VALUES (9, 'commits go on')").await.unwrap();

    // Neither store nor compute: all that there is lies with the keeper.
    for pid in site.core_processes(CoreProcess::Compute) {
        kill9(pid);
    }
    store.restart().await;
    let client = connect_after_trouble(&url).await;
    assert_eq!(number(&client, "SELECT count(*) FROM t").await, 15_002);
    client.batch_execute("INSERT INTO t VALUES (10, 'and on')").await.unwrap();
    until("the store has it all", async || compute(&site).await["archive_trouble"].is_null()).await;
    drop(client);
    daemon.stop().await;
    // With everything in the store the machine may be lost, the keeper's disk included.
    std::fs::remove_dir_all(site.path().join("keeper")).unwrap();
    std::fs::remove_dir_all(site.state()).unwrap();
    let daemon = site.start().await;
    assert_eq!(number(&connect(&url).await, "SELECT count(*) FROM t").await, 15_003);
    daemon.stop().await;
}
