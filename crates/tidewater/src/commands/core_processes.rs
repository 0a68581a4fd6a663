//! `tidewater compute run|keeper|gateway`: the core's processes, which the daemon and each other start.
//!
//! Each lives until it is told to end, by SIGTERM or as the module of its work says, and logs to standard
//! error, which whoever starts it has sent to a file.

use super::{CommandError, Outcome};
use crate::built_in::{BuiltIn, Claim, GATEWAY, KEEPER};
use crate::config::{Config, TlsFiles};
use oltp_core::compute_process;
use oltp_core::computes::BranchWaker;
use oltp_core::gateway::{Gateway, GatewayLimits, GatewayOptions, Unencrypted};
use oltp_core::ids::{BranchId, ProjectName};
use oltp_core::wal_keeper::{KeeperEndpoint, KeeperOptions, KeeperServer};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs a branch until it is put to sleep.
pub(super) async fn compute(
    config: &Config,
    file: &Path,
    project: &str,
    branch: BranchId,
) -> Result<Outcome, CommandError> {
    let shutdown = ended_by_signals()?;
    let core = BuiltIn::open(config, file)?;
    let project = ProjectName::new(project).map_err(CommandError::core)?;
    let spec = core.compute_spec(config, &project, branch).await?;
    compute_process::run(spec, shutdown).await.map_err(CommandError::core)?;
    Ok(Outcome::Done)
}

/// Keeps the WAL of all branches.
pub(super) async fn keeper(
    directory: PathBuf,
    listen: &str,
    found_in: Option<&Path>,
) -> Result<Outcome, CommandError> {
    let shutdown = ended_by_signals()?;
    let endpoint: KeeperEndpoint = listen.parse().map_err(CommandError::core)?;
    // One that the daemon starts is found by its lock; any other by whoever knows its address.
    let mut claim = match found_in {
        Some(state) => Some(Claim::take(state, KEEPER).await?),
        None => None,
    };
    let options = KeeperOptions { directory, listen: endpoint, tls: None, token: None };
    let server = KeeperServer::bind(options).await.map_err(CommandError::core)?;
    if let Some(claim) = &mut claim {
        claim.announce(listen)?;
    }
    server.run(shutdown.cancelled_owned()).await;
    Ok(Outcome::Done)
}

/// Takes the connections of all databases.
pub(super) async fn gateway(config: &Config, file: &Path) -> Result<Outcome, CommandError> {
    let shutdown = ended_by_signals()?;
    let mut claim = Claim::take(&config.state_dir, GATEWAY).await?;
    let core = BuiltIn::open(config, file)?;
    let settings = core.settings();
    let options = GatewayOptions {
        listen: settings.listen,
        tls: settings.tls.as_ref().map(TlsFiles::gateway_files),
        unencrypted: Unencrypted::Loopback,
        limits: GatewayLimits::default(),
    };
    let waker = BranchWaker::new(core.pages().clone(), core.computes().clone());
    let gateway = Gateway::bind(options, Arc::new(waker)).await.map_err(CommandError::core)?;
    claim.announce(&gateway.address().to_string())?;
    gateway.serve(shutdown).await;
    Ok(Outcome::Done)
}

fn ended_by_signals() -> Result<CancellationToken, io::Error> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let shutdown = CancellationToken::new();
    let ending = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        ending.cancel();
    });
    Ok(shutdown)
}
