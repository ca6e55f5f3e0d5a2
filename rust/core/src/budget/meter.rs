//! The meter of an inference engine: one call for all sequences of a decode step.
//!
//! Each sequence has a hold, named by its slot. A step charges every running sequence with a few loads and stores of a
//! dense table that lies in the ledger's memory, so that a dead engine's tokens are counted; no cell of a budget is
//! touched, because the limit was enforced when the hold was granted. A sequence that has used up its hold is reported
//! at that very step, with how many of its new tokens are not paid for: trimmed, the cut is exact to the token.
//!
//! A meter belongs to one engine: one thread at a time calls it. Slots come from this meter's own reserves; anything
//! else is answered with "stop".

use std::sync::Arc;

use super::denial::{Denial, DenialKind};
use super::hold::HoldId;
use super::layout::{State, TALLY_NONE, Tally};
use super::ledger::{Ledger, Node, Options};
use super::price::Unpriced;
use super::unit::{Amounts, UNITS, Unit};
use crate::sync::Ordering::{Acquire, Relaxed};

/// What `out_stop` says of a slot that is not a live hold of the meter.
pub const NOT_A_HOLD: u8 = 255;
/// The most unpaid tokens that `out_stop` can say.
const UNPAID_MAX: i64 = 253;

/// What is reserved for one sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Row {
    /// Place of the budget, see [`Node::index`]
    pub node: u32,
    /// Tokens of the prompt, charged at once
    pub prompt: u32,
    /// The most tokens that will be generated
    pub max_new: u32,
    /// KV blocks
    pub kv_blocks: u32,
    /// Place of the model in the price table: its worst case is held in nano-USD, and its real cost settled
    pub price: Option<u16>,
}

/// What the meter remembers of a slot that it has.
#[derive(Debug, Clone, Copy, Default)]
struct Sequence {
    prompt: u32,
    price: Option<u16>,
    /// The most tokens that may be generated, top-ups included
    max_new: u64,
}

/// The meter of one engine.
#[derive(Debug)]
pub struct Meter {
    ledger: Arc<Ledger>,
    /// Generation of the hold in each slot that this meter has; 0: none. Apart, because each charge looks at it.
    generations: Vec<u32>,
    /// What else is known of them, by slot
    sequences: Vec<Sequence>,
    /// Budgets by place, found once
    nodes: Vec<Option<Arc<Node>>>,
}

