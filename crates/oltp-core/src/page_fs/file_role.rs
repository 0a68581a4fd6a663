//! What a path in a data directory is, as far as capturing it is concerned.
//!
//! The names are Postgres's: `common/relpath.c` (relation forks, temporary relations),
//! `backend/backup/basebackup.c` (what a copy of a cluster leaves out, and why) and
//! `backend/storage/file/reinit.c` (unlogged relations).

use crate::page_store::RelationFile;

/// Directories whose contents every start of Postgres makes anew.
const EPHEMERAL_DIRECTORIES: &[&str] =
    &["pg_stat_tmp/", "pg_dynshmem/", "pg_notify/", "pg_serial/", "pg_snapshots/", "pg_subtrans/"];

/// Commit status and its like: whole pages, written in place.
const PAGED_DIRECTORIES: &[&str] = &["pg_xact/", "pg_multixact/", "pg_commit_ts/"];

/// The link that stands for the write-ahead log, which never lies in the page filesystem.
pub(super) const WAL_LINK: &str = "pg_wal";
/// Sort and hash files of the default tablespace: never captured, so kept on a plain disk behind a link.
pub(super) const TEMPORARY_FILES_LINK: &str = "base/pgsql_tmp";
/// Where links to tablespaces would lie.
pub(super) const TABLESPACES: &str = "pg_tblspc";
/// The control file of the cluster.
pub(super) const PG_CONTROL: &str = "global/pg_control";

/// How the pages of a file are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileRole {
    /// A fork of a relation: its pages carry Postgres's checksum.
    pub(super) relation: Option<RelationFile>,
    /// Written in whole pages, so half a page is a write that is still under way.
    pub(super) paged: bool,
    /// Never captured: gone after the next start.
    pub(super) scratch: bool,
    /// Read at every start and by every new session: the catalogs, and what is no relation at all.
    pub(super) standing: bool,
}

/// Relations below this number came with initdb (`FirstNormalObjectId` of `access/transam.h`).
const FIRST_OF_USERS: u32 = 16_384;

impl FileRole {
    /// The role of the file at `path`, which is relative to the data directory.
    pub(super) fn of(path: &str) -> FileRole {
        let scratch = is_scratch(path);
        let relation = RelationFile::of(path);
        let paged = relation.is_some()
            || path == PG_CONTROL
            || PAGED_DIRECTORIES.iter().any(|directory| path.starts_with(directory));
        let standing = relation.is_none() || is_catalog(path);
        FileRole { relation, paged, scratch, standing }
    }
}

fn is_catalog(path: &str) -> bool {
    let number = relation(path).and_then(|(relation, _)| relation.number.parse::<u32>().ok());
    number.is_some_and(|number| number < FIRST_OF_USERS)
}

/// Which relation a file belongs to: what all its forks and segments have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Relation<'a> {
    /// `global` or `base/5`.
    pub(super) directory: &'a str,
    /// Its number.
    pub(super) number: &'a str,
}

/// Takes a path such as `base/5/16384_fsm.1` apart, into the relation and whether this is its init fork,
/// the one that an unlogged relation is reset to; nothing for what is no relation.
pub(super) fn relation(path: &str) -> Option<(Relation<'_>, bool)> {
    RelationFile::of(path)?;
    let (directory, name) = path.rsplit_once('/')?;
    let (name, _) = name.split_once('.').unwrap_or((name, ""));
    let (number, fork) = name.split_once('_').unwrap_or((name, ""));
    Some((Relation { directory, number }, fork == "init"))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_scratch(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    matches!(path, "postmaster.pid" | "postmaster.opts" | WAL_LINK | TEMPORARY_FILES_LINK)
        || name.starts_with("pgsql_tmp")
        || name.starts_with("pg_internal.init")
        || path.starts_with("base/pgsql_tmp/")
        || EPHEMERAL_DIRECTORIES.iter().any(|directory| path.starts_with(directory))
        || is_temporary_relation(path)
}

/// `base/5/t3_16384`: a temporary table of backend 3.
fn is_temporary_relation(path: &str) -> bool {
    let name = path.strip_prefix("base/").and_then(|path| path.split_once('/')).map(|(_, name)| name);
    name.and_then(|name| name.strip_prefix('t'))
        .and_then(|name| name.split_once('_'))
        .is_some_and(|(backend, rest)| is_number(backend) && rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forks_and_segments_of_a_relation_name_it() {
        let main = relation("base/5/16384").unwrap().0;
        for (path, init) in
            [("base/5/16384.12", false), ("base/5/16384_fsm.1", false), ("base/5/16384_init", true)]
        {
            assert_eq!(relation(path), Some((main, init)), "{path}");
        }
        assert_ne!(relation("base/6/16384").unwrap().0, main);
        for other in ["base/5/t3_16384", "pg_xact/0000", "global/pg_control"] {
            assert_eq!(relation(other), None, "{other}");
        }
    }

    #[test]
    fn what_every_start_makes_anew_is_scratch() {
        for scratch in [
            "postmaster.pid",
            "postmaster.opts",
            "pg_wal",
            "base/pgsql_tmp",
            "base/pgsql_tmp/pgsql_tmp17.0",
            "base/5/t3_16384",
            "base/5/t3_16384_fsm.1",
            "base/5/pg_internal.init.123",
            "global/pg_internal.init",
            "pg_subtrans/0000",
            "pg_notify/0000",
            "pg_stat_tmp/global.stat",
        ] {
            assert!(FileRole::of(scratch).scratch, "{scratch}");
        }
        for kept in [
            "pg_stat/pgstat.stat",
            "pg_replslot/orders/state",
            "pg_logical/snapshots/0-1.snap",
            "pg_logical/replorigin_checkpoint",
            "pg_twophase/0000",
            "base/5/16384",
            "base/5/16384_init",
            "postgresql.auto.conf",
            "PG_VERSION",
            "pg_subtrans",
        ] {
            assert!(!FileRole::of(kept).scratch, "{kept}");
        }
    }

    #[test]
    fn catalogs_and_small_files_are_what_every_start_reads() {
        for standing in
            ["base/5/1259", "base/5/1259_vm", "global/1262", "global/pg_control", "base/5/pg_filenode.map"]
        {
            assert!(FileRole::of(standing).standing, "{standing}");
        }
        for of_users in ["base/5/16384", "base/5/16384_fsm", "base/5/99999.3"] {
            assert!(!FileRole::of(of_users).standing, "{of_users}");
        }
    }

    #[test]
    fn half_pages_are_watched_for_where_postgres_writes_whole_ones() {
        for paged in ["base/5/1259", "global/pg_control", "pg_xact/0000", "pg_multixact/members/0000"] {
            assert!(FileRole::of(paged).paged, "{paged}");
        }
        assert!(!FileRole::of("postgresql.conf").paged);
    }
}
