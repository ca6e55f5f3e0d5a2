//! Private functions the tests and the benchmarks look through, and the facts about this build.

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyString};
use tollkeeper_core::arguments::{Argument, ArgumentRef};
use tollkeeper_core::limits::ARGUMENT_BYTES_MAX;

use crate::convert::with_arguments;
use crate::decision::PyDecision;
use crate::errors::Error;
use crate::fork::{Born, generation};
use crate::gate::PyGate;
use crate::guard::guard;
use crate::uid::uid_arg;

/// What stands for an integer beyond 64 bits in the echo; nothing else comes back as an ellipsis.
fn echo<'py>(py: Python<'py>, node: ArgumentRef<'_>) -> PyResult<Bound<'py, PyAny>> {
    Ok(match node.value() {
        Argument::Null => py.None().into_bound(py),
        Argument::Bool(value) => value.into_pyobject(py)?.to_owned().into_any(),
        Argument::Long(value) => value.into_pyobject(py)?.into_any(),
        Argument::Float(value) => value.into_pyobject(py)?.into_any(),
        Argument::Decimal(units) => ("decimal", units).into_pyobject(py)?.into_any(),
        Argument::Str(value) => PyString::new(py, value).into_any(),
        Argument::List => {
            let list = PyList::empty(py);
            for (_, child) in node.children() {
                list.append(echo(py, child)?)?;
            }
            list.into_any()
        }
        Argument::Object => {
            let dict = PyDict::new(py);
            for (name, child) in node.children() {
                dict.set_item(name, echo(py, child)?)?;
            }
            dict.into_any()
        }
        Argument::Unrepresentable => py.Ellipsis().into_bound(py),
    })
}

/// Takes the snapshot of `arguments` and gives it back as Python data; an integer beyond 64 bits becomes `...`.
#[pyfunction(name = "_echo_arguments")]
#[pyo3(signature = (arguments: "object", /) -> "object")]
pub(crate) fn echo_arguments<'py>(arguments: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let py = arguments.py();
        with_arguments(arguments, ARGUMENT_BYTES_MAX, |snapshot| match snapshot.root() {
            Some(root) => echo(py, root),
            None => Ok(py.None().into_bound(py)),
        })
        .map_err(Error::from)?
    })
}

/// Takes the snapshot of `arguments` and returns the bytes charged for it.
#[pyfunction(name = "_measure_arguments")]
#[pyo3(signature = (arguments: "object", /))]
pub(crate) fn measure_arguments(arguments: &Bound<'_, PyAny>) -> PyResult<usize> {
    guard(|| {
        with_arguments(arguments, ARGUMENT_BYTES_MAX, tollkeeper_core::arguments::Arguments::bytes).map_err(Error::from)
    })
}

/// Reads a uid argument, a handle or its text, and returns the text.
#[pyfunction(name = "_echo_uid")]
#[pyo3(signature = (uid: "EntityUid | str", /))]
pub(crate) fn echo_uid(uid: &Bound<'_, PyAny>) -> PyResult<String> {
    guard(|| uid_arg(uid).map(|uid| uid.to_string()))
}

/// The fork generation of this process, with the hook in place.
#[pyfunction(name = "_fork_generation")]
pub(crate) fn fork_generation() -> u64 {
    let _ = Born::now();
    generation()
}

/// Panics, to show what becomes of it.
#[pyfunction(name = "_panic_on_purpose")]
#[expect(clippy::panic, reason = "that is what it is for")]
pub(crate) fn panic_on_purpose() -> PyResult<()> {
    crate::guard::withhold_messages();
    guard(|| -> PyResult<()> { panic!("on purpose") })
}

/// Makes one check of a gate panic, to show what becomes of the gate: it denies from then on, which whoever has the handle
/// can have with `close` as well. Returns the decision.
#[pyfunction(name = "_panic_in_check")]
#[pyo3(signature = (gate: "Gate", /))]
pub(crate) fn panic_in_check(gate: &Bound<'_, PyGate>) -> PyResult<PyDecision> {
    PyGate::check_that_panics(gate)
}

/// Refuses every interpreter of the process but the one that called it first: classes and objects that are kept here would
/// cross from one to the other.
#[pyfunction(name = "_claim_interpreter")]
pub(crate) fn claim_interpreter(py: Python<'_>) -> PyResult<()> {
    // Each interpreter has modules of its own, in a dict that lives as long as it does.
    static HOME: PyOnceLock<usize> = PyOnceLock::new();
    let modules = py.import("sys")?.getattr("modules")?.as_ptr() as usize;
    if *HOME.get_or_init(py, || modules) == modules {
        return Ok(());
    }
    Err(PyImportError::new_err(
        "tollkeeper serves one interpreter of a process, and another one has it already: import it in the main \
         interpreter only, or use processes",
    ))
}

/// Tells how this module was built: `version`, `profile` (`release` or `debug`) and `abi` (`abi3` or `native`).
#[pyfunction]
#[pyo3(signature = () -> "dict[str, str]")]
pub(crate) fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
    info.set_item("abi", if cfg!(feature = "abi3") { "abi3" } else { "native" })?;
    Ok(info)
}
