//! Checks of what is written into entries, driven by bytes: the tests' generator and the fuzzer's input are the same.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tollkeeper_core::arguments::Arguments;
use tollkeeper_core::audit::entry::{Kind, Private, Record, push_number, push_text, push_time};
use tollkeeper_core::audit::log::Log;

/// Choices out of bytes; zeros once they are used up.
pub(crate) struct Arbitrary<'a>(pub(crate) &'a [u8]);

impl Arbitrary<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.fill_with(|| self.byte());
        u64::from_le_bytes(bytes)
    }

    fn text(&mut self) -> String {
        const PIECES: [&str; 12] =
            ["", "a", "\"", "\\", "\n", "\u{0}", "\u{1f}", "\u{7f}", "é", "\u{2028}", "\u{1f600}", "</script>"];
        let len = self.byte() % 6;
        (0..len).map(|_| PIECES[usize::from(self.byte()) % PIECES.len()]).collect()
    }

    /// A snapshot, and the same as `serde_json` writes it: with every number of its own, and 2^63 for what has no JSON.
    pub(crate) fn arguments(&mut self) -> (Arguments, String) {
        let mut arguments = Arguments::new();
        let value = self.value(&mut arguments, None, 0, false);
        (arguments, value)
    }

    fn value(&mut self, arguments: &mut Arguments, key: Option<&str>, depth: u8, in_list: bool) -> String {
        let big = "9223372036854775808".to_owned();
        match self.byte() % if depth < 6 { 10 } else { 7 } {
            0 if key.is_some() && !in_list => {
                arguments.push_null(key).unwrap();
                "null".to_owned()
            }
            0 | 1 => {
                let value = self.byte().is_multiple_of(2);
                arguments.push_bool(key, value).unwrap();
                json!(value).to_string()
            }
            2 => {
                let value = [0, -1, i64::MAX, i64::MIN, self.number().cast_signed()][usize::from(self.byte() % 5)];
                arguments.push_long(key, value).unwrap();
                json!(value).to_string()
            }
            3 => {
                let value = f64::from_bits(self.number());
                let value = [0.1, -0.0, 1e300, 5e-324, f64::NAN, f64::INFINITY, value][usize::from(self.byte() % 7)];
                arguments.push_float(key, value).unwrap();
                if value.is_finite() { json!(value).to_string() } else { big }
            }
            4 => {
                arguments.push_unrepresentable(key).unwrap();
                big
            }
            5 | 6 => {
                let value = self.text();
                arguments.push_str(key, &value).unwrap();
                json!(value).to_string()
            }
            7 => {
                arguments.open_list(key).unwrap();
                let len = self.byte() % 5;
                let items: Vec<String> = (0..len).map(|_| self.value(arguments, None, depth + 1, true)).collect();
                arguments.close();
                format!("[{}]", items.join(","))
            }
            _ => {
                arguments.open_object(key).unwrap();
                let mut members = Vec::new();
                for n in 0..self.byte() % 5 {
                    let key = format!("{}{n}", self.text());
                    let value = self.value(arguments, Some(&key), depth + 1, false);
                    members.push(format!("{}:{value}", json!(key)));
                }
                arguments.close();
                format!("{{{}}}", members.join(","))
            }
        }
    }
}

fn bytes_of(arguments: &Arguments) -> (Vec<u8>, Vec<u8>) {
    let (mut structure, mut json) = (Vec::new(), Vec::new());
    arguments.write_structure(&mut structure);
    arguments.write_json(&mut json);
    (structure, json)
}

/// A snapshot comes back from its bytes, and its JSON is what `serde_json` writes of the same value.
pub(crate) fn check_arguments(from: &mut Arbitrary<'_>) {
    let (arguments, value) = from.arguments();
    let (structure, json) = bytes_of(&arguments);
    let mut again = Arguments::new();
    assert!(again.refill(&structure, arguments.text().as_bytes()));
    assert_eq!(bytes_of(&again), (structure, json.clone()));
    assert_eq!(String::from_utf8(json).unwrap(), value);
}

/// Bytes that may be no snapshot are refused, or are one: with JSON, no longer than its text and its nodes can make it.
pub(crate) fn check_refill(structure: &[u8], text: &[u8]) {
    let mut arguments = Arguments::new();
    if !arguments.refill(structure, text) {
        assert!(arguments.root().is_none());
        return;
    }
    let (again, json) = bytes_of(&arguments);
    assert_eq!(again.len(), structure.len());
    assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&json).is_ok(), "{}", String::from_utf8_lossy(&json));
    assert!(json.len() <= 6 * text.len() + 2 * structure.len() + 8);
}

