//! A built-in database as its sync sees it: awake or asleep, on whichever branch is `main` now.
//!
//! A restore gives the name `main` to another branch, so where the database is cannot be kept: it is looked up for
//! every attempt. A branch that was put to sleep in order is left asleep, for everything it has is where it was;
//! one that ended otherwise, or that has taken the name since, is woken.

use super::BuiltInError;
use oltp_core::compute_process::{Answer, PORT, Question, State, Status};
use oltp_core::computes::Computes;
use oltp_core::gateway::MAIN_BRANCH;
use oltp_core::ids::{BranchId, BranchName, ProjectName};
use oltp_core::page_store::{ManifestHead, ManifestKind, PageStore};
use oltp_core::{CoreError, SUPERUSER, Secret, kept_secret};
use postgres_connector::{Host, SourceConfig, TlsMode};
use std::sync::Arc;
use std::time::Duration;
use wal_decoder::Lsn;

/// How often a sleeping database is looked at: what wakes it does not know of its sync.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A socket on this machine is open at once, or the server is gone.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// Keepers confirm within milliseconds. Past this something is wrong with them, and the sync says so.
const CONFIRMED_LIMIT: Duration = Duration::from_secs(10);

/// A database of the core.
#[derive(Debug, Clone)]
pub struct BuiltInDatabase {
    pages: PageStore,
    computes: Computes,
    project: ProjectName,
}

/// A database that is awake.
#[derive(Debug, Clone)]
pub struct Reached {
    /// How the core's own role gets in.
    pub source: SourceConfig,
    /// Which branch it is: of another one the same positions mean something else.
    pub branch: BranchId,
    /// What may be shown to others.
    pub gate: Gate,
}

impl BuiltInDatabase {
    /// The project's branch `main`.
    pub fn new(pages: PageStore, computes: Computes, project: ProjectName) -> BuiltInDatabase {
        BuiltInDatabase { pages, computes, project }
    }

    /// Waits until the database is awake, and wakes it unless it sleeps with nothing new: `followed` is the branch
    /// that was followed last.
    pub async fn awake(
        &self,
        followed: Option<BranchId>,
        mut asleep: impl FnMut(),
    ) -> Result<Reached, BuiltInError> {
        loop {
            let branch = self.main().await?.branch;
            let wakes = match self.computes.status(&self.project, branch).await? {
                // On its way to sleep: asked now, it would be woken for nothing.
                Some(status) => status.state != State::Suspending,
                None => {
                    // Only now: what it published last says how it ended.
                    let head = self.main().await?;
                    followed != Some(head.branch) || head.kind != ManifestKind::CleanShutdown
                }
            };
            if wakes {
                let status = self.computes.ensure_running(&self.project, branch).await?;
                return self.reached(&status).await;
            }
            asleep();
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn main(&self) -> Result<Arc<ManifestHead>, BuiltInError> {
        let missing =
            || CoreError::NoSuchBranch { project: self.project.to_string(), branch: MAIN_BRANCH.to_owned() };
        let found = self.pages.find_branch(&self.project, &BranchName::new(MAIN_BRANCH)?).await?;
        Ok(found.ok_or_else(missing)?)
    }

    async fn reached(&self, status: &Status) -> Result<Reached, BuiltInError> {
        let source = superuser(&self.pages, status).await?;
        let gate =
            Gate { computes: self.computes.clone(), project: self.project.clone(), branch: status.branch };
        Ok(Reached { source, branch: status.branch, gate })
    }
}

/// How the core's own role enters the project's database of a running branch.
pub async fn superuser(pages: &PageStore, status: &Status) -> Result<SourceConfig, BuiltInError> {
    let directory = status.socket_directory.clone().ok_or(CoreError::ComputeEnding)?;
    let password = kept_secret(pages.storage(), &status.project, Secret::Superuser).await?;
    Ok(SourceConfig {
        hosts: vec![(Host::Unix(directory), PORT)],
        user: SUPERUSER.to_owned(),
        dbname: status.project.to_string(),
        password: Some(password),
        tls: TlsMode::Disable,
        ca_file: None,
        application_name: "tidewater".to_owned(),
        connect_timeout: CONNECT_LIMIT,
        options: None,
    })
}

/// Stands between a branch and whoever shows its rows to others.
///
/// Logical decoding and exported snapshots show commits that Postgres has on its own disk only. Should the compute
/// be lost at that moment, the next one knows nothing of them. So nothing of the lake is committed above what a
/// majority of the keepers has.
#[derive(Debug, Clone)]
pub struct Gate {
    computes: Computes,
    project: ProjectName,
    branch: BranchId,
}

impl Gate {
    /// Returns once everything below `position` cannot be lost any more.
    pub async fn pass(&self, position: Lsn) -> Result<(), BuiltInError> {
        let asked = self.computes.ask(&self.project, self.branch, Question::Confirmed { lsn: position });
        match tokio::time::timeout(CONFIRMED_LIMIT, asked).await {
            Ok(Ok(Some(Answer::Confirmed { lsn }))) if lsn >= position => Ok(()),
            Ok(Ok(_)) => Err(CoreError::ComputeEnding.into()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(BuiltInError::Unconfirmed { position, limit: CONFIRMED_LIMIT }),
        }
    }
}
