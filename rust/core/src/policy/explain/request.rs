//! Why one request was decided as it was.
//!
//! Every policy whose scope matches is a candidate; its conditions are run one by one by the evaluator that decides.
//! For a denial without a forbid, the nearest permit is the one that matches in most of, in this order: action,
//! principal, resource, leading conditions.

use std::fmt;

use bumpalo::Bump;

use super::sentences;
use super::{Condition, Place, Places, action_matches, annotation, effect_word, is_shadow, name, scope_matches, shown};
use crate::limits::{EXPLAIN_CANDIDATES_MAX, EXPLAIN_VALUE_CHARS_MAX};
use crate::policy::entities::Entities;
use crate::policy::eval::{Evaluation, Fault, Request};
use crate::policy::program::{Op, Test};
use crate::policy::set::{Decision, Mode, PolicySet, Scratch};
use crate::policy::tree::{ActionScope, Body, Effect, Scope, Var, index_u32};
use crate::uid::EntityUid;
use crate::value::Value;

/// Values shown with a condition.
const OPERANDS_MAX: usize = 4;

/// What became of one candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All its conditions hold
    Satisfied,
    /// This condition, the first one, does not hold
    Unsatisfied(Unmet),
    /// This condition could not be evaluated
    Error(Unmet),
}

/// A condition that does not hold or could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// `when ...` or `unless ...`
    pub condition: String,
    /// Where the condition stands
    pub place: Place,
    /// For an error: what went wrong
    pub fault: Option<&'static str>,
    /// What the condition reads, with the values of this request
    pub here: Vec<String>,
}

/// A policy whose scope matches the request.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Index of the policy
    pub policy: u32,
    /// Its id, and its `@id` where that is another one
    pub name: String,
    /// permit or forbid
    pub effect: Effect,
    /// Where it stands
    pub place: Place,
    /// What became of it
    pub outcome: Outcome,
    /// Whether the gate leaves it out of the verdict
    pub shadow: bool,
    /// Whom the gate asks before it allows what this permit permits
    pub approval: Option<String>,
}

/// What a permit lacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// Another principal, action or resource, as a clause
    Scope(String),
    /// A condition
    Condition(Unmet),
}

/// The permit that came closest.
#[derive(Debug, Clone)]
pub struct Nearest {
    /// Index of the policy
    pub policy: u32,
    /// Its id, and its `@id` where that is another one
    pub name: String,
    /// Where it stands
    pub place: Place,
    /// Never empty
    pub lacks: Vec<Lack>,
}

/// One request explained.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The decision of the set
    pub decision: Decision,
    /// `User::"a" may do x on Mcp::"m"`, or `may not`
    pub headline: String,
    /// Policies whose scope matches, in the order of their text
    pub candidates: Vec<Candidate>,
    /// Policies whose scope does not match
    pub out_of_scope: usize,
    /// If no policy outside shadow mode is satisfied and there is any permit: the one that came closest
    pub nearest: Option<Nearest>,
}

/// Explains one request.
pub fn request(set: &PolicySet, request: &Request<'_>, entities: &Entities) -> Explanation {
    let decision = set.decide(request, entities, &mut Scratch::new(), Mode::Full).decision;
    let bump = Bump::new();
    let evaluation = Evaluation::new(&set.program, &set.tree, entities, request, &bump);
    let mut explainer =
        Explainer { set, request, entities, evaluation, places: Places::new(set), positions: positions(set) };
    let candidates = explainer.candidates();
    // The question behind a denial is what would be enough at the gate, so policies in shadow mode do not count.
    let settled = candidates.iter().any(|c| c.outcome == Outcome::Satisfied && !c.shadow);
    let nearest = if settled { None } else { explainer.nearest() };
    let may = if decision == Decision::Allow { "may" } else { "may not" };
    let headline = format!(
        "{} {may} do {} on {}",
        sentences::uid_text(request.principal),
        sentences::action_name(request.action),
        sentences::uid_text(request.resource)
    );
    let out_of_scope = set.bodies.len().saturating_sub(candidates.len());
    Explanation { decision, headline, candidates, out_of_scope, nearest }
}

