//! All ways of asking give the same answer: whole set or policy by policy, prepared or not, one by one or in a batch,
//! on an owned context or on an argument snapshot. What the answer has to be is the business of `multi_policy`.
//!
//! The comparison policy by policy is the one that sees the index: a set of one policy has no tables, so its faults
//! come from the evaluator.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod generate;

use std::sync::Arc;

use generate::{Seeded, Source as _};
use serde_json::Value as Json;
use tollkeeper_core::arguments::Arguments;
use tollkeeper_core::policy::batch::{Answers, BatchError, Column, Columns, Detail, decide_many};
use tollkeeper_core::policy::entities::{Entities, context_from_json};
use tollkeeper_core::policy::eval::{Fault, Request};
use tollkeeper_core::policy::parse::Source;
use tollkeeper_core::policy::set::{Answer, Decision, LoadOptions, Mode, PolicySet, Scratch};
use tollkeeper_core::uid::EntityUid;
use tollkeeper_core::value::{Val, Value};

fn load(text: &str) -> PolicySet {
    PolicySet::load(&[Source { name: None, text }], None, LoadOptions::default()).unwrap()
}

/// Decision, reasons, errors with their faults.
type Seen = (Decision, bool, Vec<u32>, Vec<(u32, Fault)>);

fn seen(set: &PolicySet, answer: &Answer) -> Seen {
    let mut reasons = answer.reasons.to_vec();
    reasons.sort_unstable();
    let errors = answer.errors(set).iter().map(|fault| (fault.policy, fault.fault)).collect();
    (answer.decision, answer.forbid_erred, reasons, errors)
}

/// Copies plain JSON into a snapshot, with numbers that Cedar cannot represent where `odd` says so.
fn fill(arguments: &mut Arguments, key: Option<&str>, value: &Json, seed: &mut Seeded) {
    if key.is_some() && seed.below(12) == 0 {
        match seed.below(4) {
            0 => arguments.push_unrepresentable(key).unwrap(),
            1 => arguments.push_float(key, 0.123_456).unwrap(),
            2 => arguments.push_float(key, 1.5).unwrap(),
            _ => arguments.push_null(key).unwrap(),
        }
        return;
    }
    match value {
        Json::Null => arguments.push_null(key).unwrap(),
        Json::Bool(value) => arguments.push_bool(key, *value).unwrap(),
        Json::Number(value) => arguments.push_long(key, value.as_i64().unwrap()).unwrap(),
        Json::String(value) => arguments.push_str(key, value).unwrap(),
        Json::Array(items) => {
            arguments.open_list(key).unwrap();
            for item in items {
                fill(arguments, None, item, seed);
            }
            arguments.close();
        }
        Json::Object(fields) => {
            arguments.open_object(key).unwrap();
            for (name, field) in fields {
                fill(arguments, Some(name), field, seed);
            }
            arguments.close();
        }
    }
}

/// The snapshot as an owned value, if everything in it can be represented.
#[expect(clippy::option_option, reason = "absent, and present without a value, are different answers")]
fn owned(arguments: tollkeeper_core::arguments::ArgumentRef<'_>) -> Option<Option<Val>> {
    use tollkeeper_core::arguments::{Argument, decimal_from_float};
    Some(Some(match arguments.value() {
        Argument::Null => return Some(None),
        Argument::Bool(value) => Val::Bool(value),
        Argument::Long(value) => Val::Long(value),
        Argument::Decimal(value) => Val::Decimal(value),
        Argument::Float(value) => Val::Decimal(decimal_from_float(value)?),
        Argument::Str(value) => Val::Str(value.into()),
        Argument::List => {
            let items: Option<Vec<Val>> = arguments.children().map(|(_, child)| owned(child)?).collect();
            Val::set(items?)
        }
        Argument::Object => {
            let mut fields = Vec::new();
            for (name, child) in arguments.children() {
                if let Some(value) = owned(child)? {
                    fields.push((name.into(), value));
                }
            }
            Val::record(fields)
        }
        Argument::Unrepresentable => return None,
    }))
}

struct Uids {
    principal: Arc<EntityUid>,
    action: Arc<EntityUid>,
    resource: Arc<EntityUid>,
}

impl Uids {
    fn of(request: &generate::Request) -> Self {
        let uid = |(ty, id): &(String, String)| Arc::new(EntityUid::new(ty, id));
        Self { principal: uid(&request.principal), action: uid(&request.action), resource: uid(&request.resource) }
    }

    fn with<'r>(&'r self, context: Value<'r>) -> Request<'r> {
        Request { principal: &self.principal, action: &self.action, resource: &self.resource, context }
    }
}

