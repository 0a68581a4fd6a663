//! A configuration taken up while the daemon runs.
//!
//! Whoever asks (SIGHUP, the API) sends the file's new content to the daemon and hears what came of it. A file that
//! cannot be read or used never reaches the daemon: it goes on with what it has.

use crate::config::{Config, ConfigError};
use miette::{GraphicalReportHandler, GraphicalTheme};
use std::path::PathBuf;
use tokio::sync::{mpsc, oneshot};

/// A new configuration on its way to the daemon.
#[derive(Debug)]
pub struct Reload {
    /// What the file says now.
    pub config: Config,
    /// What changed, or why nothing did.
    pub answer: oneshot::Sender<Result<String, String>>,
}

/// Reads the configuration anew for the daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reloader {
    file: PathBuf,
    reloads: mpsc::Sender<Reload>,
}

impl Reloader {
    /// Reads `file`; the daemon has the receiving end.
    pub fn new(file: PathBuf) -> (Reloader, mpsc::Receiver<Reload>) {
        let (reloads, received) = mpsc::channel(1);
        (Reloader { file, reloads }, received)
    }

    /// Reads the file and has the daemon follow it. An error says that the earlier configuration stays in force, and
    /// why.
    pub async fn reload(&self) -> Result<String, String> {
        let kept = |reason: &str| format!("the earlier configuration stays in force: {reason}");
        let config = match Config::load(&self.file) {
            Ok(config) => config,
            Err(error) => return Err(kept(&report(&error))),
        };
        let (answer, outcome) = oneshot::channel();
        if self.reloads.send(Reload { config, answer }).await.is_err() {
            return Err(kept("the daemon is stopping"));
        }
        match outcome.await {
            Ok(Ok(changes)) => Ok(changes),
            Ok(Err(reason)) => Err(kept(&reason)),
            Err(_) => Err(kept("the daemon is stopping")),
        }
    }
}

/// The mistakes with their lines, as the command line shows them, for a log and not for a terminal.
fn report(error: &ConfigError) -> String {
    let mut text = String::new();
    let plain = GraphicalReportHandler::new_themed(GraphicalTheme::none());
    match plain.render_report(&mut text, error) {
        Ok(()) => text,
        Err(_) => error.to_string(),
    }
}
