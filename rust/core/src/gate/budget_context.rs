//! `context.budget`: what the run's budgets have left, for policies that want to know.
//!
//! For each unit and window that the payer or a budget above it limits, a record:
//!
//! ```text
//! context.budget.tokens["1d"] = {
//!     limit, used, remaining,                          // of the payer's own budget, where it has this limit
//!     tightest: { path, limit, used, remaining },      // of the level with the least remaining, the payer included
//! }
//! ```
//!
//! All numbers are `Long`. `used` is what was settled in the window of now; `remaining` is what a reserve may take,
//! holds and overdraft counted, and negative where there is debt. Levels (`in_flight`, `kv_blocks`) have `total` only.
//! `context.budget` is absent where the run has no budget, a unit or a window where nothing limits it, so policies ask
//! with `has` first: `context has budget && context.budget has tokens && context.budget.tokens has "1d"`. In a schema:
//!
//! ```text
//! type Level = { path: String, limit: Long, used: Long, remaining: Long };
//! type Cell = { limit?: Long, used?: Long, remaining?: Long, tightest: Level };
//! type Windows = { "total"?: Cell, "1m"?: Cell, "1h"?: Cell, "1d"?: Cell, "month"?: Cell };
//! type Budget = {
//!     tokens?: Windows, nano_usd?: Windows, requests?: Windows, in_flight?: Windows, kv_blocks?: Windows,
//! };
//! ```
//!
//! It is made once per check and only if a loaded policy may read it. It is advice: others spend meanwhile, and only
//! the reserve decides.

use bumpalo::Bump;

use crate::budget::admin::Usage;
use crate::budget::ledger::Ledger;
use crate::budget::unit::{UNITS, Unit};
use crate::budget::window::{WINDOWS, Window};
use crate::value::Value;

/// In the order of their names, as records are.
const UNITS_BY_NAME: [Unit; UNITS] = [Unit::InFlight, Unit::KvBlocks, Unit::NanoUsd, Unit::Requests, Unit::Tokens];
/// In the order of their names.
const WINDOWS_BY_NAME: [Window; WINDOWS] = [Window::Day, Window::Hour, Window::Minute, Window::Month, Window::Total];

/// One level's counts.
#[derive(Clone, Copy)]
struct Level<'b> {
    path: &'b str,
    limit: i64,
    used: i64,
    remaining: i64,
}

/// One unit in one window.
#[derive(Clone, Copy)]
struct Cell<'b> {
    own: Option<Level<'b>>,
    tightest: Level<'b>,
}

type Cells<'b> = [[Option<Cell<'b>>; WINDOWS]; UNITS];

/// The value of `context.budget` for a payer.
pub(super) fn snapshot<'b>(ledger: &Ledger, payer: &'b str, bump: &'b Bump) -> Value<'b> {
    let mut cells: Cells<'b> = [[None; WINDOWS]; UNITS];
    let mut at = Some(payer);
    while let Some(path) = at {
        let usage = ledger.node(path).map_or_else(|_| Vec::new(), |node| ledger.usage(&node));
        for usage in usage {
            add(&mut cells, path, &usage, path.len() == payer.len());
        }
        at = path.rsplit_once('/').map(|(parent, _)| parent);
    }
    let units = UNITS_BY_NAME.into_iter().filter_map(|unit| {
        let windows = windows(cells.get(unit.index())?, bump);
        (!windows.is_empty()).then_some((unit.name(), Value::RecordTemp(windows)))
    });
    Value::RecordTemp(collected(units, bump))
}

fn add<'b>(cells: &mut Cells<'b>, path: &'b str, usage: &Usage, own: bool) {
    let place = cells.get_mut(usage.unit.index()).and_then(|row| row.get_mut(usage.window.index()));
    let Some(place) = place else { return };
    let level = Level { path, limit: usage.limit, used: usage.used, remaining: usage.available };
    let cell = place.get_or_insert(Cell { own: None, tightest: level });
    if own {
        cell.own = Some(level);
    }
    // The payer comes first: of equals the nearest to it stays.
    if level.remaining < cell.tightest.remaining {
        cell.tightest = level;
    }
}

fn windows<'b>(row: &[Option<Cell<'b>>; WINDOWS], bump: &'b Bump) -> &'b [(&'b str, Value<'b>)] {
    let windows = WINDOWS_BY_NAME.into_iter().filter_map(|window| {
        let cell = row.get(window.index()).copied().flatten()?;
        Some((window.name(), record(&cell, bump)))
    });
    collected(windows, bump)
}

fn record<'b>(cell: &Cell<'b>, bump: &'b Bump) -> Value<'b> {
    let Level { path, limit, used, remaining } = cell.tightest;
    let tightest = bump.alloc([
        ("limit", Value::Long(limit)),
        ("path", Value::Str(path)),
        ("remaining", Value::Long(remaining)),
        ("used", Value::Long(used)),
    ]);
    let tightest = ("tightest", Value::RecordTemp(tightest));
    Value::RecordTemp(match cell.own {
        None => bump.alloc([tightest]),
        Some(own) => bump.alloc([
            ("limit", Value::Long(own.limit)),
            ("remaining", Value::Long(own.remaining)),
            tightest,
            ("used", Value::Long(own.used)),
        ]),
    })
}

fn collected<'b>(
    fields: impl Iterator<Item = (&'static str, Value<'b>)>,
    bump: &'b Bump,
) -> &'b [(&'b str, Value<'b>)] {
    let mut all = bumpalo::collections::Vec::new_in(bump);
    all.extend(fields);
    all.into_bump_slice()
}

/// What a cell always has, as the paths that a forbid may read without a guard once it knows the cell.
pub(super) fn supplied() -> Vec<[&'static str; 6]> {
    let mut paths = Vec::with_capacity(UNITS * WINDOWS * 4);
    for unit in Unit::ALL {
        for window in Window::ALL {
            for field in ["path", "limit", "used", "remaining"] {
                paths.push(["context", "budget", unit.name(), window.name(), "tightest", field]);
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_sorted_by_key() {
        assert!(UNITS_BY_NAME.is_sorted_by_key(|unit| unit.name()));
        assert!(WINDOWS_BY_NAME.is_sorted_by_key(|window| window.name()));
    }
}
