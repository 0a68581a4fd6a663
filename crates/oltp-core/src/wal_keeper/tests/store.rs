//! The archive: what it holds, and what happens when it fails.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tokio::time::timeout;

use super::cluster::{Branch, Keeper, PATIENCE, base, lsn, number, segment_files, until};
use crate::ServiceUser;
use crate::wal_keeper::record_scanner::SEGMENT;
use crate::wal_keeper::*;

const MOMENT: Duration = Duration::from_millis(300);

/// A store whose puts fail while told so, some of them after they took effect.
#[derive(Debug)]
struct Faulty {
    inner: InMemory,
    failing: AtomicBool,
    after_effect: AtomicBool,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a faulty store")
    }
}

impl Faulty {
    fn new() -> Arc<Faulty> {
        Arc::new(Faulty {
            inner: InMemory::new(),
            failing: AtomicBool::new(false),
            after_effect: AtomicBool::new(false),
        })
    }
}

fn down() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "it is down".into() }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        if !self.failing.load(Ordering::Relaxed) {
            return self.inner.put_opts(location, payload, options).await;
        }
        if self.after_effect.fetch_xor(true, Ordering::Relaxed) {
            // Whether it took effect or was there already: the answer is the same.
            let _ = self.inner.put_opts(location, payload, options).await;
        }
        Err(down())
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_durability_store_everything_but_the_store_may_be_lost() {
    let mut keepers = vec![Keeper::start().await];
    let branch = Branch::new(&keepers).await;
    let compute = branch.start(Durability::Store).await;
    let client = compute.postgres.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)").await.unwrap();
    for id in 0..20i64 {
        client.execute("INSERT INTO t VALUES ($1, 'in the store')", &[&id]).await.unwrap();
    }
    drop(client);
    compute.kill().await;
    keepers[0].kill().await;
    keepers[0].lose_disk();
    keepers[0].restart("").await;

    let compute = branch.start(Durability::Store).await;
    let client = compute.postgres.connect().await;
    assert_eq!(number(&client, "SELECT count(*) FROM t").await, 20);
    client.execute("INSERT INTO t VALUES (20, 'and on it goes')", &[]).await.unwrap();
    drop(client);
    compute.kill().await;
    let compute = branch.start(Durability::Keeper).await;
    assert_eq!(number(&compute.postgres.connect().await, "SELECT count(*) FROM t").await, 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_stops_no_commit_and_is_caught_up_with() {
    let keepers = vec![Keeper::start().await];
    let store = Faulty::new();
    let branch = Branch::over(&keepers, store.clone()).await;
    let compute = branch.start(Durability::Keeper).await;
    let client = compute.postgres.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)").await.unwrap();
    store.failing.store(true, Ordering::Relaxed);
    // More than stays in memory: the archiver will have to ask the keeper for it.
    for round in 0..3i64 {
        let insert =
            "INSERT INTO t SELECT i, repeat(md5(i::text), 20) FROM generate_series($1::bigint, $1 + 19999) i";
        client.execute(insert, &[&(round * 20_000)]).await.unwrap();
    }
    let streaming = &compute.streaming;
    until("the status says so", async || streaming.status().archive_trouble.is_some()).await;
    client.execute("INSERT INTO t VALUES (-1, 'commits go on')", &[]).await.unwrap();
    assert!(segment_files(&keepers[0].directory()) > 2, "the keeper holds what is not archived");

    store.failing.store(false, Ordering::Relaxed);
    timeout(PATIENCE, streaming.archive_all()).await.unwrap();
    assert_eq!(streaming.status().archive_trouble, None);
    // The keeper may now forget, and hears of it with the next WAL.
    client.execute("INSERT INTO t VALUES (-2, 'one more')", &[]).await.unwrap();
    until("the keeper has given up what is archived", async || segment_files(&keepers[0].directory()) <= 3)
        .await;
    drop(client);
    compute.kill().await;
    let compute = branch.start(Durability::Keeper).await;
    assert_eq!(number(&compute.postgres.connect().await, "SELECT count(*) FROM t").await, 60_002);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_archived_within_seconds_and_the_archive_alone_gives_its_wal_back() {
    let keepers = vec![Keeper::start().await];
    let branch = Branch::new(&keepers).await;
    let mut compute = branch.start(Durability::Keeper).await;
    let client = compute.postgres.connect().await;
    client.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 300000)::bigint AS id").await.unwrap();
    let end = lsn(&client, "SELECT pg_current_wal_flush_lsn()").await;
    let mut archived = compute.streaming.archived();
    let mut recoverable = compute.streaming.recoverable();
    timeout(PATIENCE, recoverable.wait_for(|now| *now >= end)).await.unwrap().unwrap();
    timeout(PATIENCE, archived.wait_for(|now| *now >= end)).await.unwrap().unwrap();
    drop(client);
    compute.postgres.kill().await;

    // Without any keeper, byte for byte what Postgres had written.
    let placed = tempfile::tempdir().unwrap();
    let mut spans = branch.spans.clone();
    spans.push(crate::page_store::WalSpan {
        project: branch.election.log.project.clone(),
        branch: branch.election.log.branch,
        timeline: crate::ids::Timeline(1),
        from: base().await.end,
        to: None,
    });
    let archive = WalArchive::new(branch.storage.clone(), branch.election.log.clone());
    let placement = WalPlacement {
        archive: &archive,
        keepers: &[],
        spans: &spans,
        from: base().await.redo,
        to: Some(end),
    };
    let user = ServiceUser::for_new_cluster();
    assert_eq!(placement.place(placed.path(), &user).await.unwrap(), end);
    let mut compared = 0;
    for entry in std::fs::read_dir(placed.path()).unwrap() {
        let path = entry.unwrap().path();
        let ours = std::fs::read(&path).unwrap();
        let theirs =
            std::fs::read(compute.postgres.data().join("pg_wal").join(path.file_name().unwrap())).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let start = u64::from_str_radix(&name[16..], 16).unwrap() * SEGMENT;
        let from = (base().await.redo.0 / 8192 * 8192).saturating_sub(start).min(SEGMENT) as usize;
        let to = (end.0 - start).min(SEGMENT) as usize;
        assert!(ours[from..to] == theirs[from..to], "{name} differs");
        assert!(ours[to..].iter().all(|byte| *byte == 0), "{name} has something after the end");
        compared += 1;
    }
    assert!(compared >= 2, "{compared}");
    // What is not needed for any start can be dropped.
    let whole = archive.list().await.unwrap().len();
    let dropped = archive.trim(end).await.unwrap();
    assert!(dropped > 0 && archive.list().await.unwrap().len() == whole - dropped);
    assert!(placement.place(placed.path(), &user).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_durability_store_a_compute_is_fenced_by_one_that_its_keeper_never_heard_of() {
    let keepers = vec![Keeper::start().await];
    let mut branch = Branch::new(&keepers).await;
    let first = branch.start(Durability::Store).await;
    let client = first.postgres.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)").await.unwrap();
    client.execute("INSERT INTO t VALUES (1, 'the first wrote this')", &[]).await.unwrap();

    let mut others = [Keeper::start().await];
    branch.election.keepers = others.iter().map(|keeper| keeper.address.clone()).collect();
    let second = branch.start(Durability::Store).await;
    let late =
        tokio::spawn(async move { client.execute("INSERT INTO t VALUES (-1, 'too late')", &[]).await });
    let mut ended = first.streaming.ended();
    let end = timeout(PATIENCE, ended.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert_eq!(end, Some(StreamEnd::Fenced { by: second.streaming.term() }));
    first.kill().await;
    late.await.unwrap().unwrap_err();

    second
        .postgres
        .connect()
        .await
        .execute("INSERT INTO t VALUES (2, 'the second goes on')", &[])
        .await
        .unwrap();
    second.kill().await;
    // The archive alone has chunks of both; the loser's last one does not count.
    others[0].kill().await;
    others[0].lose_disk();
    others[0].restart("").await;
    let third = branch.start(Durability::Store).await;
    assert_eq!(super::cluster::ids(&third.postgres.connect().await).await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_durability_store_a_failing_store_makes_commits_wait() {
    let keepers = vec![Keeper::start().await];
    let store = Faulty::new();
    let branch = Branch::over(&keepers, store.clone()).await;
    let compute = branch.start(Durability::Store).await;
    let client = compute.postgres.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)").await.unwrap();
    store.failing.store(true, Ordering::Relaxed);
    let mut waiting = tokio::spawn(async move { client.execute("INSERT INTO t VALUES (1)", &[]).await });
    let streaming = &compute.streaming;
    until("the status says so", async || streaming.status().archive_trouble.is_some()).await;
    assert!(timeout(MOMENT, &mut waiting).await.is_err(), "a commit returned that is not in the store");
    // The lake and the manifests wait for the same: the keeper's disk may be lost with the machine.
    until("the keeper has it", async || *streaming.majority().borrow() > *streaming.archived().borrow())
        .await;
    assert_eq!(*streaming.confirmed().borrow(), *streaming.archived().borrow());
    store.failing.store(false, Ordering::Relaxed);
    timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
}
