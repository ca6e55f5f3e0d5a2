//! Which policies can matter for a request: bitmaps over scopes and over predicates hoisted from conditions.
//!
//! A policy may be left out only if it provably is neither satisfied nor erroring. Scope tests never err, so leaving
//! out by scope is exact. A condition is a conjunction read left to right; its leading tests of a path against
//! constants become up to three *levels*. A policy is left out at a level when its test there is definitely false and
//! no earlier conjunct can have erred: the union for a level therefore always includes the policies that have no test
//! there, those whose operand erred there, and those whose operand erred at an earlier level. Everything that remains
//! is evaluated in full, so a bucket may be generous but never too small.
//!
//! Policies are numbered so that those with equal scopes are neighbours; a bucket is then a few 64-bit words, kept as
//! a sorted list of (word, bits). The smallest dimension drives and the others are searched alongside (after the
//! bitmap intersection of packet classifiers: Lakshman and Stiliadis, SIGCOMM 1998).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::compile::Conjunct;
use super::entities::Entities;
use super::eval::{Evaluation, Fault, Request, wrong_type};
use super::extension::ExtFn;
use super::program::{Path, Program, Test};
use super::tree::{ActionScope, Body, EntityRef, Node, Scope, Sym, Tree, Var, index_u32};
use crate::uid::{EntityUid, hash_text};
use crate::value::{Val, Value, key_hash};

/// Levels of hoisted tests per policy.
const LEVELS: usize = 3;
/// Tables per level: each costs one operand read per request.
const TABLES_PER_LEVEL_MAX: usize = 8;
/// Policies of one [`Word`].
const WORD_POLICIES: u32 = 64;
/// Fewer policies than this in a table are not worth reading its operand.
const TABLE_MEMBERS_MIN: usize = 8;
/// With at most this many candidates, running them costs less than asking the tables.
const DIRECT_MAX: u32 = 6;
/// Above this many candidates by scope alone, the first levels take part in choosing the driver.
const SCOPE_SELECTIVE_MAX: u32 = 256;
/// Up to this many words are searched for one by one instead of walking the lists along with them.
const FEW_WORDS_MAX: usize = 8;
/// Different lengths of literal prefixes in one table; longer prefixes are cut to a length that is there.
const PREFIX_LENGTHS_MAX: usize = 16;
/// Blocks of a table of ranges: an answer is rounded up to whole blocks.
const RANGE_BLOCKS_MAX: usize = 64;

/// 64 policies and which of them are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// Policies `64 * at ..`
    pub at: u32,
    /// One bit each
    pub bits: u64,
}

/// A run of [`Word`]s in the pool, sorted.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    first: u32,
    len: u32,
    policies: u32,
}

/// Policies by one entity: those that say `== it` and those that say `in it`.
#[derive(Debug, Clone)]
struct ByEntity {
    uid: Arc<EntityUid>,
    equal: Bucket,
    within: Bucket,
}

#[derive(Debug, Default)]
struct Dimension {
    any: Bucket,
    /// Every policy is in `any`. Not the same as having no other bucket: `action in []` is in none.
    open: bool,
    entities: HashTable<ByEntity>,
    /// How many of them have an `in` bucket
    within: usize,
    types: HashTable<(Box<str>, Bucket)>,
}

#[derive(Debug)]
enum Kind {
    /// `== c`, `one of [..]`, and `contains c` when the operand is a set
    Values { table: HashTable<(Val, Bucket)>, contains: bool },
    /// `in uid`, `in [..]`
    In(HashTable<(Arc<EntityUid>, Bucket)>),
    /// `is T`
    Is(HashTable<(Box<str>, Bucket)>),
    /// `has a`
    Has(Sym),
    /// A boolean
    Truth(bool),
    /// `like "literal*"`
    Prefix { lengths: SmallVec<[usize; 8]>, table: HashTable<(Box<str>, Bucket)> },
    /// Ascending bounds; block i holds every policy whose bound admits a value not above `bounds[i]` (upper) or not
    /// below it (lower)
    Range { of: Scale, upper: bool, bounds: Box<[i64]>, blocks: Box<[Bucket]> },
}

/// What a range compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Scale {
    Long,
    Decimal,
    Datetime,
    Duration,
}

#[derive(Debug)]
struct Table {
    path: u32,
    /// Bit i: an absent i-th attribute makes the test false, because a `has` stands before it
    guarded: u32,
    kind: Kind,
    members: Bucket,
    /// Members whose whole verdict is known when the operand errs: nothing stands before the test
    exact: Bucket,
}

#[derive(Debug, Default)]
struct Level {
    /// Policies without a test at this level
    without: Bucket,
    tables: Vec<Table>,
}

/// The index over one policy set.
#[derive(Debug, Default)]
pub struct Index {
    pool: Vec<Word>,
    principal: Dimension,
    action: Dimension,
    resource: Dimension,
    levels: Vec<Level>,
    policies: u32,
}

/// The candidates of one request.
#[derive(Debug, Default)]
pub struct Candidates {
    /// To be evaluated
    pub words: Vec<Word>,
    /// Known to err, with the operand's fault, without having been evaluated
    pub erring: Vec<Erring>,
}

/// Policies that err for one reason.
#[derive(Debug, Clone)]
pub struct Erring {
    /// Why
    pub fault: Fault,
    /// Reading which path
    pub path: u32,
    /// Which policies
    pub words: Vec<Word>,
}

impl Candidates {
    /// Empties and keeps the buffers.
    pub fn clear(&mut self) {
        self.words.clear();
        self.erring.clear();
    }

    fn count(&self) -> u32 {
        self.words.iter().map(|word| word.bits.count_ones()).fold(0, u32::saturating_add)
    }
}

/// The lists of one dimension for one request: their union is the dimension.
#[derive(Default)]
struct Union<'i> {
    lists: SmallVec<[&'i [Word]; 4]>,
    words: usize,
    policies: u32,
}

impl<'i> Union<'i> {
    fn add(&mut self, index: &'i Index, bucket: Bucket) {
        if bucket.len == 0 {
            return;
        }
        self.words = self.words.saturating_add(bucket.len as usize);
        self.policies = self.policies.saturating_add(bucket.policies);
        self.lists.push(index.words(bucket));
    }
}

