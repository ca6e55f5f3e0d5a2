//! Finds forbids that err, and so do not forbid, when something they read is absent.
//!
//! In Cedar a policy that errs counts as unsatisfied. A forbid that reads `context.input.path` without asking
//! `context.input has path` first therefore stops forbidding as soon as a caller leaves the argument out. This analysis
//! demands that every attribute and tag a forbid reads is known to exist at that point: because a `has` or `hasTag` on
//! every way to it was true, or because whoever builds the request always supplies it.
//!
//! It is flow-sensitive the way the evaluator is: left to right, with what each sub-expression has established if it
//! came out true and if it came out false (the occurrence typing of Tobin-Hochstadt and Felleisen, 2008; Cedar's own
//! validator does the same with "capabilities"). Conditions are pure, so what is established stays so.
//!
//! It does not look at types: operands of the wrong type, arithmetic that overflows and texts that `ip()` and the like
//! refuse make a forbid err all the same. Nor does it follow attributes through sets, `if` or comparisons with `true`.
//! Where a schema is given, the strict validator has done all this and more, and the analysis is not needed.

use std::collections::{HashMap, HashSet};

use super::error::PolicyError;
use super::parse;
use super::set::PolicySet;
use super::tree::{Binary, Body, Effect, ExprId, Kids, Node, Sym, Tree, Unary, Var};
use super::words;
use crate::value::Val;

/// The reads of forbids that nothing guards, in the order of the text, as errors with place and remedy.
///
/// `supplied` are the attribute paths that every request has, such as `["context", "input"]`.
pub fn unguarded(set: &PolicySet, supplied: &[&[&str]]) -> Result<Vec<PolicyError>, PolicyError> {
    // The walk recurses along operator chains, as the parser does.
    parse::on_parser_thread(|| {
        let mut found = Vec::new();
        for body in set.bodies.iter().chain(&set.templates).filter(|body| body.effect == Effect::Forbid) {
            let Some(condition) = body.condition else { continue };
            let mut walk = Walk::new(&set.tree);
            for path in supplied {
                walk.supply(path);
            }
            walk.visit(condition);
            found.extend(walk.missing.iter().map(|missing| describe(set, body, missing)));
        }
        found
    })
}

fn describe(set: &PolicySet, body: &Body, missing: &Missing) -> PolicyError {
    let read = words::expression(&set.tree, missing.read);
    let base = words::expression(&set.tree, missing.base);
    let (what, guard) = match missing.name {
        Name::Attr(sym) => ("attribute", format!("{base} has {}", attribute(set.tree.text(sym)))),
        Name::Tag(key) => ("tag", format!("{base}.hasTag({})", words::expression(&set.tree, key))),
    };
    let message = format!("forbid `{}` reads `{read}`; without that {what} it would err and not forbid", body.id);
    let source = set.sources.get(body.source as usize);
    let text = source.map_or("", |source| &source.text);
    PolicyError::new("policy.unguarded_forbid", message)
        .at(source.and_then(|source| source.name.as_deref()), text, set.tree.span(missing.read).start as usize)
        .help(format!("put the guard before it: `{guard} && ...`"))
}

/// The right side of `has`: a word, or a string if it is none.
fn attribute(name: &str) -> String {
    const RESERVED: [&str; 9] = ["true", "false", "if", "then", "else", "in", "is", "like", "has"];
    let word = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && !RESERVED.contains(&name);
    if word { name.to_owned() } else { format!("\"{}\"", name.escape_debug()) }
}

/// Number of an expression; equal for expressions that are written alike and so have one value in a request.
type Class = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Var(Var),
    Attr(Class, Sym),
    Tag(Class, Class),
    /// Index into `Walk::constants`
    Const(u32),
    /// Only equal to itself
    Other(ExprId),
}

/// Something that is known to exist: an attribute of an expression's value, or a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fact {
    Attr(Class, Sym),
    Tag(Class, Class),
}

/// What is known once an expression has come out one way; `None` if it cannot come out that way.
type Known = Option<Vec<Fact>>;

/// What is known if an expression is true, and if it is false.
struct Branches {
    yes: Known,
    no: Known,
}

impl Branches {
    const fn nothing() -> Self {
        Self { yes: Some(Vec::new()), no: Some(Vec::new()) }
    }

    const fn constant(value: bool) -> Self {
        if value { Self { yes: Some(Vec::new()), no: None } } else { Self { yes: None, no: Some(Vec::new()) } }
    }

