//! The postmaster as an operating system process: starting it, recognising it again, ending it.
//!
//! Which postmaster serves a data directory is written in its `postmaster.pid`. That file outlives a
//! postmaster that was killed, and its number may meanwhile belong to any other process, so a
//! number counts only when that process's working directory *is* the data directory (the
//! postmaster changes there at its start and stays).
//!
//! The file is never removed. Postgres uses it for a second check, that no orphaned backend of the old
//! postmaster is still attached to its shared memory, and removing the file would disarm it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::process::Child;
use tokio::sync::watch;

use crate::installation::Installation;
use crate::reachable_directory::ReachableDirectory;
use crate::server_command::{assignment, last_lines, server_command};
use crate::service_user::ServiceUser;
use crate::{CoreError, Result, private_file, settings};

/// A log larger than this makes room at the next start; one older log is kept.
const LOG_LIMIT: u64 = 16 << 20;

/// How much of the log's end an error shows, at most.
const LOG_TAIL_BYTES: u64 = 16 << 10;
const LOG_TAIL_LINES: usize = 15;

/// How often a postmaster that is not our child is looked at: nothing tells us of its end.
const ADOPTED_POLL: Duration = Duration::from_millis(200);

/// A postmaster that lives and serves the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) port: u16,
}

/// The postmaster that serves `data` right now, if one does.
pub(crate) fn running(data: &Path) -> Result<Option<Running>> {
    let Some(text) = private_file::read(&pid_file(data))? else { return Ok(None) };
    // Line 1 is the process, line 4 the port (miscinit.c, CreateLockFile).
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.trim().parse().ok());
    let port = lines.nth(2).and_then(|line| line.trim().parse().ok());
    match (pid, port) {
        (Some(pid), Some(port)) if serves(pid, data) => Ok(Some(Running { pid, port })),
        _ => Ok(None),
    }
}

/// Makes a stale `postmaster.pid` harmless when its number now belongs to a stranger's process.
///
/// Postgres would take that process for a live postmaster and refuse to start. It does know one
/// number that can be no postmaster: its own parent's, which is ours. So ours is put there, and
/// Postgres goes on to its shared-memory check, as with any stale file.
pub(crate) fn mark_stale(data: &Path, user: &ServiceUser) -> Result<()> {
    let path = pid_file(data);
    let Some(text) = private_file::read(&path)? else { return Ok(()) };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()) else { return Ok(()) };
    if !exists(pid) || serves(pid, data) {
        return Ok(());
    }
    let rest: String = text.lines().skip(1).map(|line| format!("{line}\n")).collect();
    private_file::write(&path, &format!("{}\n{rest}", std::process::id()))?;
    user.own(&path)
}

/// Whether `pid` lives and is the postmaster of `data`.
pub(crate) fn serves(pid: u32, data: &Path) -> bool {
    if !exists(pid) {
        return false;
    }
    if cfg!(target_os = "linux") {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|directory| directory == data)
    } else {
        true
    }
}

fn exists(pid: u32) -> bool {
    as_pid(pid).is_some_and(|pid| match rustix::process::test_kill_process(pid) {
        Ok(()) => true,
        Err(error) => error == rustix::io::Errno::PERM,
    })
}

fn as_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn pid_file(data: &Path) -> PathBuf {
    data.join("postmaster.pid")
}

/// The two ways down: end the sessions and write a checkpoint, or stop at once and recover later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shutdown {
    Fast,
    Immediate,
}

/// Asks the postmaster to go down. One that has already gone is no error.
pub(crate) fn shut_down(pid: u32, how: Shutdown, data: &Path) -> Result<()> {
    let Some(target) = as_pid(pid).filter(|_| serves(pid, data)) else { return Ok(()) };
    let signal = match how {
        Shutdown::Fast => Signal::INT,
        Shutdown::Immediate => Signal::QUIT,
    };
    match rustix::process::kill_process(target, signal) {
        Ok(()) => Ok(()),
        Err(error) if error == rustix::io::Errno::SRCH => Ok(()),
        Err(error) => Err(CoreError::io("signal the postmaster of", data)(error.into())),
    }
}

/// Where and as whom a postmaster is to run.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) directory: &'a Path,
    pub(crate) data: &'a Path,
    pub(crate) log: &'a Path,
    pub(crate) socket_argument: &'a Path,
    pub(crate) listen: SocketAddr,
    pub(crate) installation: &'a Installation,
    pub(crate) user: &'a ServiceUser,
}

