//! A process of the core that belongs to nobody: the keeper, the gateway.
//!
//! It holds an `flock` for as long as it lives, and once it is at work it writes its process id and its address
//! into the locked file. So whoever comes later, a daemon that was killed and started again or a command, finds
//! it without having been told, and a file that nobody holds belongs to a process that is gone.

use super::BuiltInError;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// From its start to its address a process only opens files and a socket.
const START_LIMIT: Duration = Duration::from_secs(60);
/// It ends once its sessions have.
const STOP_LIMIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How soon a process that ended is noticed and started again.
const SUPERVISED_EVERY: Duration = Duration::from_secs(1);
/// Looking whether the lock is held takes it for a moment.
const CLAIM_LIMIT: Duration = Duration::from_secs(3);

/// A process id and an address; anything longer is not ours.
const LINE_LIMIT: u64 = 512;
/// What is shown of a log whose process does not start.
const TAIL_BYTES: u64 = 2048;

/// How a process is found, started and stopped.
#[derive(Debug, Clone)]
pub struct StandingProcess {
    name: &'static str,
    state: PathBuf,
    command: Vec<OsString>,
}

/// A process that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    /// Nothing as long as it is not at work yet.
    at_work: Option<(i32, String)>,
}

impl StandingProcess {
    pub(super) fn new(name: &'static str, state: &Path, command: Vec<OsString>) -> StandingProcess {
        StandingProcess { name, state: state.to_owned(), command }
    }

