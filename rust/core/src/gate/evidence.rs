//! What the gate tells the audit log of a decision, and when.
//!
//! Everything that stays the same from check to check is rendered once: what a scope says of the principal, what a tool
//! and a policy are called and which digest they have, which bundle decides. A check copies that. It claims its place
//! in the ring before the budget reserves and publishes after it, so that no money is held that the log does not know
//! of; what is refused here is denied with `audit.unavailable`, unless the configuration says to go on and leave a gap.
//!
//! An entry never holds an argument: the snapshot goes into the ring beside it, and the writer commits to it.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::approve::Approver;
use super::asserted::Asserted;
use super::code::Code;
use super::control::Revoked;
use super::decision::{Decision, DecisionId, Detail, RunForbid};
use super::model_call::ModelRequest;
use super::narrowing::Narrowing;
use super::scope::{Member, Scope};
use super::state::{GateMode, GateSources, GateState};
use super::tools::{Registry, Tool, ToolSpec};
use crate::arguments::{Arguments, push_json_str};
use crate::audit::entry::{Kind, Private, Record, push_hash, push_hex, push_name, push_number, push_text};
use crate::audit::error::AuditError;
use crate::audit::log::{Durability, Log, LogClaim, Refused};
use crate::audit::tree::{Hash, digest};
use crate::budget::denial::Denial;
use crate::budget::unit::UNITS;
use crate::policy::set::PolicySet;
use crate::value::{Val, Value};

/// Policies and obligations named in one entry; more are counted.
const NAMED_MAX: usize = 64;
/// Bytes of a tool's or a model's name that nobody registered.
const NAME_BYTES_MAX: usize = 256;
/// Bytes of an obligation in an entry.
const OBLIGATION_BYTES_MAX: usize = 1_000;
/// Bytes of why something could not be loaded: the first finding with its place.
const FAILURE_BYTES_MAX: usize = 2_000;
/// Bytes that the verdict may take beside what is counted: codes, names of members, generation, durability, engine.
const VERDICT_BYTES: usize = 384;
/// Bytes of `trace`.
const TRACE_BYTES: usize = 96;
/// Bytes of `budget` without its path.
const BUDGET_BYTES: usize = 24;
/// Bytes of `reserved` or `remaining` in it: every unit, and the longest numbers.
const UNITS_BYTES: usize = 192;
/// Bytes of `refused` in it without its path.
const REFUSED_BYTES: usize = 232;

/// What a full ring does to an action that is allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFull {
    /// It is denied
    #[default]
    Deny,
    /// It goes on, and an entry says how many did
    Allow,
}

/// The log of a gate and how it is used.
#[derive(Debug)]
pub struct Audit {
    /// The log
    pub log: Arc<Log>,
    /// What a full ring does
    pub on_full: OnFull,
    /// How certain a record is before a guard goes on, where no policy says more
    pub durability: Durability,
}

/// What led to a call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Links<'a> {
    /// Id of the decision that this one follows from
    pub parent: Option<&'a str>,
    /// Trace and span ids of W3C trace context
    pub trace: Option<(u128, u64)>,
    /// What the host says of the call
    pub asserted: Option<&'a Arc<Asserted>>,
}

/// Where a decision's record is.
#[derive(Debug, Clone, Copy)]
pub struct Recorded {
    /// Its sequence number
    pub seq: u64,
    /// How certain it should be before the action begins
    pub durability: Durability,
}

/// Buffers of a check.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    head: Vec<u8>,
    tail: Vec<u8>,
    structure: Vec<u8>,
    /// What policies saw of budgets
    pub(super) seen: Vec<u8>,
    /// The labels that policies saw, as a member
    pub(super) labels: Vec<u8>,
    /// The state of the table of revocations that the check has seen
    pub(super) word: u64,
}

/// What a state says in each entry.
#[derive(Debug, Clone, Default)]
pub(super) struct Fragments {
    /// By tool: action, resource, name, digest of the definition
    tools: Vec<Box<[u8]>>,
    /// By policy: id and digest
    policies: Arc<[Box<[u8]>]>,
    /// By policy: the most that it takes in one entry
    said_bytes: Arc<[usize]>,
    /// Mode, bundle, entities
    rest: Box<[u8]>,
    /// The same and the engine, which follows where nothing comes between
    rest_engine: Box<[u8]>,
    /// Digest of the entities' text
    pub(super) entities: Hash,
}

