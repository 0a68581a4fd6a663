//! A compute in service: questions are answered, ends are noticed, and the last stop is made in order.
//!
//! The order of a suspend: Postgres stops (it sends the keepers everything, to its shutdown checkpoint), the
//! majority has that, the store has the WAL, and only then the last manifest says that no recovery is
//! needed. Whatever fails on the way leaves the state of the last cut plus the keepers' WAL, as any crash.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wal_decoder::Lsn;

use super::control::{Answer, Question, Request, State, Status};
use super::cutting::{Cutter, Moment, Order, Publisher};
use super::server::Server;
use super::{End, rewinding};
use crate::compute_process::wal_floor::read_control_file;
use crate::ids::{ManifestNumber, ProjectName, Timeline};
use crate::page_fs::{CaptureKind, Mounted};
use crate::wal_keeper::Streaming;
use crate::{CoreError, Result};

/// For the keepers and the store to take the last of the WAL; both have it within a second when they are well.
const DRAIN_LIMIT: Duration = Duration::from_secs(300);

/// Orders to the cutting task that wait.
const ORDERS: usize = 16;

/// A compute that takes sessions.
pub(crate) struct Started {
    pub(crate) project: ProjectName,
    pub(crate) server: Server,
    pub(crate) streaming: Streaming,
    pub(crate) cutter: Cutter,
}

/// Serves until suspended; ends at once, with an error, when Postgres, the keepers' session or the term is lost.
pub(crate) async fn serve(
    started: Started,
    mut requests: mpsc::Receiver<Request>,
    board: watch::Sender<Status>,
    shutdown: CancellationToken,
) -> Result<End> {
    let Started { project, server, streaming, cutter } = started;
    let (orders, received) = mpsc::channel(ORDERS);
    let (data, timeline) = (cutter.data.clone(), cutter.timeline);
    let mut cutting = tokio::spawn(cutter.run(received));
    let mut asked = None;
    loop {
        tokio::select! {
            end = server.wait_exit() => {
                cutting.abort();
                return Err(CoreError::PostgresEnded { project: project.to_string(), end, tail: server.last_words() });
            }
            end = streaming.ended() => {
                cutting.abort();
                return Err(end);
            }
            ended = &mut cutting => {
                // Without orders having ended it can only have failed.
                return Err(joined(ended).err().unwrap_or(CoreError::KeepersGone));
            }
            () = shutdown.cancelled() => break,
            request = requests.recv() => match request {
                None => break,
                Some((Question::Suspend, way_back)) => {
                    asked = Some(way_back);
                    break;
                }
                Some((question, way_back)) => answer(question, way_back, &board, &orders, &streaming),
            },
        }
    }
    board.send_modify(|status| status.state = State::Suspending);
    drop(orders);
    let outcome = suspend(&project, server, streaming, cutting, &data, timeline).await;
    match (asked, outcome) {
        (Some(way_back), Ok(manifest)) => {
            // Who asked may have left.
            let _ = way_back.send(Ok(Answer::Suspended { manifest }));
            Ok(End::Suspended(manifest))
        }
        (_, outcome) => outcome.map(End::Suspended),
    }
}

/// Answers in a task of its own: no question holds up another, or the watch over Postgres.
fn answer(
    question: Question,
    way_back: oneshot::Sender<Result<Answer>>,
    board: &watch::Sender<Status>,
    orders: &mpsc::Sender<Order>,
    streaming: &Streaming,
) {
    let status = board.borrow().clone();
    let orders = orders.clone();
    let settled = streaming.settle();
    tokio::spawn(async move {
        let answer = match question {
            Question::Status | Question::Ready | Question::Suspend => Ok(Answer::Status(Box::new(status))),
            Question::Settle => settled.await.map(|lsn| Answer::Settled { lsn }),
            Question::Cut => cut(&orders).await.map(|manifest| Answer::Published { manifest }),
        };
        // Who asked may have left.
        let _ = way_back.send(answer);
    });
}

async fn cut(orders: &mpsc::Sender<Order>) -> Result<ManifestNumber> {
    let (way_back, answer) = oneshot::channel();
    orders.send(Order::Cut(way_back)).await.map_err(|_| CoreError::KeepersGone)?;
    answer.await.map_err(|_| CoreError::KeepersGone)?
}

fn joined<T>(ended: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    ended.map_err(|ended| CoreError::io("cut", "the branch")(std::io::Error::other(ended)))?
}

async fn suspend(
    project: &ProjectName,
    server: Server,
    streaming: Streaming,
    cutting: JoinHandle<Result<(Mounted, Publisher)>>,
    data: &std::path::Path,
    timeline: Timeline,
) -> Result<ManifestNumber> {
    let (mut mounted, mut publisher) = joined(cutting.await)?;
    server.stop().await?;
    let control = rewinding::on_mount(data, read_control_file).await?;
    if !control.is_shut_down() {
        let end = "it did not shut down in order".to_owned();
        return Err(CoreError::PostgresEnded { project: project.to_string(), end, tail: server.last_words() });
    }
    let end = tokio::time::timeout(DRAIN_LIMIT, streaming.drain())
        .await
        .map_err(|_| CoreError::DrainTimedOut { project: project.to_string(), limit: DRAIN_LIMIT })??;
    if end <= control.checkpoint() {
        return Err(CoreError::WalMissing { project: project.to_string(), have: end, need: control.checkpoint() });
    }
    let floor = super::cutting::floor_of(data.to_owned()).await?;
    let cut = mounted.cut()?;
    let captured = mounted.capture_clean(cut).await?;
    let moment = Moment { kind: CaptureKind::CleanShutdown, timeline, wal_floor: floor, min_recovery: end };
    let manifest = publisher.publish(captured, moment).await?;
    mounted.unmount_clean(publisher.latest()).await?;
    Ok(manifest)
}
