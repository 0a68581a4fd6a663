//! `tidewater branch …` and `tidewater restore`: any moment of a database, continued on its own.
//!
//! Both work on the storage and ask the running branches by their sockets; of two that race for a name the store lets
//! one win. So they act themselves, whether a daemon runs or not. A daemon that syncs the database sees that its
//! `main` is another branch and mends the lake.

mod difference;

use super::{CommandError, Outcome};
use crate::built_in::{BuiltIn, BuiltInError, branch_place, moment};
use crate::config::{Config, Database, Period};
use oltp_core::CoreError;
use oltp_core::branches::Point;
use oltp_core::gateway::MAIN_BRANCH;
use oltp_core::ids::{BranchId, BranchName, ProjectName};
use oltp_core::page_store::ManifestHead;
use secrecy::ExposeSecret;
use serde::Serialize;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

pub(super) use difference::diff;

/// What `create` is asked for.
#[derive(Debug, clap::Args)]
pub(super) struct NewBranch {
    /// DATABASE@NAME: the branch to make.
    branch: String,
    /// The branch that it begins from.
    #[arg(long, default_value = MAIN_BRANCH, value_name = "BRANCH")]
    from: String,
    /// The moment that it begins from, a time (UTC without an offset) or an LSN; now when left out.
    #[arg(long, value_name = "TIME|LSN")]
    at: Option<String>,
    /// It is deleted after this time, such as `1d`.
    #[arg(long, value_name = "PERIOD")]
    ttl: Option<Period>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// One branch, as `list --json` has it.
#[derive(Debug, Serialize)]
struct ListedBranch {
    database: String,
    branch: String,
    parent: Option<String>,
    lsn: Option<String>,
    state: String,
    created_at: String,
    url: String,
}

pub(super) async fn create(
    config: &Config,
    file: &Path,
    wanted: &NewBranch,
) -> Result<Outcome, CommandError> {
    let core = opened(config, file).await?;
    let asked = branch_place(&wanted.branch)?;
    let parent = BranchName::new(&wanted.from).map_err(CommandError::core)?;
    let point = wanted.at.as_deref().map_or(Ok(Point::Now), moment)?;
    let ttl = wanted.ttl.map(Period::duration);
    let branches = core.branches();
    let made = branches.create(&asked.project, &parent, asked.branch, point, ttl).await;
    let made = made.map_err(CommandError::core)?;
    let names = HashMap::from([(made.head.parent.as_ref().map(|parent| parent.branch), parent.to_string())]);
    let listed = listed(config, &core, &made.head, |id| names.get(&Some(id)).cloned()).await?;
    let mut out = std::io::stdout().lock();
    if wanted.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&listed)?)?;
    } else {
        writeln!(
            out,
            "{}@{} begins at {}",
            listed.database,
            listed.branch,
            listed.lsn.as_deref().unwrap_or("-")
        )?;
    }
    Ok(Outcome::Done)
}

pub(super) async fn list(
    config: &Config,
    file: &Path,
    database: Option<&str>,
    json: bool,
) -> Result<Outcome, CommandError> {
    let core = opened(config, file).await?;
    let mut found = Vec::new();
    for project in projects(config, database)? {
        let heads = core.branches().list(&project).await.map_err(CommandError::core)?;
        let names: HashMap<BranchId, String> =
            heads.iter().map(|head| (head.branch, head.name.to_string())).collect();
        for head in &heads {
            found.push(listed(config, &core, head, |id| names.get(&id).cloned()).await?);
        }
    }
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
        return Ok(Outcome::Done);
    }
    for branch in found {
        let from = match (&branch.parent, &branch.lsn) {
            (Some(parent), Some(lsn)) => format!("from {parent} at {lsn}"),
            _ => String::new(),
        };
        let name = format!("{}@{}", branch.database, branch.branch);
        writeln!(out, "{name:<32} {:<10} {}  {from}", branch.state, branch.created_at)?;
    }
    Ok(Outcome::Done)
}

pub(super) async fn delete(config: &Config, file: &Path, branch: &str) -> Result<Outcome, CommandError> {
    let asked = branch_place(branch)?;
    if asked.branch.as_str() == MAIN_BRANCH {
        return Err(BuiltInError::MainBranch.into());
    }
    let core = opened(config, file).await?;
    core.branches().delete(&asked.project, &asked.branch).await.map_err(CommandError::core)?;
    writeln!(std::io::stdout(), "{branch} is deleted; branches that began from it stay what they are")?;
    Ok(Outcome::Done)
}

