//! The entity store: attributes, tags and the closed parent relation, as an immutable snapshot.
//!
//! An [`Entities`] is up to three layers behind `Arc`s: a base, a delta that holds everything changed since the base
//! was built, and the additional entities of one request. A layer never changes once built, so a snapshot is cloned by
//! three counters, shared between threads without a lock, and looked up without touching a counter. A layer *names*
//! uids (gives them a slot, a `u32`, unique in the snapshot) and holds one entry for each uid it names and one for each
//! uid of a lower layer that it overrides. A uid that is only mentioned as a parent has an entry without data.
//!
//! Ancestors are closed when a layer is built (`build.rs`), so `in` is one probe and a search in a sorted slice of
//! slots. Parents need not exist: an absent parent is an ancestor by name and contributes no further ones.
//!
//! What this module refuses: parent cycles, two different entities of one uid, and stores beyond the bounds in
//! [`crate::limits`]. It does not read Cedar text and does not decide anything. Semantics are those of the reference's
//! entity store; the layering is the usual immutable base with a copied-on-write delta of log-structured stores.

mod build;
mod dump;
mod load;

use std::fmt;
use std::sync::Arc;

use hashbrown::HashTable;

use self::build::Builder;
pub(crate) use self::dump::entity_json_text;
pub use self::load::{context_from_json, context_from_json_with_schema, read_json};
use super::error::{PolicyError, PolicyErrors};
use crate::limits;
use crate::uid::EntityUid;
use crate::value::{Val, field};

/// One attribute, tag or record field.
pub type Field = (Box<str>, Val);

/// One entity as it is handed in: nothing closed, nothing sorted.
#[derive(Debug, Clone)]
pub struct EntityData {
    /// Who it is
    pub uid: Arc<EntityUid>,
    /// Attributes in any order; a name may occur once
    pub attrs: Vec<Field>,
    /// Tags in any order; a name may occur once
    pub tags: Vec<Field>,
    /// Direct parents in any order, which need not exist; repetitions are ignored
    pub parents: Vec<Arc<EntityUid>>,
}

impl EntityData {
    /// An entity without attributes, tags and parents.
    pub fn new(uid: impl Into<Arc<EntityUid>>) -> Self {
        Self { uid: uid.into(), attrs: Vec::new(), tags: Vec::new(), parents: Vec::new() }
    }
}

/// An immutable entity store; see the module's description.
#[derive(Clone)]
pub struct Entities {
    base: Arc<Layer>,
    delta: Option<Arc<Layer>>,
    extra: Option<Arc<Layer>>,
}

impl Default for Entities {
    fn default() -> Self {
        Self::empty()
    }
}

impl Entities {
    /// A store without entities.
    pub fn empty() -> Self {
        Self { base: Arc::new(Layer::default()), delta: None, extra: None }
    }

    /// Builds a store. Identical duplicates are taken once; different ones, cycles and stores that are too large are
    /// errors.
    pub fn from_data(data: Vec<EntityData>) -> Result<Self, PolicyErrors> {
        let mut builder = Builder::new(&[], &[]);
        for entity in data {
            builder.insert(entity)?;
        }
        Ok(Self { base: Arc::new(builder.finish()?), delta: None, extra: None })
    }

    /// Reads Cedar's entity JSON exactly as the reference does, see [`read_json`].
    pub fn from_json(text: &str, schema: Option<&cedar_policy::Schema>) -> Result<Self, PolicyErrors> {
        Self::from_data(read_json(text, schema)?)
    }

    /// Removes, then inserts or replaces, in a delta over the shared base. The result is what building from scratch
    /// with the changed list of entities gives. Removing an absent entity changes nothing. Additional entities of
    /// [`Entities::with_additional`] become part of the result.
    ///
    /// Costs one pass over the delta, plus the descendants of entities whose parents or existence changed (found by a
    /// reverse index of direct parents); the base is neither copied nor scanned.
    pub fn update(&self, upserts: Vec<EntityData>, removals: &[EntityUid]) -> Result<Self, PolicyErrors> {
        let merged: Vec<&Layer> = self.delta.as_deref().into_iter().chain(self.extra.as_deref()).collect();
        let mut builder = Builder::new(&[&self.base], &merged);
        for uid in removals {
            builder.remove(uid);
        }
        for entity in upserts {
            builder.replace(entity)?;
        }
        let delta = Some(Arc::new(builder.finish()?));
        Ok(Self { base: Arc::clone(&self.base), delta, extra: None })
    }

