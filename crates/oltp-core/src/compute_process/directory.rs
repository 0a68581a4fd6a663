//! The local directory of a compute: soft state of one running branch on this machine.
//!
//! ```text
//!   <directory>/            0711: Postgres's user passes through, sees nothing
//!     lock                  flock of the compute process that runs the branch; holds its process id
//!     control.sock          how it is found, asked and stopped
//!     data/                 where the branch's pages are mounted
//!     pg_wal/               the WAL segments, on a plain disk
//!     cache/                pages fetched from the store
//!     run/                  Postgres's Unix socket
//!     postmaster            which process is our postmaster, so that an orphan can be told from a stranger
//!     postgres.log          what the server says
//! ```
//!
//! Nothing here is needed to start the branch elsewhere: deleting it costs fetching pages again.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use sha2::{Digest, Sha256};

use crate::directory_lock::DirectoryLock;
use crate::page_fs::detach_stale_mounts;
use crate::service_user::ServiceUser;
use crate::{CoreError, Result, private_file};

/// `sun_path` holds 104 bytes with its NUL on the smallest system we know.
const SOCKET_PATH_LIMIT: usize = 103;

/// How Postgres names its socket: each compute has a directory of its own, so the port never varies.
const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// Held by the compute process that runs the branch.
const LOCK: &str = "lock";

/// A process killed with SIGKILL is gone within moments, unless it is stuck in the kernel.
const ORPHAN_LIMIT: Duration = Duration::from_secs(20);
const ORPHAN_RETRY: Duration = Duration::from_millis(5);

/// A predecessor that has answered its last question is gone a moment later.
const LEAVING_LIMIT: Duration = Duration::from_secs(3);

/// A claimed directory. The claim ends with the process, or when this is dropped.
#[derive(Debug)]
pub(crate) struct ComputeDirectory {
    root: PathBuf,
    user: ServiceUser,
    _lock: DirectoryLock,
}

impl ComputeDirectory {
    /// Makes and claims `root`, and ends the Postgres that a killed predecessor left behind.
    ///
    /// # Errors
    /// Another process runs this branch here, or the directory cannot be made.
    pub(crate) async fn claim(root: &Path) -> Result<ComputeDirectory> {
        private_file::create_directory(root, 0o711)?;
        let root = root.canonicalize().map_err(CoreError::io("find", root))?;
        let waiting = Instant::now();
        let lock = loop {
            match DirectoryLock::take(&root, LOCK) {
                Err(CoreError::AlreadyOpen { .. }) if waiting.elapsed() < LEAVING_LIMIT => {
                    tokio::time::sleep(ORPHAN_RETRY).await;
                }
                outcome => break outcome?,
            }
        };
        let directory = ComputeDirectory { root, user: ServiceUser::for_new_cluster(), _lock: lock };
        directory.end_orphan().await?;
        let stale = directory.root.clone();
        // Looking at a mount that a killed process left may block for a moment.
        let detached = tokio::task::spawn_blocking(move || detach_stale_mounts(&stale)).await;
        detached
            .map_err(|ended| CoreError::io("look at", &directory.root)(std::io::Error::other(ended)))??;
        private_file::create_directory(&directory.data(), 0o700)?;
        private_file::create_directory(&directory.wal(), 0o700)?;
        directory.user.own(&directory.wal())?;
        Ok(directory)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn user(&self) -> &ServiceUser {
        &self.user
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(crate) fn wal(&self) -> PathBuf {
        self.root.join("pg_wal")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("postgres.log")
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        control_socket(&self.root)
    }

    /// Where Postgres's socket lies, absolute; and the same as the postmaster is told. Empty: what a killed postmaster
    /// left there would keep the next one out for as long as anything has its number, be it a zombie or a stranger.
    ///
    /// The server's own working directory is `data`, so the relative form serves it even when the way
    /// there is closed to it. A client needs the absolute one, whose length is limited; past that limit
    /// the socket moves to a directory in `/tmp`, made private.
    pub(crate) fn socket_directory(&self) -> Result<(PathBuf, PathBuf)> {
        let inside = self.root.join("run");
        let (absolute, argument) = if inside.as_os_str().len() + 1 + SOCKET_NAME.len() <= SOCKET_PATH_LIMIT {
            (inside, PathBuf::from("../run"))
        } else {
            let path = short_path(&self.root, "");
            (path.clone(), path)
        };
        private_file::create_directory(&absolute, 0o700)?;
        self.own_socket_directory(&absolute)?;
        for left in [SOCKET_NAME.to_owned(), format!("{SOCKET_NAME}.lock")] {
            let path = absolute.join(left);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(CoreError::io("remove", path)(error));
                }
                _ => {}
            }
        }
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

    /// Remembers the postmaster for the next process, should this one be killed. Not on the disk: after a power cut there
    /// is no postmaster, and half of this names none.
    pub(crate) fn remember_postmaster(&self, pid: u32) -> Result<()> {
        let started = start_time(pid).unwrap_or_default();
        let path = self.root.join("postmaster");
        std::fs::write(&path, format!("{pid} {started}\n")).map_err(CoreError::io("write", path))
    }

    /// A postmaster whose compute process was killed has lost its pages and its keepers: it can confirm
    /// nothing, but it holds the socket. Process number and start time together name it for certain.
    async fn end_orphan(&self) -> Result<()> {
        let path = self.root.join("postmaster");
        let Some(text) = private_file::read(&path)? else { return Ok(()) };
        let Some((pid, started)) = remembered(&text) else { return Ok(()) };
        let waiting = Instant::now();
        while start_time(pid) == Some(started) && waiting.elapsed() < ORPHAN_LIMIT {
            if let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw)
                && let Err(error) = rustix::process::kill_process(target, Signal::KILL)
                && error != rustix::io::Errno::SRCH
            {
                return Err(CoreError::io("end the orphaned postmaster of", &self.root)(error.into()));
            }
            tokio::time::sleep(ORPHAN_RETRY).await;
        }
        if start_time(pid) == Some(started) {
            let error = std::io::Error::other(format!("process {pid} survives SIGKILL"));
            return Err(CoreError::io("end the orphaned postmaster of", &self.root)(error));
        }
        std::fs::remove_file(&path).map_err(CoreError::io("remove", &path))
    }
}

