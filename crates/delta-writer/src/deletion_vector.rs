//! Deletion vectors: which rows of a data file are gone.
//!
//! A vector is a set of row positions as a 64-bit roaring bitmap. All vectors of one commit go into one file;
//! the `add` action of each data file then carries a [`DvDescriptor`] that points into it:
//!
//! ```text
//!   deletion_vector_<uuid>.bin
//!   | 1 | size | magic, bitmap | CRC-32 | size | magic, bitmap | CRC-32 | ...
//!     ^   ^      \___________/            ^
//!     |   offset   size bytes             offset of the next vector
//!     version
//! ```
//!
//! Sizes and checksums are big-endian, magic and bitmap little-endian: that is how the Delta protocol has it
//! (PROTOCOL.md, "Deletion Vector Format"). The bitmap is the portable `RoaringBitmapArray`: the number of
//! 32-bit bitmaps in eight bytes, then each with its high half in four.

use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use uuid::Uuid;

/// Stands before a bitmap in the portable format.
const MAGIC: u32 = 1_681_511_377;
/// The only version of the file there is; its first byte.
const FILE_VERSION: u8 = 1;
/// Readers in Java hold sizes and offsets in signed 32 bits.
const MAX_FILE_BYTES: usize = i32::MAX as usize;
/// Characters of a UUID in base 85.
const ENCODED_UUID: usize = 20;

/// What is wrong with a deletion vector or with what points to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeletionVectorError {
    /// The bytes end before the vector does.
    #[error("the deletion vector {id} needs {needed} bytes and its file has {present}: the table is damaged")]
    Short {
        /// The vector's unique id.
        id: String,
        /// Bytes it takes.
        needed: u64,
        /// Bytes there are.
        present: u64,
    },
    /// The bytes are not those that were written.
    #[error("the deletion vector {id} is damaged ({what}): restore its file or the table")]
    Damaged {
        /// The vector's unique id.
        id: String,
        /// What gave it away.
        what: &'static str,
    },
    /// The bitmap is none.
    #[error("the deletion vector {id} holds no roaring bitmap: restore its file or the table")]
    Bitmap {
        /// The vector's unique id.
        id: String,
        /// What the parser said.
        #[source]
        source: std::io::Error,
    },
    /// The text in the log is no base 85.
    #[error("the deletion vector {id} is not encoded in base 85: the log entry is damaged")]
    Encoding {
        /// The vector's unique id.
        id: String,
        /// What the decoder said.
        #[source]
        source: z85::DecodeError,
    },
    /// A descriptor whose parts do not fit together.
    #[error("the descriptor of the deletion vector {id} is invalid: {what}")]
    Descriptor {
        /// The vector's unique id.
        id: String,
        /// What does not fit.
        what: &'static str,
    },
    /// A file of vectors past two gigabytes.
    #[error("the deletion vectors of one commit take more than 2 GiB: flush smaller batches")]
    TooLarge,
    /// The bitmap could not be written.
    #[error("cannot serialize a deletion vector")]
    Serialize(#[source] std::io::Error),
}

/// The rows of one data file that are gone, by position from zero.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeletionVector {
    rows: RoaringTreemap,
}

impl DeletionVector {
    /// A vector that deletes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Deletes a row. False when it was deleted already.
    pub fn insert(&mut self, row: u64) -> bool {
        self.rows.insert(row)
    }

    /// Whether a row is deleted.
    pub fn contains(&self, row: u64) -> bool {
        self.rows.contains(row)
    }

    /// How many rows are deleted: the descriptor's cardinality.
    pub fn len(&self) -> u64 {
        self.rows.len()
    }

    /// Whether no row is deleted.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Deletes rows that lie beside each other.
    pub fn insert_range(&mut self, rows: Range<u64>) {
        self.rows.insert_range(rows);
    }

    /// Whether every row deleted here is deleted in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.rows.is_subset(&other.rows)
    }

    /// Deletes what `other` deletes, too.
    pub fn union(&mut self, other: &Self) {
        self.rows |= &other.rows;
    }

    /// The deleted rows, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.rows.iter()
    }

    /// The portable format, from the magic number on.
    pub fn serialize(&self) -> Result<Vec<u8>, DeletionVectorError> {
        // Ranges of deleted rows become runs, as Spark writes them.
        let mut rows = self.rows.clone();
        rows.optimize();
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        rows.serialize_into(&mut bytes).map_err(DeletionVectorError::Serialize)?;
        Ok(bytes)
    }

    /// Reads the portable format, from the magic number on. `id` names the vector in errors.
    fn parse(bytes: &[u8], id: impl Fn() -> String) -> Result<Self, DeletionVectorError> {
        let Some((magic, bitmap)) = bytes.split_first_chunk::<4>() else {
            return Err(DeletionVectorError::Damaged { id: id(), what: "it ends within its magic number" });
        };
        if u32::from_le_bytes(*magic) != MAGIC {
            return Err(DeletionVectorError::Damaged { id: id(), what: "it is not in the portable format" });
        }
        match RoaringTreemap::deserialize_from(bitmap) {
            Ok(rows) => Ok(Self { rows }),
            Err(source) => Err(DeletionVectorError::Bitmap { id: id(), source }),
        }
    }
}

