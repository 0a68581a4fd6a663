//! Table state kept between queries, so that a query costs the tail of the log and not all of it.
//!
//! The newest state of a table is brought up to date at the start of every query by listing the log from
//! the known version on. Pinned versions never change. Both are bounded by count: the least recently
//! used state goes first, and is read anew when it is asked for again.

use crate::error::LakeSqlError;
use crate::store::LakeStore;
use deltalake::{DeltaTable, DeltaTableError};
use object_store::path::Path;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// States kept. One holds the list of a table's files, some hundred bytes each.
const STATES_KEPT: usize = 128;

#[derive(Debug, Default)]
pub(crate) struct SnapshotCache {
    states: Mutex<States>,
}

#[derive(Debug, Default)]
struct States {
    by_place: HashMap<(Path, Option<u64>), (u64, DeltaTable)>,
    clock: u64,
}

impl SnapshotCache {
    /// The table's newest state now.
    pub(crate) async fn newest(&self, lake: &LakeStore, location: &Path) -> Result<DeltaTable, LakeSqlError> {
        let mut table = match self.get(location, None) {
            Some(table) => table,
            None => lake.table(location),
        };
        if table.update_incremental(None).await.is_err() {
            // The log it was read from may be gone: the table was dropped and made anew.
            table = lake.table(location);
            table.load().await.map_err(|source| table_error(location, source))?;
        }
        self.put(location, None, &table);
        Ok(table)
    }

    /// The table's state at a version that its log must still hold.
    pub(crate) async fn at_version(
        &self,
        lake: &LakeStore,
        location: &Path,
        version: u64,
    ) -> Result<DeltaTable, LakeSqlError> {
        if let Some(table) = self.get(location, Some(version)) {
            return Ok(table);
        }
        let mut table = lake.table(location);
        table.load_version(version).await.map_err(|source| table_error(location, source))?;
        if table.version() != Some(version) {
            let source = DeltaTableError::InvalidVersion(version);
            return Err(table_error(location, source));
        }
        self.put(location, Some(version), &table);
        Ok(table)
    }

    fn get(&self, location: &Path, version: Option<u64>) -> Option<DeltaTable> {
        let mut states = self.lock();
        states.clock += 1;
        let now = states.clock;
        let (used, table) = states.by_place.get_mut(&(location.clone(), version))?;
        *used = now;
        Some(table.clone())
    }

    fn put(&self, location: &Path, version: Option<u64>, table: &DeltaTable) {
        let mut states = self.lock();
        states.clock += 1;
        let now = states.clock;
        states.by_place.insert((location.clone(), version), (now, table.clone()));
        while states.by_place.len() > STATES_KEPT {
            let oldest =
                states.by_place.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            match oldest {
                Some(key) => _ = states.by_place.remove(&key),
                None => break,
            }
        }
    }

    /// A panic elsewhere leaves whole entries behind: every change to the map is one insert or remove.
    fn lock(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn table_error(location: &Path, source: DeltaTableError) -> LakeSqlError {
    LakeSqlError::Table { location: location.clone(), source: Box::new(source) }
}
