//! Names of what this installation creates at a source, and quoting of everybody's names.
//!
//! Slots, publications and triggers of two installations at one server must never collide, and each must be
//! recognised as its own. A name is `tidewater_<instance>_<database>` where both parts are plain; anything else (an
//! underscore that would make the parts ambiguous, a capital letter, a long name) is settled by a hash of the exact
//! parts, so different installations always get different names.

use sha2::{Digest, Sha256};

/// `NAMEDATALEN - 1`; also the limit of slot names.
const MAX_NAME: usize = 63;
/// Eight hex digits of SHA-256: two installations of one server collide by chance once in four thousand million.
const HASH_DIGITS: usize = 8;

/// `tidewater_<instance>_<database>` with room for `suffix_room` more bytes, of `[a-z0-9_]` only.
pub(crate) fn object_stem(instance: &str, database: &str, suffix_room: usize) -> String {
    let room = MAX_NAME.saturating_sub(suffix_room);
    let plain = format!("tidewater_{instance}_{database}");
    if is_plain(instance) && is_plain(database) && plain.len() <= room {
        return plain;
    }
    // The zero byte occurs in no configured name: the parts cannot run into each other.
    let digest = Sha256::digest(format!("{instance}\0{database}"));
    let hash: String = digest.iter().take(HASH_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
    // A database whose plain name looks like `x1a2b3c4d` beside an instance name cut at just that length is not worth ruling out.
    let readable: String = format!("tidewater_{}_{}", clean(instance), clean(database))
        .chars()
        .take(room.saturating_sub(HASH_DIGITS + 2))
        .collect();
    format!("{readable}_x{hash}")
}

/// Made of `[a-z0-9]` only, so that an underscore always separates.
fn is_plain(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

fn clean(part: &str) -> String {
    part.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' }).collect()
}

/// `name` as an SQL identifier.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `schema.name` as an SQL identifier.
pub fn quote_qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_identifier(schema), quote_identifier(name))
}

/// `text` as an SQL string, whatever `standard_conforming_strings` is.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn plain_names_stay_readable() {
        assert_eq!(object_stem("main", "shop", 12), "tidewater_main_shop");
    }

    #[test]
    fn names_that_would_run_into_each_other_stay_apart() {
        let pairs = [
            ("a_b", "c"),
            ("a", "b_c"),
            ("A", "b_c"),
            ("a", "b-c"),
            ("a", "b"),
            ("", "a_b"),
            ("ä", "c"),
            ("ö", "c"),
        ];
        let stems: HashSet<_> = pairs.iter().map(|(i, d)| object_stem(i, d, 12)).collect();
        assert_eq!(stems.len(), pairs.len(), "{stems:?}");
    }

    proptest! {
        #[test]
        fn every_name_is_one_that_postgres_takes_for_a_slot(instance in ".{0,80}", database in ".{0,80}") {
            let stem = object_stem(&instance, &database, 12);
            prop_assert!(stem.len() <= 51 && stem.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
        }
    }

    #[test]
    fn quoting_leaves_no_way_out() {
        assert_eq!(quote_qualified("a\"b", "c d"), "\"a\"\"b\".\"c d\"");
        assert_eq!(quote_literal("it's \\ here"), "E'it''s \\\\ here'");
    }
}
