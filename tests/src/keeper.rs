//! A WAL keeper that is no child of the daemon: one of three.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::daemon::{binary, free_port};

/// `tidewater keeper` with a folder and a port of its own; killed when dropped.
#[derive(Debug)]
pub struct KeeperProcess {
    folder: PathBuf,
    port: u16,
    process: Option<Child>,
}

impl KeeperProcess {
    /// One that does not run yet.
    pub fn new(folder: &Path) -> KeeperProcess {
        KeeperProcess { folder: folder.to_owned(), port: free_port(), process: None }
    }

    /// Where it listens, for `core.keepers`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it, unless it runs.
    pub fn start(&mut self) {
        if self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none()) {
            return;
        }
        std::fs::create_dir_all(&self.folder).unwrap();
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = Command::new(binary());
        command.arg("keeper").arg("--dir").arg(self.folder.join("wal")).args(["--listen", &self.address()]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true);
        self.process = Some(command.spawn().unwrap());
    }

    /// Ends it the hard way.
    pub async fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await.unwrap();
        }
    }

    /// All that it knew is gone; it must not run.
    pub fn lose_disk(&mut self) {
        assert!(self.process.is_none(), "it runs");
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}
