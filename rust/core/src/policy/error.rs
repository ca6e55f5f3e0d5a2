//! What the policy room says when it refuses a document: a stable code, a position, the offending text and what to do.
//!
//! An error is built once, while loading, and owns everything it shows, so it outlives the document and the thread
//! that read it. It refuses to carry attribute values of a request, more than [`ERRORS_MAX`] entries, lines of any
//! length, or characters that could steer a terminal or reorder what a reviewer reads.

use std::fmt::{self, Display, Formatter, Write as _};

/// Errors kept from one document; the rest are only counted. Twenty fill a screen, and a generated file with one
/// mistake repeated 100,000 times must not cost 100,000 rendered excerpts.
pub const ERRORS_MAX: usize = 20;
/// Characters of the excerpt.
const EXCERPT_CHARS_MAX: usize = 80;
/// Characters shown before the offending one in an excerpt that has to be cut.
const EXCERPT_CHARS_BEFORE_MAX: usize = 30;
/// Characters of a message: the reference repeats whole identifiers in its messages, and one may fill the file.
const MESSAGE_CHARS_MAX: usize = 400;

/// One refusal of a policy, schema, entities or context document.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicyError {
    /// Stable slug such as `policy.too_deep`; part of the public contract.
    pub code: &'static str,
    /// Lower case, no final period; limits appear with the actual value.
    pub message: String,
    /// Name of the document, where it has one.
    pub file: Option<String>,
    /// Line, from 1; 0 if the error concerns the document as a whole.
    pub line: u32,
    /// Column in characters, from 1; 0 if the error concerns the document as a whole.
    pub column: u32,
    /// The offending line, cut to 80 characters around the offending token; empty without a position.
    pub offending: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl PolicyError {
    /// Makes an error without a position.
    pub fn new(code: &'static str, message: impl AsRef<str>) -> Self {
        Self {
            code,
            message: printable(message.as_ref(), MESSAGE_CHARS_MAX),
            file: None,
            line: 0,
            column: 0,
            offending: String::new(),
            help: None,
        }
    }

    /// Adds the position of byte `offset` of `text` and the line around it. An offset past the end, or inside a
    /// character, is moved back to the nearest character.
    #[must_use]
    pub fn at(mut self, name: Option<&str>, text: &str, offset: usize) -> Self {
        (self.line, self.column) = position(text, offset);
        self.offending = excerpt(text, offset);
        self.in_file(name)
    }

    /// Names the document.
    #[must_use]
    pub fn in_file(mut self, name: Option<&str>) -> Self {
        self.file = name.map(|name| printable(name, MESSAGE_CHARS_MAX));
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn help(mut self, help: impl AsRef<str>) -> Self {
        self.help = Some(printable(help.as_ref(), MESSAGE_CHARS_MAX));
        self
    }
}

impl Display for PolicyError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
        }
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if self.file.is_some() || self.line > 0 {
            f.write_char(' ')?;
        }
        f.write_str(&self.message)?;
        if !self.offending.is_empty() {
            write!(f, "\n  {}", self.offending)?;
        }
        if let Some(help) = &self.help {
            write!(f, "\nhelp: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyError {}

/// Everything found wrong with one load: never empty, at most [`ERRORS_MAX`] kept, the rest counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyErrors {
    // Boxed, so that a `Result` with this error stays small.
    first: Box<PolicyError>,
    rest: Vec<PolicyError>,
    omitted: usize,
}

impl PolicyErrors {
    /// Collects errors; `None` if there are none. The iterator is counted to its end but only the first
    /// [`ERRORS_MAX`] items are kept, so items should be cheap to make (see [`PolicyErrors::from_parts`]).
    pub fn collect(errors: impl IntoIterator<Item = PolicyError>) -> Option<Self> {
        let mut errors = errors.into_iter();
        let mut all = Self::from(errors.next()?);
        errors.for_each(|error| all.push(error));
        Some(all)
    }

    /// The same with the count of the errors that the caller has left out already.
    pub fn from_parts(errors: impl IntoIterator<Item = PolicyError>, omitted: usize) -> Option<Self> {
        let mut all = Self::collect(errors)?;
        all.omitted = all.omitted.saturating_add(omitted);
        Some(all)
    }

    /// Adds an error, or counts it if there are [`ERRORS_MAX`] already.
    pub fn push(&mut self, error: PolicyError) {
        if self.rest.len().saturating_add(1) < ERRORS_MAX {
            self.rest.push(error);
        } else {
            self.omitted = self.omitted.saturating_add(1);
        }
    }

    /// Adds all errors of another load.
    pub fn append(&mut self, other: Self) {
        let omitted = other.omitted;
        self.push(*other.first);
        other.rest.into_iter().for_each(|error| self.push(error));
        self.omitted = self.omitted.saturating_add(omitted);
    }

    /// The first error: the one to show where there is room for one.
    pub fn first(&self) -> &PolicyError {
        &self.first
    }

    /// The errors kept, in order.
    pub fn iter(&self) -> impl Iterator<Item = &PolicyError> {
        std::iter::once(self.first()).chain(&self.rest)
    }

    /// How many errors there were, those not kept included.
    pub fn count(&self) -> usize {
        self.rest.len().saturating_add(1).saturating_add(self.omitted)
    }

    /// How many errors were not kept.
    pub fn omitted(&self) -> usize {
        self.omitted
    }
}

impl From<PolicyError> for PolicyErrors {
    fn from(first: PolicyError) -> Self {
        Self { first: Box::new(first), rest: Vec::new(), omitted: 0 }
    }
}

impl Display for PolicyErrors {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        for error in &self.rest {
            write!(f, "\n{error}")?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

/// Moves an offset back to the start of the character it lies in, or to the end of the text.
fn floor(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset = offset.saturating_sub(1);
    }
    offset
}

/// Line and column, both from 1, of a byte offset; the column counts characters. A line ends at `\n`, so the `\r` of
/// a `\r\n` belongs to the line before it and never shifts a column.
pub fn position(text: &str, offset: usize) -> (u32, u32) {
    let before = text.get(..floor(text, offset)).unwrap_or_default();
    let line = memchr::memchr_iter(b'\n', before.as_bytes()).count();
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
    let one_based = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1);
    (one_based(line), one_based(column))
}

/// The line around `offset`, cut to [`EXCERPT_CHARS_MAX`] characters that include the offending one. Costs the
/// characters shown, not the length of the line.
fn excerpt(text: &str, offset: usize) -> String {
    let (before, after) = text.split_at_checked(floor(text, offset)).unwrap_or_default();
    let is_break = |c: char| c == '\n' || c == '\r';
    let kept = before.chars().rev().take_while(|&c| !is_break(c)).take(EXCERPT_CHARS_BEFORE_MAX).map(char::len_utf8);
    let start = before.len().saturating_sub(kept.sum());
    let cut = start > 0 && !before.get(..start).unwrap_or_default().ends_with(is_break);
    let head = printable(before.get(start..).unwrap_or_default().trim_start(), EXCERPT_CHARS_MAX);
    let head = if cut { format!("…{head}") } else { head };
    let room = EXCERPT_CHARS_MAX.saturating_sub(head.chars().count());
    let tail = after.split(is_break).next().unwrap_or_default();
    head + &printable(tail.trim_end(), room)
}

/// Makes untrusted text fit for one line of a terminal or log: control characters (escape sequences, line breaks)
/// and the marks that reorder text become U+FFFD, and the result has at most `chars_max` characters.
fn printable(text: &str, chars_max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(chars_max.saturating_mul(2)));
    for (index, c) in text.chars().enumerate() {
        if index.saturating_add(1) == chars_max && text.chars().nth(chars_max).is_some() {
            out.push('…');
            return out;
        }
        out.push(match c {
            '\n' | '\t' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            // Bidirectional embeddings, overrides and isolates, and the invisible direction marks.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => char::REPLACEMENT_CHARACTER,
            c => c,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_counts_characters_not_bytes() {
        assert_eq!(position("", 0), (1, 1));
        assert_eq!(position("äb\r\nx", 2), (1, 2));
        assert_eq!(position("äb\r\nx", 5), (2, 1));
        assert_eq!(position("ä", 1), (1, 1), "inside a character");
        assert_eq!(position("ab", 99), (1, 3), "past the end");
    }

    #[test]
    fn excerpt_is_one_short_line_that_shows_the_token() {
        let text = format!("first\n{}@{}\nlast", "x".repeat(500), "y".repeat(500));
        let shown = excerpt(&text, 506);
        assert_eq!(shown.chars().count(), EXCERPT_CHARS_MAX);
        assert!(shown.starts_with("…x") && shown.contains("x@y") && shown.ends_with("y…"), "{shown}");
        assert_eq!(excerpt("a\n  b c\r\nd", 6), "b c");
        assert_eq!(excerpt("a", 1), "a");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        let error = PolicyError::new("policy.syntax", "odd \u{1b}[2J").at(Some("a\nb"), "x \u{202e}\u{1b} y", 2);
        assert_eq!(error.to_string(), "a b:1:3: odd \u{fffd}[2J\n  x \u{fffd}\u{fffd} y");
    }

    #[test]
    fn display_has_place_excerpt_and_help() {
        let error = PolicyError::new("policy.too_deep", "policy nesting 70 exceeds limit 64")
            .at(Some("a.cedar"), "permit(\n  ((1", 10)
            .help("split the condition");
        let expected = "a.cedar:2:3: policy nesting 70 exceeds limit 64\n  ((1\nhelp: split the condition";
        assert_eq!(error.to_string(), expected);
        assert_eq!(PolicyError::new("x", "whole").to_string(), "whole");
        assert_eq!(PolicyError::new("x", "whole").in_file(Some("f")).to_string(), "f: whole");
    }

    #[test]
    fn errors_are_capped_and_counted() {
        assert!(PolicyErrors::collect([]).is_none());
        let many = (0..50).map(|_| PolicyError::new("policy.syntax", "m"));
        let mut errors = PolicyErrors::from_parts(many, 5).unwrap();
        assert_eq!((errors.iter().count(), errors.omitted(), errors.count()), (20, 35, 55));
        errors.append(PolicyError::new("policy.syntax", "m").into());
        assert_eq!(errors.count(), 56);
        assert!(errors.to_string().ends_with("\nand 36 more"));
    }
}
