//! What lies in the ledger's memory: plain atomics, the same in a file, in memory of one process, and under the model
//! checker. Any bit pattern is a valid value of each type, so a damaged file can be wrong but not unsound.
//!
//! Three words carry more than a number. A **period's** [`Word`] says which window it counts: `id + 1` in the upper 32
//! bits (0: never opened), then 14 bits of the process that is opening it (0: nobody). An **epoch's** is the same for a
//! window of the whole ledger: a mark where the opener would be says that it is over for good, and the lower 18 bits
//! count the holds that were granted in it. A **slot's** [`State`] says what happens to a hold, who does it and how far they got: 32 bits of
//! generation, 14 of the acting process, 12 of the step, 6 of the phase.
//!
//! **The step rule**, on which recovery rests: before each change of a shared word the acting process stores the
//! change's number as the slot's step. So whoever finds the slot of a dead process knows: steps below are done, steps
//! above are not, and the step itself is in doubt.

#![expect(
    clippy::cast_possible_truncation,
    reason = "the parts of a word are cut out of it on purpose, and the lengths of small tables fit"
)]

use std::sync::atomic::Ordering::Relaxed;

use super::unit::UNITS;
use super::window::WINDOWS;
use crate::limits::CELLS_MAX;
use crate::sync::{AtomicI64, AtomicU32, AtomicU64};

/// First word of a state file, `TOLLKEEP` in the byte order of the host.
pub(super) const MAGIC: u64 = u64::from_ne_bytes(*b"TOLLKEEP");
/// Raised whenever a type in this file changes its meaning or its size.
pub(super) const LAYOUT: u32 = 2;

/// Bits of a process's number.
const OWNER_BITS: u32 = 14;
/// The largest number a process can have.
pub(super) const OWNER_MAX: u32 = (1 << OWNER_BITS) - 1;
/// Bits that count pins.
const PIN_BITS: u32 = 18;

/// One amount of each unit.
pub(super) type Counts = [AtomicI64; UNITS];

/// The ledger as a whole.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub(crate) struct Header {
    pub(super) magic: AtomicU64,
    pub(super) layout: AtomicU32,
    /// 1 once everything below is in place
    pub(super) ready: AtomicU32,
    pub(super) nodes_max: AtomicU32,
    pub(super) periods_max: AtomicU32,
    pub(super) slots_max: AtomicU32,
    pub(super) owners_max: AtomicU32,
    /// Over the four sizes, so that a damaged one is noticed before it is believed
    pub(super) sizes_check: AtomicU64,
    pub(super) boot: [AtomicU64; 2],
    /// Budgets in use; grows only
    pub(super) nodes: AtomicU32,
    /// Periods in use; grows only
    pub(super) periods: AtomicU32,
    /// Raised when a budget gets another kind of window or unit, so that processes look again
    pub(super) plans: AtomicU32,
    /// Raised when something ends or a limit changes, while somebody waits
    pub(super) changes: AtomicU32,
    /// How many wait
    pub(super) waiters: AtomicU32,
    pub(super) spare: AtomicU32,
    /// Which limits were last read from a file; limits changed since stay until the file changes
    pub(super) spec: AtomicU64,
    /// Wall and boot clock at one moment; see `time.rs`
    pub(super) anchor_wall_ms: AtomicI64,
    pub(super) anchor_boot_ms: AtomicI64,
    /// The latest time the ledger has worked with
    pub(super) last_ms: AtomicI64,
    /// Events ever noted
    pub(super) events: AtomicU64,
    /// Number of the newest durable image, see `durable.rs`
    pub(super) image: AtomicU64,
}

/// A process that is attached.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(crate) struct Owner {
    /// 0: nobody; else a number that was never used before in this ledger
    pub(super) epoch: AtomicU64,
    /// Process id in the namespace of the process itself: for people, never compared
    pub(super) pid: AtomicU32,
    pub(super) spare: AtomicU32,
    pub(super) attached_ms: AtomicI64,
}

/// Words of a node's path: 256 bytes, the first of which is the length.
pub(super) const PATH_WORDS: usize = 32;
/// What a budget's parent is, if it has none.
pub(super) const NO_NODE: u32 = u32::MAX;
/// Where the periods of a window are that a budget does not have.
pub(super) const NO_RING: u32 = u32::MAX;