    fn swap(self) -> Self {
        Self { yes: self.no, no: self.yes }
    }
}

#[derive(Debug, Clone, Copy)]
enum Name {
    Attr(Sym),
    Tag(ExprId),
}

struct Missing {
    read: ExprId,
    base: ExprId,
    name: Name,
}

struct Walk<'t> {
    tree: &'t Tree,
    classes: HashMap<Key, Class>,
    constants: HashMap<String, u32>,
    /// Known at the point the walk is at; counted, because several tests may establish one fact
    facts: HashMap<Fact, u32>,
    missing: Vec<Missing>,
    supplied: Vec<Vec<String>>,
}

impl<'t> Walk<'t> {
    fn new(tree: &'t Tree) -> Self {
        Self {
            tree,
            classes: HashMap::new(),
            constants: HashMap::new(),
            facts: HashMap::new(),
            missing: Vec::new(),
            supplied: Vec::new(),
        }
    }

    fn supply(&mut self, path: &[&str]) {
        self.supplied.push(path.iter().map(|&part| part.to_owned()).collect());
    }

    fn class_of_key(&mut self, key: Key) -> Class {
        let next = u32::try_from(self.classes.len()).unwrap_or(u32::MAX);
        *self.classes.entry(key).or_insert(next)
    }

    fn constant(&mut self, value: &Val) -> Class {
        let text = match value {
            Val::Str(text) => format!("s{text}"),
            Val::Entity(uid) => format!("e{uid}"),
            // Other constants have no attributes or tags and name none; only these two need to be recognised.
            _ => format!("?{}", self.constants.len()),
        };
        let next = u32::try_from(self.constants.len()).unwrap_or(u32::MAX);
        let at = *self.constants.entry(text).or_insert(next);
        self.class_of_key(Key::Const(at))
    }

    fn class(&mut self, id: ExprId) -> Class {
        let tree = self.tree;
        let key = match tree.node(id) {
            Node::Var(var) => Key::Var(var),
            Node::Attr(base, sym) => Key::Attr(self.class(base), sym),
            Node::Binary(Binary::GetTag, base, name) => Key::Tag(self.class(base), self.class(name)),
            Node::Const(at) => return self.constant(tree.constant(at)),
            _ => Key::Other(id),
        };
        self.class_of_key(key)
    }

    fn assume(&mut self, facts: &[Fact]) {
        for fact in facts {
            let count = self.facts.entry(*fact).or_default();
            *count = count.saturating_add(1);
        }
    }

    fn forget(&mut self, facts: &[Fact]) {
        for fact in facts {
            if let Some(count) = self.facts.get_mut(fact) {
                *count = count.saturating_sub(1);
            }
        }
    }

    fn knows(&self, fact: Fact) -> bool {
        self.facts.get(&fact).is_some_and(|count| *count > 0)
    }

    /// Reports a read once for each thing that may be absent: the first place is where the guard belongs.
    fn require(&mut self, fact: Fact, missing: Missing) {
        if !self.knows(fact) {
            self.missing.push(missing);
            self.assume(&[fact]);
        }
    }

    fn visit(&mut self, id: ExprId) -> Branches {
        let tree = self.tree;
        match tree.node(id) {
            Node::Const(at) => match tree.constant(at) {
                Val::Bool(value) => Branches::constant(*value),
                _ => Branches::nothing(),
            },
            Node::Var(_) | Node::BadCall(_) => Branches::nothing(),
            Node::And(kids) => self.chain(kids, false),
            Node::Or(kids) => self.chain(kids, true).swap(),
            Node::Unary(Unary::Not, inner) => self.visit(inner).swap(),
            Node::If(test, then, otherwise) => self.choice(test, then, otherwise),
            Node::Has(base, syms) => self.has(base, syms),
            Node::Attr(base, sym) => self.attr(id, base, sym),
            Node::Binary(Binary::HasTag, base, key) => {
                self.visit(base);
                self.visit(key);
                let fact = Fact::Tag(self.class(base), self.class(key));
                Branches { yes: Some(vec![fact]), no: Some(Vec::new()) }
            }
            Node::Binary(Binary::GetTag, base, key) => {
                self.visit(base);
                self.visit(key);
                let fact = Fact::Tag(self.class(base), self.class(key));
                self.require(fact, Missing { read: id, base, name: Name::Tag(key) });
                Branches::nothing()
            }
            Node::Binary(_, left, right) => {
                self.visit(left);
                self.visit(right);
                Branches::nothing()
            }
            Node::Unary(_, inner) | Node::Like(inner, _) | Node::Is(inner, _) => {
                self.visit(inner);
                Branches::nothing()
            }
            Node::Call(_, kids) | Node::Set(kids) | Node::Record { values: kids, .. } => {
                for kid in tree.kids(kids) {
                    self.visit(*kid);
                }
                Branches::nothing()
            }
        }
    }