/// The document that a bundle digest is of: everything that decides but for what a runtime registers.
fn bundle(sources: &GateSources<'_>) -> Vec<u8> {
    let named = |source: &crate::policy::parse::Source<'_>| {
        let name = source.name.map(|name| {
            let inside = sources.folder.and_then(|folder| name.strip_prefix(folder)?.strip_prefix('/'));
            inside.unwrap_or(name)
        });
        json!([name, source.text])
    };
    let document = json!({
        "policies": sources.policies.iter().map(named).collect::<Vec<_>>(),
        "schema": sources.schema.as_ref().map(named),
        "entities": sources.entities.as_ref().map(named),
        "tools": sources.tools.iter().map(tool_document).collect::<Vec<_>>(),
        "mode": mode(sources.mode),
        "on_error": match sources.on_error { super::state::OnError::Deny => "deny", super::state::OnError::Cedar => "cedar" },
        "unguarded_forbid": match sources.unguarded_forbid {
            super::state::UnguardedForbid::Refuse => "refuse",
            super::state::UnguardedForbid::Warn => "warn",
        },
        "approvers": sources.approvers.iter().map(Approver::text).collect::<Vec<_>>(),
        "engine": env!("CARGO_PKG_VERSION"),
    });
    document.to_string().into_bytes()
}

/// The digest of everything that decides but for what a runtime registers.
pub(super) fn digest_of(sources: &GateSources<'_>) -> Hash {
    digest(&bundle(sources))
}

const fn mode(mode: GateMode) -> &'static str {
    match mode {
        GateMode::Enforce => "enforce",
        GateMode::Shadow => "shadow",
    }
}

fn tool_document(spec: &ToolSpec) -> serde_json::Value {
    let cost = spec.cost.map(|cost| {
        let amounts = cost.iter().filter(|(_, amount)| *amount != 0);
        amounts.map(|(unit, amount)| (unit.name().to_owned(), json!(amount))).collect::<serde_json::Map<_, _>>()
    });
    // A schema that cannot be read was refused before.
    let schema = spec.schema.as_deref().and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    json!({
        "name": spec.name,
        "resource": spec.resource.to_string(),
        "schema": schema,
        "paths": spec.paths,
        "cost": cost,
        "reads": spec.reads,
    })
}

/// The digest of a tool's definition.
pub(super) fn pin(spec: &ToolSpec) -> Hash {
    digest(tool_document(spec).to_string().as_bytes())
}

impl Fragments {
    pub(super) fn new(sources: &GateSources<'_>, set: &PolicySet, registry: &Registry) -> Self {
        let bundle = digest(&bundle(sources));
        let entities = digest(sources.entities.as_ref().map_or("[]", |source| source.text).as_bytes());
        let mut rest = Vec::new();
        push_text(&mut rest, "mode", mode(sources.mode));
        for (name, hash) in [("bundle", &bundle), ("entities", &entities)] {
            push_name(&mut rest, name);
            push_quoted_hash(&mut rest, hash);
        }
        let policies: Arc<[Box<[u8]>]> = policy_fragments(set).into();
        // Once as what decided and once as what would, and its obligation, every character of which may be escaped.
        let said_bytes = (0_u32..).zip(&*policies).map(|(policy, fragment)| {
            let obligation = set.annotation(policy, "obligation").map_or(0, str::len).min(OBLIGATION_BYTES_MAX);
            fragment.len().saturating_mul(2).saturating_add(obligation.saturating_mul(6)).saturating_add(8)
        });
        let said_bytes = said_bytes.collect();
        let mut rest_engine = rest.clone();
        push_engine(&mut rest_engine);
        let (rest, rest_engine) = (rest.into(), rest_engine.into());
        Self { tools: Vec::new(), policies, said_bytes, rest, rest_engine, entities }.with_tools(registry)
    }

    /// The same with other tools.
    pub(super) fn with_tools(&self, registry: &Registry) -> Self {
        let tools = registry.tools().iter().map(|tool| {
            let mut fragment = Vec::new();
            push_text(&mut fragment, "action", &tool.action().to_string());
            push_text(&mut fragment, "resource", &tool.resource().to_string());
            push_text(&mut fragment, "tool", tool.name());
            push_name(&mut fragment, "pin");
            push_quoted_hash(&mut fragment, tool.pin());
            fragment.into()
        });
        Self { tools: tools.collect(), ..self.clone() }
    }
}

/// Id and digest of each policy, as entries name them.
pub(super) fn policy_fragments(set: &PolicySet) -> Vec<Box<[u8]>> {
    let fragment = |(policy, body): (u32, &crate::policy::tree::Body)| {
        let mut fragment = Vec::new();
        push_json_str(&mut fragment, &body.id);
        fragment.push(b':');
        push_quoted_hash(&mut fragment, &digest(set.text(policy).as_bytes()));
        fragment.into()
    };
    (0_u32..).zip(set.policies()).map(fragment).collect()
}

/// The labels of a session as a member of an entry; nothing for none.
pub(super) fn labels_member(labels: &Val) -> Box<[u8]> {
    let mut member = Vec::new();
    if let Val::Set(items) = labels
        && !items.is_empty()
    {
        let texts = items.iter().filter_map(|item| if let Val::Str(text) = item { Some(&**text) } else { None });
        push_texts(&mut member, "labels", texts);
    }
    member.into()
}

fn push_quoted_hash(out: &mut Vec<u8>, hash: &Hash) {
    out.push(b'"');
    push_hash(out, hash);
    out.push(b'"');
}