/// Whether a postmaster in `root` has lost its compute process: its sessions wait for keepers that nobody forwards to.
///
/// # Errors
/// The directory cannot be read.
pub(crate) fn is_orphaned(root: &Path) -> Result<bool> {
    let Some(text) = private_file::read(&root.join("postmaster"))? else { return Ok(false) };
    let lives = remembered(&text).is_some_and(|(pid, started)| start_time(pid) == Some(started));
    if !lives {
        return Ok(false);
    }
    Ok(!DirectoryLock::is_held(root, LOCK)?)
}

/// Which process was remembered as the postmaster, and since when it has run.
fn remembered(text: &str) -> Option<(u32, u64)> {
    let (pid, started) = text.split_once(' ')?;
    Some((pid.parse().ok()?, started.trim().parse().ok()?))
}

/// The control socket of the compute in `root`, at a path short enough for a socket.
pub(crate) fn control_socket(root: &Path) -> PathBuf {
    let inside = root.join("control.sock");
    if inside.as_os_str().len() <= SOCKET_PATH_LIMIT { inside } else { short_path(root, ".sock") }
}

fn short_path(root: &Path, suffix: &str) -> PathBuf {
    let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
    let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    PathBuf::from(format!("/tmp/tidewater-{short}{suffix}"))
}

/// When the process started, in the kernel's ticks since boot; nothing when it is gone or a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields are counted from the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_compute_process_is_turned_away_with_the_firsts_process_id() {
        let folder = tempfile::tempdir().unwrap();
        let held = ComputeDirectory::claim(folder.path()).await.unwrap();
        let error = ComputeDirectory::claim(folder.path()).await.unwrap_err();
        assert!(
            matches!(&error, CoreError::AlreadyOpen { holder, .. } if *holder == std::process::id().to_string())
        );
        drop(held);
        ComputeDirectory::claim(folder.path()).await.unwrap();
    }

    #[tokio::test]
    async fn an_orphaned_postmaster_is_ended_and_a_stranger_with_its_number_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let directory = ComputeDirectory::claim(folder.path()).await.unwrap();
        let mut orphan = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let mut stranger = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();

        directory.remember_postmaster(orphan.id()).unwrap();
        directory.end_orphan().await.unwrap();
        assert!(!orphan.wait().unwrap().success());

        private_file::write(&directory.root().join("postmaster"), &format!("{} 1\n", stranger.id())).unwrap();
        directory.end_orphan().await.unwrap();
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[tokio::test]
    async fn what_a_killed_postmaster_left_beside_its_socket_is_gone_before_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let directory = ComputeDirectory::claim(folder.path()).await.unwrap();
        let (run, _) = directory.socket_directory().unwrap();
        let lock = run.join(format!("{SOCKET_NAME}.lock"));
        // Of a process that lives: its number has gone to somebody else.
        std::fs::write(&lock, format!("{}\n", std::process::id())).unwrap();
        directory.socket_directory().unwrap();
        assert!(!lock.exists());
    }

    #[tokio::test]
    async fn a_postmaster_is_orphaned_once_nobody_holds_its_directory() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_orphaned(folder.path()).unwrap());
        let directory = ComputeDirectory::claim(folder.path()).await.unwrap();
        let mut postmaster = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
        directory.remember_postmaster(postmaster.id()).unwrap();
        assert!(!is_orphaned(folder.path()).unwrap());
        drop(directory);
        assert!(is_orphaned(folder.path()).unwrap());
        postmaster.kill().unwrap();
        postmaster.wait().unwrap();
        assert!(!is_orphaned(folder.path()).unwrap());
    }

    #[test]
    fn a_socket_path_never_exceeds_what_the_kernel_takes() {
        let deep = PathBuf::from(format!("/{}", "deep/".repeat(40)));
        assert!(control_socket(&deep).as_os_str().len() <= SOCKET_PATH_LIMIT);
        assert_eq!(control_socket(Path::new("/s")), Path::new("/s/control.sock"));
    }
}
