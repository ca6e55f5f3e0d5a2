//! The ring between those who decide and the one thread that writes: bounded, lock-free, in a mapped file.
//!
//! A producer claims a run of lines with one compare-exchange on the tail, fills it, and publishes it with one store of
//! its tag. The consumer takes published records in the order of their claims and lets go of their lines when they are
//! on disk. Producers allocate nothing, take no lock and make no system call; a full ring is an answer, not a wait.
//!
//! Whoever is killed leaves the memory as it was: the next owner finds every record whose tag was stored, and knows by
//! the sequence numbers which were claimed and never published. Tags lie apart from the lines, so nothing that an
//! argument holds can look like one.
//!
//! It knows nothing of what a record means, and never drops one. The scheme is the bounded queue of D. Vyukov (a stamp
//! for each cell) with runs of cells instead of single ones.

use crate::limits::RECORD_BYTES_MAX;
use crate::map::Table;
use crate::sync::{Announce, AtomicU64, Ordering, fence};

/// Words of a line: one cache line.
pub const LINE_WORDS: u32 = 8;
/// Bytes of a line.
pub const LINE_BYTES: usize = 64;
/// Words that come before a record's pieces: see [`Claim::publish`].
const PREFIX_WORDS: usize = 4;
/// Lines of a page of the smallest size.
const PAGE_LINES: usize = 4_096 / LINE_BYTES;
/// Lines that are kept writable ahead of the producers: a megabyte, which is thirteen hundred decisions.
const WARM_LINES: u32 = 16_384;
/// Pieces of one record.
pub const PIECES: usize = 5;

/// What all who map a ring share. Each word is written by whom its comment names.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct RingHeader {
    /// Layout, written once when the file is made
    pub(super) magic: AtomicU64,
    /// Lines of the ring, a power of two, written once
    pub(super) lines: AtomicU64,
    /// Instance of the process that owns the ring; written by each owner
    pub(super) producer: AtomicU64,
    /// Process id of the owner in its own namespace, to be shown
    pub(super) pid: AtomicU64,
    /// The kernel's run in which the owner lives
    pub(super) boot: [AtomicU64; 2],
    /// Sequence number of the next record to be let go, in full; the consumer's
    base: AtomicU64,
    /// A count that the owner's gate keeps for itself
    pub(super) cursor: AtomicU64,
    spare: [AtomicU64; 8],
    /// Packed [`Place`] of the next claim; producers'
    tail: AtomicU64,
    tail_spare: [AtomicU64; 15],
    /// Packed [`Place`] of the oldest record that is still needed; the consumer's
    head: AtomicU64,
    head_spare: [AtomicU64; 15],
    /// What could not be written: denials, and actions that were let through all the same; producers'
    unlogged: [Unlogged; 2],
    unlogged_spare: [AtomicU64; 10],
}

/// A count of what found no room.
#[repr(C)]
#[derive(Debug, Default)]
struct Unlogged {
    count: AtomicU64,
    from_ms: AtomicU64,
    to_ms: AtomicU64,
}

/// The tag of a line: the place of the record that begins there, once that is published.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Tag(AtomicU64);

/// Eight bytes of records.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Word(AtomicU64);

/// Where a record is: its first line and its sequence number, both modulo 2^32. Packed into one word they are unique
/// among all that a stalled thread can still remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    line: u32,
    seq: u32,
}

impl Place {
    const FIRST: Self = Self { line: 0, seq: 1 };

    const fn pack(self) -> u64 {
        ((self.seq as u64) << 32) | self.line as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
    const fn unpack(word: u64) -> Self {
        Self { line: word as u32, seq: (word >> 32) as u32 }
    }

    const fn after(self, lines: u32) -> Self {
        Self { line: self.line.wrapping_add(lines), seq: self.seq.wrapping_add(1) }
    }
}

/// There is no room, or what was asked for never fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Not now
    Now,
    /// Never: the record is larger than the bound
    Never,
}