/// What a scope says in each entry, and what goes with the arguments of its calls.
#[derive(Debug, Clone, Default)]
pub(super) struct ScopeFragments {
    who: Box<[u8]>,
    /// How much of it is not about the request
    without_request: usize,
    /// `,"principal":{...}` of a principal that the run describes, and `,"chain":[...]` of several
    payload: Box<[u8]>,
}

/// What a scope is, for its fragments.
pub(super) struct Who<'a> {
    pub(super) chain: &'a [Member],
    pub(super) on_behalf_of: Option<&'a crate::uid::EntityUid>,
    pub(super) session: &'a str,
    pub(super) run: u64,
    pub(super) narrowings: &'a [Arc<Narrowing>],
    pub(super) request: Option<&'a Hash>,
}

impl ScopeFragments {
    pub(super) fn new(scope: &Who<'_>) -> Self {
        let mut who = Vec::new();
        if let Some(actor) = scope.chain.last() {
            push_text(&mut who, "principal", &actor.uid.to_string());
        }
        if scope.chain.len() > 1 {
            let chain: Vec<String> = scope.chain.iter().map(|member| member.uid.to_string()).collect();
            push_texts(&mut who, "chain", chain.iter().map(String::as_str));
        }
        if let Some(user) = scope.on_behalf_of {
            push_text(&mut who, "on_behalf_of", &user.to_string());
        }
        push_text(&mut who, "session", scope.session);
        if scope.run != 0 {
            push_text(&mut who, "run", &format!("r{}", scope.run));
        }
        if !scope.narrowings.is_empty() {
            let digests: Vec<String> = scope.narrowings.iter().map(|own| STANDARD.encode(own.digest())).collect();
            push_texts(&mut who, "narrowing", digests.iter().map(String::as_str));
        }
        let without_request = who.len();
        if let Some(request) = scope.request {
            push_name(&mut who, "request");
            push_quoted_hash(&mut who, request);
        }
        Self { who: who.into(), without_request, payload: described(scope.chain).into() }
    }

    /// What the run says of its principals, as members.
    pub(super) fn described(&self) -> &[u8] {
        &self.payload
    }

    /// The members of the entry that begins a run.
    pub(super) fn run_members(&self, scope: &Scope, begun: &Begun<'_>, now_ms: i64) -> Vec<u8> {
        // The request is what this entry itself commits to.
        let mut members = self.who.get(..self.without_request).unwrap_or_default().to_vec();
        if begun.outer != 0 {
            push_text(&mut members, "inside", &format!("r{}", begun.outer));
        }
        if let Some(decision) = begun.decision {
            push_text(&mut members, "parent", &decision.to_string());
        }
        if let Some(tools) = scope.tools() {
            push_texts(&mut members, "tools", tools.iter().map(|tool| &**tool));
        }
        if let Some(budget) = scope.budget() {
            push_text(&mut members, "path", budget);
        }
        if scope.expires_ms() != i64::MAX {
            push_number(&mut members, "expires_ms", scope.expires_ms());
        }
        members.extend_from_slice(&scope.session_ref().seen(now_ms).fragment);
        members
    }
}

/// How a run has begun.
#[derive(Debug, Clone, Copy, Default)]
pub struct Begun<'a> {
    /// The run around it; 0 for none
    pub outer: u64,
    /// The decision that let another principal act in it
    pub decision: Option<DecisionId>,
    /// What the user asked for: salt and text of the commitment that the scope has
    pub request: Option<(&'a [u8; 32], &'a str)>,
}

/// What the run says of its principals, to be kept beside the arguments: of the one that acts, or of each of a chain.
fn described(chain: &[Member]) -> Vec<u8> {
    let text = |member: &Member| member.data.as_ref().and_then(crate::policy::entities::entity_json_text);
    let mut payload = Vec::new();
    if let Some(json) = chain.last().and_then(text) {
        push_name(&mut payload, "principal");
        payload.extend_from_slice(json.as_bytes());
    }
    let outer = chain.split_last().map_or(&[][..], |(_, outer)| outer);
    for (place, json) in outer.iter().filter_map(text).enumerate() {
        if place == 0 {
            push_name(&mut payload, "chain");
        }
        payload.push(if place == 0 { b'[' } else { b',' });
        payload.extend_from_slice(json.as_bytes());
    }
    if outer.iter().any(|member| text(member).is_some()) {
        payload.push(b']');
    }
    payload
}

/// A member that is a list of texts.
pub(super) fn push_texts<'a>(out: &mut Vec<u8>, name: &str, texts: impl Iterator<Item = &'a str>) {
    push_name(out, name);
    out.push(b'[');
    for (place, text) in texts.enumerate() {
        if place > 0 {
            out.push(b',');
        }
        push_json_str(out, text);
    }
    out.push(b']');
}

