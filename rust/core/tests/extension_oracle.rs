//! Extension functions and `like` against the reference crate, which is right by definition.
//!
//! Each property feeds the same case to both: ours gives a value or an error, the reference must give an equal value or
//! an error of the same class. Equality is asked of the reference (`<expression> == <our text of our value>`), so the
//! printing of values is held to it too. Strings come from three sources: the grammar itself with fields slightly out
//! of range, the same after small mutations, and noise over the characters that matter.
//!
//! `PROPTEST_CASES` sets the number of cases of each property (256 if unset): before a release, run with 20000.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking, and helpers outside #[test] functions are not exempt by themselves"
)]
#![expect(clippy::result_large_err, reason = "the error is the reference crate's")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use bumpalo::Bump;
use cedar_policy::{Context, Entities, EvalResult, EvaluationError, Expression, Request, RestrictedExpression};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tollkeeper_core::policy::extension::{self, ExtError, ExtFn};
use tollkeeper_core::policy::like::{Pattern, PatternElement};
use tollkeeper_core::uid::EntityUid;
use tollkeeper_core::value::{Ip, Val, Value};

// The reference ------------------------------------------------------------------------------------------------------

/// Evaluates an expression in the reference with `context.s` set.
fn evaluate(expression: &Expression, s: &str) -> Result<EvalResult, EvaluationError> {
    let uid = |text: &str| text.parse().expect("a uid");
    let context = Context::from_pairs([("s".to_owned(), RestrictedExpression::new_string(s.to_owned()))])
        .expect("one key is no duplicate");
    let request =
        Request::new(uid("U::\"u\""), uid("Action::\"a\""), uid("R::\"r\""), context, None).expect("no schema");
    cedar_policy::eval_expression(&request, &Entities::empty(), expression)
}

