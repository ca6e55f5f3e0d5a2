//! The decision core of Tollkeeper. No Python, no async runtime, no I/O while deciding.
//!
//! | room | owns |
//! |---|---|
//! | [`policy`] | Cedar text to a compiled, indexed program; entities; requests; decisions with reasons and errors |
//! | [`budget`] | the ledger: a tree of budgets, windows, holds; the meter for inference engines |
//! | [`gate`] | the pipeline over the rooms: tools, scopes, modes, denial codes |
//!
//! Shared by the rooms: [`uid`] and [`value`] (Cedar's data), [`arguments`] (the snapshot of one call), [`limits`]
//! (every bound). One request: the binding fills an [`arguments::Arguments`], the gate asks the policy room and
//! has the budget room reserve, and a verdict goes back; the audit room will take its step before that.

#![cfg_attr(loom, expect(dead_code, unused_imports, reason = "under the model checker nothing maps a file"))]

pub mod arguments;
pub mod audit;
pub mod budget;
#[cfg(not(loom))]
pub mod gate;
/// Of the gate the model checker sees only what processes share.
#[cfg(loom)]
pub mod gate {
    pub mod control;
}
pub mod limits;
pub mod map;
#[cfg(test)]
#[cfg(not(loom))]
mod mortal;
pub mod policy;
pub mod sync;
pub mod uid;
pub mod value;
