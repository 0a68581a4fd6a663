//! A session in replication mode: who the server is, making slots, and starting a stream.
//!
//! ```text
//!   connect ── identify_system ── create_logical_slot ── (workers import the snapshot) ── start_logical ──> LogicalStream
//!                                        │
//!                          waits until transactions older than it have ended;
//!                          dropping the future asks the server to give up
//! ```
//!
//! An exported snapshot lives until the *next command* of the session that exported it. Starting the stream takes the
//! session by value, so a snapshot cannot be imported from a session that already streams.

use crate::client::SESSION_SETTINGS;
use crate::error::{Error, Place, Result};
use crate::logical_stream::LogicalStream;
use crate::object_name::{quote_identifier, quote_literal};
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
use wal_decoder::Lsn;

/// Commands other than making a slot only read shared memory.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// As Postgres's own receiver (`wal_receiver_status_interval`); a sixth of the default `wal_sender_timeout`. Shorter where
/// the server's timeout is, so that it has heard of us three times when it runs out.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// Rows that a command answers with; every one answers with one.
const MAX_ROWS: usize = 64;

/// What IDENTIFY_SYSTEM says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Drawn at initdb; the same for all that was cloned from that cluster.
    pub system_id: u64,
    /// Grows with every recovery to a point and every promotion.
    pub timeline: u32,
    /// The flushed end of WAL.
    pub xlogpos: Lsn,
    /// The database of the session.
    pub dbname: String,
}

/// How a slot is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotOptions {
    /// Gone when the session ends.
    pub temporary: bool,
    /// Export a snapshot that shows exactly what was committed at the slot's consistent point.
    pub export_snapshot: bool,
    /// Keep the slot in step on standbys (Postgres 17 and later, permanent slots only; elsewhere it is left out).
    pub failover: bool,
}

/// A slot that was just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Its name.
    pub name: String,
    /// Transactions that commit at or below are in the snapshot and not in the stream.
    pub consistent_point: Lsn,
    /// The exported snapshot; valid until the next command on this session.
    pub snapshot: Option<String>,
}

/// What the stream sends, beside the changes of the publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamOptions {
    /// The pgoutput protocol, 1 to 4.
    pub proto_version: u32,
    /// Send large transactions while they are in progress (protocol 2 and later).
    pub streaming: bool,
    /// Send logical messages, transactional and not.
    pub messages: bool,
}

impl StreamOptions {
    /// What a server of this version (180006 is 18.6) can send of what Tidewater wants: streaming and messages came with
    /// protocol 2 in Postgres 14. Later protocols add only two-phase commits and parallel apply, which are not asked for.
    pub fn for_server(version: u32) -> StreamOptions {
        let modern = version >= 140_000;
        StreamOptions { proto_version: if modern { 2 } else { 1 }, streaming: modern, messages: modern }
    }
}

/// A session in replication mode.
pub struct ReplicationSession {
    wire: Wire,
    config: SourceConfig,
    place: Place,
    backend: (i32, i32),
    server_version: u32,
    /// How often the stream reports its position.
    status_interval: Duration,
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

/// Sends a cancel request when the future that waits for a slot is dropped: the server would otherwise go on waiting for
/// old transactions and hold the slot, without ever looking at its socket.
struct CancelOnDrop(Option<CancelHandle>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let (Some(handle), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                if let Err(error) = handle.cancel().await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "could not cancel the making of a replication slot");
                }
            });
        }
    }
}

impl ReplicationSession {
    /// Opens a session in replication mode for the configured database.
    pub async fn connect(config: &SourceConfig) -> Result<ReplicationSession> {
        let place = config.error_place();
        let transport = Transport::open(config).await?;
        let after = config.connect_timeout;
        timeout(after, Self::log_in(config, place, transport)).await.map_err(|_| Error::Timeout {
            place: config.place(),
            doing: "logging in for replication",
            after,
        })?
    }

