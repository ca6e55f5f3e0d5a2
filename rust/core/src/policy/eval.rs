//! The evaluator: runs one policy's instructions over one request.
//!
//! Semantics are those of the reference evaluator (`cedar-policy-core`, `evaluator.rs`), compared decision by decision
//! in `tests/`. It allocates only from the request's bump arena, takes no lock and touches no reference count. It does
//! not know which policies to run (see `index`) nor what their results add up to (see `set`).

use std::cell::Cell;

use bumpalo::Bump;
use smallvec::SmallVec;

use super::entities::Entities;
use super::extension;
use super::program::{Op, Path, Predicate, Program, Test};
use super::tree::{Binary, Sym, Tree, Unary, Var};
use crate::arguments::{Argument, ArgumentRef, decimal_from_float};
use crate::uid::EntityUid;
use crate::value::{Elements, Val, Value};

/// Why a policy could not be evaluated. A small code; the sentence is built when somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A record has no such attribute, or an entity that exists has none
    MissingAttribute,
    /// The entity is not in the store
    MissingEntity,
    /// The entity has no such tag
    MissingTag,
    /// An operand has the wrong type
    Type,
    /// Integer overflow
    Overflow,
    /// A constructor did not like its text, or a function its arguments
    Extension,
    /// An argument that Cedar cannot represent was read
    Unrepresentable,
}

impl Fault {
    /// The fault in words.
    pub const fn message(self) -> &'static str {
        match self {
            Self::MissingAttribute => "the attribute does not exist",
            Self::MissingEntity => "the entity does not exist",
            Self::MissingTag => "the tag does not exist",
            Self::Type => "an operand has the wrong type",
            Self::Overflow => "integer overflow",
            Self::Extension => "an extension function refused its argument",
            Self::Unrepresentable => "an argument has a value that Cedar cannot represent",
        }
    }
}

/// Where a path could not be followed.
#[derive(Debug, Clone, Copy)]
pub struct PathFault {
    /// Why
    pub fault: Fault,
    /// Which attribute of the path, counted from 0
    pub step: u32,
}

#[derive(Debug, Clone, Copy)]
enum Slot<'a> {
    Empty,
    Value(Value<'a>),
    Fault(PathFault),
}

/// Everything one request reads.
#[derive(Debug)]
pub struct Evaluation<'a> {
    program: &'a Program,
    tree: &'a Tree,
    entities: &'a Entities,
    principal: &'a EntityUid,
    action: &'a EntityUid,
    resource: &'a EntityUid,
    context: Value<'a>,
    bump: &'a Bump,
    slots: &'a [Cell<Slot<'a>>],
}

/// A request as the evaluator sees it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who asks
    pub principal: &'a EntityUid,
    /// What is to be done
    pub action: &'a EntityUid,
    /// On what
    pub resource: &'a EntityUid,
    /// A record
    pub context: Value<'a>,
}

impl<'a> Evaluation<'a> {
    /// Prepares a request; allocates the path slots from the arena.
    #[inline]
    pub fn new(
        program: &'a Program,
        tree: &'a Tree,
        entities: &'a Entities,
        request: &Request<'a>,
        bump: &'a Bump,
    ) -> Self {
        let slots = bump.alloc_slice_fill_with(program.slots, |_| Cell::new(Slot::Empty));
        let &Request { principal, action, resource, context } = request;
        Self { program, tree, entities, principal, action, resource, context, bump, slots }
    }

    /// Runs the policy at `position`: whether it is satisfied, or the fault and the instruction it happened at.
    #[inline]
    pub fn run(&self, position: usize) -> Result<bool, (Fault, u32)> {
        let mut at = self.program.entries.get(position).copied().unwrap_or(u32::MAX);
        // Most policies are tests that must hold, one after the other, and need no operand stack.
        loop {
            let holds = match self.program.ops.get(at as usize) {
                Some(Op::RequireTest(index)) => self.predicate(*index),
                Some(Op::RequireNot(index)) => self.predicate(*index).map(|holds| !holds),
                Some(Op::Satisfied) => return Ok(true),
                _ => {
                    let (result, at) = self.run_from(at as usize);
                    return result.map_err(|fault| (fault, at));
                }
            };
            match holds {
                Ok(true) => at = at.wrapping_add(1),
                Ok(false) => return Ok(false),
                Err(fault) => return Err((fault, at)),
            }
        }
    }