impl Index {
    #[inline]
    fn words(&self, bucket: Bucket) -> &[Word] {
        let first = bucket.first as usize;
        self.pool.get(first..first.saturating_add(bucket.len as usize)).unwrap_or_default()
    }

    /// Fills `into` with the policies whose scope matches and whose hoisted tests are not provably false.
    #[inline]
    pub fn candidates<'a>(
        &self,
        request: &Request<'a>,
        entities: &'a Entities,
        evaluation: &Evaluation<'a>,
        into: &mut Candidates,
    ) {
        into.clear();
        if self.policies > WORD_POLICIES {
            return self.select(&self.scopes(request, entities), evaluation, into);
        }
        let bits = self.scope_bits(request, entities);
        if bits != 0 {
            into.words.push(Word { at: 0, bits });
            self.refine(evaluation, into);
        }
    }

    /// The same, where [`Index::scope_words`] has been asked before.
    #[inline]
    pub fn candidates_within<'i>(&'i self, scope: &'i [Word], evaluation: &Evaluation<'_>, into: &mut Candidates) {
        into.clear();
        let policies = scope.iter().map(|word| word.bits.count_ones()).fold(0, u32::saturating_add);
        if policies <= DIRECT_MAX || self.levels.is_empty() {
            into.words.extend_from_slice(scope);
            return;
        }
        let mut union = Union { lists: SmallVec::new(), words: scope.len(), policies };
        union.lists.push(scope);
        self.select(&[union], evaluation, into);
    }

    /// The policies whose scope matches: all that the index says without looking at the context.
    pub fn scope_words(&self, request: &Request<'_>, entities: &Entities, into: &mut Vec<Word>) {
        into.clear();
        intersect(self.scopes(request, entities).iter(), into);
    }

    /// The lists of each dimension that tells policies apart.
    fn scopes<'i>(&'i self, request: &Request<'_>, entities: &Entities) -> SmallVec<[Union<'i>; 3]> {
        let mut unions = SmallVec::new();
        let Request { principal, action, resource, .. } = *request;
        for (dimension, uid) in [(&self.action, action), (&self.principal, principal), (&self.resource, resource)] {
            if !dimension.open {
                unions.push(Union::default());
                if let Some(union) = unions.last_mut() {
                    dimension.union(self, uid, entities, union);
                }
            }
        }
        if unions.is_empty() {
            // No policy has a scope: every policy of `any` is in.
            unions.push(Union::default());
            if let Some(union) = unions.last_mut() {
                union.add(self, self.action.any);
            }
        }
        unions
    }

    /// The scopes of a set that fits one word: three masks instead of lists to merge.
    #[inline]
    fn scope_bits(&self, request: &Request<'_>, entities: &Entities) -> u64 {
        // The action first: it tells most policies apart and rarely has ancestors.
        let action = self.action.bits(self, request.action, entities);
        if action == 0 {
            return 0;
        }
        let bits = action & self.principal.bits(self, request.principal, entities);
        if bits == 0 {
            return 0;
        }
        bits & self.resource.bits(self, request.resource, entities)
    }

    /// Leaves out of the candidates by scope those whose hoisted tests are provably false, as long as that is worth it.
    #[inline]
    fn refine(&self, evaluation: &Evaluation<'_>, into: &mut Candidates) {
        if self.levels.is_empty() || into.count() <= DIRECT_MAX {
            return;
        }
        self.refine_by_levels(evaluation, into);
    }

    fn refine_by_levels(&self, evaluation: &Evaluation<'_>, into: &mut Candidates) {
        let (mut known, mut erred) = (SmallVec::new(), SmallVec::new());
        for level in &self.levels {
            narrow_one(&mut into.words, &self.level(level, evaluation, &mut known, &mut erred));
            if into.count() <= DIRECT_MAX {
                break;
            }
        }
        split_erring(into, &known);
    }

    fn select<'i>(&'i self, scopes: &[Union<'i>], evaluation: &Evaluation<'_>, into: &mut Candidates) {
        let bound = scopes.iter().map(|union| union.policies).min().unwrap_or(0);
        if bound <= SCOPE_SELECTIVE_MAX || self.levels.is_empty() {
            intersect(scopes.iter(), &mut into.words);
            return self.refine(evaluation, into);
        }
        let (mut known, mut erred) = (SmallVec::new(), SmallVec::new());
        let levels: SmallVec<[Union<'i>; LEVELS]> =
            self.levels.iter().map(|level| self.level(level, evaluation, &mut known, &mut erred)).collect();
        intersect(scopes.iter().chain(&levels), &mut into.words);
        split_erring(into, &known);
    }

    /// Reads the operand of each table of a level once; what the level admits. Takes over from level to level the
    /// tables whose operand erred, and those policies of the first level that are sure to err.
    fn level<'i>(
        &'i self,
        level: &'i Level,
        evaluation: &Evaluation<'_>,
        known: &mut SmallVec<[Known<'i>; 2]>,
        erred: &mut SmallVec<[Bucket; 4]>,
    ) -> Union<'i> {
        let mut union = Union::default();
        union.add(self, level.without);
        for bucket in erred.iter() {
            union.add(self, *bucket);
        }
        for table in &level.tables {
            match table.lookup(evaluation) {
                Ok(buckets) => buckets.iter().for_each(|bucket| union.add(self, *bucket)),
                Err(Miss { fault, certain }) => {
                    union.add(self, table.members);
                    erred.push(table.members);
                    if certain && table.exact.len > 0 {
                        known.push(Known { fault, path: table.path, words: self.words(table.exact) });
                    }
                }
            }
        }
        union
    }

    /// Number of policies.
    pub const fn len(&self) -> u32 {
        self.policies
    }

    /// Whether there is no policy.
    pub const fn is_empty(&self) -> bool {
        self.policies == 0
    }

    /// Approximate heap bytes.
    pub fn memory_bytes(&self) -> usize {
        let entities = self.principal.entities.len().saturating_add(self.action.entities.len());
        let entities = entities.saturating_add(self.resource.entities.len());
        let tables: usize =
            self.levels.iter().flat_map(|level| &level.tables).map(Table::buckets).fold(0, usize::saturating_add);
        self.pool
            .capacity()
            .saturating_mul(size_of::<Word>())
            .saturating_add(entities.saturating_mul(size_of::<ByEntity>()))
            .saturating_add(tables.saturating_mul(size_of::<(Val, Bucket)>()))
    }

    /// The buckets in words, for `policy explain --program`.
    pub fn listing(&self, program: &Program, tree: &Tree) -> String {
        let mut text = String::new();
        for (name, dimension) in
            [("principal", &self.principal), ("action", &self.action), ("resource", &self.resource)]
        {
            dimension.list(name, &mut text);
        }
        for (number, level) in self.levels.iter().enumerate() {
            let _ = writeln!(
                text,
                "level {}: {} policies without a test",
                number.saturating_add(1),
                level.without.policies
            );
            for table in &level.tables {
                let _ = writeln!(
                    text,
                    "  {} {}: {} policies in {} buckets",
                    program.path_text(tree, table.path),
                    table.kind.name(tree),
                    table.members.policies,
                    table.buckets()
                );
            }
        }
        text
    }
}

