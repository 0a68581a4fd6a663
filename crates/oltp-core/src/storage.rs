//! Where the core keeps what outlives every machine: a local folder or a bucket.
//!
//! Objects are written once and never changed. Everything goes through `object_store`, with one
//! exception: on a local disk `object_store` never calls fsync, so a power cut could take back a layer
//! that a manifest names. There a put is a temporary file, synced, linked to its name (which fails when
//! the name is taken), and a sync of the folders that are new; remote stores promise as much with every
//! put.
//!
//! ```text
//!   put_if_absent ──► temporary file ─► fsync ─► link ─► fsync of the folder        (a path)
//!                 └─► PUT If-None-Match: *, tried again a bounded number of times   (a bucket)
//! ```
//!
//! An attempt whose answer was lost may have taken effect: the next attempt then finds the name taken.
//! [`Storage::put_if_absent`] says so, and its caller looks at what is there. Objects with a random id
//! in their names and manifests, which carry one inside, are recognised that way.

mod local_disk;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use object_location::MissingFolder;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use uuid::Uuid;

use crate::{CoreError, Result};
use local_disk::{LOCAL_STORE, STAGED, put_durably, read_part};

/// Everything that one operation may take, attempts and pauses included.
const OPERATION_LIMIT: Duration = Duration::from_secs(120);
/// A store that fails this often in a row is down: the caller knows better how long to wait.
const ATTEMPTS: u32 = 4;
/// The pause before the second attempt; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Enough racing puts that a store is caught which looks first and writes then.
const PROBE_RACERS: u32 = 16;

/// What became of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object is there, by this call.
    Created,
    /// There is an object of that name: somebody else's, or ours by an attempt whose answer was lost.
    NameTaken,
}

/// An opened storage: a store and a folder in it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Storage {
    objects: Arc<dyn ObjectStore>,
    base: Path,
    uri: Arc<str>,
    local_root: Option<Arc<FilePath>>,
}

impl Storage {
    /// Opens the storage at `uri`, as [`object_location::open`] does; a local folder is made when missing.
    ///
    /// # Errors
    /// [`CoreError::StorageUnusable`]: the address, an option or the credentials cannot be used.
    pub fn open(uri: &str, options: &BTreeMap<String, String>) -> Result<Storage> {
        let place = object_location::open(uri, options, MissingFolder::Create)
            .map_err(|source| CoreError::StorageUnusable { source })?;
        let uri = match &place.folder {
            Some(folder) => folder.display().to_string(),
            None => uri.trim_end_matches('/').to_owned(),
        };
        Ok(Storage {
            objects: place.store,
            base: place.prefix,
            uri: uri.into(),
            local_root: place.folder.map(Into::into),
        })
    }

    /// A storage over any object store, for stores wrapped by the caller.
    pub fn over(objects: Arc<dyn ObjectStore>, base: Path, uri: &str) -> Storage {
        Storage { objects, base, uri: uri.into(), local_root: None }
    }

    /// Where the storage lies, as text.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The folder, when the storage is one on this machine.
    pub fn local_root(&self) -> Option<&FilePath> {
        self.local_root.as_deref()
    }

    /// The object's full name, for messages.
    pub fn name_of(&self, path: &Path) -> String {
        format!("{}/{path}", self.uri)
    }

    /// Puts an object that must not be there yet. When this returns [`Put::Created`], the object survives
    /// a power cut.
    ///
    /// # Errors
    /// The store failed, several times in a row or for too long. The object may be there nevertheless.
    pub async fn put_if_absent(&self, path: &Path, bytes: Bytes) -> Result<Put> {
        let attempt = || async {
            let put = match self.local_file(path) {
                Some(file) => put_durably(file, bytes.clone(), path).await,
                None => {
                    let options = PutOptions::from(PutMode::Create);
                    let payload = PutPayload::from_bytes(bytes.clone());
                    self.objects.put_opts(&self.full(path), payload, options).await.map(drop)
                }
            };
            match put {
                Ok(()) => Ok(Put::Created),
                Err(object_store::Error::AlreadyExists { .. }) => Ok(Put::NameTaken),
                Err(error) => Err(error),
            }
        };
        self.bounded("write", path, attempt).await
    }

    /// Checks that the store can be written, and that of racing puts of one name exactly one wins: who writes a
    /// branch hangs on it, and there are stores that take the condition and ignore it.
    ///
    /// # Errors
    /// [`CoreError::NoConditionalPut`], or the store failed.
    pub async fn probe(&self) -> Result<()> {
        let path = Path::from("probe").join(Uuid::new_v4().to_string());
        let racers = (0..PROBE_RACERS).map(|racer| self.put_if_absent(&path, Bytes::from(racer.to_string())));
        let outcomes = join_all(racers).await;
        self.delete(&path).await?;
        let mut winners = 0;
        for outcome in outcomes {
            winners += u32::from(outcome? == Put::Created);
        }
        if winners == 1 {
            return Ok(());
        }
        Err(CoreError::NoConditionalPut { uri: self.uri.to_string(), winners, racers: PROBE_RACERS })
    }