/// Starts a postmaster. It outlives this process: databases serve on while the daemon restarts.
///
/// Returns with it where in the log its own lines begin.
pub(crate) fn spawn(launch: &Launch<'_>) -> Result<(Child, u64)> {
    let log = open_log(launch.log)?;
    let log_start = log.metadata().map_err(CoreError::io("look at", launch.log))?.len();
    let reachable = ReachableDirectory::open(launch.directory, launch.user)?;
    let data_name = launch.data.file_name().unwrap_or_default();
    let mut command = server_command(&launch.installation.program("postgres"), launch.user);
    command.arg("-D").arg(reachable.path().join(data_name));
    for (name, value) in settings::FIXED {
        command.arg("-c").arg(assignment(name, value));
    }
    let address = match launch.listen.ip() {
        IpAddr::V4(address) if address.is_unspecified() => "0.0.0.0".to_owned(),
        address => address.to_string(),
    };
    command
        .arg("-c")
        .arg(assignment("listen_addresses", address))
        .arg("-c")
        .arg(assignment("port", launch.listen.port().to_string()))
        .arg("-c")
        .arg(assignment("unix_socket_directories", launch.socket_argument));
    let errors = log.try_clone().map_err(CoreError::io("open", launch.log))?;
    // A process group of its own: ^C on the daemon's terminal is for the daemon alone.
    command.stdout(log).stderr(errors).stdin(Stdio::null()).process_group(0).kill_on_drop(false);
    let child = command.spawn().map_err(CoreError::io("run", launch.installation.program("postgres")))?;
    drop(reachable);
    Ok((child, log_start))
}

/// Watches a postmaster until it ends; the receiver then holds how.
pub(crate) fn watch_child(mut child: Child) -> watch::Receiver<Option<String>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let end = match child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        sender.send_replace(Some(end));
    });
    receiver
}

/// The same for one that an earlier daemon started.
pub(crate) fn watch_adopted(pid: u32, data: PathBuf) -> watch::Receiver<Option<String>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(ADOPTED_POLL);
        while serves(pid, &data) {
            tokio::select! {
                _ = tick.tick() => {}
                () = sender.closed() => return,
            }
        }
        sender.send_replace(Some("it is gone; an earlier daemon had started it".to_owned()));
    });
    receiver
}

fn open_log(path: &Path) -> Result<File> {
    if path.metadata().is_ok_and(|metadata| metadata.len() > LOG_LIMIT) {
        std::fs::rename(path, path.with_extension("log.1")).map_err(CoreError::io("put aside", path))?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(CoreError::io("open", path))
}

/// The end of the server's log from `start` on, for an error message: an earlier start's trouble is
/// not this one's.
pub(crate) fn log_tail(path: &Path, start: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES).max(start)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => last_lines(&text, LOG_TAIL_LINES),
        Err(error) if error.kind() == ErrorKind::NotFound => "  (it was never written)".to_owned(),
        Err(error) => format!("  (it cannot be read: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_file_whose_number_is_a_strangers_gets_our_number_and_keeps_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().canonicalize().unwrap();
        let mut stranger = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let text =
            format!("{}\n/data\n1700000000\n5432\n../run\n127.0.0.1\n 1234 5678\nready\n", stranger.id());
        std::fs::write(data.join("postmaster.pid"), text).unwrap();
        assert_eq!(running(&data).unwrap(), None);

        mark_stale(&data, &ServiceUser::for_new_cluster()).unwrap();
        let now = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert_eq!(now.lines().next(), Some(std::process::id().to_string().as_str()));
        assert_eq!(now.lines().nth(6), Some(" 1234 5678"));
    }

    #[test]
    fn a_damaged_pid_file_is_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "x", "12", "99999999999999\n\n\n5432", "-1\na\nb\n5432\n", "0\na\nb\n5432\n"] {
            std::fs::write(folder.path().join("postmaster.pid"), text).unwrap();
            assert_eq!(running(folder.path()).unwrap(), None, "{text:?}");
            mark_stale(folder.path(), &ServiceUser::for_new_cluster()).unwrap();
        }
    }

    #[test]
    fn a_large_log_makes_room_for_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgres.log");
        File::create(&path).unwrap().set_len(LOG_LIMIT + 1).unwrap();
        open_log(&path).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 0);
        assert!(folder.path().join("postgres.log.1").exists());
    }
}
