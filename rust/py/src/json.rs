//! Python values as JSON text, for entries of the audit log: in their order, and every number as it is.
//!
//! Plain data of exact types only, as in `convert`: a subclass could write one thing and be another. What differs is
//! what the text is for: nobody decides by it, so integers have no bound, `decimal.Decimal` keeps its digits, and null
//! may stand anywhere. NaN, infinities and lone surrogates have no form in JSON and are refused, with the path to them;
//! the value itself never appears in an error.

use std::io::Write as _;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use tollkeeper_core::arguments::push_json_str;
use tollkeeper_core::audit::error::AuditError;
use tollkeeper_core::limits::JSON_NESTING_MAX;

use crate::convert::{exact, field_step, type_name};
use crate::errors::Error;

/// What has no form in JSON, and where it is. One word wide: it is the error of every step of the walk.
#[derive(Debug)]
pub(crate) struct JsonError(Box<Refusal>);

#[derive(Debug)]
struct Refusal {
    cause: Cause,
    /// Steps from the value up to the root.
    steps: Vec<String>,
}

#[derive(Debug)]
enum Cause {
    /// A type that is not plain data; its name.
    Type(String),
    /// A key that is not exactly `str`; the name of its type.
    Key(String),
    /// A name that the log writes itself.
    Reserved,
    /// NaN or an infinity.
    NotFinite,
    /// Text that has no UTF-8 form.
    Surrogate,
    /// An integer with more digits than the interpreter writes out.
    Digits,
    /// Nested deeper than [`JSON_NESTING_MAX`].
    TooDeep,
    /// A container changed while it was read.
    Changed,
}

impl JsonError {
    #[cold]
    fn new(cause: Cause) -> Self {
        Self(Box::new(Refusal { cause, steps: Vec::new() }))
    }

    #[cold]
    fn within(mut self, step: String) -> Self {
        self.0.steps.push(step);
        self
    }

    /// The exception: the type is wrong, or the value is. `root` is what the path begins with.
    #[cold]
    pub(crate) fn into_exception(self, root: &str) -> PyErr {
        let path: String = self.0.steps.iter().rev().map(String::as_str).collect();
        let what = match &self.0.cause {
            Cause::Type(name) => {
                return PyTypeError::new_err(format!("{root}{path}: a value of type `{name}` is not JSON"));
            }
            Cause::Key(name) => {
                return PyTypeError::new_err(format!("{root}{path}: a key of type `{name}` is not a str"));
            }
            Cause::Reserved => "the log writes this member itself; choose another name".to_owned(),
            Cause::NotFinite => "NaN and infinities have no form in JSON".to_owned(),
            Cause::Surrogate => "the text holds a lone surrogate".to_owned(),
            Cause::Digits => "the integer has too many digits".to_owned(),
            Cause::TooDeep => format!("values nest deeper than {JSON_NESTING_MAX} levels"),
            Cause::Changed => "the value changed while it was read".to_owned(),
        };
        Error::Audit(AuditError::Invalid { message: format!("{root}{path}: {what}") }).into()
    }
}

type Written = Result<(), JsonError>;

/// Appends the members of a mapping, each with a comma before it. `reserved` are names it must not have.
pub(crate) fn push_members(out: &mut Vec<u8>, members: &Bound<'_, PyDict>, reserved: &[&str]) -> Written {
    each_member(members, |name, value| {
        if reserved.contains(&name) {
            return Err(JsonError::new(Cause::Reserved).within(field_step(name)));
        }
        out.push(b',');
        push_member(out, name, value, 1)
    })
}

/// Appends a value.
pub(crate) fn push_value(out: &mut Vec<u8>, value: &Bound<'_, PyAny>) -> Written {
    push(out, value, 0)
}

