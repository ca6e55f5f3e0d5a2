//! Which policies a principal, an action and a resource match, whatever the context is.
//!
//! A head never errs, so what is said here is certain; of conditions it says only whether there are any.

use super::entities::Entities;
use super::eval::Request;
use super::index::Word;
use super::set::PolicySet;
use super::tree::{ActionScope, Effect, EntityRef, Scope};
use crate::uid::EntityUid;
use crate::value::Value;

/// A policy whose head matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Index of the policy
    pub policy: u32,
    /// What it does
    pub effect: Effect,
    /// Whether it has no condition: then it is satisfied in every context
    pub certain: bool,
}

impl PolicySet {
    /// The policies whose heads match, forbids first.
    pub fn heads(
        &self,
        [principal, action, resource]: [&EntityUid; 3],
        entities: &Entities,
    ) -> impl Iterator<Item = Head> {
        let mut words = Vec::new();
        let request = Request { principal, action, resource, context: Value::RecordTemp(&[]) };
        self.index.scope_words(&request, entities, &mut words);
        words.into_iter().flat_map(positions).filter_map(move |position| {
            let policy = self.order.get(position as usize).copied()?;
            let body = self.bodies.get(policy as usize)?;
            // The index may name more than match.
            let matches = scope_matches(&body.principal, principal, entities)
                && action_matches(&body.action, action, entities)
                && scope_matches(&body.resource, resource, entities);
            matches.then_some(Head { policy, effect: body.effect, certain: body.condition.is_none() })
        })
    }
}

fn positions(word: Word) -> impl Iterator<Item = u32> {
    (0..u64::BITS)
        .filter(move |bit| (word.bits >> bit) & 1 == 1)
        .map(move |bit| word.at.wrapping_mul(64).wrapping_add(bit))
}

/// Whether `uid` is `group` or in it.
pub(super) fn is_in(entities: &Entities, uid: &EntityUid, group: &EntityUid) -> bool {
    uid == group || entities.get(uid).is_some_and(|entity| entity.has_ancestor(group))
}

pub(super) fn scope_matches(scope: &Scope, uid: &EntityUid, entities: &Entities) -> bool {
    let within = |reference: &EntityRef| match reference {
        EntityRef::Uid(group) => is_in(entities, uid, group),
        EntityRef::Slot => false,
    };
    match scope {
        Scope::Any => true,
        Scope::Eq(EntityRef::Uid(own)) => **own == *uid,
        Scope::Eq(EntityRef::Slot) => false,
        Scope::In(reference) => within(reference),
        Scope::Is(ty) => **ty == *uid.ty(),
        Scope::IsIn(ty, reference) => **ty == *uid.ty() && within(reference),
    }
}

pub(super) fn action_matches(scope: &ActionScope, uid: &EntityUid, entities: &Entities) -> bool {
    match scope {
        ActionScope::Any => true,
        ActionScope::Eq(own) => **own == *uid,
        ActionScope::In(groups) => groups.iter().any(|group| is_in(entities, uid, group)),
    }
}
