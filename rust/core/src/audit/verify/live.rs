//! Logs that are being written while they are verified: whether one has changed, and which findings stay.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::log::LogDir;
use super::report::{Fault, FaultKind, LogReport, Report};
use crate::limits::AUDIT_FAULTS_MAX;

/// How often a log that changes is looked at.
pub(super) const LOOKS: usize = 4;
/// How long a writer is given to end what it has begun.
pub(super) const PAUSE: Duration = Duration::from_millis(100);
/// A segment that was written to so shortly ago may have a writer at work.
const RECENT: Duration = Duration::from_secs(3);

/// What tells whether a log was written to: its files with number, length and times.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Traces {
    files: Vec<(PathBuf, Option<[i64; 6]>)>,
    newest: i64,
}

impl Traces {
    /// Looks at what a writer touches. What cannot be looked at counts as absent.
    pub(super) fn take(path: &Path) -> Self {
        let mut traces = Self::default();
        let Ok(folder) = LogDir::discover(path) else { return traces };
        for epoch in folder.logs.iter().flat_map(|log| &log.epochs) {
            for name in ["checkpoint", "checkpoints.log", "verifier.pub"] {
                traces.add(epoch.path.join(name));
            }
            let items = std::fs::read_dir(epoch.path.join("wal")).into_iter().flatten().flatten();
            let mut segments: Vec<PathBuf> = items.map(|item| item.path()).collect();
            segments.sort_unstable();
            for segment in segments {
                traces.add(segment);
            }
        }
        traces
    }

    fn add(&mut self, path: PathBuf) {
        let seen = std::fs::metadata(&path).ok();
        self.newest = self.newest.max(seen.as_ref().map_or(0, MetadataExt::mtime));
        let numbers = seen.map(|seen| {
            let (inode, length) = (seen.ino().cast_signed(), seen.len().cast_signed());
            [inode, length, seen.mtime(), seen.mtime_nsec(), seen.ctime(), seen.ctime_nsec()]
        });
        self.files.push((path, numbers));
    }

    /// Whether it was written to a short while ago.
    pub(super) fn recent(&self) -> bool {
        let newest = UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(self.newest).unwrap_or(0)));
        newest.is_some_and(|newest| SystemTime::now().duration_since(newest).is_ok_and(|age| age < RECENT))
    }
}

/// Whether a log has set its files aside for the next epoch, which has not begun; also for the logs of a gate.
pub(super) fn is_away(path: &Path) -> bool {
    let away =
        |log: &Path| log.join("epochs").is_dir() && !(log.join("wal").is_dir() && log.join("verifier.pub").is_file());
    let items = std::fs::read_dir(path).into_iter().flatten().flatten();
    let numbered = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let mut slots = items.filter(|item| item.file_name().to_str().is_some_and(numbered));
    away(path) || slots.any(|item| away(&item.path()))
}

/// What a second look has to show again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Problem {
    Fault { slot: Option<u64>, epoch: u64, kind: FaultKind, file: String, index: Option<u64> },
    Missing { slot: Option<u64>, of: String, from: u64 },
    Disordered { slot: Option<u64>, first: Option<u64> },
    Unrecorded { slot: Option<u64>, epoch: u64, index: u64 },
    Cut { slot: Option<u64>, epoch: u64 },
}

/// A tile or bundle grows with the log, and what is about a whole log moves with its end.
fn of_fault(slot: Option<u64>, epoch: u64, fault: &Fault) -> Problem {
    let file = fault.file.split(".p/").next().unwrap_or_default().to_owned();
    let placed = !matches!(
        fault.kind,
        FaultKind::Rollback
            | FaultKind::Fork
            | FaultKind::Root
            | FaultKind::Chain
            | FaultKind::Key
            | FaultKind::Signature
    );
    Problem::Fault { slot, epoch, kind: fault.kind, file, index: fault.index.filter(|_| placed) }
}

