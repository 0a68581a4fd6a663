//! What can go wrong at a Postgres server, told apart as far as someone would act differently.
//!
//! Every message names the place (`host:port/database`), and where the cause does not say it already,
//! what to do. The server's own words travel as the source.

use std::io;
use std::time::Duration;
use tokio_postgres::error::SqlState;

/// SQLSTATE: a lock was not to be had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error that the server reported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}{} (SQLSTATE {code})", part("; ", .detail), part("; hint: ", .hint))]
pub struct ServerError {
    /// The five-character SQLSTATE.
    pub code: String,
    /// The primary message, in the server's language.
    pub message: String,
    /// The detail, where there is one.
    pub detail: Option<String>,
    /// The hint, where there is one.
    pub hint: Option<String>,
}

impl ServerError {
    /// Whether its words have a setting's name in them.
    fn names(&self, setting: &str) -> bool {
        let words = [Some(&self.message), self.detail.as_ref(), self.hint.as_ref()];
        words.into_iter().flatten().any(|words| words.contains(setting))
    }
}

fn part(lead: &str, text: &Option<String>) -> String {
    text.as_ref().map(|text| format!("{lead}{text}")).unwrap_or_default()
}

/// Why a Postgres server could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection URL cannot be used.
    #[error("the connection URL of `{shown}` is not usable: {problem}")]
    InvalidUrl {
        /// The URL without its password.
        shown: String,
        /// What is wrong, and what was expected.
        problem: String,
    },
    /// A configured name or list cannot be carried out.
    #[error("{subject}: {problem}")]
    InvalidRequest {
        /// What the problem is about, such as a table.
        subject: String,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// No socket could be opened.
    #[error(
        "cannot reach the Postgres server at {place}: check host, port, firewall and that the server runs"
    )]
    Unreachable {
        /// Where.
        place: String,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The server did not answer in time.
    #[error("the Postgres server at {place} did not finish {doing} within {after:?}")]
    Timeout {
        /// Where.
        place: String,
        /// What was being done.
        doing: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection ended or failed while in use.
    #[error("the connection to {place} was lost while {doing}")]
    ConnectionLost {
        /// Where.
        place: String,
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The server ended the session: a shutdown, a restart, or an administrator's command.
    #[error("the server at {place} ended the session")]
    SessionEnded {
        /// Where.
        place: String,
        /// The server's reason.
        #[source]
        source: Box<ServerError>,
    },
    /// The stream ended in order: the server is shutting down, or this side closed it.
    #[error("the stream from {place} has ended")]
    StreamEnded {
        /// Where.
        place: String,
    },
    /// The server is starting up, shutting down or recovering.
    #[error("the server at {place} takes no sessions now; try again shortly")]
    NotReady {
        /// Where.
        place: String,
        /// The server's reason.
        #[source]
        source: Box<ServerError>,
    },
    /// TLS was asked for and the server has none.
    #[error(
        "the server at {place} offers no TLS: set `ssl = on` there, or `tls: disable` if the network is trusted"
    )]
    TlsRequired {
        /// Where.
        place: String,
    },
    /// The TLS handshake failed; usually the certificate.
    #[error(
        "the TLS handshake with {place} failed: check `ca_file`, and that the certificate names this host"
    )]
    TlsHandshake {
        /// Where.
        place: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The configured CA file is not usable.
    #[error("the CA file `{file}` is not usable: {problem}")]
    CaFile {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Sending the password as it stands was asked for over an unencrypted connection.
    #[error(
        "the server at {place} asks for the password in clear text over an unencrypted connection: \
         use `tls: require` or better, or scram-sha-256 in pg_hba.conf"
    )]
    ClearTextPassword {
        /// Where.
        place: String,
    },
    /// The server wants a password and none is configured.
    #[error(
        "the server at {place} wants a password for user `{user}` and none is given: set `password`, or put it into the address"
    )]
    PasswordMissing {
        /// Where.
        place: String,
        /// Who.
        user: String,
    },
    /// The server wants an authentication method that is not spoken here.
    #[error(
        "the server at {place} wants authentication by {method}, which Tidewater does not speak: \
         use scram-sha-256, md5 or trust in pg_hba.conf"
    )]
    AuthMethod {
        /// Where.
        place: String,
        /// The method.
        method: &'static str,
    },
    /// The server could not prove in SCRAM that it knows the password, or the exchange was broken.
    #[error("the SCRAM exchange with {place} failed")]
    Scram {
        /// Where.
        place: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Wrong password, unknown user, or no line in `pg_hba.conf`.
    #[error("the server at {place} refused user `{user}`: check user, password and pg_hba.conf")]
    AuthFailed {
        /// Where.
        place: String,
        /// Who.
        user: String,
        /// The server's reason.
        #[source]
        source: Box<ServerError>,
    },
    /// The role may not do this.
    #[error("user `{user}` lacks a privilege at {place} for {doing}")]
    InsufficientPrivilege {
        /// Where.
        place: String,
        /// Who.
        user: String,
        /// What was being done.
        doing: &'static str,
        /// The server's reason.
        #[source]
        source: Box<ServerError>,
    },
    /// `wal_level` is not `logical`.
    #[error(
        "the server at {place} does not write logical WAL: \
         run `ALTER SYSTEM SET wal_level = 'logical'` and restart it"
    )]
    WalLevel {
        /// Where.
        place: String,
        /// The server's reason.
        #[source]
        source: Box<ServerError>,
    },
    /// Another session reads from the slot.
    #[error("replication slot `{slot}` at {place} is in use{}", pid_text(.pid))]
    SlotInUse {
        /// Where.
        place: String,
        /// The slot.
        slot: String,
        /// The server process that holds it.
        pid: Option<u32>,
        /// The server's words.
        #[source]
        source: Box<ServerError>,
    },
    /// There is no such slot.
    #[error(
        "replication slot `{slot}` does not exist at {place}: it was dropped, or the server was restored"
    )]
    SlotMissing {
        /// Where.
        place: String,
        /// The slot.
        slot: String,
        /// The server's words.
        #[source]
        source: Box<ServerError>,
    },
    /// The slot exists but can never be read again: its WAL is gone or the server invalidated it.
    #[error(
        "replication slot `{slot}` at {place} is lost: its WAL was removed or it was invalidated; \
         its tables are loaded anew from a new slot (and max_slot_wal_keep_size may be too small)"
    )]
    SlotLost {
        /// Where.
        place: String,
        /// The slot.
        slot: String,
        /// The server's words.
        #[source]
        source: Box<ServerError>,
    },
    /// A slot of that name is there already.
    #[error("replication slot `{slot}` exists already at {place}")]
    SlotExists {
        /// Where.
        place: String,
        /// The slot.
        slot: String,
        /// The server's words.
        #[source]
        source: Box<ServerError>,
    },
    /// `max_replication_slots` or `max_wal_senders` is used up.
    #[error(
        "the server at {place} has no replication slot, WAL sender or connection left: \
         drop unused slots, or raise max_replication_slots, max_wal_senders or max_connections and restart"
    )]
    NoneLeft {
        /// Where.
        place: String,
        /// The server's words.
        #[source]
        source: Box<ServerError>,
    },
    /// There is no room left for what was to be written.
    #[error(
        "the disk of the server at {place} is full, which ended {doing}: make room there; it is tried again"
    )]
    DiskFull {
        /// Where.
        place: String,
        /// What was being done.
        doing: &'static str,
        /// The server's words: which file could not grow.
        #[source]
        source: Box<ServerError>,
    },
    /// The publication that the stream reads does not exist.
    #[error(
        "a publication that the stream from {place} reads does not exist: it was dropped; the next start makes it anew"
    )]
    PublicationMissing {
        /// Where.
        place: String,
        /// The server's words.
        #[source]
        source: Box<ServerError>,
    },
    /// The snapshot that is being read does not show this table's rows any more.
    #[error(
        "table {table} at {place} was rewritten, emptied, renamed or redefined since the snapshot was taken that is being \
         read: another snapshot shows its rows"
    )]
    TableChanged {
        /// Where.
        place: String,
        /// The table.
        table: String,
    },
    /// A statement was cancelled, by its own timeout or by someone.
    #[error("{doing} at {place} was cancelled")]
    Cancelled {
        /// Where.
        place: String,
        /// What was being done.
        doing: &'static str,
        /// The server's words.
        #[source]
        source: Box<ServerError>,
    },
    /// Any other error that the server reported.
    #[error("{doing} failed at {place}")]
    Server {
        /// Where.
        place: String,
        /// What was being done.
        doing: &'static str,
        /// The server's words.
        #[source]
        source: Box<ServerError>,
    },
    /// The client library failed on its own side.
    #[error("{doing} failed at {place}")]
    Client {
        /// Where.
        place: String,
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The server sent what the protocol does not allow here.
    #[error("the server at {place} broke the protocol: {problem}")]
    Protocol {
        /// Where.
        place: String,
        /// What was seen.
        problem: String,
    },
}

