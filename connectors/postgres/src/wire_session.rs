//! A session over our own framing: log-in, the house's settings, simple queries.
//!
//! ```text
//!   Transport ── log in ──┬── settings ──┬── ReplicationSession    walsender commands, CopyBoth
//!                         │              └── SnapshotSession       COPY of millions of rows
//!                         └── PhysicalSession     the WAL itself; takes no SQL, so no settings
//! ```
//!
//! tokio-postgres serves everything else. It cannot speak CopyBoth, and it hands every row of a COPY through a
//! channel as a buffer of its own, which measured as a seventh of the first load's processor time.
//!
//! A command that was given up half-way leaves answers in the socket that would be taken for the next one's: the
//! session remembers that and refuses to go on.

use crate::client::SESSION_SETTINGS;
use crate::error::{Error, Place, Result};
use crate::object_name::quote_literal;
use crate::replication_session::SystemIdentity;
use crate::source_config::SourceConfig;
use crate::transport::Transport;
use crate::wire::{Reply, Wire, broken, server_error};
use bytes::BytesMut;
use postgres_protocol::authentication;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, DataRowBody, ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use secrecy::{ExposeSecret, SecretString};
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_postgres::fallible_iterator::FallibleIterator;

/// Commands other than making a slot and copying only read catalogs and shared memory.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Rows that a command answers with: a partitioned table's leaves are the longest such list.
const MAX_ROWS: usize = 1 << 20;

/// What a query answers with: rows of texts, null as `None`.
pub(crate) type TextRows = Vec<Vec<Option<String>>>;

/// What kind of backend serves the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// One that only runs SQL.
    Sql,
    /// A walsender that also runs SQL; they are few (`max_wal_senders`).
    Replication,
    /// A walsender of no database, as a standby uses it. It runs no SQL.
    PhysicalReplication,
}

/// See the module's essay.
pub(crate) struct WireSession {
    pub(crate) wire: Wire,
    config: SourceConfig,
    pub(crate) place: Place,
    /// What is being done while logging in.
    logging_in: &'static str,
    backend: (i32, i32),
    /// A command was sent and its last answer not read: the next answers would be taken for another command's.
    mid_command: bool,
}

/// Ends what a session is doing, from outside.
#[derive(Clone)]
pub struct CancelHandle {
    config: SourceConfig,
    backend: (i32, i32),
}

impl CancelHandle {
    /// Asks the server to cancel the session's present command. Whether it came in time shows in that command's result.
    pub async fn cancel(&self) -> Result<()> {
        let place = self.config.place();
        let mut transport = Transport::open(&self.config).await?;
        let mut request = BytesMut::new();
        frontend::cancel_request(self.backend.0, self.backend.1, &mut request);
        let send = async {
            transport.write_all(&request).await?;
            transport.shutdown().await
        };
        let after = self.config.connect_timeout;
        let doing = "sending a cancel request";
        match timeout(after, send).await {
            Ok(sent) => sent.map_err(|source| Error::ConnectionLost { place, doing, source }),
            Err(_) => Err(Error::Timeout { place, doing, after }),
        }
    }
}

impl WireSession {
    /// Opens a session with the configured database.
    pub(crate) async fn connect(config: &SourceConfig, backend: Backend) -> Result<WireSession> {
        let place = config.error_place();
        let transport = Transport::open(config).await?;
        let logging_in = match backend {
            Backend::Sql => "logging in",
            Backend::Replication | Backend::PhysicalReplication => "logging in for replication",
        };
        let after = config.connect_timeout;
        let private = transport.is_private();
        let mut session = WireSession {
            wire: Wire::new(transport),
            config: config.clone(),
            place,
            logging_in,
            backend: (0, 0),
            mid_command: false,
        };
        match timeout(after, session.log_in(backend, private)).await {
            Ok(logged_in) => logged_in.map(|()| session),
            Err(_) => Err(session.timed_out(logging_in, after)),
        }
    }

    async fn log_in(&mut self, backend: Backend, private: bool) -> Result<()> {
        let doing = self.logging_in;
        let config = self.config.clone();
        let mut parameters = vec![
            ("user", config.user.as_str()),
            ("database", config.dbname.as_str()),
            ("application_name", config.application_name.as_str()),
            ("client_encoding", "UTF8"),
        ];
        match backend {
            Backend::Sql => {}
            Backend::Replication => parameters.push(("replication", "database")),
            Backend::PhysicalReplication => parameters.push(("replication", "true")),
        }
        if let Some(options) = &config.options {
            parameters.push(("options", options));
        }
        let mut packet = BytesMut::new();
        frontend::startup_message(parameters, &mut packet).map_err(|source| self.lost(doing, source))?;
        self.send(doing, &packet).await?;
        self.authenticate(private).await?;
        loop {
            match self.message(doing).await? {
                Message::BackendKeyData(key) => self.backend = (key.process_id(), key.secret_key()),
                Message::ReadyForQuery(_) => break,
                other => return Err(self.unexpected(doing, &other)),
            }
        }
        match backend {
            Backend::Sql | Backend::Replication => self.set_up().await,
            Backend::PhysicalReplication => Ok(()),
        }
    }

