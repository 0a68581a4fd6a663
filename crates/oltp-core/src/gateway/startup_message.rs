//! The first bytes of a connection, before either side has proved anything to the other.
//!
//! Four things may come first, all framed alike: a length that counts itself, then a code.
//!
//! ```text
//!   length  1234 5679              SSLRequest       answered with one byte, then TLS or the next packet
//!   length  1234 5680              GSSENCRequest    the same
//!   length  1234 5678  pid  key    CancelRequest    nothing is answered
//!   length  3.x  name\0value\0…\0  StartupMessage   the session begins
//! ```
//!
//! Source: "Message Formats" and "Frontend/Backend Protocol, Start-up" in the PostgreSQL manual, and
//! `ProcessStartupPacket` in `backend_startup.c` for what the server makes of doubtful ones: of a name given twice
//! the last value counts. **Nothing here allocates more than the packet itself, and any bytes at all give a packet or
//! an error.**

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What Postgres itself takes as a startup packet (`MAX_STARTUP_PACKET_LENGTH`), length field included.
pub const STARTUP_LIMIT: usize = 10_000;

/// The length field and the code.
pub const PREFIX_BYTES: usize = 8;

const CANCEL_REQUEST: u32 = (1234 << 16) | 5678;
const SSL_REQUEST: u32 = (1234 << 16) | 5679;
const GSS_REQUEST: u32 = (1234 << 16) | 5680;

/// Since protocol 3.2 a cancel key is as long as the server likes, up to this (`MAX_CANCEL_KEY_LENGTH`).
pub const CANCEL_KEY_LIMIT: usize = 256;

/// The first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPacket {
    /// The client would like TLS.
    SslRequest,
    /// The client would like GSSAPI encryption.
    GssRequest,
    /// The client wants a statement of another session stopped.
    Cancel(CancelRequest),
    /// The client wants a session.
    Startup(StartupMessage),
}

/// A request to stop the statement of the session that was given this key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// The process id from the session's BackendKeyData.
    pub process_id: i32,
    /// The key from the same message.
    pub key: Bytes,
}

/// What a client asks a session with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupMessage {
    /// Major version in the upper half, minor in the lower; the major one is 3.
    pub version: u32,
    /// The role.
    pub user: Bytes,
    /// The database as the client named it, when it did.
    pub database: Option<Bytes>,
    /// The value of `replication`, when it was given.
    pub replication: Option<Bytes>,
    /// `application_name`, when it was given.
    pub application_name: Option<Bytes>,
    /// Everything else, in order: settings, `options`, protocol extensions.
    pub others: Vec<(Bytes, Bytes)>,
}

/// Why the first bytes are no packet that this end takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FirstPacketError {
    /// The length is out of bounds: no Postgres client, or a hostile one.
    #[error("a first packet of {0} bytes is none that a Postgres client sends")]
    Length(u32),
    /// Protocol 2 or older, or one of the future.
    #[error("unsupported frontend protocol {major}.{minor}: this server supports 3.0 to 3.2")]
    Version {
        /// The major version that was asked for.
        major: u16,
        /// The minor version.
        minor: u16,
    },
    /// The names and values do not end where the packet does.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    /// A session needs a role.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
}