    /// Adds the entities of one request in a layer of their own. An entity that is already there must be identical
    /// (attributes, tags and direct parents).
    pub fn with_additional(&self, additional: Vec<EntityData>) -> Result<Self, PolicyErrors> {
        if additional.is_empty() {
            return Ok(self.clone());
        }
        let below: Vec<&Layer> = self.delta.as_deref().into_iter().chain([&*self.base]).collect();
        let merged: Vec<&Layer> = self.extra.as_deref().into_iter().collect();
        let mut builder = Builder::new(&below, &merged);
        for entity in additional {
            builder.insert(entity)?;
        }
        let extra = Some(Arc::new(builder.finish()?));
        Ok(Self { base: Arc::clone(&self.base), delta: self.delta.clone(), extra })
    }

    /// The same content in one layer, without the uids that nothing mentions any more. Attributes are shared, not
    /// copied. Costs about as much as building the store; a store that cannot be closed in one go within the bounds
    /// stays as it is.
    #[must_use]
    pub fn compact(&self) -> Self {
        let mut builder = Builder::new(&[], &[]);
        let copied = self.iter().try_for_each(|entity| builder.copy(&entity));
        match copied.and_then(|()| builder.finish()) {
            Ok(base) => Self { base: Arc::new(base), delta: None, extra: None },
            Err(_) => self.clone(),
        }
    }

    /// Whether the delta has grown so far that carrying it along costs more than [`Entities::compact`] would save.
    pub fn needs_compaction(&self) -> bool {
        let entries = self.delta.as_ref().map_or(0, |layer| layer.entries.len());
        let pairs = self.delta.as_ref().map_or(0, |layer| layer.arena.len());
        entries > limits::ENTITY_DELTA_MAX || pairs > limits::ENTITY_DELTA_PAIRS_MAX
    }

    /// Number of entities.
    pub fn len(&self) -> usize {
        self.top().present
    }

    /// Whether there is no entity.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entity `uid`: no allocation, one probe per layer.
    #[inline]
    pub fn get(&self, uid: &EntityUid) -> Option<EntityRef<'_>> {
        let (layer, entry) = self.find(uid)?;
        entry.present.then_some(EntityRef { store: self, layer, entry })
    }

    /// All entities, in no meaningful order.
    pub fn iter(&self) -> impl Iterator<Item = EntityRef<'_>> {
        let layers = [Some(&*self.base), self.delta.as_deref(), self.extra.as_deref()];
        let uppers = [self.delta.as_deref(), self.extra.as_deref(), None];
        layers.into_iter().enumerate().filter_map(|(depth, layer)| Some((depth, layer?))).flat_map(
            move |(depth, layer)| {
                layer.entries.iter().filter(|entry| entry.present).filter_map(move |entry| {
                    let shadowed = uppers.iter().skip(depth).flatten().any(|upper| upper.by_slot(entry.slot).is_some());
                    (!shadowed).then_some(EntityRef { store: self, layer, entry })
                })
            },
        )
    }

    /// Approximate bytes held by all layers, those shared with other snapshots included.
    pub fn memory_bytes(&self) -> usize {
        let layers = [Some(&self.base), self.delta.as_ref(), self.extra.as_ref()];
        layers.into_iter().flatten().map(|layer| layer.memory_bytes()).sum()
    }

    fn top(&self) -> &Layer {
        self.extra.as_deref().or(self.delta.as_deref()).unwrap_or(&self.base)
    }

    #[inline]
    fn find(&self, uid: &EntityUid) -> Option<(&Layer, &Entry)> {
        if let Some(extra) = &self.extra
            && let Some(entry) = extra.find(uid)
        {
            return Some((extra, entry));
        }
        if let Some(delta) = &self.delta
            && let Some(entry) = delta.find(uid)
        {
            return Some((delta, entry));
        }
        self.base.find(uid).map(|entry| (&*self.base, entry))
    }

    /// The uid that `slot` was given to.
    #[inline]
    fn uid_at(&self, slot: u32) -> Option<&Arc<EntityUid>> {
        let named_by = |layer: &&Arc<Layer>| slot >= layer.first_slot;
        let layer = self.extra.as_ref().filter(named_by).or(self.delta.as_ref().filter(named_by)).unwrap_or(&self.base);
        let index = slot.checked_sub(layer.first_slot)?;
        layer.entries.get(index as usize).map(|entry| &entry.uid)
    }
}

