//! The pipeline of one check. Each step either lets the call on or names the code of its denial; the first one that
//! denies is the answer.
//!
//! 1. **scope**: somebody is acting;
//! 2. **tool**: the name is registered, the arguments have the shape its schema declares, its paths stay where they are;
//! 3. **policy**: principal from the scope, action and resource from the registry, arguments under `context.input`;
//!    errors, shadow policies and approvals are the gate's own rules on top of Cedar's answer;
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

use bumpalo::Bump;
use smallvec::SmallVec;

use super::Gate;
use super::budget_context;
use super::code::Code;
use super::decision::{Decision, Detail};
use super::evidence::{Buffers, Call, Links, push_seen};
use super::model_call::{self, ModelCall, ModelRequest, Plan};
use super::payer::{self, Paid, Payer};
use super::scope::Scope;
use super::state::{GateMode, GateState, OnError};
use super::tools::Tool;
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
    /// The arguments are converted in place as the tool's schema says, so what is read afterwards is what was decided on.
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
        let tool_index = state.registry().find(tool);
        scratch.evidence.seen.clear();
        let admitted = admit(state, scope, tool_index, tool, arguments, now_ms, scratch);
        let mut decision = self.blank(Arc::clone(state));
        decision.tool = tool_index;
        decision.admit(admitted);
        let call = Call::Tool { name: tool, index: tool_index, arguments: Some(arguments) };
        recorded(state, &mut decision, scope, &call, now_ms, links, scratch, |decision| {
            if let Some(scope) = scope.filter(|_| decision.goes_ahead()) {
                let paid = pay_tool(decision, scope, now_ms);
                decision.pay(paid);
            }
        });
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
        scratch.evidence.seen.clear();
        let admitted = admit_model(state, scope, request, now_ms, scratch);
        let mut decision = self.blank(Arc::clone(state));
        decision.model = Some(request.model.into());
        decision.admit(admitted);
        let mut plan = None;
        recorded(state, &mut decision, scope, &Call::Model(request), now_ms, links, scratch, |decision| {
            if let Some(scope) = scope.filter(|_| decision.goes_ahead()) {
                let (paid, planned) = pay_model(decision, scope, request, now_ms);
                decision.pay(paid);
                plan = planned;
            }
        });
        let call = ModelCall::new(request, plan.as_ref(), decision.hold().cloned());
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
        let mut decision = self.refuse(code, Some(reason));
        let state = &*self.state.load();
        decision.tool = state.registry().find(tool);
        scratch.evidence.seen.clear();
        let call = Call::Tool { name: tool, index: decision.tool, arguments: None };
        recorded(state, &mut decision, scope, &call, now_ms, links, scratch, |_| {});
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
        let mut decision = self.blank(self.state());
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
            hold: None,
            outcome: None,
            recorded: None,
            ended: AtomicBool::new(false),
        }
    }
}

type Denial = (Code, Detail);

impl Decision {
    /// Takes over what the first three steps came to.
    #[inline]
    fn admit(&mut self, admitted: Result<(Outcome, Verdict), Denial>) {
        match admitted {
            Ok((outcome, verdict)) => {
                self.outcome = Some(outcome);
                verdict.write(self);
            }
            Err((code, detail)) => (self.code, self.detail) = (code, detail),
        }
    }
}

/// Runs the budget step between the claim of a place in the log and the record's publication. Without a log it only runs
/// the step; without a place it is not run, unless the configuration lets such actions pass.
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
        // It said less beforehand than it had to say: a defect, and nothing that goes on unrecorded.
        if let Some(hold) = decision.hold.take() {
            hold.hold().release();
        }
        decision.deny_unrecorded("the record is larger than what was claimed for it".to_owned());
    }
}

fn admit(
    state: &GateState,
    scope: Option<&Scope>,
    tool_index: Option<u32>,
    name: &str,
    arguments: &mut Arguments,
    now_ms: i64,
    scratch: &mut Scratch,
) -> Result<(Outcome, Verdict), Denial> {
    let scope = scope.ok_or((Code::ScopeMissing, Detail::None))?;
    let Some(tool) = tool_index.and_then(|index| state.registry().tool(index)) else {
        return Err((Code::InputUnknownTool, Detail::UnknownTool(name.into())));
    };
    let input = read_input(tool, arguments, scratch)?;
    let narrowed = !scope.allows(tool.name());
    if narrowed && state.mode() == GateMode::Enforce {
        return Err((Code::PolicyForbidden, Detail::Narrowed));
    }
    let asked = Asked { action: tool.action(), resource: tool.resource(), input: Value::RecordArgs(input) };
    let outcome = evaluate(scope, state, &asked, now_ms, scratch)?;
    let verdict = Verdict::draw(state, &outcome, narrowed);
    Ok((outcome, verdict))
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
    request: &ModelRequest<'_>,
    now_ms: i64,
    scratch: &mut Scratch,
) -> Result<(Outcome, Verdict), Denial> {
    let scope = scope.ok_or((Code::ScopeMissing, Detail::None))?;
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
    let outcome = evaluate(scope, state, &asked, now_ms, scratch)?;
    let verdict = Verdict::draw(state, &outcome, false);
    Ok((outcome, verdict))
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
        return payer::reserve(state, payer, &cost, now_ms);
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
    let paid = match (payer::reserve(state, payer, &plan.amounts, now_ms), unpriced) {
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

/// Maps the call to a Cedar request and evaluates it. Records are sorted by key, as the evaluator expects.
fn evaluate(
    scope: &Scope,
    state: &GateState,
    asked: &Asked<'_>,
    now_ms: i64,
    scratch: &mut Scratch,
) -> Result<Outcome, Denial> {
    let entities = scope.entities(state).map_err(|errors| {
        let reason = format!("the run's principal cannot be used since the last reload: {}", errors.first().message);
        (Code::ScopeMissing, Detail::Text(reason.into()))
    })?;
    let session = [("id", Value::Str(scope.session())), ("labels", scope.labels().as_value())];
    let Scratch { policy, budget, evidence, .. } = scratch;
    let mut fields: SmallVec<[(&str, Value<'_>); 5]> = SmallVec::new();
    if let (true, Some(payer), Some(ledger)) = (state.reads_budget(), scope.payer(), state.cells()) {
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
    let request = Request {
        principal: scope.principal(),
        action: asked.action,
        resource: asked.resource,
        context: Value::RecordTemp(&fields),
    };
    Ok(state.set().evaluate(&request, &entities, policy))
}

struct Verdict {
    code: Code,
    would_deny: Option<Code>,
    by_shadow_policies: bool,
    narrowed: bool,
}

impl Verdict {
    #[inline]
    fn draw(state: &GateState, outcome: &Outcome, narrowed: bool) -> Self {
        let mut verdict = Self { code: Code::PolicyForbidden, would_deny: None, by_shadow_policies: false, narrowed };
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
