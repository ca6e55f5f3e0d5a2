//! `AuditReader` and the functions of the audit log's verifier: plain data in and out, the interpreter's lock released.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use tollkeeper_core::audit::verify::check::{Options, verify};
use tollkeeper_core::audit::verify::complete::Completeness;
use tollkeeper_core::audit::verify::error::VerifyError;
use tollkeeper_core::audit::verify::log::{LogDir, Reader};
use tollkeeper_core::audit::verify::merkle::{check_consistency, check_inclusion};
use tollkeeper_core::audit::verify::note::{VerifierKey, base64};
use tollkeeper_core::audit::verify::proof::{check_proof, prove};
use tollkeeper_core::audit::verify::report::{Fault, LogReport, Report, SlotReport};

use crate::errors::Error;
use crate::guard::guard;

/// Runs without the interpreter's lock.
fn detached<T: Send>(py: Python<'_>, call: impl FnOnce() -> Result<T, VerifyError> + Send) -> PyResult<T> {
    guard(|| py.detach(call).map_err(Error::from))
}

/// Lists the logs of a folder: each epoch of each process slot.
#[pyfunction]
#[pyo3(signature = (path, /) -> "list[dict[str, typing.Any]]")]
pub(crate) fn audit_logs(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyList>> {
    let found = detached(py, move || {
        let mut found = Vec::new();
        for log in LogDir::discover(&path)?.logs {
            for epoch in log.epochs {
                let reader = Reader::open(&epoch.path)?;
                found.push((log.slot, epoch, reader));
            }
        }
        Ok(found)
    })?;
    let list = PyList::empty(py);
    for (slot, epoch, reader) in found {
        let dict = PyDict::new(py);
        dict.set_item("path", &epoch.path)?;
        dict.set_item("origin", reader.checkpoint().map(|checkpoint| checkpoint.origin.clone()))?;
        dict.set_item("epoch", epoch.number)?;
        dict.set_item("slot", slot)?;
        dict.set_item("size", reader.signed_size())?;
        dict.set_item("wal_size", reader.wal_size())?;
        list.append(dict)?;
    }
    Ok(list)
}

/// Reads one log's entries and payloads; follows it while it grows, with `refresh`.
///
/// Reading does not verify: see `audit_verify`.
///
/// Args:
///     path: The folder of one log, or of one of its epochs.
///
/// Raises:
///     AuditError: There is no log, or its checkpoint cannot be read.
#[pyclass(frozen, name = "AuditReader", module = "tollkeeper.audit")]
pub(crate) struct PyAuditReader {
    reader: Mutex<Reader>,
}

impl PyAuditReader {
    fn lock(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs with the reader, without the interpreter's lock: whoever has the reader may be waiting for the disk.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut Reader) -> Result<T, VerifyError> + Send,
    ) -> PyResult<T> {
        detached(py, || call(&mut self.lock()))
    }
}

#[pymethods]
impl PyAuditReader {
    #[new]
    #[pyo3(signature = (path))]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let reader = detached(py, move || Reader::open(&path))?;
        Ok(Self { reader: Mutex::new(reader) })
    }

    /// Entries, as far as the log was when it was opened or refreshed.
    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |reader| Ok(reader.size()))
    }

    /// The current checkpoint's text, not checked; `None` without one.
    #[getter]
    fn checkpoint_text(&self, py: Python<'_>) -> PyResult<Option<String>> {
        self.with(py, |reader| Ok(reader.checkpoint_text().map(str::to_owned)))
    }

    /// The origin that the checkpoint names; `None` without one.
    #[getter]
    fn origin(&self, py: Python<'_>) -> PyResult<Option<String>> {
        self.with(py, |reader| Ok(reader.checkpoint().map(|checkpoint| checkpoint.origin.clone())))
    }

    /// Looks again how far the log goes.
    fn refresh(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, Reader::refresh)
    }

    /// The bytes of an entry, as they were hashed.
    ///
    /// Raises:
    ///     AuditError: There is no such entry, or it cannot be read.
    #[pyo3(signature = (index, /))]
    fn entry<'py>(&self, py: Python<'py>, index: u64) -> PyResult<Bound<'py, PyBytes>> {
        let mut entry = Vec::new();
        self.with(py, |reader| reader.entry(index, &mut entry))?;
        Ok(PyBytes::new(py, &entry))
    }

    /// The payload of an entry; `None` where there is none, or it was erased.
    ///
    /// Raises:
    ///     AuditError: There is no such entry, or the payload is damaged.
    #[pyo3(signature = (index, /))]
    fn payload<'py>(&self, py: Python<'py>, index: u64) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let payload = self.with(py, |reader| reader.payload(index))?;
        Ok(payload.map(|(_, bytes)| PyBytes::new(py, &bytes)))
    }

    /// The salt of an entry's payload; `None` where there is none, or it was erased.
    #[pyo3(signature = (index, /))]
    fn salt<'py>(&self, py: Python<'py>, index: u64) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let payload = self.with(py, |reader| reader.payload(index))?;
        Ok(payload.map(|(salt, _)| PyBytes::new(py, &salt)))
    }

    /// Iterates over `(index, bytes)`, up to `stop` or the size when this was called.
    #[pyo3(signature = (start = 0, stop = None) -> "AuditEntries")]
    fn entries(slf: Py<Self>, py: Python<'_>, start: u64, stop: Option<u64>) -> PyResult<PyAuditEntries> {
        let size = slf.get().size(py)?;
        let stop = stop.map_or(size, |stop| stop.min(size));
        Ok(PyAuditEntries { reader: slf, state: Mutex::new(Ahead { next: start, stop, entries: Vec::new() }) })
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |reader| Ok(format!("<AuditReader of {}, {} entries>", reader.path().display(), reader.size())))
    }
}

