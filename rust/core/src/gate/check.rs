//! The pipeline of one check. Each step either lets the call on or names the code of its denial; the first one that
//! denies is the answer.
//!
//! 1. **scope**: somebody is acting, their time is not over, and nobody has revoked them, their session or the tool.
//!    The table of revocations is one word read, here and again when the check has its place in the log: so no allowed
//!    action is recorded behind the entry that says the revocation was seen;
//! 2. **tool**: the name is not withheld, it is registered, the arguments have the shape its schema declares, its paths
//!    stay where they are;
//! 3. **policy**: principal from the scope, action and resource from the registry, arguments under `context.input`;
//!    errors, shadow policies and approvals are the gate's own rules on top of Cedar's answer. Every principal of a
//!    chain has to be allowed, and the forbids that came with the run must not apply. What needs an approval goes on
//!    with a grant for exactly this, which is used up once step 4 has reserved;
//! 4. **budget**: what step 3 allowed is reserved at the run's budget and all above it, or denied. It comes last, so a
//!    denial anywhere leaves nothing behind. What costs is denied in a run that names no budget; a tool without a cost
//!    costs a run that has one a request;
//! 5. **audit**: a place in the log's ring is claimed before step 4 and published after it with the final verdict,
//!    denials of steps 1 to 3 included. Without a place nothing is reserved and the action is denied.
//!
//! A model call takes the same steps under `Action::"call_model"` on `Model::"NAME"`; a run's list of tools does not
//! speak of models.
//!
//! In shadow mode a budget that refuses lets the action pass and says so; what policies would deny reserves nothing,
//! because it would not have happened.
//!
//! No step waits, takes a lock or does I/O.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arc_swap::Guard;
use bumpalo::Bump;
use smallvec::SmallVec;

use super::Gate;
use super::approve::{self, Binding, What};
use super::budget_context;
use super::code::Code;
use super::control::{Revoked, Standing, TargetKind};
use super::decision::{Decision, Detail, Reads, RunForbid};
use super::evidence::{Buffers, Call, Links, push_seen};
use super::model_call::{self, ModelCall, ModelRequest, Plan};
use super::narrowing::Narrowing;
use super::payer::{self, Paid, Payer};
use super::scope::{Member, Scope};
use super::session::Seen;
use super::state::{GateMode, GateState, OnError};
use super::tools::{Prepared, Tool};
use crate::arguments::{Argument, ArgumentRef, Arguments, ArgumentsError, Conversion};
use crate::budget::unit::Amounts;
use crate::policy::eval::{Fault, Request};
use crate::policy::set::{self, Outcome};
use crate::policy::tree::Effect;
use crate::uid::EntityUid;
use crate::value::Value;

/// Buffers that are reused from check to check: with them a warm check allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    policy: set::Scratch,
    conversions: Vec<Conversion>,
    /// Holds `context.budget`, of a set that reads it
    budget: Bump,
    evidence: Buffers,
}

impl Scratch {
    /// Fresh buffers.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Gate {
    /// Decides whether `scope`'s principal may call `tool` with `arguments` at `now_ms` (since 1970, UTC).
    ///
    /// The arguments are converted in place as the tool's schema says, so what is read afterwards is what was decided
    /// on.
    ///
    /// # Concurrency
    /// Any number of threads may check at once, during a reload too; each needs its own `scratch`.
    pub fn check(
        &self,
        scope: Option<&Scope>,
        tool: &str,
        arguments: &mut Arguments,
        now_ms: i64,
        scratch: &mut Scratch,
    ) -> Decision {
        self.check_linked(scope, tool, arguments, now_ms, Links::default(), scratch)
    }

    /// The same, with what led to the call.
    pub fn check_linked(
        &self,
        scope: Option<&Scope>,
        tool: &str,
        arguments: &mut Arguments,
        now_ms: i64,
        links: Links<'_>,
        scratch: &mut Scratch,
    ) -> Decision {
        let state = &*self.state.load();
        let named = (tool, state.registry().find(tool));
        self.check_named(state, scope, named, arguments, now_ms, links, scratch)
    }

    /// The same for a tool whose name was looked up before.
    pub fn check_prepared(
        &self,
        scope: Option<&Scope>,
        prepared: &Prepared,
        arguments: &mut Arguments,
        now_ms: i64,
        links: Links<'_>,
        scratch: &mut Scratch,
    ) -> Decision {
        let state = &*self.state.load();
        let named = (prepared.name(), prepared.find(state));
        self.check_named(state, scope, named, arguments, now_ms, links, scratch)
    }

