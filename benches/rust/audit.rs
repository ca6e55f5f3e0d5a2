//! What the audit log costs: a producer's step, the way to the disk, tiles, waiting for a record, memory.
//!
//! `cargo bench -p tollkeeper-core --bench audit -- [PART]..`; the parts are the functions of `main`, and `memory` only
//! runs where it is named. Everything is measured beside what bounds it in the same run: a ring in anonymous memory,
//! plain writes to the same disk, bare hashing. Each part asserts that nothing was lost. What the machine's disk limits
//! is measured again in memory (`/dev/shm`), which says what the processor limits and nothing about durability.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a bench prints, and stops where something is wrong"
)]

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tollkeeper_core::arguments::Arguments;
use tollkeeper_core::audit::disk::{Disk, Operation};
use tollkeeper_core::audit::entry::{Kind, Private, Record, push_hash};
use tollkeeper_core::audit::log::{Durability, Log, LogClaim, LogOptions, Refused};
use tollkeeper_core::audit::ring::{LINE_BYTES, LINE_WORDS, PIECES, Pieces, Ring, RingHeader, Taken};
use tollkeeper_core::audit::tree::{Frontier, commitment, digest, leaf};
use tollkeeper_core::audit::verify::check::{Options, verify};
use tollkeeper_core::audit::verify::proof::{Proof, prove};
use tollkeeper_core::map::{Mapping, allocate};

/// Calls between two clock readings.
const BATCH: usize = 16;
const RING_BYTES: usize = 16 << 20;
/// A time that never comes, for what is asked for by hand.
const NEVER_MS: u64 = 1 << 40;
const START_MS: i64 = 1_795_280_000_000;

// --- records ------------------------------------------------------------------------------------------------------

/// A record with buffers of its own.
struct Sample {
    kind: Kind,
    head: Vec<u8>,
    tail: Vec<u8>,
    structure: Vec<u8>,
    text: String,
}

impl Sample {
    /// What `gate.check` says of a tool call: three small arguments.
    fn decision(number: usize) -> Self {
        let pin = "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=";
        let head = format!(
            ",\"id\":\"9f86d081884c7d65-{number}\",\"principal\":\"Agent::\\\"researcher-{:02}\\\"\",\
             \"on_behalf_of\":[\"User::\\\"ada@example.com\\\"\"],\"session\":\"s-18f2c\",\"run\":\"r{}\",\
             \"request\":\"{pin}\",\"parent\":\"9f86d081884c7d65-1\",\"action\":\"Action::\\\"send_email\\\"\",\
             \"resource\":\"Server::\\\"mail\\\"\",\"tool\":\"send_email\",\"pin\":\"{pin}\"",
            number % 32,
            number % 7,
        );
        let tail = format!(
            ",\"decision\":\"allow\",\"code\":\"allow\",\"policies\":{{\"mail-internal\":\"{pin}\"}},\
             \"mode\":\"enforce\",\"bundle\":\"1f3870be274f6c49\",\"engine\":\"0.1.0\""
        );
        let mut sample = Self::with_arguments(64);
        (sample.head, sample.tail) = (head.into(), tail.into());
        sample
    }

    /// An entry of about 250 bytes with nothing beside it.
    fn small(number: usize) -> Self {
        let head = format!(
            ",\"of\":\"9f86d081884c7d65-{number}\",\"status\":\"ok\",\"usage\":{{\"input_tokens\":812,\
             \"output_tokens\":96}},\"cost\":{{\"tokens\":908}},\"duration_ms\":412"
        );
        Self { kind: Kind::Outcome, head: head.into(), tail: Vec::new(), structure: Vec::new(), text: String::new() }
    }

    /// Arguments of about so many bytes of text.
    fn with_arguments(bytes: usize) -> Self {
        let mut arguments = Arguments::new();
        arguments.reset(1 << 20);
        let body = "Figures of the third quarter ".repeat(bytes / 29 + 1);
        let mut fill = || {
            arguments.open_object(None)?;
            arguments.push_str(Some("to"), "ada@example.com")?;
            arguments.push_str(Some("body"), &body[..bytes.saturating_sub(24).max(8)])?;
            arguments.push_long(Some("priority"), 3)
        };
        fill().expect("small arguments");
        arguments.close();
        let (mut structure, text) = (Vec::new(), arguments.text().to_owned());
        arguments.write_structure(&mut structure);
        Self { kind: Kind::Decision, head: Vec::new(), tail: Vec::new(), structure, text }
    }

