//! The computes of this machine: started when somebody needs a branch, found again by whoever comes later.
//!
//! Each running branch is a process of its own that belongs to nobody. Daemon, gateway and commands all go
//! through this type, in processes of their own, and agree without talking to each other:
//!
//! ```text
//!   ensure_running ─► does its socket answer? ── yes ─► wait until it is ready
//!                          │ no
//!                          └► start the process ─► the directory's lock lets one of them through,
//!                                                  and whoever lost the race finds the winner's socket
//! ```
//!
//! Databases outlive the daemon: the processes have process groups of their own, and nothing here ends one
//! unless it is asked to.

mod branch_waker;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use crate::compute_process::{
    Answer, Question, Status, ask, control_socket, is_orphaned, log_tail, open_log,
};
use crate::ids::{BranchId, ManifestNumber, ProjectName};
use crate::{CoreError, Result, private_file};

pub use branch_waker::BranchWaker;

/// From its start to its socket a process only claims its directory and ends an orphan.
const SOCKET_LIMIT: Duration = Duration::from_secs(60);
const SOCKET_RETRY: Duration = Duration::from_millis(3);

/// More running branches on one machine than its memory could hold.
const LISTED: usize = 10_000;

/// How computes are found and started.
#[derive(Debug, Clone)]
pub struct ComputesOptions {
    /// Where each compute has its directory; soft state of this machine.
    pub directory: PathBuf,
    /// The program and its first arguments; project and branch id follow.
    pub command: Vec<OsString>,
}

/// The computes of this machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Computes {
    options: Arc<ComputesOptions>,
    /// Starts of one branch from this process wait for each other.
    starting: Arc<Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>>,
}

impl Computes {
    /// The computes below a directory.
    pub fn new(options: ComputesOptions) -> Computes {
        Computes { options: Arc::new(options), starting: Arc::default() }
    }

    /// Where the compute of a branch has its local state.
    pub fn directory_of(&self, project: &ProjectName, branch: BranchId) -> PathBuf {
        let project = utf8_percent_encode(project.as_str(), NON_ALPHANUMERIC).to_string();
        self.options.directory.join(project).join(branch.to_string())
    }

    /// How the compute of a branch is; nothing when it sleeps.
    ///
    /// # Errors
    /// It is there and does not answer.
    pub async fn status(&self, project: &ProjectName, branch: BranchId) -> Result<Option<Status>> {
        match self.ask(project, branch, Question::Status).await? {
            Some(Answer::Status(status)) => Ok(Some(*status)),
            _ => Ok(None),
        }
    }

    /// Puts a question to the compute of a branch; nothing when it sleeps.
    ///
    /// # Errors
    /// It refuses, fails, or does not answer in time.
    pub async fn ask(
        &self,
        project: &ProjectName,
        branch: BranchId,
        question: Question,
    ) -> Result<Option<Answer>> {
        ask(&control_socket(&self.directory_of(project, branch)), question).await
    }