/// A budget: its name, its parent and its limits.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub(crate) struct NodeEntry {
    /// 1 once it can be used
    pub(super) ready: AtomicU32,
    pub(super) parent: AtomicU32,
    pub(super) children: AtomicU32,
    /// The process that is opening a window of this budget; 0: nobody
    pub(super) opening: AtomicU32,
    pub(super) path: [AtomicU64; PATH_WORDS],
    /// First period of each window, or [`NO_RING`]
    pub(super) rings: [AtomicU32; 8],
    /// Bit per unit that has a limit, for each window
    pub(super) limited: [AtomicU32; 8],
    pub(super) limit: [Counts; 5],
    pub(super) overdraft: [Counts; 5],
}

/// A window of the whole ledger: which one, whether it is over, and how many live holds were granted in it.
///
/// A period is used for another window only once the epoch of its own is closed, and an epoch with a hold in it cannot
/// be closed. One count for all budgets instead of one in each period: a reserve pins each kind of window once.
#[repr(C, align(8))]
#[derive(Debug, Default)]
pub(crate) struct Epoch {
    /// See [`Word`]
    pub(super) word: AtomicU64,
}

/// Epochs kept for each kind of window: a hold may live for as many windows, 68 hours where minutes are counted.
#[cfg(not(any(loom, test)))]
pub(super) const EPOCHS_LEN: u32 = 4_096;
#[cfg(all(test, not(loom)))]
pub(super) const EPOCHS_LEN: u32 = 1_024;
#[cfg(loom)]
pub(super) const EPOCHS_LEN: u32 = 4;
/// Stands where a period's opener would, in an epoch that is over.
pub(super) const CLOSED: u32 = 1;

/// One window of one budget: the cells of its units.
///
/// The first 128 bytes are what a reserve touches.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub(crate) struct Period {
    /// See [`Word`]
    pub(super) word: AtomicU64,
    /// limit + overdraft - used - held - stranded; negative is debt. A reserve takes from it only what leaves it >= 0
    pub(super) free: Counts,
    /// Spent for good; grows only. Of requests nothing is kept here: they are spent when granted and never held, so
    /// what is not free is spent
    pub(super) used: Counts,
    pub(super) limit: Counts,
    pub(super) overdraft: Counts,
    /// The most that may be missing from `free` because a process died while taking or giving back before a grant
    pub(super) doubt_free: Counts,
    /// The most that may be missing from `used` because a process died while it ended a hold
    pub(super) doubt_used: Counts,
    pub(super) node: AtomicU32,
    pub(super) window: AtomicU32,
}

/// What of a period is on disk: spend up to here survives the power.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(crate) struct Durable {
    /// As in [`Word`]: id + 1
    pub(super) id: AtomicU64,
    pub(super) consumed: Counts,
}

/// The reservation of one request.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Slot {
    /// See [`State`]
    pub(super) state: AtomicU64,
    pub(super) node: AtomicU32,
    /// Periods in `periods`
    pub(super) len: AtomicU32,
    /// [`FLAG_DISPATCHED`] and the like
    pub(super) flags: AtomicU32,
    /// Raised by each top-up, granted or not, so that who counted beside one notices
    pub(super) top_ups: AtomicU32,
    pub(super) granted_ms: AtomicI64,
    /// 0: none
    pub(super) deadline_ms: AtomicI64,
    /// Who made it calls it so: a gate its decision. Zeros for nothing
    pub(super) tag: [AtomicU64; 2],
    pub(super) amounts: Counts,
    pub(super) charged: Counts,
    /// What is being topped up or settled
    pub(super) actual: Counts,
    /// Window id + 1 of each kind of window that the hold pins; 0 for none
    pub(super) pinned: [AtomicU32; WINDOWS],
    /// See [`entry`]
    pub(super) periods: [AtomicU32; CELLS_MAX],
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            state: AtomicU64::new(0),
            node: AtomicU32::new(0),
            len: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            top_ups: AtomicU32::new(0),
            granted_ms: AtomicI64::new(0),
            deadline_ms: AtomicI64::new(0),
            tag: std::array::from_fn(|_| AtomicU64::new(0)),
            amounts: Counts::default(),
            charged: Counts::default(),
            actual: Counts::default(),
            pinned: std::array::from_fn(|_| AtomicU32::new(0)),
            periods: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