impl Dimension {
    #[inline]
    fn union<'i>(&'i self, index: &'i Index, uid: &EntityUid, entities: &Entities, into: &mut Union<'i>) {
        self.matching(uid, entities, |bucket| into.add(index, bucket));
    }

    /// The union in a set of at most 64 policies.
    #[inline]
    fn bits(&self, index: &Index, uid: &EntityUid, entities: &Entities) -> u64 {
        let mut bits = 0;
        if self.open {
            return index.words(self.any).first().map_or(0, |word| word.bits);
        }
        self.matching(uid, entities, |bucket| {
            if let Some(word) = index.words(bucket).first() {
                bits |= word.bits;
            }
        });
        bits
    }

    /// The buckets whose policies have a scope that `uid` matches.
    #[inline]
    fn matching(&self, uid: &EntityUid, entities: &Entities, mut with: impl FnMut(Bucket)) {
        with(self.any);
        if !self.types.is_empty()
            && let Some((_, bucket)) = self.types.find(uid.ty_hash(), |(ty, _)| **ty == *uid.ty())
        {
            with(*bucket);
        }
        if self.entities.is_empty() {
            return;
        }
        if let Some(found) = self.entities.find(uid.hash(), |entry| *entry.uid == *uid) {
            with(found.equal);
            with(found.within);
        }
        if self.within == 0 {
            return;
        }
        let Some(entity) = entities.get(uid) else { return };
        // An entity may have more ancestors than policies name groups, or the other way round.
        if entity.ancestors_len() <= self.entities.len() {
            for ancestor in entity.ancestors() {
                if let Some(found) = self.entities.find(ancestor.hash(), |entry| *entry.uid == *ancestor)
                    && ancestor != uid
                {
                    with(found.within);
                }
            }
        } else {
            for entry in &self.entities {
                if *entry.uid != *uid && entity.has_ancestor(&entry.uid) {
                    with(entry.within);
                }
            }
        }
    }

    fn list(&self, name: &str, text: &mut String) {
        let _ = write!(text, "{name}: any {}", self.any.policies);
        let mut lines: Vec<String> = Vec::new();
        for entry in &self.entities {
            if entry.equal.policies > 0 {
                lines.push(format!("== {} {}", entry.uid, entry.equal.policies));
            }
            if entry.within.policies > 0 {
                lines.push(format!("in {} {}", entry.uid, entry.within.policies));
            }
        }
        lines.extend(self.types.iter().map(|(ty, bucket)| format!("is {ty} {}", bucket.policies)));
        lines.sort();
        let shown = lines.len().min(20);
        for line in lines.iter().take(shown) {
            text.push_str(", ");
            text.push_str(line);
        }
        if lines.len() > shown {
            let _ = write!(text, ", and {} more", lines.len().saturating_sub(shown));
        }
        text.push('\n');
    }
}

/// The operand of a table could not be read or tested.
struct Miss {
    fault: Fault,
    /// Whether every member that gets as far as this test errs
    certain: bool,
}

impl Miss {
    const fn certain(fault: Fault) -> Self {
        Self { fault, certain: true }
    }
}

/// Policies known to err.
struct Known<'i> {
    fault: Fault,
    path: u32,
    words: &'i [Word],
}

/// Moves the candidates that are sure to err out of the ones to be evaluated.
fn split_erring(into: &mut Candidates, known: &[Known<'_>]) {
    for group in known {
        let mut cursor = 0usize;
        let mut words = Vec::new();
        for word in &mut into.words {
            let bits = word.bits & seek(group.words, &mut cursor, word.at);
            if bits != 0 {
                words.push(Word { at: word.at, bits });
                word.bits &= !bits;
            }
        }
        if !words.is_empty() {
            into.erring.push(Erring { fault: group.fault, path: group.path, words });
        }
    }
}

/// The intersection of unions.
fn intersect<'u, 'i: 'u>(unions: impl Iterator<Item = &'u Union<'i>> + Clone, into: &mut Vec<Word>) {
    let Some((driver_at, driver)) = unions.clone().enumerate().min_by_key(|(_, union)| union.words) else { return };
    match driver.lists.as_slice() {
        [] => return,
        [only] => into.extend_from_slice(only),
        lists => merge(lists, into),
    }
    for (at, union) in unions.enumerate() {
        if into.is_empty() {
            return;
        }
        if at != driver_at {
            narrow_one(into, union);
        }
    }
}

fn narrow_one(words: &mut Vec<Word>, union: &Union<'_>) {
    if words.len() <= FEW_WORDS_MAX {
        return words.retain_mut(|word| {
            word.bits &= union.lists.iter().fold(0, |bits, list| bits | find(list, word.at));
            word.bits != 0
        });
    }
    let mut cursors: SmallVec<[usize; 8]> = smallvec::smallvec![0; union.lists.len()];
    words.retain_mut(|word| {
        let mut allowed = 0u64;
        for (list, cursor) in union.lists.iter().zip(cursors.iter_mut()) {
            allowed |= seek(list, cursor, word.at);
        }
        word.bits &= allowed;
        word.bits != 0
    });
}

