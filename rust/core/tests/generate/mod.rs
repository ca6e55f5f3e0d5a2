//! Makes policies, entities and requests that share their names, so that many policies apply to one request.
//!
//! Agent-shaped on purpose: tools as actions in groups, conditions over `context.input`, guards, ranges, prefixes, and
//! a share of conditions that err. Driven by any source of numbers: a seeded generator in tests, bytes in fuzzing. And
//! it turns JSON into the arguments of a call.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "each user takes a part"
)]

use std::fmt::Write as _;

use serde_json::{Value as Json, json};
use tollkeeper_core::arguments::Arguments;

/// A source of numbers below a bound.
pub trait Source {
    /// A number in `0..bound`; 0 when the source is exhausted.
    fn below(&mut self, bound: u32) -> u32;
}

/// `SplitMix64` (Steele, Lea, Flood 2014): small, seeded, good enough to vary tests.
pub struct Seeded(pub u64);

impl Source for Seeded {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        if bound == 0 { 0 } else { u32::try_from(z % u64::from(bound)).unwrap_or(0) }
    }
}

/// Bytes as numbers.
pub struct Bytes<'a>(pub &'a [u8]);

impl Source for Bytes<'_> {
    fn below(&mut self, bound: u32) -> u32 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        if bound == 0 { 0 } else { u32::from(*first) % bound }
    }
}

fn pick<'a>(source: &mut impl Source, from: &[&'a str]) -> &'a str {
    let at = source.below(u32::try_from(from.len()).unwrap_or(1)) as usize;
    from.get(at).copied().unwrap_or("")
}

const PATHS: [&str; 16] = [
    "context.input.path",
    "context.input.kind",
    "context.input.amount",
    "context.input.to",
    "context.input.tags",
    "context.input.nested.a",
    "context.input.price",
    "context.input.owner",
    "context.input.flag",
    "context.kind",
    "principal.level",
    "principal.dept",
    "principal.manager",
    "resource.owner",
    "resource.labels",
    "resource.level",
];
const TEXTS: [&str; 10] = ["a", "b", "/var/x", "/var/y/z", "/usr/a", "", "ops", "hr", "é*", "bob@x.org"];
const PATTERNS: [&str; 9] = ["/var/*", "*/z", "*", "/usr/*/x", "a", "*o*", "/var/y*z", "bob@*", "é\\\\*"];
const USERS: u32 = 6;
const GROUPS: u32 = 5;

fn entity(source: &mut impl Source) -> String {
    match source.below(8) {
        0..=2 => format!("User::\"u{}\"", source.below(USERS)),
        3 | 4 => format!("Team::\"t{}\"", source.below(GROUPS)),
        5 => format!("Mcp::\"m{}\"", source.below(3)),
        6 => format!("Action::\"tool{}\"", source.below(5)),
        _ => format!("Ghost::\"g{}\"", source.below(2)),
    }
}

fn literal(source: &mut impl Source) -> String {
    match source.below(11) {
        0..=2 => format!("\"{}\"", pick(source, &TEXTS)),
        3 | 4 => number(source),
        5 => entity(source),
        6 => pick(source, &["true", "false"]).to_owned(),
        7 => format!("decimal(\"{}.{}\")", source.below(4), source.below(20)),
        8 => pick(source, &["ip(\"10.0.0.0/8\")", "ip(\"10.1.2.3\")", "ip(\"::1\")"]).to_owned(),
        9 => pick(source, &["datetime(\"2026-01-02\")", "duration(\"1h\")", "duration(\"90m\")"]).to_owned(),
        _ => format!("[{}, \"{}\"]", source.below(3), pick(source, &TEXTS)),
    }
}

fn number(source: &mut impl Source) -> String {
    match source.below(8) {
        0 => "9223372036854775807".to_owned(),
        1 => "(-9223372036854775808)".to_owned(),
        2 => "-1".to_owned(),
        _ => source.below(12).to_string(),
    }
}

fn path(source: &mut impl Source) -> &'static str {
    pick(source, &PATHS)
}

