//! Branches: any moment of a project's history, continued on its own.
//!
//! ```text
//!   point ─► the newest manifest that contains nothing after it ─► copy it under a new branch id, with
//!            the WAL up to the point and a word on where to stop ─► one put
//! ```
//!
//! Making a branch reads no page and starts nothing; the work that the point costs is done when the branch is
//! first started. A restore is the same: a new branch takes the name, and what had it goes on under another
//! name, with its whole history. So the invariant, that a branch never changes because of what happens on its
//! parent or its children, needs nobody's care: nothing of either is ever written.

mod difference;
pub(crate) mod lineage;

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio_postgres::Client;
use wal_decoder::Lsn;

use crate::compute_process::{Answer, PORT, Question};
use crate::computes::Computes;
use crate::ids::{BranchId, BranchName, ManifestNumber, ManifestUid, ProjectName, Term};
use crate::page_store::{
    BranchState, Manifest, ManifestHead, ManifestKind, PageStore, ParentPoint, RecoveryTarget,
};
use crate::secrets::{Secret, kept_secret};
use crate::{CoreError, Result, SUPERUSER, Timestamp};

pub use difference::TableDifference;

/// Parents of parents that a point is looked for in.
const GENERATIONS: usize = 1000;

/// A commit is flushed within moments of being stamped. The WAL that is laid out for a time reaches this much
/// further, so that no commit stamped before it is left out.
const STAMPED_AND_FLUSHED: Duration = Duration::from_secs(60);

/// A moment of a branch's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Everything that was acknowledged before this was asked.
    Now,
    /// Everything that ends at or below.
    Lsn(Lsn),
    /// All commits before the first, in WAL order, that is stamped later.
    Time(Timestamp),
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Point::Now => f.write_str("now"),
            Point::Lsn(lsn) => lsn.fmt(f),
            Point::Time(time) => time.fmt(f),
        }
    }
}

/// What can be done with branches. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Branches {
    pages: PageStore,
    computes: Computes,
}

/// What a restore left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The branch that has the name now.
    pub branch: BranchId,
    /// The state before, with its history.
    pub before: BranchName,
}

/// Where a branch begins: a manifest, the WAL from there, and where to stop.
struct Beginning {
    base: Arc<Manifest>,
    until: Lsn,
    target: RecoveryTarget,
}

impl Branches {
    /// Over the pages and the computes of a machine.
    pub fn new(pages: PageStore, computes: Computes) -> Branches {
        Branches { pages, computes }
    }

    /// Makes the branch `name` from a point of `parent`'s history.
    ///
    /// # Errors
    /// There is no such parent, the name is taken, the point is out of reach, or the store failed.
    pub async fn create(
        &self,
        project: &ProjectName,
        parent: &BranchName,
        name: BranchName,
        point: Point,
        ttl: Option<Duration>,
    ) -> Result<Arc<Manifest>> {
        let parent = self.find(project, parent).await?;
        let beginning = self.beginning(&parent, point).await?;
        let child = Arc::new(beginning.child(&parent, name, point, ttl));
        self.pages.create_branch(&child, Some(&beginning.base.head)).await?;
        Ok(child)
    }

    /// All branches, by name.
    ///
    /// # Errors
    /// The store failed, or a manifest is damaged.
    pub async fn list(&self, project: &ProjectName) -> Result<Vec<Arc<ManifestHead>>> {
        self.pages.branches(project).await
    }

    /// Deletes a branch. Its children stay what they are.
    ///
    /// # Errors
    /// There is no such branch, or the store failed.
    pub async fn delete(&self, project: &ProjectName, name: &BranchName) -> Result<()> {
        let branch = self.find(project, name).await?.branch;
        self.pages.delete_branch(project, branch).await?;
        self.end_compute(project, branch).await;
        Ok(())
    }