/// A record to be: what is in it and what it is.
#[derive(Debug, Clone, Copy)]
pub struct Pieces<'a> {
    /// A small number that the reader gets back
    pub kind: u8,
    /// Milliseconds since 1970
    pub time_ms: i64,
    /// Bytes, in pieces that the reader gets back apart
    pub pieces: [&'a [u8]; PIECES],
}

/// The ring.
#[derive(Debug)]
pub struct Ring {
    header: Table<RingHeader>,
    tags: Table<Tag>,
    words: Table<Word>,
    /// Lines less one
    mask: u32,
}

impl Ring {
    /// A ring over memory that was carved up before: one header, a tag for each line and eight words for each line.
    /// `None` if the numbers do not fit together.
    pub fn new(header: Table<RingHeader>, tags: Table<Tag>, words: Table<Word>) -> Option<Self> {
        let lines = u32::try_from(tags.len()).ok()?;
        let fits = lines.is_power_of_two() && words.len() == tags.len().checked_mul(LINE_WORDS as usize)?;
        let mask = lines.checked_sub(1)?;
        (fits && header.len() == 1).then_some(Self { header, tags, words, mask })
    }

    /// What is shared beside the records.
    #[expect(clippy::indexing_slicing, reason = "`new` has seen that there is one")]
    pub(super) fn header(&self) -> &RingHeader {
        &self.header[0]
    }

    /// The most bytes that one record may ask for: half of the ring, and no more than a frame takes.
    #[inline]
    pub const fn record_bytes_max(&self) -> usize {
        let half = (self.lines() as usize).saturating_mul(LINE_BYTES) / 2;
        if half < RECORD_BYTES_MAX { half } else { RECORD_BYTES_MAX }
    }

    const fn lines(&self) -> u32 {
        self.mask.saturating_add(1)
    }

    /// Bytes to ask for, for pieces of so many bytes in all.
    #[inline]
    pub const fn bytes_for(bytes: usize) -> usize {
        bytes.saturating_add((PREFIX_WORDS + PIECES) * 8)
    }

    /// Begins anew with nothing in it and sequence number 1. Only its one owner may, before others see it.
    pub fn reset(&self, producer: u64, pid: u32, boot: [u64; 2]) {
        self.disown();
        let header = self.header();
        for tag in &*self.tags {
            tag.0.store(0, Ordering::Relaxed);
        }
        header.pid.store(pid.into(), Ordering::Relaxed);
        for (word, value) in header.boot.iter().zip(boot) {
            word.store(value, Ordering::Relaxed);
        }
        header.base.store(Place::FIRST.seq.into(), Ordering::Relaxed);
        header.tail.store(Place::FIRST.pack(), Ordering::Relaxed);
        header.head.store(Place::FIRST.pack(), Ordering::Relaxed);
        // Release: whoever finds an owner finds its ring. A reset that was killed half way has none.
        header.producer.store(producer, Ordering::Release);
    }

    /// Says that nobody owns it and nothing in it is needed.
    pub(super) fn disown(&self) {
        self.header().producer.store(0, Ordering::Relaxed);
        // Release: no store that follows is seen before that one.
        fence(Ordering::Release);
    }

