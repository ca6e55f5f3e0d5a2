//! Python arguments to the core's snapshot: one walk, after which nobody looks at the Python objects again.
//!
//! Plain data of exact types only: `bool`, `int`, `float`, `str`, `None`, `dict` with `str` keys, `list`, `tuple` and
//! `msgspec.Struct` by encoded name. A subclass can answer one thing to the policy and another to the tool, so it is
//! refused, with the path to it; the value itself never appears in an error.
//!
//! No Python code runs during the walk. Types are told apart by pointer, dicts and lists are read through the C API of
//! their exact types, fields of a struct through the slots of its class. Where the interpreter could still run a
//! finalizer (the garbage collector of `CPython` 3.11 starts on allocations), containers are checked to be as long as
//! they were: the answer is a refusal, never a panic.

use std::cell::Cell;
use std::fmt;

use pyo3::PyTypeInfo;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple, PyType};
use tollkeeper_core::arguments::{Arguments, ArgumentsError};
use tollkeeper_core::limits::ARGUMENT_BYTES_MAX;

/// Characters of a key or a type name that an error shows.
const SHOWN_CHARS_MAX: usize = 40;

/// What cannot be converted, and where it is. One word wide: it is the error of every step of the walk.
#[derive(Debug)]
pub(crate) struct ConvertError(Box<Refusal>);

#[derive(Debug)]
struct Refusal {
    cause: Cause,
    /// Steps from the value up to the root.
    steps: Vec<String>,
}

#[derive(Debug)]
enum Cause {
    /// The core's own bounds.
    Core(ArgumentsError),
    /// A type that is not plain data; its name.
    Type(String),
    /// A key that is not exactly `str`; the name of its type.
    Key(String),
    /// Text that has no UTF-8 form.
    Surrogate,
    /// A container changed while it was read.
    Changed,
    /// A field of a struct that is not a slot of its class, or that was never set.
    Field,
    /// `None` where it has no meaning.
    Null,
    /// Not a refusal: the walk starts again, looking at each integer before reading it.
    Overflow,
}

impl ConvertError {
    #[cold]
    fn new(cause: Cause) -> Self {
        Self(Box::new(Refusal { cause, steps: Vec::new() }))
    }

    /// The denial code this becomes at the gate.
    pub(crate) fn code(&self) -> &'static str {
        match &self.0.cause {
            Cause::Core(error) => error.code(),
            _ => "input.unrepresentable",
        }
    }

    /// What to do about it.
    pub(crate) fn help(&self) -> &'static str {
        match &self.0.cause {
            Cause::Core(ArgumentsError::TooLarge { .. }) => "pass a reference to large data instead of the data",
            Cause::Core(ArgumentsError::TooDeep { .. }) => {
                "flatten the arguments; a value that contains itself has no end"
            }
            Cause::Surrogate => "encode bytes as text, for example as base64",
            Cause::Null | Cause::Core(ArgumentsError::NullInList) => "leave the element out",
            Cause::Changed => "do not change the arguments from a finalizer",
            _ => {
                "pass bool, int, float, str, None, dict with str keys, list, tuple or msgspec.Struct, not subclasses of them"
            }
        }
    }
}

impl fmt::Display for ConvertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("arguments")?;
        for step in self.0.steps.iter().rev() {
            f.write_str(step)?;
        }
        f.write_str(": ")?;
        match &self.0.cause {
            Cause::Core(error) => error.fmt(f),
            Cause::Type(name) => write!(f, "a value of type `{name}` is not plain data"),
            Cause::Key(name) => write!(f, "a key of type `{name}` is not a str"),
            Cause::Surrogate => f.write_str("the text holds a lone surrogate"),
            Cause::Changed => f.write_str("the value changed while it was read"),
            Cause::Field => f.write_str("the field is not set or not a plain field of its class"),
            Cause::Null => f.write_str("None has no meaning here"),
            Cause::Overflow => f.write_str("an integer is beyond 64 bits"),
        }
    }
}

