//! An S3 server of our own: `s3s-fs` on a port of the loopback, over a folder with one file an object.
//!
//! It can be stopped and started again at the same address, with everything it held. `s3s-fs` checks the
//! condition of a put and then writes; a lock around conditional puts makes it keep real stores' promise.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use crate::daemon::free_port;
use crate::reader::LakeTable;
use crate::s3_faults::{Fault, Faults};

const BUCKET: &str = "lake";
const KEY: &str = "test-key";
const SECRET: &str = "test-secret";

/// Longer than any answer of a folder on disk takes, shorter than any client waits.
const SLOW: Duration = Duration::from_millis(250);

/// A server with the bucket `lake`. Gone when dropped.
#[derive(Debug)]
pub struct S3Server {
    root: PathBuf,
    /// Set when the root is the server's own.
    _own: Option<TempDir>,
    port: u16,
    faults: Faults,
    serving: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts with an empty bucket.
    pub async fn start() -> S3Server {
        let own = TempDir::with_prefix("tidewater-s3-").unwrap();
        let mut server = S3Server::start_in(own.path()).await;
        server._own = Some(own);
        server
    }

    /// Starts with an empty bucket, a folder in `root`.
    pub async fn start_in(root: &Path) -> S3Server {
        std::fs::create_dir(root.join(BUCKET)).unwrap();
        let mut server = S3Server {
            root: root.to_owned(),
            _own: None,
            port: free_port(),
            faults: Faults::default(),
            serving: None,
        };
        server.restart().await;
        server
    }

    /// Listens again at the same address.
    pub async fn restart(&mut self) {
        self.stop().await;
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(&self.root).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        self.serving = Some(tokio::spawn(serve(listener, builder.build(), self.faults.clone())));
    }

    /// What goes wrong in it.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Its address, for those who get their credentials elsewhere.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The access key and its secret.
    pub fn credentials() -> (&'static str, &'static str) {
        (KEY, SECRET)
    }

    /// Closes the port and every connection, with requests under way cut off.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            assert!(serving.await.unwrap_err().is_cancelled(), "the S3 server has ended by itself");
        }
    }

    /// The bucket's folder.
    pub fn folder(&self) -> PathBuf {
        self.root.join(BUCKET)
    }

    /// A lake table as readers name it.
    pub fn table(&self, name: &str) -> LakeTable {
        let mut storage_options = self.lake_options();
        storage_options["allow_http"] = json!("true");
        LakeTable { path: format!("s3://{BUCKET}/{name}"), version: None, storage_options }
    }

    /// `lake.options` for it; flow style, so it also fits into a line of YAML.
    pub fn lake_options(&self) -> Value {
        json!({
            "endpoint": self.endpoint(),
            "access_key_id": KEY,
            "secret_access_key": SECRET,
            "region": "us-east-1",
        })
    }
}

/// Serves until it is dropped; its connections go with it.
async fn serve(listener: TcpListener, service: S3Service, faults: Faults) {
    let conditional_puts = Arc::new(Mutex::new(()));
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        while connections.try_join_next().is_some() {}
        let (service, conditional_puts, faults) = (service.clone(), conditional_puts.clone(), faults.clone());
        connections.spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let (service, conditional_puts) = (service.clone(), conditional_puts.clone());
                let fault = faults.draw(request.method().as_str(), request.uri().path());
                async move {
                    match fault {
                        Some(Fault::Refused) => return Ok(failure(StatusCode::INTERNAL_SERVER_ERROR)),
                        Some(Fault::Throttled) => return Ok(failure(StatusCode::SERVICE_UNAVAILABLE)),
                        Some(Fault::Hung) => std::future::pending().await,
                        Some(Fault::Slow) => tokio::time::sleep(SLOW).await,
                        Some(Fault::ErrorAfterEffect | Fault::AnswerLost) | None => {}
                    }
                    let conditional = request.headers().contains_key("if-none-match");
                    let _alone = if conditional { Some(conditional_puts.lock().await) } else { None };
                    let answer = Service::call(&service, request).await.unwrap();
                    match fault {
                        Some(Fault::ErrorAfterEffect) => Ok(failure(StatusCode::INTERNAL_SERVER_ERROR)),
                        Some(Fault::AnswerLost) => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                        _ => Ok(answer),
                    }
                }
            });
            // A client that hangs up in the middle is the client's business.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}

/// An error as S3 words it.
fn failure(status: StatusCode) -> Response<Body> {
    let code = if status == StatusCode::SERVICE_UNAVAILABLE { "SlowDown" } else { "InternalError" };
    let body = format!("<Error><Code>{code}</Code><Message>as the test asked</Message></Error>");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }
}