    /// Claims room for a record of at most `bytes` (see [`Ring::bytes_for`]).
    ///
    /// # Concurrency
    /// Any number of threads. Lock-free: a claim fails to advance only where another one did.
    #[inline]
    pub fn claim(&self, bytes: usize) -> Result<Claim<'_>, Full> {
        if bytes > self.record_bytes_max() {
            return Err(Full::Never);
        }
        let lines = u32::try_from(bytes.div_ceil(LINE_BYTES)).map_err(|_| Full::Never)?.max(1);
        let header = self.header();
        header.tail.announce();
        // Relaxed: the exchange below fails if it was not the newest.
        let mut seen = header.tail.load(Ordering::Relaxed);
        loop {
            let place = Place::unpack(seen);
            // Acquire: pairs with `release`, so that the consumer has read what these lines held.
            let head = Place::unpack(header.head.load(Ordering::Acquire));
            let used = place.line.wrapping_sub(head.line);
            // A head that is ahead of the tail read before is a newer one: the exchange would fail.
            if used <= self.lines() && lines > self.lines().wrapping_sub(used) {
                return Err(Full::Now);
            }
            // The claim gives nothing to anybody; the tag does. Sequentially consistent for the log's closing: see there.
            match header.tail.compare_exchange_weak(
                seen,
                place.after(lines).pack(),
                Ordering::SeqCst,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(Claim { ring: self, place, lines, open: true }),
                Err(now) => seen = now,
            }
        }
    }

    /// Counts what found no room: a denial, or an action that was let through all the same.
    #[cold]
    pub fn count_unlogged(&self, let_through: bool, now_ms: i64) {
        let [denied, passed] = &self.header().unlogged;
        let unlogged = if let_through { passed } else { denied };
        let now = u64::try_from(now_ms).unwrap_or(0).max(1);
        // Relaxed: counts and times that are read for a report; nothing else hangs on them.
        let _ = unlogged.from_ms.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        unlogged.to_ms.fetch_max(now, Ordering::Relaxed);
        unlogged.count.fetch_add(1, Ordering::Relaxed);
    }

    /// What [`Ring::count_unlogged`] has counted: how many, from when to when. `None` if nothing. It stays until
    /// [`Ring::forget_unlogged`], because whoever is killed in between has to leave it.
    pub(super) fn unlogged(&self, let_through: bool) -> Option<(u64, i64, i64)> {
        let [denied, passed] = &self.header().unlogged;
        let unlogged = if let_through { passed } else { denied };
        let count = unlogged.count.load(Ordering::Relaxed);
        let time = |word: &AtomicU64| i64::try_from(word.load(Ordering::Relaxed)).unwrap_or(0);
        let (from, to) = (time(&unlogged.from_ms), time(&unlogged.to_ms));
        (count != 0).then_some((count, if from == 0 { to } else { from }, to))
    }

    /// Takes so many of them off, because they are on the disk. What was counted meanwhile stays; its times may be those
    /// of the report before.
    pub(super) fn forget_unlogged(&self, let_through: bool, count: u64) {
        let [denied, passed] = &self.header().unlogged;
        let unlogged = if let_through { passed } else { denied };
        let before = unlogged.count.fetch_sub(count, Ordering::Relaxed);
        // Those that are left were counted since: at the latest time that is known.
        let left = if before > count { unlogged.to_ms.load(Ordering::Relaxed) } else { 0 };
        unlogged.from_ms.store(left, Ordering::Relaxed);
        unlogged.to_ms.store(left, Ordering::Relaxed);
    }

    /// The reader of this ring's records, at the oldest one that was not let go. There is one.
    pub fn reader(&self) -> Reader {
        let head = Place::unpack(self.header().head.load(Ordering::Acquire));
        Reader { place: head, seq: self.full(head.seq) }
    }

    /// A sequence number in full.
    #[inline]
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "a distance below 2^31 either way")]
    fn full(&self, seq: u32) -> u64 {
        let base = self.header().base.load(Ordering::Relaxed);
        let distance = seq.wrapping_sub(base as u32) as i32;
        base.wrapping_add_signed(distance.into())
    }

    /// The sequence number that the next claim gets.
    pub fn next_seq(&self) -> u64 {
        self.full(Place::unpack(self.header().tail.load(Ordering::SeqCst)).seq)
    }

    /// Whether every claim up to now was published or given up.
    pub(super) fn all_published(&self) -> bool {
        let tail = Place::unpack(self.header().tail.load(Ordering::SeqCst));
        let (mut reader, mut record) = (self.reader(), Taken::default());
        while reader.place != tail {
            if !self.take(&mut reader, &mut record) {
                return false;
            }
        }
        true
    }

    /// How much of the ring is in use, in bytes.
    pub fn used_bytes(&self) -> usize {
        let head = Place::unpack(self.header().head.load(Ordering::Relaxed));
        let tail = Place::unpack(self.header().tail.load(Ordering::Relaxed));
        (tail.line.wrapping_sub(head.line).min(self.lines()) as usize).saturating_mul(LINE_BYTES)
    }

    /// Bytes of the whole ring.
    pub fn bytes(&self) -> usize {
        (self.lines() as usize).saturating_mul(LINE_BYTES)
    }

    /// Copies the record at the reader out, if it is published, and moves the reader on.
    pub fn take(&self, reader: &mut Reader, record: &mut Taken) -> bool {
        let Some(tag) = self.tags.get((reader.place.line & self.mask) as usize) else { return false };
        // Acquire: pairs with the store of the tag, so the words are those of its record.
        if tag.0.load(Ordering::Acquire) != reader.place.pack() {
            return false;
        }
        let lines = self.copy_out(reader.place.line, record);
        record.seq = reader.seq;
        reader.place = reader.place.after(lines);
        reader.seq = reader.seq.wrapping_add(1);
        true
    }

    /// Of a ring whose owner is dead: moves the reader to the next published record, over what was only claimed. The
    /// numbers that it skips were claimed and never published. False: there is none any more.
    pub(super) fn skip_to_published(&self, reader: &mut Reader) -> bool {
        let tail = Place::unpack(self.header().tail.load(Ordering::Acquire));
        let mut line = reader.place.line;
        // A file that is no ring of ours may say anything: never further than once around.
        for _ in 0..self.lines() {
            if line == tail.line {
                break;
            }
            let tag = self.tags.get((line & self.mask) as usize).map_or(0, |tag| tag.0.load(Ordering::Acquire));
            let found = Place::unpack(tag);
            let ahead = found.seq.wrapping_sub(reader.place.seq);
            if found.line == line && ahead < tail.seq.wrapping_sub(reader.place.seq) {
                *reader = Reader { place: found, seq: reader.seq.wrapping_add(ahead.into()) };
                return true;
            }
            line = line.wrapping_add(1);
        }
        let ahead = tail.seq.wrapping_sub(reader.place.seq);
        *reader = Reader { place: tail, seq: reader.seq.wrapping_add(ahead.into()) };
        false
    }

    /// Writes to the pages that come next, if anything was claimed since `warmed`; returns what to ask with next time.
    ///
    /// The first write to a page of a file, and the first after the kernel has written that page back, waits for the
    /// kernel: a hundred times as long as a producer takes otherwise. The consumer has that time.
    ///
    /// # Concurrency
    /// Beside any number of producers: a word is replaced by itself or not at all.
    pub(super) fn warm(&self, warmed: Option<u32>) -> Option<u32> {
        let tail = Place::unpack(self.header().tail.load(Ordering::Relaxed)).line;
        if warmed == Some(tail) {
            return warmed;
        }
        let touch = |word: &AtomicU64| {
            let value = word.load(Ordering::Relaxed);
            // Relaxed: it says nothing. Not `fetch_add(0)`, which may become a load.
            let _ = word.compare_exchange(value, value, Ordering::Relaxed, Ordering::Relaxed);
        };
        for ahead in (0..WARM_LINES.min(self.lines())).step_by(PAGE_LINES) {
            let line = (tail.wrapping_add(ahead) & self.mask) as usize;
            let word = self.words.get(line.saturating_mul(LINE_WORDS as usize)).map(|word| &word.0);
            let tag = self.tags.get(line).map(|tag| &tag.0);
            word.into_iter().chain(tag).for_each(touch);
        }
        Some(tail)
    }

    /// Lets go of all records before the reader: producers may use their lines.
    pub fn release(&self, reader: &Reader) {
        let header = self.header();
        // The base first: whoever sees the head has a base that is at most one round behind.
        header.base.store(reader.seq, Ordering::Relaxed);
        // Release: the copies were made before these lines are given away.
        header.head.store(reader.place.pack(), Ordering::Release);
    }

    fn word(&self, line: u32, at: usize) -> u64 {
        let first = (line & self.mask) as usize;
        let index = first.saturating_mul(LINE_WORDS as usize).saturating_add(at) & self.word_mask();
        self.words.get(index).map_or(0, |word| word.0.load(Ordering::Relaxed))
    }

    const fn word_mask(&self) -> usize {
        (self.lines() as usize).saturating_mul(LINE_WORDS as usize).saturating_sub(1)
    }

    /// Copies a record and returns how many lines it has. What a dead process left is read as carefully as a file.
    #[expect(clippy::cast_possible_truncation, reason = "halves of words")]
    fn copy_out(&self, line: u32, record: &mut Taken) -> u32 {
        let [first, time, one, two] = [0, 1, 2, 3].map(|at| self.word(line, at));
        let lines = (first as u32 & 0x00ff_ffff).clamp(1, self.lines());
        record.kind = (first >> 24) as u8;
        record.abandoned = (first >> 32) & 1 == 1;
        record.time_ms = time.cast_signed();
        record.ranges = [(0, 0); PIECES];
        if record.abandoned {
            return lines;
        }
        // The lengths of the pieces: two in a word, the last in the first word.
        let lens = [one as u32, (one >> 32) as u32, two as u32, (two >> 32) as u32, (first >> 33) as u32];
        let room = (lines as usize).saturating_mul(LINE_WORDS as usize);
        let mut words = 0_usize;
        for (len, range) in lens.into_iter().zip(&mut record.ranges) {
            let fit = (len as usize).div_ceil(8).min(room.saturating_sub(PREFIX_WORDS).saturating_sub(words));
            let start = words.saturating_mul(8);
            *range = (start, start.saturating_add((len as usize).min(fit.saturating_mul(8))));
            words = words.saturating_add(fit);
        }
        self.copy_words(line, words, &mut record.bytes);
        lines
    }

    /// Copies so many words behind a record's prefix, up to the end of the ring and on from its beginning.
    fn copy_words(&self, line: u32, words: usize, into: &mut Vec<u8>) {
        let first = ((line & self.mask) as usize).saturating_mul(LINE_WORDS as usize).saturating_add(PREFIX_WORDS);
        let before = self.words.get(first..).unwrap_or_default();
        into.resize(words.saturating_mul(8), 0);
        let (now, later) = into.split_at_mut(words.min(before.len()).saturating_mul(8));
        for (from, into) in [(before, now), (&*self.words, later)] {
            for (word, to) in from.iter().zip(into.as_chunks_mut::<8>().0) {
                *to = word.0.load(Ordering::Relaxed).to_le_bytes();
            }
        }
    }
}

