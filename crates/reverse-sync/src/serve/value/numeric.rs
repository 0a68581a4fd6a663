//! `numeric_recv`: groups of four decimal digits, `int16 ndigits, int16 weight, uint16 sign, uint16 dscale, groups`.
//!
//! The first group counts 10000^weight; groups of zero at either end are left out.

use bytes::{BufMut, BytesMut};

const NEGATIVE: u16 = 0x4000;
const GROUP: u128 = 10_000;

/// Writes `unscaled` × 10^-`scale`.
pub fn write_numeric(unscaled: i128, scale: u8, out: &mut BytesMut) {
    let magnitude = unscaled.unsigned_abs();
    // A scale beyond a u128's digits leaves no whole part.
    let one = 10u128.checked_pow(u32::from(scale));
    let (mut whole, mut fraction) = match one {
        Some(one) => (magnitude / one, magnitude % one),
        None => (0, magnitude),
    };
    // Least significant first; the fraction's last group may be a part of one, filled up with zeros.
    let mut groups: Vec<u16> = Vec::with_capacity(20);
    let part = u32::from(scale % 4);
    if part > 0 {
        let size = 10u128.pow(part);
        groups.push(group(fraction % size * 10u128.pow(4 - part)));
        fraction /= size;
    }
    for _ in 0..scale / 4 {
        groups.push(group(fraction % GROUP));
        fraction /= GROUP;
    }
    let mut weight: i16 = -1;
    while whole > 0 {
        groups.push(group(whole % GROUP));
        whole /= GROUP;
        weight += 1;
    }
    while groups.last() == Some(&0) {
        groups.pop();
        weight -= 1;
    }
    let zeros = groups.iter().take_while(|group| **group == 0).count();
    let digits = groups.get(zeros..).unwrap_or_default();
    let empty = digits.is_empty();
    // At most ten groups of a fraction and ten of a whole part.
    out.put_i16(i16::try_from(digits.len()).unwrap_or_default());
    out.put_i16(if empty { 0 } else { weight });
    out.put_u16(if unscaled < 0 { NEGATIVE } else { 0 });
    out.put_u16(u16::from(scale));
    digits.iter().rev().for_each(|group| out.put_u16(*group));
}

fn group(value: u128) -> u16 {
    u16::try_from(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads the format by its definition, exactly.
    fn read(bytes: &[u8]) -> (i128, u8) {
        let short = |at: usize| i16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let (count, weight, scale) = (short(0), short(2), short(6));
        let mut digits = String::new();
        let from = weight.max(-1);
        for exponent in (-(scale + 3) / 4..=from).rev() {
            let at = weight - exponent;
            let value =
                if (0..count).contains(&at) { short(8 + 2 * usize::try_from(at).unwrap()) } else { 0 };
            digits.push_str(&format!("{value:04}"));
        }
        let extra = usize::try_from((4 - scale % 4) % 4).unwrap();
        let kept = &digits[..digits.len() - extra];
        let magnitude: i128 = if kept.is_empty() { 0 } else { kept.parse().unwrap() };
        let negative = u16::from_be_bytes([bytes[4], bytes[5]]) == NEGATIVE;
        (if negative { -magnitude } else { magnitude }, u8::try_from(scale).unwrap())
    }

    #[test]
    fn zero_has_no_groups() {
        let mut out = BytesMut::new();
        write_numeric(0, 2, &mut out);
        assert_eq!(out.as_ref(), [0, 0, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn a_small_fraction_has_a_negative_weight() {
        let mut out = BytesMut::new();
        write_numeric(-5, 6, &mut out);
        // -0.000005 = -500 × 10000^-2
        assert_eq!(out.as_ref(), [0, 1, 0xff, 0xfe, 0x40, 0, 0, 6, 0x01, 0xf4]);
    }

    proptest! {
        #[test]
        fn every_decimal_reads_back(unscaled in -(10i128.pow(38) - 1)..10i128.pow(38), shift in 0u32..38, scale in 0u8..=38) {
            let unscaled = unscaled / 10i128.pow(shift);
            let mut out = BytesMut::new();
            write_numeric(unscaled, scale, &mut out);
            prop_assert_eq!(read(&out), (unscaled, scale));
        }
    }
}
