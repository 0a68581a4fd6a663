//! `tidewater compute list|suspend|wake` and `tidewater core inspect`.

use super::branch::{opened, projects, woken, word};
use super::{CommandError, Outcome};
use crate::built_in::{BuiltIn, branch_place};
use crate::config::Config;
use oltp_core::CoreError;
use oltp_core::compute_process::Mount;
use oltp_core::ids::ProjectName;
use std::io::Write;
use std::path::Path;

pub(super) async fn list(config: &Config, file: &Path, json: bool) -> Result<Outcome, CommandError> {
    let core = BuiltIn::open(config, file)?;
    let running = core.computes().list().await.map_err(CommandError::core)?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&running)?)?;
        return Ok(Outcome::Done);
    }
    for compute in running {
        let name = compute.name.as_ref().map_or_else(|| compute.branch.to_string(), ToString::to_string);
        let place = format!("{}@{name}", compute.project);
        let troubles = [&compute.commits_wait, &compute.archive_trouble, &compute.store_trouble];
        let trouble = troubles.into_iter().flatten().next();
        writeln!(
            out,
            "{:<32} {:<10} pid {:<8} confirmed {}  in the store {}{}{}",
            place,
            word(&compute.state)?,
            compute.pid,
            compute.majority,
            compute.archived,
            if compute.mount == Mount::Copy { "  (mount: copy)" } else { "" },
            trouble.map_or_else(String::new, |trouble| format!("  {trouble}")),
        )?;
    }
    Ok(Outcome::Done)
}

pub(super) async fn suspend(config: &Config, file: &Path, branch: &str) -> Result<Outcome, CommandError> {
    let asked = branch_place(branch)?;
    let core = BuiltIn::open(config, file)?;
    let found = core.pages().find_branch(&asked.project, &asked.branch).await.map_err(CommandError::core)?;
    let head = found.ok_or_else(|| {
        let (project, branch) = (asked.project.to_string(), asked.branch.to_string());
        CommandError::core(CoreError::NoSuchBranch { project, branch })
    })?;
    let suspended = core.computes().suspend(&asked.project, head.branch).await.map_err(CommandError::core)?;
    let said = if suspended.is_some() { "sleeps" } else { "slept already" };
    writeln!(std::io::stdout(), "{branch} {said}; the next connection wakes it")?;
    Ok(Outcome::Done)
}

pub(super) async fn wake(config: &Config, file: &Path, branch: &str) -> Result<Outcome, CommandError> {
    let asked = branch_place(branch)?;
    let core = opened(config, file).await?;
    woken(&core, &asked.project, &asked.branch).await?;
    writeln!(std::io::stdout(), "{branch} takes connections")?;
    Ok(Outcome::Done)
}

/// Reads and checks what the storage holds; ends with 3 where something is damaged.
pub(super) async fn inspect(
    config: &Config,
    file: &Path,
    database: Option<&str>,
    json: bool,
) -> Result<Outcome, CommandError> {
    let core = BuiltIn::open(config, file)?;
    let project: Option<ProjectName> = match database {
        Some(_) => projects(config, database)?.into_iter().next(),
        None => None,
    };
    let inspection = core.pages().inspect(project.as_ref()).await.map_err(CommandError::core)?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&inspection)?)?;
    } else {
        writeln!(out, "{inspection}")?;
    }
    Ok(if inspection.is_damaged() { Outcome::FoundDifference } else { Outcome::Done })
}
