//! The page store: pages of data directories in an object store.
//!
//! Two kinds of objects. A *layer* holds pages, sorted, and is written once. A *manifest* is one branch at
//! one moment: all its files, and the layers that have their pages. Layers are shared by every branch of
//! a project, and with the projects born from it as a template.
//!
//! ```text
//!                    ┌───────────── ManifestView ─────────────┐
//!   read_page(key) ──► newest stratum first: which layer has it? ──► index (cached) ──► one range read
//!
//!   capture ──► LayerWriter ──► layers ──┐
//!                                        ├──► publish(manifest n+1): put if absent, or fenced
//!   manifest n ──────────────────────────┘
//! ```
//!
//! The invariant: **what a manifest names is there before the manifest is**, and stays while any manifest
//! names it. So a manifest that can be read can be started from, and branching is copying one.
//!
//! Pages of relations are verified by Postgres's own checksum whenever they are read here, and by
//! [`verify_page`] wherever they are captured.

mod branches;
mod collection;
mod compaction;
mod index_cache;
mod inspection;
mod layer_format;
mod layer_merge;
mod layer_writer;
mod manifest;
mod manifest_cache;
mod manifest_format;
mod manifest_view;
mod object_names;
mod page;
mod page_reads;
mod projects;
mod publishing;
mod retention;

use std::sync::Arc;
use std::time::Duration;

use crate::storage::Storage;
use index_cache::IndexCache;
use manifest_cache::{HeadCache, NamedLayers};

pub use collection::Collection;
pub use compaction::Compaction;
pub use inspection::{BranchInspection, Defect, Inspection, ObjectCount, ProjectInspection};
pub use layer_format::{LayerDefect, LayerObject, WINDOW_BLOCKS};
pub use layer_writer::LayerWriter;
pub use manifest::{
    BranchState, DirectoryEntry, FileEntry, LayerRef, Manifest, ManifestBody, ManifestHead, ManifestKind,
    ParentPoint, RecoveryTarget, SymlinkEntry, Truncation, WalSpan,
};
pub use manifest_format::ManifestDefect;
pub use manifest_view::ManifestView;
pub use object_names::{WalChunkName, wal as wal_folder};
pub use page::{PAGE_BYTES, Page, PageDefect, RelationFile, verify_page};
pub use projects::ProjectRecord;

/// What nothing refers to, or is no longer wanted, is deleted only after this time, so that work under way
/// (an upload before its manifest, a branch being made) finds what it builds on.
pub const GRACE: Duration = Duration::from_secs(3600);

/// The pages of every project in one storage. Cheap to clone; clones share their caches.
#[derive(Debug, Clone)]
pub struct PageStore {
    storage: Storage,
    indexes: Arc<IndexCache>,
    heads: Arc<HeadCache>,
    named: Arc<NamedLayers>,
}

impl PageStore {
    /// A page store in this storage.
    pub fn new(storage: Storage) -> PageStore {
        PageStore { storage, indexes: Arc::default(), heads: Arc::default(), named: Arc::default() }
    }

    /// The storage that it lies in.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }
}

#[cfg(test)]
mod tests;
