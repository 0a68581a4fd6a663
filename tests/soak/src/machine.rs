//! The machine that a built-in database runs on, and how it is struck.
//!
//! What belongs to it: the daemon, the gateway, the compute with its Postgres, a keeper, and their files. What does not:
//! the storage, the lake, and with three keepers the other two. So losing the machine leaves these.

use std::path::Path;
use std::time::{Duration, Instant};

use oltp_core::ids::ProjectName;
use oltp_core::page_fs::detach_stale_mounts;
use oltp_core::storage::Storage;
use oltp_core::{SUPERUSER, Secret, kept_secret};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidewater_e2e::{CoreProcess, Daemon, KeeperProcess, S3Server, Site, free_port, kill9};
use tokio_postgres::{Client, NoTls};

use crate::round::Victim;

const DATABASE: &str = "shop";

/// A killed process is gone within moments, unless it hangs in the kernel.
const GONE_LIMIT: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(5);

/// From a start until the lake is followed; the pauses between attempts grow to 15 s.
const STREAMING_LIMIT: Duration = Duration::from_secs(180);

/// Where pages and WAL are, and what a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A folder, with the keeper's log in it.
    Folder,
    /// A bucket; a commit waits for it, and the keeper's log is the machine's.
    Bucket,
    /// A bucket, and three keepers of which the machine has one.
    ThreeKeepers,
}

/// A running machine. A round that fails leaves its files behind.
#[derive(Debug)]
pub struct Machine {
    layout: Layout,
    yaml: String,
    /// Of a folder or a bucket; and the lake.
    safe: TempDir,
    store: Option<S3Server>,
    keepers: Vec<KeeperProcess>,
    site: Option<Site>,
    daemon: Option<Daemon>,
    url: String,
    struck: u64,
}

impl Machine {
    /// Starts a daemon with an empty database.
    pub async fn start(layout: Layout) -> Machine {
        let safe = TempDir::with_prefix("tidewater-soak-").unwrap();
        let store = match layout {
            Layout::Folder => None,
            Layout::Bucket | Layout::ThreeKeepers => Some(S3Server::start_in(safe.path()).await),
        };
        let mut keepers = Vec::new();
        if layout == Layout::ThreeKeepers {
            for number in 1..=3 {
                keepers.push(KeeperProcess::new(&safe.path().join(format!("keeper-{number}"))));
            }
        }
        let yaml = yaml(layout, safe.path(), store.as_ref(), &keepers).to_string();
        let site = Some(Site::new(&yaml));
        let mut machine =
            Machine { layout, yaml, safe, store, keepers, site, daemon: None, url: String::new(), struck: 0 };
        machine.mend().await;
        machine.url = machine.site().branch_url("main").await;
        machine
    }

    fn site(&self) -> &Site {
        self.site.as_ref().unwrap()
    }

    /// The database's address at the gateway, for its owner; it stays.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many processes were killed, and machines lost.
    pub fn struck(&self) -> u64 {
        self.struck
    }

    /// `kill -9` of those that live.
    pub async fn strike(&mut self, victims: &[Victim]) {
        for victim in victims {
            match victim {
                Victim::Daemon => {
                    if let Some(daemon) = self.daemon.take() {
                        self.struck += 1;
                        daemon.kill9().await;
                    }
                }
                Victim::Keeper if self.layout == Layout::ThreeKeepers => {
                    // Two are enough; which one it is varies.
                    let keeper = usize::try_from(self.struck).unwrap() % self.keepers.len();
                    self.struck += 1;
                    self.keepers[keeper].kill9().await;
                }
                Victim::Keeper => self.kill_all(CoreProcess::Keeper),
                Victim::Gateway => self.kill_all(CoreProcess::Gateway),
                Victim::Compute => self.kill_all(CoreProcess::Compute),
                Victim::Postgres => self.kill_all(CoreProcess::Postgres),
            }
        }
    }

    fn kill_all(&mut self, kind: CoreProcess) {
        for pid in self.site().core_processes(kind) {
            self.struck += 1;
            kill9(pid);
        }
    }

