//! A storage, a keeper and computes in this process, on real Postgres and a real mount.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use oltp_core::branches::{Branches, Point};
use oltp_core::compute_process::{self, Answer, ComputeSpec, End, Mount, Question, Status};
use oltp_core::computes::{Computes, ComputesOptions};
use oltp_core::ids::{BranchId, BranchName, ProjectName};
use oltp_core::page_store::PageStore;
use oltp_core::storage::Storage;
use oltp_core::wal_keeper::{Durability, KeeperAddress, KeeperEndpoint, KeeperOptions, KeeperServer};
use oltp_core::{
    CoreError, Installation, NewProject, Secret, ensure_project, find_installation, kept_secret,
};
use secrecy::{ExposeSecret, SecretString};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

pub const PASSWORD: &str = "open sesame";

/// For what takes milliseconds, on a machine that is busy with everything else.
const PATIENCE: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_millis(5);

/// Everything but the computes themselves.
pub struct Lab {
    pub folder: TempDir,
    pub pages: PageStore,
    pub installation: Installation,
    pub computes: Computes,
    pub branches: Branches,
    pub mount: Mount,
    keeper: Option<(CancellationToken, JoinHandle<()>)>,
}

/// A compute that runs as a task.
pub struct Running {
    pub status: Status,
    task: JoinHandle<Result<End, CoreError>>,
    socket: PathBuf,
}

pub fn project() -> ProjectName {
    ProjectName::new("shop").unwrap()
}

pub fn named(name: &str) -> BranchName {
    BranchName::new(name).unwrap()
}

impl Lab {
    pub async fn new() -> Lab {
        let folder = tempfile::Builder::new().permissions(open_to_all()).tempdir().unwrap();
        let storage =
            Storage::open(folder.path().join("storage").to_str().unwrap(), &BTreeMap::new()).unwrap();
        let pages = PageStore::new(storage);
        let installation = find_installation(None, postgres_major()).await.unwrap();
        let computes = computes_in(&folder, "state");
        let branches = Branches::new(pages.clone(), computes.clone());
        let mount = Mount::Fuse;
        let mut lab = Lab { folder, pages, installation, computes, branches, mount, keeper: None };
        lab.start_keeper().await;
        lab
    }

    pub async fn start_keeper(&mut self) {
        let options = KeeperOptions {
            directory: self.folder.path().join("keeper"),
            listen: KeeperEndpoint::Unix(self.keeper_socket()),
            tls: None,
            token: None,
        };
        let server = KeeperServer::bind(options).await.unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        self.keeper = Some((stop, tokio::spawn(server.run(stopped))));
    }

    pub async fn stop_keeper(&mut self) {
        if let Some((stop, task)) = self.keeper.take() {
            stop.cancel();
            task.await.unwrap();
        }
    }

    fn keeper_socket(&self) -> PathBuf {
        self.folder.path().join("keeper.sock")
    }

    /// Computes of another machine: nothing local is shared.
    pub fn move_elsewhere(&mut self, state: &str) {
        self.computes = computes_in(&self.folder, state);
        self.branches = Branches::new(self.pages.clone(), self.computes.clone());
    }

    pub async fn project(&self) -> BranchId {
        let shop = NewProject { name: project(), owner: "shop".to_owned() };
        ensure_project(&self.pages, &shop, &self.installation, &self.folder.path().join("scratch"))
            .await
            .unwrap()
    }

    pub async fn spec(&self, branch: BranchId) -> ComputeSpec {
        let superuser = kept_secret(self.pages.storage(), &project(), Secret::Superuser).await.unwrap();
        ComputeSpec {
            pages: self.pages.clone(),
            project: project(),
            branch,
            directory: self.computes.directory_of(&project(), branch),
            installation: self.installation.clone(),
            keepers: vec![KeeperAddress::unix(self.keeper_socket())],
            durability: Durability::Keeper,
            mount: self.mount,
            cache_limit: 256 << 20,
            suspend_after: None,
            cut_every: Duration::from_millis(500),
            owner: "shop".to_owned(),
            owner_password: PASSWORD.to_owned().into(),
            superuser_password: superuser,
            settings: BTreeMap::from([("max_prepared_transactions".to_owned(), "8".to_owned())]),
        }
    }

