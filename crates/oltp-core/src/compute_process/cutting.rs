//! Cuts: every few seconds the branch as it is becomes a manifest, from which any machine can go on.
//!
//! ```text
//!   what the files need of the WAL ─► cut (an instant) ─► WAL flush position ─► capture (upload)
//!                                                                │
//!                          keepers' majority at or past it ◄─────┘ ─► publish
//! ```
//!
//! The order is the point. A page may hold changes whose WAL Postgres has flushed locally and the keepers
//! do not have. Recovery from such a page and a shorter WAL *starts normally* on a corrupt database. So
//! the flush position is sampled after the cut (the WAL rule keeps every page behind it), becomes the
//! manifest's minimum recovery position, and the manifest waits until a majority has it.
//!
//! One task owns mount and manifest. What fails here (the store is slow, full or gone) is shown in the
//! status and tried again: commits go on as long as the keepers have room.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;
use wal_decoder::Lsn;

use super::catalog_horizon::CatalogHorizon;
use super::control::{self, Status};
use super::data_files::DataFiles;
use super::local_wal::segment_start;
use super::rewinding::on_mount;
use super::wal_floor::wal_floor;
use crate::branches::lineage;
use crate::control_file::ControlFile;
use crate::ids::{ManifestNumber, ManifestUid, ProjectName, Term, Timeline};
use crate::page_fs::{CaptureKind, Captured};
use crate::page_store::{Manifest, ManifestBody, ManifestHead, ManifestKind, PageStore, WalSpan};
use crate::{CoreError, Result, Timestamp};

/// After a failure the next attempt waits this long, and twice as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// An older compute may have published while this one was being elected: a few manifests at most.
const NUMBERS_TRIED: u32 = 16;

/// The newest manifest and how the next one is made from it.
#[derive(Debug)]
pub(crate) struct Publisher {
    pages: PageStore,
    latest: Arc<Manifest>,
    /// Where the WAL of the branch lies, to its open end.
    wal: Vec<WalSpan>,
    term: Term,
}

/// What a new manifest says beyond what was captured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) kind: CaptureKind,
    pub(crate) timeline: Timeline,
    pub(crate) wal_floor: Lsn,
    pub(crate) min_recovery: Lsn,
}

impl Publisher {
    pub(crate) fn new(pages: PageStore, latest: Arc<Manifest>, term: Term) -> Publisher {
        let wal = latest.body.wal.clone();
        Publisher { pages, latest, wal, term }
    }

    /// From `from` on the branch has WAL of its own, unless it has some already.
    pub(crate) fn continue_wal(&mut self, timeline: Timeline, from: Lsn) {
        let head = &self.latest.head;
        if self.wal.iter().any(|span| span.branch == head.branch) {
            return;
        }
        self.wal = lineage::continued(&self.wal, &head.project, head.branch, timeline, from);
    }

    /// Where the WAL of the branch lies, to its open end.
    pub(crate) fn wal(&self) -> &[WalSpan] {
        &self.wal
    }

    pub(crate) fn latest(&self) -> &Arc<Manifest> {
        &self.latest
    }

    /// Publishes what was captured as the branch's newest manifest.
    ///
    /// # Errors
    /// The store refuses, the branch was deleted, or a compute of a newer term has it.
    pub(crate) async fn publish(&mut self, captured: Captured, moment: Moment) -> Result<ManifestNumber> {
        let manifest = self.next(captured, moment)?;
        self.put(manifest).await
    }

    async fn put(&mut self, mut manifest: Manifest) -> Result<ManifestNumber> {
        for _ in 0..NUMBERS_TRIED {
            let candidate = Arc::new(manifest);
            match self.pages.publish(&candidate).await {
                Ok(()) => {
                    self.latest = candidate;
                    return Ok(self.latest.head.number);
                }
                Err(CoreError::AlreadyPublished { number, .. }) => {
                    // The last word of the predecessor that our election fenced, or another name for the branch. What
                    // it says is true, but our pages do not build on it: ours goes behind it.
                    manifest = Arc::unwrap_or_clone(candidate);
                    let there = self.pages.latest_head(&manifest.head.project, manifest.head.branch).await?;
                    if let Some(there) = there {
                        manifest.head.name = there.name.clone();
                    }
                    manifest.head.number = number.next();
                    manifest.head.uid = ManifestUid::random();
                }
                Err(error) => return Err(error),
            }
        }
        Err(CoreError::AlreadyPublished { branch: manifest.head.branch, number: manifest.head.number })
    }

