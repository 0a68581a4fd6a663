//! The data directory as a value: names, files and the gate, without FUSE.
//!
//! The order of locks, for every operation: the gate, then the tree or the list of files, then one file,
//! then the cache's slots. Nothing waits for the store or for room while it holds any of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::RwLock;
use rustix::io::Errno;
use tokio::sync::watch;

use super::file::{File, Stop};
use super::file_role::{self, FileRole};
use super::gate::{Gate, Passage};
use super::page_cache::{Claim, PAGE_BYTES, PageCache};
use super::tree::{Change, Ino, Kind, Node, Tree};
use crate::ids::FileId;

/// Longer names do not fit a directory entry of the kernel.
pub(super) const NAME_LIMIT: usize = 255;

/// How many slots the clock looks at in one go.
const SWEEP: usize = 64;

/// How many slots one request looks at, even if it wants little: where clean pages are rare, they are found
/// in the course of several requests, and meanwhile there is room above the limit.
const LOOKS_AT_LEAST: usize = 256;

#[derive(Debug)]
pub(super) struct DataDirectory {
    tree: RwLock<Tree>,
    files: RwLock<HashMap<Ino, Arc<File>>>,
    pub(super) gate: Gate,
    pub(super) cache: PageCache,
    next_id: AtomicU64,
    /// When the mount was made: the time of what has none of its own.
    pub(super) mounted_at: SystemTime,
    /// The local disk failed: what the cache holds cannot be believed any more.
    failed: AtomicBool,
    /// Dirty pages take most of the cache.
    pressure: watch::Sender<bool>,
}

/// What the kernel wants to know of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) ino: Ino,
    pub(super) kind: NodeKind,
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) modified: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeKind {
    Directory,
    File,
    Symlink,
}

impl NodeKind {
    fn of(node: &Node) -> NodeKind {
        match node.kind {
            Kind::Directory(_) => NodeKind::Directory,
            Kind::File(_) => NodeKind::File,
            Kind::Symlink(_) => NodeKind::Symlink,
        }
    }
}

impl DataDirectory {
    /// Over a tree whose files are given; new nodes get ids from `next_id` on.
    pub(super) fn new(tree: Tree, files: Vec<Arc<File>>, next_id: FileId, cache: PageCache) -> DataDirectory {
        DataDirectory {
            tree: RwLock::new(tree),
            files: RwLock::new(files.into_iter().map(|file| (file.ino, file)).collect()),
            gate: Gate::new(),
            cache,
            next_id: AtomicU64::new(next_id.0),
            mounted_at: SystemTime::now(),
            failed: AtomicBool::new(false),
            pressure: watch::Sender::new(false),
        }
    }

    /// The first id that no node of this mount has.
    pub(super) fn next_id(&self) -> FileId {
        FileId(self.next_id.load(Ordering::Relaxed))
    }

    fn draw_id(&self) -> FileId {
        FileId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn file(&self, ino: Ino) -> Result<Arc<File>, Errno> {
        self.files.read().get(&ino).cloned().ok_or(Errno::NOENT)
    }

    /// Every file there is, in no order.
    pub(super) fn files(&self) -> Vec<Arc<File>> {
        self.files.read().values().cloned().collect()
    }

    /// The local disk refused something: nothing that is in the cache may be captured from now on.
    pub(super) fn fail(&self) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::error!("the local page cache failed; this compute has to be stopped and started again");
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn lookup(&self, parent: Ino, name: &str) -> Result<Attributes, Errno> {
        let ino = self.tree.read().lookup(parent, name)?;
        self.attributes(ino)
    }

    pub(super) fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        if let Ok(file) = self.file(ino) {
            // An open file that has no name any more still has attributes.
            let mode = self.tree.read().node(ino).map_or(0o600, |node| node.mode);
            let state = file.read();
            return Ok(Attributes {
                ino,
                kind: NodeKind::File,
                mode,
                size: state.size,
                modified: state.modified,
            });
        }
        let tree = self.tree.read();
        let node = tree.node(ino)?;
        let size = match &node.kind {
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        Ok(Attributes { ino, kind: NodeKind::of(node), mode: node.mode, size, modified: self.mounted_at })
    }

    pub(super) fn symlink_target(&self, ino: Ino) -> Result<Box<str>, Errno> {
        match &self.tree.read().node(ino)?.kind {
            Kind::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::INVAL),
        }
    }

