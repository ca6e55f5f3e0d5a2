//! The tree of budgets: what a file describes, and what of it lies in the ledger.
//!
//! A budget is a path such as `acme/research/agent-7`; its ancestors are budgets too, without limits where nobody gave
//! any. A path that ends in `/*` is a template, from which children are made when they are first asked for, so many of
//! them for each parent and no more. Budgets are never removed: what was spent stays known.

use sha2::{Digest, Sha256};

use super::error::BudgetError;
use super::layout::{NO_RING, NodeEntry, Word};
use super::memory::Memory;
use super::period::Step;
use super::price::PriceTable;
use super::unit::{UNITS, Unit};
use super::window::{WINDOWS, Window};
use crate::limits::{
    BUDGET_CHILDREN_DEFAULT, BUDGET_DEPTH_MAX, BUDGET_PATH_BYTES_MAX, BUDGET_SEGMENT_BYTES_MAX, BUDGETS_MAX,
    BUDGETS_SPARE, CELLS_MAX, HOLDS_DEFAULT, HOLDS_MAX, LIMIT_MAX,
};
use crate::sync::Ordering::{Relaxed, Release};

/// One limit of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitSpec {
    /// What is counted
    pub unit: Unit,
    /// Over which time
    pub window: Window,
    /// The most that may be used
    pub limit: i64,
    /// How much more is let through
    pub overdraft: i64,
}

/// One budget of a file, or a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetSpec {
    /// `acme/research`, or `acme/research/*` for the children that are made on demand
    pub path: String,
    /// Its limits; none means that only ancestors limit it
    pub limits: Vec<LimitSpec>,
    /// Of a template: how many children one parent may have
    pub children_max: Option<u32>,
}

/// How much of a model call is held when it is admitted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Admission {
    /// The worst case: the call is never cut
    #[default]
    Safe,
    /// A part, topped up while the call runs: it may be cut
    Incremental,
}

/// A ledger as a file describes it.
#[derive(Debug, Clone)]
pub struct LedgerSpec {
    /// Budgets and templates
    pub budgets: Vec<BudgetSpec>,
    /// Prices of models
    pub prices: PriceTable,
    /// Holds that may live at once
    pub holds: u32,
    /// Budgets there is room for; `None` for what the file lists and some thousand made on demand
    pub nodes: Option<u32>,
    /// How model calls are admitted
    pub admission: Admission,
    /// Tokens that are held at a time in incremental admission
    pub increment_tokens: i64,
    /// The state may lie in memory that a restart empties
    pub volatile: bool,
    /// An existing ledger keeps its limits, whatever the file says: for who looks at it or operates it
    pub keep_limits: bool,
    /// How often spend is made durable; within it a power cut may forget what went beyond the chunk that was counted
    pub durable_interval_ms: u64,
    /// After this time a hold is over and counts as what was charged, or in full; `None` for never
    pub hold_ttl_ms: Option<i64>,
}

impl Default for LedgerSpec {
    fn default() -> Self {
        Self {
            budgets: Vec::new(),
            prices: PriceTable::default(),
            holds: HOLDS_DEFAULT,
            nodes: None,
            admission: Admission::Safe,
            increment_tokens: 256,
            volatile: false,
            keep_limits: false,
            durable_interval_ms: 50,
            hold_ttl_ms: None,
        }
    }
}

/// The limits of one budget as tables, by window and unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) limited: [u32; WINDOWS],
    pub(super) limit: [[i64; UNITS]; WINDOWS],
    pub(super) overdraft: [[i64; UNITS]; WINDOWS],
}

impl Limits {
    pub(super) const NONE: Self =
        Self { limited: [0; WINDOWS], limit: [[0; UNITS]; WINDOWS], overdraft: [[0; UNITS]; WINDOWS] };

    fn read(limits: &[LimitSpec]) -> Result<Self, String> {
        let mut table = Self::NONE;
        for LimitSpec { unit, window, limit, overdraft } in limits {
            let name = format!("{} per {}", unit.name(), window.name());
            if unit.is_level() && *window != Window::Total {
                return Err(format!("{name}: a level comes back when a hold ends, so its window is total"));
            }
            if !(0..=LIMIT_MAX).contains(limit) || !(0..=LIMIT_MAX).contains(overdraft) {
                return Err(format!("{name}: limit {limit} and overdraft {overdraft} must be from 0 to {LIMIT_MAX}"));
            }
            let (w, u) = (window.index(), unit.index());
            let Some(mask) = table.limited.get_mut(w) else { continue };
            if *mask & (1 << u) != 0 {
                return Err(format!("{name} is limited twice"));
            }
            *mask |= 1 << u;
            if let Some(place) = table.limit.get_mut(w).and_then(|row| row.get_mut(u)) {
                *place = *limit;
            }
            if let Some(place) = table.overdraft.get_mut(w).and_then(|row| row.get_mut(u)) {
                *place = *overdraft;
            }
        }
        Ok(table)
    }

