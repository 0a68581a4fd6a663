//! Reading everything that a project has in the store, and saying what is wrong with it.
//!
//! Each manifest is decoded; each layer is read in full, with every checksum of ours and, where a
//! manifest says that the file is a relation's, Postgres's own; every layer that a manifest names must
//! be there with the length and index it names. Memory holds one manifest and one layer at a time, and the names of the
//! layers.
//!
//! What nobody refers to is no damage: collection has not come by yet. WAL between what is archived and
//! what a manifest needs is no damage either, for the keepers may have it.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Serialize;

use super::PageStore;
use super::layer_format::{self, LayerObject};
use super::manifest::{BranchState, LayerRef, Manifest};
use super::manifest_view::strata;
use super::object_names::{self, WalChunkName};
use super::page::RelationFile;
use crate::ids::{BranchId, BranchName, FileId, LayerId, ManifestNumber, ProjectName};
use crate::wal_keeper::WalChunk;
use crate::{CoreError, Result, Timestamp};

/// A segment of WAL and what is written about it.
const WAL_CHUNK_LIMIT: u64 = (16 << 20) + 4096;

/// What is in a storage, and what is wrong with it.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// Where it lies.
    pub storage: String,
    /// The projects that were looked at.
    pub projects: Vec<ProjectInspection>,
}

/// What one project has.
#[derive(Debug, Clone, Serialize)]
pub struct ProjectInspection {
    /// The project.
    pub project: ProjectName,
    /// The project that it was made from.
    pub template: Option<ProjectName>,
    /// Its branches.
    pub branches: Vec<BranchInspection>,
    /// Its layers.
    pub layers: ObjectCount,
    /// Those among them that no manifest of this project names (collection takes them in time).
    pub unreferenced_layers: ObjectCount,
    /// Pages in its layers.
    pub pages: u64,
    /// Those that were verified by Postgres's checksum.
    pub verified_pages: u64,
    /// Its archived WAL.
    pub wal_chunks: ObjectCount,
    /// What is wrong.
    pub defects: Vec<Defect>,
}

/// What a branch has.
#[derive(Debug, Clone, Serialize)]
pub struct BranchInspection {
    /// Its id.
    pub branch: BranchId,
    /// Its name; `None` when no manifest of it can be read.
    pub name: Option<BranchName>,
    /// Whether it is there.
    pub state: Option<BranchState>,
    /// How many manifests it has.
    pub manifests: u64,
    /// The newest one that can be read.
    pub newest: Option<ManifestNumber>,
    /// When that was published.
    pub published_at: Option<Timestamp>,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
    /// Layers in it.
    pub layers: u64,
    /// How many of them a lookup may have to ask.
    pub depth: u64,
}

/// Some objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ObjectCount {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Something wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Defect {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ObjectCount {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// Which relation file a number stands for, in one manifest.
type Relations<'a> = HashMap<FileId, (&'a str, RelationFile)>;

impl Inspection {
    /// Whether anything is wrong.
    pub fn is_damaged(&self) -> bool {
        self.projects.iter().any(|project| !project.defects.is_empty())
    }
}

impl PageStore {
    /// Reads and checks all of one project, or of every project.
    ///
    /// # Errors
    /// The store failed, or there is no such project. Damage is no error here but part of the answer.
    pub async fn inspect(&self, project: Option<&ProjectName>) -> Result<Inspection> {
        let names = match project {
            Some(name) => vec![name.clone()],
            None => self.projects().await?,
        };
        let mut projects = Vec::new();
        for name in &names {
            let inspected = self.inspect_project(name).await?;
            if project.is_some() && inspected.is_empty() {
                return Err(CoreError::NoSuchProject { project: name.to_string() });
            }
            projects.push(inspected);
        }
        Ok(Inspection { storage: self.storage.uri().to_owned(), projects })
    }

