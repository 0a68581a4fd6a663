//! One log of a keeper: the WAL of one branch, on disk.
//!
//! ```text
//!   start ≤ verified ≤ flushed ≤ written
//!     │        │          │         └ bytes handed to the file system
//!     │        │          └ bytes that survive a power cut: what is acknowledged
//!     │        └ end of a record up to which a start need not look again
//!     └ everything below is in the archive
//! ```
//!
//! The invariant: **nothing is answered before what it rests on is on disk.** A promise is in the state file before
//! it is given, bytes are synced before they are acknowledged. After a crash the log ends with its last whole record:
//! acknowledged commits end at records, so they are there, and a record half written was acknowledged to nobody.
//!
//! Whoever writes must have been promised the newest term and have begun it, which brings the log into step: it is cut
//! where its history and the proposer's part. The steps of that are ordered so that a crash between any two leaves
//! a log that is what its state file says.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wal_decoder::Lsn;

use super::crash_point::crash_point;
use super::log_state::LogState;
use super::record_scanner::{RecordScanner, SEGMENT};
use super::segment_files::SegmentFiles;
use super::term_history::TermHistory;
use crate::ids::Term;
use crate::{CoreError, Result, private_file};

/// WAL is read back in pieces of this size.
const READ_BYTES: usize = 1 << 20;

/// What a keeper says of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// No proposer of a lower term is served.
    pub promised: Term,
    /// The cluster whose WAL it is; 0 before the first byte.
    pub system_identifier: u64,
    /// Everything below is in the archive.
    #[serde(with = "super::lsn_text")]
    pub start: Lsn,
    /// Everything below is on disk.
    #[serde(with = "super::lsn_text")]
    pub flushed: Lsn,
    /// The end of the last whole record on disk.
    #[serde(with = "super::lsn_text")]
    pub record_end: Lsn,
    /// Which term wrote what.
    pub history: TermHistory,
}

/// What a proposer says when its term begins on a keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermBegin {
    /// The term that was promised.
    pub term: Term,
    /// Who it was promised to.
    #[serde(with = "super::uuid_text")]
    pub candidate: Uuid,
    /// The cluster whose WAL will come.
    pub system_identifier: u64,
    /// Everything below is in the archive; the end of a record.
    #[serde(with = "super::lsn_text")]
    pub archived: Lsn,
    /// The history of the proposer's log; the last entry is this term's.
    pub history: TermHistory,
}

/// Why a keeper turned a proposer down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// A higher term, or the same to somebody else, was promised.
    StaleTerm {
        /// That term.
        promised: Term,
    },
    /// The log is another cluster's.
    OtherCluster {
        /// The system identifier of the log.
        found: u64,
    },
    /// The keeper's disk, or bytes that are no WAL: in words.
    Failed {
        /// What, and what mends it.
        problem: String,
    },
}

impl Refusal {
    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Refusal::StaleTerm { promised } => format!("it has promised term {promised} to another compute"),
            Refusal::OtherCluster { found } => {
                format!("the log it has under this name is of another cluster ({found})")
            }
            Refusal::Failed { problem } => problem.clone(),
        }
    }
}

impl From<CoreError> for Refusal {
    fn from(error: CoreError) -> Self {
        let mut problem = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            problem = format!("{problem}: {cause}");
            source = cause.source();
        }
        Refusal::Failed { problem }
    }
}

/// See the module's essay.
#[derive(Debug)]
pub(crate) struct KeeperLog {
    directory: PathBuf,
    state: LogState,
    files: SegmentFiles,
    /// The proposer of this term has begun and may append.
    begun: Option<Term>,
    written: Lsn,
    flushed: Lsn,
    /// At `written`.
    scanner: RecordScanner,
    /// The scanner when it was at `flushed`.
    flushed_scanner: RecordScanner,
    /// Bytes beyond `flushed` were written and given up: before another term writes there, they must go.
    stray: bool,
}

impl KeeperLog {
    /// Opens the log in `directory`, an empty one when there is none, and finds its end.
    ///
    /// # Errors
    /// The disk refuses, or the state file is damaged or missing beside segments.
    pub(crate) fn open(directory: &Path) -> Result<KeeperLog> {
        let mut files = SegmentFiles::new(directory);
        // Asking after a log makes none: its folder comes with its first promise.
        let (state, scanner) = if directory.exists() {
            files.remove_staged()?;
            recover(directory, &mut files)?
        } else {
            (LogState::empty(), RecordScanner::new(Lsn::ZERO, None))
        };
        let end = scanner.end();
        Ok(KeeperLog {
            directory: directory.to_owned(),
            state,
            files,
            begun: None,
            written: end,
            flushed: end,
            flushed_scanner: scanner.clone(),
            scanner,
            stray: false,
        })
    }

    pub(crate) fn status(&self) -> LogStatus {
        LogStatus {
            promised: self.state.promised,
            system_identifier: self.state.system_identifier,
            start: self.state.start,
            flushed: self.flushed,
            record_end: self.flushed_scanner.end(),
            history: self.state.history.clone(),
        }
    }