/// The bits of word `at`.
#[inline]
fn find(list: &[Word], at: u32) -> u64 {
    // A list that covers every word is addressed directly.
    match list.get(at as usize) {
        Some(word) if word.at == at => word.bits,
        _ => {
            let place = list.partition_point(|word| word.at < at);
            list.get(place).filter(|word| word.at == at).map_or(0, |word| word.bits)
        }
    }
}

/// The bits of word `at`; the cursor only moves forward.
#[inline]
fn seek(list: &[Word], cursor: &mut usize, at: u32) -> u64 {
    // A list that covers every word is addressed directly.
    if let Some(word) = list.get(at as usize)
        && word.at == at
    {
        return word.bits;
    }
    for _ in 0..4 {
        match list.get(*cursor) {
            Some(word) if word.at < at => *cursor = cursor.saturating_add(1),
            Some(word) if word.at == at => return word.bits,
            _ => return 0,
        }
    }
    let rest = list.get(*cursor..).unwrap_or_default();
    *cursor = cursor.saturating_add(rest.partition_point(|word| word.at < at));
    list.get(*cursor).filter(|word| word.at == at).map_or(0, |word| word.bits)
}

/// The union of several sorted lists.
fn merge(lists: &[&[Word]], into: &mut Vec<Word>) {
    let mut cursors: SmallVec<[usize; 8]> = smallvec::smallvec![0; lists.len()];
    loop {
        let mut next = u32::MAX;
        for (list, cursor) in lists.iter().zip(&cursors) {
            next = next.min(list.get(*cursor).map_or(u32::MAX, |word| word.at));
        }
        if next == u32::MAX {
            return;
        }
        let mut bits = 0u64;
        for (list, cursor) in lists.iter().zip(cursors.iter_mut()) {
            if let Some(word) = list.get(*cursor)
                && word.at == next
            {
                bits |= word.bits;
                *cursor = cursor.saturating_add(1);
            }
        }
        into.push(Word { at: next, bits });
    }
}

impl Table {
    /// The buckets in which the test can be true, or the fault if reading the operand (or testing it) errs.
    fn lookup(&self, evaluation: &Evaluation<'_>) -> Result<SmallVec<[Bucket; 4]>, Miss> {
        let value = match evaluation.path(self.path) {
            Ok(value) => value,
            Err(at) => {
                let absent = matches!(at.fault, Fault::MissingAttribute | Fault::MissingEntity);
                let guarded = self.guarded.checked_shr(at.step).is_some_and(|bits| bits & 1 == 1);
                return if absent && guarded { Ok(SmallVec::new()) } else { Err(Miss::certain(at.fault)) };
            }
        };
        // A record equals none of the constants, which are all scalar, unless it hides something unrepresentable:
        // then `==` errs. Too rare to find out here; its policies are evaluated.
        let record = matches!(value, Value::RecordArgs(_) | Value::RecordTemp(_));
        if record && matches!(self.kind, Kind::Values { contains: false, .. }) {
            return Err(Miss { fault: Fault::Unrepresentable, certain: false });
        }
        self.buckets_for(value, evaluation).map_err(Miss::certain)
    }

    fn buckets_for<'a>(&self, value: Value<'a>, evaluation: &Evaluation<'a>) -> Result<SmallVec<[Bucket; 4]>, Fault> {
        let mut found: SmallVec<[Bucket; 4]> = SmallVec::new();
        match &self.kind {
            Kind::Values { table, contains: false } => values(table, value, &mut found)?,
            Kind::Values { table, contains: true } => {
                for element in value.elements().ok_or_else(|| wrong_type(value))?.iter() {
                    values(table, element, &mut found)?;
                }
            }
            Kind::In(table) => evaluation.groups(value, |uid| {
                if let Some((_, bucket)) = table.find(uid.hash(), |(own, _)| **own == *uid) {
                    found.push(*bucket);
                }
            })?,
            Kind::Is(table) => {
                let Value::Entity(uid) = value else { return Err(wrong_type(value)) };
                found.extend(table.find(uid.ty_hash(), |(ty, _)| **ty == *uid.ty()).map(|(_, bucket)| *bucket));
            }
            Kind::Has(sym) => {
                if evaluation.test(value, Test::Has(*sym))? {
                    found.push(self.members);
                }
            }
            Kind::Truth(wanted) => {
                if evaluation.test(value, Test::Truth)? == *wanted {
                    found.push(self.members);
                }
            }
            Kind::Prefix { lengths, table } => {
                let Value::Str(text) = value else { return Err(wrong_type(value)) };
                for prefix in lengths.iter().filter_map(|len| text.get(..*len)) {
                    found.extend(table.find(hash_text(prefix), |(own, _)| **own == *prefix).map(|(_, b)| *b));
                }
            }
            Kind::Range { of, upper, bounds, blocks } => {
                let number = of.number(value).ok_or_else(|| of.fault(value))?;
                let block = if *upper {
                    bounds.partition_point(|bound| *bound < number)
                } else {
                    bounds.partition_point(|bound| *bound <= number)
                };
                found.extend(blocks.get(block).copied());
            }
        }
        Ok(found)
    }

    fn buckets(&self) -> usize {
        match &self.kind {
            Kind::Values { table, .. } => table.len(),
            Kind::In(table) => table.len(),
            Kind::Is(table) | Kind::Prefix { table, .. } => table.len(),
            Kind::Has(_) | Kind::Truth(_) => 1,
            Kind::Range { blocks, .. } => blocks.len(),
        }
    }
}

impl Kind {
    fn name(&self, tree: &Tree) -> String {
        match self {
            Self::Values { contains: false, .. } => "== constant".to_owned(),
            Self::Values { contains: true, .. } => "contains constant".to_owned(),
            Self::In(_) => "in entity".to_owned(),
            Self::Is(_) => "is type".to_owned(),
            Self::Has(sym) => format!("has {}", tree.text(*sym)),
            Self::Truth(wanted) => format!("is {wanted}"),
            Self::Prefix { .. } => "like \"literal*\"".to_owned(),
            Self::Range { upper, .. } => if *upper { "<= constant" } else { ">= constant" }.to_owned(),
        }
    }
}