    #[inline]
    #[expect(clippy::too_many_arguments, reason = "everything that a check reads")]
    fn check_named(
        &self,
        state: &Arc<GateState>,
        scope: Option<&Scope>,
        (name, index): (&str, Option<u32>),
        arguments: &mut Arguments,
        now_ms: i64,
        links: Links<'_>,
        scratch: &mut Scratch,
    ) -> Decision {
        let mut decision = self.blank(Arc::clone(state));
        let timer = Self::timer(&decision);
        let begun = self.begin(state, scope, now_ms, scratch);
        decision.tool = index;
        let admitted = admit(state, scope, &begun, index, name, arguments, now_ms, scratch);
        decision.admit(admitted);
        decision.name_revoked(scope);
        if decision.code == Code::ApprovalRequired {
            let tool = index.and_then(|index| state.registry().tool(index));
            let kinds = decision.approvals();
            let binding = scope.zip(tool).and_then(|(scope, tool)| Binding::of_tool(scope, tool, arguments, &kinds));
            decision.seek_grant(now_ms, binding);
        }
        let call = Call::Tool { name, index, arguments: Some(arguments) };
        recorded(state, &mut decision, scope, &call, now_ms, links, scratch, |decision| {
            let Some(scope) = stands(decision, scope, index.map(|_| name)) else { return };
            if decision.goes_ahead() {
                let paid = pay_tool(decision, scope, now_ms);
                decision.pay(paid);
                decision.use_grant(now_ms);
            }
        });
        if let Some(scope) = scope.filter(|_| decision.allowed()) {
            decision.will_read(scope, index, begun.labels_mask());
        }
        self.count(&decision, timer);
        decision
    }

    /// Decides whether `outer`'s principals may have the principal of `inner`, made by [`Scope::delegated`], act for
    /// them.
    ///
    /// # Concurrency
    /// As [`Gate::check`].
    pub fn check_delegate(
        &self,
        outer: &Scope,
        inner: &Scope,
        now_ms: i64,
        links: Links<'_>,
        scratch: &mut Scratch,
    ) -> Decision {
        let state = &*self.state.load();
        let mut decision = self.blank(Arc::clone(state));
        let begun = self.begin(state, Some(inner), now_ms, scratch);
        decision.delegate = Some(Arc::clone(inner.principal()));
        // Once, for what policies read, an approval is for and the log keeps.
        let handed = hand_over(inner);
        decision.admit(admit_delegate(state, (outer, inner), &handed, &begun, now_ms, scratch));
        decision.name_revoked(Some(outer));
        if let (Code::ApprovalRequired, Ok(handed)) = (decision.code, &handed) {
            let binding = Binding::of_delegation(outer, state.delegate(), inner, handed, &decision.approvals());
            decision.seek_grant(now_ms, binding);
        }
        let call = Call::Delegate { to: inner.principal(), arguments: handed.as_ref().ok() };
        recorded(state, &mut decision, Some(outer), &call, now_ms, links, scratch, |decision| {
            if stands(decision, Some(inner), None).is_some() && decision.goes_ahead() {
                decision.use_grant(now_ms);
            }
        });
        self.count(&decision, None);
        decision
    }

    /// Decides whether `scope`'s principal may call a model, and what the call holds.
    ///
    /// # Concurrency
    /// As [`Gate::check`].
    pub fn check_model(
        &self,
        scope: Option<&Scope>,
        request: &ModelRequest<'_>,
        now_ms: i64,
        scratch: &mut Scratch,
    ) -> (Decision, ModelCall) {
        self.check_model_linked(scope, request, now_ms, Links::default(), scratch)
    }

    /// The same, with what led to the call.
    pub fn check_model_linked(
        &self,
        scope: Option<&Scope>,
        request: &ModelRequest<'_>,
        now_ms: i64,
        links: Links<'_>,
        scratch: &mut Scratch,
    ) -> (Decision, ModelCall) {
        let state = &*self.state.load();
        let mut decision = self.blank(Arc::clone(state));
        let timer = Self::timer(&decision);
        let begun = self.begin(state, scope, now_ms, scratch);
        decision.model = Some(request.model.into());
        decision.admit(admit_model(state, scope, &begun, request, now_ms, scratch));
        decision.name_revoked(scope);
        if decision.code == Code::ApprovalRequired {
            let resource = EntityUid::new("Model", request.model);
            let input = request.json();
            let what = What { action: state.call_model(), resource: &resource, pin: None, input: &input };
            let kinds = decision.approvals();
            let binding = scope.map(|scope| Binding::new(scope, &what, None, &kinds));
            decision.seek_grant(now_ms, binding);
        }
        let mut plan = None;
        recorded(state, &mut decision, scope, &Call::Model(request), now_ms, links, scratch, |decision| {
            let Some(scope) = stands(decision, scope, None) else { return };
            if decision.goes_ahead() {
                let (paid, planned) = pay_model(decision, scope, request, now_ms);
                decision.pay(paid);
                decision.use_grant(now_ms);
                plan = planned;
            }
        });
        self.count(&decision, timer);
        let call = ModelCall::new(request, plan.as_ref(), decision.hold().cloned(), scope.map(Scope::standing));
        (decision, call)
    }

