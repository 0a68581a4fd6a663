//! From a cut to a manifest's body, while the writers go on.
//!
//! ```text
//!   cut ─▶ journal ──────────▶ names as of the cut ─┐
//!       └▶ touched files ─▶ frozen pages ─▶ layers ─┴─▶ ManifestBody ─▶ (the compute publishes it)
//! ```
//!
//! Every page of a relation is verified on its way out. What the capture cannot bring into the store it
//! gives back: the next cut has it again. Once the layers are there, the mount reads through them,
//! whether or not the manifest is ever published: the next one names them as well.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::data_directory::DataDirectory;
use super::fetch::Fetcher;
use super::file::File;
use super::file_role::{self, FileRole};
use super::frozen::FrozenFile;
use super::gate::Closed;
use super::page_cache::PAGE;
use super::tree::{Change, Ino, Kind, Tree};
use crate::ids::{BranchId, FileId, LayerSequence, PageKey, ProjectName, Term};
use crate::page_store::{
    Compaction, DirectoryEntry, FileEntry, LayerRef, Manifest, ManifestBody, ManifestView, Page,
    SymlinkEntry, Truncation,
};
use crate::{CoreError, Result};

/// How many pages are read and compressed before other tasks get their turn.
const TURN: usize = 64;

/// Whether Postgres had stopped when the cut was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureKind {
    /// It runs. The next start recovers, so unlogged relations are left out: they are reset.
    Running,
    /// It had shut down cleanly. The next start believes what it finds, so unlogged relations are in.
    CleanShutdown,
}

/// What a capture brought into the store.
#[derive(Debug)]
pub struct Captured {
    /// All that a manifest says of files and layers. `wal` is that of the manifest mounted: the caller's
    /// to update.
    pub body: ManifestBody,
    /// The cluster's control file as of the cut.
    pub pg_control: Bytes,
    /// Pages that went into new layers.
    pub pages: u64,
}

/// The data directory as of the last cut, and what of it is in the store.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) tree: Tree,
    manifest: Arc<Manifest>,
    records: HashMap<FileId, Record>,
}

/// What the store has of a file.
#[derive(Debug, Clone)]
struct Record {
    size: u64,
    truncations: Vec<Truncation>,
}

impl Mirror {
    pub(super) fn new(tree: Tree, manifest: Arc<Manifest>) -> Mirror {
        let records = manifest.body.files.iter();
        let records =
            records.map(|file| (file.id, Record { size: file.size, truncations: file.truncations.clone() }));
        Mirror { tree, records: records.collect(), manifest }
    }

    /// Brings the names up to a cut.
    pub(super) fn apply(&mut self, journal: Vec<Change>) -> Result<()> {
        for change in journal {
            self.tree.apply(&change).map_err(|errno| CoreError::JournalUnsound {
                change: format!("{change:?}"),
                source: errno.into(),
            })?;
        }
        Ok(())
    }

    /// Layers were merged: the next manifests name what came of them. Nothing when some of them are not
    /// named any more.
    pub(super) fn compacted(&mut self, compaction: &Compaction) -> Option<Arc<ManifestView>> {
        let mut manifest = Manifest::clone(&self.manifest);
        if !compaction.apply(&mut manifest.body) {
            return None;
        }
        self.manifest = Arc::new(manifest);
        Some(Arc::new(ManifestView::new(Arc::clone(&self.manifest))))
    }
}

/// The files of a cut, until it is settled or given back. Dropped in between, it gives them back.
pub(super) struct Taken {
    directory: Arc<DataDirectory>,
    closed: Closed,
}

impl Taken {
    pub(super) fn new(directory: Arc<DataDirectory>, closed: Closed) -> Taken {
        Taken { directory, closed }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        for file in self.closed.touched.drain(..) {
            file.give_back(&self.directory.gate.pass(), &self.directory.cache);
        }
    }
}

/// A file of the cut that goes into the store.
struct Outgoing {
    file: Arc<File>,
    path: String,
    frozen: FrozenFile,
}

/// Who writes the layers.
#[derive(Debug, Clone)]
pub(super) struct Author {
    pub(super) project: ProjectName,
    pub(super) branch: BranchId,
    pub(super) term: Term,
}