pub(super) async fn reset(config: &Config, file: &Path, branch: &str) -> Result<Outcome, CommandError> {
    let asked = branch_place(branch)?;
    let core = opened(config, file).await?;
    let begun = core.branches().reset(&asked.project, &asked.branch).await.map_err(CommandError::core)?;
    let lsn = begun.head.parent.as_ref().and_then(|parent| parent.lsn);
    let at = lsn.map_or_else(String::new, |lsn| format!(", at {lsn}"));
    writeln!(std::io::stdout(), "{branch} begins anew from its parent{at}")?;
    Ok(Outcome::Done)
}

pub(super) async fn restore(
    config: &Config,
    file: &Path,
    branch: &str,
    to: &str,
    json: bool,
) -> Result<Outcome, CommandError> {
    let (asked, point) = (branch_place(branch)?, moment(to)?);
    let core = opened(config, file).await?;
    let restored = core.branches().restore(&asked.project, &asked.branch, point).await;
    let restored = restored.map_err(CommandError::core)?;
    let before = restored.before.to_string();
    let mut out = std::io::stdout().lock();
    if json {
        let answer = serde_json::json!({ "database": asked.project.as_str(), "branch": asked.branch.as_str(), "before": before });
        writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?;
    } else {
        writeln!(out, "{branch} is what it was at {point}; the state before is {}@{before}", asked.project)?;
    }
    Ok(Outcome::Done)
}

/// The core, with a keeper: a branch whose compute was killed is woken to find its end.
pub(super) async fn opened(config: &Config, file: &Path) -> Result<BuiltIn, CommandError> {
    let core = BuiltIn::open(config, file)?;
    if let Some(keeper) = core.keeper() {
        keeper.ensure().await?;
    }
    Ok(core)
}

/// The built-in databases of the configuration, or the one that is named.
pub(super) fn projects(config: &Config, database: Option<&str>) -> Result<Vec<ProjectName>, CommandError> {
    let mut found = Vec::new();
    for (name, settings) in &config.databases {
        if matches!(settings, Database::Core(_)) && database.is_none_or(|database| database == name) {
            found.push(ProjectName::new(name).map_err(CommandError::core)?);
        }
    }
    match database {
        Some(database) if found.is_empty() => Err(CommandError::NotBuiltIn { database: database.to_owned() }),
        _ => Ok(found),
    }
}

async fn listed(
    config: &Config,
    core: &BuiltIn,
    head: &ManifestHead,
    name_of: impl Fn(BranchId) -> Option<String>,
) -> Result<ListedBranch, CommandError> {
    let status = core.computes().status(&head.project, head.branch).await.map_err(CommandError::core)?;
    let state = match status {
        Some(status) => word(&status.state)?,
        None => "asleep".to_owned(),
    };
    let parent = head.parent.as_ref().filter(|parent| parent.project == head.project);
    let url = core.url(config, &head.project, &head.name).await?;
    Ok(ListedBranch {
        database: head.project.to_string(),
        branch: head.name.to_string(),
        parent: parent.and_then(|parent| name_of(parent.branch)),
        lsn: parent.and_then(|parent| parent.lsn).map(|lsn| lsn.to_string()),
        state,
        created_at: head.created_at.to_string(),
        url: url.expose_secret().to_owned(),
    })
}

/// The word that JSON has for it.
pub(super) fn word(value: &impl Serialize) -> Result<String, CommandError> {
    Ok(serde_json::to_value(value)?.as_str().unwrap_or_default().to_owned())
}

/// The branch's compute, running.
pub(super) async fn woken(
    core: &BuiltIn,
    project: &ProjectName,
    branch: &BranchName,
) -> Result<oltp_core::compute_process::Status, BuiltInError> {
    let missing = || CoreError::NoSuchBranch { project: project.to_string(), branch: branch.to_string() };
    let head = core.pages().find_branch(project, branch).await?.ok_or_else(missing)?;
    Ok(core.computes().ensure_running(project, head.branch).await?)
}