impl FirstPacket {
    /// The length of the packet after its first [`PREFIX_BYTES`] bytes, from those bytes.
    ///
    /// # Errors
    /// The length is none that any of the four has.
    pub fn remaining(prefix: [u8; PREFIX_BYTES]) -> Result<usize, FirstPacketError> {
        let length = u32::from_be_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]);
        match usize::try_from(length) {
            Ok(bytes) if (PREFIX_BYTES..=STARTUP_LIMIT).contains(&bytes) => Ok(bytes - PREFIX_BYTES),
            _ => Err(FirstPacketError::Length(length)),
        }
    }

    /// Reads a packet whose `body` has the length that [`FirstPacket::remaining`] said.
    ///
    /// # Errors
    /// The code or the layout is none that this end takes.
    pub fn parse(prefix: [u8; PREFIX_BYTES], body: Bytes) -> Result<FirstPacket, FirstPacketError> {
        let length = u32::from_be_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]);
        let code = u32::from_be_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]);
        match code {
            SSL_REQUEST if body.is_empty() => Ok(FirstPacket::SslRequest),
            GSS_REQUEST if body.is_empty() => Ok(FirstPacket::GssRequest),
            CANCEL_REQUEST => parse_cancel(body).ok_or(FirstPacketError::Length(length)),
            SSL_REQUEST | GSS_REQUEST => Err(FirstPacketError::Length(length)),
            version if version >> 16 == 3 => Ok(FirstPacket::Startup(StartupMessage::parse(version, body)?)),
            version => {
                let [a, b, c, d] = version.to_be_bytes();
                let (major, minor) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                Err(FirstPacketError::Version { major, minor })
            }
        }
    }
}

fn parse_cancel(mut body: Bytes) -> Option<FirstPacket> {
    // `try_get_i32` answers for a body that is too short.
    let process_id = body.try_get_i32().ok()?;
    let fits = !body.is_empty() && body.len() <= CANCEL_KEY_LIMIT;
    fits.then_some(FirstPacket::Cancel(CancelRequest { process_id, key: body }))
}

impl StartupMessage {
    fn parse(version: u32, mut body: Bytes) -> Result<StartupMessage, FirstPacketError> {
        let mut message = StartupMessage {
            version,
            user: Bytes::new(),
            database: None,
            replication: None,
            application_name: None,
            others: Vec::new(),
        };
        loop {
            let name = take_string(&mut body)?;
            if name.is_empty() {
                break;
            }
            let value = take_string(&mut body)?;
            match name.as_ref() {
                b"user" => message.user = value,
                b"database" => message.database = Some(value),
                b"replication" => message.replication = Some(value),
                b"application_name" => message.application_name = Some(value),
                _ => message.others.push((name, value)),
            }
        }
        match () {
            () if !body.is_empty() => Err(FirstPacketError::Layout),
            () if message.user.is_empty() => Err(FirstPacketError::NoUser),
            () => Ok(message),
        }
    }

    /// The packet for the server, with the length in front. A value that came more than once comes once.
    pub fn encode(&self) -> BytesMut {
        let mut packet = BytesMut::new();
        packet.put_u32(0);
        packet.put_u32(self.version);
        let mut put = |name: &[u8], value: &[u8]| {
            packet.put_slice(name);
            packet.put_u8(0);
            packet.put_slice(value);
            packet.put_u8(0);
        };
        put(b"user", &self.user);
        let named = [
            (b"database".as_slice(), &self.database),
            (b"replication", &self.replication),
            (b"application_name", &self.application_name),
        ];
        for (name, value) in named {
            if let Some(value) = value {
                put(name, value);
            }
        }
        for (name, value) in &self.others {
            put(name, value);
        }
        packet.put_u8(0);
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        if let Some(field) = packet.first_chunk_mut() {
            *field = length.to_be_bytes();
        }
        packet
    }
}

