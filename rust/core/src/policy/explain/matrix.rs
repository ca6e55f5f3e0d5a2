//! Who may do what: principals down, actions across, each cell `allow`, `never` or `when`.
//!
//! `allow` and `never` are claims about every request of the cell over the given entities, so they are made only where
//! they are certain: a scope or a condition that may or may not match makes the cell a `when`, with the conditions in
//! words. Policies in shadow mode are left out, as the gate leaves them out of the verdict. A principal that is in the
//! store is what the store says; one that is not may come with a request and be in any group.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Write as _};
use std::sync::Arc;

use super::{annotation, conditions, is_in, is_shadow, name, sentences, shown};
use crate::limits::{EXPLAIN_SENTENCE_BYTES_MAX, MATRIX_COLUMNS_MAX, MATRIX_CONDITIONS_MAX, MATRIX_ROWS_MAX};
use crate::policy::entities::Entities;
use crate::policy::set::PolicySet;
use crate::policy::tree::{ActionScope, Body, Effect, EntityRef, Scope, index_u32};
use crate::uid::EntityUid;

/// Characters of a line of the table; more columns go into a second table.
const LINE_CHARS_MAX: usize = 118;

/// Conditions of one policy that are put in words.
const CONDITIONS_MAX: usize = 64;

/// Principals that the matrix speaks of together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// Any principal of a type
    Type(Box<str>),
    /// Any principal in a group, the group itself included
    Group(Arc<EntityUid>),
    /// One principal
    Principal(Arc<EntityUid>),
    /// Any principal whose type has no row
    Other,
}

/// Actions that the matrix speaks of together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Column {
    /// One action
    Action(Arc<EntityUid>),
    /// Any action without a column
    Other,
}

/// What to show.
#[derive(Debug, Clone, Default)]
pub struct Axes {
    /// Down
    pub rows: Vec<Row>,
    /// Across
    pub columns: Vec<Column>,
    /// Rows that were found but left out
    pub rows_omitted: usize,
    /// Columns that were found but left out
    pub columns_omitted: usize,
}

/// What a cell says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Every request of the cell is allowed
    Allow,
    /// No request of the cell is allowed
    Never,
    /// It depends
    When,
}

/// A policy in a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// Index of the policy
    pub policy: u32,
    /// What its scope asks of principal and action beyond row and column, in words; empty if nothing
    pub scope: String,
}

/// What the cells' terms refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The policy's id, and its `@id` where that is another one
    pub name: String,
    /// Its resource, conditions and approval in words; empty if it has none
    pub when: String,
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// What it says
    pub claim: Claim,
    /// The permits that may apply, the first few
    pub permits: Vec<Term>,
    /// The forbids that may apply, the first few
    pub forbids: Vec<Term>,
    /// Permits not named
    pub more_permits: usize,
    /// Forbids not named
    pub more_forbids: usize,
}

/// The table.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// What is shown
    pub axes: Axes,
    /// Row by row
    pub cells: Vec<Vec<Cell>>,
    /// Policies left out because they are in shadow mode
    pub shadows: usize,
    /// The policies that the cells name
    pub policies: BTreeMap<u32, Entry>,
}

/// Whether a scope matches what a row or a column stands for.
enum Fit {
    Always,
    If(String),
    Never,
}

impl Axes {
    /// The types, groups and principals of the policies' scopes and the types of the groups' members; the actions of
    /// the scopes and of the entities in their groups; and everything else.
    pub fn found(set: &PolicySet, entities: &Entities) -> Self {
        let rows = rows(set, entities);
        let columns = columns(set, entities);
        let (rows_omitted, columns_omitted) =
            (rows.len().saturating_sub(MATRIX_ROWS_MAX), columns.len().saturating_sub(MATRIX_COLUMNS_MAX));
        let rows = rows.into_iter().take(MATRIX_ROWS_MAX).chain([Row::Other]).collect();
        let columns = columns.into_iter().take(MATRIX_COLUMNS_MAX).chain([Column::Other]).collect();
        Self { rows, columns, rows_omitted, columns_omitted }
    }
}

