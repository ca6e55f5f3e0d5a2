//! What a run may not do at all: forbids that come with it, compiled once when it starts.
//!
//! They are decided before the agent has read anything it did not write itself. They only take away: a permit among them
//! is refused, and they are evaluated after the gate's own policies, for every principal that the run acts for. Runs
//! inside and delegates inherit them.

use std::sync::Arc;

use serde_json::json;

use super::evidence::policy_fragments;
use super::state::{GateState, OnError};
use crate::audit::tree::{Hash, digest};
use crate::limits::RUN_FORBID_BYTES_MAX;
use crate::policy::error::{PolicyError, PolicyErrors};
use crate::policy::guards;
use crate::policy::parse::Source;
use crate::policy::set::{Ids, LoadOptions, PolicySet};
use crate::policy::tree::Effect;

/// The name that the policies of a run have before their number, where they have no `@id`.
const NAME: &str = "run";

/// The forbids of one run.
#[derive(Debug)]
pub struct Narrowing {
    set: PolicySet,
    digest: Hash,
    document: Vec<u8>,
    reads_budget: bool,
    /// By policy: id and digest, as entries name them
    fragments: Vec<Box<[u8]>>,
}

impl Narrowing {
    /// Compiles texts of forbids.
    ///
    /// # Errors
    /// [`PolicyErrors`]: one is not Cedar, is a permit, carries an annotation that means nothing here, or reads what may
    /// be absent without asking for it with `has`.
    pub fn compile(texts: &[String], state: &GateState) -> Result<Arc<Self>, PolicyErrors> {
        let bytes = texts.iter().map(String::len).fold(0, usize::saturating_add);
        if bytes > RUN_FORBID_BYTES_MAX {
            let message = format!("the forbids of the run have {bytes} bytes, the limit is {RUN_FORBID_BYTES_MAX}");
            return Err(PolicyError::new("scope.forbid", message).into());
        }
        let sources: Vec<Source<'_>> = texts.iter().map(|text| Source { name: Some(NAME), text }).collect();
        let set = PolicySet::load(&sources, None, LoadOptions { ids: Ids::Annotation, ..LoadOptions::default() })?;
        check(&set)?;
        // Nothing is known of the run's context but what every gate supplies: with or without a schema it has to ask.
        if state.on_error() == OnError::Deny {
            let found = guards::unguarded(&set, &super::state::SUPPLIED)?;
            if let Some(errors) = PolicyErrors::collect(found) {
                return Err(errors);
            }
        }
        let document = json!({ "forbid": texts }).to_string().into_bytes();
        let (reads_budget, fragments) = (set.may_read_context("budget"), policy_fragments(&set));
        Ok(Arc::new(Self { set, digest: digest(&document), document, reads_budget, fragments }))
    }

    /// The forbids.
    pub const fn set(&self) -> &PolicySet {
        &self.set
    }

    /// Whether one of them may read `context.budget`.
    pub(super) const fn reads_budget(&self) -> bool {
        self.reads_budget
    }

    pub(super) fn fragment(&self, policy: u32) -> Option<&[u8]> {
        self.fragments.get(policy as usize).map(|fragment| &**fragment)
    }

    /// The digest of [`Narrowing::document`], which entries name.
    pub const fn digest(&self) -> &Hash {
        &self.digest
    }

    /// The texts as JSON, to be kept beside the log.
    pub fn document(&self) -> &[u8] {
        &self.document
    }
}

fn check(set: &PolicySet) -> Result<(), PolicyErrors> {
    let mut errors = Vec::new();
    for (index, body) in (0_u32..).zip(set.policies()) {
        let mut refuse = |message: String, help: &str| {
            let (file, line, column) = set.place(index);
            let mut error = PolicyError::new("scope.forbid", message).in_file(file).help(help);
            (error.line, error.column) = (line, column);
            errors.push(error);
        };
        if body.effect == Effect::Permit {
            let message = format!("`{}` is a permit, and a run can only be narrowed", body.id);
            refuse(message, "write it as a forbid of everything else, or put it into the gate's own policies");
        }
        for (name, _) in set.annotations(index) {
            if !matches!(&**name, "id" | "reason") {
                let shown = super::names::shown(name);
                let message =
                    format!("`{}` has @{shown}, which means nothing on a forbid that comes with a run", body.id);
                refuse(message, "use @id and @reason only");
            }
        }
    }
    if set.policies().is_empty() && set.templates().is_empty() {
        errors.push(PolicyError::new("scope.forbid", "the forbids of the run hold no policy"));
    }
    if let Some(template) = set.templates().first() {
        errors
            .push(PolicyError::new("scope.forbid", format!("`{}` is a template, which forbids nothing", template.id)));
    }
    PolicyErrors::collect(errors).map_or(Ok(()), Err)
}
