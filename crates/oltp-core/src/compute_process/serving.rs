//! A compute in service: questions are answered, ends are noticed, and the last stop is made in order.
//!
//! The order of a suspend: Postgres stops (it sends the keepers everything, to its shutdown checkpoint), the
//! majority has that, the store has the WAL, and only then the last manifest says that no recovery is
//! needed. Whatever fails on the way leaves the state of the last cut plus the keepers' WAL, as any crash.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wal_decoder::Lsn;

use super::control::{self, Answer, Question, Request, State, Status};
use super::cutting::{Cutter, Moment, Order, Publisher};
use super::data_files::DataFiles;
use super::idleness::Idleness;
use super::server::Server;
use super::wal_floor::{read_control_file, wal_floor};
use super::{End, local_wal, rewinding};
use crate::ids::{BranchId, ManifestNumber, ProjectName, Term, Timeline};
use crate::page_fs::CaptureKind;
use crate::wal_keeper::{StreamEnd, Streaming};
use crate::{CoreError, Result};

/// For the keepers and the store to take the last of the WAL; both have it within a second when they are well.
const DRAIN_LIMIT: Duration = Duration::from_secs(300);

/// How often the status is brought up to date.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A commit waits for a disk and a network; only longer is worth a word.
const WAITING_IS_NOTICED: Duration = Duration::from_secs(2);

/// Orders to the cutting task that wait.
const ORDERS: usize = 16;

/// A compute that takes sessions.
pub(crate) struct Started {
    pub(crate) project: ProjectName,
    pub(crate) branch: BranchId,
    /// Postgres's `pg_wal`.
    pub(crate) wal: PathBuf,
    pub(crate) server: Server,
    pub(crate) streaming: Streaming,
    pub(crate) cutter: Cutter,
    pub(crate) idle: Idleness,
}

/// Serves until suspended; ends at once, with an error, when Postgres, the keepers' session or the term is lost.
pub(crate) async fn serve(
    started: Started,
    mut requests: mpsc::Receiver<Request>,
    board: watch::Sender<Status>,
    shutdown: CancellationToken,
) -> Result<End> {
    let Started { project, branch, wal, server, streaming, cutter, idle } = started;
    let streaming = Arc::new(streaming);
    board.send_modify(|status| status.state = State::Running);
    let (orders, received) = mpsc::channel(ORDERS);
    let (data, timeline) = (cutter.data.clone(), cutter.timeline);
    // Ends with this future: nothing may publish after whoever runs the compute has given it up.
    let mut cutting = AbortOnDropHandle::new(tokio::spawn(cutter.run(received)));
    // In a task of its own: looking takes longer than the pauses of the loop below.
    let mut idle = AbortOnDropHandle::new(tokio::spawn(idle.wait()));
    let mut asked = None;
    let mut ended = streaming.ended();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            end = server.wait_exit() => {
                return Err(CoreError::PostgresEnded { project: project.to_string(), end, tail: server.last_words() });
            }
            end = stream_end(&mut ended) => {
                return Err(lost(&project, branch, streaming.term(), end));
            }
            ended = &mut cutting => {
                // Without its orders having ended it can only have failed.
                return Err(joined(ended).err().unwrap_or(CoreError::ComputeEnding));
            }
            _ = ticks.tick() => show(&board, &streaming),
            _ = &mut idle => {
                tracing::info!(%project, %branch, "nothing has happened for long enough: the branch goes to sleep");
                break;
            }
            () = shutdown.cancelled() => break,
            request = requests.recv() => match request {
                None => break,
                Some((Question::Suspend, way_back)) => {
                    asked = Some(way_back);
                    break;
                }
                Some((question, way_back)) => {
                    show(&board, &streaming);
                    answer(question, way_back, &board, &orders, Arc::clone(&streaming));
                }
            },
        }
    }
    board.send_modify(|status| status.state = State::Suspending);
    write_out(&server, &project).await;
    drop(orders);
    let _leave = AbortOnDropHandle::new(tokio::spawn(take_leave(requests, Arc::clone(&streaming))));
    let outcome = suspend(&project, branch, server, &streaming, cutting, (&data, &wal), timeline).await;
    match (asked, outcome) {
        (Some(way_back), Ok(manifest)) => {
            // Who asked may have left.
            let _ = way_back.send(Ok(Answer::Suspended { manifest }));
            Ok(End::Suspended(manifest))
        }
        (Some(way_back), Err(error)) => {
            let reason = control::chain(&error);
            let _ = way_back.send(Err(CoreError::SuspendFailed { project: project.to_string(), reason }));
            Err(error)
        }
        (None, outcome) => outcome.map(End::Suspended),
    }
}

