//! Dates and timestamps in DateStyle ISO.
//!
//! ```text
//!   2026-11-20      12026-01-01      0044-03-15 BC      infinity
//!   2026-11-20 10:00:00.123456       2026-11-20 10:00:00+00       0044-03-15 10:00:00+00 BC
//! ```
//!
//! Postgres counts in the proleptic Gregorian calendar, as Parquet, Delta and Spark do, so every finite
//! date is representable: 4714 BC to 5874897 AD in days since 1970 fills a 32-bit integer almost exactly.
//! Timestamps end 29 years before Postgres's own last one, where 64-bit microseconds since 1970 end.

use crate::value_error::{FAR_TIMESTAMP, INFINITE_DATE, ValueError, malformed};

const MICROS_PER_SECOND: i64 = 1_000_000;
pub(crate) const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// Postgres's last year has seven digits. More would be damage, and seven keep all arithmetic below in range.
const MOST_YEAR_DIGITS: usize = 7;

/// A day of the proleptic Gregorian calendar; year 0 is 1 BC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CivilDate {
    pub(crate) year: i64,
    pub(crate) month: i64,
    pub(crate) day: i64,
}

/// Days in the 400 years after which the calendar repeats.
const DAYS_PER_ERA: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_FROM_MARCH: i64 = 719_468;

impl CivilDate {
    /// Days since 1970-01-01. Years are counted from March, so that the leap day ends them.
    pub(crate) fn days(self) -> i64 {
        let year = if self.month <= 2 { self.year - 1 } else { self.year };
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * ((self.month + 9) % 12) + 2) / 5 + self.day - 1;
        era * DAYS_PER_ERA + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year
            - EPOCH_FROM_MARCH
    }

    /// The day that many days after 1970-01-01.
    pub(crate) fn from_days(days: i64) -> Self {
        let days = days.saturating_add(EPOCH_FROM_MARCH);
        let (era, day_of_era) = (days.div_euclid(DAYS_PER_ERA), days.rem_euclid(DAYS_PER_ERA));
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = (march_month + 2) % 12 + 1;
        CivilDate {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * march_month + 2) / 5 + 1,
        }
    }

    fn is_real(self) -> bool {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        let last = match self.month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return false,
        };
        (1..=last).contains(&self.day)
    }
}

/// A `date` in days since 1970-01-01.
pub(crate) fn date(text: &[u8]) -> Result<i32, ValueError> {
    const ERROR: ValueError = malformed("a date (YYYY-MM-DD)");
    let (day, bc) = strip_era(text);
    let Some((date, [])) = year_month_day(day, bc) else {
        return Err(if is_infinite(text) { INFINITE_DATE } else { ERROR });
    };
    i32::try_from(date.days()).map_err(|_| ERROR)
}

/// A `timestamp` in microseconds since 1970-01-01 00:00.
pub(crate) fn timestamp(text: &[u8]) -> Result<i64, ValueError> {
    const ERROR: ValueError = malformed("a timestamp (YYYY-MM-DD HH:MM:SS.ssssss)");
    match date_and_time(text) {
        Some((days, micros, [])) => since_epoch(days, micros),
        _ => Err(if is_infinite(text) { INFINITE_DATE } else { ERROR }),
    }
}

/// A `timestamptz` in microseconds since 1970-01-01 00:00 UTC.
pub(crate) fn timestamptz(text: &[u8]) -> Result<i64, ValueError> {
    const ERROR: ValueError = malformed("a timestamp with its zone (YYYY-MM-DD HH:MM:SS.ssssss+00)");
    match date_and_time(text) {
        Some((days, micros, b"+00")) => since_epoch(days, micros),
        Some((days, micros, zone)) => since_epoch(days, micros - offset_micros(zone).ok_or(ERROR)?),
        None => Err(if is_infinite(text) { INFINITE_DATE } else { ERROR }),
    }
}

fn is_infinite(text: &[u8]) -> bool {
    matches!(text, b"infinity" | b"-infinity")
}