    fn cells(&self) -> usize {
        self.limited.iter().map(|mask| mask.count_ones() as usize).sum()
    }

    fn periods(&self) -> u32 {
        let windows = Window::ALL.into_iter().zip(self.limited).filter(|(_, mask)| *mask != 0);
        windows.map(|(window, _)| window.ring_len()).sum()
    }
}

/// The budgets of a file, checked.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Exact paths, parents before children, implied ancestors included
    pub(super) exact: Vec<(String, Limits)>,
    /// Prefix segments and how many of any name follow, with limits and the most children of one parent
    templates: Vec<Template>,
    pub(super) digest: u64,
}

#[derive(Debug, Clone)]
struct Template {
    prefix: String,
    wild: usize,
    limits: Limits,
    children_max: u32,
}

/// Why a path is none; `None` if it is one.
pub fn path_fault(path: &str) -> Option<String> {
    if path.len() > BUDGET_PATH_BYTES_MAX {
        return Some(format!("a budget path of {} bytes is longer than {BUDGET_PATH_BYTES_MAX}", path.len()));
    }
    let segments = path.split('/').count();
    if segments > BUDGET_DEPTH_MAX {
        return Some(format!("a budget path of {segments} levels is deeper than {BUDGET_DEPTH_MAX}"));
    }
    let bad = path.split('/').find(|segment| !is_segment(segment))?;
    let shown: String = bad.chars().take(40).flat_map(char::escape_default).collect();
    Some(format!(
        "`{shown}` is no name of a budget: 1 to {BUDGET_SEGMENT_BYTES_MAX} of letters, digits and . _ : @ - between slashes"
    ))
}

fn is_segment(segment: &str) -> bool {
    let fits = (1..=BUDGET_SEGMENT_BYTES_MAX).contains(&segment.len());
    fits && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:@-".contains(&byte))
}

/// The parent's path.
pub(super) fn parent_of(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent)
}

impl Plan {
    /// Checks what a file says.
    pub(super) fn read(spec: &LedgerSpec) -> Result<Self, BudgetError> {
        let refuse = |path: &str, message: String| BudgetError::Spec { message: format!("budget `{path}`: {message}") };
        if !(1..=HOLDS_MAX).contains(&spec.holds) {
            let message = format!("holds is {}, not between 1 and {HOLDS_MAX}", spec.holds);
            return Err(BudgetError::Spec { message });
        }
        let mut plan = Self { exact: Vec::new(), templates: Vec::new(), digest: digest(spec) };
        for budget in &spec.budgets {
            let limits = Limits::read(&budget.limits).map_err(|message| refuse(&budget.path, message))?;
            let prefix = budget.path.trim_end_matches("/*");
            let wild = budget.path.len().saturating_sub(prefix.len()) / 2;
            if let Some(fault) = path_fault(prefix) {
                return Err(refuse(&budget.path, fault));
            }
            let depth = prefix.split('/').count().saturating_add(wild);
            if depth > BUDGET_DEPTH_MAX {
                return Err(refuse(&budget.path, format!("{depth} levels are more than {BUDGET_DEPTH_MAX}")));
            }
            if wild == 0 {
                if budget.children_max.is_some() {
                    return Err(refuse(
                        &budget.path,
                        "children_max belongs to a template, a path that ends in /*".into(),
                    ));
                }
                plan.add(&budget.path, &limits).map_err(|message| refuse(&budget.path, message))?;
            } else {
                if plan.templates.iter().any(|known| known.prefix == prefix && known.wild == wild) {
                    return Err(refuse(&budget.path, "the template is there twice".into()));
                }
                let children_max = budget.children_max.unwrap_or(BUDGET_CHILDREN_DEFAULT);
                plan.templates.push(Template { prefix: prefix.to_owned(), wild, limits, children_max });
            }
        }
        for template in plan.templates.clone() {
            plan.imply(&template.prefix);
        }
        plan.exact.sort_by(|a, b| a.0.cmp(&b.0));
        plan.check_cells()?;
        Ok(plan)
    }

