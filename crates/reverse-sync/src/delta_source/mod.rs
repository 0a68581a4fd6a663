//! A Delta table to read from: its versions, their schemas and their rows.
//!
//! The log is read by delta-kernel (checkpoints of every kind, column mapping, feature checks); the data files by
//! [`data_file`], which reads only the rows that are asked for. The kernel blocks, so it runs on threads of its own;
//! that also keeps a panic over damaged bytes in there from being more than an error here.
//!
//! The newest version seen is kept, so that asking for the newest costs one listing of the log behind it; and the one
//! seen before it, where whoever follows the table stands.
//!
//! The invariant: what is kept is used only while the commit that the newest ends in is the same object as when it was
//! read. A table that was dropped and made anew starts again at version 0 in the same folder, and the reader would put
//! the new table's commits on top of the old one's.

mod conform;
mod data_file;
mod lake_store;
mod parquet_file;
mod read_plan;
mod row_filter;
mod side_by_side;
mod snapshot;
mod table_version;

pub(crate) use data_file::{DataFile, RowSet};
pub use lake_store::LakeStore;
pub use read_plan::Part;
pub(crate) use read_plan::{CHANGE_TYPE, ReadPlan};
pub(crate) use side_by_side::{received, side_by_side};
pub use snapshot::Rows;
pub use table_version::TableVersion;
pub(crate) use table_version::{Column, columns};

use crate::error::{Result, ReverseSyncError, Unavailable};
use delta_kernel::snapshot::{Snapshot, SnapshotRef};
use delta_kernel::{DeltaResult, Engine};
use delta_kernel_engine::DefaultEngineBuilder;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use url::Url;

/// A Delta table to read from. Clones are cheap and share what was learnt about the log.
#[derive(Clone)]
pub struct TableSource {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Arc<dyn ObjectStore>,
    root: Path,
    url: Url,
    /// The address for messages.
    uri: String,
    engine: Arc<dyn Engine>,
    spill_folder: PathBuf,
    kept: Mutex<Option<Kept>>,
}

/// The newest version seen, the commit that it ends in as the store described it, and the version seen before it.
#[derive(Clone)]
struct Kept {
    newest: SnapshotRef,
    commit: ObjectMeta,
    before: Option<SnapshotRef>,
}

impl fmt::Debug for TableSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableSource").field("uri", &self.inner.uri).finish_non_exhaustive()
    }
}

impl TableSource {
    /// The table at a local path, `file://` or `s3://bucket/prefix`; `options` are the contract's `lake.options`.
    ///
    /// Nothing of the log is read yet.
    pub fn open(uri: &str, options: &BTreeMap<String, String>) -> Result<TableSource> {
        let store = LakeStore::open(uri, options)?;
        Ok(TableSource::in_store(&store, &store.root.clone()))
    }

    /// The table in a folder of an open store.
    pub fn in_store(store: &LakeStore, folder: &Path) -> TableSource {
        let url = store.url_of(folder);
        let uri = match url.to_file_path() {
            Ok(path) => path.to_string_lossy().trim_end_matches('/').to_owned(),
            Err(()) => url.as_str().trim_end_matches('/').to_owned(),
        };
        let inner = Inner {
            objects: Arc::clone(&store.objects),
            root: folder.clone(),
            url,
            uri,
            engine: Arc::new(DefaultEngineBuilder::new(Arc::clone(&store.objects)).build()),
            spill_folder: std::env::temp_dir(),
            kept: Mutex::new(None),
        };
        TableSource { inner: Arc::new(inner) }
    }

    /// The same, with large comparisons spilled to a folder instead of the system's temporary one.
    pub fn spilling_to(self, folder: &FilePath) -> TableSource {
        let inner = Inner {
            objects: Arc::clone(&self.inner.objects),
            root: self.inner.root.clone(),
            url: self.inner.url.clone(),
            uri: self.inner.uri.clone(),
            engine: Arc::clone(&self.inner.engine),
            spill_folder: folder.to_owned(),
            kept: Mutex::new(None),
        };
        TableSource { inner: Arc::new(inner) }
    }

    /// The table's address, for messages.
    pub fn uri(&self) -> &str {
        &self.inner.uri
    }

