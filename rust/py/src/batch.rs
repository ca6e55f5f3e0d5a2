//! `PolicySet.decide_many`: columns in, arrays out, the interpreter's lock released in between.
//!
//! Arguments are read into plain columns here; the answers come back as numpy arrays over bytes this call made. numpy is
//! imported by the first call, not by the package.

use std::sync::Arc;

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};
use tollkeeper_core::policy::batch::{Answers, Column, Columns, Detail, Lists, decide_many};
use tollkeeper_core::policy::entities::Entities;
use tollkeeper_core::policy::set::PolicySet;
use tollkeeper_core::uid::EntityUid;
use tollkeeper_core::value::Value;

use crate::policy::PyContext;
use crate::uid::{PyEntityUid, uid_arg};

/// What a batch answers, as numpy arrays with one row per request.
#[pyclass(frozen, get_all, name = "BatchAnswer", module = "tollkeeper")]
pub(crate) struct PyBatchAnswer {
    /// uint8: 1 allow, 0 deny.
    decisions: Py<PyAny>,
    /// uint32, only with `detail="counts"`: satisfied policies of the deciding effect; else None.
    reason_counts: Option<Py<PyAny>>,
    /// uint32, only with `detail="counts"`: policies that erred; else None.
    error_counts: Option<Py<PyAny>>,
    /// Only with `detail="policies"`: (offsets, policies), both uint32; row i has `policies[offsets[i]:offsets[i+1]]`,
    /// positions in `PolicySet.ids`; else None.
    reasons: Option<(Py<PyAny>, Py<PyAny>)>,
    /// The same for the policies that erred.
    errors: Option<(Py<PyAny>, Py<PyAny>)>,
}

/// The columns of a call, owned so that deciding can run detached.
pub(crate) struct Table<T> {
    values: Vec<T>,
    indices: Option<Vec<u32>>,
}

impl<T> Table<T> {
    /// Rows that this column alone would make; `None` for a single value, which fits any number of rows.
    fn rows(&self) -> Option<usize> {
        match &self.indices {
            Some(indices) => Some(indices.len()),
            None if self.values.len() == 1 => None,
            None => Some(self.values.len()),
        }
    }

    /// Without indices: each value its own row, or the one value in every row.
    fn fill(&mut self, rows: usize) {
        if self.indices.is_none() {
            let count = u32::try_from(rows).unwrap_or(u32::MAX);
            let single = self.values.len() == 1;
            self.indices = Some(if single { vec![0; rows] } else { (0..count).collect() });
        }
    }

    fn column(&self) -> Column<'_, T> {
        Column { table: &self.values, indices: self.indices.as_deref().unwrap_or_default() }
    }
}

/// A list of uids, or one of them for every row.
pub(crate) fn uids(values: &Bound<'_, PyAny>, index: Option<&Bound<'_, PyAny>>) -> PyResult<Table<Arc<EntityUid>>> {
    let one = |value: &Bound<'_, PyAny>| Ok::<_, PyErr>(Arc::new(uid_arg(value)?.into_owned()));
    let values = if values.is_instance_of::<PyString>() || values.is_instance_of::<PyEntityUid>() {
        vec![one(values)?]
    } else {
        values.try_iter()?.map(|value| one(&value?)).collect::<PyResult<_>>()?
    };
    Ok(Table { values, indices: index.map(indices).transpose()? })
}

/// A list of contexts, prepared or mappings, or one of them for every row.
pub(crate) fn contexts<'py>(
    values: &Bound<'py, PyAny>,
    index: Option<&Bound<'py, PyAny>>,
) -> PyResult<Table<Bound<'py, PyContext>>> {
    let py = values.py();
    let one = |value: Bound<'py, PyAny>| match value.cast_into::<PyContext>() {
        Ok(context) => Ok(context),
        Err(error) => Bound::new(py, PyContext::from_mapping(&error.into_inner())?),
    };
    let single = values.is_instance_of::<PyContext>() || values.is_instance_of::<PyDict>();
    let values = if single {
        vec![one(values.clone())?]
    } else {
        values.try_iter()?.map(|value| one(value?)).collect::<PyResult<_>>()?
    };
    Ok(Table { values, indices: index.map(indices).transpose()? })
}

