//! What a host says of a call beside asking for it: ids of its runtime, agent, session, run and call.
//!
//! Nobody checks them and no policy reads them: they stand in the entry as asserted, so that whoever reads it finds the
//! call in the host's own records.

use super::evidence::shortened;
use crate::arguments::push_json_str;
use crate::audit::entry::push_name;
use crate::limits::ASSERTED_BYTES_MAX;

/// The ids that there are, in the order of the entry.
pub const ASSERTED_NAMES: [&str; 5] = ["runtime", "agent", "session", "run", "call"];

/// Ids as the host asserts them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asserted {
    texts: [Option<Box<str>>; ASSERTED_NAMES.len()],
    /// `,"asserted":{...}`, made once for all calls that share it
    member: Box<[u8]>,
}

impl Asserted {
    /// Out of names and texts; a text that is too long is cut at a character. `None` if there are none.
    ///
    /// # Errors
    /// A name that is not one of [`ASSERTED_NAMES`], in words.
    pub fn new<'a>(given: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Option<Self>, String> {
        let mut texts: [Option<Box<str>>; ASSERTED_NAMES.len()] = Default::default();
        for (name, text) in given {
            let place = ASSERTED_NAMES.iter().position(|known| *known == name);
            let Some(slot) = place.and_then(|place| texts.get_mut(place)) else {
                let (shown, known) = (super::names::shown(name), ASSERTED_NAMES.join("`, `"));
                return Err(format!("asserted: there is no `{shown}`; there is `{known}`"));
            };
            *slot = Some(shortened(text, ASSERTED_BYTES_MAX).into());
        }
        let mut member = Vec::new();
        for (name, text) in named(&texts) {
            if member.is_empty() {
                push_name(&mut member, "asserted");
                member.push(b'{');
            } else {
                member.push(b',');
            }
            push_json_str(&mut member, name);
            member.push(b':');
            push_json_str(&mut member, text);
        }
        if member.is_empty() {
            return Ok(None);
        }
        member.push(b'}');
        Ok(Some(Self { texts, member: member.into() }))
    }

    /// Names and texts, in the order of the entry.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        named(&self.texts)
    }

    /// The member of an entry.
    pub(super) const fn member(&self) -> &[u8] {
        &self.member
    }
}

fn named(texts: &[Option<Box<str>>; ASSERTED_NAMES.len()]) -> impl Iterator<Item = (&'static str, &str)> {
    ASSERTED_NAMES.into_iter().zip(texts).filter_map(|(name, text)| Some((name, text.as_deref()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stand_in_one_order_and_are_cut_at_a_character() {
        let long = "é".repeat(ASSERTED_BYTES_MAX);
        let made = Asserted::new([("call", "c\"1"), ("runtime", "maf"), ("agent", &long)]).unwrap().unwrap();
        let cut = "é".repeat(ASSERTED_BYTES_MAX / 2);
        assert_eq!(made.iter().collect::<Vec<_>>(), [("runtime", "maf"), ("agent", &*cut), ("call", "c\"1")]);
        let member = format!(r#","asserted":{{"runtime":"maf","agent":"{cut}","call":"c\"1"}}"#);
        assert_eq!(made.member(), member.as_bytes());
        assert_eq!(Asserted::new([]), Ok(None));
        assert!(Asserted::new([("user", "u")]).unwrap_err().contains("`call`"));
    }
}
