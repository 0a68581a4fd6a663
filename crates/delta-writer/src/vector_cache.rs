//! Deletion vectors of live files: read when a file is touched, kept while there is room, written as one
//! file per commit.

use crate::action::Add;
use crate::crash_point::crash_point;
use crate::deletion_vector::{DeletionVector, DvDescriptor, DvFileWriter, DvLocation};
use crate::error::{DeltaError, Result};
use crate::lake::TableLocation;
use object_store::ObjectStoreExt;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of vectors kept in memory. A hot table touches the same few files again and again.
const CAPACITY: u64 = 64 << 20;

#[derive(Debug)]
struct Entry {
    /// Of the descriptor the vector was read from: a vector of another version of the file is no hit.
    id: String,
    vector: Arc<DeletionVector>,
    bytes: u64,
    used: u64,
}

/// Vectors by their data file's path, the longest unused dropped first.
#[derive(Debug)]
pub(crate) struct VectorCache {
    location: TableLocation,
    entries: HashMap<String, Entry>,
    bytes: u64,
    clock: u64,
}

impl VectorCache {
    pub fn new(location: TableLocation) -> Self {
        Self { location, entries: HashMap::new(), bytes: 0, clock: 0 }
    }

    /// The vector of a file, empty if it has none.
    pub async fn get(&mut self, add: &Add) -> Result<Arc<DeletionVector>> {
        let Some(descriptor) = &add.deletion_vector else { return Ok(Arc::default()) };
        self.clock += 1;
        let id = descriptor.unique_id();
        if let Some(entry) = self.entries.get_mut(&add.path).filter(|entry| entry.id == id) {
            entry.used = self.clock;
            return Ok(Arc::clone(&entry.vector));
        }
        let vector = Arc::new(self.read(descriptor).await?);
        self.put(add, Arc::clone(&vector));
        Ok(vector)
    }

    /// Remembers the current vector of a file.
    pub fn put(&mut self, add: &Add, vector: Arc<DeletionVector>) {
        self.forget(&add.path);
        let Some(descriptor) = &add.deletion_vector else { return };
        let bytes = u64::from(descriptor.size_in_bytes.max(0).unsigned_abs());
        self.bytes += bytes;
        self.clock += 1;
        let entry = Entry { id: descriptor.unique_id(), vector, bytes, used: self.clock };
        self.entries.insert(add.path.clone(), entry);
        while self.bytes > CAPACITY && self.entries.len() > 1 {
            let oldest =
                self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(path, _)| path.clone());
            match oldest {
                Some(path) => self.forget(&path),
                None => break,
            }
        }
    }

    pub fn forget(&mut self, path: &str) {
        if let Some(entry) = self.entries.remove(path) {
            self.bytes = self.bytes.saturating_sub(entry.bytes);
        }
    }

    async fn read(&self, descriptor: &DvDescriptor) -> Result<DeletionVector> {
        let failed = |source| DeltaError::DeletionVector { table: self.location.uri().to_owned(), source };
        if let Some(vector) = descriptor.parse_inline().map_err(failed)? {
            return Ok(vector);
        }
        let DvLocation::Relative(relative) = descriptor.location().map_err(failed)? else {
            return Err(DeltaError::UnsupportedFeature {
                table: self.location.uri().to_owned(),
                feature: "deletion vectors outside the table's folder".to_owned(),
            });
        };
        // The size is at most 2 GiB, a signed 32-bit number in the descriptor.
        let range = descriptor.byte_range().map_err(failed)?;
        let path = self.location.child(&relative)?;
        let bytes = self.location.store().get_range(&path, range).await;
        let bytes = bytes.map_err(DeltaError::store("read", path.to_string()))?;
        descriptor.parse_stored(&bytes).map_err(failed)
    }

    /// Writes vectors into one new file and returns a descriptor for each. No vectors, no file.
    pub async fn write(&self, vectors: &[&DeletionVector]) -> Result<Vec<DvDescriptor>> {
        if vectors.is_empty() {
            return Ok(Vec::new());
        }
        let failed = |source| DeltaError::DeletionVector { table: self.location.uri().to_owned(), source };
        let mut file = DvFileWriter::new();
        let mut descriptors = Vec::with_capacity(vectors.len());
        for vector in vectors {
            descriptors.push(file.add(vector).map_err(failed)?);
        }
        let (path, bytes) = file.finish();
        let path = self.location.child(&path)?;
        crash_point!("vectors-before-put");
        self.location.put(&path, bytes.into()).await?;
        crash_point!("vectors-after-put");
        Ok(descriptors)
    }
}
