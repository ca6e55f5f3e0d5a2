//! The snapshot of one call's arguments: filled once by the binding, then read by policy and audit.
//!
//! A flat arena: one text buffer and one node list in preorder, no pointers, reused from call to call so that a warm
//! snapshot allocates nothing. It knows neither Cedar programs nor audit entries. It holds plain data only: the JSON
//! escapes `__entity` and `__extn` are ordinary keys here and never become entities or extension values.

use std::io::Write as _;

use smallvec::SmallVec;
use thiserror::Error;

use crate::limits::{ARGUMENT_BYTES_MAX, ARGUMENT_BYTES_WAIT_MAX, ARGUMENT_NESTING_MAX};

/// Bytes of structure charged per node, so that a million empty lists are as bounded as a megabyte of text.
const NODE_BYTES: usize = 16;
/// Bytes of one value in [`Arguments::write_structure`].
pub const ARGUMENT_NODE_BYTES: usize = 24;

/// Hex digits of each byte.
#[expect(clippy::indexing_slicing, reason = "made while compiling, which would stop there")]
const HEX_PAIRS: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    pairs
};

/// The two hex digits of a byte.
#[inline]
pub(crate) fn hex_pair(byte: u8) -> [u8; 2] {
    HEX_PAIRS.get(usize::from(byte)).copied().unwrap_or_default()
}

/// Whether one of eight bytes is written otherwise in JSON: a quote, a backslash or a control character.
#[inline]
const fn any_escaped(bytes: [u8; 8]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    const QUOTES: u64 = u64::from_le_bytes([b'"'; 8]);
    const BACKSLASHES: u64 = u64::from_le_bytes([b'\\'; 8]);
    const SPACES: u64 = u64::from_le_bytes([b' '; 8]);
    let word = u64::from_le_bytes(bytes);
    let (quote, backslash) = (word ^ QUOTES, word ^ BACKSLASHES);
    // A byte below a bound borrows from its own high bit. A borrow that goes further begins at such a byte, so the answer
    // for all eight is right, though not which of them it is.
    let below = (word.wrapping_sub(SPACES) & !word)
        | (quote.wrapping_sub(ONES) & !quote)
        | (backslash.wrapping_sub(ONES) & !backslash);
    below & HIGH != 0
}

/// How many bytes at the beginning stand in JSON as they are.
#[inline]
fn plain_len(bytes: &[u8]) -> usize {
    let (words, _) = bytes.as_chunks::<8>();
    let plain = words.iter().take_while(|word| !any_escaped(**word)).count();
    if plain == words.len() && bytes.last_chunk::<8>().is_some_and(|last| !any_escaped(*last)) {
        return bytes.len();
    }
    let checked = plain.saturating_mul(8);
    let left = bytes.get(checked..).unwrap_or_default();
    let found = left.iter().position(|byte| matches!(byte, 0..0x20 | b'"' | b'\\'));
    checked.saturating_add(found.unwrap_or(left.len()))
}

/// Appends text as a JSON string, byte for byte as `serde_json` does.
pub fn push_json_str(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let (plain, after) = rest.split_at_checked(plain_len(rest)).unwrap_or((rest, &[]));
        out.extend_from_slice(plain);
        let Some((byte, after)) = after.split_first() else { break };
        push_escaped(out, *byte);
        rest = after;
    }
    out.push(b'"');
}

#[cold]
fn push_escaped(out: &mut Vec<u8>, byte: u8) {
    let letter = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0c => b'f',
        b'\r' => b'r',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&hex_pair(byte));
            return;
        }
    };
    out.extend_from_slice(&[b'\\', letter]);
}

/// Appends a decimal, given in units of 10^-4.
pub(crate) fn push_decimal(out: &mut Vec<u8>, units: i64) {
    let sign = if units < 0 { "-" } else { "" };
    let (whole, part) = (units.unsigned_abs() / 10_000, units.unsigned_abs() % 10_000);
    // Writing to memory does not fail.
    let _ = write!(out, "{sign}{whole}.{part:04}");
}