    async fn authenticate(&mut self, private: bool) -> Result<()> {
        let doing = self.logging_in;
        let mut answer = BytesMut::new();
        match self.message(doing).await? {
            Message::AuthenticationOk => return Ok(()),
            Message::AuthenticationCleartextPassword if !private => {
                return Err(Error::ClearTextPassword { place: self.place.name.clone() });
            }
            Message::AuthenticationCleartextPassword => {
                frontend::password_message(self.password()?.expose_secret().as_bytes(), &mut answer)
                    .map_err(|source| self.lost(doing, source))?;
            }
            Message::AuthenticationMd5Password(body) => {
                let password = self.password()?;
                let hash = authentication::md5_hash(
                    self.config.user.as_bytes(),
                    password.expose_secret().as_bytes(),
                    body.salt(),
                );
                frontend::password_message(hash.as_bytes(), &mut answer)
                    .map_err(|source| self.lost(doing, source))?;
            }
            Message::AuthenticationSasl(body) => return self.scram(&body).await,
            Message::AuthenticationGss | Message::AuthenticationKerberosV5 => {
                return Err(self.method("Kerberos (GSSAPI)"));
            }
            Message::AuthenticationSspi => return Err(self.method("SSPI")),
            other => return Err(self.unexpected(doing, &other)),
        }
        self.send(doing, &answer).await?;
        self.authentication_ok().await
    }

