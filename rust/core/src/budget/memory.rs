//! The ledger's memory: where each table lies, and the loads and stores that the protocol is made of.
//!
//! The same tables lie in a file, in anonymous memory, or in ordinary memory under the model checker. Indices come out of
//! the memory itself and are never believed: a table is asked, and what it does not have is a damaged ledger.

#[cfg(not(loom))]
use std::sync::Arc;

use super::error::BudgetError;
use super::layout::{
    Durable, EPOCHS_LEN, Epoch, EventEntry, Header, LAYOUT, MAGIC, NodeEntry, OWNER_MAX, Owner, Period, Slot, Tally,
};
use crate::limits::{BUDGETS_MAX, HOLDS_MAX, LEDGER_EVENTS_MAX, LEDGER_PROCESSES_MAX};
#[cfg(not(loom))]
use crate::map::Mapping;
use crate::map::Table;
use crate::sync::Ordering::{Acquire, Relaxed, Release};

/// How many of each thing a ledger has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) nodes: u32,
    pub(super) periods: u32,
    pub(super) slots: u32,
    pub(super) owners: u32,
}

/// Epochs of all kinds of window.
#[expect(clippy::cast_possible_truncation, reason = "there are five kinds")]
const EPOCHS: u32 = EPOCHS_LEN * super::window::WINDOWS as u32;
/// Periods are named by 24 bits.
pub(super) const PERIODS_MAX: u32 = 1 << 24;
/// The header has the first page, so that its locks and its words are apart from everything else.
#[cfg(not(loom))]
const PAGE_BYTES: usize = 4_096;

impl Sizes {
    /// A number that a damaged size would not have.
    pub(super) fn check(self) -> u64 {
        let words = [self.nodes, self.periods, self.slots, self.owners, LAYOUT];
        words.iter().fold(0x9e37_79b9_7f4a_7c15, |sum: u64, word| {
            (sum ^ u64::from(*word)).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29)
        })
    }

    /// Sizes that fit the words they are kept in.
    pub(super) fn are_possible(self) -> bool {
        (1..=BUDGETS_MAX).contains(&self.nodes)
            && (1..=PERIODS_MAX).contains(&self.periods)
            && (1..=HOLDS_MAX).contains(&self.slots)
            && (1..=OWNER_MAX).contains(&self.owners)
            && self.owners as usize <= LEDGER_PROCESSES_MAX
    }

    #[cfg(not(loom))]
    fn offsets(self) -> Offsets {
        let mut end = PAGE_BYTES;
        let mut place = |size: usize, len: u32| {
            let start = end;
            end = end.saturating_add(size.saturating_mul(len as usize)).next_multiple_of(PAGE_BYTES);
            start
        };
        Offsets {
            owners: place(size_of::<Owner>(), self.owners),
            nodes: place(size_of::<NodeEntry>(), self.nodes),
            periods: place(size_of::<Period>(), self.periods),
            durables: place(size_of::<Durable>(), self.periods),
            epochs: place(size_of::<Epoch>(), EPOCHS),
            slots: place(size_of::<Slot>(), self.slots),
            tallies: place(size_of::<Tally>(), self.slots),
            events: place(size_of::<EventEntry>(), u32::try_from(LEDGER_EVENTS_MAX).unwrap_or(0)),
            end,
        }
    }

    /// Bytes of all tables.
    #[cfg(not(loom))]
    pub(super) fn bytes(self) -> usize {
        self.offsets().end
    }
}

#[cfg(not(loom))]
struct Offsets {
    owners: usize,
    nodes: usize,
    periods: usize,
    durables: usize,
    epochs: usize,
    slots: usize,
    tallies: usize,
    events: usize,
    end: usize,
}

/// The tables.
#[derive(Debug)]
pub(super) struct Memory {
    header: Table<Header>,
    pub(super) owners: Table<Owner>,
    pub(super) nodes: Table<NodeEntry>,
    pub(super) periods: Table<Period>,
    pub(super) durables: Table<Durable>,
    /// Those of each kind of window in a row
    pub(super) epochs: Table<Epoch>,
    pub(super) slots: Table<Slot>,
    pub(super) tallies: Table<Tally>,
    pub(super) events: Table<EventEntry>,
}

impl Memory {
    /// Carves the tables out of a mapping.
    #[cfg(not(loom))]
    pub(super) fn carve(mapping: &Arc<Mapping>, sizes: Sizes) -> Option<Self> {
        let at = sizes.offsets();
        Some(Self {
            header: mapping.table(0, 1)?,
            owners: mapping.table(at.owners, sizes.owners as usize)?,
            nodes: mapping.table(at.nodes, sizes.nodes as usize)?,
            periods: mapping.table(at.periods, sizes.periods as usize)?,
            durables: mapping.table(at.durables, sizes.periods as usize)?,
            epochs: mapping.table(at.epochs, EPOCHS as usize)?,
            slots: mapping.table(at.slots, sizes.slots as usize)?,
            tallies: mapping.table(at.tallies, sizes.slots as usize)?,
            events: mapping.table(at.events, LEDGER_EVENTS_MAX)?,
        })
    }

