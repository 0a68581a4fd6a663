//! One daemon per state folder.

use super::CommandError;
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A daemon that was killed while it started a process leaves the lock to that one until it has become another program.
const LEFT_BEHIND: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Held for as long as the daemon runs. The kernel releases it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct StateLock {
    path: PathBuf,
    file: File,
}

impl Drop for StateLock {
    /// Closing the file is not enough: a child that is being started at this moment holds a copy of it.
    fn drop(&mut self) {
        if let Err(error) = flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!(path = %self.path.display(), %error, "the state folder stays locked until this process ends");
        }
    }
}

impl StateLock {
    /// Makes the folder if need be, for this user alone, and takes its lock.
    pub(super) async fn take(folder: &Path) -> Result<StateLock, CommandError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| CommandError::File { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
        let path = folder.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(failed(&path))?;
        let deadline = Instant::now() + LEFT_BEHIND;
        let locked = loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => sleep(LOOK_AGAIN).await,
                outcome => break outcome,
            }
        };
        match locked {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Who holds it is a help, not the point: an unreadable lock is still held.
                let read = (&file).take(20).read_to_string(&mut pid);
                let pid = read.ok().map(|_| pid.trim().to_owned()).filter(|pid| !pid.is_empty());
                return Err(CommandError::SecondDaemon { path, pid });
            }
            Err(errno) => return Err(failed(&path)(errno.into())),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed(&path))?;
        Ok(StateLock { path, file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_daemon_on_one_state_folder_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("deep/state");
        let held = StateLock::take(&state).await.unwrap();
        let refused = StateLock::take(&state).await.unwrap_err();
        assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
        drop(held);
        StateLock::take(&state).await.unwrap();
    }
}
