//! The thread behind a shared ledger: it makes spend durable, and notices the dead.
//!
//! Once in an interval it looks whether anything was reserved since, and writes an image if the last one is nearly
//! reached. Once in a second it ends the holds of processes that have died and those past their deadline. A forked
//! child has no threads; its first use of the ledger starts one.

use std::cell::Cell;
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
    signal: Arc<Signal>,
    generation: u64,
}

/// How the thread and whoever stops it tell each other. No handle of the thread is kept: in a forked child it would be
/// one of a thread that is not there, and dropping it would detach another.
#[derive(Debug, Default)]
struct Signal {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Running,
    Stopping,
    Over,
}

impl Background {
    /// Ends the thread, and waits for it unless it is the one that asks, or another process's.
    pub(super) fn stop(&self) {
        if self.generation != map::fork_generation() {
            return;
        }
        let signal = &*self.signal;
        let mut state = signal.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == State::Running {
            *state = State::Stopping;
        }
        signal.wake.notify_all();
        // The thread itself may be the last to let go of the ledger: it does not wait for itself.
        while *state != State::Over && !IS_BACKGROUND.get() {
            state = signal.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

thread_local! {
    static IS_BACKGROUND: Cell<bool> = const { Cell::new(false) };
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
        let signal = Arc::new(Signal::default());
        let (weak, own) = (Arc::downgrade(ledger), Arc::clone(&signal));
        let interval = Duration::from_millis(ledger.spec.durable_interval_ms.max(1));
        let thread = std::thread::Builder::new().name("tollkeeper-books".to_owned()).spawn(move || {
            IS_BACKGROUND.set(true);
            run(&weak, &own, interval);
            *own.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Over;
            own.wake.notify_all();
        });
        // Without a thread the chunk is not kept ahead, so spend would not survive: the next start tries again.
        if thread.is_ok() {
            ledger.background.store(Some(Arc::new(Background { signal, generation: map::fork_generation() })));
        }
    }
}

fn run(ledger: &Weak<Ledger>, signal: &Signal, interval: Duration) {
    let mut looked = Instant::now();
    let mut state = signal.state.lock().unwrap_or_else(PoisonError::into_inner);
    while *state == State::Running {
        state = signal.wake.wait_timeout(state, interval).unwrap_or_else(PoisonError::into_inner).0;
        if *state != State::Running {
            return;
        }
        drop(state);
        let Some(ledger) = ledger.upgrade() else { return };
        ledger.keep_books(&mut looked);
        drop(ledger);
        state = signal.state.lock().unwrap_or_else(PoisonError::into_inner);
    }
}

impl Ledger {
    /// What the thread does once in an interval.
    fn keep_books(&self, looked: &mut Instant) {
        if self.active.swap(0, Relaxed) != 0
            && let Ok(attached) = self.attached()
            && self.write_image(&attached, false).is_err()
        {
            // The disk refused: the same is tried again, since what was reserved is still not durable.
            self.active.store(1, Relaxed);
        }
        if looked.elapsed() >= LOOK_FOR_DEAD {
            *looked = Instant::now();
            self.check_name();
            // What cannot be looked at now is looked at in a second, and by whoever opens the ledger next.
            let _ = self.recover_if_needed();
        }
    }
}
