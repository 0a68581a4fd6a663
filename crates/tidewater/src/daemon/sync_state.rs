//! What must outlive the daemon besides the Delta tables themselves.
//!
//! A Delta table's `txn` says how far its rows go. It cannot say that rows in between are missing: a
//! table whose first load has not met the stream yet, and a table that was halted by an error, both
//! fall behind while the slot moves on for the others. Their names stand in one small object,
//! `<lake>/<database>/_tidewater/sync_state.json`, together with the incarnation that the slot belongs
//! to. The rule that makes it safe: *a table is entered before the slot is confirmed past it, and taken
//! out only after its own commit has caught up.* So after any crash a table is either continuous with
//! the slot or named here, and is mended.

use super::SyncError;
use super::crash_point::death_point;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The object's own format, so that a newer one is refused instead of misread.
const FORMAT: u32 = 1;

/// A small object; anything larger is not ours.
const SIZE_LIMIT: u64 = 16 << 20;

/// Why a table's rows are not continuous with the slot. A later one says more: of a table with a history beside it,
/// the greater of both reasons counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Discontinuity {
    /// Its load, or the changes made while it ran, are not all committed yet.
    Loading,
    /// Its rows cannot be gone on from, however far they are: its shape changed, its owner wants it loaded, or it was
    /// not followed for a while.
    Stale,
    /// It was asked to stay as it is.
    Paused {
        /// The slot is not confirmed meanwhile; otherwise the table is compared with its source when it resumes.
        hold: bool,
    },
    /// An error stopped it; it is mended when its owner asks for it.
    Halted {
        /// What happened, for `status` after a restart.
        reason: String,
    },
}

/// Where the lake's tables of one source table are: schema's and table's folder of each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folders {
    /// Its mirror's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<[String; 2]>,
    /// Its history's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<[String; 2]>,
}