/// Why a snapshot could not be taken. Nothing of the value is in the message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ArgumentsError {
    /// More bytes than the bound.
    #[error("arguments take more than {limit} bytes")]
    TooLarge {
        /// The bound in bytes.
        limit: usize,
    },
    /// Nested deeper than the bound.
    #[error("arguments nest deeper than {limit} levels")]
    TooDeep {
        /// The bound in levels.
        limit: usize,
    },
    /// The same key twice in one object.
    #[error("an object in the arguments has the same key twice")]
    DuplicateKey,
    /// `null` has no meaning inside a list.
    #[error("a list in the arguments holds null, which Cedar cannot represent")]
    NullInList,
}

impl ArgumentsError {
    /// The denial code this becomes at the gate.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } | Self::TooDeep { .. } => "input.too_large",
            Self::DuplicateKey | Self::NullInList => "input.unrepresentable",
        }
    }
}

/// A range of the text buffer.
#[derive(Debug, Clone, Copy, Default)]
struct Text {
    start: u32,
    len: u32,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Null,
    Bool(bool),
    Long(i64),
    /// Kept as it came: whether it is a decimal is decided when it is read.
    Float(f64),
    /// A decimal in units of 10^-4, made by a schema that says `number`.
    Decimal(i64),
    Str(Text),
    List,
    Object {
        /// The caller vouches that no key comes twice.
        distinct: bool,
    },
    /// An integer beyond 64 bits.
    Unrepresentable,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    /// Key of this node in its object; empty in lists and at the root.
    key: Text,
    /// Index of the first node after this one's subtree.
    end: u32,
    kind: Kind,
}

/// One call's arguments.
#[derive(Debug, Default)]
pub struct Arguments {
    text: String,
    nodes: Vec<Node>,
    /// Indices of the objects and lists still open while filling.
    open: Vec<u32>,
    bytes: usize,
    bytes_max: usize,
}

impl Arguments {
    /// An empty snapshot with the bound of `check`.
    pub fn new() -> Self {
        Self { bytes_max: ARGUMENT_BYTES_MAX, ..Self::default() }
    }

    /// Empties the snapshot, keeps its buffers, and sets the bound for the next filling.
    pub fn reset(&mut self, bytes_max: usize) {
        self.text.clear();
        self.nodes.clear();
        self.open.clear();
        self.bytes = 0;
        self.bytes_max = bytes_max;
    }