/// Takes the bytes up to the next zero byte, and that byte.
fn take_string(body: &mut Bytes) -> Result<Bytes, FirstPacketError> {
    let end = body.iter().position(|byte| *byte == 0).ok_or(FirstPacketError::Layout)?;
    let string = body.split_to(end);
    body.advance(1);
    Ok(string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(packet: &[u8]) -> Result<FirstPacket, FirstPacketError> {
        let prefix = *packet.first_chunk().unwrap();
        assert_eq!(FirstPacket::remaining(prefix)?, packet.len() - PREFIX_BYTES);
        FirstPacket::parse(prefix, Bytes::copy_from_slice(&packet[PREFIX_BYTES..]))
    }

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut packet = u32::try_from(body.len() + PREFIX_BYTES).unwrap().to_be_bytes().to_vec();
        packet.extend(code.to_be_bytes());
        packet.extend(body);
        packet
    }

    const VERSION_3_2: u32 = 3 << 16 | 2;

    #[test]
    fn a_startup_message_keeps_everything_it_says() {
        let body = b"user\0ann\0database\0shop@dev\0_pq_.x\0\0options\0-c a=b\0\0";
        let FirstPacket::Startup(message) = read(&packet(VERSION_3_2, body)).unwrap() else { panic!() };
        assert_eq!(message.user, "ann");
        assert_eq!(message.database.as_deref(), Some(b"shop@dev".as_slice()));
        assert_eq!(message.others.len(), 2);
        assert_eq!(&message.encode()[..], packet(VERSION_3_2, body));
    }

    #[test]
    fn of_a_name_given_twice_the_last_value_counts_and_only_it_is_passed_on() {
        let body = b"user\0tidewater\0user\0ann\0database\0a\0database\0b\0\0";
        let FirstPacket::Startup(message) = read(&packet(VERSION_3_2, body)).unwrap() else { panic!() };
        assert_eq!(&message.encode()[..], packet(VERSION_3_2, b"user\0ann\0database\0b\0\0"));
    }

    #[test]
    fn cancel_keys_of_both_protocol_versions_are_read() {
        for length in [4, 32, CANCEL_KEY_LIMIT] {
            let mut body = 77_i32.to_be_bytes().to_vec();
            body.resize(4 + length, 9);
            let FirstPacket::Cancel(cancel) = read(&packet(CANCEL_REQUEST, &body)).unwrap() else { panic!() };
            assert_eq!((cancel.process_id, cancel.key.len()), (77, length));
        }
        for length in [0, 2, 4, 4 + CANCEL_KEY_LIMIT + 1] {
            read(&packet(CANCEL_REQUEST, &vec![0; length])).unwrap_err();
        }
    }

    #[test]
    fn encryption_is_asked_for_in_two_ways() {
        assert_eq!(read(&packet(SSL_REQUEST, b"")), Ok(FirstPacket::SslRequest));
        assert_eq!(read(&packet(GSS_REQUEST, b"")), Ok(FirstPacket::GssRequest));
    }

    #[test]
    fn packets_that_no_client_sends_are_refused_with_the_reason() {
        let user = |rest: &[u8]| [b"user\0ann\0".as_slice(), rest].concat();
        assert_eq!(read(&packet(VERSION_3_2, &user(b""))), Err(FirstPacketError::Layout));
        assert_eq!(read(&packet(VERSION_3_2, &user(b"database"))), Err(FirstPacketError::Layout));
        assert_eq!(read(&packet(VERSION_3_2, &user(b"\0more"))), Err(FirstPacketError::Layout));
        assert_eq!(read(&packet(VERSION_3_2, b"\0")), Err(FirstPacketError::NoUser));
        assert_eq!(read(&packet(VERSION_3_2, b"user\0\0\0")), Err(FirstPacketError::NoUser));
        let version = FirstPacketError::Version { major: 2, minor: 0 };
        assert_eq!(read(&packet(2 << 16, &user(b"\0"))), Err(version));
        assert_eq!(read(&packet(SSL_REQUEST, b"x")), Err(FirstPacketError::Length(9)));
        for length in [0_u32, 7, 10_001, u32::MAX] {
            let mut prefix = [0; PREFIX_BYTES];
            prefix[..4].copy_from_slice(&length.to_be_bytes());
            assert_eq!(FirstPacket::remaining(prefix), Err(FirstPacketError::Length(length)));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_packet_or_an_error(prefix: [u8; 8], body in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = FirstPacket::parse(prefix, body.into());
        }

        #[test]
        fn what_was_understood_is_passed_on_unchanged(body in "(user|database|replication|options|x)\0[a-z]{0,3}\0") {
            let body = format!("{body}user\0u\0\0");
            if let Ok(FirstPacket::Startup(message)) = read(&packet(VERSION_3_2, body.as_bytes())) {
                prop_assert_eq!(read(&message.encode()), Ok(FirstPacket::Startup(message)));
            }
        }
    }
}