    /// The decision for arguments of which no snapshot could be taken, recorded like any other: `code` is that of the
    /// snapshot, `reason` holds no value.
    pub fn refuse_call(
        &self,
        scope: Option<&Scope>,
        tool: &str,
        (code, reason): (Code, String),
        now_ms: i64,
        links: Links<'_>,
        scratch: &mut Scratch,
    ) -> Decision {
        let state = &*self.state.load();
        let mut decision = self.refused(Arc::clone(state), code, Some(reason));
        decision.tool = state.registry().find(tool);
        self.begin(state, scope, now_ms, scratch);
        // What is wrong with those who act comes first: whoever was stopped is told so, whatever the arguments are. So
        // is who asks for what nobody may call.
        let stopped = |scope| refusal(scope, Some(tool), now_ms).or_else(|| withheld(state, tool));
        if let Some((code, detail)) = scope.and_then(stopped) {
            (decision.code, decision.detail) = (code, detail);
            decision.name_revoked(scope);
        }
        let call = Call::Tool { name: tool, index: decision.tool, arguments: None };
        recorded(state, &mut decision, scope, &call, now_ms, links, scratch, |_| {});
        self.count(&decision, None);
        decision
    }

    /// What [`Gate::refuse_call`] is told of a snapshot that failed.
    pub fn refusal_of(error: &ArgumentsError) -> (Code, String) {
        let code = match error {
            ArgumentsError::TooLarge { .. } | ArgumentsError::TooDeep { .. } => Code::InputTooLarge,
            ArgumentsError::DuplicateKey | ArgumentsError::NullInList => Code::InputUnrepresentable,
        };
        (code, error.to_string())
    }

    /// A denial that does not come from the pipeline and is not recorded: a closed or forked gate, or a panic that the
    /// binding caught.
    pub fn refuse(&self, code: Code, reason: Option<String>) -> Decision {
        self.refused(self.state(), code, reason)
    }

    fn refused(&self, state: Arc<GateState>, code: Code, reason: Option<String>) -> Decision {
        let mut decision = self.blank(state);
        // This is for denials; asked for anything else it still denies.
        decision.code = if code == Code::Allow { Code::InternalPanic } else { code };
        decision.detail = reason.map_or(Detail::None, |reason| Detail::Text(reason.into()));
        decision
    }

    /// A decision that denies until a step says otherwise.
    #[inline]
    fn blank(&self, state: Arc<GateState>) -> Decision {
        Decision {
            state,
            id: self.next_id(),
            code: Code::InternalPanic,
            would_deny: None,
            by_shadow_policies: false,
            detail: Detail::None,
            tool: None,
            model: None,
            delegate: None,
            denied_for: None,
            hold: None,
            outcome: None,
            others: Vec::new(),
            asserted: None,
            grant: None,
            seized: None,
            reads: None,
            recorded: None,
            ended: AtomicBool::new(false),
            read: AtomicBool::new(false),
        }
    }

    /// Looks at what may have changed since the last check, before anything is decided.
    #[inline]
    fn begin(&self, state: &GateState, scope: Option<&Scope>, now_ms: i64, scratch: &mut Scratch) -> Start {
        self.look(state, now_ms);
        let word = state.control().word();
        self.observe(state, word, now_ms);
        let Buffers { seen, labels, word: recorded, .. } = &mut scratch.evidence;
        seen.clear();
        labels.clear();
        *recorded = word;
        let session = scope.map(|scope| scope.session_ref().seen(now_ms));
        if let Some(session) = &session {
            labels.extend_from_slice(&session.fragment);
        }
        Start { session }
    }

    /// Every so often the time of a check is taken: often enough for its distribution, seldom enough to cost nothing.
    #[inline]
    fn timer(decision: &Decision) -> Option<Instant> {
        decision.id.number.is_multiple_of(TIMED_EACH).then(Instant::now)
    }