/// What was asked for.
#[derive(Clone, Copy)]
pub(super) enum Call<'a> {
    /// A tool by the name that was given, with its number if it has one, and its arguments if a snapshot was taken
    Tool { name: &'a str, index: Option<u32>, arguments: Option<&'a Arguments> },
    /// A model
    Model(&'a ModelRequest<'a>),
    /// Another principal, to act for this one, and what is handed over
    Delegate { to: &'a crate::uid::EntityUid, arguments: Option<&'a Arguments> },
}

impl<'a> Call<'a> {
    /// What policies read under `context.input`, if it is a snapshot.
    const fn arguments(&self) -> Option<&'a Arguments> {
        match self {
            Self::Tool { arguments, .. } | Self::Delegate { arguments, .. } => *arguments,
            Self::Model(_) => None,
        }
    }
}

/// A check's place in the log.
pub(super) struct Opened<'l> {
    claim: LogClaim<'l>,
    trace: Option<(u128, u64)>,
}

impl GateState {
    /// Renders what is known before the verdict and claims a place for the whole record. `None` without a log.
    #[inline]
    pub(super) fn open_record<'s>(
        &'s self,
        decision: &Decision,
        scope: Option<&super::scope::Scope>,
        call: &Call<'_>,
        links: Links<'_>,
        buffers: &mut Buffers,
    ) -> Option<Result<Opened<'s>, Refused>> {
        let audit = self.audit()?;
        buffers.head.clear();
        buffers.structure.clear();
        let head = &mut buffers.head;
        push_id(head, "id", decision);
        let mut more = 0;
        if let Some(scope) = scope {
            head.extend_from_slice(&scope.fragments().who);
            more = scope.fragments().payload.len().saturating_add(buffers.labels.len());
        }
        if let Some(parent) = links.parent {
            push_text(head, "parent", shortened(parent, NAME_BYTES_MAX));
        }
        if let Some(asserted) = links.asserted {
            head.extend_from_slice(asserted.member());
        }
        match call {
            Call::Tool { name, index, .. } => {
                match index.and_then(|index| self.fragments().tools.get(index as usize)) {
                    Some(fragment) => head.extend_from_slice(fragment),
                    None => push_text(head, "tool", shortened(name, NAME_BYTES_MAX)),
                }
            }
            Call::Model(request) => push_model(head, self, request),
            Call::Delegate { to, .. } => {
                push_text(head, "action", &self.delegate().to_string());
                push_text(head, "resource", &to.to_string());
            }
        }
        if let Some(arguments) = call.arguments() {
            arguments.write_structure(&mut buffers.structure);
            more = more.saturating_add(arguments.text().len()).saturating_add(buffers.structure.len());
        }
        // Whoever it is denied for stands in the head already, in its chain; alone nobody is denied for another one.
        let alone = scope.is_none_or(|scope| scope.members().len() < 2) && !matches!(call, Call::Delegate { .. });
        let denied_for = scope.filter(|_| !alone).map_or(0, |scope| scope.fragments().who.len());
        let bytes = more
            .saturating_add(head.len())
            .saturating_add(denied_for)
            .saturating_add(buffers.seen.len())
            .saturating_add(self.fragments().rest.len())
            .saturating_add(self.verdict_bytes(decision))
            .saturating_add(if links.trace.is_some() { TRACE_BYTES } else { 0 })
            .saturating_add(self.budget_bytes(scope));
        Some(audit.log.claim(Log::bytes_for(bytes)).map(|claim| Opened { claim, trace: links.trace }))
    }

    /// An upper bound of what the budget step has to say. A hold and a denial only come together in shadow mode.
    fn budget_bytes(&self, scope: Option<&super::scope::Scope>) -> usize {
        let path = scope.and_then(super::scope::Scope::budget).map_or(0, str::len);
        let held = if scope.is_some_and(|scope| scope.payer().is_some()) { UNITS_BYTES.saturating_mul(2) } else { 0 };
        let refused = REFUSED_BYTES.saturating_add(path);
        let said = match self.mode() {
            GateMode::Enforce => held.max(refused),
            GateMode::Shadow => held.saturating_add(refused),
        };
        BUDGET_BYTES.saturating_add(path).saturating_add(said)
    }

    /// An upper bound of what the verdict's policies take in an entry.
    fn verdict_bytes(&self, decision: &Decision) -> usize {
        let fragment = |policy: &u32| self.fragments().policies.get(*policy as usize).map_or(0, |bytes| bytes.len());
        let outcome = decision.outcome.as_ref();
        let mut bytes = VERDICT_BYTES;
        let said = |policy: &u32| self.fragments().said_bytes.get(*policy as usize).copied().unwrap_or(0);
        let outcomes = outcome.into_iter().chain(&decision.others);
        for policies in outcomes.flat_map(|outcome| [&outcome.permits, &outcome.forbids]) {
            // Which of many are named is not known yet: as much as the longest of them.
            let add = |(sum, most): (usize, usize), bytes: usize| (sum.saturating_add(bytes), most.max(bytes));
            let (sum, most) = policies.iter().map(said).fold((0, 0), add);
            bytes = bytes.saturating_add(sum.min(most.saturating_mul(NAMED_MAX)));
        }
        if let Some(forbid) = decision.run_forbid() {
            let fragments = forbid.policies.iter().take(NAMED_MAX).map(|policy| forbid.narrowing.fragment(*policy));
            // As an object of digests, or as a list of ids.
            bytes = fragments.flatten().fold(bytes, |sum, bytes| sum.saturating_add(bytes.len()).saturating_add(8));
        }
        if outcome.is_some_and(|outcome| outcome.errors_len() > 0) {
            let errors = decision.faults();
            let ids = errors.iter().take(NAMED_MAX).map(|fault| fragment(&fault.policy).saturating_add(8));
            bytes = ids.fold(bytes, usize::saturating_add);
        }
        bytes
    }

    /// Publishes a record with its verdict. False if it could not be: then the action must not go ahead.
    #[inline]
    pub(super) fn publish_record(
        &self,
        opened: Opened<'_>,
        decision: &mut Decision,
        scope: Option<&super::scope::Scope>,
        call: &Call<'_>,
        now_ms: i64,
        buffers: &mut Buffers,
    ) -> bool {
        let Some(audit) = self.audit() else { return true };
        let Opened { mut claim, trace } = opened;
        let durability = decision.durability(audit.durability);
        let said = self.publish_verdict(&mut claim, trace, (decision, durability), scope, call, now_ms, buffers);
        debug_assert!(said, "the record is larger than what was claimed for it");
        if !said {
            // It said less beforehand than it had to say: a defect, and nothing goes ahead that the log does not have.
            decision.withdraw();
            let denial = (&*decision, Durability::Group);
            if !self.publish_verdict(&mut claim, trace, denial, scope, call, now_ms, buffers) {
                return false;
            }
        }
        decision.recorded = Some(Recorded { seq: claim.seq(), durability });
        true
    }

    /// Publishes what the decision is by now; false if that does not fit.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "everything that a record says")]
    fn publish_verdict(
        &self,
        claim: &mut LogClaim<'_>,
        trace: Option<(u128, u64)>,
        (decision, durability): (&Decision, Durability),
        scope: Option<&super::scope::Scope>,
        call: &Call<'_>,
        now_ms: i64,
        buffers: &mut Buffers,
    ) -> bool {
        let Buffers { head, tail, structure, seen, labels, word } = buffers;
        tail.clear();
        push_verdict(tail, self, decision);
        tail.extend_from_slice(labels);
        push_budget(tail, decision);
        if !seen.is_empty() {
            push_name(tail, "budget_seen");
            tail.extend_from_slice(seen);
        }
        if durability == Durability::Group && trace.is_none() && *word <= 1 {
            tail.extend_from_slice(&self.fragments().rest_engine);
        } else {
            tail.extend_from_slice(&self.fragments().rest);
            if *word > 1 {
                push_number(tail, "generation", (*word >> 1).cast_signed());
            }
            if durability != Durability::Group {
                push_text(tail, "durability", durability.name());
            }
            push_trace(tail, trace);
            push_engine(tail);
        }
        let more: &[u8] = scope.map_or(&[], |scope| &scope.fragments().payload);
        let private = call.arguments().map_or(Private::None, |arguments| Private::Arguments {
            structure,
            text: arguments.text(),
            more,
        });
        claim.try_publish(&Record { kind: Kind::Decision, time_ms: now_ms, head, tail, private })
    }
}