    /// Has `name` begin anew from where its parent is now. What was on it is gone.
    ///
    /// # Errors
    /// It has no parent, or as for [`create`](Branches::create).
    pub async fn reset(&self, project: &ProjectName, name: &BranchName) -> Result<Arc<Manifest>> {
        let head = self.find(project, name).await?;
        let parent = head.parent.as_ref().filter(|parent| parent.project == *project);
        let parent =
            parent.ok_or_else(|| out_of_reach(project, Point::Now, "it has no parent to go back to"))?;
        let parent = self.pages.latest_head(project, parent.branch).await?;
        let parent = parent.filter(|parent| parent.state == BranchState::Live);
        let parent = parent.ok_or_else(|| out_of_reach(project, Point::Now, "its parent was deleted"))?;
        let beginning = self.beginning(&parent, Point::Now).await?;
        let ttl = head.expires_at.map(|expires| expires.since(head.created_at));
        let child = Arc::new(beginning.child(&parent, name.clone(), Point::Now, ttl));
        self.pages.succeed_branch(&child, &beginning.base.head, head.branch).await?;
        self.pages.delete_branch(project, head.branch).await?;
        self.end_compute(project, head.branch).await;
        Ok(child)
    }

    /// Rewinds `name` to a point of its history. What it was stays, with all its history, as another branch.
    ///
    /// # Errors
    /// As for [`create`](Branches::create), or its compute does not go down.
    pub async fn restore(&self, project: &ProjectName, name: &BranchName, point: Point) -> Result<Restored> {
        let head = self.find(project, name).await?;
        let beginning = self.beginning(&head, point).await?;
        let ttl = head.expires_at.map(|expires| expires.since(Timestamp::now()));
        let child = Arc::new(beginning.child(&head, name.clone(), point, ttl));
        // Nobody writes to it from here on: what is acknowledged until then belongs to the state before.
        self.computes.suspend(project, head.branch).await?;
        let before = before_name(name, child.head.created_at)?;
        // Whoever dies in between leaves the name with one of the two; `settle_names` does the rest later.
        self.pages.succeed_branch(&child, &beginning.base.head, head.branch).await?;
        // Somebody who connected in between has woken it again; from now on the name leads elsewhere.
        self.computes.suspend(project, head.branch).await?;
        self.pages.rename_branch(project, head.branch, &before).await?;
        Ok(Restored { branch: child.head.branch, before })
    }

    /// Finishes restores and resets that were cut short: what lost its name to another branch gets the one that it would
    /// have got. Returns these.
    ///
    /// # Errors
    /// The store failed.
    pub async fn settle_names(&self, project: &ProjectName) -> Result<Vec<BranchName>> {
        let mut settled = Vec::new();
        for (head, successor) in self.pages.superseded_branches(project).await? {
            let before = before_name(&head.name, successor.created_at)?;
            self.end_compute(project, head.branch).await;
            self.pages.rename_branch(project, head.branch, &before).await?;
            settled.push(before);
        }
        Ok(settled)
    }

    /// Deletes the branches whose time is over; returns their names.
    ///
    /// # Errors
    /// The store failed.
    pub async fn delete_expired(&self, project: &ProjectName, now: Timestamp) -> Result<Vec<BranchName>> {
        let mut deleted = Vec::new();
        for head in self.pages.branches(project).await? {
            if head.expires_at.is_some_and(|expires| expires <= now) {
                self.pages.delete_branch(project, head.branch).await?;
                self.end_compute(project, head.branch).await;
                deleted.push(head.name.clone());
            }
        }
        Ok(deleted)
    }

    /// The tables in which two branches differ, in the project's own database. Wakes both.
    ///
    /// # Errors
    /// There is no such branch, or one cannot be started or asked.
    pub async fn diff(
        &self,
        project: &ProjectName,
        one: &BranchName,
        other: &BranchName,
    ) -> Result<Vec<TableDifference>> {
        let (one, other) = (self.session(project, one).await?, self.session(project, other).await?);
        difference::difference(project.as_str(), &one, &other).await
    }

