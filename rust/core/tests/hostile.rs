//! Every case of `tests/hostile/` ends as its manifest says, in seconds and without harm.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tollkeeper_core::policy::entities::{Entities, context_from_json};
use tollkeeper_core::policy::error::PolicyErrors;
use tollkeeper_core::policy::parse::{Source, decode, on_parser_thread, parse_policies, parse_schema, validate};

/// No case may take longer, on a busy machine and in a dev build; most take milliseconds.
const CASE_TIME_MAX: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    kind: String,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    repeat: String,
    #[serde(default)]
    count: usize,
    #[serde(default)]
    middle: String,
    #[serde(default)]
    repeat_end: String,
    #[serde(default)]
    suffix: String,
    file: Option<String>,
    expect: String,
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        if let Some(file) = &self.file {
            return std::fs::read(folder().join(file)).unwrap();
        }
        let repeated: String = if self.repeat.contains("{i}") || self.repeat.contains("{j}") {
            let one =
                |i: usize| self.repeat.replace("{i}", &i.to_string()).replace("{j}", &i.saturating_add(1).to_string());
            (0..self.count).map(one).collect()
        } else {
            self.repeat.repeat(self.count)
        };
        let end = self.repeat_end.repeat(self.count);
        [&self.prefix, &repeated, &self.middle, &end, &self.suffix].map(String::as_str).concat().into_bytes()
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/hostile")
}

fn cases(kind: &str) -> Vec<Case> {
    let manifest = std::fs::read_to_string(folder().join("manifest.jsonl")).unwrap();
    let all = manifest.lines().map(|line| serde_json::from_str::<Case>(line).unwrap());
    all.filter(|case| case.kind == kind).collect()
}

/// Reads every case of a kind and compares the code of the first error, the time, and the size of what is shown.
fn run(kind: &str, read: impl Fn(&Source<'_>) -> Result<(), PolicyErrors>) {
    let mut failures = Vec::new();
    for case in cases(kind) {
        let bytes = case.bytes();
        let start = Instant::now();
        let result = decode(&bytes, Some(&case.name))
            .map_err(PolicyErrors::from)
            .and_then(|text| read(&Source { name: Some(&case.name), text }));
        let took = start.elapsed();
        let (code, shown) = match &result {
            Ok(()) => ("ok", String::new()),
            Err(errors) => (errors.first().code, errors.to_string()),
        };
        if code != case.expect {
            failures.push(format!("{}: expected {}, found {code}: {shown:.300}", case.name, case.expect));
        }
        if took > CASE_TIME_MAX {
            failures.push(format!("{}: took {took:?}", case.name));
        }
        // Twenty errors of message, excerpt and help.
        if shown.len() > 20 * 4_000 {
            failures.push(format!("{}: error of {} bytes", case.name, shown.len()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn policies() {
    run("policy", |source| on_parser_thread(|| parse_policies(source).map(drop))?);
}

#[test]
fn policies_within_the_limits_validate_without_harm() {
    let schema = "entity U = {b: Bool, a: Long} tags Long; action \"x\", y appliesTo {
        principal: U, resource: U, context: {b: Bool, a?: Long} };";
    let schema = parse_schema(&Source::unnamed(schema)).unwrap();
    for case in cases("policy").into_iter().filter(|case| case.expect == "ok") {
        let bytes = case.bytes();
        let source = Source { name: Some(&case.name), text: std::str::from_utf8(&bytes).unwrap() };
        let start = Instant::now();
        // Most are ill typed; what counts is that the answer comes, and soon.
        let answer = on_parser_thread(|| validate(&parse_policies(&source)?, &schema)).unwrap();
        let took = start.elapsed();
        if let Err(errors) = answer {
            assert_eq!(errors.first().code, "policy.invalid", "{}: {errors}", case.name);
        }
        assert!(took < CASE_TIME_MAX, "{}: took {took:?}", case.name);
    }
}

#[test]
fn schemas() {
    run("schema", |source| parse_schema(source).map(drop));
}

#[test]
fn entities() {
    run("entities", |source| Entities::from_json(source.text, None).map(drop));
}

#[test]
fn contexts() {
    run("context", |source| context_from_json(source.text).map(drop));
}

#[test]
fn names_are_unique() {
    let mut seen = std::collections::HashSet::new();
    for kind in ["policy", "schema", "entities", "context"] {
        let found = cases(kind);
        assert!(!found.is_empty());
        for case in found {
            assert!(seen.insert(case.name.clone()), "{}", case.name);
        }
    }
}
