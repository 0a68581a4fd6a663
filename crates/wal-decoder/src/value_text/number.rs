//! Booleans, integers and floats.

use crate::value_error::{ValueError, malformed};

pub(crate) fn bool(text: &[u8]) -> Result<bool, ValueError> {
    match text {
        b"t" => Ok(true),
        b"f" => Ok(false),
        _ => Err(malformed("a boolean (t or f)")),
    }
}

/// 18 digits fit an `i64` whatever they are; `int8` has 19 at most.
const UNCHECKED_DIGITS: usize = 18;

/// The value of a run of digits, at most [`UNCHECKED_DIGITS`] of them.
#[inline]
fn short_digits(digits: &[u8]) -> Option<i64> {
    let mut value = 0_i64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + i64::from(digit);
    }
    Some(value)
}

/// An integer: an optional minus and digits.
#[inline]
pub(crate) fn int8(text: &[u8]) -> Result<i64, ValueError> {
    const ERROR: ValueError = malformed("an integer");
    let (negative, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, text),
    };
    if digits.is_empty() {
        return Err(ERROR);
    }
    if digits.len() <= UNCHECKED_DIGITS {
        let value = short_digits(digits).ok_or(ERROR)?;
        return Ok(if negative { -value } else { value });
    }
    // Counted downwards, because -2^63 has no positive counterpart.
    let mut value = 0_i64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return Err(ERROR);
        }
        value = value.checked_mul(10).and_then(|v| v.checked_sub(i64::from(digit))).ok_or(ERROR)?;
    }
    if negative { Ok(value) } else { value.checked_neg().ok_or(ERROR) }
}

pub(crate) fn int4(text: &[u8]) -> Result<i32, ValueError> {
    i32::try_from(int8(text)?).map_err(|_| malformed("an integer of 32 bits"))
}

pub(crate) fn int2(text: &[u8]) -> Result<i16, ValueError> {
    i16::try_from(int8(text)?).map_err(|_| malformed("an integer of 16 bits"))
}

/// `oid` and `xid` have 32 bits without a sign.
pub(crate) fn oid(text: &[u8]) -> Result<i64, ValueError> {
    match u32::try_from(int8(text)?) {
        Ok(value) => Ok(i64::from(value)),
        Err(_) => Err(malformed("an unsigned integer of 32 bits")),
    }
}

/// `Infinity`, `-Infinity` and `NaN` are values of both Postgres and Delta.
pub(crate) fn float8(text: &[u8]) -> Result<f64, ValueError> {
    parse_float(text)
}

/// See [`float8`].
pub(crate) fn float4(text: &[u8]) -> Result<f32, ValueError> {
    parse_float(text)
}

fn parse_float<F: std::str::FromStr>(text: &[u8]) -> Result<F, ValueError> {
    std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or(malformed("a floating-point number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn extremes_are_read_exactly() {
        assert_eq!(int8(b"9223372036854775807"), Ok(i64::MAX));
        assert_eq!(int8(b"-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(int4(b"-2147483648"), Ok(i32::MIN));
        assert_eq!(int2(b"32767"), Ok(i16::MAX));
        assert_eq!(oid(b"4294967295"), Ok(4_294_967_295));
        assert_eq!(float8(b"5e-324"), Ok(5e-324));
        assert_eq!(float8(b"1.7976931348623157e+308"), Ok(f64::MAX));
        assert_eq!(float4(b"1e-45").map(f32::to_bits), Ok(1));
    }

    #[test]
    fn one_past_the_extremes_is_refused() {
        assert!(int8(b"9223372036854775808").is_err());
        assert!(int8(b"-9223372036854775809").is_err());
        assert!(int8(b"99999999999999999999999999").is_err());
        assert!(int4(b"2147483648").is_err());
        assert!(int2(b"-32769").is_err());
        assert!(oid(b"4294967296").is_err());
        assert!(oid(b"-1").is_err());
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [&b""[..], b"-", b"+1", b" 1", b"1 ", b"1a", b"\xff", b"--1", b"1234567890123456789x"] {
            assert!(int8(text).is_err(), "{text:?}");
            assert!(bool(text).is_err(), "{text:?}");
        }
        for text in [&b""[..], b"1,5", b"\xff", b"0x10"] {
            assert!(float8(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_special_floats_are_values() {
        assert!(float8(b"NaN").unwrap().is_nan());
        assert_eq!(float8(b"-Infinity"), Ok(f64::NEG_INFINITY));
        assert_eq!(float4(b"Infinity"), Ok(f32::INFINITY));
        assert!(float8(b"-0").unwrap().is_sign_negative());
    }

    proptest! {
        #[test]
        fn every_integer_survives_its_text(value: i64) {
            prop_assert_eq!(int8(value.to_string().as_bytes()), Ok(value));
        }

        #[test]
        fn every_float_survives_its_text(bits: u64) {
            let value = f64::from_bits(bits);
            let read = float8(format!("{value:?}").as_bytes()).unwrap();
            prop_assert!(read.to_bits() == bits || (value.is_nan() && read.is_nan()));
        }
    }
}
