//! Frames of the WAL keeper's protocol, from either side.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| oltp_core::wal_keeper::read_frames(bytes));
