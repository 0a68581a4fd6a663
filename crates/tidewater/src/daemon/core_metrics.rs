//! How the running branches are, as `tidewater_core_*`: asked of their processes, as `compute list` does.

use crate::telemetry;
use oltp_core::compute_process::Status;
use oltp_core::computes::Computes;
use oltp_core::{CoreError, Timestamp};
use std::collections::BTreeSet;
use std::time::Duration;

/// As often as most collectors ask.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);

type Labels = [(&'static str, String); 2];

/// Which branches the gauges tell of.
#[derive(Debug, Default)]
pub(super) struct CoreMetrics {
    shown: BTreeSet<(String, String)>,
}

impl CoreMetrics {
    /// Sets every gauge; a branch that has gone to sleep since the last look is shown so.
    pub(super) async fn look(&mut self, computes: &Computes) -> Result<(), CoreError> {
        let running = computes.list().await?;
        let mut shown = BTreeSet::new();
        for status in &running {
            let name = status.name.as_ref().map_or_else(|| status.branch.to_string(), ToString::to_string);
            let place = (status.project.to_string(), name);
            show(status, &labels(&place));
            shown.insert(place);
        }
        for place in self.shown.difference(&shown) {
            let labels = labels(place);
            for gauge in telemetry::CORE_GAUGES {
                metrics::gauge!(gauge, &labels).set(0.0);
            }
        }
        self.shown = shown;
        Ok(())
    }
}

fn labels((database, branch): &(String, String)) -> Labels {
    [("database", database.clone()), ("branch", branch.clone())]
}

fn show(status: &Status, labels: &Labels) {
    let truth = |is: bool| if is { 1.0 } else { 0.0 };
    let unarchived = status.majority.0.saturating_sub(status.archived.0);
    metrics::gauge!(telemetry::CORE_RUNNING, labels).set(1.0);
    metrics::gauge!(telemetry::CORE_UNARCHIVED_WAL_BYTES, labels).set(unarchived as f64);
    metrics::gauge!(telemetry::CORE_COMMITS_WAIT, labels).set(truth(status.commits_wait.is_some()));
    metrics::gauge!(telemetry::CORE_STORE_TROUBLE, labels).set(truth(status.store_trouble.is_some()));
    let age = Timestamp::now().since(status.cut_at.unwrap_or(status.started_at));
    metrics::gauge!(telemetry::CORE_CUT_AGE_SECONDS, labels).set(age.as_secs_f64());
}
