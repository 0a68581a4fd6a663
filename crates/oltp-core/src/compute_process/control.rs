//! How a compute process is asked and told: one line of JSON there, one back, over a Unix socket.
//!
//! The socket is the process's identity. A daemon that was killed and comes back, a gateway, a command:
//! each finds the running branches of this machine by their sockets, and a socket that nobody answers
//! belongs to a process that is gone.
//!
//! ```text
//!   {"ask":"status"}      → {"ok":{"status":{…}}}         at once, whatever it is doing
//!   {"ask":"ready"}       → {"ok":{"status":{…}}}         once it takes sessions
//!   {"ask":"suspend"}     → {"ok":{"suspended":{…}}}      once it is down and everything is in the store
//!   {"ask":{"confirmed":{"lsn":"0/16B3748"}}}
//!                         → {"ok":{"confirmed":{"lsn":…}}}  once a majority of the keepers has flushed that
//!   {"ask":"settle"}      → {"ok":{"settled":{"lsn":…}}}  all WAL flushed so far is in the store
//!   {"ask":"cut"}         → {"ok":{"published":{…}}}      a manifest of this moment is published
//! ```

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use wal_decoder::Lsn;

use super::data_files::Mount;
use crate::ids::{BranchId, BranchName, ManifestNumber, ProjectName, Term, Timeline};
use crate::{CoreError, Result, Timestamp};

/// A question is some bytes, an answer some hundreds; what is longer is not ours.
const LINE_LIMIT: u64 = 64 * 1024;

/// A question is written at once by whoever opens the socket.
const QUESTION_LIMIT: Duration = Duration::from_secs(10);

/// A status is at hand. The others wait for work, which has limits of its own, inside this one.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
const WORK_LIMIT: Duration = Duration::from_secs(600);

/// An answer is written at once; the process ends then, and its exit code says the rest.
const LAST_ANSWERS_LIMIT: Duration = Duration::from_secs(1);

/// Callers at once: the daemon, a gateway and some commands.
const CALLERS: usize = 64;

/// Questions that wait for the process's task.
const WAITING: usize = 32;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// How it is. Answered at any time.
    Status,
    /// The same, answered once it takes sessions.
    Ready,
    /// Wait until a majority of the keepers has everything below: only then may others see it, such as the lake.
    Confirmed {
        /// One past the last byte.
        #[serde(with = "crate::wal_keeper::lsn_text")]
        lsn: Lsn,
    },
    /// Go down in order; answered once everything is in the store.
    Suspend,
    /// Bring all WAL flushed so far into the store: a branch can begin at what is answered.
    Settle,
    /// Publish a manifest of this moment.
    Cut,
}

#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    ask: Question,
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `status` and `ready`.
    Status(Box<Status>),
    /// To `suspend`: the manifest that the next start begins with.
    Suspended {
        /// Its number.
        manifest: ManifestNumber,
    },
    /// To `confirmed`.
    Confirmed {
        /// A majority has everything below.
        #[serde(with = "crate::wal_keeper::lsn_text")]
        lsn: Lsn,
    },
    /// To `settle`.
    Settled {
        /// All WAL below is in the store.
        #[serde(with = "crate::wal_keeper::lsn_text")]
        lsn: Lsn,
    },
    /// To `cut`.
    Published {
        /// The newest manifest.
        manifest: ManifestNumber,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Ok(Answer),
    Failed(String),
    /// The process is on its way out: whoever wants the branch has to start it again.
    Ending,
}

/// Where a compute is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Being elected, mounting, recovering.
    Starting,
    /// A branch that starts for the first time is brought to its point.
    Rewinding,
    /// Sessions are taken.
    Running,
    /// Going down in order.
    Suspending,
}

