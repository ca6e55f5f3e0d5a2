//! `Control`: what the gates of a host share, for those who operate them: revocations, approvals, counters.
//!
//! Converts and calls; who may do any of this is not decided here.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use tollkeeper_core::audit::note::{Ed25519Signer, Signer as _};
use tollkeeper_core::gate::approve;
use tollkeeper_core::gate::code::Code;
use tollkeeper_core::gate::control::{ApprovalId, ApprovalRow, Control, CountersRow, Revoked, Target, TargetKind};

use crate::errors::Error;
use crate::fork::Born;
use crate::guard::guard;

/// What the gates of a host share: one mapped file, or memory of this process.
#[pyclass(frozen, name = "Control", module = "tollkeeper._native")]
pub(crate) struct PyControl {
    inner: Arc<Control>,
    born: Born,
}

impl PyControl {
    pub(crate) fn of(inner: Arc<Control>) -> Self {
        Self { inner, born: Born::now() }
    }

    pub(crate) const fn inner(&self) -> &Arc<Control> {
        &self.inner
    }
}

fn target(kind: &str, name: &str) -> PyResult<Target> {
    let kind = match kind {
        "principal" => TargetKind::Principal,
        "tool" => TargetKind::Tool,
        "session" => TargetKind::Session,
        "everything" => TargetKind::Everything,
        other => return Err(PyValueError::new_err(format!("{other:?} is no principal, tool, session or everything"))),
    };
    Ok(Target::new(kind, name))
}

