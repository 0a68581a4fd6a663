//! A cluster in an ordinary directory, brought into the store.
//!
//! A fresh cluster goes in whole. One that was materialised from a manifest goes in by difference: files
//! that still carry the manifest's time and size were not written; of the others, each page is compared
//! with what the store has. Either way the cluster has to be stopped cleanly: nothing here sees
//! Postgres's writes, and a directory copied while it runs is no moment of it.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::capture::Captured;
use super::file::blocks_of;
use super::file_role::{self, FileRole};
use super::page_cache::{PAGE, PAGE_BYTES};
use crate::control_file::ControlFile;
use crate::ids::{BranchId, FileId, LayerSequence, PageKey, ProjectName, Term};
use crate::page_store::{
    DirectoryEntry, FileEntry, LayerWriter, Manifest, ManifestBody, ManifestView, Page, PageStore,
    SymlinkEntry, Truncation,
};
use crate::{CoreError, Result};

/// Pages that are read and compared in one go: 2 MiB.
const CHUNK: u32 = 256;

/// Deeper than any data directory is.
const DEPTH_LIMIT: usize = 16;

/// Brings the stopped cluster in `directory` into the store, as a body whose `wal` is the caller's to
/// fill in. With `base`, the manifest that the directory was materialised from, only what differs.
///
/// # Errors
/// The cluster was not shut down cleanly, has no data checksums, another block size or tablespaces; a
/// page is damaged; the store or the disk failed.
pub async fn import_cluster(
    store: &PageStore,
    project: &ProjectName,
    branch: BranchId,
    term: Term,
    directory: &Path,
    base: Option<&Arc<Manifest>>,
) -> Result<Captured> {
    let root = directory.to_owned();
    let (control, found) = blocking(directory, move || Ok((importable(&root)?, survey(&root)?))).await?;
    let sequence = base.map_or(LayerSequence(1), |base| base.body.next_layer_sequence);
    let mut next_id = base.map_or(FileId(1), |base| base.body.next_file_id);
    let known: HashMap<&str, &FileEntry> =
        base.iter().flat_map(|base| &base.body.files).map(|file| (file.path.as_str(), file)).collect();
    let mut files: Vec<ImportedFile> =
        found.files.iter().map(|file| file.with_id(&known, &mut next_id)).collect();
    files.sort_by_key(|file| file.entry.id);

    let stamped = base.map(|base| SystemTime::from(base.head.published_at));
    let mut import = Import {
        store,
        view: base.map(|base| ManifestView::new(Arc::clone(base))),
        root: directory,
        writer: store.write_layers(project, branch, term, sequence)?,
        pages: 0,
    };
    for file in &mut files {
        let unchanged = file.before == Some(file.entry.size) && Some(file.modified) == stamped;
        if !unchanged {
            import.file(file, sequence).await?;
        }
    }
    let mut layers = base.map(|base| base.body.layers.clone()).unwrap_or_default();
    let pages = import.pages;
    layers.extend(import.writer.finish().await?);
    let mut files: Vec<FileEntry> = files.into_iter().map(|file| file.entry).collect();
    files.sort_by(|left, right| left.path.cmp(&right.path));
    let body = ManifestBody {
        postgres_major: found.postgres_major,
        system_identifier: control.system_identifier(),
        wal: base.map(|base| base.body.wal.clone()).unwrap_or_default(),
        next_file_id: next_id,
        next_layer_sequence: sequence.next(),
        directories: found.directories,
        files,
        symlinks: found.symlinks,
        layers,
    };
    Ok(Captured { body, pg_control: Bytes::copy_from_slice(control.bytes()), pages })
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|ended| CoreError::io("read", path)(std::io::Error::other(ended)))?
}

struct Import<'a> {
    store: &'a PageStore,
    view: Option<ManifestView>,
    root: &'a Path,
    writer: LayerWriter,
    pages: u64,
}

