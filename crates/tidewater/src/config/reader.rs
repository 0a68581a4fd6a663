//! From the tree of a YAML file to typed configuration, with serde.
//!
//! Three things happen at each scalar on its way, which is why this is a deserializer of its own:
//! `${VAR}` is filled in, a relative path is joined to the file's folder, and `{file: …}` becomes the
//! secret in that file. And errors keep the bytes they are about. A scalar's own text is shown in an
//! error; what an environment variable put there is not.
//!
//! Types that read themselves from text fail with *what they expect* (`a duration such as 1s`); the
//! reader adds what stands there instead.

use super::document::{Content, Key, Node};
use super::interpolation::{InterpolationError, interpolate};
use super::mistake::{Mistake, is_secret_name, secret_scalars};
use super::path::{LOCATION_NEWTYPE, PATH_NEWTYPE};
use super::secret::SECRET_NEWTYPE;
use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// No password or token is longer; a wrong path (a device, a log) is cut off here.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// What a configuration is read against.
pub(super) struct Surroundings<'a> {
    /// The folder that relative paths start from.
    pub(super) folder: PathBuf,
    /// The environment.
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
}

/// Reads `T` from a whole document.
pub(super) fn read<'a, T: de::Deserialize<'a>>(
    node: &'a Node,
    surroundings: &'a Surroundings<'a>,
) -> Result<T, Box<Mistake>> {
    let reader = NodeReader { node, key: None, surroundings };
    T::deserialize(reader).map_err(|error| Box::new(error.into_mistake(reader)))
}

/// An error on its way out, placed as soon as a node with a span sees it.
#[derive(Debug)]
pub(super) enum ReadError {
    Placed(Box<Mistake>),
    /// What a type wanted and did not get.
    Expected(String),
    UnknownKey {
        expected: &'static [&'static str],
    },
    MissingKey(&'static str),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Placed(mistake) => f.write_str(&mistake.message),
            ReadError::Expected(expected) => write!(f, "expected {expected}"),
            ReadError::UnknownKey { .. } => f.write_str("unknown key"),
            ReadError::MissingKey(key) => write!(f, "missing key {key}"),
        }
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        ReadError::Expected(message.to_string())
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        ReadError::Expected(expected.to_string())
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        ReadError::Expected(expected.to_string())
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        ReadError::Expected(one_of(expected))
    }

    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        ReadError::UnknownKey { expected }
    }

    fn missing_field(field: &'static str) -> Self {
        ReadError::MissingKey(field)
    }
}

impl ReadError {
    /// Gives the error the place of `reader`'s node, unless it has one.
    fn place(self, reader: NodeReader<'_>) -> ReadError {
        ReadError::Placed(Box::new(self.into_mistake(reader)))
    }

    fn into_mistake(self, reader: NodeReader<'_>) -> Mistake {
        match self {
            ReadError::Placed(mistake) => *mistake,
            ReadError::Expected(expected) => reader.wrong_value(&expected),
            ReadError::MissingKey(key) => Mistake::new(
                "tidewater::config::missing_key",
                reader.owner_span(),
                match reader.key {
                    Some(owner) => format!("`{}` lacks the key `{key}`", owner.name),
                    None => format!("the key `{key}` is missing"),
                },
            )
            .label(format!("`{key}` belongs in here")),
            ReadError::UnknownKey { expected } => {
                Mistake::new("tidewater::config::unknown_key", reader.owner_span(), "a key is not known")
                    .label(format!("expected {}", one_of(expected)))
            }
        }
    }
}

/// `mirror, history or both`
fn one_of(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [only] => format!("`{only}`"),
        [rest @ .., last] => {
            let rest: Vec<_> = rest.iter().map(|name| format!("`{name}`")).collect();
            format!("{} or `{last}`", rest.join(", "))
        }
    }
}

/// A node together with the key it stands under.
#[derive(Clone, Copy)]
struct NodeReader<'a> {
    node: &'a Node,
    key: Option<&'a Key>,
    surroundings: &'a Surroundings<'a>,
}

impl<'a> NodeReader<'a> {
    /// Where to point for something about the whole node: a mapping's key says more than its first byte.
    fn owner_span(&self) -> Range<usize> {
        match (&self.node.content, self.key) {
            (Content::Mapping(_) | Content::Sequence(_) | Content::Null, Some(key)) => key.span.clone(),
            _ => self.node.first_span(),
        }
    }

