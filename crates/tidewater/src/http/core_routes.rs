//! Branches, restores and computes of built-in databases.
//!
//! The same work as the commands', for callers that have the token. Addresses with passwords are for the command line
//! alone.

use super::{Api, problem};
use crate::built_in::{BranchPlace, BuiltIn, BuiltInError, branch_place, moment};
use crate::config::Period;
use crate::daemon::error_chain;
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use oltp_core::CoreError;
use oltp_core::branches::Point;
use oltp_core::gateway::MAIN_BRANCH;
use oltp_core::ids::{BranchName, ProjectName};
use oltp_core::page_store::ManifestHead;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// A branch to make.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedBranch {
    /// `database@name`
    branch: String,
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    at: Option<String>,
    /// It is deleted after this time, such as `1d`.
    #[serde(default)]
    ttl: Option<Period>,
}

/// Whose branches to list; everybody's without a name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListedDatabase {
    #[serde(default)]
    database: Option<String>,
}

/// Where to rewind to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedMoment {
    to: String,
}

pub(super) async fn computes(State(api): State<Api>) -> Response {
    answer(async { Ok::<_, BuiltInError>(json!(core(&api)?.computes().list().await?)) }.await)
}

/// Puts a branch to sleep; `slept` says that it did already.
pub(super) async fn suspend(State(api): State<Api>, Path(branch): Path<String>) -> Response {
    let suspended = async {
        let asked = branch_place(&branch)?;
        let core = core(&api)?;
        let head = found(core, &asked).await?;
        let manifest = core.computes().suspend(&asked.project, head.branch).await?;
        Ok::<_, BuiltInError>(json!({ "branch": branch, "slept": manifest.is_none() }))
    };
    answer(suspended.await)
}

/// Has a branch running; answers once it takes sessions.
pub(super) async fn wake(State(api): State<Api>, Path(branch): Path<String>) -> Response {
    let woken = async {
        let asked = branch_place(&branch)?;
        let core = core(&api)?;
        let head = found(core, &asked).await?;
        Ok::<_, BuiltInError>(json!(core.computes().ensure_running(&asked.project, head.branch).await?))
    };
    answer(woken.await)
}

pub(super) async fn list(State(api): State<Api>, Query(wanted): Query<ListedDatabase>) -> Response {
    answer(async { listed(core(&api)?, wanted.database.as_deref()).await }.await)
}

/// What `branch list --json` prints, without addresses: those have passwords.
async fn listed(core: &BuiltIn, database: Option<&str>) -> Result<Value, BuiltInError> {
    let projects = match database {
        Some(name) => vec![ProjectName::new(name)?],
        // Templates are called as no database may be.
        None => {
            let mut all = core.pages().projects().await?;
            all.retain(|project| !project.as_str().starts_with("pg_"));
            all
        }
    };
    let mut listed = Vec::new();
    for project in projects {
        let heads = core.branches().list(&project).await?;
        for head in &heads {
            let parent = head.parent.as_ref().filter(|parent| parent.project == project);
            let parent_name =
                parent.and_then(|parent| heads.iter().find(|other| other.branch == parent.branch));
            let status = core.computes().status(&project, head.branch).await?;
            listed.push(json!({
                "database": project.as_str(),
                "branch": head.name.as_str(),
                "parent": parent_name.map(|parent| parent.name.to_string()),
                "lsn": parent.and_then(|parent| parent.lsn).map(|lsn| lsn.to_string()),
                "state": status.map_or_else(|| json!("asleep"), |status| json!(status.state)),
                "created_at": head.created_at.to_string(),
                "expires_at": head.expires_at.map(|expires| expires.to_string()),
            }));
        }
    }
    Ok(Value::Array(listed))
}

async fn found(core: &BuiltIn, asked: &BranchPlace) -> Result<Arc<ManifestHead>, BuiltInError> {
    let missing =
        || CoreError::NoSuchBranch { project: asked.project.to_string(), branch: asked.branch.to_string() };
    Ok(core.pages().find_branch(&asked.project, &asked.branch).await?.ok_or_else(missing)?)
}

pub(super) async fn create(State(api): State<Api>, Json(wanted): Json<WantedBranch>) -> Response {
    let made = async {
        let asked = branch_place(&wanted.branch)?;
        let parent = BranchName::new(wanted.from.as_deref().unwrap_or(MAIN_BRANCH))?;
        let point = wanted.at.as_deref().map_or(Ok(Point::Now), moment)?;
        let ttl = wanted.ttl.map(Period::duration);
        let made = core(&api)?.branches().create(&asked.project, &parent, asked.branch, point, ttl).await?;
        let lsn = made.head.parent.as_ref().and_then(|parent| parent.lsn);
        Ok::<_, BuiltInError>(json!({ "branch": wanted.branch, "lsn": lsn.map(|lsn| lsn.to_string()) }))
    };
    answer(made.await)
}

pub(super) async fn delete(State(api): State<Api>, Path(branch): Path<String>) -> Response {
    let deleted = async {
        let asked = branch_place(&branch)?;
        if asked.branch.as_str() == MAIN_BRANCH {
            return Err(BuiltInError::MainBranch);
        }
        core(&api)?.branches().delete(&asked.project, &asked.branch).await?;
        Ok::<_, BuiltInError>(json!({ "deleted": branch }))
    };
    answer(deleted.await)
}

pub(super) async fn reset(State(api): State<Api>, Path(branch): Path<String>) -> Response {
    let reset = async {
        let asked = branch_place(&branch)?;
        core(&api)?.branches().reset(&asked.project, &asked.branch).await?;
        Ok::<_, BuiltInError>(json!({ "reset": branch }))
    };
    answer(reset.await)
}

pub(super) async fn restore(
    State(api): State<Api>,
    Path(branch): Path<String>,
    Json(wanted): Json<WantedMoment>,
) -> Response {
    let restored = async {
        let (asked, point) = (branch_place(&branch)?, moment(&wanted.to)?);
        let restored = core(&api)?.branches().restore(&asked.project, &asked.branch, point).await?;
        Ok::<_, BuiltInError>(json!({ "branch": branch, "before": restored.before.to_string() }))
    };
    answer(restored.await)
}

fn core(api: &Api) -> Result<&BuiltIn, BuiltInError> {
    api.core.as_ref().ok_or(BuiltInError::NoDatabase)
}

fn answer(outcome: Result<Value, BuiltInError>) -> Response {
    match outcome {
        Ok(done) => Json(done).into_response(),
        Err(error) => problem(status(&error), &error_chain(&error)),
    }
}

fn status(error: &BuiltInError) -> StatusCode {
    match error {
        BuiltInError::Core(CoreError::NoSuchBranch { .. }) | BuiltInError::NoDatabase => {
            StatusCode::NOT_FOUND
        }
        BuiltInError::Core(CoreError::BranchExists { .. }) => StatusCode::CONFLICT,
        BuiltInError::Moment { .. }
        | BuiltInError::MainBranch
        | BuiltInError::Core(CoreError::UnusableName { .. } | CoreError::PointOutOfReach { .. }) => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
