//! `tidewater run`: the daemon with its lock, its listeners and its signals.

use super::error::INTERRUPTED;
use super::state_lock::StateLock;
use super::{CommandError, Outcome};
use crate::built_in::BuiltIn;
use crate::config::{Config, Database, TlsFiles};
use crate::daemon::{self, Controls, RunOptions};
use crate::http::{self, Access, Api, ServeError};
use crate::reload::Reloader;
use crate::requests::Requests;
use crate::status::StatusBoard;
use crate::telemetry;
use crate::verification::Verifications;
use std::io;
use std::path::Path;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub(super) async fn run(file: &Path, config: Config, until_caught_up: bool) -> Result<Outcome, CommandError> {
    let _lock = StateLock::take(&config.state_dir).await?;
    let shutdown = CancellationToken::new();
    let signals =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let board = StatusBoard::new();
    let stop_serving = shutdown.child_token();
    let (reloader, reloads) = Reloader::new(file.to_owned());
    let requests = Requests::default();
    let api = api(&config, file, &board, &requests, reloader.clone())?;
    serve(&config, api, &stop_serving).await?;
    let listening = tokio::spawn(heed_signals(signals, shutdown.clone(), reloader));

    tracing::info!(lake = %config.lake.uri, http = %config.listen.http, "tidewater runs");
    let controls = Controls { configuration: file.to_owned(), board, requests, reloads, shutdown };
    let ended = daemon::run(config, RunOptions { until_caught_up }, controls).await;
    stop_serving.cancel();
    listening.abort();
    ended?;
    Ok(Outcome::Done)
}

/// What the listeners answer from.
pub(super) fn api(
    config: &Config,
    file: &Path,
    board: &StatusBoard,
    requests: &Requests,
    reloader: Reloader,
) -> Result<Api, CommandError> {
    let built_in = config.databases.values().any(|database| matches!(database, Database::Core(_)));
    Ok(Api {
        core: if built_in { Some(BuiltIn::open(config, file)?) } else { None },
        board: board.clone(),
        requests: requests.clone(),
        verifications: Verifications::default(),
        reloader,
        metrics: telemetry::init_metrics()?,
    })
}

/// Opens both listeners before anything else, so that a daemon that cannot be reached does not start.
pub(super) async fn serve(config: &Config, api: Api, stop: &CancellationToken) -> Result<(), CommandError> {
    let address = config.listen.http;
    let failed = |source| ServeError::Address { address, source };
    let tcp = TcpListener::bind(address).await.map_err(failed)?;
    let control = http::bind_control_socket(&config.control_socket())?;
    let access =
        Access::Token { token: config.listen.token.clone(), address: tcp.local_addr().map_err(failed)? };
    let tls =
        config.listen.tls.as_ref().map(TlsFiles::gateway_files).map(http::load_certificate).transpose()?;
    tokio::spawn(http::serve_tcp(tcp, tls, http::router(api.clone(), access), stop.clone()));
    tokio::spawn(http::serve_control_socket(control, http::router(api, Access::Owner), stop.clone()));
    Ok(())
}

/// The first SIGINT or SIGTERM asks for an orderly end; the second does not wait for it. SIGHUP reads the configuration
/// anew.
async fn heed_signals(
    (mut interrupt, mut terminate, mut hang_up): (Signal, Signal, Signal),
    shutdown: CancellationToken,
    reloader: Reloader,
) {
    let mut next = async || {
        loop {
            tokio::select! {
                _ = interrupt.recv() => return,
                _ = terminate.recv() => return,
                _ = hang_up.recv() => {
                    let reloader = reloader.clone();
                    // On its own: a reload may take as long as a sync's orderly end, and a signal must not wait for it.
                    tokio::spawn(async move {
                        if let Err(reason) = reloader.reload().await {
                            tracing::error!("{reason}");
                        }
                    });
                }
            }
        }
    };
    next().await;
    tracing::info!("stopping; once more to stop at once");
    shutdown.cancel();
    next().await;
    // Nothing is lost: what is not committed comes again, as after any crash.
    tracing::warn!("stopped at once");
    let _ = io::Write::flush(&mut io::stderr());
    std::process::exit(INTERRUPTED.into());
}