    /// Bytes charged so far.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    fn charge(&mut self, bytes: usize) -> Result<(), ArgumentsError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.bytes_max {
            return Err(ArgumentsError::TooLarge { limit: self.bytes_max });
        }
        Ok(())
    }

    #[inline]
    fn copy_text(&mut self, text: &str) -> Result<Text, ArgumentsError> {
        self.charge(text.len())?;
        let too_large = ArgumentsError::TooLarge { limit: self.bytes_max };
        let start = u32::try_from(self.text.len()).map_err(|_| too_large.clone())?;
        let len = u32::try_from(text.len()).map_err(|_| too_large)?;
        self.text.push_str(text);
        Ok(Text { start, len })
    }

    #[inline]
    fn push(&mut self, key: Option<&str>, kind: Kind) -> Result<u32, ArgumentsError> {
        self.charge(NODE_BYTES)?;
        let key = match key {
            Some(key) => {
                self.refuse_duplicate(key)?;
                self.copy_text(key)?
            }
            None => Text::default(),
        };
        let index = u32::try_from(self.nodes.len()).map_err(|_| ArgumentsError::TooLarge { limit: self.bytes_max })?;
        self.nodes.push(Node { key, end: index.saturating_add(1), kind });
        Ok(index)
    }

    /// Quadratic in the fields of one object. The bound on bytes keeps an object of `check` under 4,096 fields, and
    /// a length compare settles most pairs; without it two equal keys could show policy one value and the tool another.
    /// Nothing to do where the caller vouches for the keys.
    #[inline]
    fn refuse_duplicate(&self, key: &str) -> Result<(), ArgumentsError> {
        let Some(&parent) = self.open.last() else { return Ok(()) };
        match self.nodes.get(parent as usize) {
            Some(Node { kind: Kind::Object { distinct: true }, .. }) => Ok(()),
            _ => self.scan_for_duplicate(parent, key),
        }
    }

    fn scan_for_duplicate(&self, parent: u32, key: &str) -> Result<(), ArgumentsError> {
        let mut index = parent.saturating_add(1);
        while let Some(node) = self.nodes.get(index as usize) {
            if self.str_of(node.key) == key {
                return Err(ArgumentsError::DuplicateKey);
            }
            index = node.end;
        }
        Ok(())
    }

    /// Adds `null`: an absent attribute in an object, refused in a list.
    pub fn push_null(&mut self, key: Option<&str>) -> Result<(), ArgumentsError> {
        if key.is_none() {
            return Err(ArgumentsError::NullInList);
        }
        self.push(key, Kind::Null).map(drop)
    }

    /// Adds a boolean.
    pub fn push_bool(&mut self, key: Option<&str>, value: bool) -> Result<(), ArgumentsError> {
        self.push(key, Kind::Bool(value)).map(drop)
    }

    /// Adds an integer.
    pub fn push_long(&mut self, key: Option<&str>, value: i64) -> Result<(), ArgumentsError> {
        self.push(key, Kind::Long(value)).map(drop)
    }

    /// Adds an integer that does not fit 64 bits: present, but a policy that reads it errs.
    pub fn push_unrepresentable(&mut self, key: Option<&str>) -> Result<(), ArgumentsError> {
        self.push(key, Kind::Unrepresentable).map(drop)
    }

    /// Adds a float.
    pub fn push_float(&mut self, key: Option<&str>, value: f64) -> Result<(), ArgumentsError> {
        self.push(key, Kind::Float(value)).map(drop)
    }

    /// Adds a decimal, in units of 10^-4: what a schema that says `number` makes of a number.
    pub fn push_decimal(&mut self, key: Option<&str>, units: i64) -> Result<(), ArgumentsError> {
        self.push(key, Kind::Decimal(units)).map(drop)
    }

    /// Adds text.
    pub fn push_str(&mut self, key: Option<&str>, value: &str) -> Result<(), ArgumentsError> {
        let text = self.copy_text(value)?;
        self.push(key, Kind::Str(text)).map(drop)
    }

    /// Opens an object; close it with [`Arguments::close`].
    pub fn open_object(&mut self, key: Option<&str>) -> Result<(), ArgumentsError> {
        self.open_node(key, Kind::Object { distinct: false })
    }

    /// Opens an object whose keys cannot repeat because they are the keys of a map of texts: its fields are not
    /// compared with each other, so filling it is linear. If the caller is wrong, lookups find the first of the equals.
    pub fn open_object_distinct(&mut self, key: Option<&str>) -> Result<(), ArgumentsError> {
        self.open_node(key, Kind::Object { distinct: true })
    }

    /// Opens a list; close it with [`Arguments::close`].
    pub fn open_list(&mut self, key: Option<&str>) -> Result<(), ArgumentsError> {
        self.open_node(key, Kind::List)
    }

    #[inline]
    fn open_node(&mut self, key: Option<&str>, kind: Kind) -> Result<(), ArgumentsError> {
        if self.open.len() >= ARGUMENT_NESTING_MAX {
            return Err(ArgumentsError::TooDeep { limit: ARGUMENT_NESTING_MAX });
        }
        let index = self.push(key, kind)?;
        self.open.push(index);
        Ok(())
    }

    /// Closes the innermost open object or list.
    pub fn close(&mut self) {
        let end = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        if let Some(index) = self.open.pop()
            && let Some(node) = self.nodes.get_mut(index as usize)
        {
            node.end = end;
        }
    }

    /// The text of all keys and strings, one after the other.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Appends the structure, [`ARGUMENT_NODE_BYTES`] for each value, so that [`Arguments::refill`] can make the same
    /// snapshot of it and of the text: key (start, length), end, kind, value.
    #[inline]
    pub fn write_structure(&self, out: &mut Vec<u8>) {
        for node in &self.nodes {
            let (kind, value) = match node.kind {
                Kind::Null => (0_u32, 0),
                Kind::Bool(value) => (1, u64::from(value)),
                Kind::Long(value) => (2, value.cast_unsigned()),
                Kind::Float(value) => (3, value.to_bits()),
                Kind::Decimal(value) => (4, value.cast_unsigned()),
                Kind::Str(text) => (5, u64::from(text.start) | (u64::from(text.len) << 32)),
                Kind::List => (6, 0),
                Kind::Object { distinct } => (7, u64::from(distinct)),
                Kind::Unrepresentable => (8, 0),
            };
            let mut bytes = [0; ARGUMENT_NODE_BYTES];
            let words = [node.key.start, node.key.len, node.end, kind];
            let (head, tail) = bytes.split_at_mut(16);
            for (to, word) in head.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                *to = word.to_le_bytes();
            }
            tail.copy_from_slice(&value.to_le_bytes());
            out.extend_from_slice(&bytes);
        }
    }

    /// Becomes the snapshot that wrote this structure and text. False, and empty, if they are none: they may come out
    /// of a file.
    pub fn refill(&mut self, structure: &[u8], text: &[u8]) -> bool {
        self.reset(ARGUMENT_BYTES_WAIT_MAX);
        let filled = self.try_refill(structure, text).is_some();
        if !filled {
            self.reset(ARGUMENT_BYTES_MAX);
        }
        filled
    }

    fn try_refill(&mut self, structure: &[u8], text: &[u8]) -> Option<()> {
        self.text.push_str(std::str::from_utf8(text).ok()?);
        let (nodes, rest) = structure.as_chunks::<ARGUMENT_NODE_BYTES>();
        if !rest.is_empty() {
            return None;
        }
        // Each byte of the text is in one key or string: what says otherwise would grow without bound when written.
        let mut text_left = text.len();
        // Where the lists and objects end that the next node is in.
        let mut open: SmallVec<[u32; 16]> = SmallVec::new();
        for (index, bytes) in nodes.iter().enumerate() {
            let (words, value) = bytes.split_at_checked(16)?;
            let [start, len, end, kind] = words.as_chunks::<4>().0 else { return None };
            let [start, len, end, kind] = [start, len, end, kind].map(|word| u32::from_le_bytes(*word));
            let value = u64::from_le_bytes(value.try_into().ok()?);
            let key = Text { start, len };
            // A subtree ends behind its own node and within the snapshot.
            if (end as usize) <= index || (end as usize) > nodes.len() || self.checked(key).is_none() {
                return None;
            }
            while open.last().is_some_and(|end| *end as usize <= index) {
                open.pop();
            }
            let is_inside = open.last().map_or(index == 0, |outer| end <= *outer);
            let is_tree = if matches!(kind, 6 | 7) {
                open.len() < ARGUMENT_NESTING_MAX
            } else {
                end as usize == index.saturating_add(1)
            };
            if !is_inside || !is_tree {
                return None;
            }
            open.push(end);
            text_left = text_left.checked_sub(len as usize)?;
            let kind = match kind {
                0 => Kind::Null,
                1 => Kind::Bool(value != 0),
                2 => Kind::Long(value.cast_signed()),
                3 => Kind::Float(f64::from_bits(value)),
                4 => Kind::Decimal(value.cast_signed()),
                5 => {
                    let text =
                        Text { start: u32::try_from(value & 0xffff_ffff).ok()?, len: u32::try_from(value >> 32).ok()? };
                    self.checked(text)?;
                    text_left = text_left.checked_sub(text.len as usize)?;
                    Kind::Str(text)
                }
                6 => Kind::List,
                7 => Kind::Object { distinct: value != 0 },
                8 => Kind::Unrepresentable,
                _ => return None,
            };
            self.nodes.push(Node { key, end, kind });
        }
        Some(())
    }

    fn checked(&self, text: Text) -> Option<&str> {
        let start = text.start as usize;
        self.text.get(start..start.checked_add(text.len as usize)?)
    }

    /// Appends the snapshot as compact JSON. What has no JSON form, an integer beyond 64 bits or a float that is no
    /// number, becomes 2^63: a number that Cedar has no value for either.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut open: SmallVec<[(u32, u8); 16]> = SmallVec::new();
        let mut first = true;
        if self.nodes.is_empty() {
            out.extend_from_slice(b"null");
        }
        for (index, node) in (0_u32..).zip(&self.nodes) {
            while let Some((_, bracket)) = open.last().copied().filter(|(end, _)| *end <= index) {
                open.pop();
                out.push(bracket);
                first = false;
            }
            if !first {
                out.push(b',');
            }
            first = false;
            if open.last().is_some_and(|(_, bracket)| *bracket == b'}') {
                push_json_str(out, self.str_of(node.key));
                out.push(b':');
            }
            match node.kind {
                Kind::Null => out.extend_from_slice(b"null"),
                Kind::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
                Kind::Long(value) => out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
                Kind::Float(value) if value.is_finite() => {
                    // Writing to memory does not fail.
                    let _ = serde_json::to_writer(&mut *out, &value);
                }
                Kind::Decimal(units) => push_decimal(out, units),
                Kind::Str(text) => push_json_str(out, self.str_of(text)),
                Kind::List | Kind::Object { .. } => {
                    let list = matches!(node.kind, Kind::List);
                    out.push(if list { b'[' } else { b'{' });
                    open.push((node.end, if list { b']' } else { b'}' }));
                    first = true;
                }
                Kind::Float(_) | Kind::Unrepresentable => out.extend_from_slice(b"9223372036854775808"),
            }
        }
        out.extend(open.iter().rev().map(|(_, bracket)| *bracket));
    }

    /// The root value; `None` before anything was pushed.
    pub fn root(&self) -> Option<ArgumentRef<'_>> {
        (!self.nodes.is_empty()).then_some(ArgumentRef { arguments: self, index: 0 })
    }

    /// Makes one value what the tool's schema says it is. The schema decides before anything reads the snapshot.
    pub fn convert(&mut self, conversion: Conversion) {
        let (index, kind) = match conversion {
            Conversion::Long(index, value) => (index, Kind::Long(value)),
            Conversion::Decimal(index, value) => (index, Kind::Decimal(value)),
            Conversion::Unrepresentable(index) => (index, Kind::Unrepresentable),
        };
        if let Some(node) = self.nodes.get_mut(index as usize) {
            node.kind = kind;
        }
    }

    /// Where a node stands, as keys and positions: `to[2].name`. Empty for the root. For messages only.
    pub fn location(&self, index: u32) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        let mut at = self.root();
        while let Some(node) = at.filter(|node| node.index != index) {
            let in_list = matches!(node.value(), Argument::List);
            let inside = node.children().enumerate().filter(|(_, (_, child))| child.index <= index).last();
            at = inside.map(|(position, (key, child))| {
                // Writing to a String cannot fail.
                let _ = if in_list {
                    write!(text, "[{position}]")
                } else {
                    write!(text, "{}{key}", if text.is_empty() { "" } else { "." })
                };
                child
            });
        }
        text
    }

    #[inline]
    fn str_of(&self, text: Text) -> &str {
        let start = text.start as usize;
        self.text.get(start..start.saturating_add(text.len as usize)).unwrap_or_default()
    }
}

