//! Where one SQL statement ends and the next begins.

/// Takes the first statement that is complete (ends with `;` outside quotes and comments) off `text`.
pub(super) fn take_statement(text: &mut String) -> Option<String> {
    let end = statement_end(text)?;
    let rest = text.split_off(end);
    let mut statement = std::mem::replace(text, rest);
    statement.pop();
    Some(statement.trim().to_owned())
}

/// The byte after the first `;` that ends a statement.
fn statement_end(text: &str) -> Option<usize> {
    let mut rest = text;
    loop {
        let at = rest.find([';', '\'', '"', '-', '/'])?;
        let here = rest.get(at..)?;
        let skip = if here.starts_with(';') {
            return Some(text.len() - here.len() + 1);
        } else if here.starts_with("--") {
            here.find('\n')? + 1
        } else if here.starts_with("/*") {
            here.get(2..)?.find("*/")? + 4
        } else if here.starts_with('\'') || here.starts_with('"') {
            // A doubled quote ends one literal and begins the next, which comes to the same.
            let quote = here.chars().next()?;
            here.get(1..)?.find(quote)? + 2
        } else {
            1
        };
        rest = here.get(skip..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_ends_at_a_semicolon_outside_quotes_and_comments() {
        let mut text =
            "select ';', \"a;b\", 'it''s;' -- no; \n /* ; */ - 1 / 2;\nselect 2; select".to_owned();
        let first = take_statement(&mut text).unwrap();
        assert!(first.starts_with("select ';'") && first.ends_with("1 / 2"), "{first}");
        assert_eq!(take_statement(&mut text), Some("select 2".into()));
        assert_eq!(take_statement(&mut text), None);
        assert_eq!(text, " select");
    }

    #[test]
    fn an_open_quote_or_comment_waits_for_more() {
        for open in ["select 'a;", "select /* ;", "select -- ;", "", "'", "/*", "-", "select 'é;"] {
            assert_eq!(take_statement(&mut open.to_owned()), None, "{open}");
        }
    }
}