/// Entries that are read at once: one crossing of the reader's lock for many.
const AHEAD: u64 = 256;

struct Ahead {
    next: u64,
    stop: u64,
    /// In reverse order
    entries: Vec<(u64, Vec<u8>)>,
}

/// An iteration over the entries of a log.
#[pyclass(frozen, name = "AuditEntries", module = "tollkeeper.audit")]
pub(crate) struct PyAuditEntries {
    reader: Py<PyAuditReader>,
    state: Mutex<Ahead>,
}

#[pymethods]
impl PyAuditEntries {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<(u64, Bound<'py, PyBytes>)>> {
        let reader = self.reader.get();
        let taken = detached(py, || {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.entries.is_empty() && state.next < state.stop {
                let mut reader = reader.lock();
                let end = state.next.saturating_add(AHEAD).min(state.stop);
                for index in state.next..end {
                    let mut entry = Vec::new();
                    match reader.entry(index, &mut entry) {
                        Ok(()) => state.entries.push((index, entry)),
                        // What was read before the bad place is given first.
                        Err(error) if state.entries.is_empty() => return Err(error),
                        Err(_) => break,
                    }
                }
                state.next = state.entries.last().map_or(end, |(index, _)| index.saturating_add(1));
                state.entries.reverse();
            }
            Ok(state.entries.pop())
        })?;
        Ok(taken.map(|(index, entry)| (index, PyBytes::new(py, &entry))))
    }
}

fn fault_dict<'py>(py: Python<'py>, fault: &Fault) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("kind", fault.kind.name())?;
    dict.set_item("file", &fault.file)?;
    dict.set_item("index", fault.index)?;
    dict.set_item("offset", fault.offset)?;
    dict.set_item("message", &fault.message)?;
    Ok(dict)
}

fn fault_list<'py>(py: Python<'py>, faults: &[Fault]) -> PyResult<Bound<'py, PyList>> {
    let faults = faults.iter().map(|fault| fault_dict(py, fault)).collect::<PyResult<Vec<_>>>()?;
    PyList::new(py, faults)
}

fn log_dict<'py>(py: Python<'py>, log: &LogReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("path", &log.path)?;
    dict.set_item("slot", log.slot)?;
    dict.set_item("epoch", log.epoch)?;
    dict.set_item("current", log.current)?;
    dict.set_item("origin", &log.origin)?;
    dict.set_item("key_source", log.key_source.name())?;
    dict.set_item("signed_size", log.signed_size)?;
    dict.set_item("anchored", log.anchored)?;
    dict.set_item("chained", log.chained)?;
    dict.set_item("size", log.size)?;
    dict.set_item("sound_size", log.sound_size)?;
    dict.set_item("verified_size", log.verified_size)?;
    dict.set_item("tail", log.tail())?;
    dict.set_item("history_count", log.history_count)?;
    dict.set_item("wal_size", log.wal_size)?;
    let payloads = PyDict::new(py);
    payloads.set_item("verified", log.payloads.verified)?;
    payloads.set_item("missing", log.payloads.missing)?;
    payloads.set_item("erased", log.payloads.erased)?;
    payloads.set_item("erased_unrecorded", log.payloads.erased_unrecorded)?;
    payloads.set_item("wrong", log.payloads.wrong)?;
    dict.set_item("payloads", payloads)?;
    dict.set_item("faults", fault_list(py, &log.faults)?)?;
    dict.set_item("fault_count", log.fault_count)?;
    dict.set_item("warnings", &log.warnings)?;
    dict.set_item("summary", log.summary())?;
    Ok(dict)
}