fn parse(text: &str) -> Expression {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn holds(text: &str, s: &str) -> bool {
    matches!(evaluate(&parse(text), s), Ok(EvalResult::Bool(true)))
}

/// Whether both sides fail alike; the text of an error is nobody's contract, its class is.
fn same_class(ours: ExtError, theirs: &EvaluationError) -> bool {
    match ours {
        ExtError::WrongArity => matches!(theirs, EvaluationError::WrongNumArguments(_)),
        ExtError::WrongType => matches!(theirs, EvaluationError::TypeError(_)),
        ExtError::BadLiteral | ExtError::Overflow => {
            matches!(theirs, EvaluationError::FailedExtensionFunctionExecution(_))
        }
    }
}

/// Cedar text of a value, independent of the code under test except for the extension types.
fn cedar_text(value: &Val) -> String {
    match value {
        Val::Bool(b) => b.to_string(),
        Val::Long(n) => n.to_string(),
        Val::Str(s) => quoted(s),
        Val::Entity(uid) => format!("{}::{}", uid.ty(), quoted(uid.id())),
        Val::Decimal(n) => extension::decimal_text(*n),
        Val::Datetime(n) => extension::datetime_text(*n),
        Val::Duration(n) => extension::duration_text(*n),
        Val::Ip(ip) => extension::ip_text(ip),
        Val::Set(items) => format!("[{}]", items.iter().map(cedar_text).collect::<Vec<_>>().join(", ")),
        Val::Record(fields) => {
            let fields: Vec<_> = fields.iter().map(|(k, v)| format!("{}: {}", quoted(k), cedar_text(v))).collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}

fn quoted(s: &str) -> String {
    let body: String = s.chars().flat_map(char::escape_unicode).collect();
    format!("\"{body}\"")
}

// Strings ------------------------------------------------------------------------------------------------------------

/// Characters that mean something to one of the parsers, and some that only look like it.
const ALPHABET: &str = "0123456789.-+:/TZabcdefhmsDHMS% \n\u{661}\u{ff11}é*";

fn character() -> impl Strategy<Value = char> {
    select(ALPHABET.chars().collect::<Vec<_>>())
}

#[derive(Debug, Clone)]
enum Edit {
    Insert(char),
    Replace(char),
    Remove,
    Double,
    Swap,
}

/// A string after up to three edits; the first branch leaves it alone.
fn mutated(base: impl Strategy<Value = String> + Clone + 'static) -> impl Strategy<Value = String> {
    let edit = prop_oneof![
        character().prop_map(Edit::Insert),
        character().prop_map(Edit::Replace),
        Just(Edit::Remove),
        Just(Edit::Double),
        Just(Edit::Swap),
    ];
    let edited = (base.clone(), vec((edit, any::<Index>()), 1..4)).prop_map(|(base, edits)| {
        let mut chars: Vec<char> = base.chars().collect();
        for (edit, at) in edits {
            if chars.is_empty() {
                break;
            }
            let at = at.index(chars.len());
            match edit {
                Edit::Insert(c) => chars.insert(at, c),
                Edit::Replace(c) => chars[at] = c,
                Edit::Remove => drop(chars.remove(at)),
                Edit::Double => chars.insert(at, chars[at]),
                Edit::Swap => {
                    let other = (at + 1) % chars.len();
                    chars.swap(at, other);
                }
            }
        }
        chars.into_iter().collect()
    });
    let noise = vec(character(), 0..12).prop_map(String::from_iter);
    prop_oneof![4 => base, 4 => edited, 1 => noise]
}

fn sign() -> impl Strategy<Value = &'static str> + Clone {
    select(vec!["", "", "", "-", "-", "+"])
}

fn decimal_string() -> impl Strategy<Value = String> + Clone {
    let plain = "-?[0-9]{1,17}\\.[0-9]{1,5}";
    let zeros = "-?0{0,30}[0-9]{1,3}\\.[0-9]{1,4}";
    // Around the ends of the range, on both sides.
    let edge =
        (sign(), 922_337_203_685_470_u64..922_337_203_685_480, 5700..5900).prop_map(|(s, w, f)| format!("{s}{w}.{f}"));
    let exact = (sign(), 5800..5815).prop_map(|(s, f)| format!("{s}922337203685477.{f}"));
    prop_oneof![4 => plain, 1 => zeros, 1 => edge.boxed(), 1 => exact.boxed()]
}

fn ip_string() -> impl Strategy<Value = String> + Clone {
    let v4 = vec(prop_oneof![4 => 0..256_u32, 1 => 250..300_u32], 4)
        .prop_map(|parts| parts.iter().map(u32::to_string).collect::<Vec<_>>().join("."));
    let v6_plain =
        vec(0..=0xffff_u16, 8).prop_map(|s| s.iter().map(|g| format!("{g:x}")).collect::<Vec<_>>().join(":"));
    let v6_long =
        vec(0..=0xffff_u16, 8).prop_map(|s| s.iter().map(|g| format!("{g:04X}")).collect::<Vec<_>>().join(":"));
    // The standard library's text: compressed, and with a dotted tail for mapped addresses.
    let v6_short = ip_of(v6_addr()).prop_map(|ip| ip.addr.to_string());
    let v6_pieces = "([0-9a-fA-F]{0,5}:){0,8}:?([0-9a-f]{1,4}:){0,5}[0-9a-f]{0,4}";
    let embedded = "::(ffff:)?[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}";
    let zone = "fe80::[0-9a-f]{1,4}%[0-9a-z]{1,4}";
    let addr = prop_oneof![
        6 => v4.boxed(), 2 => v6_plain.boxed(), 2 => v6_long.boxed(), 3 => v6_short.boxed(),
        3 => v6_pieces.boxed(), 1 => embedded.boxed(), 1 => zone.boxed(),
    ];
    let prefix = prop_oneof![
        4 => Just(String::new()), 3 => (0..34).prop_map(|n| format!("/{n}")), 2 => (30..132).prop_map(|n| format!("/{n}")),
        1 => "/0?[0-9]{0,3}", 1 => Just("/".to_owned()),
    ];
    (addr, prefix).prop_map(|(addr, prefix)| addr + &prefix)
}

fn datetime_string() -> impl Strategy<Value = String> + Clone {
    let year = prop_oneof![6 => 0..10_000, 1 => Just(0), 1 => Just(9999), 3 => (0..100).prop_map(|c| c * 100)];
    let month = prop_oneof![8 => 1..13, 1 => 0..14, 4 => Just(2)];
    let day = prop_oneof![6 => 1..29, 4 => 28..33, 1 => Just(0)];
    let date = (year, month, day).prop_map(|(y, m, d)| format!("{y:04}-{m:02}-{d:02}"));
    // Leap days that are and are not: every fourth century has one.
    let leap = prop_oneof![(0..100).boxed(), (0..25).prop_map(|c| c * 4).boxed()]
        .prop_map(|c| format!("{:04}-02-29", c * 100));
    let date = prop_oneof![6 => date, 1 => leap];
    let sixty = || prop_oneof![5 => 0..60, 1 => 59..61];
    let hour = || prop_oneof![6 => 0..24, 1 => 22..26];
    let time = (hour(), sixty(), sixty()).prop_map(|(h, m, s)| format!("T{h:02}:{m:02}:{s:02}"));
    let fraction = prop_oneof![3 => Just(String::new()), 3 => "\\.[0-9]{3}", 1 => "\\.[0-9]{0,4}"];
    let zone = prop_oneof![
        4 => Just("Z".to_owned()), 1 => Just(String::new()),
        4 => (select(vec!["+", "-"]), hour(), sixty()).prop_map(|(s, h, m)| format!("{s}{h:02}{m:02}")),
        1 => (select(vec!["+", "-"]), hour(), sixty()).prop_map(|(s, h, m)| format!("{s}{h:02}:{m:02}")),
    ];
    let full = (date.clone(), time, fraction, zone).prop_map(|(d, t, f, z)| d + &t + &f + &z);
    prop_oneof![1 => date, 4 => full]
}

fn duration_string() -> impl Strategy<Value = String> + Clone {
    const MS: [(&str, i64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let part = |(unit, ms): (&'static str, i64)| {
        let count = prop_oneof![
            4 => (0..100_u64).prop_map(|n| n.to_string()),
            1 => any::<u64>().prop_map(|n| n.to_string()),
            // Around what fits into 64 bits in this unit.
            1 => (0..3_u64).prop_map(move |n| (i64::MAX / ms).unsigned_abs().saturating_sub(1).saturating_add(n).to_string()),
            1 => "0{0,25}[0-9]{1,2}",
        ];
        proptest::option::of(count).prop_map(move |count| count.map(|count| count + unit).unwrap_or_default())
    };
    let parts = (part(MS[0]), part(MS[1]), part(MS[2]), part(MS[3]), part(MS[4]));
    let ordered = (sign(), parts).prop_map(|(s, (d, h, m, sec, ms))| format!("{s}{d}{h}{m}{sec}{ms}"));
    let shuffled = (sign(), vec((0..100_u8, select(MS.to_vec())), 0..6)).prop_map(|(s, parts)| {
        s.to_owned() + &parts.iter().map(|(n, (unit, _))| n.to_string() + unit).collect::<String>()
    });
    // The ends of the range as a sum of parts, off by up to two milliseconds.
    let edge = (sign(), 805..811).prop_map(|(s, ms)| format!("{s}106751991167d7h12m55s{ms}ms"));
    prop_oneof![6 => ordered, 2 => shuffled, 1 => edge]
}

// Values -------------------------------------------------------------------------------------------------------------

fn long() -> impl Strategy<Value = i64> + Clone {
    const DAY: i64 = 86_400_000;
    prop_oneof![
        2 => any::<i64>(),
        2 => -1000..1000_i64,
        2 => (-40_000..40_000_i64, -2..3_i64).prop_map(|(days, off)| days * DAY + off),
        1 => (0..2 * DAY).prop_map(|n| i64::MIN + n),
        1 => (0..2 * DAY).prop_map(|n| i64::MAX - n),
        1 => select(vec![i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX]),
        // The edges of what a datetime literal can name.
        1 => (-3..4_i64).prop_map(|n| -62_167_219_200_000 + n),
        1 => (-3..4_i64).prop_map(|n| 253_402_300_799_999 + n),
    ]
}

fn v4_addr() -> impl Strategy<Value = IpAddr> + Clone {
    prop_oneof![
        any::<u32>().prop_map(Ipv4Addr::from_bits),
        (select(vec![0_u32, 10, 126, 127, 128, 223, 224, 239, 240, 255]), 0..4_u32)
            .prop_map(|(top, low)| Ipv4Addr::from_bits(top << 24 | low)),
    ]
    .prop_map(IpAddr::V4)
}

fn v6_addr() -> impl Strategy<Value = IpAddr> + Clone {
    let sparse = vec(prop_oneof![3 => Just(0_u16), 1 => any::<u16>(), 1 => Just(0xffff), 1 => Just(1)], 8)
        .prop_map(|s| Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]));
    prop_oneof![
        2 => sparse,
        1 => any::<u32>().prop_map(|n| Ipv4Addr::from_bits(n).to_ipv6_mapped()),
        1 => any::<u32>().prop_map(|n| Ipv6Addr::from_bits(n.into())),
        1 => any::<u128>().prop_map(Ipv6Addr::from_bits),
        1 => Just(Ipv6Addr::LOCALHOST),
        1 => (select(vec![0xfe00_u16, 0xfeff, 0xff00, 0xff02]), any::<u16>())
            .prop_map(|(top, low)| Ipv6Addr::new(top, 0, 0, 0, 0, 0, 0, low)),
    ]
    .prop_map(IpAddr::V6)
}

fn ip_of(addr: impl Strategy<Value = IpAddr> + Clone) -> impl Strategy<Value = Ip> + Clone {
    (addr, prop_oneof![2 => Just(u8::MAX), 2 => 3..=9_u8, 1 => select(vec![0, 127]), 2 => 0..=128_u8]).prop_map(
        |(addr, prefix)| {
            let max = if addr.is_ipv4() { 32 } else { 128 };
            Ip { addr, prefix: prefix.min(max) }
        },
    )
}

fn ip() -> impl Strategy<Value = Ip> + Clone {
    prop_oneof![ip_of(v4_addr()), ip_of(v6_addr())]
}

/// Two addresses that share a number of leading bits, so that ranges contain each other about as often as not.
fn related_ips() -> impl Strategy<Value = (Ip, Ip)> {
    (ip(), 0..=128_u8, any::<u128>(), 0..=129_u8).prop_map(|(a, shared, noise, prefix)| {
        let (max, addr) = match a.addr {
            IpAddr::V4(addr) => {
                let keep = u32::MAX.checked_shr(u32::from(shared % 33)).unwrap_or(0);
                let noise = u32::try_from(noise & u128::from(u32::MAX)).unwrap();
                (32, IpAddr::V4(Ipv4Addr::from_bits(addr.to_bits() ^ (noise & keep))))
            }
            IpAddr::V6(addr) => {
                let keep = u128::MAX.checked_shr(u32::from(shared)).unwrap_or(0);
                (128, IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() ^ (noise & keep))))
            }
        };
        (a, Ip { addr, prefix: prefix % (max + 1) })
    })
}

