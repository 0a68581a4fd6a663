//! The template: a fresh cluster in the store, of which every new project is a copy.
//!
//! `initdb` takes seconds of a machine's time and makes 40 MB. It runs once for each major version and storage;
//! its cluster is put into the store as a project of its own, stopped in order. Making a project is then what
//! making a branch is: one manifest that names the template's layers and the piece of WAL with the template's
//! shutdown checkpoint. A project that nobody uses costs its record, that manifest and two passwords.
//!
//! All projects of a storage share what a copy shares: the system identifier, and the password of the core's own
//! role, which is let in through the compute's private socket only.

use std::path::Path;
use std::sync::Arc;

use secrecy::ExposeSecret;

use crate::compute_process::{ComputeDirectory, Purpose, Server, archive_shut_down_wal, read_control_file};
use crate::gateway::MAIN_BRANCH;
use crate::ids::{
    BranchId, BranchName, ManifestNumber, ManifestUid, ProjectName, ProjectUid, Term, Timeline,
};
use crate::installation::Installation;
use crate::page_fs::import_cluster;
use crate::page_store::{
    BranchState, Manifest, ManifestBody, ManifestHead, ManifestKind, PageStore, ParentPoint, ProjectRecord,
    WalSpan,
};
use crate::provision::{UNCLAIMED_DATABASE, quote_identifier};
use crate::secrets::{self, Secret};
use crate::wal_keeper::{LogName, WalArchive};
use crate::{CoreError, Result, Timestamp, initdb};

/// No compute wrote it.
const NO_TERM: Term = Term(0);

/// The template of a major version; its name is no project's, for no role or database may be called so.
fn template_name(major: u32) -> Result<ProjectName> {
    ProjectName::new(format!("pg_template_{major}"))
}

/// Who owns a new project.
#[derive(Debug, Clone)]
pub struct NewProject {
    /// Its name, which is also its database's.
    pub name: ProjectName,
    /// The role that owns the database.
    pub owner: String,
}

/// Makes a project, or finds that there is one. Its branch `main` can be started when this returns.
///
/// # Errors
/// The name cannot be used, the template cannot be made, or the store failed.
pub async fn ensure_project(
    pages: &PageStore,
    project: &NewProject,
    installation: &Installation,
    scratch: &Path,
) -> Result<BranchId> {
    check_name("name", project.name.as_str(), &["postgres", "template0", "template1", UNCLAIMED_DATABASE])?;
    check_name("owner", &project.owner, &[crate::SUPERUSER, "public", "none"])?;
    let main = BranchName::new(MAIN_BRANCH)?;
    if let Some(there) = pages.find_branch(&project.name, &main).await? {
        return Ok(there.branch);
    }
    let template = ensure_template(pages, installation, scratch).await?;
    let record = ProjectRecord {
        name: project.name.clone(),
        uid: ProjectUid::random(),
        postgres_major: template.body.postgres_major,
        system_identifier: template.body.system_identifier,
        created_at: Timestamp::now(),
        owner: project.owner.clone(),
        database: project.name.to_string(),
        template: Some(template.head.project.clone()),
    };
    match pages.create_project(&record).await {
        // Somebody is making it, or died before its first branch: either way that is what is missing.
        Ok(()) | Err(CoreError::ProjectExists { .. }) => {}
        Err(error) => return Err(error),
    }
    let superuser = secrets::kept_secret(pages.storage(), &template.head.project, Secret::Superuser).await?;
    secrets::keep(pages.storage(), &project.name, Secret::Superuser, &superuser).await?;
    let manifest = Arc::new(born_from(&template, project, main.clone()));
    match pages.create_branch(&manifest, Some(&template.head)).await {
        Ok(()) => Ok(manifest.head.branch),
        Err(CoreError::BranchExists { .. }) => match pages.find_branch(&project.name, &main).await? {
            Some(there) => Ok(there.branch),
            None => Err(CoreError::BranchExists {
                project: project.name.to_string(),
                branch: MAIN_BRANCH.to_owned(),
            }),
        },
        Err(error) => Err(error),
    }
}

fn born_from(template: &Manifest, project: &NewProject, main: BranchName) -> Manifest {
    let now = Timestamp::now();
    let head = ManifestHead {
        project: project.name.clone(),
        branch: BranchId::random(),
        number: ManifestNumber(1),
        uid: ManifestUid::random(),
        name: main,
        parent: Some(ParentPoint {
            project: template.head.project.clone(),
            branch: template.head.branch,
            manifest: template.head.number,
            lsn: template.head.end_lsn,
            time: now,
        }),
        created_at: now,
        published_at: now,
        term: NO_TERM,
        ..template.head.clone()
    };
    Manifest { head, body: template.body.clone() }
}

