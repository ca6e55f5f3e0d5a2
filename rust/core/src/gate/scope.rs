//! Who is acting, in which session, narrowed to what.
//!
//! A scope is made when a run starts and is asked at every check. A scope inside another only narrows: its tools are
//! among the outer ones, the outer forbids hold in it, its budget is the outer one or below it, it ends no later, and
//! principal and session stay. Changing the principal takes an allowed `delegate` decision; from then on every
//! principal of the chain has to be allowed.

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::evidence::{ScopeFragments, Who};
use super::narrowing::Narrowing;
use super::payer::Payer;
use super::session::Session;
use super::standing::Standing;
use super::state::GateState;
use crate::audit::tree::Hash;
use crate::budget::clock::{Clock as _, SystemClock};
use crate::limits::{
    CHAIN_MAX, CONTROL_NAME_BYTES_MAX, RUN_FORBID_SETS_MAX, SESSION_LABELS_MAX, SESSION_TEXT_BYTES_MAX,
};
use crate::policy::entities::{Entities, EntityData};
use crate::policy::error::{PolicyError, PolicyErrors};
use crate::uid::EntityUid;
use crate::value::Val;

/// What a run may do of all that its principal may, and who pays for it.
#[derive(Debug, Clone, Default)]
pub struct Narrow {
    /// The only tools this run may call; `None` for no narrowing
    pub tools: Option<Vec<String>>,
    /// Texts of forbids that hold in this run, beside the gate's policies
    pub forbid: Vec<String>,
    /// What the session has seen, if the caller knows
    pub labels: Vec<String>,
    /// The path of the budget that pays; `None` for that of the run around it, or nobody
    pub budget: Option<String>,
    /// When the run's time is over, in milliseconds since 1970; `None` for that of the run around it, or never
    pub expires_ms: Option<i64>,
}

/// What a scope is made from.
#[derive(Debug)]
pub struct ScopeSpec {
    /// Who acts. With attributes, tags or parents it must not be in the entity snapshot as well
    pub principal: EntityData,
    /// Id of the session
    pub session: String,
    /// For whom the principal acts
    pub on_behalf_of: Option<EntityUid>,
    /// Its limits
    pub narrow: Narrow,
}

/// What a log says of who asked for something, for a decision that is made again.
#[derive(Debug, Default)]
pub struct RecordedScope {
    /// Everybody who had to be allowed, outermost first; the last one acted
    pub chain: Vec<EntityData>,
    /// Id of the session
    pub session: String,
    /// For whom the principal acted
    pub on_behalf_of: Option<EntityUid>,
    /// What the session had seen
    pub labels: Vec<String>,
    /// The only tools the run might call
    pub tools: Option<Vec<String>>,
    /// For each run that came with forbids their texts
    pub forbids: Vec<Vec<String>>,
    /// When the run's time was over, in milliseconds since 1970
    pub expires_ms: Option<i64>,
}

/// One principal of a chain.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) uid: Arc<EntityUid>,
    /// What the caller says about it, if anything
    pub(super) data: Option<EntityData>,
}

impl Member {
    fn new(principal: EntityData) -> Self {
        let EntityData { uid, attrs, tags, parents } = principal;
        let described = !(attrs.is_empty() && tags.is_empty() && parents.is_empty());
        Self { uid: Arc::clone(&uid), data: described.then_some(EntityData { uid, attrs, tags, parents }) }
    }
}

/// A run's identity and narrowing.
#[derive(Debug)]
pub struct Scope {
    /// Outermost first; the last one acts. Never empty
    chain: Vec<Member>,
    principal: Arc<EntityUid>,
    session: Arc<Session>,
    on_behalf_of: Option<Arc<EntityUid>>,
    /// Sorted
    tools: Option<Vec<Box<str>>>,
    narrowings: Vec<Arc<Narrowing>>,
    payer: Option<Payer>,
    /// `i64::MAX` for never
    expires_ms: i64,
    /// The same by the clock that nobody can set; `i64::MAX` for never
    expires_boot_ms: i64,
    standing: Arc<Standing>,
    run: u64,
    request: Option<Hash>,
    /// What it says in each entry of the audit log
    fragments: ScopeFragments,
    /// The entities with the principals in them, for the state they were made for
    resolved: ArcSwapOption<Resolved>,
}

#[derive(Debug)]
struct Resolved {
    generation: u64,
    entities: Entities,
}