/// What a meter touches for each sequence and step: apart from the slots, so that ten thousand of them fit a cache.
#[repr(C, align(16))]
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Tokens left of the hold; [`TALLY_NONE`] where the slot is not a meter's live hold
    pub(super) left: AtomicI64,
    /// Compute tokens so far; stays at the end of its range
    pub(super) compute: AtomicU32,
    /// Of the hold that the slot was last given to, so that an engine whose hold is over does not charge another's
    pub(super) generation: AtomicU32,
}

/// `left` of a slot that no meter uses.
pub(super) const TALLY_NONE: i64 = i64::MIN;

/// Something an auditor wants to know: a limit that changed, a recovery.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(crate) struct EventEntry {
    /// Its number, counted from 1, stored last
    pub(super) number: AtomicU64,
    pub(super) at_ms: AtomicI64,
    /// See `event.rs`
    pub(super) kind: AtomicU32,
    pub(super) pid: AtomicU32,
    pub(super) node: AtomicU32,
    /// Unit in the lower 16 bits, window in the upper
    pub(super) cell: AtomicU32,
    pub(super) before: AtomicI64,
    pub(super) after: AtomicI64,
}

/// The work has begun or will begin: what nobody reports counts in full.
pub(super) const FLAG_DISPATCHED: u32 = 1;
/// A meter's: what nobody reports counts as far as it was charged.
pub(super) const FLAG_METER: u32 = 2;
/// Amounts were charged while the work ran, beyond what its beginning cost.
pub(super) const FLAG_STREAMED: u32 = 4;
/// Taken whether or not it fits: the cells of shadow mode.
pub(super) const FLAG_FORCED: u32 = 8;

/// What a period's word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(pub(super) u64);

impl Word {
    /// One pin.
    pub(super) const PIN: u64 = 1;

    pub(super) const fn new(id: u32, opener: u32, pins: u64) -> Self {
        Self(((id as u64).wrapping_add(1) << 32) | ((opener as u64) << PIN_BITS) | pins)
    }

    /// The window, plus one; 0 if it was never opened.
    pub(super) const fn id_plus_1(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) const fn opener(self) -> u32 {
        ((self.0 >> PIN_BITS) as u32) & OWNER_MAX
    }

    pub(super) const fn pins(self) -> u64 {
        self.0 & ((1 << PIN_BITS) - 1)
    }

    /// Counts window `id` and can be used.
    pub(super) const fn is_open_for(self, id: u32) -> bool {
        self.id_plus_1() == id.wrapping_add(1) && self.opener() == 0
    }

    /// What to subtract to say that the opener is done.
    pub(super) const fn opener_bits(opener: u32) -> u64 {
        (opener as u64) << PIN_BITS
    }
}

/// What happens to a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody's
    Free = 0,
    /// Amounts are being taken, leaf to root, or given back before a grant
    Taking = 1,
    /// Granted
    Live = 2,
    /// More is being taken
    ToppingUp = 3,
    /// Somebody has won the right to end it
    Claimed = 4,
    /// `actual` is being spent, the rest given back
    Ending = 5,
    /// A charge is being written
    Charging = 6,
    /// Not one of these: a damaged file
    Unknown = 63,
}

impl Phase {
    const fn of(bits: u64) -> Self {
        match bits {
            0 => Self::Free,
            1 => Self::Taking,
            2 => Self::Live,
            3 => Self::ToppingUp,
            4 => Self::Claimed,
            5 => Self::Ending,
            6 => Self::Charging,
            _ => Self::Unknown,
        }
    }
}

/// What a slot's state says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State(pub(super) u64);

impl State {
    pub(super) const fn new(generation: u32, actor: u32, step: u32, phase: Phase) -> Self {
        Self(((generation as u64) << 32) | ((actor as u64) << 18) | ((step as u64 & 0xfff) << 6) | phase as u64)
    }

