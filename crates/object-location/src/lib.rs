//! A place for objects, opened from its URI.
//!
//! Lake, page store and served tables all lie in a folder on this machine or below a prefix of a bucket. This is
//! the one door to both, so that each takes the same URIs, options and credentials:
//!
//! ```text
//!   ./lake, file:///srv/lake ──► LocalFileSystem, rooted in the folder
//!   s3://bucket/prefix       ──► AmazonS3; credentials by precedence:
//!                                options > AWS_* variables > profile in ~/.aws > what object_store finds
//!                                                                                (web identity, ECS, EKS, EC2)
//! ```
//!
//! No value of an option or credential ever reaches a message.

mod aws_profile;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

pub use aws_profile::ProfileError;

/// A request that takes longer is given up and tried again: no store needs as long for one part.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the store's own retries may take before an error becomes visible.
const RETRY_TIMEOUT: Duration = Duration::from_secs(90);
const RETRIES: usize = 8;

/// An opened place.
#[derive(Debug, Clone)]
pub struct ObjectLocation {
    /// The store: the local folder itself, or the whole bucket.
    pub store: Arc<dyn ObjectStore>,
    /// The prefix in the store; empty for a local folder.
    pub prefix: Path,
    /// The store's own address, which `prefix` goes onto: `file:///…/` or `s3://bucket/`.
    pub base: Url,
    /// The folder, canonical, if the place is one on this machine.
    pub folder: Option<PathBuf>,
}

/// Why a place cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocationError {
    /// The URI is no URI, or names nothing that can be a place.
    #[error("`{uri}` names no place: {reason}; give a path, file:///path or s3://bucket/prefix")]
    BadUri {
        /// As given, without user and password.
        uri: String,
        /// What is wrong.
        reason: String,
    },
    /// A store of another kind.
    #[error("`{uri}`: `{scheme}://` is not supported; give a path, file:///path or s3://bucket/prefix")]
    UnsupportedScheme {
        /// As given, without user and password.
        uri: String,
        /// Its scheme.
        scheme: String,
    },
    /// An option that this kind of store does not have.
    #[error(
        "`{uri}` has no option `{option}`; object_store's names with or without `aws_` are known, a local folder has none"
    )]
    UnknownOption {
        /// The place.
        uri: String,
        /// The option's name.
        option: String,
    },
    /// The folder cannot be made or found.
    #[error("cannot open the folder {}; create it, or name another", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The profile that AWS tools would use is of no use here.
    #[error("`{uri}`: the AWS profile cannot be used")]
    Profile {
        /// The place.
        uri: String,
        /// Why.
        #[source]
        source: ProfileError,
    },
    /// The store's client refused what it was given.
    #[error("cannot open the object store of `{uri}`")]
    Store {
        /// The place.
        uri: String,
        /// What it said.
        #[source]
        source: object_store::Error,
    },
}

/// Whether a folder that is missing is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingFolder {
    /// For whoever is going to write there.
    Create,
    /// For whoever only reads.
    Refuse,
}

/// Opens the place at `uri`. Nothing is sent over the network.
///
/// For S3, `options` are object_store's, with or without the `aws_` prefix, in any case. `allow_http` follows from an
/// `http://` endpoint: whoever names one without TLS wants it so.
///
/// # Errors
/// The URI, an option, the folder or the AWS profile cannot be used; each error names it.
pub fn open(
    uri: &str,
    options: &BTreeMap<String, String>,
    missing: MissingFolder,
) -> Result<ObjectLocation, LocationError> {
    let bad = |reason: &str| LocationError::BadUri { uri: without_userinfo(uri), reason: reason.to_owned() };
    let Some((scheme, _)) = uri.split_once("://") else {
        return open_folder(uri, FilePath::new(uri), options, missing);
    };
    let url = Url::parse(uri).map_err(|error| bad(&error.to_string()))?;
    match scheme {
        "file" => {
            let folder = url.to_file_path().map_err(|()| bad("it is no path of this machine"))?;
            open_folder(uri, &folder, options, missing)
        }
        "s3" | "s3a" => open_s3(uri, url, options, &|name| std::env::var(name).ok()),
        _ => Err(LocationError::UnsupportedScheme { uri: without_userinfo(uri), scheme: scheme.to_owned() }),
    }
}

