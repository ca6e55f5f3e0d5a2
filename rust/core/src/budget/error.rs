//! What goes wrong with a ledger as such. A denial is not an error: see [`super::denial`].

use thiserror::Error;

use super::unit::Unit;
use crate::limits::AMOUNT_MAX;

/// An error of the budget room.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// An amount that cannot be one
    #[error("{} is {amount}, not between 0 and {AMOUNT_MAX}", .unit.name())]
    Amount {
        /// Of what
        unit: Unit,
        /// How much was asked for
        amount: i64,
    },
    /// The budgets cannot be used as described
    #[error("{message}")]
    Spec {
        /// What is wrong
        message: String,
    },
    /// No budget of this path, unit or window
    #[error("{message}")]
    Unknown {
        /// What is not there
        message: String,
    },
    /// The state file was made by another version
    #[error("{file}: the ledger has layout {found}, this version reads {expected}")]
    Version {
        /// The file
        file: String,
        /// Layout of the file
        found: u32,
        /// Layout of this version
        expected: u32,
    },
    /// The state file is not a ledger, or damaged
    #[error("{file}: {message}")]
    Corrupt {
        /// The file
        file: String,
        /// What does not hold
        message: String,
    },
    /// The state file has another shape than the budgets ask for
    #[error("{file}: {message}")]
    Shape {
        /// The file
        file: String,
        /// What differs
        message: String,
    },
    /// The file system loses its content with the power, and nobody said that this is meant
    #[error("{file}: lies in memory (tmpfs), so spend would not survive a restart")]
    Volatile {
        /// The file
        file: String,
    },
    /// The folder lets others in
    #[error("{folder}: the folder is open to other users (mode {mode:o}), who could change the ledger")]
    Permissions {
        /// The folder
        folder: String,
        /// Its mode bits
        mode: u32,
    },
    /// The state file was removed or replaced while it was in use
    #[error("{file}: the state file was removed or replaced while this process used it")]
    Replaced {
        /// The file
        file: String,
    },
    /// No room among the attached processes
    #[error("{file}: {limit} processes are attached already, which is the limit")]
    Processes {
        /// The file
        file: String,
        /// How many fit
        limit: usize,
    },
    /// An in-memory ledger was inherited through a fork
    #[error("this ledger lives in the memory of the parent process; a copy would double its budgets")]
    Forked,
    /// The ledger was closed
    #[error("this ledger is closed")]
    Closed,
    /// Another process holds the ledger's lock and does not go on
    #[error("{file}: another process has held the ledger's lock for {waited_ms} ms")]
    Busy {
        /// The file
        file: String,
        /// How long this one waited
        waited_ms: u64,
    },
    /// The operating system refused
    #[error("{file}: {action}: {source}")]
    Io {
        /// The file
        file: String,
        /// What was tried
        action: &'static str,
        /// What it said
        source: std::io::Error,
    },
}

impl BudgetError {
    /// Stable name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Amount { .. } => "budget.amount",
            Self::Spec { .. } => "budget.spec",
            Self::Unknown { .. } => "budget.unknown",
            Self::Version { .. } => "budget.state_version",
            Self::Corrupt { .. } => "budget.state_corrupt",
            Self::Shape { .. } => "budget.state_shape",
            Self::Volatile { .. } => "budget.state_volatile",
            Self::Permissions { .. } => "budget.state_permissions",
            Self::Replaced { .. } => "budget.state_replaced",
            Self::Processes { .. } => "budget.processes",
            Self::Forked => "gate.forked",
            Self::Closed => "gate.closed",
            Self::Busy { .. } => "budget.busy",
            Self::Io { .. } => "budget.io",
        }
    }

    /// What to do about it.
    pub const fn help(&self) -> Option<&'static str> {
        match self {
            Self::Amount { .. } => Some("amounts are whole numbers in the unit's own size, nano-USD for money"),
            Self::Spec { .. } | Self::Unknown { .. } => None,
            Self::Version { .. } => Some("finish with the version that wrote it, or start a new state file"),
            Self::Corrupt { .. } => Some("nothing was changed; move the file away to start a new ledger"),
            Self::Shape { .. } => {
                Some("stop every process that uses the ledger and move the file away, or keep the old sizes")
            }
            Self::Volatile { .. } => Some("put the state on a disk, or write `volatile = true` under [ledger]"),
            Self::Permissions { .. } => Some("make the folder private: chmod 700"),
            Self::Replaced { .. } => {
                Some("open it anew; what was spent since lies in a file that has no name any more")
            }
            Self::Processes { .. } => Some("end processes that are not needed; a dead one makes room at once"),
            Self::Forked => Some("open a new one in the child, or give both the same `state` file"),
            Self::Closed => Some("open it anew"),
            Self::Busy { .. } => Some("look for a stopped process that uses this ledger: tollkeeper budget holds"),
            Self::Io { .. } => Some("the ledger needs a writable file on a local file system with room for all of it"),
        }
    }
}