impl FromIterator<u64> for DeletionVector {
    fn from_iter<T: IntoIterator<Item = u64>>(rows: T) -> Self {
        Self { rows: rows.into_iter().collect() }
    }
}

impl Extend<u64> for DeletionVector {
    fn extend<T: IntoIterator<Item = u64>>(&mut self, rows: T) {
        self.rows.extend(rows);
    }
}

/// Where a vector is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DvStorage {
    /// In a file of the table whose name follows from a UUID.
    #[serde(rename = "u")]
    Relative,
    /// In the log entry itself.
    #[serde(rename = "i")]
    Inline,
    /// In a file anywhere, given by its URL.
    #[serde(rename = "p")]
    Absolute,
}

impl DvStorage {
    fn letter(self) -> char {
        match self {
            Self::Relative => 'u',
            Self::Inline => 'i',
            Self::Absolute => 'p',
        }
    }
}

/// The file that a descriptor points into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DvLocation {
    /// A path relative to the table's root.
    Relative(String),
    /// A URL.
    Absolute(String),
    /// None: the vector is in the descriptor.
    Inline,
}

/// The `deletionVector` of an `add` or `remove` action (PROTOCOL.md, "Deletion Vector Descriptor Schema").
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DvDescriptor {
    /// Where the vector is kept.
    pub storage_type: DvStorage,
    /// `u`: an optional prefix and a UUID in base 85; `i`: the vector in base 85; `p`: a URL.
    pub path_or_inline_dv: String,
    /// Where the vector begins in its file; none when inline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<i32>,
    /// Its size without length and checksum.
    pub size_in_bytes: i32,
    /// How many rows it deletes.
    pub cardinality: i64,
}

impl DvDescriptor {
    /// What, with the data file's path, identifies a logical file.
    pub fn unique_id(&self) -> String {
        let (letter, path) = (self.storage_type.letter(), &self.path_or_inline_dv);
        match self.offset {
            Some(offset) => format!("{letter}{path}@{offset}"),
            None => format!("{letter}{path}"),
        }
    }

    /// The file that holds the vector.
    pub fn location(&self) -> Result<DvLocation, DeletionVectorError> {
        match self.storage_type {
            DvStorage::Inline => Ok(DvLocation::Inline),
            DvStorage::Absolute => Ok(DvLocation::Absolute(self.path_or_inline_dv.clone())),
            DvStorage::Relative => {
                let prefix = self.path_or_inline_dv.len().checked_sub(ENCODED_UUID);
                let Some((prefix, encoded)) =
                    prefix.and_then(|length| self.path_or_inline_dv.split_at_checked(length))
                else {
                    return Err(self.invalid("its path has no UUID"));
                };
                // The prefix becomes a directory: nothing in the log may lead out of the table.
                if !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                    return Err(self.invalid("its prefix is not made of letters and digits"));
                }
                let uuid = self.decode(encoded)?;
                let uuid = Uuid::from_slice(&uuid).map_err(|_| self.invalid("its path has no UUID"))?;
                Ok(DvLocation::Relative(relative_path(prefix, &uuid)))
            }
        }
    }

    /// The bytes of the file that [`Self::parse_stored`] wants: length, vector and checksum.
    pub fn byte_range(&self) -> Result<Range<u64>, DeletionVectorError> {
        // An absent offset means the first vector of the file.
        let start =
            u64::try_from(self.offset.unwrap_or(1)).map_err(|_| self.invalid("its offset is negative"))?;
        let size = u64::try_from(self.size_in_bytes).map_err(|_| self.invalid("its size is negative"))?;
        Ok(start..start + 4 + size + 4)
    }

    /// Reads the vector from the [range](Self::byte_range) of its file.
    pub fn parse_stored(&self, bytes: &[u8]) -> Result<DeletionVector, DeletionVectorError> {
        let range = self.byte_range()?;
        let needed = range.end - range.start;
        if (bytes.len() as u64) < needed {
            return Err(DeletionVectorError::Short {
                id: self.unique_id(),
                needed,
                present: bytes.len() as u64,
            });
        }
        let damaged = |what| DeletionVectorError::Damaged { id: self.unique_id(), what };
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| damaged("it has no length"))?;
        if i64::from(u32::from_be_bytes(*size)) != i64::from(self.size_in_bytes) {
            return Err(damaged("its length differs from the log's"));
        }
        let (vector, rest) =
            rest.split_at_checked(self.size_in_bytes as usize).ok_or_else(|| damaged("it is cut off"))?;
        let checksum = rest.first_chunk::<4>().ok_or_else(|| damaged("it has no checksum"))?;
        if crc32fast::hash(vector) != u32::from_be_bytes(*checksum) {
            return Err(damaged("it fails its checksum"));
        }
        self.checked(DeletionVector::parse(vector, || self.unique_id())?)
    }

    /// Reads the vector out of its whole file.
    pub fn parse_file(&self, file: &[u8]) -> Result<DeletionVector, DeletionVectorError> {
        if file.first() != Some(&FILE_VERSION) {
            let id = self.unique_id();
            return Err(DeletionVectorError::Damaged { id, what: "its file is of an unknown version" });
        }
        let start = usize::try_from(self.byte_range()?.start).ok();
        self.parse_stored(start.and_then(|start| file.get(start..)).unwrap_or_default())
    }

    /// Reads a vector that is kept in the log; `None` when it is kept in a file.
    pub fn parse_inline(&self) -> Result<Option<DeletionVector>, DeletionVectorError> {
        if self.storage_type != DvStorage::Inline {
            return Ok(None);
        }
        let bytes = self.decode(&self.path_or_inline_dv)?;
        // Base 85 comes in steps of four bytes; what is past the size is padding.
        let vector = usize::try_from(self.size_in_bytes).ok().and_then(|size| bytes.get(..size));
        let vector = vector.ok_or_else(|| self.invalid("its size is not that of the bytes"))?;
        self.checked(DeletionVector::parse(vector, || self.unique_id())?).map(Some)
    }

    fn checked(&self, vector: DeletionVector) -> Result<DeletionVector, DeletionVectorError> {
        if i64::try_from(vector.len()) != Ok(self.cardinality) {
            return Err(self.invalid("its cardinality is not that of the vector"));
        }
        Ok(vector)
    }

    fn decode(&self, text: &str) -> Result<Vec<u8>, DeletionVectorError> {
        z85::decode(text).map_err(|source| DeletionVectorError::Encoding { id: self.unique_id(), source })
    }

    fn invalid(&self, what: &'static str) -> DeletionVectorError {
        DeletionVectorError::Descriptor { id: self.unique_id(), what }
    }
}

