//! `Entities` and `Entity`: the store that policies read.
//!
//! Entity attributes are trusted data, so they may hold what call arguments may not: uids and Python's own decimal,
//! address and time types.

use std::sync::Arc;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDateTime, PyDelta, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString, PyTuple};
use tollkeeper_core::arguments::decimal_from_float;
use tollkeeper_core::limits::JSON_NESTING_MAX;
use tollkeeper_core::policy::entities::{Entities, EntityData};
use tollkeeper_core::policy::extension::{parse_decimal, parse_ip};
use tollkeeper_core::policy::parse;
use tollkeeper_core::uid::EntityUid;
use tollkeeper_core::value::Val;

use crate::errors::Error;
use crate::guard::guard;
use crate::policy::{TextArg, detached};
use crate::uid::{PyEntityUid, uid_arg};

/// An immutable store of entities with closed ancestors. Safe to share between threads.
///
/// Example:
///     >>> from tollkeeper import Entities, Entity
///     >>> store = Entities([Entity('User::"alice"', {"level": 3}, parents=['Team::"ops"'])])
///     >>> len(store)
///     1
#[pyclass(frozen, name = "Entities", module = "tollkeeper")]
pub(crate) struct PyEntities {
    pub(crate) inner: Entities,
}

#[pymethods]
impl PyEntities {
    #[new]
    #[pyo3(signature = (entities: "collections.abc.Iterable[Entity] | None" = None, /))]
    fn new(entities: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let data = entities.map(collect).transpose()?.unwrap_or_default();
        guard(|| Entities::from_data(data).map(|inner| Self { inner }).map_err(Error::from))
    }

    /// Reads Cedar's JSON form of entities.
    ///
    /// Args:
    ///     text: A JSON array as `str`, or a file as `pathlib.Path`.
    ///     schema: A Cedar schema; declared types decide how values are read, and the actions it declares are added.
    ///
    /// Raises:
    ///     EntityError: The text is not an entities document, a parent cycle, or two different entities with one uid.
    #[staticmethod]
    #[pyo3(signature = (text: "str | os.PathLike[str]", schema: "str | os.PathLike[str] | None" = None))]
    fn from_json(text: &Bound<'_, PyAny>, schema: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let text = TextArg::read(text)?;
        let schema = schema.map(TextArg::read).transpose()?;
        guard(|| {
            let schema = match &schema {
                Some(schema) => Some(detached(|| parse::parse_schema(&schema.source()))?),
                None => None,
            };
            let inner = detached(|| Entities::from_json(&text.text, schema.as_ref()))?;
            Ok::<_, PyErr>(Self { inner })
        })
    }

    /// A store with some entities added or replaced and others removed; the original is unchanged and shared.
    ///
    /// Args:
    ///     entities: Those to add or replace.
    ///     remove: Uids of those to remove.
    ///
    /// Raises:
    ///     EntityError: The change would make a parent cycle.
    #[pyo3(signature = (entities: "collections.abc.Iterable[Entity] | None" = None, *, remove: "collections.abc.Iterable[EntityUid | str] | None" = None))]
    fn update(&self, entities: Option<&Bound<'_, PyAny>>, remove: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let data = entities.map(collect).transpose()?.unwrap_or_default();
        let removals = remove.map(collect_uids).transpose()?.unwrap_or_default();
        guard(|| {
            let changed = self.inner.update(data, &removals).map_err(Error::from)?;
            let inner = if changed.needs_compaction() { changed.compact() } else { changed };
            Ok::<_, Error>(Self { inner })
        })
    }

    /// A store with a request's own entities in front; nothing of the original is copied.
    ///
    /// Args:
    ///     entities: The request's own.
    ///
    /// Raises:
    ///     EntityError: An entity is already there and differs.
    #[pyo3(signature = (entities: "collections.abc.Iterable[Entity]"))]
    fn with_additional(&self, entities: &Bound<'_, PyAny>) -> PyResult<Self> {
        let data = collect(entities)?;
        guard(|| self.inner.with_additional(data).map(|inner| Self { inner }).map_err(Error::from))
    }