type Converted = Result<(), ConvertError>;

impl From<ArgumentsError> for ConvertError {
    #[cold]
    fn from(error: ArgumentsError) -> Self {
        ConvertError::new(Cause::Core(error))
    }
}

thread_local! {
    /// The snapshot buffer of this thread; empty while it is in use.
    static BUFFER: Cell<Option<Box<Arguments>>> = const { Cell::new(None) };
}

/// Takes the snapshot of `value` in this thread's buffer and lends it to `read`.
///
/// # Cost
/// No allocation once the buffer is warm. A buffer filled beyond the bound of `check` is given back to the system.
#[inline]
pub(crate) fn with_arguments<T>(
    value: &Bound<'_, PyAny>,
    bytes_max: usize,
    read: impl FnOnce(&Arguments) -> T,
) -> Result<T, ConvertError> {
    with_arguments_mut(Some(value), bytes_max, |arguments| read(arguments))
}

/// The same for a reader that converts in place; no value is an empty object.
#[inline]
pub(crate) fn with_arguments_mut<T>(
    value: Option<&Bound<'_, PyAny>>,
    bytes_max: usize,
    read: impl FnOnce(&mut Arguments) -> T,
) -> Result<T, ConvertError> {
    let mut arguments = BUFFER.take().unwrap_or_default();
    let filled = match value {
        Some(value) => fill(&mut arguments, value, bytes_max),
        None => empty(&mut arguments, bytes_max),
    };
    let result = filled.map(|()| read(&mut arguments));
    if arguments.bytes() <= ARGUMENT_BYTES_MAX {
        BUFFER.set(Some(arguments));
    }
    result
}

/// Fills `arguments` with an object without fields.
fn empty(arguments: &mut Arguments, bytes_max: usize) -> Converted {
    arguments.reset(bytes_max);
    arguments.open_object(None)?;
    arguments.close();
    Ok(())
}

/// Fills `arguments` from `value`.
pub(crate) fn fill(arguments: &mut Arguments, value: &Bound<'_, PyAny>, bytes_max: usize) -> Converted {
    arguments.reset(bytes_max);
    match (Walk { arguments, careful: false }).value(None, value) {
        Err(error) if matches!(error.0.cause, Cause::Overflow) => {
            arguments.reset(bytes_max);
            (Walk { arguments, careful: true }).value(None, value)
        }
        result => result,
    }
}

struct Walk<'s> {
    arguments: &'s mut Arguments,
    /// Compare integers with the bounds before reading them. Reading one that does not fit makes an exception object,
    /// which can start the garbage collector in the middle of the walk; comparing all of them would cost every call.
    careful: bool,
}

