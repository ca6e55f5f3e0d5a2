//! Which policies a sequence of test cases has exercised.
//!
//! A policy that no case satisfies is untested, a forbid most of all: [`Coverage`] counts, case by case, what became of
//! every candidate, and prints the policies that never were satisfied. Reading case files and comparing expectations is
//! the caller's part.

use std::fmt;

use super::explain::{Explanation, Outcome, Place};
use super::set::{Decision, PolicySet};
use super::tree::{Effect, index_u32};
use crate::limits::EXPLAIN_CANDIDATES_MAX;

/// What became of one policy over all cases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Satisfied and of the effect that decided: the policy is a reason
    pub decided: u32,
    /// Satisfied
    pub satisfied: u32,
    /// In scope, a condition not met
    pub unsatisfied: u32,
    /// In scope, a condition could not be evaluated
    pub erred: u32,
}

/// Coverage of one policy set.
#[derive(Debug, Clone)]
pub struct Coverage {
    policies: Vec<Policy>,
    cases: u32,
}

#[derive(Debug, Clone)]
struct Policy {
    name: String,
    place: Place,
    counts: Counts,
}

impl Coverage {
    /// Nothing covered yet.
    pub fn new(set: &PolicySet) -> Self {
        let places = super::explain::names_and_places(set);
        let policies = places.into_iter().map(|(name, place)| Policy { name, place, counts: Counts::default() });
        Self { policies: policies.collect(), cases: 0 }
    }

    /// Counts one case. The explanation must be of the set that this was made for.
    pub fn record(&mut self, explanation: &Explanation) {
        self.cases = self.cases.saturating_add(1);
        let deciding = match explanation.decision {
            Decision::Allow => Effect::Permit,
            Decision::Deny => Effect::Forbid,
        };
        for candidate in &explanation.candidates {
            let Some(policy) = self.policies.get_mut(candidate.policy as usize) else { continue };
            let counts = &mut policy.counts;
            let count = match candidate.outcome {
                Outcome::Satisfied => &mut counts.satisfied,
                Outcome::Unsatisfied(_) => &mut counts.unsatisfied,
                Outcome::Error(_) => &mut counts.erred,
            };
            *count = count.saturating_add(1);
            if candidate.outcome == Outcome::Satisfied && candidate.effect == deciding {
                counts.decided = counts.decided.saturating_add(1);
            }
        }
    }

    /// Number of cases recorded.
    pub const fn cases(&self) -> u32 {
        self.cases
    }

    /// What became of one policy.
    pub fn counts(&self, policy: u32) -> Counts {
        self.policies.get(policy as usize).map_or_else(Counts::default, |policy| policy.counts)
    }

    /// Indices of the policies that no case satisfied.
    pub fn never_satisfied(&self) -> Vec<u32> {
        self.indices(|counts| counts.satisfied == 0)
    }

    /// Indices of the policies that no case reached: every request was out of their scope.
    pub fn never_reached(&self) -> Vec<u32> {
        self.indices(|counts| *counts == Counts::default())
    }

    fn indices(&self, wanted: impl Fn(&Counts) -> bool) -> Vec<u32> {
        let all = self.policies.iter().enumerate().filter(|(_, policy)| wanted(&policy.counts));
        all.map(|(index, _)| index_u32(index)).collect()
    }

    fn list(&self, f: &mut fmt::Formatter<'_>, what: &str, wanted: impl Fn(&Counts) -> bool) -> fmt::Result {
        let found: Vec<&Policy> = self.policies.iter().filter(|policy| wanted(&policy.counts)).collect();
        for (position, policy) in found.iter().take(EXPLAIN_CANDIDATES_MAX).enumerate() {
            let before = if position == 0 { format!(", {what}: ") } else { ", ".to_owned() };
            write!(f, "{before}{} ({})", policy.name, policy.place)?;
        }
        match found.len().saturating_sub(EXPLAIN_CANDIDATES_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decided = self.policies.iter().filter(|policy| policy.counts.decided > 0).count();
        write!(f, "policies: {}, decided at least once: {decided}", self.policies.len())?;
        self.list(f, "never satisfied", |counts| counts.satisfied == 0)?;
        self.list(f, "erred", |counts| counts.erred > 0)
    }
}
