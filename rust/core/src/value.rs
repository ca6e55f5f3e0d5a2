//! Cedar values in the two shapes the core needs.
//!
//! [`Val`] owns its data (entity attributes, folded constants, contexts read from JSON). [`Value`] is what the
//! evaluator works with: 24 bytes, `Copy`, borrowing from a `Val`, from an argument snapshot or from the request's
//! bump arena; no reference count is touched while deciding.
//!
//! Sets are kept sorted by [`Value::total_cmp`] and free of duplicates, records sorted by key, so equality, subset
//! and membership are merges and binary searches whatever the size of the operands.

use std::cmp::Ordering;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use crate::arguments::ArgumentRef;
use crate::uid::{EntityUid, hash_text};

/// An `ipaddr` value: address and prefix length. `127.0.0.1` and `127.0.0.1/32` are the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ip {
    /// The address as written, host bits included.
    pub addr: IpAddr,
    /// Prefix length in bits: at most 32 for v4, 128 for v6.
    pub prefix: u8,
}

/// An owned Cedar value.
#[derive(Debug, Clone)]
pub enum Val {
    /// `true` or `false`
    Bool(bool),
    /// 64-bit signed integer
    Long(i64),
    /// Text
    Str(Box<str>),
    /// Reference to an entity, which need not exist
    Entity(Arc<EntityUid>),
    /// `decimal`, in units of 10^-4
    Decimal(i64),
    /// `datetime`, milliseconds since 1970-01-01T00:00:00Z
    Datetime(i64),
    /// `duration`, milliseconds
    Duration(i64),
    /// `ipaddr`
    Ip(Box<Ip>),
    /// Sorted by [`Value::total_cmp`], no duplicates: build with [`Val::set`]
    Set(Box<[Val]>),
    /// Sorted by key, keys unique: build with [`Val::record`]
    Record(Box<[(Box<str>, Val)]>),
}

impl Val {
    /// Builds a set: sorts and removes duplicates.
    pub fn set(mut items: Vec<Self>) -> Self {
        items.sort_by(|a, b| a.as_value().total_cmp(&b.as_value()));
        items.dedup_by(|a, b| a.as_value().total_cmp(&b.as_value()) == Ordering::Equal);
        Self::Set(items.into_boxed_slice())
    }

    /// Builds a record: sorts by key; of two equal keys the later one wins.
    pub fn record(mut fields: Vec<(Box<str>, Self)>) -> Self {
        fields.reverse();
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        fields.dedup_by(|later, earlier| later.0 == earlier.0);
        Self::Record(fields.into_boxed_slice())
    }

    /// Borrows as an evaluator value.
    #[inline]
    pub fn as_value(&self) -> Value<'_> {
        match self {
            Self::Bool(b) => Value::Bool(*b),
            Self::Long(n) => Value::Long(*n),
            Self::Str(s) => Value::Str(s),
            Self::Entity(uid) => Value::Entity(uid),
            Self::Decimal(n) => Value::Decimal(*n),
            Self::Datetime(n) => Value::Datetime(*n),
            Self::Duration(n) => Value::Duration(*n),
            Self::Ip(ip) => Value::Ip(ip),
            Self::Set(items) => Value::Set(items),
            Self::Record(fields) => Value::Record(fields),
        }
    }
}

impl PartialEq for Val {
    fn eq(&self, other: &Self) -> bool {
        self.as_value().total_cmp(&other.as_value()) == Ordering::Equal
    }
}

impl Eq for Val {}

