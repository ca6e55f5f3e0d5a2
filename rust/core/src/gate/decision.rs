//! What a check answers. The decision holds numbers; its sentences are built when somebody asks for them.
//!
//! No sentence holds a value of the arguments, an attribute or a session id: decisions are logged and shown to models.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::approve::Binding;
use super::asserted::Asserted;
use super::code::Code;
use super::control::{ApprovalId, Grant, Revoked, TargetKind};
use super::evidence::Recorded;
use super::narrowing::Narrowing;
use super::payer::{Handle, Paid, Reservation};
use super::session::Session;
use super::state::{GateMode, GateState};
use super::tools::{self, Tool};
use crate::audit::log::Durability;
use crate::budget::clock::{Clock as _, SystemClock};
use crate::budget::denial::Denial;
use crate::policy::set::{Outcome, PolicyFault};
use crate::policy::tree::Effect;
use crate::uid::EntityUid;

/// Policies named in a sentence; the rest are counted.
const NAMED_MAX: usize = 3;
/// Characters of an annotation that a sentence shows.
const ANNOTATION_CHARS_MAX: usize = 500;

/// Names a decision: the gate that made it and how many it had made before. Its entry in the audit log has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecisionId {
    /// The gate instance
    pub gate: u64,
    /// Counted from 1
    pub number: u64,
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.gate, self.number)
    }
}

/// What a sentence needs beyond the code.
#[derive(Debug)]
pub(super) enum Detail {
    None,
    /// Made while denying
    Text(Box<str>),
    /// The run was narrowed to other tools
    Narrowed,
    /// A forbid that came with the run applies, or could not be evaluated
    RunForbid(Box<RunForbid>),
    /// Somebody may approve exactly this
    Approval(Box<Binding>),
    /// Somebody has stopped those who act
    Revoked(Box<Revoked>),
    /// Nobody registered this name
    UnknownTool(Box<str>),
    /// A budget refused; in shadow mode of an action that is allowed all the same
    Budget(Box<Denial>),
}

/// What the forbids of a run came to.
#[derive(Debug)]
pub(super) struct RunForbid {
    pub(super) narrowing: Arc<Narrowing>,
    /// Those that apply, or those that erred if none does
    pub(super) policies: Vec<u32>,
    /// Those that erred, with why
    pub(super) faults: Vec<PolicyFault>,
}

/// Labels that the end of an action brings into its session.
#[derive(Debug)]
pub(super) struct Reads {
    pub(super) session: Arc<Session>,
    pub(super) mask: u64,
}

/// One answer of the gate.
///
/// It keeps the policies it was made with alive, also after a reload. If it carries a hold, that ends with it, by the
/// unreported rule, unless somebody ended it before.
#[derive(Debug)]
pub struct Decision {
    pub(super) state: Arc<GateState>,
    pub(super) id: DecisionId,
    pub(super) code: Code,
    pub(super) would_deny: Option<Code>,
    /// Whether it takes the policies in shadow to make `would_deny`
    pub(super) by_shadow_policies: bool,
    pub(super) detail: Detail,
    /// Its number in the state's registry
    pub(super) tool: Option<u32>,
    /// The model, of a model call
    pub(super) model: Option<Box<str>>,
    /// Who is to act, of a delegation
    pub(super) delegate: Option<Arc<EntityUid>>,
    /// The principal of the chain that was denied, if it is not the one that acts
    pub(super) denied_for: Option<Arc<EntityUid>>,
    pub(super) hold: Option<Reservation>,
    pub(super) outcome: Option<Outcome>,
    /// Of an action that is allowed: what the others of the chain came to
    pub(super) others: Vec<Outcome>,
    /// What the host said of the call
    pub(super) asserted: Option<Arc<Asserted>>,
    /// The approval that was used
    pub(super) grant: Option<ApprovalId>,
    /// A grant that is used up if nothing else denies
    pub(super) seized: Option<Box<Grant>>,
    /// What its end brings into the session
    pub(super) reads: Option<Reads>,
    /// Its record in the audit log
    pub(super) recorded: Option<Recorded>,
    /// What became of the action is recorded
    pub(super) ended: AtomicBool,
    /// What it has read is in the session, or nothing will be
    pub(super) read: AtomicBool,
}