fn push(out: &mut Vec<u8>, value: &Bound<'_, PyAny>, depth: usize) -> Written {
    if let Some(string) = exact::<PyString>(value) {
        push_json_str(out, text(string)?);
    } else if let Some(int) = exact::<PyInt>(value) {
        push_int(out, int)?;
    } else if let Some(flag) = exact::<PyBool>(value) {
        out.extend_from_slice(if flag.is_true() { b"true" } else { b"false" });
    } else if value.is_none() {
        out.extend_from_slice(b"null");
    } else if let Some(float) = exact::<PyFloat>(value) {
        let float = float.value();
        if !float.is_finite() {
            return Err(JsonError::new(Cause::NotFinite));
        }
        // The shortest digits that read back as the same number; writing to memory does not fail.
        let _ = write!(out, "{float:?}");
    } else if depth >= JSON_NESTING_MAX {
        return Err(JsonError::new(Cause::TooDeep));
    } else if let Some(dict) = exact::<PyDict>(value) {
        push_dict(out, dict, depth)?;
    } else if let Some(list) = exact::<PyList>(value) {
        push_elements(out, list.len(), list.iter(), depth)?;
    } else if let Some(tuple) = exact::<PyTuple>(value) {
        push_elements(out, tuple.len(), tuple.iter(), depth)?;
    } else {
        push_decimal(out, value)?;
    }
    Ok(())
}

fn push_int(out: &mut Vec<u8>, int: &Bound<'_, PyInt>) -> Written {
    if let Ok(small) = int.extract::<i64>() {
        let _ = write!(out, "{small}");
        return Ok(());
    }
    let digits = int.str().map_err(|_| JsonError::new(Cause::Digits))?;
    out.extend_from_slice(text(&digits)?.as_bytes());
    Ok(())
}

fn push_dict(out: &mut Vec<u8>, dict: &Bound<'_, PyDict>, depth: usize) -> Written {
    out.push(b'{');
    let mut first = true;
    each_member(dict, |name, value| {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        push_member(out, name, value, depth.saturating_add(1))
    })?;
    out.push(b'}');
    Ok(())
}

fn push_member(out: &mut Vec<u8>, name: &str, value: &Bound<'_, PyAny>, depth: usize) -> Written {
    push_json_str(out, name);
    out.push(b':');
    push(out, value, depth).map_err(|error| error.within(field_step(name)))
}

/// Exact `str` keys of one dict are different texts.
fn each_member<'py>(dict: &Bound<'py, PyDict>, mut member: impl FnMut(&str, &Bound<'py, PyAny>) -> Written) -> Written {
    let len = dict.len();
    let mut items = dict.iter();
    for _ in 0..len {
        // Asked before each step: the iterator panics on a dict that changed its size, as a finalizer may make it.
        still(dict.len() == len)?;
        let Some((name, value)) = items.next() else { return Err(JsonError::new(Cause::Changed)) };
        let Some(name) = exact::<PyString>(&name) else {
            return Err(JsonError::new(Cause::Key(type_name(&name))));
        };
        member(text(name)?, &value)?;
    }
    Ok(())
}

fn push_elements<'py>(
    out: &mut Vec<u8>,
    len: usize,
    elements: impl Iterator<Item = Bound<'py, PyAny>>,
    depth: usize,
) -> Written {
    out.push(b'[');
    let mut count = 0_usize;
    for element in elements {
        if count > 0 {
            out.push(b',');
        }
        push(out, &element, depth.saturating_add(1)).map_err(|error| error.within(format!("[{count}]")))?;
        count = count.saturating_add(1);
    }
    out.push(b']');
    still(count == len)
}

/// The digits of a `decimal.Decimal`; whatever else comes here is no JSON.
#[cold]
fn push_decimal(out: &mut Vec<u8>, value: &Bound<'_, PyAny>) -> Written {
    if !is_decimal(value).unwrap_or(false) {
        return Err(JsonError::new(Cause::Type(type_name(value))));
    }
    let digits = value.str().map_err(|_| JsonError::new(Cause::Digits))?;
    let digits = text(&digits)?;
    if !digits.trim_start_matches('-').starts_with(|first: char| first.is_ascii_digit()) {
        return Err(JsonError::new(Cause::NotFinite));
    }
    out.extend_from_slice(digits.as_bytes());
    Ok(())
}

/// Without the module there is no such value, so nothing is imported.
fn is_decimal(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    let modules = value.py().import("sys")?.getattr("modules")?;
    let Some(module) = modules.cast_exact::<PyDict>()?.get_item("decimal")? else { return Ok(false) };
    Ok(value.get_type().is(&module.getattr("Decimal")?))
}

/// The UTF-8 form, borrowed from the object.
fn text<'a>(string: &'a Bound<'_, PyString>) -> Result<&'a str, JsonError> {
    string.to_str().map_err(|_| JsonError::new(Cause::Surrogate))
}

fn still(unchanged: bool) -> Written {
    if unchanged { Ok(()) } else { Err(JsonError::new(Cause::Changed)) }
}
