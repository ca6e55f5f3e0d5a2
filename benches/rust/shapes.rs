//! The policy sets, entities and requests that the benches ask, and both sides' ways of asking them.
//!
//! Policy i is for team i mod sqrt(N) and tool i / sqrt(N); one in ten forbids; a request matches a few. The other
//! shapes take away what makes that easy. Every shape is checked against the reference before it is timed.

#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "each bench takes a part")]

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Instant;

use cedar_policy as reference;
use serde_json::{Value as Json, json};
use tollkeeper_core::policy::entities::{Entities, context_from_json};
use tollkeeper_core::policy::eval::Request;
use tollkeeper_core::policy::parse::Source;
use tollkeeper_core::policy::set::{Answer, Decision, Ids, LoadOptions, Mode, PolicySet, Prepared, Scratch};
use tollkeeper_core::uid::EntityUid;
use tollkeeper_core::value::Val;

/// What the policies of a set look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `principal in Team, action ==, resource`, conditions on the arguments
    Selective,
    /// One action per tool, everything else in the arguments
    AgentCore,
    /// Empty scopes, all matching in `when`
    InWhen,
    /// Every policy is satisfied: nothing an index could leave out
    AllApply,
    /// Every policy errs
    AllErr,
}

impl Shape {
    /// All shapes.
    pub const ALL: [Self; 5] = [Self::Selective, Self::AgentCore, Self::InWhen, Self::AllApply, Self::AllErr];

    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Selective => "selective",
            Self::AgentCore => "agentcore",
            Self::InWhen => "in-when",
            Self::AllApply => "all-apply",
            Self::AllErr => "all-err",
        }
    }
}

/// The square root, rounded up, at least 1.
fn side(count: usize) -> usize {
    (1..=count.max(1)).find(|side| side * side >= count).unwrap_or(1)
}

/// Policies of one file: keeps the largest shape under the bound on a file's size.
const FILE_POLICIES: usize = 5_000;

/// The texts of a set's files.
pub fn policies(shape: Shape, count: usize) -> Vec<String> {
    let (side, all) = (side(count), (0..count).collect::<Vec<usize>>());
    all.chunks(FILE_POLICIES).map(|file| file.iter().map(|number| policy(shape, *number, side)).collect()).collect()
}

/// Loads a set of this crate.
pub fn load(texts: &[String]) -> PolicySet {
    let names: Vec<String> = (0..texts.len()).map(|number| number.to_string()).collect();
    let sources: Vec<Source<'_>> =
        texts.iter().zip(&names).map(|(text, name)| Source { name: Some(name), text }).collect();
    let options = LoadOptions { ids: Ids::Annotation, ..LoadOptions::default() };
    PolicySet::load(&sources, None, &options).expect("loads")
}

fn policy(shape: Shape, number: usize, side: usize) -> String {
    let (team, tool) = (number % side, number / side);
    let effect = if number % 10 == 7 { "forbid" } else { "permit" };
    let (folder, amount) = (number % 3, 10 + number * 7 % 90);
    let arguments = format!("context.input.path like \"/data/{folder}*\" && context.input.amount < {amount}");
    match shape {
        Shape::Selective => format!(
            "{effect} (principal in Team::\"team{team}\", action == Action::\"tool{tool}\", resource)\nwhen {{ {arguments} }};\n"
        ),
        Shape::AgentCore => {
            format!(
                "{effect} (principal, action == Action::\"tool{tool}\", resource)\nwhen {{ context.input.kind == \"k{team}\" && {arguments} }};\n"
            )
        }
        Shape::InWhen => format!(
            "{effect} (principal, action, resource)\nwhen {{ principal in Team::\"team{team}\" && action == Action::\"tool{tool}\" && context.input.kind == \"k{}\" && {arguments} }};\n",
            team % 20
        ),
        Shape::AllApply => format!(
            "permit (principal, action, resource)\nwhen {{ context.input.path like \"/data/*\" && context.input.amount < {} }};\n",
            1_000 + number
        ),
        Shape::AllErr => format!(
            "permit (principal, action, resource)\nwhen {{ context.input.missing == \"m{number}\" && context.input.amount < {amount} }};\n"
        ),
    }
}

/// Twenty users in three teams each, the teams' parent, ten servers.
pub fn entities(count: usize) -> Json {
    let side = side(count);
    let uid = |ty: &str, id: String| json!({"type": ty, "id": id});
    let mut all = Vec::new();
    for user in 0..20 {
        let mut teams: Vec<usize> = (0..3).map(|more| (user + more) % side).collect();
        teams.sort_unstable();
        teams.dedup();
        let parents: Vec<Json> = teams.into_iter().map(|team| uid("Team", format!("team{team}"))).collect();
        all.push(json!({"uid": uid("User", format!("u{user}")), "attrs": {"level": user}, "parents": parents}));
    }
    for team in 0..side.min(20) {
        let parents = [uid("Team", "everybody".to_owned())];
        all.push(json!({"uid": uid("Team", format!("team{team}")), "attrs": {}, "parents": parents}));
    }
    for server in 0..10 {
        all.push(json!({"uid": uid("Server", format!("s{server}")), "attrs": {"level": server}, "parents": []}));
    }
    Json::Array(all)
}

