//! The bytes of a manifest; `docs/core-format.md` is the same in prose.
//!
//! ```text
//!   magic 8 | version 4 | head length 4 | body length, stored 8 | body length, plain 8
//!           | CRC of head 4 | CRC of stored body 4 | CRC of these 40 bytes 4
//!   head: JSON
//!   body: JSON, compressed with zstd
//! ```
//!
//! The head can be read without the body, so listing a thousand branches reads a thousand small ranges.

use super::manifest::{Manifest, ManifestBody, ManifestHead};

const MAGIC: [u8; 8] = *b"TWMANIF1";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 44;
/// One read of this length has every head whose names are not unusually long.
pub(super) const HEAD_READ: u64 = 4096;
/// No head comes near it.
const HEAD_LIMIT: u32 = 64 * 1024;
/// Some two million files.
pub(super) const OBJECT_LIMIT: u64 = 64 << 20;
/// What that may become in memory before it is parsed.
const BODY_LIMIT: u64 = 512 << 20;
const COMPRESSION_LEVEL: i32 = 1;

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestDefect {
    /// The first bytes are others.
    #[error("it does not start as a manifest does")]
    Magic,
    /// The lengths and checksums in front are damaged.
    #[error("its first bytes are damaged")]
    Prefix,
    /// A later version of the format.
    #[error("it has format {0}")]
    TooNew(u32),
    /// One of the two parts is not what was written.
    #[error("its {part} is damaged ({reason})")]
    Part {
        /// `head` or `body`.
        part: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// It breaks a rule that readers rely on.
    #[error("{0}")]
    Unsound(String),
}

impl Manifest {
    /// Reads a manifest from the bytes of its object.
    ///
    /// # Errors
    /// They are damaged, or break a rule of the format.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestDefect> {
        decode(bytes)
    }
}

struct Prefix {
    head: usize,
    stored_body: u64,
    plain_body: u64,
    head_checksum: u32,
    body_checksum: u32,
}

impl Prefix {
    fn to_bytes(&self) -> Result<Vec<u8>, ManifestDefect> {
        let mut bytes = Vec::with_capacity(PREFIX_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u32::try_from(self.head).map_err(|_| ManifestDefect::Prefix)?.to_le_bytes());
        bytes.extend(self.stored_body.to_le_bytes());
        bytes.extend(self.plain_body.to_le_bytes());
        bytes.extend(self.head_checksum.to_le_bytes());
        bytes.extend(self.body_checksum.to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        Ok(bytes)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Prefix, ManifestDefect> {
        let (magic, rest) = bytes.split_first_chunk().ok_or(ManifestDefect::Magic)?;
        if magic != &MAGIC {
            return Err(ManifestDefect::Magic);
        }
        let mut rest = rest;
        let mut word = || {
            let (field, after) = rest.split_first_chunk::<4>().ok_or(ManifestDefect::Prefix)?;
            rest = after;
            Ok::<u32, ManifestDefect>(u32::from_le_bytes(*field))
        };
        let (version, head) = (word()?, word()?);
        let mut long = || Ok::<u64, ManifestDefect>(u64::from(word()?) | u64::from(word()?) << 32);
        let (stored_body, plain_body) = (long()?, long()?);
        let (head_checksum, body_checksum, own_checksum) = (word()?, word()?, word()?);
        let summed = bytes.get(..PREFIX_BYTES - 4).ok_or(ManifestDefect::Prefix)?;
        if crc32fast::hash(summed) != own_checksum {
            return Err(ManifestDefect::Prefix);
        }
        if version != VERSION {
            return Err(ManifestDefect::TooNew(version));
        }
        if head > HEAD_LIMIT || stored_body > OBJECT_LIMIT || plain_body > BODY_LIMIT {
            return Err(ManifestDefect::Prefix);
        }
        Ok(Prefix { head: head as usize, stored_body, plain_body, head_checksum, body_checksum })
    }
}

/// The bytes of a manifest that keeps the format's rules.
pub(super) fn encode(manifest: &Manifest) -> Result<Vec<u8>, ManifestDefect> {
    if let Some(defect) = manifest.defect() {
        return Err(ManifestDefect::Unsound(defect));
    }
    let json = |part, error: &dyn std::fmt::Display| ManifestDefect::Part { part, reason: error.to_string() };
    let head = serde_json::to_vec(&manifest.head).map_err(|error| json("head", &error))?;
    let plain = serde_json::to_vec(&manifest.body).map_err(|error| json("body", &error))?;
    let body = zstd::bulk::compress(&plain, COMPRESSION_LEVEL).map_err(|error| json("body", &error))?;
    if plain.len() as u64 > BODY_LIMIT || (body.len() + PREFIX_BYTES + head.len()) as u64 > OBJECT_LIMIT {
        return Err(ManifestDefect::Unsound("it has more files than a manifest can hold".to_owned()));
    }
    let prefix = Prefix {
        head: head.len(),
        stored_body: body.len() as u64,
        plain_body: plain.len() as u64,
        head_checksum: crc32fast::hash(&head),
        body_checksum: crc32fast::hash(&body),
    };
    let mut bytes = prefix.to_bytes()?;
    bytes.extend(head);
    bytes.extend(body);
    Ok(bytes)
}

/// Reads a whole manifest.
pub(super) fn decode(bytes: &[u8]) -> Result<Manifest, ManifestDefect> {
    let prefix = Prefix::from_bytes(bytes)?;
    let head = head_of(&prefix, bytes)?;
    let damaged = |reason: &str| ManifestDefect::Part { part: "body", reason: reason.to_owned() };
    let stored = bytes.get(PREFIX_BYTES + prefix.head..).unwrap_or_default();
    if stored.len() as u64 != prefix.stored_body {
        return Err(damaged("its length is another one"));
    }
    if crc32fast::hash(stored) != prefix.body_checksum {
        return Err(damaged("its checksum is another one"));
    }
    let length = usize::try_from(prefix.plain_body).map_err(|_| ManifestDefect::Prefix)?;
    let plain = zstd::bulk::decompress(stored, length).map_err(|_| damaged("it cannot be decompressed"))?;
    if plain.len() != length {
        return Err(damaged("its length is another one"));
    }
    let body: ManifestBody = serde_json::from_slice(&plain).map_err(|error| damaged(&error.to_string()))?;
    let manifest = Manifest { head, body };
    match manifest.defect() {
        Some(defect) => Err(ManifestDefect::Unsound(defect)),
        None => Ok(manifest),
    }
}

/// Reads the head from the first bytes of a manifest; `None` when they end inside the head.
pub(super) fn decode_head(bytes: &[u8]) -> Result<Option<ManifestHead>, ManifestDefect> {
    let prefix = Prefix::from_bytes(bytes)?;
    if bytes.len() < PREFIX_BYTES + prefix.head && bytes.len() as u64 == HEAD_READ {
        return Ok(None);
    }
    head_of(&prefix, bytes).map(Some)
}

fn head_of(prefix: &Prefix, bytes: &[u8]) -> Result<ManifestHead, ManifestDefect> {
    let damaged = |reason: String| ManifestDefect::Part { part: "head", reason };
    let json = bytes
        .get(PREFIX_BYTES..PREFIX_BYTES + prefix.head)
        .ok_or_else(|| damaged("it is cut off".to_owned()))?;
    if crc32fast::hash(json) != prefix.head_checksum {
        return Err(damaged("its checksum is another one".to_owned()));
    }
    serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))
}
