//! A policy set: loaded once, immutable, shared; asked as often as one likes.
//!
//! Deciding touches no lock and no reference count. The answer is that of the reference authorizer: allow if at least
//! one permit is satisfied and no forbid is; the reasons are all satisfied policies of the deciding effect; an erroring
//! policy counts as unsatisfied and is reported. What the gate makes of errors is the gate's business.

use std::collections::HashMap;
use std::sync::Arc;

use bumpalo::Bump;
use smallvec::SmallVec;

use super::compile::Compiler;
use super::entities::Entities;
use super::error::{PolicyError, PolicyErrors};
use super::eval::{Evaluation, Fault, Request};
use super::index::{Builder, Candidates, Index, Word};
use super::lower;
use super::parse::{self, Source};
use super::program::Program;
use super::tree::{ActionScope, Body, Effect, EntityRef, Scope, Tree, index_u32};
use crate::limits::{POLICIES_MAX, POLICY_SET_BYTES_MAX};
use crate::uid::EntityUid;
use crate::value::Value;

/// How policies are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ids {
    /// `policy0`, `policy1`, ... as the reference does
    #[default]
    Positional,
    /// The `@id` annotation, else `FILE#ORDINAL` counted from 1; two equal ids are an error
    Annotation,
}

/// How to load.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// How policies are named
    pub ids: Ids,
    /// Use the schema for parsing entities elsewhere but do not validate policies against it
    pub skip_validation: bool,
}

/// One source text, kept for messages and explanations.
#[derive(Debug, Clone)]
pub struct SourceText {
    /// File name, if it came from a file
    pub name: Option<Box<str>>,
    /// The text
    pub text: Arc<str>,
}

/// A compiled, indexed policy set.
#[derive(Debug)]
pub struct PolicySet {
    pub(super) tree: Tree,
    pub(super) program: Program,
    pub(super) index: Index,
    /// In the order of their text; links behind
    pub(super) bodies: Vec<Body>,
    /// Templates, which decide nothing by themselves
    pub(super) templates: Vec<Body>,
    /// From the index's order to `bodies`
    pub(super) order: Vec<u32>,
    /// Words of the index's order that hold forbids end here: forbids come first
    forbids: u32,
    pub(super) sources: Vec<SourceText>,
    /// What the policies were validated against; a link is validated too
    schema: Option<SourceText>,
    warnings: Vec<String>,
    /// Tells this set from every other one that a [`Prepared`] may have been made for
    identity: Arc<()>,
}

/// Allow or deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// At least one permit and no forbid is satisfied
    Allow,
    /// Everything else
    Deny,
}

/// A policy that could not be evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyFault {
    /// Index of the policy
    pub policy: u32,
    /// Why
    pub fault: Fault,
    /// Where: an instruction, or the path that the index could not read
    at: FaultAt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FaultAt {
    Instruction(u32),
    Path(u32),
}

/// The answer to one request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Allow or deny
    pub decision: Decision,
    /// Indices of the satisfied policies of the deciding effect, ascending in the index's order
    pub reasons: SmallVec<[u32; 4]>,
    /// Whether a forbid erred
    pub forbid_erred: bool,
    faults: SmallVec<[PolicyFault; 1]>,
    /// Known from the index; expanded when asked for
    erring: Vec<super::index::Erring>,
}

/// What the caller wants to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Decision, every reason, every error
    #[default]
    Full,
    /// The decision only; stops at the first policy that settles it
    DecisionOnly,
}

/// Buffers that are reused from request to request: with them a warm decision allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    bump: Bump,
    candidates: Candidates,
}

impl Scratch {
    /// Fresh buffers.
    pub fn new() -> Self {
        Self::default()
    }
}

/// A principal, an action and a resource, with the policies of one set whose scopes they match against one snapshot of
/// entities. It holds that snapshot, so it cannot be asked against another one; whoever updates entities prepares anew.
#[derive(Debug, Clone)]
pub struct Prepared {
    set: Arc<()>,
    scope: Box<[Word]>,
    principal: Arc<EntityUid>,
    action: Arc<EntityUid>,
    resource: Arc<EntityUid>,
    entities: Entities,
}

impl Prepared {
    /// Whether it was made for this very set.
    #[inline]
    pub fn is_for(&self, set: &PolicySet) -> bool {
        Arc::ptr_eq(&self.set, &set.identity)
    }

