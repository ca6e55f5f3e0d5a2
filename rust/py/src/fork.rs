//! Handles that know whether they were inherited through a fork.
//!
//! A child of `fork` has a copy of every in-process count and of every open log: using them would double the budget
//! and fork the history. So each process has a generation number that the child side of `fork` raises, a handle
//! remembers the generation it was made in, and an inherited handle refuses. One relaxed load a call; asking the
//! kernel for the process id costs a system call.
//!
//! The hook is set by the first handle and not at import: without a handle there is nothing to refuse.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::errors::Error;

/// Raised by one in each child. Relaxed: the child of a fork has one thread, which sees its own store, and threads it
/// starts later are ordered after it.
static GENERATION: AtomicU64 = AtomicU64::new(0);

extern "C" fn after_fork_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Whether the hook is in place.
#[expect(unsafe_code, reason = "there is no safe way to see forks that the interpreter does not make itself")]
fn hooked() -> bool {
    static HOOKED: OnceLock<bool> = OnceLock::new();
    *HOOKED.get_or_init(|| {
        // SAFETY: the handler may run between fork and exec in a child of a program with threads, so it must be
        // async-signal-safe: it adds to a lock-free atomic and nothing else. It lives as long as the process: the
        // interpreter never unloads an extension module.
        let status = unsafe { libc::pthread_atfork(None, None, Some(after_fork_in_child)) };
        status == 0
    })
}

/// The generation of this process.
#[inline]
pub(crate) fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// The generation a handle was made in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Born(u64);

impl Born {
    /// Now. Without memory for the hook, a generation that never comes: such a handle refuses from the start.
    pub(crate) fn now() -> Self {
        Self(if hooked() { generation() } else { u64::MAX })
    }

    /// Refuses in a process other than the one the handle was made in.
    #[inline]
    pub(crate) fn check(self) -> Result<(), Error> {
        if self.0 == generation() { Ok(()) } else { Err(Error::Forked) }
    }
}
