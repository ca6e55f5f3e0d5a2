//! From the expression tree to instructions, and from conditions to the predicates the index may use.
//!
//! The instructions keep Cedar's order of evaluation exactly: clauses left to right, `&&`, `||` and `if` short-circuit,
//! every operand of a boolean operator checked to be a boolean, the last one included.
//!
//! Recurses as deep as the expression nests or chains, so it runs on the parser thread only.

use std::collections::HashMap;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::extension::ExtFn;
use super::program::{Op, Path, Predicate, Program, Test};
use super::tree::{Binary, Body, ExprId, Kids, Node, Scope, Sym, Tree, Unary, Var, index_u32};
use crate::value::{SEED, Val, key_hash};

/// Paths with a value slot: more would make the slots themselves the cost of a small request.
const SLOTS_MAX: usize = 48;

/// One top-level conjunct of a condition.
#[derive(Debug, Clone, Copy)]
pub enum Conjunct {
    /// A predicate that must hold
    Test(Predicate),
    /// A predicate that must not hold
    Not(Predicate),
    /// Anything else
    Other(ExprId),
}

/// Compiles policies one by one into a [`Program`].
#[derive(Debug, Default)]
pub struct Compiler {
    program: Program,
    paths: HashMap<(Var, SmallVec<[Sym; 4]>), u32>,
    path_uses: Vec<u32>,
    predicates: HashMap<Predicate, u32>,
    /// The first of equal constants; sets and records are not looked at
    consts: HashTable<u32>,
    /// The first of equal patterns, by their text
    patterns: HashTable<u32>,
    depth: usize,
}

impl Compiler {
    /// Appends one policy; returns its top-level conjuncts in order, for the index.
    pub fn policy(&mut self, tree: &mut Tree, body: &Body) -> SmallVec<[Conjunct; 4]> {
        let entry = index_u32(self.program.ops.len());
        self.program.entries.push(entry);
        let origin = body.condition.unwrap_or_default();
        for (var, scope) in [(Var::Principal, &body.principal), (Var::Resource, &body.resource)] {
            if let Scope::IsIn(ty, _) = scope {
                let sym = tree.intern(ty);
                self.emit(Op::RequireType(var, sym), origin);
            }
        }
        let mut found = SmallVec::new();
        if let Some(condition) = body.condition {
            for conjunct in conjuncts(tree, condition) {
                found.push(self.require(tree, conjunct));
            }
        }
        self.emit(Op::Satisfied, origin);
        found
    }

    /// Hands out the slots and returns the program.
    pub fn finish(mut self) -> Program {
        let mut by_use: Vec<usize> = (0..self.path_uses.len()).collect();
        by_use.sort_by_key(|path| std::cmp::Reverse(self.path_uses.get(*path).copied().unwrap_or(0)));
        let mut slots = 0u8;
        for path in by_use.into_iter().take(SLOTS_MAX) {
            // A bare variable needs no slot; a path read once gains nothing from one.
            let shared = self.path_uses.get(path).is_some_and(|uses| *uses > 1);
            if let Some(path) = self.program.paths.get_mut(path)
                && shared
                && !path.attrs.is_empty()
            {
                path.slot = Some(slots);
                slots = slots.saturating_add(1);
            }
        }
        self.program.slots = usize::from(slots);
        self.program.shrink();
        self.program
    }

    /// The index of a path, new if it was not there.
    fn path_index(&mut self, root: Var, attrs: SmallVec<[Sym; 4]>) -> u32 {
        let key = (root, attrs);
        if let Some(index) = self.paths.get(&key) {
            return *index;
        }
        let index = index_u32(self.program.paths.len());
        self.program.paths.push(Path { root, attrs: key.1.clone(), slot: None });
        self.path_uses.push(0);
        self.paths.insert(key, index);
        index
    }

    fn use_path(&mut self, path: u32) {
        if let Some(uses) = self.path_uses.get_mut(path as usize) {
            *uses = uses.saturating_add(1);
        }
    }

    fn use_predicate(&mut self, predicate: Predicate) -> u32 {
        self.use_path(predicate.path);
        let next = index_u32(self.program.predicates.len());
        let index = *self.predicates.entry(predicate).or_insert(next);
        if index == next {
            self.program.predicates.push(predicate);
        }
        index
    }