impl fmt::Debug for Entities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entities({} entities)", self.len())
    }
}

/// Up to this many ancestors are compared one by one (hash first), which needs no probe of the uid table.
const SCAN_MAX: usize = 4;

/// One entity of a store.
#[derive(Clone, Copy)]
pub struct EntityRef<'a> {
    store: &'a Entities,
    layer: &'a Layer,
    entry: &'a Entry,
}

impl<'a> EntityRef<'a> {
    /// Who it is.
    #[inline]
    pub fn uid(&self) -> &'a Arc<EntityUid> {
        &self.entry.uid
    }

    /// Attributes, sorted by name.
    #[inline]
    pub fn attrs(&self) -> &'a [Field] {
        &self.entry.attrs
    }

    /// Tags, sorted by name.
    #[inline]
    pub fn tags(&self) -> &'a [Field] {
        &self.entry.tags
    }

    /// The attribute `name`.
    #[inline]
    pub fn attr(&self, name: &str) -> Option<&'a Val> {
        field(&self.entry.attrs, name)
    }

    /// The tag `name`.
    #[inline]
    pub fn tag(&self, name: &str) -> Option<&'a Val> {
        field(&self.entry.tags, name)
    }

    /// Whether `uid` is a strict ancestor; that `in` is reflexive is the evaluator's part.
    #[inline]
    pub fn has_ancestor(&self, uid: &EntityUid) -> bool {
        let ancestors = self.layer.span(self.entry.ancestors);
        if ancestors.len() <= SCAN_MAX {
            return ancestors.iter().any(|slot| self.store.uid_at(*slot).is_some_and(|ancestor| **ancestor == *uid));
        }
        self.store.find(uid).is_some_and(|(_, entry)| ancestors.binary_search(&entry.slot).is_ok())
    }

    /// Number of strict ancestors.
    #[inline]
    pub fn ancestors_len(&self) -> usize {
        self.layer.span(self.entry.ancestors).len()
    }

    /// Strict ancestors, those that do not exist included, in no meaningful order.
    #[inline]
    pub fn ancestors(&self) -> impl Iterator<Item = &'a EntityUid> + use<'a> {
        let store = self.store;
        self.layer.span(self.entry.ancestors).iter().filter_map(move |slot| store.uid_at(*slot).map(|uid| &**uid))
    }

    /// Direct parents, those that do not exist included, in no meaningful order.
    #[inline]
    pub fn parents(&self) -> impl Iterator<Item = &'a Arc<EntityUid>> + use<'a> {
        let store = self.store;
        self.layer.span(self.entry.parents).iter().filter_map(move |slot| store.uid_at(*slot))
    }
}

impl fmt::Debug for EntityRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.entry.uid, f)
    }
}

/// A piece of a layer's arena.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    at: u32,
    len: u32,
}

/// What a layer says about one uid. The topmost layer that has an entry for a uid is right.
struct Entry {
    uid: Arc<EntityUid>,
    slot: u32,
    /// False for a uid that is only mentioned, and for one that this layer removes.
    present: bool,
    parents: Span,
    ancestors: Span,
    attrs: Arc<[Field]>,
    tags: Arc<[Field]>,
}

