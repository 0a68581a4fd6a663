//! A Parquet file in an object store, as Parquet's reader asks for it.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a file's end read at once: the footer of a thousand column chunks fits.
const FOOTER_GUESS: usize = 64 << 10;

/// One file, by path and length.
#[derive(Debug)]
pub(super) struct ParquetFile {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
}

impl ParquetFile {
    /// Finds a file; the store is asked for its length when the log does not say it.
    pub(super) async fn find(
        objects: &Arc<dyn ObjectStore>,
        path: &Path,
        size: Option<u64>,
    ) -> Result<ParquetFile> {
        let size = match size {
            Some(size) => size,
            None => objects.head(path).await.map_err(external)?.size,
        };
        Ok(ParquetFile { objects: Arc::clone(objects), path: path.clone(), size })
    }
}

impl AsyncFileReader for ParquetFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move { self.objects.get_range(&self.path, range).await.map_err(external) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        async move { self.objects.get_ranges(&self.path, &ranges).await.map_err(external) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        async move {
            let size = self.size;
            let reader = ParquetMetaDataReader::new()
                .with_prefetch_hint(Some(FOOTER_GUESS))
                .with_arrow_reader_options(options);
            reader.load_and_finish(self, size).await.map(Arc::new)
        }
        .boxed()
    }
}

fn external(source: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(source))
}
