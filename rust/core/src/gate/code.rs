//! The codes a decision can carry: a closed set of stable slugs, each documented here and raised by a test.
//!
//! Codes arrive with the room that raises them; what no room raises yet is not listed. A slug, once published, keeps
//! its meaning: programs and dashboards compare it.

use std::fmt;

use crate::budget::denial::DenialKind;

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
    /// The principal, one that it acts for, the tool or the session was revoked
    PrincipalRevoked,
    /// The run's time is over
    PrincipalExpired,
    /// What is spent leaves too little in a window of the run's budget or of one above it
    BudgetExhausted,
    /// What other work holds leaves too little; the only one worth a retry
    BudgetContended,
    /// It does not fit even an untouched budget
    BudgetTooLarge,
    /// The hold's deadline has passed, or it has ended
    BudgetExpired,
    /// The model has no price, and a budget counts money
    BudgetUnpriced,
    /// There is a cost and no budget or no ledger that could pay it
    BudgetUnavailable,
    /// A permit applies only after an approval
    ApprovalRequired,
    /// An approver has said no to exactly this
    ApprovalRejected,
    /// Nobody answered in time, or what was approved was not used in time
    ApprovalExpired,
    /// The audit log cannot take the record
    AuditUnavailable,
    /// The gate was opened before a fork
    GateForked,
    /// The gate was closed
    GateClosed,
    /// A defect of the gate itself
    InternalPanic,
    // Files count codes by their place: what comes later stands behind.
    /// The tool's definition is not the one that was accepted, and the tool is withheld until somebody has looked at it
    ToolChanged,
}

impl Code {
    /// All codes.
    pub const ALL: [Self; 24] = [
        Self::Allow,
        Self::PolicyForbidden,
        Self::PolicyNoPermit,
        Self::PolicyError,
        Self::InputUnrepresentable,
        Self::InputTooLarge,
        Self::InputUnknownTool,
        Self::ScopeMissing,
        Self::PrincipalRevoked,
        Self::PrincipalExpired,
        Self::BudgetExhausted,
        Self::BudgetContended,
        Self::BudgetTooLarge,
        Self::BudgetExpired,
        Self::BudgetUnpriced,
        Self::BudgetUnavailable,
        Self::ApprovalRequired,
        Self::ApprovalRejected,
        Self::ApprovalExpired,
        Self::AuditUnavailable,
        Self::GateForked,
        Self::GateClosed,
        Self::InternalPanic,
        Self::ToolChanged,
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
            Self::PrincipalRevoked => "principal.revoked",
            Self::PrincipalExpired => "principal.expired",
            Self::BudgetExhausted => DenialKind::Exhausted.slug(),
            Self::BudgetContended => DenialKind::Contended.slug(),
            Self::BudgetTooLarge => DenialKind::TooLarge.slug(),
            Self::BudgetExpired => DenialKind::Expired.slug(),
            Self::BudgetUnpriced => DenialKind::Unpriced.slug(),
            Self::BudgetUnavailable => DenialKind::Unavailable.slug(),
            Self::ApprovalRequired => "approval.required",
            Self::ApprovalRejected => "approval.rejected",
            Self::ApprovalExpired => "approval.expired",
            Self::AuditUnavailable => "audit.unavailable",
            Self::GateForked => "gate.forked",
            Self::GateClosed => "gate.closed",
            Self::InternalPanic => "internal.panic",
            Self::ToolChanged => "tool.changed",
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
            Self::PrincipalRevoked => {
                "An operator has revoked the principal, one it acts for, the tool, the session or everything; stop."
            }
            Self::PrincipalExpired => "The time that the run was given is over; start another run.",
            Self::BudgetExhausted => {
                "What is spent leaves too little in a window of the run's budget or of one above it; `retry_after` says when it ends."
            }
            Self::BudgetContended => {
                "What other work holds leaves too little at the moment; the only denial worth a retry, after `retry_after` seconds."
            }
            Self::BudgetTooLarge => {
                "The action costs more than an untouched budget allows; it never fits, ask for less."
            }
            Self::BudgetExpired => "The hold's deadline has passed or it has ended; ask again.",
            Self::BudgetUnpriced => {
                "The model has no price, and a budget that would pay for it counts money; add the price to the budgets."
            }
            Self::BudgetUnavailable => {
                "The action costs something, and the run has no budget, or the ledger cannot answer."
            }
            Self::ApprovalRequired => "A policy permits the action only after an approval of these exact arguments.",
            Self::ApprovalRejected => "An approver has rejected this action with these exact arguments.",
            Self::ApprovalExpired => {
                "Nobody answered the request for an approval in time, or it was not used in time; ask again."
            }
            Self::AuditUnavailable => {
                "The decision cannot be recorded: the log is full or its disk refuses; nothing was reserved."
            }
            Self::GateForked => "The gate was opened in a parent process; open one in this process.",
            Self::GateClosed => "The gate was closed.",
            Self::InternalPanic => "A defect inside the gate; the action is denied.",
            Self::ToolChanged => {
                "The tool's definition has changed since it was accepted, or nobody has accepted it yet; use another tool."
            }
        }
    }

    /// Whether shadow mode lets the action pass all the same: only what somebody wrote as a rule for this action.
    pub const fn flips_in_shadow(self) -> bool {
        matches!(self, Self::PolicyForbidden | Self::PolicyNoPermit | Self::PolicyError)
            || self.is_approval()
            || self.is_budget()
    }

    /// Whether somebody's approval is what is missing.
    pub const fn is_approval(self) -> bool {
        matches!(self, Self::ApprovalRequired | Self::ApprovalRejected | Self::ApprovalExpired)
    }

    /// Whether the budget step denied.
    pub const fn is_budget(self) -> bool {
        matches!(
            self,
            Self::BudgetExhausted
                | Self::BudgetContended
                | Self::BudgetTooLarge
                | Self::BudgetExpired
                | Self::BudgetUnpriced
                | Self::BudgetUnavailable
        )
    }
}

impl From<DenialKind> for Code {
    fn from(kind: DenialKind) -> Self {
        match kind {
            DenialKind::Exhausted => Self::BudgetExhausted,
            DenialKind::Contended => Self::BudgetContended,
            DenialKind::TooLarge => Self::BudgetTooLarge,
            DenialKind::Expired => Self::BudgetExpired,
            DenialKind::Unpriced => Self::BudgetUnpriced,
            DenialKind::Unavailable => Self::BudgetUnavailable,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.slug())
    }
}
