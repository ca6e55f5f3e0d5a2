//! Many requests at once: distinct handles in tables, requests as columns of indices into them.
//!
//! The answers are those of [`PolicySet::decide`] request by request; a test holds the two together. Threads take
//! contiguous runs of requests, each with its own buffers, and share nothing that is written. Everything that can be
//! wrong with the input is found before the first decision, so a batch is decided whole or not at all.

use std::sync::Arc;

use thiserror::Error;

use super::entities::Entities;
use super::eval::Request;
use super::index::Word;
use super::set::{Answer, Decision, Mode, PolicySet, Scratch};
use crate::uid::EntityUid;
use crate::value::Val;

/// Below this many requests a thread costs more to start (some 30 us) than it saves.
const REQUESTS_PER_THREAD_MIN: usize = 512;
/// Answers to scopes that a thread keeps (a power of two): a batch has few principals, tools and resources, and many
/// contexts. At 1,000 policies looking the scope up again is 40 % of a decision.
const SCOPES_KEPT: usize = 1024;
/// More threads than this are a mistake of the caller.
const THREADS_MAX: usize = 256;

/// A table of distinct values and, for each request, an index into it.
#[derive(Debug)]
pub struct Column<'a, T> {
    /// Distinct values
    pub table: &'a [T],
    /// One per request
    pub indices: &'a [u32],
}

/// The requests of a batch.
#[derive(Debug)]
pub struct Columns<'a> {
    /// Who asks
    pub principals: Column<'a, Arc<EntityUid>>,
    /// What is to be done
    pub actions: Column<'a, Arc<EntityUid>>,
    /// On what
    pub resources: Column<'a, Arc<EntityUid>>,
    /// Records
    pub contexts: Column<'a, Val>,
}

/// What to return besides the decisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Detail {
    /// Nothing: each request stops at the policy that settles it
    #[default]
    Decisions,
    /// How many reasons and errors each request has
    Counts,
    /// Which policies are the reasons, which erred
    Policies,
}

/// Lists of policies, one per request, in one piece: request i has `policies[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lists {
    /// One more than there are requests
    pub offsets: Vec<u32>,
    /// Indices of policies, ascending within a request
    pub policies: Vec<u32>,
}

/// The answers of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    /// 1 for allow, 0 for deny
    pub decisions: Vec<u8>,
    /// With [`Detail::Counts`]: reasons and errors of each request
    pub counts: Vec<(u32, u32)>,
    /// With [`Detail::Policies`]
    pub reasons: Lists,
    /// With [`Detail::Policies`]
    pub errors: Lists,
}

/// Why a batch was refused. Nothing was decided.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The columns do not describe the same number of requests.
    #[error("column `{column}` has {found} rows, `principals` has {expected}")]
    Rows {
        /// Which column
        column: &'static str,
        /// Its length
        found: usize,
        /// The length of the first column
        expected: usize,
    },
    /// An index outside its table.
    #[error("row {row} of column `{column}` is {index}, the table has {len} entries")]
    Index {
        /// Which column
        column: &'static str,
        /// Which request
        row: usize,
        /// What it says
        index: u32,
        /// Entries of the table
        len: usize,
    },
    /// A context that is not a record.
    #[error("context {index} is not a record")]
    Context {
        /// Its place in the table
        index: usize,
    },
    /// The lists of policies do not fit 32-bit offsets.
    #[error("the batch has more than {limit} reasons or errors: ask for counts, or in smaller batches")]
    TooLarge {
        /// The bound
        limit: u32,
    },
}

impl BatchError {
    /// The stable name of this error.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Rows { .. } => "batch.rows",
            Self::Index { .. } => "batch.index",
            Self::Context { .. } => "batch.context",
            Self::TooLarge { .. } => "batch.too_large",
        }
    }
}

