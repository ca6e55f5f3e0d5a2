//! What was revoked: principals, tools, sessions, or everything.
//!
//! One word says it all to a check: 0 if nothing was ever revoked, else the generation of the table and whether
//! anything is in force. The table is a function of the generation: a revocation is in force from one generation on and
//! until another, both stored beside it, so a writer changes what the next generation will see, brings it to the disk,
//! and only then stores the word. Whoever is killed on the way has changed nothing yet: the next one who opens or
//! writes finishes a revocation that is whole, and drops a restoration.
//!
//! Readers take no lock (a seqlock, with the word as its sequence): word, marks and texts, word again. A slot is
//! written anew only if it is in force neither in the generation of the word nor in the next one.
//!
//! It fails closed. Generations are sealed with a checksum, texts too, and each generation says how many revocations it
//! has. Where anything does not add up, everything counts as revoked until an operator restores everything.

use std::fmt::Write as _;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::error::ControlError;
use super::layout::{
    BY_WORDS, Mark, NAME_WORDS, REASON_WORDS, RevocationSlot, RevocationsHeader, checksum, get_text, put_text,
};
use crate::limits::{
    CONTROL_BY_BYTES_MAX, CONTROL_NAME_BYTES_MAX, CONTROL_READS_MAX, CONTROL_REASON_BYTES_MAX, CONTROL_REVOCATIONS_MAX,
};
use crate::map::Table;
use crate::sync::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::sync::{AtomicU64, fence};

/// Bits of the checksum in a sealed generation.
const SEAL_BITS: u32 = 16;
/// Above every generation.
const GENERATION_END: u64 = 1 << (64 - SEAL_BITS);
/// Bits that count revocations in a sum; above them the mark of damage, above that the generation.
const COUNT_BITS: u32 = 15;
const DAMAGED: u64 = 1 << COUNT_BITS;

/// What can be revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetKind {
    /// Somebody who acts, by the text of the uid: `Agent::"researcher"`
    Principal,
    /// A tool, by its name
    Tool,
    /// A session, by its id
    Session,
    /// All of them
    Everything,
}

impl TargetKind {
    const ALL: [Self; 4] = [Self::Principal, Self::Tool, Self::Session, Self::Everything];

    /// The word for it in audit entries and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Principal => "principal",
            Self::Tool => "tool",
            Self::Session => "session",
            Self::Everything => "everything",
        }
    }

    const fn number(self) -> u64 {
        match self {
            Self::Principal => 1,
            Self::Tool => 2,
            Self::Session => 3,
            Self::Everything => 4,
        }
    }
}

/// One thing that can be revoked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Which kind of thing
    pub kind: TargetKind,
    /// Its name; empty for everything
    pub name: Box<str>,
}

impl Target {
    /// A principal, a tool or a session.
    pub fn new(kind: TargetKind, name: &str) -> Self {
        Self { kind, name: name.into() }
    }

    /// Everything.
    pub fn everything() -> Self {
        Self::new(TargetKind::Everything, "")
    }

    fn check(&self) -> Result<(), ControlError> {
        let what = match self.kind {
            TargetKind::Everything => "the name of everything",
            TargetKind::Principal => "the principal",
            TargetKind::Tool => "the tool",
            TargetKind::Session => "the session",
        };
        let range = if self.kind == TargetKind::Everything { (0, 0) } else { (1, CONTROL_NAME_BYTES_MAX) };
        check_text(what, &self.name, range)
    }
}

fn check_text(what: &'static str, text: &str, (least, limit): (usize, usize)) -> Result<(), ControlError> {
    if (least..=limit).contains(&text.len()) {
        Ok(())
    } else {
        Err(ControlError::Text { what, bytes: text.len(), least, limit })
    }
}

/// A revocation that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// What was revoked
    pub target: Target,
    /// Why
    pub reason: Box<str>,
    /// By whom
    pub by: Box<str>,
    /// When, in milliseconds since 1970
    pub at_ms: i64,
    /// The generation since which it is in force
    pub generation: u64,
    /// It stands for a table that cannot be read
    pub damage: bool,
}

/// What a change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The generation in which it is so
    pub generation: u64,
    /// `false` if it was so already
    pub changed: bool,
}

/// Everything that is in force in one generation.
#[derive(Debug, Default)]
pub struct Revocations {
    word: u64,
    list: Vec<Revoked>,
    /// Slot of each in `list`, but for damage
    slots: Vec<usize>,
    names: [HashMap<Box<str>, usize, RandomState>; 3],
    everything: Option<usize>,
}

impl Revocations {
    /// The word that this is the table of.
    pub const fn word(&self) -> u64 {
        self.word
    }

