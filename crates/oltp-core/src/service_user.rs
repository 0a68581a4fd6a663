//! The user Postgres runs as.
//!
//! Postgres refuses to run as root, and rightly so. A daemon started by an ordinary user runs it as
//! itself. A daemon started by root gives it to `postgres` if the machine has that user, else to
//! `nobody`; once a cluster exists, its data directory's owner stays the one.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{CoreError, Result};

/// Used when the user database names nobody: the number Linux gives to "no user" everywhere.
const OVERFLOW_ID: u32 = 65534;

/// `/etc/passwd` is read up to here; a larger one is a machine we know nothing about.
const PASSWD_LIMIT: usize = 1 << 20;

/// An unprivileged user and the group it acts in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceUser {
    uid: u32,
    gid: u32,
    name: String,
    switch: bool,
}

impl ServiceUser {
    /// The user for a new cluster: oneself, or when root an unprivileged one.
    pub fn for_new_cluster() -> ServiceUser {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if uid != 0 {
            return ServiceUser { uid, gid, name: name_of(uid), switch: false };
        }
        let passwd = passwd();
        ["postgres", "nobody"]
            .into_iter()
            .find_map(|wanted| {
                entries(&passwd).find(|entry| entry.name == wanted && entry.uid != 0).map(|entry| {
                    ServiceUser { uid: entry.uid, gid: entry.gid, name: wanted.to_owned(), switch: true }
                })
            })
            .unwrap_or_else(|| ServiceUser {
                uid: OVERFLOW_ID,
                gid: OVERFLOW_ID,
                name: OVERFLOW_ID.to_string(),
                switch: true,
            })
    }

    /// The user for what lies in `directory`: its owner when we are root and it is somebody else's.
    ///
    /// # Errors
    /// The directory cannot be looked at.
    pub fn of_existing(directory: &Path) -> Result<ServiceUser> {
        let fresh = ServiceUser::for_new_cluster();
        let metadata = directory.metadata().map_err(CoreError::io("look at", directory))?;
        if !fresh.switch || metadata.uid() == 0 {
            return Ok(fresh);
        }
        Ok(ServiceUser {
            uid: metadata.uid(),
            gid: metadata.gid(),
            name: name_of(metadata.uid()),
            switch: true,
        })
    }

    /// The login name, or the number of a user that has none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The numbers of the user and its group.
    pub fn ids(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// The user and group to switch to before running a server program; nothing when we are that user.
    pub fn switch_to(&self) -> Option<(u32, u32)> {
        self.switch.then_some((self.uid, self.gid))
    }

    /// Gives `path` to this user, when that is not the one who made it.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn own(&self, path: &Path) -> Result<()> {
        match self.switch_to() {
            Some((uid, gid)) => std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .map_err(CoreError::io("change the owner of", path)),
            None => Ok(()),
        }
    }

    /// The first directory on the way to `path` that this user may not enter.
    ///
    /// Judged by owner, group and mode bits. An access list may say otherwise, so this explains a
    /// refusal or prepares for one; it does not itself refuse anything that works.
    pub fn barrier_before(&self, path: &Path) -> Option<PathBuf> {
        if !self.switch {
            return None;
        }
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut ways: Vec<&Path> = path.ancestors().skip(1).collect();
        ways.reverse();
        ways.into_iter()
            .find(|directory| directory.metadata().is_ok_and(|metadata| !self.may_enter(&metadata)))
            .map(Path::to_owned)
    }

    fn may_enter(&self, metadata: &std::fs::Metadata) -> bool {
        let bit = if metadata.uid() == self.uid {
            0o100
        } else if metadata.gid() == self.gid {
            0o010
        } else {
            0o001
        };
        metadata.mode() & bit != 0
    }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// The local user database; empty when it cannot be read, which the callers' fallbacks cover.
fn passwd() -> String {
    std::fs::read("/etc/passwd")
        .ok()
        .filter(|bytes| bytes.len() <= PASSWD_LIMIT)
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_default()
}

fn entries(passwd: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(PasswdEntry { name, uid, gid })
    })
}

fn name_of(uid: u32) -> String {
    let passwd = passwd();
    entries(&passwd)
        .find(|entry| entry.uid == uid)
        .map_or_else(|| uid.to_string(), |entry| entry.name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_service_user_is_never_root() {
        let user = ServiceUser::for_new_cluster();
        assert_ne!(user.uid, 0);
        assert!(!user.name().is_empty());
    }

    #[test]
    fn damaged_lines_of_the_user_database_are_passed_over() {
        let names: Vec<_> = entries("broken\nx:y\npostgres:x:101:104:,,,:/:/bin/sh\nn:x:-1:2:\n")
            .map(|entry| entry.name)
            .collect();
        assert_eq!(names, ["postgres"]);
    }

    #[test]
    fn a_closed_directory_on_the_way_is_named() {
        let closed = tempfile::tempdir().unwrap();
        std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let inside = closed.path().join("inside");
        std::fs::write(&inside, b"").unwrap();
        let stranger = ServiceUser { uid: 4_000_000, gid: 4_000_000, name: "stranger".into(), switch: true };
        assert_eq!(stranger.barrier_before(&inside), Some(closed.path().canonicalize().unwrap()));

        std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(stranger.barrier_before(&inside), None);
    }
}
