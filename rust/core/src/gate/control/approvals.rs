//! Questions to people, and their answers: each is for one exact action, and a grant is used once.
//!
//! Who asks and who answers holds the lock of all writers; who looks and who uses a grant holds nothing. One word of a
//! slot is its turn and its phase, and every change of phase is one exchange of it, so exactly one process uses a grant
//! and a slot that was used again is never taken for what it was.
//!
//! A grant holds only in the boot in which it was asked for and given: using it is not forced to the disk, which would
//! cost a check milliseconds, so after a power cut nobody could tell a used grant from an unused one. In another boot
//! every question and every grant has expired.

use std::fmt;

use super::layout::{ApprovalSlot, ApprovalsHeader, get_bytes, put_bytes};
use crate::map::Table;
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::{AtomicU32, fence};

/// Names one question. Random, so that one of yesterday is not that of today.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApprovalId(pub u64);

impl fmt::Display for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for ApprovalId {
    type Err = std::num::ParseIntError;

    /// Reads the 16 digits that an id is shown as.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A sign, which the standard library would take, is none of the 16.
        let digits = if text.len() == 16 && !text.starts_with('+') { text } else { "" };
        u64::from_str_radix(digits, 16).map(Self)
    }
}

/// What can be done with an approved action: it is used by [`super::Control::consume`], once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The question
    pub id: ApprovalId,
    /// When it is void, in milliseconds since 1970
    pub expires_ms: i64,
    /// When it was given
    pub answered_ms: i64,
    /// Who grants may sign what they grant; checked by whoever knows the keys
    pub signature: Option<[u8; 64]>,
    slot: u32,
    state: u64,
}

/// How things stand with an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has asked
    None,
    /// Somebody has, and nobody has answered
    Pending(ApprovalId),
    /// It may be used
    Granted(Grant),
    /// It may not
    Rejected(ApprovalId),
    /// The question or the grant is too old
    Expired(ApprovalId),
    /// The grant was used
    Used(ApprovalId),
}

/// In which state a question is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApprovalState {
    /// Nobody has answered
    Pending,
    /// It may be used
    Granted,
    /// It may not
    Rejected,
    /// The question or the grant is too old
    Expired,
    /// The grant was used
    Used,
}

impl ApprovalState {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Granted => "granted",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Used => "used",
        }
    }
}

/// One question as people see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApprovalRow {
    /// Its id
    pub id: ApprovalId,
    /// Which question of this file it is, counted from 1
    pub number: u64,
    /// Of the action
    pub digest: [u8; 32],
    /// In which state
    pub state: ApprovalState,
    /// When it was asked
    pub asked_ms: i64,
    /// When the question is void
    pub expires_ms: i64,
    /// When it was answered, if it was
    pub answered_ms: Option<i64>,
    /// When the grant is void, if it was granted
    pub grant_expires_ms: Option<i64>,
}

/// What was answered, for who records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// The question
    pub id: ApprovalId,
    /// Of the action
    pub digest: [u8; 32],
    /// Whether it may go ahead
    pub granted: bool,
}

/// An answer to be given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) id: ApprovalId,
    pub(super) granted: bool,
    pub(super) expires_ms: i64,
    pub(super) signature: Option<[u8; 64]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    Making,
    Pending,
    Granted,
    Rejected,
    Used,
    Unknown,
}

/// Turn in the upper bits, phase in the lowest byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State(u64);

impl State {
    const fn phase(self) -> Phase {
        match self.0 & 0xff {
            0 => Phase::Free,
            1 => Phase::Making,
            2 => Phase::Pending,
            3 => Phase::Granted,
            4 => Phase::Rejected,
            5 => Phase::Used,
            _ => Phase::Unknown,
        }
    }