    /// The snapshot it was made against.
    pub const fn entities(&self) -> &Entities {
        &self.entities
    }
}

impl PolicySet {
    /// Parses, validates where a schema is given, compiles and indexes.
    ///
    /// # Errors
    /// [`PolicyErrors`] with file, line and column: front-door limits, syntax, validation, duplicate ids.
    pub fn load(
        sources: &[Source<'_>],
        schema: Option<&Source<'_>>,
        options: LoadOptions,
    ) -> Result<Self, PolicyErrors> {
        let bytes = sources.iter().map(|source| source.text.len()).fold(0, usize::saturating_add);
        if bytes > POLICY_SET_BYTES_MAX {
            return Err(PolicyErrors::from(PolicyError::new(
                "policy.too_large",
                format!("policy set has {bytes} bytes, the limit is {POLICY_SET_BYTES_MAX}"),
            )));
        }
        parse::on_parser_thread(|| {
            let parsed = schema.map(parse::parse_schema).transpose()?;
            let validated = schema.filter(|_| !options.skip_validation);
            let loading = Self::load_here(sources, parsed.as_ref(), options)?;
            Ok(loading.finish(
                validated.map(|source| SourceText { name: source.name.map(Into::into), text: source.text.into() }),
            ))
        })?
    }

    /// The same with a schema that is parsed already. The set does not keep it, so nothing can be linked with it later.
    ///
    /// # Errors
    /// As [`PolicySet::load`].
    pub fn load_against(
        sources: &[Source<'_>],
        schema: Option<&cedar_policy::Schema>,
        options: LoadOptions,
    ) -> Result<Self, PolicyErrors> {
        parse::on_parser_thread(|| Ok(Self::load_here(sources, schema, options)?.finish(None)))?
    }

    fn load_here(
        sources: &[Source<'_>],
        schema: Option<&cedar_policy::Schema>,
        options: LoadOptions,
    ) -> Result<Loading, PolicyErrors> {
        let mut loading = Loading::default();
        for (number, source) in sources.iter().enumerate() {
            let parsed = parse::parse_policies(source)?;
            if let Some(schema) = schema.filter(|_| !options.skip_validation) {
                let warnings = parse::validate_named(&parsed, schema, |_| source.name)?;
                loading.warnings.extend(warnings.iter().map(ToString::to_string));
            }
            loading.take(&parsed, number, source, options.ids);
        }
        loading.check()?;
        Ok(loading)
    }

    /// Answers one request.
    #[inline]
    pub fn decide(&self, request: &Request<'_>, entities: &Entities, scratch: &mut Scratch, mode: Mode) -> Answer {
        let Scratch { bump, candidates } = scratch;
        bump.reset();
        let evaluation = Evaluation::new(&self.program, &self.tree, entities, request, bump);
        self.index.candidates(request, entities, &evaluation, candidates);
        self.run(&evaluation, candidates, mode)
    }

    /// Resolves what of a request rarely changes: the answer to every scope. Worth it from the second request on.
    pub fn prepare(
        &self,
        principal: &Arc<EntityUid>,
        action: &Arc<EntityUid>,
        resource: &Arc<EntityUid>,
        entities: &Entities,
    ) -> Prepared {
        let request = Request { principal, action, resource, context: Value::Record(&[]) };
        let mut scope = Vec::new();
        self.index.scope_words(&request, entities, &mut scope);
        Prepared {
            set: Arc::clone(&self.identity),
            scope: scope.into(),
            principal: Arc::clone(principal),
            action: Arc::clone(action),
            resource: Arc::clone(resource),
            entities: entities.clone(),
        }
    }

    /// Answers a prepared request, equal to [`PolicySet::decide`] on its parts. What was prepared for another set is
    /// answered all the same, without the saving.
    #[inline]
    pub fn decide_prepared(
        &self,
        prepared: &Prepared,
        context: Value<'_>,
        scratch: &mut Scratch,
        mode: Mode,
    ) -> Answer {
        let Prepared { principal, action, resource, entities, .. } = prepared;
        let request = Request { principal, action, resource, context };
        if !prepared.is_for(self) {
            return self.decide(&request, entities, scratch, mode);
        }
        self.decide_within(&prepared.scope, &request, entities, scratch, mode)
    }

    /// Answers a request of which the policies that match by scope are known; the caller answers for them.
    #[inline]
    pub(super) fn decide_within(
        &self,
        scope: &[Word],
        request: &Request<'_>,
        entities: &Entities,
        scratch: &mut Scratch,
        mode: Mode,
    ) -> Answer {
        let Scratch { bump, candidates } = scratch;
        bump.reset();
        let evaluation = Evaluation::new(&self.program, &self.tree, entities, request, bump);
        self.index.candidates_within(scope, &evaluation, candidates);
        self.run(&evaluation, candidates, mode)
    }

    #[inline]
    fn run(&self, evaluation: &Evaluation<'_>, candidates: &mut Candidates, mode: Mode) -> Answer {
        let mut verdict = Verdict::default();
        for word in &candidates.words {
            if self.run_word(*word, evaluation, &mut verdict, mode) {
                break;
            }
        }
        verdict.answer(self, std::mem::take(&mut candidates.erring))
    }

    /// Runs the policies of one word; true when the decision is settled and nothing else is wanted.
    #[inline]
    fn run_word(&self, word: Word, evaluation: &Evaluation<'_>, verdict: &mut Verdict, mode: Mode) -> bool {
        let mut bits = word.bits;
        while bits != 0 {
            let position = word.at.wrapping_mul(64).wrapping_add(bits.trailing_zeros());
            bits &= bits.wrapping_sub(1);
            let forbid = position < self.forbids;
            match evaluation.run(position as usize) {
                Ok(false) => {}
                Ok(true) => {
                    let policy = self.order.get(position as usize).copied().unwrap_or_default();
                    // Forbids come first, so whether a permit can still be a reason is known when it is satisfied.
                    verdict.denied |= forbid;
                    verdict.permitted |= !forbid;
                    if forbid || !verdict.denied || verdict.both_effects {
                        verdict.reasons.push(policy);
                    }
                    verdict.forbids = verdict.forbids.wrapping_add(u32::from(forbid));
                    // At the first satisfied permit no forbid can follow.
                    if mode == Mode::DecisionOnly {
                        return true;
                    }
                }
                Err((fault, at)) => {
                    let policy = self.order.get(position as usize).copied().unwrap_or_default();
                    verdict.forbid_erred |= forbid;
                    verdict.faults.push(PolicyFault { policy, fault, at: FaultAt::Instruction(at) });
                }
            }
        }
        false
    }

    /// Everything one evaluation finds, of both effects, without drawing a verdict from it.
    pub fn evaluate(&self, request: &Request<'_>, entities: &Entities, scratch: &mut Scratch) -> Outcome {
        let Scratch { bump, candidates } = scratch;
        bump.reset();
        let bump = &*bump;
        let evaluation = Evaluation::new(&self.program, &self.tree, entities, request, bump);
        self.index.candidates(request, entities, &evaluation, candidates);
        let mut verdict = Verdict { both_effects: true, ..Verdict::default() };
        for word in &candidates.words {
            self.run_word(*word, &evaluation, &mut verdict, Mode::Full);
        }
        let (forbids, permits) = verdict.reasons.split_at_checked(verdict.forbids as usize).unwrap_or_default();
        let (permits, forbids) = (permits.into(), forbids.into());
        verdict.reasons.clear();
        Outcome { permits, forbids, errors: verdict.answer(self, std::mem::take(&mut candidates.erring)) }
    }

    /// Whether any policy may read this attribute of the context.
    pub fn may_read_context(&self, attribute: &str) -> bool {
        self.tree.may_read_context(attribute)
    }

    /// Number of policies that can decide: static ones and links.
    pub fn len(&self) -> usize {
        self.bodies.len()
    }

    /// Whether nothing can decide.
    pub fn is_empty(&self) -> bool {
        self.bodies.is_empty()
    }

    /// The policies that can decide.
    pub fn policies(&self) -> &[Body] {
        &self.bodies
    }

    /// The templates.
    pub fn templates(&self) -> &[Body] {
        &self.templates
    }

    /// The id of a policy.
    pub fn id(&self, policy: u32) -> &str {
        self.bodies.get(policy as usize).map_or("", |body| &body.id)
    }

    /// The annotations of a policy.
    pub fn annotations(&self, policy: u32) -> &[(Box<str>, Box<str>)] {
        self.bodies.get(policy as usize).map_or(&[], |body| &body.annotations)
    }

    /// One annotation of a policy.
    pub fn annotation(&self, policy: u32, name: &str) -> Option<&str> {
        self.annotations(policy).iter().find(|(key, _)| **key == *name).map(|(_, value)| &**value)
    }

    /// Warnings of the validator.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether the policies passed strict validation against a schema.
    pub const fn is_validated(&self) -> bool {
        self.schema.is_some()
    }

    /// The text of a policy, or of the template it was linked from.
    pub fn text(&self, policy: u32) -> &str {
        let Some(body) = self.bodies.get(policy as usize) else { return "" };
        let text = self.sources.get(body.source as usize).map_or("", |source| &*source.text);
        text.get(body.span.start as usize..body.span.end as usize).unwrap_or_default()
    }

    /// Where a policy stands: file name, line and column (from 1) of its first character.
    pub fn place(&self, policy: u32) -> (Option<&str>, u32, u32) {
        self.bodies.get(policy as usize).map_or((None, 0, 0), |body| self.position(body.source, body.span.start))
    }

    pub(super) fn position(&self, source: u32, offset: u32) -> (Option<&str>, u32, u32) {
        let Some(source) = self.sources.get(source as usize) else { return (None, 0, 0) };
        let (line, column) = super::error::position(&source.text, offset as usize);
        (source.name.as_deref(), line, column)
    }

    /// A fault as a sentence with its place, without any value of the request.
    pub fn fault_message(&self, fault: &PolicyFault) -> String {
        let Some(body) = self.bodies.get(fault.policy as usize) else { return fault.fault.message().to_owned() };
        let (text, span) = match fault.at {
            FaultAt::Instruction(at) => {
                let origin = self.program.origins.get(at as usize).copied().unwrap_or_default();
                let words = super::words::expression(&self.tree, origin);
                (words, self.tree.span(origin))
            }
            FaultAt::Path(path) => (self.program.path_text(&self.tree, path), body.span),
        };
        let (_, line, column) = self.position(body.source, span.start);
        format!("{} while reading `{text}` at {line}:{column}", fault.fault.message())
    }

    /// Approximate heap bytes.
    pub fn memory_bytes(&self) -> usize {
        let sources: usize = self.sources.iter().map(|source| source.text.len()).sum();
        let bodies: usize = self
            .bodies
            .iter()
            .map(|body| size_of::<Body>().saturating_add(body.annotations.len().saturating_mul(64)))
            .fold(0, usize::saturating_add);
        [self.tree.memory_bytes(), self.program.memory_bytes(), self.index.memory_bytes(), sources, bodies]
            .into_iter()
            .fold(self.order.len().saturating_mul(4), usize::saturating_add)
    }

    /// A new set with one more link of a template.
    ///
    /// # Errors
    /// An unknown template, an id that is taken, or slots that do not match the template's.
    pub fn link(
        self: &Arc<Self>,
        template: &str,
        id: &str,
        principal: Option<EntityUid>,
        resource: Option<EntityUid>,
    ) -> Result<Self, PolicyErrors> {
        let error = |message: String| PolicyErrors::from(PolicyError::new("policy.invalid", message));
        let body = self.templates.iter().find(|body| *body.id == *template);
        let body = body.ok_or_else(|| error(format!("no template has the id `{template}`")))?;
        if self.bodies.iter().chain(&self.templates).any(|body| *body.id == *id) {
            return Err(PolicyErrors::from(PolicyError::new(
                "policy.duplicate_id",
                format!("policy id `{id}` is taken"),
            )));
        }
        for (name, scope, value) in
            [("?principal", &body.principal, &principal), ("?resource", &body.resource, &resource)]
        {
            if scope.has_slot() != value.is_some() {
                let what = if scope.has_slot() { "needs a value for" } else { "has no slot" };
                return Err(error(format!("template `{template}` {what} `{name}`")));
            }
        }
        let mut linked = body.clone();
        linked.id = id.into();
        linked.template = Some(template.into());
        let slots = [principal.map(Arc::new), resource.map(Arc::new)];
        if let Some(uid) = &slots[0] {
            linked.principal = linked.principal.filled(uid);
        }
        if let Some(uid) = &slots[1] {
            linked.resource = linked.resource.filled(uid);
        }
        linked.slots = slots;
        self.with_links(vec![linked])
    }

    fn with_links(&self, links: Vec<Body>) -> Result<Self, PolicyErrors> {
        let sources: Vec<Source<'_>> =
            self.sources.iter().map(|s| Source { name: s.name.as_deref(), text: &s.text }).collect();
        // The instructions of a set are one block, so a new set is compiled from the texts; linking is not a hot path.
        let ids: Vec<Box<str>> = self.bodies.iter().chain(&self.templates).map(|body| body.id.clone()).collect();
        let old_links = self.bodies.iter().filter(|body| body.template.is_some()).cloned();
        let links: Vec<Body> = old_links.chain(links).collect();
        let schema = self.schema.clone();
        parse::on_parser_thread(move || {
            let mut loading = Loading { warnings: self.warnings.clone(), ..Loading::default() };
            for (number, source) in sources.iter().enumerate() {
                let parsed = parse::parse_policies(source)?;
                if let Some(schema) = &schema {
                    validate_links(&parsed, &links, number, source, schema)?;
                }
                loading.take(&parsed, number, source, Ids::Positional);
            }
            loading.rename(&ids);
            for mut link in links {
                let template = loading.templates.iter().find(|body| Some(&body.id) == link.template.as_ref());
                link.condition = template.and_then(|body| body.condition);
                loading.bodies.push(link);
            }
            Ok(loading.finish(schema))
        })?
    }
}

/// Validates the links of one source's templates.
fn validate_links(
    parsed: &cedar_policy::PolicySet,
    links: &[Body],
    number: usize,
    source: &Source<'_>,
    schema: &SourceText,
) -> Result<(), PolicyErrors> {
    let schema = parse::parse_schema(&Source { name: schema.name.as_deref(), text: &schema.text })?;
    let invalid = |message: String| PolicyErrors::from(PolicyError::new("policy.invalid", message));
    let mut linked = parsed.clone();
    for link in links.iter().filter(|link| link.source as usize == number) {
        let start = link.span.start as usize;
        let template = linked
            .templates()
            .find(|template| {
                AsRef::<cedar_policy_core::ast::Template>::as_ref(*template).loc().is_some_and(|l| l.start() == start)
            })
            .map(|template| template.id().clone())
            .ok_or_else(|| invalid(format!("the template of `{}` is gone", link.id)))?;
        let mut slots = HashMap::new();
        for (slot, uid) in [
            (cedar_policy::SlotId::principal(), link.slots[0].as_ref()),
            (cedar_policy::SlotId::resource(), link.slots[1].as_ref()),
        ] {
            if let Some(uid) = uid {
                slots.insert(slot, lower::reference_uid(uid).ok_or_else(|| invalid(format!("`{uid}` is no uid")))?);
            }
        }
        linked
            .link(template, cedar_policy::PolicyId::new(&link.id), slots)
            .map_err(|error| invalid(error.to_string()))?;
    }
    parse::validate_named(&linked, &schema, |_| source.name).map(drop)
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one evaluation")]
struct Verdict {
    /// Forbids, then permits; a permit that a forbid overrules only if both effects are wanted
    reasons: SmallVec<[u32; 4]>,
    /// How many of the reasons are forbids
    forbids: u32,
    both_effects: bool,
    permitted: bool,
    denied: bool,
    faults: SmallVec<[PolicyFault; 1]>,
    forbid_erred: bool,
}

impl Verdict {
    #[inline]
    fn answer(self, set: &PolicySet, erring: Vec<super::index::Erring>) -> Answer {
        let decision = if self.permitted && !self.denied { Decision::Allow } else { Decision::Deny };
        let below = |word: &Word| word.at.saturating_mul(64).saturating_add(word.bits.trailing_zeros()) < set.forbids;
        let forbid_erred = self.forbid_erred || erring.iter().any(|group| group.words.iter().any(below));
        Answer { decision, reasons: self.reasons, forbid_erred, faults: self.faults, erring }
    }
}

/// Everything one evaluation found: what the gate draws its verdicts from, with and without shadow policies.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Indices of the satisfied permits
    pub permits: SmallVec<[u32; 4]>,
    /// Indices of the satisfied forbids
    pub forbids: SmallVec<[u32; 4]>,
    /// Carries the errors only; its decision means nothing
    errors: Answer,
}

impl Outcome {
    /// Whether a forbid erred.
    pub const fn forbid_erred(&self) -> bool {
        self.errors.forbid_erred
    }

    /// Number of policies that erred.
    pub fn errors_len(&self) -> usize {
        self.errors.errors_len()
    }

    /// The policies that erred, with why.
    pub fn errors(&self, set: &PolicySet) -> Vec<PolicyFault> {
        self.errors.errors(set)
    }
}

/// A denial for no reason, which is what an empty set answers.
impl Default for Answer {
    fn default() -> Self {
        Self {
            decision: Decision::Deny,
            reasons: SmallVec::new(),
            forbid_erred: false,
            faults: SmallVec::new(),
            erring: Vec::new(),
        }
    }
}

impl Answer {
    /// Number of policies that erred.
    pub fn errors_len(&self) -> usize {
        let known = self.erring.iter().flat_map(|group| &group.words).map(|word| word.bits.count_ones() as usize);
        known.fold(self.faults.len(), usize::saturating_add)
    }

    /// The policies that erred, with why. Builds the list: ids of policies that the index knows to err are not
    /// materialised before.
    pub fn errors(&self, set: &PolicySet) -> Vec<PolicyFault> {
        let mut all: Vec<PolicyFault> = self.faults.to_vec();
        for group in &self.erring {
            for word in &group.words {
                let mut bits = word.bits;
                while bits != 0 {
                    let position = word.at.wrapping_mul(64).wrapping_add(bits.trailing_zeros());
                    bits &= bits.wrapping_sub(1);
                    if let Some(policy) = set.order.get(position as usize) {
                        all.push(PolicyFault { policy: *policy, fault: group.fault, at: FaultAt::Path(group.path) });
                    }
                }
            }
        }
        all.sort_by_key(|fault| fault.policy);
        all
    }
}

/// A set while it is being loaded.
#[derive(Default)]
struct Loading {
    tree: Tree,
    bodies: Vec<Body>,
    templates: Vec<Body>,
    sources: Vec<SourceText>,
    warnings: Vec<String>,
}

impl Loading {
    /// Lowers the policies of one source.
    fn take(&mut self, parsed: &cedar_policy::PolicySet, number: usize, source: &Source<'_>, ids: Ids) {
        let set: &cedar_policy_core::ast::PolicySet = parsed.as_ref();
        let mut templates: Vec<_> = set.all_templates().collect();
        templates.sort_by_key(|template| template.loc().map_or(0, cedar_policy_core::parser::Loc::start));
        let before = self.bodies.len().saturating_add(self.templates.len());
        for (ordinal, template) in templates.into_iter().enumerate() {
            let mut body = lower::template(&mut self.tree, template, index_u32(number));
            if ids == Ids::Positional && before > 0 {
                // Counted on from the source before, as if the texts were one.
                body.id = format!("policy{}", before.saturating_add(ordinal)).into();
            }
            if ids == Ids::Annotation {
                let own = body.annotations.iter().find(|(key, _)| **key == *"id").map(|(_, value)| value.clone());
                body.id = own.unwrap_or_else(|| {
                    let ordinal = ordinal.saturating_add(1);
                    match (source.name, number) {
                        // The name and not the path: ids are shown to models, and a path says where things lie.
                        (Some(file), _) => format!("{}#{ordinal}", file.rsplit('/').next().unwrap_or(file)).into(),
                        (None, 0) => format!("policy#{ordinal}").into(),
                        (None, _) => format!("text{}#{ordinal}", number.saturating_add(1)).into(),
                    }
                });
            }
            if body.principal.has_slot() || body.resource.has_slot() {
                self.templates.push(body);
            } else {
                self.bodies.push(body);
            }
        }
        self.sources.push(SourceText { name: source.name.map(Into::into), text: source.text.into() });
    }

    /// Gives policies and templates the ids they had before, in the same order.
    fn rename(&mut self, ids: &[Box<str>]) {
        let count = self.bodies.len();
        let bodies = ids.iter().take(count);
        let templates = ids.iter().skip(ids.len().saturating_sub(self.templates.len()));
        for (body, id) in self.bodies.iter_mut().zip(bodies).chain(self.templates.iter_mut().zip(templates)) {
            body.id.clone_from(id);
        }
    }

    fn check(&self) -> Result<(), PolicyErrors> {
        let count = self.bodies.len().saturating_add(self.templates.len());
        if count > POLICIES_MAX {
            return Err(PolicyErrors::from(PolicyError::new(
                "policy.too_many",
                format!("policy set has {count} policies, the limit is {POLICIES_MAX}"),
            )));
        }
        let mut seen: std::collections::HashMap<&str, &Body> = std::collections::HashMap::with_capacity(count);
        for body in self.bodies.iter().chain(&self.templates) {
            if let Some(first) = seen.insert(&body.id, body) {
                return Err(PolicyErrors::from(self.duplicate(first, body)));
            }
        }
        Ok(())
    }

    fn duplicate(&self, first: &Body, second: &Body) -> PolicyError {
        let place = |body: &Body| {
            let source = self.sources.get(body.source as usize);
            let text = source.map_or("", |source| &source.text);
            let name = source.and_then(|source| source.name.as_deref());
            (name.map(str::to_owned), super::error::position(text, body.span.start as usize))
        };
        let (file, (line, column)) = place(second);
        let (first_file, (first_line, _)) = place(first);
        let mut error = PolicyError::new("policy.duplicate_id", format!("policy id `{}` is used twice", second.id));
        error.file = file;
        error.line = line;
        error.column = column;
        let first_file = first_file.unwrap_or_else(|| "this text".to_owned());
        error.help = Some(format!("the first one is in {first_file}, line {first_line}; give one of them another @id"));
        error
    }

    /// Orders, compiles and indexes.
    fn finish(mut self, schema: Option<SourceText>) -> PolicySet {
        let mut order: Vec<u32> = (0..index_u32(self.bodies.len())).collect();
        let bodies = &self.bodies;
        order.sort_by_cached_key(|at| bodies.get(*at as usize).map(sort_key));
        let mut compiler = Compiler::default();
        let mut conjuncts = Vec::with_capacity(order.len());
        for at in &order {
            if let Some(body) = self.bodies.get(*at as usize) {
                conjuncts.push(compiler.policy(&mut self.tree, body));
            }
        }
        let program = compiler.finish();
        self.tree.shrink();
        let mut builder = Builder::new(&program, &self.tree);
        for (at, conjuncts) in order.iter().zip(&conjuncts) {
            if let Some(body) = self.bodies.get(*at as usize) {
                builder.add(body, conjuncts);
            }
        }
        let index = builder.finish();
        let forbids = self.bodies.iter().filter(|body| body.effect == Effect::Forbid).count();
        PolicySet {
            tree: self.tree,
            program,
            index,
            bodies: self.bodies,
            templates: self.templates,
            order,
            forbids: index_u32(forbids),
            sources: self.sources,
            warnings: self.warnings,
            schema,
            identity: Arc::new(()),
        }
    }
}

/// The part of a scope that the index has buckets for, in the order of its text.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum ScopeKey<'b> {
    Any,
    Is(&'b str),
    Eq(&'b EntityUid),
    In(&'b EntityUid),
    ActionIn(&'b [Arc<EntityUid>]),
    Slot,
}

impl<'b> ScopeKey<'b> {
    fn new(scope: &'b Scope) -> Self {
        match scope {
            Scope::Any => Self::Any,
            Scope::Is(ty) => Self::Is(ty),
            Scope::Eq(EntityRef::Uid(uid)) => Self::Eq(uid),
            Scope::In(EntityRef::Uid(uid)) | Scope::IsIn(_, EntityRef::Uid(uid)) => Self::In(uid),
            Scope::Eq(EntityRef::Slot) | Scope::In(EntityRef::Slot) | Scope::IsIn(_, EntityRef::Slot) => Self::Slot,
        }
    }
}

/// Forbids first (a decision-only answer can stop early), then equal scopes side by side (short buckets).
fn sort_key(body: &Body) -> (bool, [ScopeKey<'_>; 3]) {
    let action = match &body.action {
        ActionScope::Any => ScopeKey::Any,
        ActionScope::Eq(uid) => ScopeKey::Eq(uid),
        ActionScope::In(uids) => ScopeKey::ActionIn(uids),
    };
    (body.effect == Effect::Permit, [action, ScopeKey::new(&body.principal), ScopeKey::new(&body.resource)])
}