    /// Everything but the storage is gone, and another machine begins with that.
    pub async fn lose(&mut self) {
        if let Some(first) = self.keepers.first_mut() {
            first.kill9().await;
            first.lose_disk();
        }
        let kinds = [CoreProcess::Compute, CoreProcess::Postgres, CoreProcess::Keeper, CoreProcess::Gateway];
        self.strike(&[Victim::Daemon]).await;
        // One that was being started when its parent died may only now be there.
        let deadline = Instant::now() + GONE_LIMIT;
        loop {
            kinds.iter().for_each(|kind| self.kill_all(*kind));
            if kinds.iter().all(|kind| self.site().core_processes(*kind).is_empty()) {
                break;
            }
            assert!(Instant::now() < deadline, "a killed process is still there");
            tokio::time::sleep(RETRY).await;
        }
        let lost = self.site.take().unwrap();
        let state = lost.state();
        tokio::task::spawn_blocking(move || detach_stale_mounts(&state)).await.unwrap().unwrap();
        let site = Site::new(&self.yaml);
        if self.layout == Layout::Folder {
            std::fs::rename(lost.path().join("core"), site.path().join("core")).unwrap();
        }
        self.site = Some(site);
    }

    /// The database goes to sleep.
    pub async fn sleep(&self) {
        self.site().succeeds(&["compute", "suspend", DATABASE]).await;
    }

    /// What people start again is started again: keepers on machines of their own, and the daemon.
    pub async fn mend(&mut self) {
        self.keepers.iter_mut().for_each(KeeperProcess::start);
        if let Some(daemon) = &mut self.daemon
            && daemon.end().is_some()
        {
            self.daemon = None;
        }
        if self.daemon.is_none() {
            self.daemon = Some(self.site().spawn());
        }
        if let Some(daemon) = &mut self.daemon {
            daemon.wait_ready().await;
        }
    }

    /// A session of the core's own role. The sessions of a Postgres that was killed may have got their last answers from
    /// backends that had not noticed yet; with nobody at work then, nobody but us wakes the database again.
    pub async fn superuser(&self) -> Client {
        let password = self.superuser_password().await;
        let deadline = Instant::now() + GONE_LIMIT;
        loop {
            let listed = self.site().succeeds(&["compute", "list", "--json"]).await;
            let listed: Value = serde_json::from_str(&listed).unwrap();
            if let Some(directory) = listed[0]["socket_directory"].as_str() {
                let mut config = tokio_postgres::Config::new();
                config.host_path(directory).dbname(DATABASE).user(SUPERUSER).password(&password);
                if let Ok((client, connection)) = config.connect(NoTls).await {
                    tokio::spawn(connection);
                    return client;
                }
            }
            assert!(Instant::now() < deadline, "no compute takes sessions: {listed}");
            if let Err(refused) = tokio_postgres::connect(&self.url, NoTls).await {
                println!("  not awake yet: {refused}");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn superuser_password(&self) -> String {
        let options = |store: &S3Server| serde_json::from_value(store.lake_options()).unwrap();
        let storage = match &self.store {
            None => Storage::open(self.site().path().join("core").to_str().unwrap(), &Default::default()),
            Some(store) => Storage::open("s3://lake/core", &options(store)),
        };
        let project = ProjectName::new(DATABASE).unwrap();
        let password = kept_secret(&storage.unwrap(), &project, Secret::Superuser).await.unwrap();
        password.expose_secret().to_owned()
    }

    /// Every page, manifest and piece of WAL in the storage is whole.
    pub async fn inspect(&self) {
        self.site().succeeds(&["core", "inspect"]).await;
    }

    /// The lake has what the database has.
    pub async fn verify(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.wait_streaming(STREAMING_LIMIT).await;
        }
        self.site().succeeds(&["verify"]).await;
    }

    /// Stops in order.
    pub async fn stop(mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop().await;
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.safe.disable_cleanup(true);
            if let Some(site) = self.site.take() {
                eprintln!("--- kept: {} and {}", site.keep().display(), self.safe.path().display());
            }
        }
    }
}

/// The configuration; YAML takes JSON as it is.
fn yaml(layout: Layout, safe: &Path, store: Option<&S3Server>, keepers: &[KeeperProcess]) -> Value {
    let loopback = |port: u16| format!("127.0.0.1:{port}");
    let mut core = json!({"storage": "./core", "listen": loopback(free_port()), "suspend_after": "0s"});
    if let Some(store) = store {
        core["storage"] = json!("s3://lake/core");
        core["options"] = store.lake_options();
    }
    match layout {
        Layout::Folder => {}
        Layout::Bucket => {
            core["durability"] = json!("store");
            core["keeper"] = json!({"dir": "./keeper"});
        }
        Layout::ThreeKeepers => {
            core["keepers"] = keepers.iter().map(KeeperProcess::address).collect();
        }
    }
    json!({
        "version": 1,
        "lake": {"uri": safe.join("delta")},
        "listen": {"http": loopback(free_port())},
        "core": core,
        "databases": {DATABASE: {"core": {}}},
        "to_lake": [{"database": DATABASE, "tables": ["public.steps", "public.totals"], "flush": "200ms"}],
    })
}
