//! Everything a check reads, loaded together and never changed: policies, entities, tools and modes.
//!
//! A reload builds another state; a check works with one state from beginning to end, and a decision keeps the state
//! it was made with, so that its sentences speak of the policies that decided.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cedar_policy::Schema;

use super::approve::Approver;
use super::budget_context;
use super::control::Control;
use super::descriptions::Descriptions;
use super::evidence::{Audit, Fragments, digest_of};
use super::tools::{CALL_TOOL, Registry, Tool, ToolSpec};
use crate::audit::log::Durability;
use crate::audit::tree::Hash;
use crate::budget::ledger::Ledger;
use crate::policy::entities::{Entities, EntityData};
use crate::policy::error::{PolicyError, PolicyErrors};
use crate::policy::guards;
use crate::policy::parse::{Source, on_parser_thread, parse_schema};
use crate::policy::set::{Ids, LoadOptions, PolicySet};
use crate::policy::tree::Effect;
use crate::uid::EntityUid;

/// What becomes of denials that policies make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GateMode {
    /// They deny
    #[default]
    Enforce,
    /// They allow, and the decision says what it would have been
    Shadow,
}

/// What a forbid that cannot be evaluated does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnError {
    /// It denies
    #[default]
    Deny,
    /// It is skipped, as in the Cedar language
    Cedar,
}

/// What loading does about a forbid that reads what may be absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnguardedForbid {
    /// Refuses it
    #[default]
    Refuse,
    /// Loads it with a warning
    Warn,
}

/// What a gate is loaded from.
#[derive(Debug, Clone, Default)]
pub struct GateSources<'a> {
    /// Policy texts, in order
    pub policies: Vec<Source<'a>>,
    /// Cedar schema, in either syntax
    pub schema: Option<Source<'a>>,
    /// Entities document
    pub entities: Option<Source<'a>>,
    /// Tools of the configuration
    pub tools: Vec<ToolSpec>,
    /// Enforce or shadow
    pub mode: GateMode,
    /// What an erring forbid does
    pub on_error: OnError,
    /// What an unguarded forbid does
    pub unguarded_forbid: UnguardedForbid,
    /// What pays for actions; without one nothing costs anything
    pub ledger: Option<Arc<Ledger>>,
    /// What records decisions
    pub audit: Option<Arc<Audit>>,
    /// What the gates of a host share: revocations, labels of sessions, approvals; without one it is this gate's alone
    pub control: Option<Arc<Control>>,
    /// Who may approve: public keys. Without any an approval needs no signature
    pub approvers: Vec<Approver>,
    /// What a denial says beside its reason where nothing was configured
    pub notice: Option<String>,
    /// Where the files lie: what they are called in the bundle begins behind it, so that the same files are the same
    /// bundle wherever they lie
    pub folder: Option<&'a str>,
}

/// What the gate reads off a policy's annotations.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Marks {
    /// `@mode("shadow")`
    pub(super) shadow: bool,
    /// `@approval`
    pub(super) approval: bool,
    /// `@obligation`
    pub(super) obligation: bool,
    /// `@durability`
    pub(super) durability: Durability,
}

/// One loaded state of a gate.
#[derive(Debug, Clone)]
pub struct GateState {
    generation: u64,
    set: Arc<PolicySet>,
    /// As loaded, without the tools' actions
    plain_entities: Entities,
    entities: Entities,
    descriptions: Descriptions,
    registry: Arc<Registry>,
    /// Tools that are refused by their names, with why
    withheld: Arc<Withheld>,
    mode: GateMode,
    on_error: OnError,
    marks: Arc<[Marks]>,
    any_marks: Marks,
    warnings: Vec<String>,
    budgets: Budgets,
    call_model: Arc<EntityUid>,
    delegate: Arc<EntityUid>,
    audit: Option<Arc<Audit>>,
    fragments: Fragments,
    bundle: Hash,
    control: Arc<Control>,
    /// By tool: what its output brings into a session, as bits of the control table
    reads: Vec<u64>,
    approvers: Arc<[Approver]>,
    notice: Option<Arc<str>>,
    /// What the forbids of runs are checked against
    schema: Option<Arc<Schema>>,
}

