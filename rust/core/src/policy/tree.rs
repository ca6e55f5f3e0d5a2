//! The expression tree of a policy set: one flat arena, no pointers, so nothing recurses when it is dropped.
//!
//! `lower` fills it from the reference parser's syntax tree, `compile` turns it into the program, `explain` reads it
//! back in words. It holds no behaviour of its own beyond interning and a few questions about shapes.

use std::sync::Arc;

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::extension::ExtFn;
use super::like::Pattern;
use crate::uid::{EntityUid, hash_text};
use crate::value::Val;

/// Index of a node in [`Tree`].
pub type ExprId = u32;
/// Index of an interned text (attribute name or entity type).
pub type Sym = u32;

/// Byte range in the source text of the policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte
    pub start: u32,
    /// One past the last byte
    pub end: u32,
}

/// The four request variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Var {
    /// Who asks
    Principal,
    /// What is to be done
    Action,
    /// On what
    Resource,
    /// With which arguments, in which circumstances
    Context,
}

impl Var {
    /// The word in Cedar text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Principal => "principal",
            Self::Action => "action",
            Self::Resource => "resource",
            Self::Context => "context",
        }
    }
}

/// Operators with two operands, both always evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// `==`
    Eq,
    /// `<`
    Less,
    /// `<=`
    LessEq,
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `in`
    In,
    /// `.contains()`
    Contains,
    /// `.containsAll()`
    ContainsAll,
    /// `.containsAny()`
    ContainsAny,
    /// `.getTag()`
    GetTag,
    /// `.hasTag()`
    HasTag,
}

/// Operators with one operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unary {
    /// `!`
    Not,
    /// `-`
    Neg,
    /// `.isEmpty()`
    IsEmpty,
}

/// A run of entries in [`Tree::kids`].
#[derive(Debug, Clone, Copy)]
pub struct Kids {
    first: u32,
    len: u32,
}

/// One expression.
#[derive(Debug, Clone, Copy)]
pub enum Node {
    /// Index into the constants
    Const(u32),
    /// A request variable
    Var(Var),
    /// `if a then b else c`
    If(ExprId, ExprId, ExprId),
    /// `a && b && ...`, flattened, evaluated left to right
    And(Kids),
    /// `a || b || ...`, flattened, evaluated left to right
    Or(Kids),
    /// One operand
    Unary(Unary, ExprId),
    /// Two operands
    Binary(Binary, ExprId, ExprId),
    /// Extension function or method
    Call(ExtFn, Kids),
    /// `a.b` and `a["b"]`
    Attr(ExprId, Sym),
    /// `a has b` and `a has b.c.d`: the kids are symbols
    Has(ExprId, Kids),
    /// `a like "pattern"`: index into the patterns
    Like(ExprId, u32),
    /// `a is T`
    Is(ExprId, Sym),
    /// `[a, b]` with at least one element that is not constant
    Set(Kids),
    /// `{k: a}` with at least one value that is not constant; keys are symbols, same length as the values
    Record {
        /// Symbols
        keys: Kids,
        /// Expressions
        values: Kids,
    },
    /// A constructor call on a constant that always errs, such as `decimal("x")`
    BadCall(ExtFn),
}

/// All expressions of one policy set.
#[derive(Debug, Default)]
pub struct Tree {
    nodes: Vec<Node>,
    spans: Vec<Span>,
    kids: Vec<u32>,
    consts: Vec<Val>,
    patterns: Vec<Pattern>,
    texts: Interner,
}

impl Tree {
    /// Adds a node.
    pub fn push(&mut self, node: Node, span: Span) -> ExprId {
        let id = index_u32(self.nodes.len());
        self.nodes.push(node);
        self.spans.push(span);
        id
    }

    /// Adds a run of kids.
    pub fn push_kids(&mut self, ids: &[u32]) -> Kids {
        let first = index_u32(self.kids.len());
        self.kids.extend_from_slice(ids);
        Kids { first, len: index_u32(ids.len()) }
    }

    /// Adds a constant node.
    pub fn push_const(&mut self, value: Val, span: Span) -> ExprId {
        let index = index_u32(self.consts.len());
        self.consts.push(value);
        self.push(Node::Const(index), span)
    }

