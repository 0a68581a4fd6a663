//! The built-in Postgres of one site: where its parts are, and how each is started and reached.
//!
//! ```text
//!   tidewater.yaml ──▶ BuiltIn ─┬─ pages, branches      in `core.storage`
//!                               ├─ keeper, gateway      processes below `state_dir`, found by their locks
//!                               └─ computes             processes below `state_dir`, found by their sockets
//! ```
//!
//! Daemon, gateway, computes and commands each read the configuration and open this for themselves; what they
//! have to agree on lies in the storage or is held by a lock. So none of them needs another one to be alive,
//! which is what lets databases outlive the daemon.

mod branch_place;
mod database;
mod standing_process;

use crate::config::{self, Config, CoreDatabase, Database};
use oltp_core::branches::Branches;
use oltp_core::compute_process::{CUT_EVERY, ComputeSpec, Mount};
use oltp_core::computes::{Computes, ComputesOptions};
use oltp_core::ids::{BranchId, BranchName, ProjectName};
use oltp_core::page_store::PageStore;
use oltp_core::storage::Storage;
use oltp_core::wal_keeper::{Durability, KeeperAddress, KeeperEndpoint};
use oltp_core::{CoreError, NewProject, Secret, ensure_project, find_installation, kept_secret};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wal_decoder::Lsn;

pub use branch_place::{BranchPlace, branch_place, moment};
pub use database::{BuiltInDatabase, Gate, Reached, superuser};
pub use standing_process::{Claim, StandingProcess};

/// The keeper's and the gateway's names: of their locks, their logs and their commands.
pub const KEEPER: &str = "keeper";
/// See [`KEEPER`].
pub const GATEWAY: &str = "gateway";

/// The core cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum BuiltInError {
    /// A part of it says why.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// A file of a process cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A process ends instead of running.
    #[error("the {name} does not start ({end}); {} ends with:\n{tail}", log.display())]
    Process {
        /// Which.
        name: &'static str,
        /// How it ended.
        end: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Somebody does the work already.
    #[error("another process has {}: stop that one first", path.display())]
    Claimed {
        /// The lock.
        path: PathBuf,
    },
    /// Nothing of the configuration is built in.
    #[error("the configuration has no built-in database")]
    NoDatabase,
    /// Neither an LSN nor a time.
    #[error(
        "`{text}` is no moment: an LSN such as 0/16B3748, or a time such as 2026-11-20T10:00:00Z or '2026-11-20 10:00' (UTC)"
    )]
    Moment {
        /// As given.
        text: String,
    },
    /// The branch that everything else comes from.
    #[error("the branch `main` of a database cannot be deleted; `tidewater restore` rewinds it")]
    MainBranch,
    /// The keepers lag or are away.
    #[error("no majority of the keepers has confirmed {position} within {} s: see that they run", limit.as_secs())]
    Unconfirmed {
        /// Where the commits end that wait.
        position: Lsn,
        /// For how long was waited.
        limit: Duration,
    },
    /// Keepers on other machines need a certificate and a token, which the configuration has no place for.
    #[error("keeper `{keeper}` is on another machine: only keepers on this one can be used in this version")]
    DistantKeeper {
        /// As configured.
        keeper: String,
    },
}

/// See the module's essay. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BuiltIn {
    settings: config::Core,
    configuration: PathBuf,
    program: PathBuf,
    state: PathBuf,
    pages: PageStore,
    computes: Computes,
    keepers: Vec<KeeperAddress>,
}

impl BuiltIn {
    /// The core that `config`, read from the file `configuration`, describes. Nothing is started.
    pub fn open(config: &Config, configuration: &Path) -> Result<BuiltIn, BuiltInError> {
        let settings = config.core_settings();
        let configuration = std::path::absolute(configuration).map_err(file_error("find", configuration))?;
        let program =
            std::env::current_exe().map_err(file_error("find", Path::new("the running program")))?;
        let storage = Storage::open(settings.storage.as_str(), &settings.options.expose())?;
        let state = config.state_dir.to_path_buf();
        let command = command(&program, &configuration, &["compute", "run"]);
        let options = ComputesOptions { directory: state.join("computes"), command };
        let keepers = keepers(&settings, &state)?;
        Ok(BuiltIn {
            settings,
            configuration,
            program,
            pages: PageStore::new(storage),
            computes: Computes::new(options),
            keepers,
            state,
        })
    }

    /// The pages of all projects.
    pub fn pages(&self) -> &PageStore {
        &self.pages
    }

    /// The running branches of this machine.
    pub fn computes(&self) -> &Computes {
        &self.computes
    }

    /// What can be done with branches.
    pub fn branches(&self) -> Branches {
        Branches::new(self.pages.clone(), self.computes.clone())
    }

    /// The core's part of the configuration, with its defaults.
    pub fn settings(&self) -> &config::Core {
        &self.settings
    }

    /// The keeper's process, unless keepers are run by somebody else.
    pub fn keeper(&self) -> Option<StandingProcess> {
        self.settings.keepers.is_empty().then(|| {
            let mut command = command(&self.program, &self.configuration, &[KEEPER, "--dir"]);
            command.push(self.keeper_directory().into());
            command.push("--listen".into());
            command.push(local_keeper(&self.state).to_string().into());
            command.push("--found-in".into());
            command.push(self.state.clone().into());
            StandingProcess::new(KEEPER, &self.state, command)
        })
    }

    /// The gateway's process.
    pub fn gateway(&self) -> StandingProcess {
        StandingProcess::new(GATEWAY, &self.state, command(&self.program, &self.configuration, &[GATEWAY]))
    }