/// A borrowed Cedar value.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// `true` or `false`
    Bool(bool),
    /// 64-bit signed integer
    Long(i64),
    /// Text
    Str(&'a str),
    /// Reference to an entity, which need not exist
    Entity(&'a EntityUid),
    /// `decimal`, in units of 10^-4
    Decimal(i64),
    /// `datetime`, milliseconds since the epoch
    Datetime(i64),
    /// `duration`, milliseconds
    Duration(i64),
    /// `ipaddr`
    Ip(&'a Ip),
    /// A set that somebody owns
    Set(&'a [Val]),
    /// A set made during this evaluation: sorted, no duplicates
    SetTemp(&'a [Value<'a>]),
    /// A record that somebody owns: sorted by key
    Record(&'a [(Box<str>, Val)]),
    /// A record made during this evaluation: sorted by key, keys unique
    RecordTemp(&'a [(&'a str, Value<'a>)]),
    /// An object of the argument snapshot, read lazily
    RecordArgs(ArgumentRef<'a>),
    /// Something Cedar has no value for (a float with five digits, an integer beyond 64 bits): present, but reading it errs.
    Unrepresentable,
}

impl<'a> Value<'a> {
    /// Rank of the kind in the total order; kinds never compare equal to each other.
    const fn rank(&self) -> u8 {
        match self {
            Self::Bool(_) => 0,
            Self::Long(_) => 1,
            Self::Str(_) => 2,
            Self::Entity(_) => 3,
            Self::Decimal(_) => 4,
            Self::Datetime(_) => 5,
            Self::Duration(_) => 6,
            Self::Ip(_) => 7,
            Self::Set(_) | Self::SetTemp(_) => 8,
            Self::Record(_) | Self::RecordTemp(_) | Self::RecordArgs(_) => 9,
            Self::Unrepresentable => 10,
        }
    }

    /// A total order over all values; equality in it is Cedar's `==`.
    ///
    /// Argument objects must have been turned into `RecordTemp` first (see `eval::materialise`): an object compares by
    /// content only when its fields are sorted.
    pub fn total_cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Long(a), Self::Long(b))
            | (Self::Decimal(a), Self::Decimal(b))
            | (Self::Datetime(a), Self::Datetime(b))
            | (Self::Duration(a), Self::Duration(b)) => a.cmp(b),
            (Self::Str(a), Self::Str(b)) => a.cmp(b),
            (Self::Entity(a), Self::Entity(b)) => {
                if a == b {
                    Ordering::Equal
                } else {
                    a.cmp(b)
                }
            }
            (Self::Ip(a), Self::Ip(b)) => a.cmp(b),
            _ => match (self.elements(), other.elements(), self.fields(), other.fields()) {
                (Some(a), Some(b), ..) => a.cmp_by(b),
                (.., Some(a), Some(b)) => a.cmp_by(b),
                _ => self.rank().cmp(&other.rank()),
            },
        }
    }

    /// The elements if this is a set, sorted.
    #[inline]
    pub const fn elements(&self) -> Option<Elements<'a>> {
        match self {
            Self::Set(items) => Some(Elements::Owned(items)),
            Self::SetTemp(items) => Some(Elements::Temp(items)),
            _ => None,
        }
    }

    /// The fields if this is a record (argument objects excepted), sorted by key.
    #[inline]
    pub const fn fields(&self) -> Option<Fields<'a>> {
        match self {
            Self::Record(fields) => Some(Fields::Owned(fields)),
            Self::RecordTemp(fields) => Some(Fields::Temp(fields)),
            _ => None,
        }
    }
}

/// Elements of a set in ascending order.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// Owned elsewhere
    Owned(&'a [Val]),
    /// Made during this evaluation
    Temp(&'a [Value<'a>]),
}

impl<'a> Elements<'a> {
    /// Number of elements.
    #[inline]
    pub const fn len(self) -> usize {
        match self {
            Self::Owned(items) => items.len(),
            Self::Temp(items) => items.len(),
        }
    }

