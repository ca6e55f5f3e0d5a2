//! What all gates of one host share: one mapped file, `control.bin` in the state directory, or memory of one process.
//!
//! `revocations` says what may do nothing any more, `sessions` which labels a session has picked up and `labels` what
//! they are called, `approvals` what people were asked and have answered, `counters` what each gate counts. `layout` is
//! what lies in memory, `store` the file.
//!
//! What a check reads takes no lock, makes no system call and, but for a table of revocations that has changed,
//! allocates nothing. Who changes something waits for a lock that the kernel takes from the dead, and, where it has to
//! survive the power, for the disk. A process that is killed at any point leaves a file that all others go on with.
//!
//! It decides nothing: the gate does, and records it. It knows nothing of policies, of audit and of Python.

mod approvals;
#[cfg(not(loom))]
mod counters;
#[cfg(test)]
#[cfg(not(loom))]
mod deaths;
mod error;
mod labels;
pub(crate) mod layout;
#[cfg(test)]
#[cfg(loom)]
mod loom_models;
mod revocations;
mod sessions;
#[cfg(not(loom))]
mod store;

pub use self::approvals::{Answered, ApprovalId, ApprovalRow, ApprovalState, Grant, Standing};
#[cfg(not(loom))]
pub use self::counters::{Counters, CountersRow};
pub use self::error::ControlError;
pub use self::revocations::{Change, Revocations, Revoked, Target, TargetKind};
pub use self::sessions::SessionRef;
#[cfg(not(loom))]
pub use self::shared::Control;

#[cfg(not(loom))]
mod shared;
