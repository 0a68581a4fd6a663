//! Postgres's binary forms, as `COPY … (FORMAT binary)` sends them.
//!
//! Only types whose binary form carries their whole meaning are sent that way
//! ([`crate::PgType::copy_as_binary`]). Layouts follow the `…send` functions of `src/backend/utils/adt`.

use crate::pg_timestamp::EPOCH_MICROS;
use crate::value_display;
use crate::value_error::{FAR_TIMESTAMP, INFINITE_DATE, NOT_FINITE_DECIMAL, ValueError, malformed};
use crate::value_text::decimal::power_of_ten;

/// Days from 1970-01-01 to 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;

const NUMERIC: ValueError = malformed("a binary numeric of the column's precision and scale");
const VECTOR: ValueError = malformed("a binary vector");

/// A value of a fixed width.
#[inline]
pub(crate) fn fixed<const N: usize>(bytes: &[u8], expected: &'static str) -> Result<[u8; N], ValueError> {
    bytes.try_into().map_err(|_| malformed(expected))
}

pub(crate) fn bool(bytes: &[u8]) -> Result<bool, ValueError> {
    match bytes {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(malformed("a binary boolean")),
    }
}

/// Days since 1970-01-01.
pub(crate) fn date(bytes: &[u8]) -> Result<i32, ValueError> {
    match i32::from_be_bytes(fixed(bytes, "a binary date")?) {
        i32::MIN | i32::MAX => Err(INFINITE_DATE),
        days => days.checked_add(EPOCH_DAYS).ok_or(malformed("a binary date")),
    }
}

/// Microseconds since 1970-01-01.
pub(crate) fn timestamp(bytes: &[u8]) -> Result<i64, ValueError> {
    match i64::from_be_bytes(fixed(bytes, "a binary timestamp")?) {
        i64::MIN | i64::MAX => Err(INFINITE_DATE),
        micros => micros.checked_add(EPOCH_MICROS).ok_or(FAR_TIMESTAMP),
    }
}

/// The text of a date or timestamp that Delta cannot hold.
pub(crate) fn unrepresentable_date_text(bytes: &[u8], zone: &str) -> String {
    if let Ok(bytes) = <[u8; 8]>::try_from(bytes) {
        return match i64::from_be_bytes(bytes) {
            i64::MIN => "-infinity".to_owned(),
            i64::MAX => "infinity".to_owned(),
            micros => value_display::wide_timestamp(i128::from(micros) + i128::from(EPOCH_MICROS), zone),
        };
    }
    if bytes.first().is_some_and(|sign| sign & 0x80 != 0) { "-infinity" } else { "infinity" }.to_owned()
}

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const PLUS_INFINITY: u16 = 0xD000;
const MINUS_INFINITY: u16 = 0xF000;

/// Decimal digits in one digit of a binary numeric.
const GROUP: i64 = 4;

struct NumericHead {
    groups: u16,
    weight: i16,
    sign: u16,
}

fn numeric_head(bytes: &[u8]) -> Result<(NumericHead, &[[u8; 2]]), ValueError> {
    let (&[g1, g2, w1, w2, s1, s2, _, _], digits) = bytes.split_first_chunk::<8>().ok_or(NUMERIC)?;
    let (digits, []) = digits.as_chunks::<2>() else { return Err(NUMERIC) };
    let head = NumericHead {
        groups: u16::from_be_bytes([g1, g2]),
        weight: i16::from_be_bytes([w1, w2]),
        sign: u16::from_be_bytes([s1, s2]),
    };
    if digits.len() == usize::from(head.groups) { Ok((head, digits)) } else { Err(NUMERIC) }
}

/// A numeric as an integer with `scale` digits after the point. Its digits have base 10,000, and the
/// first one counts 10,000^weight.
pub(crate) fn decimal(bytes: &[u8], precision: u8, scale: i8) -> Result<i128, ValueError> {
    let (head, digits) = numeric_head(bytes)?;
    match head.sign {
        POSITIVE | NEGATIVE => {}
        NAN | PLUS_INFINITY | MINUS_INFINITY => return Err(NOT_FINITE_DECIMAL),
        _ => return Err(NUMERIC),
    }
    let mut value = 0_i128;
    // Decimal places that the group just read stands above the last kept one.
    let mut place = GROUP * (i64::from(head.weight) + 1) + i64::from(scale);
    for &digit in digits {
        let digit = u16::from_be_bytes(digit);
        if digit > 9_999 {
            return Err(NUMERIC);
        }
        place -= GROUP;
        // A group at the end of the scale reaches past it: its last digits are zeros, or would be lost.
        // `i128` only where the value is concerned: its division costs more than the rest of the group.
        let (unit, shift) = match place + GROUP {
            GROUP.. => (1_u16, 10_000_i128),
            3 => (10, 1_000),
            2 => (100, 100),
            1 => (1_000, 10),
            _ => (10_000, 1),
        };
        if digit % unit != 0 {
            return Err(NUMERIC);
        }
        value = value
            .checked_mul(shift)
            .and_then(|value| value.checked_add(i128::from(digit / unit)))
            .ok_or(NUMERIC)?;
    }
    if value != 0 && place > 0 {
        let shift = usize::try_from(place).ok().and_then(power_of_ten).ok_or(NUMERIC)?;
        value = value.checked_mul(shift).ok_or(NUMERIC)?;
    }
    if value >= power_of_ten(usize::from(precision)).ok_or(NUMERIC)? {
        return Err(NUMERIC);
    }
    Ok(if head.sign == NEGATIVE { -value } else { value })
}

