//! Whatever the bytes are, a message is parsed or refused, and a parsed tuple has as many values as it says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wal_decoder::{Message, OldRow};

fuzz_target!(|input: (bool, &[u8])| {
    let (in_stream, bytes) = input;
    let tuples = match wal_decoder::pgoutput::parse(bytes, in_stream) {
        Ok(Message::Insert { new, .. }) => vec![new],
        Ok(Message::Update { old: OldRow::Full(old) | OldRow::Key(old), new, .. }) => vec![old, new],
        Ok(Message::Update { new, .. }) => vec![new],
        Ok(Message::Delete { old: OldRow::Full(old) | OldRow::Key(old), .. }) => vec![old],
        _ => vec![],
    };
    for tuple in tuples {
        assert_eq!(tuple.columns().count(), tuple.len());
    }
});