impl Scale {
    const fn number(self, value: Value<'_>) -> Option<i64> {
        match (self, value) {
            (Self::Long, Value::Long(n))
            | (Self::Decimal, Value::Decimal(n))
            | (Self::Datetime, Value::Datetime(n))
            | (Self::Duration, Value::Duration(n)) => Some(n),
            _ => None,
        }
    }

    /// What the evaluator says of an operand that is none of this.
    const fn fault(self, value: Value<'_>) -> Fault {
        match (self, wrong_type(value)) {
            (Self::Decimal, Fault::Type) => Fault::Extension,
            (_, fault) => fault,
        }
    }

    const fn of(value: &Val) -> Option<(Self, i64)> {
        match value {
            Val::Long(n) => Some((Self::Long, *n)),
            Val::Decimal(n) => Some((Self::Decimal, *n)),
            Val::Datetime(n) => Some((Self::Datetime, *n)),
            Val::Duration(n) => Some((Self::Duration, *n)),
            _ => None,
        }
    }
}

fn values(table: &HashTable<(Val, Bucket)>, value: Value<'_>, found: &mut SmallVec<[Bucket; 4]>) -> Result<(), Fault> {
    if matches!(value, Value::Unrepresentable) {
        return Err(Fault::Unrepresentable);
    }
    if let Some(hash) = key_hash(&value) {
        let entry = table.find(hash, |(own, _)| own.as_value().total_cmp(&value).is_eq());
        found.extend(entry.map(|(_, bucket)| *bucket));
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------- building

/// A test of one policy at one level.
struct Hoisted {
    path: u32,
    guarded: u32,
    test: Test,
    negated: bool,
    exact: bool,
}

/// What decides into which table a test goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct TableKey {
    path: u32,
    guarded: u32,
    kind: u8,
    detail: u32,
}

/// Builds an [`Index`]; policies are added in the index's order.
pub struct Builder<'t> {
    program: &'t Program,
    tree: &'t Tree,
    pool: Vec<Word>,
    scopes: [ScopeBuilder; 3],
    hoisted: Vec<SmallVec<[Hoisted; LEVELS]>>,
}

#[derive(Default)]
struct ScopeBuilder {
    any: Vec<u32>,
    equal: HashMap<Arc<EntityUid>, Vec<u32>>,
    within: HashMap<Arc<EntityUid>, Vec<u32>>,
    types: HashMap<Box<str>, Vec<u32>>,
}

impl<'t> Builder<'t> {
    /// An empty builder.
    pub fn new(program: &'t Program, tree: &'t Tree) -> Self {
        Self { program, tree, pool: Vec::new(), scopes: Default::default(), hoisted: Vec::new() }
    }

    /// Adds the next policy.
    pub fn add(&mut self, body: &Body, conjuncts: &[Conjunct]) {
        let number = index_u32(self.hoisted.len());
        let [principal, action, resource] = &mut self.scopes;
        principal.add(&body.principal, number);
        resource.add(&body.resource, number);
        match &body.action {
            ActionScope::Any => action.any.push(number),
            ActionScope::Eq(uid) => action.equal.entry(Arc::clone(uid)).or_default().push(number),
            ActionScope::In(uids) => {
                for uid in uids {
                    let list = action.within.entry(Arc::clone(uid)).or_default();
                    // `in [g, g]` names a group twice.
                    if list.last() != Some(&number) {
                        list.push(number);
                    }
                }
            }
        }
        let typed = matches!(body.principal, Scope::IsIn(..)) || matches!(body.resource, Scope::IsIn(..));
        let hoisted = self.hoist(conjuncts, !typed);
        self.hoisted.push(hoisted);
    }

    /// Reads the leading conjuncts; see the module's head for what may be skipped over.
    fn hoist(&self, conjuncts: &[Conjunct], mut exact: bool) -> SmallVec<[Hoisted; LEVELS]> {
        let mut found: SmallVec<[Hoisted; LEVELS]> = SmallVec::new();
        let mut guards: SmallVec<[(u32, Sym); 4]> = SmallVec::new();
        let mut pending: SmallVec<[u32; 4]> = SmallVec::new();
        for conjunct in conjuncts {
            let (predicate, negated) = match conjunct {
                Conjunct::Test(predicate) => (*predicate, false),
                Conjunct::Not(predicate) => (*predicate, true),
                Conjunct::Other(expr) => {
                    if cannot_err(self.tree, *expr) {
                        exact = false;
                        continue;
                    }
                    break;
                }
            };
            if let Test::Has(sym) = predicate.test
                && !negated
            {
                // A guard settles the test only where nothing before it has erred by then: where the guarded attribute
                // is absent, whatever earlier `has` read must still be readable.
                if pending.iter().all(|path| self.safe(*path) || self.is_prefix_or_same(*path, predicate.path)) {
                    guards.push((predicate.path, sym));
                }
                pending.push(predicate.path);
                exact = false;
                continue;
            }
            let covered = pending.iter().all(|path| self.safe(*path) || self.is_prefix(*path, predicate.path));
            if !covered || found.len() >= LEVELS {
                break;
            }
            if hoistable(self.tree, predicate.test, negated).is_none() {
                // A test on a bare variable of entity type with `==`, `in` or `is` cannot err, so it may be passed.
                if self.safe(predicate.path) && safe_test(predicate.test, self.path(predicate.path)) {
                    exact = false;
                    continue;
                }
                break;
            }
            let guarded = self.guarded(predicate.path, &guards);
            found.push(Hoisted { path: predicate.path, guarded, test: predicate.test, negated, exact });
            // If one of these guards errs, so does the operand just taken, and the level knows.
            pending.clear();
        }
        if found.is_empty() {
            found.extend(Self::lone_guard(&guards));
        }
        found
    }

    /// A `has` with nothing usable behind it is a test of its own.
    fn lone_guard(guards: &[(u32, Sym)]) -> Option<Hoisted> {
        let (path, sym) = *guards.first()?;
        Some(Hoisted { path, guarded: 0, test: Test::Has(sym), negated: false, exact: false })
    }

    fn path(&self, index: u32) -> Option<&Path> {
        self.program.paths.get(index as usize)
    }