/// Reasons by name.
pub(super) type Withheld = HashMap<Box<str>, Box<str>>;

/// The ledgers of a state.
#[derive(Debug, Clone, Default)]
struct Budgets {
    ledger: Option<Arc<Ledger>>,
    /// Of the same budgets, in this process: what shadow mode counts in
    shadow: Option<Arc<Ledger>>,
    /// Whether a policy may read `context.budget`
    read: bool,
}

impl Budgets {
    /// Shadow mode goes on counting where the state before it did, if the ledger is the same.
    fn load(sources: &GateSources<'_>, before: Option<&Self>, read: bool) -> Result<Self, PolicyErrors> {
        let ledger = sources.ledger.clone();
        let mut shadow = None;
        if let Some(ledger) = ledger.as_ref().filter(|_| sources.mode == GateMode::Shadow) {
            let same = before.filter(|before| before.ledger.as_ref().is_some_and(|other| Arc::ptr_eq(other, ledger)));
            shadow = same.and_then(|before| before.shadow.clone());
            if shadow.is_none() {
                let made = Ledger::anonymous(ledger.spec().clone(), Arc::clone(ledger.clock()));
                shadow = Some(Arc::new(made.map_err(|error| PolicyError::new(error.code(), error.to_string()))?));
            }
        }
        Ok(Self { ledger, shadow, read })
    }
}

/// The action of every model call.
const CALL_MODEL: &str = "call_model";
/// The action of having another principal act.
const DELEGATE: &str = "delegate";

/// What `context` always has at the gate; what `now` and the session hold is made there. `budget` is not among them: a
/// run may have none.
const SUPPLIED: [&[&str]; 5] = [
    &["context", "input"],
    &["context", "now"],
    &["context", "session"],
    &["context", "session", "id"],
    &["context", "session", "labels"],
];

impl GateState {
    /// Loads and checks everything.
    ///
    /// # Errors
    /// [`PolicyErrors`] with file, line and column where there is a text to point at.
    pub fn load(sources: &GateSources<'_>) -> Result<Self, PolicyErrors> {
        Self::load_after(sources, None)
    }

    /// The same after another state, of which tools that runtimes have described stay, and those that are withheld.
    pub(super) fn load_after(sources: &GateSources<'_>, before: Option<&Self>) -> Result<Self, PolicyErrors> {
        let options = LoadOptions { ids: Ids::Annotation, ..LoadOptions::default() };
        let set = PolicySet::load(&sources.policies, sources.schema.as_ref(), options)?;
        let mut warnings = set.warnings().to_vec();
        let marks = read_marks(&set, sources.audit.is_some(), &mut warnings)?;
        let reads_budget = set.may_read_context("budget");
        if !set.is_validated() {
            check_guards(&set, sources.unguarded_forbid, reads_budget, &mut warnings)?;
        }
        let schema = sources.schema.as_ref().map(|source| on_parser_thread(|| parse_schema(source))).transpose()?;
        let schema = schema.transpose()?.map(Arc::new);
        let plain_entities = load_entities(sources, schema.as_deref())?;
        let descriptions = Descriptions::load(&sources.tools, before.map(|state| &state.descriptions))?;
        let registry = descriptions.registry(None)?;
        let any_marks = Marks {
            shadow: marks.iter().any(|m| m.shadow),
            approval: marks.iter().any(|m| m.approval),
            obligation: marks.iter().any(|m| m.obligation),
            durability: marks.iter().map(|m| m.durability).max().unwrap_or_default(),
        };
        let audit = sources.audit.clone();
        let control = control_of(sources, before)?;
        let reads = reads_of(&registry, &control)?;
        let fragments = audit.as_ref().map(|_| Fragments::new(sources, &set, &registry)).unwrap_or_default();
        Ok(Self {
            generation: next_generation(),
            entities: with_actions(&plain_entities, &registry)?,
            set: Arc::new(set),
            plain_entities,
            descriptions,
            registry: Arc::new(registry),
            withheld: before.map_or_else(Arc::default, |state| Arc::clone(&state.withheld)),
            mode: sources.mode,
            on_error: sources.on_error,
            marks: marks.into(),
            any_marks,
            warnings,
            budgets: Budgets::load(sources, before.map(|state| &state.budgets), reads_budget)?,
            call_model: Arc::new(EntityUid::new("Action", CALL_MODEL)),
            delegate: Arc::new(EntityUid::new("Action", DELEGATE)),
            audit,
            fragments,
            bundle: digest_of(sources),
            control,
            reads,
            approvers: sources.approvers.clone().into(),
            notice: sources.notice.as_deref().map(Arc::from),
            schema,
        })
    }