fn approval_id(text: &str) -> PyResult<ApprovalId> {
    let known = (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
    known
        .map(ApprovalId)
        .ok_or_else(|| PyValueError::new_err(format!("{text:?} is no id of an approval: 16 hex digits")))
}

fn digest_arg(digest: &[u8]) -> PyResult<[u8; 32]> {
    digest.try_into().map_err(|_| PyValueError::new_err("a digest has 32 bytes"))
}

#[pymethods]
impl PyControl {
    /// Opens the file, and makes it if there is none.
    ///
    /// Args:
    ///     file: Its path, such as `state/control.bin`. Its folder is made for this user only.
    ///     volatile: Take a file system that forgets everything at a restart.
    ///
    /// Raises:
    ///     StateError: It is no such file, is damaged, or cannot be used where it lies.
    #[staticmethod]
    #[pyo3(signature = (file: "str | os.PathLike[str]", *, volatile = false))]
    #[expect(clippy::needless_pass_by_value, reason = "what the argument is converted to")]
    fn open(py: Python<'_>, file: PathBuf, volatile: bool) -> PyResult<Self> {
        guard(|| py.detach(|| Control::open(&file, volatile)).map(Self::of).map_err(Error::from))
    }

    /// Path of the file; `None` for memory of this process.
    #[getter]
    fn path(&self) -> Option<PathBuf> {
        self.inner.path().map(std::path::Path::to_owned)
    }

    /// Counts the changes of the table of revocations.
    #[getter]
    fn generation(&self) -> u64 {
        self.inner.word() >> 1
    }

    /// Revokes a `"principal"`, `"tool"`, `"session"` or `"everything"`. When it returns, every later check of every
    /// process that shares the file denies, also after a restart.
    ///
    /// Returns:
    ///     The generation from which on it counts, and whether this call changed anything.
    fn revoke(
        &self,
        py: Python<'_>,
        kind: &str,
        name: &str,
        reason: &str,
        by: &str,
        now_ms: i64,
    ) -> PyResult<(u64, bool)> {
        let target = target(kind, name)?;
        guard(|| {
            self.born.check()?;
            let change = py.detach(|| self.inner.revoke(&target, reason, by, now_ms))?;
            Ok::<_, Error>((change.generation, change.changed))
        })
    }

    /// Takes a revocation back.
    fn restore(&self, py: Python<'_>, kind: &str, name: &str) -> PyResult<(u64, bool)> {
        let target = target(kind, name)?;
        guard(|| {
            self.born.check()?;
            let change = py.detach(|| self.inner.restore(&target))?;
            Ok::<_, Error>((change.generation, change.changed))
        })
    }

    /// What is revoked: `kind`, `name`, `reason`, `by`, `at_ms`, `generation`, `damage`.
    #[pyo3(signature = () -> "list[dict[str, typing.Any]]")]
    fn revocations<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.inner.revocations().list().iter().map(|revoked| revoked_dict(py, revoked)).collect()
    }

    /// Asks for an approval.
    ///
    /// Args:
    ///     id: 16 hex digits, chosen at random.
    ///     digest: SHA-256 of what is asked for.
    ///     expires_ms: When the question is void, in milliseconds since 1970.
    ///     now_ms: The time.
    fn ask(&self, py: Python<'_>, id: &str, digest: &[u8], expires_ms: i64, now_ms: i64) -> PyResult<()> {
        let (id, digest) = (approval_id(id)?, digest_arg(digest)?);
        guard(|| {
            self.born.check()?;
            py.detach(|| self.inner.ask(id, &digest, expires_ms, now_ms)).map_err(Error::from)
        })
    }

    /// Answers a question.
    ///
    /// Args:
    ///     id: Of the question.
    ///     granted: Whether the action may go ahead, once.
    ///     expires_ms: When the grant is void.
    ///     signature: Of [`Control.approval_message`], by a key that the gate knows.
    ///     now_ms: The time.
    #[pyo3(signature = (id, granted, expires_ms, signature: "bytes | None", now_ms))]
    fn answer(
        &self,
        py: Python<'_>,
        id: &str,
        granted: bool,
        expires_ms: i64,
        signature: Option<&[u8]>,
        now_ms: i64,
    ) -> PyResult<()> {
        let id = approval_id(id)?;
        let signature =
            signature.map(|bytes| bytes.try_into().map_err(|_| PyValueError::new_err("a signature has 64 bytes")));
        let signature = signature.transpose()?;
        guard(|| {
            self.born.check()?;
            py.detach(|| self.inner.answer(id, granted, expires_ms, signature, now_ms)).map(drop).map_err(Error::from)
        })
    }

    /// What whoever grants signs.
    #[staticmethod]
    fn approval_message<'py>(
        py: Python<'py>,
        id: &str,
        digest: &[u8],
        expires_ms: i64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &approve::message(approval_id(id)?, &digest_arg(digest)?, expires_ms)))
    }

    /// Every question that is kept: `id`, `number`, `digest`, `state`, `asked_ms`, `expires_ms`, `answered_ms`,
    /// `grant_expires_ms`.
    #[pyo3(signature = (now_ms) -> "list[dict[str, typing.Any]]")]
    fn approvals<'py>(&self, py: Python<'py>, now_ms: i64) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.inner.approvals(now_ms).iter().map(|row| approval_dict(py, row)).collect()
    }

    /// Counts what happened to approvals, to be given to `wait_approvals`.
    fn approvals_count(&self) -> u32 {
        self.inner.approvals_word().load(std::sync::atomic::Ordering::Acquire)
    }

    /// Waits, without the interpreter's lock, until something happens to an approval or the time is over.
    fn wait_approvals(&self, py: Python<'_>, seen: u32, timeout_ms: u64) {
        py.detach(|| self.inner.wait_approvals(seen, timeout_ms));
    }

    /// Every gate of the host: `pid`, `alive`, `started_ms`, `bundle`, `shadow`, `generation`, `codes`, `timed`, `p50_ns`,
    /// `p99_ns`, `p999_ns`, `max_ns`, `histogram` (from, below, count). One that died is among them until another takes
    /// its place.
    #[pyo3(signature = () -> "list[dict[str, typing.Any]]")]
    fn gates<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.inner.gates().iter().map(|gate| row(py, gate)).collect()
    }

    /// What all gates that are gone have counted, as one of [`Control.gates`].
    #[pyo3(signature = () -> "dict[str, typing.Any]")]
    fn retired<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        row(py, &self.inner.retired())
    }

    /// Labels that any session has been given.
    fn labels(&self) -> Vec<String> {
        self.inner.labels().iter().map(ToString::to_string).collect()
    }

    /// Labels that every session without a place of its own has, because the table of sessions is full.
    fn overflow(&self) -> Vec<String> {
        let mask = self.inner.overflow();
        let labels = self.inner.labels();
        labels
            .iter()
            .zip(0_u32..)
            .filter(|(_, bit)| (mask >> bit) & 1 == 1)
            .map(|(label, _)| label.to_string())
            .collect()
    }
}