    /// A bare variable: reading it cannot err, and `has` on it cannot either.
    fn safe(&self, path: u32) -> bool {
        self.path(path).is_some_and(|path| path.attrs.is_empty())
    }

    fn is_prefix(&self, prefix: u32, of: u32) -> bool {
        match (self.path(prefix), self.path(of)) {
            (Some(prefix), Some(of)) => {
                prefix.root == of.root && prefix.attrs.len() < of.attrs.len() && of.attrs.starts_with(&prefix.attrs)
            }
            _ => false,
        }
    }

    fn is_prefix_or_same(&self, prefix: u32, of: u32) -> bool {
        prefix == of || self.is_prefix(prefix, of)
    }

    /// Which steps of a path have a `has` before them.
    fn guarded(&self, path: u32, guards: &[(u32, Sym)]) -> u32 {
        let Some(path) = self.path(path) else { return 0 };
        let mut bits = 0u32;
        for (guard, sym) in guards {
            let Some(guard) = self.path(*guard) else { continue };
            let step = guard.attrs.len();
            if guard.root == path.root && path.attrs.starts_with(&guard.attrs) && path.attrs.get(step) == Some(sym) {
                bits |= 1u32.checked_shl(index_u32(step)).unwrap_or(0);
            }
        }
        bits
    }

    /// Builds the buckets.
    pub fn finish(mut self) -> Index {
        let policies = index_u32(self.hoisted.len());
        let scopes = std::mem::take(&mut self.scopes);
        let [principal, action, resource] = scopes.map(|scope| scope.finish(&mut self.pool, policies));
        let mut hoisted = std::mem::take(&mut self.hoisted);
        let mut levels = Vec::new();
        for number in 0..LEVELS {
            match self.level(number, &mut hoisted) {
                Some(level) => levels.push(level),
                None => break,
            }
        }
        self.pool.shrink_to_fit();
        Index { pool: self.pool, principal, action, resource, levels, policies }
    }

    fn level(&mut self, number: usize, hoisted: &mut [SmallVec<[Hoisted; LEVELS]>]) -> Option<Level> {
        let mut groups: HashMap<TableKey, Vec<u32>> = HashMap::new();
        for (policy, tests) in hoisted.iter().enumerate() {
            if let Some(test) = tests.get(number)
                && let Some(key) = self.table_key(test)
            {
                groups.entry(key).or_default().push(index_u32(policy));
            }
        }
        let mut groups: Vec<(TableKey, Vec<u32>)> =
            groups.into_iter().filter(|(_, members)| members.len() >= TABLE_MEMBERS_MIN).collect();
        groups.sort_by_key(|(key, members)| {
            (std::cmp::Reverse(members.len()), key.path, key.kind, key.detail, key.guarded)
        });
        groups.truncate(TABLES_PER_LEVEL_MAX);
        if groups.is_empty() {
            return None;
        }
        let mut has_test = vec![false; hoisted.len()];
        for member in groups.iter().flat_map(|(_, members)| members) {
            if let Some(flag) = has_test.get_mut(*member as usize) {
                *flag = true;
            }
        }
        let mut without = Vec::new();
        for (policy, tests) in hoisted.iter_mut().enumerate() {
            if !has_test.get(policy).copied().unwrap_or(false) {
                without.push(index_u32(policy));
                // Whether the test that was not taken errs is unknown, so nothing behind it may exclude the policy.
                tests.clear();
            }
        }
        let without = bucket(&mut self.pool, &without);
        let tables = groups.iter().filter_map(|(key, members)| self.table(*key, number, members, hoisted)).collect();
        Some(Level { without, tables })
    }

    fn table_key(&self, hoisted: &Hoisted) -> Option<TableKey> {
        let (kind, detail) = hoistable(self.tree, hoisted.test, hoisted.negated)?;
        Some(TableKey { path: hoisted.path, guarded: hoisted.guarded, kind, detail })
    }

    fn table(
        &mut self,
        key: TableKey,
        number: usize,
        members: &[u32],
        hoisted: &[SmallVec<[Hoisted; LEVELS]>],
    ) -> Option<Table> {
        let tests: Vec<(u32, Test, bool)> = members
            .iter()
            .filter_map(|policy| {
                let test = hoisted.get(*policy as usize)?.get(number)?;
                Some((*policy, test.test, test.exact))
            })
            .collect();
        let exact: Vec<u32> =
            tests.iter().filter(|(_, _, exact)| *exact && number == 0).map(|(policy, ..)| *policy).collect();
        let kind = self.kind(key, &tests)?;
        let members = bucket(&mut self.pool, members);
        let exact = bucket(&mut self.pool, &exact);
        Some(Table { path: key.path, guarded: key.guarded, kind, members, exact })
    }

    fn kind(&mut self, key: TableKey, tests: &[(u32, Test, bool)]) -> Option<Kind> {
        Some(match key.kind {
            KIND_EQUAL | KIND_CONTAINS => self.value_kind(tests, key.kind == KIND_CONTAINS),
            KIND_IN => self.in_kind(tests),
            KIND_IS => {
                let mut by: HashMap<Box<str>, Vec<u32>> = HashMap::new();
                for (policy, test, _) in tests {
                    if let Test::Is(sym) = test {
                        by.entry(self.tree.text(*sym).into()).or_default().push(*policy);
                    }
                }
                Kind::Is(self.text_table(by))
            }
            KIND_HAS => Kind::Has(key.detail),
            KIND_TRUTH => Kind::Truth(key.detail == 1),
            KIND_PREFIX => self.prefix_kind(tests),
            _ => return self.range_kind(key, tests),
        })
    }

