//! A project, a waker that starts it, and a gateway before it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use oltp_core::gateway::{
    BranchAddress, Counters, CountersSnapshot, Endpoint, Gateway, GatewayLimits, GatewayOptions, TlsFiles,
    Unencrypted, WakeError, Waker,
};
use oltp_core::{Compute, Installation, Listen, Project, ProjectOptions, SUPERUSER, find_installation};
use secrecy::ExposeSecret;
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls};
use tokio_util::sync::CancellationToken;

/// How long a test waits for something that takes milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

const RETRY: Duration = Duration::from_millis(5);

pub const PASSWORD: &str = "it's a secret";

/// Starts the project `shop` when its branch `main` is asked for.
pub struct ProjectWaker {
    project: Project,
    compute: Mutex<Option<Compute>>,
    pub asked: AtomicUsize,
    /// Held by a test, it keeps the project from waking.
    pub bed: Mutex<()>,
}

#[async_trait]
impl Waker for ProjectWaker {
    async fn wake(&self, branch: &BranchAddress) -> Result<Endpoint, WakeError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match (branch.project.as_str(), branch.branch.as_str()) {
            ("shop", "main") => {}
            ("shop", "broken") => {
                return Err(WakeError::Failed { source: "its pages are gone: /secret/path".into() });
            }
            ("shop", _) => return Err(WakeError::NoSuchBranch),
            ("full", _) => return Err(WakeError::TooMany),
            _ => return Err(WakeError::NoSuchProject),
        }
        let _bed = self.bed.lock().await;
        let mut compute = self.compute.lock().await;
        let running = match compute.take() {
            Some(running) if running.is_running() => running,
            _ => self.project.start().await.map_err(|error| WakeError::Failed { source: error.into() })?,
        };
        let endpoint = Endpoint {
            socket_directory: running.socket_directory().to_owned(),
            port: running.port(),
            superuser: superuser(&running),
        };
        *compute = Some(running);
        Ok(endpoint)
    }
}

fn superuser(compute: &Compute) -> Config {
    let mut config = Config::new();
    config
        .host_path(compute.socket_directory())
        .port(compute.port())
        .dbname("shop")
        .user(SUPERUSER)
        .password(compute.superuser_password().expose_secret());
    config
}

pub struct House {
    pub address: SocketAddr,
    pub waker: Arc<ProjectWaker>,
    pub installation: Installation,
    pub shutdown: CancellationToken,
    counters: Arc<Counters>,
    serving: JoinHandle<()>,
    folder: tempfile::TempDir,
}

pub struct Furnishing {
    pub limits: GatewayLimits,
    pub tls: bool,
}

impl House {
    pub async fn new() -> House {
        House::furnished(Furnishing { limits: GatewayLimits::default(), tls: false }).await
    }

    pub async fn furnished(furnishing: Furnishing) -> House {
        let folder = tempfile::tempdir().unwrap();
        let installation = find_installation(None, 18).await.unwrap();
        let options = ProjectOptions {
            name: "shop".to_owned(),
            directory: folder.path().join("core/shop"),
            installation: installation.clone(),
            owner: "ann".to_owned(),
            password: Some(PASSWORD.into()),
            settings: Default::default(),
            listen: Listen::Loopback,
        };
        let project = Project::open(options).await.unwrap();
        let (compute, asked, bed) = (Mutex::default(), AtomicUsize::new(0), Mutex::default());
        let waker = Arc::new(ProjectWaker { project, compute, asked, bed });
        let tls = furnishing.tls.then(|| make_certificate(&folder));
        let options = GatewayOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            tls,
            unencrypted: Unencrypted::Loopback,
            limits: furnishing.limits,
        };
        let gateway = Gateway::bind(options, waker.clone()).await.unwrap();
        let (address, counters, shutdown) = (gateway.address(), gateway.counters(), CancellationToken::new());
        let serving = tokio::spawn(gateway.serve(shutdown.clone()));
        House { address, waker, installation, shutdown, counters, serving, folder }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn counters(&self) -> CountersSnapshot {
        self.counters.snapshot()
    }

    /// Waits until the counters are so.
    pub async fn until(&self, what: impl Fn(&CountersSnapshot) -> bool) {
        let started = Instant::now();
        while !what(&self.counters()) {
            assert!(started.elapsed() < PATIENCE, "{:?}", self.counters());
            tokio::time::sleep(RETRY).await;
        }
    }

    /// For the owner, through the gateway, to the database called so.
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.address.port()).user("ann").password(PASSWORD).dbname(database);
        config
    }

    pub async fn connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        connect(&self.config(database)).await
    }

    /// A session of the core's own role, past the gateway.
    pub async fn superuser(&self) -> Client {
        connect(&self.superuser_config().await).await.unwrap()
    }

    pub async fn superuser_config(&self) -> Config {
        superuser(self.waker.compute.lock().await.as_ref().unwrap())
    }

    /// A program of the installation, with the password in its environment.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.installation.program(name));
        command
            .env("PGPASSWORD", PASSWORD)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.address.port().to_string())
            .env("PGUSER", "ann")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn psql(&self, connection: &str, query: &str) -> Output {
        let mut psql = self.program("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", query, connection]);
        psql.output().await.unwrap()
    }

    /// Stops Postgres; the next connection wakes it.
    pub async fn suspend(&self) {
        self.waker.compute.lock().await.take().unwrap().stop().await.unwrap();
    }

    pub async fn close(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap();
        if let Some(compute) = self.waker.compute.lock().await.take() {
            compute.stop().await.unwrap();
        }
    }
}

pub async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Waits until something is so that nobody tells us of.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(RETRY).await;
    }
}

pub async fn text(client: &Client, query: &str) -> String {
    client.query_one(query, &[]).await.unwrap().get::<_, String>(0)
}

/// What a program printed, and that it ended well.
pub fn printed(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// What a program complained about when it failed.
pub fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A CA, and a certificate of `localhost` by it.
fn make_certificate(folder: &tempfile::TempDir) -> TlsFiles {
    let ca = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem \
              -subj /CN=ca -days 2";
    let output = std::process::Command::new("sh").args(["-c", ca]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    issue_certificate(folder.path(), "server");
    TlsFiles { cert_file: folder.path().join("server.crt"), key_file: folder.path().join("server.key") }
}

/// Writes `<name>.crt` and `<name>.key`, another certificate each time.
pub fn issue_certificate(folder: &Path, name: &str) {
    let script = format!(
        "set -e
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key -out {name}.csr \
             -subj /CN=localhost
         echo 'subjectAltName=DNS:localhost' > san
         openssl x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.crt -days 2 -extfile san"
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