    /// The same state with tools as a runtime describes them; `None` if that changes nothing.
    pub(super) fn with_tools(&self, specs: &[ToolSpec]) -> Result<Option<Self>, PolicyErrors> {
        let Some(descriptions) = self.descriptions.with(specs)? else { return Ok(None) };
        let registry = descriptions.registry(Some(&self.registry))?;
        Ok(Some(Self {
            generation: next_generation(),
            entities: with_actions(&self.plain_entities, &registry)?,
            reads: reads_of(&registry, &self.control)?,
            fragments: self.audit.as_ref().map(|_| self.fragments.with_tools(&registry)).unwrap_or_default(),
            descriptions,
            registry: Arc::new(registry),
            ..self.clone()
        }))
    }

    /// The same state with these names refused; `None` if that changes nothing.
    pub(super) fn with_withheld(&self, withheld: Withheld) -> Option<Self> {
        (*self.withheld != withheld).then(|| Self {
            generation: next_generation(),
            withheld: Arc::new(withheld),
            ..self.clone()
        })
    }

    /// The tools that no file describes, or not alone, but for those that a state before has too.
    pub(super) fn beside_files(&self, before: Option<&Self>) -> impl Iterator<Item = &Arc<Tool>> {
        self.descriptions.beside_files(&self.registry, before.map(|state| &*state.registry))
    }

    /// Why a name is refused, registered or not.
    #[inline]
    pub(super) fn withheld(&self, tool: &str) -> Option<&str> {
        if self.withheld.is_empty() { None } else { self.withheld.get(tool).map(|reason| &**reason) }
    }

    /// What the gates of a host share.
    #[inline]
    pub const fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The digest of everything that decides but for what a runtime registers.
    pub const fn bundle(&self) -> &Hash {
        &self.bundle
    }

    /// What the output of a tool brings into a session, as bits of the control table.
    #[inline]
    pub(super) fn reads(&self, tool: u32) -> u64 {
        self.reads.get(tool as usize).copied().unwrap_or(0)
    }

    pub(super) fn approvers(&self) -> &[Approver] {
        &self.approvers
    }

    /// What entities and policies look like, if that is declared.
    pub(super) fn schema(&self) -> Option<&Schema> {
        self.schema.as_deref()
    }

    pub(super) fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// Different for every state of the process.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The policies.
    pub fn set(&self) -> &PolicySet {
        &self.set
    }

    /// The entities, the tools' actions included.
    pub const fn entities(&self) -> &Entities {
        &self.entities
    }

    /// The tools.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Enforce or shadow.
    pub const fn mode(&self) -> GateMode {
        self.mode
    }

    /// What an erring forbid does.
    pub const fn on_error(&self) -> OnError {
        self.on_error
    }

    /// What loading had to say without refusing.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What pays for actions.
    pub const fn ledger(&self) -> Option<&Arc<Ledger>> {
        self.budgets.ledger.as_ref()
    }

    /// The ledger whose cells count: in shadow mode one of its own.
    #[inline]
    pub const fn cells(&self) -> Option<&Arc<Ledger>> {
        match &self.budgets.shadow {
            Some(shadow) => Some(shadow),
            None => self.budgets.ledger.as_ref(),
        }
    }

    /// What records decisions.
    #[inline]
    pub const fn audit(&self) -> Option<&Arc<Audit>> {
        self.audit.as_ref()
    }

    #[inline]
    pub(super) const fn fragments(&self) -> &Fragments {
        &self.fragments
    }

    pub(super) const fn has_obligations(&self) -> bool {
        self.any_marks.obligation
    }

