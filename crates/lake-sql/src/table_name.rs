//! Names of tables in the lake, and the folders they live in.
//!
//! A table keeps the name it had at its source; its folder carries a spelling that every store accepts.
//! The folder is found from the name by [`may_hold`], which lets more through than it should (two names
//! may share a spelling); the name kept in the table's metadata then decides.

use std::fmt;

/// A table of the lake, by its original names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The database; absent for a table that lies two levels deep.
    pub database: Option<String>,
    /// The schema.
    pub schema: String,
    /// The table.
    pub table: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(database) = &self.database {
            write!(f, "{}.", quoted(database))?;
        }
        write!(f, "{}.{}", quoted(&self.schema), quoted(&self.table))
    }
}

/// The name as a query has to write it: quoted where folding or a character would change it.
pub(crate) fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Whether a folder's name is one that Tidewater's naming rule can produce. Others are not looked into.
pub(crate) fn is_lake_folder(folder: &str) -> bool {
    !folder.is_empty() && folder.chars().all(is_folder_char)
}

/// Whether the folder may belong to the name: equal to its spelling ignoring case, or that with the
/// `_` and six hex digits which the later of two clashing names gets.
pub(crate) fn may_hold(folder: &str, name: &str) -> bool {
    let spelling = folder_spelling(name);
    match (folder.get(..spelling.len()), folder.get(spelling.len()..)) {
        (Some(head), Some(tail)) => head.eq_ignore_ascii_case(&spelling) && is_clash_suffix(tail),
        _ => false,
    }
}

/// The name with every character that folders cannot have replaced.
pub(crate) fn folder_spelling(name: &str) -> String {
    name.chars().map(|c| if is_folder_char(c) { c } else { '_' }).collect()
}

fn is_folder_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

fn is_clash_suffix(tail: &str) -> bool {
    tail.is_empty()
        || tail
            .strip_prefix('_')
            .is_some_and(|digits| digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_prints_as_a_query_would_write_it() {
        let name = |schema: &str, table: &str| TableName {
            database: Some("shop".into()),
            schema: schema.into(),
            table: table.into(),
        };
        assert_eq!(name("public", "orders").to_string(), "shop.public.orders");
        assert_eq!(name("Sales", "my \"big\" table").to_string(), r#"shop."Sales"."my ""big"" table""#);
        assert_eq!(quoted("7days"), "\"7days\"");
    }

    #[test]
    fn a_folder_is_found_by_spelling_case_and_clash_suffix() {
        assert!(may_hold("orders", "orders"));
        assert!(may_hold("Orders", "orders"));
        assert!(may_hold("orders_0a1b2c", "Orders"));
        assert!(may_hold("my_table", "my table"));
        assert!(!may_hold("orders_history", "orders"));
        assert!(!may_hold("order", "orders"));
        assert!(!may_hold("orders_0a1b2", "orders"));
    }

    #[test]
    fn a_folder_outside_the_naming_rule_is_not_looked_into() {
        assert!(is_lake_folder("shop.eu-1_x"));
        assert!(!is_lake_folder("shop@v12"));
        assert!(!is_lake_folder(""));
    }
}