    fn value_kind(&mut self, tests: &[(u32, Test, bool)], contains: bool) -> Kind {
        let mut by: Vec<(Val, Vec<u32>)> = Vec::new();
        let mut seen: HashTable<usize> = HashTable::new();
        let tree = self.tree;
        for (policy, test, _) in tests {
            let (Test::Eq(c) | Test::OneOf(c) | Test::Contains(c)) = test else { continue };
            let constants = match (test, tree.constant(*c)) {
                (Test::OneOf(_), Val::Set(items)) => &**items,
                (_, constant) => std::slice::from_ref(constant),
            };
            for constant in constants {
                let value = constant.as_value();
                let Some(hash) = key_hash(&value) else { continue };
                let same = |at: &usize| by.get(*at).is_some_and(|(own, _)| own.as_value().total_cmp(&value).is_eq());
                if let Some(at) = seen.find(hash, same).copied() {
                    if let Some((_, list)) = by.get_mut(at) {
                        list.push(*policy);
                    }
                    continue;
                }
                let at = by.len();
                by.push((constant.clone(), vec![*policy]));
                let by = &by;
                seen.insert_unique(hash, at, |at| {
                    by.get(*at).and_then(|(own, _)| key_hash(&own.as_value())).unwrap_or(0)
                });
            }
        }
        let mut table = HashTable::with_capacity(by.len());
        let rehash = |entry: &(Val, Bucket)| key_hash(&entry.0.as_value()).unwrap_or(0);
        for (value, policies) in by {
            let hash = key_hash(&value.as_value()).unwrap_or(0);
            let bucket = bucket(&mut self.pool, &policies);
            table.insert_unique(hash, (value, bucket), rehash);
        }
        Kind::Values { table, contains }
    }

    fn in_kind(&mut self, tests: &[(u32, Test, bool)]) -> Kind {
        let mut by: HashMap<Arc<EntityUid>, Vec<u32>> = HashMap::new();
        for (policy, test, _) in tests {
            let Test::In(c) = test else { continue };
            let constant = self.tree.constant(*c);
            let constants = if let Val::Set(items) = constant { items } else { std::slice::from_ref(constant) };
            for constant in constants {
                if let Val::Entity(uid) = constant {
                    by.entry(Arc::clone(uid)).or_default().push(*policy);
                }
            }
        }
        let mut table = HashTable::with_capacity(by.len());
        for (uid, policies) in by {
            let bucket = bucket(&mut self.pool, &policies);
            table.insert_unique(uid.hash(), (uid, bucket), |(uid, _): &(Arc<EntityUid>, Bucket)| uid.hash());
        }
        Kind::In(table)
    }

    fn prefix_kind(&mut self, tests: &[(u32, Test, bool)]) -> Kind {
        let prefix = |test: &Test| match test {
            Test::Like(pattern) => self.tree.pattern(*pattern).map_or("", |pattern| pattern.literal_prefix()),
            _ => "",
        };
        let mut lengths: Vec<usize> = tests.iter().map(|(_, test, _)| prefix(test).len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        if lengths.len() > PREFIX_LENGTHS_MAX {
            let step = lengths.len().div_ceil(PREFIX_LENGTHS_MAX);
            lengths = lengths.into_iter().step_by(step).collect();
        }
        let mut by: HashMap<Box<str>, Vec<u32>> = HashMap::new();
        for (policy, test, _) in tests {
            let whole = prefix(test);
            // Cutting a prefix only makes its bucket more generous; a cut inside a character moves to a shorter one.
            let cut = lengths.iter().rev().find(|len| whole.get(..**len).is_some()).and_then(|len| whole.get(..*len));
            by.entry(cut.unwrap_or_default().into()).or_default().push(*policy);
        }
        let mut used: SmallVec<[usize; 8]> = by.keys().map(|key| key.len()).collect();
        used.sort_unstable();
        used.dedup();
        let table = self.text_table(by);
        Kind::Prefix { lengths: used, table }
    }

    fn text_table(&mut self, by: HashMap<Box<str>, Vec<u32>>) -> HashTable<(Box<str>, Bucket)> {
        let mut table = HashTable::with_capacity(by.len());
        for (text, policies) in by {
            let bucket = bucket(&mut self.pool, &policies);
            table.insert_unique(hash_text(&text), (text, bucket), |(text, _): &(Box<str>, Bucket)| hash_text(text));
        }
        table
    }

    fn range_kind(&mut self, key: TableKey, tests: &[(u32, Test, bool)]) -> Option<Kind> {
        let upper = key.kind == KIND_UPPER;
        let mut bounds: Vec<(i64, u32)> = Vec::new();
        let mut of = Scale::Long;
        for (policy, test, _) in tests {
            let (scale, bound) = range_bound(self.tree, *test)?.1;
            of = scale;
            bounds.push((bound, *policy));
        }
        bounds.sort_unstable();
        let size = bounds.len().div_ceil(RANGE_BLOCKS_MAX).max(1);
        let mut limits = Vec::new();
        let mut blocks = Vec::new();
        let all: Vec<u32> = bounds.iter().map(|(_, policy)| *policy).collect();
        for (number, chunk) in bounds.chunks(size).enumerate() {
            let start = number.saturating_mul(size);
            // Upper bounds: a value that fits block i's last bound may fit every later policy. Lower: every earlier.
            let members = if upper {
                limits.push(chunk.last()?.0);
                all.get(start..)
            } else {
                limits.push(chunk.first()?.0);
                all.get(..start)
            };
            blocks.push(bucket(&mut self.pool, members.unwrap_or_default()));
        }
        if !upper {
            // A value at or above the last lower limit: everything.
            blocks.push(bucket(&mut self.pool, &all));
        }
        Some(Kind::Range { of, upper, bounds: limits.into(), blocks: blocks.into() })
    }
}

impl ScopeBuilder {
    fn add(&mut self, scope: &Scope, policy: u32) {
        match scope {
            Scope::Any => self.any.push(policy),
            Scope::Eq(EntityRef::Uid(uid)) => self.equal.entry(Arc::clone(uid)).or_default().push(policy),
            // The type test of `is T in E` is the policy's first instruction.
            Scope::In(EntityRef::Uid(uid)) | Scope::IsIn(_, EntityRef::Uid(uid)) => {
                self.within.entry(Arc::clone(uid)).or_default().push(policy);
            }
            Scope::Is(ty) => self.types.entry(ty.clone()).or_default().push(policy),
            // A template is never added; an open slot matches nothing.
            Scope::Eq(EntityRef::Slot) | Scope::In(EntityRef::Slot) | Scope::IsIn(_, EntityRef::Slot) => {}
        }
    }