    /// Reads a whole object of at most `limit` bytes; `None` when there is none.
    ///
    /// # Errors
    /// The store failed, or the object is larger than anything of its kind.
    pub async fn get(&self, path: &Path, limit: u64) -> Result<Option<Bytes>> {
        let attempt = || async {
            let answer = match self.objects.get(&self.full(path)).await {
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                answer => answer?,
            };
            if answer.meta.size > limit {
                return Ok(Some(Err(answer.meta.size)));
            }
            Ok(Some(Ok(answer.bytes().await?)))
        };
        match self.bounded("read", path, attempt).await? {
            None => Ok(None),
            Some(Ok(bytes)) => Ok(Some(bytes)),
            Some(Err(size)) => Err(CoreError::ObjectDamaged {
                object: self.name_of(path),
                reason: format!("it has {size} bytes, more than {limit}"),
            }),
        }
    }

    /// Reads a part of an object; fewer bytes than asked for when the object ends before; `None` when
    /// there is no such object.
    ///
    /// # Errors
    /// The store failed.
    pub async fn get_range(&self, path: &Path, range: Range<u64>) -> Result<Option<Bytes>> {
        if let Some(file) = self.local_file(path) {
            // One hop to a thread that may block, where the store's own way takes three.
            let read = tokio::task::spawn_blocking(move || read_part(&file, range)).await;
            return read
                .unwrap_or_else(|ended| Err(ended.into()))
                .map_err(CoreError::io("read", self.name_of(path)));
        }
        let attempt = || async {
            match self.objects.get_range(&self.full(path), range.clone()).await {
                Ok(bytes) => Ok(Some(bytes)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.bounded("read", path, attempt).await
    }

    /// Whether there is such an object.
    ///
    /// # Errors
    /// The store failed.
    pub async fn head(&self, path: &Path) -> Result<Option<ObjectMeta>> {
        let attempt = || async {
            match self.objects.head(&self.full(path)).await {
                Ok(meta) => Ok(Some(meta)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.bounded("look at", path, attempt).await
    }

    /// All objects below `folder` whose names sort after `after`, by name; locations are relative to the
    /// storage. Puts under way are not among them.
    ///
    /// # Errors
    /// The store failed.
    pub async fn list(&self, folder: &Path, after: Option<&Path>) -> Result<Vec<ObjectMeta>> {
        let mut objects = self.list_everything(folder, after).await?;
        objects.retain(|object| !is_staged(&object.location));
        Ok(objects)
    }

    /// The names of the folders right below `folder`, decoded.
    ///
    /// # Errors
    /// The store failed.
    pub async fn folders(&self, folder: &Path) -> Result<Vec<String>> {
        let full = self.full(folder);
        let attempt = || async { self.objects.list_with_delimiter(Some(&full)).await };
        let listed = self.bounded("list", folder, attempt).await?;
        Ok(listed.common_prefixes.iter().filter_map(last_part).collect())
    }

    /// Deletes an object; one that is gone already is no error.
    ///
    /// # Errors
    /// The store failed.
    pub async fn delete(&self, path: &Path) -> Result<()> {
        let attempt = || async {
            match self.objects.delete(&self.full(path)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        };
        self.bounded("delete", path, attempt).await
    }

    /// Forgets a folder without objects: on a local disk it would stay for ever. Nobody may be putting
    /// something into it.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn forget_empty_folder(&self, folder: &Path) -> Result<()> {
        let Some(path) = self.local_file(folder) else { return Ok(()) };
        match tokio::fs::remove_dir(&path).await {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                Err(CoreError::io("remove the empty folder", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Deletes what puts left behind that were interrupted by a crash, when it is older than `age`.
    ///
    /// # Errors
    /// The store failed.
    pub async fn delete_abandoned_puts(&self, folder: &Path, age: Duration) -> Result<u64> {
        if self.local_root.is_none() {
            return Ok(0);
        }
        let limit = chrono::Utc::now() - age;
        let mut deleted = 0;
        for object in self.list_everything(folder, None).await? {
            if is_staged(&object.location) && object.last_modified < limit {
                self.delete(&object.location).await?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }

    async fn list_everything(&self, folder: &Path, after: Option<&Path>) -> Result<Vec<ObjectMeta>> {
        let full = self.full(folder);
        let attempt = || async {
            let listed = match after {
                Some(after) => self.objects.list_with_offset(Some(&full), &self.full(after)),
                None => self.objects.list(Some(&full)),
            };
            listed.boxed().try_collect::<Vec<_>>().await
        };
        let mut objects = self.bounded("list", folder, attempt).await?;
        for object in &mut objects {
            let relative = object.location.prefix_match(&self.base).map(|parts| parts.collect());
            if let Some(relative) = relative {
                object.location = relative;
            }
        }
        objects.sort_by(|left, right| left.location.cmp(&right.location));
        Ok(objects)
    }

    /// Tries an idempotent operation a few times, within a limit.
    async fn bounded<T, Attempt>(
        &self,
        action: &'static str,
        path: &Path,
        mut attempt: impl FnMut() -> Attempt,
    ) -> Result<T>
    where
        Attempt: Future<Output = object_store::Result<T>>,
    {
        let all = async {
            let mut pause = FIRST_PAUSE;
            for _ in 1..ATTEMPTS {
                match attempt().await {
                    Err(error) if worth_another_try(&error) => {
                        tracing::debug!(object = %path, %error, "the store failed, trying again");
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                    }
                    outcome => return outcome,
                }
            }
            attempt().await
        };
        match tokio::time::timeout(OPERATION_LIMIT, all).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(CoreError::Object { action, object: self.name_of(path), source }),
            Err(_) => {
                Err(CoreError::ObjectTimedOut { action, object: self.name_of(path), limit: OPERATION_LIMIT })
            }
        }
    }

    fn full(&self, path: &Path) -> Path {
        self.base.parts().chain(path.parts()).collect()
    }

    fn local_file(&self, path: &Path) -> Option<PathBuf> {
        let root = self.local_root.as_ref()?;
        Some(path.parts().fold(root.to_path_buf(), |file, part| file.join(part.as_ref())))
    }
}

/// What a later attempt cannot change is said at once.
fn worth_another_try(error: &object_store::Error) -> bool {
    match error {
        // A full or read-only disk is no better for waiting.
        object_store::Error::Generic { store: LOCAL_STORE | "LocalFileSystem", .. } => false,
        object_store::Error::Generic { .. } => true,
        _ => false,
    }
}

fn is_staged(path: &Path) -> bool {
    path.filename().is_some_and(|name| name.starts_with('.') && name.ends_with(STAGED))
}

/// The last part of a path as it was before it was encoded.
pub(crate) fn last_part(path: &Path) -> Option<String> {
    let name = percent_encoding::percent_decode_str(path.filename()?);
    Some(name.decode_utf8().ok()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn local() -> (tempfile::TempDir, Storage) {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(folder.path().to_str().unwrap(), &BTreeMap::new()).unwrap();
        (folder, storage)
    }

    #[tokio::test]
    async fn of_two_puts_of_one_name_the_first_stays() {
        let memory =
            Storage::over(Arc::new(object_store::memory::InMemory::new()), Path::from("base"), "memory:");
        let (_folder, local) = local();
        for storage in [local, memory] {
            let path = Path::from("a/b c/1");
            assert_eq!(storage.put_if_absent(&path, Bytes::from_static(b"one")).await.unwrap(), Put::Created);
            assert_eq!(
                storage.put_if_absent(&path, Bytes::from_static(b"two")).await.unwrap(),
                Put::NameTaken
            );
            assert_eq!(storage.get(&path, 10).await.unwrap().unwrap().as_ref(), b"one");
            assert_eq!(storage.get_range(&path, 1..9).await.unwrap().unwrap().as_ref(), b"ne");
            assert_eq!(storage.get(&Path::from("a/none"), 10).await.unwrap(), None);
            let listed = storage.list(&Path::from("a"), None).await.unwrap();
            assert_eq!(listed.iter().map(|object| &object.location).collect::<Vec<_>>(), [&path]);
            assert_eq!(storage.list(&Path::from("a"), Some(&path)).await.unwrap(), []);
            assert_eq!(storage.folders(&Path::from("a")).await.unwrap(), ["b c"]);
            storage.delete(&path).await.unwrap();
            storage.delete(&path).await.unwrap();
            assert_eq!(storage.head(&path).await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn nobody_else_reads_what_is_put_on_a_local_disk() {
        let (folder, storage) = local();
        storage.put_if_absent(&Path::from("projects/shop/1"), Bytes::from_static(b"rows")).await.unwrap();
        for (name, mode) in [("projects", 0o700), ("projects/shop", 0o700), ("projects/shop/1", 0o600)] {
            let metadata = folder.path().join(name).metadata().unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, mode, "{name}");
        }
    }

    #[tokio::test]
    async fn a_put_that_a_crash_interrupted_is_no_object_and_is_cleared_away() {
        let (folder, storage) = local();
        let staged = folder.path().join(format!(".{}{STAGED}", Uuid::new_v4()));
        std::fs::write(&staged, b"half").unwrap();
        assert_eq!(storage.list(&Path::default(), None).await.unwrap(), []);
        assert_eq!(
            storage.delete_abandoned_puts(&Path::default(), Duration::from_secs(60)).await.unwrap(),
            0
        );
        assert_eq!(storage.delete_abandoned_puts(&Path::default(), Duration::ZERO).await.unwrap(), 1);
        assert!(!staged.exists());
    }

    #[tokio::test]
    async fn a_store_that_lets_one_of_racing_puts_win_passes_the_probe() {
        let (folder, storage) = local();
        storage.probe().await.unwrap();
        assert_eq!(storage.list(&Path::default(), None).await.unwrap(), []);
        drop(folder);
    }

    #[tokio::test]
    async fn an_object_larger_than_its_kind_is_not_read_into_memory() {
        let (_folder, storage) = local();
        let path = Path::from("large");
        storage.put_if_absent(&path, Bytes::from(vec![0; 100])).await.unwrap();
        let error = storage.get(&path, 99).await.unwrap_err();
        assert!(matches!(error, CoreError::ObjectDamaged { .. }), "{error}");
    }
}