    #[inline]
    fn count(&self, decision: &Decision, timer: Option<Instant>) {
        self.counters.count(decision.code as usize);
        if let Some(begun) = timer {
            self.counters.observe_ns(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }
}

/// Of so many checks the time of one is taken.
const TIMED_EACH: u64 = 16;

/// What a check reads once, at its beginning.
struct Start {
    session: Option<Guard<Arc<Seen>>>,
}

impl Start {
    fn labels_mask(&self) -> u64 {
        self.session.as_ref().map_or(0, |seen| seen.mask)
    }

    fn labels(&self) -> Value<'_> {
        self.session.as_ref().map_or(Value::Set(&[]), |seen| seen.labels.as_value())
    }
}

/// Why those who act may not act at all.
#[inline]
fn refusal(scope: &Scope, tool: Option<&str>, now_ms: i64) -> Option<Denial> {
    if let Some(revoked) = scope.standing().revoked(tool) {
        return Some((Code::PrincipalRevoked, Detail::Revoked(Box::new(revoked))));
    }
    scope.is_over(now_ms).then_some((Code::PrincipalExpired, Detail::None))
}

/// Why nobody may call a tool of this name for now.
#[inline]
fn withheld(state: &GateState, tool: &str) -> Option<Denial> {
    let reason = state.withheld(tool)?;
    Some((Code::ToolChanged, if reason.is_empty() { Detail::None } else { Detail::Text(reason.into()) }))
}

/// The scope, if the action is allowed so far and those who act still may: what was revoked since the check began is
/// seen here, when it has its place in the log.
#[inline]
fn stands<'s>(decision: &mut Decision, scope: Option<&'s Scope>, tool: Option<&str>) -> Option<&'s Scope> {
    let scope = scope.filter(|_| decision.allowed())?;
    let Some(revoked) = scope.standing().revoked(tool) else { return Some(scope) };
    (decision.code, decision.would_deny, decision.by_shadow_policies) = (Code::PrincipalRevoked, None, false);
    decision.denied_for = revoked_for(scope, &revoked);
    decision.detail = Detail::Revoked(Box::new(revoked));
    None
}

/// The principal of the chain that was revoked, if it is not the one that acts.
#[cold]
fn revoked_for(scope: &Scope, revoked: &Revoked) -> Option<Arc<EntityUid>> {
    let named = |uid: &&Arc<EntityUid>| !Arc::ptr_eq(uid, scope.principal()) && uid.to_string() == *revoked.target.name;
    scope.chain().find(named).filter(|_| revoked.target.kind == TargetKind::Principal).map(Arc::clone)
}

type Denial = (Code, Detail);

/// What the first three steps came to.
struct Admitted {
    outcome: Outcome,
    others: Vec<Outcome>,
    verdict: Verdict,
    denied_for: Option<Arc<EntityUid>>,
}

impl Admitted {
    /// What another principal of the chain came to. A denial counts more than an approval that is needed, and that more
    /// than being allowed: nobody is asked to approve what is denied all the same.
    #[cold]
    fn join(&mut self, outcome: Outcome, verdict: Verdict, member: &Member) {
        if verdict.weight() <= self.verdict.weight() {
            self.others.push(outcome);
        } else {
            self.others.push(std::mem::replace(&mut self.outcome, outcome));
            (self.verdict, self.denied_for) = (verdict, Some(Arc::clone(&member.uid)));
        }
    }
}

impl Decision {
    /// Takes over what the first three steps came to.
    #[inline]
    fn admit(&mut self, admitted: Result<Admitted, Denial>) {
        match admitted {
            Ok(Admitted { outcome, others, verdict, denied_for }) => {
                (self.outcome, self.others, self.denied_for) = (Some(outcome), others, denied_for);
                verdict.write(self);
            }
            Err((code, detail)) => (self.code, self.detail) = (code, detail),
        }
    }

    /// Names the principal of the chain that was revoked, if it is another one than acts.
    #[inline]
    fn name_revoked(&mut self, scope: Option<&Scope>) {
        if let (Detail::Revoked(revoked), Some(scope)) = (&self.detail, scope) {
            self.denied_for = revoked_for(scope, revoked);
        }
    }

    /// Looks for somebody's answer to exactly this.
    #[cold]
    fn seek_grant(&mut self, now_ms: i64, binding: Option<Binding>) {
        let Some(binding) = binding else {
            let message = "it needs an approval, and its arguments hold a number without an exact form, so that nobody \
                           could tell what was approved; use a smaller or rounder one";
            self.detail = Detail::Text(message.into());
            return;
        };
        match self.state.control().standing(&binding.digest, now_ms) {
            Standing::Granted(grant) if approve::counts(self.state.approvers(), &binding.digest, &grant) => {
                self.code = Code::Allow;
                // Nobody is denied any more, whoever it was that needed the approval.
                self.denied_for = None;
                self.seized = Some(Box::new(grant));
            }
            Standing::Rejected(_) => self.code = Code::ApprovalRejected,
            Standing::Expired(_) => self.code = Code::ApprovalExpired,
            _ => {}
        }
        self.detail = Detail::Approval(Box::new(binding));
    }

