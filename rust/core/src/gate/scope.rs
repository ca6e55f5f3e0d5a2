//! Who is acting, in which session, narrowed to what.
//!
//! A scope is made when a run starts and is asked at every check. A scope inside another only narrows: its tools are
//! among the outer ones, its labels include the outer ones, its budget is the outer one or below it, and principal and
//! session stay. Changing the principal
//! takes a `delegate` decision, which this room does not have yet.

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::evidence::{ScopeFragments, Who};
use super::payer::Payer;
use super::state::GateState;
use crate::audit::tree::Hash;
use crate::limits::{SESSION_LABELS_MAX, SESSION_TEXT_BYTES_MAX};
use crate::policy::entities::{Entities, EntityData};
use crate::policy::error::{PolicyError, PolicyErrors};
use crate::uid::EntityUid;
use crate::value::Val;

/// What a scope is made from.
#[derive(Debug)]
pub struct ScopeSpec {
    /// Who acts. With attributes, tags or parents it must not be in the entity snapshot as well
    pub principal: EntityData,
    /// Id of the session
    pub session: String,
    /// What the session has seen, if the caller knows
    pub labels: Vec<String>,
    /// For whom the principal acts
    pub on_behalf_of: Option<EntityUid>,
    /// The only tools this run may call; `None` for no narrowing
    pub tools: Option<Vec<String>>,
    /// The path of the budget that pays; `None` for a run that nobody pays for
    pub budget: Option<String>,
}

/// A run's identity and narrowing.
#[derive(Debug)]
pub struct Scope {
    principal: Arc<EntityUid>,
    /// What the caller says about the principal, if anything
    data: Option<EntityData>,
    session: Box<str>,
    /// A set of texts
    labels: Val,
    on_behalf_of: Option<Arc<EntityUid>>,
    /// Sorted
    tools: Option<Vec<Box<str>>>,
    payer: Option<Payer>,
    run: u64,
    request: Option<Hash>,
    /// What it says in each entry of the audit log
    fragments: ScopeFragments,
    /// The entities with the principal in them, for the state they were made for
    resolved: ArcSwapOption<Resolved>,
}

#[derive(Debug)]
struct Resolved {
    generation: u64,
    entities: Entities,
}

impl Scope {
    /// Makes the scope of a run; `state` tells whether the principal is known already.
    pub fn new(spec: ScopeSpec, state: &GateState) -> Result<Self, PolicyErrors> {
        bounded("session id", &spec.session)?;
        let labels = union(&[], &spec.labels)?;
        let EntityData { uid, attrs, tags, parents } = spec.principal;
        let described = !(attrs.is_empty() && tags.is_empty() && parents.is_empty());
        let scope = Self {
            principal: Arc::clone(&uid),
            data: described.then_some(EntityData { uid, attrs, tags, parents }),
            session: spec.session.into(),
            labels,
            on_behalf_of: spec.on_behalf_of.map(Arc::new),
            tools: spec.tools.map(|tools| sorted(&tools)),
            payer: spec.budget.map(|path| Payer::new(&path, state)).transpose()?,
            run: 0,
            request: None,
            fragments: ScopeFragments::default(),
            resolved: ArcSwapOption::empty(),
        };
        scope.resolve(state)?;
        Ok(scope.with_fragments())
    }

