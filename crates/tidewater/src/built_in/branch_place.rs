//! What a person writes for a branch and for a moment of its history.

use super::BuiltInError;
use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use oltp_core::Timestamp;
use oltp_core::branches::Point;
use oltp_core::gateway::MAIN_BRANCH;
use oltp_core::ids::{BranchName, ProjectName};

/// `DATABASE` or `DATABASE@BRANCH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchPlace {
    /// The database's project.
    pub project: ProjectName,
    /// Its branch.
    pub branch: BranchName,
}

/// Reads a database and perhaps its branch; without one it is `main`.
pub fn branch_place(text: &str) -> Result<BranchPlace, BuiltInError> {
    let (project, branch) = text.split_once('@').unwrap_or((text, MAIN_BRANCH));
    Ok(BranchPlace { project: ProjectName::new(project)?, branch: BranchName::new(branch)? })
}

/// Reads an LSN or a time. A time without an offset is UTC, as everything that Tidewater prints.
pub fn moment(text: &str) -> Result<Point, BuiltInError> {
    if let Ok(lsn) = text.parse() {
        return Ok(Point::Lsn(lsn));
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(Point::Time(Timestamp::from(time.with_timezone(&Utc))));
    }
    let plain = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"];
    let time = plain.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    let day = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
    match time.or_else(day) {
        Some(time) => Ok(Point::Time(Timestamp::from(time.and_utc()))),
        None => Err(BuiltInError::Moment { text: text.chars().take(80).collect() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_is_named_as_in_a_connection() {
        let read = branch_place("shop@dev/1").unwrap();
        assert_eq!((read.project.as_str(), read.branch.as_str()), ("shop", "dev/1"));
        assert_eq!(branch_place("shop").unwrap().branch.as_str(), "main");
        for wrong in ["", "@dev", "shop@", "shop@a@b"] {
            assert!(branch_place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_moment_is_an_lsn_or_a_time_in_utc_unless_it_has_an_offset() {
        assert_eq!(moment("0/16B3748").unwrap(), Point::Lsn(wal_decoder::Lsn(0x16B_3748)));
        let noon = Point::Time(Timestamp(1_795_262_400_000_000));
        for text in
            ["2026-11-21T12:00:00Z", "2026-11-21 12:00", "2026-11-21T13:00:00+01:00", "2026-11-21 12:00:00.0"]
        {
            assert_eq!(moment(text).unwrap(), noon, "{text}");
        }
        for wrong in ["", "yesterday", "0/XY", "2026-13-01"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }
}