fn revoked_dict<'py>(py: Python<'py>, revoked: &Revoked) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("kind", revoked.target.kind.name())?;
    dict.set_item("name", &*revoked.target.name)?;
    dict.set_item("reason", &*revoked.reason)?;
    dict.set_item("by", &*revoked.by)?;
    dict.set_item("at_ms", revoked.at_ms)?;
    dict.set_item("generation", revoked.generation)?;
    dict.set_item("damage", revoked.damage)?;
    Ok(dict)
}

fn approval_dict<'py>(py: Python<'py>, row: &ApprovalRow) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("id", row.id.to_string())?;
    dict.set_item("number", row.number)?;
    dict.set_item("digest", PyBytes::new(py, &row.digest))?;
    dict.set_item("state", row.state.name())?;
    dict.set_item("asked_ms", row.asked_ms)?;
    dict.set_item("expires_ms", row.expires_ms)?;
    dict.set_item("answered_ms", row.answered_ms)?;
    dict.set_item("grant_expires_ms", row.grant_expires_ms)?;
    Ok(dict)
}

/// The private key of somebody who administers. It is never shown, and only its file holds it.
#[pyclass(frozen, name = "AdminKey", module = "tollkeeper._native")]
pub(crate) struct PyAdminKey {
    signer: Ed25519Signer,
}

#[pymethods]
impl PyAdminKey {
    /// Reads a key, Ed25519 in PKCS#8 PEM, as `tollkeeper audit keygen` writes it.
    ///
    /// Args:
    ///     file: Its path.
    ///
    /// Raises:
    ///     AuditError: The file cannot be read, others may read it, or it holds no such key.
    #[staticmethod]
    #[pyo3(signature = (file: "str | os.PathLike[str]"))]
    fn load(py: Python<'_>, file: PathBuf) -> PyResult<Self> {
        guard(move || {
            let signer = py.detach(move || Ed25519Signer::load(&file))?;
            Ok::<_, Error>(Self { signer })
        })
    }

    /// The public half, 32 bytes.
    #[getter]
    fn public<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.signer.public_key().1)
    }

    /// Signs a message.
    ///
    /// Returns:
    ///     64 bytes.
    fn sign<'py>(&self, py: Python<'py>, message: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        guard(|| Ok::<_, Error>(PyBytes::new(py, &self.signer.sign(message)?)))
    }

    #[expect(clippy::unused_self, reason = "nothing of the key is shown")]
    const fn __repr__(&self) -> &'static str {
        "<AdminKey>"
    }
}

/// What one gate has counted.
pub(crate) fn row<'py>(py: Python<'py>, row: &CountersRow) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("pid", row.pid)?;
    dict.set_item("alive", row.alive)?;
    dict.set_item("started_ms", row.started_ms)?;
    dict.set_item("bundle", PyBytes::new(py, &row.bundle))?;
    dict.set_item("shadow", row.shadow)?;
    dict.set_item("generation", row.generation)?;
    let codes = PyDict::new(py);
    for (code, count) in Code::ALL.iter().zip(row.codes).filter(|(_, count)| *count > 0) {
        codes.set_item(code.slug(), count)?;
    }
    dict.set_item("codes", codes)?;
    dict.set_item("timed", row.timed)?;
    dict.set_item("p50_ns", row.p50_ns)?;
    dict.set_item("p99_ns", row.p99_ns)?;
    dict.set_item("p999_ns", row.p999_ns)?;
    dict.set_item("max_ns", row.max_ns)?;
    dict.set_item("histogram", &row.histogram)?;
    Ok(dict)
}
