//! `AuditLog`: one call into the audit room for a log that this process writes.
//!
//! An append costs one walk over the mapping and one copy into the ring; it keeps the interpreter's lock unless the ring
//! is full. Whatever waits for the disk releases that lock, and looks for signals ten times a second. What this file
//! adds to the core is what only a binding can know: a handle that was closed, or inherited through a fork. Of a log
//! that was inherited it touches nothing, because the parent's threads may have held its locks when it was copied.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMapping, PyString, PyTuple};
use tollkeeper_core::audit::entry::{Kind, Private, Record};
use tollkeeper_core::audit::error::AuditError;
use tollkeeper_core::audit::log::{Durability, Health, Key, Log, LogClaim, LogOptions, Refused};
use tollkeeper_core::audit::note::{Ed25519Signer, check_origin, verifier_key};
use tollkeeper_core::budget::clock::{Clock as _, SystemClock};
use tollkeeper_core::limits::{RING_BYTES_DEFAULT, SEGMENT_BYTES_DEFAULT};

use crate::convert::{exact, type_name};
use crate::errors::Error;
use crate::fork::Born;
use crate::guard::guard;
use crate::json::{push_members, push_value};

/// How long a wait goes on before it looks for signals.
const SLICE_MS: u64 = 100;
/// Members that every entry has, and what the log puts beside them.
const RESERVED: [&str; 7] = ["v", "kind", "producer", "seq", "time", "private", "oversize"];
/// What the log says of itself: nobody else may say it.
const OWN_KINDS: [Kind; 8] = [
    Kind::Start,
    Kind::Stop,
    Kind::Gap,
    Kind::DeniedUnlogged,
    Kind::Recovery,
    Kind::Epoch,
    Kind::KeyRotation,
    Kind::Erasure,
];

fn invalid(message: String) -> Error {
    AuditError::Invalid { message }.into()
}