/// Has Postgres write its dirty buffers while cuts still make room for them. Those that it writes when it stops have to
/// fit into the cache, which nobody empties any more; shared buffers may be larger than that.
async fn write_out(server: &Server, project: &ProjectName) {
    let written = async {
        let failed = CoreError::statement(project.as_str(), "write a checkpoint");
        server.connect("postgres").await?.batch_execute("CHECKPOINT").await.map_err(failed)
    };
    match tokio::time::timeout(DRAIN_LIMIT, written).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let error = control::chain(&error);
            tracing::warn!(%project, error, "no checkpoint before the last one");
        }
        Err(_) => {
            tracing::warn!(%project, limit = ?DRAIN_LIMIT, "the checkpoint before the last one takes too long")
        }
    }
}

/// What the keepers say, for whoever asks.
fn show(board: &watch::Sender<Status>, streaming: &Streaming) {
    let stream = streaming.status();
    board.send_modify(|status| {
        status.majority = stream.majority;
        status.archived = stream.archived;
        status.commits_wait = stream.waiting_for(WAITING_IS_NOTICED);
        status.archive_trouble = stream.archive_trouble.map(|trouble| {
            format!(
                "no WAL has been archived since {}: {}; the keepers hold it",
                trouble.since, trouble.problem
            )
        });
    });
}

async fn stream_end(ended: &mut watch::Receiver<Option<StreamEnd>>) -> Option<StreamEnd> {
    ended.wait_for(Option::is_some).await.ok().and_then(|end| end.clone())
}

fn lost(project: &ProjectName, branch: BranchId, term: Term, end: Option<StreamEnd>) -> CoreError {
    let problem = match end {
        Some(StreamEnd::Fenced { by }) => return CoreError::Fenced { branch, term, by },
        Some(StreamEnd::PostgresLost { problem } | StreamEnd::Failed { problem }) => problem,
        Some(StreamEnd::ServerStopped) => "somebody has stopped Postgres".to_owned(),
        None => "its task is gone".to_owned(),
    };
    CoreError::StreamLost { project: project.to_string(), problem }
}

/// Answers in a task of its own: no question holds up another, or the watch over Postgres.
fn answer(
    question: Question,
    way_back: oneshot::Sender<Result<Answer>>,
    board: &watch::Sender<Status>,
    orders: &mpsc::Sender<Order>,
    streaming: Arc<Streaming>,
) {
    let status = board.borrow().clone();
    let orders = orders.clone();
    tokio::spawn(async move {
        let answer = match question {
            Question::Status | Question::Ready | Question::Suspend => Ok(Answer::Status(Box::new(status))),
            Question::Confirmed { lsn } => {
                confirmed(&streaming, lsn).await.map(|lsn| Answer::Confirmed { lsn })
            }
            Question::Settle => settle(&orders, &streaming).await.map(|lsn| Answer::Settled { lsn }),
            Question::Cut => cut(&orders).await.map(|manifest| Answer::Published { manifest }),
        };
        // Who asked may have left.
        let _ = way_back.send(answer);
    });
}

