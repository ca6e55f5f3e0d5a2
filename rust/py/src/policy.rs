//! `PolicySet`, `Context` and `Answer`: one call into the policy room.
//!
//! Arguments are taken as they come (handles or text, a prepared context or a mapping) and nothing is decided here.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};
use tollkeeper_core::arguments::{Argument, Arguments};
use tollkeeper_core::limits::{ARGUMENT_BYTES_MAX, ARGUMENT_BYTES_WAIT_MAX};
use tollkeeper_core::policy::entities::{Entities, context_from_json, context_from_json_with_schema};
use tollkeeper_core::policy::error::PolicyErrors;
use tollkeeper_core::policy::eval::Request;
use tollkeeper_core::policy::explain::{self, Axes, Explanation, Outcome};
use tollkeeper_core::policy::parse::{self, Source};
use tollkeeper_core::policy::set::{self, Decision, Ids, LoadOptions, Mode, PolicySet, Scratch};
use tollkeeper_core::value::{Val, Value};

use crate::batch::{self, PyBatchAnswer};
use crate::convert::{fill, with_arguments};
use crate::entities::PyEntities;
use crate::errors::Error;
use crate::guard::guard;
use crate::uid::uid_arg;

thread_local! {
    /// The evaluator's buffers of this thread; empty while they are in use.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// The store of a request that names none.
static NO_ENTITIES: LazyLock<Entities> = LazyLock::new(Entities::empty);

/// Lends this thread's buffers.
#[inline]
pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let result = work(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}

/// Text given directly or as the file it stands in.
pub(crate) struct TextArg {
    /// The file, where there is one
    pub(crate) name: Option<String>,
    /// The text
    pub(crate) text: String,
}

impl TextArg {
    /// A `str` is text; anything with `__fspath__` is a file.
    pub(crate) fn read(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(text) = value.cast::<PyString>() {
            return Ok(Self { name: None, text: text.to_str()?.to_owned() });
        }
        let path: PathBuf = value.extract().map_err(|_| {
            PyTypeError::new_err(format!(
                "expected text as str or a file as pathlib.Path, got {}",
                value.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string())
            ))
        })?;
        let name = path.display().to_string();
        let bytes = std::fs::read(&path).map_err(|error| with_file(&error, &path))?;
        let text = parse::decode(&bytes, Some(&name)).map_err(Error::from)?.to_owned();
        Ok(Self { name: Some(name), text })
    }

    /// As the core wants it.
    pub(crate) fn source(&self) -> Source<'_> {
        Source { name: self.name.as_deref(), text: &self.text }
    }
}

/// The builtin exception of the operating system's error, with the file's name as Python has it.
fn with_file(error: &std::io::Error, path: &std::path::Path) -> PyErr {
    match error.raw_os_error() {
        Some(number) => pyo3::exceptions::PyOSError::new_err((
            number,
            error.to_string().split(" (os error").next().unwrap_or_default().to_owned(),
            path.display().to_string(),
        )),
        None => pyo3::exceptions::PyOSError::new_err(format!("{error}: {}", path.display())),
    }
}

/// A list of texts or files, or one of them.
fn texts(value: &Bound<'_, PyAny>) -> PyResult<Vec<TextArg>> {
    match value.cast::<PyList>() {
        Ok(list) => list.iter().map(|item| TextArg::read(&item)).collect(),
        Err(_) => Ok(vec![TextArg::read(value)?]),
    }
}

/// A compiled set of Cedar policies. Immutable and safe to share between threads.
///
/// Example:
///     >>> from tollkeeper import PolicySet
///     >>> policies = PolicySet.from_cedar('permit(principal, action == Action::"read", resource);')
///     >>> policies.decide('User::"alice"', 'Action::"read"', 'File::"a"').decision
///     'allow'
#[pyclass(frozen, name = "PolicySet", module = "tollkeeper")]
pub(crate) struct PyPolicySet {
    /// Shared with gates that use the set
    pub(crate) inner: Arc<PolicySet>,
}

