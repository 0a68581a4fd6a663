//! Where a lake or a table lies: a local folder or a bucket, opened once.
//!
//! The Delta libraries are built without their cloud features, so the stores are built here. Options are the
//! contract's `lake.options`; an option the store does not know is an error, and no value of one ever reaches a
//! message.

use crate::error::{Result, ReverseSyncError};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore};
use std::collections::BTreeMap;
use std::sync::Arc;
use url::Url;

/// An open store and a folder in it.
#[derive(Debug, Clone)]
pub struct LakeStore {
    /// The whole store: `/` of the file system, or the bucket.
    pub objects: Arc<dyn ObjectStore>,
    /// The folder in it.
    pub root: Path,
    /// The store's address, without the folder.
    pub base: Url,
}

impl LakeStore {
    /// Opens a local path, `file://` or `s3://bucket/prefix`.
    ///
    /// A local folder must exist; a bucket is first spoken to by the first read.
    pub fn open(uri: &str, options: &BTreeMap<String, String>) -> Result<Self> {
        match Url::parse(uri) {
            Ok(url) if url.scheme() == "s3" => open_s3(uri, url, options),
            Ok(url) if url.scheme() == "file" => match url.to_file_path() {
                Ok(path) => open_folder(uri, &path, options),
                Err(()) => Err(ReverseSyncError::UnsupportedUri { uri: uri.to_owned() }),
            },
            _ if uri.contains("://") => Err(ReverseSyncError::UnsupportedUri { uri: without_userinfo(uri) }),
            _ => open_folder(uri, std::path::Path::new(uri), options),
        }
    }

    /// The address of a folder of this store.
    pub fn url_of(&self, folder: &Path) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{folder}/"));
        url
    }
}

fn open_folder(uri: &str, path: &std::path::Path, options: &BTreeMap<String, String>) -> Result<LakeStore> {
    if let Some(option) = options.keys().next() {
        return Err(ReverseSyncError::UnknownOption { uri: uri.to_owned(), option: option.clone() });
    }
    let folder =
        path.canonicalize().map_err(|source| ReverseSyncError::Folder { uri: uri.to_owned(), source })?;
    let unsupported = || ReverseSyncError::UnsupportedUri { uri: uri.to_owned() };
    let root = Path::from_absolute_path(&folder).map_err(|_| unsupported())?;
    let base = Url::from_directory_path("/").map_err(|()| unsupported())?;
    Ok(LakeStore { objects: Arc::new(LocalFileSystem::new()), root, base })
}

fn open_s3(uri: &str, url: Url, options: &BTreeMap<String, String>) -> Result<LakeStore> {
    let bucket = url
        .host_str()
        .filter(|_| url.username().is_empty() && url.password().is_none())
        .ok_or_else(|| ReverseSyncError::UnsupportedUri { uri: without_userinfo(uri) })?;
    let failed = |source| ReverseSyncError::Store { at: uri.to_owned(), source: Box::new(source) };
    // Credentials of the environment first, so that a lake without options works where the AWS tools do.
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    for (option, value) in options {
        let key: AmazonS3ConfigKey = option
            .to_ascii_lowercase()
            .parse()
            .map_err(|_| ReverseSyncError::UnknownOption { uri: uri.to_owned(), option: option.clone() })?;
        if key == AmazonS3ConfigKey::Endpoint && value.starts_with("http://") {
            builder = builder.with_config(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp), "true");
        }
        builder = builder.with_config(key, value);
    }
    let root = Path::from_url_path(url.path())
        .map_err(|_| ReverseSyncError::UnsupportedUri { uri: uri.to_owned() })?;
    let objects = Arc::new(builder.build().map_err(failed)?);
    let mut base = url;
    base.set_path("/");
    base.set_query(None);
    Ok(LakeStore { objects, root, base })
}

/// An address that may carry a password is cut back to what is safe to show.
fn without_userinfo(uri: &str) -> String {
    match (uri.split_once("://"), uri.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{rest}"),
        _ => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_the_store_does_not_know_is_named_without_its_value() {
        let options = BTreeMap::from([("acess_key".to_owned(), "hunter2".to_owned())]);
        let error = LakeStore::open("s3://bucket/lake", &options).unwrap_err().to_string();
        assert!(error.contains("acess_key"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn an_address_of_another_kind_is_refused_without_its_password() {
        let error = LakeStore::open("ftp://me:hunter2@host/lake", &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("ftp://host/lake"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = LakeStore::open("./no-such-lake", &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("./no-such-lake"), "{error}");
    }

    #[test]
    fn a_bucket_with_a_prefix_opens_without_touching_the_network() {
        let options = BTreeMap::from([
            ("endpoint".to_owned(), "http://127.0.0.1:1".to_owned()),
            ("access_key_id".to_owned(), "k".to_owned()),
            ("secret_access_key".to_owned(), "s".to_owned()),
            ("region".to_owned(), "us-east-1".to_owned()),
        ]);
        let store = LakeStore::open("s3://bucket/some/lake", &options).unwrap();
        assert_eq!(store.root, Path::from("some/lake"));
        assert_eq!(store.url_of(&Path::from("some/lake/shop")).as_str(), "s3://bucket/some/lake/shop/");
    }
}