    /// Whether a policy may read `context.budget`.
    #[inline]
    pub(super) const fn reads_budget(&self) -> bool {
        self.budgets.read
    }

    /// `Action::"call_model"`.
    pub(super) fn call_model(&self) -> &EntityUid {
        &self.call_model
    }

    /// `Action::"delegate"`.
    pub(super) fn delegate(&self) -> &EntityUid {
        &self.delegate
    }

    #[inline]
    pub(super) fn marks(&self, policy: u32) -> Marks {
        self.marks.get(policy as usize).copied().unwrap_or_default()
    }

    /// Marks that at least one policy has.
    pub(super) const fn any_marks(&self) -> Marks {
        self.any_marks
    }
}

fn next_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Only uniqueness matters; the state itself is published by the swap.
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Where nobody shares anything, what there is stays from one state of the gate to the next.
fn control_of(sources: &GateSources<'_>, before: Option<&GateState>) -> Result<Arc<Control>, PolicyErrors> {
    if let Some(control) = &sources.control {
        return Ok(Arc::clone(control));
    }
    if let Some(before) = before {
        return Ok(Arc::clone(&before.control));
    }
    Control::anonymous().map_err(|error| PolicyError::new(error.code(), error.to_string()).into())
}

fn reads_of(registry: &Registry, control: &Control) -> Result<Vec<u64>, PolicyErrors> {
    let mask = |tool: &Arc<Tool>| {
        if tool.reads().is_empty() {
            return Ok(0);
        }
        let names: Vec<&str> = tool.reads().iter().map(|label| &**label).collect();
        control.labels_mask(&names).map_err(|error| {
            let shown = super::names::shown(tool.name());
            PolicyErrors::from(PolicyError::new("tool.reads", format!("tool `{shown}`: {error}")))
        })
    };
    registry.tools().iter().map(mask).collect()
}

fn load_entities(sources: &GateSources<'_>, schema: Option<&Schema>) -> Result<Entities, PolicyErrors> {
    match (&sources.entities, schema) {
        (None, None) => Ok(Entities::empty()),
        // Without a document the schema's actions still take part.
        (entities, schema) => named(entities.as_ref().unwrap_or(&Source::unnamed("[]")), schema),
    }
}

fn named(source: &Source<'_>, schema: Option<&cedar_policy::Schema>) -> Result<Entities, PolicyErrors> {
    Entities::from_json(source.text, schema).map_err(|errors| {
        let named =
            errors.iter().cloned().map(|error| if error.file.is_none() { error.in_file(source.name) } else { error });
        PolicyErrors::from_parts(named, errors.omitted()).unwrap_or(errors.clone())
    })
}

/// Adds each tool's action below `call_tool`; an action that is there keeps its attributes, tags and parents.
fn with_actions(entities: &Entities, registry: &Registry) -> Result<Entities, PolicyErrors> {
    if registry.tools().is_empty() {
        return Ok(entities.clone());
    }
    let group = Arc::new(EntityUid::new("Action", CALL_TOOL));
    let actions = registry.tools().iter().map(|tool| {
        let mut action = EntityData::new(Arc::clone(tool.action()));
        if let Some(known) = entities.get(tool.action()) {
            action.attrs = known.attrs().to_vec();
            action.tags = known.tags().to_vec();
            action.parents = known.parents().map(Arc::clone).collect();
        }
        action.parents.push(Arc::clone(&group));
        action
    });
    // One layer instead of two: this is read at every check and made once.
    Ok(entities.update(actions.collect(), &[])?.compact())
}

/// Reads of forbids that may be absent and are not asked for.
pub(super) fn unguarded(set: &PolicySet, reads_budget: bool) -> Result<Vec<PolicyError>, PolicyError> {
    let mut supplied = SUPPLIED.to_vec();
    // Whether there is a budget, a unit and a window is to be asked; what a cell holds is known from there on.
    let cells = if reads_budget { budget_context::supplied() } else { Vec::new() };
    supplied.extend(cells.iter().map(|path| &path[..]));
    supplied.extend(cells.iter().filter_map(|path| path.get(..5)));
    guards::unguarded(set, &supplied)
}