/// Position in the program of each policy.
fn positions(set: &PolicySet) -> Vec<u32> {
    let mut positions = vec![0u32; set.order.len()];
    for (position, policy) in set.order.iter().enumerate() {
        if let Some(slot) = positions.get_mut(*policy as usize) {
            *slot = index_u32(position);
        }
    }
    positions
}

/// One conjunct's instructions, first and last.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    last: usize,
}

struct Explainer<'s, 'a> {
    set: &'s PolicySet,
    request: &'s Request<'s>,
    entities: &'s Entities,
    evaluation: Evaluation<'a>,
    places: Places<'s>,
    positions: Vec<u32>,
}

impl<'s> Explainer<'s, '_> {
    fn candidates(&mut self) -> Vec<Candidate> {
        let set = self.set;
        let mut found = Vec::new();
        for (policy, body) in set.bodies.iter().enumerate() {
            if self.scope_score(body) == SCOPE_FULL {
                let policy = index_u32(policy);
                found.push(Candidate {
                    policy,
                    name: name(body),
                    effect: body.effect,
                    place: self.places.of_policy(body),
                    outcome: self.outcome(policy, body),
                    shadow: is_shadow(body),
                    approval: annotation(body, "approval").filter(|_| body.effect == Effect::Permit).map(shown),
                });
            }
        }
        found
    }

    /// Action, principal and resource as bits, the most important one first.
    fn scope_score(&self, body: &Body) -> u8 {
        let action = u8::from(action_matches(&body.action, self.request.action, self.entities)) << 2;
        let principal = u8::from(scope_matches(&body.principal, self.request.principal, self.entities)) << 1;
        action | principal | u8::from(scope_matches(&body.resource, self.request.resource, self.entities))
    }

    fn outcome(&mut self, policy: u32, body: &'s Body) -> Outcome {
        let runs = self.runs(policy);
        let Some(start) = runs.first() else { return Outcome::Satisfied };
        let (result, at) = self.evaluation.run_from(start.first);
        if result == Ok(true) {
            return Outcome::Satisfied;
        }
        let number = runs.iter().position(|run| at as usize <= run.last).unwrap_or_default();
        let unmet = self.unmet(body, &runs, number, result.err());
        if result.is_err() { Outcome::Error(unmet) } else { Outcome::Unsatisfied(unmet) }
    }

    /// The conjuncts of a policy as instructions; type tests of its scope are left out.
    fn runs(&self, policy: u32) -> Vec<Run> {
        let position = self.positions.get(policy as usize).copied().unwrap_or_default();
        let range = self.set.program.range(position as usize);
        let mut runs = Vec::new();
        let mut first = range.start;
        for at in range {
            match self.set.program.ops.get(at) {
                Some(Op::RequireType(..)) => first = at.saturating_add(1),
                Some(op) if op.ends_conjunct() => {
                    runs.push(Run { first, last: at });
                    first = at.saturating_add(1);
                }
                _ => {}
            }
        }
        runs
    }

    fn unmet(&mut self, body: &'s Body, runs: &[Run], number: usize, fault: Option<Fault>) -> Unmet {
        let set = self.set;
        let run = runs.get(number).copied();
        let origin = run.and_then(|run| set.program.origins.get(run.last)).copied().unwrap_or_default();
        let condition = Condition::of(set, body, origin);
        Unmet {
            condition: condition.sentence(&set.tree),
            place: self.places.of_expression(body, condition.id),
            fault: fault.map(Fault::message),
            here: run.map(|run| self.here(run)).unwrap_or_default(),
        }
    }

    /// What a conjunct reads and the values it found.
    fn here(&self, run: Run) -> Vec<String> {
        let mut seen: Vec<String> = Vec::new();
        for op in self.set.program.ops.get(run.first..=run.last).unwrap_or_default() {
            let predicate = match op {
                Op::Test(index) | Op::RequireTest(index) | Op::RequireNot(index) => {
                    self.set.program.predicates.get(*index as usize)
                }
                _ => None,
            };
            let text = match (op, predicate) {
                (_, Some(predicate)) => self.operand(predicate.path, matches!(predicate.test, Test::Has(_))),
                (Op::Path(path), _) => self.operand(*path, false),
                (Op::Var(Var::Principal), _) => Some(uid_here("the principal", self.request.principal)),
                (Op::Var(Var::Action), _) => Some(uid_here("the action", self.request.action)),
                (Op::Var(Var::Resource), _) => Some(uid_here("the resource", self.request.resource)),
                _ => None,
            };
            if let Some(text) = text
                && !seen.contains(&text)
            {
                seen.push(text);
            }
            if seen.len() == OPERANDS_MAX {
                break;
            }
        }
        seen
    }

    /// A path and its value. What a `has` looks into is shown only if it could not be read.
    fn operand(&self, path: u32, of_has: bool) -> Option<String> {
        let tree = &self.set.tree;
        let own = self.set.program.paths.get(path as usize)?;
        match self.evaluation.path(path) {
            Ok(_) if of_has => None,
            Ok(value) => {
                let noun = sentences::path_noun(tree, own.root, &own.attrs);
                Some(format!("{noun} is {}", value_here(&value)))
            }
            Err(at) => {
                let step = at.step as usize;
                let upto = own.attrs.get(..=step).unwrap_or(&own.attrs);
                let before = own.attrs.get(..step).unwrap_or_default();
                let noun = sentences::path_noun(tree, own.root, upto);
                Some(match at.fault {
                    Fault::MissingAttribute => format!("{noun} is not given"),
                    Fault::MissingEntity => {
                        format!("{} is not in the entity store", sentences::path_noun(tree, own.root, before))
                    }
                    other => format!("{noun} cannot be read: {}", other.message()),
                })
            }
        }
    }

    fn nearest(&mut self) -> Option<Nearest> {
        let set = self.set;
        let permits =
            || set.bodies.iter().enumerate().filter(|(_, body)| body.effect == Effect::Permit && !is_shadow(body));
        let best = permits().map(|(_, body)| self.scope_score(body)).max()?;
        let mut nearest: Option<(usize, usize, u32)> = None;
        for (policy, body) in permits() {
            if self.scope_score(body) != best {
                continue;
            }
            let policy = index_u32(policy);
            let (held, missing) = self.leading(policy);
            // The most conditions that hold, then the fewest that are left, then the first in the text.
            let nearer = nearest.is_none_or(|(most, fewest, _)| held > most || (held == most && missing < fewest));
            if nearer {
                nearest = Some((held, missing, policy));
            }
        }
        let (_, _, policy) = nearest?;
        let body = set.bodies.get(policy as usize)?;
        let lacks = self.lacks(policy, body);
        Some(Nearest { policy, name: name(body), place: self.places.of_policy(body), lacks })
    }

    /// How many leading conditions of a policy hold, and how many are left.
    fn leading(&self, policy: u32) -> (usize, usize) {
        let runs = self.runs(policy);
        let Some(start) = runs.first() else { return (0, 0) };
        let (result, at) = self.evaluation.run_from(start.first);
        if result == Ok(true) {
            return (runs.len(), 0);
        }
        let held = runs.iter().position(|run| at as usize <= run.last).unwrap_or(runs.len());
        (held, runs.len().saturating_sub(held))
    }

    fn lacks(&mut self, policy: u32, body: &'s Body) -> Vec<Lack> {
        let request = self.request;
        let mut lacks = Vec::new();
        if !action_matches(&body.action, request.action, self.entities) {
            let in_group = matches!(&body.action, ActionScope::In(uids) if !uids.is_empty());
            let clause = sentences::action_missed(&body.action);
            lacks.push(Lack::Scope(self.with_absence(clause, request.action, in_group)));
        }
        for (noun, scope, uid) in
            [("the principal", &body.principal, request.principal), ("the resource", &body.resource, request.resource)]
        {
            if !scope_matches(scope, uid, self.entities) {
                let in_group =
                    matches!(scope, Scope::In(_)) || matches!(scope, Scope::IsIn(ty, _) if **ty == *uid.ty());
                let clause = sentences::scope_missed(scope, noun, uid);
                lacks.push(Lack::Scope(self.with_absence(clause, uid, in_group)));
            }
        }
        let runs = self.runs(policy);
        let mut from = 0usize;
        let mut first = true;
        while let Some(run) = runs.get(from) {
            let (result, at) = self.evaluation.run_from(run.first);
            if result == Ok(true) {
                break;
            }
            let number = runs.iter().position(|run| at as usize <= run.last).unwrap_or(from);
            // An error behind an unmet condition says little: that condition was probably its guard.
            if first || result.is_ok() {
                lacks.push(Lack::Condition(self.unmet(body, &runs, number, result.err())));
            }
            first = false;
            from = number.saturating_add(1);
        }
        lacks
    }

    /// Being in no group for want of an entity is a frequent surprise, so it is said.
    fn with_absence(&self, clause: String, uid: &EntityUid, in_group: bool) -> String {
        if in_group && self.entities.get(uid).is_none() {
            format!("{clause} ({} is not in the entity store, so it is in no group)", sentences::uid_text(uid))
        } else {
            clause
        }
    }
}