    /// The same test with the first of equal constants: policies repeat few constants, and what is shared stays in the
    /// processor's cache.
    fn shared(&mut self, tree: &Tree, test: Test) -> Test {
        match test {
            Test::Eq(c) => Test::Eq(self.shared_const(tree, c)),
            Test::Contains(c) => Test::Contains(self.shared_const(tree, c)),
            Test::Less(c) => Test::Less(self.shared_const(tree, c)),
            Test::LessEq(c) => Test::LessEq(self.shared_const(tree, c)),
            Test::Greater(c) => Test::Greater(self.shared_const(tree, c)),
            Test::GreaterEq(c) => Test::GreaterEq(self.shared_const(tree, c)),
            Test::Decimal(function, c) => Test::Decimal(function, self.shared_const(tree, c)),
            Test::In(c) => Test::In(self.shared_const(tree, c)),
            Test::Like(pattern) => Test::Like(self.shared_pattern(tree, pattern)),
            Test::Truth | Test::OneOf(_) | Test::Is(_) | Test::Has(_) => test,
        }
    }

    fn shared_const(&mut self, tree: &Tree, index: u32) -> u32 {
        let value = tree.constant(index).as_value();
        let Some(hash) = key_hash(&value) else { return index };
        let same = |known: &u32| tree.constant(*known).as_value().total_cmp(&value).is_eq();
        let rehash = |known: &u32| key_hash(&tree.constant(*known).as_value()).unwrap_or(0);
        *self.consts.entry(hash, same, rehash).or_insert(index).get()
    }

    fn shared_pattern(&mut self, tree: &Tree, index: u32) -> u32 {
        let Some(pattern) = tree.pattern(index) else { return index };
        let hash = |known: &u32| tree.pattern(*known).map_or(0, |pattern| SEED.hash_one(pattern));
        let same = |known: &u32| tree.pattern(*known) == Some(pattern);
        *self.patterns.entry(hash(&index), same, hash).or_insert(index).get()
    }

    fn emit(&mut self, op: Op, origin: ExprId) -> usize {
        let at = self.program.ops.len();
        self.program.ops.push(op);
        self.program.origins.push(origin);
        at
    }

    fn pushed(&mut self) {
        self.depth = self.depth.saturating_add(1);
        self.program.stack_max = self.program.stack_max.max(self.depth);
    }

    fn popped(&mut self, n: usize) {
        self.depth = self.depth.saturating_sub(n);
    }

    /// Points a forward jump at the next instruction.
    fn land(&mut self, at: usize) {
        let here = index_u32(self.program.ops.len());
        if let Some(op) = self.program.ops.get_mut(at) {
            *op = match *op {
                Op::AndElse(_) => Op::AndElse(here),
                Op::OrElse(_) => Op::OrElse(here),
                Op::BranchFalse(_) => Op::BranchFalse(here),
                Op::Jump(_) => Op::Jump(here),
                other => other,
            };
        }
    }

    /// One top-level conjunct: false ends the policy.
    fn require(&mut self, tree: &mut Tree, expr: ExprId) -> Conjunct {
        if let Some((predicate, negated)) = predicate(self, tree, expr).or_else(|| self.truth(tree, expr)) {
            let index = self.use_predicate(predicate);
            self.emit(if negated { Op::RequireNot(index) } else { Op::RequireTest(index) }, expr);
            return if negated { Conjunct::Not(predicate) } else { Conjunct::Test(predicate) };
        }
        self.expr(tree, expr);
        self.emit(Op::Require, expr);
        self.popped(1);
        Conjunct::Other(expr)
    }

    /// A path standing where only a boolean may stand.
    fn truth(&mut self, tree: &Tree, expr: ExprId) -> Option<(Predicate, bool)> {
        let (operand, negated) = match tree.node(expr) {
            Node::Unary(Unary::Not, inner) => (inner, true),
            _ => (expr, false),
        };
        let (root, attrs) = tree.as_path(operand)?;
        Some((Predicate { path: self.path_index(root, attrs), test: Test::Truth }, negated))
    }