impl Decision {
    /// Whether the action may go ahead.
    pub const fn allowed(&self) -> bool {
        matches!(self.code, Code::Allow)
    }

    /// Why.
    pub const fn code(&self) -> Code {
        self.code
    }

    /// What the code would have been without shadow mode, or with the policies that are in it.
    pub const fn would_deny(&self) -> Option<Code> {
        self.would_deny
    }

    /// Its name.
    pub const fn id(&self) -> DecisionId {
        self.id
    }

    /// The state that decided.
    pub const fn state(&self) -> &Arc<GateState> {
        &self.state
    }

    /// The tool, if it is registered.
    pub fn tool(&self) -> Option<&Tool> {
        self.tool.and_then(|tool| self.state.registry().tool(tool))
    }

    /// What was reserved for the action.
    pub fn hold(&self) -> Option<&Handle> {
        self.hold.as_ref().map(Reservation::hold)
    }

    /// What was reserved, to be ended by whoever asks: the decision does not end it any more.
    pub fn hand_over(&self) -> Option<&Handle> {
        self.hold.as_ref().map(|hold| {
            hold.hand_over();
            hold.hold()
        })
    }

    /// Why a budget refused: level, unit and window, and when to try again.
    pub const fn denial(&self) -> Option<&Denial> {
        match &self.detail {
            Detail::Budget(denial) => Some(denial),
            _ => None,
        }
    }

    /// When the same action is worth another try; `None` if it is not, or nobody knows.
    pub fn retry_after_ms(&self) -> Option<i64> {
        self.denial().and_then(|denial| denial.retry_after_ms)
    }

    /// Whether the action is allowed, and would be without shadow mode as far as policies go.
    pub(super) fn goes_ahead(&self) -> bool {
        let flipped = self.state.mode() == GateMode::Shadow && self.would_deny.is_some() && !self.by_shadow_policies;
        self.allowed() && !flipped
    }

    /// What the budget step came to. In shadow mode it denies nothing.
    pub(super) fn pay(&mut self, paid: Paid) {
        let (denial, hold) = match paid {
            Paid::Free => return,
            Paid::Held(hold) => {
                self.hold = Some(hold);
                return;
            }
            Paid::Refused(denial, hold) => (denial, hold),
        };
        let code = Code::from(denial.kind);
        self.by_shadow_policies = false;
        if self.state.mode() == GateMode::Shadow {
            (self.would_deny, self.hold) = (Some(code), hold);
        } else {
            (self.code, self.would_deny) = (code, None);
        }
        self.detail = Detail::Budget(denial);
    }

    /// Its record in the audit log; `None` without a log, or where the configuration lets actions pass unrecorded.
    pub const fn recorded(&self) -> Option<Recorded> {
        self.recorded
    }

    /// How certain its record has to be: what the gate says, or more if a policy that decided does.
    pub(super) fn durability(&self, least: Durability) -> Durability {
        let mut most = least;
        if self.state.any_marks().durability > least {
            self.each_deciding(self.code, false, |policy| most = most.max(self.state.marks(policy).durability));
        }
        most
    }

    /// Visits the policies that make a code, in no order. Those that come with a run are not among them.
    pub(super) fn each_deciding(&self, code: Code, with_shadow: bool, mut visit: impl FnMut(u32)) {
        let Some(outcome) = self.outcome.as_ref().filter(|_| !self.made_by_run(code)) else { return };
        let counts = |policy: &u32| with_shadow || !self.state.marks(*policy).shadow;
        match code {
            Code::Allow if self.others.is_empty() => outcome.permits.iter().copied().filter(counts).for_each(visit),
            Code::PolicyForbidden => outcome.forbids.iter().copied().filter(counts).for_each(visit),
            _ => self.deciding(code, with_shadow).into_iter().for_each(&mut visit),
        }
    }

    /// Ids of the policies that decided, in the order of their texts.
    pub fn policies(&self) -> Vec<&str> {
        if let Some(ids) = self.run_ids(self.code) {
            return ids;
        }
        self.ids(self.deciding(self.code, false))
    }

    /// Ids of the forbids that came with the run, if they made this code.
    fn run_ids(&self, code: Code) -> Option<Vec<&str>> {
        let forbid = self.run_forbid().filter(|_| self.made_by_run(code))?;
        Some(forbid.policies.iter().map(|policy| forbid.narrowing.set().id(*policy)).collect())
    }

