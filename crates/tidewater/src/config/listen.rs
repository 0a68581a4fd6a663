//! `listen:` and `telemetry:` where Tidewater can be reached and what it tells about itself.

use super::path::LocalPath;
use super::quantity::Period;
use super::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Addresses, their protection and the token for what changes something.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Health, metrics and the API.
    #[serde(default = "http_address")]
    #[schemars(with = "String")]
    pub http: SocketAddr,
    /// The Postgres wire protocol over the lake; off when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub lake_sql: Option<SocketAddr>,
    /// Certificate and key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// Needed for changing routes over TCP, which are refused without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

impl Default for Listen {
    fn default() -> Self {
        Listen { http: http_address(), lake_sql: None, tls: None, token: None }
    }
}

/// Loopback: nobody is reachable from outside by default.
fn http_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8080))
}

/// A certificate and its key, PEM.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate chain.
    pub cert_file: LocalPath,
    /// The private key.
    pub key_file: LocalPath,
}

impl TlsFiles {
    /// As the listeners take them.
    pub fn gateway_files(&self) -> oltp_core::gateway::TlsFiles {
        oltp_core::gateway::TlsFiles {
            cert_file: self.cert_file.to_path_buf(),
            key_file: self.key_file.to_path_buf(),
        }
    }
}

/// What Tidewater writes about itself into the lake.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// How often.
    #[serde(default = "telemetry_period")]
    pub every: Period,
}

const fn telemetry_period() -> Period {
    Period::from_secs(30)
}
