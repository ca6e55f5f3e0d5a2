//! A ledger that nobody could get wrong: one thread, maps, a list of holds, no bits and no undo.
//!
//! It shares no code with the ledger but the names of units, windows and kinds of denial. Windows are found by counting
//! calendar days. What it refuses to know: processes, memory, and how fast anything is.

use std::collections::{BTreeMap, BTreeSet};

use tollkeeper_core::budget::denial::DenialKind;
use tollkeeper_core::budget::unit::{UNITS, Unit};
use tollkeeper_core::budget::window::Window;

pub type Path = String;
/// A cell's budget, unit and window.
pub type Kind = (Path, usize, usize);

/// The number of the window of a kind that a time lies in.
pub fn window_number(window: Window, now_ms: i64) -> i64 {
    let now_ms = now_ms.max(0);
    match window {
        Window::Total => 0,
        Window::Minute => now_ms / 1_000 / 60,
        Window::Hour => now_ms / 1_000 / 60 / 60,
        Window::Day => now_ms / 1_000 / 60 / 60 / 24,
        Window::Month => months_before(now_ms / 1_000 / 60 / 60 / 24),
    }
}

/// Whole months between 1970 and a day, month by month.
fn months_before(mut day: i64) -> i64 {
    let mut months = 0;
    for year in 1970.. {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        for days in [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if day < days {
                return months;
            }
            day -= days;
            months += 1;
        }
    }
    months
}

#[derive(Debug, Clone)]
pub struct Hold {
    pub path: Path,
    pub held: [i64; UNITS],
    pub charged: [i64; UNITS],
    /// The windows it was granted in
    pub windows: [i64; 5],
    pub deadline_ms: Option<i64>,
    pub dispatched: bool,
    pub streamed: bool,
    pub forced: bool,
}

/// Kinds of denial by rank: which of several refusals is told.
fn rank(kind: DenialKind) -> u32 {
    match kind {
        DenialKind::TooLarge => 2,
        DenialKind::Exhausted => 1,
        _ => 0,
    }
}

/// What a budget counts in one window, by unit.
#[derive(Debug, Clone, Default)]
pub struct Open {
    pub limit: [i64; UNITS],
    pub overdraft: [i64; UNITS],
    pub used: [i64; UNITS],
}

/// Windows of each kind that a budget has room for at once.
const PLACES: [usize; 5] = [1, 16, 4, 4, 4];
/// Windows of each kind that the whole ledger tells apart.
const EPOCHS: i64 = 4_096;

#[derive(Debug, Default)]
pub struct Model {
    /// Limit and overdraft of each cell, for windows that are not open yet
    pub limits: BTreeMap<Kind, (i64, i64)>,
    pub budgets: BTreeSet<Path>,
    /// The windows that have a place, by budget and kind, and what is counted in them
    pub rings: BTreeMap<(Path, usize), Vec<Option<i64>>>,
    pub open: BTreeMap<(Path, usize, i64), Open>,
    /// By kind and place: the last window there, and whether nobody may be granted anything in it any more
    pub epochs: BTreeMap<(usize, i64), (i64, bool)>,
    pub holds: BTreeMap<usize, Hold>,
    pub holds_max: usize,
    /// Some hold has had a deadline
    pub deadlines: bool,
    pub last_ms: i64,
    /// The time was once set back: a window may be over that is the one of now
    pub went_back: bool,
    pub anchor: (i64, i64),
    pub believed_ms: i64,
}

/// Why nothing was granted: a cell that has too little, or no room for a window.
enum Refused {
    Cells,
    Room,
    /// The window lies before one that is open: nobody asks again with the same time
    Old,
}

fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let mut at = Some(path);
    std::iter::from_fn(move || {
        let here = at?;
        at = here.rsplit_once('/').map(|(above, _)| above);
        Some(here)
    })
}

impl Model {
    /// The time by both clocks: never backwards, and no further ahead than the boot clock and a second.
    pub fn time(&mut self, wall_ms: i64, boot_ms: i64) -> i64 {
        if wall_ms > self.believed_ms {
            self.believed_ms = self.anchor.0 + (boot_ms - self.anchor.1) + 1_000;
        }
        self.last_ms = self.last_ms.max(wall_ms.min(self.believed_ms));
        self.last_ms
    }