    /// Whether forbids that came with the run made this code.
    fn made_by_run(&self, code: Code) -> bool {
        matches!(self.detail, Detail::RunForbid(_))
            && matches!(code, Code::PolicyForbidden | Code::PolicyError | Code::InputUnrepresentable)
    }

    /// The forbid of the run that denied, or would have.
    pub(super) const fn run_forbid(&self) -> Option<&RunForbid> {
        match &self.detail {
            Detail::RunForbid(forbid) => Some(forbid),
            _ => None,
        }
    }

    /// Ids of the policies behind [`Decision::would_deny`].
    pub fn would_deny_policies(&self) -> Vec<&str> {
        let Some(code) = self.would_deny else { return Vec::new() };
        self.run_ids(code).unwrap_or_else(|| self.ids(self.deciding(code, self.by_shadow_policies)))
    }

    /// The principal that the action was denied for, if it is not the one that acts: one it acts for.
    pub fn denied_for(&self) -> Option<&EntityUid> {
        self.denied_for.as_deref()
    }

    /// What exactly an approval would be for; `None` if none is asked for, or the arguments have no exact form.
    pub const fn binding(&self) -> Option<&Binding> {
        match &self.detail {
            Detail::Approval(binding) => Some(binding),
            _ => None,
        }
    }

    /// What the host said of the call: names and texts.
    pub fn asserted(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.asserted.iter().flat_map(|asserted| asserted.iter())
    }

    /// The approval that was used.
    pub const fn grant(&self) -> Option<ApprovalId> {
        self.grant
    }

    /// Brings what the action has read into its session: once, when it is over. Returns the labels, as bits.
    pub fn end_reading(&self) -> u64 {
        let Some(reads) = &self.reads else { return 0 };
        // Relaxed: only one caller gets the false, and the session orders itself.
        if self.read.swap(true, Ordering::Relaxed) {
            return 0;
        }
        reads.session.add(reads.mask, SystemClock.wall_ms());
        reads.mask
    }

    /// The action never began: nothing of it was read.
    pub fn never_began(&self) {
        self.read.store(true, Ordering::Relaxed);
    }

    /// Policies that could not be evaluated, those in shadow included, with why.
    pub fn faults(&self) -> Vec<PolicyFault> {
        self.outcome.as_ref().map_or_else(Vec::new, |outcome| outcome.errors(self.state.set()))
    }

    /// The same as id and sentence, and those that came with the run.
    pub fn errors(&self) -> Vec<(&str, String)> {
        let set = self.state.set();
        let faults = self.faults();
        let own = faults.iter().map(|fault| (set.id(fault.policy), set.fault_message(fault)));
        let of_run = self.run_forbid().into_iter().flat_map(|forbid| {
            let set = forbid.narrowing.set();
            forbid.faults.iter().map(|fault| (set.id(fault.policy), set.fault_message(fault)))
        });
        own.chain(of_run).collect()
    }

    /// `@obligation` of the permits that allowed, without repetitions; empty for a denial.
    pub fn obligations(&self) -> Vec<&str> {
        if !self.allowed() {
            return Vec::new();
        }
        let mut all: Vec<&str> = Vec::new();
        for policy in self.deciding(Code::Allow, false) {
            if let Some(obligation) = self.state.set().annotation(policy, "obligation")
                && !all.contains(&obligation)
            {
                all.push(obligation);
            }
        }
        all
    }

    /// What kind of approval is asked for: `@approval` of the permits that need one.
    pub fn approvals(&self) -> Vec<&str> {
        let asked = self.code.is_approval() || self.would_deny == Some(Code::ApprovalRequired);
        let permits = if asked { self.deciding(Code::ApprovalRequired, self.by_shadow_policies) } else { Vec::new() };
        permits.into_iter().filter_map(|policy| self.state.set().annotation(policy, "approval")).collect()
    }

    /// The sentence for whoever asked. Of an allowed action: empty, or what shadow mode held back.
    pub fn reason(&self) -> String {
        match (self.code, self.would_deny) {
            (Code::Allow, None) => String::new(),
            (Code::Allow, Some(code)) => {
                format!("allowed in shadow mode; otherwise: {}", self.sentence(code, self.by_shadow_policies))
            }
            (code, _) => self.sentence(code, false),
        }
    }