fn check_guards(
    set: &PolicySet,
    rule: UnguardedForbid,
    reads_budget: bool,
    warnings: &mut Vec<String>,
) -> Result<(), PolicyErrors> {
    let found = unguarded(set, reads_budget)?;
    match rule {
        UnguardedForbid::Warn => warnings.extend(found.iter().map(ToString::to_string)),
        UnguardedForbid::Refuse => {
            if let Some(errors) = PolicyErrors::collect(found) {
                return Err(errors);
            }
        }
    }
    Ok(())
}

/// Annotations that mean something at the gate.
const KNOWN_ANNOTATIONS: [&str; 6] = ["id", "reason", "obligation", "mode", "approval", "durability"];

/// Whether a name was probably meant as a known one: the same but for case, or for one letter in a long name. What
/// means nothing would be ignored in silence, and `@Approval` would then allow without one.
fn close(name: &str, known: &str) -> bool {
    if name.eq_ignore_ascii_case(known) {
        return true;
    }
    let (name, known) = (name.to_ascii_lowercase(), known);
    let common = name.bytes().zip(known.bytes()).take_while(|(a, b)| a == b).count();
    let (rest, expected) = (name.get(common..).unwrap_or_default(), known.get(common..).unwrap_or_default());
    let without_first = |text: &str| text.get(1..).map(str::to_owned);
    known.len() >= 6
        && (without_first(rest).as_deref() == Some(expected)
            || without_first(expected).as_deref() == Some(rest)
            || without_first(rest).is_some_and(|a| without_first(expected).is_some_and(|b| a == b)))
}

/// Reads the annotations that mean something here. A meaning that cannot be kept is refused, not ignored.
fn read_marks(set: &PolicySet, audited: bool, warnings: &mut Vec<String>) -> Result<Vec<Marks>, PolicyErrors> {
    let mut errors: Vec<PolicyError> = Vec::new();
    let mut all = Vec::with_capacity(set.len());
    for (index, body) in (0_u32..).zip(set.policies()) {
        let mut marks = Marks::default();
        let refuse = |message: String| {
            let (file, line, column) = set.place(index);
            let mut error = PolicyError::new("policy.annotation", message).in_file(file);
            (error.line, error.column) = (line, column);
            error
        };
        match set.annotation(index, "mode") {
            None | Some("enforce") => {}
            Some("shadow") => marks.shadow = true,
            Some(_) => {
                errors.push(refuse(format!("policy `{}` has an unknown @mode; it is enforce or shadow", body.id)));
            }
        }
        if set.annotation(index, "approval").is_some() {
            marks.approval = true;
            if body.effect == Effect::Forbid {
                errors.push(refuse(format!("forbid `{}` has @approval, which only a permit can have", body.id)));
            }
        }
        for (name, _) in set.annotations(index) {
            let known = KNOWN_ANNOTATIONS.iter().find(|known| close(name, known));
            if let Some(known) = known.filter(|known| **known != &**name) {
                let (policy, shown) = (&body.id, super::names::shown(name));
                errors.push(refuse(format!("policy `{policy}` has @{shown}, which means nothing; is it @{known}?")));
            }
        }
        marks.obligation = set.annotation(index, "obligation").is_some();
        match set.annotation(index, "durability").map(Durability::parse) {
            None => {}
            Some(Some(class)) if audited || class == Durability::Group => marks.durability = class,
            Some(Some(_)) => {
                let mut error =
                    refuse(format!("policy `{}` has @durability, and this gate keeps no audit log", body.id));
                error.help = Some("add to tollkeeper.toml: [audit] dir = \"audit\"".to_owned());
                errors.push(error);
            }
            Some(None) => {
                let classes = Durability::ALL.map(Durability::name).join(", ");
                errors.push(refuse(format!("policy `{}` has an unknown @durability; it is one of {classes}", body.id)));
            }
        }
        all.push(marks);
    }
    for template in set.templates() {
        warnings.push(format!("template `{}` is not linked by a gate and decides nothing", template.id));
    }
    PolicyErrors::collect(errors).map_or(Ok(all), Err)
}