/// A time by counting days, one year after the other.
fn plain_time(time_ms: i64) -> String {
    let (mut days, ms) = (time_ms.div_euclid(86_400_000), time_ms.rem_euclid(86_400_000));
    // A calendar repeats after 400 years.
    let cycles = days.div_euclid(146_097);
    days = days.rem_euclid(146_097);
    let mut year = 1970;
    let leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    while days >= 365 + i64::from(leap(year)) {
        days -= 365 + i64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lens = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= lens[month] {
        days -= lens[month];
        month += 1;
    }
    let year = year + cycles * 400;
    let (seconds, ms) = (ms / 1_000, ms % 1_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z", month + 1, days + 1)
}

pub(crate) fn check_time(time_ms: i64) {
    let mut text = Vec::new();
    push_time(&mut text, time_ms);
    assert_eq!(String::from_utf8(text).unwrap(), plain_time(time_ms));
}

/// Records of every kind and form go through a log: each entry is JSON with its members in order, says what the record
/// said, and commits to its payload.
pub(crate) fn check_entries(name: &str, bytes: &[u8]) {
    let folder = super::Folder::new(name);
    write_and_compare(&folder, &mut Arbitrary(bytes));
}

/// A record as it was given, with what its entry has to be.
struct Given {
    expected: Vec<u8>,
    payload: Option<Vec<u8>>,
    member: Option<&'static str>,
    tail: Vec<u8>,
}

fn write_and_compare(folder: &Path, from: &mut Arbitrary<'_>) {
    let log = Log::open(folder, super::options(0xabc)).unwrap();
    let mut given = Vec::new();
    for seq in 1..=6_u64 {
        given.push(write_one(&log, from, seq));
    }
    log.close().unwrap();
    let raw = super::read_epoch(folder).raw;
    for (given, entry) in given.iter().zip(&raw[1..]) {
        let shown = String::from_utf8_lossy(entry);
        assert!(entry.len() <= 65_535 && entry.starts_with(&given.expected), "{shown}");
        let rest = &entry[given.expected.len()..];
        let value: Value = serde_json::from_slice(entry).unwrap();
        let plain = serde_json::to_vec(&value).unwrap();
        assert_eq!(plain.len(), entry.len(), "as short as it can be: {shown}");
        let Some(member) = given.member else {
            assert_eq!(rest, [&given.tail[..], b"}"].concat(), "{shown}");
            continue;
        };
        let private = &value[member];
        assert_eq!(BASE64.decode(private["commitment"].as_str().unwrap()).unwrap().len(), 32);
        if let Some(payload) = &given.payload {
            assert_eq!(private["bytes"].as_u64(), Some(payload.len() as u64), "{shown}");
        }
        let expected = serde_json::to_string(private).unwrap();
        assert_eq!(rest.len(), format!(",\"{member}\":{expected}").len() + given.tail.len() + 1, "{shown}");
    }
}

fn write_one(log: &Log, from: &mut Arbitrary<'_>, seq: u64) -> Given {
    let kind = Kind::ALL[usize::from(from.byte()) % Kind::ALL.len()];
    let time_ms = from.number().cast_signed() % 200_000_000_000_000;
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    push_text(&mut head, "first", &from.text());
    push_number(&mut head, "second", from.number().cast_signed());
    push_text(&mut tail, "last", &from.text());
    let oversize = from.byte().is_multiple_of(5);
    if oversize {
        push_text(&mut tail, "long", &"\u{1}x".repeat(10_000));
    }
    let (arguments, value) = from.arguments();
    let (structure, json) = bytes_of(&arguments);
    drop(value);
    let bytes = from.text().into_bytes();
    let (private, payload) = match from.byte() % 4 {
        0 => (Private::None, None),
        1 => (Private::Bytes(&bytes), Some(bytes.clone())),
        2 => (Private::Salted { salt: &[7; 32], bytes: &bytes }, Some(bytes.clone())),
        _ => {
            let payload = [b"{\"input\":", &json[..], b",\"more\":1}"].concat();
            (Private::Arguments { structure: &structure, text: arguments.text(), more: b",\"more\":1" }, Some(payload))
        }
    };
    log.append(&Record { kind, time_ms, head: &head, tail: &tail, private }, 5_000).unwrap();
    let name = kind.name();
    let mut expected = format!(
        "{{\"v\":1,\"kind\":\"{name}\",\"producer\":\"0000000000000abc\",\"seq\":{seq},\"time\":\"{}\"",
        plain_time(time_ms)
    )
    .into_bytes();
    if oversize {
        return Given { expected, payload: None, member: Some("oversize"), tail: Vec::new() };
    }
    expected.extend_from_slice(&head);
    let member = payload.is_some().then_some(match kind {
        Kind::Run => "request",
        Kind::Note => "private",
        _ => "arguments",
    });
    Given { expected, payload, member, tail }
}