/// Action, principal and resource match.
const SCOPE_FULL: u8 = 0b111;

fn uid_here(noun: &str, uid: &EntityUid) -> String {
    format!("{noun} is {}", sentences::uid_text(uid))
}

fn value_here(value: &Value<'_>) -> String {
    match value {
        // Cut before escaping, so that a long text is not escaped for nothing.
        Value::Str(text) => format!("\"{}\"", sentences::cut(text, EXPLAIN_VALUE_CHARS_MAX).escape_debug()),
        other => sentences::cut(&sentences::constant(other), EXPLAIN_VALUE_CHARS_MAX),
    }
}

impl Explanation {
    /// Whether a forbid could not be evaluated: the gate then denies whatever the decision of the language is.
    pub fn forbid_erred(&self) -> bool {
        self.candidates.iter().any(|c| c.effect == Effect::Forbid && matches!(c.outcome, Outcome::Error(_)))
    }

    /// The decision with the gate's two rules: policies in shadow mode are left out, and a forbid that could not be
    /// evaluated denies.
    pub fn gate_decision(&self) -> Decision {
        let counts = |c: &&Candidate| !c.shadow;
        let against = |c: &Candidate| c.effect == Effect::Forbid && !matches!(c.outcome, Outcome::Unsatisfied(_));
        let in_favour = |c: &Candidate| c.effect == Effect::Permit && c.outcome == Outcome::Satisfied;
        let denied = self.candidates.iter().filter(counts).any(against);
        let permitted = self.candidates.iter().filter(counts).any(in_favour);
        if permitted && !denied { Decision::Allow } else { Decision::Deny }
    }

