//! The one way into the core. No panic reaches Python except as `InternalError`: the exception that the binding
//! library would raise instead is not an `Exception`, so the host's handlers would miss it.
//!
//! On standard error a panic leaves one line that says where it happened. Its message is left out: it may hold a piece of
//! what was being checked.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::Once;

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

/// Has panics of this module say where they happened, and nothing else. Done with the first handle.
///
/// The hook is this module's own, because the standard library is linked into it: other Rust in the process keeps its
/// own.
pub(crate) fn withhold_messages() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        set_hook(Box::new(|panic| {
            let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
            // Standard error may be closed; whatever panicked denies all the same.
            let _ = writeln!(std::io::stderr(), "tollkeeper: internal error at {place}; please report it");
        }));
    });
}