    async fn inspect_project(&self, name: &ProjectName) -> Result<ProjectInspection> {
        let mut report = ProjectInspection {
            project: name.clone(),
            template: None,
            branches: Vec::new(),
            layers: ObjectCount::default(),
            unreferenced_layers: ObjectCount::default(),
            pages: 0,
            verified_pages: 0,
            wal_chunks: ObjectCount::default(),
            defects: Vec::new(),
        };
        match report.note(self.project(name).await)? {
            Some(Some(record)) => report.template = record.template,
            Some(None) if name.is_a_template() => {}
            Some(None) => report.defect(
                self.storage.name_of(&object_names::project_record(name)),
                "the project's record is missing".to_owned(),
            ),
            None => {}
        }
        let mut named = HashSet::new();
        for branch in self.branch_ids(name).await? {
            let branch = self.inspect_branch(name, branch, &mut named, &mut report).await?;
            report.branches.push(branch);
        }
        report.branches.sort_by(|left, right| left.name.cmp(&right.name));
        self.inspect_unnamed_layers(name, &named, &mut report).await?;
        self.inspect_wal(name, &mut report).await?;
        Ok(report)
    }

    async fn inspect_branch(
        &self,
        project: &ProjectName,
        branch: BranchId,
        named: &mut HashSet<LayerId>,
        report: &mut ProjectInspection,
    ) -> Result<BranchInspection> {
        let numbers = self.numbers(project, branch).await?;
        let mut inspection = BranchInspection {
            branch,
            name: None,
            state: None,
            manifests: numbers.len() as u64,
            newest: None,
            published_at: None,
            files: 0,
            file_bytes: 0,
            layers: 0,
            depth: 0,
        };
        for number in numbers {
            if let Some(manifest) = report.note(self.manifest(project, branch, number).await)? {
                self.inspect_named_layers(&manifest, named, report).await?;
                inspection.describe(&manifest);
            }
        }
        Ok(inspection)
    }

    /// The layers that a manifest is the first to name. Its files are the ones that their numbers stand for: a branch and its
    /// parent go on counting from the same number, and so does the compute after one that was killed.
    async fn inspect_named_layers(
        &self,
        manifest: &Manifest,
        named: &mut HashSet<LayerId>,
        report: &mut ProjectInspection,
    ) -> Result<()> {
        let mut relations: Option<Relations<'_>> = None;
        for reference in &manifest.body.layers {
            if !named.insert(reference.id) {
                continue;
            }
            let path = object_names::layer(reference);
            let read = report.note(self.storage.get(&path, layer_format::OBJECT_LIMIT).await)?;
            let object = self.storage.name_of(&path);
            match read {
                Some(Some(bytes)) => {
                    let relations = relations.get_or_insert_with(|| relations_of(manifest));
                    report.check_layer(&object, &bytes, Some(reference), relations);
                }
                Some(None) => report.defect(object, "a manifest names it, and it is missing".to_owned()),
                None => {}
            }
        }
        Ok(())
    }

    /// Counts the layers in the project's folder, and reads those that no manifest names. What their numbers stand for
    /// only the compute knew that wrote them.
    async fn inspect_unnamed_layers(
        &self,
        project: &ProjectName,
        named: &HashSet<LayerId>,
        report: &mut ProjectInspection,
    ) -> Result<()> {
        for object in self.storage.list(&object_names::layers(project), None).await? {
            report.layers.add(object.size);
            let name = self.storage.name_of(&object.location);
            let Some((_, _, id)) = object_names::layer_id(&object.location) else {
                report.defect(name, "it is not named as a layer".to_owned());
                continue;
            };
            if named.contains(&id) {
                continue;
            }
            report.unreferenced_layers.add(object.size);
            let read = self.storage.get(&object.location, layer_format::OBJECT_LIMIT).await;
            if let Some(Some(bytes)) = report.note(read)? {
                report.check_layer(&name, &bytes, None, &Relations::new());
            }
        }
        Ok(())
    }

    async fn inspect_wal(&self, project: &ProjectName, report: &mut ProjectInspection) -> Result<()> {
        for object in self.storage.list(&object_names::wal_of_project(project), None).await? {
            report.wal_chunks.add(object.size);
            let name = self.storage.name_of(&object.location);
            let Some(chunk) = WalChunkName::parse(&object.location) else {
                report.defect(name, "it is not named as a chunk of WAL".to_owned());
                continue;
            };
            // One that was trimmed since the listing is no loss.
            let read = report.note(self.storage.get(&object.location, WAL_CHUNK_LIMIT).await)?;
            if let Some(Err(reason)) = read.flatten().map(|bytes| WalChunk::decode(chunk, bytes)) {
                report.defect(name, reason.to_owned());
            }
        }
        Ok(())
    }
}

fn relations_of(manifest: &Manifest) -> Relations<'_> {
    let files = manifest.body.files.iter();
    files.filter_map(|file| Some((file.id, (file.path.as_str(), RelationFile::of(&file.path)?)))).collect()
}

