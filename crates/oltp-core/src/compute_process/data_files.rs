//! Where Postgres's data directory comes from and goes to: mounted pages, or ordinary files.
//!
//! Mounted is how it is meant: pages come as they are read, and what is written is known, so that a cut is an instant and
//! costs the dirty pages. `mount: copy` is for machines without FUSE. Everything is fetched before Postgres starts, and
//! nobody sees its writes: pages go into the store when it has stopped in order, and not before. Until then the newest
//! manifest is that of the start, and whatever came after is in the WAL, which the keepers and the store hold from there on.
//! A start after a crash replays all of it.
//!
//! The invariant is the mount's: **local files are a cache**. After an unclean end they are thrown away; after a clean one a
//! record names the manifest that they are.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{BranchId, ProjectName, Term};
use crate::page_fs::{
    Captured, Cut, MountOptions, Mounted, free_mount_point, import_cluster, materialise, stamp,
};
use crate::page_store::{Manifest, PageStore};
use crate::{CoreError, Result, private_file};

/// How Postgres gets its data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mount {
    /// A page filesystem.
    #[default]
    Fuse,
    /// Ordinary files, all of them fetched first.
    Copy,
}

/// A data directory.
#[derive(Debug)]
pub(crate) enum DataFiles {
    Mounted(Box<Mounted>),
    Copied(Copied),
}

impl DataFiles {
    /// Has the manifest's data directory at the mount point.
    ///
    /// # Errors
    /// As for [`Mounted::mount`] and [`materialise`].
    pub(crate) async fn open(
        mount: Mount,
        options: MountOptions,
        pages: PageStore,
        manifest: Arc<Manifest>,
    ) -> Result<DataFiles> {
        match mount {
            Mount::Fuse => {
                let (data, record) = (options.mount_point.clone(), record_path(&options));
                blocking(&options.mount_point, move || discard_copy(&data, &record)).await?;
                Ok(DataFiles::Mounted(Box::new(Mounted::mount(options, pages, manifest).await?)))
            }
            Mount::Copy => Ok(DataFiles::Copied(Copied::open(options, pages, manifest).await?)),
        }
    }

    /// Whether a running Postgres can be cut.
    pub(crate) fn can_be_cut(&self) -> bool {
        matches!(self, DataFiles::Mounted(_))
    }

    /// Whether a cut now would hold anything new. Of ordinary files nobody knows, and none is made.
    pub(crate) fn is_dirty(&self) -> bool {
        match self {
            DataFiles::Mounted(mounted) => mounted.is_dirty(),
            DataFiles::Copied(_) => false,
        }
    }

    /// Waits until dirty pages fill the cache; for ever where there is none.
    pub(crate) async fn wait_for_pressure(&self) {
        let DataFiles::Mounted(mounted) = self else { return std::future::pending().await };
        if mounted.pressure().wait_for(|high| *high).await.is_err() {
            // The mount is gone; whoever owns it notices elsewhere.
            std::future::pending().await
        }
    }

    /// Makes a cut of a running Postgres.
    ///
    /// # Errors
    /// As for [`Mounted::cut`]; ordinary files have no such instant.
    pub(crate) fn cut(&self) -> Result<Cut> {
        match self {
            DataFiles::Mounted(mounted) => mounted.cut(),
            DataFiles::Copied(_) => Err(CoreError::NoCutOfCopies),
        }
    }

    /// Brings a cut into the store.
    ///
    /// # Errors
    /// As for [`Mounted::capture`].
    pub(crate) async fn capture(&self, cut: Cut) -> Result<Captured> {
        match self {
            DataFiles::Mounted(mounted) => mounted.capture(cut).await,
            DataFiles::Copied(_) => Err(CoreError::NoCutOfCopies),
        }
    }

    /// Brings what a Postgres that was stopped in order has left into the store.
    ///
    /// # Errors
    /// The store failed, or a page is damaged.
    pub(crate) async fn capture_stopped(&self) -> Result<Captured> {
        match self {
            DataFiles::Mounted(mounted) => mounted.capture_clean(mounted.cut()?).await,
            DataFiles::Copied(copied) => copied.capture().await,
        }
    }

