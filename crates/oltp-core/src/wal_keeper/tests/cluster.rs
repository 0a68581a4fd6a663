//! Postgres clusters, keepers and computes for the tests.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use postgres_connector::SourceConfig;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, NoTls};
use wal_decoder::Lsn;

use crate::ids::{BranchId, ProjectName, Term, Timeline};
use crate::page_store::{WalChunkName, WalSpan};
use crate::storage::Storage;
use crate::wal_keeper::record_scanner::{RecordScanner, SEGMENT};
use crate::wal_keeper::*;
use crate::{Installation, ServiceUser, find_installation, run_bounded, server_command};

pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a condition.
pub(super) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A cluster as initdb leaves it, stopped in order: what a first manifest would hold.
pub(super) struct Base {
    pub(super) data: PathBuf,
    pub(super) redo: Lsn,
    pub(super) end: Lsn,
    pub(super) system_identifier: u64,
    pub(super) installation: Installation,
    pub(super) user: ServiceUser,
    _folder: TempDir,
}

/// The one that all tests copy.
pub(super) async fn base() -> &'static Base {
    static BASE: OnceCell<Base> = OnceCell::const_new();
    BASE.get_or_init(Base::make).await
}

fn folder(user: &ServiceUser) -> TempDir {
    let folder = tempfile::Builder::new().prefix("tidewater-keeper-").tempdir().unwrap();
    user.own(folder.path()).unwrap();
    folder
}

impl Base {
    async fn make() -> Base {
        let installation = find_installation(None, 18).await.unwrap();
        let user = ServiceUser::for_new_cluster();
        let folder = folder(&user);
        let data = folder.path().join("data");
        let mut initdb = server_command(&installation.program("initdb"), &user);
        initdb.arg("-D").arg(&data).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ]);
        run_bounded(initdb, PATIENCE).await.unwrap();
        let mut controldata = server_command(&installation.program("pg_controldata"), &user);
        controldata.arg(&data);
        let text = run_bounded(controldata, PATIENCE).await.unwrap().stdout;
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap()
                .trim_start_matches(':')
                .trim()
                .to_owned()
        };
        let redo: Lsn = value("Latest checkpoint's REDO location").parse().unwrap();
        let mut scanner = RecordScanner::new(redo, None);
        let wal = std::fs::read(data.join("pg_wal/000000010000000000000001")).unwrap();
        scanner.push(&wal[(redo.0 % SEGMENT) as usize..]).unwrap_err();
        assert!(scanner.end() > redo, "initdb leaves a shutdown checkpoint");
        let system_identifier = value("Database system identifier").parse().unwrap();
        mark_in_production(&data.join("global/pg_control"));
        Base { data, redo, end: scanner.end(), system_identifier, installation, user, _folder: folder }
    }

    /// Its WAL, archived under a branch of its own.
    pub(super) async fn archive(&self, storage: &Storage) -> WalSpan {
        let log = LogName { project: ProjectName::new("template").unwrap(), branch: BranchId::random() };
        let wal = std::fs::read(self.data.join("pg_wal/000000010000000000000001")).unwrap();
        let (start, end) = (Lsn(SEGMENT), self.end);
        let name = WalChunkName { timeline: Timeline(1), start, end, term: Term(1) };
        let wal = Bytes::from(wal).slice(..(end.0 - start.0) as usize);
        let archive = WalArchive::new(storage.clone(), log.clone());
        archive.put(&WalChunk { name, ends_at_record: true, wal }).await.unwrap();
        WalSpan {
            project: log.project,
            branch: log.branch,
            timeline: Timeline(1),
            from: self.redo,
            to: Some(self.end),
        }
    }
}

/// A cluster that was stopped in order recovers nothing; one that was running when its files were taken does.
fn mark_in_production(control: &Path) {
    let mut bytes = std::fs::read(control).unwrap();
    let sum_at = (100..500)
        .find(|at| bytes[*at..at + 4] == crc32c::crc32c(&bytes[..*at]).to_le_bytes())
        .expect("pg_control has a checksum");
    // `state`, after the system identifier and two version numbers; 6 is DB_IN_PRODUCTION.
    bytes[16..20].copy_from_slice(&6u32.to_le_bytes());
    let sum = crc32c::crc32c(&bytes[..sum_at]);
    bytes[sum_at..sum_at + 4].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(control, bytes).unwrap();
}

/// A keeper in a process of its own.
pub(super) struct Keeper {
    pub(super) folder: TempDir,
    pub(super) address: KeeperAddress,
    pub(super) child: Option<Child>,
}

impl Keeper {
    pub(super) async fn start() -> Keeper {
        let folder = tempfile::Builder::new().prefix("tidewater-keeper-").tempdir().unwrap();
        let address = KeeperAddress::unix(folder.path().join("keeper.sock"));
        let mut keeper = Keeper { folder, address, child: None };
        keeper.restart("").await;
        keeper
    }

    /// Starts it again with these crash points armed.
    pub(super) async fn restart(&mut self, failpoints: &str) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "wal_keeper::tests::keeper_process"])
            .env("TEST_KEEPER_DIRECTORY", self.directory())
            .env("TEST_KEEPER_LISTEN", self.address.to_string())
            .env("FAILPOINTS", failpoints)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        self.child = Some(command.spawn().unwrap());
        let address = self.address.clone();
        until("the keeper listens", async || hello(&address).await.is_ok()).await;
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub(super) async fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.start_kill().unwrap();
        child.wait().await.unwrap();
    }

    pub(super) fn lose_disk(&self) {
        std::fs::remove_dir_all(self.directory()).unwrap();
    }
}

