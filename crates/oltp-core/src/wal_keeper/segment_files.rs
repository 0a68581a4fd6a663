//! The bytes of a log: files of 16 MiB, each named by the position of its first byte.
//!
//! A file is as long as its segment from the start, filled with zeros and synced, so that appending changes no
//! file's size and a sync writes the new bytes and no more. The next file is made ahead of time. Files that trimming
//! frees are used again under a new name: what they still hold is of another position, which the scanner of records
//! tells from WAL of this one.
//!
//! What lies beyond the log's end *inside the same lineage* is another matter: after a cut it could pass for what comes
//! next. [`SegmentFiles::cut`] overwrites it with zeros.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use wal_decoder::Lsn;

use super::crash_point::crash_point;
use super::record_scanner::SEGMENT;
use crate::{CoreError, Result, private_file};

const SUFFIX: &str = ".segment";
const STAGED: &str = ".staged";
/// Zeros are written in pieces of this size.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// Files that trimming frees and that wait to be used again: one that is about to be needed, one to spare.
const SPARES: usize = 2;

/// The files of one log.
#[derive(Debug)]
pub(crate) struct SegmentFiles {
    directory: PathBuf,
    /// The file written last: almost always the next one too.
    open: Option<(u64, File)>,
    /// Segments that were written to since the last sync.
    unsynced: Vec<u64>,
}

impl SegmentFiles {
    pub(crate) fn new(directory: &Path) -> SegmentFiles {
        SegmentFiles { directory: directory.to_owned(), open: None, unsynced: Vec::new() }
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.directory.join(format!("{:016X}{SUFFIX}", segment.saturating_mul(SEGMENT)))
    }