    fn record(&self, time_ms: i64) -> Record<'_> {
        let private = match self.kind {
            Kind::Decision => Private::Arguments { structure: &self.structure, text: &self.text, more: &[] },
            _ => Private::None,
        };
        Record { kind: self.kind, time_ms, head: &self.head, tail: &self.tail, private }
    }

    fn pieces(&self) -> Pieces<'_> {
        let pieces: [&[u8]; PIECES] = [&self.head, &self.tail, &[], &self.structure, self.text.as_bytes()];
        Pieces { kind: 1, time_ms: START_MS, pieces }
    }

    fn bytes(&self) -> usize {
        self.head.len() + self.tail.len() + self.structure.len() + self.text.len()
    }
}

fn samples(make: impl Fn(usize) -> Sample) -> Vec<Sample> {
    (0..64).map(|number| make(number * 1_234_567)).collect()
}

// --- tools --------------------------------------------------------------------------------------------------------

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn sort(mut all: Vec<f64>) -> Vec<f64> {
    all.sort_by(f64::total_cmp);
    all
}

/// What two readings of the clock cost, in nanoseconds.
fn clock_ns() -> f64 {
    let all = (0..20_000).map(|_| {
        let start = Instant::now();
        black_box(start).elapsed().as_nanos() as f64
    });
    quantile(&sort(all.collect()), 0.5)
}

/// An empty folder on the disk of the repository, or in memory.
fn fresh_folder(in_memory: bool) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let base = if in_memory { PathBuf::from("/dev/shm") } else { PathBuf::from(env!("CARGO_TARGET_TMPDIR")) };
    let name = format!("tollkeeper-bench-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = base.join(name);
    std::fs::create_dir_all(&folder).expect("room for a log");
    folder
}

/// Seconds that threads of this name have run so far.
fn thread_seconds(name: &str) -> f64 {
    let mut sum = 0.0;
    for task in std::fs::read_dir("/proc/self/task").expect("a Linux").flatten() {
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").trim() == name {
            let ran: f64 = read("schedstat").split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0);
            sum += ran / 1e9;
        }
    }
    sum
}

/// Seconds of processor that this process has taken, all threads together.
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Megabytes of this process that are in memory.
fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it says so");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).expect("a number") / 1024.0
}

/// A log that counts how often it waits for the disk.
struct Counted {
    log: Log,
    folder: PathBuf,
    syncs: Arc<AtomicU64>,
}

impl Counted {
    fn open(folder: PathBuf, change: impl FnOnce(&mut LogOptions)) -> Self {
        let mut options = LogOptions::new("example.com/bench", 0x0123_4567_89ab_cdef);
        let syncs = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&syncs);
        options.disk = Disk::faulty(Arc::new(move |operation, path: &Path| {
            if operation == Operation::Sync && path.extension().is_some_and(|extension| extension == "seg") {
                count.fetch_add(1, Ordering::Relaxed);
            }
            None
        }));
        // No tiles while something else is measured.
        (options.checkpoint_interval_ms, options.checkpoint_entries) = (NEVER_MS, u64::MAX);
        change(&mut options);
        let log = Log::open(&folder, options).expect("a new log opens");
        // The first entry and the first checkpoint are not part of anything.
        log.checkpoint(10_000).expect("a first checkpoint");
        Self { log, folder, syncs }
    }

    /// Publishes so many records, waiting for room where there is none.
    fn produce(&self, samples: &[Sample], count: usize) {
        for number in 0..count {
            let record = samples[number % samples.len()].record(START_MS + (number / 1_000) as i64);
            loop {
                match self.log.claim(LogClaim::bytes_for(&record)) {
                    Err(Refused::Full) => std::thread::sleep(Duration::from_micros(200)),
                    claimed => break assert!(claimed.expect("the log takes records").publish(&record)),
                }
            }
        }
    }

    /// Closes it and asserts that it has so many entries, between its first and its last.
    fn finish(self, entries: usize) {
        let folder = self.close(entries);
        std::fs::remove_dir_all(folder).expect("an own folder");
    }

    /// The same, and leaves it there.
    fn close(self, entries: usize) -> PathBuf {
        self.log.close().expect("everything is on the disk");
        let text = std::fs::read_to_string(self.folder.join("checkpoint")).expect("a checkpoint");
        let size: usize = text.lines().nth(1).and_then(|size| size.parse().ok()).expect("a size");
        assert_eq!(size, entries + 2, "every record is an entry, and a start and a stop");
        self.folder
    }
}

