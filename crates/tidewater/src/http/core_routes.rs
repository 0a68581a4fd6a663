//! Branches, restores and computes of built-in databases.
//!
//! The same work as the commands', for callers that have the token. Addresses with passwords are for the command line
//! alone.

use super::{Api, problem};
use crate::built_in::{BuiltIn, BuiltInError, branch_place, moment};
use crate::daemon::error_chain;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use oltp_core::CoreError;
use oltp_core::branches::Point;
use oltp_core::gateway::MAIN_BRANCH;
use oltp_core::ids::BranchName;
use serde::Deserialize;
use serde_json::{Value, json};

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

pub(super) async fn create(State(api): State<Api>, Json(wanted): Json<WantedBranch>) -> Response {
    let made = async {
        let asked = branch_place(&wanted.branch)?;
        let parent = BranchName::new(wanted.from.as_deref().unwrap_or(MAIN_BRANCH))?;
        let point = wanted.at.as_deref().map_or(Ok(Point::Now), moment)?;
        let made = core(&api)?.branches().create(&asked.project, &parent, asked.branch, point, None).await?;
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