/// Milliseconds of a timeout in seconds; as long as the core can wait where it is longer.
fn milliseconds(seconds: f64) -> Result<u64, Error> {
    if seconds.is_nan() || seconds < 0.0 {
        return Err(invalid(format!("timeout is {seconds}, not a number of seconds")));
    }
    let duration = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    Ok(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// A kind that a program may append.
fn read_kind(name: &str) -> Result<Kind, Error> {
    let kinds = || Kind::ALL.into_iter().filter(|kind| !OWN_KINDS.contains(kind));
    kinds().find(|kind| kind.name() == name).ok_or_else(|| {
        let known: Vec<&str> = kinds().map(Kind::name).collect();
        let shown: String = name.escape_debug().take(40).collect();
        invalid(format!("there is no kind `{shown}` to append; there is {}", known.join(", ")))
    })
}

/// Other entries and reports find decisions by their ids, so one without is no decision.
fn check_id(kind: Kind, mapping: &Bound<'_, PyAny>) -> PyResult<()> {
    let name = match kind {
        Kind::Decision => "id",
        Kind::Outcome => "of",
        _ => return Ok(()),
    };
    let id = mapping.get_item(name).ok().and_then(|id| id.extract::<String>().ok());
    let valid = id.as_deref().and_then(|id| id.split_once('-')).is_some_and(|(gate, number)| {
        let hex = gate.len() == 16 && gate.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        hex && number.parse::<u64>().is_ok_and(|parsed| parsed.to_string() == number)
    });
    if valid {
        return Ok(());
    }
    let message =
        format!("entry.{name}: this kind, {}, needs the id of a decision, as `Decision.id` has it", kind.name());
    Err(invalid(message).into())
}

fn read_durability(name: &str) -> Result<Durability, Error> {
    Durability::parse(name).ok_or_else(|| {
        let known: Vec<&str> = Durability::ALL.into_iter().map(Durability::name).collect();
        let shown: String = name.escape_debug().take(40).collect();
        invalid(format!("there is no durability `{shown}`; there is {}", known.join(", ")))
    })
}

/// Tries until there is an answer or the time is over (then `None`), without the interpreter's lock. Signals are
/// looked at between two tries.
fn sliced<T: Send>(
    py: Python<'_>,
    timeout_ms: u64,
    mut attempt: impl FnMut(u64) -> Result<Option<T>, AuditError> + Send,
) -> PyResult<Option<T>> {
    let end = Instant::now().checked_add(Duration::from_millis(timeout_ms));
    loop {
        let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let answer = py.detach(|| attempt(left_ms.min(SLICE_MS))).map_err(Error::from)?;
        if answer.is_some() || left.is_zero() {
            return Ok(answer);
        }
        py.check_signals()?;
    }
}

/// What stays outside the tree: bytes as they are, text as UTF-8, any other value as JSON.
fn read_private(value: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(bytes.as_bytes().to_vec());
    }
    if let Some(text) = exact::<PyString>(value) {
        let text = text.to_str().map_err(|_| invalid("private: the text holds a lone surrogate".to_owned()))?;
        return Ok(text.as_bytes().to_vec());
    }
    let mut json = Vec::new();
    push_value(&mut json, value).map_err(|error| error.into_exception("private"))?;
    Ok(json)
}

/// Members of an entry as its JSON has them, each with a comma before it.
fn read_members(mapping: &Bound<'_, PyAny>, beside: Option<&str>) -> PyResult<Vec<u8>> {
    let copy;
    let members = if let Some(dict) = exact::<PyDict>(mapping) {
        dict
    } else {
        let refuse = |_| PyTypeError::new_err(format!("an entry is a mapping, not `{}`", type_name(mapping)));
        copy = PyDict::new(mapping.py());
        copy.update(mapping.cast::<PyMapping>().map_err(refuse)?)?;
        &copy
    };
    let mut reserved = RESERVED.to_vec();
    reserved.extend(beside);
    let mut json = Vec::with_capacity(256);
    push_members(&mut json, members, &reserved).map_err(|error| error.into_exception("entry"))?;
    Ok(json)
}

/// Becomes readable whenever more of a log is durable. Closed when it goes.
#[pyclass(frozen, name = "AuditWatch", module = "tollkeeper._native")]
pub(crate) struct PyAuditWatch {
    descriptor: Arc<OwnedFd>,
    born: Born,
}

#[pymethods]
impl PyAuditWatch {
    /// The descriptor of the counter, which is the parent's alone after a fork.
    fn fileno(&self) -> PyResult<i32> {
        self.born.check()?;
        Ok(self.descriptor.as_raw_fd())
    }
}

/// The native half of `tollkeeper.AuditLog`.
#[pyclass(frozen, subclass, name = "AuditLog", module = "tollkeeper._native")]
pub(crate) struct PyAuditLog {
    pub(crate) log: Arc<Log>,
    born: Born,
    closed: AtomicBool,
}

impl PyAuditLog {
    /// The log, in the process that opened it.
    fn here(&self) -> Result<&Log, Error> {
        self.born.check()?;
        Ok(&self.log)
    }

    /// The log, unless this handle cannot be used any more.
    fn usable(&self) -> Result<&Log, Error> {
        let log = self.here()?;
        // Relaxed: a call at the same moment may come before or after.
        if self.closed.load(Ordering::Relaxed) { Err(AuditError::Closed.into()) } else { Ok(log) }
    }

    fn last_seq(log: &Log) -> u64 {
        log.health().next_seq.saturating_sub(1)
    }

    /// Waits until a record is as certain as that.
    fn wait_for(py: Python<'_>, log: &Log, seq: u64, class: Durability, timeout_ms: u64) -> PyResult<()> {
        let reached = sliced(py, timeout_ms, |slice_ms| match log.wait(seq, class, slice_ms) {
            Ok(()) => Ok(Some(())),
            // Slow, which is no answer yet, or over.
            Err(AuditError::Unavailable { .. }) => Ok(log.is_durable(seq, class)?.then_some(())),
            Err(error) => Err(error),
        })?;
        reached.ok_or_else(|| Self::late(log, "the record is not on the disk", timeout_ms))
    }

    fn late(log: &Log, what: &str, timeout_ms: u64) -> PyErr {
        let why = log.health().failure.unwrap_or_else(|| "the disk is slow".to_owned());
        Error::from(AuditError::Unavailable { message: format!("{what} after {timeout_ms} ms: {why}") }).into()
    }
}

#[pymethods]
impl PyAuditLog {
    /// Args:
    ///     directory: The folder of the log, made if it is not there.
    ///     origin: What the log calls itself, such as `example.com/gate`.
    ///     instance: A random number that tells the records of this opening from those of others.
    ///     key: The file of the signing key, made if it is not there; `None` for `signer.key` in the folder.
    ///     interval_ms: How long a record may be in the ring before it is on the disk: what a power cut can lose.
    ///     checkpoint_interval_ms: How long an entry may be on the disk before a checkpoint covers it.
    ///     ring_bytes: Size of the ring, a power of two.
    ///     segment_bytes: Size of a write-ahead segment.
    ///     exported: Whether something outside takes each checkpoint.
    ///     slot: Whether the folder is one of logs, of which the first that no process has is opened.
    ///     as_slot: The number of the process slot whose own folder this is; it is part of the origin.
    ///
    /// Raises:
    ///     AuditError: Another process has the log, it is damaged, or the folder cannot be used.
    #[new]
    #[expect(clippy::too_many_arguments, reason = "one for each option, all by name")]
    #[pyo3(signature = (directory: "str | os.PathLike[str]", *, origin, instance, key: "str | os.PathLike[str] | None" = None, interval_ms = 5, checkpoint_interval_ms = 1000, ring_bytes = RING_BYTES_DEFAULT, segment_bytes = SEGMENT_BYTES_DEFAULT, exported = false, slot = false, as_slot = None))]
    fn new(
        py: Python<'_>,
        directory: PathBuf,
        origin: &str,
        instance: u64,
        key: Option<PathBuf>,
        interval_ms: u64,
        checkpoint_interval_ms: u64,
        ring_bytes: usize,
        segment_bytes: u64,
        exported: bool,
        slot: bool,
        as_slot: Option<usize>,
    ) -> PyResult<Self> {
        let options = LogOptions {
            ring_bytes,
            segment_bytes,
            interval_ms,
            checkpoint_interval_ms,
            key: key.map_or(Key::Beside, Key::File),
            exported,
            slot: as_slot,
            ..LogOptions::new(origin, instance)
        };
        guard(move || {
            let born = Born::now();
            let open = if slot { Log::open_slot } else { Log::open };
            let log = Arc::new(py.detach(move || open(&directory, options))?);
            Ok::<_, Error>(Self { log, born, closed: AtomicBool::new(false) })
        })
    }

    /// Appends an entry. It is in the ring when this returns: the death of the process loses nothing any more, a power
    /// cut what was appended in the last `interval_ms`. See `wait` and `durable`.
    ///
    /// Args:
    ///     mapping: Members of the entry, in this order: JSON, with whole numbers of any size and `decimal.Decimal` as
    ///         they are. Too many for one entry are kept outside of it, behind a commitment.
    ///     private: What the entry only commits to, and what `erase` can take away: bytes and text as they are, any
    ///         other value as JSON.
    ///     kind: What the entry is about.
    ///     timeout: Seconds to wait for room in the ring.
    ///
    /// Returns:
    ///     The sequence number of the record.
    ///
    /// Raises:
    ///     TypeError: The mapping is none, or a value is not JSON.
    ///     AuditError: A value has no form in JSON, a name is the log's own, or there is no room for the record.
    ///     HandleError: The log is closed, or was inherited through a fork.
    #[pyo3(signature = (mapping: "collections.abc.Mapping[str, typing.Any]", *, private: "typing.Any" = None, kind = "note", timeout = 1.0))]
    fn append(
        &self,
        py: Python<'_>,
        mapping: &Bound<'_, PyAny>,
        private: Option<&Bound<'_, PyAny>>,
        kind: &str,
        timeout: f64,
    ) -> PyResult<u64> {
        guard(|| {
            let log = self.usable()?;
            let (kind, timeout_ms) = (read_kind(kind)?, milliseconds(timeout)?);
            check_id(kind, mapping)?;
            // Where the private bytes have a name of their own.
            let beside = private.and(match kind {
                Kind::Run => Some("request"),
                Kind::Note => None,
                _ => Some("arguments"),
            });
            let members = read_members(mapping, beside)?;
            let private = private.map(read_private).transpose()?;
            let private = private.as_deref().map_or(Private::None, Private::Bytes);
            let record = Record { kind, time_ms: SystemClock.wall_ms(), head: &members, tail: &[], private };
            publish(py, log, &record, timeout_ms)
        })
    }

    /// Waits until everything that was appended before is on the disk.
    ///
    /// Returns:
    ///     How many entries are on the disk.
    ///
    /// Raises:
    ///     AuditError: The time is over, or the disk refuses.
    #[pyo3(signature = (timeout = 10.0))]
    fn flush(&self, py: Python<'_>, timeout: f64) -> PyResult<u64> {
        guard(|| {
            let (log, timeout_ms) = (self.usable()?, milliseconds(timeout)?);
            Self::wait_for(py, log, Self::last_seq(log), Durability::Sync, timeout_ms)?;
            Ok::<_, PyErr>(log.health().durable_size)
        })
    }

    /// Waits until a checkpoint covers everything that was appended before.
    ///
    /// Returns:
    ///     The signed text of the checkpoint.
    ///
    /// Raises:
    ///     AuditError: The time is over, or the disk refuses.
    #[pyo3(signature = (timeout = 10.0))]
    fn checkpoint(&self, py: Python<'_>, timeout: f64) -> PyResult<String> {
        guard(|| {
            let (log, timeout_ms) = (self.usable()?, milliseconds(timeout)?);
            Self::wait_for(py, log, Self::last_seq(log), Durability::Sync, timeout_ms)?;
            let mut target = log.health();
            let text = sliced(py, timeout_ms, |slice_ms| {
                let now = log.health();
                if now.epoch != target.epoch {
                    // The old epoch's last checkpoint covers what was meant; this one's first entry has it.
                    target = now;
                }
                if log.wait_signed(target.durable_size.max(1), slice_ms)? { read_checkpoint(log) } else { Ok(None) }
            })?;
            text.ok_or_else(|| Self::late(log, "there is no checkpoint", timeout_ms))
        })
    }

    /// Waits until a record is as certain as that. Many wait for one write.
    ///
    /// Args:
    ///     seq: What `append` has returned.
    ///     durability: `"group"`: in the ring, which is at once; `"sync"`: on the disk; `"checkpointed"`: covered by a
    ///         signed checkpoint.
    ///     timeout: Seconds.
    ///
    /// Raises:
    ///     AuditError: The time is over, the disk refuses, or there is no such record.
    #[pyo3(signature = (seq, durability = "sync", timeout = 10.0))]
    fn wait(&self, py: Python<'_>, seq: u64, durability: &str, timeout: f64) -> PyResult<()> {
        guard(|| {
            self.expect(seq)?;
            let class = read_durability(durability)?;
            Self::wait_for(py, self.usable()?, seq, class, milliseconds(timeout)?)
        })
    }

    /// Erases what is private about an entry, and records that. The entry stays, and every proof of it.
    ///
    /// Args:
    ///     index: The entry's place in this epoch, from 0.
    ///     timeout: Seconds; a signal is looked at when they are over.
    ///
    /// Raises:
    ///     AuditError: There is no such entry, or nothing private of it.
    #[pyo3(signature = (index, timeout = 10.0))]
    fn erase(&self, py: Python<'_>, index: u64, timeout: f64) -> PyResult<()> {
        guard(|| {
            let (log, timeout_ms) = (self.usable()?, milliseconds(timeout)?);
            Ok::<_, PyErr>(py.detach(|| log.erase(index, timeout_ms)).map_err(Error::from)?)
        })
    }

    /// Ends this epoch and begins the next, whose first entry names the old origin, size and root. The files of the old
    /// one move to `epochs`.
    ///
    /// Args:
    ///     timeout: Seconds; a signal is looked at when they are over.
    ///
    /// Raises:
    ///     AuditError: The disk refuses.
    #[pyo3(signature = (timeout = 10.0))]
    fn rotate(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        guard(|| {
            let (log, timeout_ms) = (self.usable()?, milliseconds(timeout)?);
            Ok::<_, PyErr>(py.detach(|| log.rotate(timeout_ms)).map_err(Error::from)?)
        })
    }

    /// How the log is doing: `origin`, `epoch`, `durable_size`, `checkpoint_size`, `pending` (records that are not on
    /// the disk), `ring_bytes`, `ring_used_bytes`, `sync_max_us` (the slowest write so far), `failure` (why records do
    /// not get to the disk, or no checkpoint is signed), `exported`.
    #[pyo3(signature = () -> "dict[str, typing.Any]")]
    fn health<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        guard(|| {
            let health = self.usable()?.health();
            let dict = PyDict::new(py);
            dict.set_item("pending", pending(&health))?;
            let Health { origin, epoch, durable_size, checkpoint_size, ring_bytes, sync_max_us, failure, .. } = health;
            dict.set_item("origin", origin)?;
            dict.set_item("epoch", epoch)?;
            dict.set_item("durable_size", durable_size)?;
            dict.set_item("checkpoint_size", checkpoint_size)?;
            dict.set_item("ring_bytes", ring_bytes.1)?;
            dict.set_item("ring_used_bytes", ring_bytes.0)?;
            dict.set_item("sync_max_us", sync_max_us)?;
            dict.set_item("failure", failure)?;
            dict.set_item("exported", health.exported)?;
            Ok::<_, PyErr>(dict)
        })
    }

    /// What the log calls itself in this epoch.
    #[getter]
    fn origin(&self) -> PyResult<String> {
        guard(|| Ok::<_, Error>(self.here()?.health().origin))
    }

    /// The public key of this epoch, as C2SP writes verifier keys.
    #[getter]
    fn verifier_key(&self) -> PyResult<String> {
        guard(|| Ok::<_, Error>(self.here()?.verifier_key()))
    }

    /// The folder of the log.
    #[getter]
    fn folder(&self) -> &Path {
        self.log.folder()
    }

    /// Entries of this epoch, with those that are not on the disk yet.
    #[getter]
    fn size(&self) -> PyResult<u64> {
        guard(|| {
            let health = self.here()?.health();
            Ok::<_, Error>(health.durable_size.saturating_add(pending(&health)))
        })
    }

    /// Entries of this epoch that are on the disk.
    #[getter]
    fn durable_size(&self) -> PyResult<u64> {
        guard(|| Ok::<_, Error>(self.here()?.health().durable_size))
    }

    /// Whether a record is as certain as that; also of a log that was closed since, for those who wait.
    #[pyo3(name = "_is_durable")]
    fn is_durable(&self, seq: u64, durability: &str) -> PyResult<bool> {
        guard(|| Ok::<_, Error>(self.here()?.is_durable(seq, read_durability(durability)?)?))
    }

    /// Asks for everything to become as certain as that soon.
    #[pyo3(name = "_request")]
    fn request(&self, durability: &str) -> PyResult<()> {
        guard(|| {
            self.here()?.request(read_durability(durability)?);
            Ok::<_, Error>(())
        })
    }

    /// Refuses a handle that cannot be used, and a number that no record has yet.
    #[pyo3(name = "_expect")]
    fn expect(&self, seq: u64) -> PyResult<()> {
        guard(|| {
            let last = Self::last_seq(self.usable()?);
            if seq > last {
                return Err(invalid(format!("there is no record {seq}; the last one is {last}")));
            }
            Ok(())
        })
    }

    /// What an event loop waits with.
    #[pyo3(name = "_watch")]
    fn watch(&self) -> PyResult<PyAuditWatch> {
        guard(|| Ok::<_, Error>(PyAuditWatch { descriptor: self.here()?.watch()?, born: self.born }))
    }

    /// Takes no more entries, brings everything to the disk, signs the last checkpoint and lets go of the folder.
    /// Closing twice is the same as once; of an inherited log nothing is touched.
    ///
    /// Raises:
    ///     AuditError: The disk refuses, or a file is gone; what is in the ring is recovered by the next opening.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        guard(|| {
            if !self.born.is_here() || self.closed.swap(true, Ordering::Relaxed) {
                return Ok(());
            }
            Ok::<_, Error>(py.detach(|| self.log.close())?)
        })
    }

    /// Whether `close` was called.
    #[getter]
    fn closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exc: "object") -> "None")]
    fn __exit__(slf: &Bound<'_, Self>, _exc: &Bound<'_, PyTuple>) -> PyResult<()> {
        // By name: a subclass may have more to close.
        slf.call_method0(pyo3::intern!(slf.py(), "close")).map(drop)
    }

    fn __repr__(&self) -> String {
        format!("<AuditLog in {}{}>", self.log.folder().display(), if self.closed() { ", closed" } else { "" })
    }
}