/// What [`DecisionId`](super::decision::DecisionId) is as text, without the machinery of formatting.
#[inline]
fn push_id(out: &mut Vec<u8>, name: &str, decision: &Decision) {
    push_name(out, name);
    out.push(b'"');
    push_hex(out, decision.id().gate);
    out.push(b'-');
    out.extend_from_slice(itoa::Buffer::new().format(decision.id().number).as_bytes());
    out.push(b'"');
}

fn push_engine(out: &mut Vec<u8>) {
    push_text(out, "engine", env!("CARGO_PKG_VERSION"));
}

/// At most so many bytes of a text.
pub(super) fn shortened(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}

fn push_model(out: &mut Vec<u8>, state: &GateState, request: &ModelRequest<'_>) {
    let name = shortened(request.model, NAME_BYTES_MAX);
    push_text(out, "action", &state.call_model().to_string());
    push_text(out, "resource", &crate::uid::EntityUid::new("Model", name).to_string());
    push_name(out, "model");
    out.extend_from_slice(b"{\"name\":");
    push_json_str(out, name);
    push_number(out, "prompt_tokens", request.prompt_tokens);
    push_number(out, "max_tokens", request.max_tokens);
    push_number(out, "n", request.n);
    out.push(b'}');
}

fn push_verdict(out: &mut Vec<u8>, state: &GateState, decision: &Decision) {
    if decision.allowed() {
        out.extend_from_slice(b",\"decision\":\"allow\",\"code\":\"allow\"");
    } else {
        out.extend_from_slice(b",\"decision\":\"deny\"");
        push_text(out, "code", decision.code().slug());
    }
    if let Some(code) = decision.would_deny() {
        push_text(out, "would_deny", code.slug());
    }
    let fragments = state.fragments();
    let mut named = 0;
    decision.each_deciding(decision.code(), false, |policy| {
        if let Some(fragment) = fragments.policies.get(policy as usize).filter(|_| named < NAMED_MAX) {
            if named == 0 {
                push_name(out, "policies");
            }
            out.push(if named == 0 { b'{' } else { b',' });
            out.extend_from_slice(fragment);
            named = named.saturating_add(1);
        }
    });
    if named > 0 {
        out.push(b'}');
    }
    if let Some(forbid) = decision.run_forbid().filter(|_| decision.would_deny().is_none()) {
        push_run_policies(out, forbid);
    }
    if let Some(uid) = decision.denied_for() {
        push_text(out, "denied_for", &uid.to_string());
    }
    if let Some(grant) = decision.grant() {
        push_text(out, "approval", &grant.to_string());
    }
    if decision.would_deny().is_some() {
        push_texts(out, "would_deny_policies", decision.would_deny_policies().into_iter().take(NAMED_MAX));
    }
    if decision.outcome.as_ref().is_some_and(|outcome| outcome.errors_len() > 0) {
        let faults = decision.faults();
        push_texts(out, "errors", faults.iter().take(NAMED_MAX).map(|fault| state.set().id(fault.policy)));
    }
    if decision.allowed() && state.has_obligations() {
        let obligations = decision.obligations();
        if !obligations.is_empty() {
            let texts = obligations.into_iter().take(NAMED_MAX).map(|text| shortened(text, OBLIGATION_BYTES_MAX));
            push_texts(out, "obligations", texts);
        }
    }
}