    /// Names of the satisfied candidates of one effect.
    fn satisfied(&self, effect: Effect) -> Vec<&str> {
        self.named(|c| c.effect == effect && c.outcome == Outcome::Satisfied)
    }

    fn named(&self, wanted: impl Fn(&Candidate) -> bool) -> Vec<&str> {
        self.candidates.iter().filter(|candidate| wanted(candidate)).map(|c| &*c.name).collect()
    }

    /// A line that says what the gate makes of it, where that is not what the set decides.
    fn gate_line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gate = self.gate_decision();
        let forbids = |c: &Candidate| !c.shadow && c.effect == Effect::Forbid;
        let erred = self.named(|c| forbids(c) && matches!(c.outcome, Outcome::Error(_)));
        let held = self.named(|c| forbids(c) && c.outcome == Outcome::Satisfied);
        let shadows = self.named(|c| c.shadow && c.outcome == Outcome::Satisfied);
        match (gate, held.is_empty()) {
            (Decision::Deny, true) if !erred.is_empty() => {
                writeln!(f, "at the gate: deny, because a forbid could not be evaluated: {}", list(&erred))
            }
            (Decision::Deny, true) if !shadows.is_empty() => {
                writeln!(f, "at the gate: deny, no permit is satisfied (in shadow mode, left out: {})", list(&shadows))
            }
            (Decision::Allow, _) if self.decision == Decision::Deny => {
                writeln!(f, "at the gate: allow (in shadow mode, left out: {})", list(&shadows))
            }
            _ => Ok(()),
        }
    }

    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forbids = self.satisfied(Effect::Forbid);
        match self.decision {
            Decision::Allow => {
                writeln!(f, "allow: {}: permitted by {}", self.headline, list(&self.satisfied(Effect::Permit)))?;
            }
            Decision::Deny if forbids.is_empty() => writeln!(f, "deny: {}: no permit is satisfied", self.headline)?,
            Decision::Deny => writeln!(f, "deny: {}: forbidden by {}", self.headline, list(&forbids))?,
        }
        self.gate_line(f)
    }
}