    /// The next turn, in a phase.
    const fn then(self, phase: Phase) -> u64 {
        let phase = match phase {
            Phase::Free => 0,
            Phase::Making => 1,
            Phase::Pending => 2,
            Phase::Granted => 3,
            Phase::Rejected => 4,
            Phase::Used => 5,
            Phase::Unknown => 0xff,
        };
        ((self.0 >> 8).wrapping_add(1) << 8) | phase
    }
}

/// A slot as it was at one moment.
#[derive(Debug, Clone, Copy)]
struct Look {
    state: State,
    number: u64,
    id: ApprovalId,
    digest: [u8; 32],
    boot: [u64; 2],
    asked_ms: i64,
    expires_ms: i64,
    answered_ms: i64,
    grant_expires_ms: i64,
    signature: Option<[u8; 64]>,
}

impl Look {
    fn shown(&self, boot: [u64; 2], now_ms: i64) -> Option<ApprovalState> {
        let over = |expires_ms| self.boot != boot || now_ms >= expires_ms;
        Some(match self.state.phase() {
            Phase::Free | Phase::Making | Phase::Unknown => return None,
            Phase::Pending if over(self.expires_ms) => ApprovalState::Expired,
            Phase::Pending => ApprovalState::Pending,
            Phase::Granted if over(self.grant_expires_ms) => ApprovalState::Expired,
            Phase::Granted => ApprovalState::Granted,
            Phase::Rejected => ApprovalState::Rejected,
            Phase::Used => ApprovalState::Used,
        })
    }
}

/// Times a reader looks at a slot again that changed meanwhile: it changes when people or processes act on it.
const LOOKS_MAX: u32 = if cfg!(loom) { 3 } else { 100 };

/// Why something cannot be asked or answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    /// What it is instead
    Is(&'static str),
}

/// All questions in shared memory.
#[derive(Debug)]
pub(super) struct Approvals {
    pub(super) header: Table<ApprovalsHeader>,
    pub(super) slots: Table<ApprovalSlot>,
    /// The kernel's run
    pub(super) boot: [u64; 2],
}