/// The forbids of the run that denied, as policies.
fn push_run_policies(out: &mut Vec<u8>, forbid: &RunForbid) {
    push_name(out, "policies");
    for (place, policy) in forbid.policies.iter().take(NAMED_MAX).enumerate() {
        out.push(if place == 0 { b'{' } else { b',' });
        out.extend_from_slice(forbid.narrowing.fragment(*policy).unwrap_or_default());
    }
    out.push(b'}');
}

fn push_budget(out: &mut Vec<u8>, decision: &Decision) {
    let (hold, denial) = (decision.hold(), decision.denial());
    if hold.is_none() && denial.is_none() {
        return;
    }
    let path = hold.map_or_else(|| denial.map_or("", |denial| &denial.path), super::payer::Handle::path);
    out.extend_from_slice(b",\"budget\":{\"path\":");
    push_json_str(out, path);
    if let Some((reserved, remaining)) = hold.and_then(|hold| hold.ledger().held(hold.id())) {
        out.extend_from_slice(b",\"reserved\":{");
        push_units(out, &reserved.map(|amount| (amount != 0).then_some(amount)));
        out.extend_from_slice(b",\"remaining\":{");
        push_units(out, &remaining);
    }
    if let Some(denial) = denial {
        push_refused(out, denial);
    }
    out.push(b'}');
}

/// The units of an object that was opened before, and its end.
fn push_units(out: &mut Vec<u8>, amounts: &[Option<i64>; UNITS]) {
    // In the order of `Unit::ALL`.
    const KEYS: [&[u8]; UNITS] =
        [b"\"tokens\":", b"\"nano_usd\":", b"\"requests\":", b"\"in_flight\":", b"\"kv_blocks\":"];
    let mut is_first = true;
    for (key, amount) in KEYS.iter().zip(amounts) {
        let Some(amount) = amount else { continue };
        if !is_first {
            out.push(b',');
        }
        out.extend_from_slice(key);
        out.extend_from_slice(itoa::Buffer::new().format(*amount).as_bytes());
        is_first = false;
    }
    out.push(b'}');
}

fn push_refused(out: &mut Vec<u8>, denial: &Denial) {
    push_name(out, "refused");
    out.extend_from_slice(b"{\"path\":");
    push_json_str(out, &denial.path);
    if let Some(unit) = denial.unit {
        push_text(out, "unit", unit.name());
    }
    if let Some(window) = denial.window {
        push_text(out, "window", window.name());
    }
    if denial.unit.is_some() {
        for (name, value) in
            [("requested", denial.requested), ("limit", denial.limit), ("used", denial.used), ("held", denial.held)]
        {
            push_number(out, name, value);
        }
    }
    if let Some(ms) = denial.retry_after_ms {
        push_number(out, "retry_after_ms", ms);
    }
    out.push(b'}');
}

fn push_trace(out: &mut Vec<u8>, trace: Option<(u128, u64)>) {
    if let Some((trace, span)) = trace {
        out.extend_from_slice(b",\"trace\":{\"trace_id\":\"");
        let pairs = trace.to_be_bytes().map(crate::arguments::hex_pair);
        out.extend_from_slice(pairs.as_flattened());
        out.extend_from_slice(b"\",\"span_id\":\"");
        push_hex(out, span);
        out.extend_from_slice(b"\"}");
    }
}