fn rows(set: &PolicySet, entities: &Entities) -> BTreeSet<Row> {
    let mut rows = BTreeSet::new();
    let mut groups = BTreeSet::new();
    for body in &set.bodies {
        match &body.principal {
            Scope::Eq(EntityRef::Uid(uid)) => {
                rows.insert(Row::Type(uid.ty().into()));
                rows.insert(Row::Principal(Arc::clone(uid)));
            }
            Scope::Is(ty) => {
                rows.insert(Row::Type(ty.clone()));
            }
            Scope::In(EntityRef::Uid(uid)) => {
                groups.insert(Arc::clone(uid));
            }
            Scope::IsIn(ty, EntityRef::Uid(uid)) => {
                rows.insert(Row::Type(ty.clone()));
                groups.insert(Arc::clone(uid));
            }
            _ => {}
        }
    }
    for entity in entities.iter() {
        if entity.ancestors().any(|ancestor| groups.contains(ancestor)) && !groups.contains(&**entity.uid()) {
            rows.insert(Row::Type(entity.uid().ty().into()));
        }
    }
    rows.extend(groups.into_iter().map(Row::Group));
    rows
}

fn columns(set: &PolicySet, entities: &Entities) -> BTreeSet<Column> {
    let mut named: BTreeSet<Arc<EntityUid>> = BTreeSet::new();
    for body in &set.bodies {
        match &body.action {
            ActionScope::Any => {}
            ActionScope::Eq(uid) => {
                named.insert(Arc::clone(uid));
            }
            ActionScope::In(uids) => named.extend(uids.iter().map(Arc::clone)),
        }
    }
    let types: BTreeSet<Box<str>> = named.iter().map(|uid| uid.ty().into()).collect();
    let known = entities.iter().filter(|entity| types.contains(entity.uid().ty()));
    let mut columns: BTreeSet<Column> = known.map(|entity| Column::Action(Arc::clone(entity.uid()))).collect();
    columns.extend(named.into_iter().map(Column::Action));
    columns
}

/// The table for the given axes; see [`Axes::found`].
pub fn matrix(set: &PolicySet, entities: &Entities, axes: Axes) -> Matrix {
    let mut maker = Maker { set, entities, axes: &axes, policies: BTreeMap::new() };
    let by_column: Vec<Vec<(u32, Option<String>)>> = axes.columns.iter().map(|column| maker.column(column)).collect();
    let mut cells = Vec::new();
    for row in &axes.rows {
        let fits: Vec<Fit> = set.bodies.iter().map(|body| maker.principal_fit(row, &body.principal)).collect();
        cells.push(by_column.iter().map(|policies| maker.cell(&fits, policies)).collect());
    }
    let policies = maker.policies;
    let shadows = set.bodies.iter().filter(|body| is_shadow(body)).count();
    Matrix { axes, cells, shadows, policies }
}

struct Maker<'s> {
    set: &'s PolicySet,
    entities: &'s Entities,
    axes: &'s Axes,
    policies: BTreeMap<u32, Entry>,
}

