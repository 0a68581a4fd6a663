//! A directory, by a path that the service user can follow.
//!
//! A daemon started by root may keep its projects where only root can go, such as under a home
//! directory of mode 0700. Postgres, running as somebody else, could not walk there, although the
//! data directory itself is its own. Opening up the home is not ours to do. But an open directory
//! needs no walking: root opens it, Postgres inherits the handle, and `/proc/self/fd/N` names it.
//! After its start Postgres stays in its data directory and uses relative paths only.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::io::FdFlags;

use crate::service_user::ServiceUser;
use crate::{CoreError, Result};

/// Keep it until the program that uses [`ReachableDirectory::path`] has been spawned.
#[derive(Debug)]
pub(crate) struct ReachableDirectory {
    path: PathBuf,
    _inherited: Option<File>,
}

impl ReachableDirectory {
    pub(crate) fn open(directory: &Path, user: &ServiceUser) -> Result<ReachableDirectory> {
        let Some(barrier) = user.barrier_before(directory) else {
            return Ok(ReachableDirectory { path: directory.to_owned(), _inherited: None });
        };
        if !cfg!(target_os = "linux") {
            return Err(CoreError::DirectoryUnreachable {
                directory: directory.to_owned(),
                user: user.name().to_owned(),
                barrier,
            });
        }
        let handle = File::open(directory).map_err(CoreError::io("open", directory))?;
        // Rust opens everything close-on-exec; this one handle is there to be inherited.
        rustix::io::fcntl_setfd(&handle, FdFlags::empty())
            .map_err(|error| CoreError::io("hand on", directory)(error.into()))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
        Ok(ReachableDirectory { path, _inherited: Some(handle) })
    }

    /// The directory, as the spawned program can name it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
