//! Tests only: atomics before whose writes a thread can be made to end as if it were killed there.
//!
//! A process may die between any two of its writes to shared memory. [`live_for`] runs some work and ends it before its
//! write number `n`, by unwinding: nothing of the room cleans up while it unwinds, and a write in a destructor would
//! abort the test. Run for every `n`, this tries every death there is; another hand on the same memory then has to cope.
//!
//! Built into the crate's own tests in place of the atomics of the standard library, never into anything else.

#![expect(missing_docs, reason = "the methods are those of the standard library's atomics")]

use std::cell::Cell;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;

/// What a killed thread unwinds with.
struct Killed;

const FOR_EVER: u64 = u64::MAX;

thread_local! {
    static WRITES_LEFT: Cell<u64> = const { Cell::new(FOR_EVER) };
}

/// Runs `work` for as long as it writes at most `writes` times; `None` if it was killed before its next one.
pub(crate) fn live_for<T>(writes: u64, work: impl FnOnce() -> T) -> Option<T> {
    WRITES_LEFT.set(writes);
    let result = catch_unwind(AssertUnwindSafe(work));
    WRITES_LEFT.set(FOR_EVER);
    match result {
        Ok(done) => Some(done),
        Err(panic) if panic.is::<Killed>() => None,
        Err(panic) => resume_unwind(panic),
    }
}

/// Whether this thread was killed and is unwinding: then no destructor may do what a dead process cannot.
pub(crate) fn is_killed() -> bool {
    WRITES_LEFT.get() == 0 && std::thread::panicking()
}

/// What every write does first.
fn write() {
    match WRITES_LEFT.get() {
        FOR_EVER => {}
        // The hook that prints panics is not asked.
        0 => resume_unwind(Box::new(Killed)),
        left => WRITES_LEFT.set(left.saturating_sub(1)),
    }
}

macro_rules! mortal {
    ($($name:ident, $word:ty;)*) => {
        $(
            /// The atomic of the standard library, with every write a place to die before.
            #[repr(transparent)]
            #[derive(Debug, Default)]
            pub struct $name(std::sync::atomic::$name);

            impl $name {
                pub const fn new(value: $word) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }

                pub fn store(&self, value: $word, order: Ordering) {
                    write();
                    self.0.store(value, order);
                }

                pub fn swap(&self, value: $word, order: Ordering) -> $word {
                    write();
                    self.0.swap(value, order)
                }

                pub fn fetch_add(&self, value: $word, order: Ordering) -> $word {
                    write();
                    self.0.fetch_add(value, order)
                }

                pub fn fetch_sub(&self, value: $word, order: Ordering) -> $word {
                    write();
                    self.0.fetch_sub(value, order)
                }

                pub fn fetch_or(&self, value: $word, order: Ordering) -> $word {
                    write();
                    self.0.fetch_or(value, order)
                }

                pub fn fetch_max(&self, value: $word, order: Ordering) -> $word {
                    write();
                    self.0.fetch_max(value, order)
                }

                pub fn compare_exchange(
                    &self,
                    old: $word,
                    new: $word,
                    done: Ordering,
                    failed: Ordering,
                ) -> Result<$word, $word> {
                    write();
                    self.0.compare_exchange(old, new, done, failed)
                }

                pub fn compare_exchange_weak(
                    &self,
                    old: $word,
                    new: $word,
                    done: Ordering,
                    failed: Ordering,
                ) -> Result<$word, $word> {
                    write();
                    self.0.compare_exchange_weak(old, new, done, failed)
                }
            }

            /// Reads, and what the kernel does with the word, are those of the standard library.
            impl Deref for $name {
                type Target = std::sync::atomic::$name;

                fn deref(&self) -> &Self::Target {
                    &self.0
                }
            }
        )*
    };
}

mortal! {
    AtomicI64, i64;
    AtomicU32, u32;
    AtomicU64, u64;
}
