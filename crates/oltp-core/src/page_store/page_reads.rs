//! Reading pages: one range read for a miss, with what lies beside it.

use std::sync::Arc;

use super::layer_format::{LayerDefect, LayerIndex, RunEntry, WINDOW_BLOCKS, unpack};
use super::manifest_view::ManifestView;
use super::page::{Page, RelationFile};
use super::{FileEntry, LayerRef, PageStore, object_names};
use crate::ids::{LayerSequence, PageKey};
use crate::{CoreError, Result};

/// Readahead past this (2 MiB) delays the page that was asked for more than it helps the next.
const READAHEAD_LIMIT: u32 = 256;

/// Where a page was found, and what was looked at before.
struct Found<'a> {
    layer: &'a LayerRef,
    index: Arc<LayerIndex>,
    newer: Vec<(LayerSequence, Arc<LayerIndex>)>,
}

impl PageStore {
    /// One page; `None` when it was never written, or was cut off since: it reads as zeros.
    ///
    /// # Errors
    /// The store failed, or the object or the page is damaged.
    pub async fn read_page(&self, view: &ManifestView, key: PageKey) -> Result<Option<Page>> {
        let mut pages = self.read_where(view, key, 1, |block| block == key.block).await?;
        Ok(pages.pop().map(|(_, page)| page))
    }

    /// One page and its neighbours in the same file, with a single range read: those of the windows from
    /// the page's own to that of `key.block + max_pages - 1`, as far as the same layer has their newest
    /// versions. By block, ascending; also some before `key.block`. When the page itself is not among
    /// them, it reads as zeros; other blocks that are not among them are simply not known.
    ///
    /// # Errors
    /// The store failed, or the object or a page is damaged.
    pub async fn read_run(
        &self,
        view: &ManifestView,
        key: PageKey,
        max_pages: u32,
    ) -> Result<Vec<(u32, Page)>> {
        self.read_where(view, key, max_pages.clamp(1, READAHEAD_LIMIT), |_| true).await
    }