    /// Runs from the instruction at which a policy or one of its top-level conjuncts starts; also says at which
    /// instruction the run ended, which is how explanations find the conjunct that settled it.
    pub fn run_from(&self, start: usize) -> (Result<bool, Fault>, u32) {
        let mut at = start;
        let mut stack = Stack::new();
        #[expect(clippy::cast_possible_truncation, reason = "the program has fewer than 2^32 instructions")]
        loop {
            let Some(op) = self.program.ops.get(at) else { return (Ok(false), at as u32) };
            match self.step(*op, &mut stack) {
                Ok(Flow::Next) => at = at.wrapping_add(1),
                Ok(Flow::Jump(target)) => at = target as usize,
                Ok(Flow::Done(satisfied)) => return (Ok(satisfied), at as u32),
                Err(fault) => return (Err(fault), at as u32),
            }
        }
    }

    #[inline]
    fn step(&self, op: Op, stack: &mut Stack<'a>) -> Result<Flow, Fault> {
        match op {
            Op::Satisfied => return Ok(Flow::Done(true)),
            Op::RequireTest(index) => return Ok(Flow::require(self.predicate(index)?)),
            Op::RequireNot(index) => return Ok(Flow::require(!self.predicate(index)?)),
            Op::Require => return Ok(Flow::require(stack.pop_bool()?)),
            Op::RequireType(var, sym) => {
                return Ok(Flow::require(self.uid(var).is_some_and(|uid| uid.ty() == self.tree.text(sym))));
            }
            Op::Test(index) => stack.push(Value::Bool(self.predicate(index)?)),
            Op::Const(index) => stack.push(self.tree.constant(index).as_value()),
            Op::Var(var) => stack.push(self.var(var)),
            Op::Path(path) => stack.push(self.path(path).map_err(|fault| fault.fault)?),
            Op::AndElse(target) => {
                if !stack.pop_bool()? {
                    stack.push(Value::Bool(false));
                    return Ok(Flow::Jump(target));
                }
            }
            Op::OrElse(target) => {
                if stack.pop_bool()? {
                    stack.push(Value::Bool(true));
                    return Ok(Flow::Jump(target));
                }
            }
            Op::CheckBool => {
                let value = stack.pop_bool()?;
                stack.push(Value::Bool(value));
            }
            Op::BranchFalse(target) => {
                if !stack.pop_bool()? {
                    return Ok(Flow::Jump(target));
                }
            }
            Op::Jump(target) => return Ok(Flow::Jump(target)),
            other => self.operate(other, stack)?,
        }
        Ok(Flow::Next)
    }

    fn operate(&self, op: Op, stack: &mut Stack<'a>) -> Result<(), Fault> {
        let value = match op {
            Op::Attr(sym) => {
                let of = stack.pop();
                self.attr(of, sym)?
            }
            Op::Has(first, len) => {
                let of = stack.pop();
                Value::Bool(self.has_chain(of, self.program.syms(first, len))?)
            }
            Op::Unary(op) => unary(op, stack.pop())?,
            Op::Binary(op) => {
                let right = stack.pop();
                let left = stack.pop();
                self.binary(op, left, right)?
            }
            Op::Call(function, n) => {
                let args = stack.pop_many(n as usize);
                for arg in &args {
                    self.solid(*arg)?;
                }
                extension::call(function, &args, self.bump).map_err(|_| Fault::Extension)?
            }
            Op::Like(pattern) => Value::Bool(self.like(stack.pop(), pattern)?),
            Op::Is(sym) => Value::Bool(self.is(stack.pop(), sym)?),
            Op::MakeSet(n) => {
                let items = stack.pop_many(n as usize);
                self.make_set(&items)?
            }
            Op::MakeRecord(first, len) => {
                let values = stack.pop_many(len as usize);
                let keys = self.program.syms(first, len).iter().map(|sym| self.tree.text(*sym));
                // The keys come sorted from the parser's ordered map.
                let fields: SmallVec<[(&'a str, Value<'a>); 8]> = keys.zip(values).collect();
                Value::RecordTemp(self.bump.alloc_slice_copy(&fields))
            }
            // `BadCall`; everything else is handled by `step`.
            _ => return Err(Fault::Extension),
        };
        stack.push(value);
        Ok(())
    }

