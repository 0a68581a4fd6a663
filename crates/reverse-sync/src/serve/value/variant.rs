//! A variant as JSON text: the binary encoding of Parquet's "Variant Binary Encoding", version 1.
//!
//! ```text
//!   metadata:  version · flags | count | offsets | names of fields
//!   value:     type byte | primitive, or short text
//!                        | count | field ids | offsets | values        an object
//!                        | count | offsets | values                    an array
//! ```
//!
//! The bytes come from outside. Every read is checked against their end; nesting and the text's length are bounded,
//! because offsets may point at one value many times.

use super::Misfit;
use super::json::{base64, display, float, text};
use arrow::temporal_conversions::{date32_to_datetime, timestamp_ns_to_datetime, timestamp_us_to_datetime};
use uuid::Uuid;

const VERSION: u8 = 1;
/// Deeper values are not written by anyone and would exhaust the stack.
const DEEPEST: usize = 128;
/// A text in jsonb ends here: `JENTRY_OFFLENMASK`.
const LONGEST_TEXT: usize = 0x0FFF_FFFF;
/// The most digits of any Delta decimal.
const DECIMAL_DIGITS: u8 = 38;

/// Writes a value with the names that its metadata has.
pub fn write_variant(metadata: &[u8], value: &[u8], out: &mut String) -> Result<(), Misfit> {
    let names = Names::read(metadata).ok_or(Misfit::BadVariant)?;
    write_value(&names, value, DEEPEST, out)
}

/// The dictionary of field names.
struct Names<'a> {
    offsets: Words<'a>,
    bytes: &'a [u8],
}

impl<'a> Names<'a> {
    fn read(metadata: &'a [u8]) -> Option<Names<'a>> {
        let (&header, rest) = metadata.split_first()?;
        if header & 0x0f != VERSION {
            return None;
        }
        let width = usize::from(header >> 6) + 1;
        let (count, rest) = take_word(rest, width)?;
        let (offsets, bytes) = Words::take(rest, width, count.checked_add(1)?)?;
        Some(Names { offsets, bytes })
    }

    fn name(&self, id: usize) -> Option<&'a str> {
        let (from, to) = (self.offsets.at(id)?, self.offsets.at(id.checked_add(1)?)?);
        std::str::from_utf8(self.bytes.get(from..to)?).ok()
    }
}

/// Little-endian numbers of one to four bytes.
struct Words<'a> {
    bytes: &'a [u8],
    width: usize,
}

impl<'a> Words<'a> {
    fn take(bytes: &'a [u8], width: usize, count: usize) -> Option<(Words<'a>, &'a [u8])> {
        let (words, rest) = bytes.split_at_checked(width.checked_mul(count)?)?;
        Some((Words { bytes: words, width }, rest))
    }

    fn at(&self, index: usize) -> Option<usize> {
        take_word(self.bytes.get(index.checked_mul(self.width)?..)?, self.width).map(|(word, _)| word)
    }
}

fn take_word(bytes: &[u8], width: usize) -> Option<(usize, &[u8])> {
    let (word, rest) = bytes.split_at_checked(width)?;
    let word = word.iter().rev().fold(0usize, |word, byte| word << 8 | usize::from(*byte));
    Some((word, rest))
}

fn write_value(names: &Names<'_>, value: &[u8], depth: usize, out: &mut String) -> Result<(), Misfit> {
    if depth == 0 {
        return Err(Misfit::BadVariant);
    }
    if out.len() > LONGEST_TEXT {
        return Err(Misfit::TooLarge);
    }
    let (&head, rest) = value.split_first().ok_or(Misfit::BadVariant)?;
    let header = head >> 2;
    match head & 3 {
        0 => primitive(header, rest, out),
        1 => text(string(rest, usize::from(header)).ok_or(Misfit::BadVariant)?, out),
        2 => {
            let object = Members::of_object(header, rest).ok_or(Misfit::BadVariant)?;
            out.push('{');
            for at in 0..object.count {
                let id = object.ids.as_ref().and_then(|ids| ids.at(at));
                let name = id.and_then(|id| names.name(id)).ok_or(Misfit::BadVariant)?;
                out.push_str(if at > 0 { "," } else { "" });
                text(name, out)?;
                out.push(':');
                write_value(names, object.value(at).ok_or(Misfit::BadVariant)?, depth - 1, out)?;
            }
            out.push('}');
            Ok(())
        }
        _ => {
            let array = Members::of_array(header, rest).ok_or(Misfit::BadVariant)?;
            out.push('[');
            for at in 0..array.count {
                out.push_str(if at > 0 { "," } else { "" });
                write_value(names, array.value(at).ok_or(Misfit::BadVariant)?, depth - 1, out)?;
            }
            out.push(']');
            Ok(())
        }
    }
}

