//! What a keeper must not forget of a log, in one small file.
//!
//! ```text
//!   tidewater-keeper-log 1\n
//!   <CRC-32C of the JSON, 8 hex digits>\n
//!   {"promised": 7, "candidate": …, "system_identifier": …, "start": "0/…", "verified": "0/…", "history": […]}\n
//! ```
//!
//! The file is replaced whole, by a rename, and synced before anything that rests on it is answered. A file
//! that cannot be read is an error and never an empty log: what it held may be promises that others rely on.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wal_decoder::Lsn;

use super::crash_point::crash_point;
use super::term_history::TermHistory;
use crate::ids::Term;
use crate::{CoreError, Result, private_file};

const NAME: &str = "state";
const MAGIC: &str = "tidewater-keeper-log 1";
/// A history of a hundred thousand unarchived terms; real ones have one or two.
const LIMIT: u64 = 16 << 20;

/// The contents of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogState {
    /// No proposer of a lower term is served.
    pub(crate) promised: Term,
    /// Who it was promised to: only that proposer may ask for the same term again.
    #[serde(with = "super::uuid_text")]
    pub(crate) candidate: Uuid,
    /// The cluster whose WAL this is; 0 before the first byte.
    pub(crate) system_identifier: u64,
    /// Everything below is archived; the end of a record.
    #[serde(with = "super::lsn_text")]
    pub(crate) start: Lsn,
    /// The end of a record up to which the log is known to be whole and on disk.
    #[serde(with = "super::lsn_text")]
    pub(crate) verified: Lsn,
    /// Where that record begins, when known.
    #[serde(with = "super::optional_lsn_text")]
    pub(crate) verified_record: Option<Lsn>,
    /// Whose terms the bytes are.
    pub(crate) history: TermHistory,
}

impl LogState {
    /// A log in which nothing was ever written or promised.
    pub(crate) fn empty() -> LogState {
        LogState {
            promised: Term(0),
            candidate: Uuid::nil(),
            system_identifier: 0,
            start: Lsn::ZERO,
            verified: Lsn::ZERO,
            verified_record: None,
            history: TermHistory::default(),
        }
    }

    /// Reads the state of the log in `directory`; `None` when there is none.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub(crate) fn load(directory: &Path) -> Result<Option<LogState>> {
        let path = directory.join(NAME);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CoreError::Io { action: "read", path, source }),
        };
        let mut bytes = Vec::new();
        file.take(LIMIT).read_to_end(&mut bytes).map_err(CoreError::io("read", &path))?;
        LogState::decode(&bytes).map(Some).map_err(|problem| damaged(path, problem))
    }

    fn decode(bytes: &[u8]) -> Result<LogState, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
        let mut parts = text.splitn(3, '\n');
        let (magic, sum, json) = (parts.next(), parts.next(), parts.next());
        if magic != Some(MAGIC) {
            return Err(format!("it does not begin with `{MAGIC}`"));
        }
        let json = json.and_then(|json| json.strip_suffix('\n')).ok_or("it is cut off")?;
        let right = sum.and_then(|sum| u32::from_str_radix(sum, 16).ok());
        if right != Some(crc32c::crc32c(json.as_bytes())) {
            return Err("its checksum is wrong".to_owned());
        }
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    fn encode(&self) -> Result<String, serde_json::Error> {
        let json = serde_json::to_string(self)?;
        Ok(format!("{MAGIC}\n{:08x}\n{json}\n", crc32c::crc32c(json.as_bytes())))
    }

    /// Replaces the file and returns once the new one will survive a power cut.
    ///
    /// # Errors
    /// The file system refuses; the old state then still counts.
    pub(crate) fn save(&self, directory: &Path) -> Result<()> {
        let (path, staged) = (directory.join(NAME), directory.join("state.new"));
        let text = self.encode().map_err(|error| damaged(path.clone(), error.to_string()))?;
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&staged)
            .map_err(CoreError::io("create", &staged))?;
        file.write_all(text.as_bytes()).map_err(CoreError::io("write", &staged))?;
        file.sync_all().map_err(CoreError::io("flush", &staged))?;
        crash_point!("keeper-state-staged");
        fs::rename(&staged, &path).map_err(CoreError::io("put in place", &path))?;
        private_file::sync_directory_of(&path)?;
        crash_point!("keeper-state-saved");
        Ok(())
    }
}

fn damaged(path: PathBuf, problem: String) -> CoreError {
    CoreError::KeeperStateDamaged { path, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_was_changed_anywhere_is_refused_and_never_taken_for_an_empty_log() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(LogState::load(folder.path()).unwrap(), None);
        let state = LogState { promised: Term(7), start: Lsn(0x1_0000_0028), ..LogState::empty() };
        state.save(folder.path()).unwrap();
        assert_eq!(LogState::load(folder.path()).unwrap(), Some(state));

        let path = folder.path().join(NAME);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let error = LogState::load(folder.path()).unwrap_err();
            assert!(matches!(error, CoreError::KeeperStateDamaged { .. }), "byte {at}: {error}");
            fs::write(&path, &good[..at]).unwrap();
            LogState::load(folder.path()).unwrap_err();
        }
    }
}