impl<T> Column<'_, T> {
    fn check(&self, column: &'static str, expected: usize) -> Result<(), BatchError> {
        let (found, len) = (self.indices.len(), self.table.len());
        if found != expected {
            return Err(BatchError::Rows { column, found, expected });
        }
        let outside = self.indices.iter().enumerate().find(|(_, index)| **index as usize >= len);
        outside.map_or(Ok(()), |(row, index)| Err(BatchError::Index { column, row, index: *index, len }))
    }

    #[inline]
    fn at(&self, row: usize) -> Option<&T> {
        self.table.get(*self.indices.get(row)? as usize)
    }
}

impl Columns<'_> {
    /// Number of requests.
    pub const fn len(&self) -> usize {
        self.principals.indices.len()
    }

    /// Whether there is no request.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check(&self) -> Result<(), BatchError> {
        let rows = self.len();
        self.principals.check("principals", rows)?;
        self.actions.check("actions", rows)?;
        self.resources.check("resources", rows)?;
        self.contexts.check("contexts", rows)?;
        let odd = self.contexts.table.iter().position(|context| !matches!(context, Val::Record(_)));
        odd.map_or(Ok(()), |index| Err(BatchError::Context { index }))
    }

    /// What the scopes of a row depend on.
    #[inline]
    fn key(&self, row: usize) -> [u32; 3] {
        [&self.principals.indices, &self.actions.indices, &self.resources.indices]
            .map(|indices| indices.get(row).copied().unwrap_or_default())
    }

    #[inline]
    fn request(&self, row: usize) -> Option<Request<'_>> {
        Some(Request {
            principal: self.principals.at(row)?,
            action: self.actions.at(row)?,
            resource: self.resources.at(row)?,
            context: self.contexts.at(row)?.as_value(),
        })
    }
}

/// Answers every request of `columns`, on `threads` threads (at least one, fewer than asked where the batch is small).
///
/// # Errors
/// [`BatchError`], before anything is decided, except for [`BatchError::TooLarge`].
pub fn decide_many(
    set: &PolicySet,
    entities: &Entities,
    columns: &Columns<'_>,
    detail: Detail,
    threads: usize,
) -> Result<Answers, BatchError> {
    columns.check()?;
    let rows = columns.len();
    let useful = rows.div_ceil(REQUESTS_PER_THREAD_MIN).max(1);
    let threads = threads.clamp(1, THREADS_MAX.min(useful));
    let each = rows.div_ceil(threads).max(1);
    let run = |from: usize| {
        let until = from.saturating_add(each).min(rows);
        decide_run(set, entities, columns, from..until, detail)
    };
    if threads == 1 {
        return run(0);
    }
    let parts: Vec<Result<Answers, BatchError>> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|number| scope.spawn(move || run(number.saturating_mul(each)))).collect();
        let first = run(0);
        let others =
            others.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        std::iter::once(first).chain(others).collect()
    });
    let mut parts = parts.into_iter();
    let mut all = parts.next().unwrap_or_else(|| Ok(Answers::default()))?;
    for part in parts {
        all.append(&part?)?;
    }
    Ok(all)
}

fn decide_run(
    set: &PolicySet,
    entities: &Entities,
    columns: &Columns<'_>,
    rows: std::ops::Range<usize>,
    detail: Detail,
) -> Result<Answers, BatchError> {
    let mut scratch = Scratch::new();
    let mut answers = Answers::with_capacity(rows.len(), detail);
    let mode = if detail == Detail::Decisions { Mode::DecisionOnly } else { Mode::Full };
    let mut scopes = Scopes::new(rows.len());
    for row in rows {
        // The columns were checked; a row that is not there would be a mistake of this file, so it is a denial.
        let Some(request) = columns.request(row) else {
            answers.push(set, &Answer::default(), detail)?;
            continue;
        };
        let scope = scopes.of(columns.key(row), |into| set.index.scope_words(&request, entities, into));
        let answer = set.decide_within(scope, &request, entities, &mut scratch, mode);
        answers.push(set, &answer, detail)?;
    }
    Ok(answers)
}