    /// Publishes that the branch is in service: from here on there may be WAL behind the clean stop that it was started
    /// from. A clean manifest that is the newest is therefore all there is, for whoever makes a branch of it.
    ///
    /// # Errors
    /// As for [`publish`](Publisher::publish).
    pub(crate) async fn publish_in_service(&mut self) -> Result<()> {
        if self.latest.head.kind != ManifestKind::CleanShutdown {
            return Ok(());
        }
        let mut manifest = Manifest::clone(&self.latest);
        manifest.body.wal = self.wal.clone();
        manifest.head = ManifestHead {
            number: manifest.head.number.next(),
            uid: ManifestUid::random(),
            published_at: Timestamp::now(),
            term: self.term,
            kind: ManifestKind::Running,
            end_lsn: None,
            ..manifest.head
        };
        self.put(manifest).await?;
        Ok(())
    }

    fn next(&self, captured: Captured, moment: Moment) -> Result<Manifest> {
        let control = ControlFile::parse(captured.pg_control.to_vec())?;
        let before = &self.latest;
        let (kind, end_lsn) = match moment.kind {
            CaptureKind::Running => (ManifestKind::Running, None),
            CaptureKind::CleanShutdown => (ManifestKind::CleanShutdown, Some(moment.min_recovery)),
        };
        let head = ManifestHead {
            number: before.head.number.next(),
            uid: ManifestUid::random(),
            published_at: Timestamp::now(),
            term: self.term,
            timeline: moment.timeline,
            kind,
            redo_lsn: control.redo(),
            min_recovery_lsn: moment.min_recovery,
            end_lsn,
            ..before.head.clone()
        };
        let body = ManifestBody {
            wal: lineage::above(&self.wal, segment_start(moment.wal_floor.min(control.redo()))),
            ..captured.body
        };
        Ok(Manifest { head, body })
    }
}

/// What the task that owns the mount is asked for.
#[derive(Debug)]
pub(crate) enum Order {
    /// A manifest of this moment.
    Cut(oneshot::Sender<Result<ManifestNumber>>),
    /// How far Postgres has flushed its WAL.
    FlushPosition(oneshot::Sender<Result<Lsn>>),
}

/// The task that cuts a running branch.
#[derive(Debug)]
pub(crate) struct Cutter {
    pub(crate) files: Arc<DataFiles>,
    pub(crate) publisher: Publisher,
    pub(crate) data: PathBuf,
    pub(crate) client: Client,
    /// Held through `client`, for the newest manifest.
    pub(crate) horizon: CatalogHorizon,
    pub(crate) timeline: Timeline,
    /// Flushed by a majority of the keepers.
    pub(crate) majority: watch::Receiver<Lsn>,
    /// The end of the last whole record below that.
    pub(crate) recoverable: watch::Receiver<Lsn>,
    /// In the archive, when that has to be enough for a start: with `durability: store` all keepers may be lost.
    pub(crate) archived: Option<watch::Receiver<Lsn>>,
    pub(crate) board: watch::Sender<Status>,
    pub(crate) every: Duration,
}

