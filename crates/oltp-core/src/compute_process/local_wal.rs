//! The WAL segments in a compute's `pg_wal`, where a server that streams to nobody has left them.
//!
//! A branch's first start and the making of a template end in a clean shutdown before there is a keeper's
//! log. What they wrote is read from here, from the beginning of the segment with the last checkpoint to
//! the end of that checkpoint's record, which is the end of all WAL so far.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use wal_decoder::Lsn;

use crate::ids::Timeline;
use crate::wal_keeper::{RecordScanner, SEGMENT};
use crate::{CoreError, Result};

/// Read in one go; a shutdown checkpoint is some hundred bytes.
const PIECE: usize = 64 * 1024;

/// As Postgres names a segment (`XLogFileName`).
pub(crate) fn segment_name(timeline: Timeline, position: Lsn) -> String {
    let number = position.0 / SEGMENT;
    let per_file_id = 0x1_0000_0000 / SEGMENT;
    format!("{:08X}{:08X}{:08X}", timeline.0, number / per_file_id, number % per_file_id)
}

/// Where the segment that holds `position` begins.
pub(crate) fn segment_start(position: Lsn) -> Lsn {
    Lsn(position.0 - position.0 % SEGMENT)
}

/// Where that segment ends.
pub(crate) fn segment_end(position: Lsn) -> Lsn {
    Lsn(segment_start(position).0.saturating_add(SEGMENT))
}

/// Where the WAL ends whose last record begins at `checkpoint`.
///
/// # Errors
/// The segment cannot be read, or there is no whole record at that place.
pub(crate) fn end_after(directory: &Path, timeline: Timeline, checkpoint: Lsn) -> Result<Lsn> {
    let mut scanner = RecordScanner::new(checkpoint, None);
    while scanner.end() == checkpoint {
        let at = scanner.position();
        let piece = read_up_to(directory, timeline, at, PIECE)?;
        // What follows the last record is no WAL, and the scanner says so; what counts is whether it came by one.
        if piece.is_empty() || (scanner.push(&piece).is_err() && scanner.end() == checkpoint) {
            let problem =
                std::io::Error::new(ErrorKind::InvalidData, format!("no whole record at {checkpoint}"));
            return Err(CoreError::io("find the last checkpoint in", directory)(problem));
        }
    }
    Ok(scanner.end())
}

/// The WAL from `from` to `to`.
///
/// # Errors
/// Some of it is not there.
pub(crate) fn read(directory: &Path, timeline: Timeline, from: Lsn, to: Lsn) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut at = from;
    while at < to {
        let wanted = usize::try_from(to.bytes_since(at)).unwrap_or(PIECE).min(PIECE);
        let piece = read_up_to(directory, timeline, at, wanted)?;
        if piece.is_empty() {
            let problem = std::io::Error::new(ErrorKind::UnexpectedEof, format!("no WAL at {at}"));
            return Err(CoreError::io("read WAL in", directory)(problem));
        }
        at = Lsn(at.0 + piece.len() as u64);
        bytes.extend(piece);
    }
    Ok(bytes)
}

/// What one segment has from `at` on.
fn read_up_to(directory: &Path, timeline: Timeline, at: Lsn, wanted: usize) -> Result<Vec<u8>> {
    let path: PathBuf = directory.join(segment_name(timeline, at));
    let file = File::open(&path).map_err(CoreError::io("open", &path))?;
    let offset = at.0 % SEGMENT;
    let mut piece = vec![0; wanted.min(usize::try_from(SEGMENT - offset).unwrap_or(wanted))];
    let got = file.read_at(&mut piece, offset).map_err(CoreError::io("read", &path))?;
    piece.truncate(got);
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_named_as_postgres_names_them() {
        assert_eq!(segment_name(Timeline(1), Lsn(0x0170_0698)), "000000010000000000000001");
        assert_eq!(segment_name(Timeline(0x1B), Lsn(0x12_FF00_0000)), "0000001B00000012000000FF");
        assert_eq!(segment_start(Lsn(0x0170_0698)), Lsn(0x0100_0000));
    }
}