// --- the producer -------------------------------------------------------------------------------------------------

/// A ring, and what its memory is.
struct NamedRing {
    name: &'static str,
    ring: Ring,
    file: Option<File>,
    folder: Option<PathBuf>,
}

impl NamedRing {
    fn over(mapping: &Arc<Mapping>) -> Ring {
        let (header, lines) = (size_of::<RingHeader>(), RING_BYTES / LINE_BYTES);
        let tables = (mapping.table(0, 1), mapping.table(header, lines));
        let words = mapping.table(header + lines * 8, lines * LINE_WORDS as usize);
        let ring = Ring::new(tables.0.expect("room"), tables.1.expect("room"), words.expect("room"));
        let ring = ring.expect("the numbers fit");
        ring.reset(7, 1, [0; 2]);
        ring
    }

    const fn bytes() -> usize {
        size_of::<RingHeader>() + RING_BYTES / LINE_BYTES * (8 + LINE_BYTES)
    }

    fn anonymous() -> Self {
        let mapping = Mapping::anonymous(Self::bytes()).expect("memory");
        Self { name: "anonymous memory", ring: Self::over(&mapping), file: None, folder: None }
    }

    fn mapped(name: &'static str, in_memory: bool) -> Self {
        let folder = fresh_folder(in_memory);
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(folder.join("ring")).expect("a file");
        allocate(&file, Self::bytes() as u64).expect("room");
        let mapping = Mapping::shared(&file, Self::bytes()).expect("memory");
        Self { name, ring: Self::over(&mapping), file: Some(file), folder: Some(folder) }
    }

    /// Lines of such a record.
    fn lines_of(&self, sample: &Sample) -> usize {
        let before = self.ring.used_bytes();
        let mut reader = self.ring.reader();
        let pieces = sample.pieces();
        assert!(self.ring.claim(Self::bytes_of(sample)).expect("room").publish(&pieces));
        let lines = (self.ring.used_bytes() - before) / LINE_BYTES;
        assert!(self.ring.take(&mut reader, &mut Taken::default()));
        self.ring.release(&reader);
        lines
    }

    /// Bytes to claim for it: each piece begins at a word.
    fn bytes_of(sample: &Sample) -> usize {
        Ring::bytes_for(sample.bytes())
    }

    /// Publishes `count` records in batches between two clock readings; nanoseconds per record. Then takes them out
    /// again and compares them.
    fn round(&self, sample: &Sample, count: usize, batch: usize, clock: f64, into: &mut Vec<f64>) {
        let pieces = sample.pieces();
        let bytes = Self::bytes_of(sample);
        let mut reader = self.ring.reader();
        for _ in 0..count / batch {
            let start = Instant::now();
            for _ in 0..batch {
                assert!(self.ring.claim(black_box(bytes)).expect("the ring is empty").publish(black_box(&pieces)));
            }
            into.push((start.elapsed().as_nanos() as f64 - clock).max(0.0) / batch as f64);
        }
        let mut taken = Taken::default();
        for _ in 0..count / batch * batch {
            assert!(self.ring.take(&mut reader, &mut taken), "what was published is there");
            assert_eq!(taken.as_pieces().pieces, pieces.pieces);
        }
        self.ring.release(&reader);
        assert_eq!(self.ring.used_bytes(), 0);
    }
}

