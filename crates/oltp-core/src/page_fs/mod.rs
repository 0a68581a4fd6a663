//! The page filesystem: a data directory whose pages lie in the page store.
//!
//! Postgres sees an ordinary directory. Reads come from the local cache, else from the store; sizes and
//! listings come from the manifest; writes stay here until a *cut* is captured.
//!
//! ```text
//!   Postgres ── kernel page cache ── FUSE ──▶ DataDirectory ──▶ PageCache (local slots)
//!                                                │    ▲               │
//!                                     Gate: epochs    │ Fetcher       │ capture
//!                                                │    └── PageStore ◀─┘
//!                                                └─▶ Cut ─▶ ManifestBody
//! ```
//!
//! A cut is what a power failure at that instant would have left, had all writes reached the disk:
//! Postgres's own crash recovery starts from it, given the WAL up to what was flushed when the cut was
//! made. The instant is an epoch flip (`gate`); what is written afterwards goes to other slots
//! (`frozen`), so nothing is copied and nobody waits for the upload.
//!
//! The invariant: **local page state is a cache**. It may be thrown away at any time except between a
//! write and its capture, and after an unclean end it is (`clean_stop`). That is why Postgres runs with
//! `fsync=off` on it, and why its WAL never lies here: `pg_wal` is a link to a plain directory, whose
//! contents the keepers hold.

mod capture;
mod clean_stop;
mod data_directory;
mod fetch;
mod file;
mod file_role;
mod filesystem;
mod frozen;
mod gate;
mod import;
mod materialise;
mod mount_point;
mod page_cache;
mod page_table;
mod page_writes;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::ids::{FileId, PageKey, Term};
use crate::page_store::{Manifest, ManifestKind, ManifestView, PageStore, RecoveryTarget};
use crate::service_user::ServiceUser;
use crate::{CoreError, Result, private_file};
use capture::{Author, Mirror, Taken};
use data_directory::DataDirectory;
use fetch::Fetcher;
use file::File;
use file_role::FileRole;
use filesystem::{Answering, PageFilesystem};
use page_cache::{Owner, PAGE_BYTES, PageCache, Slot};
use tree::{Change, Ino, Kind, Tree};

pub use capture::{CaptureKind, Captured};
pub use import::import_cluster;
pub use materialise::{materialise, stamp};
pub use mount_point::detach_stale_mounts;
pub(crate) use mount_point::free_mount_point;

/// More threads than this only contend: each request takes microseconds.
const THREADS: usize = 8;

/// Where and how to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// An empty directory that Postgres's user can reach; it becomes the data directory.
    pub mount_point: PathBuf,
    /// Where the local page cache lies. One mount at a time uses it.
    pub cache_directory: PathBuf,
    /// How many bytes of pages to keep; dirty ones may take as much again.
    pub cache_limit: u64,
    /// What the link `pg_wal` points at: a directory of Postgres's user on a plain disk.
    pub wal_directory: PathBuf,
    /// The user that Postgres runs as: everything belongs to it.
    pub owner: ServiceUser,
    /// The term of the compute: the layers it writes carry it.
    pub term: Term,
}

/// A mounted manifest.
///
/// Dropping it detaches the mount without recording a clean stop.
#[derive(Debug)]
pub struct Mounted {
    options: MountOptions,
    directory: Arc<DataDirectory>,
    fetcher: Arc<Fetcher>,
    mirror: tokio::sync::Mutex<Mirror>,
    /// Changes of names that cuts took and the mirror does not have yet.
    journal: Mutex<Vec<Change>>,
    author: Author,
    /// One cut at a time.
    cutting: Arc<Semaphore>,
    session: Option<BackgroundSession>,
}

/// An instant of the data directory. Dropped without being captured, its pages are dirty again.
#[must_use = "a cut does nothing until it is captured"]
pub struct Cut {
    taken: Taken,
    held: Duration,
    _turn: OwnedSemaphorePermit,
}

impl Cut {
    /// How long changes of the data directory were held up.
    pub fn held(&self) -> Duration {
        self.held
    }
}

impl std::fmt::Debug for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cut").field("held", &self.held).finish_non_exhaustive()
    }
}

