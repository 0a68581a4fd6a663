//! Values back in Postgres's text form, for keys and dead letters that people read.

use crate::value_text::date_time::{CivilDate, MICROS_PER_DAY};
use std::fmt::Write;

/// A date that many days after 1970-01-01, as DateStyle ISO writes it.
pub(crate) fn date(days: i64) -> String {
    let (text, bc) = year_month_day(days);
    text + bc
}

/// A timestamp that many microseconds after 1970-01-01, as DateStyle ISO writes it.
pub(crate) fn timestamp(micros: i64) -> String {
    wide_timestamp(i128::from(micros), "")
}

/// The same with the zone that a session in UTC writes.
pub(crate) fn timestamptz(micros: i64) -> String {
    wide_timestamp(i128::from(micros), "+00")
}

/// Wider than an `i64`, because the values that do not fit one are those a dead letter shows.
pub(crate) fn wide_timestamp(micros: i128, zone: &str) -> String {
    let day = i128::from(MICROS_PER_DAY);
    let days = i64::try_from(micros.div_euclid(day)).unwrap_or(i64::MAX);
    let (mut text, bc) = year_month_day(days);
    let micros = micros.rem_euclid(day);
    let seconds = micros / 1_000_000;
    // Writing into a String cannot fail.
    let _ = write!(text, " {:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = micros % 1_000_000;
    if fraction != 0 {
        let digits = format!(".{fraction:06}");
        text.push_str(digits.trim_end_matches('0'));
    }
    text + zone + bc
}

fn year_month_day(days: i64) -> (String, &'static str) {
    let CivilDate { year, month, day } = CivilDate::from_days(days);
    let (year, bc) = if year <= 0 { (1 - year, " BC") } else { (year, "") };
    (format!("{year:04}-{month:02}-{day:02}"), bc)
}

/// A decimal with `scale` digits after the point.
pub(crate) fn decimal(value: i128, scale: i8) -> String {
    let scale = usize::try_from(scale).unwrap_or_default();
    let sign = if value < 0 { "-" } else { "" };
    let digits = format!("{:0width$}", value.unsigned_abs(), width = scale + 1);
    match digits.split_at_checked(digits.len() - scale) {
        Some((whole, fraction)) if scale > 0 => format!("{sign}{whole}.{fraction}"),
        _ => format!("{sign}{digits}"),
    }
}

/// Bytes as `bytea_output hex` writes them.
pub(crate) fn bytea(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What a message or dead letter shows of a long text at most, in bytes.
pub const LONGEST_EXCERPT: usize = 256;

/// The beginning of `text`, cut between characters, with `…` where something is missing.
pub(crate) fn excerpt(text: &[u8]) -> String {
    // One byte more than is shown, so that a cut is noticed; lossy, because the bytes may be damaged.
    let head = text.get(..LONGEST_EXCERPT).unwrap_or(text);
    if head.len() == text.len() {
        return String::from_utf8_lossy(text).into_owned();
    }
    let end = match std::str::from_utf8(head) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => head.len(),
    };
    String::from_utf8_lossy(head.get(..end).unwrap_or(head)).into_owned() + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_read_as_postgres_writes_them() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(-719_163), "0001-12-31 BC");
        assert_eq!(timestamp(-1), "1969-12-31 23:59:59.999999");
        assert_eq!(timestamptz(500_000), "1970-01-01 00:00:00.5+00");
        assert_eq!(wide_timestamp(i128::from(i64::MAX) + 1, ""), "294247-01-10 04:00:54.775808");
    }

    #[test]
    fn decimals_keep_their_scale() {
        assert_eq!(decimal(-1, 2), "-0.01");
        assert_eq!(decimal(1200, 0), "1200");
        assert_eq!(decimal(12, 5), "0.00012");
    }

    #[test]
    fn an_excerpt_never_cuts_a_character() {
        let long = "\u{e9}".repeat(LONGEST_EXCERPT);
        assert_eq!(excerpt(long.as_bytes()), "\u{e9}".repeat(LONGEST_EXCERPT / 2) + "…");
        let shifted = format!("a{long}");
        assert_eq!(excerpt(shifted.as_bytes()), format!("a{}…", "\u{e9}".repeat(LONGEST_EXCERPT / 2 - 1)));
        assert_eq!(excerpt(b"short"), "short");
    }
}
