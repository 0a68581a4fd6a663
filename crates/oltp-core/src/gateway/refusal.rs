//! What the gateway itself says to a client: one FATAL ErrorResponse, then the connection is over.
//!
//! Everything else that a client reads comes from its Postgres.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::startup_message::FirstPacketError;
use super::target::{BranchAddress, TargetError};
use super::waker::WakeError;

/// How long a client has for taking the last words and closing its side.
const LINGER: Duration = Duration::from_secs(1);

const NAME_FORM: &str =
    "A database is named project[.database][@branch]; `tidewater branch list` shows what there is.";

/// Why a client gets no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// SQLSTATE, as in Appendix A of the PostgreSQL manual.
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) hint: Option<&'static str>,
}

impl Refusal {
    fn new(code: &'static str, message: impl Into<String>, hint: &'static str) -> Refusal {
        Refusal { code, message: message.into(), hint: Some(hint) }
    }

    pub(crate) fn not_encrypted() -> Refusal {
        Refusal::new(
            "28000",
            "this server takes connections from other machines over TLS only",
            "Connect with sslmode=require or stronger.",
        )
    }

    pub(crate) fn core_role() -> Refusal {
        Refusal::new(
            "28000",
            "the role \"tidewater\" belongs to the server itself and cannot log in here",
            "Connect as the owner of the database.",
        )
    }

    pub(crate) fn physical_replication() -> Refusal {
        Refusal::new(
            "0A000",
            "physical replication and base backups are not served here",
            "They would carry changes that are not safe yet. Use a branch, pg_dump, or logical replication.",
        )
    }

    pub(crate) fn reserved_application_name() -> Refusal {
        Refusal::new(
            "42501",
            "a replication session cannot have an application_name that begins with \"tidewater\"",
            "The server waits for the keeper by that name. Choose another one.",
        )
    }

    pub(crate) fn impatient_stream() -> Refusal {
        Refusal::new(
            "08P01",
            "START_REPLICATION came before the answer to the command before it",
            "Wait for the answer to each command before you send the next one.",
        )
    }

    pub(crate) fn startup_too_long() -> Refusal {
        Refusal::new("08P01", "the startup packet is too long", "Leave out some of its settings.")
    }

    pub(crate) fn too_many_connections(limit: usize) -> Refusal {
        Refusal::new(
            "53300",
            format!("sorry, too many clients already: the gateway serves {limit} connections"),
            "Use a connection pool, or try again later.",
        )
    }

    pub(crate) fn too_many_waiting(branch: &BranchAddress) -> Refusal {
        Refusal::new(
            "53300",
            format!("too many connections are waiting for \"{branch}\" to start"),
            "Try again in a moment.",
        )
    }

    pub(crate) fn too_slow(branch: &BranchAddress, limit: Duration) -> Refusal {
        Refusal::new(
            "57P03",
            format!("\"{branch}\" did not start within {limit:?}"),
            "It may still be recovering: try again in a moment; the server's log says what it does.",
        )
    }

    pub(crate) fn shutting_down() -> Refusal {
        Refusal::new("57P03", "the gateway is shutting down", "Try again in a moment.")
    }

    pub(crate) fn unintelligible_server() -> Refusal {
        Refusal::new("08P01", "the database's Postgres did not answer as one", "The server's log says more.")
    }

    /// Too little is known about somebody not logged in yet to be told the cause: that is in the log.
    pub(crate) fn not_woken(branch: &BranchAddress, error: &Arc<WakeError>) -> Refusal {
        match error.as_ref() {
            WakeError::NoSuchProject => {
                Refusal::new("3D000", format!("project \"{}\" does not exist", branch.project), NAME_FORM)
            }
            WakeError::NoSuchBranch => Refusal::new(
                "3D000",
                format!("project \"{}\" has no branch \"{}\"", branch.project, branch.branch),
                NAME_FORM,
            ),
            WakeError::TooMany => Refusal::new(
                "53300",
                format!("\"{branch}\" cannot be started: too many databases are running"),
                "Suspend one with `tidewater compute suspend`, or try again later.",
            ),
            WakeError::Failed { .. } => Refusal::new(
                "57P03",
                format!("\"{branch}\" cannot be started now"),
                "Try again in a moment; the server's log has the cause.",
            ),
        }
    }

    /// The FATAL ErrorResponse.
    pub(crate) fn encode(&self) -> BytesMut {
        let mut packet = BytesMut::new();
        packet.put_u8(b'E');
        packet.put_u32(0);
        let mut put = |field: u8, text: &str| {
            packet.put_u8(field);
            // A zero byte would end the field early; the rest would be taken for others.
            packet.extend(text.bytes().filter(|byte| *byte != 0));
            packet.put_u8(0);
        };
        put(b'S', "FATAL");
        put(b'V', "FATAL");
        put(b'C', self.code);
        put(b'M', &self.message);
        if let Some(hint) = self.hint {
            put(b'H', hint);
        }
        packet.put_u8(0);
        let length = u32::try_from(packet.len() - 1).unwrap_or(u32::MAX);
        if let Some(field) = packet.get_mut(1..5) {
            field.copy_from_slice(&length.to_be_bytes());
        }
        packet
    }

    /// Says it and ends the connection. A client that is gone already misses nothing.
    pub(crate) async fn send(&self, client: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
        if client.write_all(&self.encode()).await.is_ok() {
            part(client).await;
        }
    }
}

impl From<FirstPacketError> for Refusal {
    fn from(error: FirstPacketError) -> Refusal {
        let code = match error {
            FirstPacketError::Version { .. } => "0A000",
            FirstPacketError::NoUser => "28000",
            FirstPacketError::Length(_) | FirstPacketError::Layout => "08P01",
        };
        Refusal { code, message: error.to_string(), hint: None }
    }
}

impl From<TargetError> for Refusal {
    fn from(error: TargetError) -> Refusal {
        Refusal::new("3D000", format!("the database name cannot be used: {error}"), NAME_FORM)
    }
}

/// Closes a connection so that the last words arrive: closing with bytes of the client unread would make the
/// operating system throw away what it has not taken yet.
pub(crate) async fn part(client: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let linger = async {
        client.shutdown().await?;
        let mut unread = [0; 512];
        while client.read(&mut unread).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whichever way this ends, the connection is over; a client that does not close gets no more of our time.
    let _ = tokio::time::timeout(LINGER, linger).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_protocol::message::backend::Message;
    use tokio_postgres::fallible_iterator::FallibleIterator;

    #[test]
    fn a_refusal_reads_as_a_fatal_error_with_a_code_and_a_hint() {
        let branch = BranchAddress { project: "shop\0x".to_owned(), branch: "dev".to_owned() };
        let refusal = Refusal::not_woken(&branch, &Arc::new(WakeError::NoSuchBranch));
        let mut packet = refusal.encode();
        let Some(Message::ErrorResponse(body)) = Message::parse(&mut packet).unwrap() else { panic!() };
        let fields: Vec<_> = body
            .fields()
            .map(|field| Ok((field.type_(), String::from_utf8_lossy(field.value_bytes()).into_owned())))
            .collect()
            .unwrap();
        let expected = [
            (b'S', "FATAL"),
            (b'V', "FATAL"),
            (b'C', "3D000"),
            (b'M', "project \"shopx\" has no branch \"dev\""),
            (b'H', NAME_FORM),
        ];
        assert_eq!(fields, expected.map(|(field, text)| (field, text.to_owned())));
        assert!(packet.is_empty());
    }
}