    /// The closed ancestors of an entity, sorted; empty if it is not in the store.
    ///
    /// Args:
    ///     uid: Its uid.
    #[pyo3(signature = (uid: "EntityUid | str") -> "list[str]")]
    fn ancestors(&self, uid: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
        let uid = uid_arg(uid)?;
        let entity = self.inner.get(&uid);
        let mut all: Vec<String> = entity
            .into_iter()
            .flat_map(|entity| entity.ancestors().map(ToString::to_string).collect::<Vec<_>>())
            .collect();
        all.sort();
        Ok(all)
    }

    /// The store in Cedar's JSON form.
    fn to_json(&self) -> PyResult<String> {
        guard(|| self.inner.to_json().map(|json| json.to_string()).map_err(Error::from))
    }

    /// Approximate memory in bytes.
    #[getter]
    fn memory_bytes(&self) -> usize {
        self.inner.memory_bytes()
    }

    fn __contains__(&self, uid: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.inner.get(&*uid_arg(uid)?).is_some())
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }

    fn __repr__(&self) -> String {
        format!("<Entities: {}>", self.inner.len())
    }
}

/// One entity: uid, attributes, parents, tags.
///
/// Attribute and tag values: bool, int, str, float (as decimal), list, tuple, set, dict, `EntityUid`, and from the
/// standard library `decimal.Decimal`, `ipaddress` addresses and interfaces, aware `datetime.datetime`,
/// `datetime.timedelta`. Times are cut to whole milliseconds, towards the past.
///
/// Raises:
///     EntityError: The uid cannot be read.
///     ValueError: A value has no Cedar form.
#[pyclass(frozen, name = "Entity", module = "tollkeeper")]
pub(crate) struct PyEntity {
    pub(crate) data: EntityData,
}

#[pymethods]
impl PyEntity {
    #[new]
    #[pyo3(signature = (uid: "EntityUid | str", attrs: "dict[str, typing.Any] | None" = None, parents: "collections.abc.Iterable[EntityUid | str] | None" = None, tags: "dict[str, typing.Any] | None" = None))]
    fn new(
        uid: &Bound<'_, PyAny>,
        attrs: Option<&Bound<'_, PyDict>>,
        parents: Option<&Bound<'_, PyAny>>,
        tags: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        guard(|| {
            let mut data = EntityData::new(uid_arg(uid)?.into_owned());
            data.attrs = attrs.map(|attrs| fields(attrs, 0)).transpose()?.unwrap_or_default();
            data.tags = tags.map(|tags| fields(tags, 0)).transpose()?.unwrap_or_default();
            let parents = parents.map(collect_uids).transpose()?.unwrap_or_default();
            data.parents = parents.into_iter().map(Arc::new).collect();
            Ok::<_, PyErr>(Self { data })
        })
    }

    fn __repr__(&self) -> String {
        format!("<Entity {}>", self.data.uid)
    }
}

fn collect(entities: &Bound<'_, PyAny>) -> PyResult<Vec<EntityData>> {
    entities
        .try_iter()?
        .map(|item| {
            let item = item?;
            let entity = item.cast::<PyEntity>().map_err(|_| PyTypeError::new_err("expected an Entity"))?;
            Ok(entity.get().data.clone())
        })
        .collect()
}

fn collect_uids(uids: &Bound<'_, PyAny>) -> PyResult<Vec<EntityUid>> {
    if uids.is_instance_of::<PyString>() {
        // A str is an iterable of its characters, each of which would be a bad uid.
        return Err(PyTypeError::new_err("expected a list of uids, got a str"));
    }
    uids.try_iter()?.map(|uid| Ok(uid_arg(&uid?)?.into_owned())).collect()
}

