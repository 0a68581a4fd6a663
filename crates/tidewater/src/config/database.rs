//! `databases:` each either a project of the core or an address.

use super::core::CoreDatabase;
use super::path::LocalPath;
use super::secret::{DatabaseUrl, Secret};
use postgres_connector::{SourceConfig, TlsMode};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;

/// A database that rows come from or go to.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "DatabaseShape")]
pub enum Database {
    /// One of the built-in Postgres.
    Core(CoreDatabase),
    /// Any other Postgres.
    Url(UrlDatabase),
}

/// A Postgres at an address.
#[derive(Debug, Clone, Serialize)]
pub struct UrlDatabase {
    /// Its address.
    pub url: DatabaseUrl,
    /// The password, unless the address has it or none is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// How the connection is protected.
    pub tls: Tls,
    /// The authorities that the server's certificate is checked against, instead of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<LocalPath>,
}

impl UrlDatabase {
    /// As the connector takes it.
    pub fn source_config(&self) -> Result<SourceConfig, postgres_connector::Error> {
        let password = self.password.as_ref().map(|password| password.secret_string().clone());
        let tls = match self.tls {
            Tls::Disable => TlsMode::Disable,
            Tls::Prefer => TlsMode::Prefer,
            Tls::Require => TlsMode::Require,
            Tls::VerifyCa => TlsMode::VerifyCa,
            Tls::VerifyFull => TlsMode::VerifyFull,
        };
        let ca_file = self.ca_file.as_ref().map(|path| path.to_path_buf());
        SourceConfig::from_url(self.url.expose(), password, Some(tls), ca_file)
    }
}

/// How a connection is protected, by libpq's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// Never encrypted.
    Disable,
    /// Encrypted when the server can; nothing is checked.
    Prefer,
    /// Encrypted; nothing is checked.
    Require,
    /// Encrypted, and the certificate is signed by a known authority.
    VerifyCa,
    /// As verify-ca, and the certificate names the host.
    VerifyFull,
}

/// `{core: {…}}` or `{url: …}`, as the file has it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DatabaseShape {
    /// A project of the built-in Postgres; all its keys are optional.
    core: Option<CoreDatabase>,
    /// postgres://user@host:5432/database
    url: Option<DatabaseUrl>,
    /// With `url`: the password.
    password: Option<Secret>,
    /// With `url`: how the connection is protected.
    tls: Option<Tls>,
    /// With `url`: a file with the authorities to trust.
    ca_file: Option<LocalPath>,
}

impl TryFrom<DatabaseShape> for Database {
    type Error = &'static str;

    fn try_from(shape: DatabaseShape) -> Result<Self, Self::Error> {
        match (shape.core, shape.url) {
            (Some(_), Some(_)) => Err("either `core` or `url`, not both"),
            (None, None) => Err("`core: {}` for a built-in database or `url: postgres://…` for another"),
            (Some(_), None) if shape.password.is_some() || shape.tls.is_some() || shape.ca_file.is_some() => {
                Err(
                    "only `core` here: its password goes inside `core: {…}`, `tls` and `ca_file` belong to `url`",
                )
            }
            (Some(core), None) => Ok(Database::Core(core)),
            (None, Some(url)) if shape.password.is_some() && url.has_password() => {
                Err("one password, either in `url` or in `password`")
            }
            (None, Some(url)) => {
                let tls = shape.tls.unwrap_or_else(|| default_tls(&url));
                Ok(Database::Url(UrlDatabase { url, password: shape.password, tls, ca_file: shape.ca_file }))
            }
        }
    }
}

/// Whoever does not choose gets the safe choice, except where nobody can listen in between: on this machine.
fn default_tls(url: &DatabaseUrl) -> Tls {
    let local = url.host().is_none_or(|host| {
        matches!(host, "" | "localhost" | "127.0.0.1" | "::1" | "[::1]")
            || host.starts_with('/')
            || host.starts_with("%2F")
            || host.starts_with("%2f")
    });
    if local { Tls::Prefer } else { Tls::VerifyFull }
}

impl Serialize for Database {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Database::Core(core) => serializer.collect_map([("core", core)]),
            Database::Url(url) => url.serialize(serializer),
        }
    }
}

impl JsonSchema for Database {
    fn schema_name() -> Cow<'static, str> {
        "Database".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = DatabaseShape::json_schema(generator);
        schema.insert("oneOf".into(), serde_json::json!([{ "required": ["core"] }, { "required": ["url"] }]));
        schema
    }
}
