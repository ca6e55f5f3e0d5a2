//! Builds one layer: names uids, applies changes, closes ancestors, finds cycles.
//!
//! Only entities whose parents or existence changed, and their descendants, are closed again. Any new cycle passes
//! through such an entity, so all of it lies in that set. The closure is a depth-first search with its own stack (a
//! chain as long as the store costs no thread stack) that finishes parents before children; the ancestors of an entity
//! are the union of its parents and their ancestors. Both the number of pairs and the steps taken for them are bounded.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashTable;

use super::{EntityData, EntityRef, Entry, Field, Layer, Span, children_in, refuse, shown};
use crate::limits;
use crate::policy::error::PolicyErrors;
use crate::uid::EntityUid;

/// Ancestors of a draft: as they were, or closed anew.
#[derive(Clone, Copy)]
enum Pairs<'a> {
    Kept(&'a [u32]),
    Closed(Span),
}

/// An entry in the making.
struct Draft<'a> {
    uid: Arc<EntityUid>,
    present: bool,
    attrs: Arc<[Field]>,
    tags: Arc<[Field]>,
    parents: Cow<'a, [u32]>,
    ancestors: Pairs<'a>,
    /// Set by a change of this builder, so that a second one for the same uid is noticed.
    changed: bool,
    /// Its parents or its existence changed.
    moved: bool,
}

impl<'a> Draft<'a> {
    fn named(uid: Arc<EntityUid>) -> Self {
        Self {
            uid,
            present: false,
            attrs: Arc::default(),
            tags: Arc::default(),
            parents: Cow::Borrowed(&[]),
            ancestors: Pairs::Kept(&[]),
            changed: false,
            moved: false,
        }
    }

    fn kept(layer: &'a Layer, entry: &'a Entry) -> Self {
        Self {
            uid: Arc::clone(&entry.uid),
            present: entry.present,
            attrs: Arc::clone(&entry.attrs),
            tags: Arc::clone(&entry.tags),
            parents: Cow::Borrowed(layer.span(entry.parents)),
            ancestors: Pairs::Kept(layer.span(entry.ancestors)),
            changed: false,
            moved: false,
        }
    }
}

/// Attributes and tags, sorted, and direct parents as sorted slots.
struct Content {
    attrs: Arc<[Field]>,
    tags: Arc<[Field]>,
    parents: Vec<u32>,
}

impl Content {
    fn equals(&self, draft: &Draft<'_>) -> bool {
        self.parents == *draft.parents && self.attrs == draft.attrs && self.tags == draft.tags
    }
}

pub(super) struct Builder<'a> {
    /// Layers that stay as they are, the topmost first.
    below: Vec<&'a Layer>,
    first_slot: u32,
    names: Vec<Draft<'a>>,
    name_table: HashTable<u32>,
    overrides: BTreeMap<u32, Draft<'a>>,
}

impl<'a> Builder<'a> {
    /// A builder over the layers `below` (the topmost first) whose new layer also replaces the layers `merged` (the
    /// lowest first), which lie on top of `below`. Slots stay what they were.
    pub(super) fn new(below: &[&'a Layer], merged: &[&'a Layer]) -> Self {
        let first_slot = below.first().map_or(0, |layer| layer.first_slot.saturating_add(layer.names));
        let mut builder = Self {
            below: below.to_vec(),
            first_slot,
            names: Vec::new(),
            name_table: HashTable::new(),
            overrides: BTreeMap::new(),
        };
        for layer in merged {
            for entry in &layer.entries {
                builder.keep(layer, entry);
            }
        }
        builder
    }

    fn keep(&mut self, layer: &'a Layer, entry: &'a Entry) {
        let draft = Draft::kept(layer, entry);
        match entry.slot.checked_sub(self.first_slot) {
            None => {
                self.overrides.insert(entry.slot, draft);
            }
            Some(index) => match self.names.get_mut(index as usize) {
                Some(name) => *name = draft,
                // Lower layers come first and each starts with its names in order: this is the next one.
                None => self.push_name(index, draft),
            },
        }
    }