/// A file on its way in.
struct ImportedFile {
    entry: FileEntry,
    modified: SystemTime,
    /// Its size in the base.
    before: Option<u64>,
}

impl Import<'_> {
    /// Writes the pages of a file that differ from the base's.
    async fn file(&mut self, file: &mut ImportedFile, sequence: LayerSequence) -> Result<()> {
        let path = self.root.join(&file.entry.path);
        let blocks = blocks_of(file.entry.size);
        let opened = Arc::new(File::open(&path).map_err(CoreError::io("open", &path))?);
        let mut first = 0;
        while first < blocks {
            let count = CHUNK.min(blocks - first);
            let (file_handle, at) = (Arc::clone(&opened), path.clone());
            let size = file.entry.size;
            let bytes = blocking(&path, move || read_pages(&file_handle, &at, first, count, size)).await?;
            let before = self.before(file, first, count).await?;
            for (block, page) in (first..).zip(bytes.chunks(PAGE)) {
                self.page(file, block, page, before.get(&block)).await?;
            }
            first += count;
        }
        if file.before.is_some_and(|before| blocks_of(before) > blocks) {
            file.entry.truncations.retain(|cut| cut.from_block < blocks);
            file.entry.truncations.push(Truncation { sequence, from_block: blocks });
        }
        Ok(())
    }

    async fn page(
        &mut self,
        file: &ImportedFile,
        block: u32,
        page: &[u8],
        before: Option<&Page>,
    ) -> Result<()> {
        let same = match before {
            Some(before) => before.bytes() == page,
            None => page.iter().all(|byte| *byte == 0),
        };
        if same {
            return Ok(());
        }
        if let Some(relation) = FileRole::of(&file.entry.path).relation {
            relation.verify(block, page).map_err(|reason| CoreError::PageDamaged {
                path: file.entry.path.clone(),
                block,
                reason,
                origin: format!("the data directory `{}`", self.root.display()),
            })?;
        }
        self.pages += 1;
        self.writer.add(PageKey { file: file.entry.id, block }, &Page::padded(page)).await
    }

    /// What the base has at these blocks.
    async fn before(&self, file: &ImportedFile, first: u32, count: u32) -> Result<HashMap<u32, Page>> {
        let mut found = HashMap::new();
        let Some(view) = self.view.as_ref().filter(|_| file.before.is_some()) else { return Ok(found) };
        for block in first..first + count {
            if !found.contains_key(&block) {
                let key = PageKey { file: file.entry.id, block };
                found.extend(self.store.read_run(view, key, first + count - block).await?);
            }
        }
        Ok(found)
    }
}

/// The bytes of some pages, with zeros after the end of the file.
fn read_pages(file: &File, path: &Path, first: u32, count: u32, size: u64) -> Result<Vec<u8>> {
    let start = u64::from(first) * PAGE_BYTES;
    let there = size.saturating_sub(start).min(u64::from(count) * PAGE_BYTES);
    let mut bytes = vec![0; count as usize * PAGE];
    let into = bytes.get_mut(..usize::try_from(there).unwrap_or_default()).unwrap_or_default();
    file.read_exact_at(into, start).map_err(CoreError::io("read", path))?;
    Ok(bytes)
}

/// What lies in a data directory.
struct Survey {
    postgres_major: u32,
    directories: Vec<DirectoryEntry>,
    files: Vec<SurveyedFile>,
    symlinks: Vec<SymlinkEntry>,
}

struct SurveyedFile {
    path: String,
    size: u64,
    mode: u32,
    modified: SystemTime,
}

impl SurveyedFile {
    /// The file under the id that the base knows it by, or under a new one.
    fn with_id(&self, known: &HashMap<&str, &FileEntry>, next_id: &mut FileId) -> ImportedFile {
        let before = known.get(self.path.as_str());
        let id = before.map(|before| before.id).unwrap_or_else(|| {
            let id = *next_id;
            *next_id = id.next();
            id
        });
        let truncations = before.map(|before| before.truncations.clone()).unwrap_or_default();
        let entry = FileEntry { path: self.path.clone(), id, size: self.size, mode: self.mode, truncations };
        ImportedFile { entry, modified: self.modified, before: before.map(|before| before.size) }
    }
}

