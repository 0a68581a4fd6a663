//! What can be asked of tables: pause, resume, resync, and comparing them with their source.
//!
//! Each is answered at once. What comes of it stands in the status, or in the verification's report.

use super::{Api, problem};
use crate::requests::{Recipient, Request, TableRequest};
use crate::status::{Direction, UnknownTable};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// How a table is to be paused.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PauseOptions {
    #[serde(default)]
    hold: bool,
}

/// Which tables are to be compared; all if none is named.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct WantedTables {
    #[serde(default)]
    pub(super) tables: Vec<String>,
}

pub(super) async fn pause(
    State(api): State<Api>,
    Path(table): Path<String>,
    Query(options): Query<PauseOptions>,
) -> Response {
    ask(&api, &table, TableRequest::Pause { hold: options.hold })
}

pub(super) async fn resume(State(api): State<Api>, Path(table): Path<String>) -> Response {
    ask(&api, &table, TableRequest::Resume)
}

pub(super) async fn resync(State(api): State<Api>, Path(table): Path<String>) -> Response {
    ask(&api, &table, TableRequest::Resync)
}

fn ask(api: &Api, name: &str, request: TableRequest) -> Response {
    let (direction, database, table) = match api.board.find_table(name) {
        Ok(found) => found,
        Err(unknown) => return not_found(name, unknown),
    };
    let state = api.board.table(direction, &database, &table).map(|status| status.state);
    let to_lake = direction == Direction::ToLake;
    let recipient = match to_lake {
        true => Recipient::Source { database: database.clone() },
        false => Recipient::Served { database: database.clone(), table: table.clone() },
    };
    // A pause that was promised and is not done yet is undone by what comes after it.
    let pauses = matches!(api.requests.last_asked(&recipient, &table), Some(TableRequest::Pause { .. }));
    let refused = match request {
        TableRequest::Resume if !pauses && state.is_some_and(|state| state.name() != "paused") => {
            Some("it is not paused; `tidewater resync` makes it equal to its source")
        }
        TableRequest::Pause { hold: true } if !to_lake => {
            Some("a served table has no slot to hold: pause it without `--hold`")
        }
        TableRequest::Pause { .. } if to_lake && state.is_some_and(|state| state.load().is_some()) => {
            Some("it is being loaded: pause it once it streams")
        }
        _ => None,
    };
    if let Some(reason) = refused {
        return problem(StatusCode::CONFLICT, &format!("`{name}`: {reason}"));
    }
    match api.requests.put(&recipient, Request::Table { table: table.clone(), request }) {
        Ok(()) => {
            let taken = serde_json::json!({ "database": database, "table": table });
            (StatusCode::ACCEPTED, Json(taken)).into_response()
        }
        Err(too_many) => problem(StatusCode::SERVICE_UNAVAILABLE, &too_many.to_string()),
    }
}

pub(super) async fn verify(State(api): State<Api>, Json(wanted): Json<WantedTables>) -> Response {
    let mut tables = Vec::new();
    for name in &wanted.tables {
        match api.board.find_table(name) {
            Ok(found) => tables.push(found),
            Err(unknown) => return not_found(name, unknown),
        }
    }
    if wanted.tables.is_empty() {
        let all = api.board.snapshot().tables.into_iter();
        tables = all.map(|table| (table.direction, table.database, table.table)).collect();
    }
    tables.sort();
    tables.dedup();
    let (id, parts) = api.verifications.begin(&tables);
    for part in parts {
        let recipient = part.recipient().clone();
        if let Err(too_many) = api.requests.put(&recipient, Request::Verify(part)) {
            return problem(StatusCode::SERVICE_UNAVAILABLE, &too_many.to_string());
        }
    }
    (StatusCode::ACCEPTED, Json(api.verifications.report(&id))).into_response()
}

pub(super) async fn verification(State(api): State<Api>, Path(id): Path<String>) -> Response {
    match api.verifications.report(&id) {
        Some(report) => Json(report).into_response(),
        None => {
            problem(StatusCode::NOT_FOUND, "no verification has this id, or later ones have taken its place")
        }
    }
}

fn not_found(name: &str, unknown: UnknownTable) -> Response {
    problem(StatusCode::NOT_FOUND, &format!("`{name}`: {unknown}"))
}
