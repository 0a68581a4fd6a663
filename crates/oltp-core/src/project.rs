//! A project: one cluster in one directory, claimed by one daemon.
//!
//! ```text
//!   <directory>/            0711: Postgres's user passes through, sees nothing
//!     lock                  flock of the daemon that has it open; holds its process id
//!     pgdata/               the cluster; its owner is the user Postgres runs as
//!     run/                  the Unix socket
//!     port                  the port of the last start, taken again if free: addresses stay
//!     owner.password        generated, when the configuration names none
//!     superuser.password    of the core's own role, which may enter through the socket only
//!     postgres.log          what the server says
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::Rng;
use rand::distr::Alphanumeric;
use secrecy::SecretString;
use sha2::{Digest, Sha256};

use crate::directory_lock::DirectoryLock;
use crate::installation::Installation;
use crate::service_user::ServiceUser;
use crate::{CoreError, Result, initdb, private_file, settings};

/// The core's own role in every project. It cannot log in over TCP.
pub const SUPERUSER: &str = "tidewater";

/// 32 letters and digits are 190 bits, and survive every URL and shell unquoted.
const PASSWORD_LENGTH: usize = 32;

/// `sun_path` holds 104 bytes with its NUL on the smallest system we know.
const SOCKET_PATH_LIMIT: usize = 103;

/// Postgres names the socket after its port; the longest.
const SOCKET_NAME: &str = ".s.PGSQL.65535";

/// Where the server is reachable over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// On 127.0.0.1, at the port of the last start when that is free, else at any free one.
    Loopback,
    /// Exactly here.
    At(SocketAddr),
}

/// What a project is made or opened with.
#[derive(Debug, Clone)]
pub struct ProjectOptions {
    /// The project's name, which is also its database's.
    pub name: String,
    /// The project's directory; made when it is missing.
    pub directory: PathBuf,
    /// The server's programs.
    pub installation: Installation,
    /// The role that owns the database.
    pub owner: String,
    /// The owner's password; `None` has one generated and kept in the directory.
    pub password: Option<SecretString>,
    /// Postgres settings from the configuration.
    pub settings: BTreeMap<String, String>,
    /// Where the server listens.
    pub listen: Listen,
}

/// An opened project: its cluster exists, and no other daemon can open it until this (and every
/// compute started from it) is dropped. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Project {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) name: String,
    pub(crate) owner: String,
    pub(crate) directory: PathBuf,
    pub(crate) installation: Installation,
    pub(crate) user: ServiceUser,
    pub(crate) owner_password: SecretString,
    pub(crate) superuser_password: SecretString,
    pub(crate) configuration: String,
    pub(crate) listen: Listen,
    /// Two starts at once would be two postmasters racing for one pid file.
    pub(crate) starting: tokio::sync::Mutex<()>,
    /// Released by the operating system when the last handle is dropped, however that comes.
    _lock: DirectoryLock,
}

impl Project {
    /// Claims the directory and makes the cluster if there is none yet.
    ///
    /// # Errors
    /// A name or setting cannot be used, another daemon has the directory, the cluster is of another
    /// major version, or `initdb` fails.
    pub async fn open(options: ProjectOptions) -> Result<Project> {
        let ProjectOptions { name, directory, installation, owner, password, settings, listen } = options;
        check_name("name", &name, &["postgres", "template0", "template1"])?;
        check_name("owner", &owner, &[SUPERUSER, "public", "none"])?;
        let configuration = settings::render(&name, &settings)?;

        private_file::create_directory(&directory, 0o711)?;
        let directory = directory.canonicalize().map_err(CoreError::io("find", &directory))?;
        let lock = DirectoryLock::take(&directory, "lock")?;
        let superuser_password = kept_password(&directory.join("superuser.password"))?;
        let owner_password = match password {
            Some(password) => password,
            None => kept_password(&directory.join("owner.password"))?.into(),
        };

        let data = directory.join("pgdata");
        let user =
            if data.exists() { ServiceUser::of_existing(&data)? } else { ServiceUser::for_new_cluster() };
        if !data.exists() {
            tracing::info!(project = %name, directory = %directory.display(), "making a new Postgres cluster");
            let rules = initdb::server_access_rules();
            initdb::make_cluster(&directory, &data, &installation, &user, &superuser_password, &rules)
                .await?;
        }
        check_major(&data, &installation)?;
        let inner = Inner {
            name,
            owner,
            directory,
            installation,
            user,
            owner_password,
            superuser_password: superuser_password.into(),
            configuration,
            listen,
            starting: tokio::sync::Mutex::default(),
            _lock: lock,
        };
        Ok(Project { inner: Arc::new(inner) })
    }

    /// The project's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }
}