/// The text of a numeric that Delta cannot hold.
pub(crate) fn not_finite_numeric_text(bytes: &[u8]) -> String {
    match numeric_head(bytes) {
        Ok((NumericHead { sign: PLUS_INFINITY, .. }, _)) => "Infinity",
        Ok((NumericHead { sign: MINUS_INFINITY, .. }, _)) => "-Infinity",
        _ => "NaN",
    }
    .to_owned()
}

/// The elements of pgvector's `vector`: their number, two unused bytes, then 32-bit floats.
pub(crate) fn vector(bytes: &[u8]) -> Result<impl Iterator<Item = f32>, ValueError> {
    let (&[d1, d2, _, _], elements) = bytes.split_first_chunk::<4>().ok_or(VECTOR)?;
    let (elements, []) = elements.as_chunks::<4>() else { return Err(VECTOR) };
    if elements.len() != usize::from(u16::from_be_bytes([d1, d2])) {
        return Err(VECTOR);
    }
    Ok(elements.iter().map(|&bytes| f32::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(weight: i16, sign: u16, digits: &[u16]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((digits.len() as u16).to_be_bytes());
        bytes.extend(weight.to_be_bytes());
        bytes.extend(sign.to_be_bytes());
        bytes.extend(0_u16.to_be_bytes());
        digits.iter().for_each(|digit| bytes.extend(digit.to_be_bytes()));
        bytes
    }

    #[test]
    fn groups_of_four_digits_land_at_the_scale() {
        let cases: [(Vec<u8>, u8, i8, i128); 9] = [
            (numeric(0, POSITIVE, &[]), 10, 2, 0),
            (numeric(0, POSITIVE, &[12, 3400]), 10, 2, 1234),
            (numeric(0, NEGATIVE, &[12, 3400]), 10, 2, -1234),
            (numeric(-1, POSITIVE, &[5]), 10, 4, 5),
            (numeric(-2, POSITIVE, &[1200]), 5, 5, 1),
            (numeric(-2, POSITIVE, &[1200]), 7, 7, 120),
            (numeric(1, POSITIVE, &[1]), 10, 2, 1_000_000),
            (numeric(3, POSITIVE, &[7, 0, 0, 1]), 20, 0, 7_000_000_000_001),
            (
                numeric(9, POSITIVE, &[9, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9000]),
                38,
                1,
                99_999_999_999_999_999_999_999_999_999_999_999_999,
            ),
        ];
        for (at, (bytes, precision, scale, expected)) in cases.into_iter().enumerate() {
            let read = decimal(&bytes, precision, scale);
            if at == 4 {
                // 0.00001200 keeps its 12 only at seven digits.
                assert_eq!(read, Err(NUMERIC));
            } else {
                assert_eq!(read, Ok(expected), "case {at}");
            }
        }
    }

    #[test]
    fn specials_are_unrepresentable_and_keep_their_name() {
        for (sign, text) in [(NAN, "NaN"), (PLUS_INFINITY, "Infinity"), (MINUS_INFINITY, "-Infinity")] {
            let bytes = numeric(0, sign, &[]);
            assert_eq!(decimal(&bytes, 10, 2), Err(NOT_FINITE_DECIMAL));
            assert_eq!(not_finite_numeric_text(&bytes), text);
        }
    }

    #[test]
    fn damaged_numerics_are_refused() {
        for bytes in [
            vec![],
            vec![0; 7],
            numeric(0, 0x1234, &[]),
            numeric(0, POSITIVE, &[10_000]),
            numeric(i16::MAX, POSITIVE, &[1]),
            numeric(i16::MIN, POSITIVE, &[1]),
            numeric(20, POSITIVE, &[9999; 21]),
            [numeric(0, POSITIVE, &[1]), vec![0]].concat(),
        ] {
            assert_eq!(decimal(&bytes, 38, 0), Err(NUMERIC), "{bytes:?}");
        }
    }

    #[test]
    fn both_epochs_meet() {
        assert_eq!(date(&0_i32.to_be_bytes()), Ok(EPOCH_DAYS));
        assert_eq!(date(&i32::MAX.to_be_bytes()), Err(INFINITE_DATE));
        assert_eq!(timestamp(&0_i64.to_be_bytes()), Ok(EPOCH_MICROS));
        assert_eq!(timestamp(&(i64::MAX - EPOCH_MICROS).to_be_bytes()), Ok(i64::MAX));
        assert_eq!(timestamp(&(i64::MAX - EPOCH_MICROS + 1).to_be_bytes()), Err(FAR_TIMESTAMP));
        assert_eq!(unrepresentable_date_text(&i64::MIN.to_be_bytes(), "+00"), "-infinity");
        assert_eq!(unrepresentable_date_text(&i32::MIN.to_be_bytes(), ""), "-infinity");
        assert_eq!(unrepresentable_date_text(&i32::MAX.to_be_bytes(), ""), "infinity");
        assert_eq!(
            unrepresentable_date_text(&(i64::MAX - EPOCH_MICROS + 1).to_be_bytes(), "+00"),
            "294247-01-10 04:00:54.775808+00"
        );
    }

    #[test]
    fn a_vector_has_as_many_elements_as_it_says() {
        let bytes = [&[0, 2, 0, 0][..], &1.5_f32.to_be_bytes(), &(-2_f32).to_be_bytes()].concat();
        assert_eq!(vector(&bytes).unwrap().collect::<Vec<_>>(), [1.5, -2.0]);
        assert!(vector(&bytes[..8]).is_err());
        assert!(vector(&[0, 0]).is_err());
    }
}
