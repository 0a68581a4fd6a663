//! Where the lake lies: a local folder or a bucket, opened once.
//!
//! deltalake is built without its cloud features, so it is handed a store per table.

use crate::error::LakeSqlError;
use deltalake::DeltaTable;
use deltalake::logstore::{StorageConfig, default_logstore};
use object_location::MissingFolder;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use std::collections::BTreeMap;
use std::sync::Arc;
use url::Url;

/// An open store and the lake's place in it.
#[derive(Debug, Clone)]
pub(crate) struct LakeStore {
    /// The whole store: the file system, or the bucket.
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// The lake's folder in it.
    pub(crate) root: Path,
    /// The store's address, without the folder.
    base: Url,
}

impl LakeStore {
    pub(crate) fn open(uri: &str, options: &BTreeMap<String, String>) -> Result<Self, LakeSqlError> {
        let place = object_location::open(uri, options, MissingFolder::Refuse)?;
        // Delta's reader asks its store by the path of the table's URL, which on this machine starts at the root.
        let Some(folder) = place.folder else {
            return Ok(LakeStore { objects: place.store, root: place.prefix, base: place.base });
        };
        let mut base = place.base;
        base.set_path("/");
        let root = Path::from_absolute_path(&folder)
            .map_err(|source| LakeSqlError::Folder { folder: folder.clone(), source })?;
        Ok(LakeStore { objects: Arc::new(LocalFileSystem::new()), root, base })
    }

    /// The Delta table in a folder of this store, its log not read yet.
    pub(crate) fn table(&self, location: &Path) -> DeltaTable {
        let mut url = self.base.clone();
        url.set_path(location.as_ref());
        let folder = Arc::new(PrefixStore::new(Arc::clone(&self.objects), location.clone()));
        DeltaTable::new(default_logstore(folder, Arc::clone(&self.objects), &url, &StorageConfig::default()))
    }
}
