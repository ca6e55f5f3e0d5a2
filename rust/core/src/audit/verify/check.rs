//! The verification of a log, or of all logs of a gate: trusts nothing that the writer wrote but a key.
//!
//! Each tree is read once, by a [`super::pass`]. What is compared between trees comes on top: that an epoch goes on from
//! the one before, and that the logs which a `start` entry names are there.

use std::path::Path;

use serde_json::Value;

use super::complete::Tracker;
use super::error::VerifyError;
use super::history::History;
use super::live::{self, LOOKS, Traces};
use super::log::{Epoch, LogDir, Reader, SlotLog, checkpoint_text};
use super::merkle::Hash;
use super::note::{Checkpoint, VerifierKey, decimal, hash_from_base64, may_sign};
use super::pass::{Namer, Pass, Progress, Sibling, Start, Target};
use super::proof::root_at;
use super::report::{Fault, FaultKind, KeySource, LogReport, Payloads, Report, Since, SlotReport};
use super::tiles::read_bounded;

/// How to verify.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Verifier keys, one line each; none for the one beside the log
    pub keys: Vec<String>,
    /// A checkpoint that was kept from earlier
    pub since: Option<String>,
    /// The entries are somebody else's: only the tree is checked
    pub foreign: bool,
    /// The key beside the log counts as given
    pub trust_directory: bool,
}

struct Verification<'a, 'b> {
    options: &'a Options,
    keys: Vec<VerifierKey>,
    since: Option<(Checkpoint, String)>,
    report: Report,
    progress: Progress<'b>,
    siblings: Vec<(usize, Sibling)>,
    many: bool,
}

/// What is known of a tree before its entries are read.
struct Known {
    report: LogReport,
    checkpoint: Option<Checkpoint>,
    keys: Vec<VerifierKey>,
    /// The key has signed the checkpoint
    signed: bool,
}

