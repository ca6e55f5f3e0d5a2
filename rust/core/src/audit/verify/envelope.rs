//! What a verification reads of an entry: the envelope, and the few members that completeness and payloads hang on.

use super::json::{Member, members, plain_string};

/// Who made an entry: a process, through its ring or in its writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Producer {
    /// The process
    pub instance: u64,
    /// The writer's own entries
    pub writer: bool,
}

impl Producer {
    /// Reads 16 hexadecimal digits, with `.w` after them for the writer.
    pub fn parse(text: &str) -> Option<Self> {
        let (digits, writer) = text.strip_suffix(".w").map_or((text, false), |digits| (digits, true));
        Some(Self { instance: hex(digits)?, writer })
    }
}

impl std::fmt::Display for Producer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:016x}{}", self.instance, if self.writer { ".w" } else { "" })
    }
}

fn hex(digits: &str) -> Option<u64> {
    let plain = digits.len() == 16 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if plain { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// A decision's id: the process, and its count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecisionId {
    /// The process
    pub instance: u64,
    /// Its count
    pub number: u64,
}

impl DecisionId {
    fn parse(text: &str) -> Option<Self> {
        let (instance, number) = text.split_once('-')?;
        Some(Self { instance: hex(instance)?, number: super::note::decimal(number)? })
    }
}

/// What is read of an entry.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// What happened
    pub kind: &'a str,
    /// Who says so
    pub producer: Producer,
    /// That one's count
    pub seq: u64,
    /// Of a decision
    pub id: Option<DecisionId>,
    /// Of an outcome
    pub of: Option<DecisionId>,
    /// Of a decision: allowed
    pub allow: bool,
    /// The commitment that the entry's payload must have, in base64
    pub commitment: Option<&'a str>,
    /// The payload was written with the entry, into the same frame
    pub stored: bool,
}

#[derive(Default)]
struct Seen<'a> {
    order: usize,
    misplaced: Option<&'static str>,
    kind: &'a str,
    producer: &'a str,
    seq: &'a str,
    time: &'a str,
    version: &'a str,
    id: Option<&'a str>,
    of: Option<&'a str>,
    decision: Option<&'a str>,
    candidate: Option<&'a str>,
    inner: Option<&'a str>,
    stored: bool,
    own: Option<&'a str>,
    request: Option<&'a str>,
}

impl<'a> Seen<'a> {
    fn once(&mut self, slot: fn(&mut Self) -> &mut Option<&'a str>, value: &'a str) {
        if slot(self).replace(value).is_some() {
            self.misplaced = Some("a member stands twice");
        }
    }

    fn take(&mut self, member: Member<'a>) {
        let value = member.value;
        if member.depth > 0 {
            if member.key == "commitment" && self.order > 4 {
                self.candidate = Some(value);
            }
            return;
        }
        // Members of a member are seen before it is. A program may have members of that name elsewhere.
        if let Some(candidate) = self.candidate.take()
            && ["arguments", "private", "request", "oversize"].contains(&member.key)
            && value.starts_with('{')
        {
            self.inner = Some(candidate);
            // A program may name members of its own like this: only the writer's own names promise a payload.
            self.stored = match member.key {
                "arguments" => self.kind == "\"decision\"",
                "request" => self.kind == "\"run\"",
                _ => true,
            };
        }
        let place = self.order;
        self.order = place.saturating_add(1);
        let expected: Option<(&str, &mut &'a str)> = match place {
            0 => Some(("v", &mut self.version)),
            1 => Some(("kind", &mut self.kind)),
            2 => Some(("producer", &mut self.producer)),
            3 => Some(("seq", &mut self.seq)),
            4 => Some(("time", &mut self.time)),
            _ => None,
        };
        if let Some((name, into)) = expected {
            if member.key == name {
                *into = value;
            } else {
                self.misplaced = Some("the entry does not begin with v, kind, producer, seq, time");
            }
            return;
        }
        match member.key {
            "v" | "kind" | "producer" | "seq" | "time" => self.misplaced = Some("a member stands twice"),
            "id" => self.once(|seen| &mut seen.id, value),
            "of" => self.once(|seen| &mut seen.of, value),
            "decision" => self.once(|seen| &mut seen.decision, value),
            "commitment" => self.once(|seen| &mut seen.own, value),
            "request" => self.once(|seen| &mut seen.request, value),
            _ => {}
        }
    }
}

/// `2026-11-21T17:05:18.123Z`
fn is_time(text: &str) -> bool {
    let pattern = b"0000-00-00T00:00:00.000Z";
    let fits = |(byte, shape): (u8, &u8)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == *shape };
    text.len() == pattern.len() && text.bytes().zip(pattern).all(fits)
}

/// Reads an entry; says what is wrong with it.
pub fn read(entry: &[u8]) -> Result<Envelope<'_>, String> {
    let mut seen = Seen::default();
    members(entry, |member| seen.take(member))
        .map_err(|fault| format!("the entry is not one compact JSON object, at byte {}", fault.at))?;
    if let Some(message) = seen.misplaced {
        return Err(message.to_owned());
    }
    if seen.order < 5 || seen.version != "1" {
        return Err("the entry is not of version 1".to_owned());
    }
    let kind = plain_string(seen.kind).filter(|kind| !kind.is_empty()).ok_or("the kind is not a plain string")?;
    let producer = plain_string(seen.producer).and_then(Producer::parse);
    let producer = producer.ok_or("the producer is not 16 hexadecimal digits")?;
    let seq = super::note::decimal(seen.seq).filter(|seq| *seq > 0);
    let seq = seq.ok_or("the sequence number is not a whole number from 1")?;
    if !plain_string(seen.time).is_some_and(is_time) {
        return Err("the time is not RFC 3339 in UTC with milliseconds".to_owned());
    }
    let id_of = |raw: Option<&str>| raw.and_then(plain_string).and_then(DecisionId::parse);
    let (id, of) = (id_of(seen.id), id_of(seen.of));
    if (kind == "decision" && id.is_none()) || (kind == "outcome" && of.is_none()) {
        return Err("the id of the decision is missing".to_owned());
    }
    let committed = match kind {
        "erasure" => None,
        "run" => seen.inner.or(seen.own).or(seen.request),
        _ => seen.inner.or(seen.own),
    };
    let commitment = committed.and_then(plain_string);
    let allow = seen.decision.is_some_and(|value| value == "\"allow\"");
    Ok(Envelope { kind, producer, seq, id, of, allow, commitment, stored: seen.stored && commitment.is_some() })
}