fn pid_text(pid: &Option<u32>) -> String {
    match pid {
        Some(pid) => format!(
            " by server process {pid}: stop the other reader, or end it with `SELECT pg_terminate_backend({pid})`"
        ),
        None => String::from(" by another session: stop the other reader"),
    }
}

/// Who asked and where: what every error message starts from.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// `host:port/database`
    pub name: String,
    pub user: String,
}

impl Error {
    /// Whether the same request may well succeed later without anyone mending anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unreachable { .. }
            | Error::Timeout { .. }
            | Error::ConnectionLost { .. }
            | Error::SessionEnded { .. }
            | Error::StreamEnded { .. }
            | Error::NotReady { .. }
            | Error::NoneLeft { .. }
            | Error::DiskFull { .. }
            | Error::SlotInUse { .. }
            | Error::TableChanged { .. }
            | Error::Cancelled { .. } => true,
            // 40: serialization failure and deadlock; 53: out of a resource.
            Error::Server { source, .. } => {
                source.code.starts_with("40")
                    || source.code.starts_with("53")
                    || source.code == LOCK_NOT_AVAILABLE
            }
            Error::Client { source, .. } => source.is_closed() || is_broken_connection(source),
            _ => false,
        }
    }

    /// Whether a table cannot be read in this snapshot, or not now, while the others can. A younger snapshot comes after
    /// whatever is in its way: making one waits for every transaction that writes.
    pub fn asks_for_another_snapshot(&self) -> bool {
        match self {
            Error::TableChanged { .. } => true,
            Error::Server { source, .. } => source.code == LOCK_NOT_AVAILABLE,
            _ => false,
        }
    }

    /// Whether the server has no such column, table or schema (any more).
    pub fn is_unknown_name(&self) -> bool {
        matches!(self, Error::Server { source, .. } if matches!(source.code.as_str(), "42703" | "42P01" | "3F000"))
    }

    /// Sorts a server's error by its SQLSTATE. Messages are localised, so they decide only where the code cannot,
    /// and then by words that are never translated (settings' names).
    pub(crate) fn from_server(place: &Place, doing: &'static str, source: ServerError) -> Error {
        let code = SqlState::from_code(&source.code);
        let name = place.name.clone();
        let user = place.user.clone();
        let source = Box::new(source);
        match code {
            SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                Error::AuthFailed { place: name, user, source }
            }
            SqlState::INSUFFICIENT_PRIVILEGE => {
                Error::InsufficientPrivilege { place: name, user, doing, source }
            }
            SqlState::CANNOT_CONNECT_NOW => Error::NotReady { place: name, source },
            SqlState::ADMIN_SHUTDOWN
            | SqlState::CRASH_SHUTDOWN
            | SqlState::DATABASE_DROPPED
            | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => Error::SessionEnded { place: name, source },
            SqlState::TOO_MANY_CONNECTIONS => Error::NoneLeft { place: name, source },
            // The code has other causes as well: `temp_file_limit`, say.
            SqlState::CONFIGURATION_LIMIT_EXCEEDED if source.names("max_replication_slots") => {
                Error::NoneLeft { place: name, source }
            }
            SqlState::DISK_FULL => Error::DiskFull { place: name, doing, source },
            SqlState::QUERY_CANCELED => Error::Cancelled { place: name, doing, source },
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE if source.message.contains("wal_level") => {
                Error::WalLevel { place: name, source }
            }
            _ => Error::Server { place: name, doing, source },
        }
    }

    /// As [`Error::from_server`], for a command about one replication slot.
    pub(crate) fn from_slot_command(
        place: &Place,
        doing: &'static str,
        slot: &str,
        source: ServerError,
    ) -> Error {
        let name = place.name.clone();
        let slot = slot.to_owned();
        let source = Box::new(source);
        match SqlState::from_code(&source.code) {
            SqlState::OBJECT_IN_USE => {
                let pid = last_number(&source.message);
                Error::SlotInUse { place: name, slot, pid, source }
            }
            SqlState::DUPLICATE_OBJECT => Error::SlotExists { place: name, slot, source },
            SqlState::UNDEFINED_OBJECT => Error::SlotMissing { place: name, slot, source },
            SqlState::UNDEFINED_FILE => Error::SlotLost { place: name, slot, source },
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE if !source.message.contains("wal_level") => {
                Error::SlotLost { place: name, slot, source }
            }
            _ => Error::from_server(place, doing, *source),
        }
    }

    pub(crate) fn from_client(place: &Place, doing: &'static str, source: tokio_postgres::Error) -> Error {
        match source.as_db_error() {
            Some(db) => Error::from_server(place, doing, ServerError::from(db)),
            None => Error::Client { place: place.name.clone(), doing, source },
        }
    }
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(db: &tokio_postgres::error::DbError) -> Self {
        ServerError {
            code: db.code().code().to_owned(),
            message: db.message().to_owned(),
            detail: db.detail().map(str::to_owned),
            hint: db.hint().map(str::to_owned),
        }
    }
}