    /// A session of the core's own role in the project's database on a branch.
    async fn session(&self, project: &ProjectName, name: &BranchName) -> Result<Client> {
        let branch = self.find(project, name).await?.branch;
        let status = self.computes.ensure_running(project, branch).await?;
        let directory = status.socket_directory.ok_or(CoreError::ComputeEnding)?;
        let password = kept_secret(self.pages.storage(), project, Secret::Superuser).await?;
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(directory)
            .port(PORT)
            .dbname(project.as_str())
            .user(SUPERUSER)
            .password(password.expose_secret())
            .application_name("tidewater");
        let connected = config.connect(tokio_postgres::NoTls).await;
        let (client, connection) =
            connected.map_err(CoreError::statement(project.as_str(), "let the core's own role in"))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a session of the core with its Postgres ended");
            }
        });
        Ok(client)
    }

    async fn find(&self, project: &ProjectName, name: &BranchName) -> Result<Arc<ManifestHead>> {
        let found = self.pages.find_branch(project, name).await?;
        found
            .ok_or_else(|| CoreError::NoSuchBranch { project: project.to_string(), branch: name.to_string() })
    }

    /// A branch that was deleted has nothing left to keep: its compute ends however it can.
    async fn end_compute(&self, project: &ProjectName, branch: BranchId) {
        if let Err(error) = self.computes.suspend(project, branch).await {
            tracing::debug!(%project, %branch, %error, "the compute of a deleted branch ended without a last manifest");
        }
    }

    async fn beginning(&self, branch: &ManifestHead, point: Point) -> Result<Beginning> {
        match point {
            Point::Now => self.now(branch).await,
            Point::Lsn(lsn) => self.at_lsn(branch, lsn).await,
            Point::Time(time) => self.at_time(branch, time).await,
        }
    }

    async fn latest(&self, branch: &ManifestHead) -> Result<Arc<Manifest>> {
        let latest = self.pages.latest(&branch.project, branch.branch).await?;
        latest.filter(|latest| latest.head.state == BranchState::Live).ok_or_else(|| {
            CoreError::NoSuchBranch { project: branch.project.to_string(), branch: branch.name.to_string() }
        })
    }

    /// The newest manifest, and how far the WAL goes that is in the store: at least to what that manifest needs, and to
    /// everything acknowledged before.
    async fn newest(&self, branch: &ManifestHead) -> Result<(Arc<Manifest>, Lsn)> {
        let manifest = self.latest(branch).await?;
        let head = &manifest.head;
        let settled = match self.computes.ask(&head.project, head.branch, Question::Settle).await? {
            Some(Answer::Settled { lsn }) => lsn,
            _ => match (&head.kind, head.end_lsn, manifest.body.wal.last().and_then(|span| span.to)) {
                (ManifestKind::CleanShutdown, Some(end), _) => end,
                (ManifestKind::Branched { .. }, _, Some(end)) => end,
                // Its compute was killed: what it acknowledged last is with the keepers, and a start brings it out.
                _ => {
                    self.computes.ensure_running(&head.project, head.branch).await?;
                    match self.computes.ask(&head.project, head.branch, Question::Settle).await? {
                        Some(Answer::Settled { lsn }) => lsn,
                        _ => return Err(CoreError::ComputeEnding),
                    }
                }
            },
        };
        Ok((manifest, settled))
    }

    async fn now(&self, branch: &ManifestHead) -> Result<Beginning> {
        let (base, until) = self.newest(branch).await?;
        let target = match (&base.head.kind, base.head.end_lsn) {
            (ManifestKind::CleanShutdown, Some(end)) if end == until => RecoveryTarget::None,
            // Never started, or started and without a cut yet: then its WAL goes on beyond its own beginning.
            (ManifestKind::Branched { target }, _)
                if base.body.wal.last().and_then(|span| span.to) == Some(until) =>
            {
                *target
            }
            _ => RecoveryTarget::Lsn(until),
        };
        Ok(Beginning { base, until, target })
    }

    async fn at_lsn(&self, branch: &ManifestHead, lsn: Lsn) -> Result<Beginning> {
        let (_, end) = self.newest(branch).await?;
        let beyond = || out_of_reach(&branch.project, Point::Lsn(lsn), &format!("its history ends at {end}"));
        if lsn > end {
            return Err(beyond());
        }
        let mut at = Arc::new(branch.clone());
        for _ in 0..GENERATIONS {
            let heads = self.pages.manifests(&at.project, at.branch).await?;
            let live = heads.iter().filter(|head| head.state == BranchState::Live);
            if let Some(head) = live.rev().find(|head| head.min_recovery_lsn <= lsn) {
                let base = self.pages.manifest(&head.project, head.branch, head.number).await?;
                let target = match (&head.kind, head.end_lsn) {
                    (ManifestKind::CleanShutdown, Some(end)) if end == lsn => RecoveryTarget::None,
                    _ => RecoveryTarget::Lsn(lsn),
                };
                return Ok(Beginning { base, until: lsn, target });
            }
            at = self.parent_of(&at, Point::Lsn(lsn)).await?;
        }
        Err(beyond())
    }

    async fn at_time(&self, branch: &ManifestHead, time: Timestamp) -> Result<Beginning> {
        if time > Timestamp::now() {
            return Err(out_of_reach(&branch.project, Point::Time(time), "it lies in the future"));
        }
        let (_, end) = self.newest(branch).await?;
        let mut at = Arc::new(branch.clone());
        let mut last = Some(end);
        for _ in 0..GENERATIONS {
            let heads = self.pages.manifests(&at.project, at.branch).await?;
            let live: Vec<_> = heads.iter().filter(|head| head.state == BranchState::Live).collect();
            // What was published at or before the time was cut before it, and has nothing stamped later.
            if let Some(head) = live.iter().rev().find(|head| head.published_at <= time) {
                let base = self.pages.manifest(&head.project, head.branch, head.number).await?;
                if matches!(head.kind, ManifestKind::Branched { .. }) {
                    // The branch had been made and not been started: its point is all there was.
                    return Ok(Beginning::of_branched(base));
                }
                let later =
                    live.iter().skip_while(|head| head.published_at <= time.after(STAMPED_AND_FLUSHED));
                let bound = later.skip(1).map(|head| head.min_recovery_lsn).next();
                let until = bound.or(last).unwrap_or(end).max(head.min_recovery_lsn);
                return Ok(Beginning { base, until, target: RecoveryTarget::Time(time) });
            }
            last = at.parent.as_ref().and_then(|parent| parent.lsn);
            at = self.parent_of(&at, Point::Time(time)).await?;
        }
        Err(out_of_reach(&branch.project, Point::Time(time), "nothing that old is kept"))
    }

    /// Where the history before a branch's own is.
    async fn parent_of(&self, branch: &ManifestHead, point: Point) -> Result<Arc<ManifestHead>> {
        let none = || {
            let reason = format!("what is kept of branch `{}` begins later", branch.name);
            out_of_reach(&branch.project, point, &reason)
        };
        let parent =
            branch.parent.as_ref().filter(|parent| parent.project == branch.project).ok_or_else(none)?;
        self.pages.latest_head(&parent.project, parent.branch).await?.ok_or_else(none)
    }
}

