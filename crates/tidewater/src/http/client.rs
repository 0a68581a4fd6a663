//! How commands speak to the daemon.

use crate::status::StatusReport;
use crate::verification::VerificationReport;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// The daemon answers from memory.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Tens of thousands of tables fit.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The daemon could not be asked.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no daemon runs for this configuration: nothing answers at {}", path.display())]
    #[diagnostic(code(tidewater::daemon::not_running), help("start it: `tidewater run`"))]
    NotRunning {
        /// the control socket
        path: PathBuf,
    },
    /// The socket belongs to someone else.
    #[error("the daemon's control socket {} cannot be opened", path.display())]
    #[diagnostic(code(tidewater::daemon::socket), help("use the user that the daemon runs as"))]
    Socket {
        /// the control socket
        path: PathBuf,
        /// what the system said
        source: io::Error,
    },
    /// The connection broke.
    #[error("the daemon's answer broke off")]
    #[diagnostic(code(tidewater::daemon::answer), help("its log says why: try again once it runs"))]
    Connection(#[source] hyper::Error),
    /// The answer came too late.
    #[error("the daemon did not answer within {} seconds", ANSWER_LIMIT.as_secs())]
    #[diagnostic(code(tidewater::daemon::slow), help("its log says what it is doing"))]
    TooSlow,
    /// The daemon will not do it.
    #[error("{problem}")]
    #[diagnostic(code(tidewater::daemon::refused))]
    Refused {
        /// what the daemon said
        problem: String,
    },
    /// The answer is not understood.
    #[error("the daemon answered {status} with something that is no answer of this version")]
    #[diagnostic(
        code(tidewater::daemon::version),
        help("command and daemon may be of different versions: restart the daemon")
    )]
    Answer {
        /// the HTTP status
        status: StatusCode,
    },
}

/// A daemon by its control socket.
pub struct ControlClient {
    path: PathBuf,
}

impl ControlClient {
    /// The daemon that listens at `path`.
    pub fn new(path: &Path) -> ControlClient {
        ControlClient { path: path.to_owned() }
    }

    /// What the daemon does.
    pub async fn status(&self) -> Result<StatusReport, ControlError> {
        let (status, body) = self.ask(Method::GET, "/api/v1/status", "").await?;
        serde_json::from_slice(&body).map_err(|_| ControlError::Answer { status })
    }

    /// Has a table pause; `hold` keeps its slot where it is.
    pub async fn pause(&self, table: &str, hold: bool) -> Result<(), ControlError> {
        self.change(&format!("/api/v1/tables/{}/pause?hold={hold}", encoded(table)), "").await.map(drop)
    }

    /// Has a paused table go on.
    pub async fn resume(&self, table: &str) -> Result<(), ControlError> {
        self.change(&format!("/api/v1/tables/{}/resume", encoded(table)), "").await.map(drop)
    }

    /// Has a table made equal to its source.
    pub async fn resync(&self, table: &str) -> Result<(), ControlError> {
        self.change(&format!("/api/v1/tables/{}/resync", encoded(table)), "").await.map(drop)
    }

    /// Has tables compared with their source; all of them if none is named.
    pub async fn verify(&self, tables: &[String]) -> Result<VerificationReport, ControlError> {
        let wanted = serde_json::json!({ "tables": tables }).to_string();
        let body = self.change("/api/v1/verifications", &wanted).await?;
        serde_json::from_slice(&body).map_err(|_| ControlError::Answer { status: StatusCode::ACCEPTED })
    }

    /// How far that is.
    pub async fn verification(&self, id: &str) -> Result<VerificationReport, ControlError> {
        let (status, body) =
            self.ask(Method::GET, &format!("/api/v1/verifications/{}", encoded(id)), "").await?;
        let body = accepted(status, body)?;
        serde_json::from_slice(&body).map_err(|_| ControlError::Answer { status })
    }

    async fn change(&self, route: &str, json: &str) -> Result<Vec<u8>, ControlError> {
        let (status, body) = self.ask(Method::POST, route, json).await?;
        accepted(status, body)
    }

    async fn ask(
        &self,
        method: Method,
        route: &str,
        json: &str,
    ) -> Result<(StatusCode, Vec<u8>), ControlError> {
        tokio::time::timeout(ANSWER_LIMIT, self.send(method, route, json))
            .await
            .map_err(|_| ControlError::TooSlow)?
    }

    async fn send(
        &self,
        method: Method,
        route: &str,
        json: &str,
    ) -> Result<(StatusCode, Vec<u8>), ControlError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ControlError::NotRunning { path: self.path.clone() }
            }
            _ => ControlError::Socket { path: self.path.clone(), source },
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(ControlError::Connection)?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(route)
            .header("host", "tidewater")
            .header("content-type", "application/json")
            .body(Full::new(bytes::Bytes::copy_from_slice(json.as_bytes())));
        let request = request.map_err(|_| ControlError::Answer { status: StatusCode::BAD_REQUEST })?;
        let answer = sender.send_request(request).await.map_err(ControlError::Connection)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|_| ControlError::Answer { status })?;
        driver.abort();
        Ok((status, body.to_bytes().to_vec()))
    }
}

fn encoded(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// The body of an answer that is no refusal.
fn accepted(status: StatusCode, body: Vec<u8>) -> Result<Vec<u8>, ControlError> {
    if status.is_success() {
        return Ok(body);
    }
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    match answer.get("error").and_then(serde_json::Value::as_str) {
        Some(problem) => Err(ControlError::Refused { problem: problem.to_owned() }),
        None => Err(ControlError::Answer { status }),
    }
}