    fn expr(&mut self, tree: &mut Tree, id: ExprId) {
        if let Some((predicate, negated)) = predicate(self, tree, id) {
            let index = self.use_predicate(predicate);
            self.emit(Op::Test(index), id);
            self.pushed();
            if negated {
                self.emit(Op::Unary(Unary::Not), id);
            }
            return;
        }
        match tree.node(id) {
            Node::Const(index) => {
                self.emit(Op::Const(index), id);
                self.pushed();
            }
            Node::Var(var) => {
                self.emit(Op::Var(var), id);
                self.pushed();
            }
            Node::Attr(inner, sym) => self.attr(tree, id, inner, sym),
            Node::If(test, then, otherwise) => self.branch(tree, id, test, then, otherwise),
            Node::And(kids) => self.chain(tree, id, kids, Op::AndElse(0)),
            Node::Or(kids) => self.chain(tree, id, kids, Op::OrElse(0)),
            Node::Unary(op, inner) => {
                self.expr(tree, inner);
                self.emit(Op::Unary(op), id);
            }
            Node::Binary(op, left, right) => {
                self.expr(tree, left);
                self.expr(tree, right);
                self.emit(Op::Binary(op), id);
                self.popped(1);
            }
            Node::Call(function, kids) => {
                let n = self.all(tree, kids);
                self.emit(Op::Call(function, n), id);
            }
            Node::Has(inner, syms) => {
                self.expr(tree, inner);
                let (first, len) = self.symbols(tree, syms);
                self.emit(Op::Has(first, len), id);
            }
            Node::Like(inner, pattern) => {
                self.expr(tree, inner);
                self.emit(Op::Like(pattern), id);
            }
            Node::Is(inner, sym) => {
                self.expr(tree, inner);
                self.emit(Op::Is(sym), id);
            }
            Node::Set(kids) => {
                let n = self.all(tree, kids);
                self.emit(Op::MakeSet(n), id);
            }
            Node::Record { keys, values } => {
                self.all(tree, values);
                let (first, len) = self.symbols(tree, keys);
                self.emit(Op::MakeRecord(first, len), id);
            }
            Node::BadCall(function) => {
                self.emit(Op::BadCall(function), id);
                self.pushed();
            }
        }
    }

    /// Evaluates kids left to right and leaves room for the one value that replaces them.
    fn all(&mut self, tree: &mut Tree, kids: Kids) -> u32 {
        let ids: SmallVec<[u32; 8]> = tree.kids(kids).into();
        for id in &ids {
            self.expr(tree, *id);
        }
        self.popped(ids.len());
        self.pushed();
        index_u32(ids.len())
    }

    fn symbols(&mut self, tree: &Tree, kids: Kids) -> (u32, u32) {
        let first = index_u32(self.program.syms.len());
        let syms = tree.kids(kids);
        self.program.syms.extend_from_slice(syms);
        (first, index_u32(syms.len()))
    }

    fn attr(&mut self, tree: &mut Tree, id: ExprId, inner: ExprId, sym: Sym) {
        if let Some((root, attrs)) = tree.as_path(id) {
            let path = self.path_index(root, attrs);
            self.use_path(path);
            self.emit(Op::Path(path), id);
            self.pushed();
            return;
        }
        self.expr(tree, inner);
        self.emit(Op::Attr(sym), id);
    }

    fn branch(&mut self, tree: &mut Tree, id: ExprId, test: ExprId, then: ExprId, otherwise: ExprId) {
        self.expr(tree, test);
        let to_else = self.emit(Op::BranchFalse(0), id);
        self.popped(1);
        self.expr(tree, then);
        let to_end = self.emit(Op::Jump(0), id);
        self.popped(1);
        self.land(to_else);
        self.expr(tree, otherwise);
        self.land(to_end);
    }

    fn chain(&mut self, tree: &mut Tree, id: ExprId, kids: Kids, jump: Op) {
        let ids: SmallVec<[u32; 8]> = tree.kids(kids).into();
        let mut jumps = Vec::new();
        for (position, kid) in ids.iter().enumerate() {
            self.expr(tree, *kid);
            if position.saturating_add(1) < ids.len() {
                jumps.push(self.emit(jump, id));
                self.popped(1);
            }
        }
        self.emit(Op::CheckBool, id);
        for at in jumps {
            self.land(at);
        }
    }
}

/// The top-level conjuncts of a condition in order.
pub fn conjuncts(tree: &Tree, condition: ExprId) -> SmallVec<[ExprId; 8]> {
    match tree.node(condition) {
        Node::And(kids) => tree.kids(kids).into(),
        _ => SmallVec::from_slice(&[condition]),
    }
}