/// The members of an object or array.
struct Members<'a> {
    count: usize,
    ids: Option<Words<'a>>,
    offsets: Words<'a>,
    values: &'a [u8],
}

impl<'a> Members<'a> {
    fn of_object(header: u8, bytes: &'a [u8]) -> Option<Members<'a>> {
        let (offset_width, id_width) = (usize::from(header & 3) + 1, usize::from(header >> 2 & 3) + 1);
        let (count, rest) = take_word(bytes, if header >> 4 & 1 == 1 { 4 } else { 1 })?;
        let (ids, rest) = Words::take(rest, id_width, count)?;
        let (offsets, values) = Words::take(rest, offset_width, count.checked_add(1)?)?;
        Some(Members { count, ids: Some(ids), offsets, values })
    }

    fn of_array(header: u8, bytes: &'a [u8]) -> Option<Members<'a>> {
        let offset_width = usize::from(header & 3) + 1;
        let (count, rest) = take_word(bytes, if header >> 2 & 1 == 1 { 4 } else { 1 })?;
        let (offsets, values) = Words::take(rest, offset_width, count.checked_add(1)?)?;
        Some(Members { count, ids: None, offsets, values })
    }

    /// From a member's offset to the end: an object's values need not lie in the order of its fields, and a value
    /// knows its own length.
    fn value(&self, at: usize) -> Option<&'a [u8]> {
        self.values.get(self.offsets.at(at)?..)
    }
}

fn string(bytes: &[u8], length: usize) -> Option<&str> {
    std::str::from_utf8(bytes.get(..length)?).ok()
}

fn primitive(kind: u8, bytes: &[u8], out: &mut String) -> Result<(), Misfit> {
    let written = match kind {
        0 => Some("null").map(|word| out.push_str(word)),
        1 => Some("true").map(|word| out.push_str(word)),
        2 => Some("false").map(|word| out.push_str(word)),
        3 => number(bytes, i8::from_le_bytes, |n| display(&n, out)),
        4 => number(bytes, i16::from_le_bytes, |n| display(&n, out)),
        5 => number(bytes, i32::from_le_bytes, |n| display(&n, out)),
        6 => number(bytes, i64::from_le_bytes, |n| display(&n, out)),
        7 => number(bytes, f64::from_le_bytes, |n| float(n, &n.to_string(), out)),
        14 => number(bytes, f32::from_le_bytes, |n| float(f64::from(n), &n.to_string(), out)),
        8 => scaled(bytes, |bytes| number(bytes, i32::from_le_bytes, i128::from), out),
        9 => scaled(bytes, |bytes| number(bytes, i64::from_le_bytes, i128::from), out),
        10 => scaled(bytes, |bytes| number(bytes, i128::from_le_bytes, |n| n), out),
        15 => sized(bytes).map(|bytes| base64(bytes, out)),
        16 => {
            return text(
                sized(bytes).and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or(Misfit::BadVariant)?,
                out,
            );
        }
        20 => number(bytes, Uuid::from_bytes, |id| display(&format_args!("\"{id}\""), out)),
        _ => return moment(kind, bytes, out),
    };
    written.ok_or(Misfit::BadVariant)
}

/// Dates and times; those that no calendar here has do not fit.
fn moment(kind: u8, bytes: &[u8], out: &mut String) -> Result<(), Misfit> {
    let long = || number(bytes, i64::from_le_bytes, |n| n).ok_or(Misfit::BadVariant);
    let out_of_range = || Misfit::OutOfRange { what: "timestamp" };
    let zone = if matches!(kind, 12 | 18) { "+00:00" } else { "" };
    match kind {
        11 => {
            let days = number(bytes, i32::from_le_bytes, |n| n).ok_or(Misfit::BadVariant)?;
            let day = date32_to_datetime(days).ok_or(Misfit::OutOfRange { what: "date" })?;
            display(&format_args!("\"{}\"", day.date()), out);
        }
        12 | 13 | 18 | 19 => {
            let found =
                if kind < 18 { timestamp_us_to_datetime(long()?) } else { timestamp_ns_to_datetime(long()?) };
            let found = found.ok_or_else(out_of_range)?;
            display(&format_args!("\"{}{zone}\"", found.format("%Y-%m-%dT%H:%M:%S%.f")), out);
        }
        17 => {
            let time = timestamp_us_to_datetime(long()?).ok_or_else(out_of_range)?;
            display(&format_args!("\"{}\"", time.time()), out);
        }
        _ => return Err(Misfit::BadVariant),
    }
    Ok(())
}

fn number<const N: usize, T, U>(
    bytes: &[u8],
    read: impl Fn([u8; N]) -> T,
    with: impl FnOnce(T) -> U,
) -> Option<U> {
    let bytes: [u8; N] = bytes.get(..N)?.try_into().ok()?;
    Some(with(read(bytes)))
}

fn sized(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = take_word(bytes, 4)?;
    rest.get(..length)
}

/// A scale, then the unscaled number; JSON keeps its digits.
fn scaled(bytes: &[u8], unscaled: impl FnOnce(&[u8]) -> Option<i128>, out: &mut String) -> Option<()> {
    let (&scale, rest) = bytes.split_first()?;
    if scale > DECIMAL_DIGITS {
        return None;
    }
    let unscaled = unscaled(rest)?;
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = usize::from(scale) + 1);
    let (whole, fraction) = digits.split_at_checked(digits.len() - usize::from(scale))?;
    out.push_str(if unscaled < 0 { "-" } else { "" });
    out.push_str(whole);
    if scale > 0 {
        out.push('.');
        out.push_str(fraction);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NO_NAMES: &[u8] = &[1, 0, 0];

    fn json(metadata: &[u8], value: &[u8]) -> Result<String, Misfit> {
        let mut out = String::new();
        write_variant(metadata, value, &mut out).map(|()| out)
    }

    #[test]
    fn an_object_has_the_names_of_its_metadata_in_its_own_order() {
        // Names "a" and "bc"; {"a": 1, "bc": [true, "x"]} with the second value first.
        let metadata = [1, 2, 0, 1, 3, b'a', b'b', b'c'];
        let array = [3, 2, 0, 1, 3, 1 << 2, 1 << 2 | 1, b'x'];
        let mut value = vec![2, 2, 0, 1, 8, 0, 10];
        value.extend(array);
        value.extend([3 << 2, 1]);
        assert_eq!(json(&metadata, &value).unwrap(), r#"{"a":1,"bc":[true,"x"]}"#);
    }

    #[test]
    fn decimals_keep_their_digits_and_texts_are_escaped() {
        assert_eq!(json(NO_NAMES, &[8 << 2, 3, 0xfb, 0xff, 0xff, 0xff]).unwrap(), "-0.005");
        assert_eq!(json(NO_NAMES, &[16 << 2, 2, 0, 0, 0, b'"', b'\n']).unwrap(), r#""\"\n""#);
        assert_eq!(json(NO_NAMES, &[11 << 2, 0, 0, 0, 0]).unwrap(), "\"1970-01-01\"");
        assert_eq!(json(NO_NAMES, &[1 << 2 | 1, 0]), Err(Misfit::ZeroByte));
    }

    #[test]
    fn values_that_point_at_themselves_end() {
        // An array whose only element is at offset 0 of what follows, itself such an array, and so on.
        let nested: Vec<u8> = [3u8, 1, 0, 4].repeat(1000);
        assert_eq!(json(NO_NAMES, &nested), Err(Misfit::BadVariant));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(metadata in prop::collection::vec(any::<u8>(), 0..40), value in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = json(&metadata, &value);
            let _ = json(NO_NAMES, &value);
        }

        #[test]
        fn integers_read_back(n in any::<i64>()) {
            let value: Vec<u8> = std::iter::once(6 << 2).chain(n.to_le_bytes()).collect();
            prop_assert_eq!(json(NO_NAMES, &value).unwrap(), n.to_string());
        }
    }
}