/// What a schema makes of one node, by its [`ArgumentRef::index`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversion {
    /// A 64-bit integer
    Long(u32, i64),
    /// A decimal in units of 10^-4
    Decimal(u32, i64),
    /// Present, but a policy that reads it errs
    Unrepresentable(u32),
}

/// One node of a snapshot.
#[derive(Debug, Clone, Copy)]
pub struct ArgumentRef<'a> {
    arguments: &'a Arguments,
    index: u32,
}

/// What a node holds.
#[derive(Debug, Clone, Copy)]
pub enum Argument<'a> {
    /// JSON null
    Null,
    /// Boolean
    Bool(bool),
    /// 64-bit integer
    Long(i64),
    /// IEEE double, as it came
    Float(f64),
    /// Units of 10^-4
    Decimal(i64),
    /// Text
    Str(&'a str),
    /// A list: iterate with [`ArgumentRef::children`]
    List,
    /// An object: iterate with [`ArgumentRef::children`], look up with [`ArgumentRef::get`]
    Object,
    /// An integer beyond 64 bits
    Unrepresentable,
}

impl<'a> ArgumentRef<'a> {
    /// What this node holds.
    #[inline]
    pub fn value(self) -> Argument<'a> {
        let Some(node) = self.arguments.nodes.get(self.index as usize) else { return Argument::Null };
        match node.kind {
            Kind::Null => Argument::Null,
            Kind::Bool(b) => Argument::Bool(b),
            Kind::Long(n) => Argument::Long(n),
            Kind::Float(x) => Argument::Float(x),
            Kind::Decimal(n) => Argument::Decimal(n),
            Kind::Str(text) => Argument::Str(self.arguments.str_of(text)),
            Kind::List => Argument::List,
            Kind::Object { .. } => Argument::Object,
            Kind::Unrepresentable => Argument::Unrepresentable,
        }
    }

    /// Children with their keys (empty in lists), in the order they were pushed; nulls included.
    #[inline]
    pub fn children(self) -> Children<'a> {
        let end = self.arguments.nodes.get(self.index as usize).map_or(0, |node| node.end);
        Children { arguments: self.arguments, next: self.index.saturating_add(1), end }
    }

    /// The child named `key`, null included.
    #[inline]
    pub fn get(self, key: &str) -> Option<Self> {
        self.children().find(|(name, _)| *name == key).map(|(_, child)| child)
    }

    /// Position of the node in the snapshot: stable while the snapshot is, usable as a key.
    pub const fn index(self) -> u32 {
        self.index
    }
}

