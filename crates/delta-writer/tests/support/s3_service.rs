//! S3 in this process: `object_store`'s client speaks to `s3s-fs` without a socket between them.
//!
//! `s3s-fs` checks a conditional put's condition and then writes, so two racing puts would both win. A lock
//! per key around such puts makes it keep the promise that real stores keep.

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Mutex;

const BUCKET: &str = "lake";

/// A store whose bucket `lake` lies in `root/lake`, one file per object.
pub fn s3_store(root: &Path) -> AmazonS3 {
    std::fs::create_dir_all(root.join(BUCKET)).unwrap();
    let mut builder = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
    builder.set_auth(SimpleAuth::from_single("key", "secret"));
    let service = InProcess { service: builder.build(), locks: Arc::default() };
    AmazonS3Builder::new()
        .with_endpoint("http://s3.local")
        .with_allow_http(true)
        .with_bucket_name(BUCKET)
        .with_region("us-east-1")
        .with_access_key_id("key")
        .with_secret_access_key("secret")
        .with_http_connector(service)
        .build()
        .unwrap()
}

#[derive(Clone)]
struct InProcess {
    service: S3Service,
    locks: Arc<Mutex<HashMap<String, Arc<Mutex<()>>>>>,
}

impl std::fmt::Debug for InProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InProcess")
    }
}

impl HttpConnector for InProcess {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for InProcess {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let path = request.uri().path().to_owned();
        let conditional =
            request.headers().contains_key("if-none-match") && request.method().as_str() == "PUT";
        let lock = Arc::clone(self.locks.lock().await.entry(path).or_default());
        let _held = if conditional { Some(lock.lock().await) } else { None };
        let (mut parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        // What a client adds when it has a socket in its hand.
        parts.headers.entry("host").or_insert("s3.local".parse().unwrap());
        parts.headers.entry("content-length").or_insert(body.len().into());
        let request = s3s::HttpRequest::from_parts(parts, body.into());
        let response = self
            .service
            .call(request)
            .await
            .map_err(|error| HttpError::new(HttpErrorKind::Unknown, Gone(format!("{error:?}"))))?;
        let (parts, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| HttpError::new(HttpErrorKind::Unknown, Gone(error.to_string())))?;
        Ok(HttpResponse::from_parts(parts, body.to_bytes().into()))
    }
}

#[derive(Debug)]
struct Gone(String);

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Gone {}