    pub async fn start(&self, branch: BranchId) -> Running {
        self.try_start(self.spec(branch).await).await.unwrap()
    }

    /// Makes a branch of main and starts it.
    pub async fn branch_of_main(&self, name: &str, point: Point) -> Running {
        let (project, main) = (project(), named("main"));
        let made = self.branches.create(&project, &main, named(name), point, None).await.unwrap();
        self.start(made.head.branch).await
    }

    pub async fn try_start(&self, spec: ComputeSpec) -> Result<Running, CoreError> {
        let socket = spec.directory.join("control.sock");
        let mut task = tokio::spawn(compute_process::run(spec, CancellationToken::new()));
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "the compute neither starts nor ends");
            tokio::select! {
                ended = &mut task => return Err(ended.unwrap().unwrap_err()),
                answer = compute_process::ask(&socket, Question::Ready) => {
                    if let Some(Answer::Status(status)) = answer? {
                        return Ok(Running { status: *status, task, socket });
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        }
    }
}

/// `make old-postgres` runs these on 17 as well.
pub fn postgres_major() -> u32 {
    std::env::var("TIDEWATER_POSTGRES_MAJOR").map_or(18, |major| major.parse().unwrap())
}

fn open_to_all() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}

fn computes_in(folder: &TempDir, state: &str) -> Computes {
    let command = vec!["/bin/false".into()];
    Computes::new(ComputesOptions { directory: folder.path().join(state), command })
}

impl Running {
    pub async fn connect_as(
        &self,
        role: &str,
        password: &SecretString,
    ) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(self.status.socket_directory.as_ref().unwrap())
            .dbname("shop")
            .user(role)
            .password(password.expose_secret());
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A session of the project's owner.
    pub async fn owner(&self) -> Client {
        self.connect_as("shop", &PASSWORD.to_owned().into()).await.unwrap()
    }

    /// A session of the core's own role.
    pub async fn superuser(&self, lab: &Lab) -> Client {
        let password = kept_secret(lab.pages.storage(), &project(), Secret::Superuser).await.unwrap();
        self.connect_as("tidewater", &password).await.unwrap()
    }

    pub async fn ask(&self, question: Question) -> Answer {
        self.asking(question).await
    }

    /// The same for a task.
    pub fn asking(&self, question: Question) -> impl Future<Output = Answer> + use<> {
        let socket = self.socket.clone();
        async move { compute_process::ask(&socket, question).await.unwrap().unwrap() }
    }

    pub async fn suspend(self) -> End {
        self.ask(Question::Suspend).await;
        self.task.await.unwrap().unwrap()
    }

    /// As `kill -9` of the process and its Postgres would: nothing is flushed, told or handed over.
    pub async fn kill(self) {
        let postmaster =
            rustix::process::Pid::from_raw(i32::try_from(self.status.postgres_pid.unwrap()).unwrap());
        rustix::process::kill_process(postmaster.unwrap(), rustix::process::Signal::KILL).unwrap();
        self.task.abort();
        match self.task.await {
            Err(ended) => assert!(ended.is_cancelled()),
            // It was quicker, and has seen that its Postgres is gone.
            Ok(ended) => assert!(matches!(ended, Err(CoreError::PostgresEnded { .. })), "{:?}", ended.err()),
        }
    }

    /// How it ended by itself.
    pub async fn end(self) -> Result<End, CoreError> {
        let ended = tokio::time::timeout(PATIENCE, self.task).await;
        ended.expect("the compute does not end by itself").unwrap()
    }
}

/// Waits until something is so.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(RETRY).await;
    }
}

pub async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.unwrap().get(0)
}