    /// The cells on the way from a budget to its root, in the order in which they are asked.
    pub fn cells_above(&self, path: &str) -> Vec<Kind> {
        let mut cells = Vec::new();
        for above in ancestors(path) {
            for window in 0..5 {
                for unit in 0..UNITS {
                    let cell = (above.to_owned(), unit, window);
                    if self.limits.contains_key(&cell) {
                        cells.push(cell);
                    }
                }
            }
        }
        cells
    }

    /// What is counted in a window, or would be if it were opened now.
    fn opened(&self, path: &str, kind: usize, window: i64) -> Open {
        let known = self.open.get(&(path.to_owned(), kind, window)).cloned();
        known.unwrap_or_else(|| {
            let mut fresh = Open::default();
            for unit in 0..UNITS {
                let (limit, overdraft) = self.limits.get(&(path.to_owned(), unit, kind)).copied().unwrap_or_default();
                (fresh.limit[unit], fresh.overdraft[unit]) = (limit, overdraft);
            }
            fresh
        })
    }

    pub fn limit(&self, (path, unit, kind): &Kind, window: i64) -> (i64, i64) {
        let open = self.opened(path, *kind, window);
        (open.limit[*unit], open.overdraft[*unit])
    }

    pub fn used(&self, (path, unit, kind): &Kind, window: i64) -> i64 {
        self.opened(path, *kind, window).used[*unit]
    }

    fn spend(&mut self, (path, unit, kind): &Kind, window: i64, amount: i64) {
        let place = self.open.get_mut(&(path.clone(), *kind, window)).expect("a hold keeps its windows");
        place.used[*unit] += amount;
    }

    pub fn held(&self, cell: &Kind, window: i64) -> i64 {
        let (path, unit, kind) = cell;
        if *unit == Unit::Requests.index() {
            return 0;
        }
        self.inside(path, *kind, window).map(|hold| hold.held[*unit]).sum()
    }

    /// Holds in a window of a budget.
    fn inside(&self, path: &str, kind: usize, window: i64) -> impl Iterator<Item = &Hold> {
        let inside = move |hold: &&Hold| ancestors(&hold.path).any(|above| above == path);
        self.holds.values().filter(inside).filter(move |hold| hold.windows[kind] == window)
    }

    /// Whether any hold of the ledger is in a window of a kind that limits it.
    fn is_pinned(&self, kind: usize, window: i64) -> bool {
        let limited = |hold: &&Hold| self.cells_above(&hold.path).iter().any(|cell| cell.2 == kind);
        self.holds.values().filter(|hold| hold.windows[kind] == window).any(|hold| limited(&hold))
    }

    pub fn available(&self, cell: &Kind, window: i64) -> i64 {
        let (limit, overdraft) = self.limit(cell, window);
        limit + overdraft - self.used(cell, window) - self.held(cell, window)
    }

    fn refusal(&self, cell: &Kind, window: i64, asked: i64) -> Option<DenialKind> {
        if asked == 0 || asked <= self.available(cell, window) {
            return None;
        }
        let (limit, overdraft) = self.limit(cell, window);
        let most = limit + overdraft;
        Some(if asked > most {
            DenialKind::TooLarge
        } else if self.used(cell, window) + asked > most {
            DenialKind::Exhausted
        } else {
            DenialKind::Contended
        })
    }

    /// The kinds of all refusals on the way, worst first.
    pub fn refusals(&self, path: &str, windows: &[i64; 5], asked: &[i64; UNITS]) -> Vec<(Kind, DenialKind)> {
        let refuse = |cell: Kind| self.refusal(&cell, windows[cell.2], asked[cell.1]).map(|kind| (cell, kind));
        self.cells_above(path).into_iter().filter_map(refuse).collect()
    }

    fn worst(refusals: &[(Kind, DenialKind)]) -> Option<DenialKind> {
        refusals.iter().map(|(_, kind)| *kind).max_by_key(|kind| rank(*kind))
    }

    /// Enters a window: nobody may while holds of another one have its place, or once it is over.
    fn enter(&mut self, kind: usize, window: i64) -> Result<(), Refused> {
        let place = (kind, window % EPOCHS);
        match self.epochs.get(&place).copied() {
            Some((known, over)) if known > window || (known == window && over) => Err(Refused::Old),
            Some((known, _)) if known < window && self.is_pinned(kind, known) => Err(Refused::Room),
            _ => {
                self.epochs.insert(place, (window, false));
                Ok(())
            }
        }
    }

