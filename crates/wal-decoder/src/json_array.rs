//! Arrays as JSON text, for tables with `arrays: json`.
//!
//! Numbers and booleans become JSON's own, everything else a JSON string of Postgres's text form; NaN
//! and infinities, which JSON has no numbers for, are strings too.

use crate::PgType;
use crate::value_error::{NOT_FINITE_DECIMAL, ValueError};
use crate::value_text::{array, decimal, number};

/// Writes the JSON of an array in Postgres's text form. On an error `json` may have grown; its owner
/// cuts it back.
pub(crate) fn write(
    text: &[u8],
    array_type: &PgType,
    scratch: &mut Vec<u8>,
    json: &mut Vec<u8>,
) -> Result<(), ValueError> {
    let (element_type, delimiter) = match array_type {
        PgType::Array(element) => (&**element, b','),
        PgType::DelimitedArray { delimiter } => (&PgType::Text, *delimiter),
        _ => return string(text, json),
    };
    json.push(b'[');
    let mut first = true;
    array::elements(text, delimiter, scratch, |element| {
        if !std::mem::take(&mut first) {
            json.push(b',');
        }
        match element {
            Some(text) => write_element(text, element_type, json),
            None => {
                json.extend_from_slice(b"null");
                Ok(())
            }
        }
    })?;
    json.push(b']');
    Ok(())
}

fn write_element(text: &[u8], element_type: &PgType, json: &mut Vec<u8>) -> Result<(), ValueError> {
    match element_type {
        PgType::Bool => json.extend_from_slice(if number::bool(text)? { b"true" } else { b"false" }),
        PgType::Int2 | PgType::Int4 | PgType::Int8 | PgType::Oid => {
            number::int8(text)?;
            json.extend_from_slice(text);
        }
        PgType::Float4 | PgType::Float8 if number::float8(text)?.is_finite() => json.extend_from_slice(text),
        &PgType::Decimal { precision, scale } => match decimal::decimal(text, precision, scale) {
            Ok(_) => json.extend_from_slice(text),
            Err(NOT_FINITE_DECIMAL) => return string(text, json),
            Err(error) => return Err(error),
        },
        // One level down needs a scratch of its own: the element may stand in the one above.
        PgType::Array(_) | PgType::DelimitedArray { .. } => {
            return write(text, element_type, &mut Vec::new(), json);
        }
        _ => return string(text, json),
    }
    Ok(())
}

fn string(text: &[u8], json: &mut Vec<u8>) -> Result<(), ValueError> {
    let text = std::str::from_utf8(text).map_err(|_| ValueError::NotUtf8)?;
    json.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => json.extend_from_slice(&[b'\\', byte]),
            b'\n' => json.extend_from_slice(b"\\n"),
            b'\r' => json.extend_from_slice(b"\\r"),
            b'\t' => json.extend_from_slice(b"\\t"),
            0..0x20 => json.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => json.push(byte),
        }
    }
    json.push(b'"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str, element: PgType) -> Result<String, ValueError> {
        let mut out = Vec::new();
        write(text.as_bytes(), &PgType::Array(Box::new(element)), &mut Vec::new(), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn elements_take_the_json_type_of_theirs() {
        assert_eq!(json("{}", PgType::Int4).unwrap(), "[]");
        assert_eq!(json("{1,NULL,-3}", PgType::Int4).unwrap(), "[1,null,-3]");
        assert_eq!(json("{t,f}", PgType::Bool).unwrap(), "[true,false]");
        assert_eq!(
            json("{1.5,NaN,-Infinity,1e+20}", PgType::Float8).unwrap(),
            r#"[1.5,"NaN","-Infinity",1e+20]"#
        );
        assert_eq!(
            json("{1.50,NaN}", PgType::Decimal { precision: 5, scale: 2 }).unwrap(),
            r#"[1.50,"NaN"]"#
        );
        assert_eq!(json(r#"{a,"b \"c\"","NULL"}"#, PgType::Text).unwrap(), r#"["a","b \"c\"","NULL"]"#);
        assert_eq!(json("{\"a\nb\u{1}\"}", PgType::Text).unwrap(), "[\"a\\nb\\u0001\"]");
        let nested = PgType::Array(Box::new(PgType::Int4));
        assert_eq!(json(r#"{"{1,2}","{3}"}"#, nested).unwrap(), "[[1,2],[3]]");
    }

    #[test]
    fn damage_is_refused() {
        assert!(json("{x}", PgType::Int4).is_err());
        assert!(json("{x}", PgType::Bool).is_err());
        assert!(json("{1", PgType::Int4).is_err());
    }
}