    /// Tables in ordinary memory.
    #[cfg(loom)]
    pub(super) fn in_memory(sizes: Sizes) -> Self {
        Self {
            header: Table::in_memory(1),
            owners: Table::in_memory(sizes.owners as usize),
            nodes: Table::in_memory(sizes.nodes as usize),
            periods: Table::in_memory(sizes.periods as usize),
            durables: Table::in_memory(0),
            epochs: Table::in_memory(EPOCHS as usize),
            slots: Table::in_memory(sizes.slots as usize),
            tallies: Table::in_memory(sizes.slots as usize),
            events: Table::in_memory(0),
        }
    }

    /// The header.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "every constructor makes this table with one item")]
    pub(super) fn header(&self) -> &Header {
        &self.header[0]
    }

    /// The sizes as the tables have them.
    pub(super) fn sizes(&self) -> Sizes {
        let len = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        Sizes {
            nodes: len(self.nodes.len()),
            periods: len(self.periods.len()),
            slots: len(self.slots.len()),
            owners: len(self.owners.len()),
        }
    }

    /// Writes a fresh header; everything else is zeros. `ready` comes last, once the budgets are in place.
    pub(super) fn format(&self, boot: [u64; 2], wall_ms: i64, boot_ms: i64) {
        let (header, sizes) = (self.header(), self.sizes());
        header.magic.store(MAGIC, Relaxed);
        header.layout.store(LAYOUT, Relaxed);
        header.nodes_max.store(sizes.nodes, Relaxed);
        header.periods_max.store(sizes.periods, Relaxed);
        header.slots_max.store(sizes.slots, Relaxed);
        header.owners_max.store(sizes.owners, Relaxed);
        header.sizes_check.store(sizes.check(), Relaxed);
        self.set_boot(boot);
        header.anchor_wall_ms.store(wall_ms, Relaxed);
        header.anchor_boot_ms.store(boot_ms, Relaxed);
        header.last_ms.store(wall_ms, Relaxed);
        for tally in self.tallies.iter() {
            tally.left.store(super::layout::TALLY_NONE, Relaxed);
        }
    }

    pub(super) fn set_boot(&self, boot: [u64; 2]) {
        for (word, value) in self.header().boot.iter().zip(boot) {
            word.store(value, Relaxed);
        }
    }

    pub(super) fn boot(&self) -> [u64; 2] {
        self.header().boot.each_ref().map(|word| word.load(Relaxed))
    }

    /// Says that the ledger can be used.
    pub(super) fn set_ready(&self) {
        // Release: whoever sees it sees the header and the budgets.
        self.header().ready.store(1, Release);
    }

    /// Budgets in use.
    #[inline]
    pub(super) fn nodes_len(&self) -> u32 {
        // Acquire: pairs with the store that publishes a new budget.
        self.header().nodes.load(Acquire).min(self.sizes().nodes)
    }

    /// A period, which the ledger has unless it is damaged.
    #[inline]
    pub(super) fn period(&self, index: u32) -> Option<&Period> {
        self.periods.get(index as usize)
    }

    /// A slot, which the ledger has unless it is damaged.
    #[inline]
    pub(super) fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots.get(index as usize)
    }
}

/// The sizes that a file's header states.
#[cfg(not(loom))]
pub(super) fn stated_sizes(header: &Header, file: &str) -> Result<Sizes, BudgetError> {
    let corrupt = |message: &str| BudgetError::Corrupt { file: file.to_owned(), message: message.to_owned() };
    if header.magic.load(Relaxed) != MAGIC {
        return Err(corrupt("this is not a ledger: it does not begin as one"));
    }
    let layout = header.layout.load(Relaxed);
    if layout != LAYOUT {
        return Err(BudgetError::Version { file: file.to_owned(), found: layout, expected: LAYOUT });
    }
    let sizes = Sizes {
        nodes: header.nodes_max.load(Relaxed),
        periods: header.periods_max.load(Relaxed),
        slots: header.slots_max.load(Relaxed),
        owners: header.owners_max.load(Relaxed),
    };
    if sizes.check() != header.sizes_check.load(Relaxed) || !sizes.are_possible() {
        return Err(corrupt("the sizes in the header are damaged"));
    }
    Ok(sizes)
}
