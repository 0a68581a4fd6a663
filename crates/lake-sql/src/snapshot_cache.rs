//! Table state kept between queries, so that a query costs the tail of the log and not all of it.
//!
//! The newest state of a table is brought up to date at the start of every query by listing the log from
//! its last checkpoint on. Pinned versions never change. Both are bounded by count: the least recently
//! used state goes first, and is read anew when it is asked for again.
//!
//! The invariant: a kept state is used only while the commit it ends in is the same object as when it was
//! read. A table that was dropped and made anew starts again at version 0 in the same folder, and the
//! Delta reader would put the new table's commits on top of the old table's files.

use crate::error::LakeSqlError;
use crate::folders::store_error;
use crate::store::{LakeStore, delta_table};
use deltalake::{DeltaTable, DeltaTableError};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt};
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
    by_place: HashMap<(Path, Option<u64>), Kept>,
    clock: u64,
}

#[derive(Debug, Clone)]
struct Kept {
    table: DeltaTable,
    /// The commit that the state ends in, as the store described it.
    commit: ObjectMeta,
    used: u64,
}

impl SnapshotCache {
    /// The table's newest state now.
    pub(crate) async fn newest(&self, lake: &LakeStore, location: &Path) -> Result<DeltaTable, LakeSqlError> {
        let kept = self.still_true(lake, location, None).await?;
        let before = kept.as_ref().and_then(DeltaTable::version);
        let mut table = kept.unwrap_or_else(|| delta_table(lake, location));
        table.update_incremental(None).await.map_err(|source| table_error(location, source))?;
        if table.version() != before {
            self.keep(lake, location, None, &table).await?;
        }
        Ok(table)
    }

    /// The table's state at a version that its log must still hold.
    pub(crate) async fn at_version(
        &self,
        lake: &LakeStore,
        location: &Path,
        version: u64,
    ) -> Result<DeltaTable, LakeSqlError> {
        if let Some(table) = self.still_true(lake, location, Some(version)).await? {
            return Ok(table);
        }
        let mut table = delta_table(lake, location);
        table.load_version(version).await.map_err(|source| table_error(location, source))?;
        if table.version() != Some(version) {
            return Err(table_error(location, DeltaTableError::InvalidVersion(version)));
        }
        self.keep(lake, location, Some(version), &table).await?;
        Ok(table)
    }

    /// A kept state whose last commit is still the one it was read from.
    async fn still_true(
        &self,
        lake: &LakeStore,
        location: &Path,
        version: Option<u64>,
    ) -> Result<Option<DeltaTable>, LakeSqlError> {
        let Some(kept) = self.get(location, version) else { return Ok(None) };
        match lake.objects.head(&kept.commit.location).await {
            Ok(now) if now == kept.commit => Ok(Some(kept.table)),
            // Replaced, or expired from the log: what is there now decides.
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(store_error(&kept.commit.location, source)),
        }
    }

    fn get(&self, location: &Path, version: Option<u64>) -> Option<Kept> {
        let mut states = self.lock();
        states.clock += 1;
        let now = states.clock;
        let kept = states.by_place.get_mut(&(location.clone(), version))?;
        kept.used = now;
        Some(kept.clone())
    }

    async fn keep(
        &self,
        lake: &LakeStore,
        location: &Path,
        pinned: Option<u64>,
        table: &DeltaTable,
    ) -> Result<(), LakeSqlError> {
        let Some(version) = table.version() else { return Ok(()) };
        let file = location.clone().join("_delta_log").join(format!("{version:020}.json"));
        let commit = match lake.objects.head(&file).await {
            Ok(commit) => commit,
            // Only its checkpoint is left: nothing would tell whether the state is still true.
            Err(object_store::Error::NotFound { .. }) => return Ok(()),
            Err(source) => return Err(store_error(&file, source)),
        };
        let mut states = self.lock();
        states.clock += 1;
        let kept = Kept { table: table.clone(), commit, used: states.clock };
        states.by_place.insert((location.clone(), pinned), kept);
        while states.by_place.len() > STATES_KEPT {
            let oldest = states.by_place.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| key.clone());
            match oldest {
                Some(key) => _ = states.by_place.remove(&key),
                None => break,
            }
        }
        Ok(())
    }

    /// A panic elsewhere leaves whole entries behind: every change to the map is one insert or remove.
    fn lock(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn table_error(location: &Path, source: DeltaTableError) -> LakeSqlError {
    LakeSqlError::Table { location: location.clone(), source: Box::new(source) }
}
