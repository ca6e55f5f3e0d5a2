//! `EntityUid`, and arguments that are either one or its text.

use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;

use pyo3::prelude::*;
use pyo3::types::PyString;
use tollkeeper_core::uid::EntityUid;

use crate::errors::Error;
use crate::guard::guard;

/// The name of a principal, an action or a resource: a type and an id.
///
/// Prepared once and used many times, it saves reading the text on each call.
///
/// Args:
///     type: The type name, such as `User` or `Ns::User`.
///     id: The id; any text, not escaped.
///
/// Raises:
///     EntityError: The type is not a type name.
///
/// Example:
///     >>> from tollkeeper import EntityUid
///     >>> alice = EntityUid("User", "alice")
///     >>> str(alice)
///     'User::"alice"'
///     >>> EntityUid.parse('User::"alice"') == alice
///     True
#[pyclass(frozen, eq, name = "EntityUid", module = "tollkeeper")]
#[derive(PartialEq)]
pub(crate) struct PyEntityUid {
    inner: EntityUid,
}

#[pymethods]
impl PyEntityUid {
    #[new]
    #[pyo3(signature = (r#type, id))]
    fn new(r#type: &str, id: &str) -> PyResult<Self> {
        guard(|| EntityUid::from_parts(r#type, id).map(|inner| Self { inner }).map_err(Error::from))
    }

    /// Reads the text form, `Type::"id"`, exactly as Cedar prints it.
    ///
    /// Args:
    ///     text: Such as `User::"alice"`, with Cedar's escapes.
    ///
    /// Raises:
    ///     EntityError: The text is not a uid in its printed form.
    #[staticmethod]
    #[pyo3(signature = (text, /))]
    fn parse(text: &str) -> PyResult<Self> {
        guard(|| EntityUid::parse(text).map(|inner| Self { inner }).map_err(Error::from))
    }

    /// The type name.
    #[getter]
    fn r#type(&self) -> &str {
        self.inner.ty()
    }

    /// The id, not escaped.
    #[getter]
    fn id(&self) -> &str {
        self.inner.id()
    }

    fn __str__(&self) -> String {
        self.inner.to_string()
    }

    fn __repr__(&self) -> String {
        self.inner.to_string()
    }

    fn __hash__(&self) -> u64 {
        self.inner.hash()
    }

    fn __getnewargs__(&self) -> (&str, &str) {
        (self.inner.ty(), self.inner.id())
    }
}

/// A uid that came as an argument: borrowed from its handle, or read from its text.
#[derive(Debug)]
pub(crate) enum UidArg<'a> {
    /// A prepared handle.
    Handle(&'a EntityUid),
    /// Text, read for this call or for an earlier one with the same object.
    Text(Rc<EntityUid>),
}

/// Texts that are remembered per thread: those of a few agents and all of their tools.
const REMEMBERED: usize = 128;
/// Longer texts are not kept alive.
const REMEMBERED_BYTES_MAX: usize = 256;

/// A text object that was read before, kept alive so that its address stays its own, and what was read.
type Remembered = Option<(Py<PyString>, Rc<EntityUid>)>;

thread_local! {
    /// Direct-mapped by address. A program names its principals and tools by the same few objects over and over;
    /// comparing an address replaces reading, hashing and allocating. A text object cannot change.
    static READ: RefCell<[Remembered; REMEMBERED]> = const { RefCell::new([const { None }; REMEMBERED]) };
}

/// Reads the text of an exact `str`, or finds what was read.
fn read_text(string: &Bound<'_, PyString>) -> PyResult<Rc<EntityUid>> {
    // Objects are at least 16 bytes apart.
    let place = (string.as_ptr().addr() >> 4) % REMEMBERED;
    READ.with_borrow_mut(|read| {
        let slot = read.get_mut(place);
        if let Some(Some((known, uid))) = &slot
            && known.is(string)
        {
            return Ok(Rc::clone(uid));
        }
        let text = string.to_str()?;
        let uid = Rc::new(EntityUid::parse(text).map_err(Error::from)?);
        if let Some(slot) = slot
            && text.len() <= REMEMBERED_BYTES_MAX
        {
            *slot = Some((string.clone().unbind(), Rc::clone(&uid)));
        }
        Ok(uid)
    })
}

impl UidArg<'_> {
    /// The uid itself, copied if it was borrowed.
    pub(crate) fn into_owned(self) -> EntityUid {
        match self {
            Self::Handle(uid) => EntityUid::new(uid.ty(), uid.id()),
            Self::Text(uid) => Rc::try_unwrap(uid).unwrap_or_else(|uid| EntityUid::new(uid.ty(), uid.id())),
        }
    }
}

impl PyEntityUid {
    /// A copy of the uid.
    pub(crate) fn to_owned_uid(&self) -> EntityUid {
        EntityUid::new(self.inner.ty(), self.inner.id())
    }
}

impl Deref for UidArg<'_> {
    type Target = EntityUid;

    #[inline]
    fn deref(&self) -> &EntityUid {
        match self {
            Self::Handle(uid) => uid,
            Self::Text(uid) => uid,
        }
    }
}

/// Accepts a prepared `EntityUid` or its text. Subclasses of `str` too, enumerations above all: their text is read from
/// the object and no method of theirs runs.
#[inline]
pub(crate) fn uid_arg<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<UidArg<'a>> {
    if let Ok(handle) = value.cast::<PyEntityUid>() {
        return Ok(UidArg::Handle(&handle.get().inner));
    }
    if let Ok(string) = value.cast_exact::<PyString>() {
        return read_text(string).map(UidArg::Text);
    }
    let text = value.cast::<PyString>()?.to_str()?;
    Ok(UidArg::Text(Rc::new(EntityUid::parse(text).map_err(Error::from)?)))
}
