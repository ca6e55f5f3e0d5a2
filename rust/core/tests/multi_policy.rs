//! Whole policy sets against the reference authorizer: decision, reasons and erroring ids, request by request.
//!
//! The published corpus has one policy per set and cannot show a mistake of the index; these sets can. The share run by
//! `cargo test` is small; `TOLLKEEPER_ORACLE_DECISIONS=200000` runs the full measure.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod generate;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::str::FromStr;

use cedar_policy as reference;
use generate::{Seeded, Source as _};
use tollkeeper_core::policy::entities::{Entities, context_from_json};
use tollkeeper_core::policy::eval::Request;
use tollkeeper_core::policy::parse::{Source, on_parser_thread};
use tollkeeper_core::policy::set::{Decision, LoadOptions, Mode, PolicySet, Scratch};
use tollkeeper_core::uid::EntityUid;

/// What both sides answered.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    allow: bool,
    reasons: BTreeSet<String>,
    errors: BTreeSet<String>,
}

fn decisions_wanted() -> usize {
    std::env::var("TOLLKEEPER_ORACLE_DECISIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(6_000)
}

fn reference_uid((ty, id): &(String, String)) -> reference::EntityUid {
    reference::EntityUid::from_type_name_and_id(
        reference::EntityTypeName::from_str(ty).unwrap(),
        reference::EntityId::new(id),
    )
}

fn ask_reference(policies: &reference::PolicySet, entities: &reference::Entities, request: &generate::Request) -> Seen {
    let context = reference::Context::from_json_value(request.context.clone(), None).unwrap();
    let asked = reference::Request::new(
        reference_uid(&request.principal),
        reference_uid(&request.action),
        reference_uid(&request.resource),
        context,
        None,
    )
    .unwrap();
    let response = reference::Authorizer::new().is_authorized(&asked, policies, entities);
    Seen {
        allow: response.decision() == reference::Decision::Allow,
        reasons: response.diagnostics().reason().map(ToString::to_string).collect(),
        errors: response
            .diagnostics()
            .errors()
            .map(|error| match error {
                reference::AuthorizationError::PolicyEvaluationError(error) => error.policy_id().to_string(),
            })
            .collect(),
    }
}

fn ask_ours(set: &PolicySet, entities: &Entities, request: &generate::Request, scratch: &mut Scratch) -> Seen {
    let uid = |(ty, id): &(String, String)| EntityUid::new(ty, id);
    let context = context_from_json(&request.context.to_string()).unwrap();
    let (principal, action, resource) = (uid(&request.principal), uid(&request.action), uid(&request.resource));
    let asked = Request { principal: &principal, action: &action, resource: &resource, context: context.as_value() };
    let answer = set.decide(&asked, entities, scratch, Mode::Full);
    let quick = set.decide(&asked, entities, scratch, Mode::DecisionOnly);
    assert_eq!(quick.decision, answer.decision, "decision-only differs");
    let forbid_erred = answer
        .errors(set)
        .iter()
        .any(|fault| set.policies()[fault.policy as usize].effect == tollkeeper_core::policy::tree::Effect::Forbid);
    assert_eq!(answer.forbid_erred, forbid_erred, "forbid_erred differs");
    assert_eq!(answer.errors_len(), answer.errors(set).len());
    Seen {
        allow: answer.decision == Decision::Allow,
        reasons: answer.reasons.iter().map(|policy| set.id(*policy).to_owned()).collect(),
        errors: answer.errors(set).iter().map(|fault| set.id(fault.policy).to_owned()).collect(),
    }
}

/// One set, several requests.
fn compare(text: &str, seed: &mut Seeded, requests: u32) -> usize {
    let set = PolicySet::load(&[Source { name: None, text }], None, LoadOptions::default())
        .unwrap_or_else(|errors| panic!("generated policies load: {errors}\n{text}"));
    let document = generate::entities(seed);
    let entities = Entities::from_json(&document.to_string(), None).unwrap();
    let asked: Vec<generate::Request> = (0..requests).map(|_| generate::request(seed)).collect();
    let expected = on_parser_thread(|| {
        let policies = reference::PolicySet::from_str(text).unwrap();
        let entities = reference::Entities::from_json_value(document, None).unwrap();
        asked.iter().map(|request| ask_reference(&policies, &entities, request)).collect::<Vec<Seen>>()
    })
    .unwrap();
    let mut scratch = Scratch::new();
    for (request, expected) in asked.iter().zip(expected) {
        let ours = ask_ours(&set, &entities, request, &mut scratch);
        if ours != expected {
            let differ: Vec<&String> = ours
                .reasons
                .symmetric_difference(&expected.reasons)
                .chain(ours.errors.symmetric_difference(&expected.errors))
                .collect();
            let shown: Vec<String> = differ
                .iter()
                .filter_map(|id| text.lines().nth(id.trim_start_matches("policy").parse().ok()?).map(str::to_owned))
                .collect();
            panic!(
                "{:?} {:?} {:?} {}\nours {ours:?}\nreference {expected:?}\n{}\nentities {}",
                request.principal,
                request.action,
                request.resource,
                request.context,
                shown.join("\n"),
                entities.to_json().expect("entities print")
            );
        }
    }
    asked.len()
}

#[test]
fn generated_sets_equal_the_reference() {
    let mut seed = Seeded(20_261_121);
    let wanted = decisions_wanted();
    let mut done = 0;
    while done < wanted {
        // Mostly small sets, where everything is checked quickly; some large ones, where the index works.
        let size = match seed.below(20) {
            0 => 400 + seed.below(2_600),
            1..=4 => 64 + seed.below(200),
            _ => 1 + seed.below(60),
        };
        let text = generate::policies(&mut seed, size);
        done += compare(&text, &mut seed, 40);
    }
    println!("{done} decisions equal the reference");
}

/// Sets in which one leading test is shared by many policies, so that the index's tables carry the decision.
#[test]
fn hoisted_sets_equal_the_reference() {
    let mut seed = Seeded(7);
    let wanted = decisions_wanted() / 3;
    let mut done = 0;
    while done < wanted {
        let families = 1 + seed.below(4);
        let leads: Vec<String> = (0..families).map(|_| generate::policy(&mut seed)).collect();
        let mut text = String::new();
        for _ in 0..80 + seed.below(300) {
            // Same shape with other constants: digits and letters are redrawn inside string literals.
            let lead = &leads[seed.below(families) as usize];
            let varied: String = lead
                .chars()
                .map(|c| if c.is_ascii_digit() && c != '9' && seed.below(3) == 0 { '1' } else { c })
                .collect();
            text.push_str(&varied);
        }
        if let Ok(()) = check_parses(&text) {
            done += compare(&text, &mut seed, 40);
        }
    }
}

/// Guards in every order before tests that many policies share: a guard may settle a test only where nothing before it
/// has erred by then.
#[test]
fn guarded_sets_equal_the_reference() {
    let mut seed = Seeded(99);
    let wanted = decisions_wanted() / 3;
    let mut done = 0;
    while done < wanted {
        let mut text = String::new();
        for _ in 0..=seed.below(3) {
            let guards = generate::guards(&mut seed);
            let path =
                ["context.input.nested.a", "context.input.path", "principal.manager.level"][seed.below(3) as usize];
            let effect = if seed.below(4) == 0 { "forbid" } else { "permit" };
            for number in 0..8 + seed.below(80) {
                let condition = format!("{guards} && {path} == \"{number}\"");
                let _ = writeln!(text, "{effect} (principal, action, resource) when {{ {condition} }};");
            }
        }
        done += compare(&text, &mut seed, 30);
    }
}

fn check_parses(text: &str) -> Result<(), ()> {
    on_parser_thread(|| reference::PolicySet::from_str(text).map(drop).map_err(drop)).unwrap()
}