    /// No proposer of a lower term is served.
    pub(crate) fn promised(&self) -> Term {
        self.state.promised
    }

    /// Everything below is on disk.
    pub(crate) fn flushed(&self) -> Lsn {
        self.flushed
    }

    /// Promises to serve no lower term, and this one to nobody else.
    pub(crate) fn promise(&mut self, term: Term, candidate: Uuid) -> Result<LogStatus, Refusal> {
        let known = (term, candidate) == (self.state.promised, self.state.candidate);
        if !known {
            if term <= self.state.promised {
                return Err(Refusal::StaleTerm { promised: self.state.promised });
            }
            let mut state = self.state.clone();
            (state.promised, state.candidate) = (term, candidate);
            state.history = state.history.without_archived(state.start);
            self.make_folder()?;
            self.save(state)?;
            self.begun = None;
        }
        Ok(self.status())
    }

    /// Brings the log into step with the elected proposer's. Returns the position from which it needs WAL.
    pub(crate) fn begin(&mut self, begin: &TermBegin) -> Result<Lsn, Refusal> {
        if (begin.term, begin.candidate) != (self.state.promised, self.state.candidate) {
            return Err(Refusal::StaleTerm { promised: self.state.promised });
        }
        let known = self.state.system_identifier;
        if known != 0 && known != begin.system_identifier {
            return Err(Refusal::OtherCluster { found: known });
        }
        self.forget_unflushed();
        if self.stray {
            self.files.cut(self.flushed)?;
            self.stray = false;
        }
        let agree = self.state.history.agrees_until(self.flushed, &begin.history);
        match agree {
            Some(end) if end >= begin.archived && end >= self.state.start => self.cut(end)?,
            _ => self.restart_at(begin.archived)?,
        }
        let mut state = self.state.clone();
        state.system_identifier = begin.system_identifier;
        state.start = state.start.max(begin.archived);
        state.history = begin.history.without_archived(state.start);
        self.set_verified(&mut state);
        self.save(state)?;
        self.files.trim(self.state.start, self.flushed)?;
        self.begun = Some(begin.term);
        Ok(self.flushed)
    }

    /// Cuts the log at `end`, the start of another proposer's term.
    fn cut(&mut self, end: Lsn) -> Result<()> {
        if end >= self.flushed {
            return Ok(());
        }
        tracing::info!(log = %self.directory.display(), from = %self.flushed, to = %end, "cutting what no majority had");
        if end < self.state.verified {
            // First, so that no crash leaves a log that claims to be whole where it was cut.
            let state = LogState { verified: end, verified_record: None, ..self.state.clone() };
            self.save(state)?;
        }
        crash_point!("keeper-cut");
        self.files.cut(end)?;
        self.set_end(RecordScanner::new(end, None));
        Ok(())
    }

    /// Gives up what is there: it is archived, or no majority ever had it.
    fn restart_at(&mut self, start: Lsn) -> Result<()> {
        if !self.state.history.is_empty() {
            tracing::warn!(log = %self.directory.display(), from = %self.flushed, to = %start, "starting the log anew: all below is archived");
        }
        // A log without a history is empty, whatever files a crash leaves.
        let state = LogState {
            start,
            verified: start,
            verified_record: None,
            history: TermHistory::default(),
            ..self.state.clone()
        };
        self.save(state)?;
        crash_point!("keeper-restarting");
        self.files.clear()?;
        self.set_end(RecordScanner::new(start, None));
        Ok(())
    }

    fn set_end(&mut self, scanner: RecordScanner) {
        (self.written, self.flushed) = (scanner.end(), scanner.end());
        self.flushed_scanner = scanner.clone();
        self.scanner = scanner;
    }

