//! `tidewater demo`: the whole way of a row, shown on a shop that exists for half a minute.
//!
//! ```text
//!   Stage ── a folder with a tidewater.yaml ──▶ daemon::run ──▶ private Postgres, sync, lake
//!     ▲                                              ▲
//!     │ ends everything, whatever happened           │ loads, writes, reads, compares
//!     └───────────────────── demo ───────────────── tour
//! ```
//!
//! The daemon is the real one on a configuration that anybody could have written. Whatever the tour says
//! of the lake, it has compared with Postgres. The invariant: the tour may end anywhere, by an error or by
//! Ctrl-C, and the [`stage::Stage`] still stops the daemon, with it Postgres, and removes the folder.

mod branches;
mod comparison;
mod narrator;
mod recommendations;
mod shop;
mod stage;
mod tour;
mod traffic;

use super::{CommandError, Outcome};
use crate::daemon::error_chain;
use narrator::Narrator;
use stage::Stage;
use std::io;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The tour did not come to its end.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum DemoError {
    /// Somebody stopped it.
    #[error("the demo was stopped before its end")]
    #[diagnostic(code(tidewater::demo::stopped))]
    Interrupted,
    /// The daemon ended under the tour.
    #[error("the daemon of the demo has ended by itself")]
    #[diagnostic(code(tidewater::demo::daemon), help("`--log info` shows what it was doing"))]
    DaemonEnded,
    /// Something did not come in time.
    #[error("after {} s there is still no {what}{}", limit.as_secs(), because(.trouble))]
    #[diagnostic(
        code(tidewater::demo::late),
        help("`--log info` shows what the daemon is doing; the machine may be too busy")
    )]
    Late {
        /// what was waited for
        what: &'static str,
        /// for how long
        limit: Duration,
        /// what the daemon says is in the way
        trouble: Option<String>,
    },
    /// The lake does not hold what Postgres holds.
    #[error("the lake differs from Postgres: `{query}` gives {lake} there and {postgres} in Postgres")]
    #[diagnostic(
        code(tidewater::demo::difference),
        help("that must not happen: please report it, with what `--keep` leaves on disk")
    )]
    Difference {
        /// the query, which both answered
        query: String,
        /// the lake's rows
        lake: String,
        /// Postgres's rows
        postgres: String,
    },
    /// A table has another number of rows than the query was written for.
    #[error("`{query}` gives no row")]
    #[diagnostic(code(tidewater::demo::difference))]
    NoRow {
        /// the query
        query: String,
    },
    /// A cell has no text form.
    #[error("a value of the lake cannot be shown")]
    #[diagnostic(code(tidewater::demo::value))]
    Value(#[from] arrow::error::ArrowError),
    /// What was computed cannot be written to the lake.
    #[error("the lake cannot be written to")]
    #[diagnostic(code(tidewater::demo::lake), help("`--log info` shows more"))]
    Lake(#[from] delta_writer::DeltaError),
    /// A statement failed.
    #[error("the shop's Postgres refuses a statement")]
    #[diagnostic(code(tidewater::demo::statement), help("`--log info` shows more"))]
    Statement(#[source] tokio_postgres::Error),
    /// The server's position is not one.
    #[error("the shop's Postgres gives no position")]
    #[diagnostic(code(tidewater::demo::statement))]
    Position(#[source] wal_decoder::ParseLsnError),
    /// The shop's Postgres refuses.
    #[error("the shop's Postgres cannot be worked with")]
    #[diagnostic(code(tidewater::demo::postgres), help("`--log info` shows more"))]
    Postgres(#[from] postgres_connector::Error),
    /// A session of the traffic ended out of turn.
    #[error("a session of the live traffic ended unexpectedly")]
    #[diagnostic(code(tidewater::demo::traffic))]
    TrafficGone,
}

fn because(trouble: &Option<String>) -> String {
    trouble.as_ref().map_or_else(String::new, |trouble| format!(": {trouble}"))
}

/// Leads through the tour; with `keep` everything stays up until somebody stops it, and on disk after that.
pub(super) async fn demo(keep: bool) -> Result<Outcome, CommandError> {
    let stop = stop_on_signals()?;
    let narrator = Narrator::new();
    let stage = Stage::set_up(keep).await?;
    let outcome = tokio::select! {
        outcome = present(&stage, &narrator, &stop) => outcome,
        () = stage.daemon_ended() => Err(DemoError::DaemonEnded.into()),
    };
    match (stage.strike().await, outcome) {
        // How the daemon ended is why the tour could not go on.
        (Err(reason), Ok(()) | Err(CommandError::Demo(DemoError::DaemonEnded))) => Err(reason),
        (Err(reason), Err(error)) => {
            tracing::error!(reason = %error_chain(&reason), "the demo could not be cleaned up");
            Err(error)
        }
        (Ok(kept), outcome) => {
            tour::bid_farewell(&narrator, outcome.is_ok(), kept.as_deref())?;
            outcome.map(|()| Outcome::Done)
        }
    }
}

/// The tour, and with `keep` the time after it.
async fn present(stage: &Stage, narrator: &Narrator, stop: &CancellationToken) -> Result<(), CommandError> {
    tokio::select! {
        outcome = tour::lead(stage, narrator) => outcome?,
        () = stop.cancelled() => return Err(DemoError::Interrupted.into()),
    }
    tour::invite(stage, narrator).await?;
    if stage.is_kept() {
        stop.cancelled().await;
    }
    Ok(())
}

/// Whoever asks to stop, by Ctrl-C, SIGTERM or by closing the terminal, is heard for as long as the process lives.
fn stop_on_signals() -> Result<CancellationToken, io::Error> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
        stopping.cancel();
    });
    Ok(stop)
}