/// What a compute says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The project.
    pub project: ProjectName,
    /// The branch, for ever.
    pub branch: BranchId,
    /// The branch as people call it, once its manifest was read.
    pub name: Option<BranchName>,
    /// How its Postgres gets its data directory.
    #[serde(default)]
    pub mount: Mount,
    /// Where it is in its life.
    pub state: State,
    /// The compute process.
    pub pid: u32,
    /// Its postmaster, once there is one.
    pub postgres_pid: Option<u32>,
    /// The directory of Postgres's Unix socket, as a client's `host`; the port is 5432.
    pub socket_directory: Option<PathBuf>,
    /// The term that a majority of the keepers promised.
    pub term: Term,
    /// The timeline it writes.
    pub timeline: Timeline,
    /// The newest published manifest.
    pub manifest: ManifestNumber,
    /// When that one's cut was taken.
    pub cut_at: Option<Timestamp>,
    /// Flushed by a majority of the keepers.
    #[serde(with = "crate::wal_keeper::lsn_text")]
    pub majority: Lsn,
    /// In the store below this.
    #[serde(with = "crate::wal_keeper::lsn_text")]
    pub archived: Lsn,
    /// Since when commits wait for a majority of the keepers, and for what.
    pub commits_wait: Option<String>,
    /// The last failure to publish, until one succeeds: the store is slow, full or gone.
    pub store_trouble: Option<String>,
    /// Since when no WAL could be put into the store, and why. With `durability: store` commits wait for it.
    pub archive_trouble: Option<String>,
    /// When it began.
    pub started_at: Timestamp,
}

/// A question on its way to the process's task, with the way back.
pub(crate) type Request = (Question, oneshot::Sender<Result<Answer>>);

/// The listening end; removed with its owner.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    path: PathBuf,
    listening: AbortOnDropHandle<()>,
    callers: TaskTracker,
}

impl ControlSocket {
    /// Takes no further callers, and lets those who have an answer coming have it: the process ends after this.
    pub(crate) async fn leave(self) {
        self.listening.abort();
        self.callers.close();
        // One who has not asked yet, or does not read, is not waited for.
        let _ = tokio::time::timeout(LAST_ANSWERS_LIMIT, self.callers.wait()).await;
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // A socket file that stays behind is answered by nobody, which says the same.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens at `path`, in place of what an earlier process left; the directory's lock must be held.
/// `status` is answered from `board`, everything else goes to the receiver.
pub(crate) fn listen(
    path: PathBuf,
    board: watch::Receiver<Status>,
) -> Result<(ControlSocket, mpsc::Receiver<Request>)> {
    let unnamed = path.with_extension("new");
    match std::fs::remove_file(&unnamed) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(CoreError::io("replace", &unnamed)(error));
        }
        _ => {}
    }
    // Its mode is right before it has its name, so nobody else can open it in between.
    let listener = UnixListener::bind(&unnamed).map_err(CoreError::io("listen on", &unnamed))?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))
        .map_err(CoreError::io("set the mode of", &unnamed))?;
    std::fs::rename(&unnamed, &path).map_err(CoreError::io("put in place", &path))?;
    let (requests, receiver) = mpsc::channel(WAITING);
    let callers = TaskTracker::new();
    let listening = AbortOnDropHandle::new(tokio::spawn(accept(listener, board, requests, callers.clone())));
    let socket = ControlSocket { path, listening, callers };
    Ok((socket, receiver))
}