/// Brings a cut into the store. The mirror has its journal already.
pub(super) async fn capture(
    mirror: &mut Mirror,
    mut taken: Taken,
    fetcher: &Fetcher,
    author: &Author,
    kind: CaptureKind,
) -> Result<Captured> {
    let directory = Arc::clone(&taken.directory);
    if directory.has_failed() {
        return Err(CoreError::PageCacheFailed);
    }
    let outgoing = choose(mirror, &mut taken, kind);
    let sequence = mirror.manifest.body.next_layer_sequence;
    let layers = upload(&directory, fetcher, author, sequence, &outgoing).await?;
    let pg_control = control_file(&directory, fetcher, mirror, &outgoing).await?;
    let pages = outgoing.iter().map(|out| out.frozen.pages.len() as u64).sum();

    for out in &outgoing {
        mirror.record(sequence, out);
    }
    let mut layer_list = mirror.manifest.body.layers.clone();
    layer_list.extend(layers);
    let next_sequence = if outgoing.is_empty() { sequence } else { sequence.next() };
    let body = mirror.body(layer_list, next_sequence, directory.next_id());
    mirror.manifest = Arc::new(Manifest { head: mirror.manifest.head.clone(), body: body.clone() });
    fetcher.replace_view(Arc::new(ManifestView::new(Arc::clone(&mirror.manifest))));
    for file in taken.closed.touched.drain(..) {
        file.settle(&directory.cache, &directory.gate);
    }
    directory.weigh();
    fetcher.settled();
    Ok(Captured { body, pg_control, pages })
}

/// Sorts out what of the cut goes into the store; the rest is withheld at once.
fn choose(mirror: &Mirror, taken: &mut Taken, kind: CaptureKind) -> Vec<Outgoing> {
    let directory = Arc::clone(&taken.directory);
    let epoch = taken.closed.epoch;
    let unlogged = match kind {
        CaptureKind::Running => unlogged_relations(&mirror.tree),
        CaptureKind::CleanShutdown => BTreeSet::new(),
    };
    if kind == CaptureKind::CleanShutdown {
        taken.closed.touched.extend(directory.files().into_iter().filter(|file| file.join_cut()));
    }
    let mut outgoing = Vec::new();
    taken.closed.touched.sort_by_key(|file| file.id);
    taken.closed.touched.retain(|file| {
        let Some(frozen) = file.frozen_at(epoch) else { return false };
        let path = mirror.tree.path(file.ino).ok();
        let path = path.filter(|path| !FileRole::of(path).scratch && !is_reset(path, &unlogged));
        match path {
            Some(path) => {
                outgoing.push(Outgoing { file: Arc::clone(file), path, frozen });
                true
            }
            None => {
                file.withhold(&directory.cache, &directory.gate);
                false
            }
        }
    });
    outgoing
}

/// The relations that have an init fork: (directory, number).
pub(super) fn unlogged_relations(tree: &Tree) -> BTreeSet<(String, String)> {
    tree.walk()
        .iter()
        .filter_map(|(path, _, _)| file_role::relation(path))
        .filter(|(_, init)| *init)
        .map(|(relation, _)| (relation.directory.to_owned(), relation.number.to_owned()))
        .collect()
}

/// True for what recovery throws away: the forks of unlogged relations, but not their init forks.
pub(super) fn is_reset(path: &str, unlogged: &BTreeSet<(String, String)>) -> bool {
    !unlogged.is_empty()
        && file_role::relation(path).is_some_and(|(relation, init)| {
            !init && unlogged.contains(&(relation.directory.to_owned(), relation.number.to_owned()))
        })
}

