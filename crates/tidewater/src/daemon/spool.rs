//! Messages set aside: in memory while they are few, in a file once they are many.
//!
//! Two things are set aside until it is known what becomes of them: the messages of a transaction that
//! is still in progress at the source (they may yet be rolled back), and the changes of a table whose
//! first load is still running (some are in the load's snapshot already). Both are logs of raw pgoutput
//! messages, each with a 64-bit tag, written once and read once from the beginning. Whatever their
//! size, a spool holds [`MEMORY_LIMIT`] bytes of memory at most.
//!
//! A spool is soft: it is never read after a restart, for the source sends everything unconfirmed
//! again, and a crashed load starts over. So the file is unlinked as soon as it is open and nothing of
//! it is ever synced.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What one spool keeps in memory before it goes to its file: enough for thousands of ordinary small
/// transactions to never touch the disk, small enough for hundreds of spools side by side.
const MEMORY_LIMIT: usize = 256 << 10;

/// A log of tagged messages.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    memory: Vec<u8>,
    file: Option<File>,
    messages: u64,
}

impl Spool {
    /// An empty spool that spills into a file of `directory` when it has to.
    pub fn new(directory: &Path) -> Spool {
        Spool { directory: directory.to_owned(), memory: Vec::new(), file: None, messages: 0 }
    }

    /// Appends a message.
    pub fn push(&mut self, tag: u64, message: &[u8]) -> io::Result<()> {
        let length = u32::try_from(message.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a message of more than 4 GiB"))?;
        self.memory.extend_from_slice(&tag.to_le_bytes());
        self.memory.extend_from_slice(&length.to_le_bytes());
        self.memory.extend_from_slice(message);
        self.messages += 1;
        if self.memory.len() >= MEMORY_LIMIT { self.spill() } else { Ok(()) }
    }

    /// How many messages it holds.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(unlinked_file(&self.directory)?),
        };
        file.write_all(&self.memory)?;
        self.memory.clear();
        Ok(())
    }

    /// Reads the messages back from the first on; the spool is used up.
    pub fn into_reader(mut self) -> io::Result<SpoolReader> {
        let file = match self.file.take() {
            Some(mut file) => {
                file.write_all(&self.memory)?;
                self.memory = Vec::new();
                file.seek(SeekFrom::Start(0))?;
                Some(BufReader::with_capacity(MEMORY_LIMIT, file))
            }
            None => None,
        };
        Ok(SpoolReader { file, memory: io::Cursor::new(self.memory), remaining: self.messages })
    }
}

/// A file that has no name any more: it goes with its handle, also when the process is killed.
fn unlinked_file(directory: &Path) -> io::Result<File> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join(format!("spool-{}", uuid::Uuid::new_v4()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Reads a spool once.
#[derive(Debug)]
pub struct SpoolReader {
    file: Option<BufReader<File>>,
    memory: io::Cursor<Vec<u8>>,
    remaining: u64,
}

impl SpoolReader {
    /// The next message and its tag, into `message`; `None` after the last.
    pub fn next(&mut self, message: &mut Vec<u8>) -> io::Result<Option<u64>> {
        if self.remaining == 0 {
            return Ok(None);
        }
        self.remaining -= 1;
        let tag = match &mut self.file {
            Some(file) => read_message(file, message)?,
            None => read_message(&mut self.memory, message)?,
        };
        Ok(Some(tag))
    }
}

fn read_message(from: &mut impl Read, message: &mut Vec<u8>) -> io::Result<u64> {
    let (mut tag, mut length) = ([0; 8], [0; 4]);
    from.read_exact(&mut tag)?;
    from.read_exact(&mut length)?;
    message.resize(u32::from_le_bytes(length) as usize, 0);
    from.read_exact(message)?;
    Ok(u64::from_le_bytes(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(spool: Spool) -> Vec<(u64, Vec<u8>)> {
        let mut reader = spool.into_reader().unwrap();
        let (mut all, mut message) = (Vec::new(), Vec::new());
        while let Some(tag) = reader.next(&mut message).unwrap() {
            all.push((tag, message.clone()));
        }
        all
    }

    #[test]
    fn a_small_spool_comes_back_without_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(&directory.path().join("never-made"));
        spool.push(7, b"one").unwrap();
        spool.push(8, b"").unwrap();
        assert_eq!(read_all(spool), vec![(7, b"one".to_vec()), (8, Vec::new())]);
        assert!(!directory.path().join("never-made").exists());
    }

    #[test]
    fn a_large_spool_comes_back_in_order_and_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(directory.path());
        let message = |at: u64| vec![at as u8; (at % 3000) as usize];
        for at in 0..5000 {
            spool.push(at, &message(at)).unwrap();
            assert!(spool.memory.len() < MEMORY_LIMIT);
        }
        assert!(spool.file.is_some());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let all = read_all(spool);
        assert_eq!(all.len(), 5000);
        assert!(
            all.iter().enumerate().all(|(at, (tag, bytes))| *tag == at as u64 && *bytes == message(*tag))
        );
    }
}
