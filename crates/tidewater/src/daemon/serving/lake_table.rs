//! The Delta table that is served: where it is, and its rows as serving takes them.

use crate::config::ToPostgres;
use futures::StreamExt;
use lake_sql::{LakeSession, LakeSqlError};
use reverse_sync::serve::{Change, ChangeStream, Layout, RowChanges, RowStream, ServedDefinition, Version};
use reverse_sync::{ChangeBatch, ChangeKind, Detail, Part, ReverseSyncError, TableSource};
use std::collections::BTreeMap;
use std::path::Path;

/// Why a version cannot be read or served.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The entry's table is not in the lake.
    #[error("the table to serve cannot be found in the lake")]
    Locate(#[source] LakeSqlError),
    /// Its rows cannot be read, or the target refuses them.
    #[error(transparent)]
    Serve(#[from] ReverseSyncError),
}

impl ServingError {
    /// Whether there is no such Delta table.
    pub fn is_missing(&self) -> bool {
        matches!(self, ServingError::Locate(_) | ServingError::Serve(ReverseSyncError::NoTable { .. }))
    }

    /// Whether the same may well succeed later without anyone mending anything.
    pub fn is_transient(&self) -> bool {
        match self {
            ServingError::Locate(_) => false,
            ServingError::Serve(error) => error.is_transient(),
        }
    }
}

/// A Delta table, and the part of it that is served.
pub struct LakeTable {
    source: TableSource,
    part: Part,
    key: Vec<String>,
}

/// One version of it, as it is to be served.
pub struct LakeVersion {
    /// Which version it is.
    pub version: Version,
    /// Its columns in Postgres.
    pub layout: Layout,
}

impl LakeTable {
    /// Finds the entry's table.
    pub async fn open(
        entry: &ToPostgres,
        lake: &str,
        store: &BTreeMap<String, String>,
        reader: &LakeSession,
        spill_folder: &Path,
    ) -> Result<LakeTable, ServingError> {
        let uri = match (&entry.uri, &entry.table) {
            (Some(uri), _) => uri.as_str().to_owned(),
            (None, name) => {
                let name = name.as_deref().unwrap_or_default();
                let folders = reader.locate(name).await.map_err(ServingError::Locate)?;
                folders
                    .iter()
                    .fold(lake.trim_end_matches('/').to_owned(), |uri, folder| format!("{uri}/{folder}"))
            }
        };
        // A folder takes no options; a table outside of the lake lies in a store of the same kind.
        let store = if uri.contains("://") { store.clone() } else { BTreeMap::new() };
        Ok(LakeTable {
            source: TableSource::open(&uri, &store)?.spilling_to(spill_folder),
            part: Part { columns: entry.columns.clone(), filter: entry.condition.clone() },
            key: entry.primary_key.clone(),
        })
    }

    /// Where it is.
    pub fn uri(&self) -> &str {
        self.source.uri()
    }

    /// Its newest version.
    pub async fn latest_version(&self) -> Result<u64, ServingError> {
        Ok(self.source.latest_version().await?)
    }

    /// Whether a version has been committed: what may be asked often.
    pub async fn has_commit(&self, version: u64) -> Result<bool, ServingError> {
        Ok(self.source.has_commit(version).await?)
    }

    /// A version's identity, and its columns in Postgres.
    pub async fn version(
        &self,
        number: u64,
        definition: &ServedDefinition,
    ) -> Result<LakeVersion, ServingError> {
        let state = self.source.table_at(number).await?;
        let shape = |source| ReverseSyncError::Shape { table: self.uri().to_owned(), source };
        let layout = Layout::plan(definition, state.arrow_schema().map_err(shape)?.as_ref())?;
        let version = Version { source: self.uri().to_owned(), table_id: state.id.clone(), number };
        Ok(LakeVersion { version, layout })
    }

    /// All rows of a version.
    pub async fn rows(&self, number: u64) -> Result<RowStream, ServingError> {
        Ok(self.source.snapshot(number, &self.part).await?.stream)
    }

    /// What differs between two versions. Without `preimages`, rows that replace others come alone.
    pub async fn changes(&self, from: u64, to: u64, preimages: bool) -> Result<ChangeStream, ServingError> {
        let key = self.key.clone();
        let detail = if preimages { Detail::Net(key) } else { Detail::Upserts(key) };
        let changes = self.source.row_changes(Some(from), to, &self.part, detail).await?;
        let change = move |batch: ChangeBatch| RowChanges {
            change: match batch.kind {
                ChangeKind::Insert => Change::Came,
                ChangeKind::UpdatePostimage if preimages => Change::Came,
                ChangeKind::UpdatePostimage => Change::Replaced,
                ChangeKind::UpdatePreimage | ChangeKind::Delete => Change::Went,
            },
            rows: batch.rows,
        };
        Ok(changes.stream.map(move |batch| batch.map(change)).boxed())
    }
}
