//! Compiled `like` patterns: literal text with `*` for any run of characters, anchored at both ends.
//!
//! Matching works on bytes. UTF-8 is self-synchronising: the bytes of one character never occur inside those of another
//! one or across two, so a match of bytes is a match of Unicode scalar values, which is what Cedar defines. Most patterns
//! are one comparison (exact, prefix, suffix) or one substring search.
//!
//! The general form strips prefix and suffix, then takes the leftmost occurrence of each literal between two wildcards
//! in turn. Leftmost is enough: a wildcard takes any run, so an earlier end never rules out a match that a later one
//! allows. Nothing is tried twice, and each search is linear (two-way search, Crochemore and Perrin 1991, in `memchr`), so
//! the time is linear in the text whatever the pattern; there is no backtracking to blow up.
//!
//! It does not know single-character wildcards, classes or case folding; Cedar has none.

use std::fmt;
use std::hash::{Hash, Hasher};

use memchr::memmem::Finder;

/// One element of a pattern as parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PatternElement {
    /// This character, a literal star included.
    Char(char),
    /// `*`: any run of characters, the empty one included.
    Wildcard,
}

/// A compiled pattern. Patterns that match the same texts by construction (`a**b` and `a*b`) are equal.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// Cedar's syntax, runs of wildcards written as one: identifies the pattern.
    text: Box<str>,
    form: Form,
}