    /// Ends a window for good; whether its place in a budget can be had.
    fn is_over(&mut self, path: &str, kind: usize, window: i64) -> bool {
        let place = (kind, window % EPOCHS);
        match self.epochs.get(&place).copied() {
            Some((known, _)) if known > window => return true,
            Some((known, _)) if known < window && self.is_pinned(kind, known) => return false,
            _ => {}
        }
        self.epochs.insert(place, (window, true));
        self.inside(path, kind, window).next().is_none()
    }

    /// Gives a window of a budget one of its places.
    fn open(&mut self, path: &str, kind: usize, window: i64) -> Result<(), Refused> {
        let name = (path.to_owned(), kind);
        let ring = self.rings.entry(name.clone()).or_insert_with(|| vec![None; PLACES[kind]]).clone();
        let first = usize::try_from(window).unwrap() % ring.len();
        let mut free = None;
        for place in (first..ring.len()).chain(0..first) {
            if ring[place] == Some(window) {
                return Ok(());
            }
            if ring[place].is_some_and(|other| other > window) {
                return Err(Refused::Old);
            }
            if free.is_none() && ring[place].is_none_or(|old| self.is_over(path, kind, old)) {
                free = Some(place);
            }
        }
        let place = free.ok_or(Refused::Room)?;
        let fresh = self.opened(path, kind, window);
        if let Some(old) = self.rings.get_mut(&name).expect("made above")[place].replace(window) {
            self.open.remove(&(path.to_owned(), kind, old));
        }
        self.open.insert((path.to_owned(), kind, window), fresh);
        Ok(())
    }

    pub fn windows_at(now_ms: i64) -> [i64; 5] {
        Window::ALL.map(|window| window_number(window, now_ms))
    }

    /// Grants a hold or says why not. What is past its deadline holds nothing any more.
    pub fn reserve(&mut self, number: usize, hold: &Hold, now_ms: i64) -> Result<(), DenialKind> {
        self.deadlines |= hold.deadline_ms.is_some();
        loop {
            let refused = match self.grant(number, hold.clone()) {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            };
            if matches!(refused, Refused::Old) || !self.deadlines || self.recover(now_ms) == 0 {
                let all = self.refusals(&hold.path, &hold.windows, &hold.held);
                let worst = matches!(refused, Refused::Cells).then(|| Self::worst(&all).expect("one refused"));
                return Err(worst.unwrap_or(DenialKind::Contended));
            }
        }
    }

    fn grant(&mut self, number: usize, hold: Hold) -> Result<(), Refused> {
        if self.holds.len() >= self.holds_max {
            return Err(Refused::Room);
        }
        let cells = self.cells_above(&hold.path);
        let mut kinds: Vec<usize> = Vec::new();
        for cell in cells.iter().filter(|cell| cell.2 != 0) {
            if !kinds.contains(&cell.2) {
                kinds.push(cell.2);
                self.enter(cell.2, hold.windows[cell.2])?;
            }
        }
        for cell in &cells {
            self.open(&cell.0, cell.2, hold.windows[cell.2])?;
            if !hold.forced && self.refusal(cell, hold.windows[cell.2], hold.held[cell.1]).is_some() {
                return Err(Refused::Cells);
            }
        }
        for cell in cells.into_iter().filter(|cell| cell.1 == Unit::Requests.index()) {
            self.spend(&cell, hold.windows[cell.2], hold.held[Unit::Requests.index()]);
        }
        self.holds.insert(number, hold);
        Ok(())
    }

    /// `None`: it has ended. Else whether it is covered.
    pub fn charge(&mut self, number: usize, amounts: &[i64; UNITS], dispatch: bool, now_ms: i64) -> Option<bool> {
        let hold = self.holds.get_mut(&number)?;
        if hold.deadline_ms.is_some_and(|deadline| now_ms > deadline) {
            return None;
        }
        hold.dispatched |= dispatch;
        hold.streamed |= !dispatch;
        let mut covered = true;
        for unit in 0..UNITS {
            hold.charged[unit] += amounts[unit];
            covered &= hold.charged[unit] <= hold.held[unit];
        }
        Some(covered || hold.forced)
    }

