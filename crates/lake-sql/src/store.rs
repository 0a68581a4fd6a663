//! The lake's store, handed to the Delta reader table by table.

use deltalake::DeltaTable;
use deltalake::logstore::{StorageConfig, default_logstore};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
pub(crate) use reverse_sync::LakeStore;
use std::sync::Arc;

/// The Delta table in a folder of a store, its log not read yet.
pub(crate) fn delta_table(lake: &LakeStore, location: &Path) -> DeltaTable {
    let folder = Arc::new(PrefixStore::new(Arc::clone(&lake.objects), location.clone()));
    let url = lake.url_of(location);
    DeltaTable::new(default_logstore(folder, Arc::clone(&lake.objects), &url, &StorageConfig::default()))
}