impl Beginning {
    /// A branch that was never started, once more.
    fn of_branched(base: Arc<Manifest>) -> Beginning {
        let until = base.body.wal.last().and_then(|span| span.to).unwrap_or(base.head.min_recovery_lsn);
        let target = match base.head.kind {
            ManifestKind::Branched { target } => target,
            ManifestKind::Running | ManifestKind::CleanShutdown => RecoveryTarget::Lsn(until),
        };
        Beginning { base, until, target }
    }

    /// The first manifest of a branch that begins here.
    fn child(
        &self,
        parent: &ManifestHead,
        name: BranchName,
        point: Point,
        ttl: Option<Duration>,
    ) -> Manifest {
        let now = Timestamp::now();
        let time = match point {
            Point::Time(time) => time,
            Point::Now | Point::Lsn(_) => now,
        };
        let head = ManifestHead {
            branch: BranchId::random(),
            number: ManifestNumber(1),
            uid: ManifestUid::random(),
            name,
            state: BranchState::Live,
            parent: Some(ParentPoint {
                project: parent.project.clone(),
                branch: parent.branch,
                manifest: self.base.head.number,
                lsn: Some(self.until),
                time,
            }),
            created_at: now,
            published_at: now,
            expires_at: ttl.map(|ttl| now.after(ttl)),
            term: Term(0),
            kind: ManifestKind::Branched { target: self.target },
            ..self.base.head.clone()
        };
        let mut body = self.base.body.clone();
        body.wal = lineage::until(&body.wal, self.until);
        Manifest { head, body }
    }
}

fn out_of_reach(project: &ProjectName, point: Point, reason: &str) -> CoreError {
    CoreError::PointOutOfReach {
        project: project.to_string(),
        point: point.to_string(),
        reason: reason.to_owned(),
    }
}

/// What the state before a restore is called: the name, and when.
fn before_name(name: &BranchName, at: Timestamp) -> Result<BranchName> {
    let stamp: String = at.to_string().chars().filter(char::is_ascii_digit).take(17).collect();
    let kept: String = name.as_str().chars().take(24).collect();
    BranchName::new(format!("{kept}_before_{stamp}"))
}
