//! `Gate.check_many`: columns in, one decision for each row out.
//!
//! Columns are read into plain vectors while the interpreter's lock is held; after that the rows need it no more. numpy
//! is imported by the first call, not by the package.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyIndexError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple};
use tollkeeper_core::arguments::{Arguments, ArgumentsError};
use tollkeeper_core::gate::decision::Decision;
use tollkeeper_core::limits::{ARGUMENT_BYTES_MAX, CHECK_ROWS_MAX};

use crate::convert::exact;
use crate::decision::PyDecision;
use crate::gate::PyGate;

/// The values of one argument.
enum Column {
    Bool(Vec<u8>),
    Long(Vec<i64>),
    Float(Vec<f64>),
    Text(Vec<String>),
}

impl Column {
    fn len(&self) -> usize {
        match self {
            Self::Bool(values) => values.len(),
            Self::Long(values) => values.len(),
            Self::Float(values) => values.len(),
            Self::Text(values) => values.len(),
        }
    }

    fn push(&self, name: &str, row: usize, arguments: &mut Arguments) -> Result<(), ArgumentsError> {
        let key = Some(name);
        match self {
            Self::Bool(values) => arguments.push_bool(key, values.get(row).is_some_and(|value| *value != 0)),
            Self::Long(values) => arguments.push_long(key, values.get(row).copied().unwrap_or_default()),
            Self::Float(values) => arguments.push_float(key, values.get(row).copied().unwrap_or_default()),
            Self::Text(values) => arguments.push_str(key, values.get(row).map_or("", String::as_str)),
        }
    }
}

/// The arguments of many calls.
pub(crate) struct Columns {
    /// With whether the one value stands in every row
    columns: Vec<(String, Column, bool)>,
    rows: usize,
}

impl Columns {
    pub(crate) fn read(columns: &Bound<'_, PyMapping>) -> PyResult<Self> {
        let mut all = Vec::new();
        let mut rows = None;
        for item in columns.items()? {
            let (name, values) = item.extract::<(String, Bound<'_, PyAny>)>()?;
            let (column, single) = match scalar(&values)? {
                Some(column) => (column, true),
                None => (column(&name, &values)?, false),
            };
            if !single {
                let len = column.len();
                if rows.is_some_and(|rows| rows != len) {
                    let rows = rows.unwrap_or_default();
                    let message = format!("column {name:?} has {len} rows, and another one has {rows}");
                    return Err(PyValueError::new_err(message));
                }
                rows = Some(len);
            }
            all.push((name, column, single));
        }
        let rows = rows.unwrap_or(1);
        if rows > CHECK_ROWS_MAX {
            let message = format!("{rows} rows are more than one call takes, {CHECK_ROWS_MAX}; split them");
            return Err(PyValueError::new_err(message));
        }
        Ok(Self { columns: all, rows })
    }

    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }

    /// The arguments of one row.
    pub(crate) fn fill(&self, row: usize, arguments: &mut Arguments) -> Result<(), ArgumentsError> {
        arguments.reset(ARGUMENT_BYTES_MAX);
        arguments.open_object(None)?;
        for (name, column, single) in &self.columns {
            column.push(name, if *single { 0 } else { row }, arguments)?;
        }
        arguments.close();
        Ok(())
    }
}

/// A single value that stands in every row.
fn scalar(value: &Bound<'_, PyAny>) -> PyResult<Option<Column>> {
    // A bool is an int to Python.
    if exact::<PyBool>(value).is_some() {
        return Ok(Some(Column::Bool(vec![value.extract::<bool>()?.into()])));
    }
    if exact::<PyInt>(value).is_some() {
        return Ok(Some(Column::Long(vec![value.extract()?])));
    }
    if exact::<PyFloat>(value).is_some() {
        return Ok(Some(Column::Float(vec![value.extract()?])));
    }
    if exact::<PyString>(value).is_some() {
        return Ok(Some(Column::Text(vec![value.extract()?])));
    }
    Ok(None)
}