    fn wrong_value(&self, expected: &str) -> Mistake {
        let label = format!("expected {expected}");
        match (&self.node.content, self.key) {
            (Content::Null, None) => {
                return Mistake::new("tidewater::config::empty", self.owner_span(), "the file says nothing")
                    .label("`version: 1` belongs here")
                    .help("`tidewater init` writes a file to begin with");
            }
            // A mapping whose keys are right one by one, and not together.
            (Content::Mapping(_), Some(key)) => {
                let message = format!("`{}` cannot be what it says", key.name);
                return Mistake::new("tidewater::config::bad_value", self.owner_span(), message).label(label);
            }
            _ => {}
        }
        let place = self.key.map_or_else(String::new, |key| format!(" for `{}`", key.name));
        let found = match &self.node.content {
            Content::Null => "nothing".to_owned(),
            Content::Sequence(_) => "a list".to_owned(),
            Content::Mapping(_) => "a mapping".to_owned(),
            // An address may carry a password, in places that only its scheme knows.
            Content::Scalar(text)
                if text.contains("://") || self.key.is_some_and(|key| is_secret_name(&key.name)) =>
            {
                "the value".to_owned()
            }
            // The text as it stands in the file: `${VAR}`, not what was filled in.
            Content::Scalar(text) => format!("`{}`", text.chars().take(80).collect::<String>()),
        };
        Mistake::new(
            "tidewater::config::bad_value",
            self.owner_span(),
            format!("{found} is not possible{place}"),
        )
        .label(label)
    }

    /// The node's scalar with variables filled in.
    fn scalar(&self, visitor: &dyn de::Expected) -> Result<String, ReadError> {
        match &self.node.content {
            Content::Scalar(text) => self.filled(text),
            _ => Err(ReadError::Expected(visitor.to_string()).place(*self)),
        }
    }

    fn filled(&self, text: &str) -> Result<String, ReadError> {
        match interpolate(text, self.surroundings.variable) {
            Ok(filled) => Ok(filled.unwrap_or_else(|| text.to_owned())),
            Err(error) => {
                let help = match &error {
                    InterpolationError::Unset { name } => {
                        format!("set it (`export {name}=…`) or give a default: `${{{name}:-…}}`")
                    }
                    InterpolationError::Required { name, .. } => format!("set it: `export {name}=…`"),
                    InterpolationError::Unclosed | InterpolationError::Malformed { .. } => {
                        "write `${NAME}`, `${NAME:-default}` or `${NAME:?message}`; a text that really holds `${` goes into a file: `{file: path}`".to_owned()
                    }
                };
                let message = match &error {
                    InterpolationError::Malformed { .. }
                        if self.key.is_some_and(|k| is_secret_name(&k.name)) =>
                    {
                        "an expression here cannot be filled in".to_owned()
                    }
                    error => error.to_string(),
                };
                let mistake = Mistake::new("tidewater::config::variable", self.node.span.clone(), message);
                Err(ReadError::Placed(Box::new(mistake.label("needs it").help(help))))
            }
        }
    }

    fn number<T: std::str::FromStr>(&self, visitor: &dyn de::Expected) -> Result<T, ReadError> {
        let expected = || ReadError::Expected("a whole number".to_owned()).place(*self);
        self.scalar(visitor)?.replace('_', "").parse().map_err(|_| expected())
    }

    fn secret(&self, visitor: &dyn de::Expected) -> Result<String, ReadError> {
        if !matches!(self.node.content, Content::Mapping(_)) {
            return self.scalar(visitor);
        }
        let (key, file) = match (&self.node.content, self.node.get("file")) {
            (Content::Mapping(entries), Some(file)) if entries.len() == 1 => file,
            _ => return Err(ReadError::Expected(visitor.to_string()).place(*self)),
        };
        let reader = NodeReader { node: file, key: Some(key), surroundings: self.surroundings };
        let path = PathBuf::from(self.surroundings.absolute(&reader.scalar(&"the path of a file")?));
        read_secret(&path).map_err(|cause| {
            let message = format!("the secret in {} cannot be read: {cause}", path.display());
            let mistake = Mistake::new("tidewater::config::secret_file", file.span.clone(), message)
                .label("this file")
                .help("check that it is there, that this user may read it and that it holds nothing but the secret");
            ReadError::Placed(Box::new(mistake))
        })
    }
}

/// The file's text without the line end that editors put at its end.
fn read_secret(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    file.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if u64::try_from(text.len()).is_ok_and(|bytes| bytes > MAX_SECRET_BYTES) {
        return Err(format!("it is longer than {MAX_SECRET_BYTES} bytes"));
    }
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() { Err("it is empty".to_owned()) } else { Ok(secret.to_owned()) }
}

macro_rules! read_number {
    ($($method:ident => $visit:ident),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            let number = self.number(&visitor)?;
            visitor.$visit(number).map_err(|error: ReadError| error.place(self))
        }
    )*};
}