/// Iterator over the children of one node.
#[derive(Debug)]
pub struct Children<'a> {
    arguments: &'a Arguments,
    next: u32,
    end: u32,
}

impl<'a> Iterator for Children<'a> {
    type Item = (&'a str, ArgumentRef<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let node = self.arguments.nodes.get(self.next as usize)?;
        let child = ArgumentRef { arguments: self.arguments, index: self.next };
        self.next = node.end;
        Some((self.arguments.str_of(node.key), child))
    }
}

/// A float as a decimal: its shortest decimal form, if that has at most four fraction digits and fits.
pub fn decimal_from_float(value: f64) -> Option<i64> {
    /// Below this, a product with 10^4 that divides back to the same double is the shortest form: at most 15 digits
    /// always survive the way to a double and back.
    const EXACT_MAX: f64 = 99_999_999_999.0;
    if !value.is_finite() {
        return None;
    }
    if value.abs() <= EXACT_MAX {
        let scaled = (value * 10_000.0).round();
        #[expect(clippy::cast_possible_truncation, reason = "at most 10^15, exact in i64")]
        #[expect(clippy::float_cmp, reason = "the question is whether the decimal is exactly this double")]
        return (scaled / 10_000.0 == value).then_some(scaled as i64);
    }
    let text = value.to_string();
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    if fraction.len() > 4 {
        return None;
    }
    format!("{whole}{fraction:0<4}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn json_text_is_that_of_serde_json(
            text in prop_oneof![
                any::<String>(),
                "[ -~]{0,40}",
                proptest::collection::vec(prop_oneof![0_u8..0x30, Just(b'\\'), Just(0x7f), 0x60_u8..0x70], 0..40)
                    .prop_map(|bytes| bytes.into_iter().map(char::from).collect::<String>()),
                proptest::collection::vec(any::<char>(), 0..20).prop_map(|chars| chars.into_iter().collect::<String>()),
            ]
        ) {
            let mut out = b"before".to_vec();
            push_json_str(&mut out, &text);
            let expected = format!("before{}", serde_json::to_string(&text).unwrap());
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn every_character_of_one_byte_is_escaped_as_serde_json_does_wherever_it_stands() {
        for byte in 0..=0x7f_u8 {
            for before in 0..18 {
                let text = format!("{}{}é", "a".repeat(before), char::from(byte));
                let mut out = Vec::new();
                push_json_str(&mut out, &text);
                assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&text).unwrap());
            }
        }
    }

    #[test]
    fn floats_become_decimals_by_their_shortest_form() {
        for (value, expected) in [
            (0.0, Some(0)),
            (-0.0, Some(0)),
            (1.5, Some(15_000)),
            (0.1, Some(1_000)),
            (-2.3456, Some(-23_456)),
            (1.23456, None),
            (1e-5, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
            (1e300, None),
            (922_337_203_685_477.5, Some(9_223_372_036_854_775_000)),
            (922_337_203_685_478.0, None),
        ] {
            assert_eq!(decimal_from_float(value), expected, "{value}");
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "both counts are below 2^53")]
    fn ratio(count: i64, unit: i64) -> f64 {
        count as f64 / unit as f64
    }

    proptest! {
        /// The fast path equals parsing the shortest printed form.
        #[test]
        fn float_conversion_equals_the_printed_form(value in prop_oneof![
            any::<f64>(),
            (-10_000_000_000_000i64..10_000_000_000_000).prop_map(|n| ratio(n, 10_000)),
            (-1_000_000_000_000i64..1_000_000_000_000).prop_map(|n| ratio(n, 100_000)),
        ]) {
            let printed = format!("{value}");
            let expected = if value.is_finite() {
                let (whole, fraction) = printed.split_once('.').unwrap_or((&printed, ""));
                if fraction.len() > 4 { None } else { format!("{whole}{fraction:0<4}").parse::<i64>().ok() }
            } else {
                None
            };
            prop_assert_eq!(decimal_from_float(value), expected);
        }
    }

    #[test]
    fn snapshot_reads_back_what_was_pushed() {
        let mut arguments = Arguments::new();
        arguments.open_object(None).unwrap();
        arguments.push_str(Some("to"), "bob").unwrap();
        arguments.open_list(Some("n")).unwrap();
        arguments.push_long(None, 1).unwrap();
        arguments.push_long(None, 2).unwrap();
        arguments.close();
        arguments.push_null(Some("cc")).unwrap();
        arguments.close();
        let root = arguments.root().unwrap();
        assert_eq!(root.children().map(|(key, _)| key).collect::<Vec<_>>(), ["to", "n", "cc"]);
        assert!(matches!(root.get("to").unwrap().value(), Argument::Str("bob")));
        assert_eq!(root.get("n").unwrap().children().count(), 2);
        assert!(matches!(root.get("cc").unwrap().value(), Argument::Null));
        assert!(root.get("bcc").is_none());
    }

    #[test]
    fn nodes_are_converted_in_place_and_located() {
        let mut arguments = Arguments::new();
        arguments.open_object(None).unwrap();
        arguments.open_list(Some("to")).unwrap();
        arguments.push_long(None, 1).unwrap();
        arguments.open_object(None).unwrap();
        arguments.push_float(Some("rate"), 1.5).unwrap();
        arguments.close();
        arguments.close();
        arguments.push_long(Some("n"), 2).unwrap();
        arguments.close();
        let locations: Vec<String> = (0..6).map(|index| arguments.location(index)).collect();
        assert_eq!(locations, ["", "to", "to[0]", "to[1]", "to[1].rate", "n"]);
        arguments.convert(Conversion::Decimal(4, 15_000));
        arguments.convert(Conversion::Unrepresentable(5));
        let root = arguments.root().unwrap();
        let inner = root.get("to").unwrap().children().nth(1).unwrap().1;
        assert!(matches!(inner.get("rate").unwrap().value(), Argument::Decimal(15_000)));
        assert!(matches!(root.get("n").unwrap().value(), Argument::Unrepresentable));
    }

    #[test]
    fn bounds_and_refusals() {
        let mut arguments = Arguments::new();
        arguments.reset(64);
        arguments.open_object(None).unwrap();
        assert_eq!(arguments.push_str(Some("k"), &"x".repeat(64)), Err(ArgumentsError::TooLarge { limit: 64 }));
        arguments.reset(1 << 16);
        for _ in 0..ARGUMENT_NESTING_MAX {
            arguments.open_list(None).unwrap();
        }
        assert_eq!(arguments.open_list(None), Err(ArgumentsError::TooDeep { limit: ARGUMENT_NESTING_MAX }));
        arguments.reset(1 << 16);
        arguments.open_object(None).unwrap();
        arguments.push_bool(Some("a"), true).unwrap();
        assert_eq!(arguments.push_bool(Some("a"), true), Err(ArgumentsError::DuplicateKey));
        assert_eq!(arguments.push_null(None), Err(ArgumentsError::NullInList));
    }

    #[test]
    fn a_vouched_object_vouches_for_itself_only() {
        let mut arguments = Arguments::new();
        arguments.open_object_distinct(None).unwrap();
        arguments.open_object(Some("inner")).unwrap();
        arguments.push_bool(Some("a"), true).unwrap();
        assert_eq!(arguments.push_bool(Some("a"), true), Err(ArgumentsError::DuplicateKey));
        arguments.close();
        arguments.push_bool(Some("b"), true).unwrap();
        arguments.push_bool(Some("b"), false).unwrap();
        arguments.close();
        assert!(matches!(arguments.root().unwrap().get("b").unwrap().value(), Argument::Bool(true)));
    }
}