    /// A scope inside this one: only the tools that both allow, this one's labels and more, its budget or one below it.
    pub fn narrowed(
        &self,
        tools: Option<&[String]>,
        labels: &[String],
        budget: Option<&str>,
        state: &GateState,
    ) -> Result<Self, PolicyErrors> {
        let own: &[Val] = if let Val::Set(own) = &self.labels { own } else { &[] };
        let tools = match (&self.tools, tools) {
            (None, None) => None,
            (Some(outer), None) => Some(outer.clone()),
            (None, Some(inner)) => Some(sorted(inner)),
            (Some(_), Some(inner)) => Some(sorted(inner).into_iter().filter(|name| self.allows(name)).collect()),
        };
        Ok(Self {
            principal: Arc::clone(&self.principal),
            data: self.data.clone(),
            session: self.session.clone(),
            labels: union(own, labels)?,
            on_behalf_of: self.on_behalf_of.clone(),
            tools,
            payer: Payer::narrowed(self.payer.as_ref(), budget, state)?,
            run: self.run,
            request: self.request,
            fragments: ScopeFragments::default(),
            resolved: ArcSwapOption::new(self.resolved.load_full()),
        }
        .with_fragments())
    }

    /// The same as a run of its own: what the audit log calls it, and the commitment of what the user asked for. Without
    /// one that of the run around it stays.
    #[must_use]
    pub fn as_run(mut self, run: u64, request: Option<Hash>) -> Self {
        self.run = run;
        self.request = request.or(self.request);
        self.with_fragments()
    }

    fn with_fragments(mut self) -> Self {
        self.fragments = ScopeFragments::new(&Who {
            principal: &self.principal,
            on_behalf_of: self.on_behalf_of.as_deref(),
            session: &self.session,
            run: self.run,
            request: self.request.as_ref(),
            labels: &self.labels,
            data: self.data.as_ref(),
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

    /// Who acts.
    pub const fn principal(&self) -> &Arc<EntityUid> {
        &self.principal
    }

    /// For whom.
    pub fn on_behalf_of(&self) -> Option<&EntityUid> {
        self.on_behalf_of.as_deref()
    }

    /// Id of the session.
    pub const fn session(&self) -> &str {
        &self.session
    }

    /// What the session has seen: a set of texts.
    pub const fn labels(&self) -> &Val {
        &self.labels
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

    /// The state's entities with the principal in them. Made once per state and kept; a reload makes the next check of
    /// each run pay for it.
    pub(super) fn entities<'s>(&self, state: &'s GateState) -> Result<Cow<'s, Entities>, PolicyErrors> {
        if self.data.is_none() {
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
        let Some(data) = &self.data else { return Ok(state.entities().clone()) };
        if state.entities().get(&self.principal).is_some() {
            let message = format!("principal {} is in the entity snapshot and described by the run", self.principal);
            let help = "leave out the run's attributes, tags and parents, or remove the entity";
            return Err(PolicyError::new("scope.invalid", message).help(help).into());
        }
        let entities = state.entities().with_additional(vec![data.clone()])?;
        let resolved = Resolved { generation: state.generation(), entities: entities.clone() };
        self.resolved.store(Some(Arc::new(resolved)));
        Ok(entities)
    }
}

fn sorted(tools: &[String]) -> Vec<Box<str>> {
    let mut tools: Vec<Box<str>> = tools.iter().map(|name| name.as_str().into()).collect();
    tools.sort_unstable();
    tools.dedup();
    tools
}

fn bounded(what: &str, text: &str) -> Result<(), PolicyErrors> {
    if text.len() > SESSION_TEXT_BYTES_MAX {
        let message = format!("{what} has {} bytes, the limit is {SESSION_TEXT_BYTES_MAX}", text.len());
        return Err(PolicyError::new("scope.invalid", message).into());
    }
    Ok(())
}

fn union(own: &[Val], more: &[String]) -> Result<Val, PolicyErrors> {
    more.iter().try_for_each(|label| bounded("session label", label))?;
    let all: Vec<Val> = own.iter().cloned().chain(more.iter().map(|label| Val::Str(label.as_str().into()))).collect();
    let all = Val::set(all);
    if let Val::Set(items) = &all
        && items.len() > SESSION_LABELS_MAX
    {
        let message = format!("session has {} labels, the limit is {SESSION_LABELS_MAX}", items.len());
        return Err(PolicyError::new("scope.invalid", message).into());
    }
    Ok(all)
}
