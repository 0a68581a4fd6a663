//! The index's directory: who owns it, what its files are called, what may go.
//!
//! ```text
//!   LOCK              held for as long as anything of the index lives
//!   MANIFEST          which runs count, see `manifest`
//!   MANIFEST.new      the next manifest, until it is renamed
//!   run-000000000007  a run, see `run`
//! ```
//!
//! A run's file goes when its [`Run`](super::run::Run) is dropped without ever having been in a manifest.
//! What a killed process left behind goes when the index is opened next.

use super::error::{InPlace, KeyIndexError};
use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// An owned index directory.
#[derive(Debug)]
pub(super) struct IndexDirectory {
    path: PathBuf,
    next_run: AtomicU64,
    lock: File,
}

impl IndexDirectory {
    /// Takes the directory, creating it where it is missing.
    pub(super) fn own(path: &Path) -> Result<Self, KeyIndexError> {
        fs::create_dir_all(path).in_place("create", path)?;
        let lock_path = path.join("LOCK");
        let lock = File::create(&lock_path).in_place("create", &lock_path)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), next_run: AtomicU64::new(1), lock }),
            Err(TryLockError::WouldBlock) => Err(KeyIndexError::InUse { dir: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(source).in_place("lock", &lock_path),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn manifest(&self) -> PathBuf {
        self.path.join("MANIFEST")
    }

    pub(super) fn next_manifest(&self) -> PathBuf {
        self.path.join("MANIFEST.new")
    }

    pub(super) fn run(&self, number: u64) -> PathBuf {
        self.path.join(format!("run-{number:012}"))
    }

    /// A number that no run of this directory has, in this process or in the manifest.
    pub(super) fn new_run_number(&self) -> u64 {
        self.next_run.fetch_add(1, Ordering::Relaxed)
    }

    /// Numbers of new runs lie above `number`.
    pub(super) fn reserve_up_to(&self, number: u64) {
        self.next_run.fetch_max(number.saturating_add(1), Ordering::Relaxed);
    }

    /// Removes every run but these, and the rest of an unfinished commit.
    pub(super) fn remove_leftovers(&self, kept: &HashSet<u64>) -> Result<(), KeyIndexError> {
        let kept = kept.iter().map(|number| self.run(*number)).collect::<HashSet<_>>();
        for file in fs::read_dir(&self.path).in_place("list", &self.path)? {
            let path = file.in_place("list", &self.path)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if (name.starts_with("run-") && !kept.contains(&path)) || name == "MANIFEST.new" {
                fs::remove_file(&path).in_place("remove", &path)?;
            }
        }
        Ok(())
    }

    /// Removes the index. The manifest goes first: without it, no run counts.
    pub(super) fn clear(&self) -> Result<(), KeyIndexError> {
        let manifest = self.manifest();
        match fs::remove_file(&manifest) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).in_place("remove", &manifest);
            }
            _ => {}
        }
        self.remove_leftovers(&HashSet::new())
    }
}

impl Drop for IndexDirectory {
    /// The last part of the index is gone. Closing the file is not enough: a child process that is being
    /// started at this moment holds a copy of the handle, and with it the lock.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(dir = %self.path.display(), %error, "the lock of a key index stays for now");
        }
    }
}
