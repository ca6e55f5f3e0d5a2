//! The policy room: what is allowed. Knows nothing of budgets, audit or Python.

pub mod entities;
pub mod error;
pub mod extension;
pub mod front;
pub mod like;
pub mod parse;
mod schema_bounds;