    fn push_name(&mut self, index: u32, draft: Draft<'a>) {
        let hash = draft.uid.hash();
        self.names.push(draft);
        let names = &self.names;
        self.name_table.insert_unique(hash, index, |at| names.get(*at as usize).map_or(0, |name| name.uid.hash()));
    }

    /// Inserts an entity; one that is already there, in this builder or below, must be identical.
    pub(super) fn insert(&mut self, data: EntityData) -> Result<(), PolicyErrors> {
        let (uid, content) = self.content(data)?;
        let draft = self.draft(&uid)?;
        if draft.present {
            return if content.equals(draft) { Ok(()) } else { Err(duplicate(&uid)) };
        }
        put(draft, content);
        Ok(())
    }

    /// Inserts an entity, or replaces what was there before this builder.
    pub(super) fn replace(&mut self, data: EntityData) -> Result<(), PolicyErrors> {
        let (uid, content) = self.content(data)?;
        let draft = self.draft(&uid)?;
        if draft.changed && draft.present {
            return if content.equals(draft) { Ok(()) } else { Err(duplicate(&uid)) };
        }
        put(draft, content);
        Ok(())
    }

    /// Takes over an entity of another store.
    pub(super) fn copy(&mut self, entity: &EntityRef<'_>) -> Result<(), PolicyErrors> {
        let mut parents = Vec::new();
        for parent in entity.parents() {
            parents.push(self.slot(parent)?);
        }
        parents.sort_unstable();
        let content = Content { attrs: Arc::clone(&entity.entry.attrs), tags: Arc::clone(&entity.entry.tags), parents };
        let uid = Arc::clone(entity.uid());
        put(self.draft(&uid)?, content);
        Ok(())
    }

    /// Removes an entity if it is there.
    pub(super) fn remove(&mut self, uid: &EntityUid) {
        let Some(slot) = self.find(uid) else { return };
        let Some(draft) = self.draft_at(slot) else { return };
        if draft.present {
            draft.present = false;
            draft.attrs = Arc::default();
            draft.tags = Arc::default();
            draft.parents = Cow::Borrowed(&[]);
            draft.ancestors = Pairs::Kept(&[]);
            draft.changed = true;
            draft.moved = true;
        }
    }

    fn content(&mut self, data: EntityData) -> Result<(Arc<EntityUid>, Content), PolicyErrors> {
        let attrs = sorted_fields(&data.uid, "attribute", data.attrs)?;
        let tags = sorted_fields(&data.uid, "tag", data.tags)?;
        self.slot(&data.uid)?;
        let mut parents = Vec::with_capacity(data.parents.len());
        for parent in &data.parents {
            parents.push(self.slot(parent)?);
        }
        parents.sort_unstable();
        parents.dedup();
        Ok((data.uid, Content { attrs, tags, parents }))
    }

    fn find(&self, uid: &EntityUid) -> Option<u32> {
        if let Some(entry) = self.below.iter().find_map(|layer| layer.find(uid)) {
            return Some(entry.slot);
        }
        let is_it = |index: &u32| self.names.get(*index as usize).is_some_and(|name| *name.uid == *uid);
        self.name_table.find(uid.hash(), is_it).map(|index| self.first_slot.saturating_add(*index))
    }

    /// The slot of `uid`, which is named if nobody did before.
    fn slot(&mut self, uid: &Arc<EntityUid>) -> Result<u32, PolicyErrors> {
        if let Some(slot) = self.find(uid) {
            return Ok(slot);
        }
        let index = self.names.len();
        let total = index.saturating_add(self.first_slot as usize);
        if total >= limits::ENTITIES_MAX {
            let message = format!("more than {} entities and parents in one store", limits::ENTITIES_MAX);
            return Err(refuse("entities.too_large", message, None));
        }
        let index = u32::try_from(index).map_err(|_| too_many_pairs())?;
        self.push_name(index, Draft::named(Arc::clone(uid)));
        Ok(self.first_slot.saturating_add(index))
    }