/// Answers while the branch goes down. Postgres waits for every walsender to have its last WAL acknowledged, and the
/// sync acknowledges only what it has asked about; whoever wants anything else gets to know when the process ends.
async fn take_leave(mut requests: mpsc::Receiver<Request>, streaming: Arc<Streaming>) {
    let mut waiting = Vec::new();
    while let Some((question, way_back)) = requests.recv().await {
        let Question::Confirmed { lsn } = question else {
            waiting.push(way_back);
            continue;
        };
        let streaming = Arc::clone(&streaming);
        tokio::spawn(async move {
            let answer = confirmed(&streaming, lsn).await.map(|lsn| Answer::Confirmed { lsn });
            // Who asked may have left.
            let _ = way_back.send(answer);
        });
    }
}

/// Waits until everything below `lsn` may be shown to others.
async fn confirmed(streaming: &Streaming, lsn: Lsn) -> Result<Lsn> {
    reached(streaming.confirmed(), lsn).await
}

async fn reached(mut position: watch::Receiver<Lsn>, lsn: Lsn) -> Result<Lsn> {
    let reached = position.wait_for(|position| *position >= lsn).await;
    reached.map(|position| *position).map_err(|_| CoreError::ComputeEnding)
}

/// Everything that was flushed when this was asked is in the store when it is answered.
async fn settle(orders: &mpsc::Sender<Order>, streaming: &Streaming) -> Result<Lsn> {
    let (way_back, answer) = oneshot::channel();
    orders.send(Order::FlushPosition(way_back)).await.map_err(|_| CoreError::ComputeEnding)?;
    let flushed = answer.await.map_err(|_| CoreError::ComputeEnding)??;
    reached(streaming.majority(), flushed).await?;
    streaming.archive_all().await;
    Ok(*streaming.archived().borrow())
}

async fn cut(orders: &mpsc::Sender<Order>) -> Result<ManifestNumber> {
    let (way_back, answer) = oneshot::channel();
    orders.send(Order::Cut(way_back)).await.map_err(|_| CoreError::ComputeEnding)?;
    answer.await.map_err(|_| CoreError::ComputeEnding)?
}

fn joined<T>(ended: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    ended.map_err(|ended| CoreError::io("cut", "the branch")(std::io::Error::other(ended)))?
}

async fn suspend(
    project: &ProjectName,
    branch: BranchId,
    server: Server,
    streaming: &Streaming,
    cutting: AbortOnDropHandle<Result<(DataFiles, Publisher)>>,
    (data, wal): (&Path, &Path),
    timeline: Timeline,
) -> Result<ManifestNumber> {
    let (files, mut publisher) = joined(cutting.await)?;
    server.stop().await?;
    let control = rewinding::on_mount(data, read_control_file).await?;
    if !control.is_shut_down() {
        let end = "it did not shut down in order".to_owned();
        return Err(CoreError::PostgresEnded {
            project: project.to_string(),
            end,
            tail: server.last_words(),
        });
    }
    // The last record of all, whichever way the session with the keepers ended.
    let end = local_wal::end_after(wal, timeline, control.checkpoint())?;
    let mut recoverable = streaming.recoverable();
    let drained = async {
        if recoverable.wait_for(|recoverable| *recoverable >= end).await.is_err() {
            let why = streaming.ended().borrow().clone();
            return Err(lost(project, branch, streaming.term(), why));
        }
        streaming.archive_all().await;
        Ok(())
    };
    tokio::time::timeout(DRAIN_LIMIT, drained)
        .await
        .map_err(|_| CoreError::DrainTimedOut { project: project.to_string(), limit: DRAIN_LIMIT })??;
    let floor = rewinding::on_mount(data, wal_floor).await?;
    let captured = files.capture_stopped().await?;
    let moment = Moment { kind: CaptureKind::CleanShutdown, timeline, wal_floor: floor, min_recovery: end };
    let manifest = publisher.publish(captured, moment).await?;
    files.leave(publisher.latest()).await?;
    Ok(manifest)
}
