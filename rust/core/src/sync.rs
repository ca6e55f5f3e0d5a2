//! The one way to atomics and to spinning: the standard library's, or those of the model checker under `--cfg loom`.
//!
//! The rooms that share memory between threads and processes import from here only, so that the model checker sees
//! every access. Nothing here decides anything.

#[cfg(not(loom))]
pub use std::hint::spin_loop;
#[cfg(all(not(loom), not(test)))]
pub use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64};
#[cfg(not(loom))]
pub use std::sync::atomic::{Ordering, fence};
#[cfg(not(loom))]
pub use std::thread::yield_now;

// In this crate's own tests a thread can be killed before each of its writes.
#[cfg(all(not(loom), test))]
pub use crate::mortal::{AtomicI64, AtomicU32, AtomicU64};

#[cfg(loom)]
pub use loom::hint::spin_loop;
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::thread::yield_now;
