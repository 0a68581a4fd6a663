//! Arrays as `array_out` writes them.
//!
//! ```text
//!   {1,2,NULL}     {}     {"a,b","say \"hi\"","NULL"}     {(1,1),(0,0);(2,2),(1,1)}     [2:3]={1,2}     {{1},{2}}
//! ```
//!
//! The last two have no counterpart in Delta. Elements come out as their own text forms, quotes and
//! escapes removed; an element that is itself an array (an array of a domain over an array) arrives
//! quoted and is read by the same function one level down.

use crate::value_error::{MULTI_DIMENSIONAL, OTHER_LOWER_BOUND, ValueError, malformed};

const ERROR: ValueError = malformed("an array ({…})");

/// Calls `each` with every element in turn (`None` is null) and stops at its first error.
///
/// `scratch` is where an element with escapes is put together; its content does not matter.
pub(crate) fn elements(
    text: &[u8],
    delimiter: u8,
    scratch: &mut Vec<u8>,
    mut each: impl FnMut(Option<&[u8]>) -> Result<(), ValueError>,
) -> Result<(), ValueError> {
    let mut rest = match text.split_first() {
        Some((b'{', rest)) => rest,
        Some((b'[', _)) => return Err(OTHER_LOWER_BOUND),
        _ => return Err(ERROR),
    };
    if rest == b"}" {
        return Ok(());
    }
    loop {
        rest = match rest.split_first() {
            Some((b'"', quoted)) => {
                let (element, rest) = quoted_element(quoted, scratch)?;
                each(Some(element))?;
                rest
            }
            Some((b'{', _)) => return Err(MULTI_DIMENSIONAL),
            _ => {
                let (element, rest) = plain_element(rest, delimiter)?;
                each((!element.eq_ignore_ascii_case(b"NULL")).then_some(element))?;
                rest
            }
        };
        match rest.split_first() {
            Some((b'}', [])) => return Ok(()),
            Some((&byte, after)) if byte == delimiter => rest = after,
            _ => return Err(ERROR),
        }
    }
}

/// An element without quotes ends before the delimiter or the closing brace, and is never empty.
fn plain_element(text: &[u8], delimiter: u8) -> Result<(&[u8], &[u8]), ValueError> {
    let end = memchr::memchr2(delimiter, b'}', text).ok_or(ERROR)?;
    let (element, rest) = text.split_at_checked(end).ok_or(ERROR)?;
    if element.is_empty() || memchr::memchr3(b'"', b'\\', b'{', element).is_some() {
        return Err(ERROR);
    }
    Ok((element, rest))
}

/// Reads up to the closing quote. Without an escape the element is a part of `text`.
fn quoted_element<'t: 'e, 's: 'e, 'e>(
    text: &'t [u8],
    scratch: &'s mut Vec<u8>,
) -> Result<(&'e [u8], &'t [u8]), ValueError> {
    let end = memchr::memchr2(b'"', b'\\', text).ok_or(ERROR)?;
    let (head, mut rest) = text.split_at_checked(end).ok_or(ERROR)?;
    if let Some((b'"', rest)) = rest.split_first() {
        return Ok((head, rest));
    }
    scratch.clear();
    scratch.extend_from_slice(head);
    loop {
        match rest.split_first() {
            Some((b'"', rest)) => return Ok((scratch, rest)),
            Some((b'\\', escaped)) => {
                let (&byte, after) = escaped.split_first().ok_or(ERROR)?;
                scratch.push(byte);
                let end = memchr::memchr2(b'"', b'\\', after).ok_or(ERROR)?;
                let (head, after) = after.split_at_checked(end).ok_or(ERROR)?;
                scratch.extend_from_slice(head);
                rest = after;
            }
            _ => return Err(ERROR),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8], delimiter: u8) -> Result<Vec<Option<Vec<u8>>>, ValueError> {
        let mut found = Vec::new();
        elements(text, delimiter, &mut Vec::new(), |element| {
            found.push(element.map(<[u8]>::to_vec));
            Ok(())
        })?;
        Ok(found)
    }

    fn some(text: &str) -> Option<Vec<u8>> {
        Some(text.as_bytes().to_vec())
    }

    #[test]
    fn quotes_escapes_and_nulls_are_told_apart() {
        assert_eq!(read(b"{}", b','), Ok(vec![]));
        assert_eq!(read(b"{1,2}", b','), Ok(vec![some("1"), some("2")]));
        assert_eq!(read(b"{NULL,null,\"NULL\"}", b','), Ok(vec![None, None, some("NULL")]));
        assert_eq!(
            read(br#"{"","a,b","{}","say \"hi\"","\\"}"#, b','),
            Ok(vec![some(""), some("a,b"), some("{}"), some("say \"hi\""), some("\\")])
        );
        assert_eq!(
            read("{\u{e9},\"\u{1f600} x\"}".as_bytes(), b','),
            Ok(vec![some("\u{e9}"), some("\u{1f600} x")])
        );
    }

    #[test]
    fn another_delimiter_leaves_commas_alone() {
        assert_eq!(
            read(b"{(1,1),(0,0);(2,2),(1,1)}", b';'),
            Ok(vec![some("(1,1),(0,0)"), some("(2,2),(1,1)")])
        );
    }

    #[test]
    fn shapes_without_a_counterpart_are_named() {
        assert_eq!(read(b"[2:3]={1,2}", b','), Err(OTHER_LOWER_BOUND));
        assert_eq!(read(b"{{1,2},{3,4}}", b','), Err(MULTI_DIMENSIONAL));
    }

    #[test]
    fn damage_is_refused() {
        for text in [
            "", "{", "}", "{1", "{1,", "{1,}", "{,1}", "{1}}", "{1} ", "{\"a}", "{\"a\\", "{\"a\\\"",
            "{\"a\"b}", "{a\"b}", "{a\\b}", "1,2", "{1;2", "{1{}",
        ] {
            assert_eq!(read(text.as_bytes(), b','), Err(ERROR), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_text_array_survives_its_text(
            values in prop::collection::vec(prop::option::of("[a-zA-Z0-9 ,;{}\"\\\\\u{e9}\u{1f600}]{0,12}"), 0..8),
            quote_all: bool,
        ) {
            let items: Vec<String> = values.iter().map(|value| match value {
                None => "NULL".to_owned(),
                Some(text) => {
                    let plain = !text.is_empty() && !text.eq_ignore_ascii_case("null")
                        && !text.contains([' ', ',', ';', '{', '}', '"', '\\']);
                    if plain && !quote_all { text.clone() }
                    else { format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")) }
                }
            }).collect();
            let expected: Vec<_> = values.iter().map(|v| v.as_ref().map(|t| t.as_bytes().to_vec())).collect();
            prop_assert_eq!(read(format!("{{{}}}", items.join(",")).as_bytes(), b','), Ok(expected));
        }

        #[test]
        fn no_bytes_make_it_panic(text: Vec<u8>, delimiter: u8) {
            let _ = read(&text, delimiter);
        }
    }
}
