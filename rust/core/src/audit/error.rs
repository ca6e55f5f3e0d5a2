//! What can go wrong with a log, each with a stable code, what it is about and what to do.

use std::path::PathBuf;

use thiserror::Error;

/// An error of the audit room.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The operating system refused
    #[error("{what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried
        what: &'static str,
        /// With which file
        path: PathBuf,
        /// Why not
        source: std::io::Error,
    },
    /// A file is not what it should be
    #[error("{path}: {message}", path = path.display())]
    Format {
        /// The file
        path: PathBuf,
        /// What is wrong, with the place
        message: String,
    },
    /// Another process has the log
    #[error("{path}: the log is in use by {owner}; open another folder, or end that process", path = path.display())]
    InUse {
        /// The folder
        path: PathBuf,
        /// Who
        owner: String,
    },
    /// What was asked for cannot be
    #[error("{message}")]
    Invalid {
        /// Why, and what can be
        message: String,
    },
    /// The log cannot take or keep records now
    #[error("{message}")]
    Unavailable {
        /// Why, and what to do
        message: String,
    },
    /// The log was closed
    #[error("the log was closed; open it again")]
    Closed,
    /// The log was opened before a fork
    #[error("the log was opened in a parent process; open one in this process")]
    Forked,
}

impl AuditError {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "audit.io",
            Self::Format { .. } => "audit.format",
            Self::InUse { .. } => "audit.in_use",
            Self::Invalid { .. } => "audit.invalid",
            Self::Unavailable { .. } => "audit.unavailable",
            Self::Closed => "gate.closed",
            Self::Forked => "gate.forked",
        }
    }

    /// An error of the operating system.
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    pub(super) fn format(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Format { path: path.into(), message: message.into() }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into() }
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable { message: message.into() }
    }
}
