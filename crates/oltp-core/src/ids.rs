//! The names and numbers of the core, each with a type of its own.
//!
//! Names come from people and from clients' connection strings, so they are checked once, here, and are
//! safe everywhere else: as an object's name (percent-encoded), in a message, in a log line.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{CoreError, Result};

/// Postgres cuts identifiers after 63 bytes; a project's name is also its database's.
const NAME_LIMIT: usize = 63;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $role:literal, $separators:expr, $why:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks a name that came from outside.
            ///
            /// # Errors
            /// It is empty, too long, or contains what would make it ambiguous elsewhere.
            pub fn new(name: impl Into<String>) -> Result<Self> {
                let name = name.into();
                let reason = if name.is_empty() {
                    "it is empty"
                } else if name.len() > NAME_LIMIT {
                    "Postgres cuts names after 63 bytes"
                } else if name.contains(char::is_control) {
                    "it contains control characters"
                } else if name.contains($separators) {
                    $why
                } else {
                    return Ok(Self(name));
                };
                Err(CoreError::UnusableName { name: name.chars().take(80).collect(), role: $role, reason })
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = CoreError;

            fn try_from(name: String) -> Result<Self> {
                Self::new(name)
            }
        }

        impl FromStr for $name {
            type Err = CoreError;

            fn from_str(name: &str) -> Result<Self> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A project: one Postgres cluster's history.
    ProjectName,
    "name",
    ['.', '@', '/'],
    "`.`, `@` and `/` separate project, database and branch in a connection's database name"
);
impl ProjectName {
    /// Whether this is no project of anybody's but a template of the core, which has no record. No database or role may
    /// be called so, and hence no project.
    pub(crate) fn is_a_template(&self) -> bool {
        self.as_str().starts_with("pg_")
    }
}

name!(
    /// A branch as people call it; the store knows it by its [`BranchId`].
    BranchName,
    "branch",
    ['@'],
    "`@` separates database and branch in a connection's database name"
);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id that nothing else has.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = uuid::Error;

            fn try_from(text: String) -> Result<Self, uuid::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

id!(
    /// A branch for ever: its name may be given to another once it is deleted, its id never is.
    BranchId
);
id!(
    /// A project for ever: made anew under the same name, it is another one.
    ProjectUid
);
id!(
    /// A layer: with the term of its writer, its name.
    LayerId
);
id!(
    /// One attempt at a manifest: recognises it when the answer to its put was lost.
    ManifestUid
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// The number of a manifest on its branch, from 1, without gaps while nothing expires.
    ManifestNumber(u64)
);
number!(
    /// The term of a compute, promised by a majority of the keepers: of two, the higher may write.
    Term(u64)
);
number!(
    /// A Postgres timeline.
    Timeline(u32)
);
number!(
    /// A file of the data directory, by a number that is never used again in a lineage: dropped and made
    /// again under the same path, it is another file.
    FileId(u64)
);
number!(
    /// The age of a layer among those of a manifest: of two versions of a page, the one in the layer with
    /// the higher sequence counts.
    LayerSequence(u64)
);

/// One 8 KiB page of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageKey {
    /// The file.
    pub file: FileId,
    /// The page's number in the file.
    pub block: u32,
}

impl fmt::Display for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.file, self.block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_connection_string_could_not_carry_are_refused() {
        for name in ["", "a.b", "a@b", "a/b", "a\nb", &"x".repeat(64)] {
            assert!(ProjectName::new(name).is_err(), "{name:?}");
        }
        for name in ["", "a@b", "a\0b", &"ö".repeat(32)] {
            assert!(BranchName::new(name).is_err(), "{name:?}");
        }
        ProjectName::new("Größe \"7\"").unwrap();
        BranchName::new("feature/7.2").unwrap();
    }

    #[test]
    fn ids_survive_json() {
        let id = BranchId::random();
        let text = serde_json::to_string(&(id, ManifestNumber(7), BranchName::new("main").unwrap())).unwrap();
        assert_eq!(text, format!("[\"{id}\",7,\"main\"]"));
        let (back, ..): (BranchId, ManifestNumber, BranchName) = serde_json::from_str(&text).unwrap();
        assert_eq!(back, id);
        assert!(serde_json::from_str::<ProjectName>("\"a.b\"").is_err());
    }
}