impl Approvals {
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "every constructor makes this table with one item")]
    fn header(&self) -> &ApprovalsHeader {
        &self.header[0]
    }

    /// Changes with everything that happens here.
    pub(super) fn changes(&self) -> &AtomicU32 {
        &self.header().changes
    }

    /// Says that something has happened. Release: who sees the number sees it.
    fn changed(&self) {
        self.header().changes.fetch_add(1, Release);
        #[cfg(not(loom))]
        crate::map::wake_all(self.changes());
    }

    fn in_use(&self) -> impl DoubleEndedIterator<Item = (usize, &ApprovalSlot)> {
        let used = self.header().used.load(Acquire) as usize;
        let used = used.min(self.slots.len());
        self.slots.get(..used).unwrap_or_default().iter().enumerate()
    }

    /// Adds a question; the caller holds the lock.
    pub(super) fn ask(&self, id: ApprovalId, digest: &[u8; 32], expires_ms: i64, now_ms: i64) -> Result<(), Refused> {
        if let Some((_, look)) = self.find(id) {
            return Err(Refused::Is(look.shown(self.boot, now_ms).map_or("in use", ApprovalState::name)));
        }
        let (slot, state) = self.room(now_ms).ok_or(Refused::Full)?;
        // Fails if a grant was used just now: then it is over as well.
        let making = loop {
            let before = State(slot.state.load(Acquire));
            let making = before.then(Phase::Making);
            debug_assert!(before.0 >= state.0, "turns only grow");
            if slot.state.compare_exchange(before.0, making, AcqRel, Relaxed).is_ok() {
                break State(making);
            }
        };
        // Pairs with the fence of who looks: what is written now is not seen with the state of before.
        fence(Release);
        // After a power cut the count may be older than the slots.
        let numbers = self.in_use().map(|(_, slot)| slot.number.load(Relaxed));
        let last = numbers.chain([self.header().asked.load(Relaxed)]).max().unwrap_or(0);
        let number = last.saturating_add(1);
        self.header().asked.store(number, Relaxed);
        slot.id.store(id.0, Relaxed);
        slot.number.store(number, Relaxed);
        for (word, boot) in slot.boot.iter().zip(self.boot) {
            word.store(boot, Relaxed);
        }
        put_bytes(&slot.digest, digest);
        slot.asked_ms.store(now_ms, Relaxed);
        slot.expires_ms.store(expires_ms, Relaxed);
        slot.answered_ms.store(0, Relaxed);
        slot.state.store(making.then(Phase::Pending), Release);
        self.changed();
        Ok(())
    }

    /// A slot that nobody needs: one that is free, or the oldest that is over.
    fn room(&self, now_ms: i64) -> Option<(&ApprovalSlot, State)> {
        let mut oldest: Option<(&ApprovalSlot, Look)> = None;
        for (_, slot) in self.in_use() {
            let Some(look) = look(slot) else { continue };
            match look.shown(self.boot, now_ms) {
                // Free, or left by who was killed while making it: the lock says that nobody is.
                None => return Some((slot, look.state)),
                Some(ApprovalState::Pending | ApprovalState::Granted) => {}
                Some(_) if oldest.is_some_and(|(_, other)| other.number <= look.number) => {}
                Some(_) => oldest = Some((slot, look)),
            }
        }
        let used = self.header().used.load(Acquire);
        if let Some(slot) = self.slots.get(used as usize) {
            // Before it is written: a look at a free slot finds nothing.
            self.header().used.store(used.saturating_add(1), Release);
            return Some((slot, State(slot.state.load(Acquire))));
        }
        oldest.map(|(slot, look)| (slot, look.state))
    }

    /// Answers a question; the caller holds the lock.
    pub(super) fn answer(&self, answer: &Answer, now_ms: i64) -> Result<Answered, Refused> {
        let Some((slot, look)) = self.find(answer.id) else { return Err(Refused::Is("unknown")) };
        match look.shown(self.boot, now_ms) {
            Some(ApprovalState::Pending) => {}
            other => return Err(Refused::Is(other.map_or("unknown", ApprovalState::name))),
        }
        // Nobody reads these while it is pending, but who looked when the slot was another's: see `ask`.
        fence(Release);
        slot.answered_ms.store(now_ms, Relaxed);
        slot.grant_expires_ms.store(answer.expires_ms, Relaxed);
        slot.has_signature.store(u64::from(answer.signature.is_some()), Relaxed);
        if let Some(signature) = &answer.signature {
            put_bytes(&slot.signature, signature);
        }
        let phase = if answer.granted { Phase::Granted } else { Phase::Rejected };
        // Release: who sees the answer sees all of it. No other process changes a pending one without the lock.
        if slot.state.compare_exchange(look.state.0, look.state.then(phase), AcqRel, Relaxed).is_err() {
            return Err(Refused::Is("changing"));
        }
        self.changed();
        Ok(Answered { id: answer.id, digest: look.digest, granted: answer.granted })
    }

    /// How it stands with an action: by its newest question.
    pub(super) fn standing(&self, digest: &[u8; 32], now_ms: i64) -> Standing {
        let mut words = digest.as_chunks::<8>().0.iter().copied().map(u64::from_le_bytes);
        let first = words.next().unwrap_or(0);
        // A grant before anything else, and then the newest: of two who ask for the same, either may be answered.
        let mut newest: Option<(usize, Look)> = None;
        let rank = |look: &Look| (look.shown(self.boot, now_ms) == Some(ApprovalState::Granted), look.number);
        for (index, slot) in self.in_use() {
            // Most slots are another action's.
            let [word, ..] = &slot.digest;
            if word.load(Relaxed) != first {
                continue;
            }
            if let Some(look) = look(slot)
                && look.digest == *digest
                && look.shown(self.boot, now_ms).is_some()
                && newest.as_ref().is_none_or(|(_, other)| rank(other) < rank(&look))
            {
                newest = Some((index, look));
            }
        }
        let Some((slot, look)) = newest else { return Standing::None };
        match look.shown(self.boot, now_ms) {
            None => Standing::None,
            Some(ApprovalState::Pending) => Standing::Pending(look.id),
            Some(ApprovalState::Rejected) => Standing::Rejected(look.id),
            Some(ApprovalState::Expired) => Standing::Expired(look.id),
            Some(ApprovalState::Used) => Standing::Used(look.id),
            Some(ApprovalState::Granted) => Standing::Granted(Grant {
                id: look.id,
                expires_ms: look.grant_expires_ms,
                answered_ms: look.answered_ms,
                signature: look.signature,
                slot: u32::try_from(slot).unwrap_or(u32::MAX),
                state: look.state.0,
            }),
        }
    }

    /// Uses a grant. One caller of all gets `true`.
    pub(super) fn consume(&self, grant: &Grant, now_ms: i64) -> bool {
        let Some(slot) = self.slots.get(grant.slot as usize) else { return false };
        let state = State(grant.state);
        if state.phase() != Phase::Granted || now_ms >= grant.expires_ms {
            return false;
        }
        // The exchange decides; the turn in it says that this is still the same grant.
        let used = slot.state.compare_exchange(state.0, state.then(Phase::Used), AcqRel, Relaxed).is_ok();
        if used {
            self.changed();
        }
        used
    }

    /// All questions, the oldest first.
    pub(super) fn rows(&self, now_ms: i64) -> Vec<ApprovalRow> {
        let looks = self.in_use().filter_map(|(_, slot)| look(slot));
        let mut rows: Vec<ApprovalRow> = looks.filter_map(|look| row(&look, self.boot, now_ms)).collect();
        rows.sort_by_key(|row| row.number);
        rows
    }

    fn find(&self, id: ApprovalId) -> Option<(&ApprovalSlot, Look)> {
        let known = |phase| !matches!(phase, Phase::Free | Phase::Making | Phase::Unknown);
        let mut looks = self.in_use().filter_map(|(_, slot)| Some((slot, look(slot)?)));
        looks.find(|(_, look)| look.id == id && known(look.state.phase()))
    }
}