/// One request as data.
pub struct Asked {
    /// Type and id
    pub principal: (&'static str, String),
    /// Type and id
    pub action: (&'static str, String),
    /// Type and id
    pub resource: (&'static str, String),
    /// In Cedar's JSON
    pub context: Json,
}

/// Requests that spread over users, tools and arguments.
pub fn requests(set_size: usize, count: usize) -> Vec<Asked> {
    let side = side(set_size);
    (0..count)
        .map(|number| {
            let user = number * 7 % 20;
            Asked {
                principal: ("User", format!("u{user}")),
                action: ("Action", format!("tool{}", number * 13 % side)),
                resource: ("Server", format!("s{}", number % 10)),
                context: json!({"input": {
                    "path": format!("/data/{}/report-{number}.csv", number % 3),
                    "kind": format!("k{}", user % side),
                    "amount": number * 11 % 100,
                    "note": "quarterly figures",
                }, "session": "s-1"}),
            }
        })
        .collect()
}

/// A request on prepared handles of this crate.
pub struct Ready {
    /// Who
    pub principal: Arc<EntityUid>,
    /// What
    pub action: Arc<EntityUid>,
    /// On what
    pub resource: Arc<EntityUid>,
    /// With which arguments
    pub context: Val,
}

impl Ready {
    /// From data.
    pub fn new(asked: &Asked) -> Self {
        let uid = |(ty, id): &(&'static str, String)| Arc::new(EntityUid::new(ty, id));
        Self {
            principal: uid(&asked.principal),
            action: uid(&asked.action),
            resource: uid(&asked.resource),
            context: context_from_json(&asked.context.to_string()).expect("context"),
        }
    }

    /// Principal, action and resource resolved.
    pub fn prepare(&self, case: &Case) -> Prepared {
        case.set.prepare(&self.principal, &self.action, &self.resource, &case.entities)
    }

    /// As a request.
    pub fn request(&self) -> Request<'_> {
        Request {
            principal: &self.principal,
            action: &self.action,
            resource: &self.resource,
            context: self.context.as_value(),
        }
    }
}

/// The same request on the reference's handles.
pub fn reference_request(asked: &Asked) -> reference::Request {
    let uid = |(ty, id): &(&'static str, String)| {
        reference::EntityUid::from_type_name_and_id(
            reference::EntityTypeName::from_str(ty).expect("type name"),
            reference::EntityId::new(id),
        )
    };
    let context = reference::Context::from_json_value(asked.context.clone(), None).expect("context");
    reference::Request::new(uid(&asked.principal), uid(&asked.action), uid(&asked.resource), context, None)
        .expect("request")
}

/// Both sides, loaded and ready.
pub struct Case {
    /// This crate's set
    pub set: PolicySet,
    /// This crate's store
    pub entities: Entities,
    /// This crate's requests
    pub ready: Vec<Ready>,
    /// The reference's set
    pub reference_set: reference::PolicySet,
    /// The reference's store
    pub reference_entities: reference::Entities,
    /// The reference's requests
    pub reference_ready: Vec<reference::Request>,
}

/// Loads both sides.
pub fn case(shape: Shape, policy_count: usize, request_count: usize) -> Case {
    let texts = policies(shape, policy_count);
    let document = entities(policy_count);
    let asked = requests(policy_count, request_count);
    Case {
        set: load(&texts),
        entities: Entities::from_json(&document.to_string(), None).expect("entities"),
        ready: asked.iter().map(Ready::new).collect(),
        reference_set: reference::PolicySet::from_str(&texts.concat()).expect("parses"),
        reference_entities: reference::Entities::from_json_value(document, None).expect("entities"),
        reference_ready: asked.iter().map(reference_request).collect(),
    }
}

impl Case {
    /// Panics unless the first requests get the same decision, reasons and erring policies from both sides.
    /// Returns how many requests were compared, and the mean numbers of reasons and errors.
    pub fn check(&self, at_most: usize) -> (usize, usize, usize) {
        let mut scratch = Scratch::new();
        let (mut reasons_seen, mut errors_seen, mut compared) = (0, 0, 0);
        for (ready, asked) in self.ready.iter().zip(&self.reference_ready).take(at_most) {
            let answer = self.set.decide(&ready.request(), &self.entities, &mut scratch, Mode::Full);
            let expected = self.ask_reference(asked);
            let allow = expected.decision() == reference::Decision::Allow;
            assert_eq!(answer.decision == Decision::Allow, allow, "decision");
            let (mut reasons, mut errors) = self.names(&answer);
            let mut expected_reasons: Vec<String> = expected.diagnostics().reason().map(ToString::to_string).collect();
            let mut expected_errors: Vec<String> = expected
                .diagnostics()
                .errors()
                .map(|reference::AuthorizationError::PolicyEvaluationError(error)| error.policy_id().to_string())
                .collect();
            for list in [&mut reasons, &mut errors, &mut expected_reasons, &mut expected_errors] {
                list.sort();
            }
            assert_eq!(reasons, expected_reasons, "reasons");
            assert_eq!(errors, expected_errors, "errors");
            reasons_seen += reasons.len();
            errors_seen += errors.len();
            compared += 1;
        }
        (compared, reasons_seen.div_ceil(compared.max(1)), errors_seen.div_ceil(compared.max(1)))
    }

    /// The reference numbers policies in the order of their text, as the indices here do.
    fn names(&self, answer: &Answer) -> (Vec<String>, Vec<String>) {
        let name = |policy: u32| format!("policy{policy}");
        let reasons = answer.reasons.iter().map(|policy| name(*policy)).collect();
        (reasons, answer.errors(&self.set).iter().map(|fault| name(fault.policy)).collect())
    }

    /// One decision of the reference.
    pub fn ask_reference(&self, request: &reference::Request) -> reference::Response {
        reference::Authorizer::new().is_authorized(request, &self.reference_set, &self.reference_entities)
    }
}

/// Nanoseconds per item of one run of `work` over `items` items.
pub fn per_item(items: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e9 / items.max(1) as f64
}

/// The median; the list is sorted.
pub fn median(list: &mut [f64]) -> f64 {
    list.sort_by(f64::total_cmp);
    list.get(list.len() / 2).copied().unwrap_or(f64::NAN)
}