    /// Whether there is no element.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The element at `index`.
    #[inline]
    pub fn get(self, index: usize) -> Option<Value<'a>> {
        match self {
            Self::Owned(items) => items.get(index).map(Val::as_value),
            Self::Temp(items) => items.get(index).copied(),
        }
    }

    /// Iterates in ascending order.
    pub fn iter(self) -> impl Iterator<Item = Value<'a>> {
        (0..self.len()).filter_map(move |index| self.get(index))
    }

    /// Membership by binary search.
    pub fn contains(self, value: &Value<'_>) -> bool {
        match self {
            Self::Owned(items) => items.binary_search_by(|item| item.as_value().total_cmp(value)).is_ok(),
            Self::Temp(items) => items.binary_search_by(|item| item.total_cmp(value)).is_ok(),
        }
    }

    fn cmp_by(self, other: Elements<'_>) -> Ordering {
        let by_len = self.len().cmp(&other.len());
        if by_len != Ordering::Equal {
            return by_len;
        }
        for index in 0..self.len() {
            let (Some(a), Some(b)) = (self.get(index), other.get(index)) else { break };
            let order = a.total_cmp(&b);
            if order != Ordering::Equal {
                return order;
            }
        }
        Ordering::Equal
    }
}

/// Fields of a record in ascending order of their keys.
#[derive(Debug, Clone, Copy)]
pub enum Fields<'a> {
    /// Owned elsewhere
    Owned(&'a [(Box<str>, Val)]),
    /// Made during this evaluation
    Temp(&'a [(&'a str, Value<'a>)]),
}

impl<'a> Fields<'a> {
    /// Number of fields.
    #[inline]
    pub const fn len(self) -> usize {
        match self {
            Self::Owned(fields) => fields.len(),
            Self::Temp(fields) => fields.len(),
        }
    }

    /// Whether there is no field.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The field at `index`.
    #[inline]
    pub fn at(self, index: usize) -> Option<(&'a str, Value<'a>)> {
        match self {
            Self::Owned(fields) => fields.get(index).map(|(key, value)| (&**key, value.as_value())),
            Self::Temp(fields) => fields.get(index).copied(),
        }
    }

    /// The field named `key`.
    #[inline]
    pub fn get(self, key: &str) -> Option<Value<'a>> {
        match self {
            Self::Owned(fields) => field(fields, key).map(Val::as_value),
            Self::Temp(fields) if fields.len() <= LINEAR_MAX => {
                fields.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
            }
            Self::Temp(fields) => {
                fields.binary_search_by(|(name, _)| (*name).cmp(key)).ok().and_then(|at| fields.get(at)).map(|f| f.1)
            }
        }
    }

    fn cmp_by(self, other: Fields<'_>) -> Ordering {
        let by_len = self.len().cmp(&other.len());
        if by_len != Ordering::Equal {
            return by_len;
        }
        for index in 0..self.len() {
            let (Some((ka, a)), Some((kb, b))) = (self.at(index), other.at(index)) else { break };
            let order = ka.cmp(kb).then_with(|| a.total_cmp(&b));
            if order != Ordering::Equal {
                return order;
            }
        }
        Ordering::Equal
    }
}

/// Up to this many fields a linear scan (length compare first) beats a binary search.
const LINEAR_MAX: usize = 8;

/// Looks up one field of an owned record.
#[inline]
pub fn field<'a>(fields: &'a [(Box<str>, Val)], key: &str) -> Option<&'a Val> {
    if fields.len() <= LINEAR_MAX {
        return fields.iter().find(|(name, _)| **name == *key).map(|(_, value)| value);
    }
    fields.binary_search_by(|(name, _)| (**name).cmp(key)).ok().and_then(|at| fields.get(at)).map(|f| &f.1)
}

/// Seeds the hashes of numbers and patterns: policy text may come from outside, and constants chosen to collide would
/// make loading quadratic.
pub(crate) static SEED: LazyLock<foldhash::quality::RandomState> = LazyLock::new(Default::default);

/// Hash of a value that can be a bucket's key; sets and records cannot.
pub(crate) fn key_hash(value: &Value<'_>) -> Option<u64> {
    let mix = |kind: u8, n: i64| SEED.hash_one((kind, n));
    Some(match value {
        Value::Str(text) => hash_text(text),
        Value::Entity(uid) => uid.hash(),
        Value::Bool(b) => mix(1, i64::from(*b)),
        Value::Long(n) => mix(2, *n),
        Value::Decimal(n) => mix(3, *n),
        Value::Datetime(n) => mix(4, *n),
        Value::Duration(n) => mix(5, *n),
        _ => return None,
    })
}
