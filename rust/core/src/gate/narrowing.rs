//! What a run may not do at all: forbids that come with it, compiled once when it starts.
//!
//! They are decided before the agent has read anything it did not write itself. They only take away: a permit among
//! them is refused, and they are evaluated after the gate's own policies, for every principal that the run acts for.
//! Runs inside and delegates inherit them.

use std::sync::Arc;

use serde_json::json;

use super::evidence::policy_fragments;
use super::state::{GateState, OnError, unguarded};
use crate::audit::tree::{Hash, digest};
use crate::limits::RUN_FORBID_BYTES_MAX;
use crate::policy::error::{PolicyError, PolicyErrors};
use crate::policy::parse::Source;
use crate::policy::set::{Ids, LoadOptions, PolicySet};
use crate::policy::tree::Effect;

/// The name that the first text of a run has, and its policies before their number where they have no `@id`.
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
    /// [`PolicyErrors`]: one is not Cedar, is a permit, carries an annotation that means nothing here, or reads what
    /// may be absent without asking for it with `has`; or, where the gate has a schema, does not follow it.
    pub fn compile(texts: &[String], state: &GateState) -> Result<Arc<Self>, PolicyErrors> {
        let bytes = texts.iter().map(String::len).fold(0, usize::saturating_add);
        if bytes > RUN_FORBID_BYTES_MAX {
            let message = format!("the forbids of the run have {bytes} bytes, the limit is {RUN_FORBID_BYTES_MAX}");
            return Err(PolicyError::new("scope.forbid", message).into());
        }
        let names: Vec<String> = (0..texts.len()).map(name_of).collect();
        let sources: Vec<Source<'_>> =
            names.iter().zip(texts).map(|(name, text)| Source { name: Some(name), text }).collect();
        let options = LoadOptions { ids: Ids::Annotation, ..LoadOptions::default() };
        let set = PolicySet::load_against(&sources, state.schema(), options)?;
        check(&set)?;
        let (reads_budget, fragments) = (set.may_read_context("budget"), policy_fragments(&set));
        // What a schema says is there need not be asked for; without one only what every gate supplies is known.
        if state.schema().is_none() && state.on_error() == OnError::Deny {
            let found = unguarded(&set, reads_budget)?;
            if let Some(errors) = PolicyErrors::collect(found) {
                return Err(errors);
            }
        }
        let document = json!({ "forbid": texts }).to_string().into_bytes();
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

/// What errors and ids call a text of the run.
fn name_of(number: usize) -> String {
    if number == 0 { NAME.to_owned() } else { format!("{NAME}{}", number.saturating_add(1)) }
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