impl Inner {
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("pgdata")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("postgres.log")
    }

    /// Where the socket lies, absolute; and the same as the postmaster is told.
    ///
    /// The server's own working directory is `pgdata`, so the relative form serves it even when the
    /// way to the project is closed to it. A client needs the absolute one, whose length is limited;
    /// past that limit the socket moves to a directory in `/tmp`, made private.
    pub(crate) fn socket_directory(&self) -> Result<(PathBuf, PathBuf)> {
        let inside = self.directory.join("run");
        let (absolute, argument) = if inside.as_os_str().len() + 1 + SOCKET_NAME.len() <= SOCKET_PATH_LIMIT {
            (inside, PathBuf::from("../run"))
        } else {
            let digest = Sha256::digest(self.directory.as_os_str().as_encoded_bytes());
            let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            let path = PathBuf::from(format!("/tmp/tidewater-{short}"));
            (path.clone(), path)
        };
        private_file::create_directory(&absolute, 0o700)?;
        self.own_socket_directory(&absolute)?;
        Ok((absolute, argument))
    }

    /// In `/tmp` anybody may have made a directory of this name before us: it must be a real
    /// directory of ours or of Postgres's user, closed to others.
    fn own_socket_directory(&self, path: &Path) -> Result<()> {
        let metadata = path.symlink_metadata().map_err(CoreError::io("look at", path))?;
        let ours = rustix::process::geteuid().as_raw();
        let allowed =
            metadata.uid() == ours || self.user.switch_to().is_some_and(|(uid, _)| uid == metadata.uid());
        if !metadata.is_dir() || !allowed || metadata.mode() & 0o077 != 0 {
            let error = std::io::Error::other("it belongs to somebody else, or is open to others; remove it");
            return Err(CoreError::io("use the socket directory", path)(error));
        }
        self.user.own(path)
    }

    /// The address for a new start.
    pub(crate) fn choose_address(&self) -> Result<SocketAddr> {
        let failed =
            |address| move |source| CoreError::AddressInUse { project: self.name.clone(), address, source };
        match self.listen {
            Listen::At(address) => {
                std::net::TcpListener::bind(address).map_err(failed(address))?;
                Ok(address)
            }
            Listen::Loopback => {
                let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
                let last =
                    private_file::read(&self.directory.join("port"))?.and_then(|text| text.parse().ok());
                if let Some(port) = last.filter(|port| *port != 0)
                    && std::net::TcpListener::bind((loopback, port)).is_ok()
                {
                    return Ok(SocketAddr::new(loopback, port));
                }
                let any = SocketAddr::new(loopback, 0);
                let free = std::net::TcpListener::bind(any).map_err(failed(any))?;
                free.local_addr().map_err(failed(any))
            }
        }
    }

    pub(crate) fn remember_port(&self, port: u16) -> Result<()> {
        private_file::write(&self.directory.join("port"), &format!("{port}\n"))
    }

    /// Writes the project's settings; true when they differ from the last start's.
    pub(crate) fn write_configuration(&self) -> Result<bool> {
        let path = self.data().join(settings::FILE);
        if std::fs::read_to_string(&path).is_ok_and(|present| present == self.configuration) {
            return Ok(false);
        }
        private_file::write(&path, &self.configuration)?;
        self.user.own(&path)?;
        Ok(true)
    }
}

/// The password in `path`, generated the first time.
fn kept_password(path: &Path) -> Result<String> {
    if let Some(password) = private_file::read(path)?.filter(|password| !password.is_empty()) {
        return Ok(password);
    }
    let password: String =
        rand::rng().sample_iter(Alphanumeric).take(PASSWORD_LENGTH).map(char::from).collect();
    private_file::write(path, &format!("{password}\n"))?;
    Ok(password)
}

fn check_name(role: &'static str, name: &str, taken: &[&str]) -> Result<()> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > 63 {
        "Postgres cuts names after 63 bytes"
    } else if name.contains('\0') || name.contains(char::is_control) {
        "it contains control characters"
    } else if name.starts_with("pg_") || taken.contains(&name) {
        "Postgres or Tidewater uses that name itself"
    } else {
        return Ok(());
    };
    Err(CoreError::UnusableName { name: name.chars().take(80).collect(), role, reason })
}

fn check_major(data: &Path, installation: &Installation) -> Result<()> {
    let path = data.join("PG_VERSION");
    let found = std::fs::read_to_string(&path).map_err(CoreError::io("read", &path))?;
    if found.trim() == installation.major().to_string() {
        return Ok(());
    }
    let found = found.trim().chars().take(20).collect();
    Err(CoreError::OtherMajor { directory: data.to_owned(), found, wanted: installation.major() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_password_stays_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owner.password");
        let first = kept_password(&path).unwrap();
        assert_eq!(first.len(), PASSWORD_LENGTH);
        assert_eq!(kept_password(&path).unwrap(), first);
    }

    #[test]
    fn names_that_postgres_or_the_core_uses_are_refused() {
        for name in ["", "postgres", "pg_shop", &"x".repeat(64), "a\nb"] {
            assert!(check_name("name", name, &["postgres"]).is_err(), "{name:?}");
        }
        check_name("name", "Größe \"7\"", &["postgres"]).unwrap();
    }
}
