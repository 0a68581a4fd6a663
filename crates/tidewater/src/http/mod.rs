//! Health, metrics and the API, over TCP and over the control socket.
//!
//! ```text
//!   TCP, loopback by default ──▶ reading routes; changing routes with token and Host
//!   <state_dir>/control.sock ──▶ everything: whoever may open it (mode 0600) owns the daemon
//! ```
//!
//! Every request is bounded: headers, body and answer in time, bodies in size, connections in number.

mod access;
mod client;
mod server;

pub use access::Access;
pub use client::{ControlClient, ControlError};
pub use server::{ServeError, bind_control_socket, serve_control_socket, serve_tcp};

use crate::status::StatusBoard;
use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use std::sync::Arc;

/// Requests carry names and times, never data.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What the routes answer from.
#[derive(Clone)]
pub struct Api {
    /// What the daemon does.
    pub board: StatusBoard,
    /// The process's metrics.
    pub metrics: PrometheusHandle,
}

/// The routes, for callers that `access` describes.
pub fn router(api: Api, access: Access) -> Router {
    let changing = Router::new()
        .route("/api/v1/tables/{table}/pause", post(not_offered))
        .route("/api/v1/tables/{table}/resume", post(not_offered))
        .route("/api/v1/tables/{table}/resync", post(resync))
        .route("/api/v1/reload", post(not_offered))
        .layer(middleware::from_fn_with_state(Arc::new(access), authorise));
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(|State(api): State<Api>| async move { Json(api.board.snapshot()) }))
        .merge(changing)
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "there is no such route") })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(api)
}

async fn readiness(State(api): State<Api>) -> Response {
    if api.board.is_ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: a source is not connected yet\n").into_response()
    }
}

async fn metrics(State(api): State<Api>) -> Response {
    api.metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], api.metrics.render()).into_response()
}

async fn authorise(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    match access.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => problem(refusal.status(), &refusal.to_string()),
    }
}

/// Taken up within a second or two; `status` shows how it goes.
async fn resync(State(api): State<Api>, Path(table): Path<String>) -> Response {
    match api.board.request_resync(&table) {
        Ok(()) => (StatusCode::ACCEPTED, Json(serde_json::json!({ "table": table }))).into_response(),
        Err(refused) => problem(StatusCode::NOT_FOUND, &format!("`{table}`: {refused}")),
    }
}

/// The routes of the contract that this version's daemon has nothing behind.
async fn not_offered() -> Response {
    problem(StatusCode::NOT_IMPLEMENTED, "this version of the daemon does not offer this yet")
}

fn problem(status: StatusCode, error: &str) -> Response {
    (status, Json(serde_json::json!({ "error": error }))).into_response()
}