async fn upload(
    directory: &DataDirectory,
    fetcher: &Fetcher,
    author: &Author,
    sequence: LayerSequence,
    outgoing: &[Outgoing],
) -> Result<Vec<LayerRef>> {
    let mut writer = fetcher.store().write_layers(&author.project, author.branch, author.term, sequence)?;
    let mut pages = 0;
    for out in outgoing {
        let relation = FileRole::of(&out.path).relation;
        for (block, slot) in &out.frozen.pages {
            let mut bytes = vec![0; PAGE];
            directory.cache.read(*slot, 0, &mut bytes).map_err(CoreError::io("read", "the page cache"))?;
            if let Some(relation) = relation {
                relation.verify(*block, &bytes).map_err(|reason| CoreError::PageDamaged {
                    path: out.path.clone(),
                    block: *block,
                    reason,
                    origin: "the page cache, on its way into the store".to_owned(),
                })?;
            }
            writer.add(PageKey { file: out.file.id, block: *block }, &Page::padded(&bytes)).await?;
            pages += 1;
            if pages % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
    writer.finish().await
}

/// The control file as of the cut: from the cut if it was written, else as the store has it.
async fn control_file(
    directory: &DataDirectory,
    fetcher: &Fetcher,
    mirror: &Mirror,
    outgoing: &[Outgoing],
) -> Result<Bytes> {
    if let Some(out) = outgoing.iter().find(|out| out.path == file_role::PG_CONTROL)
        && let Some((_, slot)) = out.frozen.pages.first()
    {
        let mut bytes = vec![0; PAGE];
        directory.cache.read(*slot, 0, &mut bytes).map_err(CoreError::io("read", "the page cache"))?;
        return Ok(bytes.into());
    }
    let node = mirror.tree.find(file_role::PG_CONTROL).and_then(|ino| mirror.tree.node(ino).ok());
    let Some(Kind::File(file)) = node.map(|node| &node.kind) else {
        return Err(CoreError::NoControlFile { origin: "the data directory".to_owned() });
    };
    let key = PageKey { file: *file, block: 0 };
    let page = fetcher.store().read_page(&fetcher.view(), key).await?;
    Ok(page.unwrap_or_else(Page::zeroed).bytes().clone())
}

impl Mirror {
    /// Notes what the store now has of a file.
    fn record(&mut self, sequence: LayerSequence, out: &Outgoing) {
        let known = self.records.get(&out.file.id).cloned();
        let mut truncations = known.clone().map(|record| record.truncations).unwrap_or_default();
        // What the store never had needs no tombstone.
        if let Some(from_block) = out.frozen.truncated_to.filter(|_| known.is_some()) {
            // An earlier one that cut off less says nothing more.
            truncations.retain(|cut| cut.from_block < from_block);
            truncations.push(Truncation { sequence, from_block });
        }
        self.records.insert(out.file.id, Record { size: out.frozen.size, truncations });
    }

    fn body(&mut self, layers: Vec<LayerRef>, next_sequence: LayerSequence, next_id: FileId) -> ManifestBody {
        let oldest = layers.iter().map(|layer| layer.sequence).min().unwrap_or(next_sequence);
        let unlogged = unlogged_relations(&self.tree);
        let before = &self.manifest.body;
        let mut body = ManifestBody {
            postgres_major: before.postgres_major,
            system_identifier: before.system_identifier,
            wal: before.wal.clone(),
            next_file_id: next_id,
            next_layer_sequence: next_sequence,
            directories: Vec::new(),
            files: Vec::with_capacity(self.records.len()),
            symlinks: Vec::new(),
            layers,
        };
        let mut named = HashSet::with_capacity(self.records.len());
        for (path, _, node) in self.tree.walk() {
            if FileRole::of(&path).scratch {
                continue;
            }
            match &node.kind {
                Kind::Directory(_) => body.directories.push(DirectoryEntry { path, mode: node.mode }),
                Kind::Symlink(target) => {
                    body.symlinks.push(SymlinkEntry { path, target: target.to_string() });
                }
                Kind::File(id) => {
                    let record = self.records.get(id);
                    // Never captured, and nothing that an empty file could stand for.
                    if record.is_none() && is_reset(&path, &unlogged) {
                        continue;
                    }
                    let (size, mut truncations) =
                        record.map_or((0, Vec::new()), |record| (record.size, record.truncations.clone()));
                    truncations.retain(|cut| cut.sequence > oldest);
                    named.insert(*id);
                    body.files.push(FileEntry { path, id: *id, size, mode: node.mode, truncations });
                }
            }
        }
        self.records.retain(|id, _| named.contains(id));
        body
    }

    /// The nodes of a manifest as a tree. New directories and links take ids from `next_id` on.
    ///
    /// After anything but a clean shutdown the forks that recovery resets are left out.
    pub(super) fn tree_of(manifest: &Manifest, clean: bool, next_id: &mut FileId) -> Result<Tree> {
        let mut tree = Tree::new(0o700);
        let unsound = |path: &str| {
            let path = path.to_owned();
            move |errno: rustix::io::Errno| CoreError::JournalUnsound {
                change: format!("the manifest's entry `{path}`"),
                source: errno.into(),
            }
        };
        let mut add = |tree: &mut Tree, path: &str, kind: Kind, mode: u32, ino: Option<Ino>| -> Result<()> {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let parent = tree.find(parent).ok_or(rustix::io::Errno::NOENT).map_err(unsound(path))?;
            let ino = ino.unwrap_or_else(|| {
                let id = *next_id;
                *next_id = id.next();
                Ino::of(id)
            });
            let change = Change::Add { parent, name: name.into(), ino, kind, mode };
            tree.apply(&change).map(drop).map_err(unsound(path))
        };
        for entry in &manifest.body.directories {
            add(&mut tree, &entry.path, Kind::Directory(Default::default()), entry.mode, None)?;
        }
        for entry in &manifest.body.symlinks {
            add(&mut tree, &entry.path, Kind::Symlink(entry.target.as_str().into()), 0o777, None)?;
        }
        let unlogged: BTreeSet<(String, String)> = manifest
            .body
            .files
            .iter()
            .filter_map(|entry| file_role::relation(&entry.path))
            .filter(|(_, init)| *init && !clean)
            .map(|(relation, _)| (relation.directory.to_owned(), relation.number.to_owned()))
            .collect();
        for entry in manifest.body.files.iter().filter(|entry| !is_reset(&entry.path, &unlogged)) {
            add(&mut tree, &entry.path, Kind::File(entry.id), entry.mode, Some(Ino::of(entry.id)))?;
        }
        Ok(tree)
    }
}
