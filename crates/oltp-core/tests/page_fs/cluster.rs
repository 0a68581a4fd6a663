//! A stock Postgres for these tests: made, brought into a store, mounted, started, killed, looked over.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oltp_core::ids::{BranchId, BranchName, ManifestNumber, ManifestUid, ProjectName, Term, Timeline};
use oltp_core::page_fs::{Captured, MountOptions, Mounted, import_cluster};
use oltp_core::page_store::{BranchState, Manifest, ManifestHead, ManifestKind, PageStore};
use oltp_core::storage::Storage;
use oltp_core::{Installation, ServiceUser, Timestamp, find_installation, run_bounded, server_command};
use tokio::process::{Child, Command};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;
use wal_decoder::Lsn;

const LIMIT: Duration = Duration::from_secs(120);
const SEGMENT: u64 = 16 << 20;

/// A folder with a store and the manifests of one branch.
pub(crate) struct Cluster {
    pub(crate) root: PathBuf,
    pub(crate) installation: Installation,
    pub(crate) user: ServiceUser,
    pub(crate) store: PageStore,
    pub(crate) project: ProjectName,
    pub(crate) cache_limit: u64,
    _folder: Option<tempfile::TempDir>,
}

/// An empty folder that Postgres's user can pass through.
fn scratch_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("tidewater-page-fs-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

impl Cluster {
    pub(crate) async fn new() -> Cluster {
        let folder = scratch_folder();
        let root = folder.path().to_owned();
        Cluster { _folder: Some(folder), ..Cluster::at(root).await }
    }

    /// In a folder that another process owns.
    pub(crate) async fn at(root: PathBuf) -> Cluster {
        let storage = Storage::open(root.join("store").to_str().unwrap(), &BTreeMap::new()).unwrap();
        Cluster {
            installation: find_installation(None, 18).await.unwrap(),
            user: ServiceUser::for_new_cluster(),
            store: PageStore::new(storage),
            project: ProjectName::new("shop").unwrap(),
            cache_limit: 1 << 30,
            root,
            _folder: None,
        }
    }

    /// The newest manifest of the only branch there is.
    pub(crate) async fn newest(&self) -> Arc<Manifest> {
        let branches = self.path("store/projects/shop/branches");
        let branch = std::fs::read_dir(branches).unwrap().next().unwrap().unwrap();
        let branch: BranchId = branch.file_name().to_str().unwrap().parse().unwrap();
        self.store.latest(&self.project, branch).await.unwrap().unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A directory of Postgres's user.
    pub(crate) fn own_directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        self.user.own(&path).unwrap();
        path
    }

    pub(crate) fn program(&self, name: &str) -> Command {
        server_command(&self.installation.program(name), &self.user)
    }

    pub(crate) async fn run(&self, command: &mut Command) -> String {
        let command = std::mem::replace(command, Command::new("true"));
        run_bounded(command, LIMIT).await.unwrap().stdout
    }

    /// Makes a cluster in the ordinary directory `plain`, its WAL in `wal`.
    pub(crate) async fn initdb(&self, plain: &str, wal: &str) -> (PathBuf, PathBuf) {
        let (data, wal) = (self.own_directory(plain), self.own_directory(wal));
        let mut initdb = self.program("initdb");
        initdb.arg("-D").arg(&data).arg("-X").arg(&wal);
        initdb.args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-instructions",
            "--no-sync",
            "--locale=C",
            "-E",
            "UTF8",
        ]);
        self.run(&mut initdb).await;
        (data, wal)
    }

    /// Makes a cluster and brings it into the store; returns its first manifest and its WAL directory.
    pub(crate) async fn imported(&self) -> (Arc<Manifest>, PathBuf) {
        let (data, wal) = self.initdb("plain", "wal").await;
        let branch = BranchId::random();
        let captured =
            import_cluster(&self.store, &self.project, branch, Term(1), &data, None).await.unwrap();
        let head = ManifestHead {
            project: self.project.clone(),
            branch,
            number: ManifestNumber(1),
            uid: ManifestUid::random(),
            name: BranchName::new("main").unwrap(),
            state: BranchState::Live,
            parent: None,
            created_at: Timestamp::now(),
            published_at: Timestamp::now(),
            expires_at: None,
            term: Term(1),
            timeline: Timeline(1),
            kind: ManifestKind::CleanShutdown,
            redo_lsn: redo(&captured),
            min_recovery_lsn: redo(&captured),
            end_lsn: None,
        };
        let manifest = Arc::new(Manifest { head, body: captured.body });
        self.store.publish(&manifest).await.unwrap();
        (manifest, wal)
    }

    /// Publishes what was captured as the next manifest after `before`.
    pub(crate) async fn publish(
        &self,
        before: &Manifest,
        captured: Captured,
        kind: ManifestKind,
        flushed: Lsn,
    ) -> Arc<Manifest> {
        let head = ManifestHead {
            number: before.head.number.next(),
            uid: ManifestUid::random(),
            published_at: Timestamp::now(),
            kind,
            redo_lsn: redo(&captured),
            min_recovery_lsn: flushed,
            ..before.head.clone()
        };
        let manifest = Arc::new(Manifest { head, body: captured.body });
        self.store.publish(&manifest).await.unwrap();
        manifest
    }

    pub(crate) fn mount_options(&self, name: &str, wal: &Path) -> MountOptions {
        MountOptions {
            mount_point: self.path(name).join("data"),
            cache_directory: self.path(name).join("cache"),
            cache_limit: self.cache_limit,
            wal_directory: wal.to_owned(),
            owner: self.user.clone(),
            term: Term(1),
        }
    }

    /// Mounts a manifest below the folder `name`.
    pub(crate) async fn mount(&self, name: &str, manifest: &Arc<Manifest>, wal: &Path) -> Mounted {
        let options = self.mount_options(name, wal);
        Mounted::mount(options, self.store.clone(), Arc::clone(manifest)).await.unwrap()
    }

    /// A copy of the WAL from `start` on, as it would be had nothing after `end` been written.
    pub(crate) fn wal_between(&self, wal: &Path, name: &str, start: Lsn, end: Lsn) -> PathBuf {
        let copy = self.own_directory(name);
        let (first, last) = (start.0 / SEGMENT, end.0 / SEGMENT);
        for entry in std::fs::read_dir(wal).unwrap() {
            let entry = entry.unwrap();
            let segment = entry.file_name().into_string().unwrap();
            let Some(number) = segment_number(&segment).filter(|number| (first..=last).contains(number))
            else {
                continue;
            };
            let mut bytes = std::fs::read(entry.path()).unwrap();
            if number == last {
                bytes[(end.0 % SEGMENT) as usize..].fill(0);
            }
            std::fs::write(copy.join(&segment), bytes).unwrap();
            self.user.own(&copy.join(&segment)).unwrap();
        }
        self.own_directory(&format!("{name}/archive_status"));
        self.own_directory(&format!("{name}/summaries"));
        copy
    }
}