/// When a time that lies ahead comes, by the clock that nobody can set. One that is past stays the wall clock's: who
/// decides again what was decided then passes the time of then.
fn boot_time_of(expires_ms: i64, now_ms: i64) -> i64 {
    match expires_ms.saturating_sub(now_ms) {
        left if left > 0 => SystemClock.boot_ms().saturating_add(left),
        _ => i64::MAX,
    }
}

impl Scope {
    /// Makes the scope of a run; `state` tells whether the principal is known already.
    pub fn new(spec: ScopeSpec, state: &GateState, now_ms: i64) -> Result<Self, PolicyErrors> {
        bounded("session id", &spec.session)?;
        revocable(&spec.principal.uid)?;
        let narrow = spec.narrow;
        let chain = vec![Member::new(spec.principal)];
        let narrowings = compiled(&[], &narrow.forbid, state)?;
        let session = Arc::new(Session::new(&spec.session, state.control()));
        let standing = standing(&chain, &session, state);
        let payer = narrow.budget.map(|path| Payer::new(&path, &standing, state)).transpose()?;
        let scope = Self {
            principal: principal_of(&chain)?,
            standing,
            chain,
            session,
            on_behalf_of: spec.on_behalf_of.map(Arc::new),
            tools: narrow.tools.map(|tools| sorted(&tools)),
            narrowings,
            payer,
            expires_ms: narrow.expires_ms.unwrap_or(i64::MAX),
            expires_boot_ms: narrow.expires_ms.map_or(i64::MAX, |expires_ms| boot_time_of(expires_ms, now_ms)),
            run: 0,
            request: None,
            fragments: ScopeFragments::default(),
            resolved: ArcSwapOption::empty(),
        };
        scope.resolve(state)?;
        scope.label(&narrow.labels, now_ms)?;
        Ok(scope.with_fragments())
    }

    /// The scope of a decision that is made again. Nobody pays in it, and its session neither has nor leaves anything
    /// that the host knows of.
    pub fn recorded(said: RecordedScope, state: &GateState) -> Result<Self, PolicyErrors> {
        let chain: Vec<Member> = said.chain.into_iter().map(Member::new).collect();
        let mut narrowings = Vec::new();
        for texts in &said.forbids {
            narrowings = compiled(&narrowings, texts, state)?;
        }
        let session = Arc::new(Session::recorded(&said.session, &said.labels, state.control()));
        let scope = Self {
            principal: principal_of(&chain)?,
            standing: standing(&chain, &session, state),
            chain,
            session,
            on_behalf_of: said.on_behalf_of.map(Arc::new),
            tools: said.tools.map(|tools| sorted(&tools)),
            narrowings,
            payer: None,
            expires_ms: said.expires_ms.unwrap_or(i64::MAX),
            // Of the time that is decided at, which is not the one that passes.
            expires_boot_ms: i64::MAX,
            run: 0,
            request: None,
            fragments: ScopeFragments::default(),
            resolved: ArcSwapOption::empty(),
        };
        scope.resolve(state)?;
        Ok(scope.with_fragments())
    }

    /// A scope inside this one: only the tools that both allow, this one's forbids and more, its budget or one below
    /// it. Labels are the session's, and so this one's too.
    pub fn narrowed(&self, narrow: &Narrow, state: &GateState, now_ms: i64) -> Result<Self, PolicyErrors> {
        self.inside(self.chain.clone(), narrow, state, now_ms)
    }

    /// A scope inside this one in which another principal acts, for this one's. It takes an allowed decision to use it.
    pub fn delegated(
        &self,
        to: EntityData,
        narrow: &Narrow,
        state: &GateState,
        now_ms: i64,
    ) -> Result<Self, PolicyErrors> {
        let mut chain = self.chain.clone();
        if chain.iter().any(|member| *member.uid == *to.uid) {
            let message = format!("{} is in the chain already, and nobody delegates to themselves", to.uid);
            return Err(PolicyError::new("scope.invalid", message).into());
        }
        revocable(&to.uid)?;
        if chain.len() >= CHAIN_MAX {
            let message = format!("the chain has {} principals already, the limit is {CHAIN_MAX}", chain.len());
            return Err(PolicyError::new("scope.invalid", message).into());
        }
        chain.push(Member::new(to));
        self.inside(chain, narrow, state, now_ms)
    }

