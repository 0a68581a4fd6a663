//! `global/pg_control`: where Postgres writes down what a start has to begin with.
//!
//! ```text
//!   0 system identifier (8)   8 version (4)   16 state (4)   32 checkpoint (8)   40 redo (8)   48 timeline (4)
//!   136 minimum recovery point (8)   144 its timeline (4)
//!   216 bytes of a block (4)   220 blocks of a segment (4)   252 version of page checksums (4)   …   CRC-32C of all before it (4)
//! ```
//!
//! Read for every manifest, because recovery begins at the redo position and the WAL from there on has to
//! be kept. Written in two cases.
//!
//! The pages are those of a clean stop, and the log goes on behind it: a compute was started from them and
//! ended before its first cut. Postgres believes the word "shut down", replays nothing, and writes
//! over what was acknowledged since. So the file says "in production", which is what a crash leaves.
//!
//! A branch starts at a point of the past. Postgres then has to
//! refuse anything short of the position its pages may already contain, and the field for that position
//! is the minimum recovery point (`InitWalRecovery` and `CheckRecoveryConsistency` in
//! `xlogrecovery.c`). A `backup_label` cannot say it: it makes Postgres wait for the end-of-backup record of
//! `pg_basebackup`, which no cut has.
//!
//! The layout is that of `catalog/pg_control.h` on a 64-bit little-endian machine. Each version number is
//! known with the place of its CRC, and the CRC is checked before anything is believed.

use wal_decoder::Lsn;

use crate::{CoreError, Result};

/// Where it lies in the data directory.
pub(crate) const PATH: &str = "global/pg_control";

const VERSION: usize = 8;
const STATE: usize = 16;
const CHECKPOINT: usize = 32;
const REDO: usize = 40;
const TIMELINE: usize = 48;
const MINIMUM_RECOVERY: usize = 136;
const MINIMUM_RECOVERY_TIMELINE: usize = 144;
const BLOCK_BYTES: usize = 216;
const SEGMENT_BLOCKS: usize = 220;
const CHECKSUM_VERSION: usize = 252;

/// `DB_SHUTDOWNED`, `DB_IN_ARCHIVE_RECOVERY` and `DB_IN_PRODUCTION` of `DBState`.
const SHUT_DOWN: u32 = 1;
const IN_ARCHIVE_RECOVERY: u32 = 5;
const IN_PRODUCTION: u32 = 6;

/// A `pg_control` whose CRC is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControlFile {
    bytes: Vec<u8>,
    crc_at: usize,
}