fn relative_path(prefix: &str, uuid: &Uuid) -> String {
    match prefix {
        "" => format!("deletion_vector_{uuid}.bin"),
        _ => format!("{prefix}/deletion_vector_{uuid}.bin"),
    }
}

/// Collects the vectors of one commit into the bytes of one file.
///
/// ```
/// use delta_writer::deletion_vector::{DeletionVector, DvFileWriter, DvLocation};
///
/// let mut file = DvFileWriter::new();
/// let deleted = DeletionVector::from_iter([3, 5]);
/// let descriptor = file.add(&deleted)?;
/// let (path, bytes) = file.finish();
/// assert_eq!(descriptor.location()?, DvLocation::Relative(path));
/// assert_eq!(descriptor.parse_file(&bytes)?, deleted);
/// # Ok::<(), delta_writer::deletion_vector::DeletionVectorError>(())
/// ```
#[derive(Debug)]
pub struct DvFileWriter {
    uuid: Uuid,
    bytes: Vec<u8>,
}

impl DvFileWriter {
    /// Begins a file with a name of its own.
    #[expect(
        clippy::new_without_default,
        reason = "each file draws a fresh name, which no default should do"
    )]
    pub fn new() -> Self {
        Self { uuid: Uuid::new_v4(), bytes: vec![FILE_VERSION] }
    }

    /// The file's path, relative to the table's root.
    pub fn path(&self) -> String {
        relative_path("", &self.uuid)
    }

    /// Adds a vector. Gives what the data file's `add` action carries.
    pub fn add(&mut self, vector: &DeletionVector) -> Result<DvDescriptor, DeletionVectorError> {
        let serialized = vector.serialize()?;
        if self.bytes.len() + serialized.len() + 8 > MAX_FILE_BYTES {
            return Err(DeletionVectorError::TooLarge);
        }
        let (offset, size) = (self.bytes.len() as i32, serialized.len() as i32);
        self.bytes.extend(size.to_be_bytes());
        self.bytes.extend(&serialized);
        self.bytes.extend(crc32fast::hash(&serialized).to_be_bytes());
        Ok(DvDescriptor {
            storage_type: DvStorage::Relative,
            path_or_inline_dv: z85::encode(self.uuid.as_bytes()),
            offset: Some(offset),
            size_in_bytes: size,
            cardinality: vector.len() as i64,
        })
    }

    /// The file's path, relative to the table's root, and its bytes.
    pub fn finish(self) -> (String, Vec<u8>) {
        (self.path(), self.bytes)
    }
}

#[cfg(test)]
mod tests;
