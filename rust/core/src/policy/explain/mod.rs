//! Policies and decisions in words, for the people who own them and write no Rust.
//!
//! [`policy`] says what one policy means, [`request`](request()) why one request was decided as it was, [`program`]
//! prints what the compiler and the index made of a set, [`matrix`](matrix()) who may do what. Texts are stable, so
//! they can be compared with a file. None of it decides anything: an explanation of a request runs the evaluator that
//! decides, one condition at a time, and `tests/explain.rs` holds the two to the same answer.
//!
//! Explanations show values of the request and of entities. They are for operators, never for a model.

pub mod matrix;
pub mod request;
pub mod sentences;

use std::fmt::{self, Write as _};

pub use self::matrix::{Axes, Column, Matrix, Row, matrix};
pub use self::request::{Candidate, Explanation, Outcome, request};
use super::compile;
use super::heads::{action_matches, is_in, scope_matches};
use super::set::PolicySet;
use super::tree::{Body, Effect, ExprId, Node, Span, Tree, Unary};
use crate::limits::EXPLAIN_ANNOTATION_CHARS_MAX;

/// Where something stands in a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// File name, if the text came from a file
    pub file: Option<String>,
    /// From 1
    pub line: u32,
    /// From 1, in characters
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
        }
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Line starts of the sources: finding a place does not read the text from its beginning each time.
pub(super) struct Places<'s> {
    set: &'s PolicySet,
    lines: Vec<Option<Vec<u32>>>,
}

impl<'s> Places<'s> {
    pub(super) fn new(set: &'s PolicySet) -> Self {
        Self { set, lines: vec![None; set.sources.len()] }
    }

    /// The place of a byte in a source.
    pub(super) fn at(&mut self, source: u32, offset: u32) -> Place {
        let at = source as usize;
        let (Some(text), Some(lines)) = (self.set.sources.get(at), self.lines.get_mut(at)) else {
            return Place { file: None, line: 0, column: 0 };
        };
        let lines = lines.get_or_insert_with(|| {
            let breaks = memchr::memchr_iter(b'\n', text.text.as_bytes());
            std::iter::once(0).chain(breaks.map(|at| super::tree::index_u32(at.saturating_add(1)))).collect()
        });
        let line = lines.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|line| lines.get(line)).copied().unwrap_or_default();
        let before = text.text.get(start as usize..offset as usize).unwrap_or_default();
        Place {
            file: text.name.as_deref().map(str::to_owned),
            line: super::tree::index_u32(line),
            column: super::tree::index_u32(before.chars().count().saturating_add(1)),
        }
    }

    pub(super) fn of_policy(&mut self, body: &Body) -> Place {
        self.at(body.source, body.span.start)
    }

    /// The place of an expression, or of its policy if the parser kept none.
    fn of_expression(&mut self, body: &Body, id: ExprId) -> Place {
        let span = known_span(&self.set.tree, id).unwrap_or(body.span);
        self.at(body.source, span.start)
    }
}

/// The span of an expression or of the first one inside it that has one.
fn known_span(tree: &Tree, id: ExprId) -> Option<Span> {
    let mut at = id;
    // Desugared operators have no place of their own; their operands do.
    for _ in 0..8 {
        let span = tree.span(at);
        if span.end > 0 {
            return Some(span);
        }
        at = match tree.node(at) {
            Node::Unary(_, inner)
            | Node::Attr(inner, _)
            | Node::Has(inner, _)
            | Node::Like(inner, _)
            | Node::Is(inner, _)
            | Node::Binary(_, inner, _)
            | Node::If(inner, _, _) => inner,
            Node::And(kids) | Node::Or(kids) | Node::Call(_, kids) => *tree.kids(kids).first()?,
            _ => return None,
        };
    }
    None
}

/// A top-level conjunct, with `unless` clauses told from `when` clauses.
#[derive(Debug, Clone, Copy)]
struct Condition {
    /// The conjunct as it is evaluated
    id: ExprId,
    /// For an `unless` clause: what is inside it
    unless: Option<ExprId>,
}

impl Condition {
    fn of(set: &PolicySet, body: &Body, id: ExprId) -> Self {
        let Node::Unary(Unary::Not, inner) = set.tree.node(id) else { return Self { id, unless: None } };
        // The parser turns `unless { c }` into `!c` and gives the negation the place of the clause.
        let start = set.tree.span(id).start as usize;
        let text = set.sources.get(body.source as usize).and_then(|source| source.text.get(start..));
        let unless = text.is_some_and(|text| text.starts_with("unless"));
        Self { id, unless: unless.then_some(inner) }
    }

    /// The condition in words, without `when` or `unless`.
    fn words(self, tree: &Tree) -> String {
        sentences::clause(tree, self.unless.unwrap_or(self.id), false)
    }

