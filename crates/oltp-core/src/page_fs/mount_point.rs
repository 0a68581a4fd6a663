//! Mount points: what lies on them, and taking it away.
//!
//! A process that is killed leaves its mount behind: the kernel answers every access with "not connected"
//! until somebody detaches it. Only such dead mounts of our own kind are detached; a living one belongs
//! to a process that serves it.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::{CoreError, Result};

/// What `/proc/self/mountinfo` names as the source of our mounts.
pub(super) const SOURCE: &str = "tidewater";

/// A living mount answers at once. One that does not is not known to be dead.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Detaches what killed processes left mounted at or below `directory`, and says where.
///
/// # Errors
/// The list of mounts cannot be read, or a dead mount cannot be detached.
pub fn detach_stale_mounts(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut detached = Vec::new();
    for point in mounts()? {
        if point.starts_with(directory) && !is_alive(&point) {
            detach(&point)?;
            tracing::warn!(mount_point = %point.display(), "detached what a killed process had left mounted");
            detached.push(point);
        }
    }
    Ok(detached)
}

/// Detaches what a killed process left mounted there, and makes sure that nothing living is.
///
/// # Errors
/// Something living is mounted there, or the operating system refuses.
pub(crate) fn free_mount_point(point: &Path) -> Result<()> {
    detach_stale_mounts(point)?;
    if is_in_use(point)? {
        return Err(CoreError::MountPointInUse { mount_point: point.to_owned() });
    }
    Ok(())
}

/// True when a living page filesystem is mounted exactly there.
fn is_in_use(point: &Path) -> Result<bool> {
    Ok(mounts()?.iter().any(|mounted| mounted == point) && is_alive(point))
}

/// Takes the mount out of the directory tree; processes that have files open keep them until they close
/// them.
pub(super) fn detach(point: &Path) -> Result<()> {
    match umount2(point, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL) => Ok(()), // EINVAL: nothing is mounted there any more
        Err(errno) => Err(CoreError::io("detach the mount at", point)(errno.into())),
    }
}

/// Every mount of ours that this process sees, the innermost first.
fn mounts() -> Result<Vec<PathBuf>> {
    let list = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(list).map_err(CoreError::io("read", list))?;
    let mut points: Vec<PathBuf> = text.split(|byte| *byte == b'\n').filter_map(parse).collect();
    points.reverse();
    Ok(points)
}

/// `36 35 98:0 / /mount/point rw,noatime shared:1 - fuse tidewater rw`: field 5, when type and source are
/// ours.
fn parse(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = fields.nth(4)?;
    let mut after_dash = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source) = (after_dash.next()?, after_dash.next()?);
    (kind.starts_with(b"fuse") && source == SOURCE.as_bytes()).then(|| unescape(point))
}

/// The kernel writes blanks, tabs, line ends and backslashes as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.first_chunk::<3>().filter(|_| *first == b'\\');
        let escaped = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

fn is_alive(point: &Path) -> bool {
    let (answer, answered) = mpsc::channel();
    let point = point.to_owned();
    // A thread of its own: a process that is stopped, not dead, would hold us up.
    std::thread::spawn(move || {
        // What the kernel knows of the root it goes on answering; the state of the disk it has to ask for.
        answer.send(rustix::fs::statvfs(&point).err() != Some(rustix::io::Errno::NOTCONN)).is_ok()
    });
    answered.recv_timeout(ANSWER_LIMIT).unwrap_or(true)
}

/// Whether this machine has FUSE at all.
pub(super) fn require_fuse() -> Result<()> {
    let device = Path::new("/dev/fuse");
    match std::fs::metadata(device) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CoreError::NoFuse),
        Err(error) => Err(CoreError::io("look at", device)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_our_own_kind_are_looked_at() {
        let line = b"36 35 0:50 / /state/a\\040b/mount rw,nosuid shared:1 - fuse tidewater rw,user_id=0";
        assert_eq!(parse(line), Some(PathBuf::from("/state/a b/mount")));
        assert_eq!(parse(b"36 35 0:50 / /state rw,nosuid - fuse.sshfs host:/ rw"), None);
        assert_eq!(parse(b"36 35 0:50 / /state rw,nosuid - ext4 /dev/vda rw"), None);
        assert_eq!(parse(b""), None);
    }
}
