//! Where the lake lies: a local folder or a bucket, opened once.
//!
//! deltalake is built without its cloud features, so the stores are built here and handed to it per
//! table. Options are the contract's `lake.options`; an option the store does not know is an error, and
//! no value of one ever reaches a message.

use crate::error::LakeSqlError;
use deltalake::DeltaTable;
use deltalake::logstore::{StorageConfig, default_logstore};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ClientConfigKey, ObjectStore};
use std::collections::BTreeMap;
use std::sync::Arc;
use url::Url;

/// An open store and the lake's place in it.
#[derive(Debug, Clone)]
pub(crate) struct LakeStore {
    /// The whole store: `/` of the file system, or the bucket.
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// The lake's folder in it.
    pub(crate) root: Path,
    /// The store's address, without the folder.
    base: Url,
}

impl LakeStore {
    pub(crate) fn open(uri: &str, options: &BTreeMap<String, String>) -> Result<Self, LakeSqlError> {
        match Url::parse(uri) {
            Ok(url) if url.scheme() == "s3" => open_s3(uri, url, options),
            Ok(url) if url.scheme() == "file" => match url.to_file_path() {
                Ok(path) => open_folder(uri, &path, options),
                Err(()) => Err(LakeSqlError::UnsupportedUri { uri: uri.to_owned() }),
            },
            _ if uri.contains("://") => Err(LakeSqlError::UnsupportedUri { uri: without_userinfo(uri) }),
            _ => open_folder(uri, std::path::Path::new(uri), options),
        }
    }

    /// The Delta table in a folder of this store, its log not read yet.
    pub(crate) fn table(&self, location: &Path) -> DeltaTable {
        let mut url = self.base.clone();
        url.set_path(location.as_ref());
        let folder = Arc::new(PrefixStore::new(Arc::clone(&self.objects), location.clone()));
        DeltaTable::new(default_logstore(folder, Arc::clone(&self.objects), &url, &StorageConfig::default()))
    }
}

fn open_folder(
    uri: &str,
    path: &std::path::Path,
    options: &BTreeMap<String, String>,
) -> Result<LakeStore, LakeSqlError> {
    if let Some(option) = options.keys().next() {
        return Err(LakeSqlError::UnknownOption { uri: uri.to_owned(), option: option.clone() });
    }
    let folder =
        path.canonicalize().map_err(|source| LakeSqlError::LakeFolder { uri: uri.to_owned(), source })?;
    let root = Path::from_absolute_path(&folder)
        .map_err(|_| LakeSqlError::UnsupportedUri { uri: uri.to_owned() })?;
    let base =
        Url::from_directory_path("/").map_err(|()| LakeSqlError::UnsupportedUri { uri: uri.to_owned() })?;
    Ok(LakeStore { objects: Arc::new(LocalFileSystem::new()), root, base })
}

fn open_s3(uri: &str, url: Url, options: &BTreeMap<String, String>) -> Result<LakeStore, LakeSqlError> {
    let bucket = url
        .host_str()
        .filter(|_| url.username().is_empty() && url.password().is_none())
        .ok_or_else(|| LakeSqlError::UnsupportedUri { uri: without_userinfo(uri) })?;
    let failed = |source| LakeSqlError::Store { at: uri.to_owned(), source: Box::new(source) };
    // Credentials of the environment first, so that a lake without options works where the AWS tools do.
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    for (option, value) in options {
        let key: AmazonS3ConfigKey = option
            .to_ascii_lowercase()
            .parse()
            .map_err(|_| LakeSqlError::UnknownOption { uri: uri.to_owned(), option: option.clone() })?;
        if key == AmazonS3ConfigKey::Endpoint && value.starts_with("http://") {
            builder = builder.with_config(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp), "true");
        }
        builder = builder.with_config(key, value);
    }
    let root =
        Path::from_url_path(url.path()).map_err(|_| LakeSqlError::UnsupportedUri { uri: uri.to_owned() })?;
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
        assert_eq!(
            store.table(&Path::from("some/lake/shop")).table_url().as_str(),
            "s3://bucket/some/lake/shop/"
        );
    }
}