/// Renders `context.budget` as policies saw it.
pub(super) fn push_seen(out: &mut Vec<u8>, value: &Value<'_>) {
    match value {
        Value::RecordTemp(fields) => {
            out.push(b'{');
            for (place, (name, value)) in fields.iter().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                push_json_str(out, name);
                out.push(b':');
                push_seen(out, value);
            }
            out.push(b'}');
        }
        Value::Long(number) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
        Value::Str(text) => push_json_str(out, text),
        _ => out.extend_from_slice(b"null"),
    }
}

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It returned
    Ok,
    /// It raised
    Error,
    /// It was cancelled
    Cancelled,
    /// Nobody knows
    Unknown,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Error, Self::Cancelled, Self::Unknown];

    /// Its name in an entry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }
}

/// What became of an allowed action.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    /// How it ended
    pub status: Status,
    /// The kind of error, never its text
    pub error: Option<&'a str>,
    /// What it used, by name
    pub usage: &'a [(&'a str, i64)],
    /// How long it took
    pub duration_ms: Option<i64>,
    /// Where it was traced
    pub trace: Option<(u128, u64)>,
}

impl Decision {
    /// Records what became of the action; once for each decision. It never waits: without room in the ring it stands in
    /// line. False if there is no log, or it is recorded already.
    pub fn record_outcome(&self, ending: &Ending<'_>, now_ms: i64) -> Result<bool, AuditError> {
        // Whatever becomes of the record.
        let read = self.end_reading();
        let Some(audit) = self.state.audit().filter(|_| self.recorded.is_some() && self.allowed()) else {
            return Ok(false);
        };
        // Relaxed: only one caller gets the false, and nothing else hangs on it.
        if self.ended.swap(true, std::sync::atomic::Ordering::Relaxed) {
            return Ok(false);
        }
        if let Some((name, _)) = ending.usage.iter().find(|(name, _)| name.len() > NAME_BYTES_MAX) {
            self.ended.store(false, std::sync::atomic::Ordering::Relaxed);
            let message = format!("a name of usage has {} bytes, the limit is {NAME_BYTES_MAX}", name.len());
            return Err(AuditError::Invalid { message });
        }
        let mut members = Vec::with_capacity(256);
        push_id(&mut members, "of", self);
        push_text(&mut members, "status", ending.status.name());
        if let Some(error) = ending.error {
            push_text(&mut members, "error", shortened(error, NAME_BYTES_MAX));
        }
        if !ending.usage.is_empty() {
            push_name(&mut members, "usage");
            for (place, (name, count)) in ending.usage.iter().take(NAMED_MAX).enumerate() {
                members.push(if place == 0 { b'{' } else { b',' });
                push_json_str(&mut members, name);
                members.push(b':');
                members.extend_from_slice(itoa::Buffer::new().format(*count).as_bytes());
            }
            members.push(b'}');
        }
        if let Some(model) = &self.model {
            push_text(&mut members, "model", shortened(model, NAME_BYTES_MAX));
        }
        if let Some(duration_ms) = ending.duration_ms {
            push_number(&mut members, "duration_ms", duration_ms);
        }
        if read != 0 {
            let names = self.state.control().labels();
            let added = names.iter().zip(0_u32..).filter(|(_, bit)| (read >> bit) & 1 == 1);
            push_texts(&mut members, "labels_added", added.map(|(name, _)| &**name));
        }
        push_trace(&mut members, ending.trace);
        let record = Record { kind: Kind::Outcome, time_ms: now_ms, head: &members, tail: &[], private: Private::None };
        let appended = audit.log.append_later(&record);
        if appended.is_err() {
            self.ended.store(false, std::sync::atomic::Ordering::Relaxed);
        }
        appended.map(|_| true)
    }

    /// What a check that found no room in the log comes to.
    #[cold]
    pub(super) fn unrecorded(&mut self, audit: &Audit, refused: Refused, now_ms: i64) {
        let passes = self.allowed() && audit.on_full == OnFull::Allow && refused == Refused::Full;
        audit.log.count_unlogged(passes, now_ms);
        if self.allowed() && !passes {
            self.deny_unrecorded(audit.log.reason(refused));
        }
    }

    /// Denies what the log has no room to tell of, and gives back what is held.
    #[cold]
    pub(super) fn withdraw(&mut self) {
        if let Some(hold) = self.hold.take() {
            hold.hold().release();
        }
        (self.outcome, self.others, self.denied_for) = (None, Vec::new(), None);
        self.deny_unrecorded("the record is larger than what was claimed for it".to_owned());
    }

    pub(super) fn deny_unrecorded(&mut self, reason: String) {
        (self.code, self.would_deny, self.by_shadow_policies) = (Code::AuditUnavailable, None, false);
        self.detail = Detail::Text(reason.into());
    }
}

