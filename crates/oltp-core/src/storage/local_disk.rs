//! The storage in a folder of this machine: puts that survive a power cut, reads without detours.
//!
//! What lies there is databases: folders and files are their owner's alone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path as FilePath, PathBuf};

use bytes::Bytes;
use object_store::path::Path;
use uuid::Uuid;

/// How errors of our own puts name their store.
pub(super) const LOCAL_STORE: &str = "local";
/// What names the file of a put under way.
pub(super) const STAGED: &str = ".staged";

/// Puts a file that must not be there yet.
pub(super) async fn put_durably(file: PathBuf, bytes: Bytes, path: &Path) -> object_store::Result<()> {
    match tokio::task::spawn_blocking(move || link_durably(&file, &bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) if source.kind() == ErrorKind::AlreadyExists => {
            Err(object_store::Error::AlreadyExists { path: path.to_string(), source: source.into() })
        }
        Ok(Err(source)) => Err(object_store::Error::Generic { store: LOCAL_STORE, source: source.into() }),
        Err(source) => Err(object_store::Error::JoinError { source }),
    }
}

/// The bytes of a file in a range, as far as there are any.
pub(super) fn read_part(file: &FilePath, range: Range<u64>) -> io::Result<Option<Bytes>> {
    let file = match File::open(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let end = range.end.min(file.metadata()?.len());
    let length = usize::try_from(end.saturating_sub(range.start)).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(Some(bytes.into()))
}

/// The name appears only with its whole content, and both survive a power cut.
fn link_durably(file: &FilePath, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().ok_or(ErrorKind::InvalidInput)?;
    create_folder_durably(folder)?;
    let staged = folder.join(format!(".{}{STAGED}", Uuid::new_v4()));
    let written = (|| {
        let mut output = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
        output.write_all(bytes)?;
        output.sync_all()?;
        std::fs::hard_link(&staged, file)
    })();
    // A staged file left behind is named so that nobody takes it for an object.
    let removed = std::fs::remove_file(&staged);
    written?;
    removed?;
    File::open(folder)?.sync_all()
}

/// Makes `folder` and what is missing above it, each entry synced in the folder that holds it.
fn create_folder_durably(folder: &FilePath) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().ok_or(ErrorKind::InvalidInput)?;
    create_folder_durably(above)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => File::open(above)?.sync_all(),
    }
}