fn fields(dict: &Bound<'_, PyDict>, depth: usize) -> PyResult<Vec<(Box<str>, Val)>> {
    let mut all = Vec::with_capacity(dict.len());
    // A list of the items: an attribute's own code may run below and change the dict.
    for pair in dict.items() {
        let (key, item): (Bound<'_, PyAny>, Bound<'_, PyAny>) = pair.extract()?;
        let key = key.cast_into::<PyString>().map_err(|_| PyTypeError::new_err("attribute names must be str"))?;
        all.push((key.to_str()?.into(), value(&item, depth)?));
    }
    Ok(all)
}

fn value(item: &Bound<'_, PyAny>, depth: usize) -> PyResult<Val> {
    if depth > JSON_NESTING_MAX {
        return Err(PyValueError::new_err(format!("attribute values nest deeper than {JSON_NESTING_MAX} levels")));
    }
    let deeper = depth.saturating_add(1);
    if let Ok(text) = item.cast::<PyString>() {
        return Ok(Val::Str(text.to_str()?.into()));
    }
    if let Ok(flag) = item.cast::<PyBool>() {
        return Ok(Val::Bool(flag.is_true()));
    }
    if item.is_instance_of::<PyInt>() {
        return item.extract().map(Val::Long).map_err(|_| PyValueError::new_err("an integer does not fit 64 bits"));
    }
    if let Ok(float) = item.cast::<PyFloat>() {
        let decimal = decimal_from_float(float.value()).map(Val::Decimal);
        return decimal.ok_or_else(|| PyValueError::new_err("a float has no decimal form with four fraction digits"));
    }
    if let Ok(uid) = item.cast::<PyEntityUid>() {
        return Ok(Val::Entity(Arc::new(uid.get().to_owned_uid())));
    }
    if let Ok(dict) = item.cast::<PyDict>() {
        return Ok(Val::record(fields(dict, deeper)?));
    }
    let sequence = item.is_instance_of::<PyList>()
        || item.is_instance_of::<PyTuple>()
        || item.is_instance_of::<PySet>()
        || item.is_instance_of::<PyFrozenSet>();
    if sequence {
        let items: PyResult<Vec<Val>> = item.try_iter()?.map(|item| value(&item?, deeper)).collect();
        return Ok(Val::set(items?));
    }
    extension_value(item)
}

/// The standard library's types that have a Cedar form.
fn extension_value(item: &Bound<'_, PyAny>) -> PyResult<Val> {
    let py = item.py();
    let no_form = || {
        let name = item.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string());
        PyValueError::new_err(format!("a value of type {name} has no Cedar form"))
    };
    if let Ok(delta) = item.cast::<PyDelta>() {
        let whole = delta.call_method1(intern!(py, "__floordiv__"), (PyDelta::new(py, 0, 0, 1000, false)?,))?;
        return Ok(Val::Duration(whole.extract()?));
    }
    if item.is_instance_of::<PyDateTime>() {
        if item.call_method0(intern!(py, "utcoffset"))?.is_none() {
            return Err(PyValueError::new_err("a datetime needs a time zone"));
        }
        let epoch = py
            .import("datetime")?
            .getattr("datetime")?
            .call_method1("fromtimestamp", (0, py.import("datetime")?.getattr("timezone")?.getattr("utc")?))?;
        let since = item.sub(epoch)?;
        let ms = since.call_method1(intern!(py, "__floordiv__"), (PyDelta::new(py, 0, 0, 1000, false)?,))?;
        return Ok(Val::Datetime(ms.extract()?));
    }
    let class = item.get_type();
    let (module, name) = (class.module()?.to_string(), class.name()?.to_string());
    let text = item.str()?.to_string();
    match (module.as_str(), name.as_str()) {
        ("decimal", "Decimal") => {
            let plain = item.call_method1("__format__", ("f",))?.to_string();
            let plain = if plain.contains('.') { plain } else { format!("{plain}.0") };
            parse_decimal(&plain).map(Val::Decimal).ok_or_else(no_form)
        }
        ("ipaddress", _) => parse_ip(&text).map(|ip| Val::Ip(Box::new(ip))).ok_or_else(no_form),
        _ => Err(no_form()),
    }
}