fn segment_number(name: &str) -> Option<u64> {
    let (high, low) = (name.get(8..16)?, name.get(16..24)?);
    (name.len() == 24).then_some(())?;
    Some(u64::from_str_radix(high, 16).ok()? * 256 + u64::from_str_radix(low, 16).ok()?)
}

fn redo(captured: &Captured) -> Lsn {
    Lsn(u64::from_le_bytes(captured.pg_control[40..48].try_into().unwrap()))
}

/// A running Postgres.
pub(crate) struct Server {
    child: Child,
    sockets: PathBuf,
    log: PathBuf,
    bin: PathBuf,
    user: ServiceUser,
}

/// What the core's computes run with, as far as it matters here.
pub(crate) const CORE_SETTINGS: &[&str] =
    &["fsync=off", "full_page_writes=off", "restart_after_crash=off", "wal_keep_size=20GB"];

impl Server {
    pub(crate) async fn start(cluster: &Cluster, data: &Path, settings: &[&str]) -> Server {
        let sockets = cluster.own_directory(&format!("run-{}", Uuid::new_v4().simple()));
        let log = sockets.join("log");
        let output = std::fs::File::create(&log).unwrap();
        match std::fs::remove_file(data.join("postmaster.pid")) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
        let mut postgres = cluster.program("postgres");
        postgres.arg("-D").arg(data);
        for setting in
            ["listen_addresses=", "max_connections=40", "wal_level=logical", "log_min_messages=warning"]
                .iter()
                .chain(settings)
        {
            postgres.args(["-c", setting]);
        }
        postgres.arg("-c").arg(format!("unix_socket_directories={}", sockets.display()));
        postgres.stdout(output.try_clone().unwrap()).stderr(output).stdin(Stdio::null()).kill_on_drop(true);
        let child = postgres.spawn().unwrap();
        let mut server = Server {
            child,
            sockets,
            log,
            bin: cluster.installation.bin().to_owned(),
            user: cluster.user.clone(),
        };
        let deadline = Instant::now() + LIMIT;
        while let Err(error) = server.try_connect("postgres").await {
            let ended = server.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{error}: {ended:?}\n{}",
                server.log_text()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server
    }

    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    async fn try_connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.sockets).user("postgres").dbname(database);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) async fn connect(&self) -> Client {
        self.try_connect("postgres").await.unwrap()
    }

    /// A client program, set up to reach this server.
    pub(crate) fn client_program(&self, name: &str) -> Command {
        let mut command = server_command(&self.bin.join(name), &self.user);
        command.env("PGHOST", &self.sockets).env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command
    }

    pub(crate) async fn client(&self, name: &str, arguments: &[&str]) -> String {
        let mut command = self.client_program(name);
        command.args(arguments);
        run_bounded(command, LIMIT)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{}", self.log_text()))
            .stdout
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id().unwrap()).unwrap()
    }

    /// Stops it in order.
    pub(crate) async fn stop(mut self) {
        signal(self.pid(), rustix::process::Signal::INT);
        let ended = tokio::time::timeout(LIMIT, self.child.wait()).await.unwrap().unwrap();
        assert!(ended.success(), "{ended}\n{}", self.log_text());
    }

    /// Kills postmaster and all its children at once.
    pub(crate) async fn kill9(mut self) {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let children: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        signal(pid, rustix::process::Signal::KILL);
        for child in &children {
            signal(*child, rustix::process::Signal::KILL);
        }
        self.child.wait().await.unwrap();
        for child in children {
            while Path::new(&format!("/proc/{child}/exe")).exists() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("{error}"),
    }
}

pub(crate) async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.unwrap().get(0)
}

pub(crate) async fn flushed(client: &Client) -> Lsn {
    let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap();
    row.get::<_, String>(0).parse().unwrap()
}

/// What holds in a database that only pgbench wrote to: all four sums are one.
pub(crate) async fn assert_balances(client: &Client) {
    let query = "SELECT format('%s %s %s %s', (SELECT sum(abalance) FROM pgbench_accounts), \
         (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches), \
         (SELECT coalesce(sum(delta), 0) FROM pgbench_history))";
    let sums: String = client.query_one(query, &[]).await.unwrap().get(0);
    let mut sums = sums.split(' ');
    let first = sums.next().unwrap();
    assert!(sums.all(|sum| sum == first), "balances differ");
}

/// Looks over every index and table of every database, then, once it is stopped, at the checksum of every
/// page.
pub(crate) async fn assert_sound(cluster: &Cluster, server: Server, data: &Path) {
    server.client("pg_amcheck", &["--all", "--install-missing", "--heapallindexed", "--jobs=2"]).await;
    server.stop().await;
    let mut checksums = cluster.program("pg_checksums");
    checksums.arg("--check").arg("-D").arg(data);
    cluster.run(&mut checksums).await;
}
