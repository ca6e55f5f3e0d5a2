//! The compiled form of a policy set: a flat list of instructions for a stack machine, with the paths and tests that
//! policies share.
//!
//! A test is a path compared with a constant (`context.input.amount < 100`): by far the most frequent condition of an
//! agent policy, so it is one instruction, and the index asks the same question of the same operand.

use std::fmt;

use smallvec::SmallVec;

use super::extension::ExtFn;
use super::tree::{Binary, ExprId, Sym, Tree, Unary, Var};

/// A request variable and the attributes read from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Path {
    /// Where it starts
    pub root: Var,
    /// Attribute names, outermost first
    pub attrs: SmallVec<[Sym; 4]>,
    /// Slot in which the value is kept for the rest of the request, if several tests read it
    pub slot: Option<u8>,
}

/// What a path's value is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Test {
    /// It is a boolean and true
    Truth,
    /// `== constant`
    Eq(u32),
    /// The constant set contains it
    OneOf(u32),
    /// It is a set that contains the constant
    Contains(u32),
    /// `< constant`
    Less(u32),
    /// `<= constant`
    LessEq(u32),
    /// `> constant`
    Greater(u32),
    /// `>= constant`
    GreaterEq(u32),
    /// A comparison method of `decimal` with a constant
    Decimal(ExtFn, u32),
    /// `in constant` (an entity or a set of entities)
    In(u32),
    /// `is T`
    Is(Sym),
    /// `has a`
    Has(Sym),
    /// `like pattern`
    Like(u32),
}

/// A path and a test, shared by all policies that ask the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Predicate {
    /// Index into the program's paths
    pub path: u32,
    /// The question
    pub test: Test,
}

/// One instruction. Jump targets are absolute.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    /// Push a constant
    Const(u32),
    /// Push a request variable
    Var(Var),
    /// Push the value of a path
    Path(u32),
    /// Replace the top by its attribute
    Attr(Sym),
    /// Replace the top by whether it has the chain of attributes `syms[first..first+len]`
    Has(u32, u32),
    /// Replace the top
    Unary(Unary),
    /// Replace the two on top
    Binary(Binary),
    /// Replace the top `n` arguments
    Call(ExtFn, u32),
    /// Replace the top by whether it matches a pattern
    Like(u32),
    /// Replace the top by whether it is an entity of a type
    Is(Sym),
    /// Replace the top `n` by a set
    MakeSet(u32),
    /// Replace the top `len` by a record with the keys `syms[first..first+len]`
    MakeRecord(u32, u32),
    /// Push the result of a predicate
    Test(u32),
    /// Pop a boolean; if false push false and jump
    AndElse(u32),
    /// Pop a boolean; if true push true and jump
    OrElse(u32),
    /// The top must be a boolean
    CheckBool,
    /// Pop a boolean; if false jump
    BranchFalse(u32),
    /// Jump
    Jump(u32),
    /// Pop a boolean; if false the policy is not satisfied
    Require,
    /// A predicate; if false the policy is not satisfied
    RequireTest(u32),
    /// A predicate; if true the policy is not satisfied
    RequireNot(u32),
    /// The type test of a scope `is T in E`, of which the index has done the rest
    RequireType(Var, Sym),
    /// Always errs
    BadCall(ExtFn),
    /// The policy is satisfied
    Satisfied,
}

impl Op {
    /// Whether this is the last instruction of a top-level conjunct.
    pub const fn ends_conjunct(self) -> bool {
        matches!(self, Self::Require | Self::RequireTest(_) | Self::RequireNot(_))
    }
}

/// The instructions of a policy set.
#[derive(Debug, Default)]
pub struct Program {
    /// All instructions, policy after policy
    pub ops: Vec<Op>,
    /// For each instruction the expression it came from, for messages and explanations
    pub origins: Vec<ExprId>,
    /// First instruction of each policy, by position in the index's order
    pub entries: Vec<u32>,
    /// Shared paths
    pub paths: Vec<Path>,
    /// Shared predicates
    pub predicates: Vec<Predicate>,
    /// Symbol runs for [`Op::Has`] and [`Op::MakeRecord`]
    pub syms: Vec<Sym>,
    /// Number of slots for shared path values
    pub slots: usize,
    /// Deepest stack any policy needs
    pub stack_max: usize,
}

impl Program {
    /// A run of symbols.
    #[inline]
    pub fn syms(&self, first: u32, len: u32) -> &[Sym] {
        let first = first as usize;
        self.syms.get(first..first.saturating_add(len as usize)).unwrap_or_default()
    }

    /// Approximate heap bytes.
    pub fn memory_bytes(&self) -> usize {
        self.ops
            .capacity()
            .saturating_mul(size_of::<Op>().saturating_add(size_of::<ExprId>()))
            .saturating_add(self.entries.capacity().saturating_mul(4))
            .saturating_add(self.paths.capacity().saturating_mul(size_of::<Path>()))
            .saturating_add(self.predicates.capacity().saturating_mul(size_of::<Predicate>()))
            .saturating_add(self.syms.capacity().saturating_mul(4))
    }

    /// Gives back what the growth of the buffers reserved.
    pub fn shrink(&mut self) {
        self.ops.shrink_to_fit();
        self.origins.shrink_to_fit();
        self.entries.shrink_to_fit();
        self.paths.shrink_to_fit();
        self.predicates.shrink_to_fit();
        self.syms.shrink_to_fit();
    }

