//! The record of a clean stop: what of the local page cache the next mount may believe.
//!
//! Local page state is a cache. Whatever ends without this record (a crash of anything, a stop before its
//! manifest was published) leaves a cache that is thrown away. The record is taken out before the mount
//! changes the first page, so it is there only while it is true; and it names the manifest that was
//! published at the stop, so a cache that another machine has overtaken is not believed either.
//!
//! ```text
//!   8 bytes  "TWCLEAN1"
//!  16        the manifest's uid
//!   8        term
//!   8        number of slots
//!  12 each   file id (8), block (4); file id 0xff… for a free slot
//!   4        CRC-32 of all before, little-endian like all numbers here
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::ids::{FileId, PageKey};
use crate::page_store::ManifestHead;
use crate::private_file::sync_directory_of;
use crate::{CoreError, Result};

const MAGIC: &[u8; 8] = b"TWCLEAN1";
const FREE: u64 = u64::MAX;
const HEAD: usize = 40;
const ENTRY: usize = 12;

/// Which page lies in each slot of the cache file.
pub(super) type Slots = Vec<Option<PageKey>>;

/// Writes the record. The cache file has been flushed before.
pub(super) fn write(path: &Path, head: &ManifestHead, slots: &[Option<PageKey>]) -> Result<()> {
    let mut bytes = Vec::with_capacity(HEAD + slots.len() * ENTRY + 4);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(head.uid.0.as_bytes());
    bytes.extend_from_slice(&head.term.0.to_le_bytes());
    bytes.extend_from_slice(&(slots.len() as u64).to_le_bytes());
    for slot in slots {
        let (file, block) = slot.map_or((FREE, 0), |key| (key.file.0, key.block));
        bytes.extend_from_slice(&file.to_le_bytes());
        bytes.extend_from_slice(&block.to_le_bytes());
    }
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    let mut file = File::create(path).map_err(CoreError::io("create", path))?;
    file.write_all(&bytes).map_err(CoreError::io("write", path))?;
    file.sync_all().map_err(CoreError::io("flush", path))?;
    sync_directory_of(path)
}

/// Takes the record out and returns it, if it is whole and speaks of this manifest.
pub(super) fn take(path: &Path, head: &ManifestHead) -> Result<Option<Slots>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CoreError::io("read", path)(error)),
    };
    std::fs::remove_file(path).map_err(CoreError::io("remove", path))?;
    sync_directory_of(path)?;
    Ok(decode(&bytes, head))
}

fn decode(bytes: &[u8], head: &ManifestHead) -> Option<Slots> {
    let (content, checksum) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(content) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let (magic, rest) = content.split_first_chunk::<8>()?;
    let (uid, rest) = rest.split_first_chunk::<16>()?;
    let (term, rest) = rest.split_first_chunk::<8>()?;
    let (count, rest) = rest.split_first_chunk::<8>()?;
    let ours = magic == MAGIC && uid == head.uid.0.as_bytes() && u64::from_le_bytes(*term) == head.term.0;
    if !ours || rest.len() as u64 != u64::from_le_bytes(*count).checked_mul(ENTRY as u64)? {
        return None;
    }
    let entry = |entry: &[u8; ENTRY]| -> Option<PageKey> {
        let (file, block) = entry.split_first_chunk::<8>()?;
        let file = u64::from_le_bytes(*file);
        let block = u32::from_le_bytes(*block.first_chunk::<4>()?);
        (file != FREE).then_some(PageKey { file: FileId(file), block })
    };
    let slots: Slots = rest.as_chunks::<ENTRY>().0.iter().map(entry).collect();
    // A page in two slots would be a record of something else.
    let mut seen = HashMap::with_capacity(slots.len());
    let unique = slots.iter().flatten().all(|key| seen.insert(*key, ()).is_none());
    unique.then_some(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(head: &ManifestHead) -> (Vec<u8>, Slots) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clean_stop");
        let slots = vec![
            Some(PageKey { file: FileId(7), block: 3 }),
            None,
            Some(PageKey { file: FileId(7), block: 0 }),
        ];
        write(&path, head, &slots).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(take(&path, head).unwrap(), Some(slots.clone()));
        assert_eq!(take(&path, head).unwrap(), None, "it is there once");
        (bytes, slots)
    }

    #[test]
    fn a_record_is_believed_whole_and_of_its_own_manifest_or_not_at_all() {
        let head = super::super::tests::some_manifest().head;
        let (bytes, slots) = encoded(&head);
        assert_eq!(decode(&bytes, &head), Some(slots));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x20;
            assert_eq!(decode(&damaged, &head), None, "byte {at}");
            assert_eq!(decode(&bytes[..at], &head), None, "cut at {at}");
        }
        let mut other = head.clone();
        other.term = other.term.next();
        assert_eq!(decode(&bytes, &other), None, "another term");
        let mut other = head;
        other.uid = crate::ids::ManifestUid::random();
        assert_eq!(decode(&bytes, &other), None, "another manifest");
    }
}
