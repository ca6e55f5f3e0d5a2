//! From the reference parser's syntax tree to [`Tree`]: the one module of the compiler that reads
//! `cedar-policy-core`'s types, which carry no stability promise (the crate is pinned exactly).
//!
//! Folds what is constant (literals, sets and records of literals, extension constructors), flattens `&&` and `||`,
//! and refuses nothing: whatever the reference parses has a meaning here. It recurses along operator chains, so it
//! runs on the parser thread only (see `parse`).

use std::sync::Arc;

use cedar_policy_core::ast;
use smallvec::SmallVec;

use super::extension::{self, ExtFn};
use super::like::{Pattern, PatternElement};
use super::tree::{
    ActionScope, Binary, Body, Effect, EntityRef, ExprId, Node, Scope, Span, Tree, Unary, Var, index_u32,
};
use crate::uid::EntityUid;
use crate::value::Val;

/// Lowers one template body (a static policy is a template without slots).
pub fn template(tree: &mut Tree, template: &ast::Template, source: u32) -> Body {
    let annotations: Vec<(Box<str>, Box<str>)> =
        template.annotations().map(|(key, value)| (key.as_ref().into(), value.val.as_str().into())).collect();
    Body {
        id: AsRef::<str>::as_ref(template.id()).into(),
        effect: match template.effect() {
            ast::Effect::Permit => Effect::Permit,
            ast::Effect::Forbid => Effect::Forbid,
        },
        principal: scope(template.principal_constraint().as_inner()),
        action: action_scope(template.action_constraint()),
        resource: scope(template.resource_constraint().as_inner()),
        condition: template.non_scope_constraints().map(|condition| expr(tree, condition)),
        annotations: annotations.into(),
        source,
        span: template.loc().map_or(Span::default(), span_of),
        template: None,
        slots: [None, None],
    }
}

/// The core's uid for a reference uid.
pub fn uid(reference: &ast::EntityUID) -> EntityUid {
    let id: &str = reference.eid().as_ref();
    EntityUid::new(&reference.entity_type().to_string(), id)
}

/// The reference's uid for one of the core's; `None` if its type is no type name.
pub fn reference_uid(uid: &EntityUid) -> Option<cedar_policy::EntityUid> {
    let ty = uid.ty().parse().ok()?;
    Some(cedar_policy::EntityUid::from_type_name_and_id(ty, cedar_policy::EntityId::new(uid.id())))
}

fn span_of(loc: &cedar_policy_core::parser::Loc) -> Span {
    Span { start: index_u32(loc.start()), end: index_u32(loc.end()) }
}

fn scope(constraint: &ast::PrincipalOrResourceConstraint) -> Scope {
    use ast::PrincipalOrResourceConstraint as C;
    let entity = |reference: &ast::EntityReference| match reference {
        ast::EntityReference::EUID(euid) => EntityRef::Uid(Arc::new(uid(euid))),
        ast::EntityReference::Slot(_) => EntityRef::Slot,
    };
    match constraint {
        C::Any => Scope::Any,
        C::Eq(reference) => Scope::Eq(entity(reference)),
        C::In(reference) => Scope::In(entity(reference)),
        C::Is(ty) => Scope::Is(ty.to_string().into()),
        C::IsIn(ty, reference) => Scope::IsIn(ty.to_string().into(), entity(reference)),
    }
}

fn action_scope(constraint: &ast::ActionConstraint) -> ActionScope {
    match constraint {
        ast::ActionConstraint::Any => ActionScope::Any,
        ast::ActionConstraint::Eq(euid) => ActionScope::Eq(Arc::new(uid(euid))),
        ast::ActionConstraint::In(euids) => ActionScope::In(euids.iter().map(|euid| Arc::new(uid(euid))).collect()),
    }
}

fn expr(tree: &mut Tree, from: &ast::Expr) -> ExprId {
    use ast::ExprKind as K;
    let span = from.source_loc().map_or(Span::default(), span_of);
    match from.expr_kind() {
        K::Lit(literal) => tree.push_const(literal_value(literal), span),
        K::Var(var) => tree.push(Node::Var(variable(*var)), span),
        K::If { test_expr, then_expr, else_expr } => {
            let (test, then, otherwise) = (expr(tree, test_expr), expr(tree, then_expr), expr(tree, else_expr));
            tree.push(Node::If(test, then, otherwise), span)
        }
        K::And { .. } | K::Or { .. } => chain(tree, from, span),
        K::UnaryApp { op, arg } => {
            let op = match op {
                ast::UnaryOp::Not => Unary::Not,
                ast::UnaryOp::Neg => Unary::Neg,
                ast::UnaryOp::IsEmpty => Unary::IsEmpty,
            };
            let arg = expr(tree, arg);
            tree.push(Node::Unary(op, arg), span)
        }
        K::BinaryApp { op, arg1, arg2 } => {
            let (left, right) = (expr(tree, arg1), expr(tree, arg2));
            tree.push(Node::Binary(binary(*op), left, right), span)
        }
        K::ExtensionFunctionApp { fn_name, args } => call(tree, &fn_name.to_string(), args, span),
        K::GetAttr { expr: inner, attr } => {
            let (inner, sym) = (expr(tree, inner), tree.intern(attr));
            tree.push(Node::Attr(inner, sym), span)
        }
        K::HasAttr { expr: inner, attr } => {
            let (inner, sym) = (expr(tree, inner), tree.intern(attr));
            let kids = tree.push_kids(&[sym]);
            tree.push(Node::Has(inner, kids), span)
        }
        K::ExtHasAttr { expr: inner, attrs } => {
            let inner = expr(tree, inner);
            let syms: SmallVec<[u32; 4]> = attrs.iter().map(|attr| tree.intern(attr)).collect();
            let kids = tree.push_kids(&syms);
            tree.push(Node::Has(inner, kids), span)
        }
        K::Like { expr: inner, pattern } => {
            let inner = expr(tree, inner);
            let pattern = tree.push_pattern(compile_pattern(pattern));
            tree.push(Node::Like(inner, pattern), span)
        }
        K::Is { expr: inner, entity_type } => {
            let (inner, sym) = (expr(tree, inner), tree.intern(&entity_type.to_string()));
            tree.push(Node::Is(inner, sym), span)
        }
        K::Set(items) => set(tree, items, span),
        K::Record(fields) => record(tree, fields, span),
        // Slots cannot stand in conditions and unknowns need a feature that is off: the parser yields neither. If a
        // new version ever does, the policy errs, which never allows.
        K::Slot(_) | K::Unknown(_) => tree.push(Node::BadCall(ExtFn::Decimal), span),
    }
}

