//! The ledger: reserve before the work, charge while it runs, settle or release after it.
//!
//! A reserve names a budget and must fit at every level above it, in every unit and window, or nothing changes. The
//! calls that stand in a request's way (`reserve`, `charge`, `top_up`, `settle`, `release`) wait for nothing and do no
//! I/O; the rest (`open`, `recover`, `set_limit`, `sync`) may take the ledger's lock or go to the disk.
//!
//! A ledger is of one process, or of all processes that open the same file. A forked child may go on with a shared one,
//! under a number of its own; one in memory refuses, because a copy would double its budgets.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::clock::Clock;
use super::denial::{Denial, DenialKind};
use super::error::BudgetError;
use super::hold::{Charge, Hand, HoldId, Refused, Wish, settled, unreported};
use super::layout::{FLAG_DISPATCHED, FLAG_FORCED, FLAG_METER, FLAG_STREAMED, NO_NODE};
use super::memory::{Memory, Sizes};
use super::period::{Liveness, NoPeriod, Step};
use super::store::{self, LOCK_LEDGER, RECOVERER, Store, locked, owner_lock};
use super::tree::{Admission, LedgerSpec, Plan, parent_of, path_fault};
use super::unit::{Amounts, Reported, Unit, check_amount};
use super::window::{WINDOWS, Window};
use crate::limits::LEDGER_PROCESSES_MAX;
use crate::map::{self, LockFile, Mapping};
use crate::sync::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::sync::{AtomicI64, AtomicU32, AtomicU64};

/// Milliseconds that making a budget on demand waits for the ledger's lock: it stands in a request's way.
const MAKE_TRIES: u32 = 50;
/// Places to look for a slot from, so that threads do not meet at one.
const HINTS: usize = 16;

/// A budget as a caller holds it: found once, used for every reserve.
#[derive(Debug)]
pub struct Node {
    index: u32,
    path: Box<str>,
    steps: Box<[Step]>,
    /// The ledger's count of changes to budgets when this was made
    plans: u32,
}

impl Node {
    /// Its path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its place in the ledger.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Cells that a reserve of every unit touches.
    pub fn cells(&self) -> usize {
        self.steps.iter().map(|step| step.units.count_ones() as usize).sum()
    }
}

/// How a reserve is meant.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The work begins at once: what nobody reports counts in full
    pub dispatched: bool,
    /// A meter's: what nobody reports counts as far as it was charged
    pub meter: bool,
    /// Take it whether or not it fits, as shadow mode does
    pub forced: bool,
    /// After this time the hold is over; `None` for the ledger's own
    pub ttl_ms: Option<i64>,
    /// What its maker calls it: a gate gives the numbers of its decision
    pub tag: [u64; 2],
}

/// A batch at work.
pub(super) struct Batch<'a> {
    batches: &'a AtomicU32,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.batches.fetch_sub(1, SeqCst);
    }
}

/// A slot to look at first, on a cache line of its own: each thread writes its own at every hold.
#[derive(Debug)]
#[repr(align(128))]
struct Hint(AtomicU32);

/// What belongs to this process: its number, and its locks.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) me: u32,
    pub(super) locks: Option<Arc<LockFile>>,
}

/// A ledger.
pub struct Ledger {
    pub(super) memory: Memory,
    pub(super) store: Option<Store>,
    pub(super) spec: LedgerSpec,
    pub(super) plan: Plan,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) attached: ArcSwap<Attached>,
    /// The number in `attached`
    me: AtomicU32,
    /// The fork generation in which `attached` is this process's
    generation: AtomicU64,
    /// Held while a forked child takes a number, and by whoever changes an anonymous ledger as a whole
    pub(super) changing: Mutex<()>,
    pub(super) names: RwLock<HashMap<Box<str>, Arc<Node>>>,
    /// Until when the wall clock is believed without asking the boot clock
    pub(super) believed_ms: AtomicI64,
    hints: [Hint; HINTS],
    /// Something was reserved since the last image
    pub(super) active: AtomicU32,
    /// Holds of this process have deadlines
    deadlines: AtomicBool,
    pub(super) closed: AtomicBool,
    /// The name of the state file leads elsewhere
    replaced: AtomicBool,
    /// Batches at work without the caller's lock
    pub(super) batches: AtomicU32,
    pub(super) background: ArcSwapOption<super::background::Background>,
    /// Where the thread finds its ledger, once somebody wants a thread
    pub(super) itself: OnceLock<Weak<Self>>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let file = self.store.as_ref().map(|store| store.path.display().to_string());
        f.debug_struct("Ledger").field("file", &file).field("budgets", &self.memory.nodes_len()).finish_non_exhaustive()
    }
}