    fn inside(
        &self,
        chain: Vec<Member>,
        narrow: &Narrow,
        state: &GateState,
        now_ms: i64,
    ) -> Result<Self, PolicyErrors> {
        let tools = match (&self.tools, &narrow.tools) {
            (None, None) => None,
            (Some(outer), None) => Some(outer.clone()),
            (None, Some(inner)) => Some(sorted(inner)),
            (Some(_), Some(inner)) => Some(sorted(inner).into_iter().filter(|name| self.allows(name)).collect()),
        };
        let same = chain.len() == self.chain.len();
        let standing = if same { Arc::clone(&self.standing) } else { standing(&chain, &self.session, state) };
        let scope = Self {
            principal: principal_of(&chain)?,
            payer: Payer::narrowed(self.payer.as_ref(), narrow.budget.as_deref(), &standing, state)?,
            standing,
            chain,
            session: Arc::clone(&self.session),
            on_behalf_of: self.on_behalf_of.clone(),
            tools,
            narrowings: compiled(&self.narrowings, &narrow.forbid, state)?,
            expires_ms: narrow.expires_ms.unwrap_or(i64::MAX).min(self.expires_ms),
            expires_boot_ms: narrow
                .expires_ms
                .map_or(i64::MAX, |expires_ms| boot_time_of(expires_ms, now_ms))
                .min(self.expires_boot_ms),
            run: self.run,
            request: self.request,
            fragments: ScopeFragments::default(),
            resolved: ArcSwapOption::new(self.resolved.load_full().filter(|_| same)),
        };
        if !same {
            scope.resolve(state)?;
        }
        scope.label(&narrow.labels, now_ms)?;
        Ok(scope.with_fragments())
    }

    fn label(&self, labels: &[String], now_ms: i64) -> Result<(), PolicyErrors> {
        labels.iter().try_for_each(|label| bounded("session label", label))?;
        if labels.len() > SESSION_LABELS_MAX {
            let message = format!("session has {} labels, the limit is {SESSION_LABELS_MAX}", labels.len());
            return Err(PolicyError::new("scope.invalid", message).into());
        }
        Ok(self.session.add_named(labels, now_ms)?)
    }

    /// The same as a run of its own: what the audit log calls it, and the commitment of what the user asked for.
    /// Without one that of the run around it stays.
    #[must_use]
    pub fn as_run(mut self, run: u64, request: Option<Hash>) -> Self {
        self.run = run;
        self.request = request.or(self.request);
        self.with_fragments()
    }

    fn with_fragments(mut self) -> Self {
        self.fragments = ScopeFragments::new(&Who {
            chain: &self.chain,
            on_behalf_of: self.on_behalf_of.as_deref(),
            session: self.session.id(),
            run: self.run,
            narrowings: &self.narrowings,
            request: self.request.as_ref(),
        });
        self
    }

    pub(super) const fn fragments(&self) -> &ScopeFragments {
        &self.fragments
    }

    /// What the audit log calls the run; 0 for nothing.
    pub const fn run(&self) -> u64 {
        self.run
    }

    /// The only tools it may call, sorted.
    pub fn tools(&self) -> Option<&[Box<str>]> {
        self.tools.as_deref()
    }

    /// The forbids that came with it and with the runs around it.
    pub fn narrowings(&self) -> &[Arc<Narrowing>] {
        &self.narrowings
    }

    /// Who acts.
    pub const fn principal(&self) -> &Arc<EntityUid> {
        &self.principal
    }

    /// Everybody who has to be allowed, outermost first; the last one acts.
    pub fn chain(&self) -> impl ExactSizeIterator<Item = &Arc<EntityUid>> {
        self.chain.iter().map(|member| &member.uid)
    }

    pub(super) fn members(&self) -> &[Member] {
        &self.chain
    }

    /// For whom.
    pub fn on_behalf_of(&self) -> Option<&EntityUid> {
        self.on_behalf_of.as_deref()
    }

    /// Id of the session.
    pub fn session(&self) -> &str {
        self.session.id()
    }

    pub(super) const fn session_ref(&self) -> &Arc<Session> {
        &self.session
    }

    /// What the session has seen by now: a set of texts.
    pub fn labels(&self) -> Val {
        self.session.seen(SystemClock.wall_ms()).labels.clone()
    }

    /// Whether those who act may act at all.
    pub const fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    /// Whether the run's time is over: by the wall clock, or by how long it has lasted, since the wall clock can be set
    /// back.
    #[inline]
    pub fn is_over(&self, now_ms: i64) -> bool {
        now_ms >= self.expires_ms || (self.expires_boot_ms != i64::MAX && SystemClock.boot_ms() >= self.expires_boot_ms)
    }