/// The socket failed under the client library, as it does when the server is killed during log-in. The library
/// wraps what it cannot parse as I/O errors too; that would be no better the next time.
fn is_broken_connection(error: &tokio_postgres::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput};
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| !matches!(cause.kind(), InvalidData | InvalidInput))
}

/// The process id stands last in "replication slot … is active for PID 4711", in every translation.
fn last_number(message: &str) -> Option<u32> {
    message.split(|c: char| !c.is_ascii_digit()).rfind(|digits| !digits.is_empty())?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { name: "db.example:5432/crm".into(), user: "sync".into() }
    }

    fn server(code: &str, message: &str) -> ServerError {
        ServerError { code: code.into(), message: message.into(), detail: None, hint: None }
    }

    #[test]
    fn a_slot_in_use_names_the_process_that_holds_it() {
        let words = "replication slot \"tidewater_1\" is active for PID 4711";
        let error =
            Error::from_slot_command(&place(), "START_REPLICATION", "tidewater_1", server("55006", words));
        assert!(matches!(&error, Error::SlotInUse { pid: Some(4711), .. }), "{error:?}");
        assert!(error.to_string().contains("pg_terminate_backend(4711)"));
        assert!(error.is_transient());
    }

    #[test]
    fn a_wal_level_too_low_is_no_lost_slot() {
        let words = "logical decoding requires \"wal_level\" >= \"logical\"";
        let error =
            Error::from_slot_command(&place(), "CREATE_REPLICATION_SLOT", "s", server("55000", words));
        assert!(matches!(error, Error::WalLevel { .. }), "{error:?}");
        let words = "can no longer access replication slot \"s\"";
        let error = Error::from_slot_command(&place(), "START_REPLICATION", "s", server("55000", words));
        assert!(matches!(error, Error::SlotLost { .. }) && !error.is_transient(), "{error:?}");
    }

    #[test]
    fn a_limit_that_is_reached_is_about_slots_only_where_the_server_says_so() {
        let slots = ServerError {
            hint: Some("Free one or increase \"max_replication_slots\".".into()),
            ..server("53400", "all replication slots are in use")
        };
        let error = Error::from_slot_command(&place(), "CREATE_REPLICATION_SLOT", "s", slots);
        assert!(matches!(error, Error::NoneLeft { .. }), "{error:?}");
        let files = server("53400", "temporary file size exceeds \"temp_file_limit\" (1024kB)");
        let error = Error::from_server(&place(), "finding each change's place", files);
        assert!(matches!(error, Error::Server { .. }) && error.is_transient(), "{error:?}");
        assert!(!error.to_string().contains("slot"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_goes_away_during_log_in_is_waited_for() {
        let (ours, theirs) = tokio::io::duplex(1024);
        drop(theirs);
        let mut config = tokio_postgres::Config::new();
        let failed = config.user("sync").connect_raw(ours, tokio_postgres::NoTls).await;
        let error = Error::from_client(&place(), "logging in", failed.err().unwrap());
        assert!(matches!(error, Error::Client { .. }) && error.is_transient(), "{error:?}");
    }

    #[test]
    fn the_message_of_an_error_leaves_the_servers_words_to_its_source() {
        let error = Error::from_server(&place(), "reading the catalog", server("28P01", "wrong password"));
        assert!(!error.to_string().contains("wrong password"));
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(source.as_deref(), Some("wrong password (SQLSTATE 28P01)"));
    }
}
