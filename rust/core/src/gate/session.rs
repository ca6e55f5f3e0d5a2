//! What a session has seen: a set of labels that only grows, the same in every process of the host.
//!
//! The set lies in the control table as bits. What a check needs of it, the set as a value for policies and as a member
//! of its entry, is made once for each set of bits and kept.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::control::{Control, SessionRef};
use super::evidence::labels_member;
use crate::policy::error::PolicyError;
use crate::value::Val;

/// Labels as a check reads them.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) mask: u64,
    /// A set of texts
    pub(super) labels: Val,
    /// `,"labels":[...]`, empty for none
    pub(super) fragment: Box<[u8]>,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    id: Box<str>,
    control: Arc<Control>,
    /// `None` for one whose labels are those that were recorded
    place: Option<SessionRef>,
    seen: ArcSwap<Seen>,
}

impl Session {
    pub(super) fn new(id: &str, control: &Arc<Control>) -> Self {
        let none = Seen { mask: 0, labels: Val::set(Vec::new()), fragment: Box::default() };
        Self {
            id: id.into(),
            control: Arc::clone(control),
            place: Some(control.session(id)),
            seen: ArcSwap::from_pointee(none),
        }
    }

    /// A session as a log tells of it: with these labels, whatever it has seen since.
    pub(super) fn recorded(id: &str, labels: &[String], control: &Arc<Control>) -> Self {
        let labels = Val::set(labels.iter().map(|label| Val::Str(label.as_str().into())).collect());
        let fragment = labels_member(&labels);
        // Every bit: there is no label that it could still be given.
        let seen = ArcSwap::from_pointee(Seen { mask: u64::MAX, labels, fragment });
        Self { id: id.into(), control: Arc::clone(control), place: None, seen }
    }

    pub(super) const fn id(&self) -> &str {
        &self.id
    }

    /// What it has seen by now.
    #[inline]
    pub(super) fn seen(&self, now_ms: i64) -> Guard<Arc<Seen>> {
        let seen = self.seen.load();
        let Some(place) = &self.place else { return seen };
        let mask = self.control.seen(place, now_ms);
        if seen.mask == mask { seen } else { self.look(mask) }
    }

    #[cold]
    fn look(&self, mask: u64) -> Guard<Arc<Seen>> {
        let names = self.control.labels();
        let known = names.iter().zip(0_u32..).filter(|(_, bit)| (mask >> bit) & 1 == 1);
        let known: Vec<&str> = known.map(|(name, _)| &**name).collect();
        let labels = Val::set(known.iter().map(|name| Val::Str((*name).into())).collect());
        let fragment = labels_member(&labels);
        // A bit without a name yet: looked at again by the next check.
        let complete = known.len() == mask.count_ones() as usize;
        let seen = Arc::new(Seen { mask: if complete { mask } else { !mask }, labels, fragment });
        self.seen.store(Arc::clone(&seen));
        Guard::from_inner(seen)
    }

    /// Adds labels that were given by name.
    pub(super) fn add_named(&self, labels: &[String], now_ms: i64) -> Result<(), PolicyError> {
        if labels.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = labels.iter().map(String::as_str).collect();
        let mask =
            self.control.labels_mask(&names).map_err(|error| PolicyError::new("scope.invalid", error.to_string()))?;
        self.add(mask, now_ms);
        Ok(())
    }

    /// Adds labels by their bits. They stay, whatever happens to this process.
    pub(super) fn add(&self, mask: u64, now_ms: i64) {
        if let Some(place) = &self.place {
            self.control.add(place, mask, now_ms);
        }
    }
}