    /// Adds a constant without a node.
    pub fn add_const(&mut self, value: Val) -> u32 {
        let index = index_u32(self.consts.len());
        self.consts.push(value);
        index
    }

    /// Adds a pattern.
    pub fn push_pattern(&mut self, pattern: Pattern) -> u32 {
        let index = index_u32(self.patterns.len());
        self.patterns.push(pattern);
        index
    }

    /// Interns a text.
    pub fn intern(&mut self, text: &str) -> Sym {
        self.texts.intern(text)
    }

    /// The node.
    pub fn node(&self, id: ExprId) -> Node {
        // An id only ever comes from `push`; the fallback would be an always-erring expression, never an allow.
        self.nodes.get(id as usize).copied().unwrap_or(Node::BadCall(ExtFn::Decimal))
    }

    /// Where the node stands in its source.
    pub fn span(&self, id: ExprId) -> Span {
        self.spans.get(id as usize).copied().unwrap_or_default()
    }

    /// The kids of a run.
    pub fn kids(&self, kids: Kids) -> &[u32] {
        let first = kids.first as usize;
        self.kids.get(first..first.saturating_add(kids.len as usize)).unwrap_or_default()
    }

    /// A constant.
    #[inline]
    pub fn constant(&self, index: u32) -> &Val {
        const FALSE: Val = Val::Bool(false);
        self.consts.get(index as usize).unwrap_or(&FALSE)
    }

    /// The constant of a node, if it is one.
    pub fn as_const(&self, id: ExprId) -> Option<&Val> {
        match self.node(id) {
            Node::Const(index) => Some(self.constant(index)),
            _ => None,
        }
    }

    /// A pattern.
    #[inline]
    pub fn pattern(&self, index: u32) -> Option<&Pattern> {
        self.patterns.get(index as usize)
    }

    /// An interned text.
    #[inline]
    pub fn text(&self, sym: Sym) -> &str {
        self.texts.get(sym)
    }

    /// If the expression is a variable followed by attribute accesses only: the variable and the attributes.
    pub fn as_path(&self, id: ExprId) -> Option<(Var, SmallVec<[Sym; 4]>)> {
        let mut attrs: SmallVec<[Sym; 4]> = SmallVec::new();
        let mut at = id;
        loop {
            match self.node(at) {
                Node::Attr(inner, sym) => {
                    attrs.push(sym);
                    at = inner;
                }
                Node::Var(var) => {
                    attrs.reverse();
                    return Some((var, attrs));
                }
                _ => return None,
            }
        }
    }

    /// Whether any expression may read this attribute of the context. Where the context is used as a whole it may.
    pub fn may_read_context(&self, attribute: &str) -> bool {
        let mut contexts: usize = 0;
        let mut bases = std::collections::HashSet::new();
        for node in &self.nodes {
            let (base, first) = match *node {
                Node::Var(Var::Context) => {
                    contexts = contexts.saturating_add(1);
                    continue;
                }
                Node::Attr(base, sym) => (base, Some(sym)),
                Node::Has(base, syms) => (base, self.kids(syms).first().copied()),
                _ => continue,
            };
            if matches!(self.node(base), Node::Var(Var::Context)) {
                if first.is_some_and(|sym| self.text(sym) == attribute) {
                    return true;
                }
                bases.insert(base);
            }
        }
        contexts > bases.len()
    }

    /// Approximate heap bytes.
    pub fn memory_bytes(&self) -> usize {
        let per_node = size_of::<Node>().saturating_add(size_of::<Span>());
        self.nodes
            .capacity()
            .saturating_mul(per_node)
            .saturating_add(self.kids.capacity().saturating_mul(4))
            .saturating_add(self.consts.capacity().saturating_mul(size_of::<Val>().saturating_add(24)))
            .saturating_add(self.patterns.capacity().saturating_mul(size_of::<Pattern>()))
            .saturating_add(self.texts.texts.iter().map(|text| text.len().saturating_add(24)).sum())
    }

