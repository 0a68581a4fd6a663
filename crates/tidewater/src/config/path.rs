//! Paths and places in object stores. Relative ones count from the configuration's folder.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// Under this newtype name the reader gives an absolute path.
pub(super) const PATH_NEWTYPE: &str = "tidewater::Path";

/// Under this newtype name the reader gives a URI as it is, or an absolute path.
pub(super) const LOCATION_NEWTYPE: &str = "tidewater::Location";

/// Schemes of object stores, besides plain paths.
const SCHEMES: [&str; 4] = ["file", "s3", "gs", "az"];

/// A path on this machine, absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct LocalPath(PathBuf);

impl LocalPath {
    /// A path that still counts from the configuration's folder, as a default does.
    pub(super) fn unresolved(path: &str) -> LocalPath {
        LocalPath(path.into())
    }

    /// The same path from `folder`, if it was relative.
    pub(super) fn resolved(&self, folder: &Path) -> LocalPath {
        LocalPath(folder.join(&self.0))
    }
}

impl std::ops::Deref for LocalPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl<'de> Deserialize<'de> for LocalPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_newtype_struct(PATH_NEWTYPE, Text("a path"))
            .map(|path| LocalPath(path.into()))
    }
}

impl JsonSchema for LocalPath {
    fn schema_name() -> Cow<'static, str> {
        "LocalPath".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "description": "A path; a relative one counts from this file's folder." })
    }
}

/// A place for data: an absolute path, or `s3://`, `gs://`, `az://`, `file://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location(String);

impl Location {
    /// A folder on this machine.
    pub(super) fn local(path: &Path) -> Location {
        Location(path.to_string_lossy().into_owned())
    }

    /// The absolute path or URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it lies in an object store rather than in a file system.
    pub fn is_object_store(&self) -> bool {
        self.0.split_once("://").is_some_and(|(scheme, _)| scheme != "file")
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Location {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a path, or a place such as s3://bucket/prefix, gs://…, az://… or file://…, without a password in it";
        let text = deserializer.deserialize_newtype_struct(LOCATION_NEWTYPE, Text(expected))?;
        if let Some((scheme, rest)) = text.split_once("://") {
            let authority = rest.split('/').next().unwrap_or_default();
            let empty = authority.is_empty() && scheme != "file";
            // Credentials belong into `options`, where they are known to be secret.
            if !SCHEMES.contains(&scheme) || empty || authority.contains('@') || rest.contains('?') {
                return Err(serde::de::Error::custom(expected));
            }
        }
        Ok(Location(text))
    }
}

impl JsonSchema for Location {
    fn schema_name() -> Cow<'static, str> {
        "Location".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "description": "A path, or s3://, gs://, az://, file://." })
    }
}

/// Text that is not empty; the field says what it is.
struct Text(&'static str);

impl Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        if text.is_empty() { Err(E::custom(self.0)) } else { Ok(text.to_owned()) }
    }
}