/// Where the consumer is.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    place: Place,
    /// The sequence number of the next record, in full
    pub(super) seq: u64,
}

/// A record that was copied out.
#[derive(Debug, Default)]
pub struct Taken {
    pub(super) seq: u64,
    pub(super) kind: u8,
    pub(super) time_ms: i64,
    /// Claimed, and given up before it was published
    pub(super) abandoned: bool,
    bytes: Vec<u8>,
    /// Where each piece begins and ends
    ranges: [(usize, usize); PIECES],
}

impl Taken {
    /// The record as it was published.
    pub fn as_pieces(&self) -> Pieces<'_> {
        Pieces { kind: self.kind, time_ms: self.time_ms, pieces: self.pieces() }
    }

    fn pieces(&self) -> [&[u8]; PIECES] {
        self.ranges.map(|(start, end)| self.bytes.get(start..end).unwrap_or_default())
    }
}

/// Room for one record. Dropped without [`Claim::publish`] it is given up, so that nobody waits for it.
#[derive(Debug)]
#[must_use = "a claim that is dropped is an abandoned record"]
pub struct Claim<'r> {
    ring: &'r Ring,
    place: Place,
    lines: u32,
    open: bool,
}

impl Claim<'_> {
    /// The record's sequence number.
    #[inline]
    pub fn seq(&self) -> u64 {
        self.ring.full(self.place.seq)
    }

    /// Fills the record and hands it to the consumer. False if it does not fit what was claimed: then it is given up.
    ///
    /// Layout: a word of lines (24 bits), kind (8), abandoned (1) and the length of the last piece (31); a word of
    /// time; two words of the other lengths (32 bits each); then the pieces, each from a word on.
    #[inline]
    pub fn publish(&mut self, record: &Pieces<'_>) -> bool {
        // What was claimed is below 2^31 bytes, and what fits it too.
        let [first, second, third, fourth, last] = record.pieces.map(|piece| piece.len() as u64);
        let words = record.pieces.iter().fold(PREFIX_WORDS, |sum, piece| sum.saturating_add(piece.len().div_ceil(8)));
        let fits = words <= (self.lines as usize).saturating_mul(LINE_WORDS as usize);
        if !fits || !self.open {
            return false;
        }
        let prefix = [
            self.lines_word() | (u64::from(record.kind) << 24) | (last << 33),
            record.time_ms.cast_unsigned(),
            first | (second << 32),
            third | (fourth << 32),
        ];
        let start = self.first_word();
        if let Some((head, rest)) = self.words_from(start, words).and_then(<[Word]>::split_first_chunk) {
            self.fill(head, rest, &prefix, &record.pieces);
        } else {
            self.fill_around(start, &prefix, &record.pieces);
        }
        self.open = false;
        self.store_tag();
        true
    }

    /// Leaves the record as it is: in the child of a fork it is the parent's.
    pub(super) const fn forget(&mut self) {
        self.open = false;
    }

    const fn lines_word(&self) -> u64 {
        self.lines as u64
    }

    fn first_word(&self) -> usize {
        ((self.place.line & self.ring.mask) as usize).saturating_mul(LINE_WORDS as usize)
    }

    #[inline]
    fn put(&self, at: usize, value: u64) -> usize {
        if let Some(word) = self.ring.words.get(at & self.ring.word_mask()) {
            // Relaxed, as every word: the store of the tag publishes them.
            word.0.store(value, Ordering::Relaxed);
        }
        at.saturating_add(1)
    }

    /// So many words in a row; `None` where the ring ends before.
    #[inline]
    fn words_from(&self, start: usize, words: usize) -> Option<&[Word]> {
        self.ring.words.get(start..start.checked_add(words)?)
    }

    /// Fills words that lie in a row.
    #[inline]
    #[expect(clippy::unused_self, reason = "only who has the claim may write there")]
    fn fill(&self, head: &[Word; PREFIX_WORDS], rest: &[Word], prefix: &[u64; PREFIX_WORDS], pieces: &[&[u8]; PIECES]) {
        for (word, value) in head.iter().zip(prefix) {
            // Relaxed, as every word: the store of the tag publishes them.
            word.0.store(*value, Ordering::Relaxed);
        }
        let mut rest = rest;
        for piece in pieces {
            copy_in(rest, piece);
            rest = rest.get(piece.len().div_ceil(8)..).unwrap_or_default();
        }
    }

    /// The same up to the end of the ring, and on from its beginning.
    #[cold]
    fn fill_around(&self, start: usize, prefix: &[u64; PREFIX_WORDS], pieces: &[&[u8]; PIECES]) {
        let at = prefix.iter().fold(start, |at, value| self.put(at, *value));
        pieces.iter().fold(at, |at, piece| self.put_bytes(at, piece));
    }

    fn put_bytes(&self, at: usize, bytes: &[u8]) -> usize {
        let len = bytes.len().div_ceil(8);
        let start = at & self.ring.word_mask();
        let words = &*self.ring.words;
        // Up to the end of the ring, and on from its beginning.
        let before = words.get(start..).unwrap_or_default();
        let (now, later) = bytes.split_at_checked(before.len().saturating_mul(8)).unwrap_or((bytes, &[]));
        copy_in(before, now);
        copy_in(words, later);
        at.saturating_add(len)
    }

    fn store_tag(&self) {
        if let Some(tag) = self.ring.tags.get((self.place.line & self.ring.mask) as usize) {
            // Release: whoever sees the tag sees the words.
            tag.0.store(self.place.pack(), Ordering::Release);
        }
    }
}