/// All that a report has to say that a writer at work could have caused.
pub(super) fn problems(report: &Report) -> HashSet<Problem> {
    let mut found: HashSet<Problem> = report.faults.iter().map(|fault| of_fault(None, 0, fault)).collect();
    for one in &report.slots {
        let slot = one.slot;
        for log in &one.epochs {
            let epoch = log.epoch;
            found.extend(log.faults.iter().map(|fault| of_fault(slot, epoch, fault)));
            found.extend(log.unrecorded.iter().map(|index| Problem::Unrecorded { slot, epoch, index: *index }));
            if log.payloads.cut > 0 {
                found.insert(Problem::Cut { slot, epoch });
            }
        }
        let whole = &one.completeness;
        let missing = whole.missing.iter();
        found.extend(missing.map(|range| Problem::Missing { slot, of: range.producer.to_string(), from: range.from }));
        if whole.disordered_count > 0 {
            found.insert(Problem::Disordered { slot, first: whole.disordered_first });
        }
    }
    found
}

/// Whether nothing is wrong but that no entry tells of an erasure.
pub(super) fn only_erasures(report: &Report) -> bool {
    problems(report).iter().all(|problem| matches!(problem, Problem::Unrecorded { .. }))
}

/// Whether every look before has shown all of it: then another one says nothing new.
pub(super) fn repeats(report: &Report, looks: &[Report]) -> bool {
    let found = problems(report);
    !looks.is_empty() && looks.iter().all(|look| found.is_subset(&problems(look)))
}

/// The last look, with only what every one of them has shown.
pub(super) fn steady(mut looks: Vec<Report>) -> Option<Report> {
    let mut report = looks.pop()?;
    let mut common = problems(&report);
    for look in &looks {
        let seen = problems(look);
        common.retain(|problem| seen.contains(problem));
    }
    if looks.is_empty() {
        return Some(report);
    }
    report.faults.retain(|fault| common.contains(&of_fault(None, 0, fault)));
    for one in &mut report.slots {
        let slot = one.slot;
        for log in &mut one.epochs {
            settle(log, slot, &common);
        }
        let whole = &mut one.completeness;
        let count = |from: u64, to: u64| to.saturating_sub(from).saturating_add(1);
        let (mut dropped, missing) = (0_u64, std::mem::take(&mut whole.missing));
        for range in missing {
            let problem = Problem::Missing { slot, of: range.producer.to_string(), from: range.from };
            if common.contains(&problem) {
                whole.missing.push(range);
            } else {
                dropped = dropped.saturating_add(count(range.from, range.to));
            }
        }
        whole.missing_count = whole.missing_count.saturating_sub(dropped);
        if !common.contains(&Problem::Disordered { slot, first: whole.disordered_first }) {
            whole.disordered_count = 0;
            whole.disordered_first = None;
        }
    }
    Some(report)
}

fn settle(log: &mut LogReport, slot: Option<u64>, common: &HashSet<Problem>) {
    let epoch = log.epoch;
    let (kept, dropped): (Vec<Fault>, Vec<Fault>) =
        std::mem::take(&mut log.faults).into_iter().partition(|fault| common.contains(&of_fault(slot, epoch, fault)));
    log.fault_count = log.fault_count.saturating_sub(dropped.len() as u64);
    log.faults = kept;
    let seen = |fault: &Fault| format!("{}: seen once while the log was being written: {}", fault.file, fault.message);
    log.warnings.extend(dropped.iter().take(AUDIT_FAULTS_MAX).map(seen));
    let before = log.unrecorded.len();
    log.unrecorded.retain(|index| common.contains(&Problem::Unrecorded { slot, epoch, index: *index }));
    let gone = before.saturating_sub(log.unrecorded.len()) as u64;
    log.payloads.erased_unrecorded = log.payloads.erased_unrecorded.saturating_sub(gone);
    if !common.contains(&Problem::Cut { slot, epoch }) {
        log.payloads.cut = 0;
    }
}