impl BranchInspection {
    fn describe(&mut self, manifest: &Manifest) {
        self.name = Some(manifest.head.name.clone());
        self.state = Some(manifest.head.state);
        self.newest = Some(manifest.head.number);
        self.published_at = Some(manifest.head.published_at);
        self.files = manifest.body.files.len() as u64;
        self.file_bytes = manifest.body.files.iter().map(|file| file.size).sum();
        self.layers = manifest.body.layers.len() as u64;
        self.depth = strata(&manifest.body.layers).len() as u64;
    }
}

impl ProjectInspection {
    fn is_empty(&self) -> bool {
        // Of what is not there at all, the missing record is all there is to say.
        self.branches.is_empty()
            && self.layers.objects == 0
            && self.wal_chunks.objects == 0
            && self.defects.len() <= 1
    }

    fn defect(&mut self, object: String, reason: String) {
        self.defects.push(Defect { object, reason });
    }

    /// Keeps damage as part of the report, and passes on what says nothing about the objects.
    fn note<T>(&mut self, outcome: Result<T>) -> Result<Option<T>> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(CoreError::ObjectDamaged { object, reason }) => {
                self.defect(object, reason);
                Ok(None)
            }
            Err(CoreError::ObjectTooNew { object, found, .. }) => {
                self.defect(object, format!("it has format {found}, which this Tidewater does not know"));
                Ok(None)
            }
            Err(CoreError::ObjectMissing { object }) => {
                self.defect(object, "it is missing".to_owned());
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    fn check_layer(
        &mut self,
        object: &str,
        bytes: &[u8],
        reference: Option<&LayerRef>,
        relations: &Relations<'_>,
    ) {
        let layer = match LayerObject::parse(bytes) {
            Ok(layer) => layer,
            Err(defect) => return self.defect(object.to_owned(), defect.to_string()),
        };
        if reference.is_some_and(|reference| !layer.is_named_by(reference)) {
            self.defect(object.to_owned(), "it is another layer than the manifest names".to_owned());
        }
        for run in layer.runs() {
            let pages = match run {
                Ok(pages) => pages,
                Err(defect) => {
                    self.defect(object.to_owned(), defect.to_string());
                    continue;
                }
            };
            for (key, page) in pages {
                self.pages += 1;
                let Some((path, relation)) = relations.get(&key.file) else { continue };
                self.verified_pages += 1;
                if let Err(reason) = relation.verify(key.block, page.bytes()) {
                    self.defect(
                        object.to_owned(),
                        format!("page {} of `{path}` is damaged: {reason}", key.block),
                    );
                }
            }
        }
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "storage {}", self.storage)?;
        self.projects.iter().try_for_each(|project| write!(f, "{project}"))
    }
}

impl fmt::Display for ProjectInspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\nproject {}", self.project)?;
        if let Some(template) = &self.template {
            write!(f, " (made from {template})")?;
        }
        writeln!(f)?;
        for branch in &self.branches {
            writeln!(f, "  {branch}")?;
        }
        writeln!(f, "  layers: {}, of these unreferenced: {}", self.layers, self.unreferenced_layers)?;
        writeln!(f, "  pages:  {}, verified by Postgres's checksum: {}", self.pages, self.verified_pages)?;
        writeln!(f, "  WAL:    {}", self.wal_chunks)?;
        match self.defects.len() {
            0 => writeln!(f, "  no damage"),
            count => {
                writeln!(f, "  DAMAGED in {count} places:")?;
                self.defects
                    .iter()
                    .try_for_each(|defect| writeln!(f, "    {}: {}", defect.object, defect.reason))
            }
        }
    }
}

impl fmt::Display for BranchInspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "branch {name} ({})", self.branch)?,
            None => write!(f, "branch {}", self.branch)?,
        }
        if self.state == Some(BranchState::Deleted) {
            write!(f, ", deleted")?;
        }
        write!(f, ": {} manifests", self.manifests)?;
        if let (Some(newest), Some(published_at)) = (self.newest, self.published_at) {
            write!(
                f,
                ", newest {newest} of {published_at}, {} files with {} bytes",
                self.files, self.file_bytes
            )?;
            write!(f, " in {} layers of {} ages", self.layers, self.depth)?;
        }
        Ok(())
    }
}

impl fmt::Display for ObjectCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.objects, self.bytes)
    }
}