/// The answers to the scopes of the last few distinct triples of principal, action and resource: a direct-mapped table
/// that lives as long as one run, in which set and entities do not change.
struct Scopes {
    kept: Vec<(Option<[u32; 3]>, Vec<Word>)>,
}

impl Scopes {
    fn new(rows: usize) -> Self {
        let mut kept = Vec::new();
        kept.resize_with(SCOPES_KEPT.min(rows.next_power_of_two()), Default::default);
        Self { kept }
    }

    #[inline]
    fn of(&mut self, key: [u32; 3], find: impl FnOnce(&mut Vec<Word>)) -> &[Word] {
        // Multiplicative hashing (Knuth); the table's length is a power of two.
        let mixed = key.iter().fold(0u64, |hash, part| (hash ^ u64::from(*part)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let place = (mixed >> 32) as usize & self.kept.len().saturating_sub(1);
        let Some((known, words)) = self.kept.get_mut(place) else { return &[] };
        if *known != Some(key) {
            find(words);
            *known = Some(key);
        }
        words
    }
}

impl Answers {
    fn with_capacity(rows: usize, detail: Detail) -> Self {
        let mut answers = Self { decisions: Vec::with_capacity(rows), ..Self::default() };
        match detail {
            Detail::Decisions => {}
            Detail::Counts => answers.counts.reserve(rows),
            Detail::Policies => {
                answers.reasons.offsets.push(0);
                answers.errors.offsets.push(0);
            }
        }
        answers
    }

    #[inline]
    fn push(&mut self, set: &PolicySet, answer: &Answer, detail: Detail) -> Result<(), BatchError> {
        self.decisions.push(u8::from(answer.decision == Decision::Allow));
        match detail {
            Detail::Decisions => {}
            Detail::Counts => {
                let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
                self.counts.push((count(answer.reasons.len()), count(answer.errors_len())));
            }
            Detail::Policies => {
                let from = self.reasons.policies.len();
                self.reasons.policies.extend_from_slice(&answer.reasons);
                self.reasons.policies.get_mut(from..).unwrap_or_default().sort_unstable();
                self.reasons.close()?;
                if answer.errors_len() > 0 {
                    self.errors.policies.extend(answer.errors(set).iter().map(|fault| fault.policy));
                }
                self.errors.close()?;
            }
        }
        Ok(())
    }

    fn append(&mut self, other: &Self) -> Result<(), BatchError> {
        self.decisions.extend_from_slice(&other.decisions);
        self.counts.extend_from_slice(&other.counts);
        self.reasons.append(&other.reasons)?;
        self.errors.append(&other.errors)
    }
}

impl Lists {
    /// Ends the list of one request.
    fn close(&mut self) -> Result<(), BatchError> {
        let end = u32::try_from(self.policies.len()).map_err(|_| BatchError::TooLarge { limit: u32::MAX })?;
        self.offsets.push(end);
        Ok(())
    }

    fn append(&mut self, other: &Self) -> Result<(), BatchError> {
        let too_large = BatchError::TooLarge { limit: u32::MAX };
        let base = u32::try_from(self.policies.len()).map_err(|_| too_large.clone())?;
        self.policies.extend_from_slice(&other.policies);
        for offset in other.offsets.iter().skip(1) {
            self.offsets.push(base.checked_add(*offset).ok_or_else(|| too_large.clone())?);
        }
        Ok(())
    }

    /// The list of one request.
    pub fn of(&self, row: usize) -> &[u32] {
        let bound = |at: usize| self.offsets.get(at).map(|offset| *offset as usize);
        match (bound(row), bound(row.saturating_add(1))) {
            (Some(from), Some(until)) => self.policies.get(from..until).unwrap_or_default(),
            _ => &[],
        }
    }
}