#[pymethods]
impl PyPolicySet {
    /// Parses, validates where a schema is given, compiles and indexes.
    ///
    /// Args:
    ///     source: Cedar policies as `str`, a file as `pathlib.Path`, or a list of them.
    ///     schema: A Cedar schema, Cedar syntax or JSON, as `str` or `Path`; policies are validated strictly.
    ///     ids: `"positional"` names policies `policy0`, `policy1`, ... as Cedar does; `"annotation"` by `@id`, else
    ///         by file name and ordinal.
    ///
    /// Raises:
    ///     PolicyError: With file, line, column and help for each finding.
    ///     OSError: A file cannot be read.
    #[staticmethod]
    #[pyo3(signature = (source: "str | os.PathLike[str] | list[str | os.PathLike[str]]", schema: "str | os.PathLike[str] | None" = None, *, ids: "str" = "positional"))]
    fn from_cedar(source: &Bound<'_, PyAny>, schema: Option<&Bound<'_, PyAny>>, ids: &str) -> PyResult<Self> {
        let ids = match ids {
            "positional" => Ids::Positional,
            "annotation" => Ids::Annotation,
            other => {
                return Err(PyValueError::new_err(format!("ids is {other:?}, not \"positional\" or \"annotation\"")));
            }
        };
        let texts = texts(source)?;
        let schema = schema.map(TextArg::read).transpose()?;
        let options = LoadOptions { ids, ..LoadOptions::default() };
        guard(|| {
            let sources: Vec<Source<'_>> = texts.iter().map(TextArg::source).collect();
            let schema = schema.as_ref().map(TextArg::source);
            let inner = detached(|| PolicySet::load(&sources, schema.as_ref(), options))?;
            Ok::<_, PyErr>(Self { inner: Arc::new(inner) })
        })
    }

    /// Answers one request.
    ///
    /// Args:
    ///     principal: `EntityUid` or its text, `'User::"alice"'`.
    ///     action: The same.
    ///     resource: The same.
    ///     context: A prepared `Context`, or a mapping of plain data that becomes the context record; `None` is empty.
    ///     entities: The entity store; `None` is empty.
    ///     decision_only: Stop at the first policy that settles the decision; `reasons` and `errors` are then not
    ///         complete.
    ///
    /// Raises:
    ///     EntityError: A uid cannot be read.
    ///     ArgumentsError: The mapping is not plain data, or too large.
    #[pyo3(signature = (principal: "EntityUid | str", action: "EntityUid | str", resource: "EntityUid | str", context: "Context | dict[str, typing.Any] | None" = None, entities: "Entities | None" = None, *, decision_only = false))]
    fn decide(
        slf: PyRef<'_, Self>,
        principal: &Bound<'_, PyAny>,
        action: &Bound<'_, PyAny>,
        resource: &Bound<'_, PyAny>,
        context: Option<&Bound<'_, PyAny>>,
        entities: Option<&Bound<'_, PyEntities>>,
        decision_only: bool,
    ) -> PyResult<PyAnswer> {
        let mode = if decision_only { Mode::DecisionOnly } else { Mode::Full };
        let answer = guard(|| {
            let (principal, action, resource) = (uid_arg(principal)?, uid_arg(action)?, uid_arg(resource)?);
            let entities = entities.map_or(&*NO_ENTITIES, |entities| &entities.get().inner);
            with_context(context, |context| {
                let request = Request { principal: &principal, action: &action, resource: &resource, context };
                with_scratch(|scratch| slf.inner.decide(&request, entities, scratch, mode))
            })
        })?;
        Ok(PyAnswer { answer, policies: slf.into() })
    }

