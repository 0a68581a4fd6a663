//! What a replication session may ask for.
//!
//! Logical replication passes: other tools' slots are none of our business. A *physical* stream and a base backup do
//! not: they carry WAL that the keepers' majority may not have, which no replica is to see. `replication=true`, which
//! is good for nothing else, is refused at the door. A session with `replication=database` can send the physical
//! commands too, so its commands are looked at here; the walsender takes commands as simple queries only.
//!
//! Postgres waits for the keeper by its `application_name`, and believes any walsender of that name. It is refused at
//! the door, and the one given is made explicit, so that no setting of a role or database puts another in its place.
//! Statements of the session itself can still change it; a walsender takes its name into account when it begins to
//! stream. So a stream is begun only by a session that has answers to everything it asked, and with them no name of ours
//! (`walsender_answers.rs`). No client sends its next command earlier.

use std::sync::Arc;

use super::message_frames::{MessageFrames, is_space};
use super::refusal::Refusal;
use super::startup_message::StartupMessage;
use super::walsender_answers::{AnswerWatch, Answers};

const RESERVED_PREFIX: &[u8] = b"tidewater";

const QUERY: u8 = b'Q';

/// Passwords, the data of a COPY or a stream and its end, and Terminate: nothing that ReadyForQuery answers by itself.
const UNANSWERED: &[u8] = b"pdcfX";

/// Room for `START_REPLICATION SLOT <63 bytes> LOGICAL` with generous spaces.
const COMMAND_LIMIT: usize = 512;

/// Checks a startup message. `Some` guard for a session whose commands have to be watched.
pub(crate) fn admit(message: &mut StartupMessage) -> Result<Option<ReplicationGuard>, Refusal> {
    let Some(value) = &message.replication else { return Ok(None) };
    let is_off = ["false", "off", "no", "0"].iter().any(|off| value.eq_ignore_ascii_case(off.as_bytes()));
    if is_off {
        return Ok(None);
    }
    if value.as_ref() != b"database" {
        return Err(Refusal::physical_replication());
    }
    if is_reserved(message.application_name.get_or_insert_default()) {
        return Err(Refusal::reserved_application_name());
    }
    Ok(Some(ReplicationGuard::default()))
}

/// Whether an application name is one of ours.
pub(crate) fn is_reserved(name: &[u8]) -> bool {
    name.get(..RESERVED_PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(RESERVED_PREFIX))
}

/// Follows a client's messages, however they are cut.
#[derive(Debug, Default)]
pub(crate) struct ReplicationGuard {
    frames: MessageFrames,
    /// Queries so far.
    asked: u64,
    /// A message that no walsender takes: how many answers there will be is not known any more.
    lost_count: bool,
    answers: Arc<Answers>,
}

impl ReplicationGuard {
    /// For the other direction.
    pub(crate) fn answer_watch(&self) -> AnswerWatch {
        AnswerWatch::new(Arc::clone(&self.answers))
    }

    /// Looks at the next bytes of the client. They may be passed on only if this says so.
    pub(crate) fn watch(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        let room = |tag| if tag == QUERY { COMMAND_LIMIT } else { 0 };
        while let Some((tag, body)) = self.frames.next(&mut bytes, room) {
            if tag == QUERY {
                self.admit_command(&body)?;
                self.asked += 1;
            } else if !UNANSWERED.contains(&tag) {
                self.lost_count = true;
            }
        }
        Ok(())
    }