fn completeness_dict<'py>(py: Python<'py>, found: &Completeness) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("complete", found.holds())?;
    dict.set_item("entries", found.entries)?;
    let kinds = PyDict::new(py);
    for (kind, count) in &found.kinds {
        kinds.set_item(kind, count)?;
    }
    dict.set_item("kinds", kinds)?;
    dict.set_item("producers", found.producers)?;
    let missing = PyList::empty(py);
    for range in &found.missing {
        let item = PyDict::new(py);
        item.set_item("producer", range.producer.to_string())?;
        item.set_item("from", range.from)?;
        item.set_item("to", range.to)?;
        item.set_item("before_index", range.before_index)?;
        missing.append(item)?;
    }
    dict.set_item("missing", missing)?;
    dict.set_item("missing_count", found.missing_count)?;
    dict.set_item("lost_count", found.lost_count)?;
    dict.set_item("disordered_count", found.disordered_count)?;
    dict.set_item("disordered_first", found.disordered_first)?;
    dict.set_item("decisions", found.decisions)?;
    dict.set_item("allowed", found.allowed)?;
    dict.set_item("allowed_without_outcome", found.allowed_without_outcome)?;
    dict.set_item("outcomes", found.outcomes)?;
    dict.set_item("outcomes_without_decision", found.outcomes_without_decision)?;
    dict.set_item("gap_count", found.gap_count)?;
    dict.set_item("denied_unlogged_count", found.denied_unlogged_count)?;
    dict.set_item("untracked", found.untracked)?;
    Ok(dict)
}

fn slot_dict<'py>(py: Python<'py>, slot: &SlotReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("slot", slot.slot)?;
    let epochs = slot.epochs.iter().map(|log| log_dict(py, log)).collect::<PyResult<Vec<_>>>()?;
    dict.set_item("epochs", epochs)?;
    dict.set_item("completeness", completeness_dict(py, &slot.completeness)?)?;
    Ok(dict)
}

fn report_dict<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("path", &report.path)?;
    dict.set_item("verdict", report.verdict().name())?;
    dict.set_item("integrity", report.integrity())?;
    dict.set_item("complete", report.complete())?;
    dict.set_item("anchored", report.anchored())?;
    let slots = report.slots.iter().map(|slot| slot_dict(py, slot)).collect::<PyResult<Vec<_>>>()?;
    dict.set_item("slots", slots)?;
    let since = match &report.since {
        Some(since) => {
            let item = PyDict::new(py);
            item.set_item("origin", &since.origin)?;
            item.set_item("size", since.size)?;
            item.set_item("consistent", since.consistent)?;
            Some(item)
        }
        None => None,
    };
    dict.set_item("since", since)?;
    dict.set_item("faults", fault_list(py, &report.faults)?)?;
    Ok(dict)
}

