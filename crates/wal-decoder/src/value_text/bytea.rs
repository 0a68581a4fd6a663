//! `bytea` in hex.

use crate::value_error::{ValueError, malformed};

const NO_DIGIT: u8 = 0xFF;

/// The value of each byte as a hexadecimal digit.
#[allow(clippy::indexing_slicing)] // evaluated by the compiler, which refuses an index out of bounds
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        digits[b"0123456789abcdef"[value] as usize] = value as u8;
        digits[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    digits
};

fn digit(byte: u8) -> u8 {
    DIGITS.get(usize::from(byte)).copied().unwrap_or(NO_DIGIT)
}

/// Appends the bytes that `\x…` stands for. On an error `out` may have grown; its owner cuts it back.
pub(crate) fn bytea(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    const ERROR: ValueError = malformed("a bytea in hex (\\x…)");
    let (pairs, odd) = text.strip_prefix(b"\\x").ok_or(ERROR)?.as_chunks::<2>();
    if !odd.is_empty() {
        return Err(ERROR);
    }
    // No valid digit has a high bit, so one look at the union of all of them finds any bad one.
    let mut seen = 0;
    out.extend(pairs.iter().map(|&[high, low]| {
        let (high, low) = (digit(high), digit(low));
        seen |= high | low;
        high << 4 | (low & 0x0F)
    }));
    if seen > 0x0F { Err(ERROR) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Result<Vec<u8>, ValueError> {
        let mut out = Vec::new();
        bytea(text, &mut out).map(|()| out)
    }

    #[test]
    fn hex_in_either_case_is_read() {
        assert_eq!(read(b"\\x"), Ok(vec![]));
        assert_eq!(read(b"\\x00fFAb"), Ok(vec![0, 0xFF, 0xAB]));
    }

    #[test]
    fn what_is_no_hex_is_refused() {
        for text in [&b""[..], b"x00", b"\\x0", b"\\x0g", b"\\xg0", b"\\000", b"\\x0\xff", b"\\x\xff0"] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_bytea_survives_its_text(bytes: Vec<u8>) {
            let text = format!("\\x{}", bytes.iter().map(|b| format!("{b:02x}")).collect::<String>());
            prop_assert_eq!(read(text.as_bytes()), Ok(bytes));
        }
    }
}
