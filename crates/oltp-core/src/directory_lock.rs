//! One process per directory: an `flock` on a file in it that names its holder.
//!
//! The kernel releases it when the process ends, however it ends. Whoever lets go while the process lives on has to
//! say so: a child that is being started at that moment holds a copy of the open file until it has become another
//! program, and closing ours would leave the lock to it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::{CoreError, Result};

/// Longer is no process id.
const HOLDER_LIMIT: u64 = 20;

/// Held until it is dropped.
#[derive(Debug)]
pub(crate) struct DirectoryLock(File);

impl DirectoryLock {
    /// Takes the lock `name` of `directory` and writes our process id into it.
    ///
    /// # Errors
    /// [`CoreError::AlreadyOpen`] with the holder's process id; or the file cannot be made, locked or written.
    pub(crate) fn take(directory: &Path, name: &str) -> Result<DirectoryLock> {
        let path = directory.join(name);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(CoreError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(CoreError::AlreadyOpen {
                    directory: directory.to_owned(),
                    holder: holder(&mut file),
                });
            }
            Err(TryLockError::Error(error)) => return Err(CoreError::io("lock", path)(error)),
        }
        file.set_len(0).map_err(CoreError::io("write", &path))?;
        writeln!(file, "{}", std::process::id()).map_err(CoreError::io("write", &path))?;
        Ok(DirectoryLock(file))
    }

    /// Whether anybody holds the lock `name` of `directory`. It is taken for a moment to find out, so that whoever
    /// wants it at that moment has to ask again.
    ///
    /// # Errors
    /// The file cannot be opened or looked at.
    pub(crate) fn is_held(directory: &Path, name: &str) -> Result<bool> {
        let path = directory.join(name);
        let file = File::open(&path).map_err(CoreError::io("open", &path))?;
        match file.try_lock_shared() {
            Ok(()) => {
                drop(DirectoryLock(file));
                Ok(false)
            }
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(CoreError::io("look at", path)(error)),
        }
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "the lock of a directory stays until this process ends");
        }
    }
}

/// What the holder wrote only makes the message better; the refusal stands without it.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(HOLDER_LIMIT).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_the_firsts_process_id_and_comes_in_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let held = DirectoryLock::take(folder.path(), "lock").unwrap();
        assert!(DirectoryLock::is_held(folder.path(), "lock").unwrap());
        let error = DirectoryLock::take(folder.path(), "lock").unwrap_err();
        let us = std::process::id().to_string();
        assert!(matches!(&error, CoreError::AlreadyOpen { holder, .. } if *holder == us), "{error}");
        drop(held);
        assert!(!DirectoryLock::is_held(folder.path(), "lock").unwrap());
        DirectoryLock::take(folder.path(), "lock").unwrap();
    }

    #[test]
    fn a_child_with_a_copy_of_the_file_does_not_keep_a_lock_that_was_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let held = DirectoryLock::take(folder.path(), "lock").unwrap();
        let copy = held.0.try_clone().unwrap();
        let mut child = std::process::Command::new("/bin/sleep").arg("600").stdin(copy).spawn().unwrap();
        drop(held);
        let again = DirectoryLock::take(folder.path(), "lock");
        child.kill().unwrap();
        child.wait().unwrap();
        again.unwrap();
    }
}