    fn attr(&mut self, id: ExprId, base: ExprId, sym: Sym) -> Branches {
        self.visit(base);
        let has_field = match self.tree.node(base) {
            Node::Record { keys, .. } => self.tree.kids(keys).contains(&sym),
            Node::Const(at) => {
                let constant = self.tree.constant(at).as_value();
                constant.fields().is_some_and(|fields| fields.get(self.tree.text(sym)).is_some())
            }
            _ => false,
        };
        if !has_field && !self.is_supplied(id) {
            let fact = Fact::Attr(self.class(base), sym);
            self.require(fact, Missing { read: id, base, name: Name::Attr(sym) });
        }
        Branches::nothing()
    }

    fn is_supplied(&self, id: ExprId) -> bool {
        let Some((var, attrs)) = self.tree.as_path(id) else { return false };
        let path = || std::iter::once(var.name()).chain(attrs.iter().map(|sym| self.tree.text(*sym)));
        self.supplied.iter().any(|supplied| path().eq(supplied.iter().map(String::as_str)))
    }

    fn has(&mut self, base: ExprId, syms: Kids) -> Branches {
        self.visit(base);
        let mut of = self.class(base);
        let mut facts = Vec::new();
        for sym in self.tree.kids(syms) {
            facts.push(Fact::Attr(of, *sym));
            of = self.class_of_key(Key::Attr(of, *sym));
        }
        Branches { yes: Some(facts), no: Some(Vec::new()) }
    }

    /// `&&`; and `||` read as the negation of `&&` over negated operands (the caller swaps the result back).
    fn chain(&mut self, kids: Kids, negated: bool) -> Branches {
        let mut all: Vec<Fact> = Vec::new();
        // What every way to be false has in common; at first there is no such way.
        let mut common: Known = None;
        let mut reachable = true;
        for kid in self.tree.kids(kids) {
            let branches = self.visit(*kid);
            let branches = if negated { branches.swap() } else { branches };
            if !reachable {
                continue;
            }
            if let Some(no) = branches.no {
                common = Some(match common {
                    None => all.iter().copied().chain(no).collect(),
                    // Facts of earlier operands are assumed by now, so asking is enough; facts from outside the chain
                    // hold anyway.
                    Some(before) => before.into_iter().filter(|fact| self.knows(*fact) || no.contains(fact)).collect(),
                });
            }
            match branches.yes {
                Some(yes) => {
                    self.assume(&yes);
                    all.extend(yes);
                }
                None => reachable = false,
            }
        }
        self.forget(&all);
        Branches { yes: reachable.then_some(all), no: common }
    }

    fn choice(&mut self, test: ExprId, then: ExprId, otherwise: ExprId) -> Branches {
        let tested = self.visit(test);
        let mut arm = |known: Known, id: ExprId| {
            // A branch that is never taken cannot err, but is checked with what is known anyway: dead code in a
            // forbid deserves to be looked at.
            let facts = known.clone().unwrap_or_default();
            self.assume(&facts);
            let inner = self.visit(id);
            self.forget(&facts);
            let with = |inner: Known| Some(known.clone()?.into_iter().chain(inner?).collect::<Vec<Fact>>());
            (with(inner.yes), with(inner.no))
        };
        let (then_yes, then_no) = arm(tested.yes, then);
        let (else_yes, else_no) = arm(tested.no, otherwise);
        Branches { yes: either(then_yes, else_yes), no: either(then_no, else_no) }
    }
}

/// What is known whichever of two ways was taken.
fn either(left: Known, right: Known) -> Known {
    match (left, right) {
        (Some(left), Some(right)) => {
            let right: HashSet<Fact> = right.into_iter().collect();
            Some(left.into_iter().filter(|fact| right.contains(fact)).collect())
        }
        (one, None) | (None, one) => one,
    }
}