    /// Answers many requests in one call, with the interpreter's lock released.
    ///
    /// Each column is a list of distinct values with an index array of one row per request; without an index array the
    /// values are the rows themselves, and a single value stands in every row.
    ///
    /// Args:
    ///     principals: Uids, handles or text.
    ///     actions: The same.
    ///     resources: The same.
    ///     contexts: Prepared contexts or mappings.
    ///     entities: The entity store; `None` is empty.
    ///     principal_index: Integers of shape (n,), uint32 for the least work; any integer dtype is accepted.
    ///     action_index: The same.
    ///     resource_index: The same.
    ///     context_index: The same.
    ///     detail: `"decisions"` stops at the policy that settles a request; `"counts"` adds how many reasons and
    ///         errors there are; `"policies"` adds which.
    ///     threads: Threads to decide on.
    ///
    /// Raises:
    ///     ValueError: Columns of different lengths, an index outside its table.
    ///     EntityError: A uid cannot be read.
    ///     ArgumentsError: A mapping is not plain data.
    #[pyo3(signature = (principals: "collections.abc.Iterable[EntityUid | str] | EntityUid | str", actions: "collections.abc.Iterable[EntityUid | str] | EntityUid | str", resources: "collections.abc.Iterable[EntityUid | str] | EntityUid | str", contexts: "collections.abc.Iterable[Context | dict[str, typing.Any]] | Context | dict[str, typing.Any]", entities: "Entities | None" = None, *, principal_index: "typing.Any" = None, action_index: "typing.Any" = None, resource_index: "typing.Any" = None, context_index: "typing.Any" = None, detail: "str" = "decisions", threads = 1))]
    #[expect(clippy::too_many_arguments, reason = "one for each column and its index")]
    fn decide_many<'py>(
        &self,
        py: Python<'py>,
        principals: &Bound<'py, PyAny>,
        actions: &Bound<'py, PyAny>,
        resources: &Bound<'py, PyAny>,
        contexts: &Bound<'py, PyAny>,
        entities: Option<&Bound<'py, PyEntities>>,
        principal_index: Option<&Bound<'py, PyAny>>,
        action_index: Option<&Bound<'py, PyAny>>,
        resource_index: Option<&Bound<'py, PyAny>>,
        context_index: Option<&Bound<'py, PyAny>>,
        detail: &str,
        threads: usize,
    ) -> PyResult<PyBatchAnswer> {
        guard(|| {
            let entities = entities.map_or(&*NO_ENTITIES, |entities| &entities.get().inner);
            let principals = batch::uids(principals, principal_index)?;
            let actions = batch::uids(actions, action_index)?;
            let resources = batch::uids(resources, resource_index)?;
            let contexts = batch::contexts(contexts, context_index)?;
            batch::decide(py, &self.inner, entities, principals, actions, resources, contexts, detail, threads)
        })
    }

    /// Makes a new set with one more policy, linked from a template.
    ///
    /// Args:
    ///     template: Id of the template.
    ///     id: Id of the new policy.
    ///     principal: Value of `?principal`, if the template has it.
    ///     resource: Value of `?resource`, if the template has it.
    ///
    /// Raises:
    ///     PolicyError: No such template, an id that is taken, or a slot without a value.
    #[pyo3(signature = (template, id, *, principal: "EntityUid | str | None" = None, resource: "EntityUid | str | None" = None))]
    fn link(
        &self,
        template: &str,
        id: &str,
        principal: Option<&Bound<'_, PyAny>>,
        resource: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        guard(|| {
            let uid = |value: Option<&Bound<'_, PyAny>>| {
                value.map(|value| uid_arg(value).map(crate::uid::UidArg::into_owned)).transpose()
            };
            let inner = self.inner.link(template, id, uid(principal)?, uid(resource)?).map_err(Error::from)?;
            Ok::<_, PyErr>(Self { inner: Arc::new(inner) })
        })
    }

    /// The ids of the policies that can decide, in the order of their text.
    #[getter]
    fn ids(&self) -> Vec<&str> {
        self.inner.policies().iter().map(|body| &*body.id).collect()
    }

    /// The ids of the templates.
    #[getter]
    fn templates(&self) -> Vec<&str> {
        self.inner.templates().iter().map(|body| &*body.id).collect()
    }

    /// The annotations of a policy.
    ///
    /// Args:
    ///     id: Its id, as in `ids`.
    ///
    /// Raises:
    ///     KeyError: No policy has this id.
    #[pyo3(signature = (id) -> "dict[str, str]")]
    fn annotations<'py>(&self, py: Python<'py>, id: &str) -> PyResult<Bound<'py, PyDict>> {
        let policy = self.inner.policies().iter().position(|body| *body.id == *id);
        let policy = policy.ok_or_else(|| PyKeyError::new_err(id.to_owned()))?;
        annotations(py, &self.inner, u32::try_from(policy).unwrap_or(u32::MAX))
    }

    /// Where a policy stands: file (or `None`), line and column, from 1.
    ///
    /// Args:
    ///     id: Its id, as in `ids`.
    ///
    /// Raises:
    ///     KeyError: No policy has this id.
    #[pyo3(signature = (id) -> "tuple[str | None, int, int]")]
    fn place(&self, id: &str) -> PyResult<(Option<&str>, u32, u32)> {
        let policy = self.inner.policies().iter().position(|body| *body.id == *id);
        let policy = policy.ok_or_else(|| PyKeyError::new_err(id.to_owned()))?;
        Ok(self.inner.place(u32::try_from(policy).unwrap_or(u32::MAX)))
    }

    /// Says in words what a policy does, or every policy and template.
    ///
    /// Args:
    ///     id: Its id, as in `ids`; `None` for all.
    ///
    /// Raises:
    ///     KeyError: No policy has this id.
    #[pyo3(signature = (id = None))]
    fn explain(&self, id: Option<&str>) -> PyResult<String> {
        guard(|| {
            let Some(id) = id else { return Ok(explain::policies(&self.inner)) };
            let policy = self.inner.policies().iter().position(|body| *body.id == *id);
            let policy = policy.ok_or_else(|| PyKeyError::new_err(id.to_owned()))?;
            Ok::<_, PyErr>(explain::policy(&self.inner, u32::try_from(policy).unwrap_or(u32::MAX)))
        })
    }

    /// Says in words how a request is decided: the verdict, every policy whose scope matches with the condition that
    /// was or was not met, and for a denial the nearest permit and what it lacked. Values of the request are shown.
    ///
    /// Args:
    ///     principal: Uid, handle or text.
    ///     action: The same.
    ///     resource: The same.
    ///     context: A prepared `Context`, or a mapping of plain data; `None` is empty.
    ///     entities: The entity store; `None` is empty.
    ///
    /// Raises:
    ///     EntityError: A uid cannot be read.
    ///     ArgumentsError: The mapping is not plain data, or too large.
    #[pyo3(signature = (principal: "EntityUid | str", action: "EntityUid | str", resource: "EntityUid | str", context: "Context | dict[str, typing.Any] | None" = None, entities: "Entities | None" = None))]
    fn explain_request(
        &self,
        principal: &Bound<'_, PyAny>,
        action: &Bound<'_, PyAny>,
        resource: &Bound<'_, PyAny>,
        context: Option<&Bound<'_, PyAny>>,
        entities: Option<&Bound<'_, PyEntities>>,
    ) -> PyResult<String> {
        self.explained(principal, action, resource, context, entities).map(|explanation| explanation.to_string())
    }

    /// How each policy whose scope matches a request ends: `"satisfied"`, `"unsatisfied"` or `"error"`, by id.
    ///
    /// Args:
    ///     principal: Uid, handle or text.
    ///     action: The same.
    ///     resource: The same.
    ///     context: A prepared `Context`, or a mapping of plain data; `None` is empty.
    ///     entities: The entity store; `None` is empty.
    ///
    /// Raises:
    ///     EntityError: A uid cannot be read.
    ///     ArgumentsError: The mapping is not plain data, or too large.
    #[pyo3(signature = (principal: "EntityUid | str", action: "EntityUid | str", resource: "EntityUid | str", context: "Context | dict[str, typing.Any] | None" = None, entities: "Entities | None" = None) -> "dict[str, str]")]
    fn outcomes<'py>(
        &self,
        py: Python<'py>,
        principal: &Bound<'py, PyAny>,
        action: &Bound<'py, PyAny>,
        resource: &Bound<'py, PyAny>,
        context: Option<&Bound<'py, PyAny>>,
        entities: Option<&Bound<'py, PyEntities>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let explanation = self.explained(principal, action, resource, context, entities)?;
        let dict = PyDict::new(py);
        for candidate in &explanation.candidates {
            let outcome = match candidate.outcome {
                Outcome::Satisfied => "satisfied",
                Outcome::Unsatisfied(_) => "unsatisfied",
                Outcome::Error(_) => "error",
            };
            dict.set_item(self.inner.id(candidate.policy), outcome)?;
        }
        Ok(dict)
    }

    /// The compiled instructions of each policy and the buckets of the index.
    fn program(&self) -> PyResult<String> {
        guard(|| Ok::<_, PyErr>(explain::program(&self.inner)))
    }

    /// Principals' types and groups by actions: each cell allow, never, or when, with the conditions below.
    ///
    /// Args:
    ///     entities: The entity store, whose groups are rows; `None` is empty.
    #[pyo3(signature = (entities: "Entities | None" = None))]
    fn matrix(&self, entities: Option<&Bound<'_, PyEntities>>) -> PyResult<String> {
        guard(|| {
            let entities = entities.map_or(&*NO_ENTITIES, |entities| &entities.get().inner);
            let axes = Axes::found(&self.inner, entities);
            Ok::<_, PyErr>(explain::matrix(&self.inner, entities, axes).to_string())
        })
    }

    /// Warnings of the validator.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.inner.warnings().to_vec()
    }

    /// Approximate memory of the compiled set in bytes.
    #[getter]
    fn memory_bytes(&self) -> usize {
        self.inner.memory_bytes()
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }

    fn __repr__(&self) -> String {
        format!("<PolicySet of {} policies>", self.inner.len())
    }
}

