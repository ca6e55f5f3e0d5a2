//! The decision core of Tollkeeper. No Python, no async runtime, no I/O while deciding.
//!
//! | room | owns |
//! |---|---|
//! | [`policy`] | Cedar text to a compiled, indexed program; entities; requests; decisions with reasons and errors |
//! | [`gate`] | the pipeline over the rooms: tools, scopes, modes, denial codes |
//!
//! Shared by the rooms: [`uid`] and [`value`] (Cedar's data), [`arguments`] (the snapshot of one call), [`limits`]
//! (every bound). One request: the binding fills an [`arguments::Arguments`], the gate asks the policy room, and a
//! verdict goes back; the budget and audit rooms take their steps between the two.

pub mod arguments;
pub mod budget;
pub mod gate;
pub mod limits;
pub mod map;
#[cfg(all(test, not(loom)))]
mod mortal;
pub mod policy;
pub mod sync;
pub mod uid;
pub mod value;