impl Drop for PyAuditLog {
    fn drop(&mut self) {
        if !self.born.is_here() {
            return;
        }
        let close = || drop(self.log.close());
        // Closing waits for the disk, and nobody else should. Where the interpreter is ending there is nobody else.
        if Python::try_attach(|py| py.detach(close)).is_none() {
            close();
        }
    }
}

/// Records that are not on the disk.
const fn pending(health: &Health) -> u64 {
    health.next_seq.saturating_sub(1).saturating_sub(health.durable_seq)
}

/// Puts a record into the ring, waiting for room where there is none.
fn publish(py: Python<'_>, log: &Log, record: &Record<'_>, timeout_ms: u64) -> PyResult<u64> {
    let unfit = || AuditError::Unavailable { message: "the record does not fit its claim".to_owned() };
    let bytes = LogClaim::bytes_for(record);
    match log.claim(bytes) {
        Ok(claim) => {
            let seq = claim.seq();
            return if claim.publish(record) { Ok(seq) } else { Err(Error::from(unfit()).into()) };
        }
        Err(Refused::Full) if timeout_ms > 0 => {}
        Err(refused) => return Err(Error::from(log.error(refused)).into()),
    }
    let published = sliced(py, timeout_ms, |slice_ms| match log.claim_within(bytes, slice_ms) {
        Ok(claim) => {
            let seq = claim.seq();
            if claim.publish(record) { Ok(Some(seq)) } else { Err(unfit()) }
        }
        Err(Refused::Full) => Ok(None),
        Err(refused) => Err(log.error(refused)),
    })?;
    published.ok_or_else(|| Error::from(log.error(Refused::Full)).into())
}

/// The text of the current checkpoint; `None` while a rotation has moved it away.
fn read_checkpoint(log: &Log) -> Result<Option<String>, AuditError> {
    let path = log.folder().join("checkpoint");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::thread::sleep(Duration::from_millis(1));
            Ok(None)
        }
        Err(source) => Err(AuditError::Io { what: "cannot read", path, source }),
    }
}

/// Makes the key that signs a log's checkpoints, in a file that must not be there.
///
/// Args:
///     path: The file of the key.
///     origin: What the log calls itself.
///
/// Returns:
///     The public half, as C2SP writes verifier keys.
///
/// Raises:
///     AuditError: The file is there or cannot be written, or the origin cannot be one.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "what arguments are extracted to")]
pub(crate) fn audit_keygen(path: PathBuf, origin: &str) -> PyResult<String> {
    guard(|| {
        check_origin(origin)?;
        let signer = Ed25519Signer::generate(&path)?;
        Ok::<_, Error>(verifier_key(origin, &signer))
    })
}