fn string() -> impl Strategy<Value = Box<str>> {
    prop_oneof![
        mutated(decimal_string()).boxed(),
        mutated(ip_string()).boxed(),
        mutated(datetime_string()).boxed(),
        mutated(duration_string()).boxed(),
    ]
    .prop_map(String::into_boxed_str)
}

fn scalar() -> impl Strategy<Value = Val> {
    prop_oneof![
        any::<bool>().prop_map(Val::Bool),
        long().prop_map(Val::Long),
        string().prop_map(Val::Str),
        string().prop_map(|id| Val::Entity(Arc::new(EntityUid::new("T", &id)))),
        long().prop_map(Val::Decimal),
        long().prop_map(Val::Datetime),
        long().prop_map(Val::Duration),
        ip().prop_map(|ip| Val::Ip(Box::new(ip))),
    ]
}

fn value() -> impl Strategy<Value = Val> {
    prop_oneof![
        8 => scalar(),
        1 => vec(scalar(), 0..3).prop_map(Val::set),
        1 => vec(scalar(), 0..3).prop_map(|items| {
            Val::record(items.into_iter().enumerate().map(|(n, item)| (format!("k{n}").into(), item)).collect())
        }),
    ]
}

/// A value of the type that the argument at `position` should have.
fn fitting(f: ExtFn, position: usize) -> BoxedStrategy<Val> {
    match f {
        ExtFn::Decimal => mutated(decimal_string()).prop_map(|s| Val::Str(s.into())).boxed(),
        ExtFn::Ip => mutated(ip_string()).prop_map(|s| Val::Str(s.into())).boxed(),
        ExtFn::Datetime => mutated(datetime_string()).prop_map(|s| Val::Str(s.into())).boxed(),
        ExtFn::Duration => mutated(duration_string()).prop_map(|s| Val::Str(s.into())).boxed(),
        ExtFn::LessThan | ExtFn::LessThanOrEqual | ExtFn::GreaterThan | ExtFn::GreaterThanOrEqual => {
            long().prop_map(Val::Decimal).boxed()
        }
        ExtFn::IsIpv4 | ExtFn::IsIpv6 | ExtFn::IsLoopback | ExtFn::IsMulticast | ExtFn::IsInRange => {
            ip().prop_map(|ip| Val::Ip(Box::new(ip))).boxed()
        }
        ExtFn::Offset if position == 1 => long().prop_map(Val::Duration).boxed(),
        ExtFn::Offset | ExtFn::DurationSince | ExtFn::ToDate | ExtFn::ToTime => long().prop_map(Val::Datetime).boxed(),
        ExtFn::ToMilliseconds | ExtFn::ToSeconds | ExtFn::ToMinutes | ExtFn::ToHours | ExtFn::ToDays => {
            long().prop_map(Val::Duration).boxed()
        }
    }
}