/// Flattens a left- or right-nested chain of one operator without recursing along its left spine.
fn chain(tree: &mut Tree, from: &ast::Expr, span: Span) -> ExprId {
    use ast::ExprKind as K;
    let conjunction = matches!(from.expr_kind(), K::And { .. });
    let mut pending: Vec<&ast::Expr> = vec![from];
    let mut kids = Vec::new();
    while let Some(next) = pending.pop() {
        match next.expr_kind() {
            K::And { left, right } if conjunction => pending.extend([&**right, &**left]),
            K::Or { left, right } if !conjunction => pending.extend([&**right, &**left]),
            _ => kids.push(expr(tree, next)),
        }
    }
    let kids = tree.push_kids(&kids);
    tree.push(if conjunction { Node::And(kids) } else { Node::Or(kids) }, span)
}

fn call(tree: &mut Tree, name: &str, args: &[ast::Expr], span: Span) -> ExprId {
    let kids: Vec<ExprId> = args.iter().map(|arg| expr(tree, arg)).collect();
    let Some(function) = ExtFn::from_name(name) else {
        return tree.push(Node::BadCall(ExtFn::Decimal), span);
    };
    let constants: Option<Vec<Val>> = kids.iter().map(|kid| tree.as_const(*kid).cloned()).collect();
    if let Some(constants) = constants {
        return match extension::fold(function, &constants) {
            Ok(value) => tree.push_const(value, span),
            Err(_) => tree.push(Node::BadCall(function), span),
        };
    }
    let kids = tree.push_kids(&kids);
    tree.push(Node::Call(function, kids), span)
}

fn set(tree: &mut Tree, items: &[ast::Expr], span: Span) -> ExprId {
    let kids: Vec<ExprId> = items.iter().map(|item| expr(tree, item)).collect();
    let constants: Option<Vec<Val>> = kids.iter().map(|kid| tree.as_const(*kid).cloned()).collect();
    if let Some(constants) = constants {
        return tree.push_const(Val::set(constants), span);
    }
    let kids = tree.push_kids(&kids);
    tree.push(Node::Set(kids), span)
}

fn record(tree: &mut Tree, fields: &std::collections::BTreeMap<smol_str::SmolStr, ast::Expr>, span: Span) -> ExprId {
    let values: Vec<ExprId> = fields.values().map(|value| expr(tree, value)).collect();
    let constants: Option<Vec<(Box<str>, Val)>> = fields
        .keys()
        .zip(&values)
        .map(|(key, value)| tree.as_const(*value).map(|constant| (key.as_str().into(), constant.clone())))
        .collect();
    if let Some(constants) = constants {
        return tree.push_const(Val::record(constants), span);
    }
    let keys: Vec<u32> = fields.keys().map(|key| tree.intern(key)).collect();
    let (keys, values) = (tree.push_kids(&keys), tree.push_kids(&values));
    tree.push(Node::Record { keys, values }, span)
}

fn literal_value(literal: &ast::Literal) -> Val {
    match literal {
        ast::Literal::Bool(value) => Val::Bool(*value),
        ast::Literal::Long(value) => Val::Long(*value),
        ast::Literal::String(value) => Val::Str(value.as_str().into()),
        ast::Literal::EntityUID(value) => Val::Entity(Arc::new(uid(value))),
    }
}

const fn variable(var: ast::Var) -> Var {
    match var {
        ast::Var::Principal => Var::Principal,
        ast::Var::Action => Var::Action,
        ast::Var::Resource => Var::Resource,
        ast::Var::Context => Var::Context,
    }
}

const fn binary(op: ast::BinaryOp) -> Binary {
    match op {
        ast::BinaryOp::Eq => Binary::Eq,
        ast::BinaryOp::Less => Binary::Less,
        ast::BinaryOp::LessEq => Binary::LessEq,
        ast::BinaryOp::Add => Binary::Add,
        ast::BinaryOp::Sub => Binary::Sub,
        ast::BinaryOp::Mul => Binary::Mul,
        ast::BinaryOp::In => Binary::In,
        ast::BinaryOp::Contains => Binary::Contains,
        ast::BinaryOp::ContainsAll => Binary::ContainsAll,
        ast::BinaryOp::ContainsAny => Binary::ContainsAny,
        ast::BinaryOp::GetTag => Binary::GetTag,
        ast::BinaryOp::HasTag => Binary::HasTag,
    }
}

fn compile_pattern(pattern: &ast::Pattern) -> Pattern {
    Pattern::compile(pattern.iter().map(|element| match element {
        ast::PatternElem::Char(c) => PatternElement::Char(*c),
        ast::PatternElem::Wildcard => PatternElement::Wildcard,
    }))
}
