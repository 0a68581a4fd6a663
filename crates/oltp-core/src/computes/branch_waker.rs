//! The gateway's way to the computes.

use std::sync::Arc;

use async_trait::async_trait;
use secrecy::ExposeSecret;
use tokio_postgres::Config;

use super::Computes;
use crate::compute_process::PORT;
use crate::gateway::{BranchAddress, Endpoint, WakeError, Waker};
use crate::ids::{BranchName, ProjectName};
use crate::page_store::{ManifestHead, PageStore};
use crate::secrets::{Secret, kept_secret};
use crate::{CoreError, SUPERUSER};

/// Finds a branch by its name and has its compute running.
///
/// A restore may give the name to another branch while this one starts, and sessions that begin after the restore wait
/// for the same start as those from before. So the name is looked up once more when the compute runs, and the start
/// counts only if it is still this branch's.
#[derive(Debug, Clone)]
pub struct BranchWaker {
    pages: PageStore,
    computes: Computes,
}

impl BranchWaker {
    /// Over the pages, which know the branches, and the computes of this machine.
    pub fn new(pages: PageStore, computes: Computes) -> BranchWaker {
        BranchWaker { pages, computes }
    }

    async fn found(&self, project: &ProjectName, name: &BranchName) -> Result<Arc<ManifestHead>, WakeError> {
        match self.pages.find_branch(project, name).await.map_err(failed)? {
            Some(head) => Ok(head),
            None => Err(match self.pages.project(project).await.map_err(failed)? {
                Some(_) => WakeError::NoSuchBranch,
                None => WakeError::NoSuchProject,
            }),
        }
    }
}

#[async_trait]
impl Waker for BranchWaker {
    async fn wake(&self, branch: &BranchAddress) -> Result<Endpoint, WakeError> {
        let project = ProjectName::new(&branch.project).map_err(|_| WakeError::NoSuchProject)?;
        let name = BranchName::new(&branch.branch).map_err(|_| WakeError::NoSuchBranch)?;
        let mut head = self.found(&project, &name).await?;
        let (status, password) = loop {
            // Every session comes through here: one way to the store less to wait for, where that is far.
            let (status, password) = tokio::try_join!(
                self.computes.ensure_running(&project, head.branch),
                kept_secret(self.pages.storage(), &project, Secret::Superuser)
            )
            .map_err(failed)?;
            let now = self.found(&project, &name).await?;
            if now.branch == head.branch {
                break (status, password);
            }
            // A restore or a reset gave the name to another branch meanwhile.
            head = now;
        };
        let socket_directory = status.socket_directory.ok_or_else(|| failed(CoreError::ComputeEnding))?;
        let mut superuser = Config::new();
        superuser
            .host_path(&socket_directory)
            .port(PORT)
            .dbname("postgres")
            .user(SUPERUSER)
            .password(password.expose_secret())
            .application_name("tidewater gateway");
        Ok(Endpoint { socket_directory, port: PORT, superuser })
    }
}

fn failed(source: CoreError) -> WakeError {
    WakeError::Failed { source: Box::new(source) }
}