    /// Gives back what the growth of the buffers reserved.
    pub fn shrink(&mut self) {
        self.nodes.shrink_to_fit();
        self.spans.shrink_to_fit();
        self.kids.shrink_to_fit();
        self.consts.shrink_to_fit();
        self.patterns.shrink_to_fit();
        self.texts.texts.shrink_to_fit();
    }
}

/// Indices of the arena fit u32: a policy set has at most 16 MiB of text and every node needs a byte of it.
pub fn index_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Text to small numbers, append only.
#[derive(Debug, Default)]
pub struct Interner {
    texts: Vec<Box<str>>,
    table: HashTable<Sym>,
}

impl Interner {
    /// The number of `text`, new if it was not there.
    pub fn intern(&mut self, text: &str) -> Sym {
        let hash = hash_text(text);
        let texts = &self.texts;
        if let Some(sym) = self.table.find(hash, |sym| texts.get(*sym as usize).is_some_and(|t| **t == *text)) {
            return *sym;
        }
        let sym = index_u32(self.texts.len());
        self.texts.push(text.into());
        let texts = &self.texts;
        self.table.insert_unique(hash, sym, |sym| texts.get(*sym as usize).map_or(0, |t| hash_text(t)));
        sym
    }

    /// The text of a number.
    #[inline]
    pub fn get(&self, sym: Sym) -> &str {
        self.texts.get(sym as usize).map_or("", |text| text)
    }
}

/// `permit` or `forbid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Allows when satisfied and nothing forbids
    Permit,
    /// Denies when satisfied
    Forbid,
}

/// A scope constraint on principal or resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// No constraint
    Any,
    /// `== uid`
    Eq(EntityRef),
    /// `in uid`
    In(EntityRef),
    /// `is T`
    Is(Box<str>),
    /// `is T in uid`
    IsIn(Box<str>, EntityRef),
}

/// An entity in a scope: given, or a template's slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntityRef {
    /// A literal
    Uid(Arc<EntityUid>),
    /// `?principal` or `?resource`
    Slot,
}

impl Scope {
    /// Whether a slot stands in it.
    pub const fn has_slot(&self) -> bool {
        matches!(self, Self::Eq(EntityRef::Slot) | Self::In(EntityRef::Slot) | Self::IsIn(_, EntityRef::Slot))
    }

    /// The same scope with its slot filled.
    #[must_use]
    pub fn filled(&self, uid: &Arc<EntityUid>) -> Self {
        let fill = |entity: &EntityRef| match entity {
            EntityRef::Slot => EntityRef::Uid(Arc::clone(uid)),
            EntityRef::Uid(own) => EntityRef::Uid(Arc::clone(own)),
        };
        match self {
            Self::Any => Self::Any,
            Self::Eq(entity) => Self::Eq(fill(entity)),
            Self::In(entity) => Self::In(fill(entity)),
            Self::Is(ty) => Self::Is(ty.clone()),
            Self::IsIn(ty, entity) => Self::IsIn(ty.clone(), fill(entity)),
        }
    }
}

/// A scope constraint on the action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActionScope {
    /// No constraint
    Any,
    /// `== uid`
    Eq(Arc<EntityUid>),
    /// `in uid` and `in [uid, ...]`
    In(Box<[Arc<EntityUid>]>),
}

/// One static policy, link or template, before compilation.
#[derive(Debug, Clone)]
pub struct Body {
    /// Its id in the set
    pub id: Box<str>,
    /// permit or forbid
    pub effect: Effect,
    /// Constraint on the principal
    pub principal: Scope,
    /// Constraint on the action
    pub action: ActionScope,
    /// Constraint on the resource
    pub resource: Scope,
    /// All `when` and negated `unless` clauses, in order, as one conjunction
    pub condition: Option<ExprId>,
    /// In the order of their names
    pub annotations: Arc<[(Box<str>, Box<str>)]>,
    /// Which source file, as an index into the set's sources
    pub source: u32,
    /// Where in it
    pub span: Span,
    /// For a link: the id of its template
    pub template: Option<Box<str>>,
    /// For a link: the values of `?principal` and `?resource`
    pub slots: [Option<Arc<EntityUid>>; 2],
}
