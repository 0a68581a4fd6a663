//! The manifest: the one file that says what the index is.
//!
//! ```text
//!   magic, format | seed | version | runs, oldest first | files | CRC-32 of all before
//! ```
//!
//! It is written beside the old one and renamed over it, so at any moment the directory holds one whole
//! manifest: a killed process leaves the old index or the new one. Nothing waits for the disk here. After
//! a *power* cut a file may be empty or old: then a checksum fails and the index is rebuilt, or the
//! index stands at an older version, which its owner sees by comparing it with the table.

use super::directory::IndexDirectory;
use super::error::{InPlace, KeyIndexError};
use super::fields::Fields;
use super::file_registry::FileRegistry;
use super::run::RunRecord;
use std::fs;
use std::io;
use std::path::Path;

const MAGIC: [u8; 8] = *b"TWKEYIDX";
const FORMAT: u32 = 1;
/// No real manifest comes near: that is two million files with paths of a hundred bytes.
const MAX_BYTES: u64 = 256 << 20;

/// What a manifest says.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) seed: [u8; 16],
    pub(super) version: i64,
    pub(super) runs: Vec<RunRecord>,
    pub(super) files: FileRegistry,
}

/// Puts a manifest in place. Gives its size.
pub(super) fn write(
    directory: &IndexDirectory,
    seed: &[u8; 16],
    version: i64,
    runs: impl ExactSizeIterator<Item = RunRecord>,
    files: &FileRegistry,
) -> Result<u64, KeyIndexError> {
    let bytes = encode(seed, version, runs, files);
    let (next, current) = (directory.next_manifest(), directory.manifest());
    fs::write(&next, &bytes).in_place("write", &next)?;
    fs::rename(&next, &current).in_place("replace", &current)?;
    Ok(bytes.len() as u64)
}

/// The manifest in place and its size, `None` when there is none.
pub(super) fn read(directory: &IndexDirectory) -> Result<Option<(Manifest, u64)>, KeyIndexError> {
    let path = directory.manifest();
    let bytes = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).in_place("inspect", &path),
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            return Err(KeyIndexError::Damaged { path, what: "no manifest is that long" });
        }
        Ok(_) => fs::read(&path).in_place("read", &path)?,
    };
    parse(&bytes, &path).map(|manifest| Some((manifest, bytes.len() as u64)))
}

fn encode(
    seed: &[u8; 16],
    version: i64,
    runs: impl ExactSizeIterator<Item = RunRecord>,
    files: &FileRegistry,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(MAGIC);
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend(seed);
    bytes.extend(version.to_le_bytes());
    bytes.extend((runs.len() as u32).to_le_bytes());
    for run in runs {
        bytes.extend(run.number.to_le_bytes());
        bytes.extend(run.entries.to_le_bytes());
        bytes.extend(run.footer_checksum.to_le_bytes());
        bytes.push(u8::from(run.synced));
    }
    bytes.extend(files.next().to_le_bytes());
    bytes.extend((files.iter().len() as u32).to_le_bytes());
    for (id, path) in files.iter() {
        bytes.extend(id.to_le_bytes());
        bytes.extend((path.len() as u32).to_le_bytes());
        bytes.extend(path.as_bytes());
    }
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

fn parse(bytes: &[u8], path: &Path) -> Result<Manifest, KeyIndexError> {
    let damaged = |what| KeyIndexError::Damaged { path: path.to_owned(), what };
    let Some((payload, checksum)) = bytes.split_last_chunk::<4>() else {
        return Err(damaged("it is shorter than its checksum"));
    };
    if crc32fast::hash(payload) != u32::from_le_bytes(*checksum) {
        return Err(damaged("it fails its checksum"));
    }
    let mut fields = Fields(payload);
    if fields.array() != Some(MAGIC) {
        return Err(damaged("it does not begin like a manifest"));
    }
    if fields.u32() != Some(FORMAT) {
        return Err(damaged("it is of another format version"));
    }
    parse_fields(&mut fields)
        .filter(|_| fields.0.is_empty())
        .ok_or_else(|| damaged("its fields do not fit together"))
}

fn parse_fields(fields: &mut Fields<'_>) -> Option<Manifest> {
    let seed = fields.array()?;
    let version = fields.i64()?;
    // Counts are not trusted with an allocation: lists grow with what is really there.
    let mut runs = Vec::new();
    for _ in 0..fields.u32()? {
        runs.push(RunRecord {
            number: fields.u64()?,
            entries: fields.u64()?,
            footer_checksum: fields.u32()?,
            synced: match fields.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            },
        });
    }
    let next = fields.u32()?;
    let mut files = Vec::new();
    for _ in 0..fields.u32()? {
        files.push((fields.u32()?, fields.text()?.to_owned()));
    }
    Some(Manifest { seed, version, runs, files: FileRegistry::restore(files, next)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut files = FileRegistry::default();
        files.id("part-0.parquet");
        files.id("country=CH/part-1.parquet");
        let run = |number| RunRecord { number, entries: 5, footer_checksum: 77, synced: number == 3 };
        encode(&[9; 16], 41, [run(3), run(8)].into_iter(), &files)
    }

    #[test]
    fn a_manifest_gives_back_what_it_was_given() {
        let manifest = parse(&sample(), Path::new("MANIFEST")).unwrap();
        assert_eq!((manifest.seed, manifest.version), ([9; 16], 41));
        assert_eq!(manifest.runs.iter().map(|run| run.number).collect::<Vec<_>>(), [3, 8]);
        assert_eq!(manifest.runs.iter().map(|run| run.synced).collect::<Vec<_>>(), [true, false]);
        let mut files = manifest.files;
        assert_eq!(files.next(), 2);
        assert_eq!(files.id("country=CH/part-1.parquet").0, 1);
    }

    #[test]
    fn every_cut_manifest_is_damage() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(parse(&whole[..length], Path::new("MANIFEST")).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_manifest_of_a_later_format_is_refused() {
        let mut bytes = sample();
        bytes[8] = 2;
        let end = bytes.len() - 4;
        let checksum = crc32fast::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(&checksum.to_le_bytes());
        let error = parse(&bytes, Path::new("MANIFEST")).unwrap_err();
        assert!(error.to_string().contains("another format version"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_with_a_right_checksum_make_the_parser_panic(
            at in 12usize..100, with in proptest::collection::vec(any::<u8>(), 1..8)
        ) {
            let mut bytes = sample();
            let end = bytes.len() - 4;
            for (offset, byte) in with.iter().enumerate() {
                bytes[(at + offset).min(end - 1)] = *byte;
            }
            let checksum = crc32fast::hash(&bytes[..end]);
            bytes[end..].copy_from_slice(&checksum.to_le_bytes());
            let _either = parse(&bytes, Path::new("MANIFEST"));
        }
    }
}
