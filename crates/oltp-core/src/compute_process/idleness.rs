//! What is looked at every few seconds, through one session of the core's own role: whether the branch may go to sleep, and
//! whether somebody stands in for the keepers.
//!
//! What idle means is said in [`crate::gateway::idle`]'s watch; a session of the core's own role does not count as activity.

use std::time::Duration;

use tokio_postgres::{Client, Config};

use super::{control, sole_standby};
use crate::gateway::idle::{IdleWatch, Verdict};
use crate::ids::ProjectName;

/// Often enough for short `suspend_after`, seldom enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Watches one compute.
#[derive(Debug)]
pub(crate) struct Idleness {
    project: ProjectName,
    watch: Option<IdleWatch>,
    client: Client,
    superuser: Config,
}

impl Idleness {
    /// Without a period the branch never sleeps by itself.
    pub(crate) fn new(
        project: ProjectName,
        suspend_after: Option<Duration>,
        client: Client,
        superuser: Config,
    ) -> Idleness {
        Idleness { project, watch: suspend_after.map(IdleWatch::new), client, superuser }
    }

    /// Returns once the branch may sleep.
    pub(crate) async fn wait(mut self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(error) = sole_standby::defend(&self.client, self.project.as_str()).await {
                let error = control::chain(&error);
                tracing::debug!(error, "the walsenders cannot be seen");
            }
            let Some(watch) = &mut self.watch else { continue };
            match watch.look(&self.client, &self.superuser).await {
                Ok(Verdict::MaySuspend) => return,
                Ok(_) => {}
                // A server that does not answer is not idle, and its end is noticed elsewhere.
                Err(error) => tracing::debug!(%error, "whether the branch is idle cannot be seen"),
            }
        }
    }
}
