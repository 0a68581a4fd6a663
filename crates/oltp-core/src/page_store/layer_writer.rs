//! Writing layers: sorted pages in, objects out.
//!
//! However many pages come, memory holds one layer being filled and [`UPLOADS`] on their way; the layers
//! of one writer follow each other without overlap and share their sequence.

use bytes::Bytes;
use tokio::task::JoinSet;

use super::layer_format::LayerBuilder;
use super::object_names;
use super::page::Page;
use super::{LayerRef, PageStore};
use crate::ids::{BranchId, LayerId, LayerSequence, PageKey, ProjectName, Term};
use crate::{CoreError, Result, Timestamp};

/// A put of this size takes a store well under a second and is cheap to do again.
const LAYER_BYTES: usize = 32 << 20;
/// One travels while the next is compressed.
const UPLOADS: usize = 2;

/// Takes pages in ascending order and turns them into layers.
pub struct LayerWriter {
    store: PageStore,
    project: ProjectName,
    branch: BranchId,
    term: Term,
    sequence: LayerSequence,
    layer_bytes: usize,
    builder: LayerBuilder,
    last: Option<PageKey>,
    uploads: JoinSet<Result<LayerRef>>,
    written: Vec<LayerRef>,
}

impl PageStore {
    /// Starts writing layers of one sequence: the manifest's `next_layer_sequence`. Until `branch` publishes its
    /// next manifest they stay, however long that takes; of what that one does not name, only what was written
    /// less than [`GRACE`](super::GRACE) before may still be named by a later one.
    ///
    /// # Errors
    /// There is no memory for a compressor.
    pub fn write_layers(
        &self,
        project: &ProjectName,
        branch: BranchId,
        term: Term,
        sequence: LayerSequence,
    ) -> Result<LayerWriter> {
        Ok(LayerWriter {
            store: self.clone(),
            project: project.clone(),
            branch,
            term,
            sequence,
            layer_bytes: LAYER_BYTES,
            builder: new_builder()?,
            last: None,
            uploads: JoinSet::new(),
            written: Vec::new(),
        })
    }
}

fn new_builder() -> Result<LayerBuilder> {
    LayerBuilder::new().map_err(CoreError::io("compress pages for", "a layer"))
}

impl LayerWriter {
    /// Adds a page. The caller has verified it: [`super::verify_page`].
    ///
    /// # Errors
    /// The key is not above the last one, or an earlier layer could not be put.
    pub async fn add(&mut self, key: PageKey, page: &Page) -> Result<()> {
        if let Some(after) = self.last.filter(|last| *last >= key) {
            return Err(CoreError::PageOutOfOrder { key, after });
        }
        // A run is never split, so no two layers of one sequence have pages of one window.
        if self.builder.is_full(self.layer_bytes) && self.builder.starts_a_run(key) {
            self.upload().await?;
        }
        self.last = Some(key);
        self.builder.add(key, page).map_err(CoreError::io("compress pages for", "a layer"))
    }

    /// Waits until every layer is in the store, and survives a power cut there; in order of their pages.
    /// No pages, no layers.
    ///
    /// # Errors
    /// A layer could not be put.
    pub async fn finish(mut self) -> Result<Vec<LayerRef>> {
        self.upload().await?;
        while self.take_one_upload().await? {}
        self.written.sort_by_key(|layer| layer.first);
        Ok(self.written)
    }

    /// Whatever comes next goes into another layer.
    pub(super) async fn start_new_layer(&mut self) -> Result<()> {
        self.upload().await
    }

    async fn upload(&mut self) -> Result<()> {
        let builder = std::mem::replace(&mut self.builder, new_builder()?);
        let Some(layer) = builder.finish().map_err(CoreError::io("compress pages for", "a layer"))? else {
            return Ok(());
        };
        if self.uploads.len() >= UPLOADS {
            self.take_one_upload().await?;
        }
        let reference = LayerRef {
            project: self.project.clone(),
            branch: self.branch,
            term: self.term,
            id: LayerId::random(),
            sequence: self.sequence,
            first: layer.first,
            last: layer.last,
            pages: layer.footer.pages,
            bytes: layer.bytes.len() as u64,
            index_offset: layer.footer.index_offset,
            index_checksum: layer.footer.index_checksum,
            written_at: Timestamp::now(),
        };
        let (store, bytes) = (self.store.clone(), Bytes::from(layer.bytes));
        self.uploads.spawn(async move {
            // A name that is taken was taken by an attempt of ours: the id is random.
            store.storage.put_if_absent(&object_names::layer(&reference), bytes).await?;
            Ok(reference)
        });
        Ok(())
    }

    async fn take_one_upload(&mut self) -> Result<bool> {
        match self.uploads.join_next().await {
            None => Ok(false),
            Some(Ok(written)) => {
                self.written.push(written?);
                Ok(true)
            }
            Some(Err(ended)) => Err(CoreError::io("write", "a layer")(std::io::Error::other(ended))),
        }
    }

    #[cfg(test)]
    pub(super) fn with_layers_of(mut self, bytes: usize) -> Self {
        self.layer_bytes = bytes;
        self
    }
}
