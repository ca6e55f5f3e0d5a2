//! Bounds on what a schema expands to, checked before the reference expands it.
//!
//! A schema of a few hundred bytes can name a record that doubles at every reference (`type A = {x: B, y: B};`), and
//! the reference inlines common types and closes hierarchies without a bound. This file counts the inlined size with
//! one memoised walk, and the steps of the closure by walking it, and refuses what exceeds [`crate::limits`]. It
//! reports nothing else: unknown names and cycles are left to the reference, which has better messages.

use std::collections::{HashMap, HashSet};

use cedar_policy_core::ast::Name;
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::RawName;
use cedar_policy_core::validator::json_schema::{EntityTypeKind, Fragment, Type, TypeVariant};

use super::error::{PolicyError, PolicyErrors};
use super::parse::{Source, explain_all};
use crate::limits;

/// Checks the size of the expanded schema. Must run on the parser thread.
pub(crate) fn check(source: &Source<'_>, json: bool) -> Result<(), PolicyErrors> {
    let fragment: Fragment<RawName> = if json {
        Fragment::from_json_str(source.text).map_err(|error| explain_all("schema.syntax", source, &error))?
    } else {
        let parsed = Fragment::from_cedarschema_str(source.text, Extensions::all_available());
        parsed.map(|(fragment, _warnings)| fragment).map_err(|error| explain_all("schema.syntax", source, &error))?
    };
    check_expansion(&fragment).and_then(|()| check_hierarchies(&fragment)).map_err(|e| e.in_file(source.name).into())
}

fn qualified(namespace: Option<&Name>, name: &str) -> String {
    namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}::{name}"))
}

/// A name as written resolves to the namespace it stands in if that declares it, otherwise to itself.
fn resolve<V>(declared: &HashMap<String, V>, namespace: Option<&Name>, written: &str) -> String {
    let local = qualified(namespace, written);
    if declared.contains_key(&local) { local } else { written.to_owned() }
}

struct Sizes<'f> {
    declared: HashMap<String, (Option<&'f Name>, &'f Type<RawName>)>,
    known: HashMap<String, usize>,
}

fn check_expansion(fragment: &Fragment<RawName>) -> Result<(), PolicyError> {
    let mut sizes = Sizes { declared: HashMap::new(), known: HashMap::new() };
    for (namespace, definition) in &fragment.0 {
        for (id, common) in &definition.common_types {
            sizes.declared.insert(qualified(namespace.as_ref(), &id.to_string()), (namespace.as_ref(), &common.ty));
        }
    }
    let mut total = 0_usize;
    for (namespace, definition) in &fragment.0 {
        let common = definition.common_types.values().map(|common| &common.ty);
        let entities = definition.entity_types.values().filter_map(|entity| match &entity.kind {
            EntityTypeKind::Standard(standard) => Some(std::iter::once(&standard.shape.0).chain(&standard.tags)),
            EntityTypeKind::Enum { .. } => None,
        });
        let contexts = definition.actions.values().filter_map(|action| action.applies_to.as_ref());
        for ty in common.chain(entities.flatten()).chain(contexts.map(|apply| &apply.context.0)) {
            total = total.saturating_add(sizes.of(namespace.as_ref(), ty, 0)?);
        }
    }
    if total <= limits::SCHEMA_EXPANDED_MAX {
        return Ok(());
    }
    let message = format!("schema expands to more than {} types", limits::SCHEMA_EXPANDED_MAX);
    Err(PolicyError::new("schema.too_large", message).help("types that refer to a type twice double its size"))
}