/// Verifies what a folder holds. A log that is being written is looked at again where something does not fit: its files are
/// read one after another, and what the writer did between two of them is no finding.
pub fn verify(
    path: &Path,
    options: &Options,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Report, VerifyError> {
    let mut looks = Vec::new();
    for number in 1..=LOOKS {
        let before = Traces::take(path);
        let answer = look(path, options, progress);
        let settled = match &answer {
            Ok(report) => live::problems(report).is_empty(),
            Err(VerifyError::Io { .. } | VerifyError::NotFound { .. } | VerifyError::Format { .. }) => false,
            Err(_) => true,
        };
        // Between two epochs a log is away for a moment.
        let away = live::is_away(path);
        if settled && !away {
            return answer;
        }
        if Traces::take(path) == before {
            // The entry that says of an erasure follows it, after a while in which no file changes.
            let pending = away || answer.as_ref().is_ok_and(live::only_erasures) && before.recent();
            if !pending || number == LOOKS {
                return answer;
            }
            std::thread::sleep(live::PAUSE);
        }
        match answer {
            Ok(report) if !away && live::repeats(&report, &looks) => return Ok(report),
            Ok(report) => looks.push(report),
            Err(error) if number == LOOKS && looks.is_empty() => return Err(error),
            Err(_) => {}
        }
    }
    live::steady(looks)
        .ok_or_else(|| VerifyError::NotFound { what: format!("{}: the log does not hold still", path.display()) })
}

/// Looks once.
fn look(path: &Path, options: &Options, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<Report, VerifyError> {
    let keys = options.keys.iter().map(|key| VerifierKey::parse(key)).collect::<Result<Vec<_>, _>>()?;
    let since = match &options.since {
        Some(text) => Some((Checkpoint::unsigned(text)?, text.clone())),
        None => None,
    };
    let folder = LogDir::discover(path)?;
    let many = folder.logs.iter().any(|log| log.slot.is_some());
    let total = total(&folder);
    let report = Report {
        path: path.to_owned(),
        slots: Vec::new(),
        since: since.as_ref().map(|(kept, _)| Since {
            origin: kept.origin.clone(),
            size: kept.size,
            consistent: false,
        }),
        faults: Vec::new(),
        trust_directory: options.trust_directory,
    };
    let progress = Progress { done: 0, total, call: progress };
    let mut verification = Verification { options, keys, since, report, progress, siblings: Vec::new(), many };
    for log in &folder.logs {
        verification.slot(log)?;
    }
    verification.unmatched_since();
    verification.check_siblings()?;
    Ok(verification.report)
}

/// How many entries there are, roughly: a log that cannot be opened is counted when it is read.
fn total(folder: &LogDir) -> u64 {
    let epochs = folder.logs.iter().flat_map(|log| log.epochs.iter());
    epochs.filter_map(|epoch| Reader::open(&epoch.path).ok()).map(|reader| reader.size()).fold(0, u64::saturating_add)
}

fn empty_report(epoch: &Epoch, slot: Option<u64>, current: bool) -> LogReport {
    LogReport {
        path: epoch.path.clone(),
        slot,
        epoch: epoch.number,
        current,
        origin: String::new(),
        key_source: KeySource::Absent,
        signed_size: 0,
        anchored: false,
        chained: false,
        size: 0,
        sound_size: 0,
        verified_size: 0,
        history_count: 0,
        wal_size: None,
        payloads: Payloads::default(),
        unrecorded: Vec::new(),
        faults: Vec::new(),
        fault_count: 0,
        warnings: Vec::new(),
    }
}

fn add(report: &mut LogReport, kind: FaultKind, file: &str, message: impl Into<String>) {
    report.fault_count = report.fault_count.saturating_add(1);
    report.faults.push(Fault { kind, file: file.to_owned(), index: None, offset: None, message: message.into() });
}

/// Whether something in the folder says that checkpoints were published.
fn promises_checkpoint(epoch: &Epoch) -> Result<bool, VerifyError> {
    let history = History::open(&epoch.path.join("checkpoints.log"), Vec::new())?;
    let published = history.is_some_and(|mut history| !matches!(history.next(), super::history::Past::End));
    Ok(published || epoch.path.join("tile").join("0").is_dir())
}

/// The first entry of an epoch, as far as it says what came before.
struct Before {
    origin: String,
    size: u64,
    root: Hash,
    checkpoint: Option<String>,
}

fn before(epoch: &Epoch) -> Result<Before, String> {
    let mut entry = Vec::new();
    let mut reader = Reader::open(&epoch.path).map_err(|error| error.to_string())?;
    reader.entry(0, &mut entry).map_err(|error| error.to_string())?;
    let value: Value = serde_json::from_slice(&entry).map_err(|error| error.to_string())?;
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let read = || {
        text("kind").filter(|kind| *kind == "epoch")?;
        Some(Before {
            origin: text("origin")?.to_owned(),
            size: value.get("size").and_then(Value::as_u64)?,
            root: text("root").and_then(hash_from_base64)?,
            checkpoint: text("checkpoint").map(str::to_owned),
        })
    };
    read().ok_or_else(|| "it is not an `epoch` entry with origin, size and root".to_owned())
}

impl Verification<'_, '_> {
    fn slot(&mut self, log: &SlotLog) -> Result<(), VerifyError> {
        let mut tracker = Tracker::default();
        let mut reports: Vec<LogReport> = Vec::new();
        let mut matched = Vec::new();
        let mut number = 1_u64;
        for (place, epoch) in log.epochs.iter().enumerate() {
            let current = place.saturating_add(1) == log.epochs.len();
            let mut known = self.know(log, epoch, current)?;
            if epoch.number != number {
                let message = format!("epoch {} is there, and epoch {number} is not", epoch.number);
                add(&mut known.report, FaultKind::Missing, &format!("epochs/{number}"), message);
                tracker.headless |= place == 0;
            }
            number = epoch.number.saturating_add(1);
            let next = log.epochs.get(place.saturating_add(1)).map(before);
            let (report, next_holds) = self.tree(known, &mut tracker, next)?;
            reports.push(report);
            matched.push(next_holds);
        }
        self.chain(&mut reports, &matched);
        self.report.slots.push(SlotReport { slot: log.slot, epochs: reports, completeness: tracker.finish() });
        Ok(())
    }

    /// An epoch whose end a later, trusted one names is as trustworthy as that one.
    fn chain(&self, reports: &mut [LogReport], matched: &[bool]) {
        let mut trusted = false;
        for (place, (report, matched)) in reports.iter_mut().zip(matched).enumerate().rev() {
            report.chained = trusted && *matched;
            let given = report.key_source == KeySource::Given
                || (report.key_source == KeySource::Directory && self.options.trust_directory);
            let own = report.anchored && given && report.verified_size > 0;
            trusted = (own || report.chained) && report.fault_count == 0 && place > 0;
        }
    }

    /// Reads the checkpoint and the keys of a tree.
    fn know(&self, log: &SlotLog, epoch: &Epoch, current: bool) -> Result<Known, VerifyError> {
        let mut report = empty_report(epoch, log.slot, current);
        let beside = self.key_beside(epoch, &mut report)?;
        let text = match checkpoint_text(&epoch.path) {
            Err(VerifyError::Format { message, .. }) => {
                add(&mut report, FaultKind::Format, "checkpoint", message);
                None
            }
            other => other?,
        };
        let expected = text.is_none() && promises_checkpoint(epoch)?;
        if expected && report.faults.iter().all(|fault| fault.file != "checkpoint") {
            add(&mut report, FaultKind::Missing, "checkpoint", "there is none, though the log has published some");
        }
        let checkpoint = text.as_deref().and_then(|text| match Checkpoint::unsigned(text) {
            Ok(checkpoint) => Some(checkpoint),
            Err(error) => {
                add(&mut report, FaultKind::Format, "checkpoint", error.to_string());
                None
            }
        });
        let origin = checkpoint.as_ref().map(|checkpoint| checkpoint.origin.clone());
        report.origin = origin.or_else(|| beside.as_ref().map(|key| key.name().to_owned())).unwrap_or_default();
        report.signed_size = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.size);
        self.check_origin(log, epoch, &mut report);
        let keys = self.choose_keys(&mut report, text.as_deref(), beside.as_ref());
        let mut signed = false;
        if let (Some(text), Some(_)) = (&text, &checkpoint)
            && report.key_source != KeySource::Absent
        {
            match Checkpoint::signed(text, &keys) {
                Ok(_) => signed = true,
                Err(error) => add(&mut report, FaultKind::Signature, "checkpoint", error.to_string()),
            }
        }
        Ok(Known { report, checkpoint, keys, signed })
    }

    fn key_beside(&self, epoch: &Epoch, report: &mut LogReport) -> Result<Option<VerifierKey>, VerifyError> {
        let name = "verifier.pub";
        let bytes = match read_bounded(&epoch.path.join(name), 4_096) {
            Err(VerifyError::Format { message, .. }) => {
                add(report, FaultKind::Key, name, message);
                return Ok(None);
            }
            other => other?,
        };
        let Some(bytes) = bytes else {
            if !self.options.foreign {
                add(report, FaultKind::Missing, name, "there is no verifier key beside the log");
            }
            return Ok(None);
        };
        let whole = bytes.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        let parsed = whole.ok_or_else(|| "not one line of text".to_owned());
        match parsed.and_then(|line| VerifierKey::parse(line).map_err(|error| error.to_string())) {
            Ok(key) => Ok(Some(key)),
            Err(message) => {
                add(report, FaultKind::Key, name, message);
                Ok(None)
            }
        }
    }

    /// The origin ends with the numbers of the slot and the epoch, so that logs cannot change places.
    fn check_origin(&self, log: &SlotLog, epoch: &Epoch, report: &mut LogReport) {
        if report.origin.is_empty() || self.options.foreign {
            return;
        }
        let mut numbers = report.origin.rsplit('/').map(decimal);
        let last = numbers.next().flatten();
        let wanted = match log.slot {
            Some(slot) => last == Some(epoch.number) && numbers.next().flatten() == Some(slot),
            None => epoch.number == 1 || last == Some(epoch.number),
        };
        if !wanted {
            let slot = log.slot.map(|slot| format!("slot {slot}, ")).unwrap_or_default();
            let message = format!("`{}` is not the origin of {slot}epoch {}", report.origin, epoch.number);
            add(report, FaultKind::Key, "checkpoint", message);
        }
    }

    /// The keys that may sign for a tree; sets where they came from.
    fn choose_keys(
        &self,
        report: &mut LogReport,
        text: Option<&str>,
        beside: Option<&VerifierKey>,
    ) -> Vec<VerifierKey> {
        let origin = report.origin.clone();
        if let Some(key) = beside
            && !origin.is_empty()
            && key.name() != origin
        {
            let message = format!("the key is named `{}`, the log `{origin}`", key.name());
            add(report, FaultKind::Key, "verifier.pub", message);
        }
        let given: Vec<VerifierKey> = self.keys.iter().filter(|key| may_sign(key, &origin)).cloned().collect();
        let by_given = text.is_some_and(|text| Checkpoint::signed(text, &given).is_ok());
        let is_given = beside.is_some_and(|key| given.iter().any(|one| one.same_public(key)));
        match beside {
            // An older epoch may have had an older key: its root is held by the epoch after it.
            Some(key) if self.keys.is_empty() || (!report.current && !by_given) => {
                report.key_source = KeySource::Directory;
                return vec![key.clone()];
            }
            Some(_) if !is_given => {
                add(report, FaultKind::Key, "verifier.pub", "the key beside the log is not the one that was given");
            }
            None if self.keys.is_empty() => return Vec::new(),
            _ => {}
        }
        report.key_source = KeySource::Given;
        if given.is_empty() {
            let message = format!("the key that was given is not for the origin `{origin}`");
            add(report, FaultKind::Key, "checkpoint", message);
        }
        given
    }

    /// Reads one tree. Also says whether the next epoch's first entry names its end rightly.
    fn tree(
        &mut self,
        known: Known,
        tracker: &mut Tracker,
        next: Option<Result<Before, String>>,
    ) -> Result<(LogReport, bool), VerifyError> {
        let Known { report, checkpoint, keys, signed } = known;
        let history = History::open(&report.path.join("checkpoints.log"), keys.clone())?;
        let (path, origin, signed_size) = (report.path.clone(), report.origin.clone(), report.signed_size);
        let required = signed_size;
        let keyed = !keys.is_empty();
        let (own, lacks_history) = (!self.options.foreign, history.is_none());
        let mut pass =
            Pass::new(Start { report, tracker, progress: &mut self.progress, own, history, required, signed, keyed });
        if own && lacks_history && checkpoint.is_some() && path.join("wal").is_dir() {
            pass.fault(FaultKind::Missing, "checkpoints.log", None, "the history of checkpoints is not there");
        }
        if own && !path.join("wal").is_dir() {
            pass.report
                .warnings
                .push("wal: there are no segments, so payloads and the tail are not checked".to_owned());
        }
        if let Some(checkpoint) = &checkpoint {
            pass.expect(checkpoint.size, Target { root: checkpoint.root, namer: Namer::Signed });
        }
        let mut chained_size = None;
        match next {
            Some(Ok(before)) => {
                chained_size = Some(before.size);
                check_named(&mut pass, &before, &origin, &keys);
                pass.expect(before.size, Target { root: before.root, namer: Namer::Next });
            }
            Some(Err(message)) => {
                let message = format!("the next epoch's first entry does not name this one: {message}");
                pass.fault(FaultKind::Chain, "checkpoint", None, message);
            }
            None => {}
        }
        let mut since_size = None;
        if let Some((kept, text)) = self.since.as_ref().filter(|(kept, _)| kept.origin == origin) {
            if !keys.is_empty() {
                Checkpoint::signed(text, &keys)?;
            }
            pass.expect(kept.size, Target { root: kept.root, namer: Namer::Since });
            if kept.size > signed_size {
                let message = format!("the checkpoint has size {signed_size}, the one that was kept {}", kept.size);
                pass.fault(FaultKind::Rollback, "checkpoint", Some(signed_size), message);
            }
            since_size = Some(kept.size);
        }
        pass.run()?;
        let holds = |namer: &Namer| pass.matched.contains(namer);
        let (anchored, chained, kept) = (signed && holds(&Namer::Signed), holds(&Namer::Next), holds(&Namer::Since));
        if let (Some(since), Some(_)) = (&mut self.report.since, since_size) {
            since.consistent = kept;
        }
        let place = self.report.slots.len();
        self.siblings.extend(std::mem::take(&mut pass.siblings).into_iter().map(|sibling| (place, sibling)));
        let mut report = pass.report;
        report.anchored = anchored;
        if let Some(size) = chained_size.filter(|_| chained) {
            report.signed_size = report.signed_size.max(size);
        }
        check_history(&mut report, checkpoint.as_ref(), &path, &keys)?;
        Ok((report, chained))
    }

    fn unmatched_since(&mut self) {
        let Some(since) = &self.report.since else { return };
        let found = self.report.logs().any(|log| log.origin == since.origin);
        if !found {
            let message = format!("no log here has the origin `{}` of the checkpoint that was kept", since.origin);
            let fault =
                Fault { kind: FaultKind::Rollback, file: "since".to_owned(), index: None, offset: None, message };
            self.report.faults.push(fault);
        }
    }

    /// Each `start` entry says how far the logs beside it were: none of them may be gone or shorter.
    fn check_siblings(&mut self) -> Result<(), VerifyError> {
        if !self.many {
            return Ok(());
        }
        let mut found = Vec::new();
        for (place, sibling) in &self.siblings {
            let named = format!(
                "entry {} of log {place} names `{}` with {} entries",
                sibling.index, sibling.origin, sibling.size
            );
            let (kind, message) = match self.report.logs().find(|log| log.origin == sibling.origin) {
                None => (FaultKind::Sibling, format!("{named}, and it is not there")),
                Some(log) if log.size < sibling.size => {
                    (FaultKind::Rollback, format!("{named}, and {} are there", log.size))
                }
                Some(log) => match Reader::open(&log.path).and_then(|mut reader| root_at(&mut reader, sibling.size)) {
                    Ok(root) if root == sibling.root => continue,
                    Ok(_) => (FaultKind::Fork, format!("{named} and another root")),
                    Err(error @ VerifyError::Io { .. }) => return Err(error),
                    Err(error) => (FaultKind::Sibling, format!("{named}, which cannot be computed: {error}")),
                },
            };
            found.push(Fault { kind, file: sibling.origin.clone(), index: Some(sibling.index), offset: None, message });
        }
        found.truncate(crate::limits::AUDIT_FAULTS_MAX);
        self.report.faults.extend(found);
        Ok(())
    }
}

/// What the next epoch says of this one has to fit its origin, and the checkpoint that it quotes.
fn check_named(pass: &mut Pass<'_, '_>, before: &Before, origin: &str, keys: &[VerifierKey]) {
    if before.origin != origin {
        let message = format!("the next epoch names `{}` as the one before, not `{origin}`", before.origin);
        pass.fault(FaultKind::Chain, "checkpoint", None, message);
    }
    let Some(text) = &before.checkpoint else { return };
    let read = if keys.is_empty() { Checkpoint::unsigned(text) } else { Checkpoint::signed(text, keys) };
    let fits = read.is_ok_and(|checkpoint| {
        let earlier = checkpoint.size < before.size;
        checkpoint.origin == before.origin
            && (earlier || (checkpoint.size, checkpoint.root) == (before.size, before.root))
    });
    if !fits {
        pass.fault(FaultKind::Chain, "checkpoint", None, "the next epoch quotes a checkpoint that does not fit");
    }
}

/// The checkpoint as it is by now, if a writer at work has published another one since.
fn later(checkpoint: Option<&Checkpoint>, origin: &str, path: &Path, keys: &[VerifierKey]) -> Option<Checkpoint> {
    let text = checkpoint_text(path).ok().flatten()?;
    let read = if keys.is_empty() { Checkpoint::unsigned(&text) } else { Checkpoint::signed(&text, keys) };
    let size = checkpoint.map_or(0, |checkpoint| checkpoint.size);
    read.ok().filter(|later| later.origin == origin && later.size > size)
}

/// The history ends with the current checkpoint. A crash, or a writer at work, leaves one of them a step behind. The
/// checkpoint was read first: the history may be ahead of it by what was published since, and not by more.
fn check_history(
    report: &mut LogReport,
    checkpoint: Option<&Checkpoint>,
    path: &Path,
    keys: &[VerifierKey],
) -> Result<(), VerifyError> {
    let Some(mut history) = History::open(&path.join("checkpoints.log"), Vec::new())? else { return Ok(()) };
    let mut sizes = Vec::new();
    let signed = checkpoint.map_or(0, |checkpoint| checkpoint.size);
    let mut last = None;
    while let super::history::Past::Checkpoint(past, _) = history.next() {
        if past.size > signed {
            sizes.push(past.size);
        }
        last = Some(past.size);
    }
    if sizes.len() > 1
        && let Some(later) = later(checkpoint, &report.origin, path, keys)
    {
        sizes.retain(|size| *size > later.size);
    }
    let beyond = sizes.len();
    if beyond == 1 {
        report.warnings.push(format!("checkpoint: the history has one beyond its size {signed}"));
    }
    if beyond > 1 {
        let message = format!("the history has {beyond} checkpoints beyond its size {signed}");
        add(report, FaultKind::Rollback, "checkpoint", message);
    }
    if last.unwrap_or(0) < signed {
        report.warnings.push(format!("checkpoints.log: it ends before the checkpoint of size {signed}"));
    }
    Ok(())
}
