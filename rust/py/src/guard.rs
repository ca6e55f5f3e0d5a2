//! The one way into the core. No panic reaches Python except as `InternalError`: the exception that the binding
//! library would raise instead is not an `Exception`, so the host's handlers would miss it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::{PyErr, PyResult};

use crate::errors::Error;

/// Runs `call`; a panic inside becomes the error `internal.panic`.
///
/// The caller has to poison whatever `call` could have left half done: the guard knows no handle.
#[inline]
pub(crate) fn guard<T, E: Into<PyErr>>(call: impl FnOnce() -> Result<T, E>) -> PyResult<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(Error::Panic.into()),
    }
}
