//! What is wrong with a configuration, and how it is shown without showing secrets.
//!
//! A mistake points at bytes of the file. The file's text is shown around it, but only after
//! [`mask_secrets`] has struck out whatever could be a secret, byte for byte so that every span still fits.

use super::document::{Content, Node, byte_span};
use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum ConfigError {
    /// There is no such file.
    #[error("there is no configuration at {}", path.display())]
    #[diagnostic(
        code(tidewater::config::missing),
        help("`tidewater init` writes one; `-c FILE` names another place")
    )]
    Missing {
        /// where it was looked for
        path: PathBuf,
    },
    /// The file is there, but cannot be read.
    #[error("the configuration {} cannot be read", path.display())]
    #[diagnostic(
        code(tidewater::config::unreadable),
        help("check that it is a UTF-8 text file that this user may read")
    )]
    Unreadable {
        /// the file
        path: PathBuf,
        /// what the system said
        source: std::io::Error,
    },
    /// The file is longer than any configuration.
    #[error("the configuration {} is longer than {limit} bytes", path.display())]
    #[diagnostic(code(tidewater::config::too_long), help("check that this is the file you meant"))]
    TooLong {
        /// the file
        path: PathBuf,
        /// the bound
        limit: u64,
    },
    /// The file was read and says something wrong.
    #[error("{file} cannot be used: it has {count}", count = count_of(mistakes))]
    #[diagnostic(code(tidewater::config::invalid))]
    Invalid {
        /// the file as named by the user
        file: String,
        /// what is wrong, in the file's order
        #[related]
        mistakes: Vec<MistakeReport>,
    },
}

fn count_of(mistakes: &[MistakeReport]) -> String {
    match mistakes.len() {
        1 => "one mistake".to_owned(),
        many => format!("{many} mistakes"),
    }
}

/// One mistake before it is joined with the file it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) code: &'static str,
    pub(super) message: String,
    /// What stands beneath the offending text: what was expected there.
    pub(super) label: String,
    pub(super) help: Option<String>,
    pub(super) span: Range<usize>,
    /// Bytes not to show even though no rule calls them secret: the value of a key nobody knows.
    pub(super) hide: Vec<Range<usize>>,
}

impl Mistake {
    pub(super) fn new(code: &'static str, span: Range<usize>, message: impl Into<String>) -> Mistake {
        Mistake { code, message: message.into(), label: "here".into(), help: None, span, hide: Vec::new() }
    }

    pub(super) fn label(mut self, label: impl Into<String>) -> Mistake {
        self.label = label.into();
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Mistake {
        self.help = Some(help.into());
        self
    }

    /// A mistake that the YAML parser found.
    pub(super) fn from_yaml(error: &serde_saphyr::Error, source: &str) -> Mistake {
        use serde_saphyr::Error;
        let span = error.location().map_or(0..0, |location| byte_span(&location, source));
        if let Some(tab) = tab_in_indentation(source, span.start) {
            return Mistake::new("tidewater::config::tab", tab, "a line is indented with a tab")
                .label("a tab")
                .help("YAML indents with spaces only: replace the tab by two spaces");
        }
        match error {
            Error::DuplicateMappingKey { key, .. } => {
                let key = key.as_deref().unwrap_or("this key");
                Mistake::new(
                    "tidewater::config::duplicate_key",
                    span,
                    format!("the key `{key}` is there twice"),
                )
                .label("the second one")
                .help("keep one of them")
            }
            Error::Eof { .. } => Mistake::new("tidewater::config::empty", span, "the file says nothing")
                .label("ends here")
                .help("`tidewater init` writes a file to begin with"),
            Error::MultipleDocuments { .. } => {
                Mistake::new("tidewater::config::yaml", span, "the file holds more than one YAML document")
                    .help("keep what stands before the second `---`")
            }
            Error::UnknownAnchor { .. } => {
                Mistake::new("tidewater::config::yaml", span, "`*` names an anchor that is not there")
                    .help("a value that begins with `*` needs quotes")
            }
            Error::Budget { .. } => {
                Mistake::new("tidewater::config::yaml", span, "the file is too deep or too repetitive")
                    .help("write it without nested anchors")
            }
            Error::ExternalMessage { msg, .. } => {
                Mistake::new("tidewater::config::yaml", span, format!("this is not YAML: {msg}")).help(
                    "check indentation, quotes and brackets up to here; a value with `: `, `#`, `{` or `[` needs quotes",
                )
            }
            _ => Mistake::new("tidewater::config::yaml", span, "this is not YAML that can be read here").help(
                "check indentation, quotes and brackets up to here; tags and merge keys are not understood",
            ),
        }
    }
}

/// The first tab that indents a line at or before byte `until`.
fn tab_in_indentation(source: &str, until: usize) -> Option<Range<usize>> {
    let mut start = 0;
    for line in source.split_inclusive('\n') {
        let indentation = line.len() - line.trim_start_matches([' ', '\t']).len();
        if let Some(tab) = line.get(..indentation).and_then(|blank| blank.find('\t')) {
            return (!line.trim().is_empty()).then_some(start + tab..start + tab + 1);
        }
        start += line.len();
        if start > until {
            break;
        }
    }
    None
}

/// One mistake, ready to be shown.
#[derive(Debug)]
pub struct MistakeReport {
    mistake: Mistake,
    source: NamedSource<String>,
}

impl fmt::Display for MistakeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.mistake.message)
    }
}