#[inline]
fn copy_in(words: &[Word], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<8>();
    // Four at a time, written out: a loop over single words spends more on counting than on storing.
    let (fours, _) = whole.as_chunks::<4>();
    for ([a, b, c, d], [first, second, third, fourth]) in words.as_chunks::<4>().0.iter().zip(fours) {
        a.0.store(u64::from_le_bytes(*first), Ordering::Relaxed);
        b.0.store(u64::from_le_bytes(*second), Ordering::Relaxed);
        c.0.store(u64::from_le_bytes(*third), Ordering::Relaxed);
        d.0.store(u64::from_le_bytes(*fourth), Ordering::Relaxed);
    }
    let done = fours.len().saturating_mul(4);
    let (words_left, chunks_left) = (words.get(done..).unwrap_or_default(), whole.get(done..).unwrap_or_default());
    for (word, chunk) in words_left.iter().zip(chunks_left) {
        word.0.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
    }
    if !rest.is_empty()
        && let Some(word) = words.get(whole.len())
    {
        word.0.store(last_word(bytes, rest), Ordering::Relaxed);
    }
}

/// The last word of bytes that end within one: what follows is zero.
#[inline]
fn last_word(bytes: &[u8], rest: &[u8]) -> u64 {
    // The last eight bytes are there already; those that belong to the word before fall out.
    let missing = 8_u32.wrapping_sub(u32::try_from(rest.len()).unwrap_or(0)).wrapping_mul(8);
    match bytes.last_chunk::<8>() {
        Some(last) => u64::from_le_bytes(*last).checked_shr(missing).unwrap_or(0),
        None => rest.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte)),
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // In a test who was killed gives nothing up.
        #[cfg(all(test, not(loom)))]
        let alive = !crate::mortal::is_killed();
        #[cfg(not(all(test, not(loom))))]
        let alive = true;
        if self.open && alive {
            self.put(self.first_word(), self.lines_word() | (1 << 32));
            self.store_tag();
        }
    }
}