fn since_epoch(days: i64, micros: i64) -> Result<i64, ValueError> {
    days.checked_mul(MICROS_PER_DAY).and_then(|start| start.checked_add(micros)).ok_or(FAR_TIMESTAMP)
}

fn strip_era(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(rest) => (rest, true),
        None => (text, false),
    }
}

/// Days, microseconds of the day, and what follows (the zone).
#[inline]
fn date_and_time(text: &[u8]) -> Option<(i64, i64, &[u8])> {
    let (text, bc) = strip_era(text);
    let (date, rest) = year_month_day(text, bc)?;
    let (&[b' ', h1, h2, b':', m1, m2, b':', s1, s2], rest) = rest.split_first_chunk::<9>()? else {
        return None;
    };
    let (hour, minute, second) = (two_digits(h1, h2)?, two_digits(m1, m2)?, two_digits(s1, s2)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (fraction, zone) = match rest.split_first() {
        Some((b'.', rest)) => fraction_micros(rest)?,
        _ => (0, rest),
    };
    Some((date.days(), ((hour * 60 + minute) * 60 + second) * MICROS_PER_SECOND + fraction, zone))
}

#[inline]
fn year_month_day(text: &[u8], bc: bool) -> Option<(CivilDate, &[u8])> {
    let digits = text.iter().take(MOST_YEAR_DIGITS + 1).take_while(|b| b.is_ascii_digit()).count();
    if !(4..=MOST_YEAR_DIGITS).contains(&digits) {
        return None;
    }
    let (year, rest) = text.split_at_checked(digits)?;
    let year = year.iter().fold(0, |year, digit| year * 10 + i64::from(digit - b'0'));
    let (&[b'-', m1, m2, b'-', d1, d2], rest) = rest.split_first_chunk::<6>()? else { return None };
    let year = match (bc, year) {
        (_, 0) => return None,
        (true, year) => 1 - year,
        (false, year) => year,
    };
    let date = CivilDate { year, month: two_digits(m1, m2)?, day: two_digits(d1, d2)? };
    date.is_real().then_some((date, rest))
}

#[inline]
fn two_digits(tens: u8, ones: u8) -> Option<i64> {
    let (tens, ones) = (tens.wrapping_sub(b'0'), ones.wrapping_sub(b'0'));
    (tens <= 9 && ones <= 9).then_some(i64::from(tens * 10 + ones))
}

/// One to six digits after the point.
fn fraction_micros(text: &[u8]) -> Option<(i64, &[u8])> {
    let digits = text.iter().take(7).take_while(|b| b.is_ascii_digit()).count();
    if !(1..=6).contains(&digits) {
        return None;
    }
    let (fraction, rest) = text.split_at_checked(digits)?;
    let mut micros = fraction.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
    for _ in digits..6 {
        micros *= 10;
    }
    Some((micros, rest))
}

/// `+HH`, `+HH:MM` or `+HH:MM:SS` east of UTC. Our sessions run in UTC, where it is always `+00`.
fn offset_micros(zone: &[u8]) -> Option<i64> {
    let (sign, zone) = match zone.split_first()? {
        (b'+', zone) => (1, zone),
        (b'-', zone) => (-1, zone),
        _ => return None,
    };
    let (hours, minutes, seconds) = match *zone {
        [h1, h2] => (two_digits(h1, h2)?, 0, 0),
        [h1, h2, b':', m1, m2] => (two_digits(h1, h2)?, two_digits(m1, m2)?, 0),
        [h1, h2, b':', m1, m2, b':', s1, s2] => {
            (two_digits(h1, h2)?, two_digits(m1, m2)?, two_digits(s1, s2)?)
        }
        _ => return None,
    };
    Some(sign * ((hours * 60 + minutes) * 60 + seconds) * MICROS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dates_count_from_1970_in_the_proleptic_calendar() {
        let cases = [
            ("1970-01-01", 0),
            ("1969-12-31", -1),
            ("2000-02-29", 11_016),
            ("1582-10-14", -141_428),
            ("0001-01-01", -719_162),
            ("0001-12-31 BC", -719_163),
            ("4714-11-24 BC", -2_440_588),
            ("9999-12-31", 2_932_896),
            ("10000-01-01", 2_932_897),
            ("5874897-12-31", 2_145_042_905),
        ];
        for (text, days) in cases {
            assert_eq!(date(text.as_bytes()), Ok(days), "{text}");
        }
    }

    #[test]
    fn timestamps_are_read_to_the_microsecond() {
        let cases = [
            ("1970-01-01 00:00:00", 0),
            ("1970-01-01 00:00:00.000001", 1),
            ("1970-01-01 00:00:00.5", 500_000),
            ("1969-12-31 23:59:59.999999", -1),
            ("2026-11-20 10:00:00.12", 1_795_168_800_120_000),
            ("294247-01-10 04:00:54.775807", i64::MAX),
        ];
        for (text, micros) in cases {
            assert_eq!(timestamp(text.as_bytes()), Ok(micros), "{text}");
            assert_eq!(timestamptz(format!("{text}+00").as_bytes()), Ok(micros), "{text}");
        }
        assert_eq!(timestamptz(b"0044-03-15 10:00:00+00 BC"), timestamp(b"0044-03-15 10:00:00 BC"));
        assert_eq!(timestamptz(b"1970-01-01 05:53:28+05:53:28"), Ok(0));
        assert_eq!(timestamptz(b"1969-12-31 20:30:00-03:30"), Ok(0));
    }

    #[test]
    fn infinity_and_the_last_years_have_no_place() {
        for text in [&b"infinity"[..], b"-infinity"] {
            assert_eq!(date(text), Err(INFINITE_DATE));
            assert_eq!(timestamp(text), Err(INFINITE_DATE));
            assert_eq!(timestamptz(text), Err(INFINITE_DATE));
        }
        assert_eq!(timestamp(b"294247-01-10 04:00:54.775808"), Err(FAR_TIMESTAMP));
        assert_eq!(timestamptz(b"294276-12-31 23:59:59.999999+00"), Err(FAR_TIMESTAMP));
    }

    #[test]
    fn what_is_no_day_is_refused() {
        for text in [
            "",
            "2026-02-29",
            "1900-02-29",
            "2026-13-01",
            "2026-00-01",
            "2026-01-00",
            "2026-04-31",
            "0000-01-01",
            "26-01-01",
            "2026-1-1",
            "2026-01-01x",
            "12345678-01-01",
            "01/02/2026",
            "2026-01-01 AD",
            "infinity BC",
        ] {
            assert!(matches!(date(text.as_bytes()), Err(ValueError::Malformed { .. })), "{text}");
        }
        for text in [
            "2026-01-01",
            "2026-01-01 24:00:00",
            "2026-01-01 00:60:00",
            "2026-01-01 00:00:60",
            "2026-01-01 00:00:00.",
            "2026-01-01 00:00:00.1234567",
            "2026-01-01T00:00:00",
            "2026-01-01 00:00:00+00",
        ] {
            assert!(matches!(timestamp(text.as_bytes()), Err(ValueError::Malformed { .. })), "{text}");
        }
        for zone in ["", "Z", "+0", "+00:0", "+00:00:00:00", " UTC"] {
            assert!(timestamptz(format!("2026-01-01 00:00:00{zone}").as_bytes()).is_err(), "{zone}");
        }
    }

    proptest! {
        #[test]
        fn every_day_of_postgres_survives_its_text(days in -2_440_588_i64..=2_145_042_905) {
            let civil = CivilDate::from_days(days);
            prop_assert!(civil.is_real());
            prop_assert_eq!(civil.days(), days);
            let text = crate::value_display::date(days);
            prop_assert_eq!(date(text.as_bytes()).map(i64::from), Ok(days));
        }

        #[test]
        fn every_timestamp_survives_its_text(micros in -210_866_803_200_000_000_i64..) {
            let text = crate::value_display::timestamp(micros);
            prop_assert_eq!(timestamp(text.as_bytes()), Ok(micros));
        }
    }
}