    /// The draft of `uid`, which is named if nobody did before.
    fn draft(&mut self, uid: &Arc<EntityUid>) -> Result<&mut Draft<'a>, PolicyErrors> {
        let slot = self.slot(uid)?;
        self.draft_at(slot).ok_or_else(|| refuse("entities.too_large", "entity slot out of range".to_owned(), None))
    }

    /// The draft for `slot`, copied from below if this builder has none yet.
    fn draft_at(&mut self, slot: u32) -> Option<&mut Draft<'a>> {
        if let Some(index) = slot.checked_sub(self.first_slot) {
            return self.names.get_mut(index as usize);
        }
        if !self.overrides.contains_key(&slot) {
            let (layer, entry) = self.entry_below(slot)?;
            self.overrides.insert(slot, Draft::kept(layer, entry));
        }
        self.overrides.get_mut(&slot)
    }

    fn drafted(&self, slot: u32) -> Option<&Draft<'a>> {
        match slot.checked_sub(self.first_slot) {
            Some(index) => self.names.get(index as usize),
            None => self.overrides.get(&slot),
        }
    }

    fn entry_below(&self, slot: u32) -> Option<(&'a Layer, &'a Entry)> {
        self.below.iter().find_map(|layer| layer.by_slot(slot).map(|entry| (*layer, entry)))
    }

    fn slots_len(&self) -> usize {
        self.names.len().saturating_add(self.first_slot as usize)
    }

    fn drafts(&self) -> impl Iterator<Item = (u32, &Draft<'a>)> {
        let names = (self.first_slot..).zip(&self.names);
        names.chain(self.overrides.iter().map(|(slot, draft)| (*slot, draft)))
    }

    /// Direct edges of all drafts as (parent, child), sorted.
    fn edges(&self) -> Vec<(u32, u32)> {
        let mut edges = Vec::new();
        for (child, draft) in self.drafts() {
            edges.extend(draft.parents.iter().map(|parent| (*parent, child)));
        }
        edges.sort_unstable();
        edges
    }

    /// Closes what changed and everything under it.
    pub(super) fn finish(mut self) -> Result<Layer, PolicyErrors> {
        let edges = self.edges();
        let mut marks = vec![Mark::Settled; self.slots_len()];
        let drafts_before = self.overrides.len();
        let open = self.open_descendants(&edges, &mut marks);
        let arena = Closure::new(&mut self, marks)?.run(&open)?;
        // Descendants that were only in lower layers have become drafts, so their edges belong to this layer now.
        let edges = if self.overrides.len() == drafts_before { edges } else { self.edges() };
        self.into_layer(arena, edges)
    }

    /// Marks what has to be closed again: every draft that moved and all its descendants, which become drafts.
    fn open_descendants(&mut self, edges: &[(u32, u32)], marks: &mut [Mark]) -> Vec<u32> {
        let mut open: Vec<u32> = self.drafts().filter(|(_, draft)| draft.moved).map(|(slot, _)| slot).collect();
        for slot in &open {
            set(marks, *slot, Mark::Open);
        }
        let mut next = 0_usize;
        while let Some(slot) = open.get(next).copied() {
            next = next.saturating_add(1);
            let from_drafts = children_in(edges, slot);
            for child in from_drafts.chain(self.children_below(slot)) {
                if marks.get(child as usize) == Some(&Mark::Settled) {
                    set(marks, child, Mark::Open);
                    open.push(child);
                }
            }
        }
        for slot in &open {
            self.draft_at(*slot);
        }
        open
    }

    /// Children of `parent` in the layers below that nothing above their layer overrides.
    fn children_below(&self, parent: u32) -> impl Iterator<Item = u32> {
        self.below.iter().enumerate().flat_map(move |(depth, layer)| {
            layer.children_of(parent).filter(move |child| {
                let above = self.below.iter().take(depth);
                self.drafted(*child).is_none() && above.into_iter().all(|upper| upper.by_slot(*child).is_none())
            })
        })
    }

    fn into_layer(self, mut arena: Vec<u32>, children: Vec<(u32, u32)>) -> Result<Layer, PolicyErrors> {
        let present = self.present();
        let names = u32::try_from(self.names.len()).map_err(|_| too_many_pairs())?;
        let count = self.names.len().saturating_add(self.overrides.len());
        let mut entries = Vec::with_capacity(count);
        let mut table = HashTable::with_capacity(count);
        let new = (self.first_slot..).zip(self.names);
        for (slot, draft) in new.chain(self.overrides) {
            let parents = push_span(&mut arena, &draft.parents)?;
            let ancestors = match draft.ancestors {
                Pairs::Closed(span) => span,
                Pairs::Kept(slots) => push_span(&mut arena, slots)?,
            };
            let hash = draft.uid.hash();
            let Draft { uid, present, attrs, tags, .. } = draft;
            let index = u32::try_from(entries.len()).map_err(|_| too_many_pairs())?;
            entries.push(Entry { uid, slot, present, parents, ancestors, attrs, tags });
            table.insert_unique(hash, index, |at: &u32| {
                entries.get(*at as usize).map_or(0, |entry: &Entry| entry.uid.hash())
            });
        }
        arena.shrink_to_fit();
        let pairs_below = self.below.first().map_or(0, |layer| layer.pairs_below.saturating_add(layer.arena.len()));
        Ok(Layer { first_slot: self.first_slot, names, entries, table, arena, children, present, pairs_below })
    }

    /// Entities seen through the new layer.
    fn present(&self) -> usize {
        let mut count = self.below.first().map_or(0, |layer| layer.present);
        for (slot, draft) in self.drafts() {
            let before = self.entry_below(slot).is_some_and(|(_, entry)| entry.present);
            count = count.saturating_add(usize::from(draft.present)).saturating_sub(usize::from(before));
        }
        count
    }
}

