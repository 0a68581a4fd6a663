//! A YAML file as a tree in which every key and value knows its bytes in the source.
//!
//! The parser types plain scalars by guessing (`0123` would become a number); the configuration knows
//! better what it wants, so a scalar here is its text, and what it means is decided by who reads it.

use super::mistake::Mistake;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Location, Spanned};
use std::fmt;
use std::ops::Range;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) span: Range<usize>,
    pub(super) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Null,
    Scalar(String),
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

/// A key of a mapping and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) span: Range<usize>,
    pub(super) name: String,
}

impl Node {
    /// Parses one YAML document.
    pub(super) fn parse(source: &str) -> Result<Node, Box<Mistake>> {
        let options = serde_saphyr::options! {
            duplicate_keys: DuplicateKeyPolicy::Error,
            with_snippet: false,
        };
        let raw: Spanned<RawNode> = serde_saphyr::from_str_with_options(source, options)
            .map_err(|error| Box::new(Mistake::from_yaml(&error, source)))?;
        Ok(raw_to_node(raw, source))
    }

    /// The value under `key`, when this is a mapping that has it.
    pub(super) fn get(&self, key: &str) -> Option<(&Key, &Node)> {
        match &self.content {
            Content::Mapping(entries) => {
                entries.iter().find(|(k, _)| k.name == key).map(|(k, value)| (k, value))
            }
            _ => None,
        }
    }

    /// Bytes to point at for this node. The parser gives collections no length: their first part stands for them.
    pub(super) fn first_span(&self) -> Range<usize> {
        match &self.content {
            Content::Mapping(entries) => entries.first().map(|(key, _)| key.span.clone()),
            Content::Sequence(items) => items.first().map(Node::first_span),
            Content::Null | Content::Scalar(_) => None,
        }
        .unwrap_or_else(|| self.span.clone())
    }

    /// Where the value at `path` stands; for a path that leads nowhere, the deepest part that exists.
    /// A number names an item of a sequence.
    pub(super) fn span_at(&self, path: &[&str]) -> Range<usize> {
        let mut node = self;
        let mut span = self.first_span();
        for step in path {
            let next = match &node.content {
                Content::Mapping(_) => node.get(step).map(|(key, value)| {
                    let scalar = matches!(value.content, Content::Scalar(_));
                    (if scalar { value.span.clone() } else { key.span.clone() }, value)
                }),
                Content::Sequence(items) => step
                    .parse()
                    .ok()
                    .and_then(|at: usize| items.get(at))
                    .map(|item| (item.first_span(), item)),
                _ => None,
            };
            let Some((at, value)) = next else { break };
            span = at;
            node = value;
        }
        span
    }
}

/// What the parser hands over before the plain scalars' text is taken from the source.
enum RawNode {
    Null,
    /// A plain scalar that the parser took for a number or a boolean.
    Guessed,
    Text(String),
    Sequence(Vec<Spanned<RawNode>>),
    Mapping(Vec<(Spanned<String>, Spanned<RawNode>)>),
}

impl<'de> Deserialize<'de> for RawNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawNode;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<RawNode, E> {
        Ok(RawNode::Null)
    }

    fn visit_none<E>(self) -> Result<RawNode, E> {
        Ok(RawNode::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<RawNode, D::Error> {
        RawNode::deserialize(deserializer)
    }

    fn visit_bool<E>(self, _: bool) -> Result<RawNode, E> {
        Ok(RawNode::Guessed)
    }

    fn visit_i64<E>(self, _: i64) -> Result<RawNode, E> {
        Ok(RawNode::Guessed)
    }

    fn visit_u64<E>(self, _: u64) -> Result<RawNode, E> {
        Ok(RawNode::Guessed)
    }

    fn visit_i128<E>(self, _: i128) -> Result<RawNode, E> {
        Ok(RawNode::Guessed)
    }

    fn visit_u128<E>(self, _: u128) -> Result<RawNode, E> {
        Ok(RawNode::Guessed)
    }

    fn visit_f64<E>(self, _: f64) -> Result<RawNode, E> {
        Ok(RawNode::Guessed)
    }

    fn visit_str<E>(self, text: &str) -> Result<RawNode, E> {
        Ok(RawNode::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawNode, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = items.next_element()? {
            nodes.push(node);
        }
        Ok(RawNode::Sequence(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RawNode, A::Error> {
        let mut nodes = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            nodes.push(entry);
        }
        Ok(RawNode::Mapping(nodes))
    }
}

fn raw_to_node(raw: Spanned<RawNode>, source: &str) -> Node {
    let span = byte_span(&raw.defined, source);
    let content = match raw.value {
        RawNode::Null => Content::Null,
        RawNode::Guessed => Content::Scalar(source.get(span.clone()).unwrap_or_default().trim().to_owned()),
        RawNode::Text(text) => Content::Scalar(text),
        RawNode::Sequence(items) => {
            Content::Sequence(items.into_iter().map(|item| raw_to_node(item, source)).collect())
        }
        RawNode::Mapping(entries) => Content::Mapping(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let span = byte_span(&key.defined, source);
                    (Key { span, name: key.value }, raw_to_node(value, source))
                })
                .collect(),
        ),
    };
    Node { span, content }
}

/// A parser location as bytes of `source`, never outside it.
pub(super) fn byte_span(location: &Location, source: &str) -> Range<usize> {
    let span = location.span();
    let start = span
        .byte_offset()
        .and_then(|at| usize::try_from(at).ok())
        .unwrap_or_else(|| line_start(source, location) + to_usize(location.column()).saturating_sub(1))
        .min(source.len());
    let len = span.byte_len().map_or(0, to_usize);
    start..start.saturating_add(len).min(source.len())
}

fn line_start(source: &str, location: &Location) -> usize {
    let line = to_usize(location.line()).max(1);
    source.split_inclusive('\n').take(line - 1).map(str::len).sum()
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_at(source: &str, path: &[&str]) -> String {
        source[Node::parse(source).unwrap().span_at(path)].to_owned()
    }

    fn scalar(source: &str, key: &str) -> Content {
        Node::parse(source).unwrap().get(key).unwrap().1.content.clone()
    }

    #[test]
    fn a_plain_scalar_keeps_its_text_whatever_it_looks_like() {
        for text in
            ["0123", "1e3", "on", "0x10", "1.50", "18", "127.0.0.1:5432", "5m", "18446744073709551616"]
        {
            assert_eq!(scalar(&format!("a: {text}\n"), "a"), Content::Scalar(text.into()), "{text}");
        }
        assert_eq!(scalar("a: \"x\\ty\"\n", "a"), Content::Scalar("x\ty".into()));
        assert_eq!(scalar("a: 'null'\n", "a"), Content::Scalar("null".into()));
        assert_eq!(scalar("a: null\n", "a"), Content::Null);
        assert_eq!(scalar("a:\n", "a"), Content::Null);
        assert_eq!(scalar("a: \"0123\"\n", "a"), Content::Scalar("0123".into()));
    }

    #[test]
    fn a_path_leads_to_the_bytes_of_its_value() {
        let source = "é: 1\nb:\n  - c: ünder\n    d: [x, yy]\n";
        assert_eq!(text_at(source, &["b", "0", "c"]), "ünder");
        assert_eq!(text_at(source, &["b", "0", "d", "1"]), "yy");
        assert_eq!(text_at(source, &["b", "0", "d"]), "d");
        assert_eq!(text_at(source, &["b", "0", "nothing"]), "c");
    }
}
