//! The first packet of a connection, from anybody, becomes a packet or an error; what is passed on says the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use oltp_core::gateway::Target;
use oltp_core::gateway::startup_message::{FirstPacket, PREFIX_BYTES};

fn read(bytes: &[u8]) -> Option<FirstPacket> {
    let (prefix, body) = bytes.split_first_chunk::<PREFIX_BYTES>()?;
    let body = body.get(..FirstPacket::remaining(*prefix).ok()?)?;
    FirstPacket::parse(*prefix, Bytes::copy_from_slice(body)).ok()
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(FirstPacket::Startup(message)) = read(bytes) {
        let _ = message.database.as_ref().map(|name| Target::parse(name));
        assert_eq!(read(&message.encode()), Some(FirstPacket::Startup(message)));
    }
});