    fn add(&mut self, path: &str, limits: &Limits) -> Result<(), String> {
        self.imply(path);
        match self.exact.iter_mut().find(|(known, _)| known == path) {
            Some((_, known)) if *known != Limits::NONE => Err("the budget is there twice".into()),
            Some((_, known)) => {
                *known = *limits;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Adds a path and its ancestors, without limits where nobody gave any.
    fn imply(&mut self, path: &str) {
        if let Some(parent) = parent_of(path) {
            self.imply(parent);
        }
        if !self.exact.iter().any(|(known, _)| known == path) {
            self.exact.push((path.to_owned(), Limits::NONE));
        }
    }

    /// A reserve at the deepest budget must not touch more cells than a hold can list.
    fn check_cells(&self) -> Result<(), BudgetError> {
        let above = |path: &str| -> usize {
            let mut cells = 0_usize;
            let mut at = Some(path);
            while let Some(path) = at {
                cells = cells.saturating_add(self.limits_of(path).map_or(0, |(limits, _)| limits.cells()));
                at = parent_of(path);
            }
            cells
        };
        let templates = self.templates.iter().map(|t| format!("{}{}", t.prefix, "/x".repeat(t.wild)));
        for path in self.exact.iter().map(|(path, _)| path.clone()).chain(templates) {
            let cells = above(&path);
            if cells > CELLS_MAX {
                let message = format!("budget `{path}`: a reserve would touch {cells} cells, the limit is {CELLS_MAX}");
                return Err(BudgetError::Spec { message });
            }
        }
        Ok(())
    }

    /// The limits a path has or would be made with, and how many children its parent may have.
    pub(super) fn limits_of(&self, path: &str) -> Option<(&Limits, Option<u32>)> {
        if let Ok(at) = self.exact.binary_search_by(|(known, _)| known.as_str().cmp(path)) {
            return self.exact.get(at).map(|(_, limits)| (limits, None));
        }
        // The template with the longest prefix of given names.
        let fits = |template: &&Template| {
            let Some(rest) = path.strip_prefix(&template.prefix).and_then(|rest| rest.strip_prefix('/')) else {
                return false;
            };
            rest.split('/').count() == template.wild
        };
        let template = self.templates.iter().filter(fits).min_by_key(|template| template.wild)?;
        Some((&template.limits, Some(template.children_max)))
    }

    /// Room for what the file lists and for children.
    pub(super) fn sizes(&self, spec: &LedgerSpec) -> Result<(u32, u32), BudgetError> {
        let exact = u32::try_from(self.exact.len()).unwrap_or(u32::MAX);
        let spare = self.templates.iter().fold(0_u32, |sum, template| sum.saturating_add(template.children_max));
        let nodes = spec.nodes.unwrap_or_else(|| exact.saturating_add(spare.min(BUDGETS_SPARE)).max(1));
        if nodes < exact || nodes > BUDGETS_MAX {
            let message = format!("nodes is {nodes}: the file lists {exact} budgets, and at most {BUDGETS_MAX} fit");
            return Err(BudgetError::Spec { message });
        }
        let listed: u32 = self.exact.iter().map(|(_, limits)| limits.periods()).sum();
        let largest = self.templates.iter().map(|template| template.limits.periods()).max().unwrap_or(0);
        // Some room for windows that a changed file adds to budgets that are there.
        let slack = nodes.saturating_mul(2).saturating_add(64);
        let made = nodes.saturating_sub(exact).saturating_mul(largest);
        Ok((nodes, listed.saturating_add(made).saturating_add(slack)))
    }
}

/// Over what a file says of limits: the same budgets give the same number.
fn digest(spec: &LedgerSpec) -> u64 {
    let mut lines: Vec<String> = Vec::new();
    for budget in &spec.budgets {
        lines.push(format!("{} {:?}", budget.path, budget.children_max));
        for limit in &budget.limits {
            let (unit, window) = (limit.unit.name(), limit.window.name());
            lines.push(format!("{} {unit} {window} {} {}", budget.path, limit.limit, limit.overdraft));
        }
    }
    lines.sort_unstable();
    let hash = Sha256::digest(lines.join("\n"));
    hash.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Memory {
    /// The budget of a path, by looking at all of them. The ledger keeps a map of its own.
    pub(super) fn find(&self, path: &str) -> Option<u32> {
        let words = super::layout::path_words(path);
        let nodes = self.nodes.iter().take(self.nodes_len() as usize);
        (0_u32..).zip(nodes).find(|(_, node)| node.has_path(&words)).map(|(index, _)| index)
    }

    /// Adds a budget below `parent`. The caller holds the ledger's lock and has looked that the path is new.
    pub(super) fn add_node(&self, path: &str, parent: u32, limits: &Limits) -> Result<u32, String> {
        let index = self.nodes_len();
        let full = || format!("the ledger has room for {} budgets, all in use", self.sizes().nodes);
        let node = self.nodes.get(index as usize).ok_or_else(full)?;
        node.ready.store(0, Relaxed);
        node.set_path(path);
        node.parent.store(parent, Relaxed);
        node.children.store(0, Relaxed);
        node.opening.store(0, Relaxed);
        node.rings.iter().for_each(|ring| ring.store(NO_RING, Relaxed));
        node.limited.iter().for_each(|mask| mask.store(0, Relaxed));
        self.write_limits(index, node, limits)?;
        node.ready.store(1, Relaxed);
        // Release: whoever sees the new count sees the budget.
        self.header().nodes.store(index.saturating_add(1), Release);
        Ok(index)
    }

    /// Gives a new budget its limits and the periods that they need.
    fn write_limits(&self, index: u32, node: &NodeEntry, limits: &Limits) -> Result<(), String> {
        for window in Window::ALL {
            let w = window.index();
            let units = limits.limited.get(w).copied().unwrap_or(0);
            for unit in Unit::ALL.map(Unit::index) {
                let value = |table: &[[i64; UNITS]; WINDOWS]| table.get(w).and_then(|row| row.get(unit)).copied();
                let write = |table: &[super::layout::Counts; 5], value: Option<i64>| {
                    if let Some(place) = table.get(w).and_then(|row| row.get(unit)) {
                        place.store(value.unwrap_or(0), Relaxed);
                    }
                };
                write(&node.limit, value(&limits.limit));
                write(&node.overdraft, value(&limits.overdraft));
            }
            if units != 0 {
                self.give_ring(index, node, window)?;
                if let Some(mask) = node.limited.get(w) {
                    mask.store(units, Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Gives a budget periods for a kind of window, if it has none yet.
    pub(super) fn give_ring(&self, index: u32, node: &NodeEntry, window: Window) -> Result<(), String> {
        let Some(ring) = node.rings.get(window.index()) else { return Ok(()) };
        if ring.load(Relaxed) != NO_RING {
            return Ok(());
        }
        let first = self.header().periods.load(Relaxed);
        let end = first.saturating_add(window.ring_len());
        if end as usize > self.periods.len() {
            return Err(format!("the ledger has room for {} periods, all in use", self.periods.len()));
        }
        for place in first..end {
            let Some(period) = self.period(place) else { continue };
            period.node.store(index, Relaxed);
            period.window.store(window as u32, Relaxed);
            period.word.store(0, Relaxed);
            if window == Window::Total {
                // The one window that never ends is opened here.
                super::period::set_up(period, node, window);
                period.word.store(Word::new(0, 0, 0).0, Relaxed);
            }
        }
        // The periods add up before they count, and count before a budget has them: who dies in between loses room for
        // a window, and nobody gets the same periods again.
        self.header().periods.store(end, Release);
        ring.store(first, Release);
        Ok(())
    }

    /// What a reserve at a budget has to pass, leaf to root.
    pub(super) fn steps(&self, leaf: u32) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut at = leaf;
        // A damaged ledger could name a circle of parents.
        for _ in 0..BUDGET_DEPTH_MAX {
            let Some(node) = self.nodes.get(at as usize) else { break };
            for window in Window::ALL {
                let of = |table: &[crate::sync::AtomicU32; 8]| table.get(window.index()).map(|word| word.load(Relaxed));
                let (Some(ring), Some(units)) = (of(&node.rings), of(&node.limited)) else { continue };
                if ring != NO_RING && units != 0 {
                    steps.push(Step { node: at, ring, window, units });
                }
            }
            at = node.parent.load(Relaxed);
        }
        steps
    }
}