    /// The generation; 0: nothing was ever revoked.
    pub const fn generation(&self) -> u64 {
        self.word >> 1
    }

    /// All of them, by the generation since which they are in force.
    pub fn list(&self) -> &[Revoked] {
        &self.list
    }

    /// Whether any tool is revoked.
    pub fn has_tools(&self) -> bool {
        !self.of(TargetKind::Tool).is_empty()
    }

    /// Whether any session is revoked.
    pub fn has_sessions(&self) -> bool {
        !self.of(TargetKind::Session).is_empty()
    }

    /// Whether any principal is revoked.
    pub fn has_principals(&self) -> bool {
        !self.of(TargetKind::Principal).is_empty()
    }

    /// What stands in the way of an action: everything comes first, then the principals in their order, the session,
    /// the tool. Allocates nothing.
    pub fn hit<'a>(
        &self,
        mut principals: impl Iterator<Item = &'a str>,
        session: &str,
        tool: Option<&str>,
    ) -> Option<&Revoked> {
        let find = |kind, name: &str| self.of(kind).get(name).copied();
        let index = self
            .everything
            .or_else(|| principals.find_map(|name| find(TargetKind::Principal, name)))
            .or_else(|| find(TargetKind::Session, session))
            .or_else(|| find(TargetKind::Tool, tool?));
        self.list.get(index?)
    }

    /// The revocation of exactly this target.
    pub fn get(&self, target: &Target) -> Option<&Revoked> {
        self.list.iter().find(|revoked| revoked.target == *target && !revoked.damage)
    }

    /// Whether the table could not be read as a whole.
    pub fn is_damaged(&self) -> bool {
        self.list.iter().any(|revoked| revoked.damage)
    }

    fn of(&self, kind: TargetKind) -> &HashMap<Box<str>, usize, RandomState> {
        let [principals, tools, sessions] = &self.names;
        match kind {
            TargetKind::Tool => tools,
            TargetKind::Session => sessions,
            TargetKind::Principal | TargetKind::Everything => principals,
        }
    }

    fn new(word: u64, mut found: Vec<(usize, Revoked)>, damage: Option<String>) -> Self {
        found.sort_by_key(|(_, revoked)| revoked.generation);
        let mut table = Self { word, ..Self::default() };
        if let Some(message) = damage {
            table.everything = Some(0);
            table.list.push(Revoked {
                target: Target::everything(),
                reason: message.into_boxed_str(),
                by: "tollkeeper".into(),
                at_ms: 0,
                generation: word >> 1,
                damage: true,
            });
        }
        for (slot, revoked) in found {
            let index = table.list.len();
            let Target { kind, name } = &revoked.target;
            let [principals, tools, sessions] = &mut table.names;
            match kind {
                TargetKind::Principal => drop(principals.insert(name.clone(), index)),
                TargetKind::Tool => drop(tools.insert(name.clone(), index)),
                TargetKind::Session => drop(sessions.insert(name.clone(), index)),
                TargetKind::Everything => table.everything = table.everything.or(Some(index)),
            }
            table.list.push(revoked);
            table.slots.push(slot);
        }
        table
    }

    fn slot_of(&self, target: &Target) -> Option<usize> {
        let mut readable = self.list.iter().filter(|revoked| !revoked.damage).zip(&self.slots);
        readable.find(|(revoked, _)| revoked.target == *target).map(|(_, slot)| *slot)
    }
}

/// A sealed generation, opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sealed {
    Never,
    At(u64),
    Broken,
}

/// Which of a mark's words a seal is for: one does not pass for the other.
const FROM: u64 = 1;
const UNTIL: u64 = 2;

fn seal(generation: u64, slot: usize, which: u64) -> u64 {
    let sum = checksum(&[generation, slot as u64, which], &[]) & ((1 << SEAL_BITS) - 1);
    (generation << SEAL_BITS) | sum
}

fn unseal(word: u64, slot: usize, which: u64) -> Sealed {
    let generation = word >> SEAL_BITS;
    match word {
        0 => Sealed::Never,
        _ if generation != 0 && seal(generation, slot, which) == word => Sealed::At(generation),
        _ => Sealed::Broken,
    }
}

/// What a mark says about one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Force {
    /// In force since a generation
    Since(u64),
    Out,
    Broken,
}

/// Why a change did not come about.
#[derive(Debug)]
pub(super) enum Failure {
    /// The slots are all in use
    Full,
    /// Nothing has changed
    Before(std::io::Error),
    /// It is in force, and the disk does not know
    After(std::io::Error),
}