/// Keeps what decides, and says in the log that it does.
pub(super) fn announce(
    audit: &Audit,
    sources: &GateSources<'_>,
    state: &GateState,
    now_ms: i64,
) -> Result<(), AuditError> {
    let kept = audit.log.keep(&bundle(sources))?;
    let mut members = Vec::new();
    push_name(&mut members, "bundle");
    push_quoted_hash(&mut members, &kept);
    push_name(&mut members, "entities");
    push_quoted_hash(&mut members, &state.fragments().entities);
    push_number(&mut members, "policies", i64::try_from(state.set().len()).unwrap_or(i64::MAX));
    push_number(&mut members, "tools", i64::try_from(state.registry().tools().len()).unwrap_or(i64::MAX));
    push_text(&mut members, "mode", mode(state.mode()));
    push_text(&mut members, "on_full", if audit.on_full == OnFull::Deny { "deny" } else { "allow" });
    let record = Record { kind: Kind::PolicyLoad, time_ms: now_ms, head: &members, tail: &[], private: Private::None };
    audit.log.append(&record, 1_000).map(drop)
}

/// Says in the log that something else was to decide from now on and cannot, so that this goes on to decide.
pub(super) fn record_failed_load(
    audit: &Audit,
    state: &GateState,
    reason: &str,
    now_ms: i64,
) -> Result<(), AuditError> {
    let mut members = Vec::new();
    push_name(&mut members, "bundle");
    push_quoted_hash(&mut members, state.bundle());
    push_name(&mut members, "entities");
    push_quoted_hash(&mut members, &state.fragments().entities);
    push_name(&mut members, "failed");
    members.extend_from_slice(b"true");
    push_text(&mut members, "reason", shortened(reason, FAILURE_BYTES_MAX));
    let record = Record { kind: Kind::PolicyLoad, time_ms: now_ms, head: &members, tail: &[], private: Private::None };
    audit.log.append(&record, 1_000).map(drop)
}

/// Says in the log that this process has seen the table of revocations change; `in_force` is what it holds now.
pub(super) fn record_observed(audit: &Audit, generation: u64, in_force: &[Revoked], now_ms: i64) {
    let mut members = Vec::new();
    push_number(&mut members, "generation", generation.cast_signed());
    push_name(&mut members, "observed");
    members.extend_from_slice(b"true");
    push_number(&mut members, "in_force", i64::try_from(in_force.len()).unwrap_or(i64::MAX));
    let record = Record { kind: Kind::Revoke, time_ms: now_ms, head: &members, tail: &[], private: Private::None };
    if audit.log.append_later(&record).is_err() {
        audit.log.count_unlogged(false, now_ms);
    }
}

/// Keeps the definitions of tools that are not, or not only, a file's.
pub(super) fn keep_tools<'t>(audit: &Audit, mut tools: impl Iterator<Item = &'t Arc<Tool>>) -> Result<(), AuditError> {
    tools.try_for_each(|tool| audit.log.keep(tool_document(tool.spec()).to_string().as_bytes()).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::denial::DenialKind;
    use crate::budget::unit::Unit;
    use crate::budget::window::Window;

    #[test]
    fn what_is_claimed_for_holds_the_longest_of_everything() {
        let size = |push: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            push(&mut out);
            out.len()
        };
        let slug = Code::ALL.into_iter().map(Code::slug).max_by_key(|slug| slug.len()).unwrap_or_default();
        let verdict = size(&|out| {
            out.extend_from_slice(b",\"decision\":\"allow\"");
            push_text(out, "code", slug);
            push_text(out, "would_deny", slug);
            for name in ["policies", "policies", "would_deny_policies", "errors", "obligations", "budget_seen"] {
                push_name(out, name);
                out.extend_from_slice(b"{}");
            }
            push_text(out, "denied_for", "");
            push_text(out, "approval", &"0".repeat(16));
            push_number(out, "generation", i64::MIN);
            push_text(out, "durability", Durability::Checkpointed.name());
            push_engine(out);
        });
        assert!(verdict <= VERDICT_BYTES, "{verdict}");
        let trace = size(&|out| push_trace(out, Some((u128::MAX, u64::MAX))));
        assert!(trace <= TRACE_BYTES, "{trace}");
        let units = size(&|out| {
            out.extend_from_slice(b",\"remaining\":{");
            push_units(out, &[Some(i64::MIN); UNITS]);
        });
        assert!(units <= UNITS_BYTES, "{units}");
        assert!(",\"budget\":{\"path\":\"\"}".len() <= BUDGET_BYTES);
        let mut longest = 0;
        for unit in Unit::ALL {
            for window in Window::ALL {
                let mut denial = Denial::of(DenialKind::Exhausted, "", String::new());
                (denial.unit, denial.window, denial.retry_after_ms) = (Some(unit), Some(window), Some(i64::MIN));
                denial.requested = i64::MIN;
                (denial.limit, denial.used, denial.held) = (i64::MIN, i64::MIN, i64::MIN);
                longest = longest.max(size(&|out| push_refused(out, &denial)));
            }
        }
        assert!(longest <= REFUSED_BYTES, "{longest}");
    }
}
