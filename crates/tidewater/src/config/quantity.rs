//! Durations and sizes as people write them: `500ms`, `1s`, `5m`, `7d`, `64MiB`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Units from the largest down, so that a value prints in the largest one that divides it.
const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// What is asked for where a duration does not parse.
const DURATION_EXPECTED: &str = "a duration such as 500ms, 1s, 5m, 12h or 7d";

/// What is asked for where a size does not parse.
const SIZE_EXPECTED: &str = "a size such as 512KiB, 64MiB or 10GiB";

/// A length of time, whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(Duration);

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl Period {
    /// So many milliseconds.
    pub const fn from_millis(millis: u64) -> Period {
        Period(Duration::from_millis(millis))
    }

    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Period {
        Period(Duration::from_secs(seconds))
    }

    /// As the standard library counts time.
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// Whether it is no time at all.
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl ByteSize {
    /// So many bytes.
    pub const fn new(bytes: u64) -> ByteSize {
        ByteSize(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// The text is not a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{expected}")]
pub struct ParseQuantityError {
    expected: &'static str,
}

impl FromStr for Period {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "0" {
            return Ok(Period(Duration::ZERO));
        }
        parse(text, &DURATION_UNITS)
            .map(Period::from_millis)
            .ok_or(ParseQuantityError { expected: DURATION_EXPECTED })
    }
}

impl FromStr for ByteSize {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "0" {
            return Ok(ByteSize(0));
        }
        parse(text, &SIZE_UNITS).map(ByteSize).ok_or(ParseQuantityError { expected: SIZE_EXPECTED })
    }
}

/// A whole number directly followed by one of `units`.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// The largest unit without a remainder; `0` has none.
fn print(value: u64, units: &[(&str, u64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match units.iter().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor)) {
        Some((unit, factor)) => write!(f, "{}{unit}", value / factor),
        None => write!(f, "{value}"),
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), &DURATION_UNITS, f)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(self.0, &SIZE_UNITS, f)
    }
}

/// Both quantities are text in the file, so both read, print and describe themselves the same way.
macro_rules! quantity_in_yaml {
    ($quantity:ident, $name:literal, $expected:ident, $pattern:literal) => {
        impl<'de> Deserialize<'de> for $quantity {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl Visitor<'_> for Text {
                    type Value = $quantity;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$quantity, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Text)
            }
        }

        impl Serialize for $quantity {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $quantity {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": ["string", "integer"], "pattern": $pattern, "description": $expected })
            }
        }
    };
}

quantity_in_yaml!(Period, "Period", DURATION_EXPECTED, "^([0-9]+(ms|s|m|h|d)|0|.*\\$\\{.*)$");
quantity_in_yaml!(ByteSize, "ByteSize", SIZE_EXPECTED, "^([0-9]+(B|KiB|MiB|GiB|TiB)|0|.*\\$\\{.*)$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_parse_and_print_in_their_largest_whole_unit() {
        for (text, millis, printed) in [
            ("500ms", 500, "500ms"),
            ("1000ms", 1000, "1s"),
            ("90s", 90_000, "90s"),
            ("60m", 3_600_000, "1h"),
            ("7d", 604_800_000, "7d"),
            ("0", 0, "0"),
            ("0s", 0, "0"),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period, Period::from_millis(millis), "{text}");
            assert_eq!(period.to_string(), printed);
        }
    }

    #[test]
    fn sizes_parse_and_print_in_their_largest_whole_unit() {
        for (text, bytes, printed) in
            [("64MiB", 64 << 20, "64MiB"), ("1024KiB", 1 << 20, "1MiB"), ("10B", 10, "10B"), ("0", 0, "0")]
        {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.bytes(), bytes, "{text}");
            assert_eq!(size.to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "s", "5", "5 s", "-1s", "1.5s", "5M", "5 minutes", "99999999999999999d", "１s"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        for text in ["", "64", "64MB", "64mib", "-1B", "99999999999TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