/// A call: mostly as many arguments as it takes and of the right types.
fn any_call() -> impl Strategy<Value = (ExtFn, Vec<Val>)> {
    (select(ExtFn::ALL.to_vec()), 0..20_usize).prop_flat_map(|(f, shape)| {
        let count = match shape {
            0 => 0,
            1 => f.arity() + 1,
            2 => 3,
            _ => f.arity(),
        };
        // There is no way to write a method without its receiver.
        let count = if f.is_method() { count.max(1) } else { count };
        let args: Vec<_> =
            (0..count).map(|position| prop_oneof![7 => fitting(f, position), 1 => value().boxed()]).collect();
        (Just(f), args)
    })
}

fn call_text(f: ExtFn, args: &[Val]) -> String {
    let args: Vec<_> = args.iter().map(cedar_text).collect();
    match args.split_first() {
        Some((receiver, rest)) if f.is_method() => format!("({receiver}).{}({})", f.name(), rest.join(", ")),
        _ => format!("{}({})", f.name(), args.join(", ")),
    }
}

/// Ours, the reference, and our two entrances against each other.
fn check_call(f: ExtFn, args: &[Val]) {
    let text = call_text(f, args);
    let ours = extension::fold(f, args);
    let bump = Bump::new();
    let borrowed: Vec<Value<'_>> = args.iter().map(Val::as_value).collect();
    match (&ours, extension::call(f, &borrowed, &bump)) {
        (Ok(folded), Ok(called)) => assert!(folded.as_value().total_cmp(&called).is_eq(), "{text}"),
        (Err(folded), Err(called)) => assert_eq!(*folded, called, "{text}"),
        (folded, called) => panic!("{text}: folded to {folded:?}, called {called:?}"),
    }
    match (&ours, evaluate(&parse(&text), "")) {
        (Ok(ours), Ok(theirs)) => {
            assert!(holds(&format!("{text} == {}", cedar_text(ours)), ""), "{text}: {ours:?} is not {theirs}");
        }
        (Err(ours), Err(theirs)) => assert!(same_class(*ours, &theirs), "{text}: {ours:?} is not {theirs:?}"),
        (ours, theirs) => panic!("{text}: ours {ours:?}, theirs {theirs:?}"),
    }
}