impl PyPolicySet {
    fn explained(
        &self,
        principal: &Bound<'_, PyAny>,
        action: &Bound<'_, PyAny>,
        resource: &Bound<'_, PyAny>,
        context: Option<&Bound<'_, PyAny>>,
        entities: Option<&Bound<'_, PyEntities>>,
    ) -> PyResult<Explanation> {
        guard(|| {
            let (principal, action, resource) = (uid_arg(principal)?, uid_arg(action)?, uid_arg(resource)?);
            let entities = entities.map_or(&*NO_ENTITIES, |entities| &entities.get().inner);
            with_context(context, |context| {
                let request = Request { principal: &principal, action: &action, resource: &resource, context };
                explain::request(&self.inner, &request, entities)
            })
        })
    }
}

/// Loading takes long and touches no Python object.
pub(crate) fn detached<T: Send>(work: impl FnOnce() -> Result<T, PolicyErrors> + Send) -> PyResult<T> {
    Python::attach(|py| py.detach(work)).map_err(|errors| Error::from(errors).into())
}

pub(crate) fn annotations<'py>(py: Python<'py>, set: &PolicySet, policy: u32) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (key, value) in set.annotations(policy) {
        dict.set_item(&**key, &**value)?;
    }
    Ok(dict)
}

/// Calls `work` with the context as a record.
#[inline]
pub(crate) fn with_context<T>(context: Option<&Bound<'_, PyAny>>, work: impl FnOnce(Value<'_>) -> T) -> PyResult<T> {
    let Some(context) = context else { return Ok(work(Value::RecordTemp(&[]))) };
    if let Ok(prepared) = context.cast::<PyContext>() {
        return Ok(work(prepared.get().value()));
    }
    with_arguments(context, ARGUMENT_BYTES_MAX, |arguments| record(arguments).map(work)).map_err(Error::from)?
}