/// Names with commas, the first of them.
fn list(names: &[&str]) -> String {
    let shown: Vec<&str> = names.iter().copied().take(EXPLAIN_CANDIDATES_MAX).collect();
    match names.len().saturating_sub(shown.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.verdict(f)?;
        let all = self.candidates.len().saturating_add(self.out_of_scope);
        let others = match self.out_of_scope {
            0 => String::new(),
            n => format!(" ({n} for another principal, action or resource)"),
        };
        writeln!(f, "candidates: {} of {all} policies{others}", self.candidates.len())?;
        let rank = |candidate: &Candidate| match candidate.outcome {
            Outcome::Satisfied => 0,
            Outcome::Error(_) => 1,
            Outcome::Unsatisfied(_) => 2,
        };
        let mut unsatisfied = 0usize;
        for wanted in 0..3 {
            for candidate in self.candidates.iter().filter(|candidate| rank(candidate) == wanted) {
                unsatisfied = unsatisfied.saturating_add(usize::from(wanted == 2));
                if unsatisfied <= EXPLAIN_CANDIDATES_MAX {
                    write!(f, "{candidate}")?;
                }
            }
        }
        if unsatisfied > EXPLAIN_CANDIDATES_MAX {
            writeln!(f, "  and {} more, not satisfied", unsatisfied.saturating_sub(EXPLAIN_CANDIDATES_MAX))?;
        }
        if let Some(nearest) = &self.nearest {
            writeln!(f, "nearest permit: {}, {}; it lacks", nearest.name, nearest.place)?;
            for lack in &nearest.lacks {
                match lack {
                    Lack::Scope(clause) => writeln!(f, "    scope: {clause}")?,
                    Lack::Condition(unmet) => write!(f, "{unmet}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match &self.outcome {
            Outcome::Satisfied => "satisfied",
            Outcome::Unsatisfied(_) => "not satisfied",
            Outcome::Error(_) => "error",
        };
        writeln!(f, "  {} {}, {}: {outcome}", effect_word(self.effect), self.name, self.place)?;
        if let Outcome::Unsatisfied(unmet) | Outcome::Error(unmet) = &self.outcome {
            write!(f, "{unmet}")?;
        }
        if self.shadow {
            writeln!(f, "    in shadow mode: the gate leaves it out of the verdict")?;
        }
        match &self.approval {
            Some(approval) if self.outcome == Outcome::Satisfied => {
                writeln!(f, "    the gate asks for approval first: {approval}")
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault {
            None => writeln!(f, "    not met: {}, {}", self.condition, self.place)?,
            Some(fault) => writeln!(f, "    {fault}: {}, {}", self.condition, self.place)?,
        }
        if !self.here.is_empty() {
            writeln!(f, "      here {}", self.here.join(", "))?;
        }
        Ok(())
    }
}
