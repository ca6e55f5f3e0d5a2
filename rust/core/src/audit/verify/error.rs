//! What goes wrong when a log is read: not what a verification finds, which is a [`super::report::Fault`].

use thiserror::Error;

/// An error of reading or proving.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The operating system refused
    #[error("{file}: {source}")]
    Io {
        /// The file
        file: String,
        /// What it said
        source: std::io::Error,
    },
    /// Something asked for is not there
    #[error("{what}")]
    NotFound {
        /// What is not there
        what: String,
    },
    /// A file or a text does not have its format
    #[error("{place}: {message}")]
    Format {
        /// The file, and the line or the offset
        place: String,
        /// What is wrong
        message: String,
    },
    /// A proof does not prove what it should
    #[error("{message}")]
    Proof {
        /// What does not hold
        message: String,
    },
    /// A verifier key cannot be used
    #[error("{message}")]
    Key {
        /// What is wrong
        message: String,
    },
    /// No known key has signed a note, or the signature is wrong
    #[error("{message}")]
    Signature {
        /// What does not hold
        message: String,
    },
    /// The entry is not covered by a signed checkpoint yet
    #[error("entry {index} lies beyond the signed size {size}")]
    Unanchored {
        /// The entry
        index: u64,
        /// Size of the checkpoint
        size: u64,
    },
    /// The caller wanted no more
    #[error("the verification was cancelled")]
    Cancelled,
}

impl VerifyError {
    /// Stable name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "audit.io",
            Self::NotFound { .. } => "audit.not_found",
            Self::Format { .. } => "audit.format",
            Self::Proof { .. } => "audit.proof",
            Self::Key { .. } => "audit.key",
            Self::Signature { .. } => "audit.signature",
            Self::Unanchored { .. } => "audit.unanchored",
            Self::Cancelled => "audit.cancelled",
        }
    }

    /// What to do about it.
    pub const fn help(&self) -> Option<&'static str> {
        match self {
            Self::Io { .. } => Some("the log's folder is private to the user who writes it"),
            Self::NotFound { .. } | Self::Proof { .. } | Self::Cancelled => None,
            Self::Format { .. } => Some("verify the log: the report names every place that is damaged"),
            Self::Key { .. } => Some("a key is one line, NAME+ID+BASE64, as in the log's `verifier.pub`"),
            Self::Signature { .. } => Some("ask whoever runs the log for its verifier key, by another way"),
            Self::Unanchored { .. } => Some("wait for the next checkpoint: the writer signs one every second"),
        }
    }

    /// A text or a file without its format.
    pub(super) fn format(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Format { place: place.into(), message: message.into() }
    }

    /// A refusal of the operating system.
    pub(super) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { file: path.display().to_string(), source }
    }
}