    /// Merges layers if that is worth it.
    ///
    /// # Errors
    /// As for [`Mounted::compact`].
    pub(crate) async fn compact(&self) -> Result<bool> {
        match self {
            DataFiles::Mounted(mounted) => mounted.compact().await,
            DataFiles::Copied(_) => Ok(false),
        }
    }

    /// Leaves the directory after a clean stop that was published as `published`.
    ///
    /// # Errors
    /// The operating system refuses.
    pub(crate) async fn leave(self, published: &Arc<Manifest>) -> Result<()> {
        match self {
            DataFiles::Mounted(mounted) => mounted.unmount_clean(published).await,
            DataFiles::Copied(copied) => copied.leave(Arc::clone(published)).await,
        }
    }
}

/// A manifest as ordinary files.
#[derive(Debug)]
pub(crate) struct Copied {
    directory: PathBuf,
    record: PathBuf,
    pages: PageStore,
    /// What the files were made of; their times say so.
    base: Arc<Manifest>,
    author: (ProjectName, BranchId, Term),
}

impl Copied {
    async fn open(options: MountOptions, pages: PageStore, base: Arc<Manifest>) -> Result<Copied> {
        let record = record_path(&options);
        let MountOptions { mount_point: directory, wal_directory, owner, term, .. } = options;
        let (data, known, kept) = (directory.clone(), Arc::clone(&base), record.clone());
        let warm = blocking(&directory, move || take_copy(&data, &kept, &known)).await?;
        if !warm {
            materialise(&pages, &base, &directory, &wal_directory, &owner).await?;
        }
        let author = (base.head.project.clone(), base.head.branch, term);
        Ok(Copied { directory, record, pages, base, author })
    }

    async fn capture(&self) -> Result<Captured> {
        let (project, branch, term) = &self.author;
        import_cluster(&self.pages, project, *branch, *term, &self.directory, Some(&self.base)).await
    }

    async fn leave(self, published: Arc<Manifest>) -> Result<()> {
        let Copied { directory, record, .. } = self;
        let place = directory.clone();
        blocking(&place, move || {
            stamp(&directory, &published)?;
            // The record must not outlive a power failure that the files do not.
            let opened = std::fs::File::open(&directory).map_err(CoreError::io("open", &directory))?;
            rustix::fs::syncfs(&opened).map_err(|errno| CoreError::io("flush", &directory)(errno.into()))?;
            private_file::write(&record, &published.head.uid.to_string())?;
            private_file::sync_directory_of(&record)
        })
        .await
    }
}

fn record_path(options: &MountOptions) -> PathBuf {
    options.mount_point.with_extension("copied")
}

/// Whether the files at `data` are those of `manifest`, left in order; everything else is removed. From here on they are
/// whatever Postgres makes of them.
fn take_copy(data: &Path, record: &Path, manifest: &Manifest) -> Result<bool> {
    free_mount_point(data)?;
    let warm = private_file::read(record)?.is_some_and(|uid| uid == manifest.head.uid.to_string());
    forget(record)?;
    if !warm {
        std::fs::remove_dir_all(data).map_err(CoreError::io("empty", data))?;
        private_file::create_directory(data, 0o700)?;
    }
    Ok(warm)
}

/// Removes files that a start with `mount: copy` left, so that the mount does not hide them.
fn discard_copy(data: &Path, record: &Path) -> Result<()> {
    let copied = || data.join("PG_VERSION").try_exists().map_err(CoreError::io("look at", data));
    if copied()? {
        free_mount_point(data)?;
    }
    if copied()? {
        forget(record)?;
        std::fs::remove_dir_all(data).map_err(CoreError::io("empty", data))?;
        private_file::create_directory(data, 0o700)?;
    }
    Ok(())
}

fn forget(record: &Path) -> Result<()> {
    match std::fs::remove_file(record) {
        Ok(()) => private_file::sync_directory_of(record),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CoreError::io("remove", record)(error)),
    }
}

async fn blocking<T: Send + 'static>(
    place: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let worked = tokio::task::spawn_blocking(work).await;
    worked.map_err(|ended| CoreError::io("work on", place)(std::io::Error::other(ended)))?
}