    fn ids(&self, mut policies: Vec<u32>) -> Vec<&str> {
        policies.sort_unstable();
        policies.into_iter().map(|policy| self.state.set().id(policy)).collect()
    }

    /// Indices of the policies that make a code, with or without those in shadow.
    fn deciding(&self, code: Code, with_shadow: bool) -> Vec<u32> {
        let Some(outcome) = &self.outcome else { return Vec::new() };
        let state = &*self.state;
        let counts = |policy: &u32| with_shadow || !state.marks(*policy).shadow;
        match code {
            Code::Allow => {
                let mut all: Vec<u32> = outcome.permits.iter().copied().filter(counts).collect();
                for policy in self.others.iter().flat_map(|other| other.permits.iter().copied()).filter(counts) {
                    if !all.contains(&policy) {
                        all.push(policy);
                    }
                }
                all
            }
            Code::ApprovalRequired | Code::ApprovalRejected | Code::ApprovalExpired => {
                let mut all = Vec::new();
                // Everybody who needs one: an approval is for the whole chain.
                for policy in std::iter::once(outcome).chain(&self.others).flat_map(|one| one.permits.iter().copied()) {
                    if counts(&policy) && state.marks(policy).approval && !all.contains(&policy) {
                        all.push(policy);
                    }
                }
                all
            }
            Code::PolicyForbidden => outcome.forbids.iter().copied().filter(counts).collect(),
            Code::PolicyError | Code::InputUnrepresentable => {
                let forbid = |fault: &PolicyFault| {
                    let body = state.set().policies().get(fault.policy as usize);
                    body.is_some_and(|body| body.effect == Effect::Forbid)
                };
                outcome
                    .errors(state.set())
                    .iter()
                    .filter(|fault| forbid(fault))
                    .map(|f| f.policy)
                    .filter(counts)
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    /// What was asked for, as sentences name it.
    pub(super) fn subject(&self) -> String {
        match (&self.model, &self.delegate, self.tool()) {
            (Some(model), _, _) => format!("model `{}`", super::names::shown(model)),
            (None, Some(to), _) => format!("delegation to `{}`", super::names::shown(&to.to_string())),
            (None, None, Some(tool)) => format!("tool `{}`", tool.name()),
            (None, None, None) => "the tool".to_owned(),
        }
    }

    fn sentence(&self, code: Code, with_shadow: bool) -> String {
        let mut sentence = self.plain_sentence(code, with_shadow);
        if let Some(principal) = self.denied_for.as_ref().filter(|_| code != Code::PrincipalRevoked) {
            let uid = principal.to_string();
            let shown = super::names::shown(&uid);
            let _ = write!(sentence, " (denied for `{shown}`, which this run acts for)");
        }
        if let Some(notice) = self.state.notice().filter(|_| notices(code)) {
            sentence.push_str("; ");
            sentence.push_str(notice);
        }
        sentence
    }

    fn plain_sentence(&self, code: Code, with_shadow: bool) -> String {
        let tool = self.subject();
        match &self.detail {
            Detail::Text(text) => return text.clone().into_string(),
            Detail::Budget(denial) if code.is_budget() => return denial.reason(),
            Detail::RunForbid(forbid) => return run_forbidden(&tool, code, forbid),
            Detail::Revoked(revoked) => return revocation(revoked),
            _ => {}
        }
        match code {
            Code::PolicyForbidden if matches!(self.detail, Detail::Narrowed) => {
                format!("{tool} is not among the tools this run was started with; use one of those")
            }
            Code::PolicyForbidden => self.forbidden(&tool, with_shadow),
            Code::PolicyNoPermit => self.not_permitted(&tool),
            Code::PolicyError => {
                format!("{tool} is denied because {} could not be evaluated", self.named(code, with_shadow))
            }
            Code::InputUnrepresentable => {
                format!(
                    "{tool} is denied because {} reads an argument that Cedar has no value for",
                    self.named(code, with_shadow)
                )
            }
            Code::ApprovalRequired => {
                let kinds: Vec<String> =
                    self.approvals().iter().map(|kind| format!("`{}`", super::names::shown(kind))).collect();
                let kinds = if kinds.is_empty() { String::new() } else { format!(" of {}", kinds.join(" and ")) };
                let policies = self.named(code, with_shadow);
                format!(
                    "{tool} with these arguments needs an approval{kinds}, says {policies}; ask for it and try again"
                )
            }
            Code::ApprovalRejected => {
                format!("an approver has rejected {tool} with these arguments; do something else")
            }
            Code::ApprovalExpired => {
                format!("the approval of {tool} with these arguments was not answered or not used in time; ask again")
            }
            Code::PrincipalExpired => "the time of this run is over; start another run".to_owned(),
            Code::InputUnknownTool => match &self.detail {
                Detail::UnknownTool(name) => tools::stanza(name),
                _ => code.meaning().to_owned(),
            },
            _ => code.meaning().to_owned(),
        }
    }

    fn forbidden(&self, tool: &str, with_shadow: bool) -> String {
        let mut policies = self.deciding(Code::PolicyForbidden, with_shadow);
        policies.sort_unstable();
        let written = policies.iter().find_map(|policy| self.state.set().annotation(*policy, "reason"));
        match written {
            Some(reason) if !reason.is_empty() => reason.chars().take(ANNOTATION_CHARS_MAX).collect(),
            _ => format!("{tool} is forbidden by {}", self.named(Code::PolicyForbidden, with_shadow)),
        }
    }

    fn not_permitted(&self, tool: &str) -> String {
        let erring = self.outcome.as_ref().map_or(0, Outcome::errors_len);
        let hint = if erring == 0 && self.model.is_some() {
            "use another model or fewer tokens, or ask for a permit".to_owned()
        } else if erring == 0 {
            "use another tool or other arguments, or ask for a permit".to_owned()
        } else {
            format!("{erring} policies could not be evaluated, see errors")
        };
        format!("no policy permits {tool} with these arguments; {hint}")
    }

    fn named(&self, code: Code, with_shadow: bool) -> String {
        named(&self.ids(self.deciding(code, with_shadow)))
    }
}

impl Drop for Decision {
    /// Nobody said how the action ended: it may have read all the same.
    fn drop(&mut self) {
        self.end_reading();
    }
}

fn named(ids: &[&str]) -> String {
    let shown: Vec<String> = ids.iter().take(NAMED_MAX).map(|id| format!("`{}`", super::names::shown(id))).collect();
    let rest = ids.len().saturating_sub(NAMED_MAX);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    format!("policy {}{more}", shown.join(", "))
}

/// Denials that a gate without a configuration explains.
const fn notices(code: Code) -> bool {
    matches!(code, Code::ScopeMissing | Code::InputUnknownTool | Code::PolicyNoPermit)
}

fn run_forbidden(tool: &str, code: Code, forbid: &RunForbid) -> String {
    let set = forbid.narrowing.set();
    let ids: Vec<&str> = forbid.policies.iter().map(|policy| set.id(*policy)).collect();
    let ids = named(&ids);
    match code {
        Code::PolicyError => {
            format!("{tool} is denied because {ids}, which came with this run, could not be evaluated")
        }
        Code::InputUnrepresentable => {
            format!(
                "{tool} is denied because {ids}, which came with this run, reads an argument that Cedar has no value for"
            )
        }
        _ => {
            let written = forbid.policies.iter().find_map(|policy| set.annotation(*policy, "reason"));
            match written {
                Some(reason) if !reason.is_empty() => reason.chars().take(ANNOTATION_CHARS_MAX).collect(),
                _ => {
                    format!("{tool} is forbidden by {ids}, which came with this run; use what the run was started for")
                }
            }
        }
    }
}

fn revocation(revoked: &Revoked) -> String {
    let what = match revoked.target.kind {
        TargetKind::Principal => format!("principal `{}`", super::names::shown(&revoked.target.name)),
        TargetKind::Tool => format!("tool `{}`", super::names::shown(&revoked.target.name)),
        TargetKind::Session => "this session".to_owned(),
        TargetKind::Everything => "everything".to_owned(),
    };
    let why =
        if revoked.reason.is_empty() { String::new() } else { format!(": {}", super::names::shown(&revoked.reason)) };
    format!("an operator has revoked {what} (generation {}){why}; stop, and tell the user", revoked.generation)
}