/// What to change.
#[derive(Debug)]
pub(super) enum Wish<'a> {
    Revoke {
        target: &'a Target,
        reason: &'a str,
        by: &'a str,
        at_ms: i64,
    },
    Restore {
        target: &'a Target,
    },
    /// Finish what a dead writer has left, and have a word that makes everybody look at damage
    Settle,
}

impl Wish<'_> {
    /// Whether texts and names fit.
    pub(super) fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Revoke { target, reason, by, .. } => {
                check_text("the reason", reason, (0, CONTROL_REASON_BYTES_MAX))?;
                check_text("who revokes", by, (0, CONTROL_BY_BYTES_MAX))?;
                target.check()
            }
            Self::Restore { target } => target.check(),
            Self::Settle => Ok(()),
        }
    }
}

/// The table of revocations in shared memory.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) header: Table<RevocationsHeader>,
    pub(super) marks: Table<Mark>,
    pub(super) slots: Table<RevocationSlot>,
}

const _: () = {
    assert!(CONTROL_NAME_BYTES_MAX <= NAME_WORDS * 8 || cfg!(loom), "names fit");
    assert!(CONTROL_REASON_BYTES_MAX <= REASON_WORDS * 8 || cfg!(loom), "reasons fit");
    assert!(CONTROL_BY_BYTES_MAX <= BY_WORDS * 8 || cfg!(loom), "names fit");
    assert!(CONTROL_REVOCATIONS_MAX < 1 << COUNT_BITS, "a sum can count them");
};

