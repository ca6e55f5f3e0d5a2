//! What is counted, and how much of it: whole numbers only.
//!
//! No floats and no clocks here. An amount is checked once, where it enters the room, so that the arithmetic on cells
//! cannot overflow in a lifetime.

use super::error::BudgetError;
use crate::limits::AMOUNT_MAX;

/// How many units there are.
pub const UNITS: usize = 5;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Tokens of language models
    Tokens,
    /// Billionths of a US dollar
    NanoUsd,
    /// Requests; spent when granted
    Requests,
    /// Calls in flight; a level that comes back when a hold ends
    InFlight,
    /// Blocks of a KV cache; a level that comes back when a hold ends
    KvBlocks,
}

impl Unit {
    /// All of them, in the order of every array of amounts.
    pub const ALL: [Self; UNITS] = [Self::Tokens, Self::NanoUsd, Self::Requests, Self::InFlight, Self::KvBlocks];

    /// Its name in files and in Python.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::NanoUsd => "nano_usd",
            Self::Requests => "requests",
            Self::InFlight => "in_flight",
            Self::KvBlocks => "kv_blocks",
        }
    }

    /// The unit of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|unit| unit.name() == name)
    }

    /// Its place in an array of amounts.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// A level is held and comes back in full; a sum is spent.
    pub const fn is_level(self) -> bool {
        matches!(self, Self::InFlight | Self::KvBlocks)
    }
}

/// An amount of each unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts(pub [i64; UNITS]);

/// What a settle says was really used, per unit; `None` where it says nothing.
pub type Reported = [Option<i64>; UNITS];

impl Amounts {
    /// Nothing.
    pub const NONE: Self = Self([0; UNITS]);

    /// An amount of one unit.
    #[must_use]
    pub fn of(unit: Unit, amount: i64) -> Self {
        Self::NONE.and(unit, amount)
    }

    /// The same with another amount of `unit`.
    #[must_use]
    pub fn and(mut self, unit: Unit, amount: i64) -> Self {
        if let Some(place) = self.0.get_mut(unit.index()) {
            *place = amount;
        }
        self
    }

    /// The amount of one unit.
    #[inline]
    pub fn get(&self, unit: Unit) -> i64 {
        self.0.get(unit.index()).copied().unwrap_or_default()
    }

    /// Every amount with its unit.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = (Unit, i64)> + use<> {
        Unit::ALL.into_iter().zip(self.0)
    }

    /// Whether all amounts are zero.
    #[inline]
    pub fn is_none(&self) -> bool {
        self.0.iter().all(|amount| *amount == 0)
    }

    /// Refuses amounts that are negative or beyond [`AMOUNT_MAX`].
    #[inline]
    pub fn check(&self) -> Result<(), BudgetError> {
        for (unit, amount) in self.iter() {
            check_amount(unit, amount)?;
        }
        Ok(())
    }
}

/// Refuses an amount that is negative or beyond [`AMOUNT_MAX`].
#[inline]
pub fn check_amount(unit: Unit, amount: i64) -> Result<(), BudgetError> {
    if (0..=AMOUNT_MAX).contains(&amount) { Ok(()) } else { Err(BudgetError::Amount { unit, amount }) }
}