    pub fn top_up(&mut self, number: usize, more: &[i64; UNITS], now_ms: i64) -> Result<(), DenialKind> {
        if more[Unit::Requests.index()] != 0 {
            return Err(DenialKind::TooLarge);
        }
        let hold = self.holds.get(&number).ok_or(DenialKind::Expired)?;
        if hold.deadline_ms.is_some_and(|deadline| now_ms > deadline) {
            return Err(DenialKind::Expired);
        }
        if !hold.forced {
            let refusals = self.refusals(&hold.path, &hold.windows, more);
            Self::worst(&refusals).map_or(Ok(()), Err)?;
        }
        let hold = self.holds.get_mut(&number).expect("it was there");
        (0..UNITS).for_each(|unit| hold.held[unit] += more[unit]);
        Ok(())
    }

    /// What a hold comes to where nobody says.
    pub fn unreported(hold: &Hold, dispatched: bool) -> [i64; UNITS] {
        let mut actual = [0; UNITS];
        for unit in Unit::ALL {
            let (held, charged) = (hold.held[unit.index()], hold.charged[unit.index()]);
            actual[unit.index()] = match unit {
                Unit::InFlight | Unit::KvBlocks => 0,
                Unit::Requests => held.max(charged),
                _ if !dispatched || (hold.streamed && charged != 0) => charged,
                _ => held.max(charged),
            };
        }
        actual
    }

    /// Ends a hold with what was used. `false` if it had ended.
    pub fn end(&mut self, number: usize, actual: impl FnOnce(&Hold) -> [i64; UNITS]) -> bool {
        let Some(hold) = self.holds.remove(&number) else { return false };
        let actual = actual(&hold);
        for cell in self.cells_above(&hold.path) {
            // Requests were spent when they were granted; more of them is owed.
            let spent = if cell.1 == Unit::Requests.index() { hold.held[cell.1] } else { 0 };
            self.spend(&cell, hold.windows[cell.2], actual[cell.1] - spent);
        }
        true
    }

    /// Ends what is past its deadline; how many.
    pub fn recover(&mut self, now_ms: i64) -> usize {
        let over = |hold: &Hold| hold.deadline_ms.is_some_and(|deadline| deadline < now_ms);
        let ended: Vec<usize> = self.holds.iter().filter(|(_, hold)| over(hold)).map(|(number, _)| *number).collect();
        ended.iter().for_each(|number| {
            self.end(*number, |hold| Self::unreported(hold, hold.dispatched));
        });
        ended.len()
    }

    /// The limit of this window and all later ones; what it was. `None` if there is no such cell.
    pub fn set_limit(&mut self, cell: &Kind, limit: i64, now_ms: i64) -> Option<i64> {
        let current = window_number(Window::ALL[cell.2], now_ms);
        let known = self.limits.get_mut(cell)?;
        let before = std::mem::replace(&mut known.0, limit);
        for ((path, kind, window), open) in &mut self.open {
            if *path == cell.0 && *kind == cell.2 && *window >= current {
                open.limit[cell.1] = limit;
            }
        }
        Some(before)
    }

    /// Believes the clock as it is. If it is back from a time that never was, windows after it are forgotten unless a hold
    /// lives there.
    pub fn accept_clock(&mut self, wall_ms: i64, boot_ms: i64) {
        (self.anchor, self.believed_ms) = ((wall_ms, boot_ms), i64::MIN);
        if wall_ms >= self.last_ms {
            return;
        }
        (self.last_ms, self.went_back) = (wall_ms, true);
        let now = Self::windows_at(wall_ms);
        let later = |kind: usize, window: i64| kind != 0 && window > now[kind];
        let known = self.epochs.clone();
        let forgotten = |place: &(usize, i64)| {
            let window = known.get(place).map(|(window, _)| *window);
            window.is_some_and(|window| later(place.0, window) && !self.is_pinned(place.0, window))
        };
        let gone: Vec<(usize, i64)> = known.keys().filter(|place| forgotten(place)).copied().collect();
        gone.iter().for_each(|place| {
            self.epochs.remove(place);
        });
        for ((path, kind), ring) in &mut self.rings {
            for place in ring {
                let Some(window) = place.filter(|window| later(*kind, *window)) else { continue };
                if self.epochs.get(&(*kind, window % EPOCHS)).is_none_or(|(known, _)| *known != window) {
                    *place = None;
                    self.open.remove(&(path.clone(), *kind, window));
                }
            }
        }
    }
}
