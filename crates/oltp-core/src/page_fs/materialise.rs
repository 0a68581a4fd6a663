//! `mount: copy`: a manifest as an ordinary directory, for machines without FUSE.
//!
//! Everything is fetched first, verified on the way. Each file gets the manifest's time, so that the
//! import at the next clean stop knows by time and size what was not written in between.

use std::fs::{File, FileTimes, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::task::JoinSet;

use super::capture::{Mirror, is_reset, unlogged_relations};
use super::file::blocks_of;
use super::file_role;
use super::is_clean;
use super::page_cache::PAGE_BYTES;
use crate::ids::PageKey;
use crate::page_store::{FileEntry, Manifest, ManifestView, PageStore};
use crate::service_user::ServiceUser;
use crate::{CoreError, Result};

/// Files on their way at once.
const FILES_AT_ONCE: usize = 8;

/// Pages of one range read: 2 MiB.
const PAGES_AT_ONCE: u32 = 256;

/// Writes the data directory of a manifest into `directory`, which is empty or missing, with `pg_wal` a
/// link to `wal_directory`.
///
/// # Errors
/// Something lies there already, the store or the disk failed, or a page is damaged.
pub async fn materialise(
    store: &PageStore,
    manifest: &Arc<Manifest>,
    directory: &Path,
    wal_directory: &Path,
    owner: &ServiceUser,
) -> Result<()> {
    let root = directory.to_owned();
    let (layout, wal, user) = (Arc::clone(manifest), wal_directory.to_owned(), owner.clone());
    tokio::task::spawn_blocking(move || lay_out(&layout, &root, &wal, &user))
        .await
        .map_err(ended(directory))??;

    let clean = is_clean(&manifest.head.kind);
    let mut next_id = manifest.body.next_file_id;
    let unlogged = unlogged_relations(&Mirror::tree_of(manifest, true, &mut next_id)?);
    let view = Arc::new(ManifestView::new(Arc::clone(manifest)));
    let modified = SystemTime::from(manifest.head.published_at);
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for entry in manifest.body.files.iter().filter(|entry| clean || !is_reset(&entry.path, &unlogged)) {
        if tasks.len() >= FILES_AT_ONCE
            && let Some(done) = tasks.join_next().await
        {
            done.map_err(ended(directory))??;
        }
        let (store, view, entry) = (store.clone(), Arc::clone(&view), entry.clone());
        let (path, owner) = (directory.join(&entry.path), owner.clone());
        tasks.spawn(async move { write_file(&store, &view, &entry, path, &owner, modified).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(ended(directory))??;
    }
    Ok(())
}

/// Gives every file of a materialised directory the time of `manifest`, which was just made of it by
/// import.
///
/// # Errors
/// A file of the manifest is not there.
pub fn stamp(directory: &Path, manifest: &Manifest) -> Result<()> {
    let times = FileTimes::new().set_modified(manifest.head.published_at.into());
    for entry in &manifest.body.files {
        let path = directory.join(&entry.path);
        File::open(&path)
            .and_then(|file| file.set_times(times))
            .map_err(CoreError::io("set the time of", &path))?;
    }
    Ok(())
}

fn ended(directory: &Path) -> impl FnOnce(tokio::task::JoinError) -> CoreError + use<> {
    let directory = directory.to_owned();
    move |ended| CoreError::io("fill", directory)(std::io::Error::other(ended))
}

/// Directories and links; an old page file must not survive below a new directory, so the place has to be
/// empty.
fn lay_out(manifest: &Manifest, root: &Path, wal: &Path, owner: &ServiceUser) -> Result<()> {
    match std::fs::create_dir_all(root).and_then(|()| std::fs::read_dir(root)) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(CoreError::io("fill", root)(ErrorKind::DirectoryNotEmpty.into()));
            }
        }
        Err(error) => return Err(CoreError::io("make the directory", root)(error)),
    }
    make_own(root, 0o700, owner)?;
    for entry in &manifest.body.directories {
        let path = root.join(&entry.path);
        std::fs::create_dir(&path).map_err(CoreError::io("make the directory", &path))?;
        make_own(&path, entry.mode, owner)?;
    }
    let links =
        manifest.body.symlinks.iter().map(|link| (root.join(&link.path), PathBuf::from(&link.target)));
    for (path, target) in links.chain([(root.join(file_role::WAL_LINK), wal.to_owned())]) {
        symlink(target, &path).map_err(CoreError::io("link", &path))?;
    }
    Ok(())
}

fn make_own(path: &Path, mode: u32, owner: &ServiceUser) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(CoreError::io("set the mode of", path))?;
    owner.own(path)
}

async fn write_file(
    store: &PageStore,
    view: &ManifestView,
    entry: &FileEntry,
    path: PathBuf,
    owner: &ServiceUser,
    modified: SystemTime,
) -> Result<()> {
    let file = File::create_new(&path).map_err(CoreError::io("create", &path))?;
    file.set_len(entry.size).map_err(CoreError::io("extend", &path))?;
    let mut block = 0;
    while block < blocks_of(entry.size) {
        let key = PageKey { file: entry.id, block };
        let pages = store.read_run(view, key, PAGES_AT_ONCE).await?;
        let mut next = block + 1;
        for (found, page) in &pages {
            let start = u64::from(*found) * PAGE_BYTES;
            let length =
                usize::try_from(entry.size.saturating_sub(start).min(PAGE_BYTES)).unwrap_or_default();
            let bytes = page.bytes().get(..length).unwrap_or_default();
            file.write_all_at(bytes, start).map_err(CoreError::io("write", &path))?;
            // Others may be missing in between: they are asked for one by one.
            if *found == next && *found > block {
                next += 1;
            }
        }
        block = next;
    }
    make_own(&path, entry.mode, owner)?;
    file.set_times(FileTimes::new().set_modified(modified)).map_err(CoreError::io("set the time of", &path))
}