    /// The newest version now. One listing of the log, from the newest version seen so far on.
    pub async fn latest_version(&self) -> Result<u64> {
        Ok(self.newest_snapshot().await?.version())
    }

    /// Whether a version has been committed: one question about one object, which is what a store answers fastest and
    /// cheapest. A version that has expired from the log, or whose table is gone, is not there either.
    pub async fn has_commit(&self, version: u64) -> Result<bool> {
        let path = self.commit_path(version);
        match self.inner.objects.head(&path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.store_error(&path, source)),
        }
    }

    /// Schema, identity and properties at a version.
    pub async fn table_at(&self, version: u64) -> Result<Arc<TableVersion>> {
        let snapshot = self.snapshot_at(version).await?;
        TableVersion::new(&snapshot).map(Arc::new).map_err(|source| self.log_error(source))
    }

    pub(crate) fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.inner.objects
    }

    pub(crate) fn spill_folder(&self) -> &FilePath {
        &self.inner.spill_folder
    }

    /// The place of a commit.
    pub(crate) fn commit_path(&self, version: u64) -> Path {
        self.inner.root.clone().join("_delta_log").join(format!("{version:020}.json"))
    }

    /// The place of a data file, which the log may also name absolutely, as shallow clones do.
    pub(crate) fn path_of(&self, file: &DataFile) -> Result<Path> {
        let damaged = |reason: String| ReverseSyncError::Commit {
            table: self.inner.uri.clone(),
            version: file.version,
            reason,
        };
        if let Ok(url) = Url::parse(&file.path) {
            let here = &self.inner.url;
            if url.scheme() != here.scheme() || url.host_str() != here.host_str() {
                return Err(damaged(format!("`{}` lies in another store", file.path)));
            }
            return Path::from_url_path(url.path())
                .map_err(|source| damaged(format!("`{}` is no path: {source}", file.path)));
        }
        let decoded = percent_decode_str(&file.path)
            .decode_utf8()
            .map_err(|source| damaged(format!("`{}` is no path: {source}", file.path)))?;
        let whole = match decoded.strip_prefix('/') {
            Some(absolute) => absolute.to_owned(),
            None => format!("{}/{decoded}", self.inner.root),
        };
        Path::parse(&whole).map_err(|source| damaged(format!("`{}` is no path: {source}", file.path)))
    }

    /// Runs blocking work of the kernel, given the table's address, on a thread that may block.
    pub(crate) async fn with_engine<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Engine, &Url) -> T + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(inner.engine.as_ref(), &inner.url))
            .await
            .map_err(|source| ReverseSyncError::Reader { table: self.inner.uri.clone(), source })
    }

    pub(crate) fn log_error(&self, source: delta_kernel::Error) -> ReverseSyncError {
        ReverseSyncError::Log { table: self.inner.uri.clone(), source: Box::new(source) }
    }

    pub(crate) fn unavailable(&self, from: u64, to: u64, reason: Unavailable) -> ReverseSyncError {
        ReverseSyncError::Unavailable { table: self.inner.uri.clone(), from, to, reason }
    }

    pub(crate) async fn newest_snapshot(&self) -> Result<SnapshotRef> {
        let kept = self.still_true().await?.map(|kept| kept.newest);
        let before = kept.as_ref().map(|snapshot| snapshot.version());
        match self.build(kept, None).await? {
            Ok(snapshot) => {
                if before != Some(snapshot.version()) {
                    self.keep(&snapshot).await?;
                }
                Ok(snapshot)
            }
            Err(source) => Err(self.why_not(None, source).await),
        }
    }

    pub(crate) async fn snapshot_at(&self, version: u64) -> Result<SnapshotRef> {
        let kept = self.still_true().await?;
        let known = kept.iter().flat_map(|kept| [Some(&kept.newest), kept.before.as_ref()]).flatten();
        if let Some(exact) = known.into_iter().find(|snapshot| snapshot.version() == version) {
            return Ok(Arc::clone(exact));
        }
        let newest = kept.map(|kept| kept.newest).filter(|newest| newest.version() < version);
        let is_newer = newest.is_some();
        match self.build(newest, Some(version)).await? {
            Ok(snapshot) if snapshot.version() == version => {
                if is_newer {
                    self.keep(&snapshot).await?;
                }
                Ok(snapshot)
            }
            Ok(snapshot) => Err(self.no_such_version(version, snapshot.version())),
            Err(source) => Err(self.why_not(Some(version), source).await),
        }
    }

    /// Builds a version, or the newest, on top of an earlier one if that is given.
    async fn build(
        &self,
        earlier: Option<SnapshotRef>,
        version: Option<u64>,
    ) -> Result<DeltaResult<SnapshotRef>> {
        self.with_engine(move |engine, url| {
            let builder = match earlier {
                Some(earlier) => Snapshot::builder_from(earlier),
                None => Snapshot::builder_for(url.as_str()),
            };
            match version {
                Some(version) => builder.at_version(version),
                None => builder,
            }
            .build(engine)
        })
        .await
    }

    fn no_such_version(&self, version: u64, latest: u64) -> ReverseSyncError {
        ReverseSyncError::NoSuchVersion { table: self.inner.uri.clone(), version, latest }
    }

    /// What it means that a version could not be read: the log's own range tells.
    async fn why_not(&self, version: Option<u64>, source: delta_kernel::Error) -> ReverseSyncError {
        match (self.log_range().await, version) {
            (Err(error), _) => error,
            (Ok(None), _) => ReverseSyncError::NoTable { table: self.inner.uri.clone() },
            (Ok(Some((_, latest))), Some(version)) if version > latest => {
                self.no_such_version(version, latest)
            }
            (Ok(Some((earliest, _))), Some(version)) if version < earliest => {
                self.unavailable(version, version, Unavailable::LogExpired { version, earliest })
            }
            (Ok(Some(_)), _) => self.log_error(source),
        }
    }

    /// The oldest and the newest version that the log's files allow to read.
    pub(crate) async fn log_range(&self) -> Result<Option<(u64, u64)>> {
        let folder = self.inner.root.clone().join("_delta_log");
        let (mut commits, mut checkpoints) = (Vec::new(), Vec::new());
        let mut files = self.inner.objects.list(Some(&folder));
        while let Some(file) = files.try_next().await.map_err(|source| self.store_error(&folder, source))? {
            let Some((digits, rest)) = file.location.filename().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let Some(version) = digits.parse().ok().filter(|_| digits.len() == 20) else { continue };
            match rest {
                "json" => commits.push(version),
                _ if rest.starts_with("checkpoint.") => checkpoints.push(version),
                _ => {}
            }
        }
        let latest: Option<u64> = commits.iter().chain(&checkpoints).max().copied();
        let earliest = if commits.contains(&0) { Some(0) } else { checkpoints.into_iter().min() };
        Ok(earliest.or(commits.into_iter().min()).zip(latest))
    }

    pub(crate) fn store_error(&self, at: &Path, source: object_store::Error) -> ReverseSyncError {
        ReverseSyncError::Store { at: at.to_string(), source: Box::new(source) }
    }

    /// What is kept, if its last commit is still the one that it was read from; else nothing is kept any more.
    async fn still_true(&self) -> Result<Option<Kept>> {
        let kept = self.kept().clone();
        let Some(kept) = kept else { return Ok(None) };
        match self.inner.objects.head(&kept.commit.location).await {
            Ok(now) if now == kept.commit => Ok(Some(kept)),
            // Replaced, or expired from the log: what is there now decides.
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {
                *self.kept() = None;
                Ok(None)
            }
            Err(source) => Err(self.store_error(&kept.commit.location, source)),
        }
    }

    async fn keep(&self, snapshot: &SnapshotRef) -> Result<()> {
        let path = self.commit_path(snapshot.version());
        match self.inner.objects.head(&path).await {
            Ok(commit) => {
                let mut kept = self.kept();
                let before = kept.take().map(|kept| kept.newest);
                *kept = Some(Kept { newest: Arc::clone(snapshot), commit, before });
                Ok(())
            }
            // Only its checkpoint is left: nothing would tell whether it is still true.
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.store_error(&path, source)),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