    async fn read_where(
        &self,
        view: &ManifestView,
        key: PageKey,
        max_pages: u32,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<Vec<(u32, Page)>> {
        let Some(file) = view.file(key.file) else { return Ok(Vec::new()) };
        let end = key.block.saturating_add(max_pages - 1).min(last_block(file));
        let last_window = end / WINDOW_BLOCKS;
        if u64::from(key.block) >= file.blocks() {
            return Ok(Vec::new());
        }
        let Some(found) = self.find(view, file, key, last_window).await? else { return Ok(Vec::new()) };
        let runs = neighbours(&found.index, key, last_window);
        let mut pages = self.fetch(found.layer, runs).await?;
        pages.retain(|(page, _)| wanted(page.block) && is_newest(file, &found, page.block));
        self.verified(file, found.layer, pages)
    }

    /// The layer that has the newest version of a page.
    async fn find<'a>(
        &self,
        view: &'a ManifestView,
        file: &FileEntry,
        key: PageKey,
        last_window: u32,
    ) -> Result<Option<Found<'a>>> {
        let window = key.block / WINDOW_BLOCKS;
        let first = PageKey { block: window.saturating_mul(WINDOW_BLOCKS), ..key };
        let last_block = last_window.saturating_mul(WINDOW_BLOCKS).saturating_add(WINDOW_BLOCKS - 1);
        let last = PageKey { block: last_block, ..key };
        let mut newer = Vec::new();
        for stratum in view.strata() {
            for layer in stratum.between(first, last) {
                let index = self.index(layer).await?;
                let has = index.run(key.file, window).is_some_and(|run| run.has(key.block));
                if has && !file.is_dead(layer.sequence, key.block) {
                    return Ok(Some(Found { layer, index, newer }));
                }
                newer.push((stratum.sequence, index));
            }
        }
        Ok(None)
    }

    /// Reads runs that follow each other in a layer, in one go.
    pub(super) async fn fetch(&self, layer: &LayerRef, runs: &[RunEntry]) -> Result<Vec<(PageKey, Page)>> {
        let path = object_names::layer(layer);
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(Vec::new()) };
        let stored = self.storage.get_range(&path, first.offset..last.end()).await?;
        let stored =
            stored.ok_or_else(|| CoreError::ObjectMissing { object: self.storage.name_of(&path) })?;
        let mut pages = Vec::new();
        for run in runs {
            let range = usize::try_from(run.offset - first.offset)
                .ok()
                .and_then(|at| stored.get(at..at.checked_add(run.length as usize)?));
            let unpacked = unpack(run, range.unwrap_or_default());
            pages.extend(unpacked.map_err(|defect| self.layer_damaged(layer, &defect))?);
        }
        Ok(pages)
    }

    /// The index of a layer, from memory or by one read.
    pub(super) async fn index(&self, layer: &LayerRef) -> Result<Arc<LayerIndex>> {
        self.indexes.get(layer.id, || self.load_index(layer)).await
    }

    async fn load_index(&self, layer: &LayerRef) -> Result<LayerIndex> {
        let path = object_names::layer(layer);
        let tail = self.storage.get_range(&path, layer.index_offset..layer.bytes).await?;
        let tail = tail.ok_or_else(|| CoreError::ObjectMissing { object: self.storage.name_of(&path) })?;
        let index = LayerIndex::from_tail(&tail, layer.index_offset)
            .map_err(|defect| self.layer_damaged(layer, &defect))?;
        if index.footer.index_checksum != layer.index_checksum || index.footer.pages != layer.pages {
            return Err(self.damaged(&path, "it is another layer than the manifest names".to_owned()));
        }
        Ok(index)
    }

    fn verified(
        &self,
        file: &FileEntry,
        layer: &LayerRef,
        pages: Vec<(PageKey, Page)>,
    ) -> Result<Vec<(u32, Page)>> {
        if let Some(relation) = RelationFile::of(&file.path) {
            for (key, page) in &pages {
                relation.verify(key.block, page.bytes()).map_err(|reason| CoreError::PageDamaged {
                    path: file.path.clone(),
                    block: key.block,
                    reason,
                    origin: self.storage.name_of(&object_names::layer(layer)),
                })?;
            }
        }
        Ok(pages.into_iter().map(|(key, page)| (key.block, page)).collect())
    }

    pub(super) fn layer_damaged(&self, layer: &LayerRef, defect: &LayerDefect) -> CoreError {
        let path = object_names::layer(layer);
        match defect {
            LayerDefect::TooNew(found) => {
                CoreError::ObjectTooNew { object: self.storage.name_of(&path), found: *found, known: 1 }
            }
            other => self.damaged(&path, other.to_string()),
        }
    }

    pub(super) fn damaged(&self, path: &object_store::path::Path, reason: String) -> CoreError {
        CoreError::ObjectDamaged { object: self.storage.name_of(path), reason }
    }
}

fn last_block(file: &FileEntry) -> u32 {
    u32::try_from(file.blocks().saturating_sub(1)).unwrap_or(u32::MAX)
}

/// The runs of the file from the page's window to the last one; they lie side by side.
fn neighbours(index: &LayerIndex, key: PageKey, last_window: u32) -> &[RunEntry] {
    let start = index.position(key.file, key.block / WINDOW_BLOCKS).unwrap_or(index.runs().len());
    let from = index.runs().get(start..).unwrap_or_default();
    let count = from.partition_point(|run| run.key() <= (key.file, last_window));
    from.get(..count).unwrap_or_default()
}

/// Whether the version of a block in the layer that was found is the one that counts.
fn is_newest(file: &FileEntry, found: &Found<'_>, block: u32) -> bool {
    let superseded = found.newer.iter().any(|(sequence, index)| {
        let has = index.run(file.id, block / WINDOW_BLOCKS).is_some_and(|run| run.has(block));
        has && !file.is_dead(*sequence, block)
    });
    block <= last_block(file) && !superseded && !file.is_dead(found.layer.sequence, block)
}