async fn accept(
    listener: UnixListener,
    board: watch::Receiver<Status>,
    requests: mpsc::Sender<Request>,
    callers: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(CALLERS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (board, requests) = (board.clone(), requests.clone());
                callers.spawn(async move {
                    if let Err(error) = answer_one(stream, &board, &requests).await {
                        tracing::debug!(%error, "a caller of the control socket went away");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a caller of the control socket could not be accepted");
                // Out of file handles: one that is closed meanwhile makes room.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer_one(
    stream: UnixStream,
    board: &watch::Receiver<Status>,
    requests: &mpsc::Sender<Request>,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(LINE_LIMIT));
    tokio::time::timeout(QUESTION_LIMIT, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Asked>(&line) {
        Err(error) => Line::Failed(format!("the question is not understood: {error}")),
        Ok(Asked { ask: Question::Status }) => Line::Ok(Answer::Status(Box::new(board.borrow().clone()))),
        Ok(Asked { ask }) => {
            let (way_back, answer) = oneshot::channel();
            if requests.send((ask, way_back)).await.is_err() {
                Line::Ending
            } else {
                match answer.await {
                    Ok(Ok(answer)) => Line::Ok(answer),
                    Ok(Err(error)) => Line::Failed(chain(&error)),
                    Err(_) => Line::Ending,
                }
            }
        }
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    write.write_all(&text).await
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Asks the compute that listens at `socket`; nothing when none does.
///
/// # Errors
/// It refuses, fails, or does not answer in time.
pub async fn ask(socket: &Path, question: Question) -> Result<Option<Answer>> {
    let limit = if question == Question::Status { STATUS_LIMIT } else { WORK_LIMIT };
    match tokio::time::timeout(limit, exchange(socket, question)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(CoreError::ComputeSilent { socket: socket.to_owned(), limit }),
    }
}

async fn exchange(socket: &Path, question: Question) -> Result<Option<Answer>> {
    let failed = |action| CoreError::io(action, socket);
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed("reach the compute at")(error)),
    };
    let (read, mut write) = stream.into_split();
    let mut text = serde_json::to_vec(&Asked { ask: question })
        .map_err(|error| failed("write a question for")(error.into()))?;
    text.push(b'\n');
    write.write_all(&text).await.map_err(failed("ask the compute at"))?;
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(LINE_LIMIT));
    reader.read_line(&mut line).await.map_err(failed("hear the compute at"))?;
    if line.is_empty() {
        return Ok(None);
    }
    match serde_json::from_str(&line) {
        Ok(Line::Ok(answer)) => Ok(Some(answer)),
        Ok(Line::Ending) => Ok(None),
        Ok(Line::Failed(reason)) => Err(CoreError::ComputeRefused { socket: socket.to_owned(), reason }),
        Err(error) => Err(failed("understand the compute at")(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            project: ProjectName::new("shop").unwrap(),
            branch: BranchId::random(),
            name: BranchName::new("main").ok(),
            mount: Mount::Fuse,
            state: State::Running,
            pid: 7,
            postgres_pid: None,
            socket_directory: None,
            term: Term(3),
            timeline: Timeline(1),
            manifest: ManifestNumber(9),
            cut_at: None,
            majority: Lsn(0x10),
            archived: Lsn(0x8),
            commits_wait: None,
            store_trouble: None,
            archive_trouble: None,
            started_at: Timestamp::now(),
        }
    }

    #[tokio::test]
    async fn a_status_is_answered_while_the_process_is_busy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let (_sender, board) = watch::channel(status());
        let (socket, _nobody_reads_these) = listen(path.clone(), board).unwrap();
        let answer = ask(&path, Question::Status).await.unwrap().unwrap();
        assert!(matches!(answer, Answer::Status(status) if status.manifest == ManifestNumber(9)));
        drop(socket);
        assert!(ask(&path, Question::Status).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn work_is_answered_by_the_process_and_its_failures_arrive_with_their_causes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let (_sender, board) = watch::channel(status());
        let (_socket, mut requests) = listen(path.clone(), board).unwrap();
        tokio::spawn(async move {
            let (question, way_back) = requests.recv().await.unwrap();
            assert_eq!(question, Question::Settle);
            way_back.send(Ok(Answer::Settled { lsn: Lsn(5) })).unwrap();
            let (_, way_back) = requests.recv().await.unwrap();
            way_back.send(Err(CoreError::io("read", "x")(std::io::Error::other("it burns")))).unwrap();
        });
        assert!(matches!(ask(&path, Question::Settle).await, Ok(Some(Answer::Settled { lsn: Lsn(5) }))));
        let error = ask(&path, Question::Cut).await.unwrap_err().to_string();
        assert!(error.contains("it burns"), "{error}");
    }

    #[test]
    fn an_answer_arrives_although_the_process_ends_right_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let (ready, listens) = std::sync::mpsc::channel();
        let socket = path.clone();
        let process = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            // What is spawned there goes no further once this has ended.
            runtime.block_on(async {
                let (_sender, board) = watch::channel(status());
                let (control, mut requests) = listen(socket, board).unwrap();
                ready.send(()).unwrap();
                let (_, way_back) = requests.recv().await.unwrap();
                way_back.send(Ok(Answer::Suspended { manifest: ManifestNumber(4) })).unwrap();
                drop(requests);
                control.leave().await;
            });
        });
        listens.recv_timeout(Duration::from_secs(60)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(ask(&path, Question::Suspend)).unwrap();
        assert!(matches!(answer, Some(Answer::Suspended { manifest: ManifestNumber(4) })), "{answer:?}");
        process.join().unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn nonsense_is_answered_with_a_refusal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let (_sender, board) = watch::channel(status());
        let (_socket, _requests) = listen(path.clone(), board).unwrap();
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"{\"ask\":\"everything\"}\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("failed") && answer.contains("not understood"), "{answer}");
    }
}
