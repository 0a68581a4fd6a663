//! Positions in JSON, as people write them: `"0/16B3748"`.

use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
use wal_decoder::Lsn;

pub(crate) fn serialize<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}