/// The shape of a pattern. The finders, some hundred bytes each, are boxed to keep policies compact.
#[derive(Clone, Debug)]
enum Form {
    /// `a`
    Exact(Box<str>),
    /// `a*`
    Prefix(Box<str>),
    /// `*a`
    Suffix(Box<str>),
    /// `*a*`
    Infix(Box<Finder<'static>>),
    /// `a*b`
    PrefixSuffix(Box<str>, Box<str>),
    /// `*`
    Any,
    /// Everything else: prefix and suffix, either of which may be empty, and what lies between, none of it empty.
    General { prefix: Box<str>, infixes: Box<[Finder<'static>]>, suffix: Box<str> },
}

impl Pattern {
    /// Compiles a pattern.
    pub fn compile(elements: impl Iterator<Item = PatternElement>) -> Self {
        let mut text = String::new();
        // The literals between wildcards, one more than there are wildcards after runs of them are joined.
        let mut literals = vec![String::new()];
        let mut after_wildcard = false;
        for element in elements {
            match element {
                PatternElement::Wildcard if after_wildcard => {}
                PatternElement::Wildcard => {
                    text.push('*');
                    literals.push(String::new());
                    after_wildcard = true;
                }
                PatternElement::Char(c) => {
                    push_escaped(&mut text, c);
                    if let Some(literal) = literals.last_mut() {
                        literal.push(c);
                    }
                    after_wildcard = false;
                }
            }
        }
        Self { text: text.into_boxed_str(), form: Form::new(literals) }
    }

    /// Whether the whole of `text` matches.
    ///
    /// # Cost
    /// Linear in the text; no allocation.
    #[inline]
    pub fn matches(&self, text: &str) -> bool {
        match &self.form {
            Form::Exact(literal) => text == &**literal,
            Form::Prefix(prefix) => text.starts_with(&**prefix),
            Form::Suffix(suffix) => text.ends_with(&**suffix),
            Form::Infix(finder) => finder.find(text.as_bytes()).is_some(),
            Form::PrefixSuffix(prefix, suffix) => strip(text, prefix, suffix).is_some(),
            Form::Any => true,
            Form::General { prefix, infixes, suffix } => {
                strip(text, prefix, suffix).is_some_and(|body| contains_in_order(body, infixes))
            }
        }
    }

    /// The text every match begins with, all of it if there is no wildcard.
    pub const fn literal_prefix(&self) -> &str {
        match &self.form {
            Form::Exact(prefix)
            | Form::Prefix(prefix)
            | Form::PrefixSuffix(prefix, _)
            | Form::General { prefix, .. } => prefix,
            Form::Suffix(_) | Form::Infix(_) | Form::Any => "",
        }
    }

    /// The one text that matches, if the pattern has no wildcard.
    pub const fn exact(&self) -> Option<&str> {
        match &self.form {
            Form::Exact(literal) => Some(literal),
            _ => None,
        }
    }
}

impl Form {
    /// Chooses the form from the literals around the wildcards; only the first and the last may be empty.
    fn new(mut literals: Vec<String>) -> Self {
        let suffix = literals.pop().unwrap_or_default();
        if literals.is_empty() {
            return Self::Exact(suffix.into_boxed_str());
        }
        let infixes = literals.split_off(1);
        let prefix = literals.pop().unwrap_or_default();
        let finder = |literal: &String| Finder::new(literal.as_bytes()).into_owned();
        match (prefix.is_empty(), infixes.as_slice(), suffix.is_empty()) {
            (true, [], true) => Self::Any,
            (false, [], true) => Self::Prefix(prefix.into_boxed_str()),
            (true, [], false) => Self::Suffix(suffix.into_boxed_str()),
            (false, [], false) => Self::PrefixSuffix(prefix.into_boxed_str(), suffix.into_boxed_str()),
            (true, [infix], true) => Self::Infix(Box::new(finder(infix))),
            _ => Self::General {
                prefix: prefix.into_boxed_str(),
                infixes: infixes.iter().map(finder).collect(),
                suffix: suffix.into_boxed_str(),
            },
        }
    }
}

/// What is left between prefix and suffix, which must not overlap: `aba` does not match `ab*ba`.
#[inline]
fn strip<'t>(text: &'t str, prefix: &str, suffix: &str) -> Option<&'t [u8]> {
    text.as_bytes().strip_prefix(prefix.as_bytes())?.strip_suffix(suffix.as_bytes())
}

#[inline]
fn contains_in_order(mut body: &[u8], infixes: &[Finder<'static>]) -> bool {
    infixes.iter().all(|finder| {
        let rest =
            finder.find(body).and_then(|at| at.checked_add(finder.needle().len())).and_then(|end| body.get(end..));
        body = rest.unwrap_or_default();
        rest.is_some()
    })
}

/// Escapes as the reference does: a literal star as `\*`, the rest as in any string literal.
fn push_escaped(text: &mut String, c: char) {
    if c == '*' {
        text.push_str("\\*");
    } else {
        text.extend(c.escape_debug());
    }
}

/// Cedar's syntax without the quotes around it.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `*` is a wildcard, `#` a literal star.
    fn pattern(text: &str) -> Pattern {
        Pattern::compile(text.chars().map(|c| match c {
            '*' => PatternElement::Wildcard,
            '#' => PatternElement::Char('*'),
            c => PatternElement::Char(c),
        }))
    }

    #[test]
    fn forms() {
        assert!(matches!(pattern("").form, Form::Exact(_)));
        assert!(matches!(pattern("a#").form, Form::Exact(_)));
        assert!(matches!(pattern("a**").form, Form::Prefix(_)));
        assert!(matches!(pattern("*a").form, Form::Suffix(_)));
        assert!(matches!(pattern("*a*").form, Form::Infix(_)));
        assert!(matches!(pattern("a*b").form, Form::PrefixSuffix(..)));
        assert!(matches!(pattern("***").form, Form::Any));
        for general in ["a*b*", "*a*b", "a*b*c", "*a*b*"] {
            assert!(matches!(pattern(general).form, Form::General { .. }), "{general}");
        }
    }

    #[test]
    fn matching() {
        for (text, yes, no) in [
            ("", &[""][..], &["a"][..]),
            ("ab", &["ab"], &["", "a", "abc", "xab"]),
            ("ab*", &["ab", "abc"], &["a", "xab"]),
            ("*ab", &["ab", "xab", "abab"], &["b", "abx"]),
            ("*ab*", &["ab", "xabx"], &["", "a", "ba"]),
            ("ab*ba", &["abba", "abxba"], &["aba", "ab", "ba"]),
            ("a*b*c", &["abc", "axbxc", "abcbc"], &["ac", "acb", "ab", "bc"]),
            ("*a*a*", &["aa", "xaxax"], &["a", ""]),
            ("a*a*a", &["aaa", "aaaa"], &["aa", "a"]),
            ("#*#", &["**", "*x*"], &["*", "x*"]),
            ("é*日", &["é日", "éx日"], &["e日", "日é"]),
        ] {
            for t in yes {
                assert!(pattern(text).matches(t), "{text} {t}");
            }
            for t in no {
                assert!(!pattern(text).matches(t), "{text} {t}");
            }
        }
    }

    #[test]
    fn text_and_identity() {
        assert_eq!(pattern("a**b#\"\n").to_string(), "a*b\\*\\\"\\n");
        assert_eq!(pattern("a**b"), pattern("a*b"));
        assert_ne!(pattern("a#b"), pattern("a*b"));
        assert_eq!(pattern("ab*c*d").literal_prefix(), "ab");
        assert_eq!(pattern("ab").literal_prefix(), "ab");
        assert_eq!(pattern("*ab*").literal_prefix(), "");
        assert_eq!(pattern("a#").exact(), Some("a*"));
        assert_eq!(pattern("a*").exact(), None);
    }
}
