//! Why a reserve was denied: a value, with the cell that refused and what to do.

use std::fmt;

use super::unit::Unit;
use super::window::Window;

/// Kinds of denial. Only [`DenialKind::Contended`] is worth a retry before the window ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DenialKind {
    /// What is spent leaves too little in this window
    Exhausted,
    /// What is held leaves too little; it fits if the holds end low
    Contended,
    /// It does not fit even an untouched budget
    TooLarge,
    /// The hold's deadline has passed, or it has ended
    Expired,
    /// A model or a component of its usage has no price
    Unpriced,
    /// No such budget, or no ledger that can answer
    Unavailable,
}

impl DenialKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Exhausted, Self::Contended, Self::TooLarge, Self::Expired, Self::Unpriced, Self::Unavailable];

    /// Stable name.
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Exhausted => "budget.exhausted",
            Self::Contended => "budget.contended",
            Self::TooLarge => "budget.too_large",
            Self::Expired => "budget.expired",
            Self::Unpriced => "budget.unpriced",
            Self::Unavailable => "budget.unavailable",
        }
    }
}

/// A denial, with the level, unit and window that refused where one did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// What kind
    pub kind: DenialKind,
    /// The budget that refused, or the one that was asked for
    pub path: String,
    /// The unit that refused
    pub unit: Option<Unit>,
    /// The window that refused
    pub window: Option<Window>,
    /// How much was asked for
    pub requested: i64,
    /// limit + overdraft - used - held - stranded at that moment; negative is debt
    pub available: i64,
    /// The cell's limit
    pub limit: i64,
    /// Spent in the window
    pub used: i64,
    /// Held by live holds
    pub held: i64,
    /// When it is worth another try; `None` for never
    pub retry_after_ms: Option<i64>,
    /// What is wrong, where no cell refused
    pub message: Option<String>,
}

impl Denial {
    /// A denial that no cell made.
    pub fn of(kind: DenialKind, path: &str, message: String) -> Self {
        Self {
            kind,
            path: path.to_owned(),
            unit: None,
            window: None,
            requested: 0,
            available: 0,
            limit: 0,
            used: 0,
            held: 0,
            retry_after_ms: None,
            message: Some(message),
        }
    }

    /// The sentence for whoever asked.
    pub fn reason(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(message) = &self.message {
            return f.write_str(message);
        }
        let (path, requested) = (&self.path, self.requested);
        let unit = self.unit.map_or("units", Unit::name);
        let window = match self.window {
            None | Some(Window::Total) => String::new(),
            Some(window) => format!(" per {}", window.name()),
        };
        let limit = self.limit;
        write!(
            f,
            "budget `{path}` has {} of {limit} {unit}{window} available, {requested} asked for; ",
            self.available
        )?;
        match (self.kind, self.retry_after_ms) {
            (DenialKind::TooLarge, _) => f.write_str("this never fits, ask for less"),
            (DenialKind::Exhausted, Some(ms)) => write!(f, "the window ends in {} s, do not retry before", seconds(ms)),
            (DenialKind::Exhausted, None) => f.write_str("it is spent for good, do not retry"),
            (DenialKind::Contended, ms) => {
                write!(f, "{} are held by running work, retry in {} s", self.held, seconds(ms.unwrap_or(0)))
            }
            (kind, _) => f.write_str(kind.slug()),
        }
    }
}

/// Seconds with three digits, rounded up so that who waits that long does not come too early.
fn seconds(ms: i64) -> String {
    format!("{}.{:03}", ms / 1_000, ms % 1_000)
}
