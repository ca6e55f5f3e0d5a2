//! The thread behind a shared ledger: it makes spend durable, and notices the dead.
//!
//! Once in an interval it looks whether anything was reserved since, and writes an image if the last one is nearly
//! reached. Once in a second it ends the holds of processes that have died and those past their deadline. A forked
//! child has no threads; its first use of the ledger starts one.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use crate::map;
use crate::sync::Ordering::Relaxed;

/// How often it looks for processes that have died.
const LOOK_FOR_DEAD: Duration = Duration::from_secs(1);

/// A running thread.
#[derive(Debug)]
pub(super) struct Background {
    stop: Arc<(Mutex<bool>, Condvar)>,
    generation: u64,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Background {
    /// Ends the thread, and waits for it unless it is the one that asks, or another process's.
    pub(super) fn stop(&self) {
        if self.generation != map::fork_generation() {
            return;
        }
        let (stop, wake) = &*self.stop;
        *stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        wake.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl Ledger {
    /// Says that something was reserved.
    #[cold]
    pub(super) fn wake_background(&self) {
        self.active.store(1, Relaxed);
    }

    /// Starts the thread of a shared ledger. Does nothing if it runs already.
    pub fn start_background(ledger: &Arc<Self>) {
        let running = ledger.background.load().as_ref().is_some_and(|b| b.generation == map::fork_generation());
        if ledger.store.is_none() || running {
            return;
        }
        let _ = ledger.itself.set(Arc::downgrade(ledger));
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (weak, signal) = (Arc::downgrade(ledger), Arc::clone(&stop));
        let interval = Duration::from_millis(ledger.spec.durable_interval_ms.max(1));
        let thread = std::thread::Builder::new()
            .name("tollkeeper-books".to_owned())
            .spawn(move || run(&weak, &signal, interval));
        // Without a thread the chunk is not kept ahead, so spend would not survive: the next start tries again.
        if let Ok(thread) = thread {
            let thread = Mutex::new(Some(thread));
            ledger.background.store(Some(Arc::new(Background { stop, generation: map::fork_generation(), thread })));
        }
    }
}

fn run(ledger: &Weak<Ledger>, signal: &(Mutex<bool>, Condvar), interval: Duration) {
    let (stop, wake) = signal;
    let mut looked = Instant::now();
    let mut stopped = stop.lock().unwrap_or_else(PoisonError::into_inner);
    while !*stopped {
        let waited = wake.wait_timeout(stopped, interval).unwrap_or_else(PoisonError::into_inner);
        stopped = waited.0;
        if *stopped {
            return;
        }
        drop(stopped);
        let Some(ledger) = ledger.upgrade() else { return };
        if ledger.active.swap(0, Relaxed) != 0
            && let Ok(attached) = ledger.attached()
            && !matches!(ledger.write_image(&attached, false), Ok(true | false))
        {
            // The disk refused: the same is tried again, since what was reserved is still not durable.
            ledger.active.store(1, Relaxed);
        }
        if looked.elapsed() >= LOOK_FOR_DEAD {
            looked = Instant::now();
            // What cannot be looked at now is looked at in a second, and by whoever opens the ledger next.
            let _ = ledger.recover_if_needed();
        }
        drop(ledger);
        stopped = stop.lock().unwrap_or_else(PoisonError::into_inner);
    }
}