/// One conjunct.
fn condition(source: &mut impl Source, depth: u32) -> String {
    let operator = source.below(if depth == 0 { 18 } else { 25 });
    match operator {
        0..=2 => format!("{} == {}", path(source), literal(source)),
        3 => format!("{} {} {}", path(source), pick(source, &["<", "<=", ">", ">="]), number(source)),
        4 => format!("{} {} {}", number(source), pick(source, &["<", "<=", ">", ">="]), path(source)),
        5 | 6 => format!("{} like \"{}\"", path(source), pick(source, &PATTERNS)),
        7 => guarded(source),
        8 => {
            let (a, b) = (pick(source, &TEXTS), pick(source, &TEXTS));
            format!("[\"{a}\", \"{b}\", {}].contains({})", number(source), path(source))
        }
        9 => {
            format!("{} in {}", pick(source, &["principal", "resource", "action", "principal.manager"]), entity(source))
        }
        10 => format!(
            "{} in [{}, {}]",
            pick(source, &["principal", "context.input.owner"]),
            entity(source),
            entity(source)
        ),
        11 => format!(
            "{} is {}",
            pick(source, &["principal", "resource", "context.input.owner"]),
            pick(source, &["User", "Team", "Mcp"])
        ),
        12 => format!("{}.contains({})", pick(source, &["context.input.tags", "resource.labels"]), literal(source)),
        13 => format!(
            "{} has {}",
            pick(source, &["context", "context.input", "principal", "resource.owner"]),
            pick(source, &["kind", "path", "input", "level", "nested.a", "input.nested.a"])
        ),
        14 => format!(
            "{}.{}(decimal(\"{}.5\"))",
            path(source),
            pick(source, &["lessThan", "greaterThan", "lessThanOrEqual", "greaterThanOrEqual"]),
            source.below(4)
        ),
        15 => pick(
            source,
            &[
                "context.input.flag",
                "!context.input.flag",
                "true",
                "principal == resource",
                "principal.manager.level > 2",
                "!(context has kind)",
            ],
        )
        .to_owned(),
        16 => {
            let p = path(source);
            format!("({p} == {} || {p} == {})", literal(source), literal(source))
        }
        17 => format!(
            "principal.hasTag(\"{0}\") && principal.getTag(\"{0}\") == {1}",
            pick(source, &["t", "u"]),
            literal(source)
        ),
        18 => format!("({} || {})", condition(source, depth - 1), condition(source, depth - 1)),
        19 => format!("({} && {})", condition(source, depth - 1), condition(source, depth - 1)),
        20 => format!("!({})", condition(source, depth - 1)),
        21 => format!(
            "(if {} then {} else {})",
            condition(source, depth - 1),
            condition(source, depth - 1),
            condition(source, depth - 1)
        ),
        22 => format!("{} {} {} <= {}", path(source), pick(source, &["+", "-", "*"]), number(source), number(source)),
        23 => format!(
            "{{a: {}, b: {}}}.{} == {}",
            path(source),
            literal(source),
            pick(source, &["a", "b", "c"]),
            literal(source)
        ),
        _ => format!(
            "[{}, {}].{}([{}])",
            path(source),
            literal(source),
            pick(source, &["containsAll", "containsAny"]),
            literal(source)
        ),
    }
}

fn guarded(source: &mut impl Source) -> String {
    let attribute = pick(source, &["path", "kind", "amount", "to"]);
    let test = match source.below(3) {
        0 => format!("== {}", literal(source)),
        1 => format!("like \"{}\"", pick(source, &PATTERNS)),
        _ => format!("<= {}", number(source)),
    };
    match source.below(6) {
        0 => format!("context has input && context.input has {attribute} && context.input.{attribute} {test}"),
        1 => format!("context has input.{attribute} && context.input.{attribute} {test}"),
        2 => format!("{} && context.input.nested.a {test}", guards(source)),
        _ => format!("context.input has {attribute} && context.input.{attribute} {test}"),
    }
}

