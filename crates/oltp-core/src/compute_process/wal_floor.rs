//! From where on a cluster still needs its WAL: the lower end of what every start puts into `pg_wal`.
//!
//! Recovery reads from the redo position. Logical slots read from their restart position, which may lie
//! far before it, and a walsender looks nowhere but in `pg_wal`. Both stand in files of the data
//! directory, and both only ever move forward. So what is read *before* a cut is at or below what the cut
//! contains, and the floor may be too low, which costs a segment, but never too high, which would cost a
//! slot.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use wal_decoder::Lsn;

use crate::control_file::{self, ControlFile};
use crate::{CoreError, Result};

/// Where the slots lie in the data directory, a directory each with a file `state`.
const SLOTS: &str = "pg_replslot";

/// `ReplicationSlotOnDisk` of `slot.c`: magic, checksum, version, length, then the name (64 bytes), the
/// database, the persistency, two transaction ids, and the restart position.
const SLOT_MAGIC: u32 = 0x0105_1CA1;
const SLOT_RESTART: usize = 16 + 64 + 4 * 4;

/// A slot file is some 200 bytes; nothing longer is read.
const SLOT_FILE_LIMIT: u64 = 64 * 1024;

/// The lowest position that the cluster in `data` needs, as its files say it now.
///
/// # Errors
/// A file cannot be read or is not what it should be.
pub(crate) fn wal_floor(data: &Path) -> Result<Lsn> {
    let mut floor = read_control_file(data)?.redo();
    let slots = data.join(SLOTS);
    for entry in std::fs::read_dir(&slots).map_err(CoreError::io("list", &slots))? {
        let path = entry.map_err(CoreError::io("list", &slots))?.path().join("state");
        if let Some(restart) = slot_restart(&path)? {
            floor = floor.min(restart);
        }
    }
    Ok(floor)
}

/// The cluster's control file.
///
/// # Errors
/// It cannot be read, or is damaged or of an unknown version.
pub(crate) fn read_control_file(data: &Path) -> Result<ControlFile> {
    let path = data.join(control_file::PATH);
    let bytes = std::fs::read(&path).map_err(CoreError::io("read", &path))?;
    ControlFile::parse(bytes)
}

/// Puts a control file in place of the one in `data`, whose server does not run.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write_control_file(data: &Path, control: &ControlFile) -> Result<()> {
    let path = data.join(control_file::PATH);
    let file = std::fs::OpenOptions::new().write(true).open(&path).map_err(CoreError::io("open", &path))?;
    file.write_all_at(control.bytes(), 0).map_err(CoreError::io("write", &path))
}

/// The restart position in a slot's file; nothing for a slot that is just being made or dropped, and
/// for one that holds no WAL.
fn slot_restart(path: &Path) -> Result<Option<Lsn>> {
    let bytes = match read_bounded(path) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(CoreError::io("read", path)(error)),
    };
    let number = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    let restart = bytes.get(SLOT_RESTART..).and_then(|rest| rest.first_chunk::<8>());
    match (number(0), restart) {
        (Some(magic), Some(restart)) if u32::from_le_bytes(*magic) == SLOT_MAGIC => {
            Ok(Some(Lsn(u64::from_le_bytes(*restart))).filter(|restart| *restart != Lsn::ZERO))
        }
        _ => Err(CoreError::io("understand the replication slot", path)(ErrorKind::InvalidData.into())),
    }
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(SLOT_FILE_LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_without_a_file_holds_nothing_and_a_damaged_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert_eq!(slot_restart(&path).unwrap(), None);
        std::fs::write(&path, [0; 200]).unwrap();
        slot_restart(&path).unwrap_err();
        let mut slot = vec![0; 200];
        slot[..4].copy_from_slice(&SLOT_MAGIC.to_le_bytes());
        std::fs::write(&path, &slot).unwrap();
        assert_eq!(slot_restart(&path).unwrap(), None);
        slot[96..104].copy_from_slice(&0x1700698_u64.to_le_bytes());
        std::fs::write(&path, &slot).unwrap();
        assert_eq!(slot_restart(&path).unwrap(), Some(Lsn(0x1700698)));
        std::fs::write(&path, &slot[..100]).unwrap();
        slot_restart(&path).unwrap_err();
    }
}