    /// Has it at work, and returns where it listens.
    pub async fn ensure(&self) -> Result<String, BuiltInError> {
        let deadline = Instant::now() + START_LIMIT;
        let mut child = None;
        loop {
            let running = self.running()?;
            if let Some((_, address)) = running.as_ref().and_then(|running| running.at_work.clone()) {
                if let Some((mut child, _)) = child {
                    // Somebody has to take note of its end, or it stays as a zombie.
                    tokio::spawn(async move { tokio::process::Child::wait(&mut child).await });
                }
                return Ok(address);
            }
            if child.is_none() && running.is_none() {
                child = Some(self.spawn()?);
            }
            let end = match &mut child {
                Some((process, _)) => process.try_wait().map_err(self.failed("watch", self.log()))?,
                None => None,
            };
            let from = child.as_ref().map_or(0, |(_, from)| *from);
            if let Some(end) = end
                && self.running()?.is_none()
            {
                return Err(self.does_not_start(end.to_string(), from));
            }
            if Instant::now() > deadline {
                return Err(self.does_not_start("it does not begin its work".to_owned(), from));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Starts it again whenever it ends, until told otherwise.
    pub async fn supervise(&self, until: CancellationToken) {
        let mut was_well = true;
        loop {
            tokio::select! {
                () = until.cancelled() => return,
                () = tokio::time::sleep(SUPERVISED_EVERY) => {}
            }
            match self.running() {
                Ok(Some(_)) => continue,
                Ok(None) if was_well => {
                    tracing::error!(process = self.name, "it has ended and is started again")
                }
                Ok(None) | Err(_) => {}
            }
            let started = tokio::select! {
                () = until.cancelled() => return,
                started = self.ensure() => started,
            };
            if let Err(error) = &started
                && was_well
            {
                tracing::error!(process = self.name, error = %crate::daemon::error_chain(error), "it does not come up again; tried every {SUPERVISED_EVERY:?}");
            }
            was_well = started.is_ok();
        }
    }

    /// Where it listens; nothing when it does not run.
    pub fn address(&self) -> Result<Option<String>, BuiltInError> {
        Ok(self.running()?.and_then(|running| running.at_work).map(|(_, address)| address))
    }

    /// Ends it in order, if it runs.
    pub async fn stop(&self) -> Result<(), BuiltInError> {
        let deadline = Instant::now() + STOP_LIMIT;
        let mut told = false;
        while let Some(running) = self.running()? {
            if let Some((pid, _)) = running.at_work
                && !told
                && let Some(pid) = Pid::from_raw(pid)
            {
                told = true;
                match kill_process(pid, Signal::TERM) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(errno) => return Err(self.failed("end the process of", self.lock())(errno.into())),
                }
            }
            if Instant::now() > deadline {
                let late = io::Error::new(io::ErrorKind::TimedOut, "it goes on after SIGTERM");
                return Err(self.failed("end the process of", self.lock())(late));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    fn lock(&self) -> PathBuf {
        lock(&self.state, self.name)
    }

    fn log(&self) -> PathBuf {
        self.state.join(self.name).with_extension("log")
    }

    fn failed(&self, action: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> BuiltInError + use<> {
        move |source| BuiltInError::File { action, path, source }
    }

    fn running(&self) -> Result<Option<Running>, BuiltInError> {
        let path = self.lock();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("open", path)(error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                flock(&file, FlockOperation::Unlock)
                    .map_err(|errno| self.failed("let go of", path)(errno.into()))?;
                return Ok(None);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(self.failed("look at", path)(errno.into())),
        }
        let mut line = String::new();
        file.take(LINE_LIMIT).read_to_string(&mut line).map_err(self.failed("read", path))?;
        Ok(Some(Running { at_work: announced(&line) }))
    }

    fn spawn(&self) -> Result<(tokio::process::Child, u64), BuiltInError> {
        let path = self.log();
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let log = log.map_err(self.failed("open", path.clone()))?;
        let from = log.metadata().map_err(self.failed("look at", path.clone()))?.len();
        let errors = log.try_clone().map_err(self.failed("open", path.clone()))?;
        let mut words = self.command.iter();
        let child = Command::new(words.next().cloned().unwrap_or_default())
            .args(words)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // What ends the daemon's group does not end it.
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .map_err(self.failed("run the process of", path))?;
        Ok((child, from))
    }

    fn does_not_start(&self, end: String, from: u64) -> BuiltInError {
        let log = self.log();
        let tail = tail(&log, from).unwrap_or_else(|error| format!("  (it cannot be read: {error})"));
        BuiltInError::Process { name: self.name, end, log, tail }
    }
}

/// What a standing process holds while it lives.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    file: File,
}

impl Claim {
    /// Takes the lock of `name`.
    pub async fn take(state: &Path, name: &str) -> Result<Claim, BuiltInError> {
        let path = lock(state, name);
        let failed = |source| BuiltInError::File { action: "open", path: path.clone(), source };
        let file =
            OpenOptions::new().create(true).read(true).write(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(failed)?;
        let deadline = Instant::now() + CLAIM_LIMIT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(BuiltInError::Claimed { path }),
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        file.set_len(0).map_err(failed)?;
        Ok(Claim { path, file })
    }

    /// Says that it is at work at `address`.
    pub fn announce(&mut self, address: &str) -> Result<(), BuiltInError> {
        let line = format!("{} {address}\n", std::process::id());
        let written = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(line.as_bytes()));
        written.map_err(|source| BuiltInError::File { action: "write", path: self.path.clone(), source })
    }
}

impl Drop for Claim {
    /// Closing the file is not enough: a child that is being started at this moment holds a copy of it.
    fn drop(&mut self) {
        if let Err(error) = flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!(path = %self.path.display(), %error, "the lock of a process stays until it ends");
        }
    }
}

fn lock(state: &Path, name: &str) -> PathBuf {
    state.join(name).with_extension("lock")
}

/// A line that has been written to its end.
fn announced(line: &str) -> Option<(i32, String)> {
    let (pid, address) = line.strip_suffix('\n')?.split_once(' ')?;
    Some((pid.parse().ok()?, address.to_owned()))
}

fn tail(path: &Path, from: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES).max(from)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_found_by_its_lock_and_a_file_that_nobody_holds_is_no_process() {
        let folder = tempfile::tempdir().unwrap();
        let process = StandingProcess::new("keeper", folder.path(), vec!["/bin/false".into()]);
        assert_eq!(process.address().unwrap(), None);
        let mut claim = Claim::take(folder.path(), "keeper").await.unwrap();
        assert_eq!(process.running().unwrap(), Some(Running { at_work: None }));
        claim.announce("unix:/k.sock").unwrap();
        assert_eq!(process.ensure().await.unwrap(), "unix:/k.sock");
        drop(claim);
        assert_eq!(process.address().unwrap(), None);
        process.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_process_that_does_not_start_shows_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let command = ["/bin/sh", "-c", "echo the port is taken; exit 3"].map(OsString::from).to_vec();
        let process = StandingProcess::new("gateway", folder.path(), command);
        let error = process.ensure().await.unwrap_err().to_string();
        assert!(error.contains("the port is taken") && error.contains('3'), "{error}");
    }
}
