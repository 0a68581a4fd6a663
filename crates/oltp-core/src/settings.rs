//! The server's settings: what the configuration may choose, and what the core keeps to itself.
//!
//! Two layers, by strength. *Ours* stand on the postmaster's command line, where neither a file nor
//! `ALTER SYSTEM` can override them: durability, and what sync and supervision stand on. *The
//! project's* stand in `tidewater.conf`, included last by `postgresql.conf`, so `ALTER SYSTEM` still
//! works for them as everywhere.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::{CoreError, Result};

/// The file in the data directory that holds the project's settings.
pub(crate) const FILE: &str = "tidewater.conf";

/// On the command line of every postmaster. An acknowledged commit must survive a power failure
/// whatever a user of the database sets, and logical decoding needs its WAL level from the start.
pub(crate) const FIXED: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("wal_level", "logical"),
    ("zero_damaged_pages", "off"),
    ("ignore_checksum_failure", "off"),
    // The log goes to a file that we opened: see `postmaster`.
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
];

/// Settings that are decided elsewhere: by the address, the directory or the access rules of the project.
const RESERVED: &[&str] = &[
    "archive_mode",
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "listen_addresses",
    "port",
    "unix_socket_directories",
    "unix_socket_group",
    "unix_socket_permissions",
];

/// What a project starts with; the configuration may change each. More slots and senders than
/// Postgres's ten: each synced database holds one, and loading a late table one more meanwhile.
const DEFAULTS: &[(&str, &str)] = &[("max_replication_slots", "32"), ("max_wal_senders", "32")];

/// Room for any real value; a longer one is a mistake.
const VALUE_LIMIT: usize = 8192;

/// The contents of `tidewater.conf` for `settings`.
///
/// # Errors
/// A name is reserved or is no setting's name, or a value cannot stand in the file.
pub(crate) fn render(project: &str, settings: &BTreeMap<String, String>) -> Result<String> {
    let mut file =
        String::from("# Written by Tidewater at each start from `settings` in its configuration.\n");
    let refused = |name: &str, reason| CoreError::UnusableSetting {
        project: project.to_owned(),
        name: name.chars().take(80).collect(),
        reason,
    };
    let mut write = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(file, "{name} = '{}'", value.replace('\\', "\\\\").replace('\'', "''"));
    };
    for (name, value) in DEFAULTS {
        write(name, value);
    }
    for (name, value) in settings {
        let lowered = name.to_ascii_lowercase();
        if !is_setting_name(&lowered) {
            return Err(refused(name, "that is no name of a Postgres setting"));
        }
        if FIXED.iter().any(|(fixed, _)| *fixed == lowered) {
            return Err(refused(name, "Tidewater depends on its value and sets it itself"));
        }
        if RESERVED.contains(&lowered.as_str()) {
            return Err(refused(name, "it follows from the other keys of the configuration"));
        }
        if value.len() > VALUE_LIMIT || value.contains(['\n', '\r', '\0']) {
            return Err(refused(name, "its value has several lines or is too long"));
        }
        write(&lowered, value);
    }
    Ok(file)
}

fn is_setting_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> Result<String> {
        render("shop", &BTreeMap::from([(name.to_owned(), value.to_owned())]))
    }

    #[test]
    fn a_value_with_quotes_and_backslashes_stays_one_value() {
        let file = one("search_path", r#"it's, a\b"#).unwrap();
        assert!(file.ends_with("search_path = 'it''s, a\\\\b'\n"), "{file}");
    }

    #[test]
    fn the_projects_setting_comes_after_the_default_and_so_wins() {
        let file = one("max_wal_senders", "64").unwrap();
        assert!(file.find("'32'").unwrap() < file.find("'64'").unwrap());
    }

    #[test]
    fn what_tidewater_depends_on_cannot_be_set() {
        for name in ["fsync", "FSYNC", "wal_level", "port", "data_directory", "no name", "", "a\nb"] {
            let error = one(name, "off").unwrap_err();
            assert!(matches!(error, CoreError::UnusableSetting { .. }), "{name}");
        }
    }

    #[test]
    fn a_value_cannot_smuggle_in_a_second_line() {
        assert!(one("work_mem", "1MB'\nfsync = 'off").is_err());
    }
}