impl Folders {
    /// These, and where there is none that of `others`: what a mode does not write stays where it is for the next.
    pub fn or(self, others: Folders) -> Folders {
        Folders { mirror: self.mirror.or(others.mirror), history: self.history.or(others.history) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    format: u32,
    system_identifier: String,
    generation: u32,
    /// By table id.
    tables: BTreeMap<String, Discontinuity>,
    /// Ids of the tables that the stream carries. One that was taken out of the configuration is behind the slot from
    /// then on, and nothing but its absence here would tell when it comes back.
    #[serde(default)]
    following: BTreeSet<String>,
    /// Where the tables of the last plan are, by relation: a table that is renamed stays where it is.
    #[serde(default)]
    folders: BTreeMap<u32, Folders>,
}

/// One database's sync state and where it is kept. Only the daemon that holds the slot writes it.
#[derive(Debug)]
pub struct SyncState {
    store: Arc<dyn ObjectStore>,
    path: Path,
    content: Content,
}

impl SyncState {
    /// Reads what an earlier run left; a fresh state of generation 0 where there is none.
    pub async fn read(store: Arc<dyn ObjectStore>, path: Path) -> Result<SyncState, SyncError> {
        let failed = |source: object_store::Error| SyncError::LakeState { path: path.to_string(), source };
        let content = match store.get(&path).await {
            Ok(found) if found.meta.size <= SIZE_LIMIT => {
                let bytes = found.bytes().await.map_err(failed)?;
                let content: Content = serde_json::from_slice(&bytes).map_err(|source| {
                    SyncError::LakeStateUnreadable { path: path.to_string(), reason: source.to_string() }
                })?;
                if content.format != FORMAT {
                    return Err(SyncError::LakeStateUnreadable {
                        path: path.to_string(),
                        reason: format!("it has format {}, this build knows {FORMAT}", content.format),
                    });
                }
                content
            }
            Ok(found) => {
                return Err(SyncError::LakeStateUnreadable {
                    path: path.to_string(),
                    reason: format!("it has {} bytes, at most {SIZE_LIMIT} are ours", found.meta.size),
                });
            }
            Err(object_store::Error::NotFound { .. }) => Content {
                format: FORMAT,
                system_identifier: String::new(),
                generation: 0,
                tables: BTreeMap::new(),
                following: BTreeSet::new(),
                folders: BTreeMap::new(),
            },
            Err(source) => return Err(failed(source)),
        };
        Ok(SyncState { store, path, content })
    }

    /// The slot generation that was last begun; 0 before the first.
    pub fn generation(&self) -> u32 {
        self.content.generation
    }

    /// The system identifier that generation belongs to.
    pub fn system_identifier(&self) -> &str {
        &self.content.system_identifier
    }

    /// Why a table is not continuous with the slot, `None` when it is.
    pub fn discontinuity(&self, table_id: &str) -> Option<&Discontinuity> {
        self.content.tables.get(table_id)
    }

    /// The folders of the tables that were synced last, by relation.
    pub fn folders(&self) -> &BTreeMap<u32, Folders> {
        &self.content.folders
    }

    /// Begins an incarnation: from here on only its `txn` entries count.
    pub async fn begin_incarnation(
        &mut self,
        system_identifier: &str,
        generation: u32,
    ) -> Result<(), SyncError> {
        if self.content.system_identifier == system_identifier && self.content.generation == generation {
            return Ok(());
        }
        let mut content = self.content.clone();
        if content.system_identifier != system_identifier {
            // Another cluster's relations mean nothing here.
            content.folders.clear();
        }
        content.system_identifier = system_identifier.to_owned();
        content.generation = generation;
        self.put(content).await
    }

    /// Enters tables as discontinuous. Returns after it is durable.
    pub async fn enter(&mut self, entries: Vec<(String, Discontinuity)>) -> Result<(), SyncError> {
        let mut content = self.content.clone();
        content.tables.extend(entries);
        self.put(content).await
    }

    /// Says which tables the stream carries from now on and where they are, with entries for those that are
    /// discontinuous. Tables that it carried until now and carries no longer become discontinuous, but for those in
    /// `replaced`: they never come back. Returns after it is durable.
    pub async fn follow(
        &mut self,
        following: BTreeSet<String>,
        folders: BTreeMap<u32, Folders>,
        entries: Vec<(String, Discontinuity)>,
        replaced: &BTreeSet<String>,
    ) -> Result<(), SyncError> {
        let mut content = self.content.clone();
        content.tables.extend(entries);
        content.tables.retain(|id, _| !replaced.contains(id));
        content.following.retain(|id| !replaced.contains(id));
        for left in content.following.difference(&following) {
            let reason = content.tables.entry(left.clone()).or_insert(Discontinuity::Stale);
            if *reason == Discontinuity::Loading {
                // Nobody will finish that load.
                *reason = Discontinuity::Stale;
            }
        }
        content.following = following;
        content.folders = folders;
        self.put(content).await
    }

    /// Takes tables out: their rows are continuous with the slot again.
    pub async fn clear(&mut self, table_ids: &[String]) -> Result<(), SyncError> {
        let mut content = self.content.clone();
        content.tables.retain(|id, _| !table_ids.contains(id));
        self.put(content).await
    }

    async fn put(&mut self, content: Content) -> Result<(), SyncError> {
        if content == self.content {
            return Ok(());
        }
        let bytes = serde_json::to_vec_pretty(&content).map_err(|source| SyncError::LakeStateUnreadable {
            path: self.path.to_string(),
            reason: source.to_string(),
        })?;
        death_point!("sync-state-before-put");
        self.store
            .put(&self.path, PutPayload::from(bytes))
            .await
            .map_err(|source| SyncError::LakeState { path: self.path.to_string(), source })?;
        death_point!("sync-state-after-put");
        self.content = content;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn what_was_entered_is_there_after_a_restart_until_it_is_cleared() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let path = Path::from("shop/_tidewater/sync_state.json");
        let mut state = SyncState::read(store.clone(), path.clone()).await.unwrap();
        assert_eq!((state.generation(), state.system_identifier()), (0, ""));
        state.begin_incarnation("7301", 3).await.unwrap();
        let halted = Discontinuity::Halted { reason: "key is infinity".into() };
        state.enter(vec![("a".into(), Discontinuity::Loading), ("b".into(), halted.clone())]).await.unwrap();

        let mut state = SyncState::read(store.clone(), path.clone()).await.unwrap();
        assert_eq!((state.generation(), state.system_identifier()), (3, "7301"));
        assert_eq!(state.discontinuity("b"), Some(&halted));
        state.clear(&["a".into()]).await.unwrap();
        let state = SyncState::read(store, path).await.unwrap();
        assert_eq!(state.discontinuity("a"), None);
        assert_eq!(state.discontinuity("b"), Some(&halted));
    }

    #[tokio::test]
    async fn a_table_that_is_left_out_for_a_while_is_behind_the_slot_when_it_comes_back() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let path = Path::from("sync_state.json");
        let mut state = SyncState::read(store.clone(), path.clone()).await.unwrap();
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
        let none = BTreeSet::new();
        state.follow(ids(&["a", "b"]), BTreeMap::new(), Vec::new(), &none).await.unwrap();
        assert_eq!(state.discontinuity("b"), None);
        state.follow(ids(&["a"]), BTreeMap::new(), Vec::new(), &none).await.unwrap();
        let mut state = SyncState::read(store, path).await.unwrap();
        state.follow(ids(&["a", "b"]), BTreeMap::new(), Vec::new(), &none).await.unwrap();
        assert_eq!(state.discontinuity("a"), None);
        assert_eq!(state.discontinuity("b"), Some(&Discontinuity::Stale));

        // A load that was under way when it was left out is never finished.
        state.enter(vec![("a".into(), Discontinuity::Loading)]).await.unwrap();
        state.follow(ids(&["b"]), BTreeMap::new(), Vec::new(), &none).await.unwrap();
        assert_eq!(state.discontinuity("a"), Some(&Discontinuity::Stale));

        // A table that another one takes the place of is gone for good.
        state.follow(ids(&["c"]), BTreeMap::new(), Vec::new(), &ids(&["a", "b"])).await.unwrap();
        assert_eq!((state.discontinuity("a"), state.discontinuity("b")), (None, None));
    }

    #[tokio::test]
    async fn a_state_of_another_format_is_refused() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let path = Path::from("sync_state.json");
        for text in [
            r#"{"format":2,"system_identifier":"1","generation":1,"tables":{}}"#,
            "not json",
            r#"{"format":1}"#,
        ] {
            store.put(&path, PutPayload::from(text)).await.unwrap();
            let refused = SyncState::read(store.clone(), path.clone()).await;
            assert!(matches!(refused, Err(SyncError::LakeStateUnreadable { .. })), "{text}");
        }
    }
}