impl Sizes<'_> {
    /// Types in `ty` after inlining, saturating. `depth` counts references, so that the recursion is bounded.
    fn of(&mut self, namespace: Option<&Name>, ty: &Type<RawName>, depth: usize) -> Result<usize, PolicyError> {
        let variant = match ty {
            Type::CommonTypeRef { type_name, .. } => return self.of_reference(namespace, type_name, depth),
            Type::Type { ty, .. } => ty,
        };
        match variant {
            TypeVariant::EntityOrCommon { type_name } => self.of_reference(namespace, type_name, depth),
            TypeVariant::Set { element } => Ok(self.of(namespace, element, depth)?.saturating_add(1)),
            TypeVariant::Record(record) => record
                .attributes
                .values()
                .try_fold(1_usize, |sum, attribute| Ok(self.of(namespace, &attribute.ty, depth)?.saturating_add(sum))),
            _ => Ok(1),
        }
    }

    fn of_reference(&mut self, namespace: Option<&Name>, name: &RawName, depth: usize) -> Result<usize, PolicyError> {
        let name = resolve(&self.declared, namespace, &name.to_string());
        if let Some(size) = self.known.get(&name) {
            return Ok(*size);
        }
        let Some(&(namespace, ty)) = self.declared.get(&name) else { return Ok(1) };
        if depth >= limits::SCHEMA_TYPE_CHAIN_MAX {
            let message = format!("schema has a chain of more than {} types", limits::SCHEMA_TYPE_CHAIN_MAX);
            return Err(PolicyError::new("schema.too_deep", message).help("refer to the last type directly"));
        }
        // A cycle meets this entry and ends; the reference refuses it afterwards.
        self.known.insert(name.clone(), 1);
        let size = self.of(namespace, ty, depth.saturating_add(1))?;
        self.known.insert(name, size);
        Ok(size)
    }
}

fn check_hierarchies(fragment: &Fragment<RawName>) -> Result<(), PolicyError> {
    let mut parents: HashMap<String, Vec<String>> = HashMap::new();
    for (namespace, definition) in &fragment.0 {
        for (id, entity) in &definition.entity_types {
            let of: Vec<_> = match &entity.kind {
                EntityTypeKind::Standard(standard) => standard.member_of_types.iter().map(RawName::to_string).collect(),
                EntityTypeKind::Enum { .. } => Vec::new(),
            };
            parents.insert(qualified(namespace.as_ref(), id.as_ref()), of);
        }
        for (id, action) in &definition.actions {
            let of = action.member_of.iter().flatten().map(|parent| {
                let ty = parent.ty.as_ref().map_or_else(|| "Action".to_owned(), RawName::to_string);
                format!("{ty}::{:?}", parent.id)
            });
            parents.insert(qualified(namespace.as_ref(), &format!("Action::{id:?}")), of.collect());
        }
    }
    let mut steps = 0_usize;
    for (namespace, definition) in &fragment.0 {
        let entities = definition.entity_types.keys().map(ToString::to_string);
        for name in entities.chain(definition.actions.keys().map(|id| format!("Action::{id:?}"))) {
            steps = steps.saturating_add(closure_steps(&parents, namespace.as_ref(), &name));
            if steps > limits::SCHEMA_CLOSURE_MAX {
                let message = format!("schema hierarchy closes to more than {} steps", limits::SCHEMA_CLOSURE_MAX);
                return Err(PolicyError::new("schema.too_large", message).help("flatten the `in` chains"));
            }
        }
    }
    Ok(())
}

/// Edges on the way from one node to all its ancestors.
fn closure_steps(parents: &HashMap<String, Vec<String>>, namespace: Option<&Name>, name: &str) -> usize {
    let start = qualified(namespace, name);
    let (mut seen, mut open, mut steps) = (HashSet::from([start.clone()]), vec![start], 0_usize);
    while let Some(node) = open.pop() {
        for parent in parents.get(&node).into_iter().flatten() {
            steps = steps.saturating_add(1);
            if steps > limits::SCHEMA_CLOSURE_MAX {
                return steps;
            }
            let parent = resolve(parents, namespace, parent);
            if seen.insert(parent.clone()) {
                open.push(parent);
            }
        }
    }
    steps
}
