//! Where a lake lies and how its objects are put there.
//!
//! Everything goes through `object_store`, with one exception: on a local disk `object_store` never
//! calls fsync, so a power cut could take back a commit that the slot has already been told about. Local
//! data files are therefore synced before the commit that names them, and the commit itself is written
//! to a temporary file, synced, and only then linked to its name.
//!
//! ```text
//!   data file, vectors --put--> sync --> commit: temporary file -> sync -> link N.json (fails if it is there)
//! ```

use crate::error::{DeltaError, Result};
use bytes::Bytes;
use futures::future::join_all;
use object_location::MissingFolder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// Enough racing puts that a store which checks and then writes is caught.
const PROBE_RACERS: usize = 16;

/// A lake: an object store and a folder in it.
#[derive(Debug, Clone)]
pub struct Lake {
    store: Arc<dyn ObjectStore>,
    base: Path,
    uri: String,
    local_root: Option<Arc<FilePath>>,
}

/// Opens the lake at `uri`, as [`object_location::open`] does; a local folder is made when missing.
///
/// # Errors
/// [`DeltaError::Location`]: the URI, an option or the credentials cannot be used.
pub fn open_lake(uri: &str, options: &BTreeMap<String, String>) -> Result<Lake> {
    let place = object_location::open(uri, options, MissingFolder::Create)?;
    let uri = match &place.folder {
        Some(folder) => folder.display().to_string(),
        None => uri.trim_end_matches('/').to_owned(),
    };
    Ok(Lake {
        store: place.store,
        base: place.prefix,
        uri,
        local_root: place.folder.map(|folder| folder.into()),
    })
}

impl Lake {
    /// A lake over any store, for stores wrapped by the caller (fault injection, metrics).
    pub fn over(store: Arc<dyn ObjectStore>, base: Path, uri: &str) -> Lake {
        Lake { store, base, uri: uri.to_owned(), local_root: None }
    }

    /// The store itself.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Where the lake lies, as text.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// A table's place below the lake: one name per folder.
    pub fn table(&self, folder: &[&str]) -> TableLocation {
        let root = folder.iter().fold(self.base.clone(), |path, part| path.join(*part));
        TableLocation {
            uri: folder.iter().fold(self.uri.clone(), |uri, part| format!("{uri}/{part}")),
            local_root: self.local_root.clone(),
            store: Arc::clone(&self.store),
            root,
        }
    }
}

/// Checks that the store can be written and that of racing conditional puts exactly one wins.
pub async fn probe_put_if_absent(lake: &Lake) -> Result<()> {
    let path = lake.base.clone().join("_tidewater_probe").join(Uuid::new_v4().to_string());
    let race = (0..PROBE_RACERS).map(|racer| {
        let (store, path) = (Arc::clone(&lake.store), path.clone());
        async move { store.put_opts(&path, racer.to_string().into(), PutMode::Create.into()).await }
    });
    let mut winners = 0;
    let mut failure = None;
    for outcome in join_all(race).await {
        match outcome {
            Ok(_) => winners += 1,
            Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(source) => failure = Some(source),
        }
    }
    let removed = lake.store.delete(&path).await;
    if let Some(source) = failure {
        return Err(DeltaError::store("put if absent", path.to_string())(source));
    }
    if winners != 1 {
        let uri = lake.uri.clone();
        return Err(DeltaError::NoConditionalPut { uri, winners, racers: PROBE_RACERS });
    }
    removed.map_err(DeltaError::store("delete", path.to_string()))
}

/// One table's folder in a lake.
#[derive(Debug, Clone)]
pub struct TableLocation {
    store: Arc<dyn ObjectStore>,
    root: Path,
    uri: String,
    local_root: Option<Arc<FilePath>>,
}

impl TableLocation {
    /// The folder as text, for messages and `status`.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The table's folder in [`TableLocation::store`].
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The store that holds the table.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The log's folder.
    pub(crate) fn log_folder(&self) -> Path {
        self.root.clone().join("_delta_log")
    }

    /// The commit of a version.
    pub(crate) fn commit_path(&self, version: i64) -> Path {
        self.log_folder().join(format!("{version:020}.json"))
    }

    /// An object by its unescaped path below the table.
    pub(crate) fn child(&self, relative: &str) -> Result<Path> {
        let text = if self.root.as_ref().is_empty() {
            relative.to_owned()
        } else {
            format!("{}/{relative}", self.root)
        };
        Path::parse(&text).map_err(|source| DeltaError::CorruptLog {
            path: self.uri.clone(),
            reason: format!("`{relative}` is not a path: {source}"),
        })
    }