/// Guards of a nested attribute, in any order, repeated or missing: one that stands too late protects nothing.
pub fn guards(source: &mut impl Source) -> String {
    let all = [
        "context has input",
        "context.input has nested",
        "context.input.nested has a",
        "context.input has path",
        "principal has level",
        "principal.manager has level",
    ];
    let chosen: Vec<&str> = (0..=source.below(4)).map(|_| pick(source, &all)).collect();
    chosen.join(" && ")
}

fn scope(source: &mut impl Source, variable: &str) -> String {
    let (ty, group) = if variable == "principal" { ("User", "Team") } else { ("Mcp", "Team") };
    match source.below(9) {
        0 => format!("{variable} == {ty}::\"{}{}\"", if ty == "User" { "u" } else { "m" }, source.below(USERS)),
        1 | 2 => format!("{variable} in {group}::\"t{}\"", source.below(GROUPS)),
        3 => format!("{variable} is {ty}"),
        4 => format!("{variable} is {ty} in {group}::\"t{}\"", source.below(GROUPS)),
        _ => variable.to_owned(),
    }
}

fn action(source: &mut impl Source) -> String {
    match source.below(8) {
        0..=2 => format!("action == Action::\"tool{}\"", source.below(5)),
        3 => format!("action in Action::\"group{}\"", source.below(2)),
        4 => format!("action in [Action::\"tool{}\", Action::\"group{}\"]", source.below(5), source.below(2)),
        5 => "action in []".to_owned(),
        _ => "action".to_owned(),
    }
}

/// One policy.
pub fn policy(source: &mut impl Source) -> String {
    let effect = if source.below(8) == 0 { "forbid" } else { "permit" };
    let mut text =
        format!("{effect} ({}, {}, {})", scope(source, "principal"), action(source), scope(source, "resource"));
    for _ in 0..source.below(3) {
        let word = if source.below(5) == 0 { "unless" } else { "when" };
        let mut conjuncts = vec![condition(source, 2)];
        for _ in 0..source.below(3) {
            conjuncts.push(condition(source, 1));
        }
        let _ = write!(text, " {word} {{ {} }}", conjuncts.join(" && "));
    }
    text.push_str(";\n");
    text
}

/// A policy set.
pub fn policies(source: &mut impl Source, count: u32) -> String {
    (0..count).map(|_| policy(source)).collect()
}

/// An entities document: users in teams in teams, servers, actions in groups.
pub fn entities(source: &mut impl Source) -> Json {
    let mut all = Vec::new();
    for user in 0..USERS - 1 {
        let mut attrs = json!({"level": source.below(8), "dept": pick(source, &["ops", "hr"])});
        if source.below(2) == 0 {
            attrs["manager"] = json!({"__entity": {"type": "User", "id": format!("u{}", source.below(USERS))}});
        }
        let parents: Vec<_> =
            (0..source.below(3)).map(|_| json!({"type": "Team", "id": format!("t{}", source.below(GROUPS))})).collect();
        let tags = if source.below(2) == 0 { json!({"t": pick(source, &TEXTS)}) } else { json!({}) };
        all.push(json!({"uid": {"type": "User", "id": format!("u{user}")}, "attrs": attrs, "parents": parents, "tags": tags}));
    }
    for team in 0..GROUPS {
        let parents: Vec<_> = if team > 0 && source.below(2) == 0 {
            vec![json!({"type": "Team", "id": format!("t{}", source.below(team))})]
        } else {
            Vec::new()
        };
        all.push(json!({"uid": {"type": "Team", "id": format!("t{team}")}, "attrs": {}, "parents": parents}));
    }
    for server in 0..2 {
        let attrs = json!({
            "owner": {"__entity": {"type": "User", "id": format!("u{}", source.below(USERS))}},
            "labels": [pick(source, &TEXTS), pick(source, &TEXTS)],
            "level": source.below(5),
        });
        all.push(json!({"uid": {"type": "Mcp", "id": format!("m{server}")}, "attrs": attrs,
            "parents": [{"type": "Team", "id": format!("t{}", source.below(GROUPS))}]}));
    }
    for tool in 0..4 {
        all.push(json!({"uid": {"type": "Action", "id": format!("tool{tool}")}, "attrs": {},
            "parents": [{"type": "Action", "id": format!("group{}", source.below(2))}]}));
    }
    Json::Array(all)
}