fn column(name: &str, values: &Bound<'_, PyAny>) -> PyResult<Column> {
    let refuse =
        || PyTypeError::new_err(format!("column {name:?} holds neither integers, floats, booleans nor text only"));
    if let Ok(dtype) = values.getattr("dtype") {
        let dimensions: usize = values.getattr("ndim")?.extract()?;
        if dimensions != 1 {
            return Err(PyValueError::new_err(format!("column {name:?} has {dimensions} dimensions, not one")));
        }
        let kind: String = dtype.getattr("kind")?.extract()?;
        let bytes: usize = dtype.getattr("itemsize")?.extract()?;
        return match &*kind {
            "b" => Ok(Column::Bool(buffer(&values.call_method1("astype", ("uint8",))?)?)),
            "i" => Ok(Column::Long(buffer(&values.call_method1("astype", ("int64",))?)?)),
            "u" if bytes < 8 => Ok(Column::Long(buffer(&values.call_method1("astype", ("int64",))?)?)),
            // A wider one has digits that would be lost.
            "f" if bytes <= 8 => Ok(Column::Float(buffer(&values.call_method1("astype", ("float64",))?)?)),
            _ => list(&values.call_method0("tolist")?).ok_or_else(refuse),
        };
    }
    list(values).ok_or_else(refuse)
}

fn buffer<T: pyo3::buffer::Element>(array: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
    PyBuffer::<T>::get(array)?.to_vec(array.py())
}

/// A list or tuple of one exact type.
fn list(values: &Bound<'_, PyAny>) -> Option<Column> {
    if exact::<PyList>(values).is_none() && exact::<PyTuple>(values).is_none() {
        return None;
    }
    let items: Vec<Bound<'_, PyAny>> = values.try_iter().ok()?.collect::<PyResult<_>>().ok()?;
    let all = |is: fn(&Bound<'_, PyAny>) -> bool| items.iter().all(is);
    if all(|item| exact::<PyBool>(item).is_some()) {
        return items
            .iter()
            .map(|item| item.extract::<bool>().ok().map(u8::from))
            .collect::<Option<_>>()
            .map(Column::Bool);
    }
    if all(|item| exact::<PyInt>(item).is_some()) {
        return items.iter().map(|item| item.extract().ok()).collect::<Option<_>>().map(Column::Long);
    }
    if all(|item| exact::<PyFloat>(item).is_some()) {
        return items.iter().map(|item| item.extract().ok()).collect::<Option<_>>().map(Column::Float);
    }
    all(|item| exact::<PyString>(item).is_some())
        .then(|| items.iter().map(|item| item.extract().ok()).collect::<Option<_>>().map(Column::Text))
        .flatten()
}

/// The answers to `Gate.check_many`, one for each row: `len`, and a `Decision` by position.
#[pyclass(frozen, sequence, name = "Decisions", module = "tollkeeper")]
pub(crate) struct PyDecisions {
    decisions: Vec<Py<PyDecision>>,
    allowed: Py<PyAny>,
    codes: Py<PyAny>,
}

impl PyDecisions {
    pub(crate) fn new(gate: &Bound<'_, PyGate>, decisions: Vec<Decision>) -> PyResult<Self> {
        let py = gate.py();
        let numpy = py.import("numpy")?;
        let array = |data: Vec<u8>, dtype: &str| -> PyResult<Py<PyAny>> {
            Ok(numpy.call_method1("frombuffer", (PyBytes::new(py, &data), dtype))?.unbind())
        };
        let allowed = array(decisions.iter().map(|decision| decision.allowed().into()).collect(), "bool")?;
        let codes = decisions.iter().map(|decision| u8::try_from(decision.code() as usize).unwrap_or(u8::MAX));
        let codes = array(codes.collect(), "uint8")?;
        let made = decisions.into_iter().map(|inner| Py::new(py, PyDecision::new(inner, gate.clone().unbind())));
        Ok(Self { decisions: made.collect::<PyResult<_>>()?, allowed, codes })
    }
}

#[pymethods]
impl PyDecisions {
    /// bool, one for each row.
    #[getter]
    fn allowed(&self, py: Python<'_>) -> Py<PyAny> {
        self.allowed.clone_ref(py)
    }

    /// uint8, one for each row: a position in `decision_codes()`.
    #[getter]
    fn codes(&self, py: Python<'_>) -> Py<PyAny> {
        self.codes.clone_ref(py)
    }

    fn __len__(&self) -> usize {
        self.decisions.len()
    }

    fn __getitem__(&self, py: Python<'_>, row: isize) -> PyResult<Py<PyDecision>> {
        let row = if row < 0 { self.decisions.len().checked_add_signed(row) } else { usize::try_from(row).ok() };
        let decision = row.and_then(|row| self.decisions.get(row));
        decision.map(|decision| decision.clone_ref(py)).ok_or_else(|| PyIndexError::new_err("no such row"))
    }

    fn __repr__(&self) -> String {
        format!("<Decisions of {} rows>", self.decisions.len())
    }
}