/// A slot as it was at one moment; `None` if it does not hold still.
fn look(slot: &ApprovalSlot) -> Option<Look> {
    for _ in 0..LOOKS_MAX {
        let state = State(slot.state.load(Acquire));
        let [first, second] = &slot.boot;
        let signature = (slot.has_signature.load(Relaxed) == 1).then(|| get_bytes(&slot.signature));
        let look = Look {
            state,
            number: slot.number.load(Relaxed),
            id: ApprovalId(slot.id.load(Relaxed)),
            digest: get_bytes(&slot.digest),
            boot: [first.load(Relaxed), second.load(Relaxed)],
            asked_ms: slot.asked_ms.load(Relaxed),
            expires_ms: slot.expires_ms.load(Relaxed),
            answered_ms: slot.answered_ms.load(Relaxed),
            grant_expires_ms: slot.grant_expires_ms.load(Relaxed),
            signature,
        };
        // Pairs with the fences of writers: if anything above is of a later turn, so is the state now.
        fence(Acquire);
        if slot.state.load(Relaxed) == state.0 {
            return Some(look);
        }
    }
    None
}

fn row(look: &Look, boot: [u64; 2], now_ms: i64) -> Option<ApprovalRow> {
    let answered = look.state.phase() != Phase::Pending;
    let granted = matches!(look.state.phase(), Phase::Granted | Phase::Used);
    Some(ApprovalRow {
        id: look.id,
        number: look.number,
        digest: look.digest,
        state: look.shown(boot, now_ms)?,
        asked_ms: look.asked_ms,
        expires_ms: look.expires_ms,
        answered_ms: answered.then_some(look.answered_ms),
        grant_expires_ms: granted.then_some(look.grant_expires_ms),
    })
}