impl Maker<'_> {
    /// The policies whose action scope may match, with what that takes.
    fn column(&self, column: &Column) -> Vec<(u32, Option<String>)> {
        let mut found = Vec::new();
        for (policy, body) in self.set.bodies.iter().enumerate() {
            if is_shadow(body) {
                continue;
            }
            match self.action_fit(column, &body.action) {
                Fit::Always => found.push((index_u32(policy), None)),
                Fit::If(words) => found.push((index_u32(policy), Some(words))),
                Fit::Never => {}
            }
        }
        found
    }

    fn action_fit(&self, column: &Column, scope: &ActionScope) -> Fit {
        match (column, scope) {
            (_, ActionScope::Any) => Fit::Always,
            (Column::Action(uid), ActionScope::Eq(own)) => {
                if uid == own {
                    Fit::Always
                } else {
                    Fit::Never
                }
            }
            (Column::Action(uid), ActionScope::In(groups)) => {
                if groups.iter().any(|group| is_in(self.entities, uid, group)) {
                    Fit::Always
                } else if groups.is_empty() || self.entities.get(uid).is_some() {
                    Fit::Never
                } else {
                    Fit::If(in_groups(groups))
                }
            }
            (Column::Other, ActionScope::Eq(uid)) => {
                let listed = self.axes.columns.contains(&Column::Action(Arc::clone(uid)));
                if listed { Fit::Never } else { Fit::If(format!("the action is {}", sentences::action_name(uid))) }
            }
            (Column::Other, ActionScope::In(groups)) => {
                if groups.is_empty() {
                    Fit::Never
                } else {
                    Fit::If(in_groups(groups))
                }
            }
        }
    }

    fn principal_fit(&self, row: &Row, scope: &Scope) -> Fit {
        match scope {
            Scope::Any => Fit::Always,
            Scope::Eq(EntityRef::Uid(uid)) => self.is_one(row, uid),
            Scope::In(EntityRef::Uid(group)) => self.is_within(row, group),
            Scope::Is(ty) => self.is_of_type(row, ty),
            Scope::IsIn(ty, EntityRef::Uid(group)) => match (self.is_of_type(row, ty), self.is_within(row, group)) {
                (Fit::Never, _) | (_, Fit::Never) => Fit::Never,
                (Fit::Always, other) | (other, Fit::Always) => other,
                (Fit::If(a), Fit::If(b)) => Fit::If(format!("{a} and {b}")),
            },
            Scope::Eq(EntityRef::Slot) | Scope::In(EntityRef::Slot) | Scope::IsIn(_, EntityRef::Slot) => Fit::Never,
        }
    }

    fn is_one(&self, row: &Row, uid: &EntityUid) -> Fit {
        let maybe = || Fit::If(format!("the principal is {}", sentences::uid_text(uid)));
        match row {
            Row::Type(ty) => {
                if **ty == *uid.ty() {
                    maybe()
                } else {
                    Fit::Never
                }
            }
            Row::Principal(own) => {
                if **own == *uid {
                    Fit::Always
                } else {
                    Fit::Never
                }
            }
            Row::Group(group) => {
                let outside = self.entities.get(uid).is_some() && !is_in(self.entities, uid, group);
                if outside { Fit::Never } else { maybe() }
            }
            Row::Other => {
                if self.has_row(uid.ty()) {
                    Fit::Never
                } else {
                    maybe()
                }
            }
        }
    }

    fn is_within(&self, row: &Row, group: &EntityUid) -> Fit {
        let maybe = || Fit::If(format!("the principal is in {}", sentences::uid_text(group)));
        match row {
            Row::Type(_) | Row::Other => maybe(),
            // Who is in a group is in everything the group is in; what the store does not know it cannot close.
            Row::Group(own) => {
                if is_in(self.entities, own, group) {
                    Fit::Always
                } else {
                    maybe()
                }
            }
            Row::Principal(own) => {
                if is_in(self.entities, own, group) {
                    Fit::Always
                } else if self.entities.get(own).is_some() {
                    Fit::Never
                } else {
                    maybe()
                }
            }
        }
    }

    fn is_of_type(&self, row: &Row, ty: &str) -> Fit {
        let maybe = || Fit::If(format!("the principal is of type {}", sentences::type_name(ty)));
        match row {
            Row::Type(own) => {
                if **own == *ty {
                    Fit::Always
                } else {
                    Fit::Never
                }
            }
            Row::Principal(own) => {
                if own.ty() == ty {
                    Fit::Always
                } else {
                    Fit::Never
                }
            }
            Row::Group(_) => maybe(),
            Row::Other => {
                if self.has_row(ty) {
                    Fit::Never
                } else {
                    maybe()
                }
            }
        }
    }

    fn has_row(&self, ty: &str) -> bool {
        self.axes.rows.contains(&Row::Type(ty.into()))
    }

    fn cell(&mut self, fits: &[Fit], policies: &[(u32, Option<String>)]) -> Cell {
        let set = self.set;
        let mut cell =
            Cell { claim: Claim::Never, permits: Vec::new(), forbids: Vec::new(), more_permits: 0, more_forbids: 0 };
        let (mut permitted, mut forbidden) = (false, false);
        for (policy, action) in policies {
            let Some(body) = set.bodies.get(*policy as usize) else { continue };
            let principal = match fits.get(*policy as usize) {
                Some(Fit::Always) => None,
                Some(Fit::If(words)) => Some(words.as_str()),
                Some(Fit::Never) | None => continue,
            };
            let certain = principal.is_none() && action.is_none() && unconditional(body);
            let (terms, more, sure) = match body.effect {
                Effect::Permit => (&mut cell.permits, &mut cell.more_permits, &mut permitted),
                Effect::Forbid => (&mut cell.forbids, &mut cell.more_forbids, &mut forbidden),
            };
            *sure |= certain;
            if terms.len() < MATRIX_CONDITIONS_MAX {
                terms.push(self.term(*policy, body, principal, action.as_deref()));
            } else {
                *more = more.saturating_add(1);
            }
        }
        cell.claim = if forbidden || cell.permits.is_empty() {
            Claim::Never
        } else if permitted && cell.forbids.is_empty() {
            Claim::Allow
        } else {
            Claim::When
        };
        cell
    }

    fn term(&mut self, policy: u32, body: &Body, principal: Option<&str>, action: Option<&str>) -> Term {
        let set = self.set;
        self.policies.entry(policy).or_insert_with(|| Entry { name: name(body), when: condition_words(set, body) });
        let parts: Vec<&str> = [principal, action].into_iter().flatten().collect();
        Term { policy, scope: parts.join(" and ") }
    }
}