fn survey(root: &Path) -> Result<Survey> {
    let version = root.join("PG_VERSION");
    let text = std::fs::read_to_string(&version).map_err(CoreError::io("read", &version))?;
    let postgres_major =
        text.trim().parse().map_err(|_| not_importable(root, "its PG_VERSION is no number".to_owned()))?;
    let mut survey =
        Survey { postgres_major, directories: Vec::new(), files: Vec::new(), symlinks: Vec::new() };
    walk(root, "", 0, &mut survey)?;
    Ok(survey)
}

fn walk(root: &Path, below: &str, depth: usize, survey: &mut Survey) -> Result<()> {
    let directory = root.join(below);
    if depth > DEPTH_LIMIT {
        return Err(not_importable(root, format!("`{below}` lies too deep")));
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(CoreError::io("list", &directory))? {
        let entry = entry.map_err(CoreError::io("list", &directory))?;
        let name = entry.file_name().into_string();
        names.push(name.map_err(|name| not_importable(root, format!("the name {name:?} is not UTF-8")))?);
    }
    names.sort_unstable();
    for name in names {
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if FileRole::of(&path).scratch {
            continue;
        }
        add(root, path, depth, survey)?;
    }
    Ok(())
}

fn add(root: &Path, path: String, depth: usize, survey: &mut Survey) -> Result<()> {
    let full = root.join(&path);
    let metadata = full.symlink_metadata().map_err(CoreError::io("look at", &full))?;
    let mode = metadata.mode() & 0o7777;
    let kind = metadata.file_type();
    let in_tablespaces = path.strip_prefix(file_role::TABLESPACES).is_some_and(|rest| !rest.is_empty());
    if in_tablespaces {
        let reason = format!("it has a tablespace (`{path}`), whose files lie outside of the page store");
        return Err(not_importable(root, reason));
    }
    if kind.is_dir() {
        survey.directories.push(DirectoryEntry { path: path.clone(), mode });
        walk(root, &path, depth + 1, survey)?;
    } else if kind.is_symlink() {
        let target = std::fs::read_link(&full).map_err(CoreError::io("read the link", &full))?;
        let target: PathBuf = target;
        let target = target.into_os_string().into_string();
        let target = target.map_err(|target| not_importable(root, format!("a link leads to {target:?}")))?;
        survey.symlinks.push(SymlinkEntry { path, target });
    } else if kind.is_file() {
        survey.files.push(SurveyedFile { path, size: metadata.len(), mode, modified: modified(&metadata) });
    }
    // Sockets and the like are nobody's data.
    Ok(())
}

fn modified(metadata: &Metadata) -> SystemTime {
    metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)
}

fn not_importable(directory: &Path, reason: String) -> CoreError {
    CoreError::NotImportable { directory: directory.to_owned(), reason }
}

/// The control file of a cluster that can come in.
fn importable(root: &Path) -> Result<ControlFile> {
    let path = root.join(file_role::PG_CONTROL);
    let bytes = std::fs::read(&path).map_err(CoreError::io("read", &path))?;
    let control = ControlFile::parse(bytes).map_err(|error| match error {
        CoreError::ControlFile { problem } => not_importable(root, format!("of its control file, {problem}")),
        other => other,
    })?;
    let refused = |reason: String| Err(not_importable(root, reason));
    if !control.is_shut_down() {
        return refused("it was not shut down cleanly: start it and stop it in order".to_owned());
    }
    let (block, segment) = control.sizes();
    if (block, segment) != (8192, 131_072) {
        return refused(format!("its blocks have {block} bytes and its segments {segment} blocks"));
    }
    if !control.has_checksums() {
        return refused("it has no data checksums: run `pg_checksums --enable` on it".to_owned());
    }
    Ok(control)
}