impl Board {
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "every constructor makes this table with one item")]
    fn header(&self) -> &RevocationsHeader {
        &self.header[0]
    }

    /// Generation and, in the lowest bit, whether anything is in force. Acquire pairs with the exchange of a writer:
    /// who sees a generation sees its table.
    #[inline]
    pub(super) fn word(&self) -> u64 {
        self.header().word.load(Acquire)
    }

    /// The table of the current word.
    ///
    /// # Cost
    /// Looks at 64 KiB of marks, and copies the texts of what is in force.
    pub(super) fn read(&self) -> Revocations {
        let mut word = self.word();
        for _ in 0..CONTROL_READS_MAX {
            let table = self.read_at(word);
            // Pairs with the fence of a writer that uses slots again: if a text of a later generation was seen above,
            // so is the word that let it be written.
            fence(Acquire);
            let again = self.word();
            if again == word {
                return table;
            }
            word = again;
            // The model checker has to let the writer go on.
            #[cfg(loom)]
            crate::sync::yield_now();
        }
        Revocations::new(word, Vec::new(), Some("the revocations change faster than they can be read".to_owned()))
    }

    fn read_at(&self, word: u64) -> Revocations {
        let generation = word >> 1;
        let (mut found, mut broken, mut count) = (Vec::new(), Vec::new(), 0_usize);
        for (slot, mark) in self.marks.iter().enumerate() {
            match force(slot, mark, generation) {
                Force::Out => {}
                Force::Broken => broken.push(slot),
                Force::Since(from) => {
                    count = count.saturating_add(1);
                    match self.text(slot, from) {
                        Some(revoked) => found.push((slot, revoked)),
                        None => broken.push(slot),
                    }
                }
            }
        }
        let damage = self.damage(word, count, &broken);
        Revocations::new(word, found, damage)
    }

    /// What does not add up, as a sentence for who is denied by it.
    fn damage(&self, word: u64, count: usize, broken: &[usize]) -> Option<String> {
        let sum = self.sum(word >> 1);
        let adds_up = sum.is_some_and(|sum| {
            sum & DAMAGED == 0 && sum & (DAMAGED - 1) == count as u64 && (word & 1 == 1) == (count > 0)
        });
        if adds_up && broken.is_empty() {
            return None;
        }
        let mut message = "the table of revocations is damaged".to_owned();
        if let Some(slot) = broken.first() {
            let _ = write!(message, " (slot {slot}");
            let _ = match broken.len() {
                1 => write!(message, ")"),
                many => write!(message, " and {} more)", many.saturating_sub(1)),
            };
        }
        message.push_str(
            ", so everything counts as revoked: look up in the audit log what was, revoke that again, and clear the \
             damage with `tollkeeper restore --everything`",
        );
        Some(message)
    }

    /// The sum of a generation: damage and count, if it is the sum of this generation.
    fn sum(&self, generation: u64) -> Option<u64> {
        let [even, odd] = &self.header().sums;
        let sum = if generation & 1 == 0 { even } else { odd };
        let (content, check) = (sum.content.load(Relaxed), sum.check.load(Relaxed));
        let whole = if generation == 0 { (content, check) == (0, 0) } else { check == checksum(&[content], &[]) };
        (whole && content >> SEAL_BITS == generation).then_some(content & ((1 << SEAL_BITS) - 1))
    }

    fn text(&self, slot: usize, from: u64) -> Option<Revoked> {
        let texts = self.slots.get(slot)?;
        let shape = texts.shape.load(Relaxed);
        let len = |part: u32| usize::try_from((shape >> part) & 0xffff).ok();
        let name = get_text(&texts.name, len(8)?)?;
        let reason = get_text(&texts.reason, len(24)?)?;
        let by = get_text(&texts.by, len(40)?)?;
        let at_ms = texts.at_ms.load(Relaxed);
        let check = slot_check(slot, from, shape, at_ms, &[&name, &reason, &by]);
        let kind = *TargetKind::ALL.iter().find(|kind| kind.number() == shape & 0xff)?;
        (texts.check.load(Relaxed) == check).then_some(Revoked {
            target: Target { kind, name },
            reason,
            by,
            at_ms,
            generation: from,
            damage: false,
        })
    }

    /// Changes the table. The caller holds the lock of all writers; `flush` brings everything to the disk.
    pub(super) fn change(&self, wish: &Wish<'_>, flush: &dyn Fn() -> std::io::Result<()>) -> Result<Change, Failure> {
        let mut table = self.read();
        let damaged = table.is_damaged();
        // Pairs with the fence of readers: see `read`.
        fence(Release);
        if !damaged && self.has_unpublished(table.generation()) && self.settle(table.generation()) {
            self.publish(table.generation().saturating_add(1), false, true, flush)?;
            table = self.read();
        }
        let base = if damaged { self.latest(table.generation()) } else { table.generation() };
        let next = base.saturating_add(1);
        let clears = matches!(wish, Wish::Restore { target } if target.kind == TargetKind::Everything) && damaged;
        let (changed, is_revoke) = match wish {
            Wish::Revoke { target, reason, by, at_ms } => {
                let found = table.slot_of(target).is_some();
                if !found {
                    let slot = self.free_slot(base).ok_or(Failure::Full)?;
                    self.write(slot, next, target, reason, by, *at_ms);
                }
                (!found, true)
            }
            Wish::Restore { target } => {
                let found = table.slot_of(target);
                if let Some((slot, mark)) = found.and_then(|slot| Some((slot, self.marks.get(slot)?))) {
                    mark.until.store(seal(next, slot, UNTIL), Release);
                }
                if clears {
                    self.clear_broken(base);
                }
                (found.is_some() || clears, false)
            }
            Wish::Settle => (damaged && table.word() & 1 == 0, true),
        };
        if !changed {
            // A change before may have failed to reach the disk.
            flush().map_err(Failure::After)?;
            return Ok(Change { generation: table.generation(), changed });
        }
        self.publish(next, damaged && !clears, is_revoke, flush)?;
        Ok(Change { generation: next, changed })
    }

    /// Makes a generation the current one. A revocation is in force whatever the disk says; a restoration is not unless
    /// the disk has it.
    fn publish(
        &self,
        next: u64,
        damaged: bool,
        is_revoke: bool,
        flush: &dyn Fn() -> std::io::Result<()>,
    ) -> Result<(), Failure> {
        let any = self.write_sum(next, damaged);
        if let Err(error) = flush()
            && !is_revoke
        {
            return Err(Failure::Before(error));
        }
        // Sequentially consistent, so that it has left this core's store buffer before the caller goes on.
        self.header().word.swap((next << 1) | u64::from(any), SeqCst);
        flush().map_err(Failure::After)
    }

    /// Beyond every generation that anything in a damaged table names.
    fn latest(&self, generation: u64) -> u64 {
        let marks = self.marks.iter().enumerate().flat_map(|(slot, mark)| {
            [unseal(mark.from.load(Relaxed), slot, FROM), unseal(mark.until.load(Relaxed), slot, UNTIL)]
        });
        let named =
            marks.filter_map(|sealed| if let Sealed::At(generation) = sealed { Some(generation) } else { None });
        let sums = self.header().sums.iter().map(|sum| sum.content.load(Relaxed) >> SEAL_BITS);
        // Half of them are left for what comes; a damaged word may claim any.
        named.chain(sums).chain([generation]).filter(|named| *named < GENERATION_END / 2).max().unwrap_or(0)
    }

    /// Whether a writer was killed, or the power cut, before it published what it wrote.
    pub(super) fn has_unpublished(&self, generation: u64) -> bool {
        let later = |sealed| matches!(sealed, Sealed::At(at) if at > generation);
        self.marks.iter().enumerate().any(|(slot, mark)| {
            later(unseal(mark.from.load(Acquire), slot, FROM)) || later(unseal(mark.until.load(Acquire), slot, UNTIL))
        })
    }

    /// Decides what becomes of it: who wanted to revoke gets it, if the text is whole, who wanted to restore does not.
    /// Whether there is anything to publish.
    fn settle(&self, generation: u64) -> bool {
        let mut any = false;
        for (slot, mark) in self.marks.iter().enumerate() {
            if let Sealed::At(until) = unseal(mark.until.load(Relaxed), slot, UNTIL)
                && until > generation
            {
                mark.until.store(0, Release);
            }
            if let Sealed::At(from) = unseal(mark.from.load(Relaxed), slot, FROM)
                && from > generation
            {
                if self.text(slot, from).is_some() {
                    any = true;
                } else {
                    mark.from.store(0, Release);
                }
            }
        }
        any
    }

    /// Empties every slot that cannot be read.
    fn clear_broken(&self, generation: u64) {
        for (slot, mark) in self.marks.iter().enumerate() {
            let broken = match force(slot, mark, generation) {
                Force::Broken => true,
                Force::Since(from) => self.text(slot, from).is_none(),
                Force::Out => false,
            };
            if broken {
                mark.from.store(0, Release);
                mark.until.store(0, Release);
            }
        }
    }

    /// A slot that is in force neither now nor in the next generation.
    fn free_slot(&self, generation: u64) -> Option<usize> {
        let mut slots = self.marks.iter().enumerate();
        slots.find(|(slot, mark)| force(*slot, mark, generation) == Force::Out).map(|(slot, _)| slot)
    }

    fn write(&self, slot: usize, from: u64, target: &Target, reason: &str, by: &str, at_ms: i64) {
        let (Some(mark), Some(texts)) = (self.marks.get(slot), self.slots.get(slot)) else { return };
        // The beginning goes first, see `force`.
        mark.from.store(0, Release);
        mark.until.store(0, Release);
        let len = |text: &str| text.len() as u64;
        let shape = target.kind.number() | (len(&target.name) << 8) | (len(reason) << 24) | (len(by) << 40);
        let check = slot_check(slot, from, shape, at_ms, &[&target.name, reason, by]);
        texts.shape.store(shape, Relaxed);
        texts.at_ms.store(at_ms, Relaxed);
        texts.check.store(check, Relaxed);
        let parts: [(&[AtomicU64], &str); 3] = [(&texts.name, &target.name), (&texts.reason, reason), (&texts.by, by)];
        for (words, text) in parts {
            put_text(words, text);
        }
        mark.from.store(seal(from, slot, FROM), Release);
    }

    /// Writes how many will be in force in a generation, and returns whether any will.
    fn write_sum(&self, generation: u64, damaged: bool) -> bool {
        let in_force = |(slot, mark): &(usize, &Mark)| matches!(force(*slot, mark, generation), Force::Since(_));
        let count = self.marks.iter().enumerate().filter(in_force).count();
        let content = (generation << SEAL_BITS) | (u64::from(damaged) << COUNT_BITS) | count as u64;
        let [even, odd] = &self.header().sums;
        let sum = if generation & 1 == 0 { even } else { odd };
        sum.content.store(content, Relaxed);
        sum.check.store(checksum(&[content], &[]), Relaxed);
        count > 0 || damaged
    }
}

/// What one mark says about a generation. The end is read first: a writer who uses the slot again clears the
/// beginning before it, so an end that is not there any more is never seen with the old beginning.
fn force(slot: usize, mark: &Mark, generation: u64) -> Force {
    let until = unseal(mark.until.load(Acquire), slot, UNTIL);
    let from = unseal(mark.from.load(Acquire), slot, FROM);
    match (from, until) {
        (Sealed::Broken, _) | (_, Sealed::Broken) => Force::Broken,
        // Two generations ahead of the word: the word is older than the table.
        (Sealed::At(at), _) | (_, Sealed::At(at)) if at > generation.saturating_add(1) => Force::Broken,
        (Sealed::Never, _) => Force::Out,
        (Sealed::At(from), _) if from > generation => Force::Out,
        (_, Sealed::At(until)) if until <= generation => Force::Out,
        (Sealed::At(from), _) => Force::Since(from),
    }
}

fn slot_check(slot: usize, from: u64, shape: u64, at_ms: i64, texts: &[&str]) -> u64 {
    checksum(&[slot as u64, from, shape, at_ms.cast_unsigned()], texts)
}