/// Whether the policy is satisfied as soon as principal and action match.
fn unconditional(body: &Body) -> bool {
    let approval = body.effect == Effect::Permit && annotation(body, "approval").is_some();
    body.condition.is_none() && body.resource == Scope::Any && !approval
}

fn in_groups(groups: &[Arc<EntityUid>]) -> String {
    let names: Vec<String> = groups.iter().take(4).map(|group| sentences::action_name(group)).collect();
    let more = groups.len().saturating_sub(names.len());
    let tail = if more > 0 { format!(" or {more} more") } else { String::new() };
    format!("the action is in {}{tail}", names.join(" or "))
}

/// Resource scope, conditions and approval of a policy, joined by `and`; exceptions behind.
fn condition_words(set: &PolicySet, body: &Body) -> String {
    let mut parts = Vec::new();
    match &body.resource {
        Scope::Any | Scope::In(EntityRef::Slot) | Scope::IsIn(_, EntityRef::Slot) => {}
        Scope::Eq(_) => parts.push(format!("the resource is {}", sentences::resource(&body.resource))),
        Scope::In(EntityRef::Uid(group)) => parts.push(format!("the resource is in {}", sentences::uid_text(group))),
        Scope::Is(ty) => parts.push(format!("the resource is of type {}", sentences::type_name(ty))),
        Scope::IsIn(ty, EntityRef::Uid(group)) => {
            let ty = sentences::type_name(ty);
            parts.push(format!("the resource is of type {ty} and in {}", sentences::uid_text(group)));
        }
    }
    let mut exceptions = Vec::new();
    // What does not fit the bound is cut below; the first conditions fill it many times over.
    for condition in conditions(set, body).into_iter().take(CONDITIONS_MAX) {
        match condition.unless {
            Some(inner) => exceptions.push(format!("unless {}", sentences::clause_among(&set.tree, inner))),
            None => parts.push(sentences::clause_among(&set.tree, condition.id)),
        }
    }
    if let Some(approval) = annotation(body, "approval")
        && body.effect == Effect::Permit
    {
        parts.push(format!("it is approved ({})", shown(approval)));
    }
    if parts.is_empty() && !exceptions.is_empty() {
        parts.push("always".to_owned());
    }
    let words = std::iter::once(parts.join(" and ")).chain(exceptions).collect::<Vec<String>>().join(", ");
    sentences::cut(&words, EXPLAIN_SENTENCE_BYTES_MAX)
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(ty) => write!(f, "any {}", sentences::type_name(ty)),
            Self::Group(uid) => write!(f, "in {}", sentences::uid_text(uid)),
            Self::Principal(uid) => f.write_str(&sentences::uid_text(uid)),
            Self::Other => f.write_str("any other type"),
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Action(uid) => f.write_str(&sentences::action_name(uid)),
            Self::Other => f.write_str("any other"),
        }
    }
}

impl Matrix {
    /// A cell in words: which policies may apply and what each needs.
    pub fn words(&self, cell: &Cell) -> String {
        self.lines(cell, true).join("\n")
    }

    fn lines(&self, cell: &Cell, with_conditions: bool) -> Vec<String> {
        let mut lines = Vec::new();
        for (terms, more, first, next, many) in [
            (&cell.permits, cell.more_permits, "permitted by", "or by", "permits"),
            (&cell.forbids, cell.more_forbids, "but forbidden by", "or by", "forbids"),
        ] {
            for (position, term) in terms.iter().enumerate() {
                let Some(entry) = self.policies.get(&term.policy) else { continue };
                let word = if position == 0 { first } else { next };
                let conditions = if with_conditions { entry.when.as_str() } else { "" };
                let parts: Vec<&str> =
                    [term.scope.as_str(), conditions].into_iter().filter(|p| !p.is_empty()).collect();
                let when = if parts.is_empty() { String::new() } else { format!(" when {}", parts.join(" and ")) };
                lines.push(format!("{word} {}{when}", entry.name));
            }
            if more > 0 {
                lines.push(format!("and {more} more {many}"));
            }
        }
        lines
    }