/// A branch with its keepers and its store.
pub(super) struct Branch {
    pub(super) election: Election,
    pub(super) spans: Vec<WalSpan>,
    pub(super) storage: Storage,
}

impl Branch {
    pub(super) async fn new(keepers: &[Keeper]) -> Branch {
        Branch::over(keepers, Arc::new(InMemory::new())).await
    }

    pub(super) async fn over(keepers: &[Keeper], objects: Arc<dyn ObjectStore>) -> Branch {
        let base = base().await;
        let storage = Storage::over(objects, object_store::path::Path::default(), "test");
        let span = base.archive(&storage).await;
        let log = LogName { project: ProjectName::new("shop").unwrap(), branch: BranchId::random() };
        let election = Election {
            archive: WalArchive::new(storage.clone(), log.clone()),
            log,
            keepers: keepers.iter().map(|keeper| keeper.address.clone()).collect(),
            above: Term(0),
            system_identifier: base.system_identifier,
            durability: Durability::Keeper,
        };
        Branch { election, spans: vec![span], storage }
    }

    /// Elects, recovers the base with the WAL there is, and streams.
    pub(super) async fn start(&self, durability: Durability) -> Compute {
        let elected = elect(&Election { durability, ..self.election.clone() }).await.unwrap();
        let postgres = self.recover(&elected).await;
        let config = StreamConfig { postgres: postgres.config(), origin: base().await.end };
        let streaming = elected.stream(config).await.unwrap();
        Compute { postgres, streaming }
    }

    /// Postgres over the base and the WAL of the elected log.
    pub(super) async fn recover(&self, elected: &Elected) -> Postgres {
        let base = base().await;
        let postgres = Postgres::unpack(base).await;
        let pg_wal = postgres.data().join("pg_wal");
        std::fs::remove_dir_all(&pg_wal).unwrap();
        std::fs::create_dir(&pg_wal).unwrap();
        base.user.own(&pg_wal).unwrap();
        elected.place_wal(&self.spans, base.redo, &pg_wal, &base.user).await.unwrap();
        postgres.start(base).await
    }
}

/// A Postgres that streams.
pub(super) struct Compute {
    pub(super) postgres: Postgres,
    pub(super) streaming: Streaming,
}

impl Compute {
    pub(super) async fn kill(self) {
        let Compute { mut postgres, streaming } = self;
        postgres.kill().await;
        drop(streaming);
    }
}

/// A server over a copy of the base.
pub(super) struct Postgres {
    folder: TempDir,
    child: Option<Child>,
}

impl Postgres {
    async fn unpack(base: &Base) -> Postgres {
        let folder = folder(&base.user);
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(&base.data).arg(folder.path());
        run_bounded(copy, PATIENCE).await.unwrap();
        Postgres { folder, child: None }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    async fn start(mut self, base: &Base) -> Postgres {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let mut command = server_command(&base.installation.program("postgres"), &base.user);
        command.arg("-D").arg(self.data());
        for setting in [
            "listen_addresses=",
            &format!("unix_socket_directories={}", self.folder.path().display()),
            "port=5432",
            "fsync=off",
            "full_page_writes=off",
            "restart_after_crash=off",
            "wal_keep_size=1GB",
            "wal_level=logical",
            "synchronous_standby_names=FIRST 1 (tidewater_keeper)",
        ] {
            command.arg("-c").arg(setting);
        }
        command.stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true);
        self.child = Some(command.spawn().unwrap());
        until("Postgres serves", async || {
            let child = self.child.as_mut().unwrap();
            if let Some(end) = child.try_wait().unwrap() {
                panic!("Postgres ended: {end}\n{}", self.log());
            }
            self.try_connect().await.is_ok()
        })
        .await;
        self
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(super) fn config(&self) -> SourceConfig {
        let host = self.folder.path().display().to_string().replace('/', "%2F");
        SourceConfig::from_url(&format!("postgres://postgres@{host}:5432/postgres"), None, None, None)
            .unwrap()
    }

    async fn try_connect(&self) -> Result<Client, tokio_postgres::Error> {
        let url = format!("host={} user=postgres dbname=postgres", self.folder.path().display());
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(super) async fn connect(&self) -> Client {
        self.try_connect().await.unwrap()
    }

    /// `kill -9` of the postmaster; its children notice and go.
    pub(super) async fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.start_kill().unwrap();
        child.wait().await.unwrap();
    }

    /// A fast shutdown, to its end.
    pub(super) async fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    }
}

pub(super) async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.unwrap().get(0)
}

pub(super) async fn lsn(client: &Client, query: &str) -> Lsn {
    let text: String = client.query_one(&format!("SELECT ({query})::text"), &[]).await.unwrap().get(0);
    text.parse().unwrap()
}

/// Inserts one row after another until an insert fails or does not return in time; the numbers of those that returned.
pub(super) async fn insert_until_it_fails(client: Client, from: i64) -> Vec<i64> {
    let mut acknowledged = Vec::new();
    for id in from.. {
        match timeout(PATIENCE, client.execute("INSERT INTO t VALUES ($1, repeat('x', 200))", &[&id])).await {
            Ok(Ok(_)) => acknowledged.push(id),
            _ => break,
        }
    }
    acknowledged
}

pub(super) async fn ids(client: &Client) -> Vec<i64> {
    let rows = client.query("SELECT id FROM t ORDER BY id", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Files of segments below a keeper's directory.
pub(super) fn segment_files(directory: &Path) -> usize {
    let mut found = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found += segment_files(&path);
        } else {
            found += usize::from(path.extension().is_some_and(|extension| extension == "segment"));
        }
    }
    found
}