// Patterns -----------------------------------------------------------------------------------------------------------

fn elements(max: usize) -> impl Strategy<Value = Vec<PatternElement>> {
    // Few characters, so that texts match; two that share lead bytes, two that share continuation bytes.
    let c = select(vec!['a', 'a', 'b', '*', 'é', 'è', '日', '旦', '😀', '\\', '"', '\n', '\u{301}']);
    let plain = select(vec!['a', 'b']);
    prop_oneof![
        vec(prop_oneof![2 => c.prop_map(PatternElement::Char), 1 => Just(PatternElement::Wildcard)], 0..max),
        vec(prop_oneof![2 => plain.prop_map(PatternElement::Char), 1 => Just(PatternElement::Wildcard)], 0..max),
    ]
}

/// A text that the pattern matches (each wildcard filled), then a few characters changed; or any text at all.
fn text_for(elements: Vec<PatternElement>) -> impl Strategy<Value = String> {
    let c = select(vec!['a', 'b', '*', 'é', 'è', '日', '旦', '😀', '\\', '\n']).boxed();
    let filled = (vec(vec(c.clone(), 0..3), elements.len()), vec((any::<Index>(), c.clone()), 0..2)).prop_map(
        move |(fillers, changes)| {
            let mut chars = Vec::new();
            for (element, filler) in elements.iter().zip(fillers) {
                match element {
                    PatternElement::Char(c) => chars.push(*c),
                    PatternElement::Wildcard => chars.extend(filler),
                }
            }
            for (at, c) in changes {
                if !chars.is_empty() {
                    let at = at.index(chars.len());
                    chars[at] = c;
                }
            }
            String::from_iter(chars)
        },
    );
    prop_oneof![3 => filled, 1 => vec(c, 0..12).prop_map(String::from_iter), 1 => "[ab]{0,12}"]
}

