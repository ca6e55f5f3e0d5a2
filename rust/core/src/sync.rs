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

/// A word that is loaded and then exchanged.
///
/// The model checker looks for a race with the last access to a word only, and the load before an exchange would hide
/// that of another thread. So it is told first; in any other build this is nothing.
pub trait Announce {
    /// Says that a load and an exchange follow.
    fn announce(&self);
}

macro_rules! announce {
    ($($name:ident),*) => {
        $(
            impl Announce for $name {
                #[inline(always)]
                fn announce(&self) {
                    // An exchange that fails: no word ever has this value.
                    #[cfg(loom)]
                    let _ = self.compare_exchange(0x5a5a_5a5a, 0x5a5a_5a5a, Ordering::Relaxed, Ordering::Relaxed);
                }
            }
        )*
    };
}
announce!(AtomicI64, AtomicU32, AtomicU64);

#[cfg(loom)]
pub use loom::hint::spin_loop;
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::thread::yield_now;