    /// Hard state: beside the pages when those are on this machine.
    fn keeper_directory(&self) -> PathBuf {
        match (&self.settings.keeper, self.pages.storage().local_root()) {
            (Some(keeper), _) => keeper.dir.to_path_buf(),
            (None, Some(root)) => root.join("keeper"),
            (None, None) => self.state.join("keeper"),
        }
    }

    /// Makes a database's project, or finds that there is one; returns its branch `main`.
    pub async fn ensure_project(
        &self,
        name: &ProjectName,
        database: &CoreDatabase,
    ) -> Result<BranchId, BuiltInError> {
        let installation =
            find_installation(self.settings.postgres_bin.as_deref(), database.postgres).await?;
        let owner = database.owner.clone().unwrap_or_else(|| name.to_string());
        let project = NewProject { name: name.clone(), owner };
        Ok(ensure_project(&self.pages, &project, &installation, &self.state.join("template")).await?)
    }

    /// All that a compute of `branch` is run with.
    pub async fn compute_spec(
        &self,
        config: &Config,
        project: &ProjectName,
        branch: BranchId,
    ) -> Result<ComputeSpec, BuiltInError> {
        let record = self.pages.project(project).await?;
        let missing = || CoreError::NoSuchBranch { project: project.to_string(), branch: branch.to_string() };
        let record = record.ok_or_else(missing)?;
        let database = core_database(config, project);
        // Somebody waits for the branch, and each of these goes to another program or to the store.
        let (installation, owner_password, superuser_password) = tokio::try_join!(
            async {
                let bin = self.settings.postgres_bin.as_deref();
                Ok(find_installation(bin, record.postgres_major).await?)
            },
            self.owner_password(config, project),
            async { Ok(kept_secret(self.pages.storage(), project, Secret::Superuser).await?) },
        )?;
        let suspend_after = self.settings.suspend_after;
        Ok(ComputeSpec {
            pages: self.pages.clone(),
            project: project.clone(),
            branch,
            directory: self.computes.directory_of(project, branch),
            installation,
            keepers: self.keepers.clone(),
            durability: match self.settings.durability {
                config::Durability::Keeper => Durability::Keeper,
                config::Durability::Store => Durability::Store,
            },
            mount: match self.settings.mount {
                config::Mount::Fuse => Mount::Fuse,
                config::Mount::Copy => Mount::Copy,
            },
            cache_limit: self.settings.cache.bytes(),
            suspend_after: (!suspend_after.is_zero()).then(|| suspend_after.duration()),
            cut_every: CUT_EVERY,
            owner: record.owner,
            owner_password,
            superuser_password,
            settings: database.map(|database| database.settings.clone()).unwrap_or_default(),
        })
    }

    /// A role's address through the gateway, with its password: ready for psql.
    pub async fn url(
        &self,
        config: &Config,
        project: &ProjectName,
        branch: &BranchName,
    ) -> Result<SecretString, BuiltInError> {
        let owner =
            self.pages.project(project).await?.map_or_else(|| project.to_string(), |record| record.owner);
        let password = self.owner_password(config, project).await?;
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let database = match branch.as_str() {
            oltp_core::gateway::MAIN_BRANCH => project.to_string(),
            branch => format!("{project}@{branch}"),
        };
        let url = format!(
            "postgres://{}:{}@{}/{}",
            encoded(&owner),
            encoded(password.expose_secret()),
            here(self.settings.listen),
            encoded(&database)
        );
        Ok(url.into())
    }

    /// The configured password of a project's owner, else the generated one.
    async fn owner_password(
        &self,
        config: &Config,
        project: &ProjectName,
    ) -> Result<SecretString, BuiltInError> {
        match core_database(config, project).and_then(|database| database.password.as_ref()) {
            Some(password) => Ok(password.secret_string().clone()),
            None => Ok(kept_secret(self.pages.storage(), project, Secret::Owner).await?),
        }
    }
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuiltInError + use<> {
    let path = path.to_owned();
    move |source| BuiltInError::File { action, path, source }
}

/// A built-in database of the configuration.
fn core_database<'a>(config: &'a Config, project: &ProjectName) -> Option<&'a CoreDatabase> {
    match config.databases.get(project.as_str()) {
        Some(Database::Core(database)) => Some(database),
        Some(Database::Url(_)) | None => None,
    }
}

fn command(program: &Path, configuration: &Path, words: &[&str]) -> Vec<OsString> {
    let mut command: Vec<OsString> = vec![program.into(), "--config".into(), configuration.into()];
    command.extend(words.iter().map(OsString::from));
    command
}

fn local_keeper(state: &Path) -> KeeperEndpoint {
    KeeperEndpoint::Unix(state.join("keeper.sock"))
}

fn keepers(settings: &config::Core, state: &Path) -> Result<Vec<KeeperAddress>, BuiltInError> {
    if settings.keepers.is_empty() {
        return Ok(vec![KeeperAddress { endpoint: local_keeper(state), token: None, ca_file: None }]);
    }
    let address = |keeper: &String| {
        let endpoint: KeeperEndpoint = keeper.parse()?;
        match endpoint.is_local() {
            true => Ok(KeeperAddress { endpoint, token: None, ca_file: None }),
            false => Err(BuiltInError::DistantKeeper { keeper: keeper.clone() }),
        }
    };
    settings.keepers.iter().map(address).collect()
}

/// How something that listens everywhere is reached on this machine.
fn here(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
