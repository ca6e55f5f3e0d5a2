//! What goes wrong with the state that the gates of a host share.

use thiserror::Error;

/// An error of the control file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The file was made by another version
    #[error("{file}: the control file has layout {found}, this version reads {expected}")]
    Version {
        /// The file
        file: String,
        /// Layout of the file
        found: u32,
        /// Layout of this version
        expected: u32,
    },
    /// The file is not a control file, or damaged
    #[error("{file}: {message}")]
    Corrupt {
        /// The file
        file: String,
        /// What does not hold
        message: String,
    },
    /// The file system loses its content with the power, and nobody said that this is meant
    #[error("{file}: lies in memory (tmpfs), so revocations would not survive a restart")]
    Volatile {
        /// The file
        file: String,
    },
    /// The folder or the file lets others in
    #[error("{path}: open to other users (mode {mode:o}), who could lift revocations and grant approvals")]
    Permissions {
        /// The folder or the file
        path: String,
        /// Its mode bits
        mode: u32,
    },
    /// The file was removed or replaced while it was in use
    #[error("{file}: the control file was removed or replaced while this process used it")]
    Replaced {
        /// The file
        file: String,
    },
    /// Another process holds the lock and does not go on
    #[error("{file}: another process has held the lock of the control file for {waited_ms} ms")]
    Busy {
        /// The file
        file: String,
        /// How long this one waited
        waited_ms: u64,
    },
    /// The handle was inherited through a fork
    #[error("this control file was opened by the parent process")]
    Forked,
    /// No room for another one
    #[error("there is no room for another {what}: {limit} is the limit of one control file")]
    Full {
        /// Of what there are too many
        what: &'static str,
        /// How many fit
        limit: usize,
    },
    /// A text that is empty or too long
    #[error("{what} has {bytes} bytes, not between {least} and {limit}")]
    Text {
        /// What it is
        what: &'static str,
        /// Its length
        bytes: usize,
        /// The shortest
        least: usize,
        /// The longest
        limit: usize,
    },
    /// An approval that cannot be asked for or answered any more
    #[error("approval {id} is {state}")]
    Approval {
        /// Its id
        id: String,
        /// The state that it is in
        state: &'static str,
    },
    /// It is in force, but the disk does not have it
    #[error("{file}: in force in every process now, but it may be forgotten at a restart of the host: {source}")]
    NotDurable {
        /// The file
        file: String,
        /// What the operating system said
        source: std::io::Error,
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

impl ControlError {
    /// Stable name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Version { .. } => "control.state_version",
            Self::Corrupt { .. } => "control.state_corrupt",
            Self::Volatile { .. } => "control.state_volatile",
            Self::Permissions { .. } => "control.state_permissions",
            Self::Replaced { .. } => "control.state_replaced",
            Self::Busy { .. } => "control.busy",
            Self::Forked => "gate.forked",
            Self::Full { .. } => "control.full",
            Self::Text { .. } => "control.text",
            Self::Approval { .. } => "control.approval",
            Self::NotDurable { .. } => "control.not_durable",
            Self::Io { .. } => "control.io",
        }
    }

    /// What to do about it.
    pub const fn help(&self) -> Option<&'static str> {
        match self {
            Self::Version { .. } => {
                Some("list what is revoked with the version that made it, move the file away, revoke it again")
            }
            Self::Corrupt { .. } => Some(
                "nothing was changed; move the file away to start a new one, and revoke again what the audit log says",
            ),
            Self::Volatile { .. } => Some("put the state on a disk, or write `volatile = true` under [state]"),
            Self::Permissions { .. } => Some("make the folder and the file private: chmod 700, chmod 600"),
            Self::Replaced { .. } => Some("open it anew; processes that have the old file do not see the new one"),
            Self::Busy { .. } => Some("look for a stopped process that changes this file: tollkeeper status"),
            Self::Forked => Some("open it again in the child"),
            Self::Full { .. } => Some("restore what is not needed, answer what waits, or use fewer labels"),
            Self::Text { .. } => None,
            Self::Approval { .. } => Some("look at what waits: tollkeeper approvals"),
            Self::NotDurable { .. } => Some("make room on the disk and do the same again"),
            Self::Io { .. } => Some("it needs a writable file on a local file system with room for all of it"),
        }
    }
}