impl std::error::Error for MistakeReport {}

impl Diagnostic for MistakeReport {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.mistake.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.mistake.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = LabeledSpan::new_with_span(Some(self.mistake.label.clone()), self.mistake.span.clone());
        Some(Box::new(std::iter::once(label)))
    }
}

/// Joins mistakes with the text they are in. `tree` is there when the text parsed at all.
pub(super) fn report(
    file: &str,
    source: &str,
    tree: Option<&Node>,
    mut mistakes: Vec<Mistake>,
) -> ConfigError {
    mistakes.sort_by_key(|mistake| mistake.span.start);
    let mut hide: Vec<_> = mistakes.iter().flat_map(|mistake| mistake.hide.clone()).collect();
    if let Some(tree) = tree {
        secret_scalars(tree, false, &mut hide);
    }
    let masked = mask_secrets(source, &hide);
    let mistakes = mistakes
        .into_iter()
        .map(|mistake| MistakeReport { mistake, source: NamedSource::new(file, masked.clone()) })
        .collect();
    ConfigError::Invalid { file: file.to_owned(), mistakes }
}

/// Whether a key's value must not be shown, by its name, so that misplaced and misspelt keys count too.
pub(super) fn is_secret_name(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let public = ["primary_key", "timeseries_key", "key_file", "access_key_id"];
    !public.contains(&key.as_str())
        && ["pass", "pwd", "secret", "token", "credential", "private", "key", "sas", "signature"]
            .iter()
            .any(|part| key.contains(part))
}

/// The bytes of every scalar that stands under a secret's name.
pub(super) fn secret_scalars(node: &Node, secret: bool, found: &mut Vec<Range<usize>>) {
    match &node.content {
        Content::Null => {}
        Content::Scalar(text) if secret && !names_where(text) => found.push(node.span.clone()),
        Content::Scalar(_) => {}
        Content::Sequence(items) => items.iter().for_each(|item| secret_scalars(item, secret, found)),
        Content::Mapping(entries) => {
            for (key, value) in entries {
                // `{file: path}` says where a secret is, not what it is.
                let names_file = secret && key.name == "file";
                secret_scalars(value, (secret || is_secret_name(&key.name)) && !names_file, found);
            }
        }
    }
}

/// The text with everything that could be a secret struck out, as long as before in bytes.
///
/// Works on text that may not be YAML at all, so it goes by lines: what follows a secret's name on its
/// line, the deeper indented lines after it, and passwords in URLs. `hide` adds exact bytes.
fn mask_secrets(source: &str, hide: &[Range<usize>]) -> String {
    let mut hidden: Vec<Range<usize>> = hide.to_vec();
    let mut start = 0;
    let mut below: Option<usize> = None;
    for line in source.split_inclusive('\n') {
        let indentation = line.len() - line.trim_start().len();
        let blank = line.trim().is_empty();
        if below.is_some_and(|parent| blank || indentation > parent) {
            hidden.push(start..start + line.len());
        } else if !blank {
            below = None;
            if let Some(value) = secret_value_start(line) {
                hidden.push(start + value..start + line.len());
                below = Some(indentation);
            }
        }
        hidden.extend(
            url_passwords(line)
                .chain(query_passwords(line))
                .map(|range| start + range.start..start + range.end),
        );
        start += line.len();
    }
    strike_out(source, &hidden)
}

