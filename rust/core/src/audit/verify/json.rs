//! A strict, quick reader of one compact JSON object: finds members without building anything.
//!
//! Stricter than JSON in two ways that hold for every entry: no white space outside strings, and nesting is bounded.

use crate::limits::AUDIT_JSON_NESTING_MAX;

/// What a writer appends nests that deep, within the entry and the members that it puts around.
const NESTING_MAX: usize = AUDIT_JSON_NESTING_MAX + 4;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// A byte of `word` that is zero has its high bit set, and so may have bytes above the first such one.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & HIGHS
}

/// High bits at bytes that end a run of plain string bytes; only the lowest one is certain.
const fn special_bytes(word: u64) -> u64 {
    let quote = zero_bytes(word ^ 0x2222_2222_2222_2222);
    let escape = zero_bytes(word ^ 0x5c5c_5c5c_5c5c_5c5c);
    let control = word.wrapping_sub(0x2020_2020_2020_2020) & !word & HIGHS;
    quote | escape | control
}

/// Where the text stops being what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonFault {
    /// Byte of the text
    pub at: usize,
}

/// A member, or a member of a member.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// 0 for the object's own, 1 for those of an object that is a member's value
    pub depth: usize,
    /// Between the quotes, escapes and all
    pub key: &'a str,
    /// As it stands
    pub value: &'a str,
}

struct Scanner<'a, V> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// Objects and arrays that are open
    open: usize,
    visit: V,
}

impl<'a, V: FnMut(Member<'a>)> Scanner<'a, V> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn step(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    fn refuse<T>(&self) -> Result<T, JsonFault> {
        Err(JsonFault { at: self.at })
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonFault> {
        if self.peek() != Some(byte) {
            return self.refuse();
        }
        self.step(1);
        Ok(())
    }

    fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// A string, without its quotes.
    fn string(&mut self) -> Result<&'a str, JsonFault> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            while let Some(chunk) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
                let special = special_bytes(u64::from_le_bytes(*chunk));
                if special != 0 {
                    self.step((special.trailing_zeros() >> 3) as usize);
                    break;
                }
                self.step(8);
            }
            match self.peek() {
                Some(b'"') => {
                    let text = self.since(start);
                    self.step(1);
                    return Ok(text);
                }
                Some(b'\\') => self.escape()?,
                Some(byte) if byte >= 0x20 => self.step(1),
                _ => return self.refuse(),
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonFault> {
        self.step(1);
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.step(1),
            Some(b'u') => {
                self.step(1);
                let digits = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<4>());
                if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                    return self.refuse();
                }
                self.step(4);
            }
            _ => return self.refuse(),
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonFault> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.step(1);
        }
        if self.at == start { self.refuse() } else { Ok(()) }
    }

    fn number(&mut self) -> Result<(), JsonFault> {
        if self.peek() == Some(b'-') {
            self.step(1);
        }
        if self.peek() == Some(b'0') {
            self.step(1);
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.step(1);
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.step(1);
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.step(1);
            }
            self.digits()?;
        }
        Ok(())
    }

    fn word(&mut self, word: &[u8]) -> Result<(), JsonFault> {
        if !self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return self.refuse();
        }
        self.step(word.len());
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<(), JsonFault> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.refuse(),
        }
    }

    fn enter(&mut self) -> Result<(), JsonFault> {
        if self.open >= NESTING_MAX {
            return self.refuse();
        }
        self.open = self.open.saturating_add(1);
        Ok(())
    }

    /// Goes beyond the closing bracket.
    fn leave(&mut self) {
        self.open = self.open.saturating_sub(1);
        self.step(1);
    }

    fn object(&mut self, depth: usize) -> Result<(), JsonFault> {
        self.expect(b'{')?;
        self.enter()?;
        if self.peek() == Some(b'}') {
            self.leave();
            return Ok(());
        }
        loop {
            let key = self.string()?;
            self.expect(b':')?;
            let start = self.at;
            self.value(depth.saturating_add(1))?;
            if depth <= 1 {
                let value = self.since(start);
                (self.visit)(Member { depth, key, value });
            }
            if self.peek() == Some(b'}') {
                self.leave();
                return Ok(());
            }
            self.expect(b',')?;
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), JsonFault> {
        self.expect(b'[')?;
        self.enter()?;
        if self.peek() == Some(b']') {
            self.leave();
            return Ok(());
        }
        loop {
            // Members inside an array are nobody's: they count as deep ones.
            self.value(depth.saturating_add(2))?;
            if self.peek() == Some(b']') {
                self.leave();
                return Ok(());
            }
            self.expect(b',')?;
        }
    }
}

/// Checks that the text is one compact JSON object, and shows its members and those of its objects, inner ones first.
pub fn members<'a>(text: &'a [u8], visit: impl FnMut(Member<'a>)) -> Result<(), JsonFault> {
    let readable = std::str::from_utf8(text).map_err(|error| JsonFault { at: error.valid_up_to() })?;
    let mut scanner = Scanner { text: readable, bytes: text, at: 0, open: 0, visit };
    scanner.object(0)?;
    if scanner.at == text.len() { Ok(()) } else { scanner.refuse() }
}

/// The text of a string value that has no escapes.
pub fn plain_string(value: &str) -> Option<&str> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if inner.as_bytes().contains(&b'\\') { None } else { Some(inner) }
}
