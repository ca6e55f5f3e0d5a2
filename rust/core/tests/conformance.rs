//! Cedar's own conformance data: decision, reasons and erroring ids equal the recorded ones, request by request.
//!
//! Skips (and says so) where the data is absent; `TOLLKEEPER_CEDAR_CORPUS` names another folder.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use serde::Deserialize;
use tollkeeper_core::policy::entities::{Entities, context_from_json};
use tollkeeper_core::policy::eval::Request;
use tollkeeper_core::policy::parse::{Source, on_parser_thread, parse_schema};
use tollkeeper_core::policy::set::{Decision, LoadOptions, Mode, PolicySet, Scratch};
use tollkeeper_core::uid::EntityUid;

#[derive(Deserialize)]
struct Case {
    id: String,
    policies: String,
    schema: String,
    entities: serde_json::Value,
    requests: Vec<CaseRequest>,
}

#[derive(Deserialize)]
struct CaseRequest {
    principal: Uid,
    action: Uid,
    resource: Uid,
    context: serde_json::Value,
    decision: String,
    reason: Vec<String>,
    errors: Vec<String>,
}

#[derive(Deserialize)]
struct Uid {
    #[serde(rename = "type")]
    ty: String,
    id: String,
}

impl Uid {
    fn uid(&self) -> EntityUid {
        EntityUid::new(&self.ty, &self.id)
    }
}

fn folder() -> Option<PathBuf> {
    let path = std::env::var_os("TOLLKEEPER_CEDAR_CORPUS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/cedar"), PathBuf::from);
    path.is_dir().then_some(path)
}

fn cases(name: &str) -> Option<Vec<Case>> {
    let Some(folder) = folder() else {
        eprintln!("skipped: no Cedar conformance data; set TOLLKEEPER_CEDAR_CORPUS to its folder");
        return None;
    };
    let file = std::fs::File::open(folder.join(name)).expect("conformance file opens");
    let lines = BufReader::new(flate2::read::GzDecoder::new(file)).lines();
    Some(lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect())
}

/// Runs every request of a file; `with_schema` also reads entities through the test's schema.
fn run(name: &str, with_schema: bool) -> Option<(usize, Vec<String>)> {
    let mut requests = 0usize;
    let mut wrong = Vec::new();
    let mut scratch = Scratch::new();
    for case in cases(name)? {
        let set = PolicySet::load(&[Source { name: None, text: &case.policies }], None, LoadOptions::default())
            .unwrap_or_else(|errors| panic!("{}: {errors}", case.id));
        let schema = with_schema.then(|| {
            let source = Source { name: None, text: &case.schema };
            on_parser_thread(|| parse_schema(&source)).unwrap().unwrap_or_else(|errors| panic!("{}: {errors}", case.id))
        });
        let entities = Entities::from_json(&case.entities.to_string(), schema.as_ref())
            .unwrap_or_else(|errors| panic!("{}: {errors}", case.id));
        for (number, request) in case.requests.iter().enumerate() {
            requests = requests.saturating_add(1);
            let context = context_from_json(&request.context.to_string()).unwrap();
            let (principal, action, resource) = (request.principal.uid(), request.action.uid(), request.resource.uid());
            let asked =
                Request { principal: &principal, action: &action, resource: &resource, context: context.as_value() };
            let answer = set.decide(&asked, &entities, &mut scratch, Mode::Full);
            let decision = if answer.decision == Decision::Allow { "allow" } else { "deny" };
            let reasons: BTreeSet<&str> = answer.reasons.iter().map(|policy| set.id(*policy)).collect();
            let errors: BTreeSet<&str> = answer.errors(&set).iter().map(|fault| set.id(fault.policy)).collect();
            let expected_reasons: BTreeSet<&str> = request.reason.iter().map(String::as_str).collect();
            let expected_errors: BTreeSet<&str> = request.errors.iter().map(String::as_str).collect();
            if decision != request.decision || reasons != expected_reasons || errors != expected_errors {
                wrong.push(format!("{} request {number}: {decision} {reasons:?} {errors:?}", case.id));
            }
        }
    }
    Some((requests, wrong))
}

fn assert_equal(name: &str, with_schema: bool, expected_requests: usize) {
    let Some((requests, wrong)) = run(name, with_schema) else { return };
    assert!(wrong.is_empty(), "{} of {requests} differ, first: {:?}", wrong.len(), wrong.first());
    assert!(requests >= expected_requests, "only {requests} requests were read");
}

#[test]
fn corpus_without_schema() {
    assert_equal("corpus.jsonl.gz", false, 1);
}

#[test]
fn handwritten_with_schema() {
    assert_equal("handwritten.jsonl.gz", true, 1);
}