#[cfg(test)]
impl Ring {
    /// A ring of anonymous memory whose first record is at this line and has this sequence number.
    #[expect(clippy::arithmetic_side_effects, reason = "a test's small numbers")]
    pub(super) fn for_test(lines: usize, line: u32, seq: u64) -> Self {
        #[cfg(loom)]
        let (header, tags, words) = (Table::in_memory(1), Table::in_memory(lines), Table::in_memory(lines * 8));
        #[cfg(not(loom))]
        let (header, tags, words) = {
            let (tags, words) = (4_096, 4_096 + lines * 8);
            let memory = crate::map::Mapping::anonymous(words + lines * LINE_BYTES).unwrap();
            (memory.table(0, 1).unwrap(), memory.table(tags, lines).unwrap(), memory.table(words, lines * 8).unwrap())
        };
        let ring = Self::new(header, tags, words).unwrap();
        ring.reset(7, 1, [0; 2]);
        ring.begin_at(line, seq);
        ring
    }

    /// As if so many lines and records had gone through it.
    #[expect(clippy::cast_possible_truncation, reason = "a half of a word")]
    pub(super) fn begin_at(&self, line: u32, seq: u64) {
        let place = Place { line, seq: seq as u32 }.pack();
        let header = self.header();
        // What a record of long ago has left. A tag of zero is that of line 0 and number 0, which a ring from its
        // beginning never meets: its first record has overwritten the tag of that line.
        for tag in &*self.tags {
            tag.0.store(place ^ 0x8000_0000_8000_0000, Ordering::Relaxed);
        }
        header.base.store(seq, Ordering::Relaxed);
        header.tail.store(place, Ordering::Relaxed);
        header.head.store(place, Ordering::Relaxed);
    }

    /// Overwrites tags, words and at last the header's head, tail, base, by their place in one row.
    #[cfg(not(loom))]
    pub(super) fn scribble(&self, changes: impl Iterator<Item = (usize, u64)>) {
        let header = self.header();
        let own = [&header.head, &header.tail, &header.base, &header.cursor];
        let all = self.tags.iter().map(|tag| &tag.0).chain(self.words.iter().map(|word| &word.0)).chain(own);
        let all: Vec<_> = all.collect();
        for (place, value) in changes {
            all[place].store(value, Ordering::Relaxed);
        }
    }

    /// The next record, if it is published.
    pub(super) fn take_one(&self, reader: &mut Reader) -> Option<Taken> {
        let mut record = Taken::default();
        self.take(reader, &mut record).then_some(record)
    }
}