fn put(draft: &mut Draft<'_>, content: Content) {
    draft.moved |= !draft.present || content.parents != *draft.parents;
    draft.present = true;
    draft.changed = true;
    draft.attrs = content.attrs;
    draft.tags = content.tags;
    draft.parents = Cow::Owned(content.parents);
}

fn sorted_fields(uid: &EntityUid, kind: &str, mut fields: Vec<Field>) -> Result<Arc<[Field]>, PolicyErrors> {
    if fields.is_empty() {
        return Ok(Arc::default());
    }
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    let twice = fields.windows(2).find_map(|pair| match pair {
        [a, b] if a.0 == b.0 => Some(&a.0),
        _ => None,
    });
    match twice {
        Some(name) => {
            let name: String = name.chars().take(80).collect();
            let message = format!("{kind} `{name}` occurs twice on `{}`", shown(uid));
            Err(refuse("entities.duplicate", message, None))
        }
        None => Ok(Arc::from(fields)),
    }
}

fn push_span(arena: &mut Vec<u32>, slots: &[u32]) -> Result<Span, PolicyErrors> {
    let at = u32::try_from(arena.len()).map_err(|_| too_many_pairs())?;
    let len = u32::try_from(slots.len()).map_err(|_| too_many_pairs())?;
    arena.extend_from_slice(slots);
    Ok(Span { at, len })
}

/// Where a slot stands in the search.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Mark {
    /// Its ancestors are right.
    Settled,
    /// It must be closed.
    Open,
    /// It is being closed: meeting it again is a cycle.
    Path,
}

fn set(marks: &mut [Mark], slot: u32, mark: Mark) {
    if let Some(place) = marks.get_mut(slot as usize) {
        *place = mark;
    }
}

