//! `numeric` as a Delta decimal: an integer of at most 38 digits with the point at a fixed place.

use crate::value_error::{NOT_FINITE_DECIMAL, ValueError, malformed};

/// `10^exponent` for every exponent a decimal of 38 digits needs.
#[allow(clippy::indexing_slicing)] // evaluated by the compiler, which refuses an index out of bounds
pub(crate) const POWERS_OF_TEN: [i128; 39] = {
    let mut powers = [1_i128; 39];
    let mut at = 1;
    while at < powers.len() {
        powers[at] = powers[at - 1] * 10;
        at += 1;
    }
    powers
};

/// `10^exponent`, if 38 digits hold it.
pub(crate) fn power_of_ten(exponent: usize) -> Option<i128> {
    POWERS_OF_TEN.get(exponent).copied()
}

/// 18 digits fit a `u64` whatever they are, and arithmetic on that is several times faster than on `i128`.
const CHUNK: usize = 18;

/// Reads `text` as a number of at most `precision` digits, `scale` of them after the point.
///
/// Digits past the scale must be zeros: dropping others would change the value in silence.
pub(crate) fn decimal(text: &[u8], precision: u8, scale: i8) -> Result<i128, ValueError> {
    const ERROR: ValueError = malformed("a numeric of the column's precision and scale");
    let scale = usize::try_from(scale).map_err(|_| ERROR)?;
    let (negative, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, text),
    };
    let (whole, mut fraction) = match memchr::memchr(b'.', digits) {
        Some(point) => (digits.get(..point).unwrap_or_default(), digits.get(point + 1..).unwrap_or_default()),
        None => (digits, &[][..]),
    };
    if whole.is_empty() {
        return Err(ERROR);
    }
    if !whole.first().is_some_and(u8::is_ascii_digit) {
        return Err(if matches!(digits, b"NaN" | b"Infinity") { NOT_FINITE_DECIMAL } else { ERROR });
    }
    if let Some((kept, dropped)) = fraction.split_at_checked(scale) {
        if dropped.iter().any(|&byte| byte != b'0') {
            return Err(ERROR);
        }
        fraction = kept;
    }
    let value = append_digits(0, whole).and_then(|value| append_digits(value, fraction)).ok_or(ERROR)?;
    let padding = power_of_ten(scale.saturating_sub(fraction.len())).ok_or(ERROR)?;
    let value = value.checked_mul(padding).ok_or(ERROR)?;
    if value >= power_of_ten(usize::from(precision)).ok_or(ERROR)? {
        return Err(ERROR);
    }
    Ok(if negative { -value } else { value })
}

fn append_digits(mut value: i128, digits: &[u8]) -> Option<i128> {
    for chunk in digits.chunks(CHUNK) {
        let mut part = 0_u64;
        for byte in chunk {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                return None;
            }
            part = part * 10 + u64::from(digit);
        }
        value = if value == 0 {
            i128::from(part)
        } else {
            value.checked_mul(power_of_ten(chunk.len())?)?.checked_add(i128::from(part))?
        };
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LARGEST: i128 = 99_999_999_999_999_999_999_999_999_999_999_999_999;

    #[test]
    fn digits_land_at_the_scale() {
        let cases: [(&str, u8, i8, i128); 10] = [
            ("0", 1, 0, 0),
            ("0.00", 10, 2, 0),
            ("12.34", 10, 2, 1234),
            ("-12.34", 10, 2, -1234),
            ("-0.01", 10, 2, -1),
            ("12", 10, 2, 1200),
            ("12.3400", 10, 2, 1234),
            ("1200", 4, 0, 1200),
            ("0.00012", 5, 5, 12),
            (
                "123456789012345678901234567890.12345678",
                38,
                8,
                12_345_678_901_234_567_890_123_456_789_012_345_678,
            ),
        ];
        for (text, precision, scale, expected) in cases {
            assert_eq!(decimal(text.as_bytes(), precision, scale), Ok(expected), "{text}");
        }
    }

    #[test]
    fn thirty_eight_nines_fit_and_one_more_does_not() {
        let nines = "9".repeat(38);
        assert_eq!(decimal(nines.as_bytes(), 38, 0), Ok(LARGEST));
        assert_eq!(decimal(format!("-0.{nines}").as_bytes(), 38, 38), Ok(-LARGEST));
        assert!(decimal("9".repeat(39).as_bytes(), 38, 0).is_err());
        assert!(decimal("9".repeat(400).as_bytes(), 38, 0).is_err());
        assert!(decimal(nines.as_bytes(), 38, 1).is_err());
    }

    #[test]
    fn a_digit_that_would_be_lost_is_refused() {
        assert!(decimal(b"1.005", 10, 2).is_err());
        assert!(decimal(b"100.00", 4, 2).is_err());
    }

    #[test]
    fn what_delta_has_no_place_for_is_told_from_damage() {
        for text in [&b"NaN"[..], b"Infinity", b"-Infinity"] {
            assert_eq!(decimal(text, 10, 2), Err(NOT_FINITE_DECIMAL));
        }
        for text in [&b""[..], b"-", b".", b".5", b"1e5", b"1.2.3", b"x", b"1 ", b"Nan"] {
            assert!(matches!(decimal(text, 10, 2), Err(ValueError::Malformed { .. })), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_decimal_survives_its_text(value in -LARGEST..=LARGEST, scale in 0_usize..=38) {
            let sign = if value < 0 { "-" } else { "" };
            let digits = format!("{:0width$}", value.unsigned_abs(), width = scale + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            let text = if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") };
            prop_assert_eq!(decimal(text.as_bytes(), 38, scale as i8), Ok(value));
        }
    }
}