    async fn log_in(config: &SourceConfig, place: Place, transport: Transport) -> Result<ReplicationSession> {
        let doing = "logging in for replication";
        let private = transport.is_private();
        let mut session = ReplicationSession {
            wire: Wire::new(transport),
            config: config.clone(),
            place,
            backend: (0, 0),
            server_version: 0,
            status_interval: STATUS_INTERVAL,
            mid_command: false,
        };
        let mut parameters = vec![
            ("user", config.user.as_str()),
            ("database", config.dbname.as_str()),
            ("replication", "database"),
            ("application_name", config.application_name.as_str()),
            ("client_encoding", "UTF8"),
        ];
        if let Some(options) = &config.options {
            parameters.push(("options", options));
        }
        let mut packet = BytesMut::new();
        frontend::startup_message(parameters, &mut packet).map_err(|source| session.lost(doing, source))?;
        session.send(doing, &packet).await?;
        session.authenticate(private).await?;
        loop {
            match session.message(doing).await? {
                Message::BackendKeyData(key) => session.backend = (key.process_id(), key.secret_key()),
                Message::ReadyForQuery(_) => break,
                other => return Err(session.unexpected(doing, &other)),
            }
        }
        session.set_up().await?;
        Ok(session)
    }

    async fn authenticate(&mut self, private: bool) -> Result<()> {
        let doing = "logging in for replication";
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
        let doing = "logging in for replication";
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
        let doing = "logging in for replication";
        match self.message(doing).await? {
            Message::AuthenticationOk => Ok(()),
            other => Err(self.unexpected(doing, &other)),
        }
    }

    /// The house's settings decide how the stream prints values. They are set by command and not in the startup packet,
    /// which connection poolers take only in part.
    async fn set_up(&mut self) -> Result<()> {
        let set = |(name, value): &(&str, &str)| format!("SET {name} = {}; ", quote_literal(value));
        let settings: String = SESSION_SETTINGS.iter().map(set).collect();
        self.command("setting up the session", &settings).await?;
        let doing = "reading the server's version";
        let sql = "SELECT s.setting FROM pg_settings s \
                   WHERE s.name IN ('server_version_num', 'wal_sender_timeout') ORDER BY s.name";
        let rows = self.command(doing, sql).await?;
        let setting = |at: usize| rows.get(at).and_then(|row| row.first()?.as_deref()?.parse::<u32>().ok());
        let (Some(version), Some(timeout_millis)) = (setting(0), setting(1)) else {
            return Err(broken(
                &self.place,
                "server_version_num or wal_sender_timeout is no number".to_owned(),
            ));
        };
        self.server_version = version;
        if timeout_millis > 0 {
            self.status_interval = STATUS_INTERVAL.min(Duration::from_millis(timeout_millis.into()) / 4);
        }
        Ok(())
    }

    /// The server's version as a number: 180006 is 18.6.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// The process id of this session at the server, for [`transactions_blocking`](crate::transactions_blocking).
    pub fn backend_pid(&self) -> i32 {
        self.backend.0
    }