    const fn uid(&self, var: Var) -> Option<&'a EntityUid> {
        match var {
            Var::Principal => Some(self.principal),
            Var::Action => Some(self.action),
            Var::Resource => Some(self.resource),
            Var::Context => None,
        }
    }

    #[inline]
    fn var(&self, var: Var) -> Value<'a> {
        self.uid(var).map_or(self.context, Value::Entity)
    }

    /// The value of a path, from its slot if it was read before.
    #[inline]
    pub fn path(&self, index: u32) -> Result<Value<'a>, PathFault> {
        let Some(path) = self.program.paths.get(index as usize) else {
            return Err(PathFault { fault: Fault::Type, step: 0 });
        };
        let slot = path.slot.and_then(|slot| self.slots.get(usize::from(slot)));
        let Some(slot) = slot else { return self.follow(path) };
        match slot.get() {
            Slot::Value(value) => Ok(value),
            Slot::Fault(fault) => Err(fault),
            Slot::Empty => self.fill(slot, path),
        }
    }

    fn fill(&self, slot: &Cell<Slot<'a>>, path: &Path) -> Result<Value<'a>, PathFault> {
        let result = self.follow(path);
        slot.set(match result {
            Ok(value) => Slot::Value(value),
            Err(fault) => Slot::Fault(fault),
        });
        result
    }

    fn follow(&self, path: &Path) -> Result<Value<'a>, PathFault> {
        let mut value = self.var(path.root);
        for (step, sym) in path.attrs.iter().enumerate() {
            #[expect(clippy::cast_possible_truncation, reason = "a path has fewer than 2^32 steps")]
            let at = |fault| PathFault { fault, step: step as u32 };
            value = self.attr(value, *sym).map_err(at)?;
        }
        Ok(value)
    }

    fn attr(&self, of: Value<'a>, sym: Sym) -> Result<Value<'a>, Fault> {
        let name = self.tree.text(sym);
        match of {
            Value::Entity(uid) => {
                let entity = self.entities.get(uid).ok_or(Fault::MissingEntity)?;
                entity.attr(name).map(Val::as_value).ok_or(Fault::MissingAttribute)
            }
            Value::RecordArgs(object) => {
                object.get(name).and_then(|child| self.argument(child)).ok_or(Fault::MissingAttribute)
            }
            Value::Unrepresentable => Err(Fault::Unrepresentable),
            _ => of.fields().ok_or(Fault::Type)?.get(name).ok_or(Fault::MissingAttribute),
        }
    }

    fn has(&self, of: Value<'a>, name: &str) -> Result<bool, Fault> {
        match of {
            Value::Entity(uid) => Ok(self.entities.get(uid).is_some_and(|entity| entity.attr(name).is_some())),
            // An argument that is there but has no Cedar value is there: reading it errs, asking for it does not.
            Value::RecordArgs(object) => {
                Ok(object.get(name).is_some_and(|child| !matches!(child.value(), Argument::Null)))
            }
            Value::Unrepresentable => Err(Fault::Unrepresentable),
            _ => Ok(of.fields().ok_or(Fault::Type)?.get(name).is_some()),
        }
    }

    fn has_chain(&self, of: Value<'a>, syms: &[Sym]) -> Result<bool, Fault> {
        let mut value = of;
        for (position, sym) in syms.iter().enumerate() {
            if !self.has(value, self.tree.text(*sym))? {
                return Ok(false);
            }
            if position.saturating_add(1) < syms.len() {
                value = self.attr(value, *sym)?;
            }
        }
        Ok(true)
    }

    /// An argument as a Cedar value; `None` for null, which is an absent attribute.
    fn argument(&self, argument: ArgumentRef<'a>) -> Option<Value<'a>> {
        Some(match argument.value() {
            Argument::Null => return None,
            Argument::Bool(value) => Value::Bool(value),
            Argument::Long(value) => Value::Long(value),
            Argument::Decimal(value) => Value::Decimal(value),
            Argument::Str(value) => Value::Str(value),
            Argument::Object => Value::RecordArgs(argument),
            Argument::Float(value) => decimal_from_float(value).map_or(Value::Unrepresentable, Value::Decimal),
            Argument::Unrepresentable => Value::Unrepresentable,
            Argument::List => {
                let items: SmallVec<[Value<'a>; 8]> = argument
                    .children()
                    .map(|(_, child)| self.argument(child).unwrap_or(Value::Unrepresentable))
                    .collect();
                self.make_set(&items).unwrap_or(Value::Unrepresentable)
            }
        })
    }

    fn make_set(&self, items: &[Value<'a>]) -> Result<Value<'a>, Fault> {
        let solid = self.bump.alloc_slice_fill_copy(items.len(), Value::Bool(false));
        for (into, item) in solid.iter_mut().zip(items) {
            *into = self.solid(*item)?;
        }
        solid.sort_unstable_by(Value::total_cmp);
        let mut kept = 0usize;
        for index in 0..solid.len() {
            let Some(item) = solid.get(index).copied() else { break };
            let repeats =
                kept.checked_sub(1).and_then(|last| solid.get(last)).is_some_and(|last| last.total_cmp(&item).is_eq());
            if !repeats && let Some(into) = solid.get_mut(kept) {
                *into = item;
                kept = kept.saturating_add(1);
            }
        }
        Ok(Value::SetTemp(solid.get(..kept).unwrap_or_default()))
    }

    /// The value in a form that compares by content; a fault if anything inside cannot be represented.
    #[inline]
    fn solid(&self, value: Value<'a>) -> Result<Value<'a>, Fault> {
        match value {
            Value::RecordArgs(_) | Value::RecordTemp(_) => self.solid_record(value),
            Value::Unrepresentable => Err(Fault::Unrepresentable),
            _ => Ok(value),
        }
    }

    fn solid_record(&self, value: Value<'a>) -> Result<Value<'a>, Fault> {
        let mut fields: SmallVec<[(&'a str, Value<'a>); 8]> = SmallVec::new();
        match value {
            Value::RecordArgs(object) => {
                for (key, child) in object.children() {
                    if let Some(child) = self.argument(child) {
                        fields.push((key, self.solid(child)?));
                    }
                }
                fields.sort_unstable_by(|a, b| a.0.cmp(b.0));
            }
            Value::RecordTemp(own) => {
                for (key, child) in own {
                    fields.push((key, self.solid(*child)?));
                }
            }
            other => return Ok(other),
        }
        Ok(Value::RecordTemp(self.bump.alloc_slice_copy(&fields)))
    }

    #[inline]
    fn predicate(&self, index: u32) -> Result<bool, Fault> {
        let Some(&Predicate { path, test }) = self.program.predicates.get(index as usize) else {
            return Err(Fault::Type);
        };
        let value = self.path(path).map_err(|fault| fault.fault)?;
        self.test(value, test)
    }

    /// Asks one question of a value.
    #[inline]
    pub fn test(&self, value: Value<'a>, test: Test) -> Result<bool, Fault> {
        let constant = |index: u32| self.tree.constant(index).as_value();
        match test {
            Test::Like(pattern) => self.like(value, pattern),
            Test::Eq(c) => Ok(self.solid(value)?.total_cmp(&constant(c)).is_eq()),
            Test::Less(c) => less(value, constant(c)),
            Test::LessEq(c) => less_eq(value, constant(c)),
            Test::Greater(c) => less(constant(c), value),
            Test::GreaterEq(c) => less_eq(constant(c), value),
            Test::In(c) => self.is_in(value, constant(c)),
            Test::OneOf(c) => {
                let value = self.solid(value)?;
                Ok(constant(c).elements().ok_or(Fault::Type)?.contains(&value))
            }
            Test::Contains(c) => Ok(elements(value)?.contains(&constant(c))),
            Test::Truth => boolean(value),
            Test::Is(sym) => self.is(value, sym),
            Test::Has(sym) => self.has(value, self.tree.text(sym)),
            Test::Decimal(function, c) => {
                if matches!(value, Value::Unrepresentable) {
                    return Err(Fault::Unrepresentable);
                }
                let result = extension::call(function, &[value, constant(c)], self.bump);
                result.map_err(|_| Fault::Extension).and_then(boolean)
            }
        }
    }

    /// Calls `with` for an entity and each of its ancestors: everything it is `in`.
    pub fn groups(&self, value: Value<'a>, mut with: impl FnMut(&EntityUid)) -> Result<(), Fault> {
        let Value::Entity(uid) = value else { return Err(wrong_type(value)) };
        with(uid);
        if let Some(entity) = self.entities.get(uid) {
            entity.ancestors().filter(|ancestor| *ancestor != uid).for_each(with);
        }
        Ok(())
    }

    fn like(&self, value: Value<'a>, pattern: u32) -> Result<bool, Fault> {
        match value {
            Value::Str(text) => Ok(self.tree.pattern(pattern).is_some_and(|pattern| pattern.matches(text))),
            _ => Err(wrong_type(value)),
        }
    }

    fn is(&self, value: Value<'a>, sym: Sym) -> Result<bool, Fault> {
        match value {
            Value::Entity(uid) => Ok(uid.ty() == self.tree.text(sym)),
            _ => Err(wrong_type(value)),
        }
    }

    fn is_in(&self, left: Value<'a>, right: Value<'a>) -> Result<bool, Fault> {
        let Value::Entity(descendant) = left else { return Err(wrong_type(left)) };
        let below = |ancestor: &EntityUid| {
            descendant == ancestor || self.entities.get(descendant).is_some_and(|e| e.has_ancestor(ancestor))
        };
        match right {
            Value::Entity(ancestor) => Ok(below(ancestor)),
            _ => {
                let mut found = false;
                for element in elements(right)?.iter() {
                    // Every element must be an entity, also after a hit.
                    let Value::Entity(ancestor) = element else { return Err(Fault::Type) };
                    found = found || below(ancestor);
                }
                Ok(found)
            }
        }
    }

    fn binary(&self, op: Binary, left: Value<'a>, right: Value<'a>) -> Result<Value<'a>, Fault> {
        let result = match op {
            Binary::Eq => self.solid(left)?.total_cmp(&self.solid(right)?).is_eq(),
            Binary::Less => less(left, right)?,
            Binary::LessEq => less_eq(left, right)?,
            Binary::Add => return arithmetic(left, right, i64::checked_add),
            Binary::Sub => return arithmetic(left, right, i64::checked_sub),
            Binary::Mul => return arithmetic(left, right, i64::checked_mul),
            Binary::In => self.is_in(left, right)?,
            Binary::Contains => {
                let right = self.solid(right)?;
                elements(left)?.contains(&right)
            }
            Binary::ContainsAll => contains_all(elements(left)?, elements(right)?),
            Binary::ContainsAny => contains_any(elements(left)?, elements(right)?),
            Binary::GetTag | Binary::HasTag => return self.tag(op, left, right),
        };
        Ok(Value::Bool(result))
    }

    fn tag(&self, op: Binary, of: Value<'a>, name: Value<'a>) -> Result<Value<'a>, Fault> {
        let Value::Entity(uid) = of else { return Err(wrong_type(of)) };
        let Value::Str(name) = name else { return Err(wrong_type(name)) };
        let entity = self.entities.get(uid);
        if op == Binary::HasTag {
            return Ok(Value::Bool(entity.is_some_and(|entity| entity.tag(name).is_some())));
        }
        entity.ok_or(Fault::MissingEntity)?.tag(name).map(Val::as_value).ok_or(Fault::MissingTag)
    }
}

enum Flow {
    Next,
    Jump(u32),
    Done(bool),
}

impl Flow {
    #[inline]
    const fn require(holds: bool) -> Self {
        if holds { Self::Next } else { Self::Done(false) }
    }
}

/// The operand stack: on the machine's stack up to 16 values, which covers every condition a person writes.
struct Stack<'a>(SmallVec<[Value<'a>; 16]>);

impl<'a> Stack<'a> {
    #[inline]
    fn new() -> Self {
        Self(SmallVec::new())
    }

    #[inline]
    fn push(&mut self, value: Value<'a>) {
        self.0.push(value);
    }

    /// The compiler balances pushes and pops; an empty stack yields a value every operator errs on.
    #[inline]
    fn pop(&mut self) -> Value<'a> {
        self.0.pop().unwrap_or(Value::Unrepresentable)
    }

    #[inline]
    fn pop_bool(&mut self) -> Result<bool, Fault> {
        boolean(self.pop())
    }

    fn pop_many(&mut self, n: usize) -> SmallVec<[Value<'a>; 8]> {
        let from = self.0.len().saturating_sub(n);
        self.0.drain(from..).collect()
    }
}

/// The fault of an operator that finds this value where another type must stand.
pub(super) const fn wrong_type(value: Value<'_>) -> Fault {
    if matches!(value, Value::Unrepresentable) { Fault::Unrepresentable } else { Fault::Type }
}

#[inline]
fn boolean(value: Value<'_>) -> Result<bool, Fault> {
    match value {
        Value::Bool(value) => Ok(value),
        _ => Err(wrong_type(value)),
    }
}

fn elements(value: Value<'_>) -> Result<Elements<'_>, Fault> {
    value.elements().ok_or_else(|| wrong_type(value))
}

fn unary(op: Unary, value: Value<'_>) -> Result<Value<'_>, Fault> {
    match (op, value) {
        (Unary::Not, Value::Bool(value)) => Ok(Value::Bool(!value)),
        (Unary::Neg, Value::Long(value)) => value.checked_neg().map(Value::Long).ok_or(Fault::Overflow),
        (Unary::IsEmpty, _) => Ok(Value::Bool(elements(value)?.is_empty())),
        _ => Err(wrong_type(value)),
    }
}

fn ordered(left: Value<'_>, right: Value<'_>) -> Result<(i64, i64), Fault> {
    match (left, right) {
        (Value::Long(a), Value::Long(b))
        | (Value::Datetime(a), Value::Datetime(b))
        | (Value::Duration(a), Value::Duration(b)) => Ok((a, b)),
        (Value::Unrepresentable, _) | (_, Value::Unrepresentable) => Err(Fault::Unrepresentable),
        _ => Err(Fault::Type),
    }
}

#[inline]
fn less(left: Value<'_>, right: Value<'_>) -> Result<bool, Fault> {
    ordered(left, right).map(|(a, b)| a < b)
}

#[inline]
fn less_eq(left: Value<'_>, right: Value<'_>) -> Result<bool, Fault> {
    ordered(left, right).map(|(a, b)| a <= b)
}

fn arithmetic<'a>(
    left: Value<'a>,
    right: Value<'a>,
    checked: impl Fn(i64, i64) -> Option<i64>,
) -> Result<Value<'a>, Fault> {
    match (left, right) {
        (Value::Long(a), Value::Long(b)) => checked(a, b).map(Value::Long).ok_or(Fault::Overflow),
        (Value::Unrepresentable, _) | (_, Value::Unrepresentable) => Err(Fault::Unrepresentable),
        _ => Err(Fault::Type),
    }
}

fn contains_all(all: Elements<'_>, of: Elements<'_>) -> bool {
    of.len() <= all.len() && of.iter().all(|item| all.contains(&item))
}

fn contains_any(left: Elements<'_>, right: Elements<'_>) -> bool {
    let (small, large) = if left.len() <= right.len() { (left, right) } else { (right, left) };
    small.iter().any(|item| large.contains(&item))
}