/// Reads an expression as a path compared with a constant; the flag says whether the result is negated.
fn predicate(compiler: &mut Compiler, tree: &mut Tree, expr: ExprId) -> Option<(Predicate, bool)> {
    let (operand, test, negated) = match tree.node(expr) {
        Node::Unary(Unary::Not, inner) => return negation(compiler, tree, inner),
        Node::Binary(op, left, right) => {
            let (operand, test) = comparison(tree, op, left, right)?;
            (operand, test, false)
        }
        Node::Call(function, kids) => {
            let &[left, right] = tree.kids(kids) else { return None };
            let decimal_comparison = matches!(
                function,
                ExtFn::LessThan | ExtFn::LessThanOrEqual | ExtFn::GreaterThan | ExtFn::GreaterThanOrEqual
            );
            match tree.node(right) {
                Node::Const(constant) if decimal_comparison => (left, Test::Decimal(function, constant), false),
                _ => return None,
            }
        }
        Node::Is(inner, sym) => (inner, Test::Is(sym), false),
        Node::Like(inner, pattern) => (inner, Test::Like(pattern), false),
        Node::Has(inner, syms) => {
            let &[sym] = tree.kids(syms) else { return None };
            (inner, Test::Has(sym), false)
        }
        Node::Or(kids) => (tree.as_path_of_alternatives(kids)?, alternatives(tree, kids)?, false),
        _ => return None,
    };
    let (root, attrs) = tree.as_path(operand)?;
    let test = compiler.shared(tree, test);
    Some((Predicate { path: compiler.path_index(root, attrs), test }, negated))
}

/// `!(a <= c)` is `a > c`: the reference parses `>` and `>=` this way.
fn negation(compiler: &mut Compiler, tree: &mut Tree, inner: ExprId) -> Option<(Predicate, bool)> {
    let (found, negated) = predicate(compiler, tree, inner)?;
    let test = match found.test {
        Test::Less(c) => Test::GreaterEq(c),
        Test::LessEq(c) => Test::Greater(c),
        Test::Greater(c) => Test::LessEq(c),
        Test::GreaterEq(c) => Test::Less(c),
        _ => return Some((found, !negated)),
    };
    Some((Predicate { path: found.path, test }, negated))
}

fn comparison(tree: &Tree, op: Binary, left: ExprId, right: ExprId) -> Option<(ExprId, Test)> {
    let constant = |id: ExprId| match tree.node(id) {
        Node::Const(index) => Some(index),
        _ => None,
    };
    Some(match (op, constant(left), constant(right)) {
        (Binary::Eq, None, Some(c)) => (left, Test::Eq(c)),
        (Binary::Eq, Some(c), None) => (right, Test::Eq(c)),
        (Binary::Less, None, Some(c)) => (left, Test::Less(c)),
        (Binary::Less, Some(c), None) => (right, Test::Greater(c)),
        (Binary::LessEq, None, Some(c)) => (left, Test::LessEq(c)),
        (Binary::LessEq, Some(c), None) => (right, Test::GreaterEq(c)),
        (Binary::In, None, Some(c)) => (left, Test::In(c)),
        (Binary::Contains, Some(c), None) if matches!(tree.constant(c), Val::Set(_)) => (right, Test::OneOf(c)),
        (Binary::Contains, None, Some(c)) => (left, Test::Contains(c)),
        _ => return None,
    })
}

/// `p == a || p == b || ...` on one path is membership in a set of constants.
fn alternatives(tree: &mut Tree, kids: Kids) -> Option<Test> {
    let ids: SmallVec<[u32; 8]> = tree.kids(kids).into();
    let mut values = Vec::with_capacity(ids.len());
    for id in ids {
        let Node::Binary(op, left, right) = tree.node(id) else { return None };
        match comparison(tree, op, left, right)?.1 {
            Test::Eq(c) => values.push(tree.constant(c).clone()),
            Test::OneOf(c) => match tree.constant(c) {
                Val::Set(items) => values.extend(items.iter().cloned()),
                _ => return None,
            },
            _ => return None,
        }
    }
    Some(Test::OneOf(tree.add_const(Val::set(values))))
}

impl Tree {
    /// The operand of the first alternative if every alternative tests the same path.
    fn as_path_of_alternatives(&self, kids: Kids) -> Option<ExprId> {
        let mut first: Option<ExprId> = None;
        for id in self.kids(kids) {
            let Node::Binary(op, left, right) = self.node(*id) else { return None };
            let (operand, _) = comparison(self, op, left, right)?;
            let path = self.as_path(operand)?;
            if self.as_path(*first.get_or_insert(operand)) != Some(path) {
                return None;
            }
        }
        first
    }
}