/// One closing run.
struct Closure<'b, 'a> {
    builder: &'b mut Builder<'a>,
    marks: Vec<Mark>,
    /// Slots taken into the union that is being made carry its number.
    taken: Vec<u32>,
    union: u32,
    arena: Vec<u32>,
    pairs: usize,
    steps: usize,
}

impl<'b, 'a> Closure<'b, 'a> {
    fn new(builder: &'b mut Builder<'a>, marks: Vec<Mark>) -> Result<Self, PolicyErrors> {
        let mut pairs = builder.below.first().map_or(0, |layer| layer.pairs_below.saturating_add(layer.arena.len()));
        for (slot, draft) in builder.drafts() {
            pairs = pairs.saturating_add(draft.parents.len());
            if let (Pairs::Kept(slots), Some(Mark::Settled)) = (draft.ancestors, marks.get(slot as usize)) {
                pairs = pairs.saturating_add(slots.len());
            }
        }
        if pairs > limits::ANCESTORS_MAX {
            return Err(too_many_pairs());
        }
        let taken = vec![0; marks.len()];
        Ok(Self { builder, marks, taken, union: 0, arena: Vec::new(), pairs, steps: 0 })
    }

    /// Closes all of `open`; gives the arena that the closed spans lie in.
    fn run(mut self, open: &[u32]) -> Result<Vec<u32>, PolicyErrors> {
        // The path from the slot that the search started at: a slot and how many of its parents have been visited.
        let mut path: Vec<(u32, usize)> = Vec::new();
        for start in open {
            if self.mark(*start) == Mark::Open {
                set(&mut self.marks, *start, Mark::Path);
                path.push((*start, 0));
            }
            while let Some((slot, visited)) = path.last_mut() {
                let slot = *slot;
                let parent = self.builder.drafted(slot).and_then(|draft| draft.parents.get(*visited).copied());
                *visited = visited.saturating_add(1);
                match parent.map(|parent| (parent, self.mark(parent))) {
                    Some((parent, Mark::Open)) => {
                        set(&mut self.marks, parent, Mark::Path);
                        path.push((parent, 0));
                    }
                    Some((parent, Mark::Path)) => return Err(self.cycle(&path, parent)),
                    Some((_, Mark::Settled)) => {}
                    None => {
                        self.close(slot)?;
                        set(&mut self.marks, slot, Mark::Settled);
                        path.pop();
                    }
                }
            }
        }
        Ok(self.arena)
    }

    fn mark(&self, slot: u32) -> Mark {
        self.marks.get(slot as usize).copied().unwrap_or(Mark::Settled)
    }

