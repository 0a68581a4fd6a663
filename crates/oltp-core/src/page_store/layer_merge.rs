//! Merging strata: for every page the newest version that anybody can still see.
//!
//! Strata are read side by side, window by window, each in reads of [`READ_BYTES`] at most; memory
//! holds one such read for each stratum, however large the layers are.

use std::collections::VecDeque;
use std::sync::Arc;

use super::compaction::window_start;
use super::layer_format::{LayerIndex, RunEntry, WINDOW_BLOCKS};
use super::layer_writer::LayerWriter;
use super::manifest_view::ManifestView;
use super::page::{Page, verify_page};
use super::{LayerRef, PageStore, object_names};
use crate::ids::{FileId, PageKey};
use crate::{CoreError, Result};

/// Large enough that a store's latency does not count, small enough for a dozen at a time.
const READ_BYTES: u64 = 2 << 20;
/// Pages of zeros take next to nothing in a layer, and 8 KiB each in memory: 8 MiB of them.
const READ_RUNS: usize = 64;

/// Several strata on their way into one.
pub(super) struct LayerMerge<'a> {
    store: &'a PageStore,
    view: &'a ManifestView,
    /// Newest first.
    cursors: Vec<Cursor>,
}

/// Reads the layers of a stratum from their first page to their last.
struct Cursor {
    layers: VecDeque<LayerRef>,
    open: Option<OpenLayer>,
    /// Unpacked windows that were not taken yet.
    ready: VecDeque<Window>,
}

struct OpenLayer {
    layer: LayerRef,
    index: Arc<LayerIndex>,
    next_run: usize,
}

struct Window {
    at: (FileId, u32),
    layer: LayerRef,
    pages: Vec<(PageKey, Page)>,
}

impl<'a> LayerMerge<'a> {
    /// Merges strata, given newest first, of which some layers may be left out.
    pub(super) fn new(
        store: &'a PageStore,
        view: &'a ManifestView,
        strata: Vec<Vec<LayerRef>>,
    ) -> LayerMerge<'a> {
        let cursors = strata
            .into_iter()
            .map(|layers| Cursor { layers: layers.into(), open: None, ready: VecDeque::new() })
            .collect();
        LayerMerge { store, view, cursors }
    }

    /// Writes every page that is still seen. A new layer begins at each of `borders`.
    pub(super) async fn run(mut self, writer: &mut LayerWriter, mut borders: Vec<PageKey>) -> Result<()> {
        borders.sort();
        let mut borders = borders.into_iter().peekable();
        loop {
            let mut next: Option<(FileId, u32)> = None;
            for cursor in &mut self.cursors {
                if let Some(window) = cursor.peek(self.store).await? {
                    next = Some(next.map_or(window.at, |next| next.min(window.at)));
                }
            }
            let Some(at) = next else { return Ok(()) };
            let mut passed = false;
            while borders.next_if(|border| window_start(*border) <= at).is_some() {
                passed = true;
            }
            if passed {
                writer.start_new_layer().await?;
            }
            for (key, page) in self.newest(at)? {
                writer.add(key, &page).await?;
            }
        }
    }

    /// Takes a window from every cursor that has it, and of each page the newest version that counts.
    fn newest(&mut self, at: (FileId, u32)) -> Result<Vec<(PageKey, Page)>> {
        let file = self.view.file(at.0);
        let mut newest: [Option<(PageKey, Page)>; WINDOW_BLOCKS as usize] = Default::default();
        for cursor in &mut self.cursors {
            let Some(window) = cursor.take(at) else { continue };
            let Some(file) = file else { continue };
            for (key, page) in window.pages {
                let slot = newest.get_mut((key.block % WINDOW_BLOCKS) as usize);
                let Some(slot) = slot.filter(|slot| slot.is_none()) else { continue };
                if file.is_dead(window.layer.sequence, key.block) || u64::from(key.block) >= file.blocks() {
                    continue;
                }
                verify_page(&file.path, key.block, page.bytes()).map_err(|reason| {
                    CoreError::PageDamaged {
                        path: file.path.clone(),
                        block: key.block,
                        reason,
                        origin: self.store.storage.name_of(&object_names::layer(&window.layer)),
                    }
                })?;
                *slot = Some((key, page));
            }
        }
        Ok(newest.into_iter().flatten().collect())
    }
}

impl Cursor {
    /// The next window, read when it is not there yet.
    async fn peek(&mut self, store: &PageStore) -> Result<Option<&Window>> {
        while self.ready.is_empty() {
            let open = match &mut self.open {
                Some(open) if open.next_run < open.index.runs().len() => open,
                _ => {
                    let Some(layer) = self.layers.pop_front() else { return Ok(None) };
                    let index = store.index(&layer).await?;
                    self.open.insert(OpenLayer { layer, index, next_run: 0 })
                }
            };
            let runs = open.next_runs();
            let pages = store.fetch(&open.layer, runs).await?;
            let count = runs.len();
            for window in pages.chunk_by(|(left, _), (right, _)| window_start(*left) == window_start(*right))
            {
                if let Some((key, _)) = window.first() {
                    let (at, layer) = (window_start(*key), open.layer.clone());
                    self.ready.push_back(Window { at, layer, pages: window.to_vec() });
                }
            }
            open.next_run += count;
        }
        Ok(self.ready.front())
    }

    fn take(&mut self, at: (FileId, u32)) -> Option<Window> {
        self.ready.pop_front_if(|window| window.at == at)
    }
}

impl OpenLayer {
    /// The runs of the next read: at least one.
    fn next_runs(&self) -> &[RunEntry] {
        let rest = self.index.runs().get(self.next_run..).unwrap_or_default();
        let limit = rest.first().map_or(0, |run| run.offset).saturating_add(READ_BYTES);
        let count = rest.partition_point(|run| run.end() <= limit).clamp(1, READ_RUNS);
        rest.get(..count).unwrap_or(rest)
    }
}
