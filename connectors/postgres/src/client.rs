//! An SQL session, with the house's settings.
//!
//! The settings decide how values read as text. Stream, snapshot and read-back must print the same value the same
//! way, so every session of this crate sets all of them and leaves nothing to the role's or database's defaults.

use crate::error::{Error, Place, Result};
use crate::log_in_guard::{GuardedTransport, Refusal, refusal};
use crate::source_config::SourceConfig;
use crate::transport::Transport;
use secrecy::ExposeSecret;
use std::ops::{Deref, DerefMut};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;

/// How values are printed, and what names mean. The empty `search_path` makes `regclass` and the like print schema-
/// qualified names everywhere; `row_security = off` makes Postgres refuse a read that a policy would silently thin out.
pub(crate) const SESSION_SETTINGS: [(&str, &str); 8] = [
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("search_path", ""),
    ("row_security", "off"),
];

/// Nothing that this crate asks of a catalog takes longer on a healthy server. COPY lifts it.
const STATEMENT_TIMEOUT: &str = "60s";
/// Longer would let our lock request queue in front of the application's own.
const LOCK_TIMEOUT: &str = "5s";

/// An open SQL session: a [`tokio_postgres::Client`] together with the task that moves its bytes.
/// Dropping it closes the connection.
pub struct Client {
    inner: tokio_postgres::Client,
    place: Place,
    connection: JoinHandle<()>,
}

impl Client {
    /// `host:port/database`, for messages.
    pub fn place(&self) -> &str {
        &self.place.name
    }

    pub(crate) fn error_place(&self) -> &Place {
        &self.place
    }

    /// Sorts an error of a statement run on this session.
    pub fn error(&self, doing: &'static str, source: tokio_postgres::Error) -> Error {
        Error::from_client(&self.place, doing, source)
    }
}

impl Deref for Client {
    type Target = tokio_postgres::Client;
    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.inner
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Opens an SQL session with the house's settings.
pub async fn connect(config: &SourceConfig) -> Result<Client> {
    let place = config.error_place();
    let transport = Transport::open(config).await?;
    let session = log_in(config, &place, transport);
    timeout(config.connect_timeout, session).await.map_err(|_| Error::Timeout {
        place: place.name.clone(),
        doing: "logging in",
        after: config.connect_timeout,
    })?
}

async fn log_in(config: &SourceConfig, place: &Place, transport: Transport) -> Result<Client> {
    let mut options = tokio_postgres::Config::new();
    // TLS is already there, under the library's feet.
    options.ssl_mode(SslMode::Disable);
    options.user(&config.user).dbname(&config.dbname).application_name(&config.application_name);
    if let Some(password) = &config.password {
        options.password(password.expose_secret());
    }
    if let Some(text) = &config.options {
        options.options(text);
    }
    let guarded = GuardedTransport::new(transport, config.password.is_some());
    let (inner, connection) =
        options.connect_raw(guarded, NoTls).await.map_err(|source| match refusal(&source) {
            Some(Refusal::ClearText) => Error::ClearTextPassword { place: place.name.clone() },
            Some(Refusal::NoPassword) => {
                Error::PasswordMissing { place: place.name.clone(), user: place.user.clone() }
            }
            None => Error::from_client(place, "logging in", source),
        })?;
    let name = place.name.clone();
    let connection = tokio::spawn(async move {
        // Whoever waits for a statement gets an error of its own; this one is for the session that broke while idle.
        if let Err(error) = connection.await {
            tracing::debug!(place = %name, error = &error as &dyn std::error::Error, "SQL session ended");
        }
    });
    let client = Client { inner, place: place.clone(), connection };
    let mut settings: String =
        SESSION_SETTINGS.iter().map(|(name, value)| format!("SET {name} = '{value}'; ")).collect();
    settings.push_str(&format!(
        "SET statement_timeout = '{STATEMENT_TIMEOUT}'; SET lock_timeout = '{LOCK_TIMEOUT}'"
    ));
    client.batch_execute(&settings).await.map_err(|source| client.error("setting up the session", source))?;
    Ok(client)
}

/// The server's version as a number: 180006 is 18.6.
pub async fn server_version(client: &Client) -> Result<u32> {
    let doing = "reading the server's version";
    let version: i32 = client
        .query_one("SELECT current_setting('server_version_num')::int4", &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|source| client.error(doing, source))?;
    u32::try_from(version).map_err(|_| Error::Protocol {
        place: client.place().to_owned(),
        problem: format!("server_version_num is {version}"),
    })
}
