//! Against the Delta kernel's own reader and writer, in both directions.

use crate::deletion_vector::{DeletionVector, DvDescriptor, DvFileWriter, DvStorage};
use bytes::Bytes;
use delta_kernel::actions::deletion_vector::{DeletionVectorDescriptor, DeletionVectorStorageType};
use delta_kernel::actions::deletion_vector_writer::{KernelDeletionVector, StreamingDeletionVectorWriter};
use delta_kernel::{DeltaResult, Error, FileMeta, FileSlice, StorageHandler};
use std::sync::Arc;
use url::Url;

/// A store with one file under any name; reading is all that the kernel does with it.
struct OneFile {
    url: Url,
    bytes: Bytes,
}

fn read_only<T>() -> DeltaResult<T> {
    Err(Error::unsupported("this store can only be read"))
}

impl StorageHandler for OneFile {
    fn read_files(&self, files: Vec<FileSlice>) -> DeltaResult<Box<dyn Iterator<Item = DeltaResult<Bytes>>>> {
        assert_eq!(files, [(self.url.clone(), None)]);
        Ok(Box::new(std::iter::once(Ok(self.bytes.clone()))))
    }

    fn list_from(&self, _path: &Url) -> DeltaResult<Box<dyn Iterator<Item = DeltaResult<FileMeta>>>> {
        read_only()
    }

    fn copy_atomic(&self, _from: &Url, _to: &Url) -> DeltaResult<()> {
        read_only()
    }

    fn put(&self, _path: &Url, _data: Bytes, _overwrite: bool) -> DeltaResult<()> {
        read_only()
    }

    fn head(&self, _path: &Url) -> DeltaResult<FileMeta> {
        read_only()
    }

    fn delete(&self, _path: &Url) -> DeltaResult<()> {
        read_only()
    }
}

fn samples() -> Vec<Vec<u64>> {
    vec![
        vec![0],
        vec![3, 4, 7, 11, 18, 29],
        (0..70_000).collect(),
        (0..2_000_000).step_by(3).collect(),
        (100..100_000).chain([4_000_000, u64::from(u32::MAX) - 1]).collect(),
    ]
}

#[test]
fn the_kernel_reads_the_vectors_we_write() {
    let table = Url::parse("memory:///table/").unwrap();
    let mut file = DvFileWriter::new();
    let descriptors = samples()
        .into_iter()
        .map(|rows| file.add(&DeletionVector::from_iter(rows)).unwrap())
        .collect::<Vec<_>>();
    let (path, bytes) = file.finish();
    let store = Arc::new(OneFile { url: table.join(&path).unwrap(), bytes: bytes.into() });
    for (ours, rows) in descriptors.iter().zip(samples()) {
        let theirs = DeletionVectorDescriptor::try_new(
            DeletionVectorStorageType::PersistedRelative,
            ours.path_or_inline_dv.as_str(),
            ours.offset,
            ours.size_in_bytes,
            ours.cardinality,
        )
        .unwrap();
        assert_eq!(theirs.row_indexes(store.clone(), &table).unwrap(), rows);
        assert_eq!(theirs.unique_id(), ours.unique_id());
    }
}

#[test]
fn we_read_the_vectors_that_the_kernel_writes() {
    let mut bytes = Vec::new();
    let mut writer = StreamingDeletionVectorWriter::new(&mut bytes);
    let descriptors = samples()
        .into_iter()
        .map(|rows| {
            let mut vector = KernelDeletionVector::new();
            vector.add_deleted_row_indexes(rows);
            let written = writer.write_deletion_vector(vector).unwrap();
            DvDescriptor {
                storage_type: DvStorage::Absolute,
                path_or_inline_dv: "memory:///table/vectors.bin".into(),
                offset: Some(written.offset),
                size_in_bytes: written.size_in_bytes,
                cardinality: written.cardinality,
            }
        })
        .collect::<Vec<_>>();
    writer.finalize().unwrap();
    for (descriptor, rows) in descriptors.iter().zip(samples()) {
        assert!(descriptor.parse_file(&bytes).unwrap().iter().eq(rows));
    }
}