/// One-dimensional integers, numpy or not.
fn indices(array: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    fn read<T: Element + TryInto<u32>>(array: &Bound<'_, PyAny>) -> Option<PyResult<Vec<u32>>> {
        let buffer = PyBuffer::<T>::get(array).ok()?;
        if buffer.dimensions() != 1 {
            return Some(Err(PyValueError::new_err("an index column has one dimension")));
        }
        let outside = || PyValueError::new_err("an index is negative or beyond 32 bits");
        let values = buffer.to_vec(array.py());
        Some(values.and_then(|values| {
            values.into_iter().map(|value| value.try_into().map_err(|_| outside())).collect::<PyResult<Vec<u32>>>()
        }))
    }
    read::<u32>(array)
        .or_else(|| read::<i64>(array))
        .or_else(|| read::<i32>(array))
        .or_else(|| read::<u64>(array))
        .unwrap_or_else(|| {
            array.extract::<Vec<u32>>().map_err(|_| PyTypeError::new_err("an index column holds integers"))
        })
}

/// The whole of `decide_many`.
#[expect(clippy::too_many_arguments, reason = "one for each column")]
pub(crate) fn decide<'py>(
    py: Python<'py>,
    set: &PolicySet,
    entities: &Entities,
    mut principals: Table<Arc<EntityUid>>,
    mut actions: Table<Arc<EntityUid>>,
    mut resources: Table<Arc<EntityUid>>,
    mut contexts: Table<Bound<'py, PyContext>>,
    detail: &str,
    threads: usize,
) -> PyResult<PyBatchAnswer> {
    let detail = match detail {
        "decisions" => Detail::Decisions,
        "counts" => Detail::Counts,
        "policies" => Detail::Policies,
        other => return Err(PyValueError::new_err(format!("detail is {other:?}, not decisions, counts or policies"))),
    };
    let rows = [principals.rows(), actions.rows(), resources.rows(), contexts.rows()].into_iter().flatten().max();
    let rows = rows.unwrap_or(1);
    principals.fill(rows);
    actions.fill(rows);
    resources.fill(rows);
    contexts.fill(rows);
    let context_rows = contexts.indices.take().unwrap_or_default();
    let kept: Vec<&PyContext> = contexts.values.iter().map(Bound::get).collect();
    let values: Vec<Value<'_>> = kept.iter().map(|context| context.value()).collect();
    let columns = Columns {
        principals: principals.column(),
        actions: actions.column(),
        resources: resources.column(),
        contexts: Column { table: &values, indices: &context_rows },
    };
    let answers = py.detach(|| decide_many(set, entities, &columns, detail, threads));
    let answers = answers.map_err(|error| PyValueError::new_err(error.to_string()))?;
    arrays(py, &answers, detail)
}

fn arrays(py: Python<'_>, answers: &Answers, detail: Detail) -> PyResult<PyBatchAnswer> {
    let numpy = py.import("numpy")?;
    let bytes = |data: &[u8], dtype: &str| -> PyResult<Py<PyAny>> {
        Ok(numpy.call_method1("frombuffer", (PyBytes::new(py, data), dtype))?.unbind())
    };
    let numbers = |values: &mut dyn Iterator<Item = u32>| {
        let data: Vec<u8> = values.flat_map(u32::to_ne_bytes).collect();
        bytes(&data, "uint32")
    };
    let lists = |lists: &Lists| -> PyResult<(Py<PyAny>, Py<PyAny>)> {
        Ok((numbers(&mut lists.offsets.iter().copied())?, numbers(&mut lists.policies.iter().copied())?))
    };
    let (counts, policies) = (detail == Detail::Counts, detail == Detail::Policies);
    let count = |wanted: bool, pick: fn(&(u32, u32)) -> u32| {
        wanted.then(|| numbers(&mut answers.counts.iter().map(pick))).transpose()
    };
    Ok(PyBatchAnswer {
        decisions: bytes(&answers.decisions, "uint8")?,
        reason_counts: count(counts, |count| count.0)?,
        error_counts: count(counts, |count| count.1)?,
        reasons: policies.then(|| lists(&answers.reasons)).transpose()?,
        errors: policies.then(|| lists(&answers.errors)).transpose()?,
    })
}