    /// The numbers of the segments that have a file, ascending.
    pub(crate) fn segments(&self) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(CoreError::io("list", &self.directory))? {
            let entry = entry.map_err(CoreError::io("list", &self.directory))?;
            let name = entry.file_name();
            let start = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            found.extend(start.and_then(|start| u64::from_str_radix(start, 16).ok()).map(|at| at / SEGMENT));
        }
        found.sort_unstable();
        Ok(found)
    }

    fn file(&mut self, segment: u64) -> Result<&File> {
        let open = match self.open.take() {
            Some(open) if open.0 == segment => open,
            _ => (segment, self.open_or_make(segment)?),
        };
        Ok(&self.open.insert(open).1)
    }

    fn open_or_make(&self, segment: u64) -> Result<File> {
        let path = self.path(segment);
        let open = || OpenOptions::new().read(true).write(true).open(&path);
        match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.make(segment)?;
                open()
            }
            opened => opened,
        }
        .map_err(CoreError::io("open", &path))
    }

    /// Makes the file of a segment, of zeros; it is there under its name only once it is whole. Two may try at once: a
    /// file that is there already is never replaced, for it may be in use.
    fn make(&self, segment: u64) -> Result<()> {
        let path = self.path(segment);
        let staged = self.directory.join(format!("{}{STAGED}", uuid::Uuid::new_v4()));
        let fill = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
            for _ in 0..SEGMENT / ZEROS.len() as u64 {
                file.write_all(&ZEROS)?;
            }
            file.sync_all()
        };
        crash_point!("keeper-segment-making");
        if let Err(error) = fill() {
            // The disk is probably full, and half a file would fill it further.
            let _ = fs::remove_file(&staged);
            return Err(CoreError::io("make room for WAL in", &path)(error));
        }
        match fs::hard_link(&staged, &path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(CoreError::io("put in place", &path)(error));
            }
            _ => {}
        }
        fs::remove_file(&staged).map_err(CoreError::io("remove", &staged))?;
        private_file::sync_directory_of(&path)
    }

    /// Removes what a crash left of files that were being made.
    pub(crate) fn remove_staged(&self) -> Result<()> {
        for entry in fs::read_dir(&self.directory).map_err(CoreError::io("list", &self.directory))? {
            let path = entry.map_err(CoreError::io("list", &self.directory))?.path();
            if path.to_str().is_some_and(|name| name.ends_with(STAGED)) {
                fs::remove_file(&path).map_err(CoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Makes the file of `segment` if it is missing.
    pub(crate) fn prepare(&self, segment: u64) -> Result<()> {
        if self.path(segment).exists() { Ok(()) } else { self.make(segment) }
    }

    /// Writes bytes at their position. They are safe only after [`SegmentFiles::sync`].
    pub(crate) fn write(&mut self, at: Lsn, mut bytes: &[u8]) -> Result<()> {
        let mut position = at.0;
        while !bytes.is_empty() {
            let (segment, offset) = (position / SEGMENT, position % SEGMENT);
            let room = usize::try_from(SEGMENT - offset).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            if !self.unsynced.contains(&segment) {
                self.unsynced.push(segment);
            }
            let path = self.path(segment);
            crash_point!("keeper-writing");
            self.file(segment)?.write_all_at(now, offset).map_err(CoreError::io("write", path))?;
            position = position.saturating_add(room as u64);
            bytes = later;
        }
        Ok(())
    }

    /// Returns once everything that was written will survive a power cut.
    pub(crate) fn sync(&mut self) -> Result<()> {
        crash_point!("keeper-written");
        for segment in std::mem::take(&mut self.unsynced) {
            let path = self.path(segment);
            self.file(segment)?.sync_data().map_err(CoreError::io("flush", path))?;
        }
        crash_point!("keeper-synced");
        Ok(())
    }

    /// Reads up to `bytes.len()` bytes from `at` on, not past the end of a segment; 0 when its file is missing.
    pub(crate) fn read(&self, at: Lsn, bytes: &mut [u8]) -> Result<usize> {
        let (segment, offset) = (at.0 / SEGMENT, at.0 % SEGMENT);
        let path = self.path(segment);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            Err(source) => return Err(CoreError::Io { action: "read", path, source }),
        };
        let room = usize::try_from(SEGMENT - offset).unwrap_or(usize::MAX).min(bytes.len());
        let target = bytes.get_mut(..room).unwrap_or_default();
        match file.read_exact_at(target, offset) {
            Ok(()) => Ok(room),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
            Err(source) => Err(CoreError::Io { action: "read", path, source }),
        }
    }

    /// Makes the log end at `end`: zeros to the end of its segment, and no files after it. Returns once that
    /// will survive a power cut.
    pub(crate) fn cut(&mut self, end: Lsn) -> Result<()> {
        self.open = None;
        self.unsynced.clear();
        let last = end.0 / SEGMENT;
        for segment in self.segments()?.into_iter().filter(|segment| *segment > last) {
            let path = self.path(segment);
            fs::remove_file(&path).map_err(CoreError::io("remove", &path))?;
        }
        crash_point!("keeper-cutting");
        let path = self.path(last);
        if path.exists() && self.has_bytes_from(end)? {
            let mut offset = end.0 % SEGMENT;
            let file = self.file(last)?;
            while offset < SEGMENT {
                let length = (SEGMENT - offset).min(ZEROS.len() as u64);
                let zeros = ZEROS.get(..length as usize).unwrap_or_default();
                file.write_all_at(zeros, offset).map_err(CoreError::io("write", &path))?;
                offset += length;
            }
            file.sync_data().map_err(CoreError::io("flush", &path))?;
        }
        private_file::sync_directory_of(&path)
    }

    /// Whether anything but zeros stands from `at` to the end of its segment.
    fn has_bytes_from(&self, at: Lsn) -> Result<bool> {
        let mut buffer = vec![0; ZEROS.len()];
        let mut position = at;
        while position.0 / SEGMENT == at.0 / SEGMENT {
            let read = self.read(position, &mut buffer)?;
            // Compared as a whole: every start of a branch looks through most of a segment.
            if buffer.get(..read) != ZEROS.get(..read) {
                return Ok(true);
            }
            if read == 0 {
                return Ok(false);
            }
            position.0 += read as u64;
        }
        Ok(false)
    }

    /// Gives up the segments that lie wholly below `below`; the log goes on in the segment of `end`. A few of them become
    /// the files of the segments to come.
    pub(crate) fn trim(&mut self, below: Lsn, end: Lsn) -> Result<()> {
        let segments = self.segments()?;
        let mut next = end.0 / SEGMENT + 1;
        for segment in segments.iter().copied().filter(|segment| *segment < below.0 / SEGMENT) {
            if self.open.as_ref().is_some_and(|open| open.0 == segment) {
                self.open = None;
            }
            let path = self.path(segment);
            while segments.contains(&next) {
                next += 1;
            }
            if next <= end.0 / SEGMENT + SPARES as u64 {
                fs::rename(&path, self.path(next)).map_err(CoreError::io("use again", &path))?;
                next += 1;
            } else {
                fs::remove_file(&path).map_err(CoreError::io("remove", &path))?;
            }
        }
        private_file::sync_directory_of(&self.path(0))
    }

    /// Removes every segment.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.open = None;
        self.unsynced.clear();
        for segment in self.segments()? {
            let path = self.path(segment);
            fs::remove_file(&path).map_err(CoreError::io("remove", &path))?;
        }
        private_file::sync_directory_of(&self.path(0))
    }

    /// Forgets what was written and not synced: those bytes will be written again.
    pub(crate) fn forget_unsynced(&mut self) {
        self.open = None;
        self.unsynced.clear();
    }
}