#[derive(Default)]
struct Layer {
    /// Slots from here up to the number of names belong to this layer; `entries` starts with them, in order.
    first_slot: u32,
    names: u32,
    /// Names, then overrides of lower layers sorted by slot.
    entries: Vec<Entry>,
    /// Indices into `entries` by uid.
    table: HashTable<u32>,
    /// Slots: ancestors (sorted) and parents (sorted) of the entries.
    arena: Vec<u32>,
    /// Parent and child of every direct edge of this layer's entries, sorted: the reverse index.
    children: Vec<(u32, u32)>,
    /// Entities seen through this layer and everything below it.
    present: usize,
    /// Arena slots of the layers below this one.
    pairs_below: usize,
}

impl Layer {
    #[inline]
    fn find(&self, uid: &EntityUid) -> Option<&Entry> {
        let is_it = |index: &u32| self.entries.get(*index as usize).is_some_and(|entry| *entry.uid == *uid);
        let index = self.table.find(uid.hash(), is_it)?;
        self.entries.get(*index as usize)
    }

    #[inline]
    fn by_slot(&self, slot: u32) -> Option<&Entry> {
        match slot.checked_sub(self.first_slot) {
            Some(index) if index < self.names => self.entries.get(index as usize),
            Some(_) => None,
            None => {
                let overrides = self.entries.get(self.names as usize..)?;
                overrides.binary_search_by_key(&slot, |entry| entry.slot).ok().and_then(|at| overrides.get(at))
            }
        }
    }

    #[inline]
    fn span(&self, span: Span) -> &[u32] {
        let at = span.at as usize;
        self.arena.get(at..at.saturating_add(span.len as usize)).unwrap_or_default()
    }

    fn children_of(&self, parent: u32) -> impl Iterator<Item = u32> {
        children_in(&self.children, parent)
    }

    fn memory_bytes(&self) -> usize {
        // A table slot is four bytes and a control byte, at a load of at most 7/8.
        let table = self.table.capacity().saturating_mul(6);
        let edges = self.children.capacity().saturating_mul(8);
        let flat = table.saturating_add(edges).saturating_add(self.arena.capacity().saturating_mul(4));
        self.entries.iter().fold(flat, |sum, entry| {
            let fields = fields_bytes(&entry.attrs).saturating_add(fields_bytes(&entry.tags));
            sum.saturating_add(size_of::<Entry>()).saturating_add(uid_bytes(&entry.uid)).saturating_add(fields)
        })
    }
}

/// Children of `parent` in a list of (parent, child) sorted by parent.
fn children_in(edges: &[(u32, u32)], parent: u32) -> impl Iterator<Item = u32> {
    let start = edges.partition_point(|edge| edge.0 < parent);
    let rest = edges.get(start..).unwrap_or_default();
    rest.iter().take_while(move |edge| edge.0 == parent).map(|edge| edge.1)
}

fn uid_bytes(uid: &EntityUid) -> usize {
    // The value, its text and two counters.
    size_of::<EntityUid>().saturating_add(uid.ty().len()).saturating_add(uid.id().len()).saturating_add(16)
}

fn fields_bytes(fields: &[Field]) -> usize {
    fields.iter().fold(0, |sum, (name, value)| {
        sum.saturating_add(size_of::<Field>()).saturating_add(name.len()).saturating_add(value_bytes(value))
    })
}

/// Bytes behind a value, without the value itself. Referenced entities are counted each time they occur.
fn value_bytes(value: &Val) -> usize {
    match value {
        Val::Bool(_) | Val::Long(_) | Val::Decimal(_) | Val::Datetime(_) | Val::Duration(_) => 0,
        Val::Str(text) => text.len(),
        Val::Entity(uid) => uid_bytes(uid),
        Val::Ip(ip) => size_of_val(&**ip),
        Val::Set(items) => items.iter().fold(size_of_val(&**items), |sum, item| sum.saturating_add(value_bytes(item))),
        Val::Record(fields) => fields_bytes(fields),
    }
}

/// An error of this module that has no place in a text.
fn refuse(code: &'static str, message: String, help: Option<&str>) -> PolicyErrors {
    let error = PolicyError::new(code, message);
    match help {
        Some(help) => error.help(help).into(),
        None => error.into(),
    }
}

/// A uid for an error message: whole if it is short.
fn shown(uid: &EntityUid) -> String {
    const SHOWN_CHARS_MAX: usize = 48;
    let text = uid.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
