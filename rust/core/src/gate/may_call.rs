//! Whether a run could call a tool at all: what a list of tools may leave out.
//!
//! No is said only where it is certain that a check denies whatever the arguments are: by heads of policies and by
//! forbids without a condition, never by conditions, budgets or revocations. Nothing is decided and nothing recorded;
//! who calls is checked all the same.

use super::Gate;
use super::scope::Scope;
use super::state::{GateMode, GateState};
use super::tools::Tool;
use crate::policy::entities::Entities;
use crate::policy::tree::Effect;
use crate::uid::EntityUid;

impl Gate {
    /// Whether a check of this tool in this scope may come out as allowed, for some arguments. False is certain as long
    /// as policies, entities, tools and the scope stay what they are; true is not.
    pub fn may_call(&self, scope: Option<&Scope>, tool: &str) -> bool {
        let state = &*self.state.load();
        let (Some(scope), Some(found)) = (scope, state.registry().get(tool)) else { return false };
        if state.withheld(tool).is_some() {
            return false;
        }
        // A principal that cannot be used denies everything.
        let Ok(entities) = scope.entities(state) else { return false };
        // In shadow mode nothing that policies or the run say denies.
        state.mode() == GateMode::Shadow
            || (scope.allows(tool)
                && scope.chain().all(|principal| {
                    may_be_permitted(state, principal, found, &entities)
                        && !is_forbidden_by_run(scope, principal, found, &entities)
                }))
    }
}

/// Whether a permit may apply and no forbid is sure to.
fn may_be_permitted(state: &GateState, principal: &EntityUid, tool: &Tool, entities: &Entities) -> bool {
    let mut permitted = false;
    let request = [principal, tool.action(), tool.resource()];
    for head in state.set().heads(request, entities).filter(|head| !state.marks(head.policy).shadow) {
        match head.effect {
            Effect::Forbid if head.certain => return false,
            Effect::Forbid => {}
            Effect::Permit => permitted = true,
        }
    }
    permitted
}

/// Whether a forbid that came with the run is sure to apply.
fn is_forbidden_by_run(scope: &Scope, principal: &EntityUid, tool: &Tool, entities: &Entities) -> bool {
    let request = [principal, tool.action(), tool.resource()];
    scope.narrowings().iter().any(|own| own.set().heads(request, entities).any(|head| head.certain))
}