/// A request: principal, action, resource as (type, id), and a context in Cedar's JSON.
pub struct Request {
    /// Principal
    pub principal: (String, String),
    /// Action
    pub action: (String, String),
    /// Resource
    pub resource: (String, String),
    /// Context
    pub context: Json,
}

fn value(source: &mut impl Source, kind: u32) -> Json {
    match kind {
        0 | 1 => json!(pick(source, &TEXTS)),
        2 => json!(source.below(12)),
        3 => json!([pick(source, &TEXTS), source.below(3)]),
        4 => json!({"__entity": {"type": "User", "id": format!("u{}", source.below(USERS))}}),
        5 => json!({"__extn": {"fn": "decimal", "arg": format!("{}.5", source.below(4))}}),
        6 => json!(source.below(2) == 0),
        _ => json!({"a": pick(source, &TEXTS)}),
    }
}

/// Makes a request.
pub fn request(source: &mut impl Source) -> Request {
    let mut input = serde_json::Map::new();
    for (name, kind) in [
        ("path", 0),
        ("kind", 1),
        ("amount", 2),
        ("to", 0),
        ("tags", 3),
        ("owner", 4),
        ("price", 5),
        ("flag", 6),
        ("nested", 7),
    ] {
        match source.below(6) {
            0 => {}
            // Now and then the wrong type.
            1 => {
                let other = source.below(8);
                input.insert(name.to_owned(), value(source, other));
            }
            _ => {
                input.insert(name.to_owned(), value(source, kind));
            }
        }
    }
    let mut context = serde_json::Map::new();
    if source.below(12) != 0 {
        context.insert("input".to_owned(), Json::Object(input));
    }
    if source.below(2) == 0 {
        context.insert("kind".to_owned(), value(source, 1));
    }
    Request {
        principal: if source.below(9) == 0 {
            ("Team".to_owned(), format!("t{}", source.below(GROUPS)))
        } else {
            ("User".to_owned(), format!("u{}", source.below(USERS)))
        },
        action: ("Action".to_owned(), format!("tool{}", source.below(5))),
        resource: ("Mcp".to_owned(), format!("m{}", source.below(3))),
        context: Json::Object(context),
    }
}

/// Appends a value to arguments, as a binding does. A number beyond 64 bits is a float.
pub fn push(arguments: &mut Arguments, key: Option<&str>, json: &Json) {
    match json {
        Json::Null => arguments.push_null(key).unwrap(),
        Json::Bool(value) => arguments.push_bool(key, *value).unwrap(),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => arguments.push_long(key, whole).unwrap(),
            None => arguments.push_float(key, number.as_f64().unwrap()).unwrap(),
        },
        Json::String(text) => arguments.push_str(key, text).unwrap(),
        Json::Array(items) => {
            arguments.open_list(key).unwrap();
            for item in items {
                push(arguments, None, item);
            }
            arguments.close();
        }
        Json::Object(fields) => {
            arguments.open_object(key).unwrap();
            fields.iter().for_each(|(key, value)| push(arguments, Some(key), value));
            arguments.close();
        }
    }
}

/// Arguments out of an object.
pub fn filled(json: &Json) -> Arguments {
    let mut arguments = Arguments::new();
    push(&mut arguments, None, json);
    arguments
}

/// The arguments of a request as the generator makes them, without what only Cedar's JSON has.
pub fn plain(json: &Json) -> Json {
    match json {
        Json::Object(fields) if fields.contains_key("__entity") => json!("u1"),
        Json::Object(fields) if fields.contains_key("__extn") => json!(1.5),
        Json::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), plain(value))).collect(),
        Json::Array(items) => items.iter().map(plain).collect(),
        other => other.clone(),
    }
}