/// A set, its policies as sets of one, and what to ask them against.
struct Sides {
    text: String,
    set: PolicySet,
    singles: Vec<PolicySet>,
    entities: Entities,
}

impl Sides {
    /// Families of similar policies, so that the index has tables.
    fn new(seed: &mut Seeded) -> Self {
        let mut lines: Vec<String> = Vec::new();
        for _ in 0..=seed.below(3) {
            let lead = generate::policy(seed);
            lines.extend((0..12).map(|_| {
                lead.chars().map(|c| if c == '1' && seed.below(2) == 0 { '2' } else { c }).collect::<String>()
            }));
        }
        lines.extend((0..seed.below(10)).map(|_| generate::policy(seed)));
        let text = lines.concat();
        let set = load(&text);
        let singles = lines.iter().map(|line| load(line)).collect();
        let entities = Entities::from_json(&generate::entities(seed).to_string(), None).unwrap();
        Self { text, set, singles, entities }
    }

    fn check(&self, uids: &Uids, context: Value<'_>, scratch: &mut Scratch) -> Seen {
        let asked = uids.with(context);
        let whole = seen(&self.set, &self.set.decide(&asked, &self.entities, scratch, Mode::Full));
        for (number, single) in self.singles.iter().enumerate() {
            let number = u32::try_from(number).unwrap();
            let alone = single.decide(&asked, &self.entities, scratch, Mode::Full);
            let fault = alone.errors(single).first().map(|fault| fault.fault);
            let in_whole = whole.3.iter().find(|(policy, _)| *policy == number).map(|(_, fault)| *fault);
            let text = &self.text;
            assert_eq!(in_whole, fault, "fault of {}", text.lines().nth(number as usize).unwrap());
            if whole.2.contains(&number) {
                assert_eq!(alone.reasons.as_slice(), [0], "a reason is satisfied alone");
            }
        }
        let prepared = self.set.prepare(&uids.principal, &uids.action, &uids.resource, &self.entities);
        let ready = self.set.decide_prepared(&prepared, context, scratch, Mode::Full);
        assert_eq!(seen(&self.set, &ready), whole, "prepared");
        let quick = self.set.decide_prepared(&prepared, context, scratch, Mode::DecisionOnly);
        assert_eq!(quick.decision, whole.0, "prepared, decision only");
        let other = self.singles[0].decide_prepared(&prepared, context, scratch, Mode::Full);
        let expected = self.singles[0].decide(&asked, &self.entities, scratch, Mode::Full);
        assert_eq!(seen(&self.singles[0], &other), seen(&self.singles[0], &expected), "prepared for another set");
        whole
    }
}

#[test]
fn all_ways_of_asking_agree() {
    let mut seed = Seeded(3);
    let mut scratch = Scratch::new();
    let mut arguments = Arguments::new();
    let (mut asked, mut erred) = (0, 0);
    for _ in 0..60 {
        let sides = Sides::new(&mut seed);
        for _ in 0..25 {
            let request = generate::request(&mut seed);
            let uids = Uids::of(&request);
            let context = context_from_json(&request.context.to_string()).unwrap();
            sides.check(&uids, context.as_value(), &mut scratch);
            arguments.reset(1 << 16);
            fill(&mut arguments, None, &request.context, &mut seed);
            let root = arguments.root().unwrap();
            let from_snapshot = sides.check(&uids, Value::RecordArgs(root), &mut scratch);
            if let Some(Some(same)) = owned(root) {
                assert_eq!(sides.check(&uids, same.as_value(), &mut scratch), from_snapshot, "snapshot and owned");
            }
            asked += 1;
            erred += from_snapshot.3.len();
        }
    }
    assert!(erred > asked, "the generator makes policies err ({erred} in {asked} requests)");
}

/// A prepared request belongs to the snapshot it was made against, whatever happens to the store afterwards.
#[test]
fn a_prepared_request_keeps_its_set_and_its_snapshot() {
    let first = load("permit (principal in Team::\"a\", action, resource);");
    let second = load("permit (principal in Team::\"b\", action, resource);");
    let store = |team: &str| {
        let text = format!(
            r#"[{{"uid": {{"type": "User", "id": "u"}}, "attrs": {{}}, "parents": [{{"type": "Team", "id": "{team}"}}]}}]"#
        );
        Entities::from_json(&text, None).unwrap()
    };
    let [principal, action, resource] = ["User", "Action", "Mcp"].map(|ty| Arc::new(EntityUid::new(ty, "u")));
    let in_a = first.prepare(&principal, &action, &resource, &store("a"));
    let in_b = first.prepare(&principal, &action, &resource, &store("b"));
    let mut scratch = Scratch::new();
    let mut ask = |set: &PolicySet, prepared| {
        set.decide_prepared(prepared, Value::Record(&[]), &mut scratch, Mode::Full).decision
    };
    assert_eq!(ask(&first, &in_a), Decision::Allow);
    assert_eq!(ask(&first, &in_b), Decision::Deny);
    assert_eq!(ask(&second, &in_a), Decision::Deny);
    assert_eq!(ask(&second, &in_b), Decision::Allow);
    assert!(in_a.is_for(&first) && !in_a.is_for(&second));
}

