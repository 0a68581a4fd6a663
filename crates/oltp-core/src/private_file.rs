//! Small files that only their owner may read, written whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::{CoreError, Result};

/// Nothing we keep in such a file comes near this.
const LIMIT: u64 = 64 * 1024;

/// Writes `contents` to `path` with mode 0600; a crash leaves the old file or the new one.
pub(crate) fn write(path: &Path, contents: &str) -> Result<()> {
    let staged = path.with_extension("new");
    match std::fs::remove_file(&staged) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(CoreError::Io { action: "replace", path: staged, source: error });
        }
        _ => {}
    }
    let mut options = OpenOptions::new();
    // create_new: the mode applies to a file of our own making, never to one that was already open elsewhere.
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staged)
        .map_err(CoreError::io("create", &staged))?;
    file.write_all(contents.as_bytes()).map_err(CoreError::io("write", &staged))?;
    file.sync_all().map_err(CoreError::io("flush", &staged))?;
    std::fs::rename(&staged, path).map_err(CoreError::io("put in place", path))?;
    sync_directory_of(path)
}

/// The file's text without the line end, or nothing when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CoreError::Io { action: "read", path: path.to_owned(), source }),
    };
    let mut text = String::new();
    file.take(LIMIT).read_to_string(&mut text).map_err(CoreError::io("read", path))?;
    Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()))
}

/// Makes a rename or creation in `path`'s directory last.
pub(crate) fn sync_directory_of(path: &Path) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(CoreError::io("flush the directory", directory))
}

/// Creates `path` and what is missing above it with `mode`, whatever the umask says.
pub(crate) fn create_directory(path: &Path, mode: u32) -> Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|directory| !directory.exists()).collect();
    for directory in missing.into_iter().rev().filter(|directory| !directory.as_os_str().is_empty()) {
        match std::fs::DirBuilder::new().mode(mode).create(directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(CoreError::Io {
                    action: "create the directory",
                    path: directory.to_owned(),
                    source: error,
                });
            }
            _ => {}
        }
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode))
            .map_err(CoreError::io("set the mode of", directory))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_readable_by_its_owner_only_even_when_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, "first\n").unwrap();
        write(&path, "second\n").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("second"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn directories_get_their_mode_all_the_way_down() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        create_directory(&deep, 0o711).unwrap();
        create_directory(&deep, 0o700).unwrap();
        for directory in [deep.parent().unwrap(), &deep] {
            assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o711);
        }
    }
}