    fn admit_command(&self, command: &[u8]) -> Result<(), Refusal> {
        match Command::of(command) {
            Command::Physical => Err(Refusal::physical_replication()),
            Command::StartLogical if self.lost_count || self.answers.queries() != self.asked => {
                Err(Refusal::impatient_stream())
            }
            Command::StartLogical if self.answers.has_reserved_name() => {
                Err(Refusal::reserved_application_name())
            }
            Command::StartLogical | Command::Other => Ok(()),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Physical,
    StartLogical,
    Other,
}

impl Command {
    /// Anything that begins like the commands in question and is not exactly the logical form counts as physical.
    fn of(command: &[u8]) -> Command {
        let is_word_byte = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let end = command.iter().position(|byte| !is_word_byte(byte)).unwrap_or(command.len());
        let verb = command.get(..end).unwrap_or_default();
        if verb.eq_ignore_ascii_case(b"BASE_BACKUP") {
            return Command::Physical;
        }
        if !verb.eq_ignore_ascii_case(b"START_REPLICATION") {
            return Command::Other;
        }
        let mut words = command.split(is_space).filter(|word| !word.is_empty()).skip(1);
        let slot = words.next().is_some_and(|word| word.eq_ignore_ascii_case(b"SLOT"));
        let logical = words.nth(1).is_some_and(|word| word.eq_ignore_ascii_case(b"LOGICAL"));
        if slot && logical { Command::StartLogical } else { Command::Physical }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn startup(replication: &'static str, application_name: Option<&'static str>) -> StartupMessage {
        StartupMessage {
            version: 3 << 16,
            user: Bytes::from_static(b"ann"),
            database: None,
            replication: Some(replication.into()),
            application_name: application_name.map(Bytes::from),
            others: Vec::new(),
        }
    }

    fn query(text: &str) -> Vec<u8> {
        let mut message = vec![b'Q'];
        message.extend(u32::try_from(text.len() + 5).unwrap().to_be_bytes());
        message.extend(text.as_bytes());
        message.push(0);
        message
    }

    #[test]
    fn physical_replication_is_refused_at_the_door_and_logical_is_not() {
        for value in ["true", "on", "1", "t", "yes", "Database", "what"] {
            assert_eq!(
                admit(&mut startup(value, None)).unwrap_err(),
                Refusal::physical_replication(),
                "{value}"
            );
        }
        assert!(admit(&mut startup("database", None)).unwrap().is_some());
        assert!(admit(&mut startup("false", Some("tidewater"))).unwrap().is_none());
    }

    #[test]
    fn nobody_replicates_under_the_keepers_name() {
        for name in ["tidewater_keeper", "TideWater_keeper", "tidewater"] {
            let refusal = admit(&mut startup("database", Some(name))).unwrap_err();
            assert_eq!(refusal, Refusal::reserved_application_name());
        }
        let mut unnamed = startup("database", None);
        admit(&mut unnamed).unwrap();
        assert_eq!(unnamed.application_name.as_deref(), Some(b"".as_slice()));
    }

    #[test]
    fn a_logical_stream_is_started_and_a_physical_one_is_not() {
        let allowed = [
            "START_REPLICATION SLOT s LOGICAL 0/0 (proto_version '2')",
            "  start_replication  SLOT \"s\"\n LOGICAL 0/0",
            "IDENTIFY_SYSTEM",
            "CREATE_REPLICATION_SLOT s LOGICAL pgoutput",
            "SELECT 'START_REPLICATION 0/0'",
            "",
        ];
        for command in allowed {
            assert_eq!(ReplicationGuard::default().watch(&query(command)), Ok(()), "{command}");
        }
        let refused = [
            "START_REPLICATION 0/0",
            "START_REPLICATION SLOT s 0/0",
            "START_REPLICATION SLOT s PHYSICAL 0/0",
            "\t start_replication PHYSICAL 0/0 TIMELINE 1",
            "\x0bSTART_REPLICATION 0/0",
            "START_REPLICATION SLOT \"LOGICAL\" 0/0",
            "START_REPLICATION;",
            "BASE_BACKUP (LABEL 'x')",
            "base_backup",
        ];
        for command in refused {
            for piece in [1, 4, 1000] {
                let mut guard = ReplicationGuard::default();
                let bytes = [query("SELECT 1"), query(command)].concat();
                let result = bytes.chunks(piece).try_for_each(|piece| guard.watch(piece));
                assert_eq!(result, Err(Refusal::physical_replication()), "{command}");
            }
        }
    }

    #[test]
    fn a_stream_begins_only_after_every_answer_and_under_no_name_of_ours() {
        const START: &str = "START_REPLICATION SLOT s LOGICAL 0/0";
        let ready = b"Z\0\0\0\x05I";
        let mut at_once = ReplicationGuard::default();
        let pipelined =
            [query("SELECT set_config('application_name', 'tidewater_keeper', false)"), query(START)];
        assert_eq!(at_once.watch(&pipelined.concat()), Err(Refusal::impatient_stream()));

        let mut renamed = ReplicationGuard::default();
        let mut answers = renamed.answer_watch();
        renamed.watch(&query("SET application_name = tidewater_keeper")).unwrap();
        answers.watch(b"S\0\0\0\x26application_name\0tidewater_keeper\0");
        answers.watch(ready);
        assert_eq!(renamed.watch(&query(START)), Err(Refusal::reserved_application_name()));

        // A message that only looks as if it were answered.
        let mut confused = ReplicationGuard::default();
        let mut answers = confused.answer_watch();
        confused.watch(b"F\0\0\0\x04").unwrap();
        answers.watch(ready);
        confused.watch(&query("SELECT 1")).unwrap();
        assert_eq!(confused.watch(&query(START)), Err(Refusal::impatient_stream()));

        let mut patient = ReplicationGuard::default();
        let mut answers = patient.answer_watch();
        for _ in 0..3 {
            patient.watch(&query("IDENTIFY_SYSTEM")).unwrap();
            answers.watch(ready);
            patient.watch(&query(START)).unwrap();
            patient.watch(b"d\0\0\0\x05rc\0\0\0\x04").unwrap();
            answers.watch(ready);
        }
    }

    #[test]
    fn spaces_before_a_command_do_not_hide_it() {
        let padded = format!("{}START_REPLICATION 0/0", " ".repeat(3 * COMMAND_LIMIT));
        let mut guard = ReplicationGuard::default();
        assert!(query(&padded).chunks(100).try_for_each(|piece| guard.watch(piece)).is_err());
    }
}