impl<'de> Deserializer<'de> for NodeReader<'de> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.content {
            Content::Null => visitor.visit_unit(),
            Content::Scalar(text) => visitor.visit_string(self.filled(text)?),
            Content::Sequence(items) => {
                visitor.visit_seq(SequenceReader { items: items.iter(), parent: self })
            }
            Content::Mapping(entries) => {
                visitor.visit_map(MappingReader { entries: entries.iter(), value: None, parent: self })
            }
        }
        .map_err(|error: ReadError| error.place(self))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let text = self.scalar(&visitor)?;
        visitor.visit_string(text).map_err(|error: ReadError| error.place(self))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let on = match self.scalar(&visitor)?.as_str() {
            "on" | "true" | "yes" => true,
            "off" | "false" | "no" => false,
            _ => return Err(ReadError::Expected("`on` or `off`".to_owned()).place(self)),
        };
        visitor.visit_bool(on)
    }

    read_number!(deserialize_u8 => visit_u8, deserialize_u16 => visit_u16, deserialize_u32 => visit_u32, deserialize_u64 => visit_u64);

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.content {
            Content::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let text = match name {
            SECRET_NEWTYPE => self.secret(&visitor)?,
            PATH_NEWTYPE => self.surroundings.absolute(&self.scalar(&visitor)?),
            LOCATION_NEWTYPE => {
                let text = self.scalar(&visitor)?;
                if text.contains("://") { text } else { self.surroundings.absolute(&text) }
            }
            _ => return visitor.visit_newtype_struct(self),
        };
        visitor.visit_string(text).map_err(|error: ReadError| error.place(self))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let text = self.scalar(&"one word")?;
        let variant: StrDeserializer<'_, ReadError> = text.as_str().into_deserializer();
        visitor.visit_enum(variant).map_err(|error| error.place(self))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple tuple_struct map
        struct identifier
    }
}

impl Surroundings<'_> {
    fn absolute(&self, path: &str) -> String {
        let joined = self.folder.join(path);
        // `./lake` reads better as `lake` once it is part of a longer path.
        joined.components().collect::<PathBuf>().to_string_lossy().into_owned()
    }
}

struct SequenceReader<'a> {
    items: std::slice::Iter<'a, Node>,
    parent: NodeReader<'a>,
}

impl<'de> SeqAccess<'de> for SequenceReader<'de> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let scalar = matches!(node.content, Content::Scalar(_) | Content::Null);
        let key = if scalar { self.parent.key } else { None };
        let reader = NodeReader { node, key, surroundings: self.parent.surroundings };
        seed.deserialize(reader).map(Some).map_err(|error| error.place(reader))
    }
}

struct MappingReader<'a> {
    entries: std::slice::Iter<'a, (Key, Node)>,
    value: Option<(&'a Key, &'a Node)>,
    parent: NodeReader<'a>,
}

impl<'de> MapAccess<'de> for MappingReader<'de> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some((key, value));
        let name: StrDeserializer<'_, ReadError> = key.name.as_str().into_deserializer();
        seed.deserialize(name)
            .map(Some)
            .map_err(|error| ReadError::Placed(Box::new(key_mistake(error, key, value))))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let Some((key, node)) = self.value.take() else {
            return Err(ReadError::Expected("a key before its value".to_owned()).place(self.parent));
        };
        let reader = NodeReader { node, key: Some(key), surroundings: self.parent.surroundings };
        seed.deserialize(reader).map_err(|error| error.place(reader))
    }
}

/// A key that cannot stand where it stands. Its value is not shown: it may be a secret under a misspelt name.
fn key_mistake(error: ReadError, key: &Key, value: &Node) -> Mistake {
    let mut mistake = match error {
        ReadError::Placed(mistake) => *mistake,
        ReadError::UnknownKey { expected } => {
            let mistake = Mistake::new(
                "tidewater::config::unknown_key",
                key.span.clone(),
                format!("the key `{}` is not known here", key.name),
            )
            .label(format!("expected {}", one_of(expected)));
            match nearest(&key.name, expected) {
                Some(meant) => mistake.help(format!("did you mean `{meant}`?")),
                None => mistake,
            }
        }
        ReadError::Expected(expected) => Mistake::new(
            "tidewater::config::bad_key",
            key.span.clone(),
            format!("`{}` is not possible as a name here", key.name),
        )
        .label(format!("expected {expected}")),
        ReadError::MissingKey(_) => {
            Mistake::new("tidewater::config::bad_key", key.span.clone(), "a key is missing")
        }
    };
    secret_scalars(value, true, &mut mistake.hide);
    mistake
}

/// The known key that takes at most two edits to reach, if there is one.
fn nearest<'n>(name: &str, known: &'n [&'static str]) -> Option<&'n str> {
    known
        .iter()
        .map(|candidate| (edits(name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 2 && *distance < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and replacements of characters between two words.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (above, to) in row.iter().skip(1).zip(&b) {
            let replace = diagonal + usize::from(from != *to);
            left = replace.min(above + 1).min(left + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_known_key_is_offered() {
        let known = ["tables", "exclude", "mode", "flush"];
        assert_eq!(nearest("table", &known), Some("tables"));
        assert_eq!(nearest("exlcude", &known), Some("exclude"));
        assert_eq!(nearest("password", &known), None);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
    }
}
