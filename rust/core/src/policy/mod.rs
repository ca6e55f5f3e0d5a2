//! The policy room: what is allowed. Knows nothing of budgets, audit or Python.
//!
//! Text comes in through [`front`] and [`parse`], is lowered to a [`tree`], compiled to a [`program`] and indexed by
//! [`index`]; a [`set::PolicySet`] answers requests against [`entities`].

pub mod batch;
pub mod cases;
pub mod compile;
pub mod entities;
pub mod error;
pub mod eval;
pub mod explain;
pub mod extension;
pub mod front;
pub mod guards;
pub mod heads;
pub mod index;
pub mod like;
pub mod lower;
pub mod parse;
pub mod program;
mod schema_bounds;
pub mod set;
pub mod tree;
pub mod words;