    /// Every compute that answers.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub async fn list(&self) -> Result<Vec<Status>> {
        let mut found = Vec::new();
        for project in folders(&self.options.directory)? {
            for branch in folders(&project)? {
                if found.len() >= LISTED {
                    return Ok(found);
                }
                match ask(&control_socket(&branch), Question::Status).await {
                    Ok(Some(Answer::Status(status))) => found.push(*status),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(directory = %branch.display(), %error, "a compute does not say how it is");
                    }
                }
            }
        }
        Ok(found)
    }

    /// Starts the branches again whose compute process was killed while their Postgres lives on. Its sessions would
    /// wait for ever for commits that nobody confirms any more, and as long as none of them asks for a new one, nobody
    /// would notice. Returns these branches.
    ///
    /// # Errors
    /// The directory cannot be listed, or one of them does not start; the others are tried all the same.
    pub async fn revive_orphans(&self) -> Result<Vec<(ProjectName, BranchId)>> {
        let (mut revived, mut failed) = (Vec::new(), None);
        for project in folders(&self.options.directory)? {
            for branch in folders(&project)? {
                let Some((project, id)) = named(&project, &branch) else { continue };
                if !is_orphaned(&branch)? {
                    continue;
                }
                match self.ensure_running(&project, id).await {
                    Ok(_) => revived.push((project, id)),
                    Err(error) => failed = Some(error),
                }
            }
        }
        failed.map_or(Ok(revived), Err)
    }

    /// Has the branch's compute running and returns once it takes sessions.
    ///
    /// # Errors
    /// It cannot be started; the error shows its last words.
    pub async fn ensure_running(&self, project: &ProjectName, branch: BranchId) -> Result<Status> {
        let directory = self.directory_of(project, branch);
        let turn = Arc::clone(self.starting.lock().await.entry(directory.clone()).or_default());
        let _one_at_a_time = turn.lock().await;
        let socket = control_socket(&directory);
        if let Some(Answer::Status(status)) = ask(&socket, Question::Ready).await? {
            return Ok(*status);
        }
        let mut attempt = self.spawn(project, branch, &directory)?;
        let started = Instant::now();
        loop {
            if let Some(Answer::Status(status)) = ask(&socket, Question::Ready).await? {
                tokio::spawn(async move { attempt.child.wait().await });
                return Ok(*status);
            }
            let ended =
                attempt.child.try_wait().map_err(CoreError::io("watch the compute in", &directory))?;
            let silent = started.elapsed() > SOCKET_LIMIT;
            match ended {
                Some(status) => {
                    // Another process may have won the race for the directory: then its socket answers.
                    if let Some(Answer::Status(status)) = ask(&socket, Question::Ready).await? {
                        return Ok(*status);
                    }
                    return Err(attempt.failed(project, status.to_string()));
                }
                None if silent => return Err(attempt.failed(project, "it opens no socket".to_owned())),
                None => tokio::time::sleep(SOCKET_RETRY).await,
            }
        }
    }

    /// Puts a branch to sleep; nothing when it slept already. Returns once everything is in the store.
    ///
    /// # Errors
    /// It does not go down in order.
    pub async fn suspend(&self, project: &ProjectName, branch: BranchId) -> Result<Option<ManifestNumber>> {
        match self.ask(project, branch, Question::Suspend).await? {
            Some(Answer::Suspended { manifest }) => Ok(Some(manifest)),
            _ => Ok(None),
        }
    }

    fn spawn(&self, project: &ProjectName, branch: BranchId, directory: &Path) -> Result<Attempt> {
        private_file::create_directory(directory, 0o711)?;
        let log = directory.join("compute.log");
        let file = open_log(&log)?;
        let start = file.metadata().map_err(CoreError::io("look at", &log))?.len();
        let errors = file.try_clone().map_err(CoreError::io("open", &log))?;
        let mut words = self.options.command.iter();
        let mut command = Command::new(words.next().cloned().unwrap_or_default());
        command
            .args(words)
            .arg(project.as_str())
            .arg(branch.to_string())
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(false);
        let program = command.as_std().get_program().to_owned();
        let child = command.spawn().map_err(CoreError::io("run", program))?;
        Ok(Attempt { child, log, start })
    }
}

/// A process that was started, with where its lines begin in its log.
#[derive(Debug)]
struct Attempt {
    child: Child,
    log: PathBuf,
    start: u64,
}

impl Attempt {
    fn failed(&self, project: &ProjectName, end: String) -> CoreError {
        CoreError::StartFailed {
            project: project.to_string(),
            end,
            tail: log_tail(&self.log, self.start),
            log: self.log.clone(),
        }
    }
}

/// Whose directory it is; the inverse of [`Computes::directory_of`].
fn named(project: &Path, branch: &Path) -> Option<(ProjectName, BranchId)> {
    let project = percent_decode_str(project.file_name()?.to_str()?).decode_utf8().ok()?;
    Some((ProjectName::new(project).ok()?, branch.file_name()?.to_str()?.parse().ok()?))
}

/// The folders in a folder; none when it is not there.
fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(CoreError::io("list", path)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(CoreError::io("list", path))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