    /// The names in a directory as they are now, with what each stands for.
    pub(super) fn list(&self, ino: Ino) -> Result<Vec<(Ino, NodeKind, Box<str>)>, Errno> {
        let tree = self.tree.read();
        let parent = tree.node(ino)?.parent;
        let mut entries =
            vec![(ino, NodeKind::Directory, ".".into()), (parent, NodeKind::Directory, "..".into())];
        for (name, child) in tree.children(ino)? {
            entries.push((*child, NodeKind::of(tree.node(*child)?), name.clone()));
        }
        Ok(entries)
    }

    pub(super) fn create_file(&self, parent: Ino, name: &str, mode: u32) -> Result<Arc<File>, Errno> {
        let passage = self.gate.pass();
        let mut tree = self.tree.write();
        let role = FileRole::of(&tree.path_in(parent, checked(name)?)?);
        let id = self.draw_id();
        let file = File::empty(id, role);
        let change = Change::Add {
            parent,
            name: name.into(),
            ino: file.ino,
            kind: Kind::File(id),
            mode: mode & 0o7777,
        };
        tree.apply(&change)?;
        passage.note(change);
        self.files.write().insert(file.ino, Arc::clone(&file));
        Ok(file)
    }

    pub(super) fn create_directory(&self, parent: Ino, name: &str, mode: u32) -> Result<Attributes, Errno> {
        self.add_node(parent, name, Kind::Directory(BTreeMap::new()), mode)
    }

    pub(super) fn create_symlink(&self, parent: Ino, name: &str, target: &str) -> Result<Attributes, Errno> {
        self.add_node(parent, name, Kind::Symlink(target.into()), 0o777)
    }

    fn add_node(&self, parent: Ino, name: &str, kind: Kind, mode: u32) -> Result<Attributes, Errno> {
        let passage = self.gate.pass();
        let mut tree = self.tree.write();
        let path = tree.path_in(parent, checked(name)?)?;
        if path.starts_with(file_role::TABLESPACES) {
            tracing::error!(
                path,
                "a tablespace was refused: its files would lie outside of the page store. Leave out TABLESPACE, or \
                 set allow_in_place_tablespaces off again"
            );
            return Err(Errno::PERM);
        }
        let ino = Ino::of(self.draw_id());
        let change = Change::Add { parent, name: name.into(), ino, kind, mode: mode & 0o7777 };
        tree.apply(&change)?;
        passage.note(change);
        drop((tree, passage));
        self.attributes(ino)
    }

    pub(super) fn remove(&self, parent: Ino, name: &str, directory: bool) -> Result<(), Errno> {
        let passage = self.gate.pass();
        let mut tree = self.tree.write();
        let is_directory = tree.children(tree.lookup(parent, name)?).is_ok();
        match (directory, is_directory) {
            (true, false) => return Err(Errno::NOTDIR),
            (false, true) => return Err(Errno::ISDIR),
            _ => {}
        }
        let change = Change::Remove { parent, name: name.into() };
        let unlinked = tree.apply(&change)?;
        passage.note(change);
        drop(tree);
        if let Some((ino, _)) = unlinked {
            self.unlink_file(&passage, ino);
        }
        Ok(())
    }

    pub(super) fn rename(
        &self,
        from: Ino,
        name: &str,
        to: Ino,
        new_name: &str,
        replace: bool,
    ) -> Result<(), Errno> {
        let passage = self.gate.pass();
        let mut tree = self.tree.write();
        if !replace && tree.lookup(to, new_name).is_ok() {
            return Err(Errno::EXIST);
        }
        let moved = tree.lookup(from, name)?;
        let change = Change::Rename { from, name: name.into(), to, new_name: checked(new_name)?.into() };
        let unlinked = tree.apply(&change)?;
        passage.note(change);
        self.assign_roles(&passage, &tree, moved)?;
        drop(tree);
        if let Some((ino, _)) = unlinked {
            self.unlink_file(&passage, ino);
        }
        Ok(())
    }

    /// A file under another name may be of another kind: a temporary one that becomes permanent is
    /// captured.
    fn assign_roles(&self, passage: &Passage<'_>, tree: &Tree, moved: Ino) -> Result<(), Errno> {
        let mut open = vec![moved];
        while let Some(ino) = open.pop() {
            if let Ok(children) = tree.children(ino) {
                open.extend(children.values().copied());
            } else if let Ok(file) = self.file(ino) {
                file.change(passage).role = FileRole::of(&tree.path(ino)?);
            }
        }
        Ok(())
    }

    pub(super) fn set_mode(&self, ino: Ino, mode: u32) -> Result<(), Errno> {
        let passage = self.gate.pass();
        let mut tree = self.tree.write();
        let change = Change::Mode { ino, mode: mode & 0o7777 };
        tree.apply(&change)?;
        passage.note(change);
        Ok(())
    }