    /// The instructions of the policy at `position`.
    pub fn range(&self, position: usize) -> std::ops::Range<usize> {
        let first = self.entries.get(position).map_or(0, |at| *at as usize);
        let end = self.entries.get(position.saturating_add(1)).map_or(self.ops.len(), |at| *at as usize);
        first..end
    }

    /// One instruction in words.
    pub fn listing<'a>(&'a self, tree: &'a Tree, at: usize) -> impl fmt::Display + 'a {
        Listing { program: self, tree, at }
    }

    /// A path in Cedar text.
    pub fn path_text(&self, tree: &Tree, path: u32) -> String {
        let Some(path) = self.paths.get(path as usize) else { return String::new() };
        let mut text = path.root.name().to_owned();
        for sym in &path.attrs {
            push_attr(&mut text, tree.text(*sym));
        }
        text
    }
}

/// Appends `.name`, or `["any text"]` where the name is no identifier.
pub fn push_attr(text: &mut String, name: &str) {
    if is_identifier(name) {
        text.push('.');
        text.push_str(name);
    } else {
        text.push_str("[\"");
        text.extend(name.escape_debug());
        text.push_str("\"]");
    }
}

/// Whether a name can stand after a dot.
pub fn is_identifier(name: &str) -> bool {
    const RESERVED: [&str; 10] = ["true", "false", "if", "then", "else", "in", "is", "like", "has", "__cedar"];
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !RESERVED.contains(&name)
}

struct Listing<'a> {
    program: &'a Program,
    tree: &'a Tree,
    at: usize,
}

impl Listing<'_> {
    fn predicate(&self, f: &mut fmt::Formatter<'_>, index: u32) -> fmt::Result {
        let Some(predicate) = self.program.predicates.get(index as usize) else { return Ok(()) };
        let path = self.program.path_text(self.tree, predicate.path);
        write!(f, "{path} {}", test_text(self.tree, predicate.test))
    }
}

/// A test in Cedar-like text.
pub fn test_text(tree: &Tree, test: Test) -> String {
    let constant = |index: u32| super::words::value_text(&tree.constant(index).as_value());
    match test {
        Test::Truth => "is true".to_owned(),
        Test::Eq(c) => format!("== {}", constant(c)),
        Test::OneOf(c) => format!("one of {}", constant(c)),
        Test::Contains(c) => format!("contains {}", constant(c)),
        Test::Less(c) => format!("< {}", constant(c)),
        Test::LessEq(c) => format!("<= {}", constant(c)),
        Test::Greater(c) => format!("> {}", constant(c)),
        Test::GreaterEq(c) => format!(">= {}", constant(c)),
        Test::Decimal(function, c) => format!(".{}({})", function.name(), constant(c)),
        Test::In(c) => format!("in {}", constant(c)),
        Test::Is(sym) => format!("is {}", tree.text(sym)),
        Test::Has(sym) => format!("has {}", tree.text(sym)),
        Test::Like(pattern) => tree.pattern(pattern).map_or_else(String::new, |p| format!("like \"{p}\"")),
    }
}

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(op) = self.program.ops.get(self.at) else { return Ok(()) };
        write!(f, "{:>6}  ", self.at)?;
        match *op {
            Op::Const(index) => {
                write!(f, "const       {}", super::words::value_text(&self.tree.constant(index).as_value()))
            }
            Op::Var(var) => write!(f, "var         {}", var.name()),
            Op::Path(path) => write!(f, "path        {}", self.program.path_text(self.tree, path)),
            Op::Attr(sym) => write!(f, "attr        {}", self.tree.text(sym)),
            Op::Has(first, len) => {
                let names: Vec<&str> = self.program.syms(first, len).iter().map(|s| self.tree.text(*s)).collect();
                write!(f, "has         {}", names.join("."))
            }
            Op::Unary(op) => write!(f, "unary       {op:?}"),
            Op::Binary(op) => write!(f, "binary      {op:?}"),
            Op::Call(function, n) => write!(f, "call        {} ({n} arguments)", function.name()),
            Op::Like(pattern) => write!(f, "like        {}", test_text(self.tree, Test::Like(pattern))),
            Op::Is(sym) => write!(f, "is          {}", self.tree.text(sym)),
            Op::MakeSet(n) => write!(f, "set         {n}"),
            Op::MakeRecord(_, n) => write!(f, "record      {n}"),
            Op::Test(predicate) => {
                write!(f, "test        ")?;
                self.predicate(f, predicate)
            }
            Op::AndElse(target) => write!(f, "and-else    {target}"),
            Op::OrElse(target) => write!(f, "or-else     {target}"),
            Op::CheckBool => write!(f, "check-bool"),
            Op::BranchFalse(target) => write!(f, "branch      {target}"),
            Op::Jump(target) => write!(f, "jump        {target}"),
            Op::Require => write!(f, "require"),
            Op::RequireTest(predicate) => {
                write!(f, "require     ")?;
                self.predicate(f, predicate)
            }
            Op::RequireNot(predicate) => {
                write!(f, "require-not ")?;
                self.predicate(f, predicate)
            }
            Op::RequireType(var, sym) => write!(f, "require     {} is {}", var.name(), self.tree.text(sym)),
            Op::BadCall(function) => write!(f, "bad-call    {}", function.name()),
            Op::Satisfied => write!(f, "satisfied"),
        }
    }
}