impl ControlFile {
    /// Believes `bytes` once version and CRC are right.
    ///
    /// # Errors
    /// It is of another version, cut short or damaged.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<ControlFile> {
        let refused = |problem: String| CoreError::ControlFile { problem };
        let version = u32_at(&bytes, VERSION).ok_or_else(|| refused("it is cut short".to_owned()))?;
        // PostgreSQL 13 to 17 wrote one layout, 17 with the WAL level in what had been padding; 18 put the signedness of
        // char before the nonce.
        let crc_at = match version {
            1300 | 1700 => 288,
            1800 => 292,
            other => return Err(refused(format!("its version {other} is not known"))),
        };
        let (Some(covered), Some(written)) = (bytes.get(..crc_at), u32_at(&bytes, crc_at)) else {
            return Err(refused("it is cut short".to_owned()));
        };
        if crc32c::crc32c(covered) != written {
            return Err(refused("its checksum is wrong".to_owned()));
        }
        Ok(ControlFile { bytes, crc_at })
    }

    /// What names the cluster for ever.
    pub(crate) fn system_identifier(&self) -> u64 {
        u64_at(&self.bytes, 0).unwrap_or_default()
    }

    /// Bytes of a block, and blocks of a segment.
    pub(crate) fn sizes(&self) -> (u32, u32) {
        let field = |at| u32_at(&self.bytes, at).unwrap_or_default();
        (field(BLOCK_BYTES), field(SEGMENT_BLOCKS))
    }

    /// Whether pages carry checksums.
    pub(crate) fn has_checksums(&self) -> bool {
        u32_at(&self.bytes, CHECKSUM_VERSION).is_some_and(|version| version != 0)
    }

    /// Where recovery begins.
    pub(crate) fn redo(&self) -> Lsn {
        Lsn(u64_at(&self.bytes, REDO).unwrap_or_default())
    }

    /// Where the record of the last checkpoint begins.
    pub(crate) fn checkpoint(&self) -> Lsn {
        Lsn(u64_at(&self.bytes, CHECKPOINT).unwrap_or_default())
    }

    /// The timeline of that checkpoint.
    pub(crate) fn timeline(&self) -> u32 {
        u32_at(&self.bytes, TIMELINE).unwrap_or_default()
    }

    /// Whether the server went down in order: then its start needs no recovery.
    pub(crate) fn is_shut_down(&self) -> bool {
        u32_at(&self.bytes, STATE) == Some(SHUT_DOWN)
    }

    /// The same file as a crash leaves it: the next start replays what follows the last checkpoint.
    pub(crate) fn after_a_crash(mut self) -> ControlFile {
        self.put(STATE, &IN_PRODUCTION.to_le_bytes());
        self.sealed()
    }

    /// The same file for a recovery that may not end before `minimum`.
    pub(crate) fn recovering_to_at_least(mut self, minimum: Lsn) -> ControlFile {
        let timeline = self.timeline();
        self.put(STATE, &IN_ARCHIVE_RECOVERY.to_le_bytes());
        self.put(MINIMUM_RECOVERY, &minimum.0.to_le_bytes());
        self.put(MINIMUM_RECOVERY_TIMELINE, &timeline.to_le_bytes());
        self.sealed()
    }

    fn sealed(mut self) -> ControlFile {
        let crc = crc32c::crc32c(self.bytes.get(..self.crc_at).unwrap_or_default());
        let crc_at = self.crc_at;
        self.put(crc_at, &crc.to_le_bytes());
        self
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `parse` has seen that all fields lie inside.
    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(version: u32, crc_at: usize) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        bytes[0..8].copy_from_slice(&77_u64.to_le_bytes());
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[16..20].copy_from_slice(&6_u32.to_le_bytes());
        bytes[32..40].copy_from_slice(&0x1700450_u64.to_le_bytes());
        bytes[40..48].copy_from_slice(&0x17003C8_u64.to_le_bytes());
        bytes[48..52].copy_from_slice(&3_u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn both_layouts_are_read_and_written_back_with_a_right_checksum() {
        for (version, crc_at) in [(1300, 288), (1700, 288), (1800, 292)] {
            let read = ControlFile::parse(sample(version, crc_at)).unwrap();
            assert_eq!((read.timeline(), read.is_shut_down()), (3, false));
            assert_eq!((read.checkpoint(), read.redo()), (Lsn(0x1700450), Lsn(0x17003C8)));
            let patched = read.recovering_to_at_least(Lsn(0x1700698));
            let again = ControlFile::parse(patched.bytes().to_vec()).unwrap();
            assert_eq!(u64_at(again.bytes(), MINIMUM_RECOVERY), Some(0x1700698));
            assert_eq!(u32_at(again.bytes(), MINIMUM_RECOVERY_TIMELINE), Some(3));
            assert_eq!(u32_at(again.bytes(), STATE), Some(IN_ARCHIVE_RECOVERY));
            let crashed = ControlFile::parse(again.after_a_crash().bytes().to_vec()).unwrap();
            assert_eq!(u32_at(crashed.bytes(), STATE), Some(IN_PRODUCTION));
        }
    }

    #[test]
    fn a_damaged_or_unknown_control_file_is_refused() {
        for at in 0..296 {
            let mut bytes = sample(1800, 292);
            bytes[at] ^= 1;
            assert!(ControlFile::parse(bytes).is_err(), "byte {at}");
        }
        for length in [0, 11, 40, 291, 295] {
            assert!(ControlFile::parse(sample(1800, 292)[..length].to_vec()).is_err(), "{length}");
        }
        assert!(ControlFile::parse(sample(1900, 292)).is_err());
    }
}