/// Cedar's syntax of a pattern with every character but the stars escaped by number.
fn pattern_text(elements: &[PatternElement]) -> String {
    let mut text = String::new();
    for element in elements {
        match element {
            PatternElement::Wildcard => text.push('*'),
            PatternElement::Char('*') => text.push_str("\\*"),
            PatternElement::Char(c) => text.extend(c.escape_unicode()),
        }
    }
    text
}

/// The definition, by dynamic programming over characters: row by row, which prefixes of the text match.
fn naive_like(elements: &[PatternElement], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    for element in elements {
        match element {
            PatternElement::Wildcard => {
                for i in 1..row.len() {
                    row[i] |= row[i - 1];
                }
            }
            PatternElement::Char(c) => {
                for i in (1..row.len()).rev() {
                    row[i] = row[i - 1] && text[i - 1] == *c;
                }
                row[0] = false;
            }
        }
    }
    row[text.len()]
}

// Properties ---------------------------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn decimal_literals(s in mutated(decimal_string())) {
        check_call(ExtFn::Decimal, &[Val::Str(s.into())]);
    }

    #[test]
    fn ip_literals(s in mutated(ip_string())) {
        check_call(ExtFn::Ip, &[Val::Str(s.into())]);
    }

    #[test]
    fn datetime_literals(s in mutated(datetime_string())) {
        check_call(ExtFn::Datetime, &[Val::Str(s.into())]);
    }

    #[test]
    fn duration_literals(s in mutated(duration_string())) {
        check_call(ExtFn::Duration, &[Val::Str(s.into())]);
    }

    /// The literal read from the context instead of the policy, as the evaluator meets it.
    #[test]
    fn literals_from_context(s in string()) {
        for f in [ExtFn::Decimal, ExtFn::Ip, ExtFn::Datetime, ExtFn::Duration] {
            let ours = extension::fold(f, &[Val::Str(s.clone())]);
            let theirs = evaluate(&parse(&format!("{}(context.s)", f.name())), &s);
            prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{}", s);
        }
    }

    #[test]
    fn calls((f, args) in any_call()) {
        check_call(f, &args);
    }

    #[test]
    fn ip_ranges((a, b) in related_ips()) {
        let (a, b) = (Val::Ip(Box::new(a)), Val::Ip(Box::new(b)));
        check_call(ExtFn::IsInRange, &[a.clone(), b.clone()]);
        check_call(ExtFn::IsInRange, &[b.clone(), a.clone()]);
        prop_assert_eq!(a == b, holds(&format!("{} == {}", cedar_text(&a), cedar_text(&b)), ""));
        for f in [ExtFn::IsIpv4, ExtFn::IsIpv6, ExtFn::IsLoopback, ExtFn::IsMulticast] {
            check_call(f, std::slice::from_ref(&a));
            check_call(f, std::slice::from_ref(&b));
        }
    }

    #[test]
    fn dates_and_durations(a in long(), b in long()) {
        check_call(ExtFn::Offset, &[Val::Datetime(a), Val::Duration(b)]);
        check_call(ExtFn::DurationSince, &[Val::Datetime(a), Val::Datetime(b)]);
        for f in [ExtFn::ToDate, ExtFn::ToTime] {
            check_call(f, &[Val::Datetime(a)]);
        }
        for f in [ExtFn::ToMilliseconds, ExtFn::ToSeconds, ExtFn::ToMinutes, ExtFn::ToHours, ExtFn::ToDays] {
            check_call(f, &[Val::Duration(b)]);
        }
        for f in [ExtFn::LessThan, ExtFn::LessThanOrEqual, ExtFn::GreaterThan, ExtFn::GreaterThanOrEqual] {
            check_call(f, &[Val::Decimal(a), Val::Decimal(b)]);
        }
    }

    /// What we print is what we read, without the reference's help.
    #[test]
    fn text_round_trips(n in long(), ip in ip()) {
        let literal = |text: String| text.split('"').nth(1).unwrap().to_owned();
        prop_assert_eq!(extension::parse_decimal(&literal(extension::decimal_text(n))), Some(n));
        prop_assert_eq!(extension::parse_duration(&literal(extension::duration_text(n))), Some(n));
        prop_assert_eq!(extension::parse_ip(&literal(extension::ip_text(&ip))), Some(ip));
        let text = extension::datetime_text(n);
        if !text.contains("offset") {
            prop_assert_eq!(extension::parse_datetime(&literal(text)), Some(n));
        }
    }

    /// Compiled from elements and as printed, on texts near the pattern.
    #[test]
    fn like_agrees(
        (elements, texts) in elements(9).prop_flat_map(|e| (Just(e.clone()), vec(text_for(e), 4)))
    ) {
        let pattern = Pattern::compile(elements.iter().copied());
        let written = parse(&format!("context.s like \"{}\"", pattern_text(&elements)));
        let printed = parse(&format!("context.s like \"{pattern}\""));
        for text in &texts {
            let ours = EvalResult::Bool(pattern.matches(text));
            prop_assert_eq!(&evaluate(&written, text).unwrap(), &ours, "{} {:?}", pattern, text);
            prop_assert_eq!(&evaluate(&printed, text).unwrap(), &ours, "{} {:?}", pattern, text);
            prop_assert!(!pattern.matches(text) || text.starts_with(pattern.literal_prefix()));
            prop_assert!(pattern.exact().is_none_or(|exact| pattern.matches(text) == (exact == text)));
        }
    }

    /// Long texts, where substring search takes other paths, against the definition.
    #[test]
    fn like_on_long_texts(
        (elements, texts) in elements(40).prop_flat_map(|e| (Just(e.clone()), vec(text_for(e), 1..4))),
        noise in "[ab]{0,600}|[abé日]{0,200}",
    ) {
        let pattern = Pattern::compile(elements.iter().copied());
        let joined = texts.concat();
        let surrounded = format!("{}{noise}{}", texts[0], texts[texts.len() - 1]);
        for text in [&joined, &noise, &surrounded] {
            prop_assert_eq!(pattern.matches(text), naive_like(&elements, text), "{} {:?}", pattern, text);
        }
    }
}

