//! Going to sleep by itself.
//!
//! What idle means is said in [`crate::gateway::idle`]'s watch; here it is looked at every few seconds through a session
//! of the core's own role, which does not count as activity.

use std::time::Duration;

use tokio_postgres::{Client, Config};

use crate::gateway::idle::{IdleWatch, Verdict};

/// Often enough for short `suspend_after`, seldom enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Watches one compute.
#[derive(Debug)]
pub(crate) struct Idleness {
    watch: Option<IdleWatch>,
    client: Client,
    superuser: Config,
}

impl Idleness {
    /// Without a period the branch never sleeps by itself.
    pub(crate) fn new(suspend_after: Option<Duration>, client: Client, superuser: Config) -> Idleness {
        Idleness { watch: suspend_after.map(IdleWatch::new), client, superuser }
    }

    /// Returns once the branch may sleep.
    pub(crate) async fn wait(self) {
        let Idleness { watch: Some(mut watch), client, superuser } = self else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match watch.look(&client, &superuser).await {
                Ok(Verdict::MaySuspend) => return,
                Ok(_) => {}
                // A server that does not answer is not idle, and its end is noticed elsewhere.
                Err(error) => tracing::debug!(%error, "whether the branch is idle cannot be seen"),
            }
        }
    }
}