    /// Ancestors of a settled slot.
    fn ancestors(&self, slot: u32) -> Pairs<'a> {
        match self.builder.drafted(slot) {
            Some(draft) => draft.ancestors,
            None => match self.builder.entry_below(slot) {
                Some((layer, entry)) => Pairs::Kept(layer.span(entry.ancestors)),
                None => Pairs::Kept(&[]),
            },
        }
    }

    fn pairs_len(pairs: Pairs<'a>) -> usize {
        match pairs {
            Pairs::Kept(slots) => slots.len(),
            Pairs::Closed(span) => span.len as usize,
        }
    }

    /// Writes the union of the parents and their ancestors to the arena.
    fn close(&mut self, slot: u32) -> Result<(), PolicyErrors> {
        let Some(draft) = self.builder.drafted(slot) else { return Ok(()) };
        let mut parents: Vec<(u32, Pairs<'a>)> =
            draft.parents.iter().map(|parent| (*parent, self.ancestors(*parent))).collect();
        // A parent that is an ancestor of another one brings nothing new: the longest lists come first.
        parents.sort_by_key(|(_, pairs)| Reverse(Self::pairs_len(*pairs)));
        self.union = self.union.saturating_add(1);
        let start = self.arena.len();
        for (parent, pairs) in parents {
            self.steps = self.steps.saturating_add(1);
            if self.take(parent) && !self.parents_taken(parent) {
                self.steps = self.steps.saturating_add(Self::pairs_len(pairs));
                self.take_all(pairs);
            }
            self.check_bounds(start)?;
        }
        self.pairs = self.pairs.saturating_add(self.arena.len().saturating_sub(start));
        if let Some(ancestors) = self.arena.get_mut(start..) {
            ancestors.sort_unstable();
        }
        let at = u32::try_from(start).map_err(|_| too_many_pairs())?;
        let len = u32::try_from(self.arena.len().saturating_sub(start)).map_err(|_| too_many_pairs())?;
        if let Some(draft) = self.builder.draft_at(slot) {
            draft.ancestors = Pairs::Closed(Span { at, len });
        }
        Ok(())
    }

    /// Whether all parents of `slot` are in the union; what is in it has its ancestors in it, so there is nothing to add.
    /// Siblings under the same groups, the usual case, then cost their own parents instead of all their ancestors.
    fn parents_taken(&self, slot: u32) -> bool {
        let parents = match (self.builder.drafted(slot), self.builder.entry_below(slot)) {
            (Some(draft), _) => &draft.parents,
            (None, Some((layer, entry))) => layer.span(entry.parents),
            (None, None) => return true,
        };
        parents.iter().all(|parent| self.taken.get(*parent as usize) == Some(&self.union))
    }

    fn take_all(&mut self, pairs: Pairs<'a>) {
        match pairs {
            Pairs::Kept(slots) => {
                for slot in slots {
                    self.take(*slot);
                }
            }
            Pairs::Closed(span) => {
                let at = span.at as usize;
                for index in at..at.saturating_add(span.len as usize) {
                    if let Some(slot) = self.arena.get(index).copied() {
                        self.take(slot);
                    }
                }
            }
        }
    }

    /// Takes `slot` into the union; false if it is in it.
    fn take(&mut self, slot: u32) -> bool {
        match self.taken.get_mut(slot as usize) {
            Some(place) if *place != self.union => {
                *place = self.union;
                self.arena.push(slot);
                true
            }
            _ => false,
        }
    }

    fn check_bounds(&self, start: usize) -> Result<(), PolicyErrors> {
        let pairs = self.pairs.saturating_add(self.arena.len().saturating_sub(start));
        if pairs > limits::ANCESTORS_MAX || self.steps > limits::CLOSURE_STEPS_MAX {
            return Err(too_many_pairs());
        }
        Ok(())
    }

    /// The part of the path from `back_to` on is a cycle.
    fn cycle(&self, path: &[(u32, usize)], back_to: u32) -> PolicyErrors {
        const CYCLE_SHOWN_MAX: usize = 6;
        let start = path.iter().position(|(slot, _)| *slot == back_to).unwrap_or(0);
        let members = path.get(start..).unwrap_or_default();
        let mut names: Vec<String> = members
            .iter()
            .take(CYCLE_SHOWN_MAX)
            .filter_map(|(slot, _)| self.builder.drafted(*slot).map(|draft| shown(&draft.uid)))
            .collect();
        match members.len().checked_sub(CYCLE_SHOWN_MAX) {
            Some(more) if more > 0 => names.push(format!("... {more} more ...")),
            _ => {}
        }
        names.extend(names.first().cloned());
        let message = format!("entities form a cycle: {}", names.join(" in "));
        refuse("entities.cycle", message, Some("remove one of these parents"))
    }
}

fn duplicate(uid: &EntityUid) -> PolicyErrors {
    let message = format!("two different entities have the uid `{}`", shown(uid));
    refuse("entities.duplicate", message, Some("list an entity once, or identically"))
}

fn too_many_pairs() -> PolicyErrors {
    let message = format!(
        "the parent relation closes to more than {} entity-ancestor pairs, or takes more than {} steps to close",
        limits::ANCESTORS_MAX,
        limits::CLOSURE_STEPS_MAX
    );
    refuse("entities.too_large", message, Some("a chain or a web of groups this deep is usually a mistake in the data"))
}