    /// The words with `when` or `unless` in front.
    fn sentence(self, tree: &Tree) -> String {
        format!("{} {}", if self.unless.is_some() { "unless" } else { "when" }, self.words(tree))
    }
}

/// The top-level conjuncts of a policy in order.
fn conditions(set: &PolicySet, body: &Body) -> Vec<Condition> {
    let Some(condition) = body.condition else { return Vec::new() };
    compile::conjuncts(&set.tree, condition).into_iter().map(|id| Condition::of(set, body, id)).collect()
}

/// A policy's id, and its `@id` where that is another one.
fn name(body: &Body) -> String {
    let id = shown(&body.id);
    match annotation(body, "id") {
        Some(own) if *own != *body.id => format!("{id} {}", sentences::quoted(own)),
        _ => id,
    }
}

/// A text of the policy's author without anything that steers a terminal.
fn shown(text: &str) -> String {
    sentences::cut(text, EXPLAIN_ANNOTATION_CHARS_MAX)
        .escape_debug()
        .to_string()
        .replace("\\\"", "\"")
        .replace("\\'", "'")
}

fn annotation<'b>(body: &'b Body, key: &str) -> Option<&'b str> {
    body.annotations.iter().find(|(own, _)| **own == *key).map(|(_, value)| &**value)
}

/// Whether the gate leaves the policy out of the verdict.
fn is_shadow(body: &Body) -> bool {
    annotation(body, "mode") == Some("shadow")
}

const fn effect_word(effect: Effect) -> &'static str {
    match effect {
        Effect::Permit => "permit",
        Effect::Forbid => "forbid",
    }
}

/// One policy in words: a headline with its place, its conditions, its annotations.
pub fn policy(set: &PolicySet, index: u32) -> String {
    set.bodies.get(index as usize).map_or_else(String::new, |body| describe(&mut Places::new(set), body))
}

/// Every policy and template in words, a blank line between them.
pub fn policies(set: &PolicySet) -> String {
    let mut places = Places::new(set);
    let texts: Vec<String> = set.bodies.iter().chain(&set.templates).map(|body| describe(&mut places, body)).collect();
    texts.join("\n")
}

fn describe(places: &mut Places<'_>, body: &Body) -> String {
    let set = places.set;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}: {} {}s {} to {} on {}",
        places.of_policy(body),
        name(body),
        effect_word(body.effect),
        sentences::principal(&body.principal),
        sentences::action(&body.action),
        sentences::resource(&body.resource),
    );
    let conditions = conditions(set, body);
    if conditions.is_empty() {
        text.push_str("  without conditions\n");
    }
    let mut before: Option<bool> = None;
    let several = conditions.len() > 1;
    for condition in conditions {
        let unless = condition.unless.is_some();
        // After an `unless` a bare `and` would read as part of the exception.
        let word = match (unless, before) {
            (true, _) => "unless",
            (false, None) => "when",
            (false, Some(false)) => "and",
            (false, Some(true)) => "and when",
        };
        before = Some(unless);
        // An `or` beside an `and` needs brackets to be read in one way only.
        let words = if several && !unless {
            sentences::clause_among(&set.tree, condition.id)
        } else {
            condition.words(&set.tree)
        };
        let _ = writeln!(text, "  {word} {words}");
    }
    for (key, value) in &*body.annotations {
        if **key == *"id" {
            continue;
        }
        let note =
            if **key == *"mode" && **value == *"shadow" { " (the gate leaves it out of the verdict)" } else { "" };
        let _ = writeln!(text, "  @{}: {}{note}", shown(key), shown(value));
    }
    if let Some(template) = &body.template {
        let _ = writeln!(text, "  linked from template {}", shown(template));
    }
    text
}

/// The compiled instructions of every policy in the index's order, and the index's buckets.
pub fn program(set: &PolicySet) -> String {
    let mut text = String::new();
    let mut places = Places::new(set);
    for (position, policy) in set.order.iter().enumerate() {
        let Some(body) = set.bodies.get(*policy as usize) else { continue };
        let _ = writeln!(text, "{} {}, {}", effect_word(body.effect), name(body), places.of_policy(body));
        for at in set.program.range(position) {
            let _ = writeln!(text, "{}", set.program.listing(&set.tree, at));
        }
    }
    text.push_str("index\n");
    text.push_str(&set.index.listing(&set.program, &set.tree));
    text
}

/// Name and place of every policy.
pub(super) fn names_and_places(set: &PolicySet) -> Vec<(String, Place)> {
    let mut places = Places::new(set);
    set.bodies.iter().map(|body| (name(body), places.of_policy(body))).collect()
}