/// Where the first value under a secret's name begins in a line, unless it only names a file or a variable.
fn secret_value_start(line: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(colon) = line.get(from..)?.find(':').map(|at| from + at) {
        let before = line.get(..colon)?;
        let name_at = before
            .trim_end_matches(['"', '\''])
            .rfind(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')
            .map_or(0, |at| at + before.get(at..).and_then(|s| s.chars().next()).map_or(1, char::len_utf8));
        let name = before.get(name_at..)?.trim_matches(['"', '\'']);
        let value = line.get(colon + 1..)?;
        if is_secret_name(name) && !names_where(value) {
            return Some(colon + 1);
        }
        // The name of a variable may itself look like a secret's.
        let expression =
            value.trim_start_matches([' ', '"', '\'']).starts_with("${").then(|| value.find('}'));
        from = colon + 1 + expression.flatten().unwrap_or(0);
    }
    None
}

/// Whether a value only says where the secret is: `{file: …}` or a variable without a default, and nothing after it.
fn names_where(value: &str) -> bool {
    let value = value.trim_start();
    if value.strip_prefix('{').map(str::trim_start).is_some_and(|rest| rest.starts_with("file:")) {
        return true;
    }
    let variable =
        value.trim_start_matches(['"', '\'']).strip_prefix("${").and_then(|rest| rest.split_once('}'));
    variable.is_some_and(|(name, after)| {
        let after = after.trim_start_matches(['"', '\'']).trim();
        (!name.contains(':') || name.contains(":?"))
            && (after.is_empty() || after.starts_with([',', '}', '#']))
    })
}

/// The bytes of passwords in `scheme://user:password@host`.
fn url_passwords(line: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    line.match_indices("://").filter_map(move |(at, separator)| {
        let from = at + separator.len();
        let authority = line.get(from..)?;
        let end = authority.find([' ', '\t', '\n']).unwrap_or(authority.len());
        let user_info = authority.get(..end)?.rfind('@')?;
        let colon = authority.get(..user_info)?.find(':')?;
        Some(from + colon + 1..from + user_info)
    })
}

/// The bytes after `password=` in an address's query.
fn query_passwords(line: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    line.match_indices("password=").filter_map(move |(at, name)| {
        let from = at + name.len();
        let rest = line.get(from..)?;
        Some(from..from + rest.find(['&', ' ', '\n']).unwrap_or(rest.len()))
    })
}

/// Every byte in `hidden` becomes `*`, except line ends.
fn strike_out(source: &str, hidden: &[Range<usize>]) -> String {
    let mut masked = String::with_capacity(source.len());
    for (at, c) in source.char_indices() {
        if c != '\n' && hidden.iter().any(|range| range.contains(&at)) {
            masked.extend(std::iter::repeat_n(if c.is_whitespace() { ' ' } else { '*' }, c.len_utf8()));
        } else {
            masked.push(c);
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(source: &str) -> String {
        mask_secrets(source, &[])
    }

    #[test]
    fn values_under_secret_names_are_struck_out_and_lengths_stay() {
        let source = "a: 1\npassword: \"hünter 2\" # mine\nuser: x\n";
        let shown = masked(source);
        assert_eq!(shown.len(), source.len());
        assert!(!shown.contains("nter"), "{shown}");
        assert!(shown.starts_with("a: 1\npassword: ") && shown.ends_with("\nuser: x\n"), "{shown}");
    }

    #[test]
    fn flow_maps_block_scalars_and_misplaced_keys_are_struck_out_too() {
        for source in [
            "options: {endpoint: x, secret_access_key: hunter2, region: y}\n",
            "token: |\n  hunter2\n  more\nnext: 1\n",
            "token:\n  hunter2\nnext: 1\n",
            "my_passwrd: 1\ndb_password: hunter2\n",
            "\"api-token\": hunter2\n",
            "url: postgres://me:hunter2@host/db\n",
            "url: \"postgres://me:hunt@hunter2@host/db\"\n",
            "url: postgres://me@host/db?a=1&password=hunter2&b=2\n",
            "password: ${PW:-hunter2}\n",
            "password: ${PW}hunter2\n",
            "a: {password: ${PW}, token: hunter2}\n",
        ] {
            assert!(!masked(source).contains("hunter2"), "{}", masked(source));
        }
    }

    #[test]
    fn what_only_says_where_a_secret_is_stays_readable() {
        for source in [
            "password: {file: ./pw}\n",
            "password: \"${PW:?set it}\"\n",
            "a: {password: \"${MY_PASSWORD:?set it}\", b: c}\n",
        ] {
            assert_eq!(masked(source), source);
        }
        let keys = "primary_key: [user_id]\nkey_file: key.pem\naccess_key_id: AK\n";
        assert_eq!(masked(keys), keys);
    }
}