impl Drop for NamedRing {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn producer() {
    let clock = clock_ns();
    println!(
        "producer: claim + publish, ns per record; two readings of the clock cost {clock:.0} ns and are taken off"
    );
    let sample = Sample::decision(123_456);
    let (head, tail, rest) = (sample.head.len(), sample.tail.len(), sample.structure.len() + sample.text.len());
    println!("  a decision: head {head} B, tail {tail} B, arguments {rest} B");
    let rings =
        [NamedRing::anonymous(), NamedRing::mapped("mapped file", false), NamedRing::mapped("mapped, /dev/shm", true)];
    // Around the ring once, so that all of it is there.
    for ring in &rings {
        for _ in 0..20 {
            ring.round(&sample, 1_024, BATCH, clock, &mut Vec::new());
        }
    }
    let mut batches = [(); 3].map(|()| Vec::new());
    let mut singles = [(); 3].map(|()| Vec::new());
    for _ in 0..400 {
        for ((ring, batches), singles) in rings.iter().zip(&mut batches).zip(&mut singles) {
            ring.round(&sample, 512, BATCH, clock, batches);
            ring.round(&sample, 128, 1, clock, singles);
        }
    }
    let batches = batches.map(sort);
    let singles = singles.map(sort);
    let base = quantile(&batches[0], 0.5);
    for ((ring, batches), singles) in rings.iter().zip(&batches).zip(&singles) {
        let p50 = quantile(batches, 0.5);
        println!(
            "  {:<18} p50 {p50:>6.0}   p99 of batches {:>6.0}   p99 of single calls {:>6.0}   {:.2}x of anonymous",
            ring.name,
            quantile(batches, 0.99),
            quantile(singles, 0.99),
            p50 / base,
        );
    }
    per_byte(&rings, clock);
    written_back(&rings[1], &sample, clock);
    live(clock);
}

fn per_byte(rings: &[NamedRing], clock: f64) {
    let mut last = (0.0, 0.0);
    for bytes in [64_usize, 256, 1_024, 4_096, 16_384] {
        let sample = Sample::with_arguments(bytes);
        let mut times = Vec::new();
        for _ in 0..200 {
            rings[1].round(&sample, 64, 4, clock, &mut times);
        }
        let p50 = quantile(&sort(times), 0.5);
        let (more_ns, more_bytes) = (p50 - last.0, sample.bytes() as f64 - last.1);
        println!(
            "  arguments of {:>6} B {p50:>6.0} ns   {:.3} ns per further byte",
            sample.bytes(),
            more_ns / more_bytes
        );
        last = (p50, sample.bytes() as f64);
    }
}

/// The kernel writes pages of a mapped file to the disk now and then, and whoever writes to one of them after that
/// first has to ask it.
fn written_back(ring: &NamedRing, sample: &Sample, clock: f64) {
    let file = ring.file.as_ref().expect("a mapped one");
    let (mut times, mut warm) = (Vec::new(), Vec::new());
    // Half of the ring at a time: the second time around meets the pages that the first has touched.
    let half = RING_BYTES / 2 / ring.lines_of(sample) / LINE_BYTES;
    for _ in 0..8 {
        file.sync_all().expect("a disk");
        for into in [&mut times, &mut warm] {
            ring.round(sample, half, 1, clock, into);
            ring.round(sample, half, 1, clock, into);
        }
    }
    let (times, warm) = (sort(times), sort(warm));
    println!(
        "  single calls right after the kernel wrote the ring's pages back: p50 {:.0}, p99 {:.0} (before: {:.0}, {:.0})",
        quantile(&times, 0.5),
        quantile(&times, 0.99),
        quantile(&warm, 0.5),
        quantile(&warm, 0.99),
    );
}

/// On an open log, whose writer takes what is published, from one thread and from two.
fn live(clock: f64) {
    for threads in [1_usize, 2] {
        let counted = Counted::open(fresh_folder(false), |_| ());
        let samples = samples(Sample::decision);
        let rounds = 400_usize;
        let work = || {
            let mut times = Vec::with_capacity(rounds * 64);
            for _ in 0..rounds {
                for sample in &samples {
                    let record = sample.record(START_MS);
                    let start = Instant::now();
                    let claimed = counted.log.claim(LogClaim::bytes_for(black_box(&record)));
                    assert!(claimed.expect("room").publish(black_box(&record)));
                    times.push((start.elapsed().as_nanos() as f64 - clock).max(0.0));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            times
        };
        let times: Vec<f64> = std::thread::scope(|scope| {
            let spawned: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            spawned.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
        });
        let times = sort(times);
        println!(
            "  an open log, {threads} thread(s), single calls: p50 {:.0}, p99 {:.0}, p99.9 {:.0}",
            quantile(&times, 0.5),
            quantile(&times, 0.99),
            quantile(&times, 0.999)
        );
        counted.finish(rounds * samples.len() * threads);
    }
}

// --- the way to the disk ------------------------------------------------------------------------------------------

/// Writes so much in frames of a size, each brought to the disk, over and over the same file, which is the best that
/// the disk does; bytes per second.
fn raw_rate(folder: &Path, frame_bytes: usize, total: usize) -> f64 {
    let path = folder.join("raw");
    let file = File::create_new(&path).expect("a file");
    let around = 32;
    allocate(&file, (frame_bytes * around) as u64).expect("room");
    let bytes = vec![0xa5; frame_bytes];
    let frames = (total / frame_bytes).max(1);
    let start = Instant::now();
    for frame in 0..frames {
        file.write_all_at(&bytes, (frame % around * frame_bytes) as u64).expect("a disk");
        file.sync_data().expect("a disk");
    }
    let rate = (frames * frame_bytes) as f64 / start.elapsed().as_secs_f64();
    std::fs::remove_file(&path).expect("an own file");
    rate
}

/// What one run to the disk has taken.
struct Passed {
    entries: usize,
    seconds: f64,
    writer_seconds: f64,
    /// Writer and producer
    processor_seconds: f64,
    syncs: u64,
    wal_bytes: f64,
}

/// Entries through the ring into the write-ahead file.
fn pass(in_memory: bool, samples: &[Sample], entries: usize, ring_bytes: usize) -> Passed {
    let counted = Counted::open(fresh_folder(in_memory), |options| {
        options.ring_bytes = ring_bytes;
        if in_memory {
            // Making room in memory means clearing it, which a disk does not do: all of that comes before.
            options.segment_bytes = 1 << 30;
        }
    });
    // The ring's pages, and the writer's buffers.
    counted.produce(samples, 40_000);
    counted.log.flush(60_000).expect("a disk");
    let (ran, syncs) = (thread_seconds("tollkeeper-log"), counted.syncs.load(Ordering::Relaxed));
    let before = wal_bytes(&counted.folder);
    let (start, processor) = (Instant::now(), processor_seconds());
    counted.produce(samples, entries);
    assert_eq!(counted.log.flush(60_000).expect("a disk"), entries as u64 + 40_001);
    let seconds = start.elapsed().as_secs_f64();
    let passed = Passed {
        entries,
        seconds,
        processor_seconds: processor_seconds() - processor,
        writer_seconds: thread_seconds("tollkeeper-log") - ran,
        syncs: counted.syncs.load(Ordering::Relaxed) - syncs,
        wal_bytes: wal_bytes(&counted.folder) - before,
    };
    counted.finish(entries + 40_000);
    passed
}

/// Bytes of frames: each says its length at 20 and 24.
fn wal_bytes(folder: &Path) -> f64 {
    let mut sum = 0;
    for segment in std::fs::read_dir(folder.join("wal")).expect("a log").flatten() {
        let file = File::open(segment.path()).expect("a segment");
        let (mut at, mut header) = (64_u64, [0_u8; 32]);
        while file.read_exact_at(&mut header, at).is_ok() && header.starts_with(b"TKF1") {
            let word =
                |at: usize| u64::from(u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
            let len = 136 + word(20) + word(24);
            sum += len;
            at = (at + len).next_multiple_of(8);
        }
    }
    sum as f64
}

fn throughput() {
    println!("throughput: through the ring into the write-ahead file, one fdatasync per batch, tiles later");
    let shapes = [("decision", samples(Sample::decision)), ("small", samples(Sample::small))];
    for (place, in_memory, rounds) in [("disk", false, 2), ("/dev/shm (no disk behind it)", true, 5)] {
        for (name, samples) in &shapes {
            let entries = 800_000;
            let mut best: Option<(Passed, f64)> = None;
            for _ in 0..rounds {
                let folder = fresh_folder(in_memory);
                let raw = raw_rate(&folder, 2 << 20, 256 << 20);
                std::fs::remove_dir_all(folder).expect("an own folder");
                let passed = pass(in_memory, samples, entries, RING_BYTES);
                if best.as_ref().is_none_or(|(best, _)| best.seconds > passed.seconds) {
                    best = Some((passed, raw));
                }
            }
            let (passed, raw) = best.expect("a round");
            show(place, name, &passed, raw);
        }
    }
    println!("  by the size of the ring, which bounds a batch (decisions, disk)");
    for ring_bytes in [512 << 10, 2 << 20, 16 << 20] {
        let passed = pass(false, &shapes[0].1, 200_000, ring_bytes);
        println!(
            "    ring of {:>6} KiB: {:>9.0} entries/s, {:>6.0} entries per fdatasync",
            ring_bytes >> 10,
            passed.entries as f64 / passed.seconds,
            passed.entries as f64 / passed.syncs as f64
        );
    }
}

fn show(place: &str, name: &str, passed: &Passed, raw: f64) {
    let entries = passed.entries as f64;
    println!(
        "  {name} on {place}: {:.0} entries/s, {:.0} B per entry in the file, {:.0} MB/s where plain writes of 2 MiB \
         with fdatasync get {:.0} ({:.2}x); {:.0} entries per fdatasync; the writer's thread ran {:.0} ns per entry \
         ({:.0} entries/s of its time)",
        entries / passed.seconds,
        passed.wal_bytes / entries,
        passed.wal_bytes / passed.seconds / 1e6,
        raw / 1e6,
        passed.wal_bytes / passed.seconds / raw,
        entries / passed.syncs as f64,
        passed.writer_seconds * 1e9 / entries,
        entries / passed.writer_seconds,
    );
}

/// All threads on one processor.
fn one_core() {
    use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
    let all = sched_getaffinity(None::<Pid>).expect("a Linux");
    let mut one = CpuSet::new();
    let first = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).expect("a processor");
    one.set(first);
    sched_setaffinity(None::<Pid>, &one).expect("a Linux");
    println!("one core: producer, writer and cutter on processor {first}, in /dev/shm; the best of 5");
    for (name, samples) in [("decision", samples(Sample::decision)), ("small", samples(Sample::small))] {
        let passes = (0..5).map(|_| pass(true, &samples, 500_000, RING_BYTES));
        let best = passes.min_by(|a, b| a.processor_seconds.total_cmp(&b.processor_seconds)).expect("five");
        println!(
            "  {name}: {:.0} entries/s of the clock, {:.0} per second of processor; {:.0} ns per entry, of which the \
             writer {:.0}",
            best.entries as f64 / best.seconds,
            best.entries as f64 / best.processor_seconds,
            best.processor_seconds * 1e9 / best.entries as f64,
            best.writer_seconds * 1e9 / best.entries as f64
        );
    }
    sched_setaffinity(None::<Pid>, &all).expect("a Linux");
}

/// What the parts of the writer's work cost by themselves, on the same bytes.
fn parts() {
    let sample = Sample::decision(123_456);
    let payload = {
        let (mut arguments, mut out) = (Arguments::new(), b"{\"input\":".to_vec());
        assert!(arguments.refill(&sample.structure, sample.text.as_bytes()));
        arguments.write_json(&mut out);
        out.push(b'}');
        out
    };
    let mut entry = sample.head.clone();
    entry.extend_from_slice(&sample.tail);
    entry.resize(entry.len() + 110 + 93, b'x');
    let salt = [7; 32];
    println!(
        "parts, ns per entry of {} B with a payload of {} B; the least of 31 interleaved rounds",
        entry.len(),
        payload.len()
    );
    let mut frontier = Frontier::default();
    let mut arguments = Arguments::new();
    let (mut out, mut sink) = (Vec::with_capacity(4_096), 0_u64);
    let mut frame: Vec<u8> = Vec::with_capacity(2 << 20);
    let mut parts: [(&str, f64); 7] = [
        ("leaf hash", f64::MAX),
        ("commitment", f64::MAX),
        ("tree", f64::MAX),
        ("base64 of a hash", f64::MAX),
        ("crc32c", f64::MAX),
        ("arguments to JSON", f64::MAX),
        ("one copy", f64::MAX),
    ];
    for _ in 0..31 {
        for (at, (_, least)) in parts.iter_mut().enumerate() {
            let calls = 2_000;
            frame.clear();
            let start = Instant::now();
            for number in 0..calls {
                let (entry, payload) = (black_box(&entry), black_box(&payload));
                match at {
                    0 => sink ^= u64::from(leaf(entry)[0]),
                    1 => sink ^= u64::from(commitment(&salt, payload)[0]),
                    2 => frontier.push([number as u8; 32]),
                    3 => {
                        out.clear();
                        push_hash(&mut out, black_box(&salt));
                    }
                    4 => sink ^= u64::from(crc32c::crc32c_append(crc32c::crc32c(entry), payload)),
                    5 => {
                        out.clear();
                        assert!(arguments.refill(black_box(&sample.structure), sample.text.as_bytes()));
                        arguments.write_json(&mut out);
                    }
                    _ => frame.extend_from_slice(entry),
                }
            }
            *least = least.min(start.elapsed().as_nanos() as f64 / f64::from(calls));
        }
    }
    black_box((sink, &out, &frame));
    assert_eq!(frontier.size(), 62_000);
    for (name, least) in parts {
        println!("  {name:<20} {least:>6.0}");
    }
    hash_rate();
}

fn hash_rate() {
    let block = vec![0x5a; 1 << 20];
    let mut least = f64::MAX;
    for _ in 0..31 {
        let start = Instant::now();
        black_box(digest(black_box(&block)));
        least = least.min(start.elapsed().as_secs_f64());
    }
    println!("  SHA-256 of 1 MiB: {:.2} GB/s", 1.048_576e-3 / least);
}

// --- the rest -----------------------------------------------------------------------------------------------------

fn tiles() {
    let samples = samples(Sample::decision);
    println!("tiles: entries that are on the disk already, cut and signed");
    for (place, in_memory, entries) in [("disk", false, 200_000_usize), ("/dev/shm", true, 500_000)] {
        let counted = Counted::open(fresh_folder(in_memory), |options| options.segment_bytes = 256 << 20);
        counted.produce(&samples, entries);
        counted.log.flush(60_000).expect("a disk");
        let ran = thread_seconds("tollkeeper-tile");
        let start = Instant::now();
        assert_eq!(counted.log.checkpoint(600_000).expect("a checkpoint"), entries as u64 + 1);
        let seconds = start.elapsed().as_secs_f64();
        let ran = thread_seconds("tollkeeper-tile") - ran;
        println!(
            "  {place}: {:.0} entries/s, {:.0} entries per second of the cutter's thread",
            entries as f64 / seconds,
            entries as f64 / ran
        );
        let mut times = Vec::new();
        let ran = thread_seconds("tollkeeper-tile");
        for number in 0..50 {
            counted.produce(&samples, 1);
            let start = Instant::now();
            assert_eq!(counted.log.checkpoint(10_000).expect("a checkpoint"), (entries + number + 2) as u64);
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        let ran = thread_seconds("tollkeeper-tile") - ran;
        let times = sort(times);
        println!(
            "  {place}: one entry, written, cut and signed: p50 {:.0} us, p99 {:.0} us; the cutter ran {:.0} us each",
            quantile(&times, 0.5),
            quantile(&times, 0.99),
            ran * 1e6 / 50.0
        );
        counted.finish(entries + 50);
    }
}

/// The verifier over a whole log, and one proof out of logs of several sizes.
fn verification() {
    let samples = [("decision", samples(Sample::decision), 200_000_usize), ("small", samples(Sample::small), 400_000)];
    println!("verify: all of a log in /dev/shm, the best of 3");
    for (name, samples, entries) in samples {
        let counted = Counted::open(fresh_folder(true), |options| options.segment_bytes = 256 << 20);
        counted.produce(&samples, entries);
        counted.log.flush(60_000).expect("a disk");
        let folder = counted.close(entries);
        let options = Options { trust_directory: true, ..Options::default() };
        for segments in ["tiles and segments", "tiles"] {
            let mut least = (f64::MAX, f64::MAX);
            for _ in 0..3 {
                let (start, processor) = (Instant::now(), processor_seconds());
                let report = verify(&folder, &options, &mut |_, _| true).expect("a log");
                let took = (start.elapsed().as_secs_f64(), processor_seconds() - processor);
                least = (least.0.min(took.0), least.1.min(took.1));
                assert!(report.integrity(), "{:?}", report.faults);
                let size = report.logs().next().map(|log| log.verified_size);
                assert_eq!(size, Some(entries as u64 + 2), "all of it was verified");
            }
            println!(
                "  {name}, {segments}: {:.0} entries/s of the clock, {:.0} per second of processor",
                entries as f64 / least.0,
                entries as f64 / least.1
            );
            // Whoever was given only what is public verifies that.
            let _ = std::fs::remove_dir_all(folder.join("wal"));
        }
        std::fs::remove_dir_all(folder).expect("an own folder");
    }
    println!("prove: one entry of a log in /dev/shm, by its size");
    let samples = self::samples(Sample::small);
    for entries in [1_000_usize, 30_000, 1_000_000] {
        let counted = Counted::open(fresh_folder(true), |_| ());
        counted.produce(&samples, entries);
        counted.log.flush(60_000).expect("a disk");
        let folder = counted.close(entries);
        let mut times = Vec::new();
        for number in 0..101 {
            let index = (number * 7_919 % entries) as u64;
            let start = Instant::now();
            let proof = prove(&folder, index, None).expect("a proof");
            times.push(start.elapsed().as_secs_f64() * 1e6);
            assert_eq!(Proof::parse(&proof).expect("a proof").checkpoint.size, entries as u64 + 2);
        }
        let times = sort(times);
        println!("  {entries:>9} entries: p50 {:.0} us, p99 {:.0} us", quantile(&times, 0.5), quantile(&times, 0.99));
        std::fs::remove_dir_all(folder).expect("an own folder");
    }
}

fn sync() {
    let samples = samples(Sample::decision);
    let counted = Counted::open(fresh_folder(false), |_| ());
    let frame = {
        let before = wal_bytes(&counted.folder);
        counted.produce(&samples, 1);
        counted.log.flush(10_000).expect("a disk");
        (wal_bytes(&counted.folder) - before) as usize
    };
    let raw = File::create_new(counted.folder.join("raw")).expect("a file");
    allocate(&raw, 64 << 20).expect("room");
    let bytes = vec![0xa5; frame];
    let (mut waits, mut bare, mut at) = (Vec::new(), Vec::new(), 0_u64);
    for number in 0..600 {
        let start = Instant::now();
        raw.write_all_at(&bytes, at).expect("a disk");
        raw.sync_data().expect("a disk");
        bare.push(start.elapsed().as_secs_f64() * 1e6);
        at += frame.next_multiple_of(8) as u64;
        let record = samples[number % 64].record(START_MS);
        let start = Instant::now();
        let seq = counted.log.append(&record, 1_000).expect("room");
        counted.log.wait(seq, Durability::Sync, 10_000).expect("a disk");
        waits.push(start.elapsed().as_secs_f64() * 1e6);
        assert!(counted.log.durable_seq() >= seq);
    }
    let (waits, bare) = (sort(waits), sort(bare));
    let (p50, bare_p50) = (quantile(&waits, 0.5), quantile(&bare, 0.5));
    println!(
        "sync: one caller waits p50 {p50:.0} us, p99 {:.0}; a bare write and fdatasync of the same {frame} B takes \
         {bare_p50:.0}, {:.0}: {:.2}x",
        quantile(&waits, 0.99),
        quantile(&bare, 0.99),
        p50 / bare_p50
    );
    let (callers, each) = (64_usize, 40_usize);
    let syncs = counted.syncs.load(Ordering::Relaxed);
    let start = Instant::now();
    let times: Vec<f64> = std::thread::scope(|scope| {
        let (log, samples) = (&counted.log, &samples);
        let work = move |caller: usize| {
            let mut times = Vec::new();
            for _ in 0..each {
                let start = Instant::now();
                let seq = log.append(&samples[caller % 64].record(START_MS), 1_000).expect("room");
                log.wait(seq, Durability::Sync, 10_000).expect("a disk");
                times.push(start.elapsed().as_secs_f64() * 1e6);
                assert!(log.durable_seq() >= seq);
            }
            times
        };
        let spawned: Vec<_> = (0..callers).map(|caller| scope.spawn(move || work(caller))).collect();
        spawned.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let syncs = counted.syncs.load(Ordering::Relaxed) - syncs;
    println!(
        "sync: {callers} callers: {:.1} entries per fdatasync, {:.0} entries/s, each waits p50 {:.0} us",
        (callers * each) as f64 / syncs as f64,
        (callers * each) as f64 / seconds,
        quantile(&sort(times), 0.5)
    );
    counted.finish(1 + 600 + callers * each);
}

/// Ten million entries, and what of the process is in memory after that.
fn memory() {
    let samples = samples(Sample::small);
    let entries = 10_000_000;
    let counted = Counted::open(fresh_folder(false), |options| {
        (options.checkpoint_interval_ms, options.checkpoint_entries) = (1_000, 1 << 20);
    });
    let before = resident_mb();
    let start = Instant::now();
    let mut most = before;
    for million in 1..=10 {
        counted.produce(&samples, entries / 10);
        most = most.max(resident_mb());
        println!("  {million} M entries: {:.1} MB more than at the start", resident_mb() - before);
    }
    let size = counted.log.checkpoint(600_000).expect("a disk");
    assert_eq!(size, entries as u64 + 1);
    let after = resident_mb();
    println!(
        "memory: {entries} entries in {:.0} s: {before:.1} MB at the start, {after:.1} MB at the end, at most {most:.1} MB",
        start.elapsed().as_secs_f64()
    );
    assert!(after - before < 32.0, "memory is bounded");
    counted.finish(entries);
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let parts: [(&str, fn()); 8] = [
        ("producer", producer),
        ("parts", parts),
        ("throughput", throughput),
        ("one_core", one_core),
        ("tiles", tiles),
        ("sync", sync),
        ("verify", verification),
        ("memory", memory),
    ];
    for (name, part) in parts {
        // The long one has to be asked for.
        if asked.iter().any(|asked| asked == name) || (asked.is_empty() && name != "memory") {
            part();
        }
    }
}