#[test]
fn a_batch_equals_its_requests() {
    let mut seed = Seeded(11);
    let text = generate::policies(&mut seed, 120);
    let set = load(&text);
    let entities = Entities::from_json(&generate::entities(&mut seed).to_string(), None).unwrap();
    let requests: Vec<generate::Request> = (0..1_500).map(|_| generate::request(&mut seed)).collect();
    let uids: Vec<Uids> = requests.iter().map(Uids::of).collect();
    let table = |pick: fn(&Uids) -> &Arc<EntityUid>| uids.iter().map(|uids| Arc::clone(pick(uids))).collect::<Vec<_>>();
    let (principals, actions, resources) = (table(|u| &u.principal), table(|u| &u.action), table(|u| &u.resource));
    let contexts: Vec<Val> =
        requests.iter().map(|request| context_from_json(&request.context.to_string()).unwrap()).collect();
    let borrowed: Vec<Value<'_>> = contexts.iter().map(Val::as_value).collect();
    let rows: Vec<u32> = (0..1_500).rev().collect();
    let columns = Columns {
        principals: Column { table: &principals, indices: &rows },
        actions: Column { table: &actions, indices: &rows },
        resources: Column { table: &resources, indices: &rows },
        contexts: Column { table: &borrowed, indices: &rows },
    };
    let all: Vec<Answers> = [(Detail::Policies, 1), (Detail::Policies, 3), (Detail::Counts, 2), (Detail::Decisions, 0)]
        .map(|(detail, threads)| decide_many(&set, &entities, &columns, detail, threads).unwrap())
        .into();
    assert_eq!(all[0], all[1], "threads change nothing");
    let mut scratch = Scratch::new();
    for (row, at) in rows.iter().enumerate() {
        let context = contexts[*at as usize].as_value();
        let answer = set.decide(&uids[*at as usize].with(context), &entities, &mut scratch, Mode::Full);
        let (decision, _, reasons, errors) = seen(&set, &answer);
        for answers in &all {
            assert_eq!(answers.decisions[row] == 1, decision == Decision::Allow);
        }
        assert_eq!(all[0].reasons.of(row), reasons);
        assert_eq!(all[0].errors.of(row), errors.iter().map(|(policy, _)| *policy).collect::<Vec<u32>>());
        assert_eq!(all[2].counts[row], (reasons.len().try_into().unwrap(), errors.len().try_into().unwrap()));
    }
}

#[test]
fn a_batch_refuses_what_does_not_fit() {
    let set = load("permit (principal, action, resource);");
    let uid = [Arc::new(EntityUid::new("User", "u"))];
    let decide = |indices: &[u32], contexts: &[Val], context_rows: &[u32]| {
        let contexts: Vec<Value<'_>> = contexts.iter().map(Val::as_value).collect();
        let column = || Column { table: &uid, indices };
        let contexts = Column { table: &contexts, indices: context_rows };
        let columns = Columns { principals: column(), actions: column(), resources: column(), contexts };
        decide_many(&set, &Entities::empty(), &columns, Detail::Decisions, 4).map(|answers| answers.decisions)
    };
    let record = [Val::record(Vec::new())];
    assert_eq!(decide(&[0, 0], &record, &[0, 0]), Ok(vec![1, 1]));
    assert_eq!(decide(&[], &record, &[]), Ok(vec![]));
    let rows = BatchError::Rows { column: "contexts", found: 1, expected: 2 };
    assert_eq!(decide(&[0, 0], &record, &[0]), Err(rows));
    let index = BatchError::Index { column: "principals", row: 1, index: 1, len: 1 };
    assert_eq!(decide(&[0, 1], &record, &[0, 0]), Err(index.clone()));
    assert_eq!(index.to_string(), "row 1 of column `principals` is 1, the table has 1 entries");
    assert_eq!(decide(&[0], &[Val::Long(1)], &[0]), Err(BatchError::Context { index: 0 }));
}