/// Draws 4000 cases and returns how many in a hundred satisfy the predicate.
fn percent<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>, satisfied: impl Fn(T) -> bool) -> usize {
    let mut runner = TestRunner::deterministic();
    (0..4000).filter(|_| satisfied(strategy.new_tree(&mut runner).unwrap().current())).count() / 40
}

/// The properties above say little if all strings are refused or no pattern ever matches.
#[test]
fn generators_reach_both_outcomes() {
    let both = 15..=90;
    let shares = [
        percent(mutated(decimal_string()), |s| extension::parse_decimal(&s).is_some()),
        percent(mutated(ip_string()), |s| extension::parse_ip(&s).is_some()),
        percent(mutated(datetime_string()), |s| extension::parse_datetime(&s).is_some()),
        percent(mutated(duration_string()), |s| extension::parse_duration(&s).is_some()),
        percent(any_call(), |(f, args)| extension::fold(f, &args).is_ok()),
        percent(related_ips().prop_map(|(a, b)| [a, b].map(|ip| Val::Ip(Box::new(ip)))), |ips| {
            extension::fold(ExtFn::IsInRange, &ips) == Ok(Val::Bool(true))
        }),
        percent(elements(9).prop_flat_map(|e| (Just(e.clone()), text_for(e))), |(elements, text)| {
            Pattern::compile(elements.into_iter()).matches(&text)
        }),
    ];
    assert!(shares.iter().all(|share| both.contains(share)), "{shares:?}");
    let mut runner = TestRunner::deterministic();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20_000 {
        let (f, args) = any_call().new_tree(&mut runner).unwrap().current();
        seen.insert((f, extension::fold(f, &args).err()));
    }
    for f in ExtFn::ALL {
        for outcome in [None, Some(ExtError::WrongArity), Some(ExtError::WrongType)] {
            assert!(seen.contains(&(f, outcome)), "{f:?} {outcome:?}");
        }
    }
    for f in [ExtFn::Offset, ExtFn::DurationSince, ExtFn::ToDate] {
        assert!(seen.contains(&(f, Some(ExtError::Overflow))), "{f:?}");
    }
}

/// Patterns that make backtracking matchers quadratic or worse, on a megabyte: this ends in milliseconds or hangs.
#[test]
fn like_is_linear_on_hostile_patterns() {
    let elements = |text: &str| {
        let elements: Vec<_> =
            text.chars().map(|c| if c == '*' { PatternElement::Wildcard } else { PatternElement::Char(c) }).collect();
        elements
    };
    let text = "a".repeat(1 << 20);
    for (hostile, expected) in [
        ("*a*a*a*a*a*a*a*a*b".to_owned(), false),
        ("*a".repeat(1000) + "*b*", false),
        (format!("*{}b*", "a".repeat(10_000)), false),
        (format!("*{}b{}*", "a".repeat(500), "a".repeat(500)), false),
        ("*a".repeat(1000), true),
    ] {
        assert_eq!(Pattern::compile(elements(&hostile).into_iter()).matches(&text), expected);
    }
}