    /// A handle that cancels this session's command from another task.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle { config: self.config.clone(), backend: self.backend }
    }

    /// IDENTIFY_SYSTEM.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        let rows = self.command("IDENTIFY_SYSTEM", "IDENTIFY_SYSTEM").await?;
        let identity = rows.first().and_then(|row| match row.as_slice() {
            [Some(system_id), Some(timeline), Some(xlogpos), Some(dbname), ..] => Some(SystemIdentity {
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

    /// Makes a slot for pgoutput. The server first waits until every transaction that is older has ended, without a bound:
    /// drop the future to give up (the server is then asked to cancel), and look with
    /// [`transactions_blocking`](crate::transactions_blocking) who is being waited for.
    pub async fn create_logical_slot(&mut self, name: &str, options: SlotOptions) -> Result<CreatedSlot> {
        let temporary = if options.temporary { " TEMPORARY" } else { "" };
        let snapshot = if options.export_snapshot { "export" } else { "nothing" };
        let sql = if self.server_version >= 150_000 {
            let failover = options.failover && !options.temporary && self.server_version >= 170_000;
            let failover = if failover { ", FAILOVER true" } else { "" };
            format!("(SNAPSHOT '{snapshot}'{failover})")
        } else if options.export_snapshot {
            "EXPORT_SNAPSHOT".to_owned()
        } else {
            "NOEXPORT_SNAPSHOT".to_owned()
        };
        let sql =
            format!("CREATE_REPLICATION_SLOT {}{temporary} LOGICAL pgoutput {sql}", quote_identifier(name));
        let mut guard = CancelOnDrop(Some(self.cancel_handle()));
        let rows = self
            .exchange("CREATE_REPLICATION_SLOT", &sql)
            .await
            .map_err(|error| name_slot(error, &self.place, name));
        guard.0 = None;
        let created = rows?.first().and_then(|row| match row.as_slice() {
            [Some(name), Some(point), snapshot, ..] => Some(CreatedSlot {
                name: name.clone(),
                consistent_point: point.parse().ok()?,
                snapshot: snapshot.clone(),
            }),
            _ => None,
        });
        created.ok_or_else(|| {
            broken(&self.place, "an answer to CREATE_REPLICATION_SLOT that cannot be read".to_owned())
        })
    }

    /// Turns the session into a stream of WAL messages that begins after `from`; below the slot's confirmed position the
    /// server begins at that instead.
    pub async fn start_logical(
        mut self,
        slot: &str,
        from: Lsn,
        publications: &[&str],
        options: StreamOptions,
    ) -> Result<LogicalStream> {
        let names = publications.iter().map(|name| quote_identifier(name)).collect::<Vec<_>>().join(",");
        let mut sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '{}', publication_names {}",
            quote_identifier(slot),
            options.proto_version,
            quote_literal(&names)
        );
        if options.streaming {
            sql.push_str(", streaming 'on'");
        }
        if options.messages {
            sql.push_str(", messages 'true'");
        }
        sql.push(')');
        let doing = "START_REPLICATION";
        self.send_query(doing, &sql).await?;
        let reply = timeout(COMMAND_TIMEOUT, self.wire.reply(&self.place, doing)).await;
        match reply.map_err(|_| self.timed_out(doing, COMMAND_TIMEOUT))?? {
            Reply::CopyBoth => {
                Ok(LogicalStream::spawn(self.wire, self.place, slot.to_owned(), from, self.status_interval))
            }
            Reply::Message(Message::ErrorResponse(body)) => {
                Err(Error::from_slot_command(&self.place, doing, slot, server_error(body.fields())))
            }
            Reply::Message(other) => Err(self.unexpected(doing, &other)),
        }
    }

    /// Ends the session in order. Dropping it does so too, without telling the server why.
    pub async fn close(mut self) -> Result<()> {
        let mut message = BytesMut::new();
        frontend::terminate(&mut message);
        self.send("ending the session", &message).await
    }

    async fn command(&mut self, doing: &'static str, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        match timeout(COMMAND_TIMEOUT, self.exchange(doing, sql)).await {
            Ok(rows) => rows,
            Err(_) => Err(self.timed_out(doing, COMMAND_TIMEOUT)),
        }
    }

    /// Sends one simple query and reads its rows up to the server's readiness for the next.
    async fn exchange(&mut self, doing: &'static str, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.send_query(doing, sql).await?;
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            match self.wire.reply(&self.place, doing).await? {
                Reply::Message(Message::DataRow(row)) if rows.len() < MAX_ROWS => {
                    rows.push(self.texts(&row)?)
                }
                Reply::Message(Message::RowDescription(_) | Message::CommandComplete(_)) => {}
                Reply::Message(Message::ErrorResponse(body)) => {
                    failure = Some(self.server_error(doing, &body))
                }
                Reply::Message(Message::ReadyForQuery(_)) => {
                    self.mid_command = false;
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

    async fn send_query(&mut self, doing: &'static str, sql: &str) -> Result<()> {
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

    fn server_error(&self, doing: &'static str, body: &ErrorResponseBody) -> Error {
        Error::from_server(&self.place, doing, server_error(body.fields()))
    }

    fn lost(&self, doing: &'static str, source: io::Error) -> Error {
        Error::ConnectionLost { place: self.place.name.clone(), doing, source }
    }

    fn timed_out(&self, doing: &'static str, after: Duration) -> Error {
        Error::Timeout { place: self.place.name.clone(), doing, after }
    }

    fn unexpected(&self, doing: &'static str, message: &Message) -> Error {
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

/// Sorts an error of a slot command again, now that it is known which slot it was about.
fn name_slot(error: Error, place: &Place, slot: &str) -> Error {
    match error {
        Error::Server { doing, source, .. } => Error::from_slot_command(place, doing, slot, *source),
        other => other,
    }
}