impl Walk<'_> {
    #[inline]
    fn value(&mut self, key: Option<&str>, value: &Bound<'_, PyAny>) -> Converted {
        if let Some(string) = exact::<PyString>(value) {
            self.arguments.push_str(key, text(string)?)?;
        } else if let Some(int) = exact::<PyInt>(value) {
            self.int(key, int)?;
        } else if let Some(flag) = exact::<PyBool>(value) {
            self.arguments.push_bool(key, flag.is_true())?;
        } else if let Some(dict) = exact::<PyDict>(value) {
            self.dict(key, dict)?;
        } else if let Some(list) = exact::<PyList>(value) {
            let len = list.len();
            self.elements(key, len, list.iter())?;
            still(list.len() == len)?;
        } else if let Some(float) = exact::<PyFloat>(value) {
            self.arguments.push_float(key, float.value())?;
        } else if value.is_none() {
            self.null(key)?;
        } else if let Some(tuple) = exact::<PyTuple>(value) {
            self.elements(key, tuple.len(), tuple.iter())?;
        } else {
            self.structure(key, value)?;
        }
        Ok(())
    }

    fn int(&mut self, key: Option<&str>, int: &Bound<'_, PyInt>) -> Converted {
        if self.careful && !matches!((int.ge(i64::MIN), int.le(i64::MAX)), (Ok(true), Ok(true))) {
            return Ok(self.arguments.push_unrepresentable(key)?);
        }
        let value: i64 = int.extract().map_err(|_| ConvertError::new(Cause::Overflow))?;
        Ok(self.arguments.push_long(key, value)?)
    }

    fn null(&mut self, key: Option<&str>) -> Converted {
        if key.is_none() && self.arguments.root().is_none() {
            return Err(ConvertError::new(Cause::Null));
        }
        Ok(self.arguments.push_null(key)?)
    }

    fn dict(&mut self, key: Option<&str>, dict: &Bound<'_, PyDict>) -> Converted {
        // Exact `str` keys of one dict are different texts.
        self.arguments.open_object_distinct(key)?;
        let len = dict.len();
        let mut items = dict.iter();
        for _ in 0..len {
            // Asked before each step: the iterator panics on a dict that changed its size.
            still(dict.len() == len)?;
            let Some((name, value)) = items.next() else { return Err(ConvertError::new(Cause::Changed)) };
            let Some(name) = exact::<PyString>(&name) else {
                return Err(ConvertError::new(Cause::Key(type_name(&name))));
            };
            let name = text(name)?;
            self.value(Some(name), &value).map_err(|error| error.within_field(name))?;
        }
        self.arguments.close();
        Ok(())
    }

    fn elements<'py>(
        &mut self,
        key: Option<&str>,
        len: usize,
        elements: impl Iterator<Item = Bound<'py, PyAny>>,
    ) -> Converted {
        self.arguments.open_list(key)?;
        let mut count = 0_usize;
        for element in elements {
            self.value(None, &element).map_err(|error| error.within_list(count))?;
            count = count.saturating_add(1);
        }
        still(count == len)?;
        self.arguments.close();
        Ok(())
    }

    #[cold]
    fn structure(&mut self, key: Option<&str>, value: &Bound<'_, PyAny>) -> Converted {
        let Some(layout) = Layout::of(value) else { return Err(ConvertError::new(Cause::Type(type_name(value)))) };
        // The keys are compared with each other: a tag is not one of the fields.
        self.arguments.open_object(key)?;
        if let Some((name, tag)) = &layout.tag {
            let Some(name) = exact::<PyString>(name) else { return Err(ConvertError::new(Cause::Field)) };
            self.value(Some(text(name)?), tag)?;
        }
        for (field, encoded) in layout.fields.iter().zip(layout.encoded.iter()) {
            let (Some(field), Some(encoded)) = (exact::<PyString>(&field), exact::<PyString>(&encoded)) else {
                return Err(ConvertError::new(Cause::Field));
            };
            let name = text(encoded)?;
            let Some(value) = layout.read(value, field) else {
                return Err(ConvertError::new(Cause::Field).within_field(name));
            };
            if !value.is(layout.msgspec.unset.bind(value.py())) {
                self.value(Some(name), &value).map_err(|error| error.within_field(name))?;
            }
        }
        self.arguments.close();
        Ok(())
    }
}

/// Told apart by the type's address: no method of the value or of its class is asked.
#[inline]
pub(crate) fn exact<'a, 'py, T: PyTypeInfo>(value: &'a Bound<'py, PyAny>) -> Option<&'a Bound<'py, T>> {
    if value.is_exact_instance_of::<T>() { value.cast::<T>().ok() } else { None }
}

/// The UTF-8 form, borrowed from the object.
#[inline]
fn text<'a>(string: &'a Bound<'_, PyString>) -> Result<&'a str, ConvertError> {
    string.to_str().map_err(|_| ConvertError::new(Cause::Surrogate))
}

#[inline]
fn still(unchanged: bool) -> Converted {
    if unchanged { Ok(()) } else { Err(ConvertError::new(Cause::Changed)) }
}