    fn finish(self, pool: &mut Vec<Word>, policies: u32) -> Dimension {
        let any = bucket(pool, &self.any);
        let within_count = self.within.len();
        let mut by: HashMap<Arc<EntityUid>, (Bucket, Bucket)> = HashMap::new();
        for (uid, policies) in self.equal {
            by.entry(uid).or_default().0 = bucket(pool, &policies);
        }
        for (uid, policies) in self.within {
            by.entry(uid).or_default().1 = bucket(pool, &policies);
        }
        let mut entities = HashTable::with_capacity(by.len());
        for (uid, (equal, within)) in by {
            entities.insert_unique(uid.hash(), ByEntity { uid, equal, within }, |entry: &ByEntity| entry.uid.hash());
        }
        let mut types = HashTable::with_capacity(self.types.len());
        for (ty, policies) in self.types {
            let bucket = bucket(pool, &policies);
            types.insert_unique(hash_text(&ty), (ty, bucket), |(ty, _): &(Box<str>, Bucket)| hash_text(ty));
        }
        Dimension { any, open: any.policies == policies, entities, within: within_count, types }
    }
}

/// Packs policy numbers into words at the end of the pool.
fn bucket(pool: &mut Vec<Word>, policies: &[u32]) -> Bucket {
    let mut sorted: SmallVec<[u32; 16]> = policies.into();
    sorted.sort_unstable();
    sorted.dedup();
    let first = index_u32(pool.len());
    let start = pool.len();
    for policy in &sorted {
        let (at, bit) = (policy / 64, 1u64 << (policy % 64));
        // The last word of the bucket before this one may have the same number.
        let own = pool.len() > start;
        match pool.last_mut() {
            Some(word) if own && word.at == at => word.bits |= bit,
            _ => pool.push(Word { at, bits: bit }),
        }
    }
    Bucket { first, len: index_u32(pool.len().saturating_sub(start)), policies: index_u32(sorted.len()) }
}

const KIND_EQUAL: u8 = 0;
const KIND_CONTAINS: u8 = 1;
const KIND_IN: u8 = 2;
const KIND_IS: u8 = 3;
const KIND_HAS: u8 = 4;
const KIND_TRUTH: u8 = 5;
const KIND_PREFIX: u8 = 6;
const KIND_UPPER: u8 = 7;
const KIND_LOWER: u8 = 8;

/// The kind of table a test can go to and what tells tables of that kind apart; `None` if it cannot be hoisted.
fn hoistable(tree: &Tree, test: Test, negated: bool) -> Option<(u8, u32)> {
    if test == Test::Truth {
        return Some((KIND_TRUTH, u32::from(!negated)));
    }
    if negated {
        return None;
    }
    let scalar = |value: &Val| key_hash(&value.as_value()).is_some();
    match test {
        Test::Eq(c) if scalar(tree.constant(c)) => Some((KIND_EQUAL, 0)),
        Test::OneOf(c) => match tree.constant(c) {
            Val::Set(items) if items.iter().all(scalar) => Some((KIND_EQUAL, 0)),
            _ => None,
        },
        Test::Contains(c) if scalar(tree.constant(c)) => Some((KIND_CONTAINS, 0)),
        Test::In(c) => match tree.constant(c) {
            Val::Entity(_) => Some((KIND_IN, 0)),
            Val::Set(items) if items.iter().all(|item| matches!(item, Val::Entity(_))) => Some((KIND_IN, 0)),
            _ => None,
        },
        Test::Is(_) => Some((KIND_IS, 0)),
        Test::Has(sym) => Some((KIND_HAS, sym)),
        Test::Like(pattern) => {
            let prefix = tree.pattern(pattern)?.literal_prefix();
            (!prefix.is_empty()).then_some((KIND_PREFIX, 0))
        }
        _ => range_bound(tree, test)
            .map(|(upper, (scale, _))| (if upper { KIND_UPPER } else { KIND_LOWER }, scale as u32)),
    }
}

/// A comparison as an inclusive bound: (is it an upper bound, what it compares, the bound).
fn range_bound(tree: &Tree, test: Test) -> Option<(bool, (Scale, i64))> {
    let (upper, open, constant) = match test {
        Test::Less(c) | Test::Decimal(ExtFn::LessThan, c) => (true, true, c),
        Test::LessEq(c) | Test::Decimal(ExtFn::LessThanOrEqual, c) => (true, false, c),
        Test::Greater(c) | Test::Decimal(ExtFn::GreaterThan, c) => (false, true, c),
        Test::GreaterEq(c) | Test::Decimal(ExtFn::GreaterThanOrEqual, c) => (false, false, c),
        _ => return None,
    };
    let (scale, bound) = Scale::of(tree.constant(constant))?;
    // The methods are decimal's, the operators everybody else's; a mixture errs for every operand.
    if matches!(test, Test::Decimal(..)) != (scale == Scale::Decimal) {
        return None;
    }
    let bound = match (upper, open) {
        // An open bound at the end of the range admits nothing; rounding it to a closed one is generous.
        (true, true) => bound.saturating_sub(1),
        (false, true) => bound.saturating_add(1),
        _ => bound,
    };
    Some((upper, (scale, bound)))
}

/// Tests that cannot err on a bare variable.
fn safe_test(test: Test, path: Option<&Path>) -> bool {
    let entity = path.is_some_and(|path| path.root != Var::Context);
    match test {
        // Comparing the context with `==` errs when an argument in it cannot be represented.
        Test::Eq(_) | Test::OneOf(_) | Test::Is(_) => entity,
        Test::Has(_) => true,
        // `in` a set that holds something other than entities errs; everything else depends on the operand.
        _ => false,
    }
}

/// Whether an expression provably cannot err, so that what stands behind it may still exclude the policy.
fn cannot_err(tree: &Tree, id: u32) -> bool {
    match tree.node(id) {
        Node::Const(index) => matches!(tree.constant(index), Val::Bool(_)),
        Node::Binary(super::tree::Binary::Eq, left, right) => {
            let plain = |id: u32| match tree.node(id) {
                Node::Const(_) => true,
                Node::Var(var) => var != Var::Context,
                _ => false,
            };
            plain(left) && plain(right)
        }
        _ => false,
    }
}
