//! The Python binding: converts, calls, maps errors. Decides nothing.
//!
//! | file | what it is for |
//! |---|---|
//! | `guard` | the one way into the core: a panic becomes `InternalError` |
//! | `fork` | a handle knows whether it was inherited through a fork |
//! | `errors` | the one mapping from the core's errors to Python's exceptions |
//! | `convert` | Python arguments to the core's snapshot |
//! | `policy`, `batch`, `entities` | the policy room: sets, contexts, answers; many at once; the entity store |
//! | `gate`, `scope`, `decision`, `model_call` | the gate: checks; runs; answers; calls of models |
//! | `many` | many calls of one tool at once |
//! | `control` | what the gates of a host share, for those who operate them |
//! | `budget`, `hold`, `meter` | the budget room: ledgers and clocks; holds and denials; the meter of an engine |
//! | `verify` | the audit room's reading side: logs, entries, verification, proofs |
//! | `audit`, `json` | the audit room: a log that is written; values as JSON text |
//! | `uid` | `EntityUid`, and arguments that are a uid or its text |
//! | `probe` | private functions the tests look through |
//!
//! A room adds its own file and one `pymodule_export` line below. There is no module initialiser: with one, the stub
//! generator could no longer promise that the stub is complete; and nothing may start a thread at import.

#![expect(
    clippy::doc_markdown,
    clippy::doc_link_with_quotes,
    reason = "the documentation of what is exported becomes Python docstrings"
)]

mod audit;
mod batch;
mod budget;
mod control;
mod convert;
mod decision;
mod entities;
mod errors;
mod fork;
mod gate;
mod guard;
mod hold;
mod json;
mod many;
mod meter;
mod model_call;
mod policy;
mod probe;
mod scope;
mod uid;
mod verify;

/// The native half of the package. Import from `tollkeeper`, not from here.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::uid::PyEntityUid;

    #[pymodule_export]
    use super::entities::{PyEntities, PyEntity};

    #[pymodule_export]
    use super::gate::{PyAction, PyGate, decision_codes, end_tracing, tool_pin};

    #[pymodule_export]
    use super::decision::PyDecision;

    #[pymodule_export]
    use super::many::PyDecisions;

    #[pymodule_export]
    use super::scope::PyScope;

    #[pymodule_export]
    use super::control::{PyAdminKey, PyControl};

    #[pymodule_export]
    use super::model_call::PyModelCall;

    #[pymodule_export]
    use super::budget::{PyFakeClock, PyLedger, PyUsage};

    #[pymodule_export]
    use super::hold::{PyDenial, PyHold};

    #[pymodule_export]
    use super::meter::PyMeter;

    #[pymodule_export]
    use super::audit::{PyAuditLog, PyAuditWatch, audit_keygen};

    #[pymodule_export]
    use super::batch::PyBatchAnswer;

    #[pymodule_export]
    use super::policy::{PyAnswer, PyContext, PyEvaluationError, PyPolicySet};

    #[pymodule_export]
    use super::verify::{
        PyAuditEntries, PyAuditReader, audit_check_consistency, audit_check_inclusion, audit_check_proof, audit_logs,
        audit_prove, audit_verify,
    };

    #[pymodule_export]
    use super::probe::{
        build_info, claim_interpreter, echo_arguments, echo_uid, fork_generation, measure_arguments, panic_in_check,
        panic_on_purpose,
    };
}