    fn unlink_file(&self, passage: &Passage<'_>, ino: Ino) {
        let Ok(file) = self.file(ino) else { return };
        file.hold().unlinked = true;
        self.drop_if_unused(passage, &file);
    }

    /// The kernel was told of this node once more.
    pub(super) fn remember(&self, ino: Ino) {
        if let Ok(file) = self.file(ino) {
            file.lookups.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The kernel forgets so many of those.
    pub(super) fn forget(&self, ino: Ino, lookups: u64) {
        let Ok(file) = self.file(ino) else { return };
        file.lookups.fetch_sub(lookups, Ordering::AcqRel);
        if file.read().unlinked {
            self.drop_if_unused(&self.gate.pass(), &file);
        }
    }

    fn drop_if_unused(&self, passage: &Passage<'_>, file: &Arc<File>) {
        if file.lookups.load(Ordering::Acquire) == 0 && self.files.write().remove(&file.ino).is_some() {
            file.drop_pages(passage, &self.cache);
        }
    }

    /// Makes room for `pages` more, as far as clean pages are found with reasonable effort.
    pub(super) fn make_room(&self, pages: usize) {
        let wanted = self.cache.shortage(pages);
        if wanted > 0 {
            // Each page is looked at twice before it goes: once to take its mark away, once to take it.
            let looks = LOOKS_AT_LEAST.max(wanted.min(pages) * 4);
            self.evict(wanted, looks, |claim| self.cache.may_evict(claim));
        }
    }

    /// Takes every clean page there is out of the cache, `wanted` at most. Returns how many that were.
    pub(super) fn evict_thoroughly(&self, wanted: usize) -> usize {
        self.evict(wanted, self.cache.slots() * 2, |_| true)
    }

    fn evict(&self, wanted: usize, mut looks: usize, may_go: impl Fn(Claim) -> bool) -> usize {
        let mut evicted = 0;
        // Looking for clean pages where all are dirty would cost every writer a round.
        while evicted < wanted && looks > 0 && self.cache.in_use() > self.gate.dirty_pages() {
            let candidates = self.cache.sweep(SWEEP.min(looks));
            looks -= candidates.len().min(looks);
            if candidates.is_empty() {
                break;
            }
            for (slot, owner) in candidates {
                let evict = |file: Arc<File>| file.evict(&self.cache, owner.block, slot);
                if may_go(owner.claim) && self.file(owner.ino).is_ok_and(evict) {
                    evicted += 1;
                }
            }
        }
        evicted
    }

    /// Writes, or tells what has to happen first.
    pub(super) fn write(&self, file: &Arc<File>, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.make_room(bytes.len().div_ceil(PAGE_BYTES as usize) + 1);
        let passage = self.gate.pass();
        let done = file.write_at(&passage, &self.cache, offset, bytes);
        self.weigh();
        self.watch(done)
    }

    /// Tells whoever makes the cuts when one is due because of the dirty pages.
    pub(super) fn weigh(&self) {
        // Scratch pages stay dirty: a cut would not help.
        let counted = self.gate.dirty_pages().saturating_sub(self.cache.scratch());
        let high = counted * 2 > u64::from(self.cache.limit());
        self.pressure.send_if_modified(|now| std::mem::replace(now, high) != high);
    }

    pub(super) fn pressure(&self) -> watch::Receiver<bool> {
        self.pressure.subscribe()
    }

    pub(super) fn truncate(&self, file: &Arc<File>, size: u64) -> Result<(), Stop> {
        let done = file.truncate(&self.gate.pass(), &self.cache, size);
        self.watch(done)
    }

    pub(super) fn extend(&self, file: &Arc<File>, size: u64) -> Result<(), Stop> {
        file.extend(&self.gate.pass(), size)
    }

    pub(super) fn zero_range(&self, file: &Arc<File>, offset: u64, end: u64) -> Result<(), Stop> {
        let done = file.zero_range(&self.gate.pass(), &self.cache, offset, end);
        self.watch(done)
    }

    pub(super) fn read(&self, file: &File, offset: u64, length: usize) -> Result<Vec<u8>, Stop> {
        file.read_at(&self.cache, offset, length)
    }

    /// A failed write leaves a page of unknown contents behind; a full disk leaves everything as it was.
    fn watch<T>(&self, outcome: Result<T, Stop>) -> Result<T, Stop> {
        if let Err(Stop::Failed(errno)) = &outcome
            && !matches!(*errno, Errno::NOSPC | Errno::FBIG)
        {
            self.fail();
        }
        outcome
    }
}

fn checked(name: &str) -> Result<&str, Errno> {
    if name.len() > NAME_LIMIT { Err(Errno::NAMETOOLONG) } else { Ok(name) }
}
