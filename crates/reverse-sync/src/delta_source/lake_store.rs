//! Where a lake or a table lies: a local folder or a bucket, opened once.
//!
//! Delta's readers ask their store by the path of the table's URL, which on this machine starts at the root: so the
//! store of a local folder is the whole file system here.

use crate::error::{Result, ReverseSyncError};
use object_location::MissingFolder;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use std::collections::BTreeMap;
use std::sync::Arc;
use url::Url;

/// An open store and a folder in it.
#[derive(Debug, Clone)]
pub struct LakeStore {
    /// The whole store: the file system, or the bucket.
    pub objects: Arc<dyn ObjectStore>,
    /// The folder in it.
    pub root: Path,
    /// The store's address, without the folder.
    base: Url,
}

impl LakeStore {
    /// Opens a local path, `file://` or `s3://bucket/prefix`.
    ///
    /// A local folder must exist; a bucket is first spoken to by the first read.
    pub fn open(uri: &str, options: &BTreeMap<String, String>) -> Result<Self> {
        let place = object_location::open(uri, options, MissingFolder::Refuse)?;
        let Some(folder) = place.folder else {
            return Ok(LakeStore { objects: place.store, root: place.prefix, base: place.base });
        };
        let mut base = place.base;
        base.set_path("/");
        let root = Path::from_absolute_path(&folder)
            .map_err(|source| ReverseSyncError::Folder { folder: folder.clone(), source })?;
        Ok(LakeStore { objects: Arc::new(LocalFileSystem::new()), root, base })
    }

    /// The address of a folder of this store.
    pub fn url_of(&self, folder: &Path) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{folder}/"));
        url
    }
}
