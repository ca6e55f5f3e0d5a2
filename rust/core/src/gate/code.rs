//! The codes a decision can carry: a closed set of stable slugs, each documented here and raised by a test.
//!
//! Codes arrive with the room that raises them; what no room raises yet is not listed. A slug, once published, keeps
//! its meaning: programs and dashboards compare it.

use std::fmt;

/// Why a decision came out as it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The action may go ahead
    Allow,
    /// A forbid applies, or the run was narrowed to other tools
    PolicyForbidden,
    /// No permit applies
    PolicyNoPermit,
    /// A forbid could not be evaluated
    PolicyError,
    /// The arguments cannot be read as what the tool declares or as Cedar values
    InputUnrepresentable,
    /// The arguments are larger or deeper than the bound
    InputTooLarge,
    /// The tool is not registered
    InputUnknownTool,
    /// Nobody said who is acting
    ScopeMissing,
    /// A permit applies only after an approval
    ApprovalRequired,
    /// The gate was opened before a fork
    GateForked,
    /// The gate was closed
    GateClosed,
    /// A defect of the gate itself
    InternalPanic,
}

impl Code {
    /// All codes.
    pub const ALL: [Self; 12] = [
        Self::Allow,
        Self::PolicyForbidden,
        Self::PolicyNoPermit,
        Self::PolicyError,
        Self::InputUnrepresentable,
        Self::InputTooLarge,
        Self::InputUnknownTool,
        Self::ScopeMissing,
        Self::ApprovalRequired,
        Self::GateForked,
        Self::GateClosed,
        Self::InternalPanic,
    ];

    /// The stable slug.
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::PolicyForbidden => "policy.forbidden",
            Self::PolicyNoPermit => "policy.no_permit",
            Self::PolicyError => "policy.error",
            Self::InputUnrepresentable => "input.unrepresentable",
            Self::InputTooLarge => "input.too_large",
            Self::InputUnknownTool => "input.unknown_tool",
            Self::ScopeMissing => "scope.missing",
            Self::ApprovalRequired => "approval.required",
            Self::GateForked => "gate.forked",
            Self::GateClosed => "gate.closed",
            Self::InternalPanic => "internal.panic",
        }
    }

    /// What the code means, as the documentation prints it.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Allow => "The action may go ahead.",
            Self::PolicyForbidden => "A forbid policy applies, or the run was narrowed to other tools.",
            Self::PolicyNoPermit => "No permit policy applies; without one everything is denied.",
            Self::PolicyError => "A forbid policy could not be evaluated, so it counts as applying.",
            Self::InputUnrepresentable => {
                "The arguments do not have the shape the tool declares, or a forbid reads one that Cedar has no value for."
            }
            Self::InputTooLarge => "The arguments are larger or nest deeper than the bound.",
            Self::InputUnknownTool => "The tool is not registered; the reason holds the stanza to add.",
            Self::ScopeMissing => "The check ran outside a run, or the run's principal cannot be used.",
            Self::ApprovalRequired => "A policy permits the action only after an approval of these exact arguments.",
            Self::GateForked => "The gate was opened in a parent process; open one in this process.",
            Self::GateClosed => "The gate was closed.",
            Self::InternalPanic => "A defect inside the gate; the action is denied.",
        }
    }

    /// Whether shadow mode lets the action pass all the same: only what somebody wrote as a rule for this action.
    pub const fn flips_in_shadow(self) -> bool {
        matches!(self, Self::PolicyForbidden | Self::PolicyNoPermit | Self::PolicyError | Self::ApprovalRequired)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.slug())
    }
}