    /// Uses the grant up, now that nothing else can deny.
    #[inline]
    fn use_grant(&mut self, now_ms: i64) {
        let Some(grant) = self.seized.take().filter(|_| self.allowed()) else { return };
        if self.state.control().consume(&grant, now_ms) {
            self.grant = Some(grant.id);
            return;
        }
        if let Some(hold) = self.hold.take() {
            hold.hold().release();
        }
        self.code = Code::ApprovalRequired;
        self.detail = Detail::Text("the approval was used by another call or has ended meanwhile; ask again".into());
    }

    /// Notes what its end will bring into the session that is not there already.
    #[inline]
    fn will_read(&mut self, scope: &Scope, tool: Option<u32>, seen: u64) {
        let mask = tool.map_or(0, |tool| self.state.reads(tool));
        if mask & !seen != 0 {
            self.reads = Some(Reads { session: Arc::clone(scope.session_ref()), mask });
        }
    }
}

/// Runs the budget step between the claim of a place in the log and the record's publication. Without a log it only
/// runs the step; without a place it is not run, unless the configuration lets such actions pass.
#[inline]
#[expect(clippy::too_many_arguments, reason = "everything that a record says")]
fn recorded(
    state: &Arc<GateState>,
    decision: &mut Decision,
    scope: Option<&Scope>,
    call: &Call<'_>,
    now_ms: i64,
    links: Links<'_>,
    scratch: &mut Scratch,
    pay: impl FnOnce(&mut Decision),
) {
    decision.asserted = links.asserted.map(Arc::clone);
    let buffers = &mut scratch.evidence;
    let opened = match (state.open_record(decision, scope, call, links, buffers), state.audit()) {
        (Some(Err(refused)), Some(audit)) => {
            decision.unrecorded(audit, refused, now_ms);
            None
        }
        (Some(Ok(opened)), _) => Some(opened),
        _ => None,
    };
    pay(decision);
    let Some(opened) = opened else { return };
    if !state.publish_record(opened, decision, scope, call, now_ms, buffers) {
        decision.withdraw();
    }
}

#[expect(clippy::too_many_arguments, reason = "everything that a check reads")]
fn admit(
    state: &GateState,
    scope: Option<&Scope>,
    start: &Start,
    tool_index: Option<u32>,
    name: &str,
    arguments: &mut Arguments,
    now_ms: i64,
    scratch: &mut Scratch,
) -> Result<Admitted, Denial> {
    let scope = scope.ok_or_else(no_scope)?;
    refusal(scope, Some(name), now_ms).or_else(|| withheld(state, name)).map_or(Ok(()), Err)?;
    let Some(tool) = tool_index.and_then(|index| state.registry().tool(index)) else {
        return Err((Code::InputUnknownTool, Detail::UnknownTool(name.into())));
    };
    let input = read_input(tool, arguments, scratch)?;
    let narrowed = !scope.allows(tool.name());
    if narrowed && state.mode() == GateMode::Enforce {
        return Err((Code::PolicyForbidden, Detail::Narrowed));
    }
    let asked = Asked { action: tool.action(), resource: tool.resource(), input: Value::RecordArgs(input) };
    evaluate((scope, scope.members()), state, start, &asked, narrowed, now_ms, scratch)
}

fn admit_delegate(
    state: &GateState,
    (outer, inner): (&Scope, &Scope),
    handed: &Result<Arguments, ArgumentsError>,
    start: &Start,
    now_ms: i64,
    scratch: &mut Scratch,
) -> Result<Admitted, Denial> {
    refusal(inner, None, now_ms).map_or(Ok(()), Err)?;
    let handed = handed.as_ref().map_err(|error| {
        let (code, reason) = Gate::refusal_of(error);
        (code, Detail::Text(format!("what is handed over: {reason}").into()))
    })?;
    let input = handed.root().map_or(Value::RecordTemp(&[]), Value::RecordArgs);
    let asked = Asked { action: state.delegate(), resource: inner.principal(), input };
    evaluate((inner, outer.members()), state, start, &asked, false, now_ms, scratch)
}

/// What policies read of a delegation, as it is recorded.
fn hand_over(inner: &Scope) -> Result<Arguments, ArgumentsError> {
    let mut arguments = Arguments::new();
    arguments.open_object(None)?;
    if let Some(budget) = inner.budget() {
        arguments.push_str(Some("budget"), budget)?;
    }
    if let Some(tools) = inner.tools() {
        arguments.open_list(Some("tools"))?;
        tools.iter().try_for_each(|tool| arguments.push_str(None, tool))?;
        arguments.close();
    }
    arguments.close();
    Ok(arguments)
}