impl Liveness for Attached {
    fn is_dead(&self, owner: u32) -> bool {
        // A recovery has no lock of its own; only the next one, under the ledger's lock, knows that it is over.
        if owner == self.me || owner == RECOVERER {
            return false;
        }
        // Without locks there are no other processes; if the kernel cannot be asked, nobody is taken for dead.
        self.locks.as_ref().is_some_and(|locks| locks.is_locked_elsewhere(owner_lock(owner)).is_ok_and(|held| !held))
    }
}

impl Liveness for Ledger {
    fn is_dead(&self, owner: u32) -> bool {
        self.attached.load().is_dead(owner)
    }
}

impl Ledger {
    /// A ledger in the memory of this process.
    pub fn anonymous(spec: LedgerSpec, clock: Arc<dyn Clock>) -> Result<Self, BudgetError> {
        let plan = Plan::read(&spec)?;
        let (nodes, periods) = plan.sizes(&spec)?;
        let sizes = Sizes { nodes, periods, slots: spec.holds, owners: 1 };
        let memory = |source| BudgetError::Io { file: "memory".to_owned(), action: "map", source };
        let mapping = Mapping::anonymous(sizes.bytes()).map_err(memory)?;
        let tables = Memory::carve(&mapping, sizes).ok_or_else(|| memory(std::io::ErrorKind::OutOfMemory.into()))?;
        tables.format([0; 2], clock.wall_ms(), clock.boot_ms());
        fill(&tables, &plan)?;
        tables.set_ready();
        if !map::watch_forks() {
            return Err(memory(std::io::ErrorKind::OutOfMemory.into()));
        }
        Ok(Self::build(tables, None, spec, plan, clock, Attached { me: 1, locks: None }))
    }

    /// A ledger in a file, shared with every process that opens it; made if there is none.
    ///
    /// # Errors
    /// [`BudgetError`] if the file is not a ledger of this layout, is damaged, or cannot be had in full.
    pub fn open(spec: LedgerSpec, path: &Path, clock: Arc<dyn Clock>) -> Result<Self, BudgetError> {
        let plan = Plan::read(&spec)?;
        let (nodes, periods) = plan.sizes(&spec)?;
        let owners = u32::try_from(LEDGER_PROCESSES_MAX).unwrap_or(1);
        let sizes = Sizes { nodes, periods, slots: spec.holds, owners };
        store::check_folder(path)?;
        if !path.exists() {
            store::create(path, sizes, spec.volatile, &*clock, |memory| fill(memory, &plan))?;
        }
        let file = map::open_private(path).map_err(|error| store::io_error(path, "open", error))?;
        let locks = Arc::new(LockFile::open(&file).map_err(|error| store::io_error(path, "open", error))?);
        let (store, memory, me) = locked(&locks, path, LOCK_LEDGER, || {
            let (store, memory, found) = store::open(path, file, &locks, spec.volatile, &*clock)?;
            let me = memory.attach(path, &locks, &*clock, found)?;
            let attached = Attached { me, locks: Some(Arc::clone(&locks)) };
            if !spec.keep_limits {
                Hand { memory: &memory, me, alive: &attached }.load_limits(path, &plan)?;
            }
            Ok::<_, BudgetError>((store, memory, me))
        })??;
        let attached = Attached { me, locks: Some(locks) };
        Ok(Self::build(memory, Some(store), spec, plan, clock, attached))
    }

    fn build(
        memory: Memory,
        store: Option<Store>,
        spec: LedgerSpec,
        plan: Plan,
        clock: Arc<dyn Clock>,
        attached: Attached,
    ) -> Self {
        let spread = attached.me.wrapping_mul(97);
        Self {
            hints: std::array::from_fn(|at| {
                Hint(AtomicU32::new(spread.wrapping_add(u32::try_from(at).unwrap_or(0) << 4)))
            }),
            memory,
            store,
            spec,
            plan,
            clock,
            me: AtomicU32::new(attached.me),
            attached: ArcSwap::from_pointee(attached),
            generation: AtomicU64::new(map::fork_generation()),
            changing: Mutex::new(()),
            names: RwLock::new(HashMap::new()),
            believed_ms: AtomicI64::new(i64::MIN),
            active: AtomicU32::new(0),
            deadlines: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
            batches: AtomicU32::new(0),
            background: ArcSwapOption::empty(),
            itself: OnceLock::new(),
        }
    }

