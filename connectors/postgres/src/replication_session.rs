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

use crate::error::{Error, Place, Result};
use crate::logical_stream::LogicalStream;
use crate::object_name::{quote_identifier, quote_literal};
use crate::source_config::SourceConfig;
use crate::wire::{Reply, broken, server_error};
use crate::wire_session::{Backend, COMMAND_TIMEOUT, CancelHandle, WireSession};
use postgres_protocol::message::backend::Message;
use std::time::Duration;
use tokio::time::timeout;
use wal_decoder::Lsn;

/// As Postgres's own receiver (`wal_receiver_status_interval`); a sixth of the default `wal_sender_timeout`. Shorter where
/// the server's timeout is, so that it has heard of us three times when it runs out.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// What IDENTIFY_SYSTEM says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Drawn at initdb; the same for all that was cloned from that cluster.
    pub system_id: u64,
    /// Grows with every recovery to a point and every promotion.
    pub timeline: u32,
    /// The flushed end of WAL.
    pub xlogpos: Lsn,
    /// The database of the session; a physical one has none.
    pub dbname: Option<String>,
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
    session: WireSession,
    server_version: u32,
    /// How often the stream reports its position.
    status_interval: Duration,
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
        let mut session = WireSession::connect(config, Backend::Replication).await?;
        let doing = "reading the server's version";
        let sql = "SELECT s.setting FROM pg_settings s \
                   WHERE s.name IN ('server_version_num', 'wal_sender_timeout') ORDER BY s.name";
        let rows = session.command(doing, sql).await?;
        let setting = |at: usize| rows.get(at).and_then(|row| row.first()?.as_deref()?.parse::<u32>().ok());
        let (Some(server_version), Some(timeout_millis)) = (setting(0), setting(1)) else {
            return Err(broken(
                &session.place,
                "server_version_num or wal_sender_timeout is no number".to_owned(),
            ));
        };
        let status_interval = match timeout_millis {
            0 => STATUS_INTERVAL,
            millis => STATUS_INTERVAL.min(Duration::from_millis(millis.into()) / 4),
        };
        Ok(ReplicationSession { session, server_version, status_interval })
    }

    /// The server's version as a number: 180006 is 18.6.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// The process id of this session at the server, for [`transactions_blocking`](crate::transactions_blocking).
    pub fn backend_pid(&self) -> i32 {
        self.session.backend_pid()
    }

    /// A handle that cancels this session's command from another task.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.session.cancel_handle()
    }

    /// IDENTIFY_SYSTEM.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        self.session.identify_system().await
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
            .session
            .exchange("CREATE_REPLICATION_SLOT", &sql)
            .await
            .map_err(|error| name_slot(error, &self.session.place, name));
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
            broken(&self.session.place, "an answer to CREATE_REPLICATION_SLOT that cannot be read".to_owned())
        })
    }

    /// Turns the session into a stream of WAL messages that begins after `from`; below the slot's confirmed position the
    /// server begins at that instead.
    pub async fn start_logical(
        self,
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
        let Self { mut session, status_interval, .. } = self;
        session.send_query(doing, &sql).await?;
        let reply = timeout(COMMAND_TIMEOUT, session.wire.reply(&session.place, doing)).await;
        match reply.map_err(|_| session.timed_out(doing, COMMAND_TIMEOUT))?? {
            Reply::CopyBoth => {
                Ok(LogicalStream::spawn(session.wire, session.place, slot.to_owned(), from, status_interval))
            }
            Reply::Message(Message::ErrorResponse(body)) => {
                Err(Error::from_slot_command(&session.place, doing, slot, server_error(body.fields())))
            }
            Reply::Message(other) => Err(session.unexpected(doing, &other)),
        }
    }

    /// Ends the session in order. Dropping it does so too, without telling the server why.
    pub async fn close(self) -> Result<()> {
        self.session.close().await
    }
}

/// Sorts an error of a slot command again, now that it is known which slot it was about.
fn name_slot(error: Error, place: &Place, slot: &str) -> Error {
    match error {
        Error::Server { doing, source, .. } => Error::from_slot_command(place, doing, slot, *source),
        other => other,
    }
}