/// What a mount has in its cache and did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheUse {
    /// Bytes of pages in the cache.
    pub cached_bytes: u64,
    /// Bytes of pages that no completed capture holds.
    pub dirty_bytes: u64,
    /// Range reads from the store.
    pub fetches: u64,
}

impl Mounted {
    /// Mounts a manifest. What a killed process left at the mount point is detached first.
    ///
    /// # Errors
    /// There is no FUSE here, something living is mounted there, or the local disk refuses.
    pub async fn mount(options: MountOptions, store: PageStore, manifest: Arc<Manifest>) -> Result<Mounted> {
        mount_point::require_fuse()?;
        let runtime = Handle::current();
        // Looking at mount points and answering the kernel's first request both may block.
        tokio::task::spawn_blocking(move || Mounted::mount_blocking(options, store, manifest, runtime))
            .await
            .map_err(|ended| CoreError::io("mount", "the data directory")(std::io::Error::other(ended)))?
    }

    fn mount_blocking(
        options: MountOptions,
        store: PageStore,
        manifest: Arc<Manifest>,
        runtime: Handle,
    ) -> Result<Mounted> {
        free_mount_point(&options.mount_point)?;
        let temporary = prepare_cache_directory(&options)?;
        let mut next_id = manifest.body.next_file_id;
        let mut tree = Mirror::tree_of(&manifest, is_clean(&manifest.head.kind), &mut next_id)?;
        add_links(&mut tree, &options, &temporary, &mut next_id)?;
        let files = files_of(&tree, &manifest);
        let cache = open_cache(&options, &manifest, &files)?;

        let (project, branch) = (manifest.head.project.clone(), manifest.head.branch);
        let author = Author { project, branch, term: options.term };
        let view = Arc::new(ManifestView::new(Arc::clone(&manifest)));
        let directory = Arc::new(DataDirectory::new(tree.clone(), files, next_id, cache));
        let fetcher = Arc::new(Fetcher::new(store, view));
        let answering = Answering {
            directory: Arc::clone(&directory),
            fetcher: Arc::clone(&fetcher),
            runtime,
            cache_directory: options.cache_directory.clone(),
            owner: options.owner.ids(),
        };
        let session = start_session(&options, PageFilesystem::new(Arc::new(answering)))?;
        Ok(Mounted {
            directory,
            fetcher,
            mirror: tokio::sync::Mutex::new(Mirror::new(tree, manifest)),
            journal: Mutex::default(),
            author,
            cutting: Arc::new(Semaphore::new(1)),
            session: Some(session),
            options,
        })
    }

    /// The data directory.
    pub fn mount_point(&self) -> &Path {
        &self.options.mount_point
    }

    /// True when a cut now would hold anything that the last one did not.
    pub fn is_dirty(&self) -> bool {
        self.directory.gate.has_changes()
    }

    /// True while dirty pages take more than half of the cache: time for a cut, whatever the clock says.
    pub fn pressure(&self) -> watch::Receiver<bool> {
        self.directory.pressure()
    }

    /// What is in the cache.
    pub fn cache_use(&self) -> CacheUse {
        CacheUse {
            cached_bytes: self.directory.cache.in_use() * PAGE_BYTES,
            dirty_bytes: self.directory.gate.dirty_pages() * PAGE_BYTES,
            fetches: self.fetcher.fetches(),
        }
    }

    /// Makes a cut. Takes microseconds, and waits for the second half of a page whose first half was just
    /// written.
    ///
    /// # Errors
    /// Another cut is not captured yet, the local cache failed, or half a page stayed outstanding.
    pub fn cut(&self) -> Result<Cut> {
        let turn = Arc::clone(&self.cutting).try_acquire_owned().map_err(|_| CoreError::CutUnderWay)?;
        if self.directory.has_failed() {
            return Err(CoreError::PageCacheFailed);
        }
        let mut closed = self.directory.gate.close().map_err(|_| CoreError::HalfPageWritten)?;
        self.journal.lock().append(&mut closed.journal);
        let held = closed.held;
        Ok(Cut { taken: Taken::new(Arc::clone(&self.directory), closed), held, _turn: turn })
    }

    /// Brings a cut of a running Postgres into the store. When it fails, the pages are dirty again.
    ///
    /// # Errors
    /// The store failed, or a page is damaged.
    pub async fn capture(&self, cut: Cut) -> Result<Captured> {
        self.capture_as(cut, CaptureKind::Running).await
    }