/// The snapshot's root, which must be an object.
fn record(arguments: &Arguments) -> PyResult<Value<'_>> {
    match arguments.root() {
        Some(root) if matches!(root.value(), Argument::Object) => Ok(Value::RecordArgs(root)),
        _ => Err(PyTypeError::new_err("the context must be a mapping with str keys")),
    }
}

/// The context of a request, prepared once and used many times.
///
/// `Context(mapping)` takes plain data; `Context.from_cedar_json(text)` reads Cedar's own JSON with its escapes for
/// entities and extension values, and is for trusted text only.
///
/// Example:
///     >>> from tollkeeper import Context
///     >>> context = Context({"path": "/srv/a"})
#[pyclass(frozen, name = "Context", module = "tollkeeper")]
pub(crate) struct PyContext {
    inner: ContextData,
}

enum ContextData {
    Owned(Val),
    Arguments(Box<Arguments>),
}

impl PyContext {
    /// Takes the snapshot of a mapping.
    pub(crate) fn from_mapping(mapping: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut arguments = Box::<Arguments>::default();
        fill(&mut arguments, mapping, ARGUMENT_BYTES_WAIT_MAX).map_err(Error::from)?;
        record(&arguments)?;
        Ok(Self { inner: ContextData::Arguments(arguments) })
    }

    #[inline]
    pub(crate) fn value(&self) -> Value<'_> {
        match &self.inner {
            ContextData::Owned(value) => value.as_value(),
            ContextData::Arguments(arguments) => arguments.root().map_or(Value::RecordTemp(&[]), Value::RecordArgs),
        }
    }
}

#[pymethods]
impl PyContext {
    #[new]
    #[pyo3(signature = (mapping: "dict[str, typing.Any]", /))]
    fn new(mapping: &Bound<'_, PyAny>) -> PyResult<Self> {
        guard(|| Self::from_mapping(mapping))
    }

