//! A ledger that nobody could get wrong: one thread, maps, a list of holds, no bits and no undo.
//!
//! It shares no code with the ledger but the names of units, windows and kinds of denial. Windows are found by counting
//! calendar days. What it refuses to know: processes, memory, and how fast anything is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

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

#[derive(Debug, Default)]
pub struct Model {
    /// Limit and overdraft of each cell, with the number of the first window they are for
    pub limits: BTreeMap<Kind, Vec<(i64, i64, i64)>>,
    pub budgets: BTreeSet<Path>,
    pub used: HashMap<(Kind, i64), i64>,
    pub holds: BTreeMap<usize, Hold>,
    pub holds_max: usize,
    /// The windows that have a place, by budget and kind
    pub rings: BTreeMap<(Path, usize), Vec<Option<i64>>>,
    /// Some hold has had a deadline
    pub deadlines: bool,
    pub last_ms: i64,
    pub anchor: (i64, i64),
    pub believed_ms: i64,
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

    pub fn limit(&self, cell: &Kind, window: i64) -> (i64, i64) {
        let known =
            self.limits[cell].iter().rfind(|(from, ..)| *from <= window).expect("the first is for every window");
        (known.1, known.2)
    }

    pub fn used(&self, cell: &Kind, window: i64) -> i64 {
        self.used.get(&(cell.clone(), window)).copied().unwrap_or(0)
    }

    pub fn held(&self, cell: &Kind, window: i64) -> i64 {
        let (path, unit, kind) = cell;
        if *unit == Unit::Requests.index() {
            return 0;
        }
        let inside = |hold: &&Hold| ancestors(&hold.path).any(|above| above == path) && hold.windows[*kind] == window;
        self.holds.values().filter(inside).map(|hold| hold.held[*unit]).sum()
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

    /// Gives a window of a budget one of its places, if there is one in whose window no hold lives.
    fn open(&mut self, path: &str, kind: usize, window: i64) -> bool {
        let places = [1, 16, 4, 4, 4][kind];
        // A hold keeps its windows of every budget on its way.
        let inside = |hold: &&Hold| ancestors(&hold.path).any(|above| above == path);
        let live: BTreeSet<i64> = self.holds.values().filter(inside).map(|hold| hold.windows[kind]).collect();
        let ring = self.rings.entry((path.to_owned(), kind)).or_insert_with(|| vec![None; places]);
        if kind == 0 || ring.contains(&Some(window)) {
            return true;
        }
        let first = usize::try_from(window).unwrap() % places;
        let mut order = (first..places).chain(0..first);
        let free = order.find(|place| ring[*place].is_none_or(|old| !live.contains(&old)));
        if let Some(place) = free {
            ring[place] = Some(window);
        }
        free.is_some()
    }

    pub fn windows_at(now_ms: i64) -> [i64; 5] {
        Window::ALL.map(|window| window_number(window, now_ms))
    }

    /// Grants a hold or says why not. What is past its deadline holds nothing any more.
    pub fn reserve(&mut self, number: usize, hold: &Hold, now_ms: i64) -> Result<(), DenialKind> {
        self.deadlines |= hold.deadline_ms.is_some();
        loop {
            match self.grant(number, hold.clone()) {
                Err(_) if self.deadlines && self.recover(now_ms) > 0 => {}
                answer => return answer,
            }
        }
    }

    fn grant(&mut self, number: usize, hold: Hold) -> Result<(), DenialKind> {
        if self.holds.len() >= self.holds_max {
            return Err(DenialKind::Contended);
        }
        let cells = self.cells_above(&hold.path);
        // So many windows after a hold was granted, its epoch has the place of another one: see `EPOCHS_LEN`.
        let in_the_way = |cell: &Kind| {
            let limited = |other: &&Hold| self.cells_above(&other.path).iter().any(|theirs| theirs.2 == cell.2);
            let (kind, window) = (cell.2, hold.windows[cell.2]);
            let lies = |other: &Hold| other.windows[kind] != window && (other.windows[kind] - window) % 4_096 == 0;
            kind != 0 && self.holds.values().filter(limited).any(lies)
        };
        if cells.iter().any(in_the_way) {
            return Err(DenialKind::Contended);
        }
        for cell in &cells {
            if !self.open(&cell.0, cell.2, hold.windows[cell.2]) {
                return Err(DenialKind::Contended);
            }
            if !hold.forced && self.refusal(cell, hold.windows[cell.2], hold.held[cell.1]).is_some() {
                let all = self.refusals(&hold.path, &hold.windows, &hold.held);
                return Err(Self::worst(&all).expect("one refused"));
            }
        }
        for cell in cells.into_iter().filter(|cell| cell.1 == Unit::Requests.index()) {
            let window = hold.windows[cell.2];
            *self.used.entry((cell, window)).or_default() += hold.held[Unit::Requests.index()];
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
            let (unit, window) = (cell.1, hold.windows[cell.2]);
            // Requests were spent when they were granted; more of them is spent now.
            let spent = if unit == Unit::Requests.index() { hold.held[unit] } else { 0 };
            *self.used.entry((cell, window)).or_default() += actual[unit] - spent;
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
        let window = window_number(Window::ALL[cell.2], now_ms);
        let known = self.limits.get_mut(cell)?;
        let (_, before, overdraft) = *known.last().expect("the first is for every window");
        known.push((window, limit, overdraft));
        Some(before)
    }
}
