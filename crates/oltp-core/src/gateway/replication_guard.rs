//! What a replication session may ask for.
//!
//! Logical replication passes: other tools' slots are none of our business. A *physical* stream and a base backup do
//! not: they carry WAL that the keepers' majority may not have, which no replica is to see. `replication=true`, which
//! is good for nothing else, is refused at the door. A session with `replication=database` can send the physical
//! commands too, so its commands are looked at here; the walsender takes commands as simple queries only.
//!
//! Postgres waits for the keeper by its `application_name`, and believes any walsender of that name. It is refused and
//! the one given is made explicit, so that no setting of a role or database puts another in its place. A role that
//! may replicate can still set the name from within (`set_config`): it can then lose the durability of its own
//! database, as it can with `synchronous_commit`, and of no other.

use super::refusal::Refusal;
use super::startup_message::StartupMessage;

const RESERVED_PREFIX: &[u8] = b"tidewater";

const QUERY: u8 = b'Q';

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
    let name = message.application_name.get_or_insert_default();
    if name.get(..RESERVED_PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(RESERVED_PREFIX)) {
        return Err(Refusal::reserved_application_name());
    }
    Ok(Some(ReplicationGuard::default()))
}

/// Follows a client's messages, however they are cut.
#[derive(Debug, Default)]
pub(crate) struct ReplicationGuard {
    /// The header of the message that begins, as far as it has come.
    header: Vec<u8>,
    /// Bytes of the present message that are still to come.
    remaining: usize,
    /// The beginning of the present query; `None` in any other message.
    command: Option<Vec<u8>>,
}

impl ReplicationGuard {
    /// Looks at the next bytes of the client. They may be passed on only if this says so.
    pub(crate) fn watch(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.remaining == 0 {
                self.header.push(first);
                bytes = rest;
                self.begin_message()?;
                continue;
            }
            let (part, rest) = bytes.split_at_checked(self.remaining).unwrap_or((bytes, &[]));
            self.remaining -= part.len();
            bytes = rest;
            if let Some(command) = &mut self.command {
                let skip = if command.is_empty() { part.len() - part.trim_ascii_start().len() } else { 0 };
                let room = COMMAND_LIMIT.saturating_sub(command.len());
                command.extend(part.iter().skip(skip).take(room));
            }
            if self.remaining == 0 {
                self.end_message()?;
            }
        }
        Ok(())
    }

    fn begin_message(&mut self) -> Result<(), Refusal> {
        let Some(&[tag, a, b, c, d]) = self.header.first_chunk() else { return Ok(()) };
        self.header.clear();
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        // A length below its own four bytes: Postgres ends such a session, and gets the chance to say so.
        self.remaining = length.saturating_sub(4);
        self.command = (tag == QUERY).then(Vec::new);
        if self.remaining == 0 { self.end_message() } else { Ok(()) }
    }

    fn end_message(&mut self) -> Result<(), Refusal> {
        match self.command.take() {
            Some(command) if is_physical(&command) => Err(Refusal::physical_replication()),
            _ => Ok(()),
        }
    }
}

/// Anything that begins like the commands in question and is not exactly the logical form counts as physical.
fn is_physical(command: &[u8]) -> bool {
    let is_word_byte = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let end = command.iter().position(|byte| !is_word_byte(byte)).unwrap_or(command.len());
    let verb = command.get(..end).unwrap_or_default();
    if verb.eq_ignore_ascii_case(b"BASE_BACKUP") {
        return true;
    }
    if !verb.eq_ignore_ascii_case(b"START_REPLICATION") {
        return false;
    }
    let mut words = command.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).skip(1);
    let slot = words.next().is_some_and(|word| word.eq_ignore_ascii_case(b"SLOT"));
    let logical = words.nth(1).is_some_and(|word| word.eq_ignore_ascii_case(b"LOGICAL"));
    !(slot && logical)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

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
    fn spaces_before_a_command_do_not_hide_it() {
        let padded = format!("{}START_REPLICATION 0/0", " ".repeat(3 * COMMAND_LIMIT));
        let mut guard = ReplicationGuard::default();
        assert!(query(&padded).chunks(100).try_for_each(|piece| guard.watch(piece)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_followed_within_bounds(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut guard = ReplicationGuard::default();
            let _ = guard.watch(&bytes);
            prop_assert!(guard.header.len() < 5);
            prop_assert!(guard.command.is_none_or(|command| command.len() <= COMMAND_LIMIT));
        }
    }
}