    /// Brings the cut after a clean shutdown into the store, unlogged relations included.
    ///
    /// # Errors
    /// As [`capture`](Self::capture).
    pub async fn capture_clean(&self, cut: Cut) -> Result<Captured> {
        self.capture_as(cut, CaptureKind::CleanShutdown).await
    }

    async fn capture_as(&self, cut: Cut, kind: CaptureKind) -> Result<Captured> {
        let mut mirror = self.mirror.lock().await;
        let journal = std::mem::take(&mut *self.journal.lock());
        mirror.apply(journal)?;
        let Cut { taken, _turn, .. } = cut;
        capture::capture(&mut mirror, taken, &self.fetcher, &self.author, kind).await
    }

    /// Merges layers if that is worth it, while everything goes on. What is captured from now on names
    /// the merged ones; false when there was nothing to do.
    ///
    /// # Errors
    /// The store failed, or a layer is damaged: then everything stays as it is.
    pub async fn compact(&self) -> Result<bool> {
        let view = self.fetcher.view();
        let Some(compaction) = self.fetcher.store().compact(&view, self.author.term).await? else {
            return Ok(false);
        };
        let mut mirror = self.mirror.lock().await;
        let compacted = mirror.compacted(&compaction);
        Ok(compacted.map(|view| self.fetcher.replace_view(view)).is_some())
    }

    /// Takes the mount away. The cache is worthless afterwards.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn unmount(mut self) -> Result<()> {
        self.end_session().await
    }

    /// Takes the mount away after a clean stop whose last capture was published as `published`: the next
    /// mount of that manifest here finds its cache warm.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn unmount_clean(mut self, published: &Manifest) -> Result<()> {
        self.end_session().await?;
        let directory = Arc::clone(&self.directory);
        let (path, head) = (record_path(&self.options), published.head.clone());
        tokio::task::spawn_blocking(move || record_clean_stop(&directory, &path, &head))
            .await
            .map_err(|ended| CoreError::io("record", "the clean stop")(std::io::Error::other(ended)))?
    }

    async fn end_session(&mut self) -> Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let point = self.options.mount_point.clone();
        tokio::task::spawn_blocking(move || end_session(session, &point))
            .await
            .map_err(|ended| CoreError::io("unmount", "the data directory")(std::io::Error::other(ended)))?
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        if let Err(error) = mount_point::detach(&self.options.mount_point) {
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::error!(error, "a mount stays behind; the next start here detaches it");
        }
        drop(session);
    }
}

/// Whether Postgres comes up from it without recovery.
fn is_clean(kind: &ManifestKind) -> bool {
    matches!(kind, ManifestKind::CleanShutdown | ManifestKind::Branched { target: RecoveryTarget::None })
}

fn record_path(options: &MountOptions) -> PathBuf {
    options.cache_directory.join("clean_stop")
}

/// Makes the cache's directory and in it an empty one for Postgres's temporary files; returns what links to that.
fn prepare_cache_directory(options: &MountOptions) -> Result<PathBuf> {
    private_file::create_directory(&options.cache_directory, 0o711)?;
    let directory = &options.cache_directory;
    let temporary =
        directory.canonicalize().map_err(CoreError::io("find", directory))?.join("temporary_files");
    match std::fs::remove_dir_all(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(CoreError::io("empty", &temporary)(error));
        }
        _ => {}
    }
    private_file::create_directory(&temporary, 0o700)?;
    options.owner.own(&temporary)?;
    Ok(as_seen_from_base(options, temporary))
}

/// The link's target: relative where cache and mount lie side by side, because Postgres's user need not be able to walk
/// the whole way from the root.
fn as_seen_from_base(options: &MountOptions, temporary: PathBuf) -> PathBuf {
    let side_by_side = options.cache_directory.parent() == options.mount_point.parent();
    match (options.cache_directory.file_name(), temporary.file_name()) {
        (Some(cache), Some(name)) if side_by_side => Path::new("../..").join(cache).join(name),
        _ => temporary,
    }
}