    /// When it is over; `i64::MAX` for never.
    pub const fn expires_ms(&self) -> i64 {
        self.expires_ms
    }

    /// The budget that pays.
    pub fn budget(&self) -> Option<&str> {
        self.payer.as_ref().map(Payer::path)
    }

    pub(super) const fn payer(&self) -> Option<&Payer> {
        self.payer.as_ref()
    }

    /// Whether the run was narrowed to tools that include this one, or not narrowed.
    #[inline]
    pub fn allows(&self, tool: &str) -> bool {
        self.tools.as_ref().is_none_or(|tools| tools.binary_search_by(|name| (**name).cmp(tool)).is_ok())
    }

    /// The state's entities with the principals in them. Made once per state and kept; a reload makes the next check of
    /// each run pay for it.
    pub(super) fn entities<'s>(&self, state: &'s GateState) -> Result<Cow<'s, Entities>, PolicyErrors> {
        if self.chain.iter().all(|member| member.data.is_none()) {
            return Ok(Cow::Borrowed(state.entities()));
        }
        if let Some(resolved) = &*self.resolved.load()
            && resolved.generation == state.generation()
        {
            return Ok(Cow::Owned(resolved.entities.clone()));
        }
        self.resolve(state).map(Cow::Owned)
    }

    fn resolve(&self, state: &GateState) -> Result<Entities, PolicyErrors> {
        let described: Vec<EntityData> = self.chain.iter().filter_map(|member| member.data.clone()).collect();
        if described.is_empty() {
            return Ok(state.entities().clone());
        }
        if let Some(known) = described.iter().find(|data| state.entities().get(&data.uid).is_some()) {
            let message = format!("principal {} is in the entity snapshot and described by the run", known.uid);
            let help = "leave out the run's attributes, tags and parents, or remove the entity";
            return Err(PolicyError::new("scope.invalid", message).help(help).into());
        }
        let entities = state.entities().with_additional(described)?;
        let resolved = Resolved { generation: state.generation(), entities: entities.clone() };
        self.resolved.store(Some(Arc::new(resolved)));
        Ok(entities)
    }
}

fn principal_of(chain: &[Member]) -> Result<Arc<EntityUid>, PolicyErrors> {
    let none = || PolicyErrors::from(PolicyError::new("scope.invalid", "a run needs a principal"));
    chain.last().map(|member| Arc::clone(&member.uid)).ok_or_else(none)
}

fn standing(chain: &[Member], session: &Session, state: &GateState) -> Arc<Standing> {
    let principals = chain.iter().map(|member| member.uid.to_string().into()).collect();
    Arc::new(Standing::new(state.control(), principals, session.id()))
}

/// The forbids of the runs around it and those of this one.
fn compiled(
    outer: &[Arc<Narrowing>],
    texts: &[String],
    state: &GateState,
) -> Result<Vec<Arc<Narrowing>>, PolicyErrors> {
    let mut all = outer.to_vec();
    if !texts.is_empty() {
        all.push(Narrowing::compile(texts, state)?);
    }
    if all.len() > RUN_FORBID_SETS_MAX {
        let message = format!("{} runs inside one another have forbids, the limit is {RUN_FORBID_SETS_MAX}", all.len());
        return Err(PolicyError::new("scope.forbid", message).into());
    }
    Ok(all)
}

fn sorted(tools: &[String]) -> Vec<Box<str>> {
    let mut tools: Vec<Box<str>> = tools.iter().map(|name| name.as_str().into()).collect();
    tools.sort_unstable();
    tools.dedup();
    tools
}

/// Whoever may act can also be revoked, by a name that the table has room for.
fn revocable(principal: &EntityUid) -> Result<(), PolicyErrors> {
    let bytes = principal.to_string().len();
    if bytes > CONTROL_NAME_BYTES_MAX {
        let message = format!("the principal's uid has {bytes} bytes, the limit is {CONTROL_NAME_BYTES_MAX}");
        return Err(PolicyError::new("scope.invalid", message).into());
    }
    Ok(())
}

fn bounded(what: &str, text: &str) -> Result<(), PolicyErrors> {
    if text.len() > SESSION_TEXT_BYTES_MAX {
        let message = format!("{what} has {} bytes, the limit is {SESSION_TEXT_BYTES_MAX}", text.len());
        return Err(PolicyError::new("scope.invalid", message).into());
    }
    Ok(())
}