    /// Writes bytes of the begun term. They are acknowledged only after [`KeeperLog::sync`].
    pub(crate) fn append(&mut self, term: Term, at: Lsn, bytes: &[u8]) -> Result<(), Refusal> {
        if self.begun != Some(term) || self.state.promised != term {
            return Err(Refusal::StaleTerm { promised: self.state.promised });
        }
        if at != self.written {
            let problem = format!("WAL from {at} does not continue its log, which ends at {}", self.written);
            return Err(Refusal::Failed { problem });
        }
        self.files.write(at, bytes)?;
        if let Err(broken) = self.scanner.push(bytes) {
            let problem = format!("what came is no WAL: at {}, {}", broken.at, broken.problem);
            return Err(Refusal::Failed { problem });
        }
        self.written.0 = self.written.0.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Makes everything that was appended last; returns the new end.
    pub(crate) fn sync(&mut self) -> Result<Lsn> {
        self.files.sync()?;
        let before = self.flushed;
        self.flushed = self.written;
        self.flushed_scanner = self.scanner.clone();
        if before.0 / SEGMENT != self.flushed.0 / SEGMENT {
            let mut state = self.state.clone();
            self.set_verified(&mut state);
            self.save(state)?;
        }
        Ok(self.flushed)
    }

    /// After a failed write or sync: what was not acknowledged will be sent, written and synced again. Whether a failed
    /// sync left it on disk cannot be known, and reading it back would ask the page cache.
    pub(crate) fn forget_unflushed(&mut self) {
        self.files.forget_unsynced();
        self.stray |= self.scanner.position() > self.flushed;
        self.written = self.flushed;
        self.scanner = self.flushed_scanner.clone();
    }

    /// Everything below `archived`, the end of a record, is in the archive: the segments below may go.
    pub(crate) fn trim(&mut self, archived: Lsn) -> Result<()> {
        if archived <= self.state.start || archived > self.flushed {
            return Ok(());
        }
        let frees = archived.0 / SEGMENT > self.state.start.0 / SEGMENT;
        let mut state = self.state.clone();
        state.start = archived;
        state.history = state.history.without_archived(archived);
        if frees {
            self.set_verified(&mut state);
            self.save(state)?;
            self.files.trim(archived, self.flushed)
        } else {
            // Written down with the next change that matters: forgetting it costs nothing but room.
            self.state = state;
            Ok(())
        }
    }

    /// Whether the segment after the present one should be made now, and its number.
    pub(crate) fn next_segment(&self) -> Option<u64> {
        (self.written.0 % SEGMENT > SEGMENT / 2).then_some(self.written.0 / SEGMENT + 1)
    }

    /// Where it lies.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Bytes of the log from `at` on, at most a mebibyte; empty at its end.
    pub(crate) fn read(&self, at: Lsn, to: Lsn) -> Result<Vec<u8>, Refusal> {
        let end = to.min(self.flushed);
        if at < self.state.start {
            let problem = format!("WAL at {at} is not kept any more; from {} on it is", self.state.start);
            return Err(Refusal::Failed { problem });
        }
        let length = usize::try_from(end.0.saturating_sub(at.0)).unwrap_or(READ_BYTES).min(READ_BYTES);
        let mut bytes = vec![0; length];
        let read = self.files.read(at, &mut bytes)?;
        bytes.truncate(read);
        if bytes.is_empty() && length > 0 {
            let problem = format!("the file of WAL at {at} in `{}` is missing", self.directory.display());
            return Err(Refusal::Failed { problem });
        }
        Ok(bytes)
    }

    fn set_verified(&self, state: &mut LogState) {
        state.verified = self.flushed_scanner.end().max(state.start);
        state.verified_record =
            self.flushed_scanner.last_record().filter(|_| state.verified == self.flushed_scanner.end());
    }

    /// Makes the log's folder, so that it will survive a power cut.
    fn make_folder(&self) -> Result<()> {
        if self.directory.exists() {
            return Ok(());
        }
        private_file::create_directory(&self.directory, 0o700)?;
        // The folder in its project's, that in `logs`, and that in the keeper's.
        for made in self.directory.ancestors().take(3) {
            private_file::sync_directory_of(made)?;
        }
        Ok(())
    }

    fn save(&mut self, state: LogState) -> Result<()> {
        state.save(&self.directory)?;
        self.state = state;
        Ok(())
    }
}

/// What the folder of a log holds, its end found and cleaned.
fn recover(directory: &Path, files: &mut SegmentFiles) -> Result<(LogState, RecordScanner)> {
    let damaged = |problem: String| CoreError::KeeperStateDamaged { path: directory.join("state"), problem };
    let segments = files.segments()?;
    let state = match LogState::load(directory)? {
        Some(state) => state,
        None if segments.is_empty() => LogState::empty(),
        None => return Err(damaged("it is missing beside files of WAL".to_owned())),
    };
    if state.history.is_empty() {
        files.clear()?;
        let start = state.start;
        return Ok((state, RecordScanner::new(start, None)));
    }
    if state.verified > state.start {
        let mut needed = state.start.0 / SEGMENT..=(state.verified.0 - 1) / SEGMENT;
        if let Some(missing) = needed.find(|segment| !segments.contains(segment)) {
            let at = Lsn(missing.saturating_mul(SEGMENT));
            return Err(damaged(format!(
                "it tells of WAL up to {}, and the file from {at} is missing",
                state.verified
            )));
        }
    }
    let end = find_end(files, &state)?;
    files.cut(end.end())?;
    Ok((state, RecordScanner::new(end.end(), end.last_record())))
}

/// Reads the log from where it is known to be whole up to its last whole record, and writes and syncs what it read: it may be
/// in the page cache only, and once a sync has failed, there for good.
fn find_end(files: &mut SegmentFiles, state: &LogState) -> Result<RecordScanner> {
    let from = state.verified.max(state.start);
    let known = state.verified_record.filter(|_| from == state.verified);
    let mut scanner = RecordScanner::new(from, known);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = files.read(scanner.position(), &mut buffer)?;
        if scanner.push(buffer.get(..read).unwrap_or_default()).is_err() || read == 0 {
            break;
        }
    }
    let (mut position, end) = (from, scanner.end());
    while position < end {
        let length = usize::try_from(end.bytes_since(position)).unwrap_or(READ_BYTES).min(READ_BYTES);
        let read = files.read(position, buffer.get_mut(..length).unwrap_or_default())?;
        files.write(position, buffer.get(..read).unwrap_or_default())?;
        position.0 += read.max(1) as u64;
    }
    files.sync()?;
    Ok(scanner)
}