fn open_folder(
    uri: &str,
    folder: &FilePath,
    options: &BTreeMap<String, String>,
    missing: MissingFolder,
) -> Result<ObjectLocation, LocationError> {
    if let Some(option) = options.keys().next() {
        return Err(LocationError::UnknownOption { uri: uri.to_owned(), option: option.clone() });
    }
    let failed = |source| LocationError::Folder { folder: folder.to_owned(), source };
    if missing == MissingFolder::Create {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let folder = folder.canonicalize().map_err(failed)?;
    let store = LocalFileSystem::new_with_prefix(&folder)
        .map_err(|source| LocationError::Store { uri: uri.to_owned(), source })?
        .with_automatic_cleanup(false);
    let base = Url::from_directory_path(&folder).map_err(|()| LocationError::BadUri {
        uri: uri.to_owned(),
        reason: "its path is not UTF-8".to_owned(),
    })?;
    Ok(ObjectLocation { store: Arc::new(store), prefix: Path::default(), base, folder: Some(folder) })
}

fn open_s3(
    uri: &str,
    url: Url,
    options: &BTreeMap<String, String>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<ObjectLocation, LocationError> {
    let bad = |reason: &str| LocationError::BadUri { uri: without_userinfo(uri), reason: reason.to_owned() };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("credentials belong into the options or the environment"));
    }
    let bucket = url.host_str().ok_or_else(|| bad("it names no bucket"))?;
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    let client = ClientOptions::new().with_timeout(REQUEST_TIMEOUT);
    let mut builder =
        AmazonS3Builder::from_env().with_client_options(client).with_retry(retry).with_bucket_name(bucket);
    for (option, value) in options {
        let key: AmazonS3ConfigKey = option
            .to_ascii_lowercase()
            .parse()
            .map_err(|_| LocationError::UnknownOption { uri: uri.to_owned(), option: option.clone() })?;
        builder = builder.with_config(key, value);
    }
    builder = with_profile(builder, variable)
        .map_err(|source| LocationError::Profile { uri: uri.to_owned(), source })?;
    let endpoints = [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint];
    let endpoint = endpoints.iter().find_map(|key| builder.get_config_value(key));
    if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
        builder = builder.with_allow_http(true);
    }
    let prefix = Path::from_url_path(url.path()).map_err(|error| bad(&error.to_string()))?;
    let store = builder.build().map_err(|source| LocationError::Store { uri: uri.to_owned(), source })?;
    let mut base = url;
    base.set_path("/");
    base.set_query(None);
    Ok(ObjectLocation { store: Arc::new(store), prefix, base, folder: None })
}

/// Fills in what neither options nor variables gave from the profile that the AWS tools would use.
fn with_profile(
    mut builder: AmazonS3Builder,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<AmazonS3Builder, ProfileError> {
    let has_key = builder.get_config_value(&AmazonS3ConfigKey::AccessKeyId).is_some();
    let is_anonymous =
        builder.get_config_value(&AmazonS3ConfigKey::SkipSignature).is_some_and(|skip| skip == "true");
    if has_key || is_anonymous {
        return Ok(builder);
    }
    let Some(profile) = aws_profile::find(variable)? else { return Ok(builder) };
    let values = [
        (AmazonS3ConfigKey::AccessKeyId, Some(profile.access_key_id)),
        (AmazonS3ConfigKey::SecretAccessKey, Some(profile.secret_access_key)),
        (AmazonS3ConfigKey::Token, profile.session_token),
        (AmazonS3ConfigKey::Region, profile.region),
        (AmazonS3ConfigKey::Endpoint, profile.endpoint_url),
    ];
    for (key, value) in values {
        if let Some(value) = value.filter(|_| builder.get_config_value(&key).is_none()) {
            builder = builder.with_config(key, value);
        }
    }
    Ok(builder)
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

    fn open_quietly(uri: &str, options: &[(&str, &str)]) -> Result<ObjectLocation, LocationError> {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        open(uri, &options, MissingFolder::Refuse)
    }

    #[test]
    fn an_option_the_store_does_not_know_is_named_without_its_value() {
        let error = open_quietly("s3://bucket/lake", &[("acess_key", "hunter2")]).unwrap_err().to_string();
        assert!(error.contains("acess_key"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_shown() {
        for uri in ["ftp://me:hunter2@host/lake", "s3://me:hunter2@bucket/lake"] {
            let error = open_quietly(uri, &[]).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_named_or_made() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("lake");
        let uri = folder.to_str().unwrap();
        let error = open_quietly(uri, &[]).unwrap_err().to_string();
        assert!(error.contains(uri), "{error}");
        let made = open(uri, &BTreeMap::new(), MissingFolder::Create).unwrap();
        assert_eq!(made.folder.as_deref(), Some(folder.canonicalize().unwrap().as_path()));
        assert_eq!(made.prefix, Path::default());
    }

    #[test]
    fn a_bucket_with_a_prefix_opens_without_touching_the_network() {
        let options = [
            ("endpoint", "http://127.0.0.1:1"),
            ("ACCESS_KEY_ID", "k"),
            ("aws_secret_access_key", "s"),
            ("region", "us-east-1"),
        ];
        let place = open_quietly("s3://bucket/some/lake", &options).unwrap();
        assert_eq!(place.prefix, Path::from("some/lake"));
        assert_eq!(place.base.as_str(), "s3://bucket/");
        assert_eq!(place.folder, None);
    }

    #[test]
    fn a_profile_fills_in_what_nobody_gave() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("credentials");
        std::fs::write(&file, "[default]\naws_access_key_id = from-profile\naws_secret_access_key = s\n")
            .unwrap();
        let variable =
            |name: &str| (name == "AWS_SHARED_CREDENTIALS_FILE").then(|| file.to_str().unwrap().to_owned());
        let empty = with_profile(AmazonS3Builder::new(), &variable).unwrap();
        let key = |builder: &AmazonS3Builder| builder.get_config_value(&AmazonS3ConfigKey::AccessKeyId);
        assert_eq!(key(&empty).as_deref(), Some("from-profile"));
        let given = AmazonS3Builder::new().with_access_key_id("given");
        assert_eq!(key(&with_profile(given, &variable).unwrap()).as_deref(), Some("given"));
    }
}
