//! Health, metrics and the API, over TCP and over the control socket.
//!
//! ```text
//!   TCP, loopback by default ──▶ reading routes; changing routes with token and Host; TLS if there is a certificate
//!   <state_dir>/control.sock ──▶ everything: whoever may open it (mode 0600) owns the daemon
//! ```
//!
//! Every request is bounded: headers, body and answer in time, bodies in size, connections in number.

mod access;
mod client;
mod core_routes;
mod server;
mod table_routes;

pub use access::Access;
pub use client::{ControlClient, ControlError};
pub use server::{ServeError, bind_control_socket, load_certificate, serve_control_socket, serve_tcp};

use crate::built_in::BuiltIn;
use crate::reload::Reloader;
use crate::requests::Requests;
use crate::status::StatusBoard;
use crate::verification::Verifications;
use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use std::sync::Arc;

/// Requests carry names and times, never data.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What the routes answer from.
#[derive(Clone)]
pub struct Api {
    /// What the daemon does.
    pub board: StatusBoard,
    /// Where requests for its tables go.
    pub requests: Requests,
    /// The reports of comparisons.
    pub verifications: Verifications,
    /// Has the configuration read anew.
    pub reloader: Reloader,
    /// The built-in Postgres, if a database needs it.
    pub core: Option<BuiltIn>,
    /// The process's metrics.
    pub metrics: PrometheusHandle,
}

/// The routes, for callers that `access` describes.
pub fn router(api: Api, access: Access) -> Router {
    let changing = Router::new()
        .route("/api/v1/tables/{table}/pause", post(table_routes::pause))
        .route("/api/v1/tables/{table}/resume", post(table_routes::resume))
        .route("/api/v1/tables/{table}/resync", post(table_routes::resync))
        .route("/api/v1/verifications", post(table_routes::verify))
        .route("/api/v1/branches", post(core_routes::create))
        .route("/api/v1/branches/{branch}", delete(core_routes::delete))
        .route("/api/v1/branches/{branch}/reset", post(core_routes::reset))
        .route("/api/v1/branches/{branch}/restore", post(core_routes::restore))
        .route("/api/v1/computes/{branch}/suspend", post(core_routes::suspend))
        .route("/api/v1/computes/{branch}/wake", post(core_routes::wake))
        .route("/api/v1/reload", post(reload))
        .layer(middleware::from_fn_with_state(Arc::new(access), authorise));
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(|State(api): State<Api>| async move { Json(api.board.snapshot()) }))
        .route("/api/v1/verifications/{id}", get(table_routes::verification))
        .route("/api/v1/branches", get(core_routes::list))
        .route("/api/v1/computes", get(core_routes::computes))
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

async fn reload(State(api): State<Api>) -> Response {
    match api.reloader.reload().await {
        Ok(changes) => Json(serde_json::json!({ "changes": changes })).into_response(),
        Err(reason) => problem(StatusCode::UNPROCESSABLE_ENTITY, &reason),
    }
}

fn problem(status: StatusCode, error: &str) -> Response {
    (status, Json(serde_json::json!({ "error": error }))).into_response()
}
