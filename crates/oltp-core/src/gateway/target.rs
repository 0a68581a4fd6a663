//! `project[.database][@branch]`: how one port serves every database of every branch.
//!
//! The whole name stands where a client names its database, because that is the one field that every driver, URL and
//! connection dialog has. Nothing is folded to lower case, as Postgres folds no database name of a connection.
//!
//! ```text
//!   shop                 project shop, branch main, database shop
//!   shop@dev             the same on the branch dev
//!   shop.reports@dev     another database inside it
//!   "my.shop"@"v@2"      quoted as in SQL ("" is one quote): dots and at-signs lose their meaning
//! ```

use std::fmt;

/// The branch every project begins with.
pub const MAIN_BRANCH: &str = "main";

/// Longer than any name that the core lets be created; what Postgres cuts database names after.
const NAME_LIMIT: usize = 63;

/// A branch of a project: what is woken.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BranchAddress {
    /// The project's name as the client wrote it.
    pub project: String,
    /// The branch's name as the client wrote it, [`MAIN_BRANCH`] when it wrote none.
    pub branch: String,
}

/// What a client wants to be connected with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The project and branch.
    pub branch: BranchAddress,
    /// The database inside that cluster.
    pub database: String,
}

/// Why a database name of a connection names no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Not even text.
    #[error("it is not valid UTF-8")]
    NotUtf8,
    /// A name between the separators is missing.
    #[error("the {0} is empty")]
    Empty(&'static str),
    /// A name that cannot have been given to anything.
    #[error("the {0} is longer than 63 bytes")]
    TooLong(&'static str),
    /// A quote that stands open, or something right after one that is closed.
    #[error("a quoted name has to be followed by `.`, `@` or nothing")]
    Quotes,
    /// Two unquoted at-signs.
    #[error("it names two branches; write a name that contains `@` in double quotes")]
    TwoBranches,
    /// Control characters would spoil logs and messages.
    #[error("it contains control characters")]
    Control,
}

impl Target {
    /// Reads the database name of a startup message.
    ///
    /// # Errors
    /// It does not have the form above.
    pub fn parse(name: &[u8]) -> Result<Target, TargetError> {
        let name = std::str::from_utf8(name).map_err(|_| TargetError::NotUtf8)?;
        if name.contains(char::is_control) {
            return Err(TargetError::Control);
        }
        let (project, rest) = take_name(name, &['.', '@'])?;
        let (database, rest) = match rest.strip_prefix('.') {
            // Behind the first dot, dots are part of the database's name.
            Some(rest) => take_name(rest, &['@'])?,
            None => (project.clone(), rest),
        };
        let (branch, rest) = match rest.strip_prefix('@') {
            Some(rest) => take_name(rest, &['@'])?,
            None => (MAIN_BRANCH.to_owned(), rest),
        };
        if !rest.is_empty() {
            return Err(TargetError::TwoBranches);
        }
        for (name, what) in [(&project, "project"), (&database, "database"), (&branch, "branch")] {
            if name.is_empty() {
                return Err(TargetError::Empty(what));
            }
            if name.len() > NAME_LIMIT {
                return Err(TargetError::TooLong(what));
            }
        }
        Ok(Target { branch: BranchAddress { project, branch }, database })
    }
}

/// The name at the front of `text`, up to one of `ends` or quoted, and what follows it.
fn take_name<'a>(text: &'a str, ends: &[char]) -> Result<(String, &'a str), TargetError> {
    let Some(mut quoted) = text.strip_prefix('"') else {
        let end = text.find(ends).unwrap_or(text.len());
        let (name, rest) = text.split_at_checked(end).unwrap_or((text, ""));
        return Ok((name.to_owned(), rest));
    };
    let mut name = String::new();
    loop {
        let (before, after) = quoted.split_once('"').ok_or(TargetError::Quotes)?;
        name.push_str(before);
        match after.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                quoted = after;
            }
            None if after.is_empty() || after.starts_with(ends) => return Ok((name, after)),
            None => return Err(TargetError::Quotes),
        }
    }
}

impl fmt::Display for BranchAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.project, self.branch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(name: &str) -> Result<(String, String, String), TargetError> {
        Target::parse(name.as_bytes())
            .map(|target| (target.branch.project, target.database, target.branch.branch))
    }

    fn of(project: &str, database: &str, branch: &str) -> Result<(String, String, String), TargetError> {
        Ok((project.to_owned(), database.to_owned(), branch.to_owned()))
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        assert_eq!(parts("shop"), of("shop", "shop", "main"));
        assert_eq!(parts("shop@dev"), of("shop", "shop", "dev"));
        assert_eq!(parts("shop.reports"), of("shop", "reports", "main"));
        assert_eq!(parts("shop.reports@dev"), of("shop", "reports", "dev"));
    }

    #[test]
    fn names_are_taken_as_they_stand() {
        assert_eq!(parts("Größe@Äste"), of("Größe", "Größe", "Äste"));
        assert_eq!(parts("50%off@a.b"), of("50%off", "50%off", "a.b"));
        assert_eq!(parts("shop.my.reports@x"), of("shop", "my.reports", "x"));
        assert_eq!(parts("my shop"), of("my shop", "my shop", "main"));
    }

    #[test]
    fn quoted_names_may_contain_the_separators() {
        assert_eq!(parts(r#""my.shop"@"v@2""#), of("my.shop", "my.shop", "v@2"));
        assert_eq!(parts(r#""a""b".c@d"#), of("a\"b", "c", "d"));
        assert_eq!(parts(r#"a."x@y""#), of("a", "x@y", "main"));
        assert_eq!(parts(r#"a"b"#), of("a\"b", "a\"b", "main"));
    }

    #[test]
    fn a_name_that_cannot_be_meant_is_refused_with_the_reason() {
        assert_eq!(parts(""), Err(TargetError::Empty("project")));
        assert_eq!(parts("@dev"), Err(TargetError::Empty("project")));
        assert_eq!(parts("shop."), Err(TargetError::Empty("database")));
        assert_eq!(parts("shop.@dev"), Err(TargetError::Empty("database")));
        assert_eq!(parts("shop@"), Err(TargetError::Empty("branch")));
        assert_eq!(parts("shop@a@b"), Err(TargetError::TwoBranches));
        assert_eq!(parts("\"shop"), Err(TargetError::Quotes));
        assert_eq!(parts("\"shop\"x"), Err(TargetError::Quotes));
        assert_eq!(parts("a\nb"), Err(TargetError::Control));
        assert_eq!(parts(&"x".repeat(64)), Err(TargetError::TooLong("project")));
        assert_eq!(Target::parse(&[0xFF, 0xFE]), Err(TargetError::NotUtf8));
    }

    proptest! {
        #[test]
        fn any_three_names_can_be_written(project in "[^\\p{C}]{1,9}", database in "[^\\p{C}]{1,9}", branch in "[^\\p{C}]{1,9}") {
            let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
            let written = format!("{}.{}@{}", quote(&project), quote(&database), quote(&branch));
            prop_assert_eq!(parts(&written), of(&project, &database, &branch));
        }

        #[test]
        fn any_bytes_give_a_target_or_an_error(name in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Target::parse(&name);
        }
    }
}
