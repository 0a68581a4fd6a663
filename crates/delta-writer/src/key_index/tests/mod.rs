//! The index as a whole: one behaviour at a time, against a model, through crashes, with damaged files.

mod behaviour;
mod crash;
mod damage;
mod model;

use super::{FileId, KeyHash, RowAddress};

/// Keys spread like the hashes they stand for.
fn key(n: u64) -> KeyHash {
    KeyHash(siphasher::sip128::SipHasher13::new().hash(&n.to_le_bytes()).as_u128())
}

fn at(file: FileId, row: u32) -> RowAddress {
    RowAddress { file, row }
}