impl Cutter {
    /// Cuts whenever pages are dirty, and when asked to, until the orders end; then gives mount and
    /// publisher back for the last cut.
    ///
    /// # Errors
    /// The branch was deleted or a newer compute has it: nothing more may be written.
    pub(crate) async fn run(mut self, mut orders: mpsc::Receiver<Order>) -> Result<(DataFiles, Publisher)> {
        let mut pause = self.every;
        let mut compacting: Option<AbortOnDropHandle<Result<bool>>> = None;
        loop {
            let order = tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => Some(order),
                    None => break,
                },
                compacted = finished(&mut compacting) => {
                    compacting = None;
                    if let Err(error) = compacted {
                        tracing::warn!(error = %control::chain(&error), "layers could not be merged; all stays as it is");
                    }
                    continue;
                }
                // Dirty pages fill the cache: sooner than the clock says, but not in a hurry after a failure.
                () = self.files.wait_for_pressure(), if pause == self.every => None,
                () = tokio::time::sleep(pause) => None,
            };
            if let Some(Order::FlushPosition(answer)) = order {
                let project = &self.publisher.latest.head.project;
                // Who asked may have left.
                drop(answer.send(flush_position(&self.client, project).await));
                continue;
            }
            if !self.files.can_be_cut() {
                if let Some(Order::Cut(answer)) = order {
                    drop(answer.send(Err(CoreError::NoCutOfCopies)));
                }
                continue;
            }
            if order.is_none() && !self.files.is_dirty() {
                pause = self.every;
                continue;
            }
            let outcome = self.cut().await;
            pause = self.after(&outcome, pause);
            if outcome.is_ok() && compacting.is_none() {
                // In a task of its own: merging gigabytes must not hold up the next cut.
                let files = Arc::clone(&self.files);
                compacting = Some(AbortOnDropHandle::new(tokio::spawn(async move { files.compact().await })));
            }
            let fatal = matches!(&outcome, Err(CoreError::Fenced { .. } | CoreError::NoSuchBranch { .. }));
            match (order, outcome) {
                (_, Err(error)) if fatal => return Err(error),
                // Who asked may have left.
                (Some(Order::Cut(answer)), outcome) => drop(answer.send(outcome)),
                _ => {}
            }
        }
        if let Some(task) = compacting {
            task.abort();
            // Whatever became of it: layers that were merged and are not named yet are nobody's.
            let _ = task.await;
        }
        let files = Arc::into_inner(self.files).ok_or(CoreError::ComputeEnding)?;
        Ok((files, self.publisher))
    }

    /// Shows how it went, and says when the next attempt is due.
    fn after(&self, outcome: &Result<ManifestNumber>, pause: Duration) -> Duration {
        match outcome {
            Ok(number) => {
                self.board.send_modify(|status| {
                    status.manifest = *number;
                    status.cut_at = Some(Timestamp::now());
                    status.store_trouble = None;
                });
                self.every
            }
            Err(error) => {
                let trouble = control::chain(error);
                tracing::error!(error = %trouble, "no manifest could be published; commits go on");
                self.board.send_modify(|status| status.store_trouble = Some(trouble));
                pause.saturating_mul(2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
            }
        }
    }

    async fn cut(&mut self) -> Result<ManifestNumber> {
        let project = self.publisher.latest.head.project.clone();
        self.horizon.hold(&self.client, project.as_str()).await;
        let floor = on_mount(&self.data, wal_floor).await?;
        let cut = self.files.cut()?;
        let flushed = flush_position(&self.client, &project).await?;
        let captured = self.files.capture(cut).await?;
        if self.majority.wait_for(|majority| *majority >= flushed).await.is_err() {
            return Err(CoreError::ComputeEnding);
        }
        // The flush position may lie inside a record, which a crash would cut off again. No page of the cut has
        // anything of that record: its own end was not flushed.
        let whole = *self.recoverable.borrow();
        let min_recovery = flushed.min(whole);
        if let Some(archived) = &mut self.archived
            && archived.wait_for(|archived| *archived >= min_recovery).await.is_err()
        {
            return Err(CoreError::ComputeEnding);
        }
        let moment =
            Moment { kind: CaptureKind::Running, timeline: self.timeline, wal_floor: floor, min_recovery };
        let published = self.publisher.publish(captured, moment).await?;
        self.horizon.published(&self.client, project.as_str()).await?;
        Ok(published)
    }
}

/// Waits for the compaction under way; for ever when there is none.
async fn finished(compacting: &mut Option<AbortOnDropHandle<Result<bool>>>) -> Result<bool> {
    match compacting {
        Some(task) => task
            .await
            .map_err(|ended| CoreError::io("merge", "the branch's layers")(std::io::Error::other(ended)))?,
        None => std::future::pending().await,
    }
}

async fn flush_position(client: &Client, project: &ProjectName) -> Result<Lsn> {
    let failed = || CoreError::statement(project.as_str(), "tell its WAL position");
    let row =
        client.query_one("SELECT pg_catalog.pg_current_wal_flush_lsn()::text", &[]).await.map_err(failed())?;
    let text: String = row.try_get(0).map_err(failed())?;
    text.parse().map_err(|error| CoreError::io("understand", text)(std::io::Error::other(error)))
}
