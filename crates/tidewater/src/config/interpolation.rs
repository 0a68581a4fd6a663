//! `${VAR}`, `${VAR:-default}` and `${VAR:?message}` inside one scalar.
//!
//! It runs on the scalar's text after the file has been parsed, and its result is never parsed again:
//! whatever a variable holds, it cannot add keys, end a string or change the file's structure.
//! As in a shell, `:-` and `:?` treat an empty variable like a missing one. Any other `$` is itself.

/// Why a scalar could not be filled in. None of the texts contains a variable's value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InterpolationError {
    #[error("the environment variable `{name}` is not set")]
    Unset { name: String },
    #[error("the environment variable `{name}` is not set: {message}")]
    Required { name: String, message: String },
    #[error("`${{` is not closed by `}}`")]
    Unclosed,
    #[error("`{expression}` is not an expression to fill in")]
    Malformed { expression: String },
}

/// Fills in `text`; `None` when there is nothing to fill in.
pub(super) fn interpolate(
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<String>, InterpolationError> {
    let mut rest = text;
    let mut filled = String::new();
    let mut any = false;
    while let Some((before, after)) = rest.split_once("${") {
        let (expression, tail) = after.split_once('}').ok_or(InterpolationError::Unclosed)?;
        filled.push_str(before);
        filled.push_str(&evaluate(expression, variable)?);
        any = true;
        rest = tail;
    }
    filled.push_str(rest);
    Ok(any.then_some(filled))
}

fn evaluate(
    expression: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<String, InterpolationError> {
    let (name, operation) = match expression.split_once(':') {
        Some((name, operation)) => (name, Some(operation)),
        None => (expression, None),
    };
    let malformed = || InterpolationError::Malformed { expression: format!("${{{expression}}}") };
    if !is_variable_name(name) {
        return Err(malformed());
    }
    let value = variable(name);
    match operation.map(|operation| operation.split_at_checked(1)) {
        None => value.ok_or_else(|| InterpolationError::Unset { name: name.to_owned() }),
        Some(Some(("-", default))) => {
            Ok(value.filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_owned()))
        }
        Some(Some(("?", message))) => value.filter(|v| !v.is_empty()).ok_or_else(|| {
            InterpolationError::Required { name: name.to_owned(), message: message.to_owned() }
        }),
        Some(_) => Err(malformed()),
    }
}

fn is_variable_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill(text: &str) -> Result<Option<String>, InterpolationError> {
        interpolate(text, &|name| match name {
            "SET" => Some("value".into()),
            "EMPTY" => Some(String::new()),
            "YAML" => Some("a: [1]\nb: ${SET}".into()),
            _ => None,
        })
    }

    fn filled(text: &str) -> String {
        fill(text).unwrap().unwrap()
    }

    #[test]
    fn a_set_variable_is_filled_in_wherever_it_stands() {
        assert_eq!(filled("${SET}"), "value");
        assert_eq!(filled("a-${SET}-${SET}-b"), "a-value-value-b");
        assert_eq!(filled("${EMPTY}"), "");
    }

    #[test]
    fn a_default_stands_in_for_a_missing_or_empty_variable() {
        assert_eq!(filled("${NONE:-http://x:9000}"), "http://x:9000");
        assert_eq!(filled("${EMPTY:-d}"), "d");
        assert_eq!(filled("${SET:-d}"), "value");
        assert_eq!(filled("${NONE:-}"), "");
    }

    #[test]
    fn a_missing_variable_is_an_error_that_carries_the_message() {
        assert_eq!(fill("${NONE}"), Err(InterpolationError::Unset { name: "NONE".into() }));
        assert_eq!(
            fill("${EMPTY:?set it}"),
            Err(InterpolationError::Required { name: "EMPTY".into(), message: "set it".into() })
        );
        assert_eq!(filled("${SET:?set it}"), "value");
    }

    #[test]
    fn what_a_variable_holds_is_not_filled_in_again() {
        assert_eq!(filled("${YAML}"), "a: [1]\nb: ${SET}");
    }

    #[test]
    fn dollars_that_begin_no_expression_are_themselves() {
        assert_eq!(fill("pa$$word $SET $"), Ok(None));
    }

    #[test]
    fn malformed_expressions_are_errors() {
        assert_eq!(fill("x ${SET"), Err(InterpolationError::Unclosed));
        for text in ["${}", "${1A}", "${A B}", "${SET:}", "${SET:+x}", "${SET-x}", "${:-x}", "${SET:é}"] {
            assert!(matches!(fill(text), Err(InterpolationError::Malformed { .. })), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_filled_in_or_refused_without_a_panic(text in "[${}:?A-Z é-]{0,30}") {
            let _ = fill(&text);
        }
    }
}
