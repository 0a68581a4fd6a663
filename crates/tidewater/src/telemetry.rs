//! Logs and metrics of the process.
//!
//! Everything that is told goes to standard error, so that standard output holds results only. Metric
//! names are part of the contract; they are written down once, here.

use clap::ValueEnum;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// WAL between a table's position and its source's, in bytes.
pub const SYNC_LAG_BYTES: &str = "tidewater_sync_lag_bytes";
/// Age of the oldest change that a table lacks, in seconds.
pub const SYNC_LAG_SECONDS: &str = "tidewater_sync_lag_seconds";
/// Row changes committed to a table.
pub const SYNC_ROWS_TOTAL: &str = "tidewater_sync_rows_total";
/// Time that the commits of one cut took, in seconds.
pub const SYNC_COMMIT_SECONDS: &str = "tidewater_sync_commit_seconds";
/// WAL that a slot makes its source keep, in bytes.
pub const SYNC_SLOT_RETAINED_WAL_BYTES: &str = "tidewater_sync_slot_retained_wal_bytes";
/// Data files of a lake table.
pub const LAKE_FILES: &str = "tidewater_lake_files";
/// Rows of a lake table for each of its files, deleted ones included.
pub const LAKE_ROWS_PER_FILE: &str = "tidewater_lake_rows_per_file";
/// Part of a lake table's rows that are deleted and not yet compacted away, from 0 to 1.
pub const LAKE_DELETED_SHARE: &str = "tidewater_lake_deleted_share";
/// Compactions committed to a lake table.
pub const LAKE_COMPACTIONS_TOTAL: &str = "tidewater_lake_compactions_total";

/// Delta version that a served table holds.
pub const SERVING_VERSION: &str = "tidewater_serving_version";
/// Age of the oldest Delta version that is not served yet, in seconds.
pub const SERVING_LAG_SECONDS: &str = "tidewater_serving_lag_seconds";
/// Rows changed in a served table.
pub const SERVING_ROWS_TOTAL: &str = "tidewater_serving_rows_total";
/// Time from beginning to read a difference until it is committed to Postgres, in seconds.
pub const SERVING_APPLY_SECONDS: &str = "tidewater_serving_apply_seconds";
/// Rows of a Delta table that are not served.
pub const SERVING_KEPT_OUT_ROWS: &str = "tidewater_serving_kept_out_rows";
/// Times that a served table was compared as a whole.
pub const SERVING_RELOADS_TOTAL: &str = "tidewater_serving_reloads_total";

/// Whether a branch of a built-in database runs: 1, or 0 once it sleeps.
pub const CORE_RUNNING: &str = "tidewater_core_running";
/// WAL of a branch that the keepers have and the object store has not, in bytes.
pub const CORE_UNARCHIVED_WAL_BYTES: &str = "tidewater_core_unarchived_wal_bytes";
/// 1 while commits of a branch wait for a majority of the keepers.
pub const CORE_COMMITS_WAIT: &str = "tidewater_core_commits_wait";
/// 1 while the object store refuses pages or WAL of a branch.
pub const CORE_STORE_TROUBLE: &str = "tidewater_core_store_trouble";
/// Time since the newest restore point of a running branch, in seconds.
pub const CORE_CUT_AGE_SECONDS: &str = "tidewater_core_cut_age_seconds";
/// All that is told of a branch.
pub const CORE_GAUGES: [&str; 5] =
    [CORE_RUNNING, CORE_UNARCHIVED_WAL_BYTES, CORE_COMMITS_WAIT, CORE_STORE_TROUBLE, CORE_CUT_AGE_SECONDS];

/// From a local disk's milliseconds to an object store in trouble.
const COMMIT_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The text is no filter.
    #[error("`{filter}` is not a log filter such as `info` or `tidewater=debug,info`")]
    Filter {
        /// as given
        filter: String,
        /// what the parser said
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Only one subscriber can be installed.
    #[error("the log is set up already")]
    Log(#[source] tracing_subscriber::util::TryInitError),
    /// Only one recorder can be installed.
    #[error("metrics cannot be set up")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

/// Sends the log to standard error.
pub fn init_log(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    use tracing_subscriber::util::SubscriberInitExt;
    let filter = EnvFilter::try_new(filter)
        .map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && format == LogFormat::Text);
    match format {
        LogFormat::Text => log.with_target(false).finish().try_init(),
        LogFormat::Json => log.json().flatten_event(true).finish().try_init(),
    }
    .map_err(TelemetryError::Log)
}

/// Begins to collect metrics; the handle renders them.
pub fn init_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(SYNC_COMMIT_SECONDS.to_owned()), &COMMIT_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(SERVING_APPLY_SECONDS.to_owned()), &COMMIT_BUCKETS)?
        .install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_gauge!(SYNC_LAG_BYTES, Unit::Bytes, "WAL between the table's position and its source's");
    describe_gauge!(SYNC_LAG_SECONDS, Unit::Seconds, "Age of the oldest change that the table lacks");
    describe_counter!(SYNC_ROWS_TOTAL, Unit::Count, "Row changes committed to the table");
    describe_histogram!(SYNC_COMMIT_SECONDS, Unit::Seconds, "Time that the commits of one cut took");
    describe_gauge!(SYNC_SLOT_RETAINED_WAL_BYTES, Unit::Bytes, "WAL that the slot makes its source keep");
    describe_gauge!(LAKE_FILES, Unit::Count, "Data files of the table");
    describe_gauge!(LAKE_ROWS_PER_FILE, Unit::Count, "Rows for each data file, deleted ones included");
    describe_gauge!(LAKE_DELETED_SHARE, "Part of the rows that are deleted and not yet compacted away");
    describe_gauge!(SERVING_VERSION, "Delta version that the served table holds");
    describe_gauge!(
        SERVING_LAG_SECONDS,
        Unit::Seconds,
        "Age of the oldest Delta version that is not served yet"
    );
    describe_counter!(SERVING_ROWS_TOTAL, Unit::Count, "Rows changed in the served table");
    describe_histogram!(
        SERVING_APPLY_SECONDS,
        Unit::Seconds,
        "Time that bringing a version to Postgres took"
    );
    describe_gauge!(SERVING_KEPT_OUT_ROWS, Unit::Count, "Rows of the Delta table that are not served");
    describe_counter!(SERVING_RELOADS_TOTAL, Unit::Count, "Times that the table was compared as a whole");
    describe_gauge!(CORE_RUNNING, "1 while the branch runs, 0 once it sleeps");
    describe_gauge!(CORE_UNARCHIVED_WAL_BYTES, Unit::Bytes, "WAL that the object store does not have yet");
    describe_gauge!(CORE_COMMITS_WAIT, "1 while commits wait for a majority of the keepers");
    describe_gauge!(CORE_STORE_TROUBLE, "1 while the object store refuses pages or WAL");
    describe_gauge!(CORE_CUT_AGE_SECONDS, Unit::Seconds, "Time since the newest restore point");
    describe_counter!(LAKE_COMPACTIONS_TOTAL, Unit::Count, "Compactions committed to the table");
}