    /// This process's hand on the memory. A forked child of a shared ledger takes a number of its own first.
    #[inline]
    pub(super) fn hand(&self) -> Result<Hand<'_>, BudgetError> {
        // Relaxed: a process sees its own store, and a closed ledger only has to be noticed some time.
        if self.closed.load(Relaxed) {
            return Err(BudgetError::Closed);
        }
        if self.generation.load(Acquire) != map::fork_generation() {
            self.attach_child()?;
        }
        if self.replaced.load(Relaxed) {
            return Err(self.replaced_error());
        }
        Ok(Hand { memory: &self.memory, me: self.me.load(Relaxed), alive: self })
    }

    #[cold]
    fn replaced_error(&self) -> BudgetError {
        let file = self.store.as_ref().map_or_else(String::new, |store| store.path.display().to_string());
        BudgetError::Replaced { file }
    }

    /// Refuses from now on if the state file is no longer what its name leads to: whoever opens the name has another
    /// ledger, and two would spend every limit twice.
    pub(super) fn check_name(&self) {
        if self.store.as_ref().is_some_and(|store| !store.is_at_its_path()) {
            self.replaced.store(true, Relaxed);
        }
    }

    /// Says that a batch is at work, which closing waits for. `None` once the ledger is closed.
    pub(super) fn begin_batch(&self) -> Option<Batch<'_>> {
        let batch = Batch { batches: &self.batches };
        // SeqCst on both sides: either the batch sees that the ledger is closed, or closing sees the batch.
        self.batches.fetch_add(1, SeqCst);
        (!self.closed.load(SeqCst)).then_some(batch)
    }

    /// What belongs to this process. A forked child of a shared ledger takes a number of its own first.
    pub(super) fn attached(&self) -> Result<arc_swap::Guard<Arc<Attached>>, BudgetError> {
        self.hand()?;
        Ok(self.attached.load())
    }

    #[cold]
    fn attach_child(&self) -> Result<(), BudgetError> {
        let Some(store) = &self.store else { return Err(BudgetError::Forked) };
        // `changing` may have been held by a thread that the child does not have: then there is no way to go on.
        let Ok(_changing) = self.changing.try_lock() else { return Err(BudgetError::Forked) };
        if self.generation.load(Acquire) == map::fork_generation() {
            return Ok(());
        }
        let path = &*store.path;
        let locks = Arc::new(LockFile::open(&store.file).map_err(|error| store::io_error(path, "open", error))?);
        let me = locked(&locks, path, LOCK_LEDGER, || {
            self.memory.attach(path, &locks, &*self.clock, store::Found::Running)
        })??;
        self.attached.store(Arc::new(Attached { me, locks: Some(locks) }));
        self.me.store(me, Relaxed);
        // Release: whoever sees the generation sees the number.
        self.generation.store(map::fork_generation(), Release);
        if let Some(ledger) = self.itself.get().and_then(Weak::upgrade) {
            Self::start_background(&ledger);
        }
        Ok(())
    }

    /// The budget of a path if this process has found it before. Takes no lock that is held for long.
    pub fn known(&self, path: &str) -> Option<Arc<Node>> {
        let plans = self.memory.header().plans.load(Acquire);
        // A forked child may find the lock held by a thread it does not have: then the budget is looked for anew.
        let known = self.names.try_read().ok()?.get(path).cloned();
        known.filter(|node| node.plans == plans)
    }

    /// The budget of a path, made from its template if this is the first time it is asked for.
    ///
    /// # Errors
    /// [`DenialKind::Unavailable`] if there is no such budget, or its parent has as many children as it may have.
    pub fn node(&self, path: &str) -> Result<Arc<Node>, Box<Denial>> {
        if let Some(node) = self.known(path) {
            return Ok(node);
        }
        let plans = self.memory.header().plans.load(Acquire);
        let unavailable = |message: String| Box::new(Denial::of(DenialKind::Unavailable, path, message));
        if let Some(fault) = path_fault(path) {
            return Err(unavailable(fault));
        }
        let attached = self.attached().map_err(|error| unavailable(error.to_string()))?;
        let index = match self.memory.find(path) {
            Some(index) => index,
            // Before any lock: whoever asks for what is not there does not wait for who makes something.
            None if self.plan.limits_of(path).is_none() => return Err(unavailable(self.no_such(path))),
            None => self
                .exclusively_within(MAKE_TRIES, &attached, || self.make(path))
                .map_err(|error| unavailable(error.to_string()))?
                .map_err(unavailable)?,
        };
        let steps = self.memory.steps(index).into();
        let node = Arc::new(Node { index, path: path.into(), steps, plans });
        if let Ok(mut names) = self.names.try_write() {
            names.insert(path.into(), Arc::clone(&node));
        }
        Ok(node)
    }

    /// Makes a child from its template, and its ancestors first. The caller holds the ledger's lock.
    fn make(&self, path: &str) -> Result<u32, String> {
        if let Some(index) = self.memory.find(path) {
            return Ok(index);
        }
        let Some((limits, children_max)) = self.plan.limits_of(path) else {
            return Err(self.no_such(path));
        };
        let parent = parent_of(path).map_or(Ok(NO_NODE), |parent| self.make(parent))?;
        let children = self.memory.nodes.get(parent as usize).map_or(0, |node| node.children.load(Relaxed));
        if let Some(most) = children_max.filter(|most| children >= *most) {
            return Err(format!(
                "budget `{path}` cannot be made: its parent has {children} children, the limit is {most}"
            ));
        }
        let index = self.memory.add_node(path, parent, limits)?;
        // Only who was made on demand counts: those that the file lists are there anyway.
        if children_max.is_some()
            && let Some(parent) = self.memory.nodes.get(parent as usize)
        {
            parent.children.fetch_add(1, Relaxed);
        }
        Ok(index)
    }

    fn no_such(&self, path: &str) -> String {
        let known: Vec<&str> = self.plan.exact.iter().take(8).map(|(path, _)| path.as_str()).collect();
        format!("there is no budget `{path}`; there is {}", known.join(", "))
    }

    /// Runs `work` while nobody else changes the ledger as a whole.
    pub(super) fn exclusively<T>(&self, attached: &Attached, work: impl FnOnce() -> T) -> Result<T, BudgetError> {
        self.exclusively_within(store::LOCK_TRIES, attached, work)
    }

    fn exclusively_within<T>(
        &self,
        tries: u32,
        attached: &Attached,
        work: impl FnOnce() -> T,
    ) -> Result<T, BudgetError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        match (&attached.locks, &self.store) {
            (Some(locks), Some(store)) => store::locked_within(tries, locks, &store.path, LOCK_LEDGER, work),
            _ => Ok(work()),
        }
    }

    /// The ledger's time for a wall clock that shows `wall_ms`.
    #[inline]
    pub fn time_at(&self, wall_ms: i64) -> i64 {
        let mut believed = self.believed_ms.load(Relaxed);
        if wall_ms > believed {
            believed = self.memory.believed_until(&*self.clock);
            self.believed_ms.store(believed, Relaxed);
        }
        self.memory.advance(wall_ms.min(believed))
    }

    /// The ledger's time now.
    pub fn now_ms(&self) -> i64 {
        self.time_at(self.clock.wall_ms())
    }

    /// Reserves `amounts` at a budget and all above it, or changes nothing.
    ///
    /// # Errors
    /// [`Denial`] with the level, unit and window that refused.
    ///
    /// # Concurrency
    /// Lock-free, from any thread and any process. It waits only where a window is opened for the first time, for the
    /// process that opens it, and gives up after some microseconds.
    #[inline]
    pub fn reserve(
        &self,
        node: &Node,
        amounts: &Amounts,
        wall_ms: i64,
        options: Options,
    ) -> Result<HoldId, Box<Denial>> {
        let hand = self.hand().map_err(|error| unavailable(node, &error))?;
        amounts.check().map_err(|error| unavailable(node, &error))?;
        if node.plans != self.memory.header().plans.load(Acquire) {
            let fresh = self.node(&node.path)?;
            return self.reserve_at(&fresh, amounts, wall_ms, options, hand);
        }
        self.reserve_at(node, amounts, wall_ms, options, hand)
    }

    #[inline]
    fn reserve_at(
        &self,
        node: &Node,
        amounts: &Amounts,
        wall_ms: i64,
        options: Options,
        hand: Hand<'_>,
    ) -> Result<HoldId, Box<Denial>> {
        let hint = self.hint();
        let flag = |is: bool, flag: u32| if is { flag } else { 0 };
        let flags = flag(options.dispatched, FLAG_DISPATCHED)
            | flag(options.meter, FLAG_METER)
            | flag(options.forced, FLAG_FORCED);
        let mut tries = 0_u32;
        loop {
            let now_ms = self.time_at(wall_ms);
            let ttl = options.ttl_ms.or(self.spec.hold_ttl_ms);
            let deadline_ms = ttl.map_or(0, |ttl| now_ms.saturating_add(ttl).max(1));
            if deadline_ms != 0 && !self.deadlines.load(Relaxed) {
                self.deadlines.store(true, Relaxed);
            }
            let ids = ids_at(now_ms, &node.steps);
            let wish = Wish {
                node: node.index,
                steps: &node.steps,
                amounts,
                ids,
                now_ms,
                deadline_ms,
                flags,
                tag: options.tag,
            };
            match hand.reserve(&wish, hint.load(Relaxed)) {
                Ok(id) => {
                    hint.store(id.slot.wrapping_add(1), Relaxed);
                    if self.active.load(Relaxed) == 0 {
                        self.wake_background();
                    }
                    return Ok(id);
                }
                // Somebody's later time opened a later window: with that time it is found.
                Err(Refused::Period(_, NoPeriod::Stale)) if tries < 8 => tries = tries.wrapping_add(1),
                // What is over by its deadline holds nothing any more.
                Err(_) if tries < 8 && self.deadlines.load(Relaxed) && self.end_expired(&hand) > 0 => {
                    tries = tries.wrapping_add(1);
                }
                Err(refused) => return Err(Box::new(self.diagnose(node, amounts, now_ms, refused))),
            }
        }
    }

    /// Where this thread looks for a slot first.
    #[inline]
    fn hint(&self) -> &AtomicU32 {
        thread_local! {
            static PLACE: usize = {
                static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
                NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
            };
        }
        let place = PLACE.try_with(|place| place % HINTS).unwrap_or(0);
        // The remainder is a place of the array.
        self.hints.get(place).map_or(&self.active, |hint| &hint.0)
    }

    /// Notes what the work has used so far; the cells follow when the hold ends.
    #[inline]
    pub fn charge(&self, id: HoldId, amounts: &Amounts) -> Charge {
        self.charge_with(id, amounts, FLAG_STREAMED)
    }

    /// Says that the work has begun, and charges what that costs for certain, a prompt for instance.
    pub fn dispatch(&self, id: HoldId, amounts: &Amounts) -> Charge {
        self.charge_with(id, amounts, FLAG_DISPATCHED)
    }

    #[inline]
    fn charge_with(&self, id: HoldId, amounts: &Amounts, flags: u32) -> Charge {
        let Ok(hand) = self.hand() else { return Charge::Ended };
        if amounts.check().is_err() {
            return Charge::Stop;
        }
        hand.charge(id, amounts, flags, || self.now_ms())
    }

    /// Holds more, in the windows of the hold, or changes nothing. Requests are spent when granted and cannot be added.
    pub fn top_up(&self, id: HoldId, more: &Amounts) -> Result<(), Box<Denial>> {
        let path = || self.hold(id).map(|hold| hold.path).unwrap_or_default();
        let expired = |message: &str| Box::new(Denial::of(DenialKind::Expired, &path(), message.to_owned()));
        let hand = self.hand().map_err(|error| expired(&error.to_string()))?;
        if let Err(error) = more.check() {
            return Err(Box::new(Denial::of(DenialKind::TooLarge, &path(), error.to_string())));
        }
        if more.get(Unit::Requests) != 0 {
            return Err(Box::new(Denial::of(DenialKind::TooLarge, &path(), REQUESTS_ONCE.to_owned())));
        }
        let held = self.hold(id).ok_or_else(|| expired("the hold has ended; reserve anew"))?;
        if held.deadline_ms.is_some_and(|deadline| self.now_ms() > deadline) {
            return Err(expired("the hold's deadline has passed; reserve anew"));
        }
        match hand.top_up(id, more) {
            Some(Ok(())) => {
                self.wake_background();
                Ok(())
            }
            Some(Err(refused)) => {
                let node = self.node(&held.path)?;
                Err(Box::new(self.diagnose(&node, more, held.granted_ms, refused)))
            }
            None => Err(expired("the hold has ended; reserve anew")),
        }
    }

    /// Ends a hold with what was really used. `false` if it has ended before: then nothing changes.
    ///
    /// More than was held becomes debt at every level. Of what is not mentioned, levels come back, requests stay spent,
    /// and the rest counts as charged, or in full if it never was.
    ///
    /// # Errors
    /// An amount that cannot be one: the hold lives on.
    pub fn settle(&self, id: HoldId, reported: &Reported) -> Result<bool, BudgetError> {
        for (unit, amount) in Unit::ALL.into_iter().zip(reported) {
            check_amount(unit, amount.unwrap_or(0))?;
        }
        let hand = self.hand()?;
        let ended = hand.end(id, |slot| settled(slot, &hand.charged(id.slot, slot), reported));
        Ok(self.ended(id, ended))
    }

    /// Ends a hold that was not used: what was not charged goes back. Requests stay spent.
    pub fn release(&self, id: HoldId) -> bool {
        self.end_as(id, Some(0))
    }

    /// Ends a hold of which nobody says what was used: as far as it was charged if it streamed, in full if the work was
    /// dispatched and did not stream, and as what was charged, mostly nothing, if it never began.
    pub fn end_unreported(&self, id: HoldId) -> bool {
        self.end_as(id, None)
    }

    fn end_as(&self, id: HoldId, flags: Option<u32>) -> bool {
        let Ok(hand) = self.hand() else { return false };
        let ended = hand.end(id, |slot| {
            let flags = flags.unwrap_or_else(|| slot.flags.load(Relaxed));
            unreported(flags, &super::hold::read(&slot.amounts), &hand.charged(id.slot, slot))
        });
        self.ended(id, ended)
    }

    #[inline]
    fn ended(&self, id: HoldId, ended: bool) -> bool {
        if ended {
            self.hint().store(id.slot, Relaxed);
            self.changed();
            // What was settled above its hold is not on the disk yet either.
            if self.active.load(Relaxed) == 0 {
                self.wake_background();
            }
        }
        ended
    }

    /// Wakes whoever waits for room, in every process.
    #[inline]
    pub(super) fn changed(&self) {
        let header = self.memory.header();
        if header.waiters.load(Relaxed) != 0 {
            header.changes.fetch_add(1, Release);
            map::wake_all(&header.changes);
        }
    }

    /// Whether any hold of this process was given a deadline.
    pub(super) fn any_deadlines(&self) -> bool {
        self.deadlines.load(Relaxed)
    }

    /// Whether this is a copy of a parent process's ledger that was not used here yet.
    pub(super) fn is_inherited(&self) -> bool {
        self.generation.load(Acquire) != map::fork_generation()
    }

    /// What the file said.
    pub const fn spec(&self) -> &LedgerSpec {
        &self.spec
    }

    /// How model calls are admitted.
    pub const fn admission(&self) -> Admission {
        self.spec.admission
    }

    /// The clocks it goes by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.close();
    }
}

