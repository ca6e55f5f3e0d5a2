//! Handles that know whether they were inherited through a fork.
//!
//! A child of `fork` has a copy of every in-process count and of every open log: using them would double the budget
//! and fork the history. So each process has a generation number that the child side of `fork` raises, a handle
//! remembers the generation it was made in, and an inherited handle refuses. One relaxed load a call; asking the
//! kernel for the process id costs a system call.
//!
//! The core sets the hook, with the first handle and not at import: without a handle there is nothing to refuse.

use tollkeeper_core::map::{fork_generation, watch_forks};

use crate::errors::Error;

/// The generation of this process.
#[inline]
pub(crate) fn generation() -> u64 {
    fork_generation()
}

/// The generation a handle was made in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Born(u64);

impl Born {
    /// Now. Without memory for the hook, a generation that never comes: such a handle refuses from the start.
    pub(crate) fn now() -> Self {
        crate::guard::withhold_messages();
        Self(if watch_forks() { generation() } else { u64::MAX })
    }

    /// Whether this is the process the handle was made in.
    #[inline]
    pub(crate) fn is_here(self) -> bool {
        self.0 == generation()
    }

    /// Refuses in a process other than the one the handle was made in.
    #[inline]
    pub(crate) fn check(self) -> Result<(), Error> {
        if self.is_here() { Ok(()) } else { Err(Error::Forked) }
    }
}