/// One key a line; empty lines are skipped.
fn key_lines(key: Option<&str>) -> Vec<String> {
    key.unwrap_or_default().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Verifies the logs of a folder: integrity, completeness, and how far they are anchored.
///
/// Args:
///     path: The folder of a log, or of all logs of a gate.
///     key: Verifier keys, one a line; without one, the key beside the log is taken, which proves less.
///     since: A checkpoint that was kept from earlier: the log must have grown from it.
///     progress: Called with entries done and in all, every 65,536 entries; returning `False` stops.
///     trust_directory: The key beside the log counts as given.
///     foreign: The entries are another program's: only the tree is checked.
///
/// Returns:
///     What was found, with `verdict` one of `ok`, `unanchored`, `incomplete`, `broken`.
///
/// Raises:
///     AuditError: There is no log, a key or `since` cannot be used, or `progress` stopped it.
#[pyfunction]
#[pyo3(signature = (
    path,
    key: "str | None" = None,
    since: "str | None" = None,
    progress: "collections.abc.Callable[[int, int], object] | None" = None,
    *,
    trust_directory = false,
    foreign = false,
) -> "dict[str, typing.Any]")]
pub(crate) fn audit_verify<'py>(
    py: Python<'py>,
    path: PathBuf,
    key: Option<&str>,
    since: Option<String>,
    progress: Option<&Bound<'py, PyAny>>,
    trust_directory: bool,
    foreign: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let progress = progress.map(|call| call.clone().unbind());
    let options = Options { keys: key_lines(key), since, foreign, trust_directory };
    let mut raised = None;
    let mut call = |done: u64, total: u64| {
        Python::attach(|py| {
            // Lets an interrupt through, with or without a callback.
            let answer = py.check_signals().and_then(|()| match &progress {
                Some(progress) => progress.bind(py).call1((done, total)).map(|answer| !is_false(&answer)),
                None => Ok(true),
            });
            answer.unwrap_or_else(|error| {
                raised = Some(error);
                false
            })
        })
    };
    let found = detached(py, || {
        let path = path;
        verify(&path, &options, &mut call)
    });
    match raised {
        Some(error) => Err(error),
        None => report_dict(py, &found?),
    }
}

fn is_false(answer: &Bound<'_, PyAny>) -> bool {
    answer.extract::<bool>().is_ok_and(|go_on| !go_on)
}

/// Writes the proof (`c2sp.org/tlog-proof@v1`) that an entry is in the log.
///
/// Raises:
///     AuditError: There is no such entry, or no checkpoint covers it yet.
#[pyfunction]
#[pyo3(signature = (path, index, /, extra: "bytes | None" = None))]
pub(crate) fn audit_prove(py: Python<'_>, path: PathBuf, index: u64, extra: Option<Vec<u8>>) -> PyResult<String> {
    detached(py, move || prove(&path, index, extra.as_deref()))
}

/// Checks a proof offline: that the key has signed a tree in which `entry` has the proof's index.
///
/// Raises:
///     AuditError: The proof, the key or the signature does not hold.
#[pyfunction]
#[pyo3(signature = (text, key, entry, /) -> "dict[str, typing.Any]")]
pub(crate) fn audit_check_proof<'py>(
    py: Python<'py>,
    text: &str,
    key: &str,
    entry: &[u8],
) -> PyResult<Bound<'py, PyDict>> {
    let proof = detached(py, || {
        let keys = key_lines(Some(key)).iter().map(|line| VerifierKey::parse(line)).collect::<Result<Vec<_>, _>>()?;
        check_proof(text, &keys, entry)
    })?;
    let dict = PyDict::new(py);
    dict.set_item("origin", &proof.checkpoint.origin)?;
    dict.set_item("index", proof.index)?;
    dict.set_item("size", proof.checkpoint.size)?;
    dict.set_item("root", base64(&proof.checkpoint.root))?;
    dict.set_item("extra", proof.extra.map(|extra| PyBytes::new(py, &extra)))?;
    dict.set_item("checkpoint", &proof.note)?;
    Ok(dict)
}

/// Checks a proof that a leaf is in a tree, as RFC 6962 has it.
///
/// Raises:
///     AuditError: It is not proven.
#[pyfunction]
#[pyo3(signature = (leaf_index, tree_size, root, leaf_hash, proof: "list[bytes]", /))]
pub(crate) fn audit_check_inclusion(
    py: Python<'_>,
    leaf_index: u64,
    tree_size: u64,
    root: &[u8],
    leaf_hash: &[u8],
    proof: Vec<Vec<u8>>,
) -> PyResult<()> {
    detached(py, move || check_inclusion(leaf_index, tree_size, leaf_hash, &proof, root))
}

/// Checks a proof that a tree is the beginning of another, as RFC 6962 has it.
///
/// Raises:
///     AuditError: It is not proven.
#[pyfunction]
#[pyo3(signature = (size1, size2, root1, root2, proof: "list[bytes]", /))]
pub(crate) fn audit_check_consistency(
    py: Python<'_>,
    size1: u64,
    size2: u64,
    root1: &[u8],
    root2: &[u8],
    proof: Vec<Vec<u8>>,
) -> PyResult<()> {
    detached(py, move || check_consistency(size1, size2, root1, root2, &proof))
}