const REQUESTS_ONCE: &str = "requests are spent when they are granted and cannot be topped up; reserve anew";

#[cold]
#[expect(clippy::unnecessary_box_returns, reason = "a denial is boxed wherever it is an error")]
fn unavailable(node: &Node, error: &BudgetError) -> Box<Denial> {
    Box::new(Denial::of(DenialKind::Unavailable, &node.path, error.to_string()))
}

/// The id of each window that the steps need.
#[inline]
pub(super) fn ids_at(now_ms: i64, steps: &[Step]) -> [u32; WINDOWS] {
    let mut ids = [0; WINDOWS];
    let mut done = 0_u32;
    for step in steps {
        let bit = 1 << step.window.index();
        if done & bit == 0 {
            done |= bit;
            if let Some(id) = ids.get_mut(step.window.index()) {
                *id = step.window.id_at(now_ms);
            }
        }
    }
    ids
}

/// Puts the budgets of a file into a fresh ledger.
fn fill(memory: &Memory, plan: &Plan) -> Result<(), BudgetError> {
    for (path, limits) in &plan.exact {
        let parent = parent_of(path).and_then(|parent| memory.find(parent)).unwrap_or(NO_NODE);
        memory.add_node(path, parent, limits).map_err(|message| BudgetError::Spec { message })?;
    }
    memory.header().spec.store(plan.digest, Relaxed);
    Ok(())
}

impl Node {
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether it or a budget above it limits a unit.
    pub fn limits(&self, unit: Unit) -> bool {
        self.steps.iter().any(|step| step.units & (1 << unit.index()) != 0)
    }

    /// The kinds of window that limit it.
    pub fn windows(&self) -> impl Iterator<Item = Window> {
        self.steps.iter().map(|step| step.window)
    }
}