#[cold]
fn no_scope() -> Denial {
    let message = "the check ran outside a run, or in one that is over; start one with gate.run(...), or pass scope=";
    (Code::ScopeMissing, Detail::Text(message.into()))
}

/// Schema and paths: what the arguments are, before policy sees them.
fn read_input<'a>(tool: &Tool, arguments: &'a mut Arguments, scratch: &mut Scratch) -> Result<ArgumentRef<'a>, Denial> {
    let refuse = |reason: String| (Code::InputUnrepresentable, Detail::Text(reason.into()));
    if !arguments.root().is_some_and(|root| matches!(root.value(), Argument::Object)) {
        return Err(refuse("the arguments are not an object with named values".to_owned()));
    }
    if let Some(schema) = tool.schema() {
        schema.apply(arguments, &mut scratch.conversions).map_err(refuse)?;
    }
    tool.check_paths(arguments).map_err(refuse)?;
    arguments.root().ok_or_else(|| refuse("the arguments are empty".to_owned()))
}

fn admit_model(
    state: &GateState,
    scope: Option<&Scope>,
    start: &Start,
    request: &ModelRequest<'_>,
    now_ms: i64,
    scratch: &mut Scratch,
) -> Result<Admitted, Denial> {
    let scope = scope.ok_or_else(no_scope)?;
    refusal(scope, None, now_ms).map_or(Ok(()), Err)?;
    if let Some(fault) = request.fault() {
        return Err((Code::InputUnrepresentable, Detail::Text(fault.into())));
    }
    let resource = EntityUid::new("Model", request.model);
    let input = [
        ("max_tokens", Value::Long(request.max_tokens)),
        ("model", Value::Str(request.model)),
        ("n", Value::Long(request.n)),
        ("prompt_tokens", Value::Long(request.prompt_tokens)),
    ];
    let asked = Asked { action: state.call_model(), resource: &resource, input: Value::RecordTemp(&input) };
    evaluate((scope, scope.members()), state, start, &asked, false, now_ms, scratch)
}

/// The budget step of a tool call.
#[inline]
fn pay_tool(decision: &Decision, scope: &Scope, now_ms: i64) -> Paid {
    let state = &decision.state;
    let cost = decision.tool().map_or(Amounts::NONE, |tool| tool.cost(scope.payer().is_some()));
    if cost.is_none() {
        return Paid::Free;
    }
    if let Some(payer) = scope.payer() {
        return payer::reserve(state, payer, &cost, decision.id, now_ms);
    }
    let tool = decision.tool().map_or("the tool", Tool::name);
    Paid::Refused(Box::new(payer::no_payer(state, &format!("tool `{tool}`"))), None)
}

/// The budget step of a model call, which costs wherever there is a ledger.
fn pay_model(decision: &Decision, scope: &Scope, request: &ModelRequest<'_>, now_ms: i64) -> (Paid, Option<Plan>) {
    let state = &decision.state;
    let Some(payer) = scope.payer() else {
        let what = format!("model `{}`", super::names::shown(request.model));
        let denial = state.cells().map(|_| Box::new(payer::no_payer(state, &what)));
        let paid = denial.map_or(Paid::Free, |denial| Paid::Refused(denial, None));
        return (paid, None);
    };
    let (plan, unpriced) = match plan_model(state, payer, request) {
        Ok(plan) => (plan, None),
        // Shadow mode counts what it can.
        Err(denial) if state.mode() == GateMode::Shadow => (Plan::unpriced(request), Some(denial)),
        Err(denial) => return (Paid::Refused(denial, None), None),
    };
    let paid = match (payer::reserve(state, payer, &plan.amounts, decision.id, now_ms), unpriced) {
        (Paid::Held(hold) | Paid::Refused(_, Some(hold)), Some(denial)) => Paid::Refused(denial, Some(hold)),
        (paid, _) => paid,
    };
    let (Paid::Held(hold) | Paid::Refused(_, Some(hold))) = &paid else { return (paid, None) };
    match model_call::dispatch(hold.hold(), &plan.prompt) {
        Ok(()) => (paid, Some(plan)),
        Err(denial) => (Paid::Refused(denial, None), None),
    }
}

fn plan_model(
    state: &GateState,
    payer: &Payer,
    request: &ModelRequest<'_>,
) -> Result<Plan, Box<crate::budget::denial::Denial>> {
    payer.with(state, |ledger, _| {
        // Found anew: limits may have changed since the run began, and money is held only where it is limited.
        let node = ledger.node(payer.path())?;
        Plan::draw(ledger, &node, request)
    })
}