    /// Reads Cedar's JSON form of a context: `__entity` and `__extn` are decoded.
    ///
    /// Never pass a model's arguments through this: they could name any entity they like.
    ///
    /// Args:
    ///     text: A JSON object.
    ///     schema: With it, `action` must be given, and declared types decide how values are read.
    ///     action: The action whose context this is.
    ///
    /// Raises:
    ///     ContextError: The text is not a context.
    #[staticmethod]
    #[pyo3(signature = (text, schema: "str | os.PathLike[str] | None" = None, *, action: "EntityUid | str | None" = None))]
    fn from_cedar_json(
        text: &str,
        schema: Option<&Bound<'_, PyAny>>,
        action: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let schema = schema.map(TextArg::read).transpose()?;
        guard(|| {
            let value = match (&schema, action) {
                (None, _) => context_from_json(text).map_err(Error::from)?,
                (Some(_), None) => return Err(PyTypeError::new_err("a schema needs the action whose context this is")),
                (Some(schema), Some(action)) => {
                    let action = uid_arg(action)?;
                    let parsed = parse::parse_schema(&schema.source()).map_err(Error::from)?;
                    context_from_json_with_schema(text, &parsed, &action).map_err(Error::from)?
                }
            };
            Ok(Self { inner: ContextData::Owned(value) })
        })
    }

    #[expect(clippy::unused_self, reason = "a method of the object")]
    fn __repr__(&self) -> &'static str {
        "<Context>"
    }
}

/// A policy that could not be evaluated.
#[pyclass(frozen, get_all, name = "EvaluationError", module = "tollkeeper")]
pub(crate) struct PyEvaluationError {
    /// Id of the policy.
    policy: String,
    /// What went wrong and where; no value of the request is in it.
    message: String,
}

#[pymethods]
impl PyEvaluationError {
    fn __repr__(&self) -> String {
        format!("EvaluationError(policy={:?}, message={:?})", self.policy, self.message)
    }
}

/// The answer to one request: decision, reasons, errors.
///
/// An answer has no truth value: `if answer:` raises, so nobody tests the object by accident.
#[pyclass(frozen, name = "Answer", module = "tollkeeper")]
pub(crate) struct PyAnswer {
    answer: set::Answer,
    policies: Py<PyPolicySet>,
}

#[pymethods]
impl PyAnswer {
    /// `"allow"` or `"deny"`.
    #[getter]
    fn decision<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        match self.answer.decision {
            Decision::Allow => pyo3::intern!(py, "allow"),
            Decision::Deny => pyo3::intern!(py, "deny"),
        }
    }

    /// Whether the decision is allow.
    #[getter]
    fn allowed(&self) -> bool {
        self.answer.decision == Decision::Allow
    }

    /// Ids of the satisfied policies of the deciding effect; empty when nothing permits.
    #[getter]
    fn reasons(&self) -> Vec<&str> {
        let set = &self.policies.get().inner;
        let mut all: Vec<u32> = self.answer.reasons.to_vec();
        all.sort_unstable();
        all.into_iter().map(|policy| set.id(policy)).collect()
    }

    /// The policies that erred, each with `.policy` and `.message`.
    #[getter]
    fn errors(&self) -> Vec<PyEvaluationError> {
        let set = &self.policies.get().inner;
        let faults = self.answer.errors(set);
        faults
            .iter()
            .map(|fault| PyEvaluationError {
                policy: set.id(fault.policy).to_owned(),
                message: set.fault_message(fault),
            })
            .collect()
    }

    /// The annotations of the reasons, by policy id.
    #[getter]
    fn annotations(&self) -> BTreeMap<&str, BTreeMap<&str, &str>> {
        let set = &self.policies.get().inner;
        let of = |policy: u32| set.annotations(policy).iter().map(|(key, value)| (&**key, &**value)).collect();
        self.answer.reasons.iter().map(|policy| (set.id(*policy), of(*policy))).collect()
    }

    #[expect(clippy::unused_self, reason = "a method of the object")]
    fn __bool__(&self) -> PyResult<bool> {
        Err(PyTypeError::new_err("an answer has no truth value; use `answer.allowed` or `answer.decision`"))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let reasons = self.reasons().into_py_any(py)?;
        Ok(format!("<Answer {} {} {} errors>", self.decision(py), reasons.bind(py).repr()?, self.answer.errors_len()))
    }
}