    pub(super) const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) const fn actor(self) -> u32 {
        ((self.0 >> 18) as u32) & OWNER_MAX
    }

    pub(super) const fn step(self) -> u32 {
        ((self.0 >> 6) as u32) & 0xfff
    }

    pub(super) const fn phase(self) -> Phase {
        Phase::of(self.0 & 63)
    }

    /// The same hold in another phase.
    pub(super) const fn with(self, actor: u32, step: u32, phase: Phase) -> Self {
        Self::new(self.generation(), actor, step, phase)
    }
}

/// Steps while taking: the pin of each kind of window comes first, then each unit of each period.
pub(super) const TAKE_PINS: u32 = WINDOWS as u32;
/// Steps of one period while taking: one for each unit.
pub(super) const TAKE_STEPS: u32 = UNITS as u32;
/// Steps of one period while ending: `used` and `free` of each unit.
pub(super) const END_STEPS: u32 = 2 * UNITS as u32;
/// Steps while ending: after every period the pins are let go, from this one on.
pub(super) const END_PINS: u32 = END_STEPS * CELLS_MAX as u32;

/// A period in a slot's list: index, and the units it limits.
pub(super) const fn entry(period: u32, units: u32) -> u32 {
    (period & 0x00ff_ffff) | (units << 24)
}

pub(super) const fn entry_period(entry: u32) -> u32 {
    entry & 0x00ff_ffff
}

pub(super) const fn entry_units(entry: u32) -> u32 {
    entry >> 24
}

impl NodeEntry {
    /// The path, if the bytes are one.
    pub(super) fn path(&self) -> Option<String> {
        let bytes: Vec<u8> = self.path.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect();
        let (len, rest) = bytes.split_first()?;
        String::from_utf8(rest.get(..usize::from(*len))?.to_vec()).ok()
    }

    /// Writes a path of at most 255 bytes.
    pub(super) fn set_path(&self, path: &str) {
        for (word, value) in self.path.iter().zip(path_words(path)) {
            word.store(value, Relaxed);
        }
    }

    /// Whether the path is this one, given as [`path_words`].
    pub(super) fn has_path(&self, words: &[u64; PATH_WORDS]) -> bool {
        self.path.iter().zip(words).all(|(word, wanted)| word.load(Relaxed) == *wanted)
    }
}

/// A path as its words: the length, then the bytes.
pub(super) fn path_words(path: &str) -> [u64; PATH_WORDS] {
    let mut words = [0; PATH_WORDS];
    let len = [u8::try_from(path.len()).unwrap_or(u8::MAX)];
    for (at, byte) in len.iter().chain(path.as_bytes()).enumerate() {
        if let Some(word) = words.get_mut(at / 8) {
            *word |= u64::from(*byte) << ((at % 8) << 3);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::{Durable, EventEntry, NodeEntry, Period, Phase, Slot, State, Tally, Word};

    #[test]
    fn words_keep_their_parts_apart() {
        let word = Word::new(u32::MAX - 2, 16_383, 262_143);
        assert_eq!((word.id_plus_1(), word.opener(), word.pins()), (u32::MAX - 1, 16_383, 262_143));
        assert!(!word.is_open_for(u32::MAX - 2));
        assert!(Word(word.0 - Word::opener_bits(16_383)).is_open_for(u32::MAX - 2));
        assert_eq!(Word(0).id_plus_1(), 0);
        let state = State::new(u32::MAX, 16_383, 4_095, Phase::Charging);
        assert_eq!((state.generation(), state.actor(), state.step()), (u32::MAX, 16_383, 4_095));
        assert_eq!(state.phase(), Phase::Charging);
        assert_eq!(State(62).phase(), Phase::Unknown);
    }

    #[test]
    fn sizes_are_part_of_the_layout() {
        assert_eq!(size_of::<Period>(), 256);
        assert_eq!(size_of::<Durable>(), 64);
        assert_eq!(size_of::<Slot>(), 448);
        assert_eq!(size_of::<Tally>(), 16);
        assert_eq!(size_of::<EventEntry>(), 64);
        assert_eq!(size_of::<NodeEntry>(), 768);
    }

    #[test]
    fn a_path_comes_back() {
        let node = NodeEntry::default();
        let long = "x".repeat(255);
        for path in ["", "acme/research", long.as_str()] {
            node.set_path(path);
            assert_eq!(node.path().as_deref(), Some(path));
        }
    }
}