    async fn scram(&mut self, body: &AuthenticationSaslBody) -> Result<()> {
        let doing = self.logging_in;
        let failed = |place: &Place, source| Error::Scram { place: place.name.clone(), source };
        let mut offered = body.mechanisms();
        loop {
            match offered.next().map_err(|source| failed(&self.place, source))? {
                Some(SCRAM_SHA_256) => break,
                Some(_) => {}
                None => return Err(self.method("a SASL mechanism other than SCRAM-SHA-256")),
            }
        }
        let mut scram =
            ScramSha256::new(self.password()?.expose_secret().as_bytes(), ChannelBinding::unsupported());
        let mut answer = BytesMut::new();
        frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut answer)
            .map_err(|source| self.lost(doing, source))?;
        self.send(doing, &answer).await?;
        match self.message(doing).await? {
            Message::AuthenticationSaslContinue(body) => {
                scram.update(body.data()).map_err(|source| failed(&self.place, source))?;
            }
            other => return Err(self.unexpected(doing, &other)),
        }
        answer.clear();
        frontend::sasl_response(scram.message(), &mut answer).map_err(|source| self.lost(doing, source))?;
        self.send(doing, &answer).await?;
        match self.message(doing).await? {
            Message::AuthenticationSaslFinal(body) => {
                scram.finish(body.data()).map_err(|source| failed(&self.place, source))?;
            }
            other => return Err(self.unexpected(doing, &other)),
        }
        self.authentication_ok().await
    }

    async fn authentication_ok(&mut self) -> Result<()> {
        let doing = self.logging_in;
        match self.message(doing).await? {
            Message::AuthenticationOk => Ok(()),
            other => Err(self.unexpected(doing, &other)),
        }
    }

    /// The house's settings decide how values are printed. They are set by command and not in the startup packet,
    /// which connection poolers take only in part.
    async fn set_up(&mut self) -> Result<()> {
        let set = |(name, value): &(&str, &str)| format!("SET {name} = {}; ", quote_literal(value));
        let settings: String = SESSION_SETTINGS.iter().map(set).collect();
        self.command("setting up the session", &settings).await.map(drop)
    }

    /// The process id of this session at the server.
    pub(crate) fn backend_pid(&self) -> i32 {
        self.backend.0
    }

    /// A handle that cancels this session's command from another task.
    pub(crate) fn cancel_handle(&self) -> CancelHandle {
        CancelHandle { config: self.config.clone(), backend: self.backend }
    }

    /// Ends the session in order. Dropping it does so too, without telling the server why.
    pub(crate) async fn close(mut self) -> Result<()> {
        let mut message = BytesMut::new();
        frontend::terminate(&mut message);
        self.send("ending the session", &message).await
    }

    pub(crate) async fn command(&mut self, doing: &'static str, sql: &str) -> Result<TextRows> {
        match timeout(COMMAND_TIMEOUT, self.exchange(doing, sql)).await {
            Ok(rows) => rows,
            Err(_) => Err(self.timed_out(doing, COMMAND_TIMEOUT)),
        }
    }

    /// IDENTIFY_SYSTEM.
    pub(crate) async fn identify_system(&mut self) -> Result<SystemIdentity> {
        let rows = self.command("IDENTIFY_SYSTEM", "IDENTIFY_SYSTEM").await?;
        let identity = rows.first().and_then(|row| match row.as_slice() {
            [Some(system_id), Some(timeline), Some(xlogpos), dbname, ..] => Some(SystemIdentity {
                system_id: system_id.parse().ok()?,
                timeline: timeline.parse().ok()?,
                xlogpos: xlogpos.parse().ok()?,
                dbname: dbname.clone(),
            }),
            _ => None,
        });
        identity
            .ok_or_else(|| broken(&self.place, "an answer to IDENTIFY_SYSTEM that cannot be read".to_owned()))
    }

    /// Sends one simple query and reads its rows up to the server's readiness for the next.
    pub(crate) async fn exchange(&mut self, doing: &'static str, sql: &str) -> Result<TextRows> {
        self.send_query(doing, sql).await?;
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            match self.wire.reply(&self.place, doing).await? {
                Reply::Message(Message::DataRow(row)) if rows.len() < MAX_ROWS => {
                    rows.push(self.texts(&row)?);
                }
                Reply::Message(Message::RowDescription(_) | Message::CommandComplete(_)) => {}
                Reply::Message(Message::ErrorResponse(body)) => {
                    failure = Some(self.server_error(doing, &body))
                }
                Reply::Message(Message::ReadyForQuery(_)) => {
                    self.ready();
                    return failure.map_or(Ok(rows), Err);
                }
                Reply::Message(other) => return Err(self.unexpected(doing, &other)),
                Reply::CopyBoth => {
                    return Err(broken(&self.place, format!("it began to copy in answer to {doing}")));
                }
            }
        }
    }

    fn texts(&self, row: &DataRowBody) -> Result<Vec<Option<String>>> {
        let mut texts = Vec::new();
        let mut ranges = row.ranges();
        while let Some(range) = ranges.next().map_err(|err| broken(&self.place, err.to_string()))? {
            let bytes = range.and_then(|range| row.buffer().get(range));
            texts.push(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()));
        }
        Ok(texts)
    }

    /// The next message of the log-in, an error's already sorted.
    async fn message(&mut self, doing: &'static str) -> Result<Message> {
        match self.wire.reply(&self.place, doing).await? {
            Reply::Message(Message::ErrorResponse(body)) => Err(self.server_error(doing, &body)),
            Reply::Message(message) => Ok(message),
            Reply::CopyBoth => Err(broken(&self.place, format!("it began to copy while {doing}"))),
        }
    }

    /// The server has said that it is ready for the next command.
    pub(crate) fn ready(&mut self) {
        self.mid_command = false;
    }

    pub(crate) async fn send_query(&mut self, doing: &'static str, sql: &str) -> Result<()> {
        if self.mid_command {
            return Err(self
                .lost(doing, io::Error::other("an earlier command on this session was given up half-way")));
        }
        self.mid_command = true;
        let mut message = BytesMut::new();
        frontend::query(sql, &mut message).map_err(|source| self.lost(doing, source))?;
        self.send(doing, &message).await
    }

    async fn send(&mut self, doing: &'static str, bytes: &[u8]) -> Result<()> {
        self.wire.send(bytes).await.map_err(|source| self.lost(doing, source))
    }

    fn password(&self) -> Result<SecretString> {
        self.config.password.clone().ok_or_else(|| Error::PasswordMissing {
            place: self.place.name.clone(),
            user: self.place.user.clone(),
        })
    }

    fn method(&self, method: &'static str) -> Error {
        Error::AuthMethod { place: self.place.name.clone(), method }
    }

    pub(crate) fn server_error(&self, doing: &'static str, body: &ErrorResponseBody) -> Error {
        Error::from_server(&self.place, doing, server_error(body.fields()))
    }

    fn lost(&self, doing: &'static str, source: io::Error) -> Error {
        Error::ConnectionLost { place: self.place.name.clone(), doing, source }
    }

    pub(crate) fn timed_out(&self, doing: &'static str, after: Duration) -> Error {
        Error::Timeout { place: self.place.name.clone(), doing, after }
    }

    pub(crate) fn unexpected(&self, doing: &'static str, message: &Message) -> Error {
        let kind = match message {
            Message::AuthenticationOk => "AuthenticationOk",
            Message::ReadyForQuery(_) => "ReadyForQuery",
            Message::CopyOutResponse(_) | Message::CopyInResponse(_) => "CopyResponse",
            Message::CommandComplete(_) => "CommandComplete",
            _ => "a message",
        };
        broken(&self.place, format!("{kind} does not belong into {doing}"))
    }
}