/// Adds the links that the mount has and no manifest names.
fn add_links(tree: &mut Tree, options: &MountOptions, temporary: &Path, next_id: &mut FileId) -> Result<()> {
    for (path, target) in
        [(file_role::WAL_LINK, options.wal_directory.as_path()), (file_role::TEMPORARY_FILES_LINK, temporary)]
    {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let (Some(parent), None) = (tree.find(parent), tree.find(path)) else { continue };
        let Some(target) = target.to_str() else {
            return Err(CoreError::io("link to", target)(std::io::ErrorKind::InvalidFilename.into()));
        };
        let ino = Ino::of(*next_id);
        *next_id = next_id.next();
        let change =
            Change::Add { parent, name: name.into(), ino, kind: Kind::Symlink(target.into()), mode: 0o777 };
        tree.apply(&change).map_err(|errno| CoreError::io("link", path)(errno.into()))?;
    }
    Ok(())
}

/// A file of the mount for each of the manifest that the tree has.
fn files_of(tree: &Tree, manifest: &Manifest) -> Vec<Arc<File>> {
    let modified = manifest.head.published_at.into();
    let entries = manifest.body.files.iter().filter(|entry| tree.node(Ino::of(entry.id)).is_ok());
    entries.map(|entry| File::stored(entry.id, FileRole::of(&entry.path), entry.size, modified)).collect()
}

/// Opens the cache: warm after a clean stop that led to this very manifest, else empty.
fn open_cache(options: &MountOptions, manifest: &Manifest, files: &[Arc<File>]) -> Result<PageCache> {
    let path = options.cache_directory.join("pages");
    let slots = clean_stop::take(&record_path(options), &manifest.head)?;
    let length = path.metadata().map_or(0, |metadata| metadata.len());
    // A file that is shorter than its record says is not the one that was recorded.
    let slots = slots.filter(|slots| length >= slots.len() as u64 * PAGE_BYTES);
    let cache =
        PageCache::open(&path, options.cache_limit, slots.is_some()).map_err(CoreError::io("open", &path))?;
    let by_id: HashMap<FileId, &Arc<File>> = files.iter().map(|file| (file.id, file)).collect();
    let adopt = |(slot, key): (u32, Option<PageKey>)| {
        let key = key?;
        let file = by_id.get(&key.file)?;
        let claim = file.adopt(key.block, Slot(slot))?;
        Some(Owner { ino: file.ino, block: key.block, claim })
    };
    if let Some(slots) = slots {
        cache.restore((0..).zip(slots).map(adopt).collect());
    }
    Ok(cache)
}

fn start_session(options: &MountOptions, filesystem: PageFilesystem) -> Result<BackgroundSession> {
    private_file::create_directory(&options.mount_point, 0o711)?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(mount_point::SOURCE.to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
    ];
    let (uid, _) = options.owner.ids();
    let oneself = rustix::process::geteuid().as_raw() == uid;
    config.acl = if oneself { SessionACL::Owner } else { SessionACL::All };
    config.n_threads =
        Some(std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, THREADS)));
    config.clone_fd = true;
    let point = &options.mount_point;
    Session::new(filesystem, point, &config)
        .and_then(Session::spawn)
        .map_err(|source| CoreError::Mount { mount_point: point.clone(), source })
}

fn end_session(session: BackgroundSession, point: &Path) -> Result<()> {
    let refused = |source| CoreError::Mount { mount_point: point.to_owned(), source };
    let busy = |error: &std::io::Error| error.raw_os_error() == Some(Errno::EBUSY as i32);
    match session.umount_and_join() {
        Err(error) if busy(&error) => {
            tracing::warn!(mount_point = %point.display(), "files are still open; the mount ends when they are closed");
            mount_point::detach(point)
        }
        ended => ended.map_err(refused),
    }
}

/// Writes down which clean pages lie where, once they are safe on the disk.
fn record_clean_stop(
    directory: &DataDirectory,
    path: &Path,
    head: &crate::page_store::ManifestHead,
) -> Result<()> {
    if directory.has_failed() {
        return Ok(());
    }
    let mut slots = vec![None; directory.cache.slots()];
    for file in directory.files() {
        for (block, slot) in file.clean_pages() {
            if let Some(entry) = slots.get_mut(slot.0 as usize) {
                *entry = Some(PageKey { file: file.id, block });
            }
        }
    }
    directory.cache.sync().map_err(CoreError::io("flush", "the page cache"))?;
    clean_stop::write(path, head, &slots)
}