/// The name of the value's type, for an error; the walk is over, so it may be asked for.
#[cold]
pub(crate) fn type_name(value: &Bound<'_, PyAny>) -> String {
    let name = value.get_type().name().map(|name| name.to_string_lossy().into_owned());
    shown(name.as_deref().unwrap_or("?"))
}

fn shown(text: &str) -> String {
    text.escape_debug().take(SHOWN_CHARS_MAX).collect()
}

/// The step into a field, as a path shows it.
#[cold]
pub(crate) fn field_step(name: &str) -> String {
    let plain = name.len() <= SHOWN_CHARS_MAX && name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
    if plain { format!(".{name}") } else { format!("[\"{}\"]", shown(name)) }
}

impl ConvertError {
    #[cold]
    fn within_field(mut self, name: &str) -> Self {
        self.0.steps.push(field_step(name));
        self
    }

    #[cold]
    fn within_list(mut self, index: usize) -> Self {
        self.0.steps.push(format!("[{index}]"));
        self
    }
}

/// What is needed of msgspec, found only if the process has imported it: without it there is no struct to convert.
struct Msgspec {
    meta: Py<PyAny>,
    unset: Py<PyAny>,
    /// The type of what `__slots__` puts into a class.
    slot: Py<PyAny>,
}

impl Msgspec {
    fn get(py: Python<'_>) -> Option<&Self> {
        static FOUND: PyOnceLock<Msgspec> = PyOnceLock::new();
        if let Some(found) = FOUND.get(py) {
            return Some(found);
        }
        let modules = py.import("sys").ok()?.getattr("modules").ok()?;
        let core = modules.cast_exact::<PyDict>().ok()?.get_item("msgspec._core").ok()??;
        let slot = py.import("types").ok()?.getattr("MemberDescriptorType").ok()?.unbind();
        let found = Self {
            meta: core.getattr("Struct").ok()?.get_type().into_any().unbind(),
            unset: core.getattr("UNSET").ok()?.unbind(),
            slot,
        };
        Some(FOUND.get_or_init(py, || found))
    }
}

/// The fields of one struct's class.
struct Layout<'py> {
    msgspec: &'py Msgspec,
    class: Bound<'py, PyType>,
    fields: Bound<'py, PyTuple>,
    encoded: Bound<'py, PyTuple>,
    /// The field msgspec adds to tell the members of a union apart.
    tag: Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
}

impl<'py> Layout<'py> {
    /// `None` where the value is not a struct, or its metaclass is not msgspec's own.
    fn of(value: &Bound<'py, PyAny>) -> Option<Self> {
        let py = value.py();
        let msgspec = Msgspec::get(py)?;
        let class = value.get_type();
        if !class.get_type().is(msgspec.meta.bind(py)) {
            return None;
        }
        // Members of the metaclass: a class cannot shadow them.
        let tuple = |name| class.getattr(name).ok()?.cast_into_exact::<PyTuple>().ok();
        let fields = tuple(intern!(py, "__struct_fields__"))?;
        let encoded = tuple(intern!(py, "__struct_encode_fields__"))?;
        let config = class.getattr(intern!(py, "__struct_config__")).ok()?;
        let name = config.getattr(intern!(py, "tag_field")).ok()?;
        let tag = if name.is_none() { None } else { Some((name, config.getattr(intern!(py, "tag")).ok()?)) };
        (fields.len() == encoded.len()).then_some(Self { msgspec, class, fields, encoded, tag })
    }

    /// Reads one slot. Not through `getattr` of the value, which the class can answer with code of its own.
    fn read(&self, value: &Bound<'py, PyAny>, field: &Bound<'py, PyString>) -> Option<Bound<'py, PyAny>> {
        let slot = self.class.getattr(field).ok()?;
        if !slot.get_type().is(self.msgspec.slot.bind(value.py())) {
            return None;
        }
        slot.call_method1(intern!(value.py(), "__get__"), (value,)).ok()
    }
}