    /// The conditions of the policies named in cells that say `when`.
    fn legend(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.cells.iter().flatten().filter(|cell| cell.claim == Claim::When);
        let named: BTreeSet<u32> =
            open.flat_map(|cell| cell.permits.iter().chain(&cell.forbids)).map(|t| t.policy).collect();
        if !named.is_empty() {
            writeln!(f, "\nThe policies' own conditions:")?;
        }
        for entry in named.iter().filter_map(|policy| self.policies.get(policy)) {
            match entry.when.as_str() {
                "" => writeln!(f, "{} without conditions", entry.name)?,
                always if always.starts_with("always,") => writeln!(f, "{} {always}", entry.name)?,
                when => writeln!(f, "{} when {when}", entry.name)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Equal conditions share a footnote, numbered in the order of reading.
        let mut notes: BTreeMap<usize, String> = BTreeMap::new();
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let mut texts: Vec<Vec<String>> = Vec::new();
        for row in &self.cells {
            let mut line = Vec::new();
            for cell in row {
                line.push(match cell.claim {
                    Claim::Allow => "allow".to_owned(),
                    Claim::Never => "never".to_owned(),
                    Claim::When => {
                        let words = self.lines(cell, false).join("\n");
                        let next = numbers.len().saturating_add(1);
                        let number = *numbers.entry(words.clone()).or_insert(next);
                        notes.insert(number, words);
                        format!("when ({number})")
                    }
                });
            }
            texts.push(line);
        }
        self.tables(f, &texts)?;
        if !notes.is_empty() {
            writeln!(f)?;
        }
        for (number, words) in &notes {
            let label = format!("({number})");
            for (position, line) in words.lines().enumerate() {
                let label = if position == 0 { label.as_str() } else { "" };
                writeln!(f, "{label:>5} {line}")?;
            }
        }
        self.legend(f)?;
        self.remarks(f)
    }
}

impl Matrix {
    /// The columns, as many side by side as fit a line.
    fn tables(&self, f: &mut fmt::Formatter<'_>, texts: &[Vec<String>]) -> fmt::Result {
        let heads: Vec<String> = self.axes.columns.iter().map(ToString::to_string).collect();
        let sides: Vec<String> = self.axes.rows.iter().map(ToString::to_string).collect();
        let side = width(sides.iter());
        let mut from = 0usize;
        while from < heads.len() {
            let mut line = side;
            let mut widths = Vec::new();
            for (column, head) in heads.iter().enumerate().skip(from) {
                let own = width(texts.iter().filter_map(|row| row.get(column)).chain([head]));
                line = line.saturating_add(own).saturating_add(2);
                if line > LINE_CHARS_MAX && !widths.is_empty() {
                    break;
                }
                widths.push(own);
            }
            if from > 0 {
                writeln!(f)?;
            }
            let shown = |row: &[String]| -> Vec<String> { row.iter().skip(from).take(widths.len()).cloned().collect() };
            write_line(f, "", side, &shown(&heads), &widths)?;
            for (name, row) in sides.iter().zip(texts) {
                write_line(f, name, side, &shown(row), &widths)?;
            }
            from = from.saturating_add(widths.len());
        }
        Ok(())
    }

    fn remarks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, what) in [
            (self.shadows, "policies in shadow mode, left out"),
            (self.axes.rows_omitted, "principals not shown"),
            (self.axes.columns_omitted, "actions not shown"),
        ] {
            if count > 0 {
                writeln!(f, "{what}: {count}")?;
            }
        }
        Ok(())
    }
}

fn width<'t>(texts: impl Iterator<Item = &'t String>) -> usize {
    texts.map(|text| text.chars().count()).max().unwrap_or(0)
}

fn write_line(f: &mut fmt::Formatter<'_>, name: &str, side: usize, cells: &[String], widths: &[usize]) -> fmt::Result {
    let mut line = format!("{name:side$}");
    for (cell, width) in cells.iter().zip(widths) {
        let _ = write!(line, "  {cell:width$}");
    }
    writeln!(f, "{}", line.trim_end())
}
