//! Structured differential fuzzing: policies, entities and requests made from bytes; the compiled and indexed set has to
//! give the reference's decision, reasons and erroring policies, prepared or not.
//!
//! The generator is that of the tests. The first byte chooses how many policies repeat one lead with other digits, which
//! is what gives the index tables to be wrong about.

#![no_main]
#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "a fuzz target stops where something is wrong")]

#[path = "../../rust/core/tests/generate/mod.rs"]
mod generate;

use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::sync::Arc;

use cedar_policy as reference;
use generate::{Bytes, Source as _};
use libfuzzer_sys::fuzz_target;
use tollkeeper_core::policy::entities::{Entities, context_from_json};
use tollkeeper_core::policy::eval::Request;
use tollkeeper_core::policy::parse::{Source, on_parser_thread};
use tollkeeper_core::policy::set::{Answer, Decision, LoadOptions, Mode, PolicySet, Scratch};
use tollkeeper_core::uid::EntityUid;

type Seen = (bool, BTreeSet<String>, BTreeSet<String>);

fn text(bytes: &mut Bytes<'_>) -> String {
    let mut text = String::new();
    for _ in 0..1 + bytes.below(3) {
        let lead = generate::policy(bytes);
        for _ in 0..1 + bytes.below(12) {
            text.extend(lead.chars().map(|c| if c == '1' && bytes.below(3) == 0 { '2' } else { c }));
        }
    }
    text.push_str(&generate::policies(bytes, 1 + 4));
    text
}

fn seen(set: &PolicySet, answer: &Answer) -> Seen {
    let reasons = answer.reasons.iter().map(|policy| set.id(*policy).to_owned()).collect();
    let errors = answer.errors(set).iter().map(|fault| set.id(fault.policy).to_owned()).collect();
    (answer.decision == Decision::Allow, reasons, errors)
}

fn reference_request(request: &generate::Request) -> reference::Request {
    let uid = |(ty, id): &(String, String)| {
        let ty = reference::EntityTypeName::from_str(ty).unwrap();
        reference::EntityUid::from_type_name_and_id(ty, reference::EntityId::new(id))
    };
    let context = reference::Context::from_json_value(request.context.clone(), None).unwrap();
    reference::Request::new(uid(&request.principal), uid(&request.action), uid(&request.resource), context, None)
        .unwrap()
}

fn expected(text: &str, document: serde_json::Value, requests: &[generate::Request]) -> Option<Vec<Seen>> {
    let policies = reference::PolicySet::from_str(text).ok()?;
    let entities = reference::Entities::from_json_value(document, None).unwrap();
    let ask = |request: &generate::Request| {
        let response = reference::Authorizer::new().is_authorized(&reference_request(request), &policies, &entities);
        let errors = response.diagnostics().errors().map(|error| match error {
            reference::AuthorizationError::PolicyEvaluationError(error) => error.policy_id().to_string(),
        });
        let allow = response.decision() == reference::Decision::Allow;
        (allow, response.diagnostics().reason().map(ToString::to_string).collect(), errors.collect())
    };
    Some(requests.iter().map(ask).collect())
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let text = text(&mut bytes);
    let document = generate::entities(&mut bytes);
    let requests: Vec<generate::Request> = (0..3).map(|_| generate::request(&mut bytes)).collect();
    let entities = Entities::from_json(&document.to_string(), None).unwrap();
    let answers = on_parser_thread(|| expected(&text, document, &requests)).unwrap();
    let loaded = PolicySet::load(&[Source { name: None, text: &text }], None, LoadOptions::default());
    let Some(answers) = answers else {
        assert!(loaded.is_err(), "the reference refuses the text");
        return;
    };
    let set = loaded.unwrap();
    let mut scratch = Scratch::new();
    for (request, answer) in requests.iter().zip(answers) {
        let uid = |(ty, id): &(String, String)| Arc::new(EntityUid::new(ty, id));
        let (principal, action, resource) = (uid(&request.principal), uid(&request.action), uid(&request.resource));
        let context = context_from_json(&request.context.to_string()).unwrap();
        let context = context.as_value();
        let asked = Request { principal: &principal, action: &action, resource: &resource, context };
        let whole = set.decide(&asked, &entities, &mut scratch, Mode::Full);
        assert_eq!(seen(&set, &whole), answer);
        let quick = set.decide(&asked, &entities, &mut scratch, Mode::DecisionOnly);
        assert_eq!(quick.decision, whole.decision);
        let prepared = set.prepare(&principal, &action, &resource, &entities);
        let ready = set.decide_prepared(&prepared, context, &mut scratch, Mode::Full);
        assert_eq!(seen(&set, &ready), answer);
    }
});