/// The template's manifest; the template is made when the storage has none.
async fn ensure_template(
    pages: &PageStore,
    installation: &Installation,
    scratch: &Path,
) -> Result<Arc<Manifest>> {
    let name = template_name(installation.major())?;
    let main = BranchName::new(MAIN_BRANCH)?;
    if pages.find_branch(&name, &main).await?.is_none() {
        tracing::info!(postgres = installation.major(), "making the template of all projects");
        match make_template(pages, &name, &main, installation, scratch).await {
            // Of two makers the first one's counts.
            Ok(()) | Err(CoreError::BranchExists { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let branch = pages.find_branch(&name, &main).await?;
    let missing = || CoreError::NoSuchBranch { project: name.to_string(), branch: MAIN_BRANCH.to_owned() };
    let branch = branch.ok_or_else(missing)?.branch;
    pages.latest(&name, branch).await?.ok_or_else(missing)
}

async fn make_template(
    pages: &PageStore,
    name: &ProjectName,
    main: &BranchName,
    installation: &Installation,
    scratch: &Path,
) -> Result<()> {
    let directory = ComputeDirectory::claim(&scratch.join(name.as_str())).await?;
    // The password comes first: of two makers both clusters then have the one that counts.
    let password = secrets::kept_secret(pages.storage(), name, Secret::Superuser).await?;
    let data = directory.data();
    if data.exists() {
        // Left by an attempt that was interrupted.
        std::fs::remove_dir_all(&data).map_err(CoreError::io("remove", &data))?;
    }
    let user = directory.user();
    let (password_text, rules) = (password.expose_secret(), initdb::branch_access_rules());
    initdb::make_cluster(directory.root(), &data, installation, user, password_text, &rules).await?;

    let server = Server::launch(
        &directory,
        installation,
        name.as_str(),
        &password,
        &Purpose::Rewinding { until: None },
    )?;
    let client = server.wait_until_ready().await?;
    let failed = |action| CoreError::statement(name.as_str(), action);
    let database = quote_identifier(UNCLAIMED_DATABASE);
    client
        .batch_execute(&format!("CREATE DATABASE {database}"))
        .await
        .map_err(failed("make the template's database"))?;
    // A new segment, so that the WAL every project shares is a page and not what initdb wrote.
    client
        .batch_execute("SELECT pg_catalog.pg_switch_wal(); CHECKPOINT")
        .await
        .map_err(failed("begin a new segment of WAL"))?;
    drop(client);
    server.stop().await?;

    let control = read_control_file(&data)?;
    let timeline = Timeline(control.timeline());
    let branch = BranchId::random();
    let archive = WalArchive::new(pages.storage().clone(), LogName { project: name.clone(), branch });
    let wal = data.join("pg_wal");
    let written =
        archive_shut_down_wal(&archive, &wal, timeline, control.checkpoint(), None, NO_TERM).await?;
    let captured = import_cluster(pages, name, branch, NO_TERM, &data, None).await?;
    let now = Timestamp::now();
    let head = ManifestHead {
        project: name.clone(),
        branch,
        number: ManifestNumber(1),
        uid: ManifestUid::random(),
        name: main.clone(),
        state: BranchState::Live,
        parent: None,
        created_at: now,
        published_at: now,
        expires_at: None,
        term: NO_TERM,
        timeline,
        kind: ManifestKind::CleanShutdown,
        redo_lsn: control.redo(),
        min_recovery_lsn: written.end,
        end_lsn: Some(written.end),
    };
    let span =
        WalSpan { project: name.clone(), branch, timeline, from: written.start, to: Some(written.end) };
    let body = ManifestBody { wal: vec![span], ..captured.body };
    pages.create_branch(&Arc::new(Manifest { head, body }), None).await?;
    std::fs::remove_dir_all(&data).map_err(CoreError::io("remove", &data))
}

/// Names that become roles and databases of a Postgres.
fn check_name(role: &'static str, name: &str, taken: &[&str]) -> Result<()> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > 63 {
        "Postgres cuts names after 63 bytes"
    } else if name.contains(char::is_control) {
        "it contains control characters"
    } else if name.starts_with("pg_") || taken.contains(&name) {
        "Postgres or Tidewater uses that name itself"
    } else {
        return Ok(());
    };
    Err(CoreError::UnusableName { name: name.chars().take(80).collect(), role, reason })
}