impl Meter {
    /// A meter over a ledger.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        let slots = ledger.memory.slots.len();
        Self { ledger, generations: vec![0; slots], sequences: vec![Sequence::default(); slots], nodes: Vec::new() }
    }

    /// The ledger.
    pub const fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// The place of a budget, for rows.
    pub fn node(&mut self, path: &str) -> Result<u32, Box<Denial>> {
        let node = self.ledger.node(path)?;
        let index = node.index();
        let place = index as usize;
        if self.nodes.len() <= place {
            self.nodes.resize(place.saturating_add(1), None);
        }
        if let Some(entry) = self.nodes.get_mut(place) {
            *entry = Some(node);
        }
        Ok(index)
    }

    /// The budget at a place that [`Meter::node`] gave.
    pub fn node_at(&self, index: u32) -> Option<&Arc<Node>> {
        self.nodes.get(index as usize).and_then(Option::as_ref)
    }

    /// What so many tokens of a sequence cost. Cached tokens of a model that has no price for them cost as any others.
    fn cost(&self, price: u16, prompt: u64, cached: u64, completion: u64) -> Result<i64, DenialKind> {
        let prices = &self.ledger.spec().prices;
        let cached = cached.min(prompt);
        let fresh = prompt.saturating_sub(cached);
        let cost = prices.cost_at(price, &[("prompt", fresh), ("cached", cached), ("completion", completion)]);
        let cost = match cost {
            Err(Unpriced::Component { .. }) if cached > 0 => {
                prices.cost_at(price, &[("prompt", prompt), ("completion", completion)])
            }
            known => known,
        };
        cost.map_err(|unpriced| match unpriced {
            Unpriced::TooLarge { .. } => DenialKind::TooLarge,
            Unpriced::Model { .. } | Unpriced::Component { .. } => DenialKind::Unpriced,
        })
    }

    /// Reserves each row or nothing of it, in the order of the rows. The prompt counts as charged from then on.
    ///
    /// `slots` and `status` have a place for each row; a status is 0 for granted, else 1 + the kind of denial.
    pub fn reserve_many(&mut self, rows: impl Iterator<Item = Row>, slots: &mut [u32], status: &mut [u8]) -> usize {
        let ledger = Arc::clone(&self.ledger);
        let _batch = ledger.begin_batch();
        let wall_ms = self.ledger.clock.wall_ms();
        let mut granted = 0_usize;
        for ((row, slot), status) in rows.zip(slots).zip(status) {
            match self.reserve(row, wall_ms) {
                Ok(id) => {
                    (*slot, *status) = (id.slot, 0);
                    granted = granted.saturating_add(1);
                }
                Err(kind) => (*slot, *status) = (u32::MAX, status_of(kind)),
            }
        }
        granted
    }

    #[inline]
    fn reserve(&mut self, row: Row, wall_ms: i64) -> Result<HoldId, DenialKind> {
        let node = self.node_at(row.node).ok_or(DenialKind::Unavailable)?;
        let worst = row.price.map(|price| self.cost(price, row.prompt.into(), 0, row.max_new.into()));
        let tokens = i64::from(row.prompt).saturating_add(i64::from(row.max_new));
        let mut amounts = Amounts::NONE.and(Unit::Tokens, tokens).and(Unit::NanoUsd, worst.unwrap_or(Ok(0))?);
        amounts = amounts.and(Unit::Requests, 1).and(Unit::InFlight, 1).and(Unit::KvBlocks, i64::from(row.kv_blocks));
        let options = Options { dispatched: true, meter: true, ..Options::default() };
        let id = self.ledger.reserve(node, &amounts, wall_ms, options).map_err(|denial| denial.kind)?;
        let place = id.slot as usize;
        if let (Some(generation), Some(sequence)) = (self.generations.get_mut(place), self.sequences.get_mut(place)) {
            let Row { prompt, price, max_new, .. } = row;
            *generation = id.generation;
            *sequence = Sequence { prompt, price, max_new: max_new.into() };
        }
        if let Some(tally) = self.ledger.memory.tallies.get(id.slot as usize) {
            tally.compute.store(0, Relaxed);
            tally.generation.store(id.generation, Relaxed);
            tally.left.store(i64::from(row.max_new), Relaxed);
        }
        Ok(id)
    }

    /// Charges one step: `new` tokens to each of `slots`, and `compute` tokens beside them. Returns how many must stop.
    ///
    /// `out_stop` says 0 for a sequence that can go on; 255 for what is no live hold; else 1 + how many of its new
    /// tokens are not paid for (at most 253), which are not charged.
    ///
    /// # Cost
    /// Some loads and stores for each row; no atomic read-modify-write, no lock, no system call, no allocation.
    pub fn charge(&self, slots: &[u32], new: &[u32], compute: Option<&[u32]>, out_stop: &mut [u8]) -> usize {
        let tallies = &*self.ledger.memory.tallies;
        let mut stops = 0_usize;
        for ((slot, new), stop) in slots.iter().zip(new).zip(out_stop.iter_mut()) {
            let Some(tally) = self.tally(tallies, *slot) else {
                *stop = NOT_A_HOLD;
                stops = stops.saturating_add(1);
                continue;
            };
            // Relaxed, and no read-modify-write: one thread charges, and whoever recovers a dead engine comes after it.
            let left = tally.left.load(Relaxed);
            let rest = left.saturating_sub(i64::from(*new));
            if rest > 0 {
                tally.left.store(rest, Relaxed);
                *stop = 0;
                continue;
            }
            stops = stops.saturating_add(1);
            *stop = if left == TALLY_NONE {
                NOT_A_HOLD
            } else {
                tally.left.store(0, Relaxed);
                u8::try_from(rest.saturating_neg().min(UNPAID_MAX)).unwrap_or(0).saturating_add(1)
            };
        }
        if let Some(compute) = compute {
            for (slot, compute) in slots.iter().zip(compute) {
                if let Some(tally) = self.tally(tallies, *slot) {
                    let before = tally.compute.load(Relaxed);
                    tally.compute.store(before.saturating_add(*compute), Relaxed);
                }
            }
        }
        stops
    }

    /// The tally of a slot that is this meter's: one that it has ended, or whose deadline has passed, may be another
    /// engine's by now.
    #[inline]
    fn tally<'a>(&self, tallies: &'a [Tally], slot: u32) -> Option<&'a Tally> {
        let generation = self.generations.get(slot as usize).copied().unwrap_or(0);
        let tally = tallies.get(slot as usize)?;
        (generation != 0 && tally.generation.load(Relaxed) == generation).then_some(tally)
    }

    /// Holds more tokens for each slot, or not. A status is 0 for granted, else 1 + the kind of denial.
    pub fn top_up(&mut self, slots: &[u32], tokens: &[u32], status: &mut [u8]) -> usize {
        let ledger = Arc::clone(&self.ledger);
        let _batch = ledger.begin_batch();
        let mut granted = 0_usize;
        for ((slot, tokens), status) in slots.iter().zip(tokens).zip(status) {
            let topped = self.id(*slot).ok_or(DenialKind::Expired).and_then(|id| {
                let more = Amounts::of(Unit::Tokens, i64::from(*tokens));
                let more = more.and(Unit::NanoUsd, self.cost_of_more(*slot, *tokens)?);
                self.ledger.top_up(id, &more).map_err(|denial| denial.kind)
            });
            *status = match topped {
                Ok(()) => {
                    if let Some(tally) = self.ledger.memory.tallies.get(*slot as usize) {
                        tally.left.store(tally.left.load(Relaxed).saturating_add(i64::from(*tokens)), Relaxed);
                    }
                    if let Some(sequence) = self.sequences.get_mut(*slot as usize) {
                        sequence.max_new = sequence.max_new.saturating_add(u64::from(*tokens));
                    }
                    granted = granted.saturating_add(1);
                    0
                }
                Err(kind) => status_of(kind),
            };
        }
        granted
    }

    /// What so many more tokens add to the worst case.
    fn cost_of_more(&self, slot: u32, tokens: u32) -> Result<i64, DenialKind> {
        let Some(Sequence { prompt, price: Some(price), max_new, .. }) = self.sequences.get(slot as usize).copied()
        else {
            return Ok(0);
        };
        let before = self.cost(price, prompt.into(), 0, max_new)?;
        let after = self.cost(price, prompt.into(), 0, max_new.saturating_add(tokens.into()))?;
        Ok(after.saturating_sub(before))
    }

    fn id(&self, slot: u32) -> Option<HoldId> {
        let generation = self.generations.get(slot as usize).copied()?;
        (generation != 0).then_some(HoldId { slot, generation })
    }

    /// Tokens charged to a slot so far; `None` for what is no live hold.
    pub fn charged(&self, slot: u32) -> Option<i64> {
        let id = self.id(slot)?;
        let entry = self.ledger.memory.slot(slot)?;
        let left = self.ledger.memory.tallies.get(slot as usize)?.left.load(Relaxed);
        let state = State(entry.state.load(Acquire));
        let held = entry.amounts.get(Unit::Tokens.index())?.load(Relaxed);
        (state.generation() == id.generation && left != TALLY_NONE).then(|| held.saturating_sub(left))
    }

    /// Ends the holds with the tokens that were charged, less what of the prompt came out of a cache and costs nothing.
    /// A sequence with a price settles its real cost: of its prompt, of what of it was cached, and of what was generated.
    /// Returns how many this call ended.
    pub fn settle_many(&mut self, slots: &[u32], cached: Option<&[u32]>) -> usize {
        let ledger = Arc::clone(&self.ledger);
        let _batch = ledger.begin_batch();
        let mut ended = 0_usize;
        for (row, slot) in slots.iter().enumerate() {
            let cached = cached.and_then(|cached| cached.get(row)).copied().unwrap_or(0);
            ended = ended.saturating_add(usize::from(self.settle(*slot, cached, |_| true)));
        }
        ended
    }

    /// Ends one hold: with what was charged if that `counts`, else with nothing.
    fn settle(&mut self, slot: u32, cached: u32, counts: impl FnOnce(i64) -> bool) -> bool {
        let Some((id, charged)) = self.id(slot).zip(self.charged(slot)) else { return false };
        // A discount is on the prompt: engines are known to count more than there was.
        let prompt = self.sequences.get(slot as usize).map_or(0, |sequence| sequence.prompt);
        let (counts, cached) = (counts(charged), i64::from(cached.min(prompt)));
        let mut reported = [None; UNITS];
        if let Some(tokens) = reported.get_mut(Unit::Tokens.index()) {
            *tokens = Some(if counts { charged.saturating_sub(cached).max(0) } else { 0 });
        }
        if let Some(nano_usd) = reported.get_mut(Unit::NanoUsd.index()) {
            *nano_usd = if counts { self.real_cost(slot, charged, cached) } else { Some(0) };
        }
        self.forget(slot);
        self.ledger.settle(id, &reported).unwrap_or(false)
    }

    /// Ends holds that were not used: their tokens go back, the prompt's too, and their requests stay spent. A sequence
    /// that has generated anything is settled instead. Returns how many it ended.
    pub fn release_many(&mut self, slots: &[u32]) -> usize {
        let ledger = Arc::clone(&self.ledger);
        let _batch = ledger.begin_batch();
        let mut ended = 0_usize;
        for slot in slots {
            let prompt = self.sequences.get(*slot as usize).map_or(0, |sequence| i64::from(sequence.prompt));
            ended = ended.saturating_add(usize::from(self.settle(*slot, 0, |charged| charged > prompt)));
        }
        ended
    }

    /// What a sequence has cost; `None` where it has no price, or one that a settle cannot say: then it counts in full.
    fn real_cost(&self, slot: u32, charged: i64, cached: i64) -> Option<i64> {
        let Sequence { prompt, price, .. } = self.sequences.get(slot as usize).copied()?;
        let generated = charged.saturating_sub(i64::from(prompt)).max(0).unsigned_abs();
        self.cost(price?, prompt.into(), cached.max(0).unsigned_abs(), generated).ok()
    }

    /// Ends every hold that the meter still has with what was charged.
    pub fn end_all(&mut self) {
        for slot in 0..u32::try_from(self.generations.len()).unwrap_or(u32::MAX) {
            self.settle(slot, 0, |_| true);
        }
    }

    fn forget(&mut self, slot: u32) {
        if let Some(generation) = self.generations.get_mut(slot as usize) {
            *generation = 0;
        }
    }

    /// Compute tokens of a slot so far; `None` for what is no live hold.
    pub fn compute(&self, slot: u32) -> Option<i64> {
        self.charged(slot)?;
        self.ledger.memory.tallies.get(slot as usize).map(|tally| tally.compute.load(Relaxed).into())
    }
}

/// 0 is granted.
fn status_of(kind: DenialKind) -> u8 {
    let place = DenialKind::ALL.iter().position(|known| *known == kind).unwrap_or(0);
    u8::try_from(place.saturating_add(1)).unwrap_or(u8::MAX)
}