/// What is to be done, on what, with which arguments.
struct Asked<'a> {
    action: &'a EntityUid,
    resource: &'a EntityUid,
    input: Value<'a>,
}

/// Maps the call to a Cedar request and evaluates it for every principal of the chain, and with the forbids that came
/// with the run. Records are sorted by key, as the evaluator expects.
fn evaluate(
    (scope, chain): (&Scope, &[Member]),
    state: &GateState,
    start: &Start,
    asked: &Asked<'_>,
    narrowed: bool,
    now_ms: i64,
    scratch: &mut Scratch,
) -> Result<Admitted, Denial> {
    let entities = scope.entities(state).map_err(|errors| {
        let reason = format!("the run's principal cannot be used since the last reload: {}", errors.first().message);
        (Code::ScopeMissing, Detail::Text(reason.into()))
    })?;
    let session = [("id", Value::Str(scope.session())), ("labels", start.labels())];
    let Scratch { policy, budget, evidence, .. } = scratch;
    let mut fields: SmallVec<[(&str, Value<'_>); 5]> = SmallVec::new();
    let reads_budget = state.reads_budget() || scope.narrowings().iter().any(|own| own.reads_budget());
    if let (true, Some(payer), Some(ledger)) = (reads_budget, scope.payer(), state.cells()) {
        budget.reset();
        let seen = budget_context::snapshot(ledger, payer.path(), budget);
        if state.audit().is_some() {
            push_seen(&mut evidence.seen, &seen);
        }
        fields.push(("budget", seen));
    }
    fields.push(("input", asked.input));
    fields.push(("now", Value::Datetime(now_ms)));
    fields.extend(scope.on_behalf_of().map(|uid| ("on_behalf_of", Value::Entity(uid))));
    fields.push(("session", Value::RecordTemp(&session)));
    let request = |principal| Request {
        principal,
        action: asked.action,
        resource: asked.resource,
        context: Value::RecordTemp(&fields),
    };
    let Some((actor, outer)) = chain.split_last() else { return Err(no_scope()) };
    let outcome = state.set().evaluate(&request(&actor.uid), &entities, policy);
    let verdict = Verdict::draw(state, &outcome, narrowed);
    let mut admitted = Admitted { outcome, others: Vec::new(), verdict, denied_for: None };
    for member in outer.iter().rev() {
        if admitted.verdict.is_final() {
            break;
        }
        let outcome = state.set().evaluate(&request(&member.uid), &entities, policy);
        let verdict = Verdict::draw(state, &outcome, narrowed);
        admitted.join(outcome, verdict, member);
    }
    for (narrowing, member) in scope.narrowings().iter().flat_map(|own| chain.iter().rev().map(move |who| (own, who))) {
        if admitted.verdict.is_final() {
            break;
        }
        let outcome = narrowing.set().evaluate(&request(&member.uid), &entities, policy);
        if let Some((code, forbid)) = run_forbids(state, narrowing, &outcome)
            && admitted.verdict.forbid(state, code, forbid)
        {
            admitted.denied_for = (!Arc::ptr_eq(&member.uid, &actor.uid)).then(|| Arc::clone(&member.uid));
        }
    }
    Ok(admitted)
}

/// What the forbids of a run say: those that apply, or else those that could not be evaluated.
#[inline]
fn run_forbids(state: &GateState, narrowing: &Arc<Narrowing>, outcome: &Outcome) -> Option<(Code, Box<RunForbid>)> {
    if outcome.forbids.is_empty() && (!outcome.forbid_erred() || state.on_error() == OnError::Cedar) {
        return None;
    }
    let mut code = Code::PolicyForbidden;
    let mut policies = outcome.forbids.to_vec();
    let faults = outcome.errors(narrowing.set());
    if policies.is_empty() {
        let unreadable = faults.iter().any(|fault| fault.fault == Fault::Unrepresentable);
        code = if unreadable { Code::InputUnrepresentable } else { Code::PolicyError };
        policies.extend(faults.iter().map(|fault| fault.policy));
    }
    policies.sort_unstable();
    Some((code, Box::new(RunForbid { narrowing: Arc::clone(narrowing), policies, faults })))
}

struct Verdict {
    code: Code,
    would_deny: Option<Code>,
    by_shadow_policies: bool,
    narrowed: bool,
    /// The forbid of the run behind it
    forbid: Option<Box<RunForbid>>,
}

impl Verdict {
    /// Whether nothing that the others of a chain or the forbids of a run say can make it worse. What shadow mode has
    /// flipped is not: an argument that cannot be read denies in any mode.
    #[inline]
    fn is_final(&self) -> bool {
        !matches!(self.code, Code::Allow | Code::ApprovalRequired)
    }

    /// Which of two verdicts counts: what denies, what would have, what an approval would settle, what policies in
    /// shadow would deny, nothing.
    fn weight(&self) -> u8 {
        match (self.code, self.would_deny) {
            (Code::Allow, None) => 0,
            (Code::Allow, Some(_)) if self.by_shadow_policies => 1,
            (Code::ApprovalRequired, _) | (Code::Allow, Some(Code::ApprovalRequired)) => 2,
            (Code::Allow, Some(_)) => 3,
            _ => 4,
        }
    }

    /// Takes over what a forbid of the run says, unless something that counts as much has been said.
    #[cold]
    fn forbid(&mut self, state: &GateState, code: Code, forbid: Box<RunForbid>) -> bool {
        let mut said =
            Self { code, would_deny: None, by_shadow_policies: false, narrowed: false, forbid: Some(forbid) };
        if state.mode() == GateMode::Shadow && code.flips_in_shadow() {
            (said.code, said.would_deny) = (Code::Allow, Some(code));
        }
        let counts = said.weight() > self.weight();
        if counts {
            *self = said;
        }
        counts
    }

    #[inline]
    fn draw(state: &GateState, outcome: &Outcome, narrowed: bool) -> Self {
        let mut verdict =
            Self { code: Code::PolicyForbidden, would_deny: None, by_shadow_policies: false, narrowed, forbid: None };
        // A run narrowed to other tools is denied by now, but for shadow mode.
        if !narrowed {
            verdict.code = judge(state, outcome, false);
        }
        if state.mode() == GateMode::Shadow && verdict.code.flips_in_shadow() {
            // What is flipped must not hide an argument that could not be read: that denies in any mode.
            if forbid_error(state, outcome, false) == Some(Code::InputUnrepresentable) {
                verdict.code = Code::InputUnrepresentable;
            } else {
                verdict.would_deny = Some(verdict.code);
                verdict.code = Code::Allow;
            }
        } else if verdict.code == Code::Allow && state.any_marks().shadow {
            let with_shadow = judge(state, outcome, true);
            verdict.would_deny = (with_shadow != Code::Allow).then_some(with_shadow);
            verdict.by_shadow_policies = true;
        }
        verdict
    }

    #[inline]
    fn write(self, decision: &mut Decision) {
        decision.code = self.code;
        decision.would_deny = self.would_deny;
        decision.by_shadow_policies = self.by_shadow_policies;
        if self.narrowed {
            decision.detail = Detail::Narrowed;
        } else if let Some(forbid) = self.forbid {
            decision.detail = Detail::RunForbid(forbid);
        }
    }
}

/// Cedar's answer with the gate's rules: a satisfied forbid denies, an erring forbid denies, no satisfied permit
/// denies, and if any satisfied permit asks for an approval, it is needed, whatever other permits say.
#[inline]
fn judge(state: &GateState, outcome: &Outcome, with_shadow: bool) -> Code {
    let shadow = state.any_marks().shadow && !with_shadow;
    let counts = |policy: &&u32| !shadow || !state.marks(**policy).shadow;
    if outcome.forbids.iter().any(|policy| counts(&policy)) {
        return Code::PolicyForbidden;
    }
    if let Some(code) = forbid_error(state, outcome, with_shadow) {
        return code;
    }
    let mut permits = outcome.permits.iter().filter(counts).peekable();
    if permits.peek().is_none() {
        return Code::PolicyNoPermit;
    }
    if state.any_marks().approval && permits.any(|policy| state.marks(*policy).approval) {
        return Code::ApprovalRequired;
    }
    Code::Allow
}

/// What forbids that erred come to.
#[inline]
fn forbid_error(state: &GateState, outcome: &Outcome, with_shadow: bool) -> Option<Code> {
    if !outcome.forbid_erred() || state.on_error() == OnError::Cedar {
        return None;
    }
    worst_fault(state, outcome, with_shadow)
}

#[cold]
fn worst_fault(state: &GateState, outcome: &Outcome, with_shadow: bool) -> Option<Code> {
    let mut worst = None;
    for fault in outcome.errors(state.set()) {
        let forbid =
            state.set().policies().get(fault.policy as usize).is_some_and(|body| body.effect == Effect::Forbid);
        if !forbid || (!with_shadow && state.marks(fault.policy).shadow) {
            continue;
        }
        if fault.fault == Fault::Unrepresentable {
            return Some(Code::InputUnrepresentable);
        }
        worst = Some(Code::PolicyError);
    }
    worst
}
