//! Which tool names are acceptable: what a reviewer reads must be what a policy compares.
//!
//! A name is Unicode text in normal form C without characters that are invisible or reorder text, and no two
//! registered names differ by case alone. Look-alike letters of different scripts are not detected.

use std::borrow::Cow;

use unicode_normalization::{UnicodeNormalization as _, is_nfc};

use crate::limits::TOOL_NAME_BYTES_MAX;

/// Names of built-in actions, and of the group that holds every tool.
pub const RESERVED: [&str; 3] = ["call_model", "call_tool", "delegate"];

/// Checks one name; says what is wrong with it.
pub fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a tool name is empty".to_owned());
    }
    if name.len() > TOOL_NAME_BYTES_MAX {
        return Err(format!("tool name has {} bytes, the limit is {TOOL_NAME_BYTES_MAX}", name.len()));
    }
    if let Some(bad) = name.chars().find(|c| is_hidden(*c)) {
        return Err(format!("tool name `{}` holds U+{:04X}, which a reader cannot see", shown(name), u32::from(bad)));
    }
    if name.chars().any(|c| c.is_whitespace() && c != ' ') || name.trim() != name {
        return Err(format!("tool name `{}` holds white space other than single inner spaces", shown(name)));
    }
    if !is_nfc(name) {
        return Err(format!("tool name `{}` is not in Unicode normal form C", shown(name)));
    }
    if RESERVED.contains(&fold(name).as_str()) {
        return Err(format!("tool name `{}` is reserved for a built-in action", shown(name)));
    }
    Ok(())
}

/// The form in which names are compared for being equal but for case: each character to upper and back to lower case,
/// which also joins the variants of one letter (`ſ` and `s`, the two small sigmas).
pub fn fold(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).nfc().collect()
}

/// Control characters, marks that reorder text, and characters without a glyph.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Text from outside for a message: short, on one line, nothing hidden.
pub fn shown(text: &str) -> Cow<'_, str> {
    const SHOWN_CHARS_MAX: usize = 64;
    let plain = |c: char| !is_hidden(c) && c != '`';
    if text.len() <= SHOWN_CHARS_MAX && text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut short: String =
        text.chars().take(SHOWN_CHARS_MAX).map(|c| if plain(c) { c } else { char::REPLACEMENT_CHARACTER }).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        short.push('…');
    }
    Cow::Owned(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mislead_are_refused() {
        for name in [
            "",
            " a",
            "a\u{a0}b",
            "a\nb",
            "a\u{200b}b",
            "a\u{202e}b",
            "a\u{fe0f}",
            "e\u{301}",
            "call_model",
            "Delegate",
            "CALL_TOOL",
            "a\u{0}",
            "a\u{e0041}",
        ] {
            assert!(check(name).is_err(), "{name:?}");
        }
        assert!(check(&"x".repeat(TOOL_NAME_BYTES_MAX + 1)).is_err());
        for name in ["send_email", "Mcp.read-file", "übersetzen", "読む", "a b"] {
            assert!(check(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn folding_joins_case_variants() {
        for (a, b) in [("Send", "sEND"), ("straße", "STRASSE"), ("ς", "Σ"), ("\u{17f}", "S"), ("\u{212a}", "k")] {
            assert_eq!(fold(a), fold(b));
        }
        assert_ne!(fold("a"), fold("b"));
    }

    #[test]
    fn messages_show_nothing_hidden() {
        assert_eq!(shown("a\u{202e}`b"), "a\u{fffd}\u{fffd}b");
        assert_eq!(shown(&"x".repeat(200)).chars().count(), 65);
    }
}
