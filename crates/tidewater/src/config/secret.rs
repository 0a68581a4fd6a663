//! Values that are never shown.
//!
//! A [`Secret`] comes from a scalar or from a file (`{file: path}`); the reader of the configuration
//! fetches the file's text, so that whoever holds a `Secret` holds its value. It prints as `(hidden)` wherever it goes.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use secrecy::{ExposeSecret, SecretString};
use serde::de::{Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use url::Url;

/// What stands in place of a secret.
const HIDDEN: &str = "(hidden)";

/// Under this newtype name the reader gives a scalar's text or the contents of the file that `{file: …}` names.
pub(super) const SECRET_NEWTYPE: &str = "tidewater::Secret";

/// A password, token or key.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// For handing it to what needs it.
    pub fn secret_string(&self) -> &SecretString {
        &self.0
    }

    /// The text itself: never to be printed, logged or put into an error.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or `{file: path}`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret, E> {
                if text.is_empty() {
                    return Err(E::custom("a text that is not empty"));
                }
                Ok(Secret(text.into()))
            }
        }

        deserializer.deserialize_newtype_struct(SECRET_NEWTYPE, Text)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The text itself, `${VARIABLE}`, or `{file: path}`. Never shown.",
            "anyOf": [
                { "type": "string", "minLength": 1 },
                {
                    "type": "object",
                    "properties": { "file": { "type": "string", "description": "A file with the secret; a line end at its end does not count." } },
                    "required": ["file"],
                    "additionalProperties": false
                }
            ]
        })
    }
}

/// A `postgres://` address. A password in it is kept and never shown.
#[derive(Clone)]
pub struct DatabaseUrl(Url);

impl DatabaseUrl {
    /// The address with its password, if it has one: never to be printed.
    pub fn expose(&self) -> &str {
        self.0.as_str()
    }

    /// The host, which may be a percent-encoded socket folder.
    pub fn host(&self) -> Option<&str> {
        self.0.host_str()
    }

    /// Whether the address itself carries a password.
    pub fn has_password(&self) -> bool {
        self.0.password().is_some() || self.0.query_pairs().any(|(name, _)| name.contains("password"))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        if shown.password().is_some() {
            // Only an address that cannot have a password refuses one, and this one has it.
            let _ = shown.set_password(Some("hidden"));
        }
        if self.0.query_pairs().any(|(name, _)| name.contains("password")) {
            let pairs: Vec<(String, String)> = self
                .0
                .query_pairs()
                .map(|(name, value)| {
                    let value = if name.contains("password") { "hidden".into() } else { value };
                    (name.into_owned(), value.into_owned())
                })
                .collect();
            shown.query_pairs_mut().clear().extend_pairs(pairs);
        }
        f.write_str(shown.as_str())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = DatabaseUrl;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address such as postgres://user@host:5432/database")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<DatabaseUrl, E> {
                let expected = || E::custom("an address such as postgres://user@host:5432/database");
                let url = Url::parse(text).map_err(|_| expected())?;
                let known = matches!(url.scheme(), "postgres" | "postgresql");
                if !known || url.cannot_be_a_base() {
                    return Err(expected());
                }
                Ok(DatabaseUrl(url))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

impl JsonSchema for DatabaseUrl {
    fn schema_name() -> Cow<'static, str> {
        "DatabaseUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "postgres://user@host:5432/database",
            "pattern": "^(postgres(ql)?://|.*\\$\\{)"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_an_address_is_kept_and_not_shown() {
        for text in ["postgres://me:hunter2@h/d", "postgres://me@h/d?password=hunter2&x=1"] {
            let url = DatabaseUrl(Url::parse(text).unwrap());
            assert_eq!(url.expose(), text);
            assert!(url.has_password());
            for shown in [url.to_string(), format!("{url:?}"), serde_json::to_string(&url).unwrap()] {
                assert!(!shown.contains("hunter2") && shown.contains("me"), "{shown}");
            }
        }
    }

    #[test]
    fn a_secret_prints_as_hidden() {
        let secret = Secret::from("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), "(hidden)");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"(hidden)\"");
        assert_eq!(secret.expose(), "hunter2");
    }
}