    /// An object by its URL-encoded path, as actions name files.
    pub(crate) fn resolve(&self, encoded: &str) -> Result<Path> {
        let decoded = percent_decode_str(encoded).decode_utf8().map_err(|source| DeltaError::CorruptLog {
            path: self.uri.clone(),
            reason: format!("`{encoded}` is not a file name: {source}"),
        })?;
        if decoded.contains("://") || decoded.starts_with('/') {
            return Err(DeltaError::UnsupportedFeature {
                table: self.uri.clone(),
                feature: "files outside the table's folder".to_owned(),
            });
        }
        self.child(&decoded)
    }

    /// The bytes of a small object; `None` when there is none.
    pub(crate) async fn get(&self, path: &Path) -> Result<Option<Bytes>> {
        let found = match self.store.get(path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(DeltaError::store("read", path.to_string())(source)),
        };
        found.bytes().await.map(Some).map_err(DeltaError::store("read", path.to_string()))
    }

    /// Writes an object, durably, over whatever was there.
    pub(crate) async fn put(&self, path: &Path, bytes: Bytes) -> Result<()> {
        self.store
            .put(path, PutPayload::from_bytes(bytes))
            .await
            .map_err(DeltaError::store("write", path.to_string()))?;
        self.sync(std::slice::from_ref(path)).await
    }

    /// Writes an object only if there is none of its name. The raw error tells the caller whether the
    /// object exists, the put failed, or nobody knows.
    pub(crate) async fn put_if_absent(&self, path: &Path, bytes: Bytes) -> object_store::Result<()> {
        let Some(file) = self.local_file(path) else {
            let options = PutOptions::from(PutMode::Create);
            return self.store.put_opts(path, PutPayload::from_bytes(bytes), options).await.map(|_| ());
        };
        let name = path.to_string();
        let linked = tokio::task::spawn_blocking(move || link_durably(&file, &bytes)).await;
        match linked {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(object_store::Error::AlreadyExists { path: name, source: source.into() })
            }
            Ok(Err(source)) => Err(object_store::Error::Generic { store: "local", source: source.into() }),
            Err(source) => Err(object_store::Error::JoinError { source }),
        }
    }

    /// Makes objects that were written through the store survive a power cut. Remote stores promise
    /// that with every put, so only local files are synced.
    pub(crate) async fn sync(&self, paths: &[Path]) -> Result<()> {
        let files: Vec<PathBuf> = paths.iter().filter_map(|path| self.local_file(path)).collect();
        if files.is_empty() {
            return Ok(());
        }
        let synced = tokio::task::spawn_blocking(move || {
            let mut folders = Vec::new();
            for file in &files {
                sync_path(file)?;
                // A new partition brings a new folder, whose own entry lies one above.
                folders.extend(file.ancestors().skip(1).take(2).map(FilePath::to_path_buf));
            }
            folders.sort();
            folders.dedup();
            folders.iter().try_for_each(|folder| sync_path(folder))
        })
        .await;
        match synced {
            Ok(done) => done,
            Err(source) => {
                Err(DeltaError::store("sync", self.uri.clone())(object_store::Error::JoinError { source }))
            }
        }
    }

    fn local_file(&self, path: &Path) -> Option<PathBuf> {
        let root = self.local_root.as_ref()?;
        Some(path.parts().fold(root.to_path_buf(), |file, part| file.join(part.as_ref())))
    }
}

fn sync_path(path: &FilePath) -> Result<()> {
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|source| DeltaError::LocalFile {
        action: "sync",
        path: path.display().to_string(),
        source,
    })
}

/// Temporary file, sync, link, sync of the folder: the name appears only with its whole content.
fn link_durably(file: &FilePath, bytes: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".{}.tmp", Uuid::new_v4()));
    let written = (|| {
        let mut output = std::fs::File::create_new(&temporary)?;
        output.write_all(bytes)?;
        output.sync_all()?;
        std::fs::hard_link(&temporary, file)
    })();
    // The name may be linked already; a temporary file left behind is named so that readers skip it.
    let removed = std::fs::remove_file(&temporary);
    written?;
    removed?;
    std::fs::File::open(folder)?.sync_all()
}
